//! One reliable connected queue pair: the send queue with its room accounting, the execution of work
//! requests, reception into the SRQ, and the error state. Which queue pairs are looked at, and the
//! connection manager, are `group`'s business.
//!
//! The send queue is five cursors that never pass each other:
//!
//! ```text
//! released <= completed <= started <= rung <= posted
//! ```
//!
//! `posted - released` entries hold room. `released` jumps to just after an entry when its completion
//! is reported, so an unsignalled entry holds its room until a later one is reported.

use std::collections::VecDeque;

use lunar_pcie::{AddressSpace, Randomness, Segment};
use lunar_platform::{
    CmEvent, CompletionStatus, QpHandle, ReceiveRequest, RemoteAddress, SendOperation, SendRequest,
    WorkCompletion,
};

use crate::connection_manager::{Message, Received, Way};
use crate::device::Latency;
use crate::message_ring::{InRing, OutRing};
use crate::remote_keys::{RemoteAccess, RemoteRange, SEGMENTS_MAX, look_up};
use crate::shared::{EndState, Lie, PeerGroup, QueuePairMemory, Refusal};
use crate::statistics::Statistics;

/// What the queue pairs of a group have in common while they execute.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) space: AddressSpace,
    pub(crate) statistics: Statistics,
    pub(crate) draws: Randomness,
    /// Virtual nanoseconds or polls; 0 in prompt mode, where everything is due.
    pub(crate) now: u64,
    /// `None`: prompt.
    pub(crate) latency: Option<Latency>,
    pub(crate) rnr_retry: Option<u32>,
    /// Own port down or device dead.
    pub(crate) unreachable: bool,
    pub(crate) drop_wake_ups: bool,
    pub(crate) srq: VecDeque<ReceiveRequest>,
    /// CM events, oldest first, with the time each is due (never decreasing).
    pub(crate) events: VecDeque<(u64, CmEvent)>,
    /// Completions that posted work may still cause.
    pub(crate) completions_possible: u64,
}

impl Engine {
    /// When a completion or event that is caused now becomes visible.
    pub(crate) fn due(&mut self) -> u64 {
        let Some(Latency { minimum, spread }) = self.latency else { return 0 };
        let late = minimum.saturating_add(self.draw(spread)).max(1);
        self.now.saturating_add(late)
    }

    /// When work that is rung now starts.
    fn start(&mut self) -> u64 {
        let Some(Latency { spread, .. }) = self.latency else { return 0 };
        let late = self.draw(spread);
        self.now.saturating_add(late)
    }

    fn draw(&mut self, spread: u64) -> u64 {
        match usize::try_from(spread).ok().and_then(|spread| spread.checked_add(1)) {
            Some(bound) => self.draws.below(bound) as u64,
            None => self.draws.next_u64(),
        }
    }

    pub(crate) fn event(&mut self, event: CmEvent) {
        let due = self.due().max(self.events.back().map_or(0, |(due, _)| *due));
        self.events.push_back((due, event));
    }
}

/// Where completions go during one `poll`.
pub(crate) struct Sink<'a> {
    pub(crate) completions: &'a mut [WorkCompletion],
    pub(crate) filled: usize,
}

impl Sink<'_> {
    pub(crate) fn is_full(&self) -> bool {
        self.filled >= self.completions.len()
    }

    /// The caller has checked [`Self::is_full`].
    fn push(&mut self, engine: &mut Engine, completion: WorkCompletion) {
        if let Some(place) = self.completions.get_mut(self.filled) {
            *place = completion;
            self.filled += 1;
        }
        engine.statistics.completions += 1;
        if completion.status == CompletionStatus::Flushed {
            engine.statistics.flushes += 1;
        }
    }
}

