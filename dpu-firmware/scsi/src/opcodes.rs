//! The commands there are, in one table: what a CDB of each may hold, who answers it, and for which
//! units it is there. REPORT SUPPORTED OPERATION CODES is this table on the wire, and
//! `lunar show opcodes` the same for people. What a command means is decided in `device_server`, what
//! its bytes say in `cdb`.

use crate::alua::Tpgs;
use crate::unit::{DeviceType, LogicalUnit};

/// Operation codes of the commands that are known here (SPC-6, SBC-4 and MMC-6, command tables).
pub mod opcode {
    #![allow(missing_docs, reason = "the names are the standards' own")]
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const FORMAT_UNIT: u8 = 0x04;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0A;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SELECT_6: u8 = 0x15;
    pub const RESERVE_6: u8 = 0x16;
    pub const RELEASE_6: u8 = 0x17;
    pub const MODE_SENSE_6: u8 = 0x1A;
    pub const START_STOP_UNIT: u8 = 0x1B;
    pub const PREVENT_ALLOW_MEDIUM_REMOVAL: u8 = 0x1E;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2A;
    pub const WRITE_AND_VERIFY_10: u8 = 0x2E;
    pub const VERIFY_10: u8 = 0x2F;
    pub const PRE_FETCH_10: u8 = 0x34;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const READ_DEFECT_DATA_10: u8 = 0x37;
    pub const WRITE_SAME_10: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const READ_TOC: u8 = 0x43;
    pub const GET_CONFIGURATION: u8 = 0x46;
    pub const GET_EVENT_STATUS_NOTIFICATION: u8 = 0x4A;
    pub const LOG_SENSE: u8 = 0x4D;
    pub const READ_DISC_INFORMATION: u8 = 0x51;
    pub const MODE_SELECT_10: u8 = 0x55;
    pub const RESERVE_10: u8 = 0x56;
    pub const RELEASE_10: u8 = 0x57;
    pub const MODE_SENSE_10: u8 = 0x5A;
    pub const PERSISTENT_RESERVE_IN: u8 = 0x5E;
    pub const PERSISTENT_RESERVE_OUT: u8 = 0x5F;
    pub const THIRD_PARTY_COPY_OUT: u8 = 0x83;
    pub const THIRD_PARTY_COPY_IN: u8 = 0x84;
    pub const READ_16: u8 = 0x88;
    pub const COMPARE_AND_WRITE: u8 = 0x89;
    pub const WRITE_16: u8 = 0x8A;
    pub const ORWRITE_16: u8 = 0x8B;
    pub const WRITE_AND_VERIFY_16: u8 = 0x8E;
    pub const VERIFY_16: u8 = 0x8F;
    pub const PRE_FETCH_16: u8 = 0x90;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9E;
    pub const REPORT_LUNS: u8 = 0xA0;
    pub const MAINTENANCE_IN: u8 = 0xA3;
    pub const MAINTENANCE_OUT: u8 = 0xA4;
    pub const READ_12: u8 = 0xA8;
    pub const WRITE_12: u8 = 0xAA;
    pub const WRITE_AND_VERIFY_12: u8 = 0xAE;
    pub const VERIFY_12: u8 = 0xAF;
    pub const READ_DEFECT_DATA_12: u8 = 0xB7;
    pub const MECHANISM_STATUS: u8 = 0xBD;
}

/// Service actions of the commands that have them (SPC-6 and SBC-4).
pub mod service_action {
    #![allow(missing_docs, reason = "the names are the standards' own")]
    pub const READ_CAPACITY_16: u8 = 0x10;
    pub const GET_LBA_STATUS: u8 = 0x12;
    pub const REPORT_TARGET_PORT_GROUPS: u8 = 0x0A;
    pub const SET_TARGET_PORT_GROUPS: u8 = 0x0A;
    pub const REPORT_SUPPORTED_OPERATION_CODES: u8 = 0x0C;
    pub const REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS: u8 = 0x0D;
    pub const EXTENDED_COPY_LID1: u8 = 0x00;
    pub const RECEIVE_COPY_STATUS_LID1: u8 = 0x00;
    pub const RECEIVE_COPY_OPERATING_PARAMETERS: u8 = 0x03;
}

