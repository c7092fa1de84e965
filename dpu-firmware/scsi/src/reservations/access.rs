//! What a reservation lets an I_T nexus do, as the card looks at it: one byte for the nexus, one for the
//! command, one comparison. Nothing here but [`AccessTable`] allocates, and that is made by the agent
//! and looked up at logins and gates.
//!
//! A command's class stands for its row in the tables of commands that are allowed in the presence of
//! various reservations: SPC-4 5.13.1, SBC-4 4.17 (table 13), and SPC-2 5.5.1 for RESERVE and RELEASE.

use alloc::vec::Vec;

use super::Nexus;
use crate::device_server::{BlockOperation, Ending};
use crate::opcodes::{opcode, service_action};
use crate::sense::Sense;
use crate::status::Status;

/// What an I_T nexus may not do to a logical unit. The default is that it may do everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access(u8);

/// In both: commands that look at the medium or at what an initiator set.
const READ: u8 = 0x01;
/// In both: commands that change either.
const WRITE: u8 = 0x02;
/// In both: commands that only a reservation by RESERVE keeps out.
const LEGACY: u8 = 0x04;
/// In both: commands that wait until lost reservation information is replaced.
const LOST: u8 = 0x08;

impl Access {
    /// No reservation is in the way.
    pub const OPEN: Self = Self(0);
    /// Another I_T nexus has a write exclusive reservation.
    pub const NO_WRITES: Self = Self(WRITE);
    /// Another I_T nexus has an exclusive access reservation.
    pub const NO_TRANSFERS: Self = Self(READ | WRITE);
    /// Another I_T nexus has the unit by RESERVE.
    pub const RESERVED: Self = Self(READ | WRITE | LEGACY);
    /// Who may do what was lost, so nobody may do anything (SPC-4 5.13.5.3).
    pub const INFORMATION_LOST: Self = Self(LOST);

    /// As a byte, for the control channel.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From [`Access::bits`]. What another version says besides keeps everything out.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        const KNOWN: u32 = (READ | WRITE | LEGACY | LOST) as u32;
        if bits & !KNOWN == 0 { Self(bits as u8) } else { Self::RESERVED }
    }

    /// How a command that [`conflicts`] ends.
    #[must_use]
    pub const fn refusal(self) -> Ending {
        if self.0 & LOST != 0 {
            Ending::Sense(Sense::RESERVATION_INFORMATION_LOST)
        } else {
            Ending::Status(Status::ReservationConflict)
        }
    }
}

/// How reservations look at a command: what in [`Access`] keeps it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Class(u8);

impl Class {
    /// Nothing: INQUIRY and its like, and the reservation commands themselves, about which
    /// [`super::Reservations`] decides.
    pub const ALWAYS: Self = Self(0);
    /// Nothing but lost information: READ CAPACITY and its like.
    pub const FREE: Self = Self(LOST);
    /// Allowed through every persistent reservation, but not through RESERVE: TEST UNIT READY.
    pub const STATUS: Self = Self(LOST | LEGACY);
    /// READ and its like.
    pub const READ: Self = Self(LOST | READ);
    /// WRITE and its like, and every command that is not known here.
    pub const WRITE: Self = Self(LOST | WRITE);

    /// The class of the command that came to this operation: for the check right before the backend gets
    /// it, when the CDB is not at hand.
    #[must_use]
    #[inline]
    pub const fn of_operation(operation: &BlockOperation) -> Self {
        match operation {
            BlockOperation::Read { .. }
            | BlockOperation::Compare { .. }
            | BlockOperation::LbaStatus { .. } => Self::READ,
            BlockOperation::Write { .. }
            | BlockOperation::Flush { .. }
            | BlockOperation::CompareAndWrite { .. }
            | BlockOperation::WriteAndVerify { .. }
            | BlockOperation::OrWrite { .. }
            | BlockOperation::WriteSame { .. }
            | BlockOperation::Unmap { .. } => Self::WRITE,
        }
    }

    /// READ BUFFER: as READ, but it looks at the device and needs no reservation information.
    const READ_DEVICE: Self = Self(READ);
    /// WRITE BUFFER: as WRITE, but it concerns the device and needs no reservation information.
    const WRITE_DEVICE: Self = Self(WRITE);
}

/// Whether the reservation keeps the command out: RESERVATION CONFLICT, or whatever
/// [`Access::refusal`] says.
#[must_use]
#[inline]
pub const fn conflicts(class: Class, access: Access) -> bool {
    class.0 & access.0 != 0
}

