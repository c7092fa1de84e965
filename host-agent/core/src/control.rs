//! The control channel's messages: meeting the card, epochs, reconciliation, configuration and
//! nexuses.

use std::collections::BTreeSet;

use lunar_offload_proto::control::{
    self, Arena, Event, EventLevel, Fate, Goodbye, Heartbeat, Hello, HelloAccepted, NexusClose,
    NexusEvent, NexusEventKind, OperationFate, Reconcile, Reconciled, Revoke, RingSetup,
    StatisticsRequest, ToCard, ToHost, UnitReset, UnitResetDone, UnitState, feature, negotiate,
    to_card, to_host,
};
use lunar_offload_proto::ring::{CompletionEntry, Outcome};
use lunar_scsi::device_server::ModeParameters;

use crate::config::ArenaGeometry;
use crate::core::Core;
use crate::effect::{Effect, Level, LogEvent};
use crate::link::LinkState;
use crate::nexus::{Standing, cut};
use crate::rings::RingState;
use crate::units::Unit;

impl Core {
    /// There is a control channel to the card: says Hello.
    pub fn on_control_connected(&mut self, now_ns: u64) {
        self.link.connected(&self.config.limits, now_ns);
        let hello = self.hello();
        self.send(to_card::Message::Hello(hello));
    }

    /// The control channel is gone. Rings go on; the shell connects again.
    pub fn on_control_lost(&mut self, _now_ns: u64) {
        self.link.state = LinkState::Down;
    }

    /// Takes a message from the card.
    pub fn on_control(&mut self, message: ToHost, now_ns: u64) {
        if !self.link.is_up() {
            return;
        }
        self.link.heard(now_ns);
        let Some(message) = message.message else {
            // A message of a newer version that was not negotiated, or nothing at all.
            return self.leave("the card sent a message that this version does not know");
        };
        match (self.link.state, message) {
            (LinkState::HelloSent, to_host::Message::HelloAccepted(accepted)) => {
                self.on_hello_accepted(&accepted, now_ns);
            }
            (LinkState::HelloSent, to_host::Message::HelloRefused(refused)) => {
                self.leave(&format!("the card refused this agent: {}", cut(&refused.reason)));
            }
            (_, to_host::Message::Goodbye(goodbye)) => {
                self.close(format!("the card said goodbye: {}", cut(&goodbye.reason)));
            }
            (LinkState::HelloSent, _) => {
                self.leave("the card's first message is no answer to Hello");
            }
            (_, message) => self.on_later(message, now_ns),
        }
    }

    /// Time passed: heartbeats, bounds, and whether the card is still there.
    pub fn on_tick(&mut self, now_ns: u64) {
        let limits = self.config.limits;
        if self.link.is_silent(&limits, now_ns) {
            let seconds = limits.silence_ns.checked_div(1_000_000_000).unwrap_or(0);
            self.close(format!("the card said nothing for {seconds} seconds"));
        }
        if let Some(count) = self.link.heartbeat(&limits, now_ns) {
            self.send(to_card::Message::Heartbeat(Heartbeat { count }));
        }
        let held_ns = now_ns.saturating_sub(self.link.holding_since_ns);
        if self.link.state == LinkState::HoldingBack && held_ns >= limits.older_epoch_wait_ns {
            let running = self.operations.at_handlers().saturating_add(self.changes_being_kept());
            self.leave(&format!(
                "{running} operations of the card's older epoch have not ended; the rings stay closed until they have"
            ));
        }
        self.copies.on_tick(now_ns);
        self.release_parked(now_ns);
    }

