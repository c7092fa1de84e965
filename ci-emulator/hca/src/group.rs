//! One poll group's share of the emulated HCA: the CQ, the SRQ, the table of queue pairs and the list
//! of those that are worth looking at, sleeping and waking, and the connection manager's events.
//! What a single queue pair does is in `queue_pair`, what only initiators need in `initiator_side`.
//!
//! A `poll` looks at the *hot* queue pairs only: those with work under way or with news in the last
//! [`IDLE_POLLS_MAX`] polls. All others are found through the activity bitmap (`shared`), so that ten
//! thousand idle connections cost a poll three loads.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lunar_pcie::{AddressSpace, Randomness};
use lunar_platform::{
    CmError, CmEvent, Hca, HcaAttributes, Nanoseconds, PostError, PrivateData, QpHandle,
    QpParameters, ReceiveRequest, SendOperation, SendRequest, WorkCompletion,
};

use crate::connection_manager::{Message, Received, Way};
use crate::device::{Clock, EmulatedDevice, Mode};
use crate::initiator_side::{Attempt, ConnectEvent};
use crate::listener::{EmulatedConnection, Pending};
use crate::message_ring::message_bytes_max;
use crate::queue_pair::{Closing, Engine, QpState, QueuePair, Sink};
use crate::remote_keys::RemoteKeys;
use crate::shared::{End, EndState, GroupLayout, OwnGroup, PeerGroup, QueuePairMemory};
use crate::statistics::Statistics;
use crate::unix;

/// After so many polls without news a queue pair is no longer looked at in each poll.
const IDLE_POLLS_MAX: u32 = 64;
/// Sockets are looked at in one of so many polls: the data path makes no system call. A power of two.
const SOCKET_POLLS: u64 = 64;

/// One entry of the table of queue pairs.
#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    queue_pair: Option<Box<QueuePair>>,
}

/// One poll group's share of a device: one CQ, one SRQ, its queue pairs. Either end of a connection.
#[derive(Debug)]
pub struct EmulatedHca {
    device: EmulatedDevice,
    attributes: HcaAttributes,
    pub(crate) own: Arc<OwnGroup>,
    pub(crate) keys: RemoteKeys,
    pub(crate) engine: Engine,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Queue pairs that every poll looks at.
    hot: Vec<u32>,
    /// Where the next poll begins in `hot`, so that a short completion array starves nobody.
    hot_first: usize,
    /// Bits just taken from the activity bitmap.
    active: Vec<u32>,
    /// Queue pairs whose `Disconnected` was seen and whose `Drained` was not.
    draining: Vec<u32>,
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) attempts_made: u64,
    pub(crate) connect_events: VecDeque<(u64, ConnectEvent)>,
    /// The device's fault counter, as last seen.
    faults_seen: u32,
    port_was_down: bool,
    dead: bool,
    armed: bool,
    /// Calls of `poll_cm`, for the sockets' duty cycle.
    cm_polls: u64,
    /// Waits for the eventfd and for every socket of a connection.
    epoll: OwnedFd,
    sockets: u32,
}

impl EmulatedHca {
    pub(crate) fn new(
        device: &EmulatedDevice,
        mut attributes: HcaAttributes,
        space: AddressSpace,
        number: u64,
    ) -> io::Result<Self> {
        let config = &device.state.config;
        let most = config.attributes;
        attributes.queue_pairs_max = attributes.queue_pairs_max.clamp(1, most.queue_pairs_max);
        attributes.send_queue_depth_max =
            attributes.send_queue_depth_max.clamp(1, most.send_queue_depth_max.max(1));
        attributes.shared_receive_queue_depth =
            attributes.shared_receive_queue_depth.min(most.shared_receive_queue_depth);
        attributes.completion_queue_depth =
            attributes.completion_queue_depth.min(most.completion_queue_depth);
        attributes.rdma_reads_max = attributes.rdma_reads_max.min(most.rdma_reads_max);
        attributes.message_bytes_max = attributes.message_bytes_max.min(most.message_bytes_max);
        let layout = GroupLayout {
            queue_pairs: attributes.queue_pairs_max,
            remote_keys: config.remote_keys_max,
        };
        let own = Arc::new(OwnGroup::new(layout)?);
        own.set_unreachable(device.is_unreachable());
        let epoll = unix::epoll(&own.wake)?;
        let count = attributes.queue_pairs_max as usize;
        // Devices of one seed draw differently: the name (hashed as FNV-1a) is part of it.
        let name = config.name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let seed = config.seed ^ name ^ number.wrapping_mul(0xd134_2543_de82_ef95);
        let draws = Randomness::new(seed);
        let engine = Engine {
            space,
            statistics: Statistics::default(),
            draws,
            now: 0,
            latency: None,
            rnr_retry: config.rnr_retry,
            unreachable: false,
            drop_wake_ups: false,
            srq: VecDeque::with_capacity(attributes.shared_receive_queue_depth as usize),
            events: VecDeque::with_capacity(64),
            completions_possible: 0,
        };
        let mut group = Self {
            device: device.clone(),
            attributes,
            own,
            keys: RemoteKeys::new(layout.remote_keys),
            engine,
            slots: Vec::new(),
            free: Vec::new(),
            hot: Vec::with_capacity(count),
            hot_first: 0,
            active: Vec::with_capacity(count),
            draining: Vec::new(),
            attempts: Vec::new(),
            attempts_made: 0,
            connect_events: VecDeque::new(),
            faults_seen: device.state.faults.load(Ordering::Acquire),
            port_was_down: device.state.port_down.load(Ordering::Relaxed),
            dead: false,
            armed: false,
            cm_polls: 0,
            epoll,
            sockets: 0,
        };
        group.engine.unreachable = device.is_unreachable();
        group.look_at_clock();
        Ok(group)
    }

