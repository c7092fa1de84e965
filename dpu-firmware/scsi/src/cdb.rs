//! Command descriptor blocks: any bytes in, one of a closed set of commands or the reason why not
//! out. What can be judged without a logical unit is judged here; the rest is the device server's.

use crate::sense::Sense;

/// Operation codes of the commands that are known here (SPC-6 and SBC-4, command tables).
pub mod opcode {
    #![allow(missing_docs, reason = "the names are the standards' own")]
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0A;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SENSE_6: u8 = 0x1A;
    pub const START_STOP_UNIT: u8 = 0x1B;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2A;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const MODE_SENSE_10: u8 = 0x5A;
    pub const READ_16: u8 = 0x88;
    pub const WRITE_16: u8 = 0x8A;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9E;
    pub const REPORT_LUNS: u8 = 0xA0;
    pub const READ_12: u8 = 0xA8;
    pub const WRITE_12: u8 = 0xAA;
}

/// The service action of [`opcode::SERVICE_ACTION_IN_16`] that is READ CAPACITY (16) (SBC-4).
const READ_CAPACITY_16: u8 = 0x10;

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
}

/// What READ and WRITE say.
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
    /// parameter data).
    #[must_use]
    #[inline]
    pub fn ignores_unit_attention(&self) -> bool {
        matches!(self, Self::Inquiry { .. } | Self::ReportLuns { .. } | Self::RequestSense { .. })
    }

    /// True if the command has data-out for the medium.
    #[must_use]
    #[inline]
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write(_))
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
        opcode::SERVICE_ACTION_IN_16 => read_capacity_16(cdb),
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
        _ => Err(Sense::INVALID_COMMAND_OPERATION_CODE.with_field(0, None)),
    }
}

/// What [`parse`] says of the commands that nearly all are, READ and WRITE of 10 and 16 bytes, if
/// it accepts them. Separate because as a part of [`parse`] they pay for the results of all others.
#[inline(always)]
pub(crate) fn parse_common(cdb: &[u8]) -> Option<Command> {
    match *cdb.first()? {
        opcode::READ_10 => read_write_10(cdb).ok().map(Command::Read),
        opcode::WRITE_10 => read_write_10(cdb).ok().map(Command::Write),
        opcode::READ_16 => read_write_16(cdb).ok().map(Command::Read),
        opcode::WRITE_16 => read_write_16(cdb).ok().map(Command::Write),
        _ => None,
    }
}

/// The command's own bytes, with its CONTROL byte, the last one, checked.
#[inline(always)]
fn fixed<const LENGTH: usize>(cdb: &[u8]) -> Result<&[u8; LENGTH], Sense> {
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

/// SBC-4, READ CAPACITY (16). Other service actions are commands of their own, which are not known
/// here.
fn read_capacity_16(cdb: &[u8]) -> Result<Command, Sense> {
    if let Some(action) = cdb.get(1)
        && action & 0x1F != READ_CAPACITY_16
    {
        return Err(Sense::INVALID_COMMAND_OPERATION_CODE.with_field(1, Some(4)));
    }
    let [_, _, _, _, _, _, _, _, _, _, a0, a1, a2, a3, _, _] = *fixed::<16>(cdb)?;
    Ok(Command::ReadCapacity16 { allocation: u32::from_be_bytes([a0, a1, a2, a3]) })
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
