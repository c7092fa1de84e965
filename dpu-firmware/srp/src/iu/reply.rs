//! What a target sends on a live channel: SRP_RSP, SRP_CRED_REQ, SRP_AER_REQ and SRP_T_LOGOUT.

use zerocopy::IntoBytes;

use super::{Malformed, RESPONSE_DATA_BYTES, SENSE_BYTES_MAX, header, put};
use crate::wire::{self, opcode, response_flag};

/// Bytes of SRP_RSP and SRP_AER_REQ before their data.
const FIXED_BYTES: usize = 36;
const _: () = assert!(FIXED_BYTES == size_of::<wire::Response>());
const _: () = assert!(FIXED_BYTES == size_of::<wire::EventRequest>());

/// How far the transfer was from the buffer that the initiator offered (SRP 6.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residual {
    /// It fitted exactly.
    #[default]
    None,
    /// So many bytes did not fit the initiator's buffer.
    Over(u32),
    /// So many bytes of the initiator's buffer were not used.
    Under(u32),
}

impl Residual {
    /// The residual of a command that wanted to move `wanted_bytes` with an initiator's buffer of
    /// `offered_bytes`.
    #[inline]
    #[must_use]
    pub fn between(wanted_bytes: u32, offered_bytes: u32) -> Self {
        if wanted_bytes > offered_bytes {
            Self::Over(wanted_bytes.saturating_sub(offered_bytes))
        } else if wanted_bytes < offered_bytes {
            Self::Under(offered_bytes.saturating_sub(wanted_bytes))
        } else {
            Self::None
        }
    }

    #[inline]
    fn to_wire(self, over_flag: u8, under_flag: u8) -> (u8, u32) {
        match self {
            Self::None => (0, 0),
            Self::Over(bytes) => (over_flag, bytes),
            Self::Under(bytes) => (under_flag, bytes),
        }
    }

    #[inline]
    fn from_wire(over: bool, under: bool, bytes: u32) -> Result<Self, Malformed> {
        match (over, under) {
            (false, false) => Ok(Self::None),
            (true, false) => Ok(Self::Over(bytes)),
            (false, true) => Ok(Self::Under(bytes)),
            (true, true) => Err(Malformed::ContradictoryResidual),
        }
    }
}

/// An SRP_RSP: the end of a command or of a task management function (SRP 6.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Response<'a> {
    /// The request's tag.
    pub tag: u64,
    /// Credits given back.
    pub request_limit_delta: i32,
    /// SCSI status; zero when `response_code` is there.
    pub status: u8,
    /// Residual of the data-out buffer.
    pub data_out_residual: Residual,
    /// Residual of the data-in buffer.
    pub data_in_residual: Residual,
    /// For task management and for requests that were not understood: see
    /// [`response_code`](super::response_code).
    pub response_code: Option<u8>,
    /// Sense data, at most [`SENSE_BYTES_MAX`] bytes when sent.
    pub sense: &'a [u8],
    /// Whether a solicited event is raised at the initiator.
    pub solicited: bool,
}

/// An SRP_AER_REQ: an asynchronous event with sense data (SRP 6.12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventRequest<'a> {
    /// Chosen by the target; the initiator's SRP_AER_RSP echoes it.
    pub tag: u64,
    /// Credits given back.
    pub request_limit_delta: i32,
    /// The logical unit it is about.
    pub lun: [u8; 8],
    /// What happened.
    pub sense: &'a [u8],
    /// Whether a solicited event is raised at the initiator.
    pub solicited: bool,
}

