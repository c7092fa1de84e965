//! A poll group: the unit of ownership. One core, one CQ, one SRQ, its channels, its nexuses, its
//! SGV caches, its ring. Nothing here is shared with another core; what concerns several groups
//! comes as a message from the coordinator.
//!
//! Here live the group's memory, its capacities and `tick`. What a task does is in `task`, what SRP
//! does in `srp_port`, logins and the end of channels in `login`, aborts and gates in `management`.

use std::collections::VecDeque;
use std::sync::Arc;

use lunar_backend::null::NullBackend;
use lunar_backend::ring::RingBackend;
use lunar_dma::sgv::{Placement, SgvCache};
use lunar_dma::slots::{SlotId, Slots};
use lunar_platform::{
    Dma, Hca, Memory, MemoryError, Nanoseconds, Platform, QpHandle, ReceiveRequest, Region,
    SendOperation, SendRequest, Sge, WorkCompletion, WorkRequestId,
};
use lunar_scsi::unit::LogicalUnit;
use rtrb::{Consumer, Producer};

use crate::channel::Channel;
use crate::configuration::{BackendKind, Configuration, TRANSFER_BYTES_MAX, Unit};
use crate::fifo::{Fifo, Links};
use crate::histogram::Histogram;
use crate::login::PendingLogin;
use crate::message::{Event, FromGroup, ToGroup};
use crate::nexus::Nexus;
use crate::statistics::{Counters, GroupCounters, OPERATIONS, SIZE_CLASSES};
use crate::task::{State, Task, Wake};
use crate::trace::{Point, Record, Trace};

/// Completions reaped in one tick (DESIGN section 4, step 1).
pub(crate) const REAP_MAX: usize = 32;

/// Work requests in one chain: RDMA WRITEs or READs of one batch and a response.
pub(crate) const CHAIN_MAX: usize = 32;

/// Bytes a slot's response buffer takes: the longest SRP_RSP, rounded up to a cache line.
pub(crate) const RESPONSE_STRIDE: usize = lunar_srp::iu::RESPONSE_BYTES_MAX.next_multiple_of(64);

/// Ticks between looks at the timers.
pub(crate) const SLOW_TICKS: u64 = 256;

/// The sizes of a poll group. All memory is claimed from them at start.
#[derive(Clone, Debug)]
pub struct GroupLimits {
    /// Slots: commands and task management functions in progress, over all channels. Each channel
    /// takes its request limit plus one of them, and a login beyond the sum is refused.
    pub slots: u32,
    /// Channels at a time.
    pub channels: u32,
    /// Bytes of a receive buffer: the largest IU any target of this card allows.
    pub receive_bytes: u32,
    /// SGV arena in card memory, in bytes (a power of two).
    pub card_arena_bytes: usize,
    /// Most SGV memory one nexus may hold in each placement, in bytes.
    pub nexus_share_bytes: u64,
    /// How long commands wait for an absent agent before they are answered BUSY, in nanoseconds.
    pub agent_wait_ns: u64,
    /// How long a task management function, a login or a gate waits for aborted tasks before it
    /// tears down the channels that hold them; it fails after twice this, in nanoseconds.
    pub drain_wait_ns: u64,
}

impl Default for GroupLimits {
    fn default() -> Self {
        Self {
            slots: 4096,
            channels: 256,
            receive_bytes: 8320,
            card_arena_bytes: 64 << 20,
            nexus_share_bytes: 48 << 20,
            agent_wait_ns: 10_000_000_000,
            drain_wait_ns: 2_000_000_000,
        }
    }
}

/// Receive buffers and their links.
pub(crate) struct ReceiveBuffers<R> {
    region: R,
    stride: usize,
    /// Which channel's message is in it, while one is.
    pub(crate) messages: Box<[Message]>,
    pub(crate) links: Links,
}

/// A message that waits in its receive buffer.
#[derive(Clone, Copy)]
pub(crate) struct Message {
    pub bytes: u32,
    pub since: Nanoseconds,
}

impl<R: Region> ReceiveBuffers<R> {
    /// The first `bytes` of receive buffer `index`.
    #[inline]
    pub(crate) fn iu(&self, index: u32, bytes: u32) -> &[u8] {
        self.region.bytes(index as usize * self.stride, bytes as usize)
    }

    /// The CDB of `task`, read where the initiator's message lies.
    #[inline]
    pub(crate) fn cdb(&self, task: &Task) -> &[u8] {
        self.region.bytes(
            task.receive as usize * self.stride + usize::from(task.cdb_offset),
            usize::from(task.cdb_bytes),
        )
    }

