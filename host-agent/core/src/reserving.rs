//! The home of reservations: every unit's state, and the way of a change. A command about reservations is
//! decided by `lunar_scsi::reservations`; what it makes of the state goes to the shell to be kept, then to the card
//! to be enforced, and only then is the command answered. Changes of one unit are made one after another; other units
//! do not wait.
//!
//! The access table and what comes with it (unit attentions, aborted commands) travel in the configuration. The card
//! reports a configuration as applied when every poll group works under it and what it takes from a nexus is
//! over, so no gate is needed.

use std::collections::{BTreeMap, VecDeque};

use lunar_offload_proto::control::{AccessEffect, AccessTable, NexusAccess};
use lunar_offload_proto::ring::{CompletionEntry, Outcome};
use lunar_scsi::device_server::Ending as CommandEnding;
use lunar_scsi::opcodes::opcode;
use lunar_scsi::reservations::record::{Operation, Record};
use lunar_scsi::reservations::{
    Access, Change, Effects, Nexus, Protocol, Reservations, TargetPort, TransportId,
};
use lunar_scsi::sense::Sense;
use lunar_scsi::unit_attention::UnitAttention;

use crate::core::Core;
use crate::effect::{Effect, Level};
use crate::forwarded::{Ending, Forwarded, Verdict};
use crate::link::LinkState;
use crate::mutant::{Mutant, is};
use crate::rings::RingState;

/// Most bytes of PERSISTENT RESERVE IN's parameter data: ALLOCATION LENGTH has two bytes.
const PARAMETERS_MAX: usize = 65_535;

/// The reservations of one unit.
#[derive(Debug, Default)]
struct Home {
    state: Reservations,
    /// The command that made it so, as it is kept.
    operation: Option<Operation>,
    /// The boot of the card that the state is from.
    boot_id: [u8; 16],
    /// Something was kept, so the next power on has to be as well.
    kept: bool,
    /// The configuration generation that has the state: before it is in force no command sees the state.
    told: u32,
    current: Option<Current>,
    waiting: VecDeque<Job>,
}

/// Something that may change the state.
#[derive(Debug)]
enum Job {
    Command(Box<Forwarded>, Vec<u8>),
    /// The I_T nexus is gone.
    NexusLoss(Nexus),
    /// LOGICAL UNIT RESET, or every nexus is gone.
    Reset,
    /// The card that is there has this boot id.
    Boot([u8; 16]),
    /// The management's, by its name there.
    Management(u64, Box<Change>),
}

/// Who is told when a change is made.
#[derive(Debug)]
enum Origin {
    Command(Box<Forwarded>),
    /// A command that an earlier agent took.
    Reconciled {
        ring: u16,
        life: u64,
        token: u64,
    },
    Management(u64),
    Nobody,
}

/// A change on its way.
#[derive(Debug)]
struct Current {
    origin: Origin,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The shell keeps it; the state is the old one.
    Keeping { keep: u64, change: Box<Change>, operation: Option<Operation> },
    /// The shell keeps what is the state already: nobody can be told that it did not happen.
    Noting { keep: u64 },
    /// The card brings this configuration generation in force.
    Enforcing { generation: u32, aborts: Vec<Nexus> },
}

/// All units' reservations.
#[derive(Debug, Default)]
pub(crate) struct Homes {
    by_unit: BTreeMap<u32, Home>,
    last_keep: u64,
    /// Of the card that was met last.
    card_boot_id: Option<[u8; 16]>,
}

impl Core {
    /// The reservations of a unit as they are kept, before its first configuration; `None` when nothing is. What is
    /// kept and cannot be trusted is [`Reservations::information_lost`].
    pub fn restore_reservations(&mut self, unit: u32, record: Option<Record>) {
        let Some(record) = record else { return };
        let Record { boot_id, operation, reservations: state, .. } = record;
        self.units.set_access(unit, access_message(&state), &[]);
        let told = self.units.generation;
        let home = Home { state, operation, boot_id, kept: true, told, ..Home::default() };
        self.homes.by_unit.insert(unit, home);
    }