/// How far one send-queue entry is.
#[derive(Clone, Copy, Debug)]
enum Progress {
    /// Posted; when rung, starts at `at` at the earliest.
    Waiting { at: u64 },
    /// SEND: in the message ring, ends at `end`, not acknowledged yet.
    OnWire { end: u32 },
    /// Over; reported from `at` on.
    Ended { status: CompletionStatus, at: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    request: SendRequest,
    progress: Progress,
}

/// The send queue.
#[derive(Debug)]
struct SendQueue {
    entries: Box<[Entry]>,
    depth: u64,
    released: u64,
    completed: u64,
    started: u64,
    rung: u64,
    posted: u64,
}

impl SendQueue {
    fn new(depth: u32) -> Self {
        let empty = Entry {
            request: SendRequest {
                id: lunar_platform::WorkRequestId(0),
                operation: SendOperation::Send,
                local: lunar_platform::Sge::default(),
                signaled: false,
            },
            progress: Progress::Waiting { at: 0 },
        };
        Self {
            entries: vec![empty; depth.next_power_of_two() as usize].into_boxed_slice(),
            depth: u64::from(depth),
            released: 0,
            completed: 0,
            started: 0,
            rung: 0,
            posted: 0,
        }
    }

    fn at(&mut self, sequence: u64) -> &mut Entry {
        let mask = self.entries.len() - 1;
        &mut self.entries[sequence as usize & mask]
    }

    fn room(&self) -> u64 {
        self.depth - (self.posted - self.released)
    }
}

/// Where a connection is. Only moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum QpState {
    /// Active end: REQ sent, perhaps REP received, but the owner was not told yet.
    Connecting,
    /// Passive end: REP sent. Takes messages, may not send.
    Accepted,
    /// Ready to send.
    Live,
    /// Everything is flushed.
    Error,
}

/// How far the end of a connection has been told to the owner. Only moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Closing {
    No,
    /// `Disconnected` is in the event queue.
    Announced,
    /// The owner has seen `Disconnected`.
    Seen,
    /// The owner has seen `Drained`.
    Drained,
}

/// One queue pair.
#[derive(Debug)]
pub(crate) struct QueuePair {
    pub(crate) handle: QpHandle,
    pub(crate) state: QpState,
    pub(crate) closing: Closing,
    pub(crate) memory: QueuePairMemory,
    /// `None` at an active end that has no REP yet.
    pub(crate) peer: Option<PeerGroup>,
    /// `None` once the way to the peer's connection manager was cut.
    pub(crate) way: Option<Way>,
    /// CM messages that were read while looking for a segment.
    pub(crate) unhandled: VecDeque<Message>,
    /// The peer's exposed segments, by index.
    segments: Vec<Segment>,
    out: OutRing,
    inward: InRing,
    sends: SendQueue,
    reads_max: u32,
    reads_outstanding: u32,
    /// Deferring: what READs fetched, oldest first, until their completion.
    fetched: VecDeque<Box<[u8]>>,
    /// Deferring: receive completions that are not due yet.
    received: VecDeque<(u64, WorkCompletion)>,
    /// RNR NAKs for the message at the head, and when the last one was sent.
    naks: u32,
    nak_at: u64,
    /// What flushed work ends with: `Fatal` once the device is dead.
    flush_status: CompletionStatus,
    /// The peer sent DREQ or vanished: close after taking what it had sent before.
    pub(crate) leaving: bool,
    /// Fault: the peer does not answer.
    pub(crate) silenced: bool,
    /// In the group's list of queue pairs that every poll looks at.
    pub(crate) hot: bool,
    /// There is news the peer was not told of yet. Told with the next doorbell, poll or `arm`,
    /// whichever is first: a fence for each received batch would stall the copies of the answers.
    untold: bool,
    /// Polls in a row that found nothing new.
    pub(crate) idle_polls: u32,
}