    fn request(&self, index: u32) -> ReceiveRequest {
        ReceiveRequest {
            id: wr_id(Kind::Receive, index, 0),
            local: Sge {
                address: self.region.base() + u64::from(index) * self.stride as u64,
                length: u32::try_from(self.stride).unwrap_or(u32::MAX),
                key: self.region.key(),
            },
        }
    }
}

/// SGV memory on the card, for parameter data.
pub(crate) struct CardRegion<R>(pub(crate) R);

impl<R: Region> CardRegion<R> {
    /// `bytes` from `offset` of the arena.
    pub(crate) fn bytes_at(&mut self, offset: u64, bytes: u32) -> &mut [u8] {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        self.0.bytes_mut(offset, bytes as usize)
    }
}

/// The shards by unit handle.
#[derive(Default)]
pub(crate) struct Units(pub(crate) Vec<Option<UnitShard>>);

impl Units {
    #[inline]
    pub(crate) fn get(&self, unit: u32) -> Option<&UnitShard> {
        self.0.get(unit as usize)?.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, unit: u32) -> Option<&mut UnitShard> {
        self.0.get_mut(unit as usize)?.as_mut()
    }
}

/// This group's shard of a logical unit.
pub(crate) struct UnitShard {
    pub in_use: bool,
    pub logical_unit: LogicalUnit,
    pub backend: BackendKind,
    pub placement: Placement,
    /// Counts access changes; decisions made under an older one are checked again at submit.
    pub access_generation: u32,
    /// The gate that is closed on it.
    pub gate: Option<GateShard>,
    /// A configuration that removes it, or changes what is behind it, waits for its tasks.
    pub closed_for_change: bool,
    /// Tasks that arrived while the gate was closed, not in a task set yet.
    pub held: Fifo,
    /// Tasks past the gate.
    pub active: u32,
    /// Tasks at the backend, by parity of the access generation they were decided under.
    pub at_backend: [u32; 2],
    pub counters: Counters,
    pub latency: Box<[[Histogram; SIZE_CLASSES]; OPERATIONS]>,
}

impl UnitShard {
    pub(crate) fn new(unit: &Unit) -> Self {
        Self {
            in_use: true,
            logical_unit: unit.logical_unit.clone(),
            backend: unit.backend,
            placement: unit.placement,
            access_generation: 0,
            gate: None,
            closed_for_change: false,
            held: Fifo::default(),
            active: 0,
            at_backend: [0; 2],
            counters: Counters::default(),
            latency: Box::new(core::array::from_fn(|_| {
                core::array::from_fn(|_| Histogram::default())
            })),
        }
    }

    /// Whether new tasks are held.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.gate.is_some() || self.closed_for_change
    }

    /// Access got narrower: decisions made before are checked again at submit. Gives the parity of
    /// those that the backend has already, which must end before the change is reported.
    pub(crate) fn narrow_access(&mut self) -> usize {
        let old = (self.access_generation & 1) as usize;
        self.access_generation = self.access_generation.wrapping_add(1);
        old
    }
}

/// A closed gate on this group's shard of a unit.
#[derive(Clone, Copy)]
pub(crate) struct GateShard {
    pub gate: u32,
    /// For the mistake of establishing unit attentions late.
    #[cfg(feature = "mutants")]
    pub cause: crate::message::GateCause,
    pub acknowledged: bool,
    /// When channels that hold it up are torn down.
    pub deadline: Nanoseconds,
}

/// What a work request was, in the high bits of its id: the opcode of a failed completion is not to
/// be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A receive; the index is the receive buffer.
    Receive = 0,
    /// The last work request of a task's batch; the index is the slot.
    Tail = 1,
    /// Another one of the batch: reported only when it failed.
    Body = 2,
}

/// wr_id = generation (32 bits) | kind (4 bits) | index (28 bits).
#[inline]
pub(crate) fn wr_id(kind: Kind, index: u32, generation: u32) -> WorkRequestId {
    WorkRequestId(u64::from(generation) << 32 | (kind as u64) << 28 | u64::from(index))
}

#[inline]
fn wr_kind(id: WorkRequestId) -> Option<Kind> {
    match (id.0 >> 28) & 0xf {
        0 => Some(Kind::Receive),
        1 => Some(Kind::Tail),
        2 => Some(Kind::Body),
        _ => None,
    }
}

