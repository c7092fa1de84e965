//! One channel over the emulated HCA: memory, work requests, connection events. What a reply means
//! is decided in [`crate::ledger`].
//!
//! Single-threaded, polled, without a clock. `submit` and `poll` do not allocate (but for sense data
//! and rare events), so that one core can drive well over a million commands a second.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use lunar_hca::{
    ConnectEvent, ConnectId, EmulatedDevice, EmulatedHca, Fabric, RemoteAccess, RemoteKey,
};
use lunar_pcie::{AddressSpace, Backing, CardMemory, CardRegion};
use lunar_platform::{
    CmEvent, CompletionStatus, Hca, HcaAttributes, Memory, PostError, QpHandle, QpParameters,
    ReceiveRequest, Region, SendOperation, SendRequest, Sge, WorkCompletion, WorkRequestId,
};
use lunar_scsi::task_set::{TaskAttribute, TaskManagementFunction};
use lunar_srp::descriptor::{DESCRIPTOR_BYTES, Descriptor, INDIRECT_HEAD_BYTES, INLINE_COUNT_MAX};
use lunar_srp::iu::{self, BufferLayout, CommandLayout, SolicitedNotification};
use lunar_srp::login::{self, Action, FORMATS, LoginForm, LoginReject, LoginRequest, PortId};

use crate::ledger::{Answer, Event, Ledger, Offer, Scope, SubmitError, Tag, Violation};

/// Requests beside commands that may be outstanding: task management, logout, answers, raw bytes.
const SPARE_REQUESTS: u32 = 16;
/// Receive buffers beyond one a request: what the target may send unasked.
const SPARE_RECEIVES: u32 = 16;
/// Bytes of one receive buffer, which no target's IU may exceed.
const RECEIVE_BYTES: usize = 320;
const _: () = assert!(RECEIVE_BYTES >= iu::RESPONSE_BYTES_MAX);
/// The least IU length an initiator may ask for is 64 bytes; send buffers are a multiple of it.
const SEND_STRIDE_UNIT: usize = 64;
/// Completions reaped at once.
const BATCH: usize = 64;
/// With traffic, connection events are looked for once in so many polls; without, at each.
const CONNECTION_POLL_INTERVAL: u32 = 64;
/// Where the CDB of an SRP_CMD starts.
const CDB_OFFSET: usize = 32;
/// Room for the table of an external list.
const TABLE_BYTES: usize = INLINE_COUNT_MAX * DESCRIPTOR_BYTES;
/// Where Linux's initiator puts immediate data: behind a command with one direct descriptor.
const IMMEDIATE_OFFSET: u16 = 48 + 16 + 4;

/// Work request ids: the kind above, a slot or buffer index below.
const SEND: u64 = 1 << 32;
const RECEIVE: u64 = 2 << 32;

/// How an initiator logs in, and what memory it has.
#[derive(Clone, Debug)]
pub struct Config {
    /// The initiator port.
    pub initiator_port: PortId,
    /// The target port it wants.
    pub target_port: PortId,
    /// Layout of the login request.
    pub form: LoginForm,
    /// What happens to the nexus's other channels at login.
    pub action: Action,
    /// Tells the tags of a nexus's channels apart: each has its own.
    pub tag_space: u8,
    /// Most commands outstanding at a time, at least 1; the target's credits may allow less.
    pub queue_depth: u32,
    /// Bytes of data memory.
    pub data_bytes: usize,
    /// Longest IU in bytes it asks to send, at least 64: 68 and 16 for each indirect piece.
    pub it_iu_bytes: u32,
    /// Longest data-out in bytes that it sends as immediate data, where the target grants that; 0: it
    /// does not ask.
    pub immediate_bytes_max: u32,
}