    /// The reservations of a unit; `None` when there never were any.
    #[must_use]
    pub fn reservations(&self, unit: u32) -> Option<&Reservations> {
        self.homes.by_unit.get(&unit).map(|home| &home.state)
    }

    /// Nothing is registered or reserved any more; [`Effect::ReservationsChanged`] with `id` tells when.
    pub fn clear_reservations(&mut self, unit: u32, id: u64) {
        let change = self.reservations(unit).cloned().unwrap_or_default().clear();
        self.manage_reservations(unit, id, change);
    }

    /// Replaces the reservations; [`Effect::ReservationsChanged`] with `id` tells when.
    pub fn replace_reservations(&mut self, unit: u32, id: u64, state: Reservations) {
        let effects = Effects::default();
        let change = Change { state, is_new: true, needs_gate: true, effects };
        self.manage_reservations(unit, id, change);
    }

    fn manage_reservations(&mut self, unit: u32, id: u64, change: Change) {
        let home = self.homes.by_unit.entry(unit).or_default();
        home.waiting.push_back(Job::Management(id, Box::new(change)));
        self.start_jobs(unit);
    }

    /// What a nexus (handle) may do to a unit.
    pub(crate) fn access_of(&self, nexus: u32, unit: u32) -> Access {
        let Some(state) = self.reservations(unit) else { return Access::OPEN };
        // Who is not known any more gets nothing done either.
        self.reserving_nexus(nexus).map_or(Access::NO_TRANSFERS, |nexus| state.access(&nexus))
    }

    fn reserving_nexus(&self, handle: u32) -> Option<Nexus> {
        let known = self.nexuses.iter().find(|known| known.handle == handle)?;
        let targets = &self.units.message()?.targets;
        let target = targets.iter().find(|target| target.handle == known.target)?;
        let target_port = u16::try_from(target.relative_target_port).ok()?;
        let initiator = TransportId::of_port(&target.driver, known.initiator_port_id);
        Some(Nexus { initiator, target_port })
    }

    fn target_ports(&self) -> Vec<TargetPort> {
        let targets = self.units.message().map_or(&[][..], |message| &message.targets);
        let ports = targets.iter().filter_map(|target| {
            let id = target.relative_target_port.try_into().ok()?;
            Some(TargetPort { id, protocol: Protocol::of_driver(&target.driver) })
        });
        ports.collect()
    }

    /// PERSISTENT RESERVE IN and OUT, RESERVE and RELEASE. Who only asks waits for changes under way too: what it
    /// is told is in force, so that whoever finds a key gone knows that its owner writes no more.
    pub(crate) fn reservation_command(
        &mut self,
        command: &Forwarded,
        list: &[u8],
    ) -> Result<Verdict, Sense> {
        self.check_enforced()?;
        if is(Mutant::ReadBeforeEnforced)
            && command.cdb.first() == Some(&opcode::PERSISTENT_RESERVE_IN)
        {
            self.decide_reservation(Box::new(command.clone()), list);
            return Ok(Verdict::Later);
        }
        let home = self.homes.by_unit.entry(command.unit).or_default();
        home.waiting.push_back(Job::Command(Box::new(command.clone()), list.to_vec()));
        self.start_jobs(command.unit);
        Ok(Verdict::Later)
    }

    /// A card that does not know of access tables enforces nothing.
    fn check_enforced(&self) -> Result<(), Sense> {
        use lunar_offload_proto::control::feature::ACCESS_TABLES;
        let enforced = self.link.agreed.is_some_and(|agreed| agreed.features & ACCESS_TABLES != 0);
        if enforced { Ok(()) } else { Err(Sense::INVALID_COMMAND_OPERATION_CODE) }
    }

    /// The card has this boot id. Another one than before is a power on.
    pub(crate) fn on_card_boot(&mut self, boot_id: &[u8]) {
        let boot_id = boot_id.try_into().unwrap_or([0; 16]);
        self.homes.card_boot_id = Some(boot_id);
        self.push_all(|home| (home.boot_id != boot_id).then_some(Job::Boot(boot_id)));
    }

