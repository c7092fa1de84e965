//! EXTENDED COPY (LID1) and RECEIVE COPY RESULTS (SPC-6): the parameter list as copy targets and
//! segments, the limits, and the parameter data. Who copies is the host agent, which knows all units;
//! nothing here reads or writes a block.

use crate::opcodes::{opcode, service_action};
use crate::sense::{FieldPointer, Sense};
use crate::unit::LogicalUnit;
use crate::writer::Writer;

/// MAXIMUM CSCD DESCRIPTOR COUNT.
pub const TARGETS_MAX: u16 = 4;
/// MAXIMUM SEGMENT DESCRIPTOR COUNT.
pub const SEGMENTS_MAX: u16 = 16;
/// MAXIMUM DESCRIPTOR LIST LENGTH, bytes: as many of both as there may be.
pub const LIST_BYTES_MAX: u32 =
    (TARGETS_MAX as usize * TARGET_BYTES + SEGMENTS_MAX as usize * SEGMENT_BYTES) as u32;
/// MAXIMUM SEGMENT LENGTH, bytes. Bounds how long one segment keeps two backings busy.
pub const SEGMENT_LENGTH_BYTES_MAX: u32 = 256 << 20;
/// TOTAL CONCURRENT COPIES: what the agent executes at a time.
pub const CONCURRENT_COPIES_MAX: u8 = 16;

const HEADER_BYTES: usize = 16;
const TARGET_BYTES: usize = 32;
const SEGMENT_BYTES: usize = 28;
/// Identification descriptor CSCD descriptor.
const IDENTIFICATION_DESCRIPTOR: u8 = 0xE4;
/// Block device to block device segment descriptor.
const BLOCK_TO_BLOCK: u8 = 0x02;

/// LIST ID USAGE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListIdUsage {
    /// 00b: the list identifier is in use until the copy is over, and its status is kept to be asked for.
    Held,
    /// 10b: the same, but nothing has to be kept.
    Discarded,
    /// 11b: there is no list identifier.
    None,
}

/// A parameter list that is well formed. What its segments ask for is not judged yet: those before a
/// bad one are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyList<'a> {
    /// LIST IDENTIFIER; zero without one.
    pub list_identifier: u8,
    /// LIST ID USAGE.
    pub usage: ListIdUsage,
    targets: &'a [[u8; TARGET_BYTES]],
    segments: &'a [[u8; SEGMENT_BYTES]],
}

/// A CSCD descriptor: the logical unit that a segment copies from or to, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyTarget<'a> {
    code_set: u8,
    /// ASSOCIATION and DESIGNATOR TYPE, as in VPD page 83h.
    kind: u8,
    designator: &'a [u8],
    /// DISK BLOCK LENGTH, bytes.
    pub block_bytes: u32,
}

/// A segment: so many blocks from one unit to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Place of the source among the copy targets.
    pub source: u16,
    /// Place of the destination.
    pub destination: u16,
    /// Blocks; zero: none.
    pub blocks: u16,
    /// First block of the source.
    pub source_lba: u64,
    /// First block of the destination.
    pub destination_lba: u64,
}

/// A field of the list is wrong; it begins at `byte`.
fn in_list(byte: usize) -> Sense {
    let byte = u16::try_from(byte).unwrap_or(u16::MAX);
    Sense::INVALID_FIELD_IN_PARAMETER_LIST.with_field_pointer(FieldPointer {
        in_cdb: false,
        byte,
        bit: None,
    })
}

/// The parameter list of an EXTENDED COPY (LID1); `None` where there is none and nothing to do. `list`
/// is the data-out that there is.
///
/// # Errors
/// INVALID FIELD IN CDB: not this command. PARAMETER LIST LENGTH ERROR: the list is cut, or its
/// descriptors take more than [`LIST_BYTES_MAX`]. TOO MANY and UNSUPPORTED DESCRIPTORs of either kind.
/// INVALID FIELD IN PARAMETER LIST for the rest. Nothing is copied then.
pub fn parse<'a>(cdb: &[u8], list: &'a [u8]) -> Result<Option<CopyList<'a>>, Sense> {
    let [opcode::THIRD_PARTY_COPY_OUT, action, _, _, _, _, _, _, _, _, b0, b1, b2, b3, _, _, ..] =
        *cdb
    else {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None));
    };
    if action & 0x1F != service_action::EXTENDED_COPY_LID1 {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(4)));
    }
    let list_bytes = usize::try_from(u32::from_be_bytes([b0, b1, b2, b3])).unwrap_or(usize::MAX);
    if list_bytes == 0 {
        return Ok(None);
    }
    let list = list.get(..list_bytes).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    parse_list(list).map(Some)
}

