//! The device server of SAM-6: one command and one logical unit in, what to do out; later, what
//! became of it in, the ending out. Pending unit attentions, task sets and access are checked by
//! the caller first.

mod log_pages;
mod medium;
mod mmc;
mod mode;
mod parameter;
mod supported;
mod vpd;

pub use medium::{Data, UNMAP_RANGES_MAX, all_mapped, lba_runs, unmap, unmap_ranges};
pub use mode::{ModeParameters, select};
pub use parameter::{LBA_RUNS_MAX, LbaRun, Parameter, fill, fill_lba_status};

use crate::alua::Tpgs;
use crate::cdb::{self, ByteCheck, Command, ModeSense, PageControl, Transfer, Usual};
use crate::opcodes::{self, HostCommand};
use crate::sense::Sense;
use crate::status::Status;
use crate::unit::{DeviceType, LogicalUnit};

/// Work for the backend. Ranges are inside the capacity that the unit had at [`begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOperation {
    /// Blocks to the initiator.
    Read {
        /// First block.
        lba: u64,
        /// Blocks, at least 1.
        blocks: u32,
    },
    /// Blocks from the initiator.
    Write {
        /// First block.
        lba: u64,
        /// Blocks, at least 1.
        blocks: u32,
        /// On the medium before the operation ends.
        fua: bool,
    },
    /// The range is on the medium before the operation ends.
    Flush {
        /// First block.
        lba: u64,
        /// Blocks; zero: to the end of the medium.
        blocks: u32,
    },
    /// The range can be read, and is compared with data from the initiator if there is any.
    Compare {
        /// First block.
        lba: u64,
        /// Blocks, at least 1.
        blocks: u32,
        /// Which data.
        check: ByteCheck,
    },
    /// The range is compared with the first half of the data from the initiator and, if it is equal,
    /// overwritten with the second, and nobody writes between the two (SBC-4, COMPARE AND WRITE).
    CompareAndWrite {
        /// First block.
        lba: u64,
        /// Blocks, at least 1; the data has twice as many.
        blocks: u32,
        /// On the medium before the operation ends.
        fua: bool,
    },
    /// Blocks from the initiator are written to the medium, read back and compared.
    WriteAndVerify {
        /// First block.
        lba: u64,
        /// Blocks, at least 1.
        blocks: u32,
    },
    /// The range becomes the bitwise or of itself and blocks from the initiator, and nobody writes
    /// between reading and writing it (SBC-4, ORWRITE (16)).
    OrWrite {
        /// First block.
        lba: u64,
        /// Blocks, at least 1.
        blocks: u32,
        /// On the medium before the operation ends.
        fua: bool,
    },
    /// Every block of the range becomes the one block from the initiator.
    WriteSame {
        /// First block.
        lba: u64,
        /// Blocks, at least 1.
        blocks: u32,
        /// There is no data from the initiator: the blocks become zeros.
        zeros: bool,
        /// Blocks that read as the data when unmapped may be unmapped instead.
        unmap: bool,
    },
    /// The ranges in the parameter list, which lies in the task's buffer, are unmapped.
    Unmap {
        /// Ranges in the list, at least 1; [`unmap_ranges`] finds them.
        ranges: u16,
    },
    /// How the blocks from `lba` on are provisioned; [`fill_lba_status`] makes parameter data of it. Only
    /// of a thin unit has the backing to be asked, of others it is [`all_mapped`].
    LbaStatus {
        /// First block.
        lba: u64,
        /// ALLOCATION LENGTH, bytes, at least 1: enough for [`lba_runs`].
        allocation: u32,
    },
}

/// What a command comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is over: GOOD, or CHECK CONDITION with this sense data.
    Done(Result<(), Sense>),
    /// Parameter data goes to the initiator: claim [`Parameter::length_max`] bytes and call
    /// [`fill`].
    Parameter(Parameter),
    /// The backend has to act; [`finish`] then gives the ending.
    Block(BlockOperation),
    /// The initiator sends UNMAP's parameter list of this many bytes, at least 8: fetch it into card
    /// memory and call [`unmap`].
    UnmapList {
        /// PARAMETER LIST LENGTH.
        bytes: u16,
    },
    /// The host agent executes the CDB.
    Forward,
}

