//! Command descriptor blocks: any bytes in, one of a closed set of commands or the reason why not
//! out. What can be judged without a logical unit is judged here; the rest is the device server's.

use crate::opcodes::{HostCommand, opcode, service_action};
use crate::sense::Sense;

/// A command that the device server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// TEST UNIT READY (SPC-6).
    TestUnitReady,
    /// INQUIRY (SPC-6).
    Inquiry {
        /// The vital product data page asked for; `None`: standard INQUIRY data.
        vpd: Option<u8>,
        /// ALLOCATION LENGTH, bytes.
        allocation: u16,
    },
    /// REPORT LUNS (SPC-6).
    ReportLuns {
        /// SELECT REPORT.
        select: u8,
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
    },
    /// READ CAPACITY (10) (SBC-4). Its LBA and PMI are obsolete and ignored.
    ReadCapacity10,
    /// READ CAPACITY (16) (SBC-4). Its LBA and PMI are obsolete and ignored.
    ReadCapacity16 {
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
    },
    /// READ (6), (10), (12), (16) (SBC-4).
    Read(Transfer),
    /// WRITE (6), (10), (12), (16) (SBC-4).
    Write(Transfer),
    /// SYNCHRONIZE CACHE (10), (16) (SBC-4).
    SynchronizeCache {
        /// First block.
        lba: u64,
        /// Blocks; zero: to the end of the medium.
        blocks: u32,
        /// IMMED.
        immediate: bool,
    },
    /// MODE SENSE (6), (10) (SPC-6).
    ModeSense(ModeSense),
    /// REQUEST SENSE (SPC-6).
    RequestSense {
        /// DESC.
        descriptor_format: bool,
        /// ALLOCATION LENGTH, bytes.
        allocation: u8,
    },
    /// START STOP UNIT (SBC-4).
    StartStopUnit {
        /// POWER CONDITION; zero: START_VALID, what `start` and `load_eject` say.
        power_condition: u8,
        /// START.
        start: bool,
        /// LOEJ.
        load_eject: bool,
        /// NO_FLUSH.
        no_flush: bool,
        /// IMMED.
        immediate: bool,
    },
    /// VERIFY (10), (12), (16) (SBC-4). FUA is never set.
    Verify(Transfer, ByteCheck),
    /// WRITE AND VERIFY (10), (12), (16) (SBC-4). FUA is never set: the medium is what is verified.
    WriteAndVerify(Transfer, ByteCheck),
    /// WRITE SAME (10), (16) (SBC-4).
    WriteSame(WriteSame),
    /// ORWRITE (16) (SBC-4).
    OrWrite(Transfer),
    /// COMPARE AND WRITE (SBC-4). The blocks are those compared and written: the data-out buffer has
    /// twice as many.
    CompareAndWrite(Transfer),
    /// UNMAP (SBC-4).
    Unmap {
        /// ANCHOR.
        anchor: bool,
        /// PARAMETER LIST LENGTH, bytes.
        list_bytes: u16,
    },
    /// PRE-FETCH (10), (16) (SBC-4).
    PreFetch {
        /// First block.
        lba: u64,
        /// Blocks; zero: to the end of the medium.
        blocks: u32,
    },
    /// GET LBA STATUS (16) (SBC-4).
    GetLbaStatus {
        /// First block.
        lba: u64,
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
    },
    /// READ DEFECT DATA (10), (12) (SBC-4).
    ReadDefectData {
        /// True for the 12-byte command, which has the longer header.
        long: bool,
        /// REQ_PLIST, REQ_GLIST and DEFECT LIST FORMAT, as in the CDB.
        lists: u8,
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
    },
    /// LOG SENSE (SPC-6).
    LogSense {
        /// PAGE CODE, six bits.
        page: u8,
        /// SUBPAGE CODE.
        subpage: u8,
        /// SP: the values are to be saved.
        save: bool,
        /// ALLOCATION LENGTH, bytes.
        allocation: u16,
    },
    /// PREVENT ALLOW MEDIUM REMOVAL (SPC-6).
    PreventAllow {
        /// PREVENT, two bits.
        prevent: u8,
    },
    /// READ TOC/PMA/ATIP (MMC-6).
    ReadToc(ReadToc),
    /// GET CONFIGURATION (MMC-6).
    GetConfiguration(GetConfiguration),
    /// GET EVENT STATUS NOTIFICATION (MMC-6).
    EventStatus {
        /// Polled; else the answer is to wait for an event.
        polled: bool,
        /// NOTIFICATION CLASS REQUEST.
        classes: u8,
        /// ALLOCATION LENGTH, bytes.
        allocation: u16,
    },
    /// READ DISC INFORMATION (MMC-6).
    DiscInformation {
        /// DATA TYPE, three bits.
        data_type: u8,
        /// ALLOCATION LENGTH, bytes.
        allocation: u16,
    },
    /// MECHANISM STATUS (MMC-6).
    MechanismStatus {
        /// ALLOCATION LENGTH, bytes.
        allocation: u16,
    },
    /// REPORT SUPPORTED OPERATION CODES (SPC-6).
    ReportOperationCodes(ReportOperationCodes),
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-6).
    ReportTaskManagement {
        /// REPD: with timeouts.
        extended: bool,
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
    },
    /// REPORT TARGET PORT GROUPS (SPC-6).
    ReportTargetPortGroups {
        /// PARAMETER DATA FORMAT: with the extended header.
        extended: bool,
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
    },
    /// A command that the host agent executes; its fields are looked at there.
    Host(HostCommand),
}

