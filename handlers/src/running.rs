//! A request on its way through an engine: which system call comes next, and what the result of the
//! last one means. Engines make the calls; every decision is here, once for both.
//!
//! A read, a write or a flush is one call (more when the kernel cuts a transfer short). What has to
//! look at data, or may cover the whole disk, goes in pieces, one call each, so that memory is
//! bounded and a cancel finds an end:
//!
//! ```text
//! Read                      Move in
//! Write                     Move out
//! Flush                     Sync
//! Compare                   Check, piece by piece
//! WriteAndVerify            Move out (durable), Check
//! CompareAndWrite           Check the first half, Move out the second
//! OrWrite                   Fetch a piece, Store it ORed, and so on
//! WriteSame of zeroes       Punch (thin, unmap) or Zero, Sync; where the kernel cannot: Fill
//! WriteSame of anything     Fill, piece by piece
//! Unmap                     Punch, Sync
//! Prefetch                  Advise
//! ```

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::device::{ByteRange, Outcome, Request, RequestId};
use crate::memory::HostBuffer;

/// Bytes of a scratch piece, through which data goes that is looked at or repeated. Not less than a
/// block of [`crate::Geometry::BLOCK_BYTES_MAX`].
pub(crate) const SCRATCH_BYTES: u32 = 256 << 10;

/// Bytes that one call deallocates, zeroes or reads ahead: the kernel is not interrupted within.
const EXTENT_BYTES: u64 = 1 << 30;

/// How often an interrupted or refused (EINTR, EAGAIN) call is made again without progress.
const AGAIN_COUNT_MAX: u32 = 64;

/// One system call.
#[derive(Debug)]
pub(crate) enum Call {
    /// pread(2) into the window.
    Read { window: HostBuffer, offset: u64 },
    /// pwritev2(2) from the window, with RWF_DSYNC when durable.
    Write { window: HostBuffer, offset: u64, durable: bool },
    /// fdatasync(2).
    Sync,
    /// fallocate(2). For a block device the kernel makes BLKZEROOUT and an unmapping zero-out of it.
    Allocate { mode: FallocateFlags, offset: u64, length: u64 },
    /// posix_fadvise(2), POSIX_FADV_WILLNEED.
    Advise { offset: u64, length: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    MoveIn,
    MoveOut,
    Check,
    Fetch,
    Store,
    Fill,
    Punch,
    Zero,
    Advise,
    Sync,
}

/// See the module. Owns its windows, and so keeps the arena mapped.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) id: RequestId,
    request: Request,
    /// Zero for a flush.
    range: ByteRange,
    data: Option<HostBuffer>,
    /// [`SCRATCH_BYTES`], where [`Running::needs_scratch`].
    pub(crate) scratch: Option<HostBuffer>,
    /// What is written is on the medium when the request ends.
    durable: bool,
    /// The device is thin.
    thin: bool,
    block_bytes: u32,
    phase: Phase,
    /// Bytes of the range that this phase has dealt with.
    at: u64,
    /// Bytes of the present piece that were moved.
    moved: u32,
    again_count: u32,
    stopped: bool,
}

impl Running {
    /// `range` and `data` fit the request.
    pub(crate) fn new(
        id: RequestId,
        request: Request,
        range: Option<ByteRange>,
        data: Option<HostBuffer>,
        block_bytes: u32,
    ) -> Self {
        let phase = match request {
            Request::Read { .. } => Phase::MoveIn,
            Request::Write { .. } | Request::WriteAndVerify { .. } => Phase::MoveOut,
            Request::Compare { .. } | Request::CompareAndWrite { .. } => Phase::Check,
            Request::OrWrite { .. } => Phase::Fetch,
            Request::WriteSame { .. } => Phase::Fill,
            Request::Unmap { .. } => Phase::Punch,
            Request::Prefetch { .. } => Phase::Advise,
            // LbaStatus is answered before it comes here.
            Request::Flush | Request::LbaStatus { .. } => Phase::Sync,
        };
        Self {
            id,
            request,
            range: range.unwrap_or(ByteRange { offset: 0, length: 0 }),
            data,
            scratch: None,
            durable: false,
            thin: false,
            block_bytes,
            phase,
            at: 0,
            moved: 0,
            again_count: 0,
            stopped: false,
        }
    }