/// The class of the command in a CDB. What is not known here changes something.
#[must_use]
#[inline]
pub fn class(cdb: &[u8]) -> Class {
    let Some(&operation) = cdb.first() else { return Class::WRITE };
    match CLASSES.get(usize::from(operation)) {
        Some(&Some(class)) => class,
        _ => class_by_field(operation, cdb),
    }
}

/// Commands whose class a field of the CDB decides.
fn class_by_field(operation: u8, cdb: &[u8]) -> Class {
    let action = cdb.get(1).map_or(0, |byte| byte & 0x1F);
    let byte_4 = cdb.get(4).copied().unwrap_or(0);
    match operation {
        opcode::START_STOP_UNIT => {
            const START: u8 = 0x01;
            const POWER_CONDITION: u8 = 0xF0;
            if byte_4 & (START | POWER_CONDITION) == START { Class::ALWAYS } else { Class::WRITE }
        }
        opcode::PREVENT_ALLOW_MEDIUM_REMOVAL => {
            const PREVENT: u8 = 0x03;
            if byte_4 & PREVENT == 0 && cdb.len() > 4 { Class::FREE } else { Class::WRITE }
        }
        opcode::SERVICE_ACTION_IN_16 => match action {
            service_action::READ_CAPACITY_16 | REPORT_REFERRALS => Class::FREE,
            service_action::GET_LBA_STATUS | GET_STREAM_STATUS | GET_PHYSICAL_ELEMENT_STATUS => {
                Class::READ
            }
            _ => Class::WRITE,
        },
        opcode::MAINTENANCE_IN => match action {
            REPORT_TARGET_PORT_GROUPS => Class::ALWAYS,
            REPORT_IDENTIFYING_INFORMATION
            | REPORT_ALIASES
            | REPORT_PRIORITY
            | REPORT_TIMESTAMP
            | REPORT_PROVISIONING_INITIALIZATION_PATTERN => Class::FREE,
            service_action::REPORT_SUPPORTED_OPERATION_CODES
            | service_action::REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS
            | MANAGEMENT_PROTOCOL_IN => Class::READ,
            _ => Class::WRITE,
        },
        opcode::THIRD_PARTY_COPY_OUT if action == POPULATE_TOKEN => Class::READ,
        _ => Class::WRITE,
    }
}

// Commands of the tables that are in no other place of this crate.
const READ_BUFFER_10: u8 = 0x3C;
const READ_BUFFER_16: u8 = 0x9B;
const WRITE_BUFFER: u8 = 0x3B;
const RECEIVE_DIAGNOSTIC_RESULTS: u8 = 0x1C;
const ACCESS_CONTROL_IN: u8 = 0x86;
const ACCESS_CONTROL_OUT: u8 = 0x87;
const READ_ATTRIBUTE: u8 = 0x8C;
const SECURITY_PROTOCOL_IN: u8 = 0xA2;
/// READ MEDIA SERIAL NUMBER is its one service action in SPC-6.
const SERVICE_ACTION_IN_12: u8 = 0xAB;
const REPORT_IDENTIFYING_INFORMATION: u8 = 0x05;
const REPORT_TARGET_PORT_GROUPS: u8 = 0x0A;
const REPORT_ALIASES: u8 = 0x0B;
const REPORT_PRIORITY: u8 = 0x0E;
const REPORT_TIMESTAMP: u8 = 0x0F;
const MANAGEMENT_PROTOCOL_IN: u8 = 0x10;
const REPORT_PROVISIONING_INITIALIZATION_PATTERN: u8 = 0x1D;
const REPORT_REFERRALS: u8 = 0x13;
const GET_STREAM_STATUS: u8 = 0x16;
const GET_PHYSICAL_ELEMENT_STATUS: u8 = 0x17;
const POPULATE_TOKEN: u8 = 0x10;

/// By operation code; `None`: [`class_by_field`] decides.
static CLASSES: [Option<Class>; 256] = classes();

const fn classes() -> [Option<Class>; 256] {
    let mut classes = [Some(Class::WRITE); 256];
    let mut rest = KNOWN;
    while let Some((&(operation, class), tail)) = rest.split_first() {
        if let Some((_, [slot, ..])) = classes.split_at_mut_checked(operation as usize) {
            *slot = class;
        }
        rest = tail;
    }
    classes
}

