//! The VSCSI port between a hypervisor that does its worst and a poll group that does what poll groups do: whatever
//! happens to a connection, no receive buffer, call, request or entry of it is lost or counted twice, and the next login
//! works. Chance is drawn from a seed; what is allowed is the contract of `Hypervisor` and `Hca`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use lunar_platform::{
    AnsweredRequest, CmEvent, CompletionStatus, ConnectRequest, Delivery, Hca, Hypervisor,
    HypervisorError, HypervisorEvent, HypervisorOperation, HypervisorRequest, Listener, LocalKey,
    Nanoseconds, PeerAddress, QpHandle, QpParameters, ReceiveRequest, RemoteAddress, SendOperation,
    SendRequest, Sge, UnitAddress, WorkCompletion, WorkRequestId,
};
use lunar_scenario::TARGET;
use lunar_srp::login::PortId;
use lunar_target::{AdapterConfig, VscsiConnection, VscsiListener, VscsiPort};
use lunar_vscsi::crq::{Entry, Incoming, IuKind, Request, TransportEvent};
use lunar_vscsi::hcall::code;
use lunar_vscsi::mad::{OsType, PartitionName, ServerPartition};

const ADAPTERS: usize = 2;
const REQUEST_LIMIT: u32 = 4;
/// Fewer than the clients' limits together, so that requests wait for one.
const RECEIVES: u64 = 6;
const RECEIVE_BYTES: u64 = 1024;
/// Work requests have ids from here on; below are receives.
const WORK: u64 = 1000;
/// Unsignaled ones, whose failures alone are reported.
const BODY: u64 = WORK - 1;

/// Format 6, status F5h.
const PING: [u8; 16] = [0x80, 6, 0, 0xF5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // Xorshift* (Vigna).
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }

    fn chance(&mut self, of: u64, all: u64) -> bool {
        self.next() % all < of
    }
}

/// One client and its end of the pair. A request's address says in which of its lives the client sent it.
#[derive(Default)]
struct Client {
    life: u64,
    /// It has a queue.
    has_queue: bool,
    /// It sent or answered INIT in this life, and the handshake is over.
    connected: bool,
    /// It logged in, and has the answer.
    logged_in: bool,
    /// Requests without an answer, by tag.
    outstanding: BTreeSet<u64>,
    /// The server's queue: entries, and the client's life then.
    server: Option<VecDeque<([u8; 16], u64)>>,
    /// Calls that were made and not carried out, oldest first.
    calls: VecDeque<HypervisorRequest>,
    /// Returns and entries, in the order in which they happened.
    events: VecDeque<HypervisorEvent>,
    /// The life that the last INIT that the server saw was of.
    seen: u64,
    /// Nothing may be copied for earlier lives: the server said that it is done with them.
    settled: u64,
    /// The life that the server knows of, by INIT or a transport event.
    known: u64,
    /// Nothing may be asked of the hypervisor for earlier ones: the server has dealt with the news.
    heard: u64,
    /// IUs by address.
    ius: BTreeMap<u64, Vec<u8>>,
    sent: u64,
    /// PINGs that the server has seen and not answered.
    pings: u32,
}

struct World {
    random: Random,
    clients: Vec<Client>,
    /// The server's receive buffers.
    memory: Vec<u8>,
    /// Errors are injected, and clients do what they may not.
    hostile: bool,
    /// Clients do nothing any more.
    silent: bool,
    room: usize,
}

type Shared = Rc<RefCell<World>>;

struct Scripted(Shared);

fn life_of(address: u64) -> u64 {
    address >> 32
}

impl Client {
    fn tell(&mut self, entry: Entry) {
        if let Some(queue) = &mut self.server {
            queue.push_back((entry.to_bytes(), self.life));
        }
    }

    /// It begins a new life: what it had asked for is forgotten.
    fn begin(&mut self) {
        self.life += 1;
        (self.connected, self.logged_in) = (false, false);
        self.outstanding.clear();
    }

    fn register(&mut self) {
        self.begin();
        self.has_queue = true;
        self.tell(Entry::INIT);
    }

    fn free(&mut self, event: TransportEvent) {
        self.begin();
        self.has_queue = false;
        self.tell(Entry::transport(event));
    }