/// SPC-6, EXTENDED COPY (LID1) parameter list.
fn parse_list(list: &[u8]) -> Result<CopyList<'_>, Sense> {
    let Some((&header, body)) = list.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    };
    let [list_identifier, flags, t0, t1, _, _, _, _, s0, s1, s2, s3, inline @ ..] = header;
    let usage = match (flags >> 3) & 0x03 {
        0b00 => ListIdUsage::Held,
        0b10 => ListIdUsage::Discarded,
        0b11 if list_identifier == 0 => ListIdUsage::None,
        0b11 => return Err(in_list(0)),
        _ => return Err(in_list(1)),
    };
    let target_bytes = u32::from(u16::from_be_bytes([t0, t1]));
    let segment_bytes = u32::from_be_bytes([s0, s1, s2, s3]);
    let all_bytes = target_bytes.saturating_add(segment_bytes);
    if all_bytes > LIST_BYTES_MAX || usize::try_from(all_bytes).is_ok_and(|all| all > body.len()) {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    // MAXIMUM INLINE DATA LENGTH is zero.
    if inline != [0; 4] {
        return Err(in_list(12));
    }
    // Both are at most LIST_BYTES_MAX.
    let (targets, rest) = body.split_at_checked(target_bytes as usize).unwrap_or_default();
    let segments = rest.get(..segment_bytes as usize).unwrap_or_default();
    Ok(CopyList {
        list_identifier,
        usage,
        targets: parse_targets(targets)?,
        segments: parse_segments(segments, HEADER_BYTES.saturating_add(targets.len()))?,
    })
}

fn parse_targets(bytes: &[u8]) -> Result<&[[u8; TARGET_BYTES]], Sense> {
    let (targets, cut) = bytes.as_chunks::<TARGET_BYTES>();
    if !cut.is_empty() {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    if targets.iter().any(|&[kind, ..]| kind != IDENTIFICATION_DESCRIPTOR) {
        return Err(Sense::UNSUPPORTED_TARGET_DESCRIPTOR);
    }
    if targets.len() > usize::from(TARGETS_MAX) {
        return Err(Sense::TOO_MANY_TARGET_DESCRIPTORS);
    }
    let mut position = HEADER_BYTES;
    for &[_, flags, _, _, _, _, _, designator_bytes, ..] in targets {
        // NUL: a unit that nobody is meant to reach. LU ID TYPE is reserved since SPC-4.
        if flags & 0x20 != 0 {
            return Err(in_list(position.saturating_add(1)));
        }
        if !(1..=20).contains(&designator_bytes) {
            return Err(in_list(position.saturating_add(7)));
        }
        position = position.saturating_add(TARGET_BYTES);
    }
    Ok(targets)
}

fn parse_segments(bytes: &[u8], begin: usize) -> Result<&[[u8; SEGMENT_BYTES]], Sense> {
    // Descriptors of other kinds have other lengths, so the first of those ends the walk.
    let (segments, cut) = bytes.as_chunks::<SEGMENT_BYTES>();
    let mut position = begin;
    for &[kind, _, high, low, ..] in segments {
        if kind != BLOCK_TO_BLOCK {
            return Err(Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR);
        }
        const DESCRIPTOR_LENGTH: u16 = SEGMENT_BYTES as u16 - 4; // what follows it
        if u16::from_be_bytes([high, low]) != DESCRIPTOR_LENGTH {
            return Err(in_list(position.saturating_add(2)));
        }
        position = position.saturating_add(SEGMENT_BYTES);
    }
    match cut.first() {
        Some(&kind) if kind != BLOCK_TO_BLOCK => {
            return Err(Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR);
        }
        Some(_) => return Err(Sense::PARAMETER_LIST_LENGTH_ERROR),
        None => {}
    }
    if segments.len() > usize::from(SEGMENTS_MAX) {
        return Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS);
    }
    Ok(segments)
}

