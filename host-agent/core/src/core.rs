//! The core itself: its state, and the way of an operation from the ring to a handler and back. The
//! control channel's side is in `control`.

use std::collections::VecDeque;
use std::fmt;

use lunar_handlers::{CancelAnswer, Outcome as HandlerOutcome};
use lunar_offload_proto::control::Agreed;
use lunar_offload_proto::ring::{
    CompletionEntry, FLAG_SIDE, LbaRun, Operation, Outcome, SideRecord, SubmissionEntry,
};

use crate::alua::Pending;
use crate::config::CoreConfig;
use crate::copy::Copies;
use crate::effect::{Effect, Level, LogEvent};
use crate::forwarded::Forwarded;
use crate::link::{Link, LinkState};
use crate::nexus::{Nexus, NexusTable, Standing};
use crate::operations::{OperationId, Operations, Running, Step as HandlerStep};
use crate::removal::Prevents;
use crate::reserving::Homes;
use crate::rings::{Parked, PendingCancel, Ring, RingCounters, RingState};
use crate::submission::{Verdict, decide};
use crate::units::{Configuration, ConfigurationError, Units};
use crate::work::Work;

/// See the crate's documentation for how it is driven.
#[derive(Debug)]
pub struct Core {
    pub(crate) config: CoreConfig,
    pub(crate) link: Link,
    /// The epoch of the card that the rings belong to.
    pub(crate) card_epoch: Option<u64>,
    pub(crate) units: Units,
    /// The generation that the card has in force.
    pub(crate) applied_generation: u32,
    pub(crate) nexuses: NexusTable,
    pub(crate) prevents: Prevents,
    /// In order of their generations.
    pub(crate) pending_states: Vec<Pending>,
    pub(crate) homes: Homes,
    pub(crate) rings: Vec<Ring>,
    pub(crate) operations: Operations,
    pub(crate) copies: Copies,
    pub(crate) effects: VecDeque<Effect>,
}

/// Where an entry goes first.
enum Step {
    Park,
    Cancel,
    Decide,
    Refuse,
}

impl Core {
    /// A core without control channel and configuration.
    #[must_use]
    pub fn new(config: CoreConfig) -> Self {
        let recovered = config.recovered.as_ref();
        let rings: Vec<Ring> = config
            .rings
            .iter()
            .enumerate()
            .map(|(index, geometry)| {
                let recovery = recovered.and_then(|recovered| recovered.rings.get(index));
                Ring::new(*geometry, recovery)
            })
            .collect();
        let slots: usize = config
            .rings
            .iter()
            .filter_map(|ring| usize::try_from(ring.layout.slots()).ok())
            .fold(0, usize::saturating_add);
        Self {
            card_epoch: recovered.map(|recovered| recovered.card_epoch),
            units: Units::after(config.configuration_generation),
            link: Link::new(),
            applied_generation: 0,
            nexuses: NexusTable::default(),
            prevents: Prevents::default(),
            pending_states: Vec::new(),
            homes: Homes::default(),
            rings,
            operations: Operations::with_capacity(slots),
            copies: Copies::default(),
            effects: VecDeque::with_capacity(slots),
            config,
        }
    }

    /// Replaces the configuration, for the card and for the entries to come; gives its generation.
    /// Handlers that it does not name any more may have operations until [`Core::running`] says 0.
    ///
    /// # Errors
    /// [`ConfigurationError`]; the one before stays.
    pub fn set_configuration(
        &mut self,
        configuration: Configuration,
        now_ns: u64,
    ) -> Result<u32, ConfigurationError> {
        let generation = self.units.replace(configuration, self.config.limits.units_max)?;
        self.remember_card();
        self.send_configuration();
        self.release_parked(now_ns);
        Ok(generation)
    }

    /// Whether the ring is to be polled now.
    #[must_use]
    pub fn wants_polling(&self, ring: u16) -> bool {
        self.ring(ring).is_some_and(|ring| ring.state == RingState::Open)
    }

