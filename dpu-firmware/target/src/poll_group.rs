//! A poll group: the unit of ownership. One core, one CQ, one SRQ, its channels, its nexuses, its
//! SGV caches, its ring. Nothing here is shared with another core; what concerns several groups
//! comes as a message from the coordinator.
//!
//! Here live the group's memory, its capacities and `tick`. What a task does is in `task`, what SRP
//! does in `srp_port`, logins and the end of channels in `login`, aborts and gates in `management`.

use std::collections::VecDeque;
use std::sync::Arc;

use lunar_dma::sgv::{Placement, SgvCache};
use lunar_dma::slots::{SlotId, Slots};
use lunar_platform::{
    Dma, Hca, Memory, MemoryError, Nanoseconds, Platform, Region, WorkCompletion,
};
use lunar_scsi::unit::LogicalUnit;
use rtrb::{Consumer, Producer};

use crate::announce::{LOGOUT_REASONS, encode_logouts};
use crate::channel::Channel;
use crate::configuration::{BackendKind, Configuration, TRANSFER_BYTES_MAX, Unit};
use crate::fifo::{Fifo, Links};
use crate::histogram::Histogram;
use crate::kit::{CHAIN_MAX, CardRegion, Kind, Kit, RESPONSE_STRIDE, ReceiveBuffers, wr_slot};
use crate::login::PendingLogin;
use crate::message::{Event, FromGroup, ToGroup};
use crate::nexus::Nexus;
use crate::statistics::{Counters, GroupCounters, OPERATIONS, SIZE_CLASSES};
use crate::task::Task;
use crate::trace::{Point, Trace};

/// Completions reaped in one tick (DESIGN section 4, step 1).
pub(crate) const REAP_MAX: usize = 32;

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

/// The shards by unit handle. Boxed, so that finding one is a load and its absence a null pointer.
#[derive(Default)]
pub(crate) struct Units(pub(crate) Vec<Option<Box<UnitShard>>>);

impl Units {
    #[inline]
    pub(crate) fn get(&self, unit: u32) -> Option<&UnitShard> {
        self.0.get(unit as usize)?.as_deref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, unit: u32) -> Option<&mut UnitShard> {
        self.0.get_mut(unit as usize)?.as_deref_mut()
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
    /// Why new tasks are held, as bits of [`closed`].
    pub closed: u8,
    /// The task (its token) that has to be alone on the unit: TST = 0, and it is not SIMPLE. It waits for its gate, or runs.
    pub alone: Option<u64>,
    /// Tasks that arrived while it was closed, not in a task set yet.
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
            closed: 0,
            alone: None,
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
        self.closed != 0
    }

    /// Access got narrower: decisions made before are checked again at submit. Gives the parity of
    /// those that the backend has already, which must end before the change is reported.
    pub(crate) fn narrow_access(&mut self) -> usize {
        let old = (self.access_generation & 1) as usize;
        self.access_generation = self.access_generation.wrapping_add(1);
        old
    }
}

/// Why a group's shard of a unit holds new tasks.
pub(crate) mod closed {
    /// A gate is closed on it.
    pub(crate) const BY_GATE: u8 = 1;
    /// A configuration that removes the unit, or changes what is behind it, waits for its tasks.
    pub(crate) const FOR_CHANGE: u8 = 2;
    /// One of its tasks has to be alone.
    pub(crate) const FOR_ONE: u8 = 4;
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

/// Slots with the accesses the state machine needs: by live index, and by checked token.
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

