//! Asymmetric logical unit access (SPC-6 5.17): what a target port in each access state takes, REPORT
//! TARGET PORT GROUPS and SET TARGET PORT GROUPS. Which port is in which group, and in which state, is
//! configuration and comes from the caller; which command is taken in which state is a column of
//! [`crate::opcodes::COMMANDS`].

use crate::opcodes::{self, Reach};
use crate::sense::{FieldPointer, Sense};
use crate::writer::Writer;

/// ASYMMETRIC ACCESS STATE of a target port group (SPC-6, REPORT TARGET PORT GROUPS). The discriminant is
/// the code on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AccessState {
    /// Active/optimized; also what a port without a group is in.
    #[default]
    Active = 0x0,
    /// Active/non-optimized: everything works, another way is better.
    NonOptimized = 0x1,
    /// Standby: the unit can be looked at and reserved; its medium cannot be reached.
    Standby = 0x2,
    /// Unavailable: only who and where is told.
    Unavailable = 0x3,
    /// Logical block dependent: as active, and some blocks are better reached another way.
    LbaDependent = 0x4,
    /// Offline: as unavailable, for a port that is out of use.
    Offline = 0xE,
    /// On the way to another state.
    Transitioning = 0xF,
}

impl AccessState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Active,
        Self::NonOptimized,
        Self::Standby,
        Self::Unavailable,
        Self::LbaDependent,
        Self::Offline,
        Self::Transitioning,
    ];

    /// The state with this code on the wire.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == code)
    }

    /// Whether every command is taken, the medium's included.
    #[must_use]
    pub fn reaches_medium(self) -> bool {
        self.refusal().is_none()
    }

    /// Whether SET TARGET PORT GROUPS may ask for it. The standard refuses logical block dependent and
    /// transitioning; offline is a secondary state there, of a single port and not of a group, and a port
    /// that an initiator took out of use could not be brought back through itself.
    fn can_be_set(self) -> bool {
        matches!(self, Self::Active | Self::NonOptimized | Self::Standby | Self::Unavailable)
    }

    /// What a command that is not taken ends with.
    fn refusal(self) -> Option<Sense> {
        match self {
            Self::Active | Self::NonOptimized | Self::LbaDependent => None,
            Self::Standby => Some(Sense::TARGET_PORT_IN_STANDBY),
            Self::Unavailable => Some(Sense::TARGET_PORT_UNAVAILABLE),
            Self::Offline => Some(Sense::NOT_READY_OFFLINE),
            Self::Transitioning => Some(Sense::NOT_READY_TRANSITIONING),
        }
    }
}

/// TPGS (SPC-6, standard INQUIRY data): who changes access states. The discriminant is the code on the
/// wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Tpgs {
    /// There are no target port groups.
    #[default]
    None = 0b00,
    /// Only the target does.
    Implicit = 0b01,
    /// Initiators do too, with SET TARGET PORT GROUPS.
    Both = 0b11,
}

/// STATUS CODE: why a group is in its state (SPC-6, REPORT TARGET PORT GROUPS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StatusCode {
    /// Nobody changed it.
    #[default]
    None = 0,
    /// SET TARGET PORT GROUPS did.
    Explicit = 1,
    /// The target did.
    Implicit = 2,
}

impl StatusCode {
    /// The code with this number on the wire.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::None, Self::Explicit, Self::Implicit].into_iter().find(|own| *own as u8 == code)
    }
}

/// The target port that a unit is seen through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetPort {
    /// Its relative target port identifier; zero: not told.
    pub relative: u16,
    /// Its target port group for the unit.
    pub group: Option<u16>,
}

/// One target port group of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetPortGroup<'a> {
    /// TARGET PORT GROUP, 1..=65535.
    pub id: u16,
    /// Its state.
    pub state: AccessState,
    /// PREF: the primary way to the unit.
    pub preferred: bool,
    /// Why it is in its state.
    pub status: StatusCode,
    /// Relative target port identifiers of its ports, those of other nodes included.
    pub ports: &'a [u16],
}

/// Target port groups of one unit, at most.
pub const GROUPS_MAX: u8 = 32;

/// Target ports of one group, at most.
pub const PORTS_MAX: u8 = 32;

/// The longest parameter data of REPORT TARGET PORT GROUPS.
pub(crate) const REPORT_BYTES_MAX: u32 = 8 + GROUPS_MAX as u32 * (8 + PORTS_MAX as u32 * 4);

/// IMPLICIT TRANSITION TIME, seconds. A change here waits for the commands under way and for nothing else;
/// this is what Linux grants a target that does not tell.
const IMPLICIT_TRANSITION_S: u8 = 60;

/// Every state there is can be a group's: T_SUP, O_SUP, LBD_SUP, U_SUP, S_SUP, AN_SUP and AO_SUP.
const SUPPORTED_STATES: u8 = 0xDF;

