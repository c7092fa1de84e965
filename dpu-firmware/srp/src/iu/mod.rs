//! Information units on a live channel (SRP clause 6): [`request`]s go from initiator to target,
//! [`reply`]s the other way. Both ends' parsers and encoders are here, so that each is the other's
//! test.
//!
//! A parsed IU borrows the bytes it came from. Parsers tell two kinds of trouble apart: an IU that
//! cannot be answered ([`Malformed`]: close the channel) and a command that can be answered and
//! refused ([`CommandFault`]).

use core::fmt;

pub mod reply;
pub mod request;

pub use reply::{
    EventRequest, Reply, Residual, Response, encode_credit_request, encode_event_request,
    encode_response, encode_success, encode_target_logout, parse_reply, parse_response,
};
pub use request::{
    BufferLayout, CDB_OFFSET, Command, CommandFault, CommandHead, CommandLayout, FIXED_CDB_BYTES,
    IuError, Request, SolicitedNotification, TaskManagement, command_head, encode_command,
    encode_credit_response, encode_event_response, encode_logout, encode_task_management,
    function_code, parse, parse_granted,
};

/// Longest command descriptor block an SRP_CMD can carry: 16 bytes and 63 additional dwords.
pub const CDB_BYTES_MAX: usize = 16 + 252;
/// Most sense data a response carries (SPC-6 4.5.1).
pub const SENSE_BYTES_MAX: usize = 252;
/// Response data: three reserved bytes and the response code (SRP 6.9).
pub const RESPONSE_DATA_BYTES: usize = 4;
/// Longest SRP_RSP this target sends: header, response data and sense data.
pub const RESPONSE_BYTES_MAX: usize = 36 + RESPONSE_DATA_BYTES + SENSE_BYTES_MAX;
/// Shortest SRP_CMD, and the length of every SRP_TSK_MGMT.
pub const COMMAND_BYTES_MIN: usize = size_of::<crate::wire::Command>();

/// Bytes of an SRP_T_LOGOUT.
pub const LOGOUT_BYTES: u32 = size_of::<crate::wire::Valued>() as u32;

/// Reasons in SRP_T_LOGOUT (SRP 6.6). Those that the target gives; there are more.
pub mod logout_reason {
    /// No reason specified.
    pub const NOT_SPECIFIED: u32 = 0;
    /// An IU type that does not exist.
    pub const INVALID_IU_TYPE: u32 = 2;
    /// The multi-channel action of a newer login ends the channel.
    pub const MULTI_CHANNEL_ACTION: u32 = 4;
    /// An IU whose length does not fit its type.
    pub const INVALID_IU_LENGTH: u32 = 8;
}

/// Response codes in SRP_RSP's response data (SRP 6.9).
pub mod response_code {
    /// The task management function was carried out.
    pub const NO_FAILURE: u8 = 0;
    /// A field of the request is invalid.
    pub const REQUEST_FIELDS_INVALID: u8 = 2;
    /// The task management function is not supported.
    pub const FUNCTION_NOT_SUPPORTED: u8 = 4;
    /// The task management function failed.
    pub const FUNCTION_FAILED: u8 = 5;
}

/// The bytes are no IU that may arrive here. There is no way to answer them: the channel must be
/// closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// No bytes at all.
    Empty,
    /// An IU type that does not exist or does not travel in this direction.
    UnknownOpcode(u8),
    /// Shorter than its type's fixed part, or than the lengths it declares.
    TooShort {
        /// The IU type.
        opcode: u8,
        /// Bytes it would need.
        needed_bytes: u32,
        /// Bytes it has.
        iu_bytes: u32,
    },
    /// A response says that a residual is both overflow and underflow.
    ContradictoryResidual,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => f.write_str("an IU without any bytes"),
            Self::UnknownOpcode(opcode) => {
                write!(f, "IU type {opcode:#04x} is not expected on this channel")
            }
            Self::TooShort { opcode, needed_bytes, iu_bytes } => {
                write!(f, "IU of type {opcode:#04x} has {iu_bytes} bytes, but needs {needed_bytes}")
            }
            Self::ContradictoryResidual => {
                f.write_str("a response's residual is both overflow and underflow")
            }
        }
    }
}

impl core::error::Error for Malformed {}

impl Malformed {
    #[cold]
    pub(crate) fn too_short(iu: &[u8], needed_bytes: usize) -> Self {
        match iu.first() {
            None => Self::Empty,
            Some(&opcode) => Self::TooShort {
                opcode,
                needed_bytes: u32::try_from(needed_bytes).unwrap_or(u32::MAX),
                iu_bytes: u32::try_from(iu.len()).unwrap_or(u32::MAX),
            },
        }
    }
}

/// The fixed part of an IU.
#[inline]
pub(crate) fn header<T>(iu: &[u8]) -> Result<&T, Malformed>
where
    T: zerocopy::FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    match T::ref_from_prefix(iu) {
        Ok((header, _)) => Ok(header),
        Err(_) => Err(Malformed::too_short(iu, size_of::<T>())),
    }
}

/// Writes one part of an IU at `*at` and moves `*at` behind it; `None` when it does not fit.
#[inline]
pub(crate) fn put(out: &mut [u8], at: &mut usize, part: &[u8]) -> Option<()> {
    let end = at.checked_add(part.len())?;
    out.get_mut(*at..end)?.copy_from_slice(part);
    *at = end;
    Some(())
}