impl<'a> CopyList<'a> {
    /// The segments, in the order of copying.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment> + use<'a> {
        self.segments.iter().map(|&[_, _, _, _, s0, s1, d0, d1, _, _, b0, b1, ref lbas @ ..]| {
            let [f0, f1, f2, f3, f4, f5, f6, f7, t0, t1, t2, t3, t4, t5, t6, t7] = *lbas;
            Segment {
                source: u16::from_be_bytes([s0, s1]),
                destination: u16::from_be_bytes([d0, d1]),
                blocks: u16::from_be_bytes([b0, b1]),
                source_lba: u64::from_be_bytes([f0, f1, f2, f3, f4, f5, f6, f7]),
                destination_lba: u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
            }
        })
    }

    /// The copy target that a segment names.
    ///
    /// # Errors
    /// COPY TARGET DEVICE NOT REACHABLE: there is none at that place.
    pub fn target(&self, index: u16) -> Result<CopyTarget<'a>, Sense> {
        let descriptor =
            self.targets.get(usize::from(index)).ok_or(Sense::COPY_TARGET_NOT_REACHABLE)?;
        let [_, _, _, _, code_set, kind, _, designator_bytes, ref designator @ ..] = *descriptor;
        let [.., b0, b1, b2] = *descriptor;
        Ok(CopyTarget {
            code_set: code_set & 0x0F,
            kind: kind & 0x3F,
            designator: designator.get(..designator_bytes.into()).unwrap_or_default(),
            block_bytes: u32::from_be_bytes([0, b0, b1, b2]),
        })
    }
}

impl CopyTarget<'_> {
    /// Whether it is this unit, by one of the designators in its VPD page 83h that fit here.
    #[must_use]
    pub fn names(&self, unit: &LogicalUnit) -> bool {
        const BINARY: u8 = 0x01;
        const ASCII: u8 = 0x02;
        let identity = &unit.identity;
        match (self.code_set, self.kind) {
            (ASCII, 0x01) => self
                .designator
                .strip_prefix(&identity.vendor)
                .is_some_and(|id| id == identity.t10_id.as_bytes()),
            (BINARY, 0x02) => identity.eui64.is_some_and(|eui64| self.designator == eui64),
            (BINARY, 0x03) => identity.naa.is_some_and(|naa| self.designator == naa.as_bytes()),
            _ => false,
        }
    }
}

impl Segment {
    /// Whether it can be copied from `source` to `destination`, described as `from` and `to`. That the
    /// initiator may read the one and write the other is for the caller to know.
    ///
    /// # Errors
    /// COPY ABORTED: a block length that is not the unit's, two that differ, a range that leaves a
    /// medium, or more than [`SEGMENT_LENGTH_BYTES_MAX`].
    pub fn check(
        &self,
        (from, source): (&CopyTarget<'_>, &LogicalUnit),
        (to, destination): (&CopyTarget<'_>, &LogicalUnit),
    ) -> Result<(), Sense> {
        let blocks = u64::from(self.blocks);
        let inside = |unit: &LogicalUnit, lba: u64| {
            unit.blocks.checked_sub(lba).is_some_and(|room| blocks <= room)
        };
        let fits = from.block_bytes == source.block_bytes
            && to.block_bytes == destination.block_bytes
            && source.block_bytes == destination.block_bytes
            && inside(source, self.source_lba)
            && inside(destination, self.destination_lba)
            && blocks << source.block_shift() <= u64::from(SEGMENT_LENGTH_BYTES_MAX);
        if fits { Ok(()) } else { Err(Sense::COPY_ABORTED) }
    }
}

/// A question of RECEIVE COPY RESULTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    /// COPY STATUS (LID1): how the copy with this list identifier is getting on. An identifier that is
    /// not known is [`Receive::UNKNOWN_LIST`].
    Status {
        /// LIST IDENTIFIER.
        list_identifier: u8,
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
    },
    /// OPERATING PARAMETERS: [`operating_parameters`].
    OperatingParameters {
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
    },
}

impl Receive {
    /// No copy with that list identifier, or its status was told already.
    pub const UNKNOWN_LIST: Sense = Sense::INVALID_FIELD_IN_CDB.with_field(2, None);

    /// What a RECEIVE COPY RESULTS asks.
    ///
    /// # Errors
    /// INVALID FIELD IN CDB: another command or another service action.
    pub fn parse(cdb: &[u8]) -> Result<Self, Sense> {
        let [opcode::THIRD_PARTY_COPY_IN, action, list_identifier, rest @ ..] = cdb else {
            return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None));
        };
        let [_, _, _, _, _, _, _, a0, a1, a2, a3, _, _, ..] = *rest else {
            return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None));
        };
        let allocation = u32::from_be_bytes([a0, a1, a2, a3]);
        match action & 0x1F {
            service_action::RECEIVE_COPY_STATUS_LID1 => {
                Ok(Self::Status { list_identifier: *list_identifier, allocation })
            }
            service_action::RECEIVE_COPY_OPERATING_PARAMETERS => {
                Ok(Self::OperatingParameters { allocation })
            }
            _ => Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(4))),
        }
    }
}

/// How a copy is getting on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyStatus {
    /// COPY COMMAND STATUS.
    pub progress: CopyProgress,
    /// SEGMENTS PROCESSED.
    pub segments: u16,
    /// Bytes written.
    pub bytes: u64,
}

