//! What one submission asks for, checked in every field against its ring's share and the unit.
//!
//! Two kinds of wrong are told apart. What cannot be carried out (unknown to this version, another
//! unit geometry by now) is answered. What reaches beyond the ring's own share of memory or
//! contradicts itself is hostile, and costs the sender the ring.

use lunar_handlers::Request;
use lunar_offload_proto::ring::{
    FLAG_FUA, FLAG_SEGMENTS, Operation, Outcome, SideRecord, SubmissionEntry,
};
use lunar_scsi::sense::Sense;

use crate::config::RingGeometry;
use crate::effect::DataRange;
use crate::units::{DeviceHandle, Unit, Units};

/// What becomes of a submission.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    Execute {
        device: DeviceHandle,
        request: Request,
        data: Option<DataRange>,
    },
    /// Completes at once; the number is the completion's detail.
    Answer(Outcome, u64),
    /// A forwarded command that ends at once with CHECK CONDITION.
    CheckCondition(Sense),
    /// The ring is closed with this reason.
    Hostile(String),
}

/// Decides about an entry of any kind but CANCEL, whose generations have been seen.
pub(crate) fn decide(
    entry: &SubmissionEntry,
    side: &SideRecord,
    ring: &RingGeometry,
    units: &Units,
) -> Verdict {
    let data = match data_range(entry, ring) {
        Ok(data) => data,
        Err(reason) => return Verdict::Hostile(reason),
    };
    if entry.has(FLAG_SEGMENTS) {
        // Every SGV buffer is one contiguous range; the scatter list has no user yet.
        return Verdict::Answer(Outcome::Refused, 0);
    }
    let unit = units.get(entry.unit.get());
    let operation = entry.operation();
    if unit.is_none() && entry.configuration_generation.get() < units.generation {
        // It was removed since: the card drains it, and tells the retry that it is gone.
        return Verdict::Answer(Outcome::Unavailable, 0);
    }
    if operation == Operation::Forward {
        return forwarded(side, unit);
    }
    let Some(unit) = unit else {
        return Verdict::Answer(Outcome::Refused, 0);
    };
    let request = match block_request(entry, operation, unit) {
        Ok(request) => request,
        Err(outcome) => return Verdict::Answer(outcome, 0),
    };
    let wanted = request
        .range()
        .map_or(0, |(_, blocks)| u64::from(blocks).saturating_mul(u64::from(unit.block_bytes)));
    if wanted != u64::from(entry.data_bytes.get()) {
        let (blocks, bytes) = (entry.blocks.get(), entry.data_bytes.get());
        if entry.configuration_generation.get() < units.generation {
            // The unit may have had other blocks then.
            return Verdict::Answer(Outcome::Refused, 0);
        }
        let name = &unit.name;
        let block_bytes = unit.block_bytes;
        return Verdict::Hostile(format!(
            "{operation} of {blocks} blocks of {block_bytes} bytes of device {name} with {bytes} bytes of data"
        ));
    }
    match unit.device {
        Some(device) => Verdict::Execute { device, request, data },
        None => Verdict::Answer(Outcome::Unavailable, 0),
    }
}

/// The data range, which must lie in the ring's own data area.
fn data_range(entry: &SubmissionEntry, ring: &RingGeometry) -> Result<Option<DataRange>, String> {
    let (arena, offset) = (entry.arena.get(), entry.data_offset.get());
    let length = entry.data_bytes.get();
    if length == 0 || entry.has(FLAG_SEGMENTS) {
        return Ok(None);
    }
    let within = offset.checked_sub(ring.data_offset);
    let end = within.and_then(|within| within.checked_add(u64::from(length)));
    if arena == ring.data_arena && end.is_some_and(|end| end <= ring.data_bytes) {
        return Ok(Some(DataRange { arena, offset, length }));
    }
    Err(format!(
        "data of {length} bytes at {offset} of arena {arena} lies outside its data area, {} bytes at {} of arena {}",
        ring.data_bytes, ring.data_offset, ring.data_arena
    ))
}

fn block_request(
    entry: &SubmissionEntry,
    operation: Operation,
    unit: &Unit,
) -> Result<Request, Outcome> {
    let (lba, blocks) = (entry.lba.get(), entry.blocks.get());
    if lba.checked_add(u64::from(blocks)).is_none_or(|end| end > unit.blocks) {
        return Err(Outcome::OutOfRange);
    }
    match operation {
        // The card ends commands without blocks itself (SBC-4: not an error there).
        Operation::Read | Operation::Write if blocks == 0 => Err(Outcome::Refused),
        Operation::Read => Ok(Request::Read { lba, blocks }),
        Operation::Write if unit.read_only => Err(Outcome::WriteProtected),
        Operation::Write => Ok(Request::Write { lba, blocks, fua: entry.has(FLAG_FUA) }),
        Operation::Flush => Ok(Request::Flush),
        // COMPARE, COMPARE AND WRITE, WRITE SAME, UNMAP: known to the ring, not carried out yet.
        _ => Err(Outcome::Refused),
    }
}

/// Commands that the card does not know. No command is implemented here yet.
fn forwarded(side: &SideRecord, unit: Option<&Unit>) -> Verdict {
    match side.cdb() {
        Ok([]) | Err(_) => Verdict::Answer(Outcome::Refused, 0),
        Ok(_) if unit.is_none() => Verdict::CheckCondition(Sense::LOGICAL_UNIT_NOT_SUPPORTED),
        Ok(_) => Verdict::CheckCondition(Sense::INVALID_COMMAND_OPERATION_CODE),
    }
}
