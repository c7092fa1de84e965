//! What card and host agree on: the protobuf control messages and their framing ([`control`],
//! [`checked`]), the fixed ring entries ([`ring`]), the arithmetic of the ring cursors ([`cursor`]),
//! the buckets of the latency histograms ([`histogram`]), how initiator names are matched against
//! access groups ([`access`]) and the names of access states ([`alua`]).
//!
//! No I/O, no clock, no threads and no policy may live here: both sides depend on this crate, and it
//! depends on neither. Everything that reads bytes survives any bytes: the answer is a value, nothing,
//! or an error that names what is wrong.
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

pub mod access;
pub mod alua;
pub mod checked;
pub mod control;
pub mod cursor;
pub mod histogram;
pub mod ring;
