//! What the client makes of an SRP_RSP, where that is not what SRP says. The bytes are
//! [`lunar_srp::iu::encode_response`]'s.

use lunar_scsi::sense::SenseKey;
use lunar_scsi::status::Status;
use lunar_srp::iu::{Residual, response_code};
use lunar_srp::wire::{self, response_flag};
use zerocopy::FromBytes as _;

use crate::crq::CrqStatus;
use crate::mad::OsType;

/// The residual to encode so that a client with this operating system reads the truth.
///
/// Linux's client looks at the two *overflow* flags only, and takes the count beside them for bytes that
/// were not transferred. So an underflow goes to it in the overflow flag, and an overflow, which it would
/// take for missing data, not at all: the buffer was filled, which is all that it can be told. The others
/// get what SRP says.
#[inline]
#[must_use]
pub fn residual_as_read(residual: Residual, client: OsType) -> Residual {
    match (client, residual) {
        (OsType::LINUX, Residual::Under(bytes)) => Residual::Over(bytes),
        (OsType::LINUX, Residual::Over(_)) => Residual::None,
        (_, residual) => residual,
    }
}

/// Makes of an encoded SRP_RSP what a client with this operating system reads the truth from: its residuals become those
/// of [`residual_as_read`]. What is too short for a response stays as it is.
#[inline]
pub fn adapt(iu: &mut [u8], client: OsType) {
    let Ok((response, _)) = wire::Response::mut_from_prefix(iu) else { return };
    if client != OsType::LINUX || response.flags & RESIDUAL_FLAGS == 0 {
        return;
    }
    let read = |flags: u8, over: u8, under: u8, count: u32| {
        let residual = match flags {
            _ if flags & over != 0 => Residual::Over(count),
            _ if flags & under != 0 => Residual::Under(count),
            _ => Residual::None,
        };
        match residual_as_read(residual, client) {
            Residual::Over(count) => (over, count),
            Residual::Under(count) => (under, count),
            Residual::None => (0, 0),
        }
    };
    let flags = response.flags;
    let (out, in_) = (response.data_out_residual.get(), response.data_in_residual.get());
    let (out_flag, out) =
        read(flags, response_flag::DATA_OUT_OVER, response_flag::DATA_OUT_UNDER, out);
    let (in_flag, in_) =
        read(flags, response_flag::DATA_IN_OVER, response_flag::DATA_IN_UNDER, in_);
    response.flags = flags & !RESIDUAL_FLAGS | out_flag | in_flag;
    response.data_out_residual.set(out);
    response.data_in_residual.set(in_);
}

/// The flags of an SRP_RSP that tell of residuals.
const RESIDUAL_FLAGS: u8 = response_flag::DATA_OUT_OVER
    | response_flag::DATA_OUT_UNDER
    | response_flag::DATA_IN_OVER
    | response_flag::DATA_IN_UNDER;

/// How a command ended, as far as [`crq_status`] asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The CDB's operation code.
    pub operation_code: u8,
    /// SCSI status.
    pub status: Status,
    /// The sense key, with CHECK CONDITION.
    pub sense_key: Option<SenseKey>,
    /// Residual as SRP means it.
    pub residual: Residual,
    /// Bytes that the client offered for data.
    pub offered_bytes: u32,
}

/// The CRQ status of a command's answer. With fast-fail on, a READ or WRITE that ended in HARDWARE ERROR
/// and moved all of its data or none is answered with [`CrqStatus::AdapterFail`], so that the client's
/// multipathing takes another path at once.
#[inline]
#[must_use]
pub fn crq_status(outcome: &Outcome, fast_fail: bool) -> CrqStatus {
    if fast_fail && is_path_failure(outcome) { CrqStatus::AdapterFail } else { CrqStatus::Ok }
}

/// [`crq_status`] of an encoded SRP_RSP, before [`adapt`]; a task management function's, and what is too short for a
/// response, are OK.
#[must_use]
pub fn status_of(iu: &[u8], operation_code: u8, offered_bytes: u32, fast_fail: bool) -> CrqStatus {
    let Ok((response, rest)) = wire::Response::ref_from_prefix(iu) else { return CrqStatus::Ok };
    if !fast_fail || Status::from_code(response.status) != Some(Status::CheckCondition) {
        return CrqStatus::Ok;
    }
    let before = usize::try_from(response.response_bytes.get()).unwrap_or(usize::MAX);
    let sense = rest.get(before..).unwrap_or(&[]);
    // Descriptor format has the key a byte earlier than fixed format (SPC-6 4.4).
    let key = match sense {
        [0x72 | 0x73, key, ..] | [_, _, key, ..] => key & 0xF,
        _ => 0,
    };
    let residual = match response.flags {
        flags if flags & (response_flag::DATA_OUT_OVER | response_flag::DATA_IN_OVER) != 0 => {
            Residual::Over(0)
        }
        flags if flags & response_flag::DATA_OUT_UNDER != 0 => {
            Residual::Under(response.data_out_residual.get())
        }
        flags if flags & response_flag::DATA_IN_UNDER != 0 => {
            Residual::Under(response.data_in_residual.get())
        }
        _ => Residual::None,
    };
    let sense_key = (key == SenseKey::HardwareError as u8).then_some(SenseKey::HardwareError);
    let status = Status::CheckCondition;
    let outcome = Outcome { operation_code, status, sense_key, residual, offered_bytes };
    crq_status(&outcome, fast_fail)
}

fn is_path_failure(outcome: &Outcome) -> bool {
    let whole = match outcome.residual {
        Residual::None => true,
        Residual::Under(bytes) => bytes == outcome.offered_bytes,
        Residual::Over(_) => false,
    };
    whole
        && outcome.status == Status::CheckCondition
        && outcome.sense_key == Some(SenseKey::HardwareError)
        && is_read_or_write(outcome.operation_code)
}

/// READ and WRITE of 6, 10, 12 and 16 bytes.
fn is_read_or_write(operation_code: u8) -> bool {
    matches!(operation_code, 0x08 | 0x0A | 0x28 | 0x2A | 0x88 | 0x8A | 0xA8 | 0xAA)
}

/// How a task management function ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManagementOutcome {
    /// It was carried out.
    Complete,
    /// ABORT TASK: there is no such task. It may have ended a moment ago, so that is a success (SAM-6 7.2).
    NoSuchTask,
    /// There is no logical unit at the LUN.
    NoSuchUnit,
    /// The function is unknown, or is CLEAR ACA: there is no ACA.
    NotSupported,
    /// A field has a value that it may not have.
    FieldsInvalid,
    /// It was tried and did not succeed.
    Failed,
}

/// The response code, which the client reads as a number of four bytes that must be zero.
#[must_use]
pub fn management_code(outcome: ManagementOutcome) -> u8 {
    match outcome {
        ManagementOutcome::Complete | ManagementOutcome::NoSuchTask => response_code::NO_FAILURE,
        ManagementOutcome::NoSuchUnit | ManagementOutcome::NotSupported => {
            response_code::FUNCTION_NOT_SUPPORTED
        }
        ManagementOutcome::FieldsInvalid => response_code::REQUEST_FIELDS_INVALID,
        ManagementOutcome::Failed => response_code::FUNCTION_FAILED,
    }
}