/// An IU from a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// SRP_RSP.
    Response(Response<'a>),
    /// SRP_CRED_REQ: gives credits; the initiator answers with SRP_CRED_RSP.
    CredRequest {
        /// To be echoed.
        tag: u64,
        /// Credits given back.
        request_limit_delta: i32,
        /// Whether a solicited event was raised.
        solicited: bool,
    },
    /// SRP_AER_REQ.
    AerRequest(EventRequest<'a>),
    /// SRP_T_LOGOUT: the target closes the channel.
    Logout {
        /// Chosen by the target.
        tag: u64,
        /// Why (SRP 6.6).
        reason: u32,
    },
}

/// Encodes the SRP_RSP of a command with GOOD and without residuals, and gives its length in bytes;
/// `None` when it does not fit `out`. The data path's entry; [`encode_response`] does the others.
#[inline(always)]
#[must_use]
pub fn encode_success(
    tag: u64,
    request_limit_delta: i32,
    solicited: bool,
    out: &mut [u8],
) -> Option<u32> {
    let place = out.first_chunk_mut::<FIXED_BYTES>()?;
    let fixed = wire::Response {
        opcode: opcode::RESPONSE,
        solicited: u8::from(solicited),
        reserved_2: [0; 2],
        request_limit_delta: request_limit_delta.into(),
        tag: tag.into(),
        reserved_16: [0; 2],
        flags: 0,
        status: 0,
        data_out_residual: 0.into(),
        data_in_residual: 0.into(),
        sense_bytes: 0.into(),
        response_bytes: 0.into(),
    };
    *place = zerocopy::transmute!(fixed);
    Some(FIXED_BYTES as u32)
}

/// Encodes an SRP_RSP and gives its length in bytes; `None` when it does not fit `out` or the sense
/// data is longer than [`SENSE_BYTES_MAX`].
#[must_use]
pub fn encode_response(response: &Response<'_>, out: &mut [u8]) -> Option<usize> {
    let (out_flag, data_out_residual) = response
        .data_out_residual
        .to_wire(response_flag::DATA_OUT_OVER, response_flag::DATA_OUT_UNDER);
    let (in_flag, data_in_residual) = response
        .data_in_residual
        .to_wire(response_flag::DATA_IN_OVER, response_flag::DATA_IN_UNDER);
    let mut fixed = wire::Response {
        opcode: opcode::RESPONSE,
        solicited: u8::from(response.solicited),
        reserved_2: [0; 2],
        request_limit_delta: response.request_limit_delta.into(),
        tag: response.tag.into(),
        reserved_16: [0; 2],
        flags: out_flag | in_flag,
        status: response.status,
        data_out_residual: data_out_residual.into(),
        data_in_residual: data_in_residual.into(),
        sense_bytes: 0.into(),
        response_bytes: 0.into(),
    };
    let mut end = FIXED_BYTES;
    // Response data lies before sense data.
    if let Some(code) = response.response_code {
        fixed.flags |= response_flag::RESPONSE_VALID;
        fixed.response_bytes = (RESPONSE_DATA_BYTES as u32).into();
        put(out, &mut end, &[0, 0, 0, code])?;
    }
    if !response.sense.is_empty() {
        if response.sense.len() > SENSE_BYTES_MAX {
            return None;
        }
        fixed.flags |= response_flag::SENSE_VALID;
        fixed.sense_bytes = u32::try_from(response.sense.len()).ok()?.into();
        put(out, &mut end, response.sense)?;
    }
    put(out, &mut 0, fixed.as_bytes())?;
    Some(end)
}

/// Encodes an SRP_CRED_REQ; gives its length in bytes, `None` when it does not fit.
#[must_use]
pub fn encode_credit_request(
    tag: u64,
    request_limit_delta: i32,
    solicited: bool,
    out: &mut [u8],
) -> Option<usize> {
    encode_valued(opcode::CREDIT_REQUEST, tag, request_limit_delta, solicited, out)
}

/// Encodes an SRP_T_LOGOUT with a reason of [`logout_reason`](super::logout_reason) and without
/// solicited notification; gives its length in bytes, `None` when it does not fit.
#[must_use]
pub fn encode_target_logout(tag: u64, reason: u32, out: &mut [u8]) -> Option<usize> {
    encode_valued(opcode::TARGET_LOGOUT, tag, reason.cast_signed(), false, out)
}

fn encode_valued(
    opcode: u8,
    tag: u64,
    value: i32,
    solicited: bool,
    out: &mut [u8],
) -> Option<usize> {
    let valued = wire::Valued {
        opcode,
        solicited: u8::from(solicited),
        reserved_2: [0; 2],
        value: value.into(),
        tag: tag.into(),
    };
    let mut at = 0;
    put(out, &mut at, valued.as_bytes())?;
    Some(at)
}

/// Encodes an SRP_AER_REQ; gives its length in bytes, `None` when it does not fit or the sense data
/// is longer than [`SENSE_BYTES_MAX`].
#[must_use]
pub fn encode_event_request(event: &EventRequest<'_>, out: &mut [u8]) -> Option<usize> {
    if event.sense.len() > SENSE_BYTES_MAX {
        return None;
    }
    let fixed = wire::EventRequest {
        opcode: opcode::EVENT_REQUEST,
        solicited: u8::from(event.solicited),
        reserved_2: [0; 2],
        request_limit_delta: event.request_limit_delta.into(),
        tag: event.tag.into(),
        reserved_16: [0; 4],
        lun: event.lun,
        sense_bytes: u32::try_from(event.sense.len()).ok()?.into(),
        reserved_32: [0; 4],
    };
    let mut at = 0;
    put(out, &mut at, fixed.as_bytes())?;
    put(out, &mut at, event.sense)?;
    Some(at)
}

/// Parses an SRP_RSP, for the initiator. See [`parse_reply`] for every IU a target may send.
///
/// # Errors
/// [`Malformed`], also for an IU of another type.
#[inline]
pub fn parse_response(iu: &[u8]) -> Result<Response<'_>, Malformed> {
    let response: &wire::Response = header(iu)?;
    if response.opcode != opcode::RESPONSE {
        return Err(Malformed::UnknownOpcode(response.opcode));
    }
    let has = |flag| response.flags & flag != 0;
    let length = |flag, bytes: u32| if has(flag) { bytes as usize } else { 0 };
    let code_end = FIXED_BYTES
        .saturating_add(length(response_flag::RESPONSE_VALID, response.response_bytes.get()));
    let sense_end =
        code_end.saturating_add(length(response_flag::SENSE_VALID, response.sense_bytes.get()));
    let (Some(code), Some(sense)) = (iu.get(FIXED_BYTES..code_end), iu.get(code_end..sense_end))
    else {
        return Err(Malformed::too_short(iu, sense_end));
    };
    Ok(Response {
        tag: response.tag.get(),
        request_limit_delta: response.request_limit_delta.get(),
        status: response.status,
        data_out_residual: Residual::from_wire(
            has(response_flag::DATA_OUT_OVER),
            has(response_flag::DATA_OUT_UNDER),
            response.data_out_residual.get(),
        )?,
        data_in_residual: Residual::from_wire(
            has(response_flag::DATA_IN_OVER),
            has(response_flag::DATA_IN_UNDER),
            response.data_in_residual.get(),
        )?,
        response_code: code.get(RESPONSE_DATA_BYTES.saturating_sub(1)).copied(),
        sense,
        solicited: response.solicited & 1 != 0,
    })
}

