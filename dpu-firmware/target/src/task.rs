//! The life of a command: one slot, one state machine, one `advance`.
//!
//! ```text
//!            .---------.   .------------.  data-out  .--------------.   .----------.
//!  receive ->| Blocked |-->| NeedBuffer |----------->| NeedReadRoom |-->| Fetching |
//!            '---------'   '------------'            '--------------'   '----------'
//!                 | no data       | data-in, or none          ^  more descriptors | all read
//!                 |               v                           '-------------------'
//!                 |        .-------------.   .-----------.                        |
//!                 '------->| NeedBackend |-->| AtBackend |<-----------------------'
//!                 |        '-------------'   '-----------'
//!                 | answered here               | outcome
//!                 v                             v
//!          .--------------.   .---------.
//!          | NeedSendRoom |-->| Sending |--> over
//!          '--------------'   '---------'
//!  abort: every state -> Aborting --> over, once all work requests and the backend token are back
//! ```
//!
//! A state exists only if something outside must happen to leave it; each waits in the FIFO of the
//! resource it lacks. SCST's states dissolve like this: INIT, PARSE, PREPARE SPACE, PREPROCESSING
//! DONE and PRE EXEC are the transition out of `Blocked`; RDY TO XFER and DATA WAIT are
//! `NeedReadRoom` and `Fetching`; TGT PRE EXEC, EXEC CHECK SN, START EXEC, LOCAL EXEC and REAL EXEC
//! are `NeedBackend` and `AtBackend`; PRE DEV DONE, MODE SELECT CHECKS, DEV DONE, PRE XMIT RESP and
//! XMIT RESP are the way through `NeedSendRoom`; XMIT WAIT is `Sending`; FINISHED is `over`.

use lunar_backend::{BlockRequest, Submission};
use lunar_dma::sgv::{Buffer, ClaimError, Placement};
use lunar_platform::{Nanoseconds, Platform};
use lunar_scsi::device_server::{self, BlockOperation, BlockOutcome, Ending, Parameter, Verdict};
use lunar_scsi::sense::Sense;
use lunar_scsi::status::Status;
use lunar_scsi::task_set::{TaskAttribute, TaskManagementFunction};
use lunar_scsi::unit_attention::UnitAttention;
use lunar_srp::descriptor::DataBuffer;
use lunar_srp::iu::SolicitedNotification;

use crate::configuration::BackendKind;
use crate::fifo::NONE;
use crate::poll_group::PollGroup;
use crate::statistics::OperationKind;
use crate::trace::Point;

/// Where a task is. See the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Held back by the task set's ordering rules or by a closed gate.
    Blocked,
    /// Waits for an SGV buffer.
    NeedBuffer,
    /// Data-out waits for room for RDMA READs.
    NeedReadRoom,
    /// RDMA READs are in progress.
    Fetching,
    /// Waits for room in the backend.
    NeedBackend,
    /// The backend has it.
    AtBackend,
    /// Waits for room for RDMA WRITEs; the response's own place is already claimed.
    NeedSendRoom,
    /// The response is posted.
    Sending,
    /// Marked: goes away once its work requests and its backend token are back.
    Aborting,
    /// A task management function that waits for others to be over.
    Managing,
}

/// How a step of the state machine ended.
pub(crate) enum Step {
    /// Go on in this state.
    Enter(State),
    /// Something outside must happen first.
    Wait,
    /// The task is over: free everything.
    Over,
}

/// What may go on because a task ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wake {
    /// The dormant tasks of a task set.
    Dormant { nexus: u32, lun: u32 },
    /// Tasks that wait for a buffer.
    Buffers,
    /// Messages that wait for a slot of this channel, or its end.
    Channel(u32),
}

/// What a task has to do, decided by the device server when it left `Blocked`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Undecided,
    Parameter(Parameter),
    Block(BlockOperation),
    Forward,
}

/// A task's relation to its task set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    /// Not in one: no such LUN, held by a gate, or ended.
    Outside,
    /// Waits in the dormant FIFO.
    Dormant,
    /// Counts as enabled.
    Enabled,
}

/// The work requests a task has posted: at most one batch, whose last one reports its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Batch {
    /// None.
    #[default]
    None,
    /// So many RDMA READs.
    Reads(u32),
    /// So many RDMA WRITEs; more follow.
    Writes(u32),
    /// So many RDMA WRITEs and the response.
    Response(u32),
}