/// Every operation code that is not simply a [`Class::WRITE`].
#[rustfmt::skip]
const KNOWN: &[(u8, Option<Class>)] = &[
    // SPC-4 5.13.5.2 lists these: they are answered even while reservation information is lost.
    (opcode::INQUIRY, Some(Class::ALWAYS)),
    (opcode::REQUEST_SENSE, Some(Class::ALWAYS)),
    (opcode::REPORT_LUNS, Some(Class::ALWAYS)),
    (opcode::LOG_SENSE, Some(Class::ALWAYS)),
    (READ_BUFFER_10, Some(Class::READ_DEVICE)),
    (READ_BUFFER_16, Some(Class::READ_DEVICE)),
    (WRITE_BUFFER, Some(Class::WRITE_DEVICE)),
    // The state machine decides about these.
    (opcode::PERSISTENT_RESERVE_IN, Some(Class::ALWAYS)),
    (opcode::PERSISTENT_RESERVE_OUT, Some(Class::ALWAYS)),
    (opcode::RESERVE_6, Some(Class::ALWAYS)),
    (opcode::RELEASE_6, Some(Class::ALWAYS)),
    (opcode::RESERVE_10, Some(Class::ALWAYS)),
    (opcode::RELEASE_10, Some(Class::ALWAYS)),
    // SPC-6.
    (opcode::TEST_UNIT_READY, Some(Class::STATUS)),
    (opcode::MODE_SENSE_6, Some(Class::READ)),
    (opcode::MODE_SENSE_10, Some(Class::READ)),
    (opcode::THIRD_PARTY_COPY_IN, Some(Class::STATUS)),
    (opcode::THIRD_PARTY_COPY_OUT, None),
    (opcode::MAINTENANCE_IN, None),
    (ACCESS_CONTROL_IN, Some(Class::FREE)),
    (ACCESS_CONTROL_OUT, Some(Class::FREE)),
    (RECEIVE_DIAGNOSTIC_RESULTS, Some(Class::READ)),
    (READ_ATTRIBUTE, Some(Class::READ)),
    (SECURITY_PROTOCOL_IN, Some(Class::READ)),
    (SERVICE_ACTION_IN_12, Some(Class::FREE)),
    // SBC-4.
    (opcode::READ_6, Some(Class::READ)),
    (opcode::READ_10, Some(Class::READ)),
    (opcode::READ_12, Some(Class::READ)),
    (opcode::READ_16, Some(Class::READ)),
    (opcode::VERIFY_10, Some(Class::READ)),
    (opcode::VERIFY_12, Some(Class::READ)),
    (opcode::VERIFY_16, Some(Class::READ)),
    (opcode::PRE_FETCH_10, Some(Class::READ)),
    (opcode::PRE_FETCH_16, Some(Class::READ)),
    (opcode::READ_DEFECT_DATA_10, Some(Class::READ)),
    (opcode::READ_DEFECT_DATA_12, Some(Class::READ)),
    (opcode::READ_CAPACITY_10, Some(Class::FREE)),
    (opcode::SERVICE_ACTION_IN_16, None),
    (opcode::START_STOP_UNIT, None),
    (opcode::PREVENT_ALLOW_MEDIUM_REMOVAL, None),
    // MMC-6: what is read off the disc is as READ, what is about the drive is free.
    (opcode::READ_TOC, Some(Class::READ)),
    (opcode::READ_DISC_INFORMATION, Some(Class::READ)),
    (opcode::GET_CONFIGURATION, Some(Class::FREE)),
    (opcode::GET_EVENT_STATUS_NOTIFICATION, Some(Class::FREE)),
    (opcode::MECHANISM_STATUS, Some(Class::FREE)),
];

/// What every I_T nexus may do to one logical unit: made by the agent, sent to the card, and looked up
/// there when a nexus logs in and when a gate brings another table.
///
/// It names initiator ports, not nexuses of this moment, so a login during a change finds its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessTable {
    others: Access,
    /// Ascending.
    named: Vec<(Nexus, Access)>,
}

impl AccessTable {
    /// A table that gives `named` nexuses what they are named with, and all others `others`. Of a nexus
    /// that is named twice the first counts.
    #[must_use]
    pub fn new(others: Access, mut named: Vec<(Nexus, Access)>) -> Self {
        named.sort_by(|(one, _), (other, _)| one.cmp(other));
        named.dedup_by(|(one, _), (other, _)| one == other);
        named.retain(|&(_, access)| access != others);
        Self { others, named }
    }

    /// What this nexus may do.
    #[must_use]
    pub fn access(&self, nexus: &Nexus) -> Access {
        let found = self.named.binary_search_by(|(named, _)| named.cmp(nexus));
        found
            .ok()
            .and_then(|place| self.named.get(place))
            .map_or(self.others, |&(_, access)| access)
    }

    /// What the nexuses may do that are not [`AccessTable::named`].
    #[must_use]
    pub fn others(&self) -> Access {
        self.others
    }

    /// The nexuses that may do something else than the others, ascending.
    pub fn named(&self) -> impl ExactSizeIterator<Item = (&Nexus, Access)> {
        self.named.iter().map(|(nexus, access)| (nexus, *access))
    }
}