impl QueuePair {
    pub(crate) fn new(
        handle: QpHandle,
        memory: QueuePairMemory,
        send_queue_depth: u32,
        reads_max: u32,
        way: Option<Way>,
    ) -> Self {
        Self {
            handle,
            state: QpState::Connecting,
            closing: Closing::No,
            memory,
            peer: None,
            way,
            unhandled: VecDeque::new(),
            segments: Vec::new(),
            out: OutRing::default(),
            inward: InRing::default(),
            sends: SendQueue::new(send_queue_depth),
            reads_max,
            reads_outstanding: 0,
            fetched: VecDeque::new(),
            received: VecDeque::new(),
            naks: 0,
            nak_at: u64::MAX,
            flush_status: CompletionStatus::Flushed,
            leaving: false,
            silenced: false,
            hot: false,
            untold: false,
            idle_polls: 0,
        }
    }

    // ---- posting ----

    /// How many entries can be posted.
    pub(crate) fn room(&self) -> u64 {
        self.sends.room()
    }

    /// Appends one request; the caller has checked the room.
    pub(crate) fn post(&mut self, engine: &mut Engine, request: SendRequest) {
        let flushed = self.state == QpState::Error;
        let progress = if flushed {
            Progress::Ended { status: self.flush_status, at: engine.due() }
        } else {
            Progress::Waiting { at: 0 }
        };
        *self.sends.at(self.sends.posted) = Entry { request, progress };
        self.sends.posted += 1;
        if flushed {
            self.sends.rung = self.sends.posted;
            self.sends.started = self.sends.posted;
        }
        engine.statistics.send_requests += 1;
        engine.completions_possible += 1;
    }

    /// The doorbell; gives whether anything was posted since the last one.
    pub(crate) fn ring(&mut self, engine: &mut Engine) -> bool {
        if self.sends.rung == self.sends.posted {
            return false;
        }
        if engine.latency.is_some() {
            let mut earliest = 0;
            for sequence in self.sends.rung..self.sends.posted {
                earliest = engine.start().max(earliest);
                self.sends.at(sequence).progress = Progress::Waiting { at: earliest };
            }
        }
        self.sends.rung = self.sends.posted;
        if self.start_work(engine) {
            self.tell(engine);
        }
        true
    }

    // ---- executing ----

    /// Starts rung work in order, as far as time, the peer and the limits allow. Gives whether the
    /// peer must be told.
    fn start_work(&mut self, engine: &mut Engine) -> bool {
        let mut news = false;
        if self.sends.started == self.sends.rung {
            return news;
        }
        let peer_gone = self.silenced || self.memory.peer_state() != EndState::Ready;
        let waits = engine.unreachable
            || self.peer.as_ref().is_none_or(PeerGroup::is_unreachable)
            || self.state != QpState::Live;
        if waits {
            return news;
        }
        while self.sends.started < self.sends.rung {
            let sequence = self.sends.started;
            let Entry { request, progress } = *self.sends.at(sequence);
            if matches!(progress, Progress::Waiting { at } if at > engine.now) {
                break;
            }
            let ended = if peer_gone {
                Err(CompletionStatus::RetryExceeded)
            } else {
                match request.operation {
                    SendOperation::Send => {
                        let length = request.local.length;
                        if !self.out.has_room(&self.memory, length) {
                            break;
                        }
                        news = true;
                        self.send(engine, &request)
                    }
                    SendOperation::RdmaWrite(remote) => self.rdma_write(engine, &request, remote),
                    SendOperation::RdmaRead(remote) => {
                        if self.reads_outstanding >= self.reads_max {
                            engine.statistics.read_limit_waits += 1;
                            break;
                        }
                        self.rdma_read(engine, &request, remote)
                    }
                }
            };
            match ended {
                Ok(progress) => {
                    self.sends.at(sequence).progress = progress;
                    self.sends.started += 1;
                }
                Err(status) => {
                    self.count_failure(engine, status);
                    self.fail_at(engine, sequence, status);
                    return true;
                }
            }
        }
        news
    }

