//! The two traits every handler implements, and the plain data that crosses them.

use std::os::fd::BorrowedFd;

use crate::memory::HostBuffer;

/// The caller's name for one request. Unique among the requests of one device that have not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One block operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reads `blocks` logical blocks from `lba` into the data buffer.
    Read {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, at least 1.
        blocks: u32,
    },
    /// Writes `blocks` logical blocks from the data buffer.
    Write {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, at least 1.
        blocks: u32,
        /// Force unit access (SBC-4): the data is on the medium when the request ends.
        fua: bool,
    },
    /// Puts every write that *ended* before this request was submitted on the medium
    /// (SBC-4 SYNCHRONIZE CACHE; always the whole device).
    Flush,
}

impl Request {
    /// The blocks the request touches: first and number. `None` for a flush.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u32)> {
        match *self {
            Self::Read { lba, blocks } | Self::Write { lba, blocks, .. } => Some((lba, blocks)),
            Self::Flush => None,
        }
    }
}

/// How a request ended. The agent's core turns it into the ring's outcome and a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Carried out.
    Done,
    /// The medium could not be read at `lba` (or what was read there failed verification).
    ReadError {
        /// The first block that could not be read.
        lba: u64,
    },
    /// The medium could not be written at `lba`; nothing is known about that block and those after.
    WriteError {
        /// The first block that could not be written.
        lba: u64,
    },
    /// The device is read-only.
    WriteProtected,
    /// The file system or thin pool below has no space left.
    NoSpace,
    /// The blocks lie beyond the device's end.
    OutOfRange,
    /// Anything else: the backing vanished, the data buffer does not fit the request.
    HardwareError,
    /// [`BlockDevice::cancel`] took the request back before it had any effect.
    Cancelled,
}

/// A request and how it ended.
pub type Ended = (RequestId, Outcome);

/// What [`BlockDevice::cancel`] could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelAnswer {
    /// The request had no effect and will have none; it ends with [`Outcome::Cancelled`].
    Cancelled,
    /// The request has begun (or ended, or was never there); if it is still outstanding, its own
    /// end comes.
    TooLate,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Logical block length in bytes: a power of two, 512 to 65536.
    pub block_bytes: u32,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Writes end with [`Outcome::WriteProtected`].
    pub read_only: bool,
    /// Data of an ended write may be lost at a power failure until a flush (SBC-4: WCE).
    pub write_cache: bool,
    /// `fua` of a write is honoured.
    pub fua: bool,
    /// The medium rotates (for VPD page B1h).
    pub rotational: bool,
    /// The device is thin provisioned.
    pub thin: bool,
}

/// A range of bytes of the backing, checked against the geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte from the device's start. Fits `i64`, as file offsets must.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

impl Geometry {
    /// The smallest logical block length in bytes.
    pub const BLOCK_BYTES_MIN: u32 = 512;
    /// The largest logical block length in bytes.
    pub const BLOCK_BYTES_MAX: u32 = 65536;

    /// The bytes a request touches, `None` for a flush.
    ///
    /// # Errors
    /// The outcome the request ends with: [`Outcome::OutOfRange`], [`Outcome::WriteProtected`], or
    /// [`Outcome::HardwareError`] when the data buffer is missing or of another length.
    pub fn check(
        &self,
        request: &Request,
        data: Option<&HostBuffer>,
    ) -> Result<Option<ByteRange>, Outcome> {
        let Some((lba, blocks)) = request.range() else {
            return Ok(None);
        };
        if lba.checked_add(u64::from(blocks)).is_none_or(|end| end > self.blocks) {
            return Err(Outcome::OutOfRange);
        }
        if self.read_only && matches!(request, Request::Write { .. }) {
            return Err(Outcome::WriteProtected);
        }
        let length = u64::from(blocks) * u64::from(self.block_bytes);
        let length = u32::try_from(length).map_err(|_| Outcome::HardwareError)?;
        if length == 0 || data.is_none_or(|data| data.length() != length) {
            return Err(Outcome::HardwareError);
        }
        let offset = lba.checked_mul(u64::from(self.block_bytes)).ok_or(Outcome::OutOfRange)?;
        Ok(Some(ByteRange { offset, length }))
    }
}

/// A device of logical blocks. Knows no SCSI.
///
/// Who checks what: a caller gives any request; the device answers [`Outcome::OutOfRange`],
/// [`Outcome::WriteProtected`] or [`Outcome::HardwareError`] for what does not fit and never panics
/// for it. A caller keeps ids unique among outstanding requests. Every submitted request ends
/// exactly once, through [`Self::poll`].
///
/// Nothing blocks, except where a handler says so. A device belongs to one thread at a time.
pub trait BlockDevice: Send {
    /// What the device is. Constant between calls to [`Self::poll`].
    fn geometry(&self) -> Geometry;

    /// Takes one request. The device may hold it back until the next [`Self::poll`], so that a
    /// batch costs one system call: poll after the last submission of a batch.
    ///
    /// `data` is where a read's bytes land and a write's come from, exactly as long as the blocks;
    /// `None` for a flush. The device keeps it until the request ended.
    fn submit(&mut self, id: RequestId, request: Request, data: Option<HostBuffer>);

    /// Tries to take a request back.
    fn cancel(&mut self, id: RequestId) -> CancelAnswer;

    /// Starts what was held back and appends the requests that ended since, in the order they
    /// ended. Resets the descriptor of [`Self::event_fd`].
    fn poll(&mut self, ended: &mut Vec<Ended>);

    /// Readable when [`Self::poll`] has something to report; `None` for a device that must be
    /// polled.
    fn event_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Requests that have been submitted and not yet reported by [`Self::poll`].
    fn outstanding(&self) -> usize;
}

impl<D: BlockDevice + ?Sized> BlockDevice for Box<D> {
    fn geometry(&self) -> Geometry {
        (**self).geometry()
    }

    fn submit(&mut self, id: RequestId, request: Request, data: Option<HostBuffer>) {
        (**self).submit(id, request, data);
    }

    fn cancel(&mut self, id: RequestId) -> CancelAnswer {
        (**self).cancel(id)
    }

    fn poll(&mut self, ended: &mut Vec<Ended>) {
        (**self).poll(ended);
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        (**self).event_fd()
    }

    fn outstanding(&self) -> usize {
        (**self).outstanding()
    }
}

/// How an opaque command ended at a [`CommandDevice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandEnd {
    /// SCSI status byte (SAM-6 5.3).
    pub status: u8,
    /// Sense bytes as the device gave them (SPC-6 4.4), at most 252; empty without sense.
    pub sense: Vec<u8>,
    /// Bytes that were moved to or from the data buffer.
    pub transferred_bytes: u32,
}

/// A device that takes CDBs as they are and answers with status and sense: pass-through disk, tape,
/// cdrom, modisk, changer, processor and raid. It interprets nothing.
///
/// The rules of [`BlockDevice`] hold: every command ends exactly once, through [`Self::poll`].
pub trait CommandDevice: Send {
    /// Takes one command: `cdb` of 6 to 260 bytes, and the buffer for its data in either direction.
    fn submit(&mut self, id: RequestId, cdb: &[u8], data: Option<HostBuffer>);

    /// Tries to take a command back.
    fn cancel(&mut self, id: RequestId) -> CancelAnswer;

    /// Appends the commands that ended since the last call, in the order they ended.
    fn poll(&mut self, ended: &mut Vec<(RequestId, CommandEnd)>);

    /// Readable when [`Self::poll`] has something to report.
    fn event_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Commands that have been submitted and not yet reported by [`Self::poll`].
    fn outstanding(&self) -> usize;
}
