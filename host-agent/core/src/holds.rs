//! Which operations may run beside each other: holds on ranges of blocks.
//!
//! COMPARE AND WRITE (SBC-4 5.3) and ORWRITE (SBC-4 5.x) are to read and write their blocks as an
//! uninterrupted series of actions, so no other write may touch the blocks between: they hold their
//! range *exclusively*. All other writes (WRITE, WRITE SAME, UNMAP, the destination of a copy) hold
//! theirs *shared*, because nothing is promised about two of them. Reads hold nothing: they change
//! nothing, so the series stays uninterrupted as far as any result can tell, and SBC-4 promises no
//! reader of several blocks that they are from one moment.
//!
//! Fair: an operation waits for those that came before it and conflict with it, running or waiting,
//! and for nothing else. So nobody is overtaken by a conflicting one, and nobody waits for ever.

use crate::units::DeviceHandle;

/// Blocks of one device. `blocks` is at least 1 and the end does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) device: DeviceHandle,
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
}

impl Extent {
    fn overlaps(&self, other: &Self) -> bool {
        self.device == other.device
            && self.lba < other.lba.saturating_add(other.blocks)
            && other.lba < self.lba.saturating_add(self.blocks)
    }
}

/// What one operation holds from its arrival to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Nothing: a read, a flush.
    Nothing,
    /// One range that other shared holders may touch.
    Shared(Extent),
    /// Several of them: UNMAP, EXTENDED COPY.
    SharedList(Vec<Extent>),
    /// One range that nobody else may hold.
    Exclusive(Extent),
}

impl Hold {
    pub(crate) fn is_exclusive(&self) -> bool {
        matches!(self, Self::Exclusive(_))
    }

    fn extents(&self) -> &[Extent] {
        match self {
            Self::Nothing => &[],
            Self::Shared(extent) | Self::Exclusive(extent) => std::slice::from_ref(extent),
            Self::SharedList(extents) => extents,
        }
    }

    /// Whether the later of the two has to wait for the earlier.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        (self.is_exclusive() || other.is_exclusive())
            && self.extents().iter().any(|one| other.extents().iter().any(|two| one.overlaps(two)))
    }
}