// Both are returned by value for every command.
const _: () = assert!(size_of::<Verdict>() <= 40);
const _: () = assert!(size_of::<Command>() <= 24);

/// How the backend's part of a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOutcome {
    /// All of it done.
    Done,
    /// A block could not be read.
    MediumReadError {
        /// The first such block.
        lba: u64,
    },
    /// A block could not be written.
    MediumWriteError {
        /// The first such block.
        lba: u64,
    },
    /// The backing refuses writes.
    WriteProtected,
    /// The backing of a thin unit is full.
    NoSpace,
    /// Nobody there to execute it at the moment; it was not started.
    Unavailable,
    /// The unit is changing hands; it was not started.
    Transitioning,
    /// Whoever executed it is gone; whether it was executed is unknown.
    Lost,
    /// The backend failed in another way.
    HardwareError,
    /// Cancelled before it had any effect.
    Cancelled,
    /// The backing is shorter than the unit.
    OutOfRange,
    /// The medium differs from the data that it was compared with; nothing was written.
    Miscompare {
        /// Where in the data the first difference is, bytes.
        offset_bytes: u64,
    },
}

/// What the initiator is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// This status, no sense data.
    Status(Status),
    /// CHECK CONDITION with this sense data.
    Sense(Sense),
}

/// The READ or WRITE in `cdb`, if nothing is wrong with it and it has anything to do: the data path's
/// entry. It builds no sense data, which is what keeps it short; [`begin_cdb`] has the rest.
#[inline(always)]
#[must_use]
pub fn usual_operation(
    unit: &LogicalUnit,
    lun_read_only: bool,
    cdb: &[u8],
) -> Option<BlockOperation> {
    block_operation(unit, lun_read_only, &cdb::parse_usual(cdb)?)
}

/// Parses a CDB and decides. An unknown command is [`Verdict::Forward`] where the unit forwards. The
/// command is `None` if there is none that [`cdb::parse`] knows.
pub fn begin_cdb(
    unit: &LogicalUnit,
    lun_read_only: bool,
    cdb: &[u8],
) -> (Option<Command>, Verdict) {
    match cdb::parse(cdb) {
        Ok(command) if opcodes::fits(unit.device_type, cdb) => {
            (Some(command), begin(unit, lun_read_only, &command))
        }
        // As for a LUN that leads to no unit: see [`begin_absent`].
        _ if unit.device_type == DeviceType::NoDevice => {
            (None, Verdict::Done(Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED)))
        }
        // What a device of this type has not.
        Ok(_) => {
            let sense = Sense::INVALID_COMMAND_OPERATION_CODE.with_field(0, None);
            (None, Verdict::Done(Err(sense)))
        }
        Err(sense) => (None, refuse(unit, sense)),
    }
}

fn refuse(unit: &LogicalUnit, sense: Sense) -> Verdict {
    if unit.forwards && sense.asc == Sense::INVALID_COMMAND_OPERATION_CODE.asc {
        Verdict::Forward
    } else {
        Verdict::Done(Err(sense))
    }
}