    pub(crate) fn own_group(&self) -> &Arc<OwnGroup> {
        &self.own
    }

    /// The device this group belongs to.
    #[must_use]
    pub fn device(&self) -> &EmulatedDevice {
        &self.device
    }

    /// What this group has done so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.engine.statistics
    }

    /// When this group's next deferred step is due, in virtual nanoseconds under
    /// [`Clock::Virtual`]; `None` when only peers or posts can cause one. A simulator that has nothing
    /// else to do advances to it.
    #[must_use]
    pub fn next_due(&mut self) -> Option<Nanoseconds> {
        let event = self.engine.events.front().map(|(due, _)| *due);
        let connect = self.connect_events.front().map(|(due, _)| *due);
        let mut earliest = [event, connect].into_iter().flatten().min();
        for index in &self.hot {
            if let Some(qp) = queue_pair(&mut self.slots, *index) {
                earliest = [earliest, qp.next_due()].into_iter().flatten().min();
            }
        }
        earliest.map(Nanoseconds)
    }

    /// Fault: the connection is cut without a DREQ, as when a process dies. Both ends get
    /// `Disconnected`.
    pub fn sever(&mut self, qp: QpHandle) {
        if let Some(qp) = self.live(qp) {
            self.cut(qp);
            self.with(qp, |qp, engine| qp.close(engine));
        }
    }

    /// Fault: the peer stops answering on this connection. SENDs under way and whatever is started
    /// later end with `RetryExceeded`; nothing arrives any more.
    pub fn silence(&mut self, qp: QpHandle) {
        if let Some(index) = self.live(qp) {
            self.with(index, |qp, _| qp.silenced = true);
        }
    }

    /// Fault: the queue pair goes to the error state on its own (`QpFatal`).
    pub fn fail_queue_pair(&mut self, qp: QpHandle) {
        if let Some(index) = self.live(qp) {
            self.with(index, QueuePair::fatal);
        }
    }

    // ---- the table ----

    /// The index of a handle that is not stale.
    fn live(&mut self, handle: QpHandle) -> Option<u32> {
        let known = self
            .slots
            .get(handle.index as usize)
            .is_some_and(|slot| slot.queue_pair.is_some() && slot.generation == handle.generation);
        if !known {
            self.engine.statistics.stale_handles += 1;
        }
        known.then_some(handle.index)
    }

    /// Runs `act` on a queue pair and has the next poll look at it.
    pub(crate) fn with(&mut self, index: u32, act: impl FnOnce(&mut QueuePair, &mut Engine)) {
        if let Some(qp) = queue_pair(&mut self.slots, index) {
            act(qp, &mut self.engine);
            self.heat(index);
        }
    }

    /// Claims an index and makes a queue pair there.
    pub(crate) fn create(
        &mut self,
        memory: QueuePairMemory,
        parameters: QpParameters,
        way: Way,
    ) -> io::Result<QpHandle> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.attributes.queue_pairs_max as usize => {
                self.slots.push(Slot::default());
                self.slots.len() as u32 - 1
            }
            None => return Err(io::Error::other("no queue pair left")),
        };
        if let Way::Unix(end) = &way {
            end.watch(&self.epoll, index)?;
            self.sockets += 1;
        }
        let slot = &mut self.slots[index as usize];
        let handle = QpHandle { index, generation: slot.generation };
        slot.queue_pair = Some(Box::new(QueuePair::new(
            handle,
            memory,
            parameters.send_queue_depth,
            parameters.rdma_reads,
            Some(way),
        )));
        Ok(handle)
    }

    /// Frees a queue pair; its handle is stale afterwards.
    pub(crate) fn remove(&mut self, index: u32) {
        self.cut(index);
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        let Some(mut qp) = slot.queue_pair.take() else { return };
        // The peer must see the error state, whatever this end was in.
        qp.enter_error(&mut self.engine);
        slot.generation = slot.generation.wrapping_add(1);
        let possible = qp.completions_possible();
        self.engine.completions_possible =
            self.engine.completions_possible.saturating_sub(possible);
        self.engine.events.retain(|(_, event)| concerns(event) != Some(qp.handle));
        self.hot.retain(|hot| *hot != index);
        self.draining.retain(|draining| *draining != index);
        self.free.push(index);
    }

    /// Whether `parameters` are within the attributes.
    pub(crate) fn grants(&self, parameters: QpParameters) -> bool {
        (1..=self.attributes.send_queue_depth_max).contains(&parameters.send_queue_depth)
            && parameters.rdma_reads <= self.attributes.rdma_reads_max
    }

    /// This end's description for a peer's REQ or REP.
    pub(crate) fn endpoint(&self, index: u32) -> PeerGroup {
        PeerGroup {
            segment: self.own.segment.clone(),
            layout: self.own.layout,
            bit: index,
            wake: self.own.wake.clone(),
        }
    }

    /// Whether any peer is another process.
    pub(crate) fn has_sockets(&self) -> bool {
        self.sockets > 0
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead
    }

    // ---- what to look at ----

    /// Has every poll look at `index` for a while.
    fn heat(&mut self, index: u32) {
        if let Some(qp) = queue_pair(&mut self.slots, index) {
            qp.idle_polls = 0;
            if !qp.hot {
                qp.hot = true;
                qp.memory.watch();
                self.hot.push(index);
            }
        }
    }

    /// Stops looking at queue pairs that had no news for long.
    fn cool(&mut self) {
        let slots = &mut self.slots;
        self.hot.retain(|index| {
            let Some(qp) = queue_pair(slots, *index) else { return false };
            if qp.idle_polls < IDLE_POLLS_MAX || qp.has_pending() {
                return true;
            }
            qp.memory.stop_watching();
            if qp.has_news() {
                // It came between the last look and the word the peer reads.
                qp.memory.watch();
                qp.idle_polls = 0;
                return true;
            }
            qp.hot = false;
            false
        });
    }

    /// Takes time from the clock that counts.
    fn look_at_clock(&mut self) {
        let config = &self.device.state.config;
        self.engine.latency = match config.mode {
            Mode::Prompt => None,
            Mode::Deferring(_) => Some(self.device.latency()),
        };
        self.engine.now = match (config.mode, config.clock) {
            (Mode::Prompt, _) => 0,
            (Mode::Deferring(_), Clock::Polls) => self.engine.statistics.polls,
            (Mode::Deferring(_), Clock::Virtual) => self.device.now().0,
        };
        self.engine.drop_wake_ups = self.device.state.drop_wake_ups.load(Ordering::Relaxed);
    }

    /// Notices port and device events.
    fn look_at_faults(&mut self) {
        let faults = self.device.state.faults.load(Ordering::Acquire);
        if faults == self.faults_seen {
            return;
        }
        self.faults_seen = faults;
        let down = self.device.state.port_down.load(Ordering::Relaxed);
        if down != self.port_was_down {
            self.port_was_down = down;
            self.engine.event(if down { CmEvent::PortDown } else { CmEvent::PortUp });
        }
        self.engine.unreachable = self.device.is_unreachable();
        if self.device.state.fatal.load(Ordering::Relaxed) && !self.dead {
            self.dead = true;
            self.engine.event(CmEvent::DeviceFatal);
            for index in self.indexes() {
                if !self.attempt_failed(index) {
                    self.cut(index);
                    self.with(index, QueuePair::die);
                }
            }
        }
    }

    /// Drops the way to the peer's connection manager, which the peer sees.
    fn cut(&mut self, index: u32) {
        let Some(qp) = queue_pair(&mut self.slots, index) else { return };
        if let Some(way) = qp.way.take() {
            if matches!(way, Way::Unix(_)) {
                self.sockets -= 1;
            }
            drop(way);
            if let Some(peer) = &qp.peer {
                peer.tell(|| false, self.engine.drop_wake_ups);
            }
        }
    }

    /// Heats what the bitmap names, and takes connection manager messages.
    fn look_at_activity(&mut self) {
        self.active.clear();
        let active = &mut self.active;
        let count = self.slots.len() as u32;
        self.own.take_activity(|bit| {
            if bit < count {
                active.push(bit);
            }
        });
        for position in 0..self.active.len() {
            let Some(index) = self.active.get(position).copied() else { break };
            self.heat(index);
            self.take_messages(index);
        }
    }

    /// Takes time, faults and activity: what precedes every look at events.
    pub(crate) fn refresh(&mut self) {
        self.look_at_clock();
        self.look_at_faults();
        self.look_at_activity();
    }

    /// Looks at the sockets: a system call. The wake-up line is in the same epoll instance and is
    /// left as it is: see [`Self::announce_sleep`].
    fn look_at_sockets(&mut self) {
        let mut ready = [0u64; 32];
        loop {
            let count = unix::ready(&self.epoll, &mut ready);
            for token in ready.iter().take(count) {
                if let Ok(index) = u32::try_from(*token) {
                    self.heat(index);
                    self.take_messages(index);
                }
            }
            if count < ready.len() {
                break;
            }
        }
    }

    /// Has peers write the wake-up line at the next news. This is the only place that drains the
    /// line, and it does so before it arms: who tells takes `armed` away and then writes the line,
    /// so a line drained any later leaves an owner that sleeps neither armed nor woken.
    fn announce_sleep(&mut self) {
        self.own.wake.drain();
        self.own.arm();
        self.armed = true;
    }

    /// Whether nothing came before peers could see that the owner wants to sleep; takes the
    /// announcement back otherwise.
    fn may_sleep(&mut self) -> bool {
        self.look_at_clock();
        self.look_at_faults();
        self.look_at_activity();
        let now = self.engine.now;
        // Where time is polls, nothing deferred would ever come to a sleeper.
        let by_time =
            self.engine.latency.is_some() && self.device.state.config.clock == Clock::Virtual;
        let pending = |due: Option<u64>| due.is_some_and(|due| !by_time || due <= now);
        let mut busy = pending(self.engine.events.front().map(|(due, _)| *due))
            || pending(self.connect_events.front().map(|(due, _)| *due));
        for position in 0..self.hot.len() {
            let Some(index) = self.hot.get(position).copied() else { break };
            let Some(qp) = queue_pair(&mut self.slots, index) else { continue };
            qp.tell_untold(&mut self.engine);
            busy |= qp.has_news()
                || if by_time { pending(qp.next_due()) || qp.leaving } else { qp.has_pending() };
        }
        let slots = &mut self.slots;
        busy |= self
            .draining
            .iter()
            .any(|index| queue_pair(slots, *index).is_some_and(|qp| qp.is_drained()));
        if busy {
            self.armed = false;
            self.own.disarm();
        }
        !busy
    }

    /// Takes the connection manager messages of one connection.
    pub(crate) fn take_messages(&mut self, index: u32) {
        loop {
            let Some(qp) = queue_pair(&mut self.slots, index) else { return };
            let received = match qp.unhandled.pop_front() {
                Some(message) => Received::Message(message),
                None => match &mut qp.way {
                    Some(way) => way.receive(),
                    None => return,
                },
            };
            match received {
                Received::Message(message) => self.on_message(index, message),
                Received::Nothing => return,
                Received::Gone => {
                    self.cut(index);
                    self.on_gone(index);
                    return;
                }
            }
        }
    }

    fn on_message(&mut self, index: u32, message: Message) {
        match message {
            Message::ReadyToUse => self.with(index, QueuePair::establish),
            Message::Disconnect => self.on_gone(index),
            Message::Memory { index: number, segment } => self.with(index, |qp, engine| {
                if !qp.learn(number, segment) {
                    engine.statistics.peer_lies += 1;
                    qp.fatal(engine);
                }
            }),
            Message::Reply { endpoint, private_data } => {
                self.on_reply(index, endpoint, private_data);
            }
            Message::Reject { private_data } => self.on_reject(index, private_data),
            // Only listeners take REQs; here it is noise.
            Message::Request { .. } => {}
        }
    }

    /// The peer disconnected or vanished.
    fn on_gone(&mut self, index: u32) {
        if !self.attempt_failed(index) {
            self.with(index, |qp, _| qp.leaving = qp.closing == Closing::No);
        }
    }

    fn accept_pending(
        &mut self,
        pending: Pending,
        parameters: QpParameters,
        private_data: &[u8],
    ) -> Result<QpHandle, CmError> {
        let refused = if self.dead {
            Some(CmError::NoResources)
        } else if self.grants(parameters) {
            None
        } else {
            Some(CmError::Invalid)
        };
        if let Some(error) = refused {
            pending.reject(&[]);
            return Err(error);
        }
        let Pending { way, endpoint, queue_pair: segment, ring_bytes } = pending;
        let memory =
            QueuePairMemory::adopt(segment, End::Passive, ring_bytes).ok_or(CmError::Gone)?;
        let handle = self.create(memory, parameters, way).map_err(|_| CmError::NoResources)?;
        let mut messages: Vec<Message> = self.announcements();
        messages.push(Message::Reply {
            endpoint: self.endpoint(handle.index),
            private_data: PrivateData::new(private_data),
        });
        let mut sent = Ok(());
        self.with(handle.index, |qp, _| {
            qp.state = QpState::Accepted;
            qp.memory.set_state(EndState::Ready);
            qp.peer = Some(endpoint);
            if let Some(way) = &mut qp.way {
                sent = messages.into_iter().try_for_each(|message| way.send(message));
            }
        });
        if sent.is_err() {
            self.remove(handle.index);
            return Err(CmError::Gone);
        }
        self.tell_connection_manager(handle.index);
        Ok(handle)
    }

    /// A message for every segment this group has exposed so far.
    pub(crate) fn announcements(&self) -> Vec<Message> {
        let segments = self.keys.segments().iter().enumerate();
        segments
            .map(|(index, segment)| Message::Memory {
                index: index as u32,
                segment: segment.clone(),
            })
            .collect()
    }

    /// Has the peer look at its connection manager messages, also when it watches the queue pair.
    pub(crate) fn tell_connection_manager(&mut self, index: u32) {
        if let Some(qp) = queue_pair(&mut self.slots, index)
            && let Some(peer) = &qp.peer
        {
            peer.tell(|| false, self.engine.drop_wake_ups);
        }
    }

    pub(crate) fn queue_pair(&mut self, index: u32) -> Option<&mut QueuePair> {
        queue_pair(&mut self.slots, index)
    }

    /// Indexes of all queue pairs.
    pub(crate) fn indexes(&self) -> std::ops::Range<u32> {
        0..self.slots.len() as u32
    }

    fn count_overcommit(&mut self) {
        let depth = u64::from(self.attributes.completion_queue_depth);
        if self.engine.completions_possible > depth {
            self.engine.statistics.completion_queue_overcommits += 1;
        }
    }

    /// The oldest event that is due, after which `Drained` is looked for.
    fn next_event(&mut self) -> Option<CmEvent> {
        if let Some((_, event)) =
            self.engine.events.pop_front_if(|(due, _)| *due <= self.engine.now)
        {
            if let CmEvent::Disconnected(handle) = event
                && let Some(qp) = queue_pair(&mut self.slots, handle.index)
            {
                qp.closing = Closing::Seen;
                self.draining.push(handle.index);
            }
            return Some(event);
        }
        let slots = &mut self.slots;
        let position = self
            .draining
            .iter()
            .position(|index| queue_pair(slots, *index).is_some_and(|qp| qp.is_drained()))?;
        let index = self.draining.swap_remove(position);
        let qp = queue_pair(&mut self.slots, index)?;
        qp.closing = Closing::Drained;
        Some(CmEvent::Drained(qp.handle))
    }
}

