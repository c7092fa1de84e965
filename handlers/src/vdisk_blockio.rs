//! vdisk_blockio: a block device, past the page cache (O_DIRECT). The parameters are those of
//! SCST's handler of that name. A regular file works too, with a warning.

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::engine::EngineChoice;
use crate::file_device::{Backing, FileDevice, LOCK_WAIT};
use crate::open::{OpenError, Opened};

/// The device's parameters; the names are those of scst.conf unless said otherwise.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Absolute path of the block device.
    pub filename: PathBuf,
    /// Logical block length in bytes (`blocksize`), a power of two from the device's own logical
    /// block to 65536.
    pub block_bytes: u32,
    /// Opens the device for reading only; writes end with `WriteProtected`.
    pub read_only: bool,
    /// Every write is on the medium when it ends.
    pub write_through: bool,
    /// The device's cache is declared non-volatile: flushes and FUA do nothing.
    pub nv_cache: bool,
    /// Reported to initiators.
    pub rotational: bool,
    /// Reported to initiators (`thin_provisioned`).
    pub thin_provisioned: bool,
    /// How to move the blocks (not an SCST parameter).
    pub engine: EngineChoice,
    /// How long to wait for the previous holder of the device's lock (not an SCST parameter).
    pub lock_wait: Duration,
}

impl Parameters {
    /// SCST's defaults for `filename`.
    #[must_use]
    pub fn new(filename: impl Into<PathBuf>) -> Self {
        Self {
            filename: filename.into(),
            block_bytes: 512,
            read_only: false,
            write_through: false,
            nv_cache: false,
            rotational: true,
            thin_provisioned: false,
            engine: EngineChoice::Automatic,
            lock_wait: LOCK_WAIT,
        }
    }
}

/// Opens the device called `device` in the configuration. May wait up to `lock_wait`.
///
/// # Errors
/// See [`OpenError`]: the path, the lock, the block length, contradicting parameters.
pub fn open(device: &str, parameters: &Parameters) -> Result<Opened<FileDevice>, OpenError> {
    let backing = Backing {
        filename: &parameters.filename,
        block_bytes: parameters.block_bytes,
        read_only: parameters.read_only,
        write_through: parameters.write_through,
        nv_cache: parameters.nv_cache,
        direct: true,
        rotational: parameters.rotational,
        thin: parameters.thin_provisioned,
        engine: parameters.engine,
        lock_wait: parameters.lock_wait,
    };
    let mut opened = FileDevice::open(device, &backing)?;
    let is_block_device = std::fs::metadata(&parameters.filename)
        .is_ok_and(|metadata| metadata.file_type().is_block_device());
    if !is_block_device {
        opened.warnings.push(format!(
            "device {device}: {} is no block device; vdisk_fileio with o_direct = 1 is the handler for files",
            parameters.filename.display()
        ));
    }
    Ok(opened)
}