/// The commands that the host agent executes. The discriminant is the bit in [`HostCommands`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HostCommand {
    /// MODE SELECT (6) and (10): what it changes concerns every I_T nexus, and is kept.
    ModeSelect,
    /// FORMAT UNIT.
    FormatUnit,
    /// EXTENDED COPY (LID1): reads and writes the backings of several units.
    ExtendedCopy,
    /// RECEIVE COPY RESULTS: about the EXTENDED COPY commands that the agent executed.
    ReceiveCopyResults,
    /// Ejecting and loading a medium and preventing that: START STOP UNIT with LOEJ and PREVENT ALLOW
    /// MEDIUM REMOVAL of a removable unit.
    MediumRemoval,
    /// RESERVE (6) and (10), RELEASE (6) and (10): who has the unit concerns every I_T nexus.
    Reserve,
    /// PERSISTENT RESERVE IN and OUT: reservations are kept, and concern every I_T nexus.
    PersistentReserve,
    /// SET TARGET PORT GROUPS: the states are every nexus's and every unit's of a device group.
    SetTargetPortGroups,
}

/// Which of them the agent behind a unit executes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCommands(u8);

impl HostCommands {
    /// None: the card-local units, and an agent that says nothing.
    pub const NONE: Self = Self(0);

    /// As bits: 1 << the [`HostCommand`]. Others are commands that this version does not know.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self((bits & 0xFF) as u8)
    }

    /// These and `command`.
    #[must_use]
    pub const fn with(self, command: HostCommand) -> Self {
        Self(self.0 | (1 << command as u8))
    }

    /// Whether `command` is one of them.
    #[must_use]
    pub const fn has(self, command: HostCommand) -> bool {
        self.0 & (1 << command as u8) != 0
    }
}

/// Who answers a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answerer {
    /// The card, from its snapshot of the unit and with the unit's backend.
    Card,
    /// The host agent, to whom the CDB is forwarded.
    Host(HostCommand),
}

/// Which units have a command, besides those that their device type and their agent give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Always,
    /// Thin provisioned ones.
    Thin,
    /// Those with target port groups.
    Alua,
}

/// In which states a target port takes a command (SPC-6 5.17.2), beside active, non-optimized and logical
/// block dependent, in which it takes all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// No other.
    Active,
    /// Standby: it leaves the medium alone.
    Standby,
    /// All but transitioning.
    Settled,
    /// All.
    Always,
}

/// Bits of byte 1 that only some units look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bits {
    None,
    /// DPO and FUA, with DPOFUA in the mode parameter header.
    DpoFua,
    /// UNMAP, of thin provisioned units.
    Unmap,
}

/// The device types that have a command.
const DISK: &[DeviceType] = &[DeviceType::Disk];
const ALL: &[DeviceType] = &[DeviceType::Disk, DeviceType::CdDvd];
const CD: &[DeviceType] = &[DeviceType::CdDvd];
/// With those that are no device.
const EVERY: &[DeviceType] = &[DeviceType::Disk, DeviceType::CdDvd, DeviceType::NoDevice];

/// One command.
#[derive(Debug)]
pub struct CommandRow {
    /// The standards' name.
    pub name: &'static str,
    /// OPERATION CODE.
    pub operation: u8,
    /// The service action, for an operation code that has them.
    pub action: Option<u16>,
    /// CDB USAGE DATA (SPC-6): ones where the device server looks. Its length is the CDB's.
    usage: &'static [u8],
    /// Who answers it.
    pub answerer: Answerer,
    /// The device types that have it.
    pub types: &'static [DeviceType],
    /// RECOMMENDED COMMAND TIMEOUT, seconds; zero: nothing is recommended, it takes what it takes.
    pub timeout_s: u32,
    condition: Condition,
    bits: Bits,
    reach: Reach,
}