/// COPY COMMAND STATUS. The discriminant is the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CopyProgress {
    /// Not over yet.
    InProgress = 0x00,
    /// Over, without errors.
    Completed = 0x01,
    /// Over, with errors.
    Failed = 0x02,
}

/// Writes COPY STATUS (LID1) parameter data (SPC-6), cut where the allocation length or `out` ends. Gives
/// the bytes written.
pub fn copy_status(status: &CopyStatus, allocation: u32, out: &mut [u8]) -> usize {
    let mut writer = cut(allocation, out);
    writer.put(&8_u32.to_be_bytes()); // AVAILABLE DATA
    writer.put(&[status.progress as u8]);
    writer.put(&status.segments.to_be_bytes());
    const KIBIBYTES: u8 = 0x01; // TRANSFER COUNT UNITS
    writer.put(&[KIBIBYTES]);
    writer.put(&u32::try_from(status.bytes >> 10).unwrap_or(u32::MAX).to_be_bytes());
    writer.written()
}

/// Writes OPERATING PARAMETERS parameter data (SPC-6), cut where the allocation length or `out` ends.
/// Gives the bytes written.
pub fn operating_parameters(allocation: u32, out: &mut [u8]) -> usize {
    let mut writer = cut(allocation, out);
    const DESCRIPTORS: [u8; 2] = [BLOCK_TO_BLOCK, IDENTIFICATION_DESCRIPTOR];
    writer.put(&42_u32.to_be_bytes()); // AVAILABLE DATA
    writer.put(&[0x01, 0, 0, 0]); // SNLID: LIST ID USAGE 11b is known
    writer.put(&TARGETS_MAX.to_be_bytes());
    writer.put(&SEGMENTS_MAX.to_be_bytes());
    writer.put(&LIST_BYTES_MAX.to_be_bytes());
    writer.put(&SEGMENT_LENGTH_BYTES_MAX.to_be_bytes());
    writer.zeros(14); // no inline data, no held data, no stream devices
    writer.put(&u16::from(CONCURRENT_COPIES_MAX).to_be_bytes());
    writer.put(&[CONCURRENT_COPIES_MAX, SEGMENT_GRANULARITY, 0, 0, 0, 0, 0]);
    writer.put(&[2]); // IMPLEMENTED DESCRIPTOR LIST LENGTH
    writer.put(&DESCRIPTORS);
    writer.written()
}

/// DATA SEGMENT GRANULARITY, bytes as a power of two: the smallest block.
const SEGMENT_GRANULARITY: u8 = 9;

fn cut(allocation: u32, out: &mut [u8]) -> Writer<'_> {
    let room = usize::try_from(allocation).unwrap_or(usize::MAX).min(out.len());
    Writer::new(out.get_mut(..room).unwrap_or_default())
}

/// The descriptors of the Third-party Copy VPD page (SPC-6).
pub(crate) fn vpd_descriptors(writer: &mut Writer<'_>) {
    // Supported Commands: operation code, number of service actions, service actions.
    writer.put(&[0x00, 0x01, 0, 8, 7]);
    writer.put(&[opcode::THIRD_PARTY_COPY_OUT, 1, service_action::EXTENDED_COPY_LID1]);
    writer.put(&[opcode::THIRD_PARTY_COPY_IN, 2]);
    writer.put(&[service_action::RECEIVE_COPY_STATUS_LID1]);
    writer.put(&[service_action::RECEIVE_COPY_OPERATING_PARAMETERS]);
    // Parameter Data.
    writer.put(&[0x00, 0x04, 0, 28, 0, 0, 0, 0]);
    writer.put(&TARGETS_MAX.to_be_bytes());
    writer.put(&SEGMENTS_MAX.to_be_bytes());
    writer.put(&LIST_BYTES_MAX.to_be_bytes());
    writer.zeros(16);
    // Supported Descriptors, padded to four bytes.
    writer.put(&[0x00, 0x08, 0, 4, 2, BLOCK_TO_BLOCK, IDENTIFICATION_DESCRIPTOR, 0]);
    // Supported CSCD Descriptor IDs: none besides the places in the list.
    writer.put(&[0x00, 0x0C, 0, 4, 0, 0, 0, 0]);
    // General Copy Operations.
    writer.put(&[0x80, 0x01, 0, 32]);
    writer.put(&u32::from(CONCURRENT_COPIES_MAX).to_be_bytes());
    writer.put(&u32::from(CONCURRENT_COPIES_MAX).to_be_bytes());
    writer.put(&SEGMENT_LENGTH_BYTES_MAX.to_be_bytes());
    writer.put(&[SEGMENT_GRANULARITY]);
    writer.zeros(19);
}