impl Config {
    /// One channel as Linux's `ib_srp` opens it at SCST's default: SINGLE, InfiniBand form, depth
    /// 128, room for 128 indirect pieces; 8 MiB of data memory.
    #[must_use]
    pub fn new(initiator_port: PortId, target_port: PortId) -> Self {
        Self {
            initiator_port,
            target_port,
            form: LoginForm::InfiniBand,
            action: Action::Single,
            tag_space: 0,
            queue_depth: 128,
            data_bytes: 8 << 20,
            it_iu_bytes: 48 + 20 + 16 * 128,
            immediate_bytes_max: 0,
        }
    }
}

/// Where a command's data lies in the initiator's data memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Data {
    /// No data.
    #[default]
    None,
    /// To the target.
    Out {
        /// First byte in the data memory.
        offset: usize,
        /// Bytes.
        bytes: u32,
    },
    /// From the target.
    In {
        /// First byte in the data memory.
        offset: usize,
        /// Bytes.
        bytes: u32,
    },
}

/// How a command describes its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// One direct descriptor.
    #[default]
    Direct,
    /// An indirect list of `pieces` (1 to 255) ranges, nearly equal in length; those that get no
    /// byte stay in the list with length 0.
    Indirect {
        /// Number of ranges.
        pieces: u8,
    },
    /// As [`Self::Indirect`], but only the first `inline` ranges (fewer than `pieces`) are in the IU: the
    /// target has to fetch the list.
    External {
        /// Number of ranges.
        pieces: u8,
        /// Those in the IU.
        inline: u8,
    },
}

/// A command to submit.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// The LUN field; `lunar_scsi::lun::encode` makes one of a number.
    pub lun: [u8; 8],
    /// The CDB.
    pub cdb: &'a [u8],
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// Its data.
    pub data: Data,
    /// How the data is described.
    pub shape: Shape,
    /// Wish for solicited events.
    pub solicited: SolicitedNotification,
}

impl<'a> Command<'a> {
    /// A SIMPLE command with direct data and no wish for solicited events.
    #[must_use]
    pub fn new(lun: [u8; 8], cdb: &'a [u8], data: Data) -> Self {
        Self {
            lun,
            cdb,
            attribute: TaskAttribute::Simple,
            data,
            shape: Shape::Direct,
            solicited: SolicitedNotification::default(),
        }
    }
}

/// Why a login was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginError {
    /// There is a channel already, or one is still going down.
    Busy,
}

/// What the initiator did so far. All counts, never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Commands sent.
    pub commands: u64,
    /// Commands that were answered.
    pub responses: u64,
    /// Calls of `poll`.
    pub polls: u64,
    /// SENDs that failed (flushes included).
    pub failed_sends: u64,
    /// Logins that were accepted.
    pub logins: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    None,
    /// The login request is on its way.
    Asking(ConnectId),
    Live(QpHandle),
    /// Going down: waits for the last flushed work request.
    Closing(QpHandle),
}

/// One initiator with at most one channel at a time. Multi-channel nexuses are made of several with
/// the same ports and [`Action::Multi`].
pub struct Initiator {
    hca: EmulatedHca,
    fabric: Fabric,
    service: String,
    config: Config,
    connection: Connection,
    ledger: Ledger,
    /// Send buffers, one a ledger slot, then receive buffers.
    control: CardRegion,
    control_remote: RemoteKey,
    send_stride: usize,
    receive_offset: usize,
    /// Where the tables of external lists begin, one a ledger slot.
    table_offset: usize,
    data: CardRegion,
    data_remote: RemoteKey,
    /// Longest IU the target takes, known after login.
    it_iu_bytes_max: usize,
    /// Longest immediate data; 0 where the target did not grant any.
    immediate_bytes_max: u32,
    login_tag: u64,
    /// Something was posted and the doorbell not rung.
    unrung: bool,
    completions: [WorkCompletion; BATCH],
    /// Receive buffers that the SRQ did not take back at once.
    unposted: Vec<u32>,
    pieces: Vec<Descriptor>,
    statistics: Statistics,
}

