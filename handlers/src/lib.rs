//! The handlers: what stores the blocks of a logical unit, on the host side.
//!
//! Here live the trait [`BlockDevice`] with its implementations (SCST's vdisk_nullio,
//! vdisk_fileio, vdisk_blockio and vdisk_cdrom, and a memory disk for tests), the decorators that wrap any of
//! them ([`delay`], [`fault`], [`verify`]), the trait [`CommandDevice`] for pass-through, and
//! [`memory`]: the shared arenas that data lands in. SCSI may not live here (a handler knows
//! blocks, not CDBs or sense), nor rings and messages.
//!
//! Unsafe code is allowed in [`memory`] (shared mappings) and in the private `uring` module
//! (submitting to the kernel) only.

pub mod delay;
mod device;
mod engine;
pub mod fault;
mod file_device;
pub mod memory;
pub mod memory_disk;
mod open;
mod random;
mod running;
mod synchronous;
mod uring;
pub mod vdisk_blockio;
pub mod vdisk_cdrom;
pub mod vdisk_fileio;
pub mod vdisk_nullio;
pub mod verify;

pub use device::{
    BlockDevice, ByteRange, CancelAnswer, CommandDevice, CommandEnd, Ended, Geometry, Outcome,
    Request, RequestId, Run,
};
pub use engine::EngineChoice;
pub use file_device::{FileDevice, Parameters};
pub use memory::{Arena, HostBuffer};
pub use open::{OpenError, Opened};
