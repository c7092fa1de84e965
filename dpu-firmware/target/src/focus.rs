//! The state machine of a task: `advance` and its steps, up to the transport, which is `srp_port`'s.
//!
//! A step works on a [`Focus`]: the task with all that it names, looked up once for the whole way that
//! it goes in one turn. A step must not reach other tasks; what concerns those is left behind as a
//! [`Wake`] or handed back as [`After`], and `resume` carries it out.

use lunar_backend::{BlockRange, BlockRequest, OperationData, Submission};
use lunar_dma::sgv::{Buffer, ClaimError, Placement};
use lunar_dma::slots::SlotId;
use lunar_offload_proto::ring::{LBA_DEALLOCATED, LbaRun as RingRun};
use lunar_platform::{Hca as _, Platform};
use lunar_scsi::alua;
use lunar_scsi::cdb::{self, Command};
use lunar_scsi::device_server::{
    self, BlockOperation, BlockOutcome, Data, Ending, LbaRun, Parameter, Verdict,
};
use lunar_scsi::opcodes::HostCommand;
use lunar_scsi::reservations;
use lunar_scsi::sense::Sense;
use lunar_scsi::status::Status;
use lunar_scsi::task_set::TaskAttribute;
use lunar_scsi::unit_attention::UnitAttention;
use lunar_srp::descriptor::DataBuffer;

use crate::channel::Channel;
use crate::configuration::{BackendKind, PortGroup};
use crate::fifo::NONE;
use crate::kit::Kit;
use crate::mutant::{self, Mutant};
use crate::nexus::{Nexus, NexusLun};
use crate::poll_group::{UnitShard, closed};
use crate::statistics::OperationKind;
use crate::task::{Direction, Membership, State, Step, Task, Wake, Work};
use crate::trace::Point;

/// One task and all that it names. See the module.
///
/// Where `TRACED` is false nobody records the way, and it has no look at that.
pub(crate) struct Focus<'a, P: Platform, const TRACED: bool = true> {
    pub id: SlotId,
    pub task: &'a mut Task,
    pub channel: &'a mut Channel,
    pub nexus: &'a mut Nexus,
    /// The shard of its logical unit; `None` where there is none.
    pub unit: Option<&'a mut UnitShard>,
    pub kit: &'a mut Kit<P>,
}

/// What a step leaves to the poll group, because it reaches beyond the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum After {
    /// Nothing.
    Rest,
    /// The task is over: release its slot.
    Release,
    /// Its queue pair refused a chain: close the channel, after releasing its slot if it is over.
    Close {
        /// Whether it is over.
        release: bool,
    },
}