/// Whether a target port in `state` takes a command (SPC-6 5.17.2).
///
/// # Errors
/// NOT READY with what stands in the way.
pub fn check(state: AccessState, cdb: &[u8]) -> Result<(), Sense> {
    let Some(refusal) = state.refusal() else { return Ok(()) };
    let taken = match opcodes::reach(cdb) {
        Reach::Always => true,
        Reach::Settled => state != AccessState::Transitioning,
        Reach::Standby => state == AccessState::Standby,
        Reach::Active => false,
    };
    if taken { Ok(()) } else { Err(refusal) }
}

/// Writes REPORT TARGET PORT GROUPS parameter data (SPC-6), cut where `out` ends; `extended`: with the
/// extended header. Gives the bytes written. The lengths inside are those of the whole.
pub fn report<'a>(
    extended: bool,
    groups: impl Iterator<Item = TargetPortGroup<'a>>,
    out: &mut [u8],
) -> usize {
    let mut writer = Writer::new(out);
    writer.zeros(4);
    if extended {
        const EXTENDED_FORMAT: u8 = 0x10;
        writer.put(&[EXTENDED_FORMAT, IMPLICIT_TRANSITION_S, 0, 0]);
    }
    for group in groups {
        let preferred = if group.preferred { 0x80 } else { 0 };
        let ports = u8::try_from(group.ports.len()).unwrap_or(u8::MAX);
        writer.put(&[preferred | group.state as u8, SUPPORTED_STATES]);
        writer.put(&group.id.to_be_bytes());
        writer.put(&[0, group.status as u8, 0, ports]);
        for port in group.ports.iter().take(ports.into()) {
            writer.put(&[0, 0]);
            writer.put(&port.to_be_bytes());
        }
    }
    // RETURN DATA LENGTH does not count itself.
    let length = u32::try_from(writer.position().saturating_sub(4)).unwrap_or(u32::MAX);
    writer.patch(0, &length.to_be_bytes());
    writer.written()
}

/// What SET TARGET PORT GROUPS asks of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// TARGET PORT GROUP.
    pub group: u16,
    /// The state that it shall have.
    pub state: AccessState,
}

/// A set target port group descriptor.
const DESCRIPTOR_BYTES: usize = 4;
/// The parameter list begins with as many reserved bytes.
const HEADER_BYTES: usize = 4;

/// What a SET TARGET PORT GROUPS asks for (SPC-6), each group once. The whole list is judged first;
/// `knows` says which groups the unit has.
///
/// # Errors
/// The CDB is cut or its CONTROL is wrong, the list has no whole number of descriptors or is shorter than
/// the CDB says, a state that cannot be asked for, a group that the unit has not, or a group twice.
pub fn changes<'a>(
    cdb: &[u8],
    list: &'a [u8],
    knows: &dyn Fn(u16) -> bool,
) -> Result<impl Iterator<Item = Change> + Clone + use<'a>, Sense> {
    let [_, _, _, _, _, _, b0, b1, b2, b3, _, _] = *crate::cdb::fixed::<12>(cdb)?;
    let length = usize::try_from(u32::from_be_bytes([b0, b1, b2, b3])).unwrap_or(usize::MAX);
    // SPC-6: a length of zero is no error, and nothing changes.
    let list = list.get(..length).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    let descriptors = match list.get(HEADER_BYTES..) {
        Some(descriptors) => descriptors,
        None if list.is_empty() => list,
        None => return Err(Sense::PARAMETER_LIST_LENGTH_ERROR),
    };
    let (descriptors, rest) = descriptors.as_chunks::<DESCRIPTOR_BYTES>();
    if !rest.is_empty() {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    for (place, descriptor) in descriptors.iter().enumerate() {
        let byte = place.saturating_mul(DESCRIPTOR_BYTES).saturating_add(HEADER_BYTES);
        let wrong = |offset: usize, bit| {
            let byte = u16::try_from(byte.saturating_add(offset)).unwrap_or(u16::MAX);
            let pointer = FieldPointer { in_cdb: false, byte, bit };
            Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.with_field_pointer(pointer))
        };
        if change(descriptor).is_none() {
            return wrong(0, Some(3));
        }
        let group = group_of(descriptor);
        let earlier = descriptors.get(..place).unwrap_or_default();
        if !knows(group) || earlier.iter().any(|earlier| group_of(earlier) == group) {
            return wrong(2, None);
        }
    }
    Ok(descriptors.iter().filter_map(change))
}

fn group_of(descriptor: &[u8; DESCRIPTOR_BYTES]) -> u16 {
    let [_, _, high, low] = *descriptor;
    u16::from_be_bytes([high, low])
}

fn change(descriptor: &[u8; DESCRIPTOR_BYTES]) -> Option<Change> {
    let [state, ..] = *descriptor;
    let state = AccessState::from_code(state & 0x0F).filter(|state| state.can_be_set())?;
    Some(Change { group: group_of(descriptor), state })
}
