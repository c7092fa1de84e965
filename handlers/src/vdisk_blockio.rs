//! vdisk_blockio: a block device without the page cache. The parameters are those of SCST's handler
//! of that name. A regular file works too, with a warning.

use std::os::unix::fs::FileTypeExt;

use crate::file_device::FileDevice;
pub use crate::file_device::Parameters;
use crate::open::{OpenError, Opened};

/// Opens the device called `device` in the configuration, with direct I/O whatever `o_direct` says.
/// May wait up to `lock_wait`.
///
/// # Errors
/// See [`OpenError`]: the path, the lock, the block length, contradicting parameters.
pub fn open(device: &str, parameters: &Parameters) -> Result<Opened<FileDevice>, OpenError> {
    let mut opened =
        FileDevice::open(device, &Parameters { o_direct: true, ..parameters.clone() })?;
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
