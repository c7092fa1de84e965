//! VSCSI, IBM's virtual SCSI between logical partitions (PAPR): the server's side of an adapter, as
//! values.
//!
//! This crate decides and touches nothing: it gets bytes, the hypervisor's return codes, events and
//! the time, and gives values, or fills bytes. No I/O, clock, thread, allocation, log or unsafe code
//! may live here, and no input may panic it: the client is another partition, and whatever it puts in
//! a queue entry, an information unit or a table is its *claim*.
//!
//! The data path's information units are those of [`lunar_srp`], byte for byte, so that everything
//! above the transport is shared with it. What VSCSI has of its own:
//!
//! * [`crq`]: the 16-byte entries of the command/response queue,
//! * [`hcall`]: what the hypervisor's return codes mean for a server,
//! * [`adapter`]: the life of one adapter, from registering its queue to answering its client,
//! * [`mad`]: management datagrams, VSCSI's questions before the login,
//! * [`login`]: SRP's login by VSCSI's rules,
//! * [`descriptor`]: data in the client's I/O window, and how it is copied,
//! * [`lun`]: VSCSI's LUN field,
//! * [`response`]: what the client makes of a response.
//!
//! On the data path are [`crq::Entry`], [`adapter::Adapter::take_request`],
//! [`adapter::Adapter::take_command`], [`adapter::Adapter::answer_delta`],
//! [`adapter::Adapter::end_request`], [`descriptor::copies`] and [`response::crq_status`].
#![no_std]
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

pub mod adapter;
pub mod crq;
pub mod descriptor;
pub mod hcall;
pub mod login;
pub mod lun;
pub mod mad;
pub mod response;

/// The longest information unit in bytes, either way (`VIOSRP_MAX_IU_LEN`).
pub const IU_BYTES_MAX: u16 = 256;