    /// What it writes shall be on the medium when it ends.
    pub(crate) fn durable(mut self, durable: bool) -> Self {
        self.durable = durable || matches!(self.request, Request::WriteAndVerify { .. });
        self
    }

    /// The device is thin: zeroes may be holes.
    pub(crate) fn thin(mut self, thin: bool) -> Self {
        self.thin = thin;
        self
    }

    /// Whether [`Self::start`] wants a scratch piece.
    pub(crate) fn needs_scratch(&self) -> bool {
        matches!(
            self.request,
            Request::Compare { .. }
                | Request::CompareAndWrite { .. }
                | Request::OrWrite { .. }
                | Request::WriteAndVerify { .. }
                | Request::WriteSame { .. }
        )
    }

    /// Gives it its scratch piece, before the first call.
    pub(crate) fn start(&mut self, scratch: HostBuffer) {
        if let Request::WriteSame { unmap, .. } = self.request {
            let mut block = vec![0; self.block_bytes as usize];
            let given = self.data.as_ref().is_none_or(|data| data.read(0, &mut block));
            debug_assert!(given, "the data buffer was checked");
            scratch.fill(&block);
            if block.iter().all(|byte| *byte == 0) {
                self.phase = if unmap && self.thin { Phase::Punch } else { Phase::Zero };
            }
        }
        self.scratch = Some(scratch);
    }

    /// Whether it works in many calls: between them others may have their turn.
    pub(crate) fn is_long(&self) -> bool {
        !matches!(self.phase, Phase::MoveIn | Phase::MoveOut | Phase::Sync)
    }

    /// Stops it; false when it cannot be stopped any more. `in_kernel` tells whether a call is out.
    pub(crate) fn stop(&mut self, in_kernel: bool) -> bool {
        let stoppable = match self.phase {
            // A transfer that was cut short and waits for its rest has had an effect.
            Phase::MoveIn | Phase::MoveOut | Phase::Sync => !in_kernel && self.moved == 0,
            _ => true,
        };
        let first = !self.stopped;
        self.stopped |= stoppable;
        stoppable && first
    }

    /// The next system call; `None` without the window that [`Running::new`] was promised.
    pub(crate) fn call(&self) -> Option<Call> {
        let offset = self.range.offset + self.at + u64::from(self.moved);
        let length = self.piece_bytes().saturating_sub(u64::from(self.moved));
        let (keep, durable) = (FallocateFlags::KEEP_SIZE, self.durable);
        Some(match self.phase {
            Phase::MoveIn | Phase::Check | Phase::Fetch => {
                Call::Read { window: self.window(length)?, offset }
            }
            Phase::MoveOut | Phase::Store | Phase::Fill => {
                Call::Write { window: self.window(length)?, offset, durable }
            }
            Phase::Punch => {
                Call::Allocate { mode: FallocateFlags::PUNCH_HOLE | keep, offset, length }
            }
            Phase::Zero => {
                Call::Allocate { mode: FallocateFlags::ZERO_RANGE | keep, offset, length }
            }
            Phase::Advise => Call::Advise { offset, length },
            Phase::Sync => Call::Sync,
        })
    }

    /// The window of a transfer, `length` bytes behind what was moved of the piece.
    fn window(&self, length: u64) -> Option<HostBuffer> {
        // What is written by a COMPARE AND WRITE is the second half of its data.
        let second =
            self.phase == Phase::MoveOut && matches!(self.request, Request::CompareAndWrite { .. });
        let first = if second { clamped(self.range.length) } else { 0 };
        let whole = match self.phase {
            Phase::MoveIn | Phase::MoveOut => self.data.as_ref()?,
            _ => self.scratch.as_ref()?,
        };
        Some(whole.part(first.saturating_add(self.moved), clamped(length)))
    }