impl Initiator {
    /// Makes an initiator on `device` that will look for `service` on `fabric`.
    ///
    /// # Errors
    /// No memory or descriptors for its share of the device, or limits that are too high for it.
    pub fn new(
        device: &EmulatedDevice,
        fabric: &Fabric,
        service: &str,
        config: Config,
    ) -> io::Result<Self> {
        let queue_depth = config.queue_depth.max(1);
        let slots = queue_depth + SPARE_REQUESTS;
        let receives = slots + SPARE_RECEIVES;
        let space = AddressSpace::new();
        let mut hca = device.group(
            HcaAttributes {
                // One live, and those of earlier logins until they are destroyed.
                queue_pairs_max: 4,
                send_queue_depth_max: slots,
                shared_receive_queue_depth: receives,
                // Each posted work request completes once.
                completion_queue_depth: slots + receives,
                rdma_reads_max: 16,
                message_bytes_max: 16 << 20,
            },
            space.clone(),
        )?;
        let send_stride = (config.it_iu_bytes as usize).next_multiple_of(SEND_STRIDE_UNIT);
        let receive_offset = send_stride * slots as usize;
        let table_offset = receive_offset + RECEIVE_BYTES * receives as usize;
        let control_bytes = table_offset + TABLE_BYTES * slots as usize;
        let budget = (control_bytes + config.data_bytes.max(1)) as u64;
        let mut memory = CardMemory::new(space, None, Backing::Shared, budget);
        let control = memory.claim(control_bytes).map_err(io::Error::other)?;
        let data = memory.claim(config.data_bytes.max(1)).map_err(io::Error::other)?;
        // Indirect tables lie in the send buffers or behind them, where a target may read them.
        let control_remote =
            hca.register_remote(control.segment(), 0, control_bytes as u64, RemoteAccess::READ)?;
        let data_remote = hca.register_remote(
            data.segment(),
            0,
            config.data_bytes.max(1) as u64,
            RemoteAccess::READ_WRITE,
        )?;
        let mut initiator = Self {
            hca,
            fabric: fabric.clone(),
            service: service.to_owned(),
            config,
            connection: Connection::None,
            ledger: Ledger::new(queue_depth, SPARE_REQUESTS),
            control,
            control_remote,
            send_stride,
            receive_offset,
            table_offset,
            data,
            data_remote,
            it_iu_bytes_max: 0,
            immediate_bytes_max: 0,
            login_tag: 0,
            unrung: false,
            completions: [WorkCompletion::EMPTY; BATCH],
            unposted: (0..receives).collect(),
            pieces: Vec::with_capacity(INLINE_COUNT_MAX),
            statistics: Statistics::default(),
        };
        initiator.ledger.choose_tags(initiator.config.tag_space);
        initiator.post_receives();
        Ok(initiator)
    }

    /// Starts a login. [`Event::LoggedIn`], [`Event::LoginRejected`] or [`Event::LoginFailed`]
    /// follows.
    ///
    /// # Errors
    /// [`LoginError::Busy`].
    pub fn login(&mut self) -> Result<(), LoginError> {
        self.login_tag += 1;
        let request = LoginRequest {
            form: self.config.form,
            tag: self.login_tag,
            it_iu_bytes: self.config.it_iu_bytes,
            formats: FORMATS,
            action: self.config.action,
            immediate_offset: (self.config.immediate_bytes_max != 0).then_some(IMMEDIATE_OFFSET),
            initiator_port: self.config.initiator_port,
            target_port: self.config.target_port,
        };
        let mut private_data = [0; 64];
        let bytes = login::encode_request(&request, &mut private_data).unwrap_or(0);
        self.login_raw(&private_data[..bytes])
    }

    /// Starts a login with any private data at all, for tests of bad ones.
    ///
    /// # Errors
    /// [`LoginError::Busy`].
    pub fn login_raw(&mut self, private_data: &[u8]) -> Result<(), LoginError> {
        if self.connection != Connection::None {
            return Err(LoginError::Busy);
        }
        let parameters = QpParameters {
            send_queue_depth: self.ledger.slot_count() as u32,
            rdma_reads: self.hca.attributes().rdma_reads_max,
        };
        let id = self.hca.connect(&self.fabric, &self.service, parameters, private_data);
        self.connection = Connection::Asking(id);
        Ok(())
    }

