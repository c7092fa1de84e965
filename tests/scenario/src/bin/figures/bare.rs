//! The least provider there can be: it hands out completions that were prepared and keeps what is
//! posted in memory claimed at start. It moves no byte, so what the card costs on it is what the card
//! costs. Its own instructions are left out by name: callgrind stops counting in `provider_*`.
//!
//! It plays the initiator too: each response that is sent brings the next command at once, so that as
//! many commands as the channel has credits are always outstanding.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use lunar_platform::{
    ArenaId, CmError, CmEvent, CompletionStatus, ConnectRequest, Dma, DmaCompletion, DmaError,
    DmaRequest, Hca, HcaAttributes, HostArena, Listener, LocalKey, Memory, MemoryError,
    Nanoseconds, PeerAddress, Platform, PostError, PrivateData, QpHandle, QpParameters,
    ReceiveRequest, Region, SendOperation, SendRequest, WorkCompletion, WorkRequestId,
};
use lunar_scenario::{TARGET, attributes, small_limits};
use lunar_srp::iu::{self, CommandLayout};
use lunar_srp::login::{self, Action, FORMATS, LoginForm, LoginRequest, PortId};
use lunar_target::statistics::{Counters, GroupCounters};
use lunar_target::{Coordinator, GroupParts, PollGroup, Report, mailbox};

use crate::allocations;
use crate::case::{BYTES, Case, DEPTH, WARM_UP, configuration};

/// The provider's types.
struct Bare;

impl Platform for Bare {
    type Region = BareRegion;
    type Connection = ();
    type Listener = BareListener;
    type Hca = BareHca;
    type Dma = NoDma;
    type Memory = BareMemory;
}

/// Addresses of region `key` begin at `key << REGION_SHIFT`.
const REGION_SHIFT: u32 = 40;

/// The key of the first region claimed: the receive buffers, where commands lie from the start.
const RECEIVES: LocalKey = LocalKey(1);

struct BareRegion {
    key: LocalKey,
    bytes: Box<[u8]>,
    /// Bytes that the card's cores could look at or change. Stored without a locked instruction: there
    /// is one thread.
    touched: Arc<AtomicU64>,
}

impl BareRegion {
    #[inline]
    fn touch(&self, length: usize) {
        let touched = self.touched.load(Ordering::Relaxed);
        self.touched.store(touched + length as u64, Ordering::Relaxed);
    }
}

impl Region for BareRegion {
    #[inline]
    fn key(&self) -> LocalKey {
        self.key
    }

    #[inline]
    fn base(&self) -> u64 {
        u64::from(self.key.0) << REGION_SHIFT
    }

    fn length(&self) -> usize {
        self.bytes.len()
    }

    #[inline]
    fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        self.touch(length);
        self.bytes.get(offset..offset.wrapping_add(length)).unwrap_or(&[])
    }

    #[inline]
    fn bytes_mut(&mut self, offset: usize, length: usize) -> &mut [u8] {
        self.touch(length);
        self.bytes.get_mut(offset..offset.wrapping_add(length)).unwrap_or(&mut [])
    }
}

struct BareMemory {
    case: Case,
    /// Distance of two receive buffers in bytes.
    stride: usize,
    claimed: u32,
    /// Length of each region and its counter of touched bytes.
    touched: Sender<(usize, Arc<AtomicU64>)>,
}

impl Memory for BareMemory {
    type Region = BareRegion;

    fn claim(&mut self, length_bytes: usize) -> Result<BareRegion, MemoryError> {
        self.claimed += 1;
        let mut bytes = vec![0; length_bytes].into_boxed_slice();
        if self.claimed == RECEIVES.0 {
            for (index, buffer) in bytes.chunks_exact_mut(self.stride).enumerate() {
                encode(self.case, index as u64, buffer);
            }
        }
        let touched = Arc::new(AtomicU64::new(0));
        // Nobody asks when the receiver is gone.
        let _ = self.touched.send((length_bytes, touched.clone()));
        Ok(BareRegion { key: LocalKey(self.claimed), bytes, touched })
    }