/// BYTCHK (SBC-4, VERIFY (10)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteCheck {
    /// 00b: the medium is read; there is no data-out.
    Medium,
    /// 01b: every block is compared with its own block of data-out.
    Blocks,
    /// 11b: every block is compared with the one block of data-out.
    OneBlock,
}

/// What WRITE SAME says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteSame {
    /// First block.
    pub lba: u64,
    /// Blocks; zero: to the end of the medium, where WSNZ allows it.
    pub blocks: u32,
    /// ANCHOR.
    pub anchor: bool,
    /// UNMAP.
    pub unmap: bool,
    /// NDOB: there is no data-out, zeros are written (16-byte command only).
    pub no_data_out: bool,
    /// The CDB byte in which NUMBER OF LOGICAL BLOCKS begins, for the field pointer.
    pub length_byte: u8,
}

/// What REPORT SUPPORTED OPERATION CODES says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportOperationCodes {
    /// RCTD: with command timeouts descriptors.
    pub timeouts: bool,
    /// REPORTING OPTIONS, three bits.
    pub options: u8,
    /// REQUESTED OPERATION CODE.
    pub operation: u8,
    /// REQUESTED SERVICE ACTION.
    pub action: u16,
    /// ALLOCATION LENGTH, bytes.
    pub allocation: u32,
}

/// What READ TOC/PMA/ATIP says (MMC-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadToc {
    /// MSF: addresses as minute, second and frame.
    pub msf: bool,
    /// FORMAT, four bits.
    pub format: u8,
    /// TRACK/SESSION NUMBER: the first that is told of.
    pub track: u8,
    /// ALLOCATION LENGTH, bytes.
    pub allocation: u16,
}

/// What GET CONFIGURATION says (MMC-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetConfiguration {
    /// RT, two bits: which features.
    pub requested: u8,
    /// STARTING FEATURE NUMBER.
    pub first: u16,
    /// ALLOCATION LENGTH, bytes.
    pub allocation: u16,
}

/// What READ and WRITE say, and the commands like them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// First block.
    pub lba: u64,
    /// Blocks; zero: nothing is transferred, which is not an error (the 256 that a zero means in
    /// the 6-byte commands is spelled out here).
    pub blocks: u32,
    /// FUA.
    pub fua: bool,
    /// DPO.
    pub dpo: bool,
    /// The CDB byte in which TRANSFER LENGTH begins, for the field pointer.
    pub length_byte: u8,
}

/// What MODE SENSE says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeSense {
    /// PAGE CODE, six bits; 3Fh: all.
    pub page: u8,
    /// SUBPAGE CODE.
    pub subpage: u8,
    /// PC.
    pub control: PageControl,
    /// DBD: leave the block descriptor out.
    pub dbd: bool,
    /// True for the 10-byte command, which has the longer header.
    pub long: bool,
    /// ALLOCATION LENGTH, bytes.
    pub allocation: u16,
    /// LLBAA: the long block descriptor may be used (10-byte command only).
    pub llbaa: bool,
}