fn queue_pair(slots: &mut [Slot], index: u32) -> Option<&mut QueuePair> {
    slots.get_mut(index as usize)?.queue_pair.as_deref_mut()
}

/// The queue pair that an event is about.
fn concerns(event: &CmEvent) -> Option<QpHandle> {
    match event {
        CmEvent::Established(qp)
        | CmEvent::Disconnected(qp)
        | CmEvent::QpFatal(qp)
        | CmEvent::Drained(qp) => Some(*qp),
        CmEvent::PortDown | CmEvent::PortUp | CmEvent::DeviceFatal => None,
    }
}

impl Drop for EmulatedHca {
    fn drop(&mut self) {
        // Peers in this process see what the kernel shows peers in others: everybody is gone.
        for index in self.indexes() {
            self.remove(index);
        }
    }
}

impl Hca for EmulatedHca {
    type Connection = EmulatedConnection;

    fn attributes(&self) -> HcaAttributes {
        self.attributes
    }

    fn accept(
        &mut self,
        connection: EmulatedConnection,
        parameters: QpParameters,
        private_data: &[u8],
    ) -> Result<QpHandle, CmError> {
        self.look_at_clock();
        let pending = connection.into_pending().ok_or(CmError::Gone)?;
        self.accept_pending(pending, parameters, private_data)
    }