#[inline]
fn wr_slot(id: WorkRequestId) -> SlotId {
    SlotId { index: (id.0 & 0x0fff_ffff) as u32, generation: (id.0 >> 32) as u32 }
}

/// Slots with the two accesses the state machine needs: by live index, and by checked token.
pub(crate) struct TaskTable(Slots<Task>);

impl TaskTable {
    /// The task in slot `index`, which came from this table.
    #[inline]
    pub(crate) fn at(&self, index: u32) -> &Task {
        self.0.at(index).expect("a slot index from this table")
    }

    /// As [`Self::at`].
    #[inline]
    pub(crate) fn at_mut(&mut self, index: u32) -> &mut Task {
        self.0.at_mut(index).expect("a slot index from this table")
    }

    /// The id of the claimed slot `index`.
    #[inline]
    pub(crate) fn id_at(&self, index: u32) -> SlotId {
        self.0.id_at(index).expect("a claimed slot")
    }

    /// The slot that `token` names, when that life of it is not over.
    #[inline]
    pub(crate) fn live(&self, token: u64) -> Option<SlotId> {
        let id = SlotId::from_token(token);
        self.0.get(id).map(|_| id)
    }

    #[inline]
    pub(crate) fn claim(&mut self) -> Option<SlotId> {
        self.0.claim()
    }

    #[inline]
    pub(crate) fn release(&mut self, id: SlotId) {
        self.0.release(id);
    }

    /// The first claimed slot from index `from` on: a walk over all slots that survives changes to
    /// the table between its steps.
    pub(crate) fn live_from(&self, from: u32) -> Option<u32> {
        (from..self.0.capacity()).find(|index| self.0.id_at(*index).is_some())
    }

    pub(crate) fn len(&self) -> u32 {
        self.0.len()
    }
}

/// What a tick found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Something happened: tick again at once.
    Busy,
    /// Nothing happened.
    Idle,
}

/// One poll group. Generic over the platform: the same code runs on a card, in the emulator and in
/// the simulator.
pub struct PollGroup<P: Platform> {
    pub(crate) index: u16,
    pub(crate) limits: GroupLimits,
    pub(crate) hca: P::Hca,
    pub(crate) memory: P::Memory,
    /// Taken by the ring backend when a ring is attached, given back when it is reset.
    pub(crate) dma: Option<P::Dma>,
    pub(crate) receive_region: ReceiveBuffers<P::Region>,
    pub(crate) response_region: P::Region,
    pub(crate) card_region: CardRegion<P::Region>,
    pub(crate) card_cache: SgvCache,
    pub(crate) host_cache: Option<SgvCache>,
    /// Host memory that CardDram operations of the ring are staged in.
    pub(crate) staging_cache: Option<SgvCache>,
    /// Which life of the host arena `host_cache` is about.
    pub(crate) host_epoch: u32,
    /// The imported arenas, and the ring arena's blob that says which life of it this is.
    pub(crate) arenas: Vec<lunar_platform::HostArena>,
    pub(crate) attached_to: Option<Vec<u8>>,
    pub(crate) null: NullBackend,
    pub(crate) ring: Option<RingBackend<P>>,
    /// The host announced that its memory goes; buffers come from the card meanwhile.
    pub(crate) releasing: bool,
    #[cfg(feature = "mutants")]
    pub(crate) late_attentions: Vec<(u32, crate::message::GateCause)>,
    /// Since when the ring is detached.
    pub(crate) detached_since: Option<Nanoseconds>,
    pub(crate) tasks: TaskTable,
    pub(crate) links: Links,
    pub(crate) channels: Box<[Channel]>,
    pub(crate) nexuses: Vec<Nexus>,
    pub(crate) units: Units,
    /// Ends whose waiters were not looked at yet.
    pub(crate) wakes: VecDeque<Wake>,
    /// Outcomes of the host that wait for a configuration to be in force here.
    pub(crate) ahead: Vec<lunar_backend::Outcome>,
    /// Tasks that wait for a buffer, by placement.
    pub(crate) need_buffer: [Fifo; 2],
    pub(crate) need_backend: Fifo,
    /// Slots of task management functions in progress.
    pub(crate) managements: Vec<u32>,
    /// A task that somebody waits for ended since they were looked at.
    pub(crate) ends_seen: bool,
    /// Gates closed on this group's shards and not acknowledged yet.
    pub(crate) gates_closed: u32,
    pub(crate) pending_logins: Vec<PendingLogin<P::Connection>>,
    /// Sum of the slots promised to channels.
    pub(crate) slots_promised: u32,
    /// Sum of the send-queue depths of the channels, for the CQ's sum.
    pub(crate) send_depths: u32,
    pub(crate) next_nexus: u32,
    pub(crate) configuration: Arc<Configuration>,
    /// A configuration that waits for tasks decided under the old one.
    pub(crate) changing: Option<crate::control::Change>,
    pub(crate) inbox: Consumer<ToGroup<P>>,
    outbox: Producer<FromGroup>,
    /// Messages that must not be lost and did not fit.
    unsent: VecDeque<FromGroup>,
    /// Messages told, so that the owner knows when to wake the coordinator.
    told: u64,
    doorbells: Vec<QpHandle>,
    pub(crate) chain: Vec<SendRequest>,
    completions: [WorkCompletion; REAP_MAX],
    outcomes: Vec<lunar_backend::Outcome>,
    /// Sense of the forwarded command whose response is being made.
    pub(crate) forwarded_sense: [u8; lunar_srp::iu::SENSE_BYTES_MAX],
    pub(crate) counters: GroupCounters,
    pub(crate) now: Nanoseconds,
    trace: Option<Box<Trace>>,
}