impl<P: Platform, const TRACED: bool> Focus<'_, P, TRACED> {
    #[inline]
    pub(crate) fn trace(&mut self, point: Point) {
        if TRACED {
            self.kit.record(self.task.tag, point);
        }
    }

    /// Enters `state`; [`Self::advance`] goes on from there.
    #[inline]
    pub(crate) fn enter(&mut self, state: State) {
        self.trace(Point::Entered(state));
        self.task.state = state;
    }

    /// Past the gate and into the task set (SAM-6 8): the task runs now or is held back.
    #[inline(always)]
    pub(crate) fn admit(&mut self) -> After {
        let task = &mut *self.task;
        let lun = self.nexus.luns.get_mut(task.lun as usize);
        let (Some(lun), Some(unit)) = (lun, self.unit.as_mut()) else {
            return self.advance();
        };
        if unit.is_closed() {
            unit.held.push(&mut self.kit.links, self.id.index);
            self.trace(Point::Entered(State::Blocked));
            return After::Rest;
        }
        unit.active += 1;
        if !lun.set.admit_usual(task.attribute) {
            return self.admit_rare();
        }
        task.membership = Membership::Enabled;
        let step = match decide(task, lun, unit) {
            Some(step) => step,
            None => self.begin_rare(),
        };
        if let Step::Enter(state) = step {
            self.enter(state);
        }
        self.advance_here()
    }

    /// The rest of [`Self::admit`] for a task that is not SIMPLE, or that comes behind such a one.
    #[cold]
    #[inline(never)]
    fn admit_rare(&mut self) -> After {
        let task = &mut *self.task;
        let lun = self.nexus.luns.get_mut(task.lun as usize);
        let (Some(lun), Some(unit)) = (lun, self.unit.as_mut()) else { return self.advance() };
        let shared = unit.logical_unit.tst == 0 && !mutant::is(Mutant::TaskSetsApart);
        if shared && task.attribute != TaskAttribute::Simple {
            unit.active -= 1;
            unit.closed |= closed::FOR_ONE;
            unit.alone = Some(self.id.to_token());
            self.kit.wakes.push_back(Wake::Alone { unit: task.unit });
        } else if !lun.set.admit(task.attribute) {
            task.membership = Membership::Dormant;
            lun.dormant.push(&mut self.kit.links, self.id.index);
        } else {
            task.membership = Membership::Enabled;
            return self.advance();
        }
        self.trace(Point::Entered(State::Blocked));
        After::Rest
    }

    /// The task is alone on its unit: it runs.
    #[cold]
    #[inline(never)]
    pub(crate) fn run_alone(&mut self) -> After {
        let lun = self.nexus.luns.get_mut(self.task.lun as usize);
        if let (Some(lun), Some(unit)) = (lun, self.unit.as_mut()) {
            unit.active += 1;
            lun.set.admit(self.task.attribute);
            self.task.membership = Membership::Enabled;
        }
        self.advance()
    }

    /// Drives the task until it waits for something outside or is over. Every resume comes through
    /// here, after the resumer changed what the task waited for.
    #[inline(never)]
    pub(crate) fn advance(&mut self) -> After {
        self.advance_here()
    }

    /// [`Self::advance`] without the call, for the places that nearly every command comes through.
    ///
    /// A task goes only forward through the states that it can leave by itself, so they are asked in
    /// their order.
    #[inline(always)]
    pub(crate) fn advance_here(&mut self) -> After {
        let mut state = self.task.state;
        macro_rules! leave {
            ($from:ident, $step:ident) => {
                if state == State::$from {
                    match self.$step() {
                        Step::Enter(next) => state = next,
                        Step::Wait => {
                            self.task.state = state;
                            return After::Rest;
                        }
                        Step::Over => return self.over(),
                        Step::Refused => return self.over_refused(),
                    }
                    self.trace(Point::Entered(state));
                }
            };
        }
        leave!(Blocked, begin);
        leave!(NeedBuffer, claim_buffer);
        leave!(NeedReadRoom, fetch_data_out);
        leave!(NeedBackend, submit);
        leave!(NeedSendRoom, push_response);
        self.task.state = state;
        After::Rest
    }

    /// Out of `Blocked`, where the task may have been long: unit attention, then the device server's
    /// verdict.
    #[inline(never)]
    fn begin(&mut self) -> Step {
        let task = &mut *self.task;
        let lun = self.nexus.luns.get(task.lun as usize);
        let (Some(lun), Some(unit)) = (lun, self.unit.as_ref()) else {
            return self.begin_absent();
        };
        match decide(task, lun, unit) {
            Some(step) => step,
            None => self.begin_rare(),
        }
    }

    /// No such LUN, or it was taken away while the task was held back.
    #[cold]
    fn begin_absent(&mut self) -> Step {
        let verdict = device_server::begin_absent(self.kit.receive_region.cdb(self.task));
        self.task.unit = NONE;
        if let Some(shard) = self.unit.take() {
            shard.active -= 1;
        }
        self.follow(verdict)
    }

    /// Everything but a sound READ or WRITE without a unit attention in its way.
    fn begin_rare(&mut self) -> Step {
        let cdb = self.kit.receive_region.cdb(self.task);
        let lun = self.nexus.luns.get_mut(self.task.lun as usize);
        let (Some(lun), Some(unit)) = (lun, self.unit.as_ref()) else {
            return self.begin_absent();
        };
        if !is_there(self.task, lun, unit) {
            return self.begin_absent();
        }
        let (command, verdict) = match alua::check(lun.state, cdb) {
            Ok(()) => device_server::begin_cdb(&unit.logical_unit, lun.read_only, cdb),
            // What every state takes is all that no unit attention is in the way of.
            Err(sense) => (None, Verdict::Done(Err(sense))),
        };
        if !command.is_some_and(|command| command.ignores_unit_attention())
            && let Some(sense) = lun.attentions.take()
        {
            return self.task.check(sense);
        }
        let access = lun.access;
        if reservations::conflicts(reservations::class(cdb), access) {
            return self.refuse(access);
        }
        self.follow(verdict)
    }

    /// A reservation keeps the command out.
    #[cold]
    fn refuse(&mut self, access: reservations::Access) -> Step {
        match access.refusal() {
            Ending::Status(status) => self.task.end(status),
            Ending::Sense(sense) => self.task.check(sense),
        }
    }

    /// Carries out the device server's verdict.
    fn follow(&mut self, verdict: Verdict) -> Step {
        let task = &mut *self.task;
        match verdict {
            Verdict::Done(Ok(())) => task.end(Status::Good),
            Verdict::Done(Err(sense)) => task.check(sense),
            Verdict::Parameter(parameter) => {
                task.work = Work::Parameter(parameter);
                task.direction = Direction::In;
                task.wanted_bytes = parameter.length_max();
                if task.wanted_bytes == 0 {
                    return task.end(Status::Good);
                }
                Step::Enter(State::NeedBuffer)
            }
            Verdict::Block(operation) => match self.unit.as_ref() {
                Some(unit) => begin_transfer(task, operation, unit.logical_unit.block_shift()),
                None => task.check(Sense::INTERNAL_TARGET_FAILURE),
            },
            Verdict::UnmapList { bytes } => {
                task.work = Work::UnmapList;
                match offer_data(task, Direction::Out, bytes.into(), 0) {
                    Ok(offered_bytes) if offered_bytes >= task.wanted_bytes => {
                        Step::Enter(task.need_of_data_out())
                    }
                    Ok(_) => task.check(Sense::INVALID_INFORMATION_UNIT),
                    Err(sense) => task.check(sense),
                }
            }
            Verdict::Forward => {
                task.work = Work::Forward;
                let (out_bytes, in_bytes) =
                    (task.data_out.total_bytes(), task.data_in.total_bytes());
                task.direction = match (out_bytes, in_bytes) {
                    (0, 0) => return Step::Enter(State::NeedBackend),
                    (_, 0) => Direction::Out,
                    (0, _) => Direction::In,
                    // No command for disks moves data both ways, and the ring has one buffer each.
                    _ => return task.check(Sense::INVALID_INFORMATION_UNIT),
                };
                // The card does not know what the command transfers; the initiator's buffer says
                // how much it can be.
                task.wanted_bytes = out_bytes.max(in_bytes);
                task.transfer_bytes = task.wanted_bytes;
                Step::Enter(match task.direction {
                    Direction::Out => task.need_of_data_out(),
                    _ => State::NeedBuffer,
                })
            }
        }
    }

    /// In `NeedBuffer` for the first time: takes a buffer unless others wait already.
    #[inline(always)]
    fn claim_buffer(&mut self) -> Step {
        // A list for each placement: who lacks host memory holds up nobody who needs the card's.
        let placement = self.placement();
        let list = placement as usize;
        if self.kit.need_buffer[list].is_empty()
            && let Some(step) = self.claim_at(placement)
        {
            return step;
        }
        self.kit.counters.buffers_waited += 1;
        self.task.buffer_list = list;
        self.kit.need_buffer[list].push(&mut self.kit.links, self.id.index);
        Step::Wait
    }

    /// Where the task's buffer is to lie. Without host memory (no agent yet, a revoke announced)
    /// card memory serves.
    #[inline(always)]
    fn placement(&self) -> Placement {
        let Some(unit) = self.unit.as_ref() else { return Placement::CardDram };
        if unit.placement == Placement::HostDram
            && self.kit.host_cache.is_some()
            && !self.kit.releasing
            && !self.task.work.needs_card_memory()
        {
            return Placement::HostDram;
        }
        Placement::CardDram
    }

    /// Takes a buffer when there is one now; `None` when the arena is exhausted.
    pub(crate) fn try_claim_buffer(&mut self) -> Option<Step> {
        self.claim_at(self.placement())
    }

    #[inline(always)]
    fn claim_at(&mut self, placement: Placement) -> Option<Step> {
        if placement == Placement::HostDram {
            return self.claim_on_host();
        }
        let share = &mut self.nexus.card_share;
        match self.kit.card_cache.claim(self.task.wanted_bytes, share) {
            Ok(buffer) => self.task.buffer = Some(buffer),
            Err(refusal) => return self.no_buffer(refusal),
        }
        self.claimed()
    }

    #[inline(never)]
    fn claim_on_host(&mut self) -> Option<Step> {
        let Some(cache) = self.kit.host_cache.as_mut() else {
            return self.claim_at(Placement::CardDram);
        };
        match cache.claim(self.task.wanted_bytes, &mut self.nexus.host_share) {
            Ok(buffer) => self.task.buffer = Some(buffer),
            Err(refusal) => return self.no_buffer(refusal),
        }
        self.task.host_epoch = self.kit.host_epoch;
        self.claimed()
    }

    /// The task has its buffer for data; a list of ranges to fetch needs another.
    #[inline(always)]
    fn claimed(&mut self) -> Option<Step> {
        if !self.task.fits
            && let Some(table) = self.task.table_wanted()
        {
            return self.claim_table(table.length);
        }
        let next = self.with_buffer();
        self.trace(Point::Buffer);
        Some(next)
    }

    /// Takes card memory for a list of ranges beside the buffer for data. Both or none: who held one while
    /// it waits for the other could wait forever.
    #[cold]
    fn claim_table(&mut self, bytes: u32) -> Option<Step> {
        match self.kit.card_cache.claim(bytes, &mut self.nexus.card_share) {
            Ok(table) => self.task.table = Some(table),
            Err(refusal) => {
                self.release_buffer();
                return self.no_buffer(refusal);
            }
        }
        self.trace(Point::Buffer);
        Some(Step::Enter(State::NeedReadRoom))
    }

    /// What follows when a cache gave nothing: `None` where waiting helps.
    #[cold]
    fn no_buffer(&mut self, refusal: ClaimError) -> Option<Step> {
        match refusal {
            ClaimError::Exhausted => None,
            ClaimError::ShareExceeded => Some(self.task.end(Status::TaskSetFull)),
            ClaimError::TooLarge => Some(self.task.check(Sense::INVALID_FIELD_IN_CDB)),
        }
    }

    /// The list of ranges was fetched: the data can move. A list that contradicts itself is refused.
    #[cold]
    pub(crate) fn read_table(&mut self) -> Step {
        let task = &mut *self.task;
        let (Some(wanted), Some(table)) = (task.table_wanted(), task.table.as_ref()) else {
            return task.check(Sense::INTERNAL_TARGET_FAILURE);
        };
        let list = self.kit.card_region.contents(table, wanted.length);
        let used =
            if task.direction == Direction::In { &mut task.data_in } else { &mut task.data_out };
        match used.fetched(list) {
            Ok(buffer) => *used = buffer,
            Err(_) => return task.check(Sense::INVALID_INFORMATION_UNIT),
        }
        task.transfer_bytes = task.transfer_bytes.min(used.total_bytes());
        if task.direction == Direction::Out && task.transfer_bytes < task.wanted_bytes {
            // As with a buffer that is too small from the start.
            return task.check(Sense::INVALID_INFORMATION_UNIT);
        }
        self.with_buffer()
    }

    /// What comes after the buffer, and the list of ranges where that had to be fetched.
    #[inline(always)]
    fn with_buffer(&mut self) -> Step {
        match (&self.task.work, self.task.direction) {
            (Work::Parameter(_), _) => self.fill_parameter(),
            (_, Direction::Out) => Step::Enter(State::NeedReadRoom),
            _ => Step::Enter(State::NeedBackend),
        }
    }

    /// Writes parameter data into the task's buffer, which is card memory.
    #[inline(never)]
    fn fill_parameter(&mut self) -> Step {
        let Work::Parameter(mut parameter) = self.task.work else {
            return self.task.check(Sense::INTERNAL_TARGET_FAILURE);
        };
        let pending = match self.nexus.luns.get_mut(self.task.lun as usize) {
            // REQUEST SENSE reports a unit attention as its data and so clears it (SPC-6 6.39).
            Some(lun) if matches!(parameter, Parameter::RequestSense { .. }) => {
                lun.attentions.take()
            }
            // REPORT LUNS tells what this attention is about, and so clears it (SPC-6 6.33).
            Some(lun) if matches!(parameter, Parameter::ReportLuns { .. }) => {
                lun.attentions.clear(UnitAttention::ReportedLunsDataChanged);
                None
            }
            Some(lun) => {
                if let Some(changed) = parameter.media_event() {
                    *changed = core::mem::take(&mut lun.medium_changed);
                }
                None
            }
            None => None,
        };
        let unit = self.unit.as_ref().map(|unit| &unit.logical_unit);
        let task = &mut *self.task;
        let Some(buffer) = task.buffer.as_ref() else { return Step::Over };
        let bytes = task.wanted_bytes.min(buffer.bytes());
        let out = self.kit.card_region.bytes_at(buffer.offset(), bytes);
        // A client may ask at an address of a target where no unit is.
        let receives = &self.kit.receive_region;
        let asked = self.nexus.luns.get(task.lun as usize).map(|lun| lun.number).or_else(|| {
            let head = lunar_srp::iu::command_head(receives.iu(task.receive, task.iu_bytes))?;
            lunar_scsi::lun::decode(head.lun())
        });
        let hca = &self.kit.hca;
        let mut luns = self.nexus.numbers().filter_map(|number| hca.reported_lun(number, asked));
        let configuration = &self.kit.configuration;
        let length = match parameter {
            Parameter::TargetPortGroups { extended, .. } => {
                let group = configuration.device_group(task.unit);
                let groups = group.iter().flat_map(|group| &group.groups).map(PortGroup::told);
                alua::report(extended, groups, out)
            }
            _ => {
                let port = configuration.target_port(self.nexus.target, task.unit);
                device_server::fill(&parameter, unit, port, &mut luns, pending, out)
            }
        };
        let length = u32::try_from(length).unwrap_or(0);
        task.wanted_bytes = length;
        task.transfer_bytes = length.min(task.data_in.total_bytes());
        task.status = Status::Good;
        Step::Enter(State::NeedSendRoom)
    }

    /// Out of `NeedBackend`. Access is checked again here, by generation, because data-out may have
    /// been fetched meanwhile (DESIGN section 4, step 6).
    #[inline(always)]
    fn submit(&mut self) -> Step {
        let task = &mut *self.task;
        let Some(unit) = self.unit.as_mut() else {
            return task.check(Sense::LOGICAL_UNIT_NOT_SUPPORTED);
        };
        if task.access_generation != unit.access_generation
            && !mutant::is(Mutant::NoRecheckAtSubmit)
            && let Some(step) = self.recheck()
        {
            return step;
        }
        let task = &mut *self.task;
        let Some(unit) = self.unit.as_mut() else {
            return task.check(Sense::LOGICAL_UNIT_NOT_SUPPORTED);
        };
        if unit.backend == BackendKind::CardNull {
            // SCST's vdisk_nullio: READ gives whatever the buffer held, WRITE forgets. Nothing outside
            // has to happen, so there is no state to wait in.
            return match task.work {
                Work::Block(_) => {
                    task.submitted = true;
                    Step::Enter(State::NeedSendRoom)
                }
                Work::Forward => task.check(Sense::INVALID_COMMAND_OPERATION_CODE),
                _ => self.submit_rare_to_nobody(),
            };
        }
        self.submit_to_ring()
    }

    /// The configuration changed since the verdict: `None` if the command may go on all the same.
    #[cold]
    #[inline(never)]
    fn recheck(&mut self) -> Option<Step> {
        let task = &mut *self.task;
        let unit = self.unit.as_ref()?;
        self.kit.counters.rechecks += 1;
        let lun = self.nexus.luns.get(task.lun as usize);
        let Some(lun) = lun.filter(|lun| lun.mapped && lun.unit == task.unit) else {
            return Some(task.check(Sense::LOGICAL_UNIT_NOT_SUPPORTED));
        };
        let read_only = unit.logical_unit.read_only || lun.read_only;
        let cdb = self.kit.receive_region.cdb(task);
        if let Err(sense) = alua::check(lun.state, cdb) {
            return Some(task.check(sense));
        }
        if read_only && cdb::parse(cdb).is_ok_and(|command| command.is_write()) {
            return Some(task.check(Sense::WRITE_PROTECTED));
        }
        let access = lun.access;
        if reservations::conflicts(reservations::class(cdb), access) {
            return Some(self.refuse(access));
        }
        task.access_generation = unit.access_generation;
        None
    }

    /// To a card-local unit: UNMAP's list is judged as everywhere, and then forgotten like a WRITE.
    #[cold]
    fn submit_rare_to_nobody(&mut self) -> Step {
        match self.task.work {
            Work::UnmapList => match self.unmap_operation() {
                Some(Ok(_)) => self.task.end(Status::Good),
                Some(Err(sense)) => self.task.check(sense),
                None => self.task.check(Sense::INTERNAL_TARGET_FAILURE),
            },
            Work::LbaStatus { lba, allocation } => self.tell_all_mapped(lba, allocation),
            _ => self.task.check(Sense::INTERNAL_TARGET_FAILURE),
        }
    }

    #[inline(never)]
    fn submit_to_ring(&mut self) -> Step {
        match self.task.block_request() {
            Some(request) => self.hand_over(request, self.task.wanted_bytes, &[]),
            None => self.submit_rare(),
        }
    }

    /// The rest of [`Self::submit_to_ring`].
    #[cold]
    fn submit_rare(&mut self) -> Step {
        match self.task.work {
            Work::UnmapList => self.submit_unmap(),
            Work::LbaStatus { lba, allocation } if !self.is_thin() => {
                self.tell_all_mapped(lba, allocation)
            }
            Work::LbaStatus { lba, allocation } => {
                let runs = u32::from(device_server::lba_runs(allocation));
                let request = BlockRequest::LbaStatus { lba, blocks: 0 };
                self.hand_over(request, runs * size_of::<RingRun>() as u32, &[])
            }
            _ => match self.task.rare_request() {
                Some(request) => self.hand_over(request, self.task.wanted_bytes, &[]),
                None => self.task.check(Sense::INTERNAL_TARGET_FAILURE),
            },
        }
    }

    /// What UNMAP's list comes to, where it lies; `None` if it does not lie anywhere.
    fn unmap_operation(&self) -> Option<Result<Option<BlockOperation>, Sense>> {
        let unit = &self.unit.as_ref()?.logical_unit;
        Some(device_server::unmap(unit, self.parameter_list()?))
    }

    /// The parameter list from the initiator: in the task's buffer, which is card memory, or still in
    /// its message.
    fn parameter_list(&self) -> Option<&[u8]> {
        let bytes = self.task.wanted_bytes;
        match self.task.buffer.as_ref() {
            Some(buffer) => Some(self.kit.card_region.contents(buffer, bytes)),
            None => self.kit.receive_region.immediate_bytes(self.task, bytes),
        }
    }

    /// Reads UNMAP's list, anew in each try, and asks the backend for what it says.
    fn submit_unmap(&mut self) -> Step {
        let mut ranges = [BlockRange::new(0, 0); device_server::UNMAP_RANGES_MAX as usize];
        let used = match self.unmap_operation() {
            Some(Ok(Some(BlockOperation::Unmap { ranges }))) => ranges,
            Some(Ok(_)) => return self.task.end(Status::Good),
            Some(Err(sense)) => return self.task.check(sense),
            None => return self.task.check(Sense::INTERNAL_TARGET_FAILURE),
        };
        let list = self.parameter_list().unwrap_or_default();
        for (to, (lba, blocks)) in ranges.iter_mut().zip(device_server::unmap_ranges(list, used)) {
            *to = BlockRange::new(lba, blocks);
        }
        let used = ranges.get(..usize::from(used)).unwrap_or_default();
        self.hand_over(BlockRequest::Unmap, 0, used)
    }

    /// Gives `request` with `data_bytes` of the task's data to the backend, as soon as that has room.
    #[inline(always)]
    fn hand_over(&mut self, request: BlockRequest, data_bytes: u32, ranges: &[BlockRange]) -> Step {
        let task = &mut *self.task;
        let Some(unit) = self.unit.as_mut() else {
            return task.check(Sense::INTERNAL_TARGET_FAILURE);
        };
        if task.holds_lost_host_memory(self.kit.host_epoch) {
            return task.check(Sense::COMMAND_ABORTED);
        }
        let on_host = task.buffer.as_ref().map(Buffer::placement) == Some(Placement::HostDram);
        if self.kit.releasing && on_host {
            // Nothing new goes to a ring whose memory is about to go.
            return task.end(Status::Busy);
        }
        let submission = Submission {
            token: self.id.to_token(),
            unit: task.unit,
            nexus: self.nexus.handle,
            configuration_generation: self.kit.configuration.generation,
            nexus_generation: self.nexus.handle,
            request,
            data: match task.buffer.as_ref() {
                Some(buffer) => Some(OperationData::from(buffer)),
                None => self.kit.receive_region.immediate_data(task),
            },
            data_bytes,
            cdb: self.kit.receive_region.cdb(task),
            ranges,
        };
        // Others wait already, and this one is not the first of them.
        let behind = self.kit.need_backend.head().is_some_and(|head| head != self.id.index);
        let taken = match (self.kit.ring.as_mut(), self.kit.staging_cache.as_mut()) {
            (Some(ring), Some(staging)) if !behind && !self.kit.releasing => {
                ring.submit(&submission, staging).is_ok()
            }
            _ => false,
        };
        if !taken {
            if !std::mem::replace(&mut task.in_backend_list, true) {
                self.kit.counters.backend_waited += 1;
                self.kit.need_backend.push(&mut self.kit.links, self.id.index);
            }
            return Step::Wait;
        }
        task.at_backend = true;
        task.submitted = true;
        unit.at_backend[(task.access_generation & 1) as usize] += 1;
        self.trace(Point::Submitted);
        Step::Enter(State::AtBackend)
    }

    /// The backend's answer: status and sense, then on.
    pub(crate) fn on_outcome(&mut self, outcome: &lunar_backend::Outcome) -> After {
        let task = &mut *self.task;
        task.at_backend = false;
        if let Some(unit) = self.unit.as_mut() {
            unit.at_backend[(task.access_generation & 1) as usize] -= 1;
        }
        self.trace(Point::Outcome);
        if self.task.state == State::Aborting {
            return if self.task.is_quiet() { self.over() } else { After::Rest };
        }
        if outcome.outcome == lunar_offload_proto::ring::Outcome::Forwarded {
            let task = &mut *self.task;
            task.status = Status::from_code(outcome.status).unwrap_or(Status::CheckCondition);
            if task.direction == Direction::In {
                task.wanted_bytes = outcome.transferred_bytes;
                task.transfer_bytes = outcome.transferred_bytes.min(task.data_in.total_bytes());
            }
            self.keep_forwarded_sense(outcome);
            self.forget_own_change();
        } else {
            match device_server::finish(block_outcome(outcome)) {
                Ending::Status(Status::Good) => {
                    if let Work::LbaStatus { allocation, .. } = self.task.work {
                        self.tell_lba_status(allocation, outcome.transferred_bytes);
                    }
                }
                Ending::Status(status) => {
                    self.task.end(status);
                }
                Ending::Sense(sense) => {
                    self.task.check(sense);
                }
            }
        }
        self.enter(State::NeedSendRoom);
        self.advance()
    }

    /// MODE PARAMETERS CHANGED is for the other nexuses (SPC-6, MODE SELECT): the one whose MODE SELECT it
    /// was had it established as well, when the configuration came that its outcome waited for.
    fn forget_own_change(&mut self) {
        let command = cdb::parse(self.kit.receive_region.cdb(self.task));
        if self.task.status == Status::Good
            && command == Ok(Command::Host(HostCommand::ModeSelect))
            && let Some(lun) = self.nexus.luns.get_mut(self.task.lun as usize)
        {
            lun.attentions.clear(UnitAttention::ModeParametersChanged);
        }
    }

    /// GET LBA STATUS's parameter data of the runs that the backend put into the task's buffer.
    #[cold]
    fn tell_lba_status(&mut self, allocation: u32, runs_bytes: u32) {
        let Some(buffer) = self.task.buffer.as_ref() else { return };
        let told = self.kit.card_region.contents(buffer, runs_bytes.min(buffer.bytes()));
        let (told, _) = told.as_chunks::<{ size_of::<RingRun>() }>();
        let none = LbaRun { lba: 0, blocks: 0, deallocated: false };
        let mut runs = [none; device_server::LBA_RUNS_MAX as usize];
        let mut count = 0;
        for (to, run) in runs.iter_mut().zip(told) {
            let run = RingRun::from_data(*run);
            *to = LbaRun {
                lba: run.lba.get(),
                blocks: run.blocks.get(),
                deallocated: run.state == LBA_DEALLOCATED,
            };
            count += 1;
        }
        self.fill_lba_status(allocation, runs.get(..count).unwrap_or_default());
    }

    /// GET LBA STATUS of a unit whose backing need not be asked.
    fn tell_all_mapped(&mut self, lba: u64, allocation: u32) -> Step {
        if let Some(unit) = self.unit.as_ref() {
            let run = device_server::all_mapped(&unit.logical_unit, lba);
            self.fill_lba_status(allocation, &[run]);
        }
        Step::Enter(State::NeedSendRoom)
    }

    fn is_thin(&self) -> bool {
        self.unit.as_ref().is_some_and(|unit| unit.logical_unit.thin)
    }

    /// Writes the parameter data into the task's buffer, over what it was made of.
    fn fill_lba_status(&mut self, allocation: u32, runs: &[LbaRun]) {
        let task = &mut *self.task;
        let Some(buffer) = task.buffer.as_ref() else { return };
        let bytes = task.wanted_bytes.min(buffer.bytes());
        let out = self.kit.card_region.bytes_at(buffer.offset(), bytes);
        let length = device_server::fill_lba_status(runs, out);
        task.wanted_bytes = u32::try_from(length).unwrap_or(0).min(allocation);
        task.transfer_bytes = task.wanted_bytes.min(task.data_in.total_bytes());
    }

    /// [`Self::over`] of a task whose queue pair refused its chain.
    #[cold]
    fn over_refused(&mut self) -> After {
        After::Close { release: self.over() == After::Release }
    }

    /// Frees everything the task held. Its work requests and its backend token are back.
    #[inline(never)]
    pub(crate) fn over(&mut self) -> After {
        self.over_here()
    }

    /// [`Self::over`] without the call, for the one place where nearly every command ends.
    #[inline(always)]
    pub(crate) fn over_here(&mut self) -> After {
        debug_assert!(self.task.is_quiet(), "a task ended too early");
        self.release_buffer();
        let task = &*self.task;
        if task.management.is_none()
            && let Some(unit) = self.unit.as_mut()
        {
            unit.active -= 1;
        }
        let is_answered = task.membership == Membership::Outside && !task.silent;
        if (!is_answered | task.awaited) && self.end_rare() {
            return After::Rest;
        }
        self.trace(Point::Over);
        self.nexus.tasks -= 1;
        self.channel.slots -= 1;
        if !self.channel.receives.is_empty() || !self.channel.is_open() {
            self.kit.wakes.push_back(Wake::Channel(self.task.channel));
        }
        let kit = &mut *self.kit;
        let [card, host] = kit.need_buffer;
        if card.len() | host.len() | kit.need_backend.len() != 0 {
            kit.wakes.push_back(Wake::Buffers);
        }
        After::Release
    }

    /// Gives the memory of a list of ranges back, which nothing needs once the response is made.
    #[cold]
    pub(crate) fn release_table(&mut self) {
        if let Some(table) = self.task.table.take() {
            self.kit.card_cache.release(table, &mut self.nexus.card_share, self.kit.now);
        }
    }

    /// Gives the buffer for data back to the cache it is from.
    #[inline(always)]
    fn release_buffer(&mut self) {
        let Some(placement) = self.task.buffer.as_ref().map(Buffer::placement) else { return };
        if placement == Placement::HostDram {
            self.release_host_buffer();
        } else if let Some(buffer) = self.task.buffer.take() {
            self.kit.card_cache.release(buffer, &mut self.nexus.card_share, self.kit.now);
        }
    }

    #[inline(never)]
    fn release_host_buffer(&mut self) {
        let task = &mut *self.task;
        let Some(buffer) = task.buffer.take() else { return };
        if task.host_epoch != self.kit.host_epoch {
            // Its arena is gone, and its cache and every share of it with it.
            return;
        }
        // Data-out that was fetched and never submitted must not land in the buffer's next life: the
        // next batch of the ring flushes it out of the way.
        let fetched = !task.submitted && task.cursor.bytes != 0;
        if fetched
            && task.direction == Direction::Out
            && let Some(ring) = self.kit.ring.as_mut()
        {
            ring.flush_before_publish();
        }
        if let Some(cache) = self.kit.host_cache.as_mut() {
            cache.release(buffer, &mut self.nexus.host_share, self.kit.now);
        }
    }

    /// The rest of [`Self::over`] for a task that was not answered, or that somebody waits for. Gives
    /// whether its slot is still in use: an SRP_CRED_REQ went out in it.
    #[cold]
    fn end_rare(&mut self) -> bool {
        self.kit.ends_seen |= self.task.awaited;
        // Whoever answers a task gives these back before.
        if self.task.receive != NONE {
            self.kit.repost(std::mem::replace(&mut self.task.receive, NONE));
        }
        self.release_table();
        self.leave_task_set();
        if !std::mem::take(&mut self.task.silent) {
            return false;
        }
        if P::Hca::SHOWS_IUS {
            self.kit.hca.forget_request(self.channel.qp, self.task.tag);
        }
        self.channel.credit.owe();
        self.nexus.counters.aborted += 1;
        self.task.awaited = false;
        // The unit has nothing to do with what follows.
        self.task.unit = NONE;
        self.unit = None;
        self.request_credit()
    }

    /// Takes the task out of its task set; what it held back is looked at soon.
    #[inline(always)]
    pub(crate) fn leave_task_set(&mut self) {
        let task = &mut *self.task;
        let Some(lun) = self.nexus.luns.get_mut(task.lun as usize) else { return };
        match std::mem::replace(&mut task.membership, Membership::Outside) {
            Membership::Enabled => lun.set.ended(task.attribute),
            Membership::Dormant => lun.set.withdrawn(task.attribute),
            Membership::Outside => return,
        }
        if !lun.dormant.is_empty() {
            self.kit.wakes.push_back(Wake::Dormant { nexus: task.nexus, lun: task.lun });
        }
    }
}