/// How far the data phase is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    /// Descriptors used up.
    pub descriptors: u32,
    /// Bytes moved or posted.
    pub bytes: u32,
}

/// One task: a command or a task management function, for one life of its slot.
pub(crate) struct Task {
    pub state: State,
    pub membership: Membership,
    pub attribute: TaskAttribute,
    pub work: Work,
    /// Marked by an abort, a reset or the end of the channel: it answers nothing any more.
    pub silent: bool,
    /// A task management function waits for it to be over.
    pub awaited: bool,
    /// The backend has its token.
    pub at_backend: bool,
    /// The backend had it.
    pub submitted: bool,
    /// It is in the list of tasks that wait for the backend.
    pub in_backend_list: bool,
    /// When the initiator wants a solicited event for the response.
    pub notification: SolicitedNotification,
    pub channel: u32,
    pub nexus: u32,
    /// Place in the nexus's LUN list, or `NONE`.
    pub lun: u32,
    /// Handle of the logical unit, or `NONE`.
    pub unit: u32,
    pub tag: u64,
    /// Receive buffer that holds the IU until it is reposted, or `NONE`.
    pub receive: u32,
    pub iu_bytes: u32,
    pub cdb_offset: u16,
    pub cdb_bytes: u16,
    pub data_in: DataBuffer,
    pub data_out: DataBuffer,
    pub buffer: Option<Buffer>,
    /// Which list of [`PollGroup::need_buffer`] it waits in.
    pub buffer_list: usize,
    /// Which life of the host arena a host buffer is from.
    pub host_epoch: u32,
    /// Bytes that the command transfers according to its CDB.
    pub wanted_bytes: u32,
    /// Bytes that fit the initiator's buffer and are there.
    pub transfer_bytes: u32,
    pub cursor: Cursor,
    /// The work requests that are posted.
    pub batch: Batch,
    /// Access generation of the unit under which the decision was made.
    pub access_generation: u32,
    pub status: Status,
    pub sense: Option<Sense>,
    /// Sense bytes that the host gave for a forwarded command, kept in the group until the response
    /// is encoded, which follows at once.
    pub sense_bytes: u16,
    pub started: Nanoseconds,
    pub management: Option<Management>,
}

/// A task management function in progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Management {
    pub function: TaskManagementFunction,
    /// SRP response code to answer with.
    pub response_code: u8,
    /// It asked for a gate that is not open yet.
    pub gated: bool,
    /// When the channels that hold it up are torn down.
    pub deadline: Nanoseconds,
    /// The second deadline: then it fails.
    pub failed_at: Nanoseconds,
}

impl Task {
    /// A slot without a task.
    pub(crate) fn vacant() -> Self {
        Self {
            state: State::Blocked,
            membership: Membership::Outside,
            attribute: TaskAttribute::Simple,
            work: Work::Undecided,
            silent: false,
            awaited: false,
            at_backend: false,
            submitted: false,
            in_backend_list: false,
            notification: SolicitedNotification::default(),
            channel: NONE,
            nexus: NONE,
            lun: NONE,
            unit: NONE,
            tag: 0,
            receive: NONE,
            iu_bytes: 0,
            cdb_offset: 0,
            cdb_bytes: 0,
            data_in: DataBuffer::None,
            data_out: DataBuffer::None,
            buffer: None,
            buffer_list: 0,
            host_epoch: 0,
            wanted_bytes: 0,
            transfer_bytes: 0,
            cursor: Cursor::default(),
            batch: Batch::None,
            access_generation: 0,
            status: Status::Good,
            sense: None,
            sense_bytes: 0,
            started: Nanoseconds(0),
            management: None,
        }
    }