    /// Takes the next submission of `ring`, in ring order. `side` counts only where the entry has
    /// its flag. Whatever it says, it is answered by effects: at last by one `Complete`, or by
    /// `CloseRing`.
    pub fn on_submission(
        &mut self,
        ring: u16,
        entry: &SubmissionEntry,
        side: &SideRecord,
        now_ns: u64,
    ) {
        if !self.wants_polling(ring) {
            return;
        }
        let Some(state) = self.ring_mut(ring) else {
            return;
        };
        state.next_submission = entry.sequence.get().wrapping_add(1);
        state.counters.submissions = state.counters.submissions.saturating_add(1);
        let slots = state.geometry.layout.slots();
        if state.outstanding >= slots {
            // Each outstanding operation needs a slot of the completion ring.
            let fault = format!("more than {slots} operations are outstanding, one for each slot");
            return self.on_ring_fault(ring, &fault);
        }
        state.outstanding = state.outstanding.saturating_add(1);
        match self.first_step(entry) {
            Step::Park => {
                let side = entry.has(FLAG_SIDE).then(|| Box::new(*side));
                if let Some(state) = self.ring_mut(ring) {
                    state.counters.parked = state.counters.parked.saturating_add(1);
                    state.parked.push_back(Parked { entry: *entry, side, since_ns: now_ns });
                }
            }
            Step::Cancel => self.cancel(ring, entry),
            Step::Decide => self.start(ring, entry, side),
            Step::Refuse => self.answer(ring, entry.token.get(), Outcome::Refused, 0, 0),
        }
    }

    /// The ring broke its contract (bad words, a hostile entry): it is closed, and nothing else is.
    pub fn on_ring_fault(&mut self, ring: u16, fault: &dyn fmt::Display) {
        if self.ring(ring).is_none_or(|ring| matches!(ring.state, RingState::Closed { .. })) {
            return;
        }
        let reason = format!("ring {ring}: {fault}; closed until the card starts anew");
        self.orphan(Some(ring));
        if let Some(state) = self.ring_mut(ring) {
            state.counters.faults = state.counters.faults.saturating_add(1);
            state.forget();
            state.state = RingState::Closed { reason: reason.clone() };
        }
        self.log(Level::Error, "ring-fault", reason.clone());
        self.effects.push_back(Effect::CloseRing { ring, reason });
        // A ring that cannot be reconciled holds the others up no longer.
        self.send_configuration();
    }

    /// Takes the end of an operation from its handler. Unknown ids are ignored.
    pub fn on_outcome(&mut self, operation: OperationId, outcome: HandlerOutcome, now_ns: u64) {
        let Some(running) = self.operations.get_mut(operation) else {
            return;
        };
        if outcome == HandlerOutcome::Done
            && !running.orphaned
            && !running.stopping
            && let Some(step) = running.work.next(&running.step)
        {
            running.step = step;
            return self.execute(operation, step);
        }
        let Some(running) = self.operations.remove(operation) else {
            return;
        };
        self.release(&running);
        if running.work.copy().is_some() {
            // A change of reservations may have waited for its last write.
            self.end_reserving();
        }
        if let Some(copy) = running.work.copy()
            && !running.orphaned
            && !running.stopping
            && outcome != HandlerOutcome::Cancelled
        {
            let ending = copy.ending(outcome == HandlerOutcome::Done);
            self.copies.keep(copy, ending.is_ok());
            return self.end_copy(running.ring, running.token, running.unit, ending);
        }
        if let Work::Eject(command) = &running.work
            && !running.orphaned
            && !running.stopping
            && outcome == HandlerOutcome::Done
        {
            return self.eject(command);
        }
        if running.orphaned {
            if self.link.state == LinkState::HoldingBack {
                self.admit_card(now_ns);
            }
            return;
        }
        let outcome = if running.stopping { HandlerOutcome::Cancelled } else { outcome };
        let (result, detail) = ring_outcome(outcome);
        let data_bytes = running.step.data.map_or(0, |data| data.length);
        let transferred_bytes = match outcome {
            HandlerOutcome::Done => data_bytes,
            HandlerOutcome::Listed { runs } => {
                let run_bytes = u32::try_from(size_of::<LbaRun>()).unwrap_or(0);
                runs.saturating_mul(run_bytes).min(data_bytes)
            }
            // A difference is an answer, not a failure.
            HandlerOutcome::Cancelled | HandlerOutcome::Miscompare { .. } => 0,
            _ => {
                self.report_error(&running, result, detail);
                0
            }
        };
        self.answer(running.ring, running.token, result, detail, transferred_bytes);
    }

