//! Where blocks come from and go to, as the card sees it: the producer of the PCIe ring, behind which
//! the host agent's handlers work.
//!
//! Here live operations, their tokens and their outcomes. CDBs are opaque bytes and SCSI status is a
//! number passed through: what they mean is decided in `scsi` and `target`. One backend belongs to
//! one poll group; nothing here locks, and nothing allocates after `new`.
#![forbid(unsafe_code)]

pub mod ring;

use lunar_dma::sgv::{Buffer, Placement};
use lunar_offload_proto::ring::Outcome as Code;
pub use lunar_offload_proto::ring::{BlockRange, BlockRequest, LbaRun, UNMAP_RANGES_MAX};
use lunar_platform::LocalKey;

/// Where an operation's data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationData {
    /// In which memory.
    pub placement: Placement,
    /// Key of the region or arena.
    pub key: LocalKey,
    /// Address of the first byte, for the DMA engine.
    pub address: u64,
    /// Offset in bytes from the base of its SGV cache; means something for host memory.
    pub offset: u64,
    /// Bytes that may be used.
    pub bytes: u32,
}

impl From<&Buffer> for OperationData {
    fn from(buffer: &Buffer) -> Self {
        Self {
            placement: buffer.placement(),
            key: buffer.key(),
            address: buffer.address(),
            offset: buffer.offset(),
            bytes: buffer.bytes(),
        }
    }
}

/// One operation for a backend.
#[derive(Clone, Copy, Debug)]
pub struct Submission<'a> {
    /// The submitter's name for it: a slot index below the backend's capacity in the low 32 bits (bit
    /// 31 clear), the slot's generation above. Free again when [`Outcome`] has brought it back.
    pub token: u64,
    /// Handle of the logical unit.
    pub unit: u32,
    /// Handle of the I_T nexus.
    pub nexus: u32,
    /// Generation of the configuration it was checked under.
    pub configuration_generation: u32,
    /// Which life of `nexus`.
    pub nexus_generation: u32,
    /// What to do.
    pub request: BlockRequest,
    /// The data; stays with the backend (untouched by the submitter) until the outcome.
    pub data: Option<OperationData>,
    /// Bytes of `data` in use; at most its length.
    pub data_bytes: u32,
    /// The CDB of a forwarded command, at most 260 bytes; else ignored.
    pub cdb: &'a [u8],
    /// What an UNMAP deallocates, at most [`UNMAP_RANGES_MAX`]; else ignored.
    pub ranges: &'a [BlockRange],
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The submission's token.
    pub token: u64,
    /// How.
    pub outcome: Code,
    /// SCSI status, when the outcome is `Forwarded`; else 0.
    pub status: u8,
    /// The LBA of a medium error, the byte offset of a miscompare; else 0.
    pub detail: u64,
    /// Bytes moved to or from the buffer, at most the submission's `data_bytes`.
    pub transferred_bytes: u32,
    /// Generation of the configuration that must be applied before the initiator is answered; 0 asks
    /// for none.
    pub required_generation: u32,
}

impl Outcome {
    /// Fills arrays that [`ring::RingBackend::poll`] writes to.
    pub const EMPTY: Self = Self::of(0, Code::Lost);

    const fn of(token: u64, outcome: Code) -> Self {
        Self { token, outcome, status: 0, detail: 0, transferred_bytes: 0, required_generation: 0 }
    }

    /// `token` was carried out.
    #[must_use]
    pub const fn done(token: u64) -> Self {
        Self::of(token, Code::Done)
    }

    /// Nobody knows what became of `token`.
    #[must_use]
    pub const fn lost(token: u64) -> Self {
        Self::of(token, Code::Lost)
    }
}

/// The backend cannot take the operation now. Ask again after the next outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl core::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the backend has no room for another operation now")
    }
}

impl core::error::Error for NoRoom {}