    /// Makes the slot ready for another task, as [`Self::vacant`] gives it. Field by field: of an enum
    /// only the tag is written, where a whole new value would be built and copied.
    #[inline]
    pub(crate) fn renew(&mut self) {
        // Named one by one, so that no field can be forgotten.
        let Self {
            state,
            membership,
            attribute,
            work,
            silent,
            awaited,
            at_backend,
            submitted,
            in_backend_list,
            notification,
            channel,
            nexus,
            lun,
            unit,
            tag,
            receive,
            iu_bytes,
            cdb_offset,
            cdb_bytes,
            data_in,
            data_out,
            buffer,
            buffer_list,
            host_epoch,
            wanted_bytes,
            transfer_bytes,
            cursor,
            batch,
            access_generation,
            status,
            sense,
            sense_bytes,
            started,
            management,
        } = self;
        *state = State::Blocked;
        *membership = Membership::Outside;
        *attribute = TaskAttribute::Simple;
        *work = Work::Undecided;
        (*silent, *awaited, *at_backend) = (false, false, false);
        (*submitted, *in_backend_list, *buffer_list) = (false, false, 0);
        *notification = SolicitedNotification::default();
        (*channel, *nexus, *lun, *unit) = (NONE, NONE, NONE, NONE);
        (*tag, *receive, *iu_bytes) = (0, NONE, 0);
        (*cdb_offset, *cdb_bytes) = (0, 0);
        *data_in = DataBuffer::None;
        *data_out = DataBuffer::None;
        *buffer = None;
        (*host_epoch, *wanted_bytes, *transfer_bytes) = (0, 0, 0);
        *cursor = Cursor::default();
        *batch = Batch::None;
        *access_generation = 0;
        *status = Status::Good;
        *sense = None;
        *sense_bytes = 0;
        *started = Nanoseconds(0);
        *management = None;
    }

    /// Whether nothing of it is outside: no work request, no backend token.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        self.batch == Batch::None && !self.at_backend
    }

    /// Whether data goes from the initiator to the medium.
    #[inline]
    fn is_data_out(&self) -> bool {
        match self.work {
            Work::Block(operation) => matches!(operation, BlockOperation::Write { .. }),
            Work::Forward => self.data_out.total_bytes() != 0,
            Work::Parameter(_) | Work::Undecided => false,
        }
    }

    /// Whether data goes to the initiator.
    #[inline]
    pub(crate) fn is_data_in(&self) -> bool {
        match self.work {
            Work::Block(operation) => matches!(operation, BlockOperation::Read { .. }),
            Work::Forward => self.data_in.total_bytes() != 0,
            Work::Parameter(_) => true,
            Work::Undecided => false,
        }
    }

    /// Whether its buffer was in a life of the host's memory that is over.
    #[inline]
    pub(crate) fn holds_lost_host_memory(&self, host_epoch: u32) -> bool {
        self.host_epoch != host_epoch
            && self.buffer.as_ref().is_some_and(|buffer| buffer.placement() == Placement::HostDram)
    }

    /// Whether its data-in phase moves anything.
    #[inline]
    pub(crate) fn moves_data_in(&self) -> bool {
        self.transfer_bytes != 0 && self.status == Status::Good && self.is_data_in()
    }

    /// What the backend is asked for; `None` for work that never goes there.
    #[inline]
    fn block_request(&self) -> Option<BlockRequest> {
        Some(match self.work {
            Work::Block(BlockOperation::Read { lba, blocks }) => BlockRequest::Read { lba, blocks },
            Work::Block(BlockOperation::Write { lba, blocks, fua }) => {
                BlockRequest::Write { lba, blocks, fua }
            }
            Work::Block(BlockOperation::Flush { lba, blocks }) => {
                BlockRequest::Flush { lba, blocks }
            }
            Work::Forward => BlockRequest::Forward { data_out: self.data_out.total_bytes() != 0 },
            Work::Parameter(_) | Work::Undecided => return None,
        })
    }

    /// Which statistics it counts in.
    #[inline]
    pub(crate) fn kind(&self) -> OperationKind {
        match self.work {
            Work::Block(BlockOperation::Read { .. }) => OperationKind::Read,
            Work::Block(BlockOperation::Write { .. }) => OperationKind::Write,
            _ => OperationKind::Other,
        }
    }

    /// Ends with `sense`; nothing of the data phase follows.
    pub(crate) fn check(&mut self, sense: Sense) -> Step {
        self.status = Status::CheckCondition;
        self.sense = Some(sense);
        self.transfer_bytes = 0;
        Step::Enter(State::NeedSendRoom)
    }

    /// Ends with `status` and no sense.
    fn end(&mut self, status: Status) -> Step {
        self.status = status;
        self.transfer_bytes = 0;
        Step::Enter(State::NeedSendRoom)
    }
}