    fn count_failure(&mut self, engine: &mut Engine, status: CompletionStatus) {
        match status {
            CompletionStatus::LocalProtection => engine.statistics.local_protection_errors += 1,
            CompletionStatus::RemoteAccess => {
                engine.statistics.remote_access_errors += 1;
                // IBTA 9.9.3: the responder's queue pair goes to the error state as well.
                self.memory.accuse();
            }
            _ => {}
        }
    }

    fn send(
        &mut self,
        engine: &mut Engine,
        request: &SendRequest,
    ) -> Result<Progress, CompletionStatus> {
        let local = request.local;
        let length = local.length;
        let end = if length == 0 {
            self.out.send(&self.memory, None, 0)
        } else {
            engine
                .space
                .resolve(local.key, local.address, u64::from(length))
                .and_then(|from| self.out.send(&self.memory, Some(&from), length))
        };
        let end = end.ok_or(CompletionStatus::LocalProtection)?;
        engine.statistics.sends += 1;
        engine.statistics.send_bytes += u64::from(length);
        Ok(Progress::OnWire { end })
    }

    fn rdma_write(
        &mut self,
        engine: &mut Engine,
        request: &SendRequest,
        remote: RemoteAddress,
    ) -> Result<Progress, CompletionStatus> {
        let local = request.local;
        let length = local.length;
        if length > 0 {
            let from = engine
                .space
                .resolve(local.key, local.address, u64::from(length))
                .ok_or(CompletionStatus::LocalProtection)?;
            let (to, offset) = remote_memory(
                self.peer.as_ref(),
                &mut self.segments,
                &mut self.way,
                &mut self.unhandled,
                remote,
                length,
                RemoteAccess::WRITE,
            )
            .ok_or(CompletionStatus::RemoteAccess)?;
            if !from.copy_out(0, to, offset, length as usize) {
                return Err(CompletionStatus::RemoteAccess);
            }
        }
        engine.statistics.rdma_writes += 1;
        engine.statistics.rdma_write_bytes += u64::from(length);
        Ok(Progress::Ended { status: CompletionStatus::Success, at: engine.due() })
    }

    /// The responder's memory is read now, in order with everything else; in deferring mode the bytes
    /// arrive with the completion.
    fn rdma_read(
        &mut self,
        engine: &mut Engine,
        request: &SendRequest,
        remote: RemoteAddress,
    ) -> Result<Progress, CompletionStatus> {
        let local = request.local;
        let length = local.length;
        let mut fetched = Box::default();
        if length > 0 {
            let to = engine
                .space
                .resolve(local.key, local.address, u64::from(length))
                .ok_or(CompletionStatus::LocalProtection)?;
            let (from, offset) = remote_memory(
                self.peer.as_ref(),
                &mut self.segments,
                &mut self.way,
                &mut self.unhandled,
                remote,
                length,
                RemoteAccess::READ,
            )
            .ok_or(CompletionStatus::RemoteAccess)?;
            if engine.latency.is_some() {
                fetched = vec![0; length as usize].into_boxed_slice();
                if !from.read(offset, &mut fetched) {
                    return Err(CompletionStatus::RemoteAccess);
                }
            } else if !to.copy_in(0, from, offset, length as usize) {
                return Err(CompletionStatus::RemoteAccess);
            }
        }
        if engine.latency.is_some() {
            self.fetched.push_back(fetched);
        }
        self.reads_outstanding += 1;
        engine.statistics.rdma_reads += 1;
        engine.statistics.rdma_read_bytes += u64::from(length);
        Ok(Progress::Ended { status: CompletionStatus::Success, at: engine.due() })
    }

    // ---- completing ----