    fn import(&mut self, _: &[u8]) -> Result<HostArena, MemoryError> {
        Err(MemoryError::NotSupported)
    }

    fn unimport(&mut self, _: ArenaId) {}
}

/// Puts command `index` into `buffer` and gives its length in bytes.
fn encode(case: Case, index: u64, buffer: &mut [u8]) -> usize {
    let pieces = case.pieces(index * u64::from(BYTES));
    let (data_in, data_out) = case.layouts(&pieces);
    let cdb = case.cdb(index * 8);
    let layout = CommandLayout {
        tag: index,
        lun: lunar_scsi::lun::encode(0),
        attribute: lunar_scsi::task_set::TaskAttribute::Simple,
        solicited: iu::SolicitedNotification::default(),
        cdb: &cdb,
        data_out,
        data_in,
    };
    iu::encode_command(&layout, buffer).expect("a command fits a receive buffer")
}

/// One queue pair, one CQ, one SRQ, as queues of plain numbers.
struct BareHca {
    qp: Option<QpHandle>,
    cm_events: VecDeque<CmEvent>,
    receives: VecDeque<WorkRequestId>,
    completions: VecDeque<WorkCompletion>,
    /// Completions of what was posted since the last doorbell, and whether each is a response's.
    posted: Vec<(WorkCompletion, bool)>,
    iu_bytes: u32,
    /// Commands still to be sent.
    commands: u64,
    answered: u64,
    payload_bytes: u64,
    doorbells: u64,
}

impl BareHca {
    fn new(case: Case) -> Self {
        let receives = small_limits().slots as usize;
        Self {
            qp: None,
            cm_events: VecDeque::with_capacity(4),
            receives: VecDeque::with_capacity(receives),
            completions: VecDeque::with_capacity(4096),
            posted: Vec::with_capacity(4096),
            iu_bytes: encode(case, 0, &mut [0; 512]) as u32,
            commands: 0,
            answered: 0,
            payload_bytes: 0,
            doorbells: 0,
        }
    }

    /// The initiator sends its next command, if there is one.
    fn send_command(&mut self) {
        let (Some(qp), true) = (self.qp, self.commands != 0) else { return };
        self.commands -= 1;
        let id = self.receives.pop_front().expect("as many receive buffers as credits");
        let status = CompletionStatus::Success;
        self.completions.push_back(WorkCompletion { id, status, qp, length: self.iu_bytes });
    }
}

#[inline(never)]
fn provider_poll_cm(hca: &mut BareHca) -> Option<CmEvent> {
    hca.cm_events.pop_front()
}

#[inline(never)]
fn provider_post_receive(hca: &mut BareHca, request: ReceiveRequest) {
    assert_eq!(request.local.key, RECEIVES, "the first region holds the receive buffers");
    hca.receives.push_back(request.id);
}

#[inline(never)]
fn provider_post_send(hca: &mut BareHca, qp: QpHandle, chain: &[SendRequest]) {
    for request in chain {
        let is_response = request.operation == SendOperation::Send;
        if !is_response {
            hca.payload_bytes += u64::from(request.local.length);
        }
        if request.signaled {
            let status = CompletionStatus::Success;
            let completion = WorkCompletion { id: request.id, status, qp, length: 0 };
            hca.posted.push((completion, is_response));
        }
    }
}

#[inline(never)]
fn provider_ring(hca: &mut BareHca) {
    hca.doorbells += 1;
    let mut posted = std::mem::take(&mut hca.posted);
    for (completion, is_response) in posted.drain(..) {
        hca.completions.push_back(completion);
        if is_response {
            hca.answered += 1;
            hca.send_command();
        }
    }
    hca.posted = posted;
}

#[inline(never)]
fn provider_poll(hca: &mut BareHca, completions: &mut [WorkCompletion]) -> usize {
    let count = completions.len().min(hca.completions.len());
    for (to, from) in completions.iter_mut().zip(hca.completions.drain(..count)) {
        *to = from;
    }
    count
}