impl<P: Platform> PollGroup<P> {
    /// Drives the task in slot `index` until it waits for something outside or is over. Every
    /// resume comes through here, after the resumer changed what the task waited for.
    pub(crate) fn advance(&mut self, index: u32) {
        let mut state = self.tasks.at(index).state;
        loop {
            let step = match state {
                State::Blocked => self.begin(index),
                State::NeedBuffer => self.claim_buffer(index),
                State::NeedReadRoom => self.fetch_data_out(index),
                State::NeedBackend => self.submit(index),
                State::NeedSendRoom => self.push_response(index),
                State::Fetching
                | State::AtBackend
                | State::Sending
                | State::Aborting
                | State::Managing => Step::Wait,
            };
            match step {
                Step::Enter(next) => {
                    self.mark_state(index, next);
                    self.tasks.at_mut(index).state = next;
                    state = next;
                }
                Step::Wait => return,
                Step::Over => return self.over(index),
            }
        }
    }

    /// Out of `Blocked`: unit attention, then the device server's verdict.
    fn begin(&mut self, index: u32) -> Step {
        let task = self.tasks.at_mut(index);
        let cdb = self.receive_region.cdb(task);
        let lun = self
            .nexuses
            .get_mut(task.nexus as usize)
            .and_then(|nexus| nexus.luns.get_mut(task.lun as usize));
        let lun = lun.filter(|lun| lun.mapped && lun.unit == task.unit);
        let (Some(lun), Some(unit)) = (lun, self.units.get(task.unit).filter(|unit| unit.in_use))
        else {
            // No such LUN, or it was taken away while the task was held back.
            let unit = std::mem::replace(&mut task.unit, NONE);
            if let Some(shard) = self.units.get_mut(unit) {
                shard.active -= 1;
            }
            let verdict = device_server::begin_absent(cdb);
            return self.follow(index, verdict);
        };
        task.access_generation = unit.access_generation;
        let (command, verdict) = device_server::begin_cdb(&unit.logical_unit, lun.read_only, cdb);
        if !lun.attentions.is_empty()
            && !command.is_some_and(|command| command.ignores_unit_attention())
            && let Some(sense) = lun.attentions.take()
        {
            return task.check(sense);
        }
        self.follow(index, verdict)
    }

    /// Carries out the device server's verdict.
    #[inline(always)] // The one way out of `begin`; its verdict need not go through memory.
    fn follow(&mut self, index: u32, verdict: Verdict) -> Step {
        let task = self.tasks.at_mut(index);
        match verdict {
            Verdict::Done(Ok(())) => task.end(Status::Good),
            Verdict::Done(Err(sense)) => task.check(sense),
            Verdict::Parameter(parameter) => {
                task.work = Work::Parameter(parameter);
                task.wanted_bytes = parameter.length_max();
                if task.wanted_bytes == 0 {
                    return task.end(Status::Good);
                }
                Step::Enter(State::NeedBuffer)
            }
            Verdict::Block(operation) => {
                let Some(unit) = self.units.get(task.unit) else {
                    return task.check(Sense::INTERNAL_TARGET_FAILURE);
                };
                let shift = unit.logical_unit.block_shift();
                task.work = Work::Block(operation);
                let (blocks, offered_bytes) = match operation {
                    BlockOperation::Flush { .. } => return Step::Enter(State::NeedBackend),
                    BlockOperation::Read { blocks, .. } => (blocks, task.data_in.total_bytes()),
                    BlockOperation::Write { blocks, .. } => (blocks, task.data_out.total_bytes()),
                };
                let Ok(wanted_bytes) = u32::try_from(u64::from(blocks) << shift) else {
                    return task.check(Sense::INVALID_FIELD_IN_CDB);
                };
                task.wanted_bytes = wanted_bytes;
                task.transfer_bytes = wanted_bytes.min(offered_bytes);
                // A part of a block cannot be written: refuse the command whole, and say by the
                // residual how much is missing.
                if task.transfer_bytes < wanted_bytes && task.is_data_out() {
                    return task.check(Sense::INVALID_INFORMATION_UNIT);
                }
                Step::Enter(State::NeedBuffer)
            }
            Verdict::Forward => {
                task.work = Work::Forward;
                if task.data_out.total_bytes() != 0 && task.data_in.total_bytes() != 0 {
                    // No command for disks moves data both ways, and the ring has one buffer each.
                    return task.check(Sense::INVALID_INFORMATION_UNIT);
                }
                // The card does not know what the command transfers; the initiator's buffer says
                // how much it can be.
                task.wanted_bytes = task.data_out.total_bytes().max(task.data_in.total_bytes());
                task.transfer_bytes = task.wanted_bytes;
                if task.wanted_bytes == 0 {
                    return Step::Enter(State::NeedBackend);
                }
                Step::Enter(State::NeedBuffer)
            }
        }
    }

