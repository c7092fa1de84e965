//! vdisk_fileio: a regular file (or block device) through the page cache, or directly with
//! `o_direct`. The parameters are those of SCST's handler of that name.

use crate::file_device::FileDevice;
pub use crate::file_device::Parameters;
use crate::open::{OpenError, Opened};

/// Opens the device called `device` in the configuration. May wait up to `lock_wait`.
///
/// # Errors
/// See [`OpenError`]: the file, the lock, the block length, contradicting parameters.
pub fn open(device: &str, parameters: &Parameters) -> Result<Opened<FileDevice>, OpenError> {
    FileDevice::open(device, parameters)
}