    /// As [`Self::at`], with the id of the slot's present life.
    #[inline]
    pub(crate) fn entry(&mut self, index: u32) -> (SlotId, &mut Task) {
        self.0.entry(index).expect("a slot index from this table")
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
    pub(crate) fn claim(&mut self) -> Option<(SlotId, &mut Task)> {
        self.0.claim()
    }

    /// Ends the present life of slot `index`.
    #[inline]
    pub(crate) fn release(&mut self, index: u32) {
        self.0.release(self.id_at(index));
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
    /// What the steps of tasks work with.
    pub(crate) kit: Kit<P>,
    pub(crate) tasks: TaskTable,
    pub(crate) channels: Box<[Channel]>,
    /// Boxed, as the units are.
    pub(crate) nexuses: Vec<Box<Nexus>>,
    pub(crate) units: Units,
    pub(crate) memory: P::Memory,
    /// Taken by the ring backend when a ring is attached, given back when it is reset.
    pub(crate) dma: Option<P::Dma>,
    /// The imported arenas, and the ring arena's blob that says which life of it this is.
    pub(crate) arenas: Vec<lunar_platform::HostArena>,
    pub(crate) attached_to: Option<Vec<u8>>,
    /// The coordinator knows that the ring is cut.
    pub(crate) cut_told: bool,
    #[cfg(feature = "mutants")]
    pub(crate) late_attentions: Vec<(u32, crate::message::GateCause)>,
    /// Since when the ring is detached.
    pub(crate) detached_since: Option<Nanoseconds>,
    /// Outcomes of the host that wait for a configuration to be in force here.
    pub(crate) ahead: Vec<lunar_backend::Outcome>,
    /// Channels that close once their logout left.
    pub(crate) logouts: u32,
    /// Asynchronous events wait for a slot.
    pub(crate) events_due: bool,
    /// Slots of task management functions in progress.
    pub(crate) managements: Vec<u32>,
    /// Gates closed on this group's shards and not acknowledged yet.
    pub(crate) gates_closed: u32,
    /// Units of which a task of this group has to be alone.
    pub(crate) alone: u32,
    pub(crate) pending_logins: Vec<PendingLogin<P::Connection>>,
    /// Sum of the slots promised to channels.
    pub(crate) slots_promised: u32,
    /// Sum of the send-queue depths of the channels, for the CQ's sum.
    pub(crate) send_depths: u32,
    pub(crate) next_nexus: u32,
    /// A configuration that waits for tasks decided under the old one.
    pub(crate) changing: Option<crate::control::Change>,
    pub(crate) inbox: Consumer<ToGroup<P>>,
    outbox: Producer<FromGroup>,
    /// Messages that must not be lost and did not fit.
    unsent: VecDeque<FromGroup>,
    /// Messages told, so that the owner knows when to wake the coordinator.
    told: u64,
    completions: Vec<WorkCompletion>,
    outcomes: Vec<lunar_backend::Outcome>,
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
        let region = memory.claim(receives as usize * stride)?;
        let receive_region = ReceiveBuffers::new(region, stride, receives);
        let response_buffers = limits.slots as usize + LOGOUT_REASONS.len();
        let mut response_region = memory.claim(response_buffers * RESPONSE_STRIDE)?;
        encode_logouts(&mut response_region, limits.slots);
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
        let kit = Kit {
            hca,
            receive_region,
            response_region,
            card_region: CardRegion(card),
            card_cache,
            host_cache: None,
            staging_cache: None,
            host_epoch: 0,
            ring: None,
            releasing: false,
            configuration: Arc::new(Configuration::default()),
            links: Links::new(limits.slots as usize),
            need_buffer: [Fifo::default(); 2],
            need_backend: Fifo::default(),
            // Every slot can end between two looks, and each end adds at most three entries.
            wakes: VecDeque::with_capacity(3 * limits.slots as usize),
            ends_seen: false,
            doorbells: Vec::with_capacity(limits.channels as usize),
            chain: Vec::with_capacity(CHAIN_MAX + 1),
            forwarded_sense: [0; lunar_srp::iu::SENSE_BYTES_MAX],
            counters: GroupCounters::default(),
            now: Nanoseconds(0),
            trace: None,
        };
        Ok(Self {
            index,
            kit,
            tasks: TaskTable(Slots::new(limits.slots, |_| Task::vacant())),
            channels: (0..limits.channels).map(|_| Channel::vacant()).collect(),
            nexuses: Vec::new(),
            units: Units::default(),
            memory,
            dma: Some(dma),
            arenas: Vec::new(),
            attached_to: None,
            cut_told: false,
            #[cfg(feature = "mutants")]
            late_attentions: Vec::new(),
            detached_since: None,
            ahead: Vec::with_capacity(limits.slots as usize),
            logouts: 0,
            events_due: false,
            managements: Vec::with_capacity(limits.channels as usize),
            gates_closed: 0,
            alone: 0,
            pending_logins: Vec::new(),
            slots_promised: 0,
            send_depths: 0,
            next_nexus: 1,
            changing: None,
            inbox,
            outbox,
            unsent: VecDeque::with_capacity(64),
            told: 0,
            completions: vec![WorkCompletion::EMPTY; REAP_MAX],
            outcomes: vec![lunar_backend::Outcome::EMPTY; REAP_MAX],
            limits,
        })
    }

    /// One turn: messages, completions, backends, timers, doorbells. Never blocks.
    pub fn tick(&mut self, now: Nanoseconds) -> Activity {
        self.kit.now = now;
        self.kit.hca.begin_tick(now);
        self.kit.counters.ticks += 1;
        let mut busy = false;
        while let Ok(message) = self.inbox.pop() {
            busy = true;
            self.on_message(message);
            self.run_wakes();
        }
        while let Some(event) = self.kit.hca.poll_cm() {
            busy = true;
            self.on_cm_event(event);
            self.run_wakes();
        }
        busy |= if self.kit.trace.is_some() { self.reap::<true>() } else { self.reap::<false>() };
        if self.kit.ring.is_some() {
            busy |= self.poll_ring();
        }
        if self.kit.ends_seen || self.kit.counters.ticks.is_multiple_of(SLOW_TICKS) {
            self.slow_work();
        }
        self.ring_doorbells();
        if busy {
            self.kit.counters.busy_ticks += 1;
            Activity::Busy
        } else {
            Activity::Idle
        }
    }

    /// Whether the group may sleep now and for how long: `None` when something is pending. While
    /// operations are outstanding the bound is 1 ms, because events are hints and may be lost.
    pub fn may_sleep(&mut self) -> Option<u64> {
        if !self.inbox.is_empty() || !self.kit.hca.arm() {
            return None;
        }
        let armed = match (self.kit.ring.as_mut(), self.dma.as_mut()) {
            (Some(ring), _) => ring.arm(),
            (None, Some(dma)) => dma.arm(),
            (None, None) => true,
        };
        if !armed {
            return None;
        }
        let waits = self.tasks.len() != 0
            || self.gates_closed != 0
            || self.alone != 0
            || self.logouts != 0
            || self.changing.is_some()
            || !self.pending_logins.is_empty()
            || !self.unsent.is_empty();
        Some(if waits { 1_000_000 } else { 100_000_000 })
    }

    /// Runs the timers now, whatever the tick count: the caller slept.
    pub fn after_sleep(&mut self, now: Nanoseconds) {
        self.kit.now = now;
        self.kit.hca.begin_tick(now);
        self.kit.counters.sleeps += 1;
        self.slow_work();
        self.ring_doorbells();
    }

    /// The provider, for its event descriptor.
    pub fn hca(&self) -> &P::Hca {
        &self.kit.hca
    }

    /// The provider, for fault injection by its owner.
    pub fn hca_mut(&mut self) -> &mut P::Hca {
        &mut self.kit.hca
    }

    /// The DMA context, wherever it is, for its event descriptor.
    pub fn dma(&self) -> Option<&P::Dma> {
        match &self.kit.ring {
            Some(ring) => Some(ring.dma()),
            None => self.dma.as_ref(),
        }
    }

    /// Starts recording events.
    pub fn set_trace(&mut self, trace: Option<Trace>) {
        self.kit.trace = trace.map(Box::new);
    }

    /// The trace, if one is recorded.
    pub fn trace_mut(&mut self) -> Option<&mut Trace> {
        self.kit.trace.as_deref_mut()
    }

    /// Messages told to the coordinator so far.
    #[must_use]
    pub fn messages_told(&self) -> u64 {
        self.told
    }

    /// The group's own counters.
    #[must_use]
    pub fn counters(&self) -> &GroupCounters {
        &self.kit.counters
    }

    /// Tasks in progress.
    #[must_use]
    pub fn tasks_in_progress(&self) -> u32 {
        self.tasks.len()
    }

    fn reap<const TRACED: bool>(&mut self) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        let count = self.kit.hca.poll(&mut completions);
        self.kit.counters.completions += count as u64;
        for completion in completions.get(..count).unwrap_or(&[]) {
            let slot = wr_slot(completion.id);
            if Kind::Tail.is_of(completion.id) {
                self.on_tail::<TRACED>(slot, completion);
            } else if Kind::Receive.is_of(completion.id) {
                self.on_receive::<TRACED>(slot.index, completion);
            } else {
                self.on_rare(completion);
            }
        }
        self.run_wakes();
        self.completions = completions;
        count != 0
    }

    fn poll_ring(&mut self) -> bool {
        let (Some(ring), Some(staging)) = (self.kit.ring.as_mut(), self.kit.staging_cache.as_mut())
        else {
            return false;
        };
        let mut busy = ring.tick(self.kit.now, staging);
        let mut outcomes = std::mem::take(&mut self.outcomes);
        while let Some(ring) = self.kit.ring.as_mut() {
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
        if busy && !self.kit.need_backend.is_empty() {
            self.wake_backend();
            self.run_wakes();
        }
        busy
    }

    fn ring_doorbells(&mut self) {
        for place in 0..self.kit.doorbells.len() {
            let qp = self.kit.doorbells[place];
            let channel = &mut self.channels[qp.index as usize];
            if channel.doorbell {
                channel.doorbell = false;
                self.kit.counters.doorbells += 1;
                self.kit.hca.ring(qp);
            }
        }
        if !self.kit.doorbells.is_empty() {
            self.kit.doorbells.clear();
            self.kit.record(0, Point::Doorbell);
        }
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
            self.kit.counters.events_lost += 1;
            return;
        }
        self.tell(FromGroup::Event(event));
    }
}
