//! EXTENDED COPY (SPC-6, LID1), carried out by the agent: which units, checked for the initiator; then
//! piece by piece through a scratch piece of the agent's own memory, a read of one handler and a write
//! of another; and what RECEIVE COPY RESULTS tells of it. What a parameter list says is decided in
//! `lunar_scsi::extended_copy`.
//!
//! A copy holds its destinations as any write does, for as long as it lasts. Its memory is one piece of
//! [`COPY_PIECE_BYTES`], of which there are [`COPIES_MAX`]; who finds none is told BUSY.

use std::collections::BTreeMap;

use lunar_handlers::Request;
use lunar_scsi::extended_copy::{
    self, CONCURRENT_COPIES_MAX, CopyList, CopyProgress, CopyStatus, ListIdUsage,
};
use lunar_scsi::reservations::{Access, Class, conflicts};
use lunar_scsi::sense::{Sense, SenseKey};

use crate::effect::DataRange;
use crate::holds::{Extent, Hold};
use crate::operations::{OperationId, Step};
use crate::units::{DeviceHandle, Unit};

/// The arena that [`DataRange::arena`] means where it is not one of the card's: anonymous memory of
/// the shell, [`COPY_ARENA_BYTES`] long. The keeper's arenas have other names.
pub const COPY_ARENA: u16 = u16::MAX;
/// Copies at a time.
const COPIES_MAX: u8 = CONCURRENT_COPIES_MAX;
/// Bytes moved at a time by one copy; not less than the largest block.
const COPY_PIECE_BYTES: u32 = 256 << 10;
/// Bytes of [`COPY_ARENA`].
pub const COPY_ARENA_BYTES: usize = COPIES_MAX as usize * COPY_PIECE_BYTES as usize;
/// Statuses that are kept for RECEIVE COPY RESULTS; a further one takes the place of another.
const STATUSES_MAX: usize = 1024;
/// How long a status is kept that nobody asks for (SPC-6: for a vendor specific period of time), give or
/// take what lies between two ticks. Who wants it asks at once, and list identifiers are few.
const STATUS_KEPT_NS: u64 = 10_000_000_000;

/// 0D/01: THIRD PARTY DEVICE FAILURE, a copy target could not be read or written.
const THIRD_PARTY_DEVICE_FAILURE: Sense = Sense::new(SenseKey::CopyAborted, 0x0D, 0x01);
/// 00/16: OPERATION IN PROGRESS, the list identifier is in use.
const OPERATION_IN_PROGRESS: Sense = Sense::new(SenseKey::IllegalRequest, 0x00, 0x16);

/// Whose list identifier. Each unit has a copy manager of its own, and each nexus list identifiers of its
/// own there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ListKey {
    /// Handle of the unit that the command was sent to.
    pub(crate) unit: u32,
    pub(crate) nexus: u32,
    pub(crate) nexus_generation: u32,
    pub(crate) identifier: u8,
}

/// Blocks from one device to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    source: (DeviceHandle, u64),
    destination: (DeviceHandle, u64),
    blocks: u64,
    block_bytes: u32,
}

/// A copy under way.
#[derive(Debug, PartialEq)]
pub(crate) struct Copy {
    parts: Vec<Part>,
    /// Place of the present part.
    part: usize,
    /// Blocks of it that were copied.
    copied: u64,
    bytes: u64,
    /// What a later segment ends the command with, when those before it are copied.
    flaw: Option<Sense>,
    /// A change of reservations keeps its initiator out of a device.
    shut_out: bool,
    scratch: u8,
    /// Handle of the nexus that it is for.
    nexus: u32,
    list: Option<ListKey>,
    /// Its status is to be kept when it is over.
    held: bool,
}