    fn ask(&mut self, kind: IuKind, iu: Vec<u8>, tag: u64) {
        self.sent += 1;
        let address = self.life << 32 | self.sent << 8;
        let request = Request { kind, timeout_s: 60, iu_bytes: 256, address };
        let mut whole = iu;
        whole.resize(256, 0);
        self.ius.insert(address, whole);
        self.outstanding.insert(tag);
        self.tell(Entry::request(request));
    }

    fn tag(&self) -> u64 {
        self.life << 32 | (self.sent + 1) << 8
    }

    fn ask_login(&mut self) {
        let tag = self.tag();
        let mut iu = vec![0; 64];
        iu[8..16].copy_from_slice(&tag.to_be_bytes());
        iu[16..20].copy_from_slice(&256_u32.to_be_bytes());
        iu[24..26].copy_from_slice(&6_u16.to_be_bytes());
        self.ask(IuKind::Srp, iu, tag);
    }

    fn ask_command(&mut self) {
        let tag = self.tag();
        let mut iu = vec![0; 48];
        iu[0] = 2;
        iu[8..16].copy_from_slice(&tag.to_be_bytes());
        iu[20] = 0x80;
        self.ask(IuKind::Srp, iu, tag);
    }

    fn ask_mad(&mut self) {
        let tag = self.tag();
        let mut iu = vec![0; 24];
        iu[3] = 3;
        iu[7] = 148;
        iu[8..16].copy_from_slice(&tag.to_be_bytes());
        iu[16..24].copy_from_slice(&(self.life << 32 | 0x8000_0000).to_be_bytes());
        self.ask(IuKind::Mad, iu, tag);
    }

    fn log_out(&mut self) {
        let mut iu = vec![0; 16];
        iu[0] = 3;
        let tag = self.tag();
        self.ask(IuKind::Srp, iu, tag);
        self.outstanding.remove(&tag);
        self.logged_in = false;
    }

    /// An entry for the client; gives the call's return code.
    fn take(&mut self, bytes: [u8; 16]) -> i64 {
        if !self.has_queue {
            return code::CLOSED;
        }
        let entry = Entry::from_bytes(bytes);
        match entry.read() {
            Incoming::Init => {
                self.begin();
                self.connected = true;
                self.tell(Entry::INIT_COMPLETE);
            }
            Incoming::InitComplete => self.connected = true,
            Incoming::PingResponse => {
                assert!(self.pings > 0, "a PING is answered once");
                self.pings -= 1;
            }
            _ => {
                let answer = entry.read_answer().expect("an answer");
                // An answer that was on its way when the client began anew means nothing to it.
                let wanted = self.outstanding.remove(&answer.tag);
                assert!(wanted || life_of(answer.tag) < self.life, "answered twice: {answer:?}");
                let login = wanted && self.login_of(answer.tag);
                self.logged_in |= login;
            }
        }
        code::SUCCESS
    }

    /// Whether what lies at the request with this tag is the answer to a login that was accepted.
    fn login_of(&self, tag: u64) -> bool {
        self.ius.get(&tag).is_some_and(|iu| iu[0] == 0xC0)
    }
}

