//! SRP, the SCSI RDMA Protocol (T10 SRP r16a): information units, memory descriptors, login, channel
//! states and credits, for both ends of a channel.
//!
//! This crate decides and touches nothing: it gets bytes and gives values, or gets values and fills
//! bytes. No I/O, clock, thread, allocation, log or unsafe code may live here, and no input may
//! panic it: every length, count and offset in an IU is the initiator's *claim*.
//!
//! * [`iu`]: what travels on a live channel, parsed and encoded,
//! * [`descriptor`]: where the initiator's data lies,
//! * [`login`]: what travels in the connection manager's private data,
//! * [`channel`]: the life of a channel and its credits,
//! * [`device_management`]: what a port answers to `srp_daemon`,
//! * [`wire`]: the bytes as they are on the wire.
//!
//! On the data path are [`iu::command_head`], [`descriptor::DataBuffer::descriptors`],
//! [`iu::encode_response`] and [`channel::Credit`].
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

pub mod channel;
pub mod descriptor;
pub mod device_management;
pub mod iu;
pub mod login;
pub mod wire;
