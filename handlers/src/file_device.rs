//! A device whose blocks lie in an open file or block device: all of vdisk_fileio and vdisk_blockio,
//! which differ only in how they open it.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FallocateFlags, FlockOperation, StatxFlags, fallocate, flock, ioctl_blksszget, seek,
    statx,
};
use rustix::io::Errno;

use crate::device::{BlockDevice, CancelAnswer, Ended, Geometry, Outcome, Request, RequestId, Run};
use crate::engine::{Engine, EngineChoice};
use crate::memory::{Arena, HostBuffer};
use crate::open::{OpenError, Opened, check_block_bytes};
use crate::running::{Running, SCRATCH_BYTES};

/// How long [`FileDevice`] waits by default for the previous holder of the backing: an agent that
/// was killed holds it until the kernel has ended its last write.
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(5);

/// What vdisk_fileio and vdisk_blockio are opened with; the names are those of scst.conf unless said
/// otherwise.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Absolute path of the file or block device.
    pub filename: PathBuf,
    /// Logical block length in bytes (`blocksize`), a power of two to 65536, from 512 or what direct
    /// I/O on the backing moves at least.
    pub block_bytes: u32,
    /// Length in bytes that is used of it (`size`), a multiple of the block length; `None` for all.
    pub size_bytes: Option<u64>,
    /// Opens it for reading only; writes end with `WriteProtected`.
    pub read_only: bool,
    /// Every write is on the medium when it ends.
    pub write_through: bool,
    /// The cache is declared non-volatile: flushes and FUA do nothing.
    pub nv_cache: bool,
    /// Goes past the page cache. vdisk_blockio always does.
    pub o_direct: bool,
    /// Reported to initiators.
    pub rotational: bool,
    /// Unmapped blocks take no room (`thin_provisioned`); refused where the backing cannot do that.
    pub thin_provisioned: bool,
    /// How to move the blocks (not an SCST parameter).
    pub engine: EngineChoice,
    /// How long to wait for the previous holder of the backing's lock (not an SCST parameter).
    pub lock_wait: Duration,
}

impl Parameters {
    /// SCST's defaults for `filename`.
    #[must_use]
    pub fn new(filename: impl Into<PathBuf>) -> Self {
        Self {
            filename: filename.into(),
            block_bytes: 512,
            size_bytes: None,
            read_only: false,
            write_through: false,
            nv_cache: false,
            o_direct: false,
            rotational: true,
            thin_provisioned: false,
            engine: EngineChoice::Automatic,
            lock_wait: LOCK_WAIT,
        }
    }
}

/// A device over a file. Made by [`crate::vdisk_fileio::open`] and [`crate::vdisk_blockio::open`].
#[derive(Debug)]
pub struct FileDevice {
    engine: Engine,
    geometry: Geometry,
    /// Every write is durable when it ends.
    write_through: bool,
    /// Flushes and FUA mean nothing: the cache is declared non-volatile.
    nv_cache: bool,
    /// Requests that ended without the engine.
    ended: Vec<Ended>,
    /// Scratch pieces that nobody uses, and how many there are.
    scratch: Vec<HostBuffer>,
    scratch_count: usize,
    /// Requests that wait for a scratch piece, in order.
    waiting: VecDeque<Running>,
    /// For [`BlockDevice::poll`], kept for its memory.
    finished: Vec<(Running, Outcome)>,
    file: Arc<File>,
    /// As in [`Parameters`].
    size_bytes: Option<u64>,
    /// In the configuration.
    name: String,
    filename: PathBuf,
}

/// Requests that look at data or repeat it and may run at a time: what they need is
/// `SCRATCH_COUNT_MAX * SCRATCH_BYTES` = 2 MiB.
const SCRATCH_COUNT_MAX: usize = 8;

