//! Hints between card and host: an eventfd a direction. A hint says "look", never what there is to
//! see, and may be lost; both sides look on their own at least every millisecond while work is
//! outstanding (DESIGN section 4, polling).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;

/// One direction's wake-up line. Cloning shares it.
#[derive(Clone, Debug)]
pub struct HintLine(Arc<OwnedFd>);

impl HintLine {
    /// A new line.
    ///
    /// # Errors
    /// What eventfd(2) says.
    pub fn new() -> io::Result<Self> {
        let descriptor = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(descriptor)))
    }

    /// The line behind an eventfd that another process made.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn from_fd(descriptor: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        Ok(Self(Arc::new(descriptor)))
    }

    /// The eventfd, to wait on or to pass on.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Wakes the other side. A full counter means that it is awake already.
    pub fn signal(&self) {
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Takes what was signalled; whether there was anything.
    pub fn drain(&self) -> bool {
        matches!(rustix::io::read(&*self.0, &mut [0u8; 8]), Ok(8))
    }
}