    /// In `NeedBuffer` for the first time: takes a buffer unless others wait already.
    fn claim_buffer(&mut self, index: u32) -> Step {
        // A list for each placement: who lacks host memory holds up nobody who needs the card's.
        let list = self.placement(index) as usize;
        if self.need_buffer[list].is_empty()
            && let Some(step) = self.try_claim_buffer(index)
        {
            return step;
        }
        self.counters.buffers_waited += 1;
        self.tasks.at_mut(index).buffer_list = list;
        self.need_buffer[list].push(&mut self.links, index);
        Step::Wait
    }

    /// Where the task's buffer is to lie. Without host memory (no agent yet, a revoke announced)
    /// card memory serves.
    fn placement(&self, index: u32) -> Placement {
        let task = self.tasks.at(index);
        let wished = match task.work {
            Work::Parameter(_) => Placement::CardDram,
            _ => self.units.get(task.unit).map_or(Placement::CardDram, |unit| unit.placement),
        };
        if self.host_cache.is_some() && !self.releasing { wished } else { Placement::CardDram }
    }

    /// `None` when the arena is exhausted for now.
    #[inline(always)]
    pub(crate) fn try_claim_buffer(&mut self, index: u32) -> Option<Step> {
        let placement = self.placement(index);
        let task = self.tasks.at_mut(index);
        let nexus = &mut self.nexuses[task.nexus as usize];
        let claimed = match (placement, self.host_cache.as_mut()) {
            (Placement::HostDram, Some(cache)) => {
                cache.claim(task.wanted_bytes, &mut nexus.host_share)
            }
            _ => self.card_cache.claim(task.wanted_bytes, &mut nexus.card_share),
        };
        let buffer = match claimed {
            Ok(buffer) => buffer,
            Err(ClaimError::Exhausted) => return None,
            Err(ClaimError::ShareExceeded) => return Some(task.end(Status::TaskSetFull)),
            Err(ClaimError::TooLarge) => return Some(task.check(Sense::INVALID_FIELD_IN_CDB)),
        };
        task.buffer = Some(buffer);
        task.host_epoch = self.host_epoch;
        self.trace_task(index, Point::Buffer);
        let task = self.tasks.at_mut(index);
        Some(match task.work {
            Work::Parameter(parameter) => self.fill_parameter(index, &parameter),
            _ if task.is_data_out() => Step::Enter(State::NeedReadRoom),
            _ => Step::Enter(State::NeedBackend),
        })
    }

    /// Writes parameter data into the task's buffer, which is card memory.
    fn fill_parameter(&mut self, index: u32, parameter: &Parameter) -> Step {
        let task = self.tasks.at_mut(index);
        let unit = self.units.get(task.unit).map(|unit| &unit.logical_unit);
        let nexus = &mut self.nexuses[task.nexus as usize];
        let pending = match nexus.luns.get_mut(task.lun as usize) {
            // REQUEST SENSE reports a unit attention as its data and so clears it (SPC-6 6.39).
            Some(lun) if matches!(parameter, Parameter::RequestSense { .. }) => {
                lun.attentions.take()
            }
            // REPORT LUNS tells what this attention is about, and so clears it (SPC-6 6.33).
            Some(lun) if matches!(parameter, Parameter::ReportLuns { .. }) => {
                lun.attentions.clear(UnitAttention::ReportedLunsDataChanged);
                None
            }
            _ => None,
        };
        let Some(buffer) = task.buffer.as_ref() else { return Step::Over };
        let out = self.card_region.bytes_at(buffer.offset(), task.wanted_bytes.min(buffer.bytes()));
        let mut luns = nexus.numbers();
        let length = device_server::fill(parameter, unit, &mut luns, pending, out);
        let length = u32::try_from(length).unwrap_or(0);
        task.wanted_bytes = length;
        task.transfer_bytes = length.min(task.data_in.total_bytes());
        task.status = Status::Good;
        Step::Enter(State::NeedSendRoom)
    }