impl CommandRow {
    const fn new(name: &'static str, usage: &'static [u8]) -> Self {
        // CDB USAGE DATA begins with the operation code.
        let operation = match usage.first() {
            Some(&operation) => operation,
            None => 0,
        };
        Self {
            name,
            operation,
            action: None,
            usage,
            answerer: Answerer::Card,
            types: DISK,
            timeout_s: 30,
            condition: Condition::Always,
            bits: Bits::None,
            reach: Reach::Active,
        }
    }

    const fn action(self, action: u8) -> Self {
        Self { action: Some(action as u16), ..self }
    }

    const fn host(self, command: HostCommand) -> Self {
        Self { answerer: Answerer::Host(command), ..self }
    }

    const fn all_types(self) -> Self {
        Self { types: ALL, ..self }
    }

    const fn every_type(self) -> Self {
        Self { types: EVERY, ..self }
    }

    const fn cd(self) -> Self {
        Self { types: CD, ..self }
    }

    const fn thin(self) -> Self {
        Self { condition: Condition::Thin, ..self }
    }

    const fn alua(self) -> Self {
        Self { condition: Condition::Alua, ..self }
    }

    const fn reach(self, reach: Reach) -> Self {
        Self { reach, ..self }
    }

    const fn bits(self, bits: Bits) -> Self {
        Self { bits, ..self }
    }

    const fn timeout_s(self, timeout_s: u32) -> Self {
        Self { timeout_s, ..self }
    }

    /// Whether this unit has the command.
    #[must_use]
    pub fn is_supported(&self, unit: &LogicalUnit) -> bool {
        let answered = match self.answerer {
            Answerer::Card => true,
            Answerer::Host(command) => unit.forwards && unit.host_commands.has(command),
        };
        let offered = match self.condition {
            Condition::Always => true,
            Condition::Thin => unit.thin,
            Condition::Alua => unit.tpgs != Tpgs::None,
        };
        answered && offered && self.types.contains(&unit.device_type)
    }

    /// Whether only thin provisioned units have it.
    #[must_use]
    pub fn is_thin_only(&self) -> bool {
        self.condition == Condition::Thin
    }

    /// Whether only units with target port groups have it.
    #[must_use]
    pub fn is_alua_only(&self) -> bool {
        self.condition == Condition::Alua
    }

    /// Bytes of its CDB, at most 16.
    #[must_use]
    pub fn cdb_bytes(&self) -> u16 {
        u16::try_from(self.usage.len()).unwrap_or(u16::MAX)
    }

    /// CDB USAGE DATA as this unit has it.
    pub fn usage(&self, unit: &LogicalUnit) -> impl Iterator<Item = u8> {
        let unused = match self.bits {
            Bits::DpoFua if !unit.fua => 0x18,
            Bits::Unmap if !unit.thin => 0x08,
            Bits::None | Bits::DpoFua | Bits::Unmap => 0,
        };
        self.usage
            .iter()
            .enumerate()
            .map(move |(byte, &usage)| if byte == 1 { usage & !unused } else { usage })
    }
}

use Reach::{Always, Settled, Standby};

/// CONTROL: NACA is looked at, and refused.
const C: u8 = 0x04;
/// A whole byte.
const F: u8 = 0xFF;
/// Byte 1 of READ, WRITE and their like: the protection field, DPO, FUA.
const FLAGS: u8 = 0xF8;

