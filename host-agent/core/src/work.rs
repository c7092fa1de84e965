//! What an operation still has to do when its present step at a handler is over. Most have nothing:
//! one request, one outcome.

use lunar_handlers::Request;

use crate::copy::Copy;
use crate::forwarded::Forwarded;
use crate::operations::Step;

/// See the module.
#[derive(Debug, PartialEq)]
pub(crate) enum Work {
    /// Nothing: the step's outcome is the operation's.
    Once,
    /// UNMAP: the other ranges (first block, blocks), the next one last.
    Unmap(Vec<(u64, u64)>),
    /// EXTENDED COPY: the rest of it.
    Copy(Box<Copy>),
    /// START STOP UNIT that ejects the medium once what is cached has been flushed.
    Eject(Box<Forwarded>),
}

impl Work {
    /// The step after `done`, which was carried out; `None` when that was the last.
    pub(crate) fn next(&mut self, done: &Step) -> Option<Step> {
        match self {
            Self::Once | Self::Eject(_) => None,
            Self::Unmap(rest) => {
                let (lba, blocks) = rest.pop()?;
                Some(Step { request: Request::Unmap { lba, blocks }, ..*done })
            }
            Self::Copy(copy) => copy.next(done),
        }
    }

    /// Whether there may be another step to leave out.
    pub(crate) fn has_more(&self) -> bool {
        match self {
            Self::Once | Self::Eject(_) => false,
            Self::Unmap(rest) => !rest.is_empty(),
            Self::Copy(_) => true,
        }
    }

    /// The copy that it is.
    pub(crate) fn copy(&self) -> Option<&Copy> {
        match self {
            Self::Copy(copy) => Some(copy),
            Self::Once | Self::Unmap(_) | Self::Eject(_) => None,
        }
    }

    pub(crate) fn copy_mut(&mut self) -> Option<&mut Copy> {
        match self {
            Self::Copy(copy) => Some(copy),
            Self::Once | Self::Unmap(_) | Self::Eject(_) => None,
        }
    }
}