impl Hca for BareHca {
    type Connection = ();

    fn attributes(&self) -> HcaAttributes {
        // As many RDMA READs as commands, so that no WRITE waits for its turn to fetch.
        HcaAttributes { rdma_reads_max: DEPTH as u32, ..attributes(&small_limits()) }
    }

    fn accept(&mut self, (): (), _: QpParameters, _: &[u8]) -> Result<QpHandle, CmError> {
        let qp = QpHandle { index: 0, generation: 1 };
        self.qp = Some(qp);
        self.cm_events.push_back(CmEvent::Established(qp));
        Ok(qp)
    }

    fn reject(&mut self, (): (), _: &[u8]) {}

    fn disconnect(&mut self, _: QpHandle) {}

    fn destroy(&mut self, _: QpHandle) {}

    #[inline]
    fn poll_cm(&mut self) -> Option<CmEvent> {
        provider_poll_cm(self)
    }

    #[inline]
    fn post_receive(&mut self, request: ReceiveRequest) -> Result<(), PostError> {
        provider_post_receive(self, request);
        Ok(())
    }

    #[inline]
    fn post_send(&mut self, qp: QpHandle, chain: &[SendRequest]) -> Result<(), PostError> {
        provider_post_send(self, qp, chain);
        Ok(())
    }

    #[inline]
    fn ring(&mut self, _: QpHandle) {
        provider_ring(self);
    }

    #[inline]
    fn poll(&mut self, completions: &mut [WorkCompletion]) -> usize {
        provider_poll(self, completions)
    }