/// Every command, ascending.
#[rustfmt::skip]
pub static COMMANDS: &[CommandRow] = &[
    CommandRow::new("TEST UNIT READY", &[0x00, 0, 0, 0, 0, C]).all_types(), // SPC-6
    CommandRow::new("REQUEST SENSE", &[0x03, 0x01, 0, 0, F, C]).every_type().reach(Always), // SPC-6
    CommandRow::new("FORMAT UNIT", &[0x04, 0xFF, 0, 0, 0x03, C]) // SBC-4
        .host(HostCommand::FormatUnit).timeout_s(0),
    CommandRow::new("READ (6)", &[0x08, 0x1F, F, F, F, C]), // SBC-4
    CommandRow::new("WRITE (6)", &[0x0A, 0x1F, F, F, F, C]), // SBC-4
    CommandRow::new("INQUIRY", &[0x12, 0x03, F, F, F, C]).every_type().reach(Always), // SPC-6
    CommandRow::new("MODE SELECT (6)", &[0x15, 0x13, 0, 0, F, C]) // SPC-6
        .host(HostCommand::ModeSelect).all_types().reach(Standby),
    CommandRow::new("RESERVE (6)", &[0x16, 0x11, 0, 0, 0, C]).host(HostCommand::Reserve).all_types(), // SPC-2
    CommandRow::new("RELEASE (6)", &[0x17, 0x11, 0, 0, 0, C]).host(HostCommand::Reserve).all_types(), // SPC-2
    CommandRow::new("MODE SENSE (6)", &[0x1A, 0x08, F, F, F, C]).all_types().reach(Standby), // SPC-6
    CommandRow::new("START STOP UNIT", &[0x1B, 0x01, 0, 0, 0xF7, C]).all_types().timeout_s(60), // SBC-4
    CommandRow::new("PREVENT ALLOW MEDIUM REMOVAL", &[0x1E, 0, 0, 0, 0x03, C]).all_types(), // SPC-6
    CommandRow::new("READ CAPACITY (10)", &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, C]) // SBC-4
        .all_types().reach(Standby),
    CommandRow::new("READ (10)", &[0x28, FLAGS, F, F, F, F, 0, F, F, C]) // SBC-4
        .all_types().bits(Bits::DpoFua),
    CommandRow::new("WRITE (10)", &[0x2A, FLAGS, F, F, F, F, 0, F, F, C]).bits(Bits::DpoFua), // SBC-4
    CommandRow::new("WRITE AND VERIFY (10)", &[0x2E, 0xF6, F, F, F, F, 0, F, F, C]) // SBC-4
        .bits(Bits::DpoFua),
    CommandRow::new("VERIFY (10)", &[0x2F, 0xF6, F, F, F, F, 0, F, F, C]).bits(Bits::DpoFua), // SBC-4
    CommandRow::new("PRE-FETCH (10)", &[0x34, 0, F, F, F, F, 0, F, F, C]), // SBC-4
    CommandRow::new("SYNCHRONIZE CACHE (10)", &[0x35, 0x02, F, F, F, F, 0, F, F, C]) // SBC-4
        .timeout_s(60),
    CommandRow::new("READ DEFECT DATA (10)", &[0x37, 0, 0x1F, 0, 0, 0, 0, F, F, C]), // SBC-4
    CommandRow::new("WRITE SAME (10)", &[0x41, 0xFF, F, F, F, F, 0, F, F, C]) // SBC-4
        .bits(Bits::Unmap).timeout_s(60),
    CommandRow::new("UNMAP", &[0x42, 0x01, 0, 0, 0, 0, 0, F, F, C]).thin().timeout_s(60), // SBC-4
    CommandRow::new("READ TOC/PMA/ATIP", &[0x43, 0x02, 0x0F, 0, 0, 0, F, F, F, 0xC4]).cd(), // MMC-6
    CommandRow::new("GET CONFIGURATION", &[0x46, 0x03, F, F, 0, 0, 0, F, F, C]).cd(), // MMC-6
    CommandRow::new("GET EVENT STATUS NOTIFICATION", &[0x4A, 0x01, 0, 0, F, 0, 0, F, F, C]).cd(), // MMC-6
    CommandRow::new("LOG SENSE", &[0x4D, 0x01, F, F, 0, 0, 0, F, F, C]).all_types().reach(Standby), // SPC-6
    CommandRow::new("READ DISC INFORMATION", &[0x51, 0x07, 0, 0, 0, 0, 0, F, F, C]).cd(), // MMC-6
    CommandRow::new("MODE SELECT (10)", &[0x55, 0x13, 0, 0, 0, 0, 0, F, F, C]) // SPC-6
        .host(HostCommand::ModeSelect).all_types().reach(Standby),
    CommandRow::new("RESERVE (10)", &[0x56, 0x13, 0, 0, 0, 0, 0, 0, 0, C]) // SPC-2
        .host(HostCommand::Reserve).all_types(),
    CommandRow::new("RELEASE (10)", &[0x57, 0x13, 0, 0, 0, 0, 0, 0, 0, C]) // SPC-2
        .host(HostCommand::Reserve).all_types(),
    CommandRow::new("MODE SENSE (10)", &[0x5A, 0x18, F, F, 0, 0, 0, F, F, C]).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE IN, READ KEYS", &[0x5E, 0x1F, 0, 0, 0, 0, 0, F, F, C])
        .action(0x00).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE IN, READ RESERVATION", &[0x5E, 0x1F, 0, 0, 0, 0, 0, F, F, C])
        .action(0x01).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE IN, REPORT CAPABILITIES", &[0x5E, 0x1F, 0, 0, 0, 0, 0, F, F, C])
        .action(0x02).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE IN, READ FULL STATUS", &[0x5E, 0x1F, 0, 0, 0, 0, 0, F, F, C])
        .action(0x03).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE OUT, REGISTER", &[0x5F, 0x1F, 0, 0, 0, F, F, F, F, C])
        .action(0x00).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE OUT, RESERVE", &[0x5F, 0x1F, F, 0, 0, F, F, F, F, C])
        .action(0x01).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE OUT, RELEASE", &[0x5F, 0x1F, F, 0, 0, F, F, F, F, C])
        .action(0x02).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE OUT, CLEAR", &[0x5F, 0x1F, 0, 0, 0, F, F, F, F, C])
        .action(0x03).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE OUT, PREEMPT", &[0x5F, 0x1F, F, 0, 0, F, F, F, F, C])
        .action(0x04).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE OUT, PREEMPT AND ABORT", &[0x5F, 0x1F, F, 0, 0, F, F, F, F, C])
        .action(0x05).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY", &[0x5F, 0x1F, 0, 0, 0, F, F, F, F, C])
        .action(0x06).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE OUT, REGISTER AND MOVE", &[0x5F, 0x1F, 0, 0, 0, F, F, F, F, C])
        .action(0x07).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("PERSISTENT RESERVE OUT, REPLACE LOST RESERVATION", &[0x5F, 0x1F, F, 0, 0, F, F, F, F, C])
        .action(0x08).host(HostCommand::PersistentReserve).all_types().reach(Standby), // SPC-6
    CommandRow::new("EXTENDED COPY (LID1)", &[0x83, 0x1F, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C])
        .action(service_action::EXTENDED_COPY_LID1) // SPC-6
        .host(HostCommand::ExtendedCopy).timeout_s(0),
    CommandRow::new("RECEIVE COPY STATUS (LID1)", &[0x84, 0x1F, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C])
        .action(service_action::RECEIVE_COPY_STATUS_LID1) // SPC-6
        .host(HostCommand::ReceiveCopyResults),
    CommandRow::new("RECEIVE COPY OPERATING PARAMETERS", &[0x84, 0x1F, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C])
        .action(service_action::RECEIVE_COPY_OPERATING_PARAMETERS) // SPC-6
        .host(HostCommand::ReceiveCopyResults),
    CommandRow::new("READ (16)", &[0x88, FLAGS, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]) // SBC-4
        .bits(Bits::DpoFua),
    CommandRow::new("COMPARE AND WRITE", &[0x89, FLAGS, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, C])
        .bits(Bits::DpoFua), // SBC-4
    CommandRow::new("WRITE (16)", &[0x8A, FLAGS, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]) // SBC-4
        .bits(Bits::DpoFua),
    CommandRow::new("ORWRITE (16)", &[0x8B, FLAGS, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]) // SBC-4
        .bits(Bits::DpoFua),
    CommandRow::new("WRITE AND VERIFY (16)", &[0x8E, 0xF6, F, F, F, F, F, F, F, F, F, F, F, F, 0, C])
        .bits(Bits::DpoFua), // SBC-4
    CommandRow::new("VERIFY (16)", &[0x8F, 0xF6, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]) // SBC-4
        .bits(Bits::DpoFua),
    CommandRow::new("PRE-FETCH (16)", &[0x90, 0, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]), // SBC-4
    CommandRow::new("SYNCHRONIZE CACHE (16)", &[0x91, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0, C])
        .timeout_s(60), // SBC-4
    CommandRow::new("WRITE SAME (16)", &[0x93, 0xFF, F, F, F, F, F, F, F, F, F, F, F, F, 0, C]) // SBC-4
        .bits(Bits::Unmap).timeout_s(60),
    CommandRow::new("READ CAPACITY (16)", &[0x9E, 0x1F, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C])
        .action(service_action::READ_CAPACITY_16).reach(Standby), // SBC-4
    CommandRow::new("GET LBA STATUS (16)", &[0x9E, 0x1F, F, F, F, F, F, F, F, F, F, F, F, F, 0, C])
        .action(service_action::GET_LBA_STATUS), // SBC-4
    CommandRow::new("REPORT LUNS", &[0xA0, 0, F, 0, 0, 0, F, F, F, F, 0, C]).every_type().reach(Always), // SPC-6
    CommandRow::new("REPORT TARGET PORT GROUPS", &[0xA3, 0xFF, 0, 0, 0, 0, F, F, F, F, 0, C]) // SPC-6
        .action(service_action::REPORT_TARGET_PORT_GROUPS).all_types().alua().reach(Always),
    CommandRow::new("REPORT SUPPORTED OPERATION CODES", &[0xA3, 0x1F, 0x87, F, F, F, F, F, F, F, 0, C])
        .action(service_action::REPORT_SUPPORTED_OPERATION_CODES).all_types().reach(Standby), // SPC-6
    CommandRow::new("REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", &[0xA3, 0x1F, 0x80, 0, 0, 0, F, F, F, F, 0, C])
        .action(service_action::REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS).all_types().reach(Standby), // SPC-6
    CommandRow::new("SET TARGET PORT GROUPS", &[0xA4, 0x1F, 0, 0, 0, 0, F, F, F, F, 0, C]) // SPC-6
        .action(service_action::SET_TARGET_PORT_GROUPS).all_types().alua().reach(Settled)
        .host(HostCommand::SetTargetPortGroups),
    CommandRow::new("READ (12)", &[0xA8, FLAGS, F, F, F, F, F, F, F, F, 0, C]) // SBC-4
        .all_types().bits(Bits::DpoFua),
    CommandRow::new("WRITE (12)", &[0xAA, FLAGS, F, F, F, F, F, F, F, F, 0, C]).bits(Bits::DpoFua), // SBC-4
    CommandRow::new("WRITE AND VERIFY (12)", &[0xAE, 0xF6, F, F, F, F, F, F, F, F, 0, C]) // SBC-4
        .bits(Bits::DpoFua),
    CommandRow::new("VERIFY (12)", &[0xAF, 0xF6, F, F, F, F, F, F, F, F, 0, C]).bits(Bits::DpoFua), // SBC-4
    CommandRow::new("READ DEFECT DATA (12)", &[0xB7, 0x1F, F, F, F, F, F, F, F, F, 0, C]), // SBC-4
    CommandRow::new("MECHANISM STATUS", &[0xBD, 0, 0, 0, 0, 0, 0, 0, F, F, 0, C]).cd(), // MMC-6
];

/// Whether units of this type have the command that a CDB names, as far as the type decides that. An
/// operation code that is not in the table is in no type's way.
pub(crate) fn fits(device_type: DeviceType, cdb: &[u8]) -> bool {
    let Some(&operation) = cdb.first() else { return true };
    let begin = COMMANDS.partition_point(|row| row.operation < operation);
    match COMMANDS.get(begin) {
        // The service actions of one operation code are of the same types.
        Some(row) if row.operation == operation => row.types.contains(&device_type),
        _ => true,
    }
}

/// In which states a target port takes the command that a CDB names. One that is not in the table changes
/// nothing and is refused with the others.
pub(crate) fn reach(cdb: &[u8]) -> Reach {
    let [operation, action, ..] = *cdb else { return Reach::Active };
    let begin = COMMANDS.partition_point(|row| row.operation < operation);
    let rows = COMMANDS.get(begin..).unwrap_or_default().iter();
    rows.take_while(|row| row.operation == operation)
        .find(|row| row.action.is_none_or(|own| own == u16::from(action & 0x1F)))
        .map_or(Reach::Active, |row| row.reach)
}