    /// Sends a command. The doorbell is rung at the next [`Self::poll`] or [`Self::flush`].
    ///
    /// # Errors
    /// See [`SubmitError`]; nothing was sent.
    #[inline]
    pub fn submit(&mut self, command: &Command<'_>) -> Result<Tag, SubmitError> {
        let (offset, bytes) = match command.data {
            Data::None => (0, 0),
            Data::Out { offset, bytes } | Data::In { offset, bytes } => (offset, bytes),
        };
        if offset.checked_add(bytes as usize).is_none_or(|end| end > self.data.length()) {
            return Err(SubmitError::OutOfRange);
        }
        let (out_bytes, in_bytes) = match command.data {
            Data::None => (0, 0),
            Data::Out { .. } => (bytes, 0),
            Data::In { .. } => (0, bytes),
        };
        let (lun, solicited) = (command.lun, command.solicited);
        let tag = self.ledger.claim_command(Offer { lun, out_bytes, in_bytes, solicited })?;
        let length = self.encode(tag, command, offset, bytes);
        self.send(tag, length)?;
        self.statistics.commands += 1;
        Ok(tag)
    }

    /// Encodes `command` into the send buffer of `tag`.
    #[inline]
    fn encode(
        &mut self,
        tag: Tag,
        command: &Command<'_>,
        offset: usize,
        bytes: u32,
    ) -> Option<usize> {
        let address = self.data_remote.base + offset as u64;
        let whole = Descriptor { address, key: self.data_remote.rkey, length: bytes };
        let send_offset = self.send_stride * tag.index();
        let immediate = self.immediate_bytes_max != 0
            && matches!(command.data, Data::Out { .. })
            && command.cdb.len() <= 16
            && bytes <= self.immediate_bytes_max
            && usize::from(IMMEDIATE_OFFSET) + bytes as usize <= self.it_iu_bytes_max;
        let buffer = match command.shape {
            _ if immediate => BufferLayout::Immediate {
                offset: IMMEDIATE_OFFSET,
                data: self.data.bytes(offset, bytes as usize),
            },
            Shape::Direct => BufferLayout::Direct(whole),
            Shape::Indirect { pieces } => {
                split(&whole, pieces, &mut self.pieces);
                // The table is the list in the IU itself.
                let list_offset = CDB_OFFSET
                    + command.cdb.len().next_multiple_of(4).max(16)
                    + INDIRECT_HEAD_BYTES;
                BufferLayout::Indirect {
                    table_address: self.control_remote.base + (send_offset + list_offset) as u64,
                    table_key: self.control_remote.rkey,
                    pieces: &self.pieces,
                }
            }
            Shape::External { pieces, inline } => {
                split(&whole, pieces, &mut self.pieces);
                let table_offset = self.table_offset + TABLE_BYTES * tag.index();
                let table = self.control.bytes_mut(table_offset, TABLE_BYTES);
                for (to, piece) in table.chunks_exact_mut(DESCRIPTOR_BYTES).zip(&self.pieces) {
                    to.copy_from_slice(&piece.to_bytes());
                }
                BufferLayout::External {
                    table_address: self.control_remote.base + table_offset as u64,
                    table_key: self.control_remote.rkey,
                    pieces: &self.pieces,
                    inline,
                }
            }
        };
        let (data_out, data_in) = match command.data {
            Data::None => (BufferLayout::None, BufferLayout::None),
            Data::Out { .. } => (buffer, BufferLayout::None),
            Data::In { .. } => (BufferLayout::None, buffer),
        };
        let layout = CommandLayout {
            tag: tag.to_wire(),
            lun: command.lun,
            attribute: command.attribute,
            solicited: command.solicited,
            cdb: command.cdb,
            data_out,
            data_in,
        };
        let room = self.send_stride.min(self.it_iu_bytes_max);
        iu::encode_command(&layout, self.control.bytes_mut(send_offset, room))
    }