impl Copy {
    /// What `list` asks for. `unit_of` finds the unit that a copy target names among those of the
    /// initiator, whether it may only be read, and what reservations let the initiator do.
    ///
    /// Segments are copied in order; the first that cannot be ends the command after those before it.
    pub(crate) fn new<'a>(
        list: &CopyList<'_>,
        key: ListKey,
        unit_of: impl Fn(&extended_copy::CopyTarget<'_>) -> Option<(&'a Unit, bool, Access)>,
    ) -> Self {
        let mut parts = Vec::new();
        let mut flaw = None;
        for segment in list.segments() {
            match part(list, &segment, &unit_of) {
                Ok(part) => parts.push(part),
                Err(sense) => {
                    flaw = Some(sense);
                    break;
                }
            }
        }
        let (list, held) = match list.usage {
            ListIdUsage::None => (None, false),
            ListIdUsage::Held => (Some(key), true),
            ListIdUsage::Discarded => (Some(key), false),
        };
        let nexus = key.nexus;
        let (part, copied, bytes, shut_out, scratch) = (0, 0, 0, false, 0);
        Self { parts, part, copied, bytes, flaw, shut_out, scratch, nexus, list, held }
    }

    /// Handle of the nexus that it is for.
    pub(crate) fn nexus(&self) -> u32 {
        self.nexus
    }

    /// Whether it reads or writes the device.
    pub(crate) fn touches(&self, device: DeviceHandle) -> bool {
        self.parts.iter().any(|part| part.source.0 == device || part.destination.0 == device)
    }

    /// Whether it reads or writes the device although `access` to it does not let its nexus.
    pub(crate) fn is_kept_out(&self, device: DeviceHandle, access: Access) -> bool {
        self.parts.iter().any(|part| {
            part.source.0 == device && conflicts(Class::READ, access)
                || part.destination.0 == device && conflicts(Class::WRITE, access)
        })
    }

    /// It ends with the step that it is at, as one that a device was in the way of.
    pub(crate) fn shut_out(&mut self) {
        self.shut_out = true;
    }

    /// The next read; `None` when all is copied.
    pub(crate) fn read(&mut self) -> Option<Step> {
        let part = loop {
            let part = *self.parts.get(self.part)?;
            if self.copied < part.blocks {
                break part;
            }
            self.part = self.part.saturating_add(1);
            self.copied = 0;
        };
        let most = COPY_PIECE_BYTES.checked_div(part.block_bytes).unwrap_or(1);
        let left = u32::try_from(part.blocks.saturating_sub(self.copied)).unwrap_or(u32::MAX);
        let blocks = left.min(most);
        let lba = part.source.1.saturating_add(self.copied);
        let data = DataRange {
            arena: COPY_ARENA,
            offset: u64::from(self.scratch).saturating_mul(u64::from(COPY_PIECE_BYTES)),
            length: blocks.saturating_mul(part.block_bytes),
        };
        let request = Request::Read { lba, blocks };
        Some(Step { device: part.source.0, request, data: Some(data) })
    }

    /// The step after `done`.
    pub(crate) fn next(&mut self, done: &Step) -> Option<Step> {
        if self.shut_out {
            return None;
        }
        let part = self.parts.get(self.part)?;
        match done.request {
            Request::Read { blocks, .. } => {
                let lba = part.destination.1.saturating_add(self.copied);
                let request = Request::Write { lba, blocks, fua: false };
                Some(Step { device: part.destination.0, request, ..*done })
            }
            _ => {
                let (_, blocks) = done.request.range().unwrap_or_default();
                let bytes = done.data.map_or(0, |data| data.length);
                self.copied = self.copied.saturating_add(blocks);
                self.bytes = self.bytes.saturating_add(u64::from(bytes));
                self.read()
            }
        }
    }

    /// The blocks that it writes.
    pub(crate) fn hold(&self) -> Hold {
        let extent = |part: &Part| {
            let (device, lba) = part.destination;
            Extent { device, lba, blocks: part.blocks }
        };
        Hold::SharedList(self.parts.iter().filter(|part| part.blocks > 0).map(extent).collect())
    }

    /// How the command ends, when every step was (not) carried out.
    pub(crate) fn ending(&self, carried_out: bool) -> Result<(), Sense> {
        if !carried_out || self.shut_out {
            return Err(THIRD_PARTY_DEVICE_FAILURE);
        }
        self.flaw.map_or(Ok(()), Err)
    }

    pub(crate) fn list(&self) -> Option<ListKey> {
        self.list
    }

    fn status(&self, progress: CopyProgress) -> CopyStatus {
        let over = progress != CopyProgress::InProgress;
        let segments = self.part.saturating_add(usize::from(over && self.copied > 0));
        let segments = u16::try_from(segments).unwrap_or(u16::MAX);
        CopyStatus { progress, segments, bytes: self.bytes }
    }
}

