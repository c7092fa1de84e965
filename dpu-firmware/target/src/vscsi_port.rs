//! VSCSI under the SRP port: adapters of client partitions (PAPR, virtual SCSI) as the transport of a poll group.
//!
//! [`VscsiPort`] is to a poll group what an RDMA provider is: connections, messages, data phases, completions. What is
//! above that (tasks, task sets, nexuses, reservations, buffers, backends) is one code for both transports. The life of
//! an adapter is decided by `lunar_vscsi::adapter`; here its actions become calls of the hypervisor, and the calls'
//! ends become events and work completions. No SCSI lives here.
//!
//! | the poll group says | and means here |
//! |---|---|
//! | connection request | an SRP_LOGIN_REQ that the adapter let pass, as an InfiniBand initiator would have sent it |
//! | message | an IU, copied into a receive buffer, with its LUN in the form that SRP's initiators use |
//! | RDMA READ, RDMA WRITE | H_COPY_RDMA, in pieces of at most [`COPY_BYTES_MAX`] |
//! | SEND of a response | H_COPY_RDMA over the request's IU, then H_SEND_CRQ |
//! | SEND of anything else | nothing: a VSCSI client knows no request of a target |
//!
//! Login and datagrams are rare and may allocate; commands do not.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, Sender, channel};

use lunar_platform::{
    AnsweredRequest, CmError, CmEvent, CompletionStatus, ConnectRequest, Delivery, Hca,
    HcaAttributes, Hypervisor, HypervisorEvent, HypervisorOperation, HypervisorRequest, Listener,
    Nanoseconds, PeerAddress, PostError, PrivateData, QpHandle, QpParameters, ReceiveRequest,
    SendOperation, SendRequest, Sge, UnitAddress, WorkCompletion, WorkRequestId,
};
use lunar_scsi::lun;
use lunar_scsi::reservations::TransportId;
use lunar_srp::login::{LoginReject, LoginRequest, PortId};
use lunar_srp::wire;
use lunar_vscsi::adapter::{Action, Actions, Adapter, Event, Reason, Taken};
use lunar_vscsi::crq::{Answer, CrqStatus, Entry, IuKind, Request};
use lunar_vscsi::descriptor::COPY_BYTES_MAX;
use lunar_vscsi::hcall::{Copied, Freed, Registered, Sent, code};
use lunar_vscsi::mad::{HEADER_BYTES, Mad, MadStatus, PAYLOAD_BYTES_MAX, ServerPartition, Step};
use lunar_vscsi::response;

/// Where a datagram's payload is put in the receive buffer that its IU lies in.
const PAYLOAD_OFFSET: usize = lunar_vscsi::IU_BYTES_MAX as usize;
/// Bytes that a receive buffer must have.
pub const RECEIVE_BYTES_MIN: u32 = (PAYLOAD_OFFSET + PAYLOAD_BYTES_MAX) as u32;
/// Requests beyond its limit that a client may have waiting for a receive buffer: a login, and one too many.
const WAITING_SPARE: usize = 2;
/// Reasons kept for [`VscsiPort::take_reason`]; older ones are forgotten.
const REASONS_MAX: usize = 64;
/// Events taken from the hypervisor at a time.
const EVENTS_MAX: usize = 32;

/// One adapter of a [`VscsiPort`].
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// Its unit address at the hypervisor.
    pub unit: UnitAddress,
    /// What the client is told of us.
    pub server: ServerPartition,
    /// Requests that the client may have outstanding; the target's request limit.
    pub request_limit: u32,
    /// What the client's end is called above the transport.
    pub initiator_port: PortId,
    /// The port of the target that it logs in to.
    pub target_port: PortId,
    /// The client in words, for access patterns and logs: "partition 3".
    pub peer: PeerAddress,
}

impl AdapterConfig {
    /// The adapter at `unit` of client partition `partition`, which logs in to `target_port`. It is named as reservations name
    /// it.
    #[must_use]
    pub fn of_partition(
        unit: UnitAddress,
        server: ServerPartition,
        partition: u32,
        target_port: PortId,
        request_limit: u32,
    ) -> Self {
        Self {
            unit,
            server,
            request_limit,
            initiator_port: PortId(TransportId::vscsi_port(partition, unit.0)),
            target_port,
            peer: PeerAddress::new(&format!("partition {partition}")),
        }
    }
}

/// A login that was not answered yet. Dropping it refuses it.
pub struct VscsiConnection {
    link: usize,
    serial: u64,
    refusals: Sender<Refusal>,
    answered: bool,
}

/// A login that is refused, with the SRP_LOGIN_REJ.
struct Refusal {
    link: usize,
    serial: u64,
    bytes: PrivateData,
}

impl VscsiConnection {
    fn refuse(&mut self, bytes: &[u8]) {
        if !std::mem::replace(&mut self.answered, true) {
            let (link, serial) = (self.link, self.serial);
            // A port that is gone needs no answer.
            let _ = self.refusals.send(Refusal { link, serial, bytes: PrivateData::new(bytes) });
        }
    }
}

