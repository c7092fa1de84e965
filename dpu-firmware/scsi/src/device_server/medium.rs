//! The commands about the medium besides the ordinary READ and WRITE: what each comes to, and UNMAP's
//! parameter list.

use super::{
    BlockOperation, LBA_RUNS_MAX, LbaRun, Verdict, check_range, check_transfer, check_writable,
};
use crate::cdb::{ByteCheck, Command, Transfer, WriteSame};
use crate::opcodes::HostCommand;
use crate::sense::{FieldPointer, Sense};
use crate::unit::LogicalUnit;

/// MAXIMUM WRITE SAME LENGTH, blocks: what the 10-byte command can say. Bounds how long one command
/// keeps a backing busy.
pub(super) const WRITE_SAME_BLOCKS_MAX: u32 = 0xFFFF;
/// MAXIMUM UNMAP LBA COUNT, blocks of one command together.
pub(super) const UNMAP_BLOCKS_MAX: u32 = 1 << 20;
/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT: what one ring entry can carry to the host.
pub const UNMAP_RANGES_MAX: u16 = 31;

/// Which data an operation moves, in blocks of the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// None, or none in blocks ([`BlockOperation::Unmap`], [`BlockOperation::LbaStatus`]).
    None,
    /// To the initiator.
    In(u32),
    /// From the initiator.
    Out(u32),
}

impl BlockOperation {
    /// The data it moves.
    #[must_use]
    pub fn data(&self) -> Data {
        match *self {
            Self::Read { blocks, .. } => Data::In(blocks),
            Self::Write { blocks, .. }
            | Self::WriteAndVerify { blocks, .. }
            | Self::OrWrite { blocks, .. }
            | Self::Compare { blocks, check: ByteCheck::Blocks, .. } => Data::Out(blocks),
            Self::CompareAndWrite { blocks, .. } => Data::Out(blocks.saturating_mul(2)),
            Self::Compare { check: ByteCheck::OneBlock, .. }
            | Self::WriteSame { zeros: false, .. } => Data::Out(1),
            Self::Compare { check: ByteCheck::Medium, .. }
            | Self::WriteSame { zeros: true, .. }
            | Self::Flush { .. }
            | Self::Unmap { .. }
            | Self::LbaStatus { .. } => Data::None,
        }
    }

    /// Whether it changes the medium.
    #[must_use]
    #[inline]
    pub fn is_write(&self) -> bool {
        match self {
            Self::Write { .. }
            | Self::CompareAndWrite { .. }
            | Self::WriteAndVerify { .. }
            | Self::OrWrite { .. }
            | Self::WriteSame { .. }
            | Self::Unmap { .. } => true,
            Self::Read { .. }
            | Self::Flush { .. }
            | Self::Compare { .. }
            | Self::LbaStatus { .. } => false,
        }
    }
}

/// Whether a command is NOT READY without a medium.
pub(super) fn needs_medium(command: &Command) -> bool {
    match command {
        Command::Inquiry { .. }
        | Command::ReportLuns { .. }
        | Command::ModeSense(_)
        | Command::RequestSense { .. }
        | Command::StartStopUnit { .. }
        | Command::PreventAllow { .. }
        | Command::LogSense { .. }
        | Command::GetConfiguration(_)
        | Command::EventStatus { .. }
        | Command::MechanismStatus { .. }
        | Command::ReportOperationCodes(_)
        | Command::ReportTaskManagement { .. }
        | Command::ReportTargetPortGroups { .. }
        | Command::Host(
            HostCommand::ModeSelect
            | HostCommand::MediumRemoval
            | HostCommand::Reserve
            | HostCommand::PersistentReserve
            | HostCommand::SetTargetPortGroups,
        ) => false,
        Command::TestUnitReady
        | Command::ReadCapacity10
        | Command::ReadCapacity16 { .. }
        | Command::Read(_)
        | Command::Write(_)
        | Command::SynchronizeCache { .. }
        | Command::Verify(..)
        | Command::WriteAndVerify(..)
        | Command::WriteSame(_)
        | Command::OrWrite(_)
        | Command::CompareAndWrite(_)
        | Command::Unmap { .. }
        | Command::PreFetch { .. }
        | Command::GetLbaStatus { .. }
        | Command::ReadDefectData { .. }
        | Command::ReadToc(_)
        | Command::DiscInformation { .. }
        | Command::Host(
            HostCommand::FormatUnit | HostCommand::ExtendedCopy | HostCommand::ReceiveCopyResults,
        ) => true,
    }
}

#[inline(always)]
pub(super) fn is_writable(unit: &LogicalUnit, lun_read_only: bool) -> bool {
    !(unit.read_only || lun_read_only)
}

