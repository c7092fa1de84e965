//! What one submission asks for, checked in every field against its ring's share and the unit.
//!
//! Two kinds of wrong are told apart. What cannot be carried out (unknown to this version, another
//! unit geometry by now) is answered. What reaches beyond the ring's own share of memory or
//! contradicts itself is hostile, and costs the sender the ring.

use lunar_handlers::Request;
use lunar_offload_proto::ring::{
    BlockRequest, FLAG_DATA_OUT, FLAG_SEGMENTS, Operation, Outcome, SideRecord, SubmissionEntry,
};

use crate::config::RingGeometry;
use crate::effect::DataRange;
use crate::holds::{Extent, Hold};
use crate::operations::Step;
use crate::units::{Unit, Units};
use crate::work::Work;

/// What becomes of a submission.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// A handler carries it out, when nobody is in its way.
    Execute { step: Step, work: Work, hold: Hold },
    /// Completes at once; the number is the completion's detail.
    Answer(Outcome, u64),
    /// A forwarded command, well formed.
    Forward { cdb: Box<[u8]>, data: Option<DataRange>, data_out: bool },
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
        return match side.cdb() {
            Ok([]) | Err(_) => Verdict::Answer(Outcome::Refused, 0),
            Ok(cdb) => {
                Verdict::Forward { cdb: cdb.into(), data, data_out: entry.has(FLAG_DATA_OUT) }
            }
        };
    }
    let Some(unit) = unit else {
        return Verdict::Answer(Outcome::Refused, 0);
    };
    if entry.configuration_generation.get() < unit.medium_since {
        // It means the medium before: the card drains it, and tells the retry of the change.
        return Verdict::Answer(Outcome::Unavailable, 0);
    }
    let (request, work) = match block_request(entry, side, unit) {
        Ok(found) => found,
        Err(outcome) => return Verdict::Answer(outcome, 0),
    };
    if !request.takes(u64::from(entry.data_bytes.get()), unit.block_bytes) {
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
    let Some(device) = unit.device else {
        return Verdict::Answer(Outcome::Unavailable, 0);
    };
    let extent = |(lba, blocks)| Extent { device, lba, blocks };
    let hold = match (request, request.range(), &work) {
        (_, _, Work::Unmap(rest)) if !rest.is_empty() => {
            Hold::SharedList(request.range().iter().chain(rest).copied().map(extent).collect())
        }
        (Request::CompareAndWrite { .. } | Request::OrWrite { .. }, Some(range), _) => {
            Hold::Exclusive(extent(range))
        }
        (_, Some(range), _) if request.writes() => Hold::Shared(extent(range)),
        _ => Hold::Nothing,
    };
    Verdict::Execute { step: Step { device, request, data }, work, hold }
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

/// The first request to the handler, and what comes after it.
fn block_request(
    entry: &SubmissionEntry,
    side: &SideRecord,
    unit: &Unit,
) -> Result<(Request, Work), Outcome> {
    let asked = BlockRequest::decode(entry).ok_or(Outcome::Refused)?;
    if let BlockRequest::Unmap = asked {
        return unmap(side, unit);
    }
    let (lba, count) = (entry.lba.get(), entry.blocks.get());
    if lba.checked_add(u64::from(count)).is_none_or(|end| end > unit.blocks) {
        return Err(Outcome::OutOfRange);
    }
    let blocks = count;
    // Where 0 means to the end.
    let to_end = if count == 0 { unit.blocks.saturating_sub(lba) } else { u64::from(count) };
    let request = match asked {
        BlockRequest::Read { .. } => Request::Read { lba, blocks },
        BlockRequest::Write { fua, .. } => Request::Write { lba, blocks, fua },
        BlockRequest::WriteAndVerify { .. } => Request::WriteAndVerify { lba, blocks },
        BlockRequest::Flush { .. } => Request::Flush,
        BlockRequest::Compare { .. } => Request::Compare { lba, blocks },
        BlockRequest::CompareAndWrite { fua, .. } => Request::CompareAndWrite { lba, blocks, fua },
        BlockRequest::OrWrite { fua, .. } => Request::OrWrite { lba, blocks, fua },
        BlockRequest::WriteSame { unmap, .. } => Request::WriteSame { lba, blocks: to_end, unmap },
        BlockRequest::Prefetch { .. } => Request::Prefetch { lba, blocks: to_end },
        BlockRequest::LbaStatus { .. } => Request::LbaStatus { lba, blocks: to_end },
        BlockRequest::Unmap | BlockRequest::Forward { .. } => return Err(Outcome::Refused),
    };
    if unit.read_only && request.writes() {
        return Err(Outcome::WriteProtected);
    }
    // The card ends commands without blocks itself (SBC-4: not an error there).
    if request.range().is_some_and(|(_, blocks)| blocks == 0) {
        return Err(Outcome::Refused);
    }
    Ok((request, Work::Once))
}

/// One request for each range that has blocks. Nothing is unmapped when any range is wrong.
fn unmap(side: &SideRecord, unit: &Unit) -> Result<(Request, Work), Outcome> {
    let mut ranges = Vec::new();
    for range in side.ranges().map_err(|_| Outcome::Refused)?.iter().rev() {
        let (lba, blocks) = (range.lba.get(), u64::from(range.blocks.get()));
        if lba.checked_add(blocks).is_none_or(|end| end > unit.blocks) {
            return Err(Outcome::OutOfRange);
        }
        if blocks > 0 {
            ranges.push((lba, blocks));
        }
    }
    if unit.read_only {
        return Err(Outcome::WriteProtected);
    }
    // Without thin provisioning there is nothing to deallocate; without ranges, nothing to do, which
    // the card ends itself.
    match ranges.pop() {
        Some((lba, blocks)) if unit.thin => {
            Ok((Request::Unmap { lba, blocks }, Work::Unmap(ranges)))
        }
        _ => Err(Outcome::Refused),
    }
}
