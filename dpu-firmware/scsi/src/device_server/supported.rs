//! REPORT SUPPORTED OPERATION CODES and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-6): the table
//! of [`crate::opcodes`] on the wire.

use crate::cdb::ReportOperationCodes;
use crate::opcodes::{COMMANDS, CommandRow};
use crate::sense::Sense;
use crate::unit::LogicalUnit;
use crate::writer::Writer;

/// REPORTING OPTIONS (SPC-6): all commands.
const ALL: u8 = 0b000;
/// One operation code, which has no service actions.
const OPERATION: u8 = 0b001;
/// One service action of an operation code that has them.
const ACTION: u8 = 0b010;
/// One operation code, with the service action if it has them.
const EITHER: u8 = 0b011;

/// SPC-6, command descriptor, and with a command timeouts descriptor behind it.
const DESCRIPTOR_BYTES: usize = 8;
const TIMEOUTS_BYTES: usize = 12;

/// The longest list: every command with its timeouts.
pub(super) fn bytes_max() -> u32 {
    let all = COMMANDS.len().saturating_mul(DESCRIPTOR_BYTES.saturating_add(TIMEOUTS_BYTES));
    u32::try_from(all.saturating_add(4)).unwrap_or(u32::MAX)
}

/// Do the options and what they ask about fit together?
pub(super) fn check(report: &ReportOperationCodes) -> Result<(), Sense> {
    let has_actions =
        COMMANDS.iter().any(|row| row.operation == report.operation && row.action.is_some());
    let fits = match report.options {
        ALL | EITHER => true,
        OPERATION => !has_actions,
        ACTION => has_actions || COMMANDS.iter().all(|row| row.operation != report.operation),
        _ => false,
    };
    if fits { Ok(()) } else { Err(Sense::INVALID_FIELD_IN_CDB.with_field(2, Some(2))) }
}

/// SPC-6, REPORT SUPPORTED OPERATION CODES parameter data.
pub(super) fn operation_codes(
    report: &ReportOperationCodes,
    unit: &LogicalUnit,
    writer: &mut Writer<'_>,
) {
    if report.options == ALL {
        all_commands(report.timeouts, unit, writer);
    } else {
        one_command(report, unit, writer);
    }
}

fn all_commands(timeouts: bool, unit: &LogicalUnit, writer: &mut Writer<'_>) {
    writer.zeros(4);
    for row in COMMANDS.iter().filter(|row| row.is_supported(unit)) {
        const HAS_ACTION: u8 = 0x01;
        const HAS_TIMEOUTS: u8 = 0x02;
        let flags = if row.action.is_some() { HAS_ACTION } else { 0 }
            | if timeouts { HAS_TIMEOUTS } else { 0 };
        writer.put(&[row.operation, 0]);
        writer.put(&row.action.unwrap_or(0).to_be_bytes());
        writer.put(&[0, flags]);
        writer.put(&row.cdb_bytes().to_be_bytes());
        if timeouts {
            command_timeouts(row, writer);
        }
    }
    // COMMAND DATA LENGTH does not count itself.
    let length = u32::try_from(writer.position().saturating_sub(4)).unwrap_or(u32::MAX);
    writer.patch(0, &length.to_be_bytes());
}

/// SPC-6, one_command parameter data format. An operation code without service actions has none to
/// match; asked for one all the same, it is not that command.
fn one_command(report: &ReportOperationCodes, unit: &LogicalUnit, writer: &mut Writer<'_>) {
    const NOT_SUPPORTED: u8 = 0b001;
    const AS_IN_THE_STANDARD: u8 = 0b011;
    const HAS_TIMEOUTS: u8 = 0x80;
    let wanted = |row: &&CommandRow| {
        row.operation == report.operation
            && (row.action.unwrap_or(0) == report.action || report.options == OPERATION)
            && row.is_supported(unit)
    };
    let Some(row) = COMMANDS.iter().find(wanted) else {
        return writer.put(&[0, NOT_SUPPORTED, 0, 0]);
    };
    let flags = if report.timeouts { HAS_TIMEOUTS } else { 0 };
    writer.put(&[0, flags | AS_IN_THE_STANDARD]);
    writer.put(&row.cdb_bytes().to_be_bytes());
    for (byte, usage) in row.usage(unit).enumerate() {
        // SPC-6: the operation code, and the service action where it is, stand for themselves.
        match (byte, row.action) {
            (1, Some(action)) => {
                let [_, action] = action.to_be_bytes();
                writer.put(&[usage & 0xE0 | action & 0x1F]);
            }
            _ => writer.put(&[usage]),
        }
    }
    if report.timeouts {
        command_timeouts(row, writer);
    }
}

/// SPC-6, command timeouts descriptor. How long a command nominally takes is not told.
fn command_timeouts(row: &CommandRow, writer: &mut Writer<'_>) {
    writer.put(&[0, 0x0A, 0, 0]);
    writer.put(&0_u32.to_be_bytes());
    writer.put(&row.timeout_s.to_be_bytes());
}

/// The longer form, with timeouts.
pub(super) const TASK_MANAGEMENT_BYTES_MAX: u32 = 16;

/// SPC-6, REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS parameter data: ABORT TASK, ABORT TASK SET, CLEAR
/// TASK SET and LOGICAL UNIT RESET. No timeout is told: it depends on the tasks that they end.
pub(super) fn task_management(extended: bool, writer: &mut Writer<'_>) {
    const ABORT_TASK: u8 = 0x80;
    const ABORT_TASK_SET: u8 = 0x40;
    const CLEAR_TASK_SET: u8 = 0x10;
    const LOGICAL_UNIT_RESET: u8 = 0x08;
    writer.put(&[ABORT_TASK | ABORT_TASK_SET | CLEAR_TASK_SET | LOGICAL_UNIT_RESET, 0, 0]);
    if extended {
        writer.put(&[12]); // the rest
        writer.zeros(12);
    } else {
        writer.put(&[0]);
    }
}
