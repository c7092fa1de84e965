//! vdisk_nullio: a device that does nothing, at once. Writes vanish; reads leave the data buffer as
//! it is (or zeroed, with `read_zero`). Nothing is stored that could differ, so every comparison finds
//! its blocks equal, as with SCST. For measuring everything but a medium.

use std::os::fd::BorrowedFd;

use crate::device::{
    BlockDevice, CancelAnswer, Ended, Geometry, Outcome, Request, RequestId, all_mapped,
};
use crate::memory::HostBuffer;
use crate::open::{OpenError, check_block_bytes};

/// The device's parameters; the names are those of scst.conf unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Parameters {
    /// Logical block length in bytes (`blocksize`), a power of two from 512 to 65536.
    pub block_bytes: u32,
    /// Length in bytes (`size`), a multiple of the block length above 0.
    pub size_bytes: u64,
    /// Writes end with `WriteProtected`.
    pub read_only: bool,
    /// Reported to initiators.
    pub rotational: bool,
    /// Reads give zeroes instead of whatever the buffer held.
    pub read_zero: bool,
}

/// See the module.
#[derive(Debug)]
pub struct VdiskNullio {
    geometry: Geometry,
    read_zero: bool,
    ended: Vec<Ended>,
}

/// Opens the device called `device` in the configuration.
///
/// # Errors
/// A block length or size that is not allowed.
pub fn open(device: &str, parameters: &Parameters) -> Result<VdiskNullio, OpenError> {
    check_block_bytes(device, parameters.block_bytes)?;
    let block_bytes = u64::from(parameters.block_bytes);
    let size_bytes = parameters.size_bytes;
    // File offsets are signed; a null device keeps to what a real one could have.
    let fits = i64::try_from(size_bytes).is_ok();
    if size_bytes == 0 || !size_bytes.is_multiple_of(block_bytes) || !fits {
        let reason =
            format!("not a multiple of the {block_bytes}-byte block from one block to 8 EiB");
        return Err(OpenError::new(device, "size", size_bytes, reason, "correct the size"));
    }
    let geometry = Geometry {
        block_bytes: parameters.block_bytes,
        blocks: size_bytes / block_bytes,
        read_only: parameters.read_only,
        write_cache: false,
        fua: true,
        rotational: parameters.rotational,
        thin: false,
    };
    Ok(VdiskNullio { geometry, read_zero: parameters.read_zero, ended: Vec::new() })
}

impl BlockDevice for VdiskNullio {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, id: RequestId, request: Request, data: Option<HostBuffer>) {
        let outcome = match (self.geometry.check(&request, data.as_ref()), request) {
            (Err(outcome), _) => outcome,
            (Ok(_), Request::LbaStatus { lba, blocks }) => all_mapped(lba, blocks, data.as_ref()),
            (Ok(_), _) => Outcome::Done,
        };
        if let (Outcome::Done, Request::Read { .. }, Some(data), true) =
            (outcome, request, &data, self.read_zero)
        {
            data.zero();
        }
        self.ended.push((id, outcome));
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

    /// The size is what was configured.
    fn resync_size(&mut self) -> Result<Vec<String>, OpenError> {
        Ok(Vec::new())
    }
}