    /// Takes the result of a call (bytes for a transfer, anything for the others): how the request
    /// ended, or `None` when there is a next call.
    pub(crate) fn advance(&mut self, result: Result<usize, Errno>) -> Option<Outcome> {
        if self.stopped {
            return Some(Outcome::Cancelled);
        }
        let moved = match result {
            Ok(moved) => moved,
            Err(Errno::INTR | Errno::AGAIN) if self.again_count < AGAIN_COUNT_MAX => {
                self.again_count += 1;
                return None;
            }
            // A hint that is not taken.
            Err(_) if self.phase == Phase::Advise => return Some(Outcome::Done),
            Err(Errno::OPNOTSUPP | Errno::INVAL) if self.fall_back() => return None,
            Err(errno) => return Some(self.failed(errno)),
        };
        let piece = self.piece_bytes();
        match self.phase {
            Phase::MoveIn
            | Phase::MoveOut
            | Phase::Check
            | Phase::Fetch
            | Phase::Store
            | Phase::Fill => {
                let left = piece.saturating_sub(u64::from(self.moved));
                match u32::try_from(moved) {
                    // The end of the file came early: it was truncated below us.
                    Ok(0) => return Some(self.failed(Errno::IO)),
                    Ok(moved) if u64::from(moved) <= left => self.moved += moved,
                    // More than was asked for: not a kernel we know.
                    _ => return Some(Outcome::HardwareError),
                }
                self.again_count = 0;
                if u64::from(self.moved) < piece {
                    return None;
                }
            }
            Phase::Sync => return Some(Outcome::Done),
            Phase::Punch | Phase::Zero | Phase::Advise => {}
        }
        self.moved = 0;
        self.end_piece(piece)
    }

    /// Bytes of the present piece, from `at`.
    fn piece_bytes(&self) -> u64 {
        let most = match self.phase {
            Phase::MoveIn | Phase::MoveOut => self.range.length,
            Phase::Check | Phase::Fetch | Phase::Store | Phase::Fill => u64::from(SCRATCH_BYTES),
            Phase::Punch | Phase::Zero | Phase::Advise => EXTENT_BYTES,
            Phase::Sync => 0,
        };
        most.min(self.range.length - self.at)
    }

    /// A piece of `bytes` is through.
    fn end_piece(&mut self, bytes: u64) -> Option<Outcome> {
        match self.phase {
            Phase::Check => {
                if let Some(offset) = self.difference(bytes) {
                    return Some(Outcome::Miscompare { offset });
                }
            }
            Phase::Fetch => {
                let (scratch, data) = (self.scratch.as_ref()?, self.data.as_ref()?);
                scratch.part(0, clamped(bytes)).or(&data.part(clamped(self.at), u32::MAX));
                self.phase = Phase::Store;
                return None;
            }
            Phase::Store => self.phase = Phase::Fetch,
            _ => {}
        }
        self.at += bytes;
        if self.at < self.range.length {
            return None;
        }
        self.at = 0;
        self.phase = match (self.phase, self.request) {
            (Phase::MoveOut, Request::WriteAndVerify { .. }) => Phase::Check,
            (Phase::Check, Request::CompareAndWrite { .. }) => Phase::MoveOut,
            (Phase::Punch | Phase::Zero, _) if self.durable => Phase::Sync,
            _ => return Some(Outcome::Done),
        };
        None
    }

    /// Where the first `bytes` of scratch differ from the data for them, in bytes from the range's
    /// start.
    fn difference(&self, bytes: u64) -> Option<u64> {
        let (scratch, data) = (self.scratch.as_ref()?, self.data.as_ref()?);
        let length = clamped(bytes);
        let same = if u64::from(data.length()) < self.range.length {
            // One block for all. A piece is a multiple of every block length, so it begins with one;
            // then each block is to equal the one before it.
            let block = self.block_bytes.min(length);
            let first = scratch.part(0, block).equal_bytes(data);
            if first == block {
                let later = scratch.part(block, length - block);
                block + later.equal_bytes(scratch)
            } else {
                first
            }
        } else {
            scratch.part(0, length).equal_bytes(&data.part(clamped(self.at), length))
        };
        (same < length).then(|| self.at + u64::from(same))
    }

    /// The file system or device cannot do what was asked in this way: chooses the next one.
    fn fall_back(&mut self) -> bool {
        self.phase = match (self.phase, self.request) {
            (Phase::Punch, _) => Phase::Zero,
            (Phase::Zero, Request::WriteSame { .. }) => Phase::Fill,
            _ => return false,
        };
        true
    }