    /// Takes a handler's answer to [`Effect::Cancel`]: one for each, before or after the
    /// operation's own end.
    pub fn on_cancel_answer(&mut self, operation: OperationId, answer: CancelAnswer) {
        let mut outcome = match answer {
            CancelAnswer::Cancelled => Outcome::Done,
            CancelAnswer::TooLate => Outcome::TooLate,
        };
        // Too late for this step, not for the next.
        if let Some(running) = self.operations.get_mut(operation)
            && running.work.has_more()
        {
            running.stopping = true;
            outcome = Outcome::Done;
        }
        let mut tokens = Vec::new();
        for (index, ring) in self.rings.iter_mut().enumerate() {
            ring.cancels.retain(|cancel| {
                let other = cancel.operation != operation;
                if !other {
                    tokens.push((u16::try_from(index).unwrap_or(u16::MAX), cancel.token));
                }
                other
            });
        }
        for (ring, token) in tokens {
            self.answer(ring, token, outcome, 0, 0);
        }
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Where the control channel is.
    #[must_use]
    pub fn link_state(&self) -> LinkState {
        self.link.state
    }

    /// What this agent and the card that was met last agreed on; `None` before one was.
    #[must_use]
    pub fn agreed(&self) -> Option<Agreed> {
        self.link.agreed
    }

    /// Operations at handlers, those included that nobody waits for any more.
    #[must_use]
    pub fn running(&self) -> usize {
        self.operations.at_handlers()
    }

    /// Operations that wait until no earlier write is in their way; no handler has them.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.operations.waiting()
    }

    /// Entries of `ring` that were taken and not completed.
    #[must_use]
    pub fn outstanding(&self, ring: u16) -> u32 {
        self.ring(ring).map_or(0, |ring| ring.outstanding)
    }

    /// Whether and why `ring` is (not) polled; `None` for a ring that is not there.
    #[must_use]
    pub fn ring_state(&self, ring: u16) -> Option<&RingState> {
        self.ring(ring).map(|ring| &ring.state)
    }

    /// What was counted of `ring`.
    #[must_use]
    pub fn ring_counters(&self, ring: u16) -> Option<RingCounters> {
        self.ring(ring).map(|ring| ring.counters)
    }

    /// The nexuses that are logged in, by handle.
    pub fn nexuses(&self) -> impl Iterator<Item = &Nexus> {
        self.nexuses.iter()
    }

    /// The configuration generation that entries are checked under, 0 before the first.
    #[must_use]
    pub fn configuration_generation(&self) -> u32 {
        self.units.generation
    }

    /// The configuration generation that the card has in force, 0 for none.
    #[must_use]
    pub fn applied_generation(&self) -> u32 {
        self.applied_generation
    }

    /// Gives every parked entry whose generations have been seen meanwhile its way, in order.
    pub(crate) fn release_parked(&mut self, now_ns: u64) {
        for ring in 0..u16::try_from(self.rings.len()).unwrap_or(u16::MAX) {
            let parked = self.ring_mut(ring).map(|ring| std::mem::take(&mut ring.parked));
            let mut kept = VecDeque::new();
            for parked in parked.unwrap_or_default() {
                // Something before it may have closed the ring.
                if !self.wants_polling(ring) {
                    break;
                }
                self.reconsider(ring, parked, &mut kept, now_ns);
            }
            if self.wants_polling(ring)
                && let Some(state) = self.ring_mut(ring)
            {
                state.parked = kept;
            }
        }
    }

    fn reconsider(&mut self, ring: u16, parked: Parked, kept: &mut VecDeque<Parked>, now_ns: u64) {
        let entry = parked.entry;
        let expired = now_ns.saturating_sub(parked.since_ns) >= self.config.limits.parked_wait_ns;
        match self.first_step(&entry) {
            Step::Park if !expired => kept.push_back(parked),
            Step::Park => {
                if let Some(state) = self.ring_mut(ring) {
                    state.counters.parked_expired = state.counters.parked_expired.saturating_add(1);
                }
                let text = format!(
                    "ring {ring}: an entry waited too long for configuration generation {} or nexus {} (generation {})",
                    entry.configuration_generation, entry.nexus, entry.nexus_generation
                );
                self.log(Level::Warning, "parked-expired", text);
                self.answer(ring, entry.token.get(), Outcome::Unavailable, 0, 0);
            }
            Step::Refuse => self.answer(ring, entry.token.get(), Outcome::Refused, 0, 0),
            Step::Cancel | Step::Decide => {
                let empty = SideRecord::empty();
                self.start(ring, &entry, parked.side.as_deref().unwrap_or(&empty));
            }
        }
    }