    /// One look at everything: reception, acknowledgements, starts, completions. Gives whether
    /// anything happened.
    pub(crate) fn advance(&mut self, engine: &mut Engine, sink: &mut Sink<'_>) -> bool {
        let before = (sink.filled, self.state, self.sends.started);
        self.tell_untold(engine);
        // What was over before this look goes first: receives alone could fill every sink.
        self.report_received(engine, sink);
        self.report_sends(engine, sink);
        let mut news = false;
        if matches!(self.state, QpState::Accepted | QpState::Live) && self.peer.is_some() {
            let peer_state = self.memory.peer_state();
            if peer_state == EndState::Ready || self.inward.has_news(&self.memory) {
                news |= self.receive(engine, sink);
            }
            if self.memory.is_accused() {
                self.fatal(engine);
            }
            if self.state != QpState::Error {
                news |= self.observe(engine, peer_state);
                news |= self.start_work(engine);
            }
            if self.leaving && (engine.srq.is_empty() || !self.inward.has_news(&self.memory)) {
                self.close(engine);
            }
        } else if self.leaving && self.state != QpState::Connecting {
            self.close(engine);
        }
        self.untold |= news;
        self.report_received(engine, sink);
        self.report_sends(engine, sink);
        news || before != (sink.filled, self.state, self.sends.started)
    }

    /// Takes messages into SRQ buffers. Gives whether the peer must be told.
    fn receive(&mut self, engine: &mut Engine, sink: &mut Sink<'_>) -> bool {
        if engine.unreachable || self.silenced {
            return false;
        }
        let mut taken = false;
        while engine.latency.is_some() || !sink.is_full() {
            let length = match self.inward.peek(&self.memory) {
                Ok(Some(length)) => length,
                Ok(None) => break,
                Err(Lie) => {
                    self.distrust(engine);
                    return true;
                }
            };
            if self.state == QpState::Accepted {
                // IBTA 12.9.7: the first message stands for the RTU.
                self.establish(engine);
            }
            let Some(buffer) = engine.srq.pop_front() else {
                return self.not_ready(engine) || taken;
            };
            let status = self.place(engine, &buffer, length);
            let completion = WorkCompletion {
                id: buffer.id,
                status,
                qp: self.handle,
                length: if status == CompletionStatus::Success { length } else { 0 },
            };
            engine.completions_possible = engine.completions_possible.saturating_sub(1);
            if engine.latency.is_some() {
                let due = engine.due().max(self.received.back().map_or(0, |(due, _)| *due));
                self.received.push_back((due, completion));
            } else {
                sink.push(engine, completion);
            }
            taken = true;
            if status != CompletionStatus::Success {
                // First the messages before this one: the peer reads in the opposite order.
                self.inward.acknowledge(&self.memory);
                self.memory.refuse(match status {
                    CompletionStatus::LocalLength => Refusal::TooLong,
                    _ => Refusal::Operation,
                });
                self.enter_error(engine);
                return true;
            }
            engine.statistics.receives += 1;
            self.inward.advance(length);
            if self.naks != 0 {
                self.naks = 0;
                self.memory.set_receiver_not_ready(0);
            }
        }
        if taken {
            self.inward.acknowledge(&self.memory);
        }
        taken
    }

    /// Copies the message at the head into a receive buffer.
    fn place(
        &mut self,
        engine: &mut Engine,
        buffer: &ReceiveRequest,
        length: u32,
    ) -> CompletionStatus {
        let local = buffer.local;
        if length > local.length {
            return CompletionStatus::LocalLength;
        }
        if length == 0 {
            return CompletionStatus::Success;
        }
        let placed = engine
            .space
            .resolve(local.key, local.address, u64::from(local.length))
            .is_some_and(|to| self.inward.copy(&self.memory, &to, length));
        if placed {
            CompletionStatus::Success
        } else {
            engine.statistics.local_protection_errors += 1;
            CompletionStatus::LocalProtection
        }
    }

    /// Sends an RNR NAK, one per moment. The peer counts them only when its retries are limited, so
    /// it is told at powers of two, not each time. Gives whether it must be told.
    fn not_ready(&mut self, engine: &mut Engine) -> bool {
        self.inward.acknowledge(&self.memory);
        let moment = if engine.latency.is_some() { engine.now } else { engine.statistics.polls };
        if self.nak_at == moment {
            return false;
        }
        self.nak_at = moment;
        self.naks = self.naks.saturating_add(1);
        self.memory.set_receiver_not_ready(self.naks);
        engine.statistics.receiver_not_ready += 1;
        self.naks.is_power_of_two()
    }