    /// Posts the SEND of the first `length` bytes of `tag`'s send buffer.
    #[inline]
    fn send(&mut self, tag: Tag, length: Option<usize>) -> Result<(), SubmitError> {
        let posted = match (length, self.connection) {
            (None, _) => Err(SubmitError::TooLong),
            (Some(length), Connection::Live(qp)) => {
                let request = SendRequest {
                    id: WorkRequestId(SEND | tag.index() as u64),
                    operation: SendOperation::Send,
                    local: Sge {
                        address: self.control.base() + (self.send_stride * tag.index()) as u64,
                        length: length as u32,
                        key: self.control.key(),
                    },
                    // Signalled, because the buffer may be used again only after the completion.
                    signaled: true,
                };
                self.hca.post_send(qp, &[request]).map_err(|error| match error {
                    PostError::Full => SubmitError::QueueFull,
                    PostError::NotConnected => SubmitError::NotLoggedIn,
                    PostError::Invalid => SubmitError::TooLong,
                })
            }
            (Some(_), _) => Err(SubmitError::NotLoggedIn),
        };
        match posted {
            Ok(()) => self.unrung = true,
            Err(_) => self.ledger.withdraw(tag),
        }
        posted
    }

    /// The send buffer of `tag`, as long as the target takes IUs.
    fn send_buffer(&mut self, tag: Tag) -> &mut [u8] {
        let room = self.send_stride.min(self.it_iu_bytes_max);
        self.control.bytes_mut(self.send_stride * tag.index(), room)
    }

    /// Sends a task management function for `lun`; `task` is the command that ABORT TASK means.
    ///
    /// # Errors
    /// See [`SubmitError`]; nothing was sent.
    pub fn task_management(
        &mut self,
        function: TaskManagementFunction,
        lun: [u8; 8],
        task: Option<Tag>,
    ) -> Result<Tag, SubmitError> {
        let scope = match (function, task) {
            (TaskManagementFunction::AbortTask, Some(task)) => Scope::Task(task),
            (TaskManagementFunction::AbortTask | TaskManagementFunction::ClearAca, _) => {
                Scope::Nothing
            }
            _ => Scope::LogicalUnit(lun),
        };
        let code = iu::function_code(function);
        // "No request", as ib_srp says it.
        let task_tag = task.map_or(u64::MAX, Tag::to_wire);
        let solicited = SolicitedNotification::default();
        let tag = self.ledger.claim_task_management(scope, solicited)?;
        let buffer = self.send_buffer(tag);
        let length =
            iu::encode_task_management(tag.to_wire(), lun, code, task_tag, solicited, buffer);
        self.send(tag, length)?;
        Ok(tag)
    }

    /// Tells the account that commands of this channel may end without an answer because of task
    /// management over another channel or nexus; until the next login.
    pub fn expect_silent_ends(&mut self) {
        self.ledger.expect_silent_ends();
    }

    /// Sends an SRP_I_LOGOUT; the target closes the channel, and [`Event::Disconnected`] follows.
    ///
    /// # Errors
    /// See [`SubmitError`]; nothing was sent.
    pub fn logout(&mut self) -> Result<(), SubmitError> {
        let tag = self.ledger.claim_unanswered()?;
        let length = iu::encode_logout(tag.to_wire(), self.send_buffer(tag));
        self.send(tag, length)
    }