/// Whether the task's LUN still leads to its unit: it may have been held back for long.
fn is_there(task: &Task, lun: &NexusLun, unit: &UnitShard) -> bool {
    lun.mapped && lun.unit == task.unit && unit.in_use
}

/// What a sound READ or WRITE without a unit attention in its way comes to; `None` for everything else,
/// a unit included that is no longer there, that the target port may not reach, or that another nexus has
/// reserved (one flag for all, so that access states and reservations cost nothing here).
#[inline(always)]
fn decide(task: &mut Task, lun: &NexusLun, unit: &UnitShard) -> Option<Step> {
    task.access_generation = unit.access_generation;
    let is_open = lun.open && lun.unit == task.unit && unit.in_use;
    if !is_open || !lun.attentions.is_empty() {
        return None;
    }
    let logical_unit = &unit.logical_unit;
    let operation = device_server::usual_operation(logical_unit, lun.read_only, &task.cdb)?;
    Some(begin_transfer(task, operation, logical_unit.block_shift()))
}

/// Notes what a block operation moves, in blocks of `1 << shift` bytes.
#[inline(always)]
fn begin_transfer(task: &mut Task, operation: BlockOperation, shift: u32) -> Step {
    task.work = Work::Block(operation);
    match operation {
        BlockOperation::Flush { .. } => Step::Enter(State::NeedBackend),
        BlockOperation::Read { blocks, .. } => {
            task.kind = OperationKind::Read;
            match offer_data(task, Direction::In, blocks, shift) {
                Ok(_) => Step::Enter(State::NeedBuffer),
                Err(sense) => task.check(sense),
            }
        }
        BlockOperation::Write { blocks, .. } => {
            task.kind = OperationKind::Write;
            match offer_data(task, Direction::Out, blocks, shift) {
                Ok(offered_bytes) if offered_bytes >= task.wanted_bytes => {
                    Step::Enter(task.need_of_data_out())
                }
                // A part of a block cannot be written: refuse the command whole, and say by the
                // residual how much is missing.
                Ok(_) => task.check(Sense::INVALID_INFORMATION_UNIT),
                Err(sense) => task.check(sense),
            }
        }
        _ => begin_rare_transfer(task, operation, shift),
    }
}