    /// Cancels at the handlers what an older card epoch (or a closed ring) left there, and counts
    /// on none of it: nobody is answered any more. What waits will never start; what a handler has
    /// holds its range until it ended.
    pub(crate) fn orphan(&mut self, only: Option<u16>) {
        let mut forgotten = Vec::new();
        for (operation, running) in self.operations.iter_mut() {
            if running.orphaned || only.is_some_and(|ring| ring != running.ring) {
                continue;
            }
            if running.is_waiting() {
                forgotten.push(operation);
                continue;
            }
            running.orphaned = true;
            let device = running.step.device;
            self.effects.push_back(Effect::Cancel { operation, device });
        }
        let forgotten: Vec<Running> =
            forgotten.into_iter().filter_map(|id| self.operations.remove(id)).collect();
        for running in forgotten {
            self.release(&running);
        }
    }

    /// What `gone` had is free: starts those that waited for nobody else.
    fn release(&mut self, gone: &Running) {
        if let Some(copy) = gone.work.copy() {
            self.copies.release(copy);
        }
        for operation in self.operations.release(gone) {
            if let Some(step) = self.operations.get(operation).map(|running| running.step) {
                self.execute(operation, step);
            }
        }
    }

    /// Takes an operation, which starts at once when nobody is in its way.
    pub(crate) fn insert(&mut self, running: Running) -> OperationId {
        let step = running.step;
        let operation = self.operations.insert(running);
        if self.operations.get(operation).is_some_and(|running| !running.is_waiting()) {
            self.execute(operation, step);
        }
        operation
    }

    fn execute(&mut self, operation: OperationId, step: HandlerStep) {
        let HandlerStep { device, request, data } = step;
        self.effects.push_back(Effect::Execute { operation, device, request, data });
    }

    pub(crate) fn ring(&self, ring: u16) -> Option<&Ring> {
        self.rings.get(usize::from(ring))
    }

    pub(crate) fn ring_mut(&mut self, ring: u16) -> Option<&mut Ring> {
        self.rings.get_mut(usize::from(ring))
    }

    pub(crate) fn log(&mut self, level: Level, code: &'static str, text: impl Into<String>) {
        self.effects.push_back(Effect::Log(LogEvent::new(level, code, text)));
    }

    /// Publishes a completion that no taken entry waits for: of an earlier agent's operation.
    pub(crate) fn publish(
        &mut self,
        ring: u16,
        entry: CompletionEntry,
        side: Option<Box<SideRecord>>,
    ) {
        if let Some(state) = self.ring_mut(ring) {
            state.counters.completions = state.counters.completions.saturating_add(1);
            state.next_completion = state.next_completion.wrapping_add(1);
        }
        self.effects.push_back(Effect::Complete { ring, entry, side });
    }

    fn first_step(&self, entry: &SubmissionEntry) -> Step {
        // What this version does not understand is refused, not punished.
        if entry.check().is_err() {
            return Step::Refuse;
        }
        if entry.operation() == Operation::Cancel {
            return Step::Cancel;
        }
        let generation = entry.configuration_generation.get();
        if self.units.message().is_none() || generation > self.units.generation {
            return Step::Park;
        }
        match self.nexuses.standing(entry.nexus.get(), entry.nexus_generation.get()) {
            Standing::Known => Step::Decide,
            Standing::NotYet => Step::Park,
            Standing::Stale => Step::Refuse,
        }
    }

    fn start(&mut self, ring: u16, entry: &SubmissionEntry, side: &SideRecord) {
        let Some(geometry) = self.ring(ring).map(|ring| ring.geometry) else {
            return;
        };
        let token = entry.token.get();
        match decide(entry, side, &geometry, &self.units) {
            Verdict::Execute { step, work, hold } => {
                self.insert(Running::new(ring, token, entry.unit.get(), step, work, hold));
            }
            Verdict::Answer(outcome, detail) => self.answer(ring, token, outcome, detail, 0),
            Verdict::Forward { cdb, data, data_out } => {
                let life = self.ring(ring).map_or(0, |ring| ring.life);
                let (unit, nexus) = (entry.unit.get(), entry.nexus.get());
                let nexus_generation = entry.nexus_generation.get();
                self.forward(Forwarded {
                    ring,
                    life,
                    token,
                    unit,
                    nexus,
                    nexus_generation,
                    cdb,
                    data,
                    data_out,
                });
            }
            Verdict::Hostile(reason) => self.on_ring_fault(ring, &reason),
        }
    }