/// One segment, checked.
fn part<'a>(
    list: &CopyList<'_>,
    segment: &extended_copy::Segment,
    unit_of: &impl Fn(&extended_copy::CopyTarget<'_>) -> Option<(&'a Unit, bool, Access)>,
) -> Result<Part, Sense> {
    let (from, to) = (list.target(segment.source)?, list.target(segment.destination)?);
    let (source, _, from_access) = unit_of(&from).ok_or(Sense::COPY_TARGET_NOT_REACHABLE)?;
    let (destination, read_only, to_access) =
        unit_of(&to).ok_or(Sense::COPY_TARGET_NOT_REACHABLE)?;
    segment.check((&from, &source.scsi), (&to, &destination.scsi))?;
    if conflicts(Class::READ, from_access) || conflicts(Class::WRITE, to_access) {
        return Err(THIRD_PARTY_DEVICE_FAILURE);
    }
    if read_only || destination.scsi.read_only {
        return Err(Sense::WRITE_PROTECTED);
    }
    let device = |unit: &Unit| unit.device.ok_or(Sense::COPY_TARGET_NOT_REACHABLE);
    Ok(Part {
        source: (device(source)?, segment.source_lba),
        destination: (device(destination)?, segment.destination_lba),
        blocks: segment.blocks.into(),
        block_bytes: source.block_bytes,
    })
}

/// What is known under a list identifier.
#[derive(Clone, Copy, Debug)]
enum Known {
    Running(OperationId),
    Over { status: CopyStatus, until_ns: u64 },
}

/// All copies: their scratch pieces and list identifiers.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// One bit for each scratch piece in use.
    pieces: u32,
    lists: BTreeMap<ListKey, Known>,
    /// When time passed last.
    now_ns: u64,
}

const _: () = assert!((COPIES_MAX as u32) < u32::BITS);

impl Copies {
    /// Gives `copy` its scratch piece; false when there is none.
    pub(crate) fn claim(&mut self, copy: &mut Copy) -> bool {
        let free = u8::try_from(self.pieces.trailing_ones()).unwrap_or(COPIES_MAX);
        if free >= COPIES_MAX {
            return false;
        }
        self.pieces |= 1_u32.wrapping_shl(free.into());
        copy.scratch = free;
        true
    }

    /// Whether the list identifier can be used.
    pub(crate) fn check(&self, copy: &Copy) -> Result<(), Sense> {
        let known = copy.list.and_then(|list| self.lists.get(&list));
        if matches!(known, Some(Known::Running(_))) { Err(OPERATION_IN_PROGRESS) } else { Ok(()) }
    }

    pub(crate) fn started(&mut self, copy: Option<ListKey>, operation: OperationId) {
        if let Some(list) = copy {
            self.lists.insert(list, Known::Running(operation));
        }
    }

    /// The copy is over, however: its scratch piece and list identifier are free.
    pub(crate) fn release(&mut self, copy: &Copy) {
        self.pieces &= !1_u32.wrapping_shl(copy.scratch.into());
        if let Some(list) = copy.list {
            self.lists.remove(&list);
        }
    }

    /// Keeps the status of a copy that ended, where it is to be kept.
    pub(crate) fn keep(&mut self, copy: &Copy, good: bool) {
        if let Some(list) = copy.list.filter(|_| copy.held) {
            if self.lists.len() >= STATUSES_MAX {
                let over = self.lists.iter().find(|(_, known)| matches!(known, Known::Over { .. }));
                let over = over.map(|(list, _)| *list);
                over.and_then(|list| self.lists.remove(&list));
            }
            let progress = if good { CopyProgress::Completed } else { CopyProgress::Failed };
            let until_ns = self.now_ns.saturating_add(STATUS_KEPT_NS);
            self.lists.insert(list, Known::Over { status: copy.status(progress), until_ns });
        }
    }

    /// The status under a list identifier. That of a copy which is over is told once.
    pub(crate) fn status<'a>(
        &mut self,
        list: ListKey,
        running: impl FnOnce(OperationId) -> Option<&'a Copy>,
    ) -> Option<CopyStatus> {
        match *self.lists.get(&list)? {
            Known::Running(operation) => Some(running(operation)?.status(CopyProgress::InProgress)),
            Known::Over { status, .. } => {
                self.lists.remove(&list);
                Some(status)
            }
        }
    }

    /// Time passed: a status that nobody asked for is given up.
    pub(crate) fn on_tick(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.lists.retain(|_, known| match known {
            Known::Running(_) => true,
            Known::Over { until_ns, .. } => now_ns < *until_ns,
        });
    }

    /// The unit was reset.
    pub(crate) fn forget_unit(&mut self, unit: u32) {
        self.lists.retain(|list, known| list.unit != unit || matches!(known, Known::Running(_)));
    }

    /// A life of a nexus is over: nobody can ask any more.
    pub(crate) fn forget_nexus(&mut self, nexus: u32, nexus_generation: u32) {
        self.lists.retain(|list, known| {
            (list.nexus, list.nexus_generation) != (nexus, nexus_generation)
                || matches!(known, Known::Running(_))
        });
    }
}
