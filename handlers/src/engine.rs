//! The two ways to make a request's system calls, behind one type: io_uring, and synchronous calls
//! where the kernel refuses io_uring. Which call comes next and what a result means is decided in
//! [`crate::running`].

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::device::{CancelAnswer, Outcome, RequestId};
use crate::running::Running;
use crate::synchronous::Synchronous;
use crate::uring::Uring;

/// Which engine a device shall use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring; synchronous system calls where the kernel refuses it (ENOSYS, EPERM, a limit).
    #[default]
    Automatic,
    /// io_uring or an error.
    Uring,
    /// Synchronous system calls: `poll` blocks for as long as the backing does.
    Synchronous,
}

/// The engine of one open file.
pub(crate) enum Engine {
    Uring(Box<Uring>),
    Synchronous(Synchronous),
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Engine {
    /// Opens the engine for `file`; the second value is a warning when io_uring was wanted and
    /// could not be had.
    pub(crate) fn open(
        file: &Arc<File>,
        choice: EngineChoice,
    ) -> io::Result<(Self, Option<String>)> {
        Self::choose(choice, file, || Uring::new(file))
    }

    fn choose(
        choice: EngineChoice,
        file: &Arc<File>,
        uring: impl FnOnce() -> io::Result<Uring>,
    ) -> io::Result<(Self, Option<String>)> {
        let synchronous = || Self::Synchronous(Synchronous::new(file));
        if choice == EngineChoice::Synchronous {
            return Ok((synchronous(), None));
        }
        match uring() {
            Ok(uring) => Ok((Self::Uring(Box::new(uring)), None)),
            Err(error) if choice == EngineChoice::Automatic => {
                let text = format!(
                    "the kernel refused io_uring ({error}); using synchronous system calls, which are slower \
                     (see /proc/sys/kernel/io_uring_disabled and the container's seccomp profile)"
                );
                Ok((synchronous(), Some(text)))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Uring(_) => "io_uring",
            Self::Synchronous(_) => "synchronous",
        }
    }

    pub(crate) fn submit(&mut self, running: Running) {
        match self {
            Self::Uring(uring) => uring.submit(running),
            Self::Synchronous(synchronous) => synchronous.submit(running),
        }
    }

    pub(crate) fn cancel(&mut self, id: RequestId) -> CancelAnswer {
        match self {
            Self::Uring(uring) => uring.cancel(id),
            Self::Synchronous(synchronous) => synchronous.cancel(id),
        }
    }

    /// As [`crate::BlockDevice::poll`], with the requests themselves, which own a scratch piece.
    pub(crate) fn poll(&mut self, ended: &mut Vec<(Running, Outcome)>) {
        match self {
            Self::Uring(uring) => uring.poll(ended),
            Self::Synchronous(synchronous) => synchronous.poll(ended),
        }
    }

    pub(crate) fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Uring(uring) => Some(uring.event_fd()),
            // `poll` reports everything that was submitted, so there is nothing to wait for.
            Self::Synchronous(_) => None,
        }
    }

    /// Makes the descriptor readable: something was submitted outside the caller's turn.
    pub(crate) fn wake(&self) {
        if let Self::Uring(uring) = self {
            uring.wake();
        }
    }

    pub(crate) fn outstanding(&self) -> usize {
        match self {
            Self::Uring(uring) => uring.outstanding(),
            Self::Synchronous(synchronous) => synchronous.outstanding(),
        }
    }
}

/// Takes the request `id` out of the requests that no system call is under way for, if it can be
/// stopped.
pub(crate) fn withdraw(waiting: &mut VecDeque<Running>, id: RequestId) -> Option<Running> {
    let at = waiting.iter().position(|running| running.id == id)?;
    waiting.get_mut(at)?.stop(false).then(|| waiting.remove(at)).flatten()
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_refused_io_uring_gives_the_synchronous_engine_and_a_warning() {
        let file = Arc::new(tempfile::tempfile().expect("file"));
        for errno in [Errno::NOSYS, Errno::PERM] {
            let refuse = || Err(io::Error::from(errno));
            let (engine, warning) =
                Engine::choose(EngineChoice::Automatic, &file, refuse).expect("engine");
            assert_eq!(engine.name(), "synchronous");
            assert!(warning.expect("a warning").contains("refused io_uring"));
            assert!(Engine::choose(EngineChoice::Uring, &file, refuse).is_err());
        }
    }
}