/// PC: which values MODE SENSE asks for (SPC-6, page control).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageControl {
    /// The values in force.
    Current,
    /// Ones where MODE SELECT may change a bit.
    Changeable,
    /// The values after a power on.
    Default,
    /// The values kept over a power off.
    Saved,
}

impl Command {
    /// True where a pending unit attention is neither reported nor cleared by this command:
    /// INQUIRY, REPORT LUNS and REQUEST SENSE (SAM-6 5.14; REQUEST SENSE then reports it as
    /// parameter data), GET CONFIGURATION and GET EVENT STATUS NOTIFICATION (MMC-6).
    #[must_use]
    #[inline]
    pub fn ignores_unit_attention(&self) -> bool {
        matches!(
            self,
            Self::Inquiry { .. }
                | Self::ReportLuns { .. }
                | Self::RequestSense { .. }
                | Self::GetConfiguration(_)
                | Self::EventStatus { .. }
        )
    }

    /// True if the command changes the medium.
    #[must_use]
    #[inline]
    pub fn is_write(&self) -> bool {
        matches!(
            self,
            Self::Write(_)
                | Self::WriteAndVerify(..)
                | Self::WriteSame(_)
                | Self::OrWrite(_)
                | Self::CompareAndWrite(_)
                | Self::Unmap { .. }
                | Self::Host(HostCommand::FormatUnit)
        )
    }
}

/// NACA (SAM-6, CONTROL byte).
const NACA: u8 = 0x04;
const NACA_BIT: u8 = 2;
/// In byte 1 of READ and WRITE of 10, 12 and 16 bytes.
const PROTECT: u8 = 0xE0;
const PROTECT_BIT: u8 = 7;
const DPO: u8 = 0x10;
const FUA: u8 = 0x08;

/// What a CDB says. Bytes after the command's own are ignored: SRP always carries at least sixteen.
///
/// # Errors
/// INVALID COMMAND OPERATION CODE for a command that is not in [`Command`], an unknown service
/// action included. INVALID FIELD IN CDB with the field pointer for: a CDB shorter than its command
/// (the pointer is where it ends), NACA (no ACA here: NORMACA is zero in INQUIRY), RDPROTECT or
/// WRPROTECT (no protection information: PROTECT is zero in INQUIRY), CMDDT, and a page code
/// without EVPD. Reserved fields are not looked at, which SPC-6 leaves free.
pub fn parse(cdb: &[u8]) -> Result<Command, Sense> {
    let Some(&operation) = cdb.first() else {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None));
    };
    match operation {
        opcode::READ_10 => read_write_10(cdb).map(Command::Read),
        opcode::WRITE_10 => read_write_10(cdb).map(Command::Write),
        opcode::READ_16 => read_write_16(cdb).map(Command::Read),
        opcode::WRITE_16 => read_write_16(cdb).map(Command::Write),
        opcode::READ_6 => read_write_6(cdb).map(Command::Read),
        opcode::WRITE_6 => read_write_6(cdb).map(Command::Write),
        opcode::READ_12 => read_write_12(cdb).map(Command::Read),
        opcode::WRITE_12 => read_write_12(cdb).map(Command::Write),
        opcode::TEST_UNIT_READY => {
            fixed::<6>(cdb)?;
            Ok(Command::TestUnitReady)
        }
        opcode::REQUEST_SENSE => {
            let [_, flags, _, _, allocation, _] = *fixed::<6>(cdb)?;
            Ok(Command::RequestSense { descriptor_format: flags & 0x01 != 0, allocation })
        }
        opcode::INQUIRY => inquiry(cdb),
        opcode::MODE_SENSE_6 => {
            let [_, flags, page, subpage, allocation, _] = *fixed::<6>(cdb)?;
            Ok(Command::ModeSense(ModeSense {
                page: page & 0x3F,
                subpage,
                control: page_control(page),
                dbd: flags & 0x08 != 0,
                long: false,
                allocation: u16::from(allocation),
                llbaa: false,
            }))
        }
        opcode::MODE_SENSE_10 => {
            let [_, flags, page, subpage, _, _, _, high, low, _] = *fixed::<10>(cdb)?;
            Ok(Command::ModeSense(ModeSense {
                page: page & 0x3F,
                subpage,
                control: page_control(page),
                dbd: flags & 0x08 != 0,
                long: true,
                allocation: u16::from_be_bytes([high, low]),
                llbaa: flags & 0x10 != 0,
            }))
        }
        opcode::START_STOP_UNIT => {
            let [_, immediate, _, _, flags, _] = *fixed::<6>(cdb)?;
            Ok(Command::StartStopUnit {
                power_condition: flags >> 4,
                start: flags & 0x01 != 0,
                load_eject: flags & 0x02 != 0,
                no_flush: flags & 0x04 != 0,
                immediate: immediate & 0x01 != 0,
            })
        }
        opcode::READ_CAPACITY_10 => {
            fixed::<10>(cdb)?;
            Ok(Command::ReadCapacity10)
        }
        opcode::SERVICE_ACTION_IN_16 => service_action_in_16(cdb),
        opcode::SYNCHRONIZE_CACHE_10 => {
            let [_, flags, l0, l1, l2, l3, _, b0, b1, _] = *fixed::<10>(cdb)?;
            Ok(Command::SynchronizeCache {
                lba: u64::from(u32::from_be_bytes([l0, l1, l2, l3])),
                blocks: u32::from(u16::from_be_bytes([b0, b1])),
                immediate: flags & 0x02 != 0,
            })
        }
        opcode::SYNCHRONIZE_CACHE_16 => {
            let [_, flags, l0, l1, l2, l3, l4, l5, l6, l7, b0, b1, b2, b3, _, _] =
                *fixed::<16>(cdb)?;
            Ok(Command::SynchronizeCache {
                lba: u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]),
                blocks: u32::from_be_bytes([b0, b1, b2, b3]),
                immediate: flags & 0x02 != 0,
            })
        }
        opcode::REPORT_LUNS => {
            let [_, _, select, _, _, _, a0, a1, a2, a3, _, _] = *fixed::<12>(cdb)?;
            Ok(Command::ReportLuns { select, allocation: u32::from_be_bytes([a0, a1, a2, a3]) })
        }
        _ => parse_rare(operation, cdb),
    }
}