    /// Out of `NeedBackend`. Access is checked again here, by generation, because data-out may have
    /// been fetched meanwhile (DESIGN section 4, step 6).
    fn submit(&mut self, index: u32) -> Step {
        let token = self.tasks.id_at(index).to_token();
        let task = self.tasks.at_mut(index);
        if task.holds_lost_host_memory(self.host_epoch) {
            return task.check(Sense::COMMAND_ABORTED);
        }
        let Some(unit) = self.units.get_mut(task.unit) else {
            return task.check(Sense::LOGICAL_UNIT_NOT_SUPPORTED);
        };
        if task.access_generation != unit.access_generation
            && !crate::mutant::is(crate::mutant::Mutant::NoRecheckAtSubmit)
        {
            let lun = self.nexuses[task.nexus as usize].luns.get(task.lun as usize);
            self.counters.rechecks += 1;
            let Some(lun) = lun.filter(|lun| lun.mapped && lun.unit == task.unit) else {
                return task.check(Sense::LOGICAL_UNIT_NOT_SUPPORTED);
            };
            let read_only = unit.logical_unit.read_only || lun.read_only;
            if read_only && matches!(task.work, Work::Block(BlockOperation::Write { .. })) {
                return task.check(Sense::WRITE_PROTECTED);
            }
            task.access_generation = unit.access_generation;
        }
        let parity = (task.access_generation & 1) as usize;
        let taken = if unit.backend == BackendKind::CardNull {
            match task.work {
                Work::Block(_) => self.null.submit(token).is_ok(),
                Work::Forward => return task.check(Sense::INVALID_COMMAND_OPERATION_CODE),
                Work::Parameter(_) | Work::Undecided => {
                    return task.check(Sense::INTERNAL_TARGET_FAILURE);
                }
            }
        } else {
            let Some(request) = task.block_request() else {
                return task.check(Sense::INTERNAL_TARGET_FAILURE);
            };
            let submission = Submission {
                token,
                unit: task.unit,
                nexus: self.nexuses[task.nexus as usize].handle,
                configuration_generation: self.configuration.generation,
                nexus_generation: self.nexuses[task.nexus as usize].handle,
                request,
                data: task.buffer.as_ref(),
                data_bytes: task.wanted_bytes,
                cdb: self.receive_region.cdb(task),
            };
            if self.releasing {
                // Nothing new goes to a ring whose memory is about to go.
                if task.buffer.as_ref().map(Buffer::placement) == Some(Placement::HostDram) {
                    return task.end(Status::Busy);
                }
                return self.wait_for_backend(index);
            }
            // Others wait already, and this one is not the first of them.
            let behind = self.need_backend.head().is_some_and(|head| head != index);
            match (self.ring.as_mut(), self.staging_cache.as_mut()) {
                (Some(ring), Some(staging)) if !behind => ring.submit(&submission, staging).is_ok(),
                _ => false,
            }
        };
        if !taken {
            return self.wait_for_backend(index);
        }
        task.at_backend = true;
        task.submitted = true;
        unit.at_backend[parity] += 1;
        self.trace_task(index, Point::Submitted);
        Step::Enter(State::AtBackend)
    }

    fn wait_for_backend(&mut self, index: u32) -> Step {
        if !std::mem::replace(&mut self.tasks.at_mut(index).in_backend_list, true) {
            self.counters.backend_waited += 1;
            self.need_backend.push(&mut self.links, index);
        }
        Step::Wait
    }

    /// The backend's answer: status and sense, then on.
    #[inline(always)]
    pub(crate) fn on_outcome(&mut self, token: u64, outcome: &lunar_backend::Outcome) {
        let Some(id) = self.tasks.live(token) else {
            self.counters.stale_completions += 1;
            return;
        };
        if outcome.required_generation > self.configuration.generation && self.changing.is_none() {
            // The initiator must not hear of it before this group is under that configuration.
            self.ahead.push(*outcome);
            return;
        }
        let index = id.index;
        let task = self.tasks.at_mut(index);
        if !task.at_backend {
            self.counters.stale_completions += 1;
            return;
        }
        task.at_backend = false;
        let parity = (task.access_generation & 1) as usize;
        if let Some(unit) = self.units.get_mut(task.unit) {
            unit.at_backend[parity] -= 1;
        }
        self.trace_task(index, Point::Outcome);
        let task = self.tasks.at_mut(index);
        if task.state == State::Aborting {
            if task.is_quiet() {
                self.over(index);
            }
            return;
        }
        let forwarded = outcome.outcome == lunar_offload_proto::ring::Outcome::Forwarded;
        if forwarded {
            task.status = Status::from_code(outcome.status).unwrap_or(Status::CheckCondition);
            if task.is_data_in() {
                task.wanted_bytes = outcome.transferred_bytes;
                task.transfer_bytes = outcome.transferred_bytes.min(task.data_in.total_bytes());
            }
            self.keep_forwarded_sense(index, outcome);
        } else {
            match device_server::finish(block_outcome(outcome)) {
                Ending::Status(Status::Good) => {}
                Ending::Status(status) => {
                    task.end(status);
                }
                Ending::Sense(sense) => {
                    task.check(sense);
                }
            }
        }
        self.mark_state(index, State::NeedSendRoom);
        self.tasks.at_mut(index).state = State::NeedSendRoom;
        self.advance(index);
    }