    /// The only place where an errno becomes an outcome.
    fn failed(&self, errno: Errno) -> Outcome {
        let at = self.range.offset + self.at + u64::from(self.moved);
        let lba = at / u64::from(self.block_bytes);
        let reading = matches!(self.phase, Phase::MoveIn | Phase::Check | Phase::Fetch);
        match errno {
            Errno::CANCELED if self.moved == 0 => Outcome::Cancelled,
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Outcome::NoSpace,
            Errno::ROFS | Errno::PERM if self.request.writes() => Outcome::WriteProtected,
            // What the block layer says of a bad medium: EIO, ENODATA (critical medium error),
            // EILSEQ (protection), EREMOTEIO (critical target error).
            Errno::IO | Errno::NODATA | Errno::ILSEQ | Errno::REMOTEIO if reading => {
                Outcome::ReadError { lba }
            }
            Errno::IO | Errno::NODATA | Errno::ILSEQ | Errno::REMOTEIO if self.request.writes() => {
                Outcome::WriteError { lba }
            }
            _ => Outcome::HardwareError,
        }
    }
}

/// Lengths and offsets within data buffers, which are shorter than 4 GiB.
fn clamped(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Arena;

    fn window(bytes: &[u8]) -> HostBuffer {
        let length = u32::try_from(bytes.len()).expect("small");
        let window = Arena::anonymous(bytes.len()).expect("memory").window(0, length);
        let window = window.expect("window");
        assert!(window.write(0, bytes));
        window
    }

    fn running(request: Request, data: &[u8]) -> Running {
        let (lba, blocks) = request.range().expect("a range");
        let range = ByteRange { offset: lba * 512, length: blocks * 512 };
        let data = (!data.is_empty()).then(|| window(data));
        Running::new(RequestId(1), request, Some(range), data, 512)
    }

    fn started(request: Request, data: &[u8]) -> Running {
        let mut running = running(request, data).thin(true);
        running.start(window(&vec![0xee; SCRATCH_BYTES as usize]));
        running
    }

    /// Makes every call on `medium`, with transfers cut to `most` bytes.
    fn run(running: &mut Running, medium: &mut [u8], most: u32) -> (Outcome, Vec<String>) {
        let mut calls = Vec::new();
        loop {
            let result = match running.call().expect("a call") {
                Call::Read { window, offset } => {
                    let window = window.part(0, most);
                    let at = offset as usize;
                    assert!(window.write(0, &medium[at..at + window.length() as usize]));
                    calls.push(format!("read {} at {offset}", window.length()));
                    window.length() as usize
                }
                Call::Write { window, offset, durable } => {
                    let window = window.part(0, most);
                    let at = offset as usize;
                    assert!(window.read(0, &mut medium[at..at + window.length() as usize]));
                    let word = if durable { "write durably" } else { "write" };
                    calls.push(format!("{word} {} at {offset}", window.length()));
                    window.length() as usize
                }
                Call::Allocate { mode, offset, length } => {
                    medium[offset as usize..(offset + length) as usize].fill(0);
                    let punch = mode.contains(FallocateFlags::PUNCH_HOLE);
                    calls.push(format!("{} {length}", if punch { "punch" } else { "zero" }));
                    0
                }
                Call::Advise { .. } => 0,
                Call::Sync => {
                    calls.push("sync".to_owned());
                    0
                }
            };
            if let Some(outcome) = running.advance(Ok(result)) {
                return (outcome, calls);
            }
        }
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped_and_errors_name_that_block() {
        let mut read = running(Request::Read { lba: 10, blocks: 4 }, &[0; 2048]);
        assert_eq!(read.advance(Ok(1024)), None);
        let Some(Call::Read { window, offset }) = read.call() else { panic!("no read") };
        assert_eq!((window.length(), offset), (1024, 512 * 12));
        assert_eq!(read.advance(Err(Errno::IO)), Some(Outcome::ReadError { lba: 12 }));
        assert_eq!(read.advance(Ok(1024)), Some(Outcome::Done));
    }

    #[test]
    fn a_file_that_ends_early_is_a_read_error() {
        let mut read = running(Request::Read { lba: 10, blocks: 4 }, &[0; 2048]);
        assert_eq!(read.advance(Ok(0)), Some(Outcome::ReadError { lba: 10 }));
    }

    #[test]
    fn every_errno_has_its_outcome() {
        let request = Request::Write { lba: 10, blocks: 4, fua: false };
        let mut write = running(request, &[0; 2048]);
        assert_eq!(write.advance(Err(Errno::NOSPC)), Some(Outcome::NoSpace));
        assert_eq!(write.advance(Err(Errno::ROFS)), Some(Outcome::WriteProtected));
        assert_eq!(write.advance(Err(Errno::IO)), Some(Outcome::WriteError { lba: 10 }));
        assert_eq!(write.advance(Err(Errno::NODEV)), Some(Outcome::HardwareError));
        assert_eq!(write.advance(Ok(4096)), Some(Outcome::HardwareError));
        let mut both =
            started(Request::CompareAndWrite { lba: 10, blocks: 1, fua: false }, &[0; 1024]);
        assert_eq!(both.advance(Err(Errno::IO)), Some(Outcome::ReadError { lba: 10 }));
    }

    #[test]
    fn an_endless_interruption_ends() {
        let request = Request::Write { lba: 10, blocks: 4, fua: false };
        let mut write = running(request, &[0; 2048]);
        let ends = (0..=AGAIN_COUNT_MAX).map(|_| write.advance(Err(Errno::AGAIN)));
        assert_eq!(ends.last(), Some(Some(Outcome::HardwareError)));
    }

    #[test]
    fn a_compare_finds_the_first_byte_that_differs_however_it_is_cut() {
        let blocks = 3 * SCRATCH_BYTES / 512 + 1;
        let length = blocks as usize * 512;
        let stored: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        for (wrong, most) in
            [(None, u32::MAX), (Some(0), 512), (Some(300_001), 4096), (Some(length - 1), 1000)]
        {
            let mut medium = [vec![9; 512], stored.clone()].concat();
            let mut compare = started(Request::Compare { lba: 1, blocks }, &stored);
            if let Some(wrong) = wrong {
                medium[512 + wrong] ^= 1;
            }
            let (outcome, _) = run(&mut compare, &mut medium, most);
            let wanted =
                wrong.map_or(Outcome::Done, |at| Outcome::Miscompare { offset: at as u64 });
            assert_eq!(outcome, wanted);
        }
    }

    #[test]
    fn one_block_is_compared_with_each() {
        let block: Vec<u8> = (0..512).map(|at| (at % 7) as u8).collect();
        let blocks = SCRATCH_BYTES / 512 + 5;
        for wrong in [None, Some(3), Some(512), Some(5000), Some(SCRATCH_BYTES as usize + 513)] {
            let mut medium = block.repeat(blocks as usize);
            if let Some(wrong) = wrong {
                medium[wrong] ^= 0x80;
            }
            let mut compare = started(Request::Compare { lba: 0, blocks }, &block);
            let wanted =
                wrong.map_or(Outcome::Done, |at| Outcome::Miscompare { offset: at as u64 });
            assert_eq!(run(&mut compare, &mut medium, u32::MAX).0, wanted);
        }
    }

    #[test]
    fn compare_and_write_writes_only_what_was_equal() {
        let request = Request::CompareAndWrite { lba: 1, blocks: 2, fua: true };
        let mut medium = [vec![1; 512], vec![2; 1024], vec![3; 512]].concat();
        let mut both = started(request, &[vec![2; 1024], vec![7; 1024]].concat()).durable(true);
        let (outcome, calls) = run(&mut both, &mut medium, 600);
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(calls[2..], ["write durably 600 at 512", "write durably 424 at 1112"]);
        assert_eq!(medium, [vec![1; 512], vec![7; 1024], vec![3; 512]].concat());
        let mut both = started(request, &[vec![2; 1024], vec![8; 1024]].concat());
        let (outcome, calls) = run(&mut both, &mut medium, u32::MAX);
        assert_eq!(outcome, Outcome::Miscompare { offset: 0 });
        assert_eq!(calls, ["read 1024 at 512"]);
    }

    #[test]
    fn orwrite_ors_every_piece() {
        let blocks = SCRATCH_BYTES / 512 + 3;
        let length = blocks as usize * 512;
        let data: Vec<u8> = (0..length).map(|at| (at % 256) as u8).collect();
        let mut medium = vec![0x41; length];
        let mut or = started(Request::OrWrite { lba: 0, blocks, fua: false }, &data);
        assert_eq!(run(&mut or, &mut medium, 100_000).0, Outcome::Done);
        assert!(medium.iter().zip(&data).all(|(stored, given)| *stored == given | 0x41));
    }

    #[test]
    fn write_same_repeats_its_block_and_zeroes_need_no_data() {
        let blocks = u64::from(SCRATCH_BYTES / 512) + 3;
        let block: Vec<u8> = (0..512).map(|at| (at % 9) as u8).collect();
        let mut medium = vec![0xff; blocks as usize * 512];
        let same = |unmap| Request::WriteSame { lba: 0, blocks, unmap };
        let (outcome, calls) = run(&mut started(same(true), &block), &mut medium, u32::MAX);
        assert_eq!((outcome, calls.len()), (Outcome::Done, 2));
        assert_eq!(medium, block.repeat(blocks as usize));
        // Zeroes that are given count as zeroes that are not.
        for (unmap, data, word) in [(false, &[][..], "zero"), (true, &[0; 512], "punch")] {
            let mut zeroes = started(same(unmap), data).durable(true);
            let (outcome, calls) = run(&mut zeroes, &mut medium, u32::MAX);
            assert_eq!(outcome, Outcome::Done);
            assert_eq!(calls, [format!("{word} {}", blocks * 512), "sync".to_owned()]);
        }
    }

    #[test]
    fn what_the_kernel_cannot_deallocate_is_zeroed_and_at_last_written() {
        let request = Request::WriteSame { lba: 0, blocks: 2, unmap: true };
        let mut zeroes = started(request, &[]);
        assert_eq!(zeroes.advance(Err(Errno::OPNOTSUPP)), None);
        assert_eq!(zeroes.advance(Err(Errno::OPNOTSUPP)), None);
        let mut medium = vec![1; 1024];
        let (outcome, calls) = run(&mut zeroes, &mut medium, u32::MAX);
        assert_eq!((outcome, medium), (Outcome::Done, vec![0; 1024]));
        assert_eq!(calls, ["write 1024 at 0"]);
        let mut unmap = running(Request::Unmap { lba: 0, blocks: 2 }, &[]);
        assert_eq!(unmap.advance(Err(Errno::OPNOTSUPP)), None);
        assert_eq!(unmap.advance(Err(Errno::OPNOTSUPP)), Some(Outcome::HardwareError));
    }

    #[test]
    fn a_long_request_stops_after_the_call_under_way_and_a_transfer_does_not() {
        let mut same =
            started(Request::WriteSame { lba: 0, blocks: 4096, unmap: false }, &[1; 512]);
        assert_eq!(same.advance(Ok(SCRATCH_BYTES as usize)), None);
        assert!(same.stop(true));
        assert!(!same.stop(true), "once is enough");
        assert_eq!(same.advance(Ok(SCRATCH_BYTES as usize)), Some(Outcome::Cancelled));
        let mut both =
            started(Request::CompareAndWrite { lba: 0, blocks: 1, fua: false }, &[0; 1024]);
        assert!(both.scratch.as_ref().expect("scratch").write(0, &[0; 512]));
        assert_eq!(both.advance(Ok(512)), None);
        assert!(!both.stop(true), "it writes");
        let mut both =
            started(Request::CompareAndWrite { lba: 0, blocks: 1, fua: false }, &[0; 1024]);
        assert!(both.stop(true), "it only compares");
        assert_eq!(both.advance(Ok(512)), Some(Outcome::Cancelled));
    }

    #[test]
    fn write_and_verify_reads_back_what_it_wrote() {
        let mut medium = vec![0; 1024];
        let mut write =
            started(Request::WriteAndVerify { lba: 0, blocks: 2 }, &[5; 1024]).durable(false);
        let (outcome, calls) = run(&mut write, &mut medium, u32::MAX);
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(calls, ["write durably 1024 at 0", "read 1024 at 0"]);
    }
}