    /// When [`Core::on_tick`] is due; `None`: not before the next input.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let limits = &self.config.limits;
        let holding = (self.link.state == LinkState::HoldingBack)
            .then(|| self.link.holding_since_ns.saturating_add(limits.older_epoch_wait_ns));
        let parked = self.rings.iter().filter_map(|ring| {
            let oldest = ring.parked.iter().map(|parked| parked.since_ns).min()?;
            Some(oldest.saturating_add(limits.parked_wait_ns))
        });
        self.link.deadline(limits).into_iter().chain(holding).chain(parked).min()
    }

    /// Says goodbye and closes the control channel.
    pub fn shut_down(&mut self, reason: &str) {
        if self.link.is_up() {
            self.leave(reason);
        }
    }

    /// Asks the card for its counters; they come as [`Effect::Statistics`] with the same id.
    pub fn request_statistics(&mut self, id: u32, reset: bool) {
        if self.link.is_met() {
            let request = StatisticsRequest { id, reset };
            self.send(to_card::Message::StatisticsRequest(request));
        }
    }

    /// Has the card end one life of a nexus.
    pub fn close_nexus(&mut self, nexus: u32, nexus_generation: u32, reason: &str) {
        if self.link.is_met() {
            let reason = reason.to_owned();
            let close = NexusClose { nexus, nexus_generation, reason };
            self.send(to_card::Message::NexusClose(close));
        }
    }

    /// Announces that an arena goes; the card's answer comes as [`Effect::ArenaRevoked`].
    pub fn revoke(&mut self, arena: u16) {
        if self.link.is_met() {
            self.send(to_card::Message::Revoke(Revoke { arena: u32::from(arena) }));
        }
    }

    /// The same arenas are exported anew, under other blobs: a card that has the old ones comes back for these.
    pub fn exported(&mut self, arenas: Vec<ArenaGeometry>) {
        if self.config.arenas == arenas {
            return;
        }
        self.config.arenas = arenas;
        if self.link.is_met() {
            self.leave("the keeper exports its memory anew; the card is to connect again");
        }
    }

    /// The card started anew and nothing of its older epoch is under way: empties the rings and
    /// offers them.
    pub(crate) fn admit_card(&mut self, now_ns: u64) {
        if self.operations.at_handlers() > 0 || self.changes_being_kept() > 0 {
            return;
        }
        self.card_epoch = self.link.card_epoch;
        self.nexuses.clear();
        self.end_older_changes();
        self.on_every_nexus_loss();
        self.prevents.forget_all();
        self.remember_card();
        for (index, ring) in (0_u16..).zip(self.rings.iter_mut()) {
            ring.reopen();
            self.effects.push_back(Effect::ResetRing { ring: index });
        }
        self.offer_rings();
        self.release_parked(now_ns);
    }

    /// What the next agent must know.
    pub(crate) fn remember_card(&mut self) {
        if let Some(epoch) = self.card_epoch {
            let configuration_generation = self.units.generation;
            self.effects.push_back(Effect::RememberCard { epoch, configuration_generation });
        }
    }

    /// Sends the configuration if there is one the card was not told, and the card can take it.
    pub(crate) fn send_configuration(&mut self) {
        let settling = self.rings.iter().any(|ring| ring.state == RingState::Reconciling);
        if self.link.state != LinkState::Ready || settling || self.units.sent {
            return;
        }
        if let Some(configuration) = self.units.message().cloned() {
            self.units.sent = true;
            self.send(to_card::Message::Configuration(configuration));
        }
    }

    fn hello(&self) -> Hello {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let limits = control::Limits {
            poll_groups: number(self.config.rings.len()),
            ring_slots_max: self.config.rings.iter().map(|r| r.layout.slots()).max().unwrap_or(0),
            nexuses_max: self.config.limits.nexuses_max,
            units_max: self.config.limits.units_max,
            targets_max: 0,
            message_bytes_max: number(control::MESSAGE_BYTES_MAX),
        };
        let features = feature::HOST_DRAM
            | feature::FORWARD
            | feature::CANCEL
            | feature::RESETS
            | feature::ACCESS_TABLES;
        let (software, epoch) = (&self.config.software, self.config.epoch);
        // Without CANCEL an abort could end before its write: nothing works without it.
        control::hello(software, epoch, self.config.boot_id, features, feature::CANCEL, limits)
    }

    fn on_hello_accepted(&mut self, accepted: &HelloAccepted, now_ns: u64) {
        let Some(theirs) = &accepted.hello else {
            return self.leave("the card accepted without a Hello of its own");
        };
        let agreed = match negotiate(&self.hello(), theirs) {
            Ok(agreed) => agreed,
            Err(refusal) => return self.leave(&refusal.to_string()),
        };
        if (accepted.version, accepted.features) != (agreed.version, agreed.features) {
            return self.leave(&format!(
                "the card accepted version {} and features {:#x}, but version {} and features {:#x} are common",
                accepted.version, accepted.features, agreed.version, agreed.features
            ));
        }
        let text = format!(
            "{} (epoch {}) is connected: protocol version {}",
            cut(&theirs.software),
            theirs.epoch,
            agreed.version
        );
        self.log(Level::Info, "card-connected", text);
        self.link.agreed = Some(agreed);
        self.link.card_epoch = Some(theirs.epoch);
        self.on_card_boot(&theirs.boot_id);
        if self.card_epoch == self.link.card_epoch {
            self.resume_card(now_ns);
        } else {
            self.hold_back(now_ns);
        }
    }

    /// The card is the one the rings belong to: this agent, or only the channel, is new.
    fn resume_card(&mut self, now_ns: u64) {
        for ring in &mut self.rings {
            if ring.state == RingState::Idle {
                ring.state = RingState::Reconciling;
            }
        }
        if self.units.sent {
            // Each generation is sent once.
            self.units.advance();
            self.remember_card();
        }
        self.offer_rings();
        self.release_parked(now_ns);
    }

    /// The card started anew. It is admitted once every operation of its older epoch is over.
    fn hold_back(&mut self, now_ns: u64) {
        self.applied_generation = 0;
        self.orphan(None);
        for ring in &mut self.rings {
            ring.forget();
            ring.state = RingState::Idle;
        }
        if self.units.sent {
            self.units.advance();
        }
        self.link.state = LinkState::HoldingBack;
        self.link.holding_since_ns = now_ns;
        self.admit_card(now_ns);
    }

    fn offer_rings(&mut self) {
        let arenas = self.config.arenas.iter().map(|arena| Arena {
            id: u32::from(arena.id),
            blob: arena.blob.clone(),
            bytes: arena.bytes,
        });
        let rings = (0_u32..).zip(&self.rings).map(|(id, ring)| control::Ring {
            id,
            group: ring.geometry.group,
            arena: u32::from(ring.geometry.arena),
            submission_offset: ring.geometry.submission_offset,
            completion_offset: ring.geometry.completion_offset,
            slots: ring.geometry.layout.slots(),
            data_arena: u32::from(ring.geometry.data_arena),
            data_offset: ring.geometry.data_offset,
            data_bytes: ring.geometry.data_bytes,
            submission_sequence: ring.next_submission,
            completion_sequence: ring.next_completion,
        });
        let setup = RingSetup { arenas: arenas.collect(), rings: rings.collect() };
        self.link.state = LinkState::RingsOffered;
        self.send(to_card::Message::RingSetup(setup));
    }

    /// Any message after the card was met.
    fn on_later(&mut self, message: to_host::Message, now_ns: u64) {
        match message {
            to_host::Message::RingsReady(ready) if self.link.state == LinkState::RingsOffered => {
                if !ready.copied_arenas.is_empty() {
                    let text = format!(
                        "{} arenas could not be imported by the card: their data goes by DMA copies",
                        ready.copied_arenas.len()
                    );
                    self.log(Level::Warning, "arena-not-imported", text);
                }
                self.link.state = LinkState::Ready;
                self.adopt(&ready.unit_states);
                self.adopt_states(&ready.device_groups);
                self.send_configuration();
            }
            to_host::Message::RingSetupRefused(refused)
                if self.link.state == LinkState::RingsOffered =>
            {
                self.link.state = LinkState::RingsRefused;
                let text = format!("the card cannot use the rings: {}", cut(&refused.reason));
                self.log(Level::Error, "rings-refused", text);
            }
            to_host::Message::Reconcile(reconcile) if self.link.state == LinkState::Ready => {
                self.on_reconcile(&reconcile);
            }
            to_host::Message::ConfigurationApplied(applied) => self.on_applied(applied.generation),
            to_host::Message::ConfigurationRefused(refused) => {
                let text = format!(
                    "the card refused configuration generation {}: {}",
                    refused.generation,
                    cut(&refused.reason)
                );
                self.log(Level::Error, "configuration-refused", text);
                self.end_states(refused.generation, true);
                self.reservations_refused(refused.generation);
            }
            to_host::Message::NexusEvent(event) => self.on_nexus_event(&event, now_ns),
            to_host::Message::UnitReset(reset) => self.on_unit_reset(&reset),
            to_host::Message::Statistics(statistics) => {
                self.effects.push_back(Effect::Statistics(Box::new(statistics)));
            }
            to_host::Message::Revoked(revoked) => match u16::try_from(revoked.arena) {
                Ok(arena) => self.effects.push_back(Effect::ArenaRevoked { arena }),
                Err(_) => self.leave("the card named an arena above 65535"),
            },
            to_host::Message::Heartbeat(_) => {}
            to_host::Message::Event(event) => self.on_event(event),
            to_host::Message::HelloAccepted(_)
            | to_host::Message::HelloRefused(_)
            | to_host::Message::RingsReady(_)
            | to_host::Message::RingSetupRefused(_)
            | to_host::Message::Reconcile(_)
            | to_host::Message::Goodbye(_) => {
                let state = self.link.state;
                self.leave(&format!("the card sent a message that has no place in {state:?}"));
            }
        }
    }

    /// What initiators changed under the agent before this one, which the card kept. A card that was told
    /// a configuration by this agent has nothing to say that this one does not know better.
    fn adopt(&mut self, states: &[UnitState]) {
        if self.applied_generation != 0 {
            return;
        }
        let mut changed = false;
        for state in states {
            let mode = ModeParameters {
                software_write_protect: state.software_write_protect,
                descriptor_sense: state.descriptor_sense,
            };
            changed |= self.units.select_mode(state.unit, mode);
            let same = |unit: &&Unit| unit.scsi.removable && unit.scsi.medium == state.medium;
            if state.no_medium && self.units.get(state.unit).is_some_and(|unit| same(&unit)) {
                changed |= self.units.move_medium(state.unit, false);
            }
        }
        if changed {
            self.remember_card();
        }
    }

    /// LOGICAL UNIT RESET (SAM-6 6.3.3): mode parameters go back to their defaults, nobody prevents the
    /// removal of a medium, and no status of a copy is known (SPC-6). An ejected medium stays out.
    fn on_unit_reset(&mut self, reset: &UnitReset) {
        let (unit, gate) = (reset.unit, reset.gate);
        self.prevents.forget_unit(unit);
        self.copies.forget_unit(unit);
        let before = self.units.generation;
        self.reset_reservations(unit);
        if self.units.select_mode(unit, ModeParameters::default()) {
            self.remember_card();
            self.send_configuration();
        }
        let generation = self.units.generation;
        let required_generation = if generation == before { 0 } else { generation };
        let done = UnitResetDone { gate, required_generation };
        self.send(to_card::Message::UnitResetDone(done));
    }

    fn on_applied(&mut self, generation: u32) {
        let possible = self.applied_generation..=self.units.generation;
        if generation == 0 || !possible.contains(&generation) {
            return self.leave(&format!(
                "the card applied configuration generation {generation}, not one from {} to {}",
                possible.start(),
                possible.end()
            ));
        }
        let is_first = self.applied_generation == 0;
        self.applied_generation = generation;
        self.units.forget_effects(generation);
        if is_first {
            self.forget_absent_holders();
        }
        self.end_states(generation, false);
        self.end_reserving();
    }

    fn on_nexus_event(&mut self, event: &NexusEvent, now_ns: u64) {
        let (peer, reason) = (cut(&event.peer), cut(&event.reason));
        let (nexus, target) = (event.nexus, event.target);
        match NexusEventKind::try_from(event.kind) {
            Ok(NexusEventKind::Login) => {
                let nexuses_max = self.config.limits.nexuses_max;
                match self.nexuses.login(event, nexuses_max, now_ns) {
                    Ok(()) => {
                        let text = format!("nexus {nexus}: {peer} logged in to target {target}");
                        self.log(Level::Info, "login", text);
                        self.release_parked(now_ns);
                    }
                    Err(text) => self.log(Level::Warning, "login-not-tracked", text),
                }
            }
            Ok(NexusEventKind::Logout) => {
                if self.nexuses.standing(nexus, event.nexus_generation) == Standing::Known {
                    self.on_nexus_loss(nexus);
                }
                if self.nexuses.logout(nexus, event.nexus_generation).is_some() {
                    self.copies.forget_nexus(nexus, event.nexus_generation);
                    self.prevents.forget_nexus(nexus, event.nexus_generation);
                    let text = format!("nexus {nexus}: {peer} logged out: {reason}");
                    self.log(Level::Info, "logout", text);
                }
            }
            Ok(NexusEventKind::Rejected) => {
                let text = format!(
                    "a login of {peer} to target {target} was rejected ({:#x}): {reason}",
                    event.reject_code
                );
                self.log(Level::Warning, "login-rejected", text);
            }
            Ok(NexusEventKind::Unspecified) | Err(_) => {
                self.leave("the card sent a nexus event of an unknown kind");
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        let level = match EventLevel::try_from(event.level) {
            Ok(EventLevel::Error) => Level::Error,
            Ok(EventLevel::Warning) => Level::Warning,
            Ok(EventLevel::Debug) => Level::Debug,
            Ok(EventLevel::Info | EventLevel::Unspecified) | Err(_) => Level::Info,
        };
        let (code, text) = (cut(&event.code), cut(&event.text));
        self.effects.push_back(Effect::Log(LogEvent { level, code: code.into(), text }));
    }

    /// Settles what the card has in flight on one ring. Every operation ends through the completion
    /// ring: by what is there already, by running now, or as lost. Fates only tell which.
    fn on_reconcile(&mut self, message: &Reconcile) {
        let epoch = self.config.epoch;
        let found = u16::try_from(message.ring).ok().filter(|ring| self.ring(*ring).is_some());
        let Some(ring) = found else {
            return self
                .leave(&format!("the card reconciles ring {}, which is not there", message.ring));
        };
        let Some(state) = self.ring(ring) else {
            return;
        };
        let (count, slots) = (message.operations.len(), state.geometry.layout.slots());
        if u32::try_from(count).is_ok_and(|count| count > slots) {
            let fault = format!("{count} operations are in flight in {slots} slots");
            return self.on_ring_fault(ring, &fault);
        }
        if matches!(state.state, RingState::Closed { .. }) {
            return;
        }
        // The card says whom it met last, which may have been this agent on a channel that went before it could
        // reconcile: what is in flight is an earlier agent's all the same.
        let settling = state.state == RingState::Reconciling;
        let mine = state.reconciled || (message.agent_epoch == epoch && !settling);
        // A ring that was emptied holds nothing of an earlier agent.
        let kept = mine || settling;
        let mut seen = BTreeSet::new();
        let mut fates = Vec::with_capacity(count);
        let mut lost = Vec::new();
        let mut resumed = Vec::new();
        for operation in &message.operations {
            if !seen.insert(operation.token) {
                continue;
            }
            let fate = if kept && !state.was_taken(operation.sequence) {
                Fate::NeverStarted
            } else if mine || state.unread.contains(&operation.token) {
                Fate::Done
            } else if let Some(unit) = self.kept_by(ring, operation.token).filter(|_| kept) {
                resumed.push((unit, operation.token));
                Fate::Done
            } else {
                lost.push(operation.token);
                Fate::Unknown
            };
            fates.push(OperationFate { token: operation.token, fate: fate.into() });
        }
        self.finish_reconciling(ring, &lost);
        for (unit, token) in resumed {
            self.resume_reservation(unit, ring, token);
        }
        let reconciled = Reconciled { ring: u32::from(ring), operations: fates };
        self.send(to_card::Message::Reconciled(reconciled));
        self.send_configuration();
    }

    fn finish_reconciling(&mut self, ring: u16, lost: &[u64]) {
        for token in lost {
            self.publish(ring, CompletionEntry::new(*token, Outcome::Lost), None);
        }
        if !lost.is_empty() {
            let text = format!(
                "ring {ring}: {} operations of an earlier agent are lost: nobody knows whether they were carried out",
                lost.len()
            );
            self.log(Level::Warning, "operations-lost", text);
        }
        if let Some(state) = self.ring_mut(ring) {
            let count = u64::try_from(lost.len()).unwrap_or(u64::MAX);
            state.counters.lost = state.counters.lost.saturating_add(count);
            state.unread.clear();
            state.reconciled = true;
            state.state = RingState::Open;
        }
    }

    /// Says why and closes the channel.
    fn leave(&mut self, reason: &str) {
        let goodbye = Goodbye { reason: reason.to_owned() };
        self.send(to_card::Message::Goodbye(goodbye));
        self.close(reason.to_owned());
    }

    fn close(&mut self, reason: String) {
        self.log(Level::Warning, "control-closed", reason.clone());
        self.link.state = LinkState::Closing;
        self.effects.push_back(Effect::CloseControl { reason });
    }

    fn send(&mut self, message: to_card::Message) {
        let message = Box::new(ToCard { message: Some(message) });
        self.effects.push_back(Effect::SendControl(message));
    }
}
