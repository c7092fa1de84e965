//! PERSISTENT RESERVE OUT and IN as bytes: CDB and parameter list in, the fields or what is wrong with
//! them out (SPC-4 6.15 and 6.16). What they come to is decided in `change` and `report`.

use alloc::vec::Vec;

use super::ReservationType;
use super::transport_id::{TransportId, TransportIdError};
use crate::opcodes::opcode;
use crate::sense::{FieldPointer, Sense};

/// SERVICE ACTION of PERSISTENT RESERVE OUT (SPC-4 6.16.2). The discriminant is the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OutAction {
    /// REGISTER.
    Register = 0x00,
    /// RESERVE.
    Reserve = 0x01,
    /// RELEASE.
    Release = 0x02,
    /// CLEAR.
    Clear = 0x03,
    /// PREEMPT.
    Preempt = 0x04,
    /// PREEMPT AND ABORT.
    PreemptAndAbort = 0x05,
    /// REGISTER AND IGNORE EXISTING KEY.
    RegisterAndIgnore = 0x06,
    /// REGISTER AND MOVE.
    RegisterAndMove = 0x07,
    /// REPLACE LOST RESERVATION.
    ReplaceLost = 0x08,
}

impl OutAction {
    /// Every one, in the order of their codes.
    pub const ALL: [Self; 9] = [
        Self::Register,
        Self::Reserve,
        Self::Release,
        Self::Clear,
        Self::Preempt,
        Self::PreemptAndAbort,
        Self::RegisterAndIgnore,
        Self::RegisterAndMove,
        Self::ReplaceLost,
    ];
}

/// A PERSISTENT RESERVE OUT CDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Out {
    pub action: OutAction,
    /// SCOPE and TYPE as they came: what does not need them ignores them.
    scope_and_type: u8,
    list_bytes: u32,
}

/// Which SERVICE ACTION byte 1 names, for the field pointer of one that is not there.
const UNKNOWN_ACTION: Sense = Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(4));

impl Out {
    /// # Errors
    /// INVALID FIELD IN CDB: too short, another command, an unknown service action.
    pub(super) fn parse(cdb: &[u8]) -> Result<Self, Sense> {
        let &[operation, action, scope_and_type, _, _, l0, l1, l2, l3, _, ..] = cdb else {
            return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None));
        };
        if operation != opcode::PERSISTENT_RESERVE_OUT {
            return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None));
        }
        let code = action & 0x1F;
        let action = OutAction::ALL.into_iter().find(|&action| action as u8 == code);
        Ok(Self {
            action: action.ok_or(UNKNOWN_ACTION)?,
            scope_and_type,
            list_bytes: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// SCOPE and TYPE of the reservation that is asked for. The one scope is LU_SCOPE.
    ///
    /// # Errors
    /// INVALID FIELD IN CDB for others.
    pub(super) fn reservation_type(&self) -> Result<ReservationType, Sense> {
        if self.scope_and_type >> 4 != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB.with_field(2, Some(7)));
        }
        ReservationType::from_code(self.scope_and_type & 0x0F)
            .ok_or(Sense::INVALID_FIELD_IN_CDB.with_field(2, Some(3)))
    }

    /// SCOPE and TYPE as one byte, as PERSISTENT RESERVE IN reports them.
    pub(super) fn scope_and_type(&self) -> u8 {
        self.scope_and_type
    }

    /// The data-out that PARAMETER LIST LENGTH tells of.
    fn list<'a>(&self, data_out: &'a [u8]) -> Result<&'a [u8], Sense> {
        let bytes = usize::try_from(self.list_bytes).unwrap_or(usize::MAX);
        data_out.get(..bytes).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)
    }
}

/// The basic parameter list (SPC-4 6.16.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BasicList {
    /// RESERVATION KEY.
    pub key: u64,
    /// SERVICE ACTION RESERVATION KEY.
    pub action_key: u64,
    /// SPEC_I_PT: the ports listed, each with its place in the list.
    pub listed: Option<Vec<(TransportId, u16)>>,
    /// ALL_TG_PT.
    pub all_target_ports: bool,
    /// APTPL.
    pub aptpl: bool,
}