/// What a poll group is made from.
pub struct GroupParts<P: Platform> {
    /// Its place among the groups.
    pub index: u16,
    /// Its sizes.
    pub limits: GroupLimits,
    /// Its share of the HCA.
    pub hca: P::Hca,
    /// Its DMA context.
    pub dma: P::Dma,
    /// Its registrar of memory.
    pub memory: P::Memory,
    /// From the coordinator.
    pub inbox: Consumer<ToGroup<P>>,
    /// To the coordinator.
    pub outbox: Producer<FromGroup>,
}

impl<P: Platform> PollGroup<P> {
    /// Claims all memory and posts the receives.
    ///
    /// # Errors
    /// When the provider cannot give the card memory that the limits add up to.
    pub fn new(parts: GroupParts<P>) -> Result<Self, MemoryError> {
        let GroupParts { index, mut limits, mut hca, dma, mut memory, inbox, outbox } = parts;
        let attributes = hca.attributes();
        limits.channels = limits.channels.min(attributes.queue_pairs_max);
        // One receive buffer for each slot: a message holds its buffer at most as long as the credit
        // that it used, and the sum of the credits is at most the number of slots.
        let receives = limits.slots.min(attributes.shared_receive_queue_depth);
        limits.slots = receives;
        let stride = (limits.receive_bytes as usize).next_multiple_of(64);
        let receive_region = ReceiveBuffers {
            region: memory.claim(receives as usize * stride)?,
            stride,
            messages: vec![Message { bytes: 0, since: Nanoseconds(0) }; receives as usize]
                .into_boxed_slice(),
            links: Links::new(receives as usize),
        };
        let response_region = memory.claim(limits.slots as usize * RESPONSE_STRIDE)?;
        let card = memory.claim(limits.card_arena_bytes)?;
        let config = lunar_dma::sgv::Config {
            class_bytes_max: TRANSFER_BYTES_MAX,
            ..lunar_dma::sgv::Config::default()
        };
        let card_cache = SgvCache::new(
            Placement::CardDram,
            card.key(),
            card.base(),
            card.length() as u64,
            config,
        );
        for receive in 0..receives {
            if hca.post_receive(receive_region.request(receive)).is_err() {
                // The attributes said that it fits; a provider that lies gets fewer receives.
                break;
            }
        }
        Ok(Self {
            index,
            hca,
            memory,
            dma: Some(dma),
            receive_region,
            response_region,
            card_region: CardRegion(card),
            card_cache,
            host_cache: None,
            staging_cache: None,
            host_epoch: 0,
            arenas: Vec::new(),
            attached_to: None,
            null: NullBackend::new(limits.slots),
            ring: None,
            releasing: false,
            #[cfg(feature = "mutants")]
            late_attentions: Vec::new(),
            detached_since: None,
            tasks: TaskTable(Slots::new(limits.slots, |_| Task::vacant())),
            links: Links::new(limits.slots as usize),
            channels: (0..limits.channels).map(|_| Channel::vacant()).collect(),
            nexuses: Vec::new(),
            units: Units::default(),
            // Every slot can end between two looks, and each end adds at most three entries.
            wakes: VecDeque::with_capacity(3 * limits.slots as usize),
            ahead: Vec::with_capacity(limits.slots as usize),
            need_buffer: [Fifo::default(); 2],
            need_backend: Fifo::default(),
            managements: Vec::with_capacity(limits.channels as usize),
            ends_seen: false,
            gates_closed: 0,
            pending_logins: Vec::new(),
            slots_promised: 0,
            send_depths: 0,
            next_nexus: 1,
            configuration: Arc::new(Configuration::default()),
            changing: None,
            inbox,
            outbox,
            unsent: VecDeque::with_capacity(64),
            told: 0,
            doorbells: Vec::with_capacity(limits.channels as usize),
            chain: Vec::with_capacity(CHAIN_MAX + 1),
            completions: [WorkCompletion::EMPTY; REAP_MAX],
            outcomes: vec![lunar_backend::Outcome::EMPTY; REAP_MAX],
            forwarded_sense: [0; lunar_srp::iu::SENSE_BYTES_MAX],
            counters: GroupCounters::default(),
            now: Nanoseconds(0),
            trace: None,
            limits,
        })
    }

