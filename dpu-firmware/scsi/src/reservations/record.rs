//! A unit's reservations as the bytes of a file: written by the agent before a change is answered, read
//! when it starts. Bytes only; which file, and how it gets to the disk whole, is the agent's.
//!
//! All numbers are little-endian. `LUNARPR` and a NUL, version (4), length of the body (4), body, CRC-32C
//! of everything before it (4). The body: name of the unit (2 + n), boot id (16), flags (1: APTPL 01h, lost
//! 02h, reserved by RESERVE 04h, an operation to answer again 08h), PRGENERATION (4), reservation type (1;
//! 0: none), its holder (a nexus; only of the types that have one), the nexus that reserved by RESERVE if
//! any, registrations (4 + n x (nexus, key (8))), and the operation if any: its name (16), attentions
//! (4 + n x (kind (1), nexus)), aborts (4 + n x nexus). A nexus is a relative target port identifier (2), a
//! length (2) and a TransportID.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::change::Effects;
use super::state::{Nexus, REGISTRATIONS_MAX, Reservation, ReservationType, Reservations};
use super::transport_id::TransportId;
use crate::unit_attention::UnitAttention;

/// What is kept of a unit's reservations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The unit, by a name that no other unit ever has: at most 255 bytes.
    pub unit: String,
    /// The boot id of the card that enforced them: another one is a power on
    /// ([`Reservations::on_power_on`]).
    pub boot_id: [u8; 16],
    /// The command that made the state what it is, if its sender may not have been answered yet.
    pub operation: Option<Operation>,
    /// The state.
    pub reservations: Reservations,
}

/// A command that ended with GOOD: who starts again with this record does not run it a second time, but
/// sees to its effects and answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The agent's name for it.
    pub id: [u8; 16],
    /// Its effects, some of which may have come about.
    pub effects: Effects,
}

/// Why bytes are no record that this version can trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// Something else, from its first bytes on.
    Foreign,
    /// SCST's persistent reservations: [`super::scst::import_file`] reads them.
    Scst,
    /// Written by a newer version.
    TooNew {
        /// Its format.
        version: u32,
    },
    /// Cut, or changed behind the writer's back, or by a writer with a fault: what there is to say.
    Damaged(&'static str),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => {
                f.write_str("not a record of reservations: it does not begin like one")
            }
            Self::Scst => {
                f.write_str("SCST's persistent reservations, which have to be imported first")
            }
            Self::TooNew { version } => write!(
                f,
                "a record of reservations in format {version}, but this version knows {VERSION} at \
                 most: start the version that wrote it"
            ),
            Self::Damaged(what) => write!(f, "a damaged record of reservations: {what}"),
        }
    }
}

impl core::error::Error for RecordError {}

const MAGIC: &[u8; 8] = b"LUNARPR\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const UNIT_BYTES_MAX: usize = 255;

const APTPL: u8 = 0x01;
const LOST: u8 = 0x02;
const RESERVED: u8 = 0x04;
const OPERATION: u8 = 0x08;

/// The attentions that a change can bring, with their codes here.
const ATTENTIONS: [(u8, UnitAttention); 3] = [
    (1, UnitAttention::ReservationsPreempted),
    (2, UnitAttention::ReservationsReleased),
    (3, UnitAttention::RegistrationsPreempted),
];

impl Record {
    /// The card that enforces the record has this boot id. Another one than before is a power on: what does
    /// not persist is gone, and so is whoever waited for an answer. True: it was one, so the record has to
    /// be written and every nexus told.
    pub fn on_boot(&mut self, boot_id: [u8; 16]) -> bool {
        if self.boot_id == boot_id {
            return false;
        }
        self.boot_id = boot_id;
        self.operation = None;
        self.reservations.on_power_on();
        true
    }