    fn reject(&mut self, connection: EmulatedConnection, private_data: &[u8]) {
        connection.reject(private_data);
    }

    fn disconnect(&mut self, qp: QpHandle) {
        let Some(index) = self.live(qp) else { return };
        self.look_at_clock();
        let mut told = false;
        self.with(index, |qp, engine| {
            if qp.closing == Closing::No {
                told = qp.way.as_mut().is_some_and(|way| way.send(Message::Disconnect).is_ok());
                qp.close(engine);
            }
        });
        if told {
            self.tell_connection_manager(index);
        }
    }

    fn destroy(&mut self, qp: QpHandle) {
        if let Some(index) = self.live(qp) {
            self.remove(index);
        }
    }

    fn poll_cm(&mut self) -> Option<CmEvent> {
        self.look_at_clock();
        self.look_at_faults();
        if self.sockets > 0 && self.cm_polls.is_multiple_of(SOCKET_POLLS) {
            self.look_at_sockets();
        }
        self.cm_polls += 1;
        self.look_at_activity();
        self.next_event()
    }

    fn post_receive(&mut self, request: ReceiveRequest) -> Result<(), PostError> {
        if request.local.length > self.attributes.message_bytes_max {
            return Err(PostError::Invalid);
        }
        if self.engine.srq.len() >= self.attributes.shared_receive_queue_depth as usize {
            self.engine.statistics.posts_full += 1;
            return Err(PostError::Full);
        }
        self.engine.srq.push_back(request);
        self.engine.statistics.receive_requests += 1;
        self.engine.completions_possible += 1;
        self.count_overcommit();
        Ok(())
    }

