//! The SCSI side of a target: CDBs, sense data, LUNs, the device server, unit attentions and the
//! task set. Everything here decides: bytes and plain data in, values out. No I/O, no clock, no
//! threads, no logging, and no input makes it panic. Only [`reservations`] allocates, for the host agent
//! and never for the data path. What moves data lives in `lunar-target`, what knows a transport in
//! `lunar-srp`.
//!
//! The standards are SAM-6, SPC-6 and SBC-4; an item names the clause it follows.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;

pub mod alua;
pub mod cdb;
pub mod device_server;
pub mod extended_copy;
pub mod lun;
pub mod opcodes;
pub mod reservations;
pub mod sense;
pub mod status;
pub mod task_set;
pub mod unit;
pub mod unit_attention;
mod writer;

pub use status::Status;