/// [`begin_transfer`] of the rarer operations.
#[cold]
#[inline(never)]
fn begin_rare_transfer(task: &mut Task, operation: BlockOperation, shift: u32) -> Step {
    if let BlockOperation::LbaStatus { lba, allocation } = operation {
        task.work = Work::LbaStatus { lba, allocation };
        task.direction = Direction::In;
        // The runs as the backend gives them are no longer than the descriptors behind their header.
        task.wanted_bytes = 8 + 16 * u32::from(device_server::lba_runs(allocation));
        return Step::Enter(State::NeedBuffer);
    }
    if operation.is_write() {
        task.kind = OperationKind::Write;
    }
    let Data::Out(blocks) = operation.data() else { return Step::Enter(State::NeedBackend) };
    let is_exact = matches!(
        operation,
        BlockOperation::WriteSame { .. } | BlockOperation::CompareAndWrite { .. }
    );
    match offer_data(task, Direction::Out, blocks, shift) {
        // What is behind the data would be data for something that was not meant: in these commands the
        // initiator and the CDB disagree about what the data is.
        Ok(offered_bytes) if is_exact && offered_bytes != task.wanted_bytes => {
            task.check(Sense::INVALID_FIELD_IN_CDB)
        }
        Ok(offered_bytes) if offered_bytes < task.wanted_bytes => {
            task.check(Sense::INVALID_INFORMATION_UNIT)
        }
        Ok(_) => Step::Enter(task.need_of_data_out()),
        Err(sense) => task.check(sense),
    }
}