/// What a write to a unit or LUN that refuses them is told.
#[cold]
pub(super) fn write_protected(unit: &LogicalUnit) -> Sense {
    if unit.software_write_protect {
        Sense::SOFTWARE_WRITE_PROTECTED
    } else {
        Sense::WRITE_PROTECTED
    }
}

const GOOD: Verdict = Verdict::Done(Ok(()));

/// Decides about a command that needs the medium; READ and WRITE come here if there is something wrong
/// with them or they are of length zero.
pub(super) fn begin(
    unit: &LogicalUnit,
    lun_read_only: bool,
    command: &Command,
) -> Result<Verdict, Sense> {
    if command.is_write() {
        check_writable(unit, lun_read_only)?;
    }
    match *command {
        Command::Read(transfer) | Command::Write(transfer) => {
            check_transfer(unit, &transfer).map(|()| GOOD)
        }
        // With IMMED the status may come before the cache is flushed; it never does.
        Command::SynchronizeCache { lba, blocks, immediate: _ } => {
            check_range(unit, lba, blocks)?;
            Ok(Verdict::Block(BlockOperation::Flush { lba, blocks }))
        }
        Command::Verify(transfer, check) => verify(unit, &transfer, check),
        Command::WriteAndVerify(transfer, check) => write_and_verify(unit, &transfer, check),
        Command::WriteSame(same) => write_same(unit, &same),
        Command::OrWrite(transfer) => {
            check_transfer(unit, &transfer)?;
            let Transfer { lba, blocks, fua, .. } = transfer;
            Ok(unless_empty(blocks, BlockOperation::OrWrite { lba, blocks, fua }))
        }
        Command::CompareAndWrite(transfer) => compare_and_write(unit, &transfer),
        Command::Unmap { anchor, list_bytes } => unmap_list(unit, anchor, list_bytes),
        // The card keeps no copies of blocks. SBC-4, PRE-FETCH (10): CONDITION MET is for blocks that
        // all have room in the cache, GOOD for those that have not.
        Command::PreFetch { lba, blocks } => check_range(unit, lba, blocks).map(|()| GOOD),
        Command::GetLbaStatus { lba, allocation } => get_lba_status(unit, lba, allocation),
        // The rest has no blocks to do anything with.
        _ => Ok(GOOD),
    }
}

fn unless_empty(blocks: u32, operation: BlockOperation) -> Verdict {
    if blocks == 0 { GOOD } else { Verdict::Block(operation) }
}

/// SBC-4, VERIFY (10).
fn verify(unit: &LogicalUnit, transfer: &Transfer, check: ByteCheck) -> Result<Verdict, Sense> {
    check_transfer(unit, transfer)?;
    let Transfer { lba, blocks, .. } = *transfer;
    Ok(unless_empty(blocks, BlockOperation::Compare { lba, blocks, check }))
}

/// SBC-4, WRITE AND VERIFY (10). Reading back and comparing is how the medium is verified, whether the
/// initiator asks for the comparison or not. One block of data for all is VERIFY's alone.
fn write_and_verify(
    unit: &LogicalUnit,
    transfer: &Transfer,
    check: ByteCheck,
) -> Result<Verdict, Sense> {
    if check == ByteCheck::OneBlock {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(2)));
    }
    check_transfer(unit, transfer)?;
    let Transfer { lba, blocks, .. } = *transfer;
    Ok(unless_empty(blocks, BlockOperation::WriteAndVerify { lba, blocks }))
}

/// SBC-4, WRITE SAME (16), with WSNZ one and ANC_SUP zero.
fn write_same(unit: &LogicalUnit, same: &WriteSame) -> Result<Verdict, Sense> {
    if same.anchor {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(4)));
    }
    if same.unmap && !unit.thin {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(3)));
    }
    if same.blocks == 0 || same.blocks > WRITE_SAME_BLOCKS_MAX {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(same.length_byte.into(), None));
    }
    check_range(unit, same.lba, same.blocks)?;
    Ok(Verdict::Block(BlockOperation::WriteSame {
        lba: same.lba,
        blocks: same.blocks,
        zeros: same.no_data_out,
        unmap: same.unmap,
    }))
}

/// SBC-4, COMPARE AND WRITE.
fn compare_and_write(unit: &LogicalUnit, transfer: &Transfer) -> Result<Verdict, Sense> {
    if transfer.blocks > unit.compare_and_write_blocks_max().into() {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(transfer.length_byte.into(), None));
    }
    check_transfer(unit, transfer)?;
    let Transfer { lba, blocks, fua, .. } = *transfer;
    Ok(unless_empty(blocks, BlockOperation::CompareAndWrite { lba, blocks, fua }))
}

/// SBC-4, UNMAP: header and block descriptors.
const UNMAP_HEADER_BYTES: u16 = 8;