    fn arm(&mut self) -> bool {
        false
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Brings in what its sender asks for.
struct BareListener(Receiver<ConnectRequest<()>>);

impl Listener for BareListener {
    type Connection = ();

    fn poll(&mut self) -> Option<ConnectRequest<()>> {
        self.0.try_recv().ok()
    }

    fn reject(&mut self, (): (), _: &[u8]) {}

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// There is no host.
struct NoDma;

impl Dma for NoDma {
    fn room(&self) -> usize {
        0
    }

    fn submit(&mut self, _: DmaRequest) -> Result<(), DmaError> {
        Err(DmaError::Gone)
    }

    fn poll(&mut self, _: &mut [DmaCompletion]) -> usize {
        0
    }

    fn ring_host(&mut self, _: u16) {}

    fn arm(&mut self) -> bool {
        true
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What the card did for some commands, on this provider.
pub struct Counted {
    /// Calls of the allocator while the card ran.
    pub allocator_calls: u64,
    /// Bytes of data buffers that the card's cores could see.
    pub payload_bytes_touched: u64,
    /// Bytes that the HCA was told to move to or from data buffers.
    pub payload_bytes: u64,
    /// Most doorbells of one queue pair in one tick.
    pub doorbells_per_tick_max: u64,
    /// What the group counted.
    pub group: GroupCounters,
    /// What the unit counted.
    pub unit: Counters,
}

struct Card {
    coordinator: Coordinator<Bare>,
    group: PollGroup<Bare>,
    now: Nanoseconds,
    allocator_calls: u64,
    doorbells_per_tick_max: u64,
}

impl Card {
    fn turn(&mut self) {
        self.now = self.now.plus(1000);
        let doorbells = self.group.hca().doorbells;
        let calls = allocations::calls();
        crate::card_turn(&mut self.group, self.now);
        self.allocator_calls += allocations::calls() - calls;
        let rung = self.group.hca().doorbells - doorbells;
        self.doorbells_per_tick_max = self.doorbells_per_tick_max.max(rung);
    }

    /// The initiator sends `commands` commands, [`DEPTH`] at a time, and waits for the last answer.
    fn run(&mut self, commands: u64) {
        let hca = self.group.hca_mut();
        hca.commands += commands;
        let last = hca.answered + commands;
        for _ in 0..DEPTH {
            hca.send_command();
        }
        while self.group.hca().answered != last {
            self.turn();
        }
        // The completions of the last responses.
        while self.group.tasks_in_progress() != 0 {
            self.turn();
        }
    }

    /// What the unit under LUN 0 counted so far.
    fn unit(&mut self) -> Counters {
        self.coordinator.request_statistics(1);
        loop {
            self.turn();
            self.coordinator.poll();
            if let Some(Report::Statistics(groups)) = self.coordinator.report() {
                let unit = groups[0].units.iter().find(|unit| unit.handle == 1);
                return unit.expect("the unit of LUN 0").counters;
            }
        }
    }
}

/// Carries out `commands` commands of `case` on a card of one poll group, after [`WARM_UP`] others.
pub fn run(case: Case, commands: u64) -> Counted {
    let limits = small_limits();
    let (claims, claimed) = channel();
    let (connects, asked) = channel();
    let (link, inbox, outbox) = mailbox();
    let stride = (limits.receive_bytes as usize).next_multiple_of(64);
    let parts = GroupParts {
        index: 0,
        limits: limits.clone(),
        hca: BareHca::new(case),
        dma: NoDma,
        memory: BareMemory { case, stride, claimed: 0, touched: claims },
        inbox,
        outbox,
    };
    let mut card = Card {
        coordinator: Coordinator::new(BareListener(asked), vec![link]),
        group: PollGroup::new(parts).expect("poll group"),
        now: Nanoseconds(0),
        allocator_calls: 0,
        doorbells_per_tick_max: 0,
    };
    let data = claimed.try_iter().find(|(length, _)| *length == limits.card_arena_bytes);
    let (_, touched) = data.expect("the region of the data buffers");
    card.coordinator.configure(configuration(1));
    settle(&mut card, |report| matches!(report, Report::Configured { .. }));
    connects.send(login_request()).expect("the listener lives");
    let is_login = |event: &_| matches!(event, lunar_target::message::Event::Login { .. });
    settle(&mut card, |report| matches!(report, Report::Event(event) if is_login(event)));

    card.run(WARM_UP);
    let before = card.unit();
    let group_before = *card.group.counters();
    let touched_before = touched.load(Ordering::Relaxed);
    let payload_before = card.group.hca().payload_bytes;
    (card.allocator_calls, card.doorbells_per_tick_max) = (0, 0);
    card.run(commands);
    let allocator_calls = card.allocator_calls;
    let group = *card.group.counters();
    let unit = card.unit();
    Counted {
        allocator_calls,
        payload_bytes_touched: touched.load(Ordering::Relaxed) - touched_before,
        payload_bytes: card.group.hca().payload_bytes - payload_before,
        doorbells_per_tick_max: card.doorbells_per_tick_max,
        group: GroupCounters {
            ticks: group.ticks - group_before.ticks,
            doorbells: group.doorbells - group_before.doorbells,
            work_requests: group.work_requests - group_before.work_requests,
            completions: group.completions - group_before.completions,
            ..GroupCounters::default()
        },
        unit: Counters {
            commands: std::array::from_fn(|kind| unit.commands[kind] - before.commands[kind]),
            check_conditions: unit.check_conditions - before.check_conditions,
            ..Counters::default()
        },
    }
}

/// Turns until the coordinator reports what `is_it` recognises.
fn settle(card: &mut Card, is_it: impl Fn(&Report) -> bool) {
    loop {
        card.turn();
        card.coordinator.poll();
        while let Some(report) = card.coordinator.report() {
            if is_it(&report) {
                return;
            }
        }
    }
}

fn login_request() -> ConnectRequest<()> {
    let request = LoginRequest {
        form: LoginForm::InfiniBand,
        tag: 1,
        it_iu_bytes: 2116,
        formats: FORMATS,
        action: Action::Single,
        immediate_offset: None,
        initiator_port: PortId([1; 16]),
        target_port: TARGET,
    };
    let mut bytes = [0; 64];
    let length = login::encode_request(&request, &mut bytes).expect("a login request has 64 bytes");
    ConnectRequest {
        connection: (),
        private_data: PrivateData::new(&bytes[..length]),
        peer: PeerAddress::new("fe80::1"),
        device: 0,
    }
}