/// Compares what `blocks` of `1 << shift` bytes want with what the initiator offers in `direction`, and
/// gives the latter in bytes.
#[inline(always)]
fn offer_data(
    task: &mut Task,
    direction: Direction,
    blocks: u32,
    shift: u32,
) -> Result<u32, Sense> {
    task.direction = direction;
    let Ok(wanted_bytes) = u32::try_from(u64::from(blocks) << shift) else {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    };
    let (offered_bytes, known) = task.data(direction).offer();
    let other = if direction == Direction::In { Direction::Out } else { Direction::In };
    let is_alone = *task.data(other) == DataBuffer::None;
    task.wanted_bytes = wanted_bytes;
    task.transfer_bytes = wanted_bytes.min(offered_bytes);
    task.fits = known && wanted_bytes == offered_bytes && is_alone;
    Ok(offered_bytes)
}

/// The one place where ring outcomes become the device server's.
fn block_outcome(outcome: &lunar_backend::Outcome) -> BlockOutcome {
    use lunar_offload_proto::ring::Outcome as Ring;
    match outcome.outcome {
        Ring::Done => BlockOutcome::Done,
        Ring::MediumReadError => BlockOutcome::MediumReadError { lba: outcome.detail },
        Ring::MediumWriteError => BlockOutcome::MediumWriteError { lba: outcome.detail },
        Ring::WriteProtected => BlockOutcome::WriteProtected,
        Ring::NoSpace => BlockOutcome::NoSpace,
        Ring::OutOfRange => BlockOutcome::OutOfRange,
        Ring::Unavailable => BlockOutcome::Unavailable,
        Ring::Transitioning => BlockOutcome::Transitioning,
        Ring::Lost => BlockOutcome::Lost,
        Ring::Cancelled => BlockOutcome::Cancelled,
        Ring::Miscompare => BlockOutcome::Miscompare { offset_bytes: outcome.detail },
        _ => BlockOutcome::HardwareError,
    }
}