/// Decides what a command to this unit comes to. `lun_read_only`: the unit is mapped read only for
/// this I_T nexus, whatever it is itself.
pub fn begin(unit: &LogicalUnit, lun_read_only: bool, command: &Command) -> Verdict {
    let usual = match *command {
        Command::Read(transfer) => Some(Usual::Read(transfer)),
        Command::Write(transfer) => Some(Usual::Write(transfer)),
        _ => None,
    };
    if let Some(operation) = usual.and_then(|usual| block_operation(unit, lun_read_only, &usual)) {
        return Verdict::Block(operation);
    }
    if !unit.has_medium() && medium::needs_medium(command) {
        return Verdict::Done(Err(Sense::MEDIUM_NOT_PRESENT));
    }
    match *command {
        Command::TestUnitReady => Verdict::Done(Ok(())),
        Command::Inquiry { vpd, allocation } => inquiry(Some(unit), vpd, allocation),
        Command::ReportLuns { select, allocation } => report_luns(select, allocation),
        Command::ReadCapacity10 => Verdict::Parameter(Parameter::ReadCapacity10),
        Command::ReadCapacity16 { allocation } => {
            Verdict::Parameter(Parameter::ReadCapacity16 { allocation })
        }
        Command::ModeSense(sense) => mode_sense(unit, lun_read_only, sense),
        Command::RequestSense { descriptor_format, allocation } => {
            Verdict::Parameter(Parameter::RequestSense { descriptor_format, allocation })
        }
        Command::StartStopUnit { power_condition, start, load_eject, no_flush, immediate: _ } => {
            start_stop(unit, power_condition, start, load_eject, no_flush)
        }
        Command::PreventAllow { prevent } => prevent_allow(unit, prevent),
        Command::LogSense { page, subpage, save, allocation } => {
            log_sense(page, subpage, save, allocation)
        }
        Command::ReadDefectData { long, lists, allocation } => {
            Verdict::Parameter(Parameter::DefectData { long, lists, allocation })
        }
        Command::ReadToc(toc) => mmc::read_toc(toc),
        Command::GetConfiguration(configuration) => mmc::get_configuration(configuration),
        Command::EventStatus { polled, classes, allocation } => {
            mmc::event_status(polled, classes, allocation)
        }
        Command::DiscInformation { data_type, allocation } => {
            mmc::disc_information(data_type, allocation)
        }
        Command::MechanismStatus { allocation } => {
            Verdict::Parameter(Parameter::MechanismStatus { allocation })
        }
        Command::ReportOperationCodes(report) => {
            done_or(supported::check(&report), Parameter::OperationCodes(report))
        }
        Command::ReportTaskManagement { extended, allocation } => {
            Verdict::Parameter(Parameter::TaskManagement { extended, allocation })
        }
        Command::ReportTargetPortGroups { .. }
        | Command::Host(HostCommand::SetTargetPortGroups)
            if unit.tpgs == Tpgs::None =>
        {
            refuse(unit, cdb::UNKNOWN_ACTION)
        }
        Command::ReportTargetPortGroups { extended, allocation } => {
            Verdict::Parameter(Parameter::TargetPortGroups { extended, allocation })
        }
        Command::Host(HostCommand::FormatUnit) if !medium::is_writable(unit, lun_read_only) => {
            Verdict::Done(Err(medium::write_protected(unit)))
        }
        Command::Host(_) if unit.forwards => Verdict::Forward,
        Command::Host(_) => {
            Verdict::Done(Err(Sense::INVALID_COMMAND_OPERATION_CODE.with_field(0, None)))
        }
        Command::Read(_)
        | Command::Write(_)
        | Command::SynchronizeCache { .. }
        | Command::Verify(..)
        | Command::WriteAndVerify(..)
        | Command::WriteSame(_)
        | Command::OrWrite(_)
        | Command::CompareAndWrite(_)
        | Command::Unmap { .. }
        | Command::PreFetch { .. }
        | Command::GetLbaStatus { .. } => medium::begin(unit, lun_read_only, command)
            .unwrap_or_else(|sense| Verdict::Done(Err(sense))),
    }
}

fn done_or(checked: Result<(), Sense>, parameter: Parameter) -> Verdict {
    match checked {
        Ok(()) => Verdict::Parameter(parameter),
        Err(sense) => Verdict::Done(Err(sense)),
    }
}

/// Decides for a LUN that leads to no unit (SAM-6, incorrect logical unit numbers): INQUIRY, REPORT
/// LUNS and REQUEST SENSE are answered, everything else is LOGICAL UNIT NOT SUPPORTED.
pub fn begin_absent(cdb: &[u8]) -> Verdict {
    match cdb::parse(cdb) {
        // Nothing but the list of pages says something about a unit that is not there.
        Ok(Command::Inquiry { vpd: Some(page), .. }) if page != vpd::SUPPORTED_PAGES => {
            Verdict::Done(Err(Sense::INVALID_FIELD_IN_CDB.with_field(2, None)))
        }
        Ok(Command::Inquiry { vpd, allocation }) => inquiry(None, vpd, allocation),
        Ok(Command::ReportLuns { select, allocation }) => report_luns(select, allocation),
        Ok(Command::RequestSense { descriptor_format, allocation }) => {
            Verdict::Parameter(Parameter::RequestSense { descriptor_format, allocation })
        }
        _ => Verdict::Done(Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED)),
    }
}