    fn post_send(&mut self, qp: QpHandle, chain: &[SendRequest]) -> Result<(), PostError> {
        let Some(index) = self.live(qp) else { return Err(PostError::NotConnected) };
        let Some(qp) = queue_pair(&mut self.slots, index) else {
            return Err(PostError::NotConnected);
        };
        let takes = match qp.state {
            QpState::Connecting | QpState::Accepted => false,
            QpState::Live => true,
            QpState::Error => qp.closing != Closing::Drained,
        };
        if !takes {
            return Err(PostError::NotConnected);
        }
        let send_bytes_max = message_bytes_max(qp.memory.ring_bytes);
        let valid = chain.iter().all(|request| match request.operation {
            SendOperation::Send => request.local.length <= send_bytes_max,
            _ => request.local.length <= self.attributes.message_bytes_max,
        });
        if !valid {
            return Err(PostError::Invalid);
        }
        if chain.len() as u64 > qp.room() {
            self.engine.statistics.posts_full += 1;
            return Err(PostError::Full);
        }
        for request in chain {
            qp.post(&mut self.engine, *request);
        }
        let flushing = qp.state == QpState::Error;
        self.count_overcommit();
        if flushing {
            self.heat(index);
        }
        Ok(())
    }

    fn ring(&mut self, qp: QpHandle) {
        let Some(index) = self.live(qp) else { return };
        let Some(qp) = queue_pair(&mut self.slots, index) else { return };
        if qp.ring(&mut self.engine) {
            self.engine.statistics.doorbells += 1;
            self.heat(index);
        }
    }