/// The commands of which an initiator sends few.
fn parse_rare(operation: u8, cdb: &[u8]) -> Result<Command, Sense> {
    match operation {
        opcode::VERIFY_10 => verify(cdb, ten).map(|(t, check)| Command::Verify(t, check)),
        opcode::VERIFY_12 => verify(cdb, twelve).map(|(t, check)| Command::Verify(t, check)),
        opcode::VERIFY_16 => verify(cdb, sixteen).map(|(t, check)| Command::Verify(t, check)),
        opcode::WRITE_AND_VERIFY_10 => {
            verify(cdb, ten).map(|(t, check)| Command::WriteAndVerify(t, check))
        }
        opcode::WRITE_AND_VERIFY_12 => {
            verify(cdb, twelve).map(|(t, check)| Command::WriteAndVerify(t, check))
        }
        opcode::WRITE_AND_VERIFY_16 => {
            verify(cdb, sixteen).map(|(t, check)| Command::WriteAndVerify(t, check))
        }
        opcode::WRITE_SAME_10 => write_same(cdb, ten),
        opcode::WRITE_SAME_16 => write_same(cdb, sixteen),
        opcode::ORWRITE_16 => read_write_16(cdb).map(Command::OrWrite),
        opcode::COMPARE_AND_WRITE => compare_and_write(cdb),
        opcode::UNMAP => {
            let [_, flags, _, _, _, _, _, high, low, _] = *fixed::<10>(cdb)?;
            let list_bytes = u16::from_be_bytes([high, low]);
            Ok(Command::Unmap { anchor: flags & 0x01 != 0, list_bytes })
        }
        opcode::PRE_FETCH_10 => {
            ten(cdb).map(|range| Command::PreFetch { lba: range.lba, blocks: range.blocks })
        }
        opcode::PRE_FETCH_16 => {
            sixteen(cdb).map(|range| Command::PreFetch { lba: range.lba, blocks: range.blocks })
        }
        opcode::READ_DEFECT_DATA_10 => {
            let [_, _, lists, _, _, _, _, high, low, _] = *fixed::<10>(cdb)?;
            let allocation = u32::from(u16::from_be_bytes([high, low]));
            Ok(Command::ReadDefectData { long: false, lists: lists & 0x1F, allocation })
        }
        opcode::READ_DEFECT_DATA_12 => {
            let [_, lists, _, _, _, _, a0, a1, a2, a3, _, _] = *fixed::<12>(cdb)?;
            let allocation = u32::from_be_bytes([a0, a1, a2, a3]);
            Ok(Command::ReadDefectData { long: true, lists: lists & 0x1F, allocation })
        }
        opcode::LOG_SENSE => {
            let [_, save, page, subpage, _, _, _, high, low, _] = *fixed::<10>(cdb)?;
            Ok(Command::LogSense {
                page: page & 0x3F,
                subpage,
                save: save & 0x01 != 0,
                allocation: u16::from_be_bytes([high, low]),
            })
        }
        opcode::PREVENT_ALLOW_MEDIUM_REMOVAL => {
            let [_, _, _, _, prevent, _] = *fixed::<6>(cdb)?;
            Ok(Command::PreventAllow { prevent: prevent & 0x03 })
        }
        opcode::READ_TOC => {
            let [_, flags, format, _, _, _, track, high, low, control] = *fixed::<10>(cdb)?;
            // Before MMC the format was in the control byte, and some still put it there.
            let format = if format & 0x0F == 0 { control >> 6 } else { format & 0x0F };
            let allocation = u16::from_be_bytes([high, low]);
            Ok(Command::ReadToc(ReadToc { msf: flags & 0x02 != 0, format, track, allocation }))
        }
        opcode::GET_CONFIGURATION => {
            let [_, flags, f0, f1, _, _, _, high, low, _] = *fixed::<10>(cdb)?;
            Ok(Command::GetConfiguration(GetConfiguration {
                requested: flags & 0x03,
                first: u16::from_be_bytes([f0, f1]),
                allocation: u16::from_be_bytes([high, low]),
            }))
        }
        opcode::GET_EVENT_STATUS_NOTIFICATION => {
            let [_, flags, _, _, classes, _, _, high, low, _] = *fixed::<10>(cdb)?;
            let allocation = u16::from_be_bytes([high, low]);
            Ok(Command::EventStatus { polled: flags & 0x01 != 0, classes, allocation })
        }
        opcode::READ_DISC_INFORMATION => {
            let [_, flags, _, _, _, _, _, high, low, _] = *fixed::<10>(cdb)?;
            let allocation = u16::from_be_bytes([high, low]);
            Ok(Command::DiscInformation { data_type: flags & 0x07, allocation })
        }
        opcode::MECHANISM_STATUS => {
            let [_, _, _, _, _, _, _, _, high, low, _, _] = *fixed::<12>(cdb)?;
            Ok(Command::MechanismStatus { allocation: u16::from_be_bytes([high, low]) })
        }
        opcode::MAINTENANCE_IN => maintenance_in(cdb),
        opcode::MAINTENANCE_OUT => maintenance_out(cdb),
        opcode::FORMAT_UNIT => fixed::<6>(cdb).map(|_| Command::Host(HostCommand::FormatUnit)),
        opcode::MODE_SELECT_6 => fixed::<6>(cdb).map(|_| Command::Host(HostCommand::ModeSelect)),
        opcode::MODE_SELECT_10 => fixed::<10>(cdb).map(|_| Command::Host(HostCommand::ModeSelect)),
        opcode::RESERVE_6 | opcode::RELEASE_6 => {
            fixed::<6>(cdb).map(|_| Command::Host(HostCommand::Reserve))
        }
        opcode::RESERVE_10 | opcode::RELEASE_10 => {
            fixed::<10>(cdb).map(|_| Command::Host(HostCommand::Reserve))
        }
        opcode::PERSISTENT_RESERVE_IN => persistent_reserve(cdb, 3),
        opcode::PERSISTENT_RESERVE_OUT => persistent_reserve(cdb, 8),
        opcode::THIRD_PARTY_COPY_OUT | opcode::THIRD_PARTY_COPY_IN => third_party_copy(cdb),
        _ => Err(Sense::INVALID_COMMAND_OPERATION_CODE.with_field(0, None)),
    }
}

