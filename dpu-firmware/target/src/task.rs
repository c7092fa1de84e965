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

use lunar_backend::BlockRequest;
use lunar_dma::sgv::{Buffer, Placement};
use lunar_platform::Nanoseconds;
use lunar_scsi::device_server::{BlockOperation, Parameter};
use lunar_scsi::sense::Sense;
use lunar_scsi::status::Status;
use lunar_scsi::task_set::{TaskAttribute, TaskManagementFunction};
use lunar_srp::descriptor::{DataBuffer, Descriptor};
use lunar_srp::iu::{FIXED_CDB_BYTES, SolicitedNotification};

use crate::fifo::NONE;
use crate::statistics::OperationKind;

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
    /// The queue pair refused a chain: the task is over, and its channel must be closed.
    Refused,
}

/// What may go on because a task ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wake {
    /// The dormant tasks of a task set.
    Dormant { nexus: u32, lun: u32 },
    /// The task that has to be alone on this unit.
    Alone { unit: u32 },
    /// Tasks that wait for a buffer.
    Buffers,
    /// Messages that wait for a slot of this channel, or its end.
    Channel(u32),
}

/// What a task has to do, decided by the device server when it left `Blocked`.
#[derive(Clone, Copy, Debug)]
#[repr(u8)] // A tag of its own: telling one packed into the operations costs more than the byte.
pub(crate) enum Work {
    Undecided,
    Block(BlockOperation),
    Forward,
    // From here on the card itself reads or writes the data: see `needs_card_memory`.
    Parameter(Parameter),
    /// UNMAP, whose data-out says what.
    UnmapList,
    /// GET LBA STATUS of a unit whose backing knows.
    LbaStatus {
        lba: u64,
        allocation: u32,
    },
}

impl Work {
    /// Whether its data has to lie where the card's cores can reach it.
    #[inline(always)]
    pub(crate) fn needs_card_memory(&self) -> bool {
        matches!(self, Self::Parameter(_) | Self::UnmapList | Self::LbaStatus { .. })
    }
}

/// Which way a command's data goes, seen from the initiator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Direction {
    /// None goes, or it is not decided yet.
    #[default]
    None,
    /// To the initiator.
    In,
    /// From the initiator.
    Out,
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
    /// Decided together with `work`.
    pub direction: Direction,
    /// Which statistics it counts in.
    pub kind: OperationKind,
    /// What a block operation moves is exactly what the initiator offered, at ranges that are known: no
    /// residual, and no list to fetch.
    pub fits: bool,
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
    /// The CDB's first bytes; the rest, if `cdb_bytes` says that there is one, lies in the IU.
    pub cdb: [u8; FIXED_CDB_BYTES],
    pub cdb_bytes: u16,
    pub data_in: DataBuffer,
    pub data_out: DataBuffer,
    pub buffer: Option<Buffer>,
    /// Card memory for the list of ranges that had to be fetched from the initiator.
    pub table: Option<Buffer>,
    /// Which list of [`Kit::need_buffer`](crate::kit::Kit::need_buffer) it waits in.
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

/// What a task has from its first moment.
pub(crate) struct Arrival {
    pub tag: u64,
    pub attribute: TaskAttribute,
    pub notification: SolicitedNotification,
    pub channel: u32,
    pub nexus: u32,
    pub lun: u32,
    pub unit: u32,
    pub receive: u32,
    pub iu_bytes: u32,
    pub cdb_bytes: u16,
    pub started: Nanoseconds,
}