    /// Changes of which nobody knows yet whether they happen.
    pub(crate) fn changes_being_kept(&self) -> usize {
        let stages =
            self.homes.by_unit.values().filter_map(|home| Some(&home.current.as_ref()?.stage));
        stages.filter(|stage| matches!(stage, Stage::Keeping { .. })).count()
    }

    /// The card that was to enforce them, and whoever waited for them, are gone: what is kept comes with the first
    /// configuration of the card that started anew, and what its start brings comes before that.
    pub(crate) fn end_older_changes(&mut self) {
        let units: Vec<u32> = self.homes.by_unit.keys().copied().collect();
        for unit in units {
            let Some(home) = self.homes.by_unit.get_mut(&unit) else { continue };
            let is_older = |current: &mut Current| {
                let is_told = matches!(current.origin, Origin::Management(_));
                matches!(current.stage, Stage::Enforcing { .. }) && !is_told
            };
            drop(home.current.take_if(is_older));
            // What the start brings may wait behind them.
            home.waiting.retain(|job| !matches!(job, Job::Command(..)));
            self.start_jobs(unit);
        }
    }

    /// An I_T nexus is gone.
    pub(crate) fn on_nexus_loss(&mut self, nexus: u32) {
        let Some(nexus) = self.reserving_nexus(nexus) else { return };
        self.push_all(|home| home.may_be_reserved().then(|| Job::NexusLoss(nexus.clone())));
    }

    /// Every I_T nexus is gone, as the card started anew.
    pub(crate) fn on_every_nexus_loss(&mut self) {
        self.push_all(|home| home.may_be_reserved().then_some(Job::Reset));
    }

    /// This agent met the card: whoever reserved a unit by RESERVE and went while there was no agent is gone.
    pub(crate) fn forget_absent_holders(&mut self) {
        let handles: Vec<u32> = self.nexuses.iter().map(|nexus| nexus.handle).collect();
        let there: Vec<Nexus> =
            handles.into_iter().filter_map(|handle| self.reserving_nexus(handle)).collect();
        self.push_all(|home| {
            let holder = home.state.legacy_holder().filter(|holder| !there.contains(holder));
            holder.cloned().map(Job::NexusLoss)
        });
    }

    /// LOGICAL UNIT RESET.
    pub(crate) fn reset_reservations(&mut self, unit: u32) {
        let home = self.homes.by_unit.get_mut(&unit);
        if let Some(home) = home.filter(|home| home.may_be_reserved()) {
            home.waiting.push_back(Job::Reset);
            self.start_jobs(unit);
        }
    }

    fn push_all(&mut self, job: impl Fn(&Home) -> Option<Job>) {
        let units: Vec<u32> = self.homes.by_unit.keys().copied().collect();
        for unit in units {
            let Some(home) = self.homes.by_unit.get_mut(&unit) else { continue };
            if let Some(job) = job(home) {
                home.waiting.push_back(job);
                self.start_jobs(unit);
            }
        }
    }

    /// Begins what waits, until a change is on its way.
    fn start_jobs(&mut self, unit: u32) {
        while let Some(home) = self.homes.by_unit.get_mut(&unit)
            && home.current.is_none()
            && let Some(job) = home.next_job(self.applied_generation)
        {
            match job {
                Job::Command(command, list) => self.decide_reservation(command, &list),
                Job::Management(id, change) => {
                    self.keep(unit, Origin::Management(id), change, None)
                }
                Job::NexusLoss(nexus) => {
                    let changed = home.state.on_nexus_loss(&nexus);
                    self.note(unit, changed);
                }
                Job::Reset => {
                    let changed = home.state.on_logical_unit_reset();
                    self.note(unit, changed);
                }
                Job::Boot(boot_id) => {
                    home.boot_id = boot_id;
                    home.operation = None;
                    let changed = home.state.on_power_on() || home.kept;
                    self.note(unit, changed);
                }
            }
        }
    }