/// Parses any IU that a target may send on a live channel, for the initiator.
///
/// # Errors
/// [`Malformed`].
#[inline]
pub fn parse_reply(iu: &[u8]) -> Result<Reply<'_>, Malformed> {
    match iu.first() {
        Some(&opcode::RESPONSE) => parse_response(iu).map(Reply::Response),
        Some(&opcode) => parse_rare(iu, opcode),
        None => Err(Malformed::Empty),
    }
}

/// Everything that is not a response.
fn parse_rare(iu: &[u8], opcode: u8) -> Result<Reply<'_>, Malformed> {
    match opcode {
        opcode::CREDIT_REQUEST => {
            let request: &wire::Valued = header(iu)?;
            Ok(Reply::CredRequest {
                tag: request.tag.get(),
                request_limit_delta: request.value.get(),
                solicited: request.solicited & 1 != 0,
            })
        }
        opcode::TARGET_LOGOUT => {
            let logout: &wire::Valued = header(iu)?;
            let reason = logout.value.get().cast_unsigned();
            Ok(Reply::Logout { tag: logout.tag.get(), reason })
        }
        opcode::EVENT_REQUEST => {
            let event: &wire::EventRequest = header(iu)?;
            let end = FIXED_BYTES.saturating_add(event.sense_bytes.get() as usize);
            let sense = iu.get(FIXED_BYTES..end).ok_or_else(|| Malformed::too_short(iu, end))?;
            Ok(Reply::AerRequest(EventRequest {
                tag: event.tag.get(),
                request_limit_delta: event.request_limit_delta.get(),
                lun: event.lun,
                sense,
                solicited: event.solicited & 1 != 0,
            }))
        }
        unknown => Err(Malformed::UnknownOpcode(unknown)),
    }
}