/// SBC-4, UNMAP.
fn unmap_list(unit: &LogicalUnit, anchor: bool, bytes: u16) -> Result<Verdict, Sense> {
    if !unit.thin {
        return Err(Sense::INVALID_COMMAND_OPERATION_CODE.with_field(0, None));
    }
    if anchor {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(0)));
    }
    match bytes {
        0 => Ok(GOOD),
        // A length that cuts the header.
        1..UNMAP_HEADER_BYTES => Err(Sense::PARAMETER_LIST_LENGTH_ERROR.with_field(7, None)),
        _ => Ok(Verdict::UnmapList { bytes }),
    }
}

/// SBC-4, GET LBA STATUS (16).
fn get_lba_status(unit: &LogicalUnit, lba: u64, allocation: u32) -> Result<Verdict, Sense> {
    if lba >= unit.blocks {
        return Err(Sense::LBA_OUT_OF_RANGE.with_information(lba));
    }
    Ok(if allocation == 0 {
        GOOD
    } else {
        Verdict::Block(BlockOperation::LbaStatus { lba, allocation })
    })
}

/// What GET LBA STATUS tells of a fully provisioned unit without asking the backing: every block from
/// `lba` on is mapped.
#[must_use]
pub fn all_mapped(unit: &LogicalUnit, lba: u64) -> LbaRun {
    let blocks = u32::try_from(unit.blocks.saturating_sub(lba)).unwrap_or(u32::MAX);
    LbaRun { lba, blocks, deallocated: false }
}

/// How many LBA status descriptors an initiator with this ALLOCATION LENGTH takes, in part at least, as
/// far as they are told in one command; 1 where it takes none, because the backing tells one at least.
#[must_use]
pub fn lba_runs(allocation: u32) -> u8 {
    let descriptors = allocation.saturating_sub(8).div_ceil(16);
    u8::try_from(descriptors).unwrap_or(u8::MAX).clamp(1, LBA_RUNS_MAX)
}

/// What UNMAP's parameter list (SBC-4, UNMAP) comes to: an [`BlockOperation::Unmap`] of ranges that
/// are all on the medium, or nothing to do. The list stays where it is: [`unmap_ranges`] finds them.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR where the list ends before its own lengths say, INVALID FIELD IN
/// PARAMETER LIST above the limits in VPD page B0h, LOGICAL BLOCK ADDRESS OUT OF RANGE. Nothing is
/// unmapped then.
pub fn unmap(unit: &LogicalUnit, list: &[u8]) -> Result<Option<BlockOperation>, Sense> {
    let Some(&[_, _, high, low, _, _, _, _]) = list.first_chunk() else {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    };
    // Of its whole length, which does not count its two bytes, only that it is not shorter matters.
    let descriptor_bytes = u16::from_be_bytes([high, low]);
    let body = list.get(usize::from(UNMAP_HEADER_BYTES)..).unwrap_or_default();
    if usize::from(descriptor_bytes) > body.len() {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    // A descriptor that is cut is ignored.
    let descriptors = descriptor_bytes / UNMAP_DESCRIPTOR_BYTES;
    if descriptors > UNMAP_RANGES_MAX {
        return Err(in_list(2));
    }
    let mut total = 0_u32;
    let mut blocks_of_any = 0_u32;
    for (index, (lba, blocks)) in unmap_ranges(list, descriptors).enumerate() {
        check_range(unit, lba, blocks)?;
        total = total.saturating_add(blocks);
        if total > UNMAP_BLOCKS_MAX {
            let byte = index.saturating_mul(UNMAP_DESCRIPTOR_BYTES.into()).saturating_add(16);
            return Err(in_list(u16::try_from(byte).unwrap_or(u16::MAX)));
        }
        blocks_of_any |= blocks;
    }
    Ok((blocks_of_any != 0).then_some(BlockOperation::Unmap { ranges: descriptors }))
}

/// SBC-4, UNMAP block descriptor: LBA, number of blocks, four reserved bytes.
const UNMAP_DESCRIPTOR_BYTES: u16 = 16;

/// The first `descriptors` ranges of a list: first block and blocks.
pub fn unmap_ranges(list: &[u8], descriptors: u16) -> impl Iterator<Item = (u64, u32)> {
    let body = list.get(usize::from(UNMAP_HEADER_BYTES)..).unwrap_or_default();
    let (all, _) = body.as_chunks::<{ UNMAP_DESCRIPTOR_BYTES as usize }>();
    all.iter().take(descriptors.into()).map(
        |&[l0, l1, l2, l3, l4, l5, l6, l7, b0, b1, b2, b3, ..]| {
            let lba = u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
            (lba, u32::from_be_bytes([b0, b1, b2, b3]))
        },
    )
}

/// A field of the parameter list is wrong; `byte` is where it begins.
fn in_list(byte: u16) -> Sense {
    let field = FieldPointer { in_cdb: false, byte, bit: None };
    Sense::INVALID_FIELD_IN_PARAMETER_LIST.with_field_pointer(field)
}