    fn decide_reservation(&mut self, command: Box<Forwarded>, list: &[u8]) {
        if !self.is_waited_for(&command) {
            return;
        }
        let Some(from) = self.reserving_nexus(command.nexus) else {
            let (ring, token, unit) = (command.ring, command.token, command.unit);
            return self.check_condition(ring, token, unit, &Sense::COMMAND_ABORTED);
        };
        let ports = self.target_ports();
        let none = Reservations::default();
        let state = self.reservations(command.unit).unwrap_or(&none);
        if command.cdb.first() == Some(&opcode::PERSISTENT_RESERVE_IN) {
            let mut parameters = vec![0; PARAMETERS_MAX];
            return match state.persistent_reserve_in(&command.cdb, &mut parameters) {
                Ok(length) => {
                    parameters.truncate(length);
                    self.end_good(&command, Ending { parameters, ..Ending::default() });
                }
                Err(ending) => self.end_reservation(&command, ending),
            };
        }
        let decided = match command.cdb.first() {
            Some(&opcode::PERSISTENT_RESERVE_OUT) => {
                state.persistent_reserve_out(&from, &command.cdb, list, &ports)
            }
            _ => state.reserve_or_release(&from, &command.cdb),
        };
        match decided {
            Ok(change) if !change.is_new && !change.needs_gate => {
                self.end_good(&command, Ending::default());
            }
            Ok(change) => {
                let id = self.operation_id(command.ring, command.token);
                let operation = Operation { id, effects: change.effects.clone() };
                let unit = command.unit;
                self.keep(unit, Origin::Command(command), Box::new(change), Some(operation));
            }
            Err(ending) => self.end_reservation(&command, ending),
        }
    }

    fn end_reservation(&mut self, command: &Forwarded, ending: CommandEnding) {
        match ending {
            CommandEnding::Status(status) => self.end_status(command, status),
            CommandEnding::Sense(sense) => {
                self.check_condition(command.ring, command.token, command.unit, &sense);
            }
        }
    }

    /// Has the shell keep what a change makes of the state.
    fn keep(
        &mut self,
        unit: u32,
        mut origin: Origin,
        change: Box<Change>,
        operation: Option<Operation>,
    ) {
        if is(Mutant::GoodBeforeKept) {
            self.tell_made(std::mem::replace(&mut origin, Origin::Nobody), 0);
        }
        let record = self.record(unit, change.state.clone(), operation.clone());
        let keep = self.ask_to_keep(unit, record);
        if let Some(home) = self.homes.by_unit.get_mut(&unit) {
            home.current =
                Some(Current { origin, stage: Stage::Keeping { keep, change, operation } });
        }
    }

    /// The state became another one by itself: the card is told, and the shell keeps it.
    fn note(&mut self, unit: u32, changed: bool) {
        let Some(home) = self.homes.by_unit.get(&unit).filter(|_| changed) else { return };
        let (state, operation) = (home.state.clone(), home.operation.clone());
        self.tell_card(unit, &Effects::default());
        let record = self.record(unit, state, operation);
        let keep = self.ask_to_keep(unit, record);
        if let Some(home) = self.homes.by_unit.get_mut(&unit) {
            let stage = Stage::Noting { keep };
            home.current = Some(Current { origin: Origin::Nobody, stage });
        }
    }

    fn record(&self, unit: u32, state: Reservations, operation: Option<Operation>) -> Record {
        let name = self.units.get(unit).map_or(String::new(), |unit| unit.name.clone());
        let known = self.homes.by_unit.get(&unit).map_or([0; 16], |home| home.boot_id);
        let boot_id = self.homes.card_boot_id.unwrap_or(known);
        Record { unit: name, boot_id, operation, reservations: state }
    }

