//! The two ways to move blocks between a file and an arena, behind one type: io_uring, and
//! synchronous system calls where the kernel refuses io_uring. What a result means is decided here,
//! once for both.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;

use crate::device::{ByteRange, CancelAnswer, Ended, Outcome, Request, RequestId};
use crate::memory::HostBuffer;
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

/// A request on its way through an engine. Owns its window, and so keeps the arena mapped.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) id: RequestId,
    pub(crate) request: Request,
    /// Zero for a flush.
    pub(crate) range: ByteRange,
    /// `None` for a flush.
    pub(crate) data: Option<HostBuffer>,
    /// RWF_DSYNC for a write.
    pub(crate) durable: bool,
    block_bytes: u32,
    done_bytes: u32,
    again_count: u32,
}

/// How often an interrupted or refused (EINTR, EAGAIN) transfer is tried again without progress.
const AGAIN_COUNT_MAX: u32 = 64;

impl Running {
    pub(crate) fn new(
        id: RequestId,
        request: Request,
        range: Option<ByteRange>,
        data: Option<HostBuffer>,
        durable: bool,
        block_bytes: u32,
    ) -> Self {
        let range = range.unwrap_or(ByteRange { offset: 0, length: 0 });
        let data = if request == Request::Flush { None } else { data };
        Self { id, request, range, data, durable, block_bytes, done_bytes: 0, again_count: 0 }
    }

    /// The window and file offset still to be moved; `None` for a flush.
    pub(crate) fn rest(&self) -> Option<(HostBuffer, u64)> {
        let data = self.data.as_ref()?;
        Some((data.skip(self.done_bytes), self.range.offset + u64::from(self.done_bytes)))
    }

    /// Takes the result of one system call: how the request ended, or `None` when the rest has to
    /// be submitted (short transfer, interruption).
    pub(crate) fn advance(&mut self, result: Result<usize, Errno>) -> Option<Outcome> {
        let moved = match result {
            Ok(moved) => moved,
            Err(Errno::INTR | Errno::AGAIN) if self.again_count < AGAIN_COUNT_MAX => {
                self.again_count += 1;
                return None;
            }
            Err(errno) => return Some(self.failed(errno)),
        };
        if self.data.is_none() {
            return Some(Outcome::Done);
        }
        let left = self.range.length - self.done_bytes;
        match u32::try_from(moved) {
            // The end of the file came early: it was truncated below us.
            Ok(0) => Some(self.failed(Errno::IO)),
            Ok(moved) if moved <= left => {
                self.done_bytes += moved;
                self.again_count = 0;
                (moved == left).then_some(Outcome::Done)
            }
            // More than was asked for: not a kernel we know.
            _ => Some(Outcome::HardwareError),
        }
    }

    /// The only place where an errno becomes an outcome.
    fn failed(&self, errno: Errno) -> Outcome {
        let lba = (self.range.offset + u64::from(self.done_bytes)) / u64::from(self.block_bytes);
        match (errno, self.request) {
            (Errno::CANCELED, _) if self.done_bytes == 0 => Outcome::Cancelled,
            (Errno::NOSPC | Errno::DQUOT | Errno::FBIG, _) => Outcome::NoSpace,
            (Errno::ROFS | Errno::PERM, Request::Write { .. }) => Outcome::WriteProtected,
            // What the block layer says of a bad medium: EIO, ENODATA (critical medium error),
            // EILSEQ (protection), EREMOTEIO (critical target error).
            (Errno::IO | Errno::NODATA | Errno::ILSEQ | Errno::REMOTEIO, Request::Read { .. }) => {
                Outcome::ReadError { lba }
            }
            (Errno::IO | Errno::NODATA | Errno::ILSEQ | Errno::REMOTEIO, Request::Write { .. }) => {
                Outcome::WriteError { lba }
            }
            _ => Outcome::HardwareError,
        }
    }
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

    pub(crate) fn poll(&mut self, ended: &mut Vec<Ended>) {
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

    pub(crate) fn outstanding(&self) -> usize {
        match self {
            Self::Uring(uring) => uring.outstanding(),
            Self::Synchronous(synchronous) => synchronous.outstanding(),
        }
    }
}

/// Takes the request `id` out of the requests that no system call was made for.
pub(crate) fn withdraw(waiting: &mut VecDeque<Running>, id: RequestId) -> Option<Running> {
    // A transfer that was cut short and waits for its rest has had an effect.
    let at = waiting.iter().position(|running| running.id == id && running.done_bytes == 0)?;
    waiting.remove(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Arena;

    fn running(request: Request, length: u32) -> Running {
        let data = Arena::anonymous(4096).expect("memory").window(0, length);
        let range = ByteRange { offset: 512 * 10, length };
        Running::new(RequestId(1), request, Some(range), data, false, 512)
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped_and_errors_name_that_block() {
        let mut read = running(Request::Read { lba: 10, blocks: 4 }, 2048);
        assert_eq!(read.advance(Ok(1024)), None);
        let (rest, offset) = read.rest().expect("rest");
        assert_eq!((rest.length(), offset), (1024, 512 * 12));
        assert_eq!(read.advance(Err(Errno::IO)), Some(Outcome::ReadError { lba: 12 }));
        assert_eq!(read.advance(Ok(1024)), Some(Outcome::Done));
    }

    #[test]
    fn a_file_that_ends_early_is_a_read_error() {
        let mut read = running(Request::Read { lba: 10, blocks: 4 }, 2048);
        assert_eq!(read.advance(Ok(0)), Some(Outcome::ReadError { lba: 10 }));
    }

    #[test]
    fn every_errno_has_its_outcome() {
        let mut write = running(Request::Write { lba: 10, blocks: 4, fua: false }, 2048);
        assert_eq!(write.advance(Err(Errno::NOSPC)), Some(Outcome::NoSpace));
        assert_eq!(write.advance(Err(Errno::ROFS)), Some(Outcome::WriteProtected));
        assert_eq!(write.advance(Err(Errno::IO)), Some(Outcome::WriteError { lba: 10 }));
        assert_eq!(write.advance(Err(Errno::NODEV)), Some(Outcome::HardwareError));
        assert_eq!(write.advance(Ok(4096)), Some(Outcome::HardwareError));
    }

    #[test]
    fn an_endless_interruption_ends() {
        let mut write = running(Request::Write { lba: 10, blocks: 4, fua: false }, 2048);
        let ends = (0..=AGAIN_COUNT_MAX).map(|_| write.advance(Err(Errno::AGAIN)));
        assert_eq!(ends.last(), Some(Some(Outcome::HardwareError)));
    }

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