/// The one place where a backend's outcome becomes protocol status.
#[inline]
#[must_use]
pub fn finish(outcome: BlockOutcome) -> Ending {
    match outcome {
        BlockOutcome::Done => Ending::Status(Status::Good),
        _ => finish_failed(outcome),
    }
}

#[cold]
fn finish_failed(outcome: BlockOutcome) -> Ending {
    match outcome {
        BlockOutcome::Done => Ending::Status(Status::Good),
        BlockOutcome::MediumReadError { lba } => {
            Ending::Sense(Sense::MEDIUM_ERROR_READ.with_information(lba))
        }
        BlockOutcome::MediumWriteError { lba } => {
            Ending::Sense(Sense::MEDIUM_ERROR_WRITE.with_information(lba))
        }
        BlockOutcome::WriteProtected => Ending::Sense(Sense::WRITE_PROTECTED),
        BlockOutcome::NoSpace => Ending::Sense(Sense::SPACE_ALLOCATION_FAILED),
        BlockOutcome::Unavailable => Ending::Status(Status::Busy),
        BlockOutcome::Transitioning => Ending::Sense(Sense::NOT_READY_TRANSITIONING),
        BlockOutcome::Lost => Ending::Sense(Sense::OUTCOME_LOST),
        BlockOutcome::HardwareError => Ending::Sense(Sense::INTERNAL_TARGET_FAILURE),
        BlockOutcome::Cancelled => Ending::Status(Status::TaskAborted),
        BlockOutcome::OutOfRange => Ending::Sense(Sense::LBA_OUT_OF_RANGE),
        BlockOutcome::Miscompare { offset_bytes } => {
            Ending::Sense(Sense::MISCOMPARE.with_information(offset_bytes))
        }
    }
}

/// What a READ or WRITE does if nothing is wrong with it and it has anything to do.
#[inline]
fn block_operation(
    unit: &LogicalUnit,
    lun_read_only: bool,
    command: &Usual,
) -> Option<BlockOperation> {
    match *command {
        Usual::Read(transfer)
            if transfer.blocks != 0 && check_transfer(unit, &transfer).is_ok() =>
        {
            Some(BlockOperation::Read { lba: transfer.lba, blocks: transfer.blocks })
        }
        Usual::Write(transfer)
            if transfer.blocks != 0
                && medium::is_writable(unit, lun_read_only)
                && check_transfer(unit, &transfer).is_ok() =>
        {
            Some(BlockOperation::Write {
                lba: transfer.lba,
                blocks: transfer.blocks,
                fua: transfer.fua,
            })
        }
        _ => None,
    }
}

fn check_writable(unit: &LogicalUnit, lun_read_only: bool) -> Result<(), Sense> {
    if medium::is_writable(unit, lun_read_only) {
        Ok(())
    } else {
        Err(medium::write_protected(unit))
    }
}

/// FUA and DPO, the length and the range of a READ or WRITE.
#[inline]
fn check_transfer(unit: &LogicalUnit, transfer: &Transfer) -> Result<(), Sense> {
    // SBC-4, mode parameter header: with DPOFUA zero neither bit is supported.
    if (transfer.fua || transfer.dpo) && !unit.fua {
        let bit = if transfer.dpo { 4 } else { 3 };
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(bit)));
    }
    // SBC-4, Block Limits VPD page: a transfer above MAXIMUM TRANSFER LENGTH is refused.
    if unit.maximum_transfer_blocks != 0 && transfer.blocks > unit.maximum_transfer_blocks {
        let byte = u16::from(transfer.length_byte);
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(byte, None));
    }
    check_range(unit, transfer.lba, transfer.blocks)
}