    /// Frees everything a task held. Its work requests and its backend token are back.
    pub(crate) fn over(&mut self, index: u32) {
        let id = self.tasks.id_at(index);
        let task = self.tasks.at_mut(index);
        debug_assert!(task.is_quiet(), "a task ended too early");
        let (channel, nexus, lun, unit) = (task.channel, task.nexus, task.lun, task.unit);
        let (membership, attribute) = (task.membership, task.attribute);
        let (receive, silent, awaited) = (task.receive, task.silent, task.awaited);
        let is_command = task.management.is_none();
        let buffer = task.buffer.take();
        let host_epoch = task.host_epoch;
        let fetched = !task.submitted && task.cursor.bytes != 0 && task.is_data_out();
        task.membership = Membership::Outside;
        task.receive = NONE;
        if let Some(buffer) = buffer {
            let nexus = &mut self.nexuses[nexus as usize];
            match (buffer.placement(), self.host_cache.as_mut()) {
                (Placement::CardDram, _) => {
                    self.card_cache.release(buffer, &mut nexus.card_share, self.now);
                }
                (Placement::HostDram, Some(cache)) if host_epoch == self.host_epoch => {
                    // Data-out that was fetched and never submitted must not land in the buffer's
                    // next life: the next batch of the ring flushes it out of the way.
                    if fetched && let Some(ring) = self.ring.as_mut() {
                        ring.flush_before_publish();
                    }
                    cache.release(buffer, &mut nexus.host_share, self.now);
                }
                // Its arena is gone, and its cache and every share of it with it.
                (Placement::HostDram, _) => {}
            }
        }
        if receive != NONE {
            self.repost(receive);
        }
        if is_command && let Some(unit) = self.units.get_mut(unit) {
            unit.active -= 1;
        }
        self.ends_seen |= awaited;
        self.leave_task_set(nexus, lun, membership, attribute);
        if silent {
            self.channels[channel as usize].credit.owe();
            self.nexuses[nexus as usize].counters.aborted += 1;
            let task = self.tasks.at_mut(index);
            task.silent = false;
            task.awaited = false;
            task.unit = NONE;
            if self.request_credit(index) {
                return;
            }
        }
        self.tasks.release(id);
        self.trace_over(index);
        self.nexuses[nexus as usize].tasks -= 1;
        let entry = &mut self.channels[channel as usize];
        entry.slots -= 1;
        if !entry.receives.is_empty() || !entry.is_open() {
            self.wakes.push_back(Wake::Channel(channel));
        }
        if self.need_buffer.iter().any(|list| !list.is_empty()) || !self.need_backend.is_empty() {
            self.wakes.push_back(Wake::Buffers);
        }
    }

    /// Lets go on what the ends since the last call made room for. Called between events and not
    /// from within them, so that one end cannot nest into another however many tasks wait.
    pub(crate) fn run_wakes(&mut self) {
        while let Some(wake) = self.wakes.pop_front() {
            match wake {
                Wake::Dormant { nexus, lun } => self.wake_dormant(nexus, lun),
                Wake::Buffers => {
                    self.wake_buffers();
                    self.wake_backend();
                }
                Wake::Channel(channel) => {
                    self.wake_receives(channel);
                    self.settle_channel(channel);
                }
            }
        }
    }