    /// CANCEL: what is parked or waits never started; what a handler has is the handler's to say.
    fn cancel(&mut self, ring: u16, entry: &SubmissionEntry) {
        let (token, target) = (entry.token.get(), entry.cancelled_token());
        let Some(state) = self.ring_mut(ring) else {
            return;
        };
        let parked = state.parked.iter().position(|parked| parked.entry.token.get() == target);
        if let Some(at) = parked {
            state.parked.remove(at);
            self.answer(ring, target, Outcome::Cancelled, 0, 0);
            return self.answer(ring, token, Outcome::Done, 0, 0);
        }
        let running = self.operations.iter().find(|(_, running)| {
            running.ring == ring && running.token == target && !running.orphaned
        });
        let found = running.map(|(id, one)| (id, one.step.device, one.is_waiting()));
        let Some((operation, device, waiting)) = found else {
            return self.answer(ring, token, Outcome::TooLate, 0, 0);
        };
        if waiting {
            self.answer(ring, target, Outcome::Cancelled, 0, 0);
            self.answer(ring, token, Outcome::Done, 0, 0);
            if let Some(gone) = self.operations.remove(operation) {
                self.release(&gone);
            }
            return;
        }
        let Some(state) = self.ring_mut(ring) else {
            return;
        };
        let asked = state.cancels.iter().any(|cancel| cancel.operation == operation);
        state.cancels.push(PendingCancel { operation, token });
        if !asked {
            self.effects.push_back(Effect::Cancel { operation, device });
        }
    }

    /// Completes one taken entry.
    fn answer(
        &mut self,
        ring: u16,
        token: u64,
        outcome: Outcome,
        detail: u64,
        transferred_bytes: u32,
    ) {
        let mut entry = CompletionEntry::new(token, outcome);
        entry.detail.set(detail);
        entry.transferred_bytes.set(transferred_bytes);
        self.settle(ring);
        if let Some(state) = self.ring_mut(ring) {
            let counter = match outcome {
                Outcome::Refused => Some(&mut state.counters.refused),
                Outcome::Cancelled => Some(&mut state.counters.cancelled),
                _ => None,
            };
            if let Some(counter) = counter {
                *counter = counter.saturating_add(1);
            }
        }
        self.publish(ring, entry, None);
    }

    pub(crate) fn settle(&mut self, ring: u16) {
        if let Some(state) = self.ring_mut(ring) {
            debug_assert!(state.outstanding > 0, "a completion without submission");
            state.outstanding = state.outstanding.saturating_sub(1);
        }
    }

    fn report_error(&mut self, running: &Running, outcome: Outcome, detail: u64) {
        if let Some(state) = self.ring_mut(running.ring) {
            state.counters.errors = state.counters.errors.saturating_add(1);
        }
        let name = self.units.get(running.unit).map_or("(removed)", |unit| unit.name.as_str());
        let unit = running.unit;
        let text = match running.step.request.range() {
            Some((lba, blocks)) => format!(
                "device {name} (unit {unit}): {blocks} blocks from LBA {lba}: {outcome} (LBA {detail})"
            ),
            None => format!("device {name} (unit {unit}): flush: {outcome}"),
        };
        self.log(Level::Error, "io-error", text);
    }
}

/// The only place where a handler's outcome becomes a ring's: outcome and detail.
fn ring_outcome(outcome: HandlerOutcome) -> (Outcome, u64) {
    match outcome {
        HandlerOutcome::Done | HandlerOutcome::Listed { .. } => (Outcome::Done, 0),
        HandlerOutcome::Miscompare { offset } => (Outcome::Miscompare, offset),
        HandlerOutcome::NotSupported => (Outcome::Refused, 0),
        HandlerOutcome::ReadError { lba } => (Outcome::MediumReadError, lba),
        HandlerOutcome::WriteError { lba } => (Outcome::MediumWriteError, lba),
        HandlerOutcome::WriteProtected => (Outcome::WriteProtected, 0),
        HandlerOutcome::NoSpace => (Outcome::NoSpace, 0),
        HandlerOutcome::OutOfRange => (Outcome::OutOfRange, 0),
        HandlerOutcome::HardwareError => (Outcome::HardwareError, 0),
        HandlerOutcome::Cancelled => (Outcome::Cancelled, 0),
    }
}
