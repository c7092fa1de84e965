//! vdisk_fileio: a regular file (or block device) through the page cache, or directly with
//! `o_direct`. The parameters are those of SCST's handler of that name.

use std::path::PathBuf;
use std::time::Duration;

use crate::engine::EngineChoice;
use crate::file_device::{Backing, FileDevice, LOCK_WAIT};
use crate::open::{OpenError, Opened};

/// The device's parameters; the names are those of scst.conf unless said otherwise.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Absolute path of the file.
    pub filename: PathBuf,
    /// Logical block length in bytes (`blocksize`), a power of two from 512 to 65536.
    pub block_bytes: u32,
    /// Opens the file for reading only; writes end with `WriteProtected`.
    pub read_only: bool,
    /// Every write is on the medium when it ends.
    pub write_through: bool,
    /// The host's memory is declared non-volatile: flushes and FUA do nothing.
    pub nv_cache: bool,
    /// Goes past the page cache.
    pub o_direct: bool,
    /// Reported to initiators.
    pub rotational: bool,
    /// Reported to initiators (`thin_provisioned`).
    pub thin_provisioned: bool,
    /// How to move the blocks (not an SCST parameter).
    pub engine: EngineChoice,
    /// How long to wait for the previous holder of the file's lock (not an SCST parameter).
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
            o_direct: false,
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
/// See [`OpenError`]: the file, the lock, the block length, contradicting parameters.
pub fn open(device: &str, parameters: &Parameters) -> Result<Opened<FileDevice>, OpenError> {
    let backing = Backing {
        filename: &parameters.filename,
        block_bytes: parameters.block_bytes,
        read_only: parameters.read_only,
        write_through: parameters.write_through,
        nv_cache: parameters.nv_cache,
        direct: parameters.o_direct,
        rotational: parameters.rotational,
        thin: parameters.thin_provisioned,
        engine: parameters.engine,
        lock_wait: parameters.lock_wait,
    };
    FileDevice::open(device, &backing)
}