impl Task {
    /// A slot without a task.
    pub(crate) fn vacant() -> Self {
        Self {
            state: State::Blocked,
            membership: Membership::Outside,
            attribute: TaskAttribute::Simple,
            work: Work::Undecided,
            direction: Direction::None,
            kind: OperationKind::Other,
            fits: false,
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
            cdb: [0; FIXED_CDB_BYTES],
            cdb_bytes: 0,
            data_in: DataBuffer::None,
            data_out: DataBuffer::None,
            buffer: None,
            table: None,
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

    /// Makes the slot ready for the task that arrived. Field by field: of an enum only the tag is
    /// written, where a whole new value would be built and copied.
    #[inline(always)]
    pub(crate) fn renew(&mut self, arrival: Arrival) {
        // Named one by one, so that no field can be forgotten.
        let Self {
            state,
            membership,
            attribute,
            work,
            direction,
            kind,
            fits,
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
            cdb: _,
            cdb_bytes,
            data_in,
            data_out,
            buffer,
            // Given back by whoever answered or ended the task before.
            table: _,
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
        *attribute = arrival.attribute;
        *work = Work::Undecided;
        *direction = Direction::None;
        (*kind, *fits) = (OperationKind::Other, false);
        (*silent, *awaited, *at_backend) = (false, false, false);
        (*submitted, *in_backend_list, *buffer_list) = (false, false, 0);
        *notification = arrival.notification;
        (*channel, *nexus) = (arrival.channel, arrival.nexus);
        (*lun, *unit) = (arrival.lun, arrival.unit);
        (*tag, *receive, *iu_bytes) = (arrival.tag, arrival.receive, arrival.iu_bytes);
        *cdb_bytes = arrival.cdb_bytes;
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
        *started = arrival.started;
        *management = None;
    }

    /// Whether nothing of it is outside: no work request, no backend token.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        self.batch == Batch::None && !self.at_backend
    }

    /// Whether its buffer was in a life of the host's memory that is over.
    #[inline]
    pub(crate) fn holds_lost_host_memory(&self, host_epoch: u32) -> bool {
        self.host_epoch != host_epoch
            && self.buffer.as_ref().is_some_and(|buffer| buffer.placement() == Placement::HostDram)
    }

    /// What a command with data-out waits for first. Immediate data is there already, and stays in the
    /// receive buffer until the backend is done with it.
    #[inline]
    pub(crate) fn need_of_data_out(&self) -> State {
        match self.data_out {
            DataBuffer::Immediate { .. } => State::NeedBackend,
            _ => State::NeedBuffer,
        }
    }

    /// The list of ranges that has to be fetched from the initiator before data can move: place in the
    /// initiator's memory, and length.
    pub(crate) fn table_wanted(&self) -> Option<Descriptor> {
        match self.data(self.direction) {
            DataBuffer::External { table, .. } if self.direction != Direction::None => Some(*table),
            _ => None,
        }
    }

    /// The initiator's buffer for data in `direction`.
    #[inline(always)]
    pub(crate) fn data(&self, direction: Direction) -> &DataBuffer {
        match direction {
            Direction::In => &self.data_in,
            Direction::Out | Direction::None => &self.data_out,
        }
    }

    /// The only range of the initiator's memory that it moves in `direction`, with nothing of it moved
    /// yet: nearly every command's. It is at least as long as the transfer, which it bounds.
    #[inline(always)]
    pub(crate) fn only_range(&self, direction: Direction) -> Option<Descriptor> {
        match (self.data(direction), self.cursor.descriptors) {
            (DataBuffer::Direct(descriptor), 0) => Some(*descriptor),
            _ => None,
        }
    }

    /// Whether its data-in phase moves anything.
    #[inline]
    pub(crate) fn moves_data_in(&self) -> bool {
        self.direction == Direction::In && self.transfer_bytes != 0 && self.status == Status::Good
    }

    /// What the backend is asked for by the work that nearly every task has; `None` for the rest.
    #[inline]
    pub(crate) fn block_request(&self) -> Option<BlockRequest> {
        Some(match self.work {
            Work::Block(BlockOperation::Read { lba, blocks }) => BlockRequest::Read { lba, blocks },
            Work::Block(BlockOperation::Write { lba, blocks, fua }) => {
                BlockRequest::Write { lba, blocks, fua }
            }
            Work::Block(BlockOperation::Flush { lba, blocks }) => {
                BlockRequest::Flush { lba, blocks }
            }
            Work::Forward => BlockRequest::Forward { data_out: self.data_out.total_bytes() != 0 },
            _ => return None,
        })
    }

    /// [`Self::block_request`] of the rarer block operations.
    #[cold]
    pub(crate) fn rare_request(&self) -> Option<BlockRequest> {
        let Work::Block(operation) = self.work else { return None };
        Some(match operation {
            // The amount of data says what is compared.
            BlockOperation::Compare { lba, blocks, check: _ } => {
                BlockRequest::Compare { lba, blocks }
            }
            BlockOperation::CompareAndWrite { lba, blocks, fua } => {
                BlockRequest::CompareAndWrite { lba, blocks, fua }
            }
            BlockOperation::WriteAndVerify { lba, blocks } => {
                BlockRequest::WriteAndVerify { lba, blocks }
            }
            BlockOperation::OrWrite { lba, blocks, fua } => {
                BlockRequest::OrWrite { lba, blocks, fua }
            }
            // And here whether there is any.
            BlockOperation::WriteSame { lba, blocks, zeros: _, unmap } => {
                BlockRequest::WriteSame { lba, blocks, unmap }
            }
            BlockOperation::Read { .. }
            | BlockOperation::Write { .. }
            | BlockOperation::Flush { .. }
            | BlockOperation::Unmap { .. }
            | BlockOperation::LbaStatus { .. } => return None,
        })
    }

    /// Ends with `sense`; nothing of the data phase follows.
    pub(crate) fn check(&mut self, sense: Sense) -> Step {
        self.status = Status::CheckCondition;
        self.sense = Some(sense);
        self.transfer_bytes = 0;
        Step::Enter(State::NeedSendRoom)
    }

    /// Ends with `status` and no sense.
    pub(crate) fn end(&mut self, status: Status) -> Step {
        self.status = status;
        self.transfer_bytes = 0;
        Step::Enter(State::NeedSendRoom)
    }
}