    fn ask_to_keep(&mut self, unit: u32, record: Record) -> u64 {
        self.homes.last_keep = self.homes.last_keep.wrapping_add(1);
        let keep = self.homes.last_keep;
        if let Some(home) = self.homes.by_unit.get_mut(&unit) {
            home.boot_id = record.boot_id;
        }
        self.effects.push_back(Effect::KeepReservations { unit, keep, record: Box::new(record) });
        keep
    }

    /// The shell kept what [`Effect::KeepReservations`] gave it, or could not, for a reason in words: then what
    /// was kept before still is.
    pub fn on_reservations_kept(&mut self, unit: u32, keep: u64, result: Result<(), String>) {
        self.on_kept(unit, keep, result);
        if self.link.state == LinkState::HoldingBack {
            self.admit_card(self.link.holding_since_ns);
        }
    }

    fn on_kept(&mut self, unit: u32, keep: u64, result: Result<(), String>) {
        let Some(home) = self.homes.by_unit.get_mut(&unit) else { return };
        let asked = home.current.as_ref().map(|current| match current.stage {
            Stage::Keeping { keep, .. } | Stage::Noting { keep } => keep,
            Stage::Enforcing { .. } => 0,
        });
        if asked != Some(keep) {
            return;
        }
        let Some(Current { origin, stage }) = home.current.take() else { return };
        home.kept |= result.is_ok();
        if let Err(reason) = &result {
            let name = self.units.get(unit).map_or("(removed)", |unit| unit.name.as_str());
            let text = format!("device {name}: its reservations cannot be kept: {reason}");
            self.log(Level::Error, "reservations-not-kept", text);
        }
        match (stage, result) {
            (Stage::Keeping { change, operation, .. }, Ok(())) => {
                let Change { state, needs_gate, effects, .. } = *change;
                if let Some(home) = self.homes.by_unit.get_mut(&unit) {
                    (home.state, home.operation) = (state, operation);
                }
                if needs_gate {
                    return self.enforce(unit, origin, &effects);
                }
                self.tell_made(origin, 0);
            }
            (Stage::Keeping { .. }, Err(reason)) => match origin {
                Origin::Command(command) if self.is_waited_for(&command) => {
                    let sense = Sense::INSUFFICIENT_REGISTRATION_RESOURCES;
                    self.check_condition(command.ring, command.token, command.unit, &sense);
                }
                Origin::Management(id) => {
                    self.effects.push_back(Effect::ReservationsChanged { id, result: Err(reason) });
                }
                _ => {}
            },
            (Stage::Noting { .. } | Stage::Enforcing { .. }, _) => {}
        }
        self.start_jobs(unit);
    }

    /// Gives the card the access table of the state, and what comes with it; gives the generation that has them.
    fn tell_card(&mut self, unit: u32, effects: &Effects) -> u32 {
        if let Some(state) = self.reservations(unit) {
            let access = access_message(state);
            self.units.set_access(unit, access, &effects_message(effects));
            self.remember_card();
            self.send_configuration();
        }
        let generation = self.units.generation;
        if let Some(home) = self.homes.by_unit.get_mut(&unit) {
            home.told = generation;
        }
        generation
    }

    fn enforce(&mut self, unit: u32, mut origin: Origin, effects: &Effects) {
        if is(Mutant::GoodBeforeEnforced) {
            self.tell_made(std::mem::replace(&mut origin, Origin::Nobody), 0);
        }
        let generation = self.tell_card(unit, effects);
        self.stop_copies(unit, &effects.aborts);
        for nexus in &effects.aborts {
            self.forget_preventions(unit, nexus);
        }
        if let Some(home) = self.homes.by_unit.get_mut(&unit) {
            let stage = Stage::Enforcing { generation, aborts: effects.aborts.clone() };
            home.current = Some(Current { origin, stage });
        }
    }

    /// SPC-4 5.13.11.2.6: the preventions of medium removal of nexuses whose commands are aborted end.
    fn forget_preventions(&mut self, unit: u32, nexus: &Nexus) {
        let lives: Vec<(u32, u32)> =
            self.nexuses.iter().map(|known| (known.handle, known.generation)).collect();
        for (handle, generation) in lives {
            if self.reserving_nexus(handle).as_ref() == Some(nexus) {
                self.prevents.allow(unit, handle, generation);
            }
        }
    }