/// A READ or WRITE.
#[derive(Clone, Copy)]
pub(crate) enum Usual {
    Read(Transfer),
    Write(Transfer),
}

/// What [`parse`] says of the commands that nearly all are, READ and WRITE of 10 and 16 bytes, if
/// it accepts them. Separate because as a part of [`parse`] they pay for the results of all others.
#[inline(always)]
pub(crate) fn parse_usual(cdb: &[u8]) -> Option<Usual> {
    match *cdb.first()? {
        opcode::READ_10 => read_write_10(cdb).ok().map(Usual::Read),
        opcode::WRITE_10 => read_write_10(cdb).ok().map(Usual::Write),
        opcode::READ_16 => read_write_16(cdb).ok().map(Usual::Read),
        opcode::WRITE_16 => read_write_16(cdb).ok().map(Usual::Write),
        _ => None,
    }
}

/// The command's own bytes, with its CONTROL byte, the last one, checked.
#[inline(always)]
pub(crate) fn fixed<const LENGTH: usize>(cdb: &[u8]) -> Result<&[u8; LENGTH], Sense> {
    let Some(bytes) = cdb.first_chunk::<LENGTH>() else {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(pointer(cdb.len()), None));
    };
    if bytes.last().is_some_and(|control| control & NACA != 0) {
        let last = pointer(LENGTH.saturating_sub(1));
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(last, Some(NACA_BIT)));
    }
    Ok(bytes)
}

