//! vdisk_cdrom: a file as the disc of a CD/DVD drive, or no disc, as SCST's handler. It only reads, in
//! blocks of 2048 bytes.

use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::device::{BlockDevice, CancelAnswer, Ended, Geometry, Outcome, Request, RequestId};
use crate::file_device::{FileDevice, Parameters};
use crate::memory::HostBuffer;
use crate::open::{OpenError, Opened};

/// Logical block length in bytes, the only one.
pub const BLOCK_BYTES: u32 = 2048;

/// Opens the device called `device` in the configuration, with the disc in `filename`, an absolute path;
/// without one there is no disc. A last block that is cut is left out, with a warning.
///
/// # Errors
/// See [`OpenError`]: the file, its length.
pub fn open(
    device: &str,
    filename: Option<&Path>,
) -> Result<Opened<Box<dyn BlockDevice>>, OpenError> {
    let Some(filename) = filename else {
        let device = Box::new(Empty { ended: Vec::new() });
        return Ok(Opened { device, warnings: Vec::new() });
    };
    let parameters =
        Parameters { block_bytes: BLOCK_BYTES, read_only: true, ..Parameters::new(filename) };
    let Opened { device, warnings } = FileDevice::open(device, &parameters)?;
    Ok(Opened { device: Box::new(device), warnings })
}

/// The drive without a disc.
#[derive(Debug)]
struct Empty {
    ended: Vec<Ended>,
}

impl BlockDevice for Empty {
    fn geometry(&self) -> Geometry {
        Geometry {
            block_bytes: BLOCK_BYTES,
            blocks: 0,
            read_only: true,
            write_cache: false,
            fua: true,
            rotational: true,
            thin: false,
        }
    }

    /// Nothing is on a disc that is not there.
    fn submit(&mut self, id: RequestId, _request: Request, _data: Option<HostBuffer>) {
        self.ended.push((id, Outcome::OutOfRange));
    }

    fn cancel(&mut self, _id: RequestId) -> CancelAnswer {
        CancelAnswer::TooLate
    }

    fn poll(&mut self, ended: &mut Vec<Ended>) {
        ended.append(&mut self.ended);
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn outstanding(&self) -> usize {
        self.ended.len()
    }

    /// No disc has no size.
    fn resync_size(&mut self) -> Result<Vec<String>, OpenError> {
        Ok(Vec::new())
    }
}