    /// Copies that may go on no more end with the step that they are at.
    fn stop_copies(&mut self, unit: u32, aborts: &[Nexus]) {
        for operation in self.kept_out_copies(unit, aborts) {
            let running = self.operations.get_mut(operation);
            if let Some(copy) = running.and_then(|running| running.work.copy_mut()) {
                copy.shut_out();
            }
        }
    }

    /// Copies from or to the unit's device for a nexus that is kept out of it, or named.
    fn kept_out_copies(&self, unit: u32, aborts: &[Nexus]) -> Vec<crate::operations::OperationId> {
        let Some(device) = self.units.get(unit).and_then(|unit| unit.device) else {
            return Vec::new();
        };
        if is(Mutant::CopyNotFenced) {
            return Vec::new();
        }
        let copies = self.operations.iter().filter(|(_, running)| !running.orphaned);
        let kept_out = copies.filter(|(_, running)| {
            running.work.copy().is_some_and(|copy| {
                let access = self.access_of(copy.nexus(), unit);
                let named = self.reserving_nexus(copy.nexus()).is_some_and(|n| aborts.contains(&n));
                named && copy.touches(device) || copy.is_kept_out(device, access)
            })
        });
        kept_out.map(|(operation, _)| operation).collect()
    }

    /// Ends the changes that the card has made, as far as nothing of the host's own is in their way, and goes on
    /// with what waited for them.
    pub(crate) fn end_reserving(&mut self) {
        let applied = self.applied_generation;
        let made = self.homes.by_unit.iter().filter_map(|(unit, home)| match &home.current {
            Some(Current { stage: Stage::Enforcing { generation, aborts }, .. }) => {
                let is_over =
                    *generation <= applied && self.kept_out_copies(*unit, aborts).is_empty();
                is_over.then_some((*unit, *generation))
            }
            _ => None,
        });
        let made: Vec<(u32, u32)> = made.collect();
        for (unit, generation) in made {
            let home = self.homes.by_unit.get_mut(&unit);
            if let Some(Current { origin, .. }) = home.and_then(|home| home.current.take()) {
                self.tell_made(origin, generation);
            }
        }
        let waiting = self.homes.by_unit.iter().filter(|(_, home)| !home.waiting.is_empty());
        let waiting: Vec<u32> = waiting.map(|(unit, _)| *unit).collect();
        for unit in waiting {
            self.start_jobs(unit);
        }
    }

    /// The card refused the configuration: what is kept stays, and comes with the next one; nobody is told that
    /// it is enforced.
    pub(crate) fn reservations_refused(&mut self, refused: u32) {
        let units: Vec<u32> = self.homes.by_unit.keys().copied().collect();
        for unit in units {
            let Some(home) = self.homes.by_unit.get_mut(&unit) else { continue };
            let is_refused = matches!(
                home.current,
                Some(Current { stage: Stage::Enforcing { generation, .. }, .. })
                    if generation <= refused
            );
            let Some(current) = home.current.take_if(|_| is_refused) else { continue };
            match current.origin {
                Origin::Command(command) if self.is_waited_for(&command) => {
                    let sense = Sense::INTERNAL_TARGET_FAILURE;
                    self.check_condition(command.ring, command.token, command.unit, &sense);
                }
                Origin::Management(id) => {
                    let result = Err("the card refused the configuration".to_owned());
                    self.effects.push_back(Effect::ReservationsChanged { id, result });
                }
                _ => {}
            }
            self.start_jobs(unit);
        }
    }