    /// The bytes of the file. A unit's name longer than 255 bytes is cut, which [`Record::decode`] gives
    /// back as it was cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let state = &self.reservations;
        let mut bytes = Vec::with_capacity(state.registrations.len().saturating_mul(40));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let unit = cut(&self.unit);
        bytes.extend_from_slice(&length_16(unit.len()));
        bytes.extend_from_slice(unit.as_bytes());
        bytes.extend_from_slice(&self.boot_id);
        bytes.push(self.flags());
        bytes.extend_from_slice(&state.generation.to_le_bytes());
        bytes.push(state.reservation.as_ref().map_or(0, |held| held.kind as u8));
        let holder = state.reservation.as_ref().and_then(|held| held.holder.as_ref());
        for nexus in holder.into_iter().chain(&state.legacy_holder) {
            put_nexus(&mut bytes, nexus);
        }
        bytes.extend_from_slice(&length_32(state.registrations.len()));
        for (nexus, key) in &state.registrations {
            put_nexus(&mut bytes, nexus);
            bytes.extend_from_slice(&key.to_le_bytes());
        }
        if let Some(operation) = &self.operation {
            put_operation(&mut bytes, operation);
        }
        let body_bytes = length_32(bytes.len().saturating_sub(HEADER_BYTES));
        for (to, from) in bytes.iter_mut().skip(12).zip(body_bytes) {
            *to = from;
        }
        let check = crc32c(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes
    }

    fn flags(&self) -> u8 {
        let state = &self.reservations;
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        flag(state.aptpl, APTPL)
            | flag(state.lost, LOST)
            | flag(state.legacy_holder.is_some(), RESERVED)
            | flag(self.operation.is_some(), OPERATION)
    }

    /// The record in these bytes, which are those of the whole file.
    ///
    /// # Errors
    /// What is wrong with them. A state that cannot be is damaged, whatever the check sum says.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if super::scst::is_file(bytes) {
            return Err(RecordError::Scst);
        }
        let Some((&header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(if MAGIC.starts_with(bytes.get(..8).unwrap_or(bytes)) {
                CUT
            } else {
                RecordError::Foreign
            });
        };
        let [magic @ .., v0, v1, v2, v3, l0, l1, l2, l3] = header;
        if magic != *MAGIC {
            return Err(RecordError::Foreign);
        }
        let version = u32::from_le_bytes([v0, v1, v2, v3]);
        if version != VERSION {
            return Err(match version {
                0 => RecordError::Damaged("its version is zero"),
                _ => RecordError::TooNew { version },
            });
        }
        let body_bytes = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).map_err(|_| CUT)?;
        let (body, check) = rest.split_at_checked(body_bytes).ok_or(CUT)?;
        let &check =
            check.first_chunk::<4>().filter(|chunk| chunk.len() == check.len()).ok_or(CUT)?;
        let checked = bytes.get(..body_bytes.saturating_add(HEADER_BYTES)).unwrap_or_default();
        if crc32c(checked) != u32::from_le_bytes(check) {
            return Err(RecordError::Damaged("its check sum does not fit what it holds"));
        }
        parse_body(body)
    }
}

const CUT: RecordError =
    RecordError::Damaged("it is shorter or longer than it says: was it being written?");
const IMPOSSIBLE: RecordError = RecordError::Damaged("it tells of a state that cannot be");

/// As many of the first bytes as a name may have, at a character's end.
fn cut(unit: &str) -> &str {
    let end = (0..=UNIT_BYTES_MAX).rev().find(|&end| unit.is_char_boundary(end));
    unit.get(..end.unwrap_or(0)).unwrap_or(unit)
}

fn length_16(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes()
}