/// A position in a CDB as a field pointer. Saturates; a CDB has at most 260 bytes.
fn pointer(position: usize) -> u16 {
    u16::try_from(position).unwrap_or(u16::MAX)
}

/// SBC-4, READ (6) and WRITE (6): no DPO, no FUA, 21 bits of LBA, and a length of zero is 256.
fn read_write_6(cdb: &[u8]) -> Result<Transfer, Sense> {
    let [_, l0, l1, l2, length, _] = *fixed::<6>(cdb)?;
    Ok(Transfer {
        lba: u64::from(u32::from_be_bytes([0, l0 & 0x1F, l1, l2])),
        blocks: if length == 0 { 256 } else { u32::from(length) },
        fua: false,
        dpo: false,
        length_byte: 4,
    })
}

#[inline(always)]
fn read_write_10(cdb: &[u8]) -> Result<Transfer, Sense> {
    let [_, flags, l0, l1, l2, l3, _, b0, b1, _] = *fixed::<10>(cdb)?;
    let lba = u64::from(u32::from_be_bytes([l0, l1, l2, l3]));
    transfer(flags, lba, u32::from(u16::from_be_bytes([b0, b1])), 7)
}

fn read_write_12(cdb: &[u8]) -> Result<Transfer, Sense> {
    let [_, flags, l0, l1, l2, l3, b0, b1, b2, b3, _, _] = *fixed::<12>(cdb)?;
    let lba = u64::from(u32::from_be_bytes([l0, l1, l2, l3]));
    transfer(flags, lba, u32::from_be_bytes([b0, b1, b2, b3]), 6)
}

#[inline(always)]
fn read_write_16(cdb: &[u8]) -> Result<Transfer, Sense> {
    let [_, flags, l0, l1, l2, l3, l4, l5, l6, l7, b0, b1, b2, b3, _, _] = *fixed::<16>(cdb)?;
    let lba = u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
    transfer(flags, lba, u32::from_be_bytes([b0, b1, b2, b3]), 10)
}

/// Byte 1 is the same in the 10, 12 and 16-byte commands (SBC-4, READ (10)).
#[inline(always)]
fn transfer(flags: u8, lba: u64, blocks: u32, length_byte: u8) -> Result<Transfer, Sense> {
    if flags & PROTECT != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(PROTECT_BIT)));
    }
    Ok(Transfer { lba, blocks, fua: flags & FUA != 0, dpo: flags & DPO != 0, length_byte })
}

/// SPC-6, INQUIRY.
fn inquiry(cdb: &[u8]) -> Result<Command, Sense> {
    let [_, flags, page, high, low, _] = *fixed::<6>(cdb)?;
    if flags & 0x02 != 0 {
        // CMDDT, obsolete since SPC-3.
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(1)));
    }
    let evpd = flags & 0x01 != 0;
    if !evpd && page != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(2, None));
    }
    Ok(Command::Inquiry { vpd: evpd.then_some(page), allocation: u16::from_be_bytes([high, low]) })
}