impl World {
    /// Carries out the oldest call of a client.
    fn carry_out(&mut self, index: usize) {
        let Some(HypervisorRequest { id, unit, operation }) = self.clients[index].calls.pop_front()
        else {
            return;
        };
        let failed = self.hostile && self.random.chance(1, 30);
        let picked = self.random.below(4);
        let client = &mut self.clients[index];
        let pick = |codes: [i64; 4]| codes[picked];
        let code = match operation {
            HypervisorOperation::RegisterQueue if failed => {
                pick([code::BUSY, code::LONG_BUSY_FIRST, code::IN_PROGRESS, code::BUSY])
            }
            HypervisorOperation::RegisterQueue if client.server.is_some() => code::RESOURCE,
            HypervisorOperation::RegisterQueue => {
                client.server = Some(VecDeque::new());
                if client.has_queue { code::SUCCESS } else { code::CLOSED }
            }
            HypervisorOperation::FreeQueue if failed => {
                pick([code::BUSY, code::LONG_BUSY_FIRST, code::IN_PROGRESS, code::BUSY])
            }
            HypervisorOperation::FreeQueue => match client.server.take() {
                Some(_) => {
                    // FF02: this client registers anew.
                    if client.has_queue {
                        client.register();
                    }
                    code::SUCCESS
                }
                None => code::NOT_FOUND,
            },
            HypervisorOperation::SendEntry(_) if failed => {
                pick([code::DROPPED, code::BUSY, code::DROPPED, code::HARDWARE])
            }
            HypervisorOperation::SendEntry(bytes) => client.take(bytes),
            _ if !client.has_queue => code::PERMISSION,
            HypervisorOperation::CopyIn { .. } | HypervisorOperation::CopyOut { .. } if failed => {
                pick([code::PERMISSION, code::SOURCE_PARM, code::DEST_PARM, code::HARDWARE])
            }
            HypervisorOperation::CopyIn { client_address, local } => {
                if let Some(iu) = client.ius.get(&client_address) {
                    let place = local.address as usize;
                    self.memory[place..place + 256].copy_from_slice(iu);
                }
                code::SUCCESS
            }
            HypervisorOperation::CopyOut { local, client_address } => {
                if let Some(iu) = client.ius.get_mut(&client_address) {
                    let (place, bytes) = (local.address as usize, local.length as usize);
                    iu[..bytes].copy_from_slice(&self.memory[place..place + bytes]);
                }
                code::SUCCESS
            }
            HypervisorOperation::ReadyForSuspend => code::SUCCESS,
        };
        client.events.push_back(HypervisorEvent::Returned { id, unit, code });
    }

    /// What a client does in a moment.
    fn act(&mut self, index: usize) {
        let (what, what_next) = (self.random.below(400), self.random.chance(1, 2));
        let hostile = self.hostile;
        let client = &mut self.clients[index];
        match what {
            _ if self.silent => {}
            0 if hostile => client.free(TransportEvent::PartnerDeregistered),
            1 if hostile => client.free(TransportEvent::PartnerFailed),
            2 if hostile && client.has_queue => {
                client.begin();
                client.tell(Entry::INIT);
            }
            3 if hostile && client.has_queue => {
                client.tell(Entry::transport(TransportEvent::Migrated));
                client.register();
            }
            4 if hostile => client.tell(Entry::transport(TransportEvent::PrepareForSuspend)),
            5 if hostile => client.tell(Entry::transport(TransportEvent::Resume)),
            6 if hostile && client.logged_in => client.log_out(),
            7 if hostile && client.connected => client.ask_login(),
            8 if hostile && client.has_queue => {
                client.tell(Entry::from_bytes(PING));
                // It does not wait for the response.
                if what_next {
                    client.begin();
                    client.tell(Entry::INIT);
                }
            }
            9 if hostile && client.connected => {
                // A flood.
                for _ in 0..2 * REQUEST_LIMIT {
                    client.ask_command();
                }
            }
            10..40 if !client.has_queue => client.register(),
            10..20 if client.connected && client.outstanding.is_empty() => client.ask_mad(),
            20..60 if client.connected && !client.logged_in && client.outstanding.is_empty() => {
                client.ask_login();
            }
            60..200 if client.logged_in && client.outstanding.len() < REQUEST_LIMIT as usize => {
                client.ask_command();
            }
            _ => {}
        }
    }
}

impl Hypervisor for Scripted {
    fn room(&self) -> usize {
        self.0.borrow().room
    }

    fn submit(&mut self, request: HypervisorRequest) -> Result<(), HypervisorError> {
        let world = &mut *self.0.borrow_mut();
        let client = &mut world.clients[request.unit.0 as usize];
        match request.operation {
            HypervisorOperation::CopyIn { client_address, .. }
            | HypervisorOperation::CopyOut { client_address, .. } => assert!(
                life_of(client_address) >= client.settled.max(client.heard),
                "{request:?} is of life {}, but {} or {} had begun",
                life_of(client_address),
                client.settled,
                client.heard
            ),
            HypervisorOperation::SendEntry(bytes) => match Entry::from_bytes(bytes) {
                Entry::INIT_COMPLETE => client.settled = client.settled.max(client.seen),
                entry => {
                    if let Some(answer) = entry.read_answer() {
                        assert!(life_of(answer.tag) >= client.settled, "{answer:?}");
                    }
                }
            },
            _ => {}
        }
        client.calls.push_back(request);
        world.room -= 1;
        Ok(())
    }