    /// Takes a task out of its task set and enables what it held back.
    pub(crate) fn leave_task_set(
        &mut self,
        nexus: u32,
        lun: u32,
        membership: Membership,
        attribute: TaskAttribute,
    ) {
        let Some(entry) = self.nexuses[nexus as usize].luns.get_mut(lun as usize) else { return };
        match membership {
            Membership::Outside => return,
            Membership::Enabled => entry.set.ended(attribute),
            Membership::Dormant => entry.set.withdrawn(attribute),
        }
        if !entry.dormant.is_empty() {
            self.wakes.push_back(Wake::Dormant { nexus, lun });
        }
    }

    /// Enables dormant tasks of a task set as far as its rules allow, oldest first.
    fn wake_dormant(&mut self, nexus: u32, lun: u32) {
        loop {
            let Some(entry) = self.nexuses[nexus as usize].luns.get_mut(lun as usize) else {
                return;
            };
            let Some(head) = entry.dormant.head() else { return };
            let attribute = self.tasks.at(head).attribute;
            if !entry.set.wake(attribute) {
                return;
            }
            entry.dormant.pop(&mut self.links);
            self.tasks.at_mut(head).membership = Membership::Enabled;
            self.advance(head);
        }
    }

    /// Gives buffers to the tasks that wait for one, oldest first.
    pub(crate) fn wake_buffers(&mut self) {
        for list in 0..self.need_buffer.len() {
            while let Some(head) = self.need_buffer[list].head() {
                let Some(step) = self.try_claim_buffer(head) else { break };
                self.need_buffer[list].pop(&mut self.links);
                if let Step::Enter(state) = step {
                    self.mark_state(head, state);
                    self.tasks.at_mut(head).state = state;
                    self.advance(head);
                }
            }
        }
    }

    /// Retries the tasks that wait for room in the ring, oldest first.
    pub(crate) fn wake_backend(&mut self) {
        for _ in 0..self.need_backend.len() {
            let Some(head) = self.need_backend.head() else { return };
            self.advance(head);
            if self.tasks.at(head).state != State::NeedBackend {
                // `submit` leaves it where it is; it left the state from the head of the list.
                self.need_backend.pop(&mut self.links);
                self.tasks.at_mut(head).in_backend_list = false;
            } else {
                return;
            }
        }
    }

    /// Marks a task for abort: it answers nothing, gives up what it waits for, and is over once
    /// everything it has outside is back. Never jumps over outstanding work.
    pub(crate) fn abort(&mut self, index: u32) {
        let task = self.tasks.at_mut(index);
        let (state, channel, nexus, lun, unit) =
            (task.state, task.channel as usize, task.nexus, task.lun, task.unit);
        self.trace_task(index, Point::Aborted(state));
        let task = self.tasks.at_mut(index);
        match state {
            // Its response is on the way; it ends by itself, and whoever waits for it still does.
            State::Sending | State::Aborting | State::Managing => return,
            State::Blocked => {
                let entry = self.nexuses[nexus as usize].luns.get_mut(lun as usize);
                if task.membership == Membership::Dormant {
                    if let Some(entry) = entry {
                        entry.dormant.remove(&mut self.links, index);
                    }
                } else if let Some(unit) = self.units.get_mut(unit) {
                    unit.held.remove(&mut self.links, index);
                    // Held tasks were not counted as active yet, and `over` takes one off.
                    unit.active += 1;
                }
            }
            State::NeedBuffer => {
                let list = task.buffer_list;
                self.need_buffer[list].remove(&mut self.links, index);
            }
            State::NeedReadRoom => {
                self.channels[channel].need_read.remove(&mut self.links, index);
            }
            State::NeedBackend => {
                task.in_backend_list = false;
                self.need_backend.remove(&mut self.links, index);
            }
            State::NeedSendRoom => {
                self.channels[channel].need_send.remove(&mut self.links, index);
            }
            State::Fetching => {
                let open = self.channels[channel].is_open();
                if open && crate::mutant::is(crate::mutant::Mutant::LateWriteAfterAbort) {
                    (task.silent, task.awaited) = (true, false);
                    return;
                }
            }
            State::AtBackend => {
                let token = self.tasks.id_at(index).to_token();
                let on_ring =
                    self.units.get(unit).is_some_and(|unit| unit.backend == BackendKind::Ring);
                if on_ring && let Some(ring) = self.ring.as_mut() {
                    ring.cancel(token);
                }
            }
        }
        let task = self.tasks.at_mut(index);
        task.silent = true;
        task.state = State::Aborting;
        if task.is_quiet() {
            self.over(index);
        }
    }
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
        _ => BlockOutcome::HardwareError,
    }
}