    /// Looks at acknowledgements and at why there are none. Gives whether the queue pair failed.
    fn observe(&mut self, engine: &mut Engine, peer_state: EndState) -> bool {
        if self.sends.completed == self.sends.started {
            return false;
        }
        // The order matters: whatever is read here first was true before `consumed` was read.
        let naks = self.memory.peer_receiver_not_ready();
        let refusal = self.memory.peer_refusal();
        let moved = if self.silenced || engine.unreachable {
            Ok(false)
        } else {
            self.out.observe(&self.memory)
        };
        match moved {
            Err(Lie) => {
                self.distrust(engine);
                return true;
            }
            Ok(true) if engine.latency.is_some() => self.end_acknowledged(engine),
            Ok(_) => {}
        }
        let status = match refusal {
            Refusal::TooLong | Refusal::Operation => CompletionStatus::RemoteOperation,
            Refusal::None if self.silenced || peer_state == EndState::Error => {
                CompletionStatus::RetryExceeded
            }
            Refusal::None if engine.rnr_retry.is_some_and(|retries| naks > retries) => {
                CompletionStatus::RnrRetryExceeded
            }
            Refusal::None => return false,
        };
        let Some(oldest) = self.oldest_on_wire() else { return false };
        self.fail_at(engine, oldest, status);
        true
    }

    /// The oldest SEND that is not acknowledged.
    fn oldest_on_wire(&mut self) -> Option<u64> {
        (self.sends.completed..self.sends.started).find(|sequence| {
            match self.sends.at(*sequence).progress {
                Progress::OnWire { end } => !self.out.is_acknowledged(end),
                _ => false,
            }
        })
    }

    /// Deferring: gives every newly acknowledged SEND a time to be reported at.
    fn end_acknowledged(&mut self, engine: &mut Engine) {
        for sequence in self.sends.completed..self.sends.started {
            if let Progress::OnWire { end } = self.sends.at(sequence).progress {
                if !self.out.is_acknowledged(end) {
                    break;
                }
                let status = CompletionStatus::Success;
                self.sends.at(sequence).progress = Progress::Ended { status, at: engine.due() };
            }
        }
    }

    fn report_received(&mut self, engine: &mut Engine, sink: &mut Sink<'_>) {
        while !sink.is_full() {
            match self.received.front() {
                Some((due, completion)) if *due <= engine.now => {
                    let completion = *completion;
                    self.received.pop_front();
                    sink.push(engine, completion);
                }
                _ => break,
            }
        }
    }

    /// Reports ended work in order.
    fn report_sends(&mut self, engine: &mut Engine, sink: &mut Sink<'_>) {
        while self.sends.completed < self.sends.started && !sink.is_full() {
            let sequence = self.sends.completed;
            let Entry { request, progress } = *self.sends.at(sequence);
            let mut status = match progress {
                Progress::Ended { status, at } if at <= engine.now => status,
                Progress::OnWire { end }
                    if engine.latency.is_none() && self.out.is_acknowledged(end) =>
                {
                    CompletionStatus::Success
                }
                _ => break,
            };
            if let SendOperation::RdmaRead(_) = request.operation
                && status == CompletionStatus::Success
            {
                self.reads_outstanding = self.reads_outstanding.saturating_sub(1);
                status = self.deliver_read(engine, &request);
            }
            self.sends.completed += 1;
            engine.completions_possible = engine.completions_possible.saturating_sub(1);
            if status != CompletionStatus::Success || request.signaled {
                self.sends.released = self.sends.completed;
                let completion =
                    WorkCompletion { id: request.id, status, qp: self.handle, length: 0 };
                sink.push(engine, completion);
            }
            if status == CompletionStatus::LocalProtection && self.state != QpState::Error {
                self.enter_error(engine);
            }
        }
    }

