//! The two traits every handler implements, and the plain data that crosses them.

use std::os::fd::BorrowedFd;

use crate::memory::HostBuffer;
use crate::open::OpenError;

/// The caller's name for one request. Unique among the requests of one device that have not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One block operation. The LBA range is `lba` and `blocks` everywhere; how much data goes with it is
/// told by [`Request::takes`].
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
    /// Writes, puts the data on the medium, reads it back and compares (SBC-4 WRITE AND VERIFY).
    WriteAndVerify {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, at least 1.
        blocks: u32,
    },
    /// Puts every write that *ended* before this request was submitted on the medium
    /// (SBC-4 SYNCHRONIZE CACHE; always the whole device).
    Flush,
    /// Compares the medium with the data buffer: with as many blocks, or, when it holds one, each
    /// block with that one. Without data buffer the blocks are read and that is all (SBC-4 VERIFY).
    Compare {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, at least 1.
        blocks: u32,
    },
    /// Compares the medium with the first half of the data buffer and, when they are equal, writes
    /// the second half (SBC-4 COMPARE AND WRITE). That no other write comes between is the caller's
    /// to see to.
    CompareAndWrite {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, at least 1.
        blocks: u32,
        /// As for [`Self::Write`].
        fua: bool,
    },
    /// Replaces the blocks by themselves OR the data buffer (SBC-4 ORWRITE). That no other write
    /// comes between is the caller's to see to.
    OrWrite {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, at least 1.
        blocks: u32,
        /// As for [`Self::Write`].
        fua: bool,
    },
    /// Writes the one block in the data buffer to every block; without data buffer, zeroes (SBC-4
    /// WRITE SAME).
    WriteSame {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, at least 1.
        blocks: u64,
        /// Zeroes may be stored as nothing at all, where the device is thin.
        unmap: bool,
    },
    /// Deallocates the blocks, which read as zeroes then (SBC-4 UNMAP). Of a thin device only.
    Unmap {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, at least 1.
        blocks: u64,
    },
    /// Starts to bring the blocks into the cache, if there is one (SBC-4 PRE-FETCH).
    Prefetch {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, at least 1.
        blocks: u64,
    },
    /// Fills the data buffer with [`Run`]s, from `lba` on without gaps, until it is full or the range
    /// ends (SBC-4 GET LBA STATUS). Ends with [`Outcome::Listed`].
    LbaStatus {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, at least 1.
        blocks: u64,
    },
}

impl Request {
    /// The blocks the request touches: first and number. `None` for a flush.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64)> {
        match *self {
            Self::Read { lba, blocks }
            | Self::Write { lba, blocks, .. }
            | Self::WriteAndVerify { lba, blocks }
            | Self::Compare { lba, blocks }
            | Self::CompareAndWrite { lba, blocks, .. }
            | Self::OrWrite { lba, blocks, .. } => Some((lba, u64::from(blocks))),
            Self::WriteSame { lba, blocks, .. }
            | Self::Unmap { lba, blocks }
            | Self::Prefetch { lba, blocks }
            | Self::LbaStatus { lba, blocks } => Some((lba, blocks)),
            Self::Flush => None,
        }
    }

    /// Whether it may change what the blocks read as.
    #[must_use]
    pub fn writes(&self) -> bool {
        match self {
            Self::Write { .. }
            | Self::WriteAndVerify { .. }
            | Self::CompareAndWrite { .. }
            | Self::OrWrite { .. }
            | Self::WriteSame { .. }
            | Self::Unmap { .. } => true,
            Self::Read { .. }
            | Self::Flush
            | Self::Compare { .. }
            | Self::Prefetch { .. }
            | Self::LbaStatus { .. } => false,
        }
    }

    /// Whether a data buffer of `data_bytes` (0: none) fits the request, with blocks of `block_bytes`.
    #[must_use]
    pub fn takes(&self, data_bytes: u64, block_bytes: u32) -> bool {
        let block_bytes = u64::from(block_bytes);
        let all = self.range().map_or(0, |(_, blocks)| blocks.saturating_mul(block_bytes));
        match self {
            Self::Read { .. }
            | Self::Write { .. }
            | Self::WriteAndVerify { .. }
            | Self::OrWrite { .. } => data_bytes == all,
            Self::Compare { .. } => [0, block_bytes, all].contains(&data_bytes),
            Self::CompareAndWrite { .. } => data_bytes == all.saturating_mul(2),
            Self::WriteSame { .. } => [0, block_bytes].contains(&data_bytes),
            Self::Flush | Self::Unmap { .. } | Self::Prefetch { .. } => data_bytes == 0,
            Self::LbaStatus { .. } => {
                data_bytes > 0 && data_bytes.is_multiple_of(Run::BYTES as u64)
            }
        }
    }
}

/// Neighbouring blocks in one provisioning state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First logical block.
    pub lba: u64,
    /// Number of logical blocks, at least 1.
    pub blocks: u32,
    /// Whether nothing is stored for them, so that they read as zeroes.
    pub deallocated: bool,
}

impl Run {
    /// Bytes of a run in a data buffer.
    pub const BYTES: usize = 16;

    /// As it lies in a data buffer, little-endian: `lba` (8 bytes), `blocks` (4), 1 when deallocated
    /// (1), zero (3).
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (lba, rest) = bytes.split_at_mut(8);
        lba.copy_from_slice(&self.lba.to_le_bytes());
        let (blocks, rest) = rest.split_at_mut(4);
        blocks.copy_from_slice(&self.blocks.to_le_bytes());
        rest[0] = u8::from(self.deallocated);
        bytes
    }
}