    /// One turn: messages, completions, backends, timers, doorbells. Never blocks.
    pub fn tick(&mut self, now: Nanoseconds) -> Activity {
        self.now = now;
        self.counters.ticks += 1;
        let mut busy = false;
        while let Ok(message) = self.inbox.pop() {
            busy = true;
            self.on_message(message);
            self.run_wakes();
        }
        while let Some(event) = self.hca.poll_cm() {
            busy = true;
            self.on_cm_event(event);
            self.run_wakes();
        }
        busy |= self.reap();
        busy |= self.poll_backends();
        if self.ends_seen || self.counters.ticks.is_multiple_of(SLOW_TICKS) {
            self.slow_work();
        }
        self.ring_doorbells();
        if busy {
            self.counters.busy_ticks += 1;
            Activity::Busy
        } else {
            Activity::Idle
        }
    }

    /// Whether the group may sleep now and for how long: `None` when something is pending. While
    /// operations are outstanding the bound is 1 ms, because events are hints and may be lost.
    pub fn may_sleep(&mut self) -> Option<u64> {
        if !self.inbox.is_empty() || !self.hca.arm() {
            return None;
        }
        let armed = match (self.ring.as_mut(), self.dma.as_mut()) {
            (Some(ring), _) => ring.arm(),
            (None, Some(dma)) => dma.arm(),
            (None, None) => true,
        };
        if !armed {
            return None;
        }
        let waits = self.tasks.len() != 0
            || self.gates_closed != 0
            || self.changing.is_some()
            || !self.pending_logins.is_empty()
            || !self.unsent.is_empty();
        Some(if waits { 1_000_000 } else { 100_000_000 })
    }

    /// Runs the timers now, whatever the tick count: the caller slept.
    pub fn after_sleep(&mut self, now: Nanoseconds) {
        self.now = now;
        self.counters.sleeps += 1;
        self.slow_work();
        self.ring_doorbells();
    }

    /// The provider, for its event descriptor.
    pub fn hca(&self) -> &P::Hca {
        &self.hca
    }

    /// The provider, for fault injection by its owner.
    pub fn hca_mut(&mut self) -> &mut P::Hca {
        &mut self.hca
    }

    /// The DMA context, wherever it is, for its event descriptor.
    pub fn dma(&self) -> Option<&P::Dma> {
        match &self.ring {
            Some(ring) => Some(ring.dma()),
            None => self.dma.as_ref(),
        }
    }

    /// Starts recording events.
    pub fn set_trace(&mut self, trace: Option<Trace>) {
        self.trace = trace.map(Box::new);
    }

    /// The trace, if one is recorded.
    pub fn trace_mut(&mut self) -> Option<&mut Trace> {
        self.trace.as_deref_mut()
    }

    /// Messages told to the coordinator so far.
    #[must_use]
    pub fn messages_told(&self) -> u64 {
        self.told
    }

    /// The group's own counters.
    #[must_use]
    pub fn counters(&self) -> &GroupCounters {
        &self.counters
    }

    /// Tasks in progress.
    #[must_use]
    pub fn tasks_in_progress(&self) -> u32 {
        self.tasks.len()
    }

    #[inline]
    fn reap(&mut self) -> bool {
        let count = self.hca.poll(&mut self.completions);
        self.counters.completions += count as u64;
        for place in 0..count.min(REAP_MAX) {
            let completion = self.completions[place];
            match wr_kind(completion.id) {
                Some(Kind::Receive) => self.on_receive(&completion),
                Some(Kind::Tail) => self.on_tail(wr_slot(completion.id), &completion),
                Some(Kind::Body) => self.on_body(&completion),
                None => self.counters.stale_completions += 1,
            }
            self.run_wakes();
        }
        count != 0
    }