    /// Deferring: the bytes of a READ arrive.
    fn deliver_read(&mut self, engine: &mut Engine, request: &SendRequest) -> CompletionStatus {
        if engine.latency.is_none() {
            return CompletionStatus::Success;
        }
        let bytes = self.fetched.pop_front().unwrap_or_default();
        let local = request.local;
        let delivered = bytes.is_empty()
            || engine
                .space
                .resolve(local.key, local.address, bytes.len() as u64)
                .is_some_and(|to| to.write(0, &bytes));
        if delivered {
            CompletionStatus::Success
        } else {
            engine.statistics.local_protection_errors += 1;
            CompletionStatus::LocalProtection
        }
    }

    // ---- states ----

    /// The RTU arrived, or stood in for by the first message.
    pub(crate) fn establish(&mut self, engine: &mut Engine) {
        if self.state == QpState::Accepted {
            self.state = QpState::Live;
            engine.event(CmEvent::Established(self.handle));
        }
    }

    /// Ends `sequence` with `status`, and the queue pair with it.
    fn fail_at(&mut self, engine: &mut Engine, sequence: u64, status: CompletionStatus) {
        self.sends.at(sequence).progress = Progress::Ended { status, at: engine.due() };
        self.sends.started = self.sends.started.max(sequence + 1);
        self.enter_error(engine);
    }

    /// To the error state: whatever has not ended is flushed, also what was not rung yet.
    pub(crate) fn enter_error(&mut self, engine: &mut Engine) {
        if self.state == QpState::Error {
            return;
        }
        self.state = QpState::Error;
        self.memory.set_state(EndState::Error);
        let started = self.sends.started;
        let mut broken = false;
        for sequence in self.sends.completed..self.sends.posted {
            let so_far = match self.sends.at(sequence).progress {
                Progress::Ended { status, at } if sequence < started => Some((status, at)),
                Progress::OnWire { end } if self.out.is_acknowledged(end) => {
                    Some((CompletionStatus::Success, engine.due()))
                }
                _ => None,
            };
            // Nothing succeeds behind something that did not.
            let (status, at) = match so_far {
                Some((CompletionStatus::Success, at)) if !broken => (CompletionStatus::Success, at),
                Some((status, at)) if status != CompletionStatus::Success => (status, at),
                _ => (self.flush_status, engine.due()),
            };
            broken |= status != CompletionStatus::Success;
            self.sends.at(sequence).progress = Progress::Ended { status, at };
        }
        self.sends.rung = self.sends.posted;
        self.sends.started = self.sends.posted;
        self.tell(engine);
    }

    /// The device died: what is outstanding ends with `Fatal`.
    pub(crate) fn die(&mut self, engine: &mut Engine) {
        self.flush_status = CompletionStatus::Fatal;
        self.enter_error(engine);
    }

    /// To the error state, with a fatal queue pair event.
    pub(crate) fn fatal(&mut self, engine: &mut Engine) {
        if self.state != QpState::Error {
            self.enter_error(engine);
            engine.event(CmEvent::QpFatal(self.handle));
        }
    }

    /// The peer's words make no sense: end this connection, and only this one.
    fn distrust(&mut self, engine: &mut Engine) {
        engine.statistics.peer_lies += 1;
        self.fatal(engine);
    }

    /// To the error state, and the owner is told that the connection ended.
    pub(crate) fn close(&mut self, engine: &mut Engine) {
        self.leaving = false;
        self.enter_error(engine);
        if self.closing == Closing::No {
            self.closing = Closing::Announced;
            engine.event(CmEvent::Disconnected(self.handle));
        }
    }

    /// Whether everything was reported.
    pub(crate) fn is_drained(&self) -> bool {
        self.sends.completed == self.sends.posted && self.received.is_empty()
    }

