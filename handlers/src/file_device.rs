//! A device whose blocks lie in an open file or block device: what vdisk_fileio and vdisk_blockio
//! share. Deciding how to open it is theirs.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, StatxFlags, flock, ioctl_blksszget, statx};
use rustix::io::Errno;

use crate::device::{BlockDevice, CancelAnswer, Ended, Geometry, Outcome, Request, RequestId};
use crate::engine::{Engine, EngineChoice, Running};
use crate::memory::HostBuffer;
use crate::open::{OpenError, Opened, check_block_bytes};

/// How long [`FileDevice`] waits by default for the previous holder of the backing: an agent that
/// was killed holds it until the kernel has ended its last write.
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(5);

/// What both handlers are opened with.
pub(crate) struct Backing<'a> {
    pub(crate) filename: &'a Path,
    pub(crate) block_bytes: u32,
    pub(crate) read_only: bool,
    pub(crate) write_through: bool,
    pub(crate) nv_cache: bool,
    pub(crate) direct: bool,
    pub(crate) rotational: bool,
    pub(crate) thin: bool,
    pub(crate) engine: EngineChoice,
    pub(crate) lock_wait: Duration,
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
    filename: PathBuf,
}

impl FileDevice {
    pub(crate) fn open(device: &str, backing: &Backing<'_>) -> Result<Opened<Self>, OpenError> {
        check_options(device, backing)?;
        let (file, is_block_device) = open_file(device, backing)?;
        lock(device, backing, &file)?;
        if backing.direct {
            check_direct(device, backing, &file, is_block_device)?;
        }
        let mut warnings = Vec::new();
        let blocks = count_blocks(device, backing, &file, &mut warnings)?;
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
            thin: backing.thin,
        };
        let device = Self {
            engine,
            geometry,
            write_through: backing.write_through,
            nv_cache: backing.nv_cache,
            ended: Vec::new(),
            filename: backing.filename.to_owned(),
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
        let durable = match request {
            Request::Flush if self.nv_cache || self.geometry.read_only => {
                return self.ended.push((id, Outcome::Done));
            }
            Request::Write { fua, .. } => self.write_through || (fua && !self.nv_cache),
            _ => false,
        };
        let block_bytes = self.geometry.block_bytes;
        self.engine.submit(Running::new(id, request, range, data, durable, block_bytes));
    }

    fn cancel(&mut self, id: RequestId) -> CancelAnswer {
        self.engine.cancel(id)
    }

    fn poll(&mut self, ended: &mut Vec<Ended>) {
        ended.append(&mut self.ended);
        self.engine.poll(ended);
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.engine.event_fd()
    }

    fn outstanding(&self) -> usize {
        self.ended.len() + self.engine.outstanding()
    }
}

fn check_options(device: &str, backing: &Backing<'_>) -> Result<(), OpenError> {
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

fn open_file(device: &str, backing: &Backing<'_>) -> Result<(File, bool), OpenError> {
    let refuse = |reason: &dyn std::fmt::Display, way_out: &str| {
        OpenError::new(device, "filename", backing.filename.display(), reason, way_out)
    };
    // O_NONBLOCK: a FIFO must not stall the agent before its type is known. It means nothing for
    // files and block devices.
    let mut flags = libc::O_NONBLOCK;
    if backing.direct {
        flags |= libc::O_DIRECT;
    }
    let opened = OpenOptions::new()
        .read(true)
        .write(!backing.read_only)
        .custom_flags(flags)
        .open(backing.filename);
    let file = opened.map_err(|error| {
        let way_out = match error.kind() {
            io::ErrorKind::NotFound => "create the file first or correct the path",
            io::ErrorKind::PermissionDenied => {
                "give the agent's user the right to it, or set read_only = 1"
            }
            io::ErrorKind::ReadOnlyFilesystem => "set read_only = 1",
            io::ErrorKind::InvalidInput if backing.direct => {
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
fn lock(device: &str, backing: &Backing<'_>, file: &File) -> Result<(), OpenError> {
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
    backing: &Backing<'_>,
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

fn count_blocks(
    device: &str,
    backing: &Backing<'_>,
    mut file: &File,
    warnings: &mut Vec<String>,
) -> Result<u64, OpenError> {
    let refuse = |reason: &dyn std::fmt::Display, way_out: &str| {
        OpenError::new(device, "filename", backing.filename.display(), reason, way_out)
    };
    // Unlike fstat, this works for block devices too.
    let bytes = file.seek(SeekFrom::End(0)).map_err(|error| refuse(&error, "see the reason"))?;
    let blocks = bytes / u64::from(backing.block_bytes);
    let tail_bytes = bytes % u64::from(backing.block_bytes);
    if blocks == 0 {
        let reason = format!("its {bytes} bytes hold no block of {} bytes", backing.block_bytes);
        return Err(refuse(&reason, "enlarge it, for example with truncate -s"));
    }
    if tail_bytes != 0 {
        warnings.push(format!(
            "device {device}: the last {tail_bytes} of the {bytes} bytes of {} are ignored: they are no whole block of {} bytes",
            backing.filename.display(),
            backing.block_bytes,
        ));
    }
    Ok(blocks)
}
