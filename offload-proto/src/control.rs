//! The control channel's messages (generated from `proto/control.proto`, which documents every field),
//! their framing ([`Encoder`], [`Decoder`]) and the agreement on a version ([`negotiate`]).
//!
//! Sans-IO: bytes in, messages out. Who sends what when is decided by the two ends. Messages are as
//! the other side wrote them; [`crate::checked`] turns those that matter into values that can be
//! believed.

mod frame;
mod negotiation;

/// What prost made of `proto/control.proto`.
#[allow(missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/lunar.control.v1.rs"));
}

/// Bits of `LogicalUnit.host_commands`.
pub mod host_command {
    /// MODE SELECT (6) and (10).
    pub const MODE_SELECT: u32 = 1 << 0;
    /// FORMAT UNIT.
    pub const FORMAT_UNIT: u32 = 1 << 1;
    /// EXTENDED COPY (LID1).
    pub const EXTENDED_COPY: u32 = 1 << 2;
    /// RECEIVE COPY RESULTS.
    pub const RECEIVE_COPY_RESULTS: u32 = 1 << 3;
    /// START STOP UNIT with LOEJ and PREVENT ALLOW MEDIUM REMOVAL of a removable unit.
    pub const MEDIUM_REMOVAL: u32 = 1 << 4;
    /// RESERVE (6) and (10), RELEASE (6) and (10).
    pub const RESERVE: u32 = 1 << 5;
    /// PERSISTENT RESERVE IN and OUT.
    pub const PERSISTENT_RESERVE: u32 = 1 << 6;
    /// SET TARGET PORT GROUPS.
    pub const SET_TARGET_PORT_GROUPS: u32 = 1 << 7;
}

pub use frame::{Decoder, Encoder, FRAME_BYTES_MAX, FrameError, MESSAGE_BYTES_MAX, MESSAGES_MAX};
pub use generated::*;
pub use negotiation::{Agreed, Refusal, VERSION_MAX, VERSION_MIN, feature, hello, negotiate};

#[cfg(test)]
mod tests;