/// The service action of a command that has them, in the low five bits of byte 1.
fn action(cdb: &[u8]) -> Result<u8, Sense> {
    match cdb.get(1) {
        Some(byte) => Ok(byte & 0x1F),
        None => Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, None)),
    }
}

/// Other service actions are commands of their own, which are not known here.
pub(crate) const UNKNOWN_ACTION: Sense =
    Sense::INVALID_COMMAND_OPERATION_CODE.with_field(1, Some(4));

/// SBC-4, READ CAPACITY (16) and GET LBA STATUS (16).
fn service_action_in_16(cdb: &[u8]) -> Result<Command, Sense> {
    match action(cdb)? {
        service_action::READ_CAPACITY_16 => {
            let [_, _, _, _, _, _, _, _, _, _, a0, a1, a2, a3, _, _] = *fixed::<16>(cdb)?;
            Ok(Command::ReadCapacity16 { allocation: u32::from_be_bytes([a0, a1, a2, a3]) })
        }
        service_action::GET_LBA_STATUS => {
            let range = sixteen(cdb)?;
            // ALLOCATION LENGTH is where READ (16) has its TRANSFER LENGTH.
            Ok(Command::GetLbaStatus { lba: range.lba, allocation: range.blocks })
        }
        _ => Err(UNKNOWN_ACTION),
    }
}

/// SPC-6, REPORT SUPPORTED OPERATION CODES and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
fn maintenance_in(cdb: &[u8]) -> Result<Command, Sense> {
    let action = action(cdb)?;
    if action == service_action::REPORT_TARGET_PORT_GROUPS {
        let [_, format, _, _, _, _, a0, a1, a2, a3, _, _] = *fixed::<12>(cdb)?;
        // SPC-6, PARAMETER DATA FORMAT: the others are reserved.
        let extended = match format >> 5 {
            0b000 => false,
            0b001 => true,
            _ => return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(7))),
        };
        let allocation = u32::from_be_bytes([a0, a1, a2, a3]);
        return Ok(Command::ReportTargetPortGroups { extended, allocation });
    }
    if action != service_action::REPORT_SUPPORTED_OPERATION_CODES
        && action != service_action::REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS
    {
        return Err(UNKNOWN_ACTION);
    }
    let [_, _, flags, operation, s0, s1, a0, a1, a2, a3, _, _] = *fixed::<12>(cdb)?;
    let allocation = u32::from_be_bytes([a0, a1, a2, a3]);
    if action == service_action::REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS {
        return Ok(Command::ReportTaskManagement { extended: flags & 0x80 != 0, allocation });
    }
    Ok(Command::ReportOperationCodes(ReportOperationCodes {
        timeouts: flags & 0x80 != 0,
        options: flags & 0x07,
        operation,
        action: u16::from_be_bytes([s0, s1]),
        allocation,
    }))
}

fn maintenance_out(cdb: &[u8]) -> Result<Command, Sense> {
    if action(cdb)? != service_action::SET_TARGET_PORT_GROUPS {
        return Err(UNKNOWN_ACTION);
    }
    fixed::<12>(cdb)?;
    Ok(Command::Host(HostCommand::SetTargetPortGroups))
}

/// PERSISTENT RESERVE IN or OUT (SPC-6), whose greatest service action is `last`.
fn persistent_reserve(cdb: &[u8], last: u8) -> Result<Command, Sense> {
    if action(cdb)? > last {
        return Err(UNKNOWN_ACTION);
    }
    fixed::<10>(cdb).map(|_| Command::Host(HostCommand::PersistentReserve))
}

/// SPC-6, EXTENDED COPY (LID1), and of RECEIVE COPY RESULTS the service actions for it.
fn third_party_copy(cdb: &[u8]) -> Result<Command, Sense> {
    let known = match (cdb.first().copied(), action(cdb)?) {
        (Some(opcode::THIRD_PARTY_COPY_OUT), service_action::EXTENDED_COPY_LID1) => {
            HostCommand::ExtendedCopy
        }
        (
            Some(opcode::THIRD_PARTY_COPY_IN),
            service_action::RECEIVE_COPY_STATUS_LID1
            | service_action::RECEIVE_COPY_OPERATING_PARAMETERS,
        ) => HostCommand::ReceiveCopyResults,
        _ => return Err(UNKNOWN_ACTION),
    };
    fixed::<16>(cdb)?;
    Ok(Command::Host(known))
}