    /// Sends any bytes as an IU, outside the account of tags and credits: an answer to them is a
    /// violation. For tests of hostile initiators.
    ///
    /// # Errors
    /// See [`SubmitError`]; nothing was sent.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<(), SubmitError> {
        let tag = self.ledger.claim_unanswered()?;
        let stride = self.send_stride;
        let buffer = self.control.bytes_mut(stride * tag.index(), stride);
        let length = buffer.get_mut(..bytes.len()).map(|room| {
            room.copy_from_slice(bytes);
            bytes.len()
        });
        self.send(tag, length)
    }

    /// Closes the channel at once, without a logout. [`Event::Disconnected`] follows.
    pub fn disconnect(&mut self) {
        match self.connection {
            Connection::Live(qp) => self.begin_close(qp),
            // An accept that comes now belongs to no attempt and is closed where it is seen.
            Connection::Asking(_) => self.connection = Connection::None,
            Connection::None | Connection::Closing(_) => {}
        }
    }

    fn begin_close(&mut self, qp: QpHandle) {
        self.ledger.close();
        self.hca.disconnect(qp);
        self.connection = Connection::Closing(qp);
    }

    /// Rings the doorbell if something was posted since the last time.
    #[inline]
    pub fn flush(&mut self) {
        if self.unrung {
            self.unrung = false;
            if let Connection::Live(qp) = self.connection {
                self.hca.ring(qp);
            }
        }
    }

    /// Rings the doorbell, reaps what arrived and appends what it means to `events`.
    #[inline]
    pub fn poll(&mut self, events: &mut Vec<Event>) {
        self.flush();
        self.statistics.polls += 1;
        let mut reaped = 0;
        loop {
            let count = self.hca.poll(&mut self.completions);
            reaped += count;
            for at in 0..count {
                let completion = self.completions[at];
                self.on_completion(&completion, events);
            }
            if count < BATCH {
                break;
            }
        }
        if !self.unposted.is_empty() {
            self.post_receives();
        }
        if reaped == 0 || self.statistics.polls.is_multiple_of(CONNECTION_POLL_INTERVAL.into()) {
            self.poll_connection(events);
        }
        self.flush();
    }

    #[inline]
    fn on_completion(&mut self, completion: &WorkCompletion, events: &mut Vec<Event>) {
        let index = completion.id.0 as u32;
        let success = completion.status == CompletionStatus::Success;
        if completion.id.0 & RECEIVE == 0 {
            self.ledger.sent(index as usize);
            self.statistics.failed_sends += u64::from(!success);
            return;
        }
        if success {
            let offset = self.receive_offset + RECEIVE_BYTES * index as usize;
            let length = (completion.length as usize).min(RECEIVE_BYTES);
            let answerable = events.len();
            let answer = self.ledger.on_reply(self.control.bytes(offset, length), events);
            if let Some(Event::Response { .. }) = events.get(answerable) {
                self.statistics.responses += 1;
            }
            if let Some(answer) = answer {
                self.answer(answer);
            }
        }
        if self.hca.post_receive(self.receive_request(index)).is_err() {
            self.unposted.push(index);
        }
    }

    /// Tells the target what it wants to hear. Best effort: without a slot the answer is left out,
    /// which no target waits for.
    #[cold]
    fn answer(&mut self, answer: Answer) {
        let Ok(tag) = self.ledger.claim_unanswered() else { return };
        let buffer = self.send_buffer(tag);
        let length = match answer {
            Answer::Credit(wire_tag) => iu::encode_credit_response(wire_tag, buffer),
            Answer::Event(wire_tag) => iu::encode_event_response(wire_tag, buffer),
        };
        // A failure means that the channel is going down, which its own event says.
        let _ = self.send(tag, length);
    }

    fn receive_request(&self, index: u32) -> ReceiveRequest {
        let offset = self.receive_offset + RECEIVE_BYTES * index as usize;
        ReceiveRequest {
            id: WorkRequestId(RECEIVE | u64::from(index)),
            local: Sge {
                address: self.control.base() + offset as u64,
                length: RECEIVE_BYTES as u32,
                key: self.control.key(),
            },
        }
    }

    #[cold]
    fn post_receives(&mut self) {
        while let Some(index) = self.unposted.pop() {
            if self.hca.post_receive(self.receive_request(index)).is_err() {
                self.unposted.push(index);
                return;
            }
        }
    }

    fn poll_connection(&mut self, events: &mut Vec<Event>) {
        while let Some(event) = self.hca.poll_connect() {
            self.on_connect(event, events);
        }
        while let Some(event) = self.hca.poll_cm() {
            self.on_connection_event(event, events);
        }
    }

    fn on_connect(&mut self, event: ConnectEvent, events: &mut Vec<Event>) {
        match event {
            ConnectEvent::Accepted { id, qp, private_data } => {
                if self.connection != Connection::Asking(id) {
                    self.hca.disconnect(qp);
                    return;
                }
                self.connection = Connection::Live(qp);
                match self.on_login_response(private_data.as_bytes()) {
                    Ok(event) => events.push(event),
                    Err(what) => {
                        self.ledger.accuse(Violation::LoginResponse(what));
                        events.push(Event::LoginFailed);
                        self.begin_close(qp);
                    }
                }
            }
            ConnectEvent::Rejected { id, private_data } => {
                if self.connection == Connection::Asking(id) {
                    self.connection = Connection::None;
                    events.push(match login::parse_reject(private_data.as_bytes()) {
                        Some(rejection) => Event::LoginRejected {
                            reason: LoginReject::from_code(rejection.reason),
                            code: rejection.reason,
                        },
                        None => Event::LoginFailed,
                    });
                }
            }
            ConnectEvent::Failed { id } => {
                if self.connection == Connection::Asking(id) {
                    self.connection = Connection::None;
                    events.push(Event::LoginFailed);
                }
            }
        }
    }

    /// Judges the REP's private data and opens the account.
    fn on_login_response(&mut self, private_data: &[u8]) -> Result<Event, &'static str> {
        let response =
            login::parse_response(private_data).ok_or("the accept carries no login response")?;
        if response.tag != self.login_tag {
            return Err("the login response has another tag than the request");
        }
        if response.request_limit < 1 {
            return Err("the login response grants no credit");
        }
        if response.it_iu_bytes_max < login::IT_IU_BYTES_MIN {
            return Err("the login response takes no IU that holds a command");
        }
        if response.ti_iu_bytes_max as usize > RECEIVE_BYTES {
            return Err("the target wants to send longer IUs than a response can be");
        }
        self.it_iu_bytes_max = response.it_iu_bytes_max as usize;
        self.immediate_bytes_max =
            if response.immediate { self.config.immediate_bytes_max } else { 0 };
        self.ledger.open(response.request_limit);
        self.statistics.logins += 1;
        Ok(Event::LoggedIn {
            request_limit: response.request_limit.unsigned_abs(),
            it_iu_bytes_max: response.it_iu_bytes_max,
            others: response.others,
        })
    }

    fn on_connection_event(&mut self, event: CmEvent, events: &mut Vec<Event>) {
        let ours = match self.connection {
            Connection::Live(qp) | Connection::Closing(qp) => Some(qp),
            Connection::None | Connection::Asking(_) => None,
        };
        match event {
            CmEvent::Disconnected(qp) if Some(qp) == ours => {
                self.ledger.close();
                self.connection = Connection::Closing(qp);
            }
            CmEvent::QpFatal(qp) if Some(qp) == ours => self.begin_close(qp),
            CmEvent::Drained(qp) => {
                self.hca.destroy(qp);
                if Some(qp) == ours {
                    self.end_channel(events);
                }
            }
            CmEvent::DeviceFatal => match self.connection {
                Connection::None => {}
                Connection::Asking(_) => {
                    self.connection = Connection::None;
                    events.push(Event::LoginFailed);
                }
                Connection::Live(_) | Connection::Closing(_) => self.end_channel(events),
            },
            CmEvent::Established(_)
            | CmEvent::Disconnected(_)
            | CmEvent::QpFatal(_)
            | CmEvent::PortDown
            | CmEvent::PortUp => {}
        }
    }

    fn end_channel(&mut self, events: &mut Vec<Event>) {
        self.connection = Connection::None;
        self.unrung = false;
        self.ledger.lose_all(events);
        events.push(Event::Disconnected);
    }

    /// `range` of the data memory; empty when it is not inside.
    #[inline]
    #[must_use]
    pub fn data(&self, range: Range<usize>) -> &[u8] {
        self.data.bytes(range.start, range.end.saturating_sub(range.start))
    }

    /// `range` of the data memory, for writing; empty when it is not inside. Keep off ranges that an
    /// outstanding command covers.
    #[inline]
    #[must_use]
    pub fn data_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        self.data.bytes_mut(range.start, range.end.saturating_sub(range.start))
    }

    /// Whether commands can be submitted.
    #[must_use]
    pub fn is_logged_in(&self) -> bool {
        matches!(self.connection, Connection::Live(_))
    }

    /// Whether there is no channel and none is on its way: [`Self::login`] may be called.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.connection == Connection::None
    }

    /// Requests the target may still be sent.
    #[must_use]
    pub fn available(&self) -> i64 {
        self.ledger.available()
    }

    /// Requests that were not answered.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.ledger.outstanding()
    }

    /// Above every [`Tag::index`].
    #[must_use]
    pub fn slots(&self) -> usize {
        self.ledger.slot_count()
    }

    /// What the target did against the protocol: the first breaches, oldest first.
    pub fn violations(&self) -> impl Iterator<Item = &Violation> {
        self.ledger.violations()
    }

    /// How many breaches there were.
    #[must_use]
    pub fn violation_count(&self) -> u64 {
        self.ledger.violation_count()
    }

    /// Counters.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// What it is configured to.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its share of the device, for its counters and times.
    #[must_use]
    pub fn hca(&self) -> &EmulatedHca {
        &self.hca
    }

    /// Its share of the device, for fault injection.
    #[must_use]
    pub fn hca_mut(&mut self) -> &mut EmulatedHca {
        &mut self.hca
    }

    /// The live channel's queue pair, for fault injection.
    #[must_use]
    pub fn queue_pair(&self) -> Option<QpHandle> {
        match self.connection {
            Connection::Live(qp) | Connection::Closing(qp) => Some(qp),
            Connection::None | Connection::Asking(_) => None,
        }
    }

    /// The rkey of the data memory, for tests that take it away ([`EmulatedHca::invalidate`]) or
    /// build IUs by hand.
    #[must_use]
    pub fn data_key(&self) -> RemoteKey {
        self.data_remote
    }

    /// Asks for a wake-up through [`Self::event_fd`]; `false` when something is pending already.
    pub fn arm(&mut self) -> bool {
        self.flush();
        self.hca.arm()
    }

    /// Readable at an event after [`Self::arm`].
    #[must_use]
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.hca.event_fd()
    }
}

/// Cuts `whole` into `count` pieces (at least one) of nearly equal length.
fn split(whole: &Descriptor, count: u8, pieces: &mut Vec<Descriptor>) {
    pieces.clear();
    let count = u32::from(count.max(1));
    let (each, longer) = (whole.length / count, whole.length % count);
    let mut address = whole.address;
    for n in 0..count {
        let length = each + u32::from(n < longer);
        pieces.push(Descriptor { address, key: whole.key, length });
        address += u64::from(length);
    }
}

const _: () = assert!(DESCRIPTOR_BYTES == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_whole_without_gaps() {
        let mut pieces = Vec::new();
        for (length, count) in [(4096, 1), (4096, 3), (2, 5), (0, 2), (1 << 20, 255), (512, 0)] {
            let whole = Descriptor { address: 1 << 40, key: 3, length };
            split(&whole, count, &mut pieces);
            assert_eq!(pieces.len(), usize::from(count.max(1)));
            let mut address = whole.address;
            for piece in &pieces {
                assert_eq!((piece.address, piece.key), (address, 3));
                address += u64::from(piece.length);
            }
            assert_eq!(address, whole.address + u64::from(length));
        }
    }
}