fn length_32(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

fn put_nexus(bytes: &mut Vec<u8>, nexus: &Nexus) {
    let id = nexus.initiator.as_bytes();
    bytes.extend_from_slice(&nexus.target_port.to_le_bytes());
    bytes.extend_from_slice(&length_16(id.len()));
    bytes.extend_from_slice(id);
}

fn put_operation(bytes: &mut Vec<u8>, operation: &Operation) {
    bytes.extend_from_slice(&operation.id);
    // Only changes make effects, and those bring no other attention.
    let coded = |attention: UnitAttention| ATTENTIONS.into_iter().find(|&(_, of)| of == attention);
    let attentions = operation.effects.attentions.iter();
    let attentions: Vec<_> =
        attentions.filter_map(|(nexus, of)| Some((coded(*of)?.0, nexus))).collect();
    bytes.extend_from_slice(&length_32(attentions.len()));
    for (code, nexus) in attentions {
        bytes.push(code);
        put_nexus(bytes, nexus);
    }
    bytes.extend_from_slice(&length_32(operation.effects.aborts.len()));
    for nexus in &operation.effects.aborts {
        put_nexus(bytes, nexus);
    }
}

/// Takes fields off the front of a body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], RecordError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(IMPOSSIBLE)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (&head, tail) = self.0.split_first_chunk().ok_or(IMPOSSIBLE)?;
        self.0 = tail;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, RecordError> {
        self.array().map(|[byte]| byte)
    }

    fn short(&mut self) -> Result<u16, RecordError> {
        self.array().map(u16::from_le_bytes)
    }

    fn word(&mut self) -> Result<u32, RecordError> {
        self.array().map(u32::from_le_bytes)
    }

    fn nexus(&mut self) -> Result<Nexus, RecordError> {
        let target_port = self.short()?;
        let length = self.short()?;
        let bytes = self.bytes(length.into())?;
        match TransportId::parse(bytes) {
            // What is kept is in canonical form.
            Ok((initiator, _)) if initiator.as_bytes() == bytes => {
                Ok(Nexus { initiator, target_port })
            }
            _ => Err(IMPOSSIBLE),
        }
    }

    /// A count and as many items. Memory is claimed as they come, not as the count promises.
    fn list<T>(
        &mut self,
        item: impl Fn(&mut Self) -> Result<T, RecordError>,
    ) -> Result<Vec<T>, RecordError> {
        let count = self.word()?;
        // Nobody is in a list who was not registered, or twice.
        if usize::try_from(count).is_ok_and(|count| count > REGISTRATIONS_MAX) {
            return Err(IMPOSSIBLE);
        }
        (0..count).map(|_| item(self)).collect()
    }
}

fn parse_body(body: &[u8]) -> Result<Record, RecordError> {
    let mut fields = Fields(body);
    let unit_bytes = fields.short()?;
    let unit = core::str::from_utf8(fields.bytes(unit_bytes.into())?).map_err(|_| IMPOSSIBLE)?;
    let boot_id = fields.array()?;
    let flags = fields.byte()?;
    let generation = fields.word()?;
    let reservation = match fields.byte()? {
        0 => None,
        code => {
            let kind = ReservationType::from_code(code).ok_or(IMPOSSIBLE)?;
            let holder = if kind.is_all_registrants() { None } else { Some(fields.nexus()?) };
            Some(Reservation { kind, holder })
        }
    };
    let legacy_holder = if flags & RESERVED != 0 { Some(fields.nexus()?) } else { None };
    let listed =
        fields.list(|fields| Ok((fields.nexus()?, fields.array().map(u64::from_le_bytes)?)))?;
    let count = listed.len();
    let reservations = Reservations {
        registrations: listed.into_iter().collect(),
        reservation,
        generation,
        aptpl: flags & APTPL != 0,
        legacy_holder,
        lost: flags & LOST != 0,
    };
    let operation = if flags & OPERATION != 0 { Some(parse_operation(&mut fields)?) } else { None };
    let known = flags & !(APTPL | LOST | RESERVED | OPERATION) == 0;
    let fits = unit.len() <= UNIT_BYTES_MAX
        && known
        && fields.0.is_empty()
        && count == reservations.registrations.len()
        && reservations.is_consistent();
    if !fits {
        return Err(IMPOSSIBLE);
    }
    Ok(Record { unit: unit.into(), boot_id, operation, reservations })
}

fn parse_operation(fields: &mut Fields<'_>) -> Result<Operation, RecordError> {
    let id = fields.array()?;
    let attentions = fields.list(|fields| {
        let code = fields.byte()?;
        let known = ATTENTIONS.into_iter().find(|&(of, _)| of == code).ok_or(IMPOSSIBLE)?;
        Ok((fields.nexus()?, known.1))
    })?;
    let aborts = fields.list(Fields::nexus)?;
    Ok(Operation { id, effects: Effects { attentions, aborts } })
}

/// CRC-32C (Castagnoli), bit by bit: records are short and written seldom.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_gives_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn a_name_is_cut_at_a_characters_end() {
        assert_eq!(cut(&"ü".repeat(200)), "ü".repeat(127));
        assert_eq!(cut("disk1"), "disk1");
    }
}