/// Bytes of the basic parameter list.
const BASIC_BYTES: usize = 24;
/// Byte 20 and its bits.
const FLAGS_BYTE: u16 = 20;
const SPEC_I_PT: u8 = 0x08;
const SPEC_I_PT_BIT: u8 = 3;
const ALL_TG_PT: u8 = 0x04;
const APTPL: u8 = 0x01;

/// The field of the list that begins at `byte` is wrong.
pub(super) const fn in_list(byte: u16, bit: Option<u8>) -> Sense {
    let field = FieldPointer { in_cdb: false, byte, bit };
    Sense::INVALID_FIELD_IN_PARAMETER_LIST.with_field_pointer(field)
}

/// SPEC_I_PT where it must not be.
pub(super) const SPEC_I_PT_REFUSED: Sense = in_list(FLAGS_BYTE, Some(SPEC_I_PT_BIT));
/// ALL_TG_PT where it must not be.
pub(super) const ALL_TG_PT_REFUSED: Sense = in_list(FLAGS_BYTE, Some(2));

impl BasicList {
    /// # Errors
    /// PARAMETER LIST LENGTH ERROR: not 24 bytes, or with SPEC_I_PT not as many as the list says, or a
    /// TransportID is cut. INVALID FIELD IN PARAMETER LIST: SPEC_I_PT with another action than
    /// REGISTER, and what a TransportID may not be.
    pub(super) fn parse(command: &Out, data_out: &[u8]) -> Result<Self, Sense> {
        let list = command.list(data_out)?;
        let Some((&basic, additional)) = list.split_first_chunk::<BASIC_BYTES>() else {
            return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
        };
        let [k0, k1, k2, k3, k4, k5, k6, k7, a0, a1, a2, a3, a4, a5, a6, a7, _, _, _, _, flags, ..] =
            basic;
        let listed = match (flags & SPEC_I_PT != 0, command.action) {
            (true, OutAction::Register) => Some(parse_listed(additional)?),
            (true, _) => return Err(SPEC_I_PT_REFUSED),
            (false, _) if additional.is_empty() => None,
            (false, _) => return Err(Sense::PARAMETER_LIST_LENGTH_ERROR),
        };
        Ok(Self {
            key: u64::from_be_bytes([k0, k1, k2, k3, k4, k5, k6, k7]),
            action_key: u64::from_be_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            listed,
            all_target_ports: flags & ALL_TG_PT != 0,
            aptpl: flags & APTPL != 0,
        })
    }
}

/// SPC-4 6.16.3, specify initiator ports additional parameter data.
fn parse_listed(additional: &[u8]) -> Result<Vec<(TransportId, u16)>, Sense> {
    let Some((&length, ids)) = additional.split_first_chunk::<4>() else {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    };
    let bytes = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    let mut rest = ids.get(..bytes).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    let mut listed = Vec::new();
    let mut position = BASIC_BYTES.saturating_add(length.len());
    while !rest.is_empty() {
        let place = u16::try_from(position).unwrap_or(u16::MAX);
        let (id, taken) = TransportId::parse(rest).map_err(|error| misnamed(error, place))?;
        listed.push((id, place));
        // A TransportID takes at least 24 bytes of what is there.
        rest = rest.get(taken..).unwrap_or_default();
        position = position.saturating_add(taken);
    }
    Ok(listed)
}

/// A TransportID that begins at `place` of the list is none.
fn misnamed(error: TransportIdError, place: u16) -> Sense {
    match error {
        TransportIdError::Truncated => Sense::PARAMETER_LIST_LENGTH_ERROR,
        TransportIdError::Field(offset) => in_list(place.saturating_add(offset), None),
    }
}

/// The parameter list of REGISTER AND MOVE (SPC-4 6.16.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MoveList {
    /// RESERVATION KEY.
    pub key: u64,
    /// SERVICE ACTION RESERVATION KEY.
    pub action_key: u64,
    /// UNREG.
    pub unregister: bool,
    /// APTPL.
    pub aptpl: bool,
    /// RELATIVE TARGET PORT IDENTIFIER.
    pub target_port: u16,
    /// TransportID.
    pub initiator: TransportId,
}

impl MoveList {
    /// Where its fields begin.
    pub(super) const ACTION_KEY_BYTE: u16 = 8;
    pub(super) const TARGET_PORT_BYTE: u16 = 18;
    pub(super) const INITIATOR_BYTE: u16 = 24;
    const LENGTH_BYTE: u16 = 20;