    /// Completions this queue pair may still cause.
    pub(crate) fn completions_possible(&self) -> u64 {
        self.sends.posted - self.sends.completed
    }

    // ---- being looked at ----

    /// Tells the peer of news that waited for an occasion.
    pub(crate) fn tell_untold(&mut self, engine: &mut Engine) {
        if self.untold {
            self.tell(engine);
        }
    }

    /// Tells the peer that there is news.
    pub(crate) fn tell(&mut self, engine: &mut Engine) {
        self.untold = false;
        if let Some(peer) = &self.peer {
            let woken = peer.tell(|| self.memory.is_peer_watching(), engine.drop_wake_ups);
            engine.statistics.wake_ups += u64::from(woken);
        }
    }

    /// Whether the peer stored something this end has not looked at.
    pub(crate) fn has_news(&self) -> bool {
        let connected = matches!(self.state, QpState::Accepted | QpState::Live);
        connected
            && !self.silenced
            && (self.inward.has_news(&self.memory)
                || self.memory.is_accused()
                || (self.sends.completed < self.sends.started
                    && (self.out.has_news(&self.memory)
                        || self.memory.peer_state() == EndState::Error)))
    }

    /// Whether something may happen here without the peer doing anything, so that polls must go on
    /// looking: an end to report, a time to come, work that waits for room, port or buffer.
    pub(crate) fn has_pending(&mut self) -> bool {
        let front_ended = self.sends.completed < self.sends.started
            && match self.sends.at(self.sends.completed).progress {
                Progress::Ended { .. } => true,
                Progress::OnWire { end } => self.silenced || self.out.is_acknowledged(end),
                Progress::Waiting { .. } => false,
            };
        front_ended
            || self.sends.started < self.sends.rung
            || self.leaving
            || self.untold
            || !self.received.is_empty()
            || self.naks != 0
    }

    /// When the next step that only waits for time is due.
    pub(crate) fn next_due(&mut self) -> Option<u64> {
        let received = self.received.front().map(|(due, _)| *due);
        let ended = (self.sends.completed < self.sends.started)
            .then(|| match self.sends.at(self.sends.completed).progress {
                Progress::Ended { at, .. } => Some(at),
                _ => None,
            })
            .flatten();
        let starting = (self.sends.started < self.sends.rung)
            .then(|| match self.sends.at(self.sends.started).progress {
                Progress::Waiting { at } => Some(at),
                _ => None,
            })
            .flatten();
        [received, ended, starting].into_iter().flatten().min()
    }

    /// The peer exposed a segment. False when it breaks the numbering.
    pub(crate) fn learn(&mut self, index: u32, segment: Segment) -> bool {
        learn(&mut self.segments, index, segment)
    }
}

fn learn(segments: &mut Vec<Segment>, index: u32, segment: Segment) -> bool {
    let fits = index as usize == segments.len() && segments.len() < SEGMENTS_MAX;
    if fits {
        segments.push(segment);
    }
    fits
}

/// Where `length` bytes from `remote` lie, if the peer grants `wanted` on all of them. A segment that
/// is not known yet is on its way: the peer announces it before it gives a key into it away.
fn remote_memory<'a>(
    peer: Option<&PeerGroup>,
    segments: &'a mut Vec<Segment>,
    way: &mut Option<Way>,
    unhandled: &mut VecDeque<Message>,
    remote: RemoteAddress,
    length: u32,
    wanted: RemoteAccess,
) -> Option<(&'a Segment, u64)> {
    let RemoteRange { segment, offset } =
        look_up(peer?, remote.key, remote.address, length, wanted)?;
    let index = segment as usize;
    while index >= segments.len() {
        match way.as_mut()?.receive() {
            Received::Message(Message::Memory { index, segment }) => {
                if !learn(segments, index, segment) {
                    return None;
                }
            }
            Received::Message(message) => unhandled.push_back(message),
            Received::Nothing | Received::Gone => return None,
        }
    }
    segments.get(index).map(|segment| (segment, offset))
}