/// The range must lie on the medium. An empty one may begin right behind it.
#[inline]
fn check_range(unit: &LogicalUnit, lba: u64, blocks: u32) -> Result<(), Sense> {
    match unit.blocks.checked_sub(lba) {
        Some(room) if u64::from(blocks) <= room => Ok(()),
        _ => Err(Sense::LBA_OUT_OF_RANGE.with_information(lba.max(unit.blocks))),
    }
}

/// A LUN without a unit has nothing but the list of pages.
fn inquiry(unit: Option<&LogicalUnit>, page: Option<u8>, allocation: u16) -> Verdict {
    match page {
        None => Verdict::Parameter(Parameter::StandardInquiry { allocation }),
        Some(page) if unit.is_none_or(|unit| vpd::has(unit, page)) => {
            Verdict::Parameter(Parameter::VitalProductData { page, allocation })
        }
        Some(_) => Verdict::Done(Err(Sense::INVALID_FIELD_IN_CDB.with_field(2, None))),
    }
}

fn report_luns(select: u8, allocation: u32) -> Verdict {
    match select {
        parameter::SELECT_ADDRESSED | parameter::SELECT_WELL_KNOWN | parameter::SELECT_ALL => {
            Verdict::Parameter(Parameter::ReportLuns { select, allocation })
        }
        // The rest is about conglomerates, which there are none of.
        _ => Verdict::Done(Err(Sense::INVALID_FIELD_IN_CDB.with_field(2, None))),
    }
}

fn mode_sense(unit: &LogicalUnit, lun_read_only: bool, sense: ModeSense) -> Verdict {
    if sense.control == PageControl::Saved {
        let saved = Sense::SAVING_PARAMETERS_NOT_SUPPORTED.with_field(2, Some(7));
        return Verdict::Done(Err(saved));
    }
    match mode::check(unit, sense.page, sense.subpage) {
        Ok(()) => Verdict::Parameter(Parameter::ModeSense {
            sense,
            write_protected: unit.read_only || lun_read_only,
        }),
        Err(sense) => Verdict::Done(Err(sense)),
    }
}

/// SBC-4, START STOP UNIT. There is no motor: stopping means flushing. A unit here saves no power in
/// any power condition, so each is entered by doing nothing; LOEJ and START then mean nothing.
fn start_stop(
    unit: &LogicalUnit,
    power_condition: u8,
    start: bool,
    load_eject: bool,
    no_flush: bool,
) -> Verdict {
    if power_condition != 0 {
        return Verdict::Done(Ok(()));
    }
    if load_eject && moves_medium(unit) {
        return Verdict::Forward;
    }
    if load_eject && !(unit.removable && start) {
        return Verdict::Done(Err(Sense::INVALID_FIELD_IN_CDB.with_field(4, Some(1))));
    }
    if start || no_flush || !unit.has_medium() {
        Verdict::Done(Ok(()))
    } else {
        Verdict::Block(BlockOperation::Flush { lba: 0, blocks: 0 })
    }
}

/// SPC-6, PREVENT ALLOW MEDIUM REMOVAL. What cannot be removed is prevented from it at all times;
/// else the agent has to know, who hears of every I_T nexus.
fn prevent_allow(unit: &LogicalUnit, prevent: u8) -> Verdict {
    if prevent > 1 {
        // Obsolete: persistent prevention, of medium changers.
        return Verdict::Done(Err(Sense::INVALID_FIELD_IN_CDB.with_field(4, Some(1))));
    }
    if moves_medium(unit) { Verdict::Forward } else { Verdict::Done(Ok(())) }
}

/// Whether its agent ejects and loads media.
fn moves_medium(unit: &LogicalUnit) -> bool {
    unit.removable && unit.forwards && unit.host_commands.has(HostCommand::MediumRemoval)
}

/// SPC-6, LOG SENSE.
fn log_sense(page: u8, subpage: u8, save: bool, allocation: u16) -> Verdict {
    if save {
        return Verdict::Done(Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(0))));
    }
    done_or(log_pages::check(page, subpage), Parameter::LogPage { page, subpage, allocation })
}