impl FileDevice {
    pub(crate) fn open(device: &str, backing: &Parameters) -> Result<Opened<Self>, OpenError> {
        check_options(device, backing)?;
        let (file, is_block_device) = open_file(device, backing)?;
        lock(device, backing, &file)?;
        if backing.o_direct {
            check_direct(device, backing, &file, is_block_device)?;
        }
        if backing.thin_provisioned {
            check_thin(device, backing, &file, is_block_device)?;
        }
        let mut warnings = Vec::new();
        let blocks = count_blocks(
            device,
            &backing.filename,
            backing.block_bytes,
            backing.size_bytes,
            &file,
            &mut warnings,
        )?;
        let file = Arc::new(file);
        let (engine, warning) = Engine::open(&file, backing.engine).map_err(|error| {
            let way_out = "allow io_uring (kernel.io_uring_disabled, seccomp), or let the engine be chosen automatically";
            OpenError::new(device, "filename", backing.filename.display(), error, way_out)
        })?;
        warnings.extend(warning);
        let geometry = Geometry {
            block_bytes: backing.block_bytes,
            blocks,
            read_only: backing.read_only,
            // SCST reports no write-back cache with nv_cache, so that initiators do not flush.
            write_cache: !(backing.write_through || backing.nv_cache || backing.read_only),
            fua: true,
            rotational: backing.rotational,
            thin: backing.thin_provisioned,
        };
        let device = Self {
            engine,
            geometry,
            write_through: backing.write_through,
            nv_cache: backing.nv_cache,
            ended: Vec::new(),
            scratch: Vec::new(),
            scratch_count: 0,
            waiting: VecDeque::new(),
            finished: Vec::new(),
            file,
            size_bytes: backing.size_bytes,
            name: device.to_owned(),
            filename: backing.filename.clone(),
        };
        Ok(Opened { device, warnings })
    }

    /// `"io_uring"` or `"synchronous"`: how the blocks are moved, for `lunar show`.
    #[must_use]
    pub fn engine_name(&self) -> &'static str {
        self.engine.name()
    }

    /// The file or block device behind it.
    #[must_use]
    pub fn filename(&self) -> &Path {
        &self.filename
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, id: RequestId, request: Request, data: Option<HostBuffer>) {
        let range = match self.geometry.check(&request, data.as_ref()) {
            Ok(range) => range,
            Err(outcome) => return self.ended.push((id, outcome)),
        };
        let fua = match request {
            Request::Flush if self.nv_cache || self.geometry.read_only => {
                return self.ended.push((id, Outcome::Done));
            }
            Request::LbaStatus { lba, blocks } => {
                let outcome = self.list_runs(lba, blocks, data.as_ref());
                return self.ended.push((id, outcome));
            }
            Request::Write { fua, .. }
            | Request::CompareAndWrite { fua, .. }
            | Request::OrWrite { fua, .. } => fua,
            _ => false,
        };
        let durable = self.write_through || (fua && !self.nv_cache);
        let running = Running::new(id, request, range, data, self.geometry.block_bytes)
            .durable(durable)
            .thin(self.geometry.thin);
        if running.needs_scratch() {
            self.waiting.push_back(running);
            self.start_waiting();
        } else {
            self.engine.submit(running);
        }
    }

    fn cancel(&mut self, id: RequestId) -> CancelAnswer {
        if let Some(at) = self.waiting.iter().position(|running| running.id == id) {
            self.waiting.remove(at);
            self.ended.push((id, Outcome::Cancelled));
            self.engine.wake();
            return CancelAnswer::Cancelled;
        }
        self.engine.cancel(id)
    }

    fn poll(&mut self, ended: &mut Vec<Ended>) {
        ended.append(&mut self.ended);
        self.engine.poll(&mut self.finished);
        for (mut running, outcome) in self.finished.drain(..) {
            self.scratch.extend(running.scratch.take());
            ended.push((running.id, outcome));
        }
        if !self.waiting.is_empty() && self.start_waiting() {
            self.engine.wake();
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.engine.event_fd()
    }

    fn outstanding(&self) -> usize {
        self.ended.len() + self.waiting.len() + self.engine.outstanding()
    }

    fn resync_size(&mut self) -> Result<Vec<String>, OpenError> {
        let mut warnings = Vec::new();
        let (name, bytes) = (&self.name, self.geometry.block_bytes);
        self.geometry.blocks =
            count_blocks(name, &self.filename, bytes, self.size_bytes, &self.file, &mut warnings)?;
        Ok(warnings)
    }
}

impl FileDevice {
    /// Gives scratch pieces to those that wait for one, as far as there are any; whether one started.
    fn start_waiting(&mut self) -> bool {
        let mut any = false;
        while let Some(mut running) = self.waiting.pop_front() {
            let Some(scratch) = self.claim_scratch() else {
                if self.scratch_count == 0 {
                    // No memory, and nobody who could give some back.
                    self.ended.push((running.id, Outcome::HardwareError));
                    continue;
                }
                self.waiting.push_front(running);
                break;
            };
            running.start(scratch);
            self.engine.submit(running);
            any = true;
        }
        any
    }

    fn claim_scratch(&mut self) -> Option<HostBuffer> {
        if self.scratch.is_empty() && self.scratch_count < SCRATCH_COUNT_MAX {
            let arena = Arena::anonymous(SCRATCH_BYTES as usize).ok()?;
            self.scratch.extend(arena.window(0, SCRATCH_BYTES));
            self.scratch_count += 1;
        }
        self.scratch.pop()
    }