    /// # Errors
    /// PARAMETER LIST LENGTH ERROR: it is cut. INVALID FIELD IN PARAMETER LIST: a TRANSPORTID LENGTH
    /// that is not that of the TransportID, and what a TransportID may not be.
    pub(super) fn parse(command: &Out, data_out: &[u8]) -> Result<Self, Sense> {
        let list = command.list(data_out)?;
        let Some((&fields, rest)) = list.split_first_chunk::<24>() else {
            return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
        };
        let [k0, k1, k2, k3, k4, k5, k6, k7, a0, a1, a2, a3, a4, a5, a6, a7, _, flags, tail @ ..] =
            fields;
        let [p0, p1, l0, l1, l2, l3] = tail;
        let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if length < 24 || length % 4 != 0 {
            return Err(in_list(Self::LENGTH_BYTE, None));
        }
        let id = rest.get(..length).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
        let (initiator, taken) =
            TransportId::parse(id).map_err(|error| misnamed(error, Self::INITIATOR_BYTE))?;
        if taken != length {
            return Err(in_list(Self::LENGTH_BYTE, None));
        }
        const UNREG: u8 = 0x02;
        Ok(Self {
            key: u64::from_be_bytes([k0, k1, k2, k3, k4, k5, k6, k7]),
            action_key: u64::from_be_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            unregister: flags & UNREG != 0,
            aptpl: flags & APTPL != 0,
            target_port: u16::from_be_bytes([p0, p1]),
            initiator,
        })
    }
}

/// SERVICE ACTION of PERSISTENT RESERVE IN (SPC-4 6.15.1). The discriminant is the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum InAction {
    /// READ KEYS.
    ReadKeys = 0x00,
    /// READ RESERVATION.
    ReadReservation = 0x01,
    /// REPORT CAPABILITIES.
    ReportCapabilities = 0x02,
    /// READ FULL STATUS.
    ReadFullStatus = 0x03,
}

impl InAction {
    /// Every one, in the order of their codes.
    pub const ALL: [Self; 4] =
        [Self::ReadKeys, Self::ReadReservation, Self::ReportCapabilities, Self::ReadFullStatus];
}

/// A PERSISTENT RESERVE IN CDB: service action and ALLOCATION LENGTH.
///
/// # Errors
/// INVALID FIELD IN CDB: too short, another command, an unknown service action.
pub(super) fn parse_in(cdb: &[u8]) -> Result<(InAction, u16), Sense> {
    let &[operation, action, _, _, _, _, _, high, low, _, ..] = cdb else {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None));
    };
    if operation != opcode::PERSISTENT_RESERVE_IN {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None));
    }
    let code = action & 0x1F;
    let action = InAction::ALL.into_iter().find(|&action| action as u8 == code);
    Ok((action.ok_or(UNKNOWN_ACTION)?, u16::from_be_bytes([high, low])))
}

/// RESERVE or RELEASE, of 6 or 10 bytes (SPC-2 7.16 to 7.22); true: RESERVE.
///
/// # Errors
/// INVALID FIELD IN CDB: too short, another command, and third parties and extents, which there are none
/// of.
pub(super) fn parse_legacy(cdb: &[u8]) -> Result<bool, Sense> {
    const THIRD_PARTY: u8 = 0x10;
    const LONG_ID: u8 = 0x02;
    const EXTENT: u8 = 0x01;
    let &[operation, flags, _, _, _, _, ..] = cdb else {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None));
    };
    let (reserve, long) = match operation {
        opcode::RESERVE_6 => (true, false),
        opcode::RELEASE_6 => (false, false),
        opcode::RESERVE_10 => (true, true),
        opcode::RELEASE_10 => (false, true),
        _ => return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None)),
    };
    if long && cdb.len() < 10 {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None));
    }
    let bit = match flags {
        _ if flags & THIRD_PARTY != 0 => 4,
        // In the 6-byte commands it belongs to the third party's identifier.
        _ if long && flags & LONG_ID != 0 => 1,
        _ if flags & EXTENT != 0 => 0,
        _ => return Ok(reserve),
    };
    Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(bit)))
}