    fn poll(&mut self, completions: &mut [WorkCompletion]) -> usize {
        self.engine.statistics.polls += 1;
        if self.armed {
            self.armed = false;
            self.own.disarm();
        }
        self.look_at_clock();
        self.look_at_faults();
        if self.sockets > 0 && self.engine.statistics.polls.is_multiple_of(SOCKET_POLLS) {
            self.look_at_sockets();
        }
        self.look_at_activity();
        let mut sink = Sink { completions, filled: 0 };
        let count = self.hot.len();
        let mut idle = false;
        if self.hot_first >= count {
            self.hot_first = 0;
        }
        for step in 0..count {
            let position = self.hot_first + step;
            let position = if position < count { position } else { position - count };
            let Some(index) = self.hot.get(position).copied() else { break };
            let Some(qp) = queue_pair(&mut self.slots, index) else { continue };
            if qp.advance(&mut self.engine, &mut sink) {
                qp.idle_polls = 0;
            } else {
                qp.idle_polls = qp.idle_polls.saturating_add(1);
                idle |= qp.idle_polls >= IDLE_POLLS_MAX;
            }
            if sink.is_full() {
                self.hot_first = position + 1;
                break;
            }
        }
        let filled = sink.filled;
        if idle && self.engine.statistics.polls.is_multiple_of(u64::from(IDLE_POLLS_MAX)) {
            self.cool();
        }
        filled
    }