/// Answers [`Request::LbaStatus`] for a device that stores everything: one run.
pub(crate) fn all_mapped(lba: u64, blocks: u64, data: Option<&HostBuffer>) -> Outcome {
    // A range beyond 2^32 blocks goes on at the next request.
    let run = Run { lba, blocks: u32::try_from(blocks).unwrap_or(u32::MAX), deallocated: false };
    if data.is_some_and(|data| data.write(0, &run.to_bytes())) {
        Outcome::Listed { runs: 1 }
    } else {
        Outcome::HardwareError
    }
}

/// How a request ended. The agent's core turns it into the ring's outcome and a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Carried out.
    Done,
    /// [`Request::LbaStatus`] was carried out.
    Listed {
        /// Runs in the data buffer, at least 1.
        runs: u32,
    },
    /// The medium differs from the data buffer. [`Request::CompareAndWrite`] wrote nothing.
    Miscompare {
        /// Bytes from the range's start to the first that differs.
        offset: u64,
    },
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
    /// The device does not do this; nothing was done. An unmap of a device that is not thin.
    NotSupported,
    /// Anything else: the backing vanished, the data buffer does not fit the request.
    HardwareError,
    /// [`BlockDevice::cancel`] stopped it. Nothing more of it comes.
    Cancelled,
}

/// A request and how it ended.
pub type Ended = (RequestId, Outcome);

/// What [`BlockDevice::cancel`] could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelAnswer {
    /// It ends with [`Outcome::Cancelled`]. A request that works in many small steps (a compare, a
    /// WRITE SAME) may have done some of them, and ends after the one under way; every other had no
    /// effect and will have none.
    Cancelled,
    /// The request has begun and cannot be stopped (or has ended, or was never there); if it is still
    /// outstanding, its own end comes.
    TooLate,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Logical block length in bytes: a power of two, 512 to 65536.
    pub block_bytes: u32,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Whatever [`Request::writes`] ends with [`Outcome::WriteProtected`].
    pub read_only: bool,
    /// Data of an ended write may be lost at a power failure until a flush (SBC-4: WCE).
    pub write_cache: bool,
    /// `fua` of a write is honoured.
    pub fua: bool,
    /// The medium rotates (for VPD page B1h).
    pub rotational: bool,
    /// The device is thin provisioned: it takes [`Request::Unmap`], and unmapped blocks read as
    /// zeroes.
    pub thin: bool,
}

/// A range of bytes of the backing, checked against the geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte from the device's start. Fits `i64`, as file offsets must.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Geometry {
    /// The smallest logical block length in bytes.
    pub const BLOCK_BYTES_MIN: u32 = 512;
    /// The largest logical block length in bytes.
    pub const BLOCK_BYTES_MAX: u32 = 65536;

    /// The bytes a request touches, `None` for a flush.
    ///
    /// # Errors
    /// The outcome the request ends with: [`Outcome::OutOfRange`], [`Outcome::WriteProtected`],
    /// [`Outcome::NotSupported`], or [`Outcome::HardwareError`] when the data buffer is missing or of
    /// another length.
    pub fn check(
        &self,
        request: &Request,
        data: Option<&HostBuffer>,
    ) -> Result<Option<ByteRange>, Outcome> {
        let data_bytes = data.map_or(0, |data| u64::from(data.length()));
        let Some((lba, blocks)) = request.range() else {
            return if request.takes(data_bytes, self.block_bytes) {
                Ok(None)
            } else {
                Err(Outcome::HardwareError)
            };
        };
        if lba.checked_add(blocks).is_none_or(|end| end > self.blocks) {
            return Err(Outcome::OutOfRange);
        }
        if self.read_only && request.writes() {
            return Err(Outcome::WriteProtected);
        }
        if matches!(request, Request::Unmap { .. }) && !self.thin {
            return Err(Outcome::NotSupported);
        }
        if blocks == 0 || !request.takes(data_bytes, self.block_bytes) {
            return Err(Outcome::HardwareError);
        }
        let block_bytes = u64::from(self.block_bytes);
        let offset = lba.checked_mul(block_bytes).ok_or(Outcome::OutOfRange)?;
        let length = blocks.checked_mul(block_bytes).ok_or(Outcome::OutOfRange)?;
        Ok(Some(ByteRange { offset, length }))
    }
}

/// A device of logical blocks. Knows no SCSI.
///
/// Who checks what: a caller gives any request; the device answers as [`Geometry::check`] does for
/// what does not fit and never panics for it. A caller keeps ids unique among outstanding requests. Every submitted request ends
/// exactly once, through [`Self::poll`].
///
/// Nothing blocks, except where a handler says so. A device belongs to one thread at a time.
pub trait BlockDevice: Send {
    /// What the device is. Constant between calls to [`Self::poll`].
    fn geometry(&self) -> Geometry;

    /// Takes one request. The device may hold it back until the next [`Self::poll`], so that a
    /// batch costs one system call: poll after the last submission of a batch.
    ///
    /// `data` is where a read's bytes land and a write's come from, as long as [`Request::takes`]
    /// says; `None` where that is nothing. The device keeps it until the request ended.
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

    /// Looks again how large the backing is (SCST's `resync_size`); [`Self::geometry`] tells the new
    /// size. Outstanding requests were checked against the old one. Gives warnings, one sentence each.
    ///
    /// # Errors
    /// [`OpenError`] when the backing cannot be asked or holds no block; the size stays as it was.
    fn resync_size(&mut self) -> Result<Vec<String>, OpenError>;
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

    fn resync_size(&mut self) -> Result<Vec<String>, OpenError> {
        (**self).resync_size()
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