    fn tell_made(&mut self, origin: Origin, required_generation: u32) {
        match origin {
            Origin::Command(command) => {
                if self.is_waited_for(&command) {
                    let ending = Ending { required_generation, ..Ending::default() };
                    self.end_good(&command, ending);
                }
            }
            Origin::Reconciled { ring, life, token } => {
                let alive =
                    |ring: &crate::rings::Ring| ring.life == life && ring.state == RingState::Open;
                if self.ring(ring).is_some_and(alive) {
                    let mut entry = CompletionEntry::new(token, Outcome::Forwarded);
                    entry.required_generation.set(required_generation);
                    self.publish(ring, entry, None);
                }
            }
            Origin::Management(id) => {
                self.effects.push_back(Effect::ReservationsChanged { id, result: Ok(()) });
            }
            Origin::Nobody => {}
        }
    }

    /// The unit whose reservations a command in flight made what they are, as an earlier agent kept them: it is
    /// not run a second time.
    pub(crate) fn kept_by(&self, ring: u16, token: u64) -> Option<u32> {
        let id = self.operation_id(ring, token);
        let is_one = |home: &Home| {
            home.current.is_none() && home.operation.as_ref().is_some_and(|kept| kept.id == id)
        };
        let found = self.homes.by_unit.iter().find(|(_, home)| is_one(home));
        found.map(|(unit, _)| *unit)
    }

    /// Sees to the effects of the command that [`Self::kept_by`] found, and answers it.
    pub(crate) fn resume_reservation(&mut self, unit: u32, ring: u16, token: u64) {
        let home = self.homes.by_unit.get(&unit);
        let effects = home.and_then(|home| Some(home.operation.as_ref()?.effects.clone()));
        let life = self.ring(ring).map_or(0, |ring| ring.life);
        let origin = Origin::Reconciled { ring, life, token };
        self.enforce(unit, origin, &effects.unwrap_or_default());
    }

    /// A command's name in records: no other command of this card has it.
    fn operation_id(&self, ring: u16, token: u64) -> [u8; 16] {
        let epoch = self.card_epoch.unwrap_or(0).to_le_bytes();
        let mut id = [0; 16];
        let bytes = token.to_le_bytes().into_iter().chain(ring.to_le_bytes()).chain(epoch);
        for (to, from) in id.iter_mut().zip(bytes) {
            *to = from;
        }
        id
    }

    fn is_waited_for(&self, command: &Forwarded) -> bool {
        self.ring(command.ring)
            .is_some_and(|ring| ring.life == command.life && ring.state == RingState::Open)
    }
}

impl Home {
    /// What comes next; `None` also when it is a command and the card does not have the state yet.
    fn next_job(&mut self, applied_generation: u32) -> Option<Job> {
        let is_told = self.told <= applied_generation;
        self.waiting.pop_front_if(|job| is_told || !matches!(job, Job::Command(..)))
    }

    /// Whether somebody has the unit by RESERVE, or may have it soon.
    fn may_be_reserved(&self) -> bool {
        self.state.legacy_holder().is_some() || self.current.is_some() || !self.waiting.is_empty()
    }
}

fn access_message(state: &Reservations) -> Option<AccessTable> {
    let table = state.access_table();
    let named = table.named().map(|(nexus, access)| NexusAccess {
        transport_id: nexus.initiator.as_bytes().to_vec(),
        relative_target_port: nexus.target_port.into(),
        access: access.bits().into(),
    });
    let message = AccessTable { others: table.others().bits().into(), named: named.collect() };
    (message != AccessTable::default()).then_some(message)
}

/// Generations are the configuration's to give.
fn effects_message(effects: &Effects) -> Vec<AccessEffect> {
    let of = |nexus: &Nexus, attention, abort| AccessEffect {
        generation: 0,
        transport_id: nexus.initiator.as_bytes().to_vec(),
        relative_target_port: nexus.target_port.into(),
        attention,
        abort,
    };
    let attentions = effects.attentions.iter().map(|(nexus, attention)| {
        let ascq = match attention {
            UnitAttention::ReservationsPreempted => 3,
            UnitAttention::ReservationsReleased => 4,
            UnitAttention::RegistrationsPreempted => 5,
            _ => 0,
        };
        of(nexus, ascq, false)
    });
    attentions.chain(effects.aborts.iter().map(|nexus| of(nexus, 0, true))).collect()
}