impl Drop for VscsiConnection {
    fn drop(&mut self) {
        self.refuse(&[]);
    }
}

/// The logins of a [`VscsiPort`], for the coordinator.
pub struct VscsiListener(Receiver<ConnectRequest<VscsiConnection>>);

impl Listener for VscsiListener {
    type Connection = VscsiConnection;

    fn poll(&mut self) -> Option<ConnectRequest<VscsiConnection>> {
        self.0.try_recv().ok()
    }

    fn reject(&mut self, mut connection: VscsiConnection, private_data: &[u8]) {
        connection.refuse(private_data);
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// An entry for the client's queue.
#[derive(Clone, Copy, Debug)]
struct Outgoing {
    entry: Entry,
    of: EntryOf,
}

#[derive(Clone, Copy, Debug)]
enum EntryOf {
    /// Handshake and PING RESPONSE.
    Adapter,
    /// A response of the poll group, by its work request.
    Task(WorkRequestId),
    /// What is answered here, in the receive buffer of the request.
    Own(ReceiveRequest),
}

/// A call of the hypervisor on its way.
#[derive(Clone, Copy, Debug)]
enum Call {
    Register,
    Free,
    Ready,
    Entry,
    /// A request's IU comes into a receive buffer.
    Fetch(ReceiveRequest, Request),
    /// A datagram's payload comes behind its IU.
    Payload(ReceiveRequest, Mad, u64),
    /// A datagram's payload goes back.
    PayloadBack,
    /// Data of a task. The last piece of a signaled work request has its id.
    Data {
        to_client: bool,
        id: Option<WorkRequestId>,
    },
    /// An answer takes the place of its request; then its entry is sent.
    Answer(Outgoing),
}

/// A receive buffer that the poll group shows us, or gets.
#[derive(Clone, Copy)]
struct Shown {
    link: usize,
    receive: ReceiveRequest,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Fetched(Request),
    Payload {
        mad: Mad,
        address: u64,
        fetched: bool,
    },
    /// The answer to the login whose IU lies there.
    Login {
        address: u64,
        answer: PrivateData,
        tag: u64,
    },
}

/// A login that the poll group decides on.
#[derive(Clone, Copy)]
struct Asking {
    receive: ReceiveRequest,
    address: u64,
    request: LoginRequest,
    /// The coordinator has it.
    is_put: bool,
}

/// One adapter, and what the poll group has of it.
struct Link {
    config: AdapterConfig,
    adapter: Adapter,
    /// The queue pair that it is to the poll group; its generation counts connections.
    qp: QpHandle,
    /// The poll group has the queue pair.
    is_known: bool,
    /// It is in the error state: what is posted is flushed.
    is_over: bool,
    /// The poll group was told that everything is back.
    is_drained: bool,
    /// Tags and I/O addresses of requests in the poll group's hands.
    requests: Vec<(u64, u64)>,
    /// What the next SEND carries: where to, and the entry after it.
    answer: Option<(u64, Entry)>,
    /// Entries for the client, oldest first.
    entries: VecDeque<Outgoing>,
    /// The first of them is with the hypervisor.
    is_sending: bool,
    /// The client's queue was full; when to try again.
    send_again_at: Option<u64>,
    /// Requests that wait for a receive buffer.
    waiting: VecDeque<Request>,
    /// Calls on their way for the queue pair.
    calls: u32,
    asking: Option<Asking>,
    serial: u64,
}

/// See the module's text.
pub struct VscsiPort<H> {
    hypervisor: H,
    attributes: HcaAttributes,
    device: u16,
    links: Vec<Link>,
    receives: VecDeque<ReceiveRequest>,
    /// The adapter that a waiting request of was fetched last.
    served: usize,
    /// Calls on their way, by id, and the ids that are free.
    calls: Vec<Option<(usize, Call)>>,
    free_calls: Vec<usize>,
    /// Calls that the hypervisor had no room for.
    unmade: VecDeque<HypervisorRequest>,
    shown: VecDeque<Shown>,
    completions: VecDeque<WorkCompletion>,
    events: VecDeque<CmEvent>,
    logins: Sender<ConnectRequest<VscsiConnection>>,
    refusals: (Sender<Refusal>, Receiver<Refusal>),
    /// Why connections ended, for the log.
    reasons: VecDeque<(UnitAddress, Reason)>,
    now: u64,
}

impl<H: Hypervisor> VscsiPort<H> {
    /// A port with these adapters, all enabled, and its listener. `receives`: receive buffers that it holds; `device`: its
    /// place among the card's transports, as connection requests name it.
    #[must_use]
    pub fn new(
        hypervisor: H,
        adapters: Vec<AdapterConfig>,
        receives: u32,
        device: u16,
    ) -> (Self, VscsiListener) {
        let (logins, listener) = channel();
        let queue_pairs = u32::try_from(adapters.len()).unwrap_or(u32::MAX);
        let links: Vec<Link> =
            (0..).zip(adapters).map(|(index, adapter)| Link::new(index, adapter)).collect();
        let attributes = HcaAttributes {
            queue_pairs_max: queue_pairs,
            send_queue_depth_max: 4096,
            shared_receive_queue_depth: receives,
            completion_queue_depth: u32::MAX,
            rdma_reads_max: 128,
            message_bytes_max: u32::MAX,
        };
        let mut port = Self {
            hypervisor,
            attributes,
            device,
            links,
            receives: VecDeque::with_capacity(receives as usize),
            served: 0,
            calls: Vec::new(),
            free_calls: Vec::new(),
            unmade: VecDeque::new(),
            shown: VecDeque::with_capacity(receives as usize),
            completions: VecDeque::with_capacity(receives as usize),
            events: VecDeque::new(),
            logins,
            refusals: channel(),
            reasons: VecDeque::new(),
            now: 0,
        };
        for link in 0..port.links.len() {
            port.happen(link, Event::Enable);
        }
        (port, VscsiListener(listener))
    }

    /// Why a connection ended, oldest first, each told once.
    pub fn take_reason(&mut self) -> Option<(UnitAddress, Reason)> {
        self.reasons.pop_front()
    }

    /// The hypervisor, for its owner.
    pub fn hypervisor_mut(&mut self) -> &mut H {
        &mut self.hypervisor
    }

    /// The adapter hears of an event, and what it wants is done.
    #[inline]
    fn happen(&mut self, link: usize, event: Event) {
        let actions = self.links[link].adapter.on_event(event, self.now);
        if !actions.is_empty() {
            self.act(link, actions);
        }
    }

    fn act(&mut self, link: usize, actions: Actions) {
        for action in actions {
            match action {
                Action::Register => {
                    self.call(link, Call::Register, HypervisorOperation::RegisterQueue);
                }
                Action::Free => self.call(link, Call::Free, HypervisorOperation::FreeQueue),
                Action::Send(entry) => self.send(link, Outgoing { entry, of: EntryOf::Adapter }),
                Action::SendAgain(at) => self.links[link].send_again_at = Some(at),
                Action::Fetch(request) => self.fetch(link, request),
                Action::ConnectionOver(reason) => self.on_over(link, reason),
                Action::Abandon => self.abandon(link),
                Action::ReadyForSuspend => {
                    self.call(link, Call::Ready, HypervisorOperation::ReadyForSuspend);
                }
                Action::GaveUp(reason) => {
                    self.note(link, reason);
                }
            }
        }
    }

    fn note(&mut self, link: usize, reason: Reason) {
        if self.reasons.len() == REASONS_MAX {
            self.reasons.pop_front();
        }
        self.reasons.push_back((self.links[link].config.unit, reason));
    }

    fn call(&mut self, link: usize, call: Call, operation: HypervisorOperation) {
        let place = self.free_calls.pop().unwrap_or_else(|| {
            self.calls.push(None);
            self.calls.len() - 1
        });
        self.calls[place] = Some((link, call));
        let unit = self.links[link].config.unit;
        self.unmade.push_back(HypervisorRequest { id: place as u64, unit, operation });
        self.make_calls();
    }

    /// One of the adapter's requests is over: nothing of it is on its way any more.
    fn end_request(&mut self, link: usize) {
        debug_assert!(self.links[link].adapter.requests_in_flight() > 0, "a request ends once");
        self.happen(link, Event::RequestEnded);
    }

    /// Makes what calls there is room for.
    fn make_calls(&mut self) {
        while let Some(request) = self.unmade.front()
            && self.hypervisor.room() > 0
            && self.hypervisor.submit(*request).is_ok()
        {
            self.unmade.pop_front();
        }
    }

    fn fetch(&mut self, link: usize, request: Request) {
        let Some(receive) = self.receives.pop_front() else {
            let entry = &mut self.links[link];
            let limit = entry.config.request_limit as usize + WAITING_SPARE;
            if entry.waiting.len() < limit {
                return entry.waiting.push_back(request);
            }
            // All of its credits would not explain so many.
            self.end_request(link);
            return self.happen(link, Event::Flooded);
        };
        let local = Sge { length: request.iu_bytes.into(), ..receive.local };
        let client_address = request.address;
        let operation = HypervisorOperation::CopyIn { client_address, local };
        self.call(link, Call::Fetch(receive, request), operation);
    }

    /// A receive buffer is free.
    fn give_back(&mut self, receive: ReceiveRequest) {
        self.receives.push_back(receive);
        // The adapters take turns.
        let count = self.links.len();
        let mut turns = (1..=count).map(|place| (self.served + place) % count);
        if let Some(link) = turns.find(|link| !self.links[*link].waiting.is_empty())
            && let Some(request) = self.links[link].waiting.pop_front()
        {
            self.served = link;
            self.fetch(link, request);
        }
    }

    fn send(&mut self, link: usize, outgoing: Outgoing) {
        self.links[link].entries.push_back(outgoing);
        self.send_next(link);
    }

    /// Entries go one by one, because one that finds the client's queue full keeps its place.
    fn send_next(&mut self, link: usize) {
        let entry = &mut self.links[link];
        if entry.is_sending || entry.send_again_at.is_some() {
            return;
        }
        if let Some(outgoing) = entry.entries.front() {
            let bytes = outgoing.entry.to_bytes();
            entry.is_sending = true;
            self.call(link, Call::Entry, HypervisorOperation::SendEntry(bytes));
        }
    }

    fn on_entry_sent(&mut self, link: usize, code: i64) {
        let entry = &mut self.links[link];
        entry.is_sending = false;
        let sent = Sent::from_code(code);
        // It is out of the queue while the adapter hears of it, whose own next entry may follow at once.
        let Some(outgoing) = entry.entries.pop_front() else { return };
        let event = match outgoing.of {
            EntryOf::Adapter => Event::Sent(sent),
            EntryOf::Task(_) | EntryOf::Own(_) => Event::AnswerSent(sent),
        };
        self.happen(link, event);
        let entry = &mut self.links[link];
        if entry.send_again_at.is_some() {
            return entry.entries.push_front(outgoing);
        }
        let status = match sent {
            Sent::Delivered => CompletionStatus::Success,
            _ => CompletionStatus::Flushed,
        };
        self.end_outgoing(link, outgoing, status);
        self.send_next(link);
    }

    /// An answer left, or will not.
    fn end_outgoing(&mut self, link: usize, outgoing: Outgoing, status: CompletionStatus) {
        match outgoing.of {
            EntryOf::Adapter => {}
            EntryOf::Task(id) => {
                self.complete(link, id, status);
                self.end_request(link);
            }
            EntryOf::Own(receive) => {
                self.give_back(receive);
                self.end_request(link);
            }
        }
    }

    fn complete(&mut self, link: usize, id: WorkRequestId, status: CompletionStatus) {
        let qp = self.links[link].qp;
        self.completions.push_back(WorkCompletion { id, status, qp, length: 0 });
    }

    /// The connection is over: the poll group is told, and the login that it may be deciding on is forgotten.
    fn on_over(&mut self, link: usize, reason: Reason) {
        self.note(link, reason);
        let entry = &mut self.links[link];
        entry.send_again_at = None;
        entry.answer = None;
        if entry.is_known && !std::mem::replace(&mut entry.is_over, true) {
            self.events.push_back(CmEvent::Disconnected(entry.qp));
        }
        if let Some(asking) = entry.asking.take() {
            self.give_back(asking.receive);
            self.end_request(link);
        }
    }

    /// What waits to be sent is thrown away.
    fn abandon(&mut self, link: usize) {
        let entry = &mut self.links[link];
        // The first of them may be with the hypervisor: its return is the end of it.
        let kept = usize::from(entry.is_sending);
        let thrown: Vec<Outgoing> = entry.entries.drain(kept.min(entry.entries.len())..).collect();
        let waiting = std::mem::take(&mut entry.waiting);
        for outgoing in thrown {
            if matches!(outgoing.of, EntryOf::Adapter) {
                self.happen(link, Event::Sent(Sent::PartnerAbsent));
            }
            self.end_outgoing(link, outgoing, CompletionStatus::Flushed);
        }
        for _ in waiting {
            self.end_request(link);
        }
        for id in self.take_unmade(link) {
            self.on_returned(id, code::CLOSED);
        }
    }

    /// Calls for requests of this adapter that were not made yet. They need not be: the client may use its memory for
    /// something else by now.
    fn take_unmade(&mut self, link: usize) -> Vec<u64> {
        let mut taken = Vec::new();
        let calls = &self.calls;
        self.unmade.retain(|request| {
            let call = usize::try_from(request.id).ok().and_then(|place| calls.get(place));
            let is_made = match call {
                Some(Some((of, call))) if *of == link => {
                    matches!(call, Call::Register | Call::Free | Call::Ready)
                }
                _ => true,
            };
            if !is_made {
                taken.push(request.id);
            }
            is_made
        });
        taken
    }

    /// Nothing of a connection that is over is on its way any more: the poll group is told, and when it has let go of the
    /// queue pair, what it left undone ends and the next login is put to it.
    fn settle(&mut self, link: usize) {
        let entry = &mut self.links[link];
        let waits = |outgoing: &Outgoing| matches!(outgoing.of, EntryOf::Task(_));
        if entry.calls != 0 || entry.entries.iter().any(waits) {
            return;
        }
        if entry.is_known {
            if entry.is_over && !std::mem::replace(&mut entry.is_drained, true) {
                self.events.push_back(CmEvent::Drained(entry.qp));
            }
            return;
        }
        while self.links[link].requests.pop().is_some() {
            self.end_request(link);
        }
        self.put_login(link);
    }

    fn on_returned(&mut self, id: u64, code: i64) {
        let Some(place) = usize::try_from(id).ok().filter(|place| *place < self.calls.len()) else {
            return;
        };
        let Some((link, call)) = self.calls[place].take() else { return };
        self.free_calls.push(place);
        match call {
            Call::Register => self.happen(link, Event::Registered(Registered::from_code(code))),
            Call::Free => self.happen(link, Event::Freed(Freed::from_code(code))),
            Call::Ready => {}
            Call::Entry => self.on_entry_sent(link, code),
            Call::Fetch(receive, request) => {
                self.on_fetched(link, receive, request, Copied::from_code(code, false));
            }
            Call::Payload(receive, mad, address) => {
                let copied = Copied::from_code(code, false);
                if matches!(copied, Copied::WindowClosed | Copied::Failed(_)) {
                    self.happen(link, Event::CopyFailed(copied));
                }
                let fetched = copied == Copied::Done;
                self.show(
                    Shown { link, receive, what: What::Payload { mad, address, fetched } },
                    0,
                );
            }
            Call::PayloadBack => self.on_copied(link, Copied::from_code(code, true)),
            Call::Data { to_client, id } => {
                self.links[link].calls -= 1;
                let copied = Copied::from_code(code, to_client);
                self.on_copied(link, copied);
                let is_over = self.links[link].is_over;
                match (id, copied) {
                    (Some(id), Copied::Done) if !is_over => {
                        self.complete(link, id, CompletionStatus::Success);
                    }
                    (Some(id), _) => self.complete(link, id, CompletionStatus::Flushed),
                    (None, _) => {}
                }
            }
            Call::Answer(outgoing) => {
                let is_task = matches!(outgoing.of, EntryOf::Task(_));
                self.links[link].calls -= u32::from(is_task);
                self.on_copied(link, Copied::from_code(code, true));
                let entry = &self.links[link];
                if entry.adapter.answers_wanted() && !(is_task && entry.is_over) {
                    self.send(link, outgoing);
                } else {
                    self.end_outgoing(link, outgoing, CompletionStatus::Flushed);
                }
            }
        }
        self.settle(link);
    }

    /// A copy that went wrong ends the connection: what it was for cannot be answered as if it had not.
    fn on_copied(&mut self, link: usize, copied: Copied) {
        if copied != Copied::Done {
            self.happen(link, Event::CopyFailed(copied));
        }
    }

    fn on_fetched(
        &mut self,
        link: usize,
        receive: ReceiveRequest,
        request: Request,
        copied: Copied,
    ) {
        if copied == Copied::Done && self.links[link].adapter.answers_wanted() {
            let bytes = request.iu_bytes.into();
            return self.show(Shown { link, receive, what: What::Fetched(request) }, bytes);
        }
        self.on_copied(link, copied);
        self.give_back(receive);
        self.end_request(link);
    }

    /// Has the poll group show us a receive buffer.
    fn show(&mut self, shown: Shown, length: u32) {
        let qp = self.links[shown.link].qp;
        let id = shown.receive.id;
        self.shown.push_back(shown);
        let status = CompletionStatus::Success;
        self.completions.push_back(WorkCompletion { id, status, qp, length });
    }

    /// An IU that was fetched. Gives its length when it is the poll group's.
    fn take(&mut self, shown: Shown, request: Request, buffer: &mut [u8]) -> Option<u32> {
        let link = shown.link;
        let length = usize::from(request.iu_bytes);
        let iu = buffer.get(..length).unwrap_or(&[]);
        let taken = self.links[link].adapter.on_iu(request.kind, iu, self.now);
        let tag = match taken {
            Taken::Command(head) => head.tag(),
            Taken::TaskManagement(function) => function.tag,
            Taken::Login(login, Ok(())) if self.links[link].asking.is_none() => {
                self.ask(link, shown.receive, request.address, login);
                return None;
            }
            Taken::Login(login, decision) => {
                // One is being decided on: it will be logged in.
                let reason = decision.err().unwrap_or(LoginReject::ChannelLimit);
                let mut answer = [0; 64];
                let bytes = lunar_srp::login::encode_reject(reason, login.tag, &mut answer);
                let answer = answer.get(..bytes.unwrap_or(0)).unwrap_or(&[]);
                self.answer(link, shown.receive, request.address, login.tag, answer, buffer);
                return None;
            }
            Taken::Mad(mad, Step::Answer(_)) => {
                self.answer_mad(link, shown.receive, mad, request.address, None, buffer);
                return None;
            }
            Taken::Mad(mad, Step::Exchange { address, bytes }) => {
                let place = shown.receive.local.address + PAYLOAD_OFFSET as u64;
                let local =
                    Sge { address: place, length: bytes.into(), key: shown.receive.local.key };
                let operation = HypervisorOperation::CopyIn { client_address: address, local };
                self.call(link, Call::Payload(shown.receive, mad, request.address), operation);
                return None;
            }
            Taken::Nothing(actions) => {
                self.act(link, actions);
                self.give_back(shown.receive);
                self.end_request(link);
                self.settle(link);
                return None;
            }
        };
        // Above the transport a LUN looks as SRP's initiators write it.
        if let Some(field) = buffer.get_mut(LUN_OFFSET..LUN_OFFSET + 8)
            && let Ok(bytes) = <[u8; 8]>::try_from(&*field)
        {
            use lunar_vscsi::lun::Destination;
            match lunar_vscsi::lun::decode(bytes) {
                Some(Destination::Unit(number)) => field.copy_from_slice(&lun::encode(number)),
                // The well known one is the same; what names nothing leads nowhere as it is.
                Some(Destination::ReportLuns) | None => {}
            }
        }
        self.links[link].requests.push((tag, request.address));
        Some(request.iu_bytes.into())
    }

    /// The client wants to log in: the coordinator and the poll group decide.
    fn ask(&mut self, link: usize, receive: ReceiveRequest, address: u64, request: LoginRequest) {
        let entry = &mut self.links[link];
        entry.serial += 1;
        entry.asking = Some(Asking { receive, address, request, is_put: false });
        self.put_login(link);
    }

    /// Puts the login to the coordinator, once the poll group is done with the connection before: a client that is refused
    /// does not try again.
    fn put_login(&mut self, link: usize) {
        let entry = &mut self.links[link];
        if entry.is_known {
            return;
        }
        let asking = entry.asking.as_mut().filter(|asking| !asking.is_put);
        let Some(Asking { request, is_put, .. }) = asking else { return };
        *is_put = true;
        let AdapterConfig { initiator_port, target_port, peer, .. } = entry.config;
        let known = LoginRequest { initiator_port, target_port, ..*request };
        let mut bytes = [0; PrivateData::MAX];
        let length = lunar_srp::login::encode_request(&known, &mut bytes).unwrap_or(0);
        let private_data = PrivateData::new(bytes.get(..length).unwrap_or(&[]));
        let (serial, refusals) = (entry.serial, self.refusals.0.clone());
        let connection = VscsiConnection { link, serial, refusals, answered: false };
        // Without a coordinator the request comes back refused.
        let _ = self.logins.send(ConnectRequest {
            connection,
            private_data,
            peer,
            device: self.device,
        });
    }

    /// Answers the login of `connection` with these bytes, unless it is over by now.
    fn answer_login(&mut self, link: usize, serial: u64, bytes: PrivateData) {
        let entry = &mut self.links[link];
        if entry.serial != serial {
            return;
        }
        let Some(Asking { receive, address, request, .. }) = entry.asking.take() else { return };
        let bytes = if bytes.as_bytes().is_empty() { refused(request.tag) } else { bytes };
        let what = What::Login { address, answer: bytes, tag: request.tag };
        self.show(Shown { link, receive, what }, 0);
    }

    fn answer_mad(
        &mut self,
        link: usize,
        receive: ReceiveRequest,
        mad: Mad,
        address: u64,
        payload: Option<u16>,
        buffer: &mut [u8],
    ) {
        let bytes = payload.map_or(0, usize::from);
        let behind = buffer.get_mut(PAYLOAD_OFFSET..PAYLOAD_OFFSET + bytes).unwrap_or_default();
        let status = self.links[link].adapter.answer_mad(&mad, behind);
        if let (Some(length), MadStatus::Success, Some(client_address)) =
            (payload, status, mad.payload_address)
            && self.links[link].adapter.answers_wanted()
        {
            let place = receive.local.address + PAYLOAD_OFFSET as u64;
            let local = Sge { address: place, length: length.into(), key: receive.local.key };
            let operation = HypervisorOperation::CopyOut { local, client_address };
            self.call(link, Call::PayloadBack, operation);
        }
        if let Some(head) = buffer.get_mut(..HEADER_BYTES) {
            head.copy_from_slice(&mad.answer_header(status));
        }
        let entry = mad.answer_entry();
        self.put_answer(link, receive, address, HEADER_BYTES as u32, entry);
    }

    /// Answers a request with an IU of ours.
    fn answer(
        &mut self,
        link: usize,
        receive: ReceiveRequest,
        address: u64,
        tag: u64,
        iu: &[u8],
        buffer: &mut [u8],
    ) {
        if let Some(place) = buffer.get_mut(..iu.len()) {
            place.copy_from_slice(iu);
        }
        let bytes = u16::try_from(iu.len()).unwrap_or(0);
        let kind = IuKind::Srp;
        let entry = Entry::answer(Answer { kind, status: CrqStatus::Ok, iu_bytes: bytes, tag });
        self.put_answer(link, receive, address, bytes.into(), entry);
    }

    fn put_answer(
        &mut self,
        link: usize,
        receive: ReceiveRequest,
        client_address: u64,
        length: u32,
        entry: Entry,
    ) {
        let outgoing = Outgoing { entry, of: EntryOf::Own(receive) };
        if !self.links[link].adapter.answers_wanted() {
            return self.end_outgoing(link, outgoing, CompletionStatus::Flushed);
        }
        let local = Sge { length, ..receive.local };
        let operation = HypervisorOperation::CopyOut { local, client_address };
        self.call(link, Call::Answer(outgoing), operation);
    }

    fn link_of(&self, qp: QpHandle) -> Option<usize> {
        let link = usize::try_from(qp.index).ok()?;
        self.links.get(link).filter(|entry| entry.is_known && entry.qp == qp).map(|_| link)
    }

    /// Copies a task's range from or to the client, in pieces.
    fn move_data(&mut self, link: usize, request: &SendRequest, to_client: bool, address: u64) {
        let mut done = 0;
        loop {
            let length = (request.local.length - done).min(COPY_BYTES_MAX);
            let local = Sge {
                address: request.local.address + u64::from(done),
                length,
                key: request.local.key,
            };
            let client_address = address.wrapping_add(done.into());
            let operation = match to_client {
                true => HypervisorOperation::CopyOut { local, client_address },
                false => HypervisorOperation::CopyIn { client_address, local },
            };
            done += length;
            let is_last = done >= request.local.length;
            let id = (is_last && request.signaled).then_some(request.id);
            self.links[link].calls += 1;
            self.call(link, Call::Data { to_client, id }, operation);
            if is_last {
                return;
            }
        }
    }

    fn pump(&mut self) {
        while let Ok(Refusal { link, serial, bytes }) = self.refusals.1.try_recv() {
            self.answer_login(link, serial, bytes);
        }
        let mut events =
            [HypervisorEvent::Returned { id: u64::MAX, unit: UnitAddress(0), code: 0 }; EVENTS_MAX];
        let count = self.hypervisor.poll(&mut events);
        for event in events.into_iter().take(count) {
            match event {
                HypervisorEvent::Entry { unit, entry } => {
                    let of_unit = |link: &Link| link.config.unit == unit;
                    if let Some(link) = self.links.iter().position(of_unit) {
                        self.happen(link, Event::Arrived(Entry::from_bytes(entry).read()));
                        self.settle(link);
                    }
                }
                HypervisorEvent::Returned { id, .. } if id == u64::MAX => {}
                HypervisorEvent::Returned { id, code, .. } => self.on_returned(id, code),
            }
        }
        for link in 0..self.links.len() {
            let entry = &mut self.links[link];
            if entry.adapter.deadline().is_some_and(|at| at <= self.now) {
                self.happen(link, Event::Time);
                self.settle(link);
            }
            let again = self.links[link].send_again_at.take_if(|at| *at <= self.now);
            if again.is_some() {
                self.send_next(link);
            }
        }
        self.make_calls();
    }
}

/// Where SRP_CMD and SRP_TSK_MGMT have the LUN.
const LUN_OFFSET: usize = core::mem::offset_of!(wire::Command, lun);
const _: () = assert!(LUN_OFFSET == core::mem::offset_of!(wire::TaskManagement, lun));

impl Link {
    fn new(index: u32, config: AdapterConfig) -> Self {
        let limit = config.request_limit as usize;
        Self {
            adapter: Adapter::new(config.server, config.request_limit),
            config,
            qp: QpHandle { index, generation: 0 },
            is_known: false,
            is_over: false,
            is_drained: false,
            requests: Vec::with_capacity(limit),
            answer: None,
            entries: VecDeque::with_capacity(limit),
            is_sending: false,
            send_again_at: None,
            waiting: VecDeque::new(),
            calls: 0,
            asking: None,
            serial: 0,
        }
    }
}

impl<H: Hypervisor> Hca for VscsiPort<H> {
    type Connection = VscsiConnection;

    const SHOWS_IUS: bool = true;

    fn takes_requests(&self) -> bool {
        false
    }

    fn attributes(&self) -> HcaAttributes {
        self.attributes
    }

    fn accept(
        &mut self,
        mut connection: VscsiConnection,
        _: QpParameters,
        _: &[u8],
    ) -> Result<QpHandle, CmError> {
        let link = connection.link;
        let entry = &mut self.links[link];
        let is_current = entry.serial == connection.serial && !entry.is_known;
        let request = entry.asking.filter(|_| is_current).map(|asking| asking.request);
        let response = request.and_then(|request| entry.adapter.log_in(&request));
        let Some(response) = response else {
            connection.refuse(&[]);
            return Err(CmError::Gone);
        };
        connection.answered = true;
        entry.qp.generation = entry.qp.generation.wrapping_add(1);
        (entry.is_known, entry.is_over, entry.is_drained) = (true, false, false);
        let qp = entry.qp;
        let mut bytes = [0; PrivateData::MAX];
        let length = lunar_srp::login::encode_response(&response, &mut bytes).unwrap_or(0);
        let answer = PrivateData::new(bytes.get(..length).unwrap_or(&[]));
        self.answer_login(link, connection.serial, answer);
        self.events.push_back(CmEvent::Established(qp));
        Ok(qp)
    }

    fn reject(&mut self, mut connection: VscsiConnection, private_data: &[u8]) {
        connection.refuse(private_data);
    }

    fn disconnect(&mut self, qp: QpHandle) {
        let Some(link) = self.link_of(qp).filter(|link| !self.links[*link].is_over) else { return };
        // The client is told by a queue that goes, and comes again.
        self.happen(link, Event::Disable);
        self.happen(link, Event::Enable);
        self.settle(link);
    }

    fn destroy(&mut self, qp: QpHandle) {
        self.disconnect(qp);
        let Some(link) = self.link_of(qp) else { return };
        self.links[link].is_known = false;
        self.settle(link);
    }

    fn poll_cm(&mut self) -> Option<CmEvent> {
        self.events.pop_front()
    }

    fn post_receive(&mut self, request: ReceiveRequest) -> Result<(), PostError> {
        if request.local.length < RECEIVE_BYTES_MIN {
            return Err(PostError::Invalid);
        }
        self.give_back(request);
        Ok(())
    }

    fn post_send(&mut self, qp: QpHandle, chain: &[SendRequest]) -> Result<(), PostError> {
        let link = self.link_of(qp).ok_or(PostError::NotConnected)?;
        for request in chain {
            if self.links[link].is_over {
                self.complete(link, request.id, CompletionStatus::Flushed);
                continue;
            }
            match request.operation {
                SendOperation::RdmaRead(from) => {
                    self.move_data(link, request, false, from.address);
                }
                SendOperation::RdmaWrite(to) => self.move_data(link, request, true, to.address),
                SendOperation::Send => {
                    let entry = &mut self.links[link];
                    let Some((client_address, answer)) = entry.answer.take() else {
                        self.complete(link, request.id, CompletionStatus::Success);
                        continue;
                    };
                    entry.calls += 1;
                    let outgoing = Outgoing { entry: answer, of: EntryOf::Task(request.id) };
                    let operation =
                        HypervisorOperation::CopyOut { local: request.local, client_address };
                    self.call(link, Call::Answer(outgoing), operation);
                }
            }
        }
        Ok(())
    }

    fn ring(&mut self, _: QpHandle) {
        self.make_calls();
    }

    fn poll(&mut self, completions: &mut [WorkCompletion]) -> usize {
        self.pump();
        let count = completions.len().min(self.completions.len());
        for (place, completion) in completions.iter_mut().zip(self.completions.drain(..count)) {
            *place = completion;
        }
        count
    }

    fn arm(&mut self) -> bool {
        self.completions.is_empty()
            && self.events.is_empty()
            && self.unmade.is_empty()
            && self.hypervisor.arm()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.hypervisor.event_fd()
    }

    fn reported_lun(&self, number: u16, asked: Option<u16>) -> Option<u16> {
        let asked = lunar_vscsi::lun::Destination::Unit(asked?);
        lunar_vscsi::lun::reported(number, asked).and_then(lun::decode)
    }

    fn begin_tick(&mut self, now: Nanoseconds) {
        self.now = now.0;
    }

    fn deliver(&mut self, completion: &WorkCompletion, buffer: &mut [u8]) -> Delivery {
        let Some(shown) = self.shown.pop_front() else {
            return Delivery::Message(completion.length);
        };
        debug_assert_eq!(shown.receive.id, completion.id, "receives complete in their order");
        match shown.what {
            What::Fetched(request) => {
                if let Some(length) = self.take(shown, request, buffer) {
                    return Delivery::Message(length);
                }
            }
            What::Payload { mad, address, fetched } => {
                let payload = fetched.then_some(mad.payload_bytes);
                self.answer_mad(shown.link, shown.receive, mad, address, payload, buffer);
            }
            What::Login { address, answer, tag } => {
                let answer = answer.as_bytes();
                self.answer(shown.link, shown.receive, address, tag, answer, buffer);
            }
        }
        Delivery::Kept
    }

    fn prepare_answer(&mut self, qp: QpHandle, request: AnsweredRequest, iu: &mut [u8]) {
        let AnsweredRequest { tag, operation_code, offered_bytes } = request;
        let Some(link) = self.link_of(qp).filter(|link| !self.links[*link].is_over) else { return };
        let entry = &mut self.links[link];
        let Some(place) = entry.requests.iter().position(|(known, _)| *known == tag) else {
            return;
        };
        let (_, address) = entry.requests.swap_remove(place);
        // Both accounts of the client's credits stay one.
        let told = response_delta(iu);
        for _ in 1..told {
            entry.adapter.owe();
        }
        let _ = entry.adapter.answer_delta();
        let fast_fail = entry.adapter.fast_fail();
        let status = response::status_of(iu, operation_code, offered_bytes, fast_fail);
        response::adapt(iu, entry.adapter.client());
        let (kind, iu_bytes) = (IuKind::Srp, u16::try_from(iu.len()).unwrap_or(0));
        entry.answer = Some((address, Entry::answer(Answer { kind, status, iu_bytes, tag })));
    }

    fn forget_request(&mut self, qp: QpHandle, tag: u64) {
        let Some(link) = self.link_of(qp) else { return };
        let entry = &mut self.links[link];
        if let Some(place) = entry.requests.iter().position(|(known, _)| *known == tag) {
            entry.requests.swap_remove(place);
            self.end_request(link);
        }
    }
}

/// The refusal of a login of which nobody said why.
fn refused(tag: u64) -> PrivateData {
    let mut bytes = [0; 64];
    let reason = LoginReject::InsufficientResources;
    let length = lunar_srp::login::encode_reject(reason, tag, &mut bytes).unwrap_or(0);
    PrivateData::new(bytes.get(..length).unwrap_or(&[]))
}

/// REQUEST LIMIT DELTA of an SRP_RSP.
fn response_delta(iu: &[u8]) -> u32 {
    let field = iu.get(4..8).and_then(|field| <[u8; 4]>::try_from(field).ok());
    field.map_or(0, u32::from_be_bytes)
}