    fn arm(&mut self) -> bool {
        // A socket stays readable until somebody reads it, so what comes after this look ends the
        // sleep all the same.
        if self.sockets > 0 {
            self.look_at_sockets();
        }
        self.announce_sleep();
        self.may_sleep()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd as _;
        Some(self.epoll.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceConfig;
    use crate::fabric::Fabric;
    use crate::shared;
    use lunar_pcie::Segment;
    use lunar_platform::{Listener, Sge, WorkRequestId};

    const PARAMETERS: QpParameters = QpParameters { send_queue_depth: 8, rdma_reads: 1 };

    fn group(name: &str) -> EmulatedHca {
        let device = EmulatedDevice::new(DeviceConfig::new(name));
        let mut space = AddressSpace::new();
        space.register(&Segment::anonymous(4096).unwrap());
        let attributes = HcaAttributes {
            queue_pairs_max: 200,
            send_queue_depth_max: 64,
            shared_receive_queue_depth: 64,
            completion_queue_depth: 256,
            rdma_reads_max: 16,
            message_bytes_max: 1 << 20,
        };
        device.group(attributes, space).unwrap()
    }

    /// A connected pair: passive group, active group, their handles.
    fn connected() -> (EmulatedHca, EmulatedHca, QpHandle, QpHandle) {
        connected_on(&Fabric::in_process())
    }

    fn connected_on(fabric: &Fabric) -> (EmulatedHca, EmulatedHca, QpHandle, QpHandle) {
        let (mut passive, mut active) = (group("card"), group("client"));
        let mut listener = passive.device().clone().listener(fabric, "srp").unwrap();
        active.connect(fabric, "srp", PARAMETERS, &[]);
        let request = listener.poll().unwrap();
        let passive_qp = passive.accept(request.connection, PARAMETERS, &[]).unwrap();
        active.look_at_sockets();
        let Some(ConnectEvent::Accepted { qp, .. }) = active.poll_connect() else { panic!() };
        passive.look_at_sockets();
        assert_eq!(passive.poll_cm(), Some(CmEvent::Established(passive_qp)));
        (passive, active, passive_qp, qp)
    }

    /// Every order of `owner` steps of the one and `peer` steps of the other; true is the owner's.
    fn interleavings(owner: u32, peer: u32) -> Vec<Vec<bool>> {
        let steps = owner + peer;
        (0u32..1 << steps)
            .filter(|order| order.count_ones() == owner)
            .map(|order| (0..steps).map(|step| order & 1 << step != 0).collect())
            .collect()
    }

    /// The peer tells twice, of something that the owner has seen already and of something new, while
    /// the owner falls asleep and looks at its sockets: in no order is the second left lying.
    #[test]
    fn no_order_of_telling_and_falling_asleep_loses_a_wake_up() {
        let directory = tempfile::tempdir().unwrap();
        let fabric = Fabric::unix(directory.path());
        let (mut owner, mut active, owner_qp, active_qp) = connected_on(&fabric);
        let qp = active.queue_pair(active_qp.index).unwrap();
        let (memory, peer) = (qp.memory.clone(), qp.peer.clone().unwrap());
        let tell = || peer.tell(|| memory.is_peer_watching(), true);
        let signal = |woken: bool| {
            if woken {
                peer.wake.signal();
            }
        };
        let request = SendRequest {
            id: WorkRequestId(1),
            operation: SendOperation::Send,
            local: Sge::default(),
            signaled: true,
        };
        let mut out = [WorkCompletion::EMPTY; 4];
        let (mut turns, mut sleeps) = (0, 0);
        for order in interleavings(3, 5) {
            // What the peer has to say is that it took this SEND.
            owner.post_send(owner_qp, &[request]).unwrap();
            owner.ring(owner_qp);
            turns += 1;
            let (mut owner_step, mut peer_step) = (0, 0);
            let (mut sleeps_now, mut woken) = (false, false);
            for is_owner in &order {
                if *is_owner {
                    match owner_step {
                        0 => owner.announce_sleep(),
                        1 => sleeps_now = owner.may_sleep(),
                        _ => {
                            for _ in 0..SOCKET_POLLS {
                                assert_eq!(owner.poll_cm(), None);
                            }
                        }
                    }
                    owner_step += 1;
                } else {
                    match peer_step {
                        0 | 3 => woken = tell(),
                        2 => memory.acknowledge(turns * shared::LINE as u32),
                        _ => signal(woken),
                    }
                    peer_step += 1;
                }
            }
            let awake = unix::ready(&owner.epoll, &mut [0; 32]) > 0;
            assert!(!sleeps_now || awake, "owner's steps are true: {order:?}");
            sleeps += u32::from(sleeps_now);
            assert_eq!(owner.poll(&mut out), 1);
        }
        assert!((1..turns).contains(&sleeps), "{sleeps} of {turns}");
    }

    /// What a lying peer does to the words of its end.
    type Lie = fn(&QueuePairMemory);

    #[test]
    fn a_peer_that_lies_loses_its_connection_and_nothing_else() {
        let lies: [(&str, Lie); 4] = [
            ("a message longer than may be sent", |memory| {
                memory.publish(0, message_bytes_max(memory.ring_bytes) + 1);
            }),
            ("a length that overflows", |memory| memory.publish(0, u32::MAX)),
            ("a header of a round to come", |memory| {
                memory.publish(u64::from(memory.ring_bytes) / shared::LINE, 8);
            }),
            ("a header of a round long ago", |memory| {
                let round = u64::from(memory.ring_bytes) / shared::LINE;
                memory.publish(round * u64::from(u32::MAX - 1), 8);
            }),
        ];
        for (what, lie) in lies {
            let (mut passive, mut active, passive_qp, qp) = connected();
            lie(&active.queue_pair(qp.index).unwrap().memory);
            active.with(qp.index, |qp, engine| qp.tell(engine));
            let mut out = [WorkCompletion::EMPTY; 4];
            assert_eq!(passive.poll(&mut out), 0, "{what}");
            assert_eq!(passive.poll_cm(), Some(CmEvent::QpFatal(passive_qp)), "{what}");
            assert_eq!(passive.statistics().peer_lies, 1, "{what}");
        }
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_a_lie() {
        let (mut passive, mut active, passive_qp, qp) = connected();
        let request = SendRequest {
            id: WorkRequestId(1),
            operation: SendOperation::Send,
            local: Sge::default(),
            signaled: true,
        };
        passive.post_send(passive_qp, &[request]).unwrap();
        passive.ring(passive_qp);
        active.queue_pair(qp.index).unwrap().memory.acknowledge(128);
        let mut out = [WorkCompletion::EMPTY; 4];
        assert_eq!(passive.poll(&mut out), 1);
        assert_eq!(out[0].status, lunar_platform::CompletionStatus::Flushed);
        assert_eq!(passive.poll_cm(), Some(CmEvent::QpFatal(passive_qp)));
        assert_eq!(passive.statistics().peer_lies, 1);
    }

    #[test]
    fn bits_of_queue_pairs_that_do_not_exist_are_ignored() {
        let (mut passive, mut active, _, qp) = connected();
        for bit in 0..200 {
            let mut peer = active.queue_pair(qp.index).unwrap().peer.clone().unwrap();
            peer.bit = bit;
            assert!(peer.is_valid());
            peer.tell(|| false, false);
        }
        assert_eq!(passive.poll(&mut [WorkCompletion::EMPTY; 4]), 0);
        assert_eq!(passive.poll_cm(), None);
    }

    #[test]
    fn an_endpoint_that_does_not_fit_its_segment_is_refused() {
        let active = group("client");
        let good = active.endpoint(3);
        assert!(good.is_valid());
        let layouts = [
            GroupLayout { queue_pairs: 1 << 20, ..good.layout },
            GroupLayout { queue_pairs: u32::MAX, ..good.layout },
            GroupLayout { remote_keys: 1 << 16, ..good.layout },
            GroupLayout { remote_keys: u32::MAX, ..good.layout },
            GroupLayout { queue_pairs: 3, ..good.layout },
        ];
        for layout in layouts {
            assert!(!PeerGroup { layout, ..good.clone() }.is_valid(), "{layout:?}");
        }
        let ring = QueuePairMemory::create(4096).unwrap();
        for ring_bytes in [0, 1, 2048, 4097, 8192, 1 << 31] {
            let segment = ring.segment.clone();
            assert!(QueuePairMemory::adopt(segment, End::Passive, ring_bytes).is_none());
        }
    }

    #[test]
    fn the_cursors_of_a_message_ring_wrap_around() {
        // 4 KiB rings: the byte cursors pass u32::MAX long before a test ends only if they start
        // there, so they do.
        let active = QueuePairMemory::create(4096).unwrap();
        let passive = QueuePairMemory::adopt(active.segment.clone(), End::Passive, 4096).unwrap();
        let start = 0u32.wrapping_sub(3 * 4096);
        let mut out = crate::message_ring::OutRing::starting_at(start);
        let mut inward = crate::message_ring::InRing::starting_at(start);
        passive.acknowledge(start);
        let segment = Segment::anonymous(4096).unwrap();
        let mut space = AddressSpace::new();
        let range = space.register(&segment);
        for turn in 0..500u32 {
            let length = turn * 37 % 2000 + 1;
            segment.write(0, &vec![turn as u8; length as usize]);
            assert!(out.has_room(&active, length));
            let from = space.resolve(range.key, range.base, u64::from(length)).unwrap();
            let end = out.send(&active, Some(&from), length).unwrap();
            assert!(!out.is_acknowledged(end));
            assert_eq!(inward.peek(&passive), Ok(Some(length)));
            segment.write(0, &[0; 2048]);
            let to = space.resolve(range.key, range.base, u64::from(length)).unwrap();
            assert!(inward.copy(&passive, &to, length));
            let mut bytes = vec![0; length as usize + 1];
            segment.read(0, &mut bytes);
            assert!(bytes[..length as usize].iter().all(|byte| *byte == turn as u8));
            assert_eq!(bytes[length as usize], 0);
            inward.advance(length);
            inward.acknowledge(&passive);
            assert_eq!(out.observe(&active), Ok(true));
            assert!(out.is_acknowledged(end));
        }
    }
}