    /// Writes the provisioning state of the blocks into `data`; at once, because lseek(2) only looks
    /// at what the file system has in memory. A block is deallocated when a hole covers all of it.
    fn list_runs(&self, lba: u64, blocks: u64, data: Option<&HostBuffer>) -> Outcome {
        let (Some(data), block_bytes) = (data, u64::from(self.geometry.block_bytes)) else {
            return Outcome::HardwareError;
        };
        let room = data.length() / Run::BYTES as u32;
        let (mut at, end, mut runs) = (lba, lba + blocks, 0);
        while at < end && runs < room {
            // Without holes in this file system, or in a block device, everything is mapped.
            let next_data = match seek(&*self.file, rustix::fs::SeekFrom::Data(at * block_bytes)) {
                Ok(offset) => offset / block_bytes,
                Err(Errno::NXIO) => end,
                Err(_) => at,
            };
            let deallocated = next_data > at;
            let until = if deallocated {
                next_data
            } else {
                match seek(&*self.file, rustix::fs::SeekFrom::Hole(at * block_bytes)) {
                    Ok(offset) => offset.div_ceil(block_bytes).max(at + 1),
                    Err(_) => end,
                }
            };
            let count = until.min(end) - at;
            let blocks = u32::try_from(count).unwrap_or(u32::MAX);
            let run = Run { lba: at, blocks, deallocated };
            if !data.write(runs * Run::BYTES as u32, &run.to_bytes()) {
                return Outcome::HardwareError;
            }
            runs += 1;
            at += u64::from(blocks);
        }
        Outcome::Listed { runs }
    }
}

fn check_options(device: &str, backing: &Parameters) -> Result<(), OpenError> {
    check_block_bytes(device, backing.block_bytes)?;
    if !backing.filename.is_absolute() {
        let reason = "not an absolute path";
        let way_out = "give the path from the root";
        return Err(OpenError::new(
            device,
            "filename",
            backing.filename.display(),
            reason,
            way_out,
        ));
    }
    for (parameter, set) in
        [("write_through", backing.write_through), ("nv_cache", backing.nv_cache)]
    {
        if backing.read_only && set {
            let reason = "a read-only device has no writes to cache";
            let way_out = "leave out read_only or this parameter";
            return Err(OpenError::new(device, parameter, 1, reason, way_out));
        }
    }
    Ok(())
}

fn open_file(device: &str, backing: &Parameters) -> Result<(File, bool), OpenError> {
    let refuse = |reason: &dyn std::fmt::Display, way_out: &str| {
        OpenError::new(device, "filename", backing.filename.display(), reason, way_out)
    };
    // O_NONBLOCK: a FIFO must not stall the agent before its type is known. It means nothing for
    // files and block devices.
    let mut flags = libc::O_NONBLOCK;
    if backing.o_direct {
        flags |= libc::O_DIRECT;
    }
    let opened = OpenOptions::new()
        .read(true)
        .write(!backing.read_only)
        .custom_flags(flags)
        .open(&backing.filename);
    let file = opened.map_err(|error| {
        let way_out = match error.kind() {
            io::ErrorKind::NotFound => "create the file first or correct the path",
            io::ErrorKind::PermissionDenied => {
                "give the agent's user the right to it, or set read_only = 1"
            }
            io::ErrorKind::ReadOnlyFilesystem => "set read_only = 1",
            io::ErrorKind::InvalidInput if backing.o_direct => {
                "the file system has no direct I/O: use vdisk_fileio without o_direct"
            }
            io::ErrorKind::IsADirectory => "name a file or block device",
            _ => "see the reason",
        };
        refuse(&error, way_out)
    })?;
    let metadata = file.metadata().map_err(|error| refuse(&error, "see the reason"))?;
    let is_block_device = metadata.file_type().is_block_device();
    if !is_block_device && !metadata.is_file() {
        return Err(refuse(
            &"neither a regular file nor a block device",
            "name a file or block device",
        ));
    }
    Ok((file, is_block_device))
}

/// Takes the backing for this device: exclusive for a writer, shared for readers. The lock belongs
/// to the open file, which requests in the kernel hold too: so an agent that was killed gives it up
/// only when its last write has ended, and no write of it can land after its successor started.
/// For block devices this is also udev's protocol to keep probes away.
fn lock(device: &str, backing: &Parameters, file: &File) -> Result<(), OpenError> {
    let operation = if backing.read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    let started = Instant::now();
    loop {
        let error = match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => continue,
            Err(error) => error,
        };
        if error == Errno::WOULDBLOCK && started.elapsed() < backing.lock_wait {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        let reason = if error == Errno::WOULDBLOCK {
            "another device or program has it open and locked".to_owned()
        } else {
            format!("it could not be locked: {error}")
        };
        let way_out =
            "give it up there (see /proc/locks), or use read_only = 1 on both sides".to_owned();
        let value = backing.filename.display();
        return Err(OpenError::new(device, "filename", value, reason, way_out));
    }
}