    fn poll(&mut self, events: &mut [HypervisorEvent]) -> usize {
        let world = &mut *self.0.borrow_mut();
        let mut count = 0;
        for index in 0..world.clients.len() {
            let most = world.random.below(4);
            for _ in 0..most {
                let client = &mut world.clients[index];
                // A return comes before the entries that arrived after it.
                let event = client.events.pop_front().or_else(|| {
                    let (entry, life) = client.server.as_mut()?.pop_front()?;
                    if Entry::from_bytes(entry) == Entry::INIT {
                        client.seen = life;
                    }
                    client.pings += u32::from(entry == PING);
                    if matches!(
                        Entry::from_bytes(entry).read(),
                        Incoming::Init
                            | Incoming::Transport(
                                TransportEvent::PartnerFailed
                                    | TransportEvent::PartnerDeregistered
                                    | TransportEvent::Migrated
                            )
                    ) {
                        client.known = life;
                    }
                    Some(HypervisorEvent::Entry { unit: UnitAddress(index as u32), entry })
                });
                let (Some(event), Some(place)) = (event, events.get_mut(count)) else { break };
                *place = event;
                count += 1;
            }
        }
        count
    }

    fn arm(&mut self) -> bool {
        false
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What the poll group has of one request.
struct Task {
    qp: QpHandle,
    tag: u64,
    receive: Option<u64>,
    /// A work request of it that is posted.
    work: Option<u64>,
    moved: bool,
    answered: bool,
}

/// A poll group as the port sees one.
struct Group {
    port: VscsiPort<Scripted>,
    listener: VscsiListener,
    world: Shared,
    now: u64,
    /// Connections that are not destroyed: whether they are over, and drained.
    connections: BTreeMap<(u32, u32), (QpHandle, bool, bool)>,
    deciding: Vec<ConnectRequest<VscsiConnection>>,
    tasks: Vec<Task>,
    /// Receive buffers that the port has.
    lent: BTreeSet<u64>,
    work: u64,
    /// Requests are kept, not answered.
    keeps: bool,
    /// Logins that were accepted.
    logins: u32,
}

impl Group {
    fn new(seed: u64) -> Self {
        let world = Rc::new(RefCell::new(World {
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            clients: (0..ADAPTERS).map(|_| Client::default()).collect(),
            memory: vec![0; ((RECEIVES + 1) * RECEIVE_BYTES) as usize],
            hostile: true,
            silent: false,
            room: 3,
        }));
        let adapters = (0..ADAPTERS as u32).map(|unit| AdapterConfig {
            unit: UnitAddress(unit),
            server: ServerPartition {
                name: PartitionName::new("lunar").expect("short"),
                number: 1,
                os_type: OsType::AIX,
                transfer_bytes_max: 1 << 20,
                migration: true,
                reserve: true,
            },
            request_limit: REQUEST_LIMIT,
            initiator_port: PortId([3; 16]),
            target_port: TARGET,
            peer: PeerAddress::new(&unit.to_string()),
        });
        let hypervisor = Scripted(Rc::clone(&world));
        let (port, listener) = VscsiPort::new(hypervisor, adapters.collect(), RECEIVES as u32, 0);
        let mut group = Self {
            port,
            listener,
            world,
            now: 0,
            connections: BTreeMap::new(),
            deciding: Vec::new(),
            tasks: Vec::new(),
            lent: BTreeSet::new(),
            work: WORK,
            keeps: false,
            logins: 0,
        };
        for id in 0..RECEIVES {
            group.lend(id);
        }
        group
    }

    fn chance(&self, of: u64, all: u64) -> bool {
        self.world.borrow_mut().random.chance(of, all)
    }

    fn lend(&mut self, id: u64) {
        assert!(self.lent.insert(id), "{id} is the port's already");
        let local =
            Sge { address: id * RECEIVE_BYTES, length: RECEIVE_BYTES as u32, key: LocalKey(0) };
        self.port.post_receive(ReceiveRequest { id: WorkRequestId(id), local }).expect("long");
    }

    fn step(&mut self) {
        self.now += if self.chance(1, 50) { 20_000_000 } else { 1_000 };
        {
            let world = &mut *self.world.borrow_mut();
            world.room = world.random.below(5);
            for index in 0..ADAPTERS {
                world.act(index);
                // Calls of one adapter are carried out in order; how late is the hypervisor's affair.
                for _ in 0..world.random.below(4) {
                    world.carry_out(index);
                }
            }
        }
        self.port.begin_tick(Nanoseconds(self.now));
        self.decide();
        while let Some(event) = self.port.poll_cm() {
            self.on_event(event);
        }
        let mut completions = [WorkCompletion::EMPTY; 16];
        let count = self.port.poll(&mut completions);
        for client in &mut self.world.borrow_mut().clients {
            client.heard = client.known;
        }
        for completion in &completions[..count] {
            self.on_completion(completion);
        }
        self.work();
    }

    fn decide(&mut self) {
        while let Some(request) = self.listener.poll() {
            let mut connections = self.connections.values();
            let link = |qp: &QpHandle| PeerAddress::new(&qp.index.to_string()) == request.peer;
            assert!(
                !connections.any(|(qp, ..)| link(qp)),
                "a login whose connection before is not destroyed would be refused"
            );
            self.deciding.push(request);
        }
        if self.deciding.is_empty() || self.chance(2, 3) {
            return;
        }
        let request = self.deciding.remove(0);
        let hostile = self.world.borrow().hostile;
        if hostile && self.chance(1, 6) {
            return match self.chance(1, 2) {
                true => self.listener.reject(request.connection, &[]),
                false => drop(request),
            };
        }
        let parameters = QpParameters { send_queue_depth: 64, rdma_reads: 4 };
        if let Ok(qp) = self.port.accept(request.connection, parameters, &[]) {
            let earlier = self.connections.insert((qp.index, qp.generation), (qp, false, false));
            assert!(earlier.is_none());
            self.logins += 1;
        }
    }

    fn on_event(&mut self, event: CmEvent) {
        let (qp, is_drained) = match event {
            CmEvent::Disconnected(qp) => (qp, false),
            CmEvent::Drained(qp) => (qp, true),
            CmEvent::Established(_) => return,
            other => panic!("{other:?}"),
        };
        let known = self.connections.get_mut(&(qp.index, qp.generation)).expect("a connection");
        let told = if is_drained { &mut known.2 } else { &mut known.1 };
        assert!(!std::mem::replace(told, true), "told once: {event:?}");
        assert!(known.1, "drained after it is over");
    }

    fn on_completion(&mut self, completion: &WorkCompletion) {
        let id = completion.id.0;
        if id == BODY {
            return assert_eq!(completion.status, CompletionStatus::Flushed);
        }
        if id >= WORK {
            let task = self.tasks.iter_mut().find(|task| task.work == Some(id));
            let task = task.unwrap_or_else(|| panic!("{completion:?} twice, or of nobody"));
            assert_eq!(task.qp, completion.qp, "of its own queue pair");
            task.work = None;
            return;
        }
        assert!(self.lent.contains(&id), "{id} is not the port's");
        let place = (id * RECEIVE_BYTES) as usize;
        let range = place..place + RECEIVE_BYTES as usize;
        let mut buffer = self.world.borrow().memory[range.clone()].to_vec();
        let delivery = self.port.deliver(completion, &mut buffer);
        self.world.borrow_mut().memory[range].copy_from_slice(&buffer);
        let Delivery::Message(length) = delivery else { return };
        assert_eq!(length, 256);
        self.lent.remove(&id);
        let qp = completion.qp;
        let open = self.connections.get(&(qp.index, qp.generation));
        if open.is_none_or(|(_, is_over, _)| *is_over) {
            // As a poll group does with a message of a channel that closes.
            return self.lend(id);
        }
        let tag = u64::from_be_bytes(buffer[8..16].try_into().expect("eight"));
        let receive = Some(id);
        self.tasks.push(Task { qp, tag, receive, work: None, moved: false, answered: false });
    }

    fn work(&mut self) {
        let hostile = self.world.borrow().hostile;
        for mut task in std::mem::take(&mut self.tasks) {
            let is_over = self.connections[&(task.qp.index, task.qp.generation)].1;
            if task.work.is_some() || (self.keeps && !is_over) || self.chance(1, 2) {
                self.tasks.push(task);
                continue;
            }
            if task.answered {
                continue;
            }
            if is_over || (hostile && self.chance(1, 12)) {
                // It ends without an answer.
                if let Some(receive) = task.receive.take() {
                    self.lend(receive);
                }
                self.port.forget_request(task.qp, task.tag);
                continue;
            }
            self.go_on(&mut task);
            self.tasks.push(task);
        }
        for (qp, is_over, is_drained) in self.connections.clone().into_values() {
            let busy = self.tasks.iter().any(|task| task.qp == qp);
            if hostile && !is_over && self.chance(1, 300) {
                self.port.disconnect(qp);
            } else if is_over && is_drained && !busy && self.chance(1, 4) {
                self.port.destroy(qp);
                self.connections.remove(&(qp.index, qp.generation));
            }
        }
    }

    /// A task moves data, then answers.
    fn go_on(&mut self, task: &mut Task) {
        self.work += 1;
        let id = WorkRequestId(self.work);
        let place = RECEIVES * RECEIVE_BYTES;
        let remote = RemoteAddress { address: task.tag & !0xFF | 0x8000_0000, key: 0 };
        task.work = Some(id.0);
        // Two pieces.
        let local = Sge { address: place, length: (128 << 10) + 512, key: LocalKey(0) };
        if !task.moved && self.chance(1, 2) {
            task.moved = true;
            let operation = SendOperation::RdmaRead(remote);
            let read = SendRequest { id, operation, local, signaled: true };
            return self.port.post_send(task.qp, &[read]).expect("connected");
        }
        let mut iu = [0; 36];
        iu[0] = 0xC1;
        iu[7] = 1;
        iu[8..16].copy_from_slice(&task.tag.to_be_bytes());
        if let Some(receive) = task.receive.take() {
            self.lend(receive);
        }
        let request = AnsweredRequest { tag: task.tag, operation_code: 0, offered_bytes: 0 };
        self.port.prepare_answer(task.qp, request, &mut iu);
        self.world.borrow_mut().memory[place as usize..place as usize + 36].copy_from_slice(&iu);
        let write = SendRequest {
            id: WorkRequestId(BODY),
            operation: SendOperation::RdmaWrite(remote),
            local,
            signaled: false,
        };
        let local = Sge { address: place, length: 36, key: LocalKey(0) };
        let send = SendRequest { id, operation: SendOperation::Send, local, signaled: true };
        let chain = if self.chance(1, 2) { &[write, send][..] } else { &[send] };
        self.port.post_send(task.qp, chain).expect("connected");
        task.answered = true;
    }

    /// Steps until `done` says so.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..20_000 {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("{what} never happens");
    }
}

#[test]
fn whatever_happens_to_connections_nothing_is_lost_and_the_next_login_works() {
    let mut logins = 0;
    for seed in 1..=300 {
        let mut group = Group::new(seed);
        for _ in 0..3_000 {
            group.step();
        }
        // Everything works again, and both clients begin anew.
        group.world.borrow_mut().hostile = false;
        for client in &mut group.world.borrow_mut().clients {
            client.free(TransportEvent::PartnerDeregistered);
        }
        logins += group.logins;
        let all_in =
            |group: &Group| group.world.borrow().clients.iter().all(|client| client.logged_in);
        group.until("the next login", all_in);
        // Every receive buffer gets a message: none is lost, none is there twice.
        group.keeps = true;
        let kept = |group: &Group| {
            let with_buffer = group.tasks.iter().filter(|task| task.receive.is_some());
            with_buffer.count() as u64 == RECEIVES
        };
        group.until("a message in every buffer", kept);
        group.keeps = false;
        group.world.borrow_mut().silent = true;
        for client in &mut group.world.borrow_mut().clients {
            client.free(TransportEvent::PartnerDeregistered);
        }
        let free = |group: &Group| {
            let world = group.world.borrow();
            group.tasks.is_empty()
                && group.lent.len() as u64 == RECEIVES
                && world.clients.iter().all(|client| client.calls.is_empty())
        };
        group.until("the end", free);
    }
    assert!(logins > 300, "{logins} logins");
}