/// Byte 1 and the range, which lie in the same places in nearly all medium commands of one length.
#[derive(Clone, Copy)]
struct Range {
    flags: u8,
    lba: u64,
    blocks: u32,
    length_byte: u8,
}

fn ten(cdb: &[u8]) -> Result<Range, Sense> {
    let [_, flags, l0, l1, l2, l3, _, b0, b1, _] = *fixed::<10>(cdb)?;
    let lba = u64::from(u32::from_be_bytes([l0, l1, l2, l3]));
    Ok(Range { flags, lba, blocks: u32::from(u16::from_be_bytes([b0, b1])), length_byte: 7 })
}

fn twelve(cdb: &[u8]) -> Result<Range, Sense> {
    let [_, flags, l0, l1, l2, l3, b0, b1, b2, b3, _, _] = *fixed::<12>(cdb)?;
    let lba = u64::from(u32::from_be_bytes([l0, l1, l2, l3]));
    Ok(Range { flags, lba, blocks: u32::from_be_bytes([b0, b1, b2, b3]), length_byte: 6 })
}

fn sixteen(cdb: &[u8]) -> Result<Range, Sense> {
    let [_, flags, l0, l1, l2, l3, l4, l5, l6, l7, b0, b1, b2, b3, _, _] = *fixed::<16>(cdb)?;
    let lba = u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
    Ok(Range { flags, lba, blocks: u32::from_be_bytes([b0, b1, b2, b3]), length_byte: 10 })
}

/// SBC-4, VERIFY and WRITE AND VERIFY: where READ has FUA there is nothing, and below it BYTCHK.
fn verify(
    cdb: &[u8],
    range: fn(&[u8]) -> Result<Range, Sense>,
) -> Result<(Transfer, ByteCheck), Sense> {
    let Range { flags, lba, blocks, length_byte } = range(cdb)?;
    let check = match flags & 0x06 {
        0x00 => ByteCheck::Medium,
        0x02 => ByteCheck::Blocks,
        0x06 => ByteCheck::OneBlock,
        _ => return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(2))),
    };
    Ok((transfer(flags & !FUA, lba, blocks, length_byte)?, check))
}

/// PBDATA and LBDATA of WRITE SAME, which put addresses into the data (SBC-2; obsolete since).
const ADDRESS_DATA: u8 = 0x06;

/// SBC-4, WRITE SAME (10) and (16). NDOB is the 16-byte command's; in the other its bit is obsolete.
fn write_same(cdb: &[u8], range: fn(&[u8]) -> Result<Range, Sense>) -> Result<Command, Sense> {
    let Range { flags, lba, blocks, length_byte } = range(cdb)?;
    if flags & PROTECT != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(PROTECT_BIT)));
    }
    if flags & ADDRESS_DATA != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(2)));
    }
    let no_data_out = flags & 0x01 != 0;
    if no_data_out && cdb.first() == Some(&opcode::WRITE_SAME_10) {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(0)));
    }
    Ok(Command::WriteSame(WriteSame {
        lba,
        blocks,
        anchor: flags & 0x10 != 0,
        unmap: flags & 0x08 != 0,
        no_data_out,
        length_byte,
    }))
}

/// SBC-4, COMPARE AND WRITE: its length is one byte.
fn compare_and_write(cdb: &[u8]) -> Result<Command, Sense> {
    let [_, flags, l0, l1, l2, l3, l4, l5, l6, l7, _, _, _, blocks, _, _] = *fixed::<16>(cdb)?;
    let lba = u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
    transfer(flags, lba, u32::from(blocks), 13).map(Command::CompareAndWrite)
}

/// PC is in the two high bits of the byte that holds the page code.
fn page_control(byte: u8) -> PageControl {
    match byte >> 6 {
        0 => PageControl::Current,
        1 => PageControl::Changeable,
        2 => PageControl::Default,
        _ => PageControl::Saved,
    }
}