/// Direct I/O moves whole sectors: a smaller logical block could not be served.
fn check_direct(
    device: &str,
    backing: &Parameters,
    file: &File,
    is_block_device: bool,
) -> Result<(), OpenError> {
    let sector_bytes = if is_block_device {
        ioctl_blksszget(file).ok()
    } else {
        // Zero, or an unset mask: the kernel does not tell.
        statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
            .ok()
            .filter(|answer| answer.stx_mask & StatxFlags::DIOALIGN.bits() != 0)
            .map(|answer| answer.stx_dio_offset_align)
    };
    match sector_bytes {
        Some(sector_bytes) if sector_bytes > backing.block_bytes => Err(OpenError::new(
            device,
            "blocksize",
            backing.block_bytes,
            format!(
                "direct I/O on {} moves {sector_bytes} bytes at least",
                backing.filename.display()
            ),
            format!("set blocksize = {sector_bytes}, or use vdisk_fileio without o_direct"),
        )),
        _ => Ok(()),
    }
}

/// Unmapping must free room and leave zeroes: hole punching in a file, discard on a block device.
fn check_thin(
    device: &str,
    backing: &Parameters,
    file: &File,
    is_block_device: bool,
) -> Result<(), OpenError> {
    let able = if is_block_device {
        discards(file)
    } else if backing.read_only {
        true
    } else {
        // Behind the end of the file there is nothing to lose.
        let end = file.metadata().map_or(0, |metadata| metadata.len()).next_multiple_of(4096);
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        !matches!(fallocate(file, mode, end, 4096), Err(Errno::OPNOTSUPP | Errno::NOSYS))
    };
    if able {
        return Ok(());
    }
    let what = if is_block_device { "discards nothing" } else { "has no hole punching" };
    let reason = format!("{} {what}", backing.filename.display());
    let way_out = "set thin_provisioned = 0, or put the device on a backing that can";
    Err(OpenError::new(device, "thin_provisioned", 1, reason, way_out))
}

/// Whether a block device discards, by sysfs; a partition asks its disk.
fn discards(file: &File) -> bool {
    let Ok(metadata) = file.metadata() else {
        return false;
    };
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    ["queue", "../queue"].iter().any(|queue| {
        let path = format!("/sys/dev/block/{major}:{minor}/{queue}/discard_max_bytes");
        std::fs::read_to_string(path)
            .is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0))
    })
}

fn count_blocks(
    device: &str,
    filename: &Path,
    block_bytes: u32,
    size_bytes: Option<u64>,
    mut file: &File,
    warnings: &mut Vec<String>,
) -> Result<u64, OpenError> {
    let refuse = |reason: &dyn std::fmt::Display, way_out: &str| {
        OpenError::new(device, "filename", filename.display(), reason, way_out)
    };
    // Unlike fstat, this works for block devices too.
    let bytes = file.seek(SeekFrom::End(0)).map_err(|error| refuse(&error, "see the reason"))?;
    if let Some(size_bytes) = size_bytes {
        return limited(device, filename, block_bytes, size_bytes, bytes);
    }
    let blocks = bytes / u64::from(block_bytes);
    let tail_bytes = bytes % u64::from(block_bytes);
    if blocks == 0 {
        let reason = format!("its {bytes} bytes hold no block of {} bytes", block_bytes);
        return Err(refuse(&reason, "enlarge it, for example with truncate -s"));
    }
    if tail_bytes != 0 {
        warnings.push(format!(
            "device {device}: the last {tail_bytes} of the {bytes} bytes of {} are ignored: they are no whole block of {} bytes",
            filename.display(),
            block_bytes,
        ));
    }
    Ok(blocks)
}

/// Blocks of a device that uses `size_bytes` of the `bytes` that are there.
fn limited(
    device: &str,
    filename: &Path,
    block_bytes: u32,
    size_bytes: u64,
    bytes: u64,
) -> Result<u64, OpenError> {
    let blocks = size_bytes / u64::from(block_bytes);
    let (reason, way_out) = if blocks == 0 || !size_bytes.is_multiple_of(block_bytes.into()) {
        (format!("not a multiple of the {block_bytes}-byte block"), "correct the size")
    } else if size_bytes > bytes {
        let reason = format!("{} has {bytes} bytes only", filename.display());
        (reason, "make it smaller, or leave it out to use all")
    } else {
        return Ok(blocks);
    };
    Err(OpenError::new(device, "size", size_bytes, reason, way_out))
}