    #[inline]
    fn poll_backends(&mut self) -> bool {
        let mut busy = false;
        while let Some(token) = self.null.poll() {
            busy = true;
            self.on_outcome(token, &lunar_backend::Outcome::done(token));
            self.run_wakes();
        }
        if self.ring.is_some() {
            busy |= self.poll_ring();
        }
        busy
    }

    fn poll_ring(&mut self) -> bool {
        let (Some(ring), Some(staging)) = (self.ring.as_mut(), self.staging_cache.as_mut()) else {
            return false;
        };
        let mut busy = ring.tick(self.now, staging);
        let mut outcomes = std::mem::take(&mut self.outcomes);
        while let Some(ring) = self.ring.as_mut() {
            let count = ring.poll(&mut outcomes);
            if count == 0 {
                break;
            }
            busy = true;
            for outcome in outcomes.iter().take(count) {
                self.on_outcome(outcome.token, outcome);
                self.run_wakes();
            }
        }
        self.outcomes = outcomes;
        if busy && !self.need_backend.is_empty() {
            self.wake_backend();
            self.run_wakes();
        }
        busy
    }

    fn ring_doorbells(&mut self) {
        for place in 0..self.doorbells.len() {
            let qp = self.doorbells[place];
            let channel = &mut self.channels[qp.index as usize];
            if channel.doorbell {
                channel.doorbell = false;
                self.counters.doorbells += 1;
                self.hca.ring(qp);
            }
        }
        if !self.doorbells.is_empty() {
            self.doorbells.clear();
            self.record(0, Point::Doorbell);
        }
    }

    /// Posts `self.chain` on `channel`; the doorbell follows at the end of the tick. `false` when
    /// the queue pair is gone.
    pub(crate) fn post_chain(&mut self, channel: u32) -> bool {
        let entry = &mut self.channels[channel as usize];
        self.counters.work_requests += self.chain.len() as u64;
        if self.hca.post_send(entry.qp, &self.chain).is_err() {
            return false;
        }
        if !entry.doorbell {
            entry.doorbell = true;
            self.doorbells.push(entry.qp);
        }
        true
    }

    /// Gives receive buffer `index` back to the SRQ.
    pub(crate) fn repost(&mut self, index: u32) {
        let request = self.receive_region.request(index);
        // The SRQ has a place for every receive buffer, so this cannot be refused by a sound
        // provider; a refused buffer is lost capacity, never a wrong answer.
        let _ = self.hca.post_receive(request);
    }

    /// Sends `message` to the coordinator, later if its queue is full.
    pub(crate) fn tell(&mut self, message: FromGroup) {
        self.told += 1;
        self.unsent.push_back(message);
        self.flush_outbox();
    }

    pub(crate) fn flush_outbox(&mut self) {
        while let Some(message) = self.unsent.pop_front() {
            if let Err(rtrb::PushError::Full(message)) = self.outbox.push(message) {
                self.unsent.push_front(message);
                return;
            }
        }
    }

    /// Tells the log, unless the coordinator is far behind.
    pub(crate) fn tell_event(&mut self, event: Event) {
        if self.unsent.len() > 4096 {
            self.counters.events_lost += 1;
            return;
        }
        self.tell(FromGroup::Event(event));
    }

    #[inline]
    pub(crate) fn record(&mut self, tag: u64, point: Point) {
        if let Some(trace) = self.trace.as_mut() {
            trace.push(Record { at: self.now, tag, point });
        }
    }

    #[inline]
    pub(crate) fn trace_task(&mut self, index: u32, point: Point) {
        if self.trace.is_some() {
            let tag = self.tasks.at(index).tag;
            self.record(tag, point);
        }
    }

    #[inline]
    pub(crate) fn mark_state(&mut self, index: u32, state: State) {
        self.trace_task(index, Point::Entered(state));
    }

    #[inline]
    pub(crate) fn trace_over(&mut self, index: u32) {
        self.trace_task(index, Point::Over);
    }
}

/// An RDMA request of a data phase.
#[inline]
pub(crate) fn data_request(id: WorkRequestId, operation: SendOperation, local: Sge) -> SendRequest {
    SendRequest { id, operation, local, signaled: false }
}
