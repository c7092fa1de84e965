//! PERSISTENT RESERVE OUT: what each service action makes of the state, and whom it concerns (SPC-4
//! 5.13.7 to 5.13.11).

use alloc::vec::Vec;

use super::command::{
    ALL_TG_PT_REFUSED, BasicList, MoveList, Out, OutAction, SPEC_I_PT_REFUSED, in_list,
};
use super::state::{
    Nexus, REGISTRATIONS_MAX, Reservation, ReservationType, Reservations, TargetPort,
};
use crate::device_server::Ending;
use crate::sense::Sense;
use crate::status::Status;
use crate::unit_attention::UnitAttention;

/// What a command that ends with GOOD status makes of the reservations. Nothing has changed yet: the
/// caller keeps `state` on disk and has the card enforce it, then makes it the unit's state, and then
/// answers. One that cannot do so drops it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The new state.
    pub state: Reservations,
    /// It differs from the old one, be it by PRGENERATION alone: it has to be kept.
    pub is_new: bool,
    /// The card must go through a gate before the answer: some nexus may do other things than before,
    /// or has unit attentions or aborted commands to come.
    pub needs_gate: bool,
    /// What comes with it, before the answer.
    pub effects: Effects,
}

/// What a change does besides changing the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Unit attention conditions to establish; never for the nexus that sent the command. They go to the
    /// nexuses that are logged in; who logs in later finds the power on condition of every login.
    pub attentions: Vec<(Nexus, UnitAttention)>,
    /// Nexuses all of whose commands to the unit are aborted, but for the one that does it; those
    /// nexuses' copies and preventions of medium removal end too (SPC-4 5.13.11.2.6).
    pub aborts: Vec<Nexus>,
}

impl Effects {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.attentions.is_empty() && self.aborts.is_empty()
    }

    fn tell<'a>(
        &mut self,
        nexuses: impl IntoIterator<Item = &'a Nexus>,
        but: &Nexus,
        attention: UnitAttention,
    ) {
        let others = nexuses.into_iter().filter(|&nexus| nexus != but);
        self.attentions.extend(others.map(|nexus| (nexus.clone(), attention)));
    }
}

impl Change {
    pub(super) fn new(before: &Reservations, state: Reservations, effects: Effects) -> Self {
        let needs_gate = !effects.is_empty() || before.access_table() != state.access_table();
        Self { is_new: *before != state, needs_gate, state, effects }
    }

    /// The command ends well and does nothing.
    pub(super) fn none(state: &Reservations) -> Self {
        let effects = Effects::default();
        Self { state: state.clone(), is_new: false, needs_gate: false, effects }
    }
}

pub(super) const CONFLICT: Ending = Ending::Status(Status::ReservationConflict);

impl From<Sense> for Ending {
    fn from(sense: Sense) -> Self {
        Self::Sense(sense)
    }
}

/// A PERSISTENT RESERVE OUT and who sent it.
struct Request<'a> {
    from: &'a Nexus,
    command: Out,
    data_out: &'a [u8],
    ports: &'a [TargetPort],
}

impl Reservations {
    /// Decides a PERSISTENT RESERVE OUT from `from` with the parameter list in `data_out`. `ports` are the
    /// target ports of the SCSI target device, for ALL_TG_PT and REGISTER AND MOVE.
    ///
    /// # Errors
    /// How the command ends instead: RESERVATION CONFLICT for a nexus that is not registered, a wrong
    /// key, and whatever another holder keeps out (SPC-4 5.13.1, the table of service actions); sense data
    /// with a field pointer for what is wrong with the command. Nothing changes then.
    pub fn persistent_reserve_out(
        &self,
        from: &Nexus,
        cdb: &[u8],
        data_out: &[u8],
        ports: &[TargetPort],
    ) -> Result<Change, Ending> {
        let command = Out::parse(cdb)?;
        let action = command.action;
        // SPC-2 5.5.1: whoever reserved it by RESERVE, no nexus comes through.
        if self.legacy_holder.is_some() {
            return Err(CONFLICT);
        }
        if self.lost && action != OutAction::ReplaceLost {
            return Err(Sense::RESERVATION_INFORMATION_LOST.into());
        }
        let request = Request { from, command, data_out, ports };
        match action {
            OutAction::Register | OutAction::RegisterAndIgnore => self.register(&request),
            OutAction::ReplaceLost => self.replace_lost(&request),
            OutAction::Reserve => self.reserve(&request),
            OutAction::Release => self.release(&request),
            OutAction::Clear => self.clear_registered(&request),
            OutAction::Preempt | OutAction::PreemptAndAbort => self.preempt(&request),
            OutAction::RegisterAndMove => self.register_and_move(&request),
        }
    }

    /// REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4 5.13.7), unregistering included (5.13.11.2.3).
    fn register(&self, request: &Request<'_>) -> Result<Change, Ending> {
        let list = BasicList::parse(&request.command, request.data_out)?;
        let registered = self.registrations.get(request.from).copied();
        let checks_key = request.command.action == OutAction::Register;
        if checks_key && list.key != registered.unwrap_or(0) {
            return Err(CONFLICT);
        }
        if registered.is_some() && list.listed.is_some() {
            return Err(SPEC_I_PT_REFUSED.into());
        }
        if registered.is_none() && list.action_key == 0 && checks_key {
            return Ok(Change::none(self));
        }
        let own = self.own_nexuses(request, &list, checks_key)?;
        // Nobody to unregister, at no port.
        let known = |nexus: &Nexus| self.registrations.contains_key(nexus);
        if list.action_key == 0 && !own.iter().any(known) {
            return Ok(Change::none(self));
        }
        let listed = self.listed_nexuses(request, &list)?;
        let mut next = self.clone();
        let mut effects = Effects::default();
        if list.action_key == 0 {
            next.registrations.retain(|nexus, _| !own.contains(nexus));
            next.release_without_holder(request.from, &mut effects);
        } else {
            next.registrations
                .extend(own.into_iter().chain(listed).map(|nexus| (nexus, list.action_key)));
            if next.registrations.len() > REGISTRATIONS_MAX {
                return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into());
            }
        }
        next.aptpl = list.aptpl;
        next.count();
        Ok(Change::new(self, next, effects))
    }

    /// The nexuses of the sender's initiator port that a registration applies to. With ALL_TG_PT the
    /// request comes to every target port as if it had been received there, except that all of it fails
    /// where one would conflict; a port at which the initiator has the state that the request makes, or
    /// none, is no conflict.
    fn own_nexuses(
        &self,
        request: &Request<'_>,
        list: &BasicList,
        checks_key: bool,
    ) -> Result<Vec<Nexus>, Ending> {
        let initiator = &request.from.initiator;
        let at = |target_port| Nexus { initiator: initiator.clone(), target_port };
        let nexuses: Vec<_> = request.target_ports(list).into_iter().map(at).collect();
        let fits = |nexus: &Nexus| match self.registrations.get(nexus) {
            Some(&key) if checks_key => key == list.key || key == list.action_key,
            _ => true,
        };
        if nexuses.iter().all(fits) { Ok(nexuses) } else { Err(CONFLICT) }
    }

    /// The nexuses of the initiator ports that SPEC_I_PT lists, none of which may be registered.
    fn listed_nexuses(
        &self,
        request: &Request<'_>,
        list: &BasicList,
    ) -> Result<Vec<Nexus>, Ending> {
        let mut nexuses = Vec::new();
        for (initiator, place) in list.listed.iter().flatten() {
            if initiator == &request.from.initiator {
                continue;
            }
            if initiator.protocol() != request.from.initiator.protocol() {
                return Err(in_list(*place, None).into());
            }
            for target_port in request.target_ports(list) {
                let nexus = Nexus { initiator: initiator.clone(), target_port };
                if self.registrations.contains_key(&nexus) {
                    return Err(in_list(*place, None).into());
                }
                nexuses.push(nexus);
            }
            // What is too much is not gathered first.
            if nexuses.len() > REGISTRATIONS_MAX {
                return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into());
            }
        }
        Ok(nexuses)
    }

    /// RESERVE (SPC-4 5.13.9).
    fn reserve(&self, request: &Request<'_>) -> Result<Change, Ending> {
        self.check_registered(request)?;
        if self.reservation.is_some() && !self.is_holder(request.from) {
            return Err(CONFLICT);
        }
        self.checked_list(request)?;
        if let Some(held) = &self.reservation {
            let same = held.kind as u8 == request.command.scope_and_type();
            return if same { Ok(Change::none(self)) } else { Err(CONFLICT) };
        }
        let kind = request.command.reservation_type()?;
        let reservation = Some(Reservation::of(kind, request.from));
        let next = Self { reservation, ..self.clone() };
        Ok(Change::new(self, next, Effects::default()))
    }

    /// RELEASE (SPC-4 5.13.11.2.2).
    fn release(&self, request: &Request<'_>) -> Result<Change, Ending> {
        self.check_registered(request)?;
        self.checked_list(request)?;
        let Some(held) = self.reservation.as_ref().filter(|_| self.is_holder(request.from)) else {
            return Ok(Change::none(self));
        };
        if held.kind as u8 != request.command.scope_and_type() {
            return Err(Sense::INVALID_RELEASE.into());
        }
        let mut effects = Effects::default();
        if held.kind.admits_registrants() {
            let registered = self.registrations.keys();
            effects.tell(registered, request.from, UnitAttention::ReservationsReleased);
        }
        let next = Self { reservation: None, ..self.clone() };
        Ok(Change::new(self, next, effects))
    }

    /// CLEAR (SPC-4 5.13.11.2.7).
    fn clear_registered(&self, request: &Request<'_>) -> Result<Change, Ending> {
        self.check_registered(request)?;
        self.checked_list(request)?;
        Ok(self.cleared(Some(request.from)))
    }

    /// What `lunar pr clear` makes of it: nothing is registered or reserved any more, by whichever means, and
    /// information that was lost is done without.
    #[must_use]
    pub fn clear(&self) -> Change {
        self.cleared(None)
    }

    fn cleared(&self, from: Option<&Nexus>) -> Change {
        let preempted = UnitAttention::ReservationsPreempted;
        let told = self.registrations.keys().filter(|&nexus| Some(nexus) != from);
        let attentions = told.map(|nexus| (nexus.clone(), preempted)).collect();
        let mut next = Self { generation: self.generation, aptpl: self.aptpl, ..Self::default() };
        next.count();
        Change::new(self, next, Effects { attentions, aborts: Vec::new() })
    }

    /// PREEMPT and PREEMPT AND ABORT (SPC-4 5.13.11.2.4 to 5.13.11.2.6).
    fn preempt(&self, request: &Request<'_>) -> Result<Change, Ending> {
        self.check_registered(request)?;
        let list = self.checked_list(request)?;
        let identified: Vec<&Nexus> = match list.action_key {
            0 => self.registrations.keys().collect(),
            wanted => {
                let found = self.registrations.iter().filter(|&(_, &key)| key == wanted);
                found.map(|(nexus, _)| nexus).collect()
            }
        };
        let mut change = match &self.reservation {
            Some(held) if self.identifies_holder(held, list.action_key) => {
                let kind = request.command.reservation_type()?;
                self.replace_reservation(request.from, held.kind, kind, &identified)
            }
            _ if list.action_key == 0 => return Err(in_list(8, None).into()),
            _ if identified.is_empty() => return Err(CONFLICT),
            _ => self.remove_registrations(request.from, &identified),
        };
        if request.command.action == OutAction::PreemptAndAbort {
            change.effects.aborts = identified.into_iter().cloned().collect();
            change.needs_gate = true;
        }
        Ok(change)
    }

    /// SPC-4 5.13.11.2.4.1, preempting actions: whether the key stands for the reservation itself.
    fn identifies_holder(&self, held: &Reservation, action_key: u64) -> bool {
        match &held.holder {
            None => action_key == 0,
            // No registered key is zero.
            Some(holder) => self.registrations.get(holder) == Some(&action_key),
        }
    }

    /// SPC-4 5.13.11.2.4.3: the preempting nexus keeps its registration, whatever its key.
    fn replace_reservation(
        &self,
        from: &Nexus,
        before: ReservationType,
        kind: ReservationType,
        identified: &[&Nexus],
    ) -> Change {
        let mut next = self.clone();
        for &nexus in identified.iter().filter(|&&nexus| nexus != from) {
            next.registrations.remove(nexus);
        }
        next.reservation = Some(Reservation::of(kind, from));
        next.count();
        let mut effects = Effects::default();
        let removed = identified.iter().copied();
        effects.tell(removed, from, UnitAttention::RegistrationsPreempted);
        if kind != before {
            let left = next.registrations.keys();
            effects.tell(left, from, UnitAttention::ReservationsReleased);
        }
        Change::new(self, next, effects)
    }

    /// SPC-4 5.13.11.2.5: the preempting nexus too loses its registration if it has the key.
    fn remove_registrations(&self, from: &Nexus, identified: &[&Nexus]) -> Change {
        let mut next = self.clone();
        for &nexus in identified {
            next.registrations.remove(nexus);
        }
        next.count();
        let mut effects = Effects::default();
        let removed = identified.iter().copied();
        effects.tell(removed, from, UnitAttention::RegistrationsPreempted);
        next.release_without_holder(from, &mut effects);
        Change::new(self, next, effects)
    }

    /// REGISTER AND MOVE (SPC-4 5.13.8).
    fn register_and_move(&self, request: &Request<'_>) -> Result<Change, Ending> {
        let key = self.check_registered(request)?;
        match &self.reservation {
            Some(held) if held.holder.as_ref() != Some(request.from) => return Err(CONFLICT),
            _ => {}
        }
        let list = MoveList::parse(&request.command, request.data_out)?;
        if list.key != key {
            return Err(CONFLICT);
        }
        let Some(held) = &self.reservation else {
            return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(4)).into());
        };
        if list.action_key == 0 {
            return Err(in_list(MoveList::ACTION_KEY_BYTE, None).into());
        }
        if list.initiator == request.from.initiator {
            return Err(in_list(MoveList::INITIATOR_BYTE, None).into());
        }
        let Some(port) = request.ports.iter().find(|port| port.id == list.target_port) else {
            return Err(in_list(MoveList::TARGET_PORT_BYTE, None).into());
        };
        if port.protocol != list.initiator.protocol() {
            return Err(in_list(MoveList::INITIATOR_BYTE, None).into());
        }
        let to = Nexus { initiator: list.initiator, target_port: list.target_port };
        let mut next = self.clone();
        if list.unregister {
            next.registrations.remove(request.from);
        }
        next.registrations.insert(to.clone(), list.action_key);
        if next.registrations.len() > REGISTRATIONS_MAX {
            return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into());
        }
        next.reservation = Some(Reservation { kind: held.kind, holder: Some(to) });
        next.aptpl = list.aptpl;
        next.count();
        Ok(Change::new(self, next, Effects::default()))
    }

    /// REPLACE LOST RESERVATION (SPC-4 5.13.11.3).
    fn replace_lost(&self, request: &Request<'_>) -> Result<Change, Ending> {
        if !self.lost {
            self.check_registered(request)?;
            return Err(Sense::INVALID_RELEASE.into());
        }
        let list = BasicList::parse(&request.command, request.data_out)?;
        if list.all_target_ports {
            return Err(ALL_TG_PT_REFUSED.into());
        }
        if list.key != 0 {
            return Err(in_list(0, None).into());
        }
        if list.action_key == 0 {
            return Err(in_list(8, None).into());
        }
        let kind = request.command.reservation_type()?;
        let next = Self {
            registrations: [(request.from.clone(), list.action_key)].into(),
            reservation: Some(Reservation::of(kind, request.from)),
            aptpl: list.aptpl,
            ..Self::default()
        };
        Ok(Change::new(self, next, Effects::default()))
    }

    /// The sender's key; a nexus that is not registered gets no further.
    fn check_registered(&self, request: &Request<'_>) -> Result<u64, Ending> {
        self.registrations.get(request.from).copied().ok_or(CONFLICT)
    }

    /// The parameter list, with the key that the sender is registered with.
    fn checked_list(&self, request: &Request<'_>) -> Result<BasicList, Ending> {
        let list = BasicList::parse(&request.command, request.data_out)?;
        if self.registrations.get(request.from) == Some(&list.key) {
            Ok(list)
        } else {
            Err(CONFLICT)
        }
    }

    /// Releases a reservation whose last holder is registered no more (SPC-4 5.13.10); the others hear of
    /// it where they had a part in it (5.13.11.2.3).
    fn release_without_holder(&mut self, from: &Nexus, effects: &mut Effects) {
        let gone = |held: &mut Reservation| match &held.holder {
            Some(holder) => !self.registrations.contains_key(holder),
            None => self.registrations.is_empty(),
        };
        if let Some(held) = self.reservation.take_if(gone)
            && held.kind.admits_registrants()
        {
            let left = self.registrations.keys();
            effects.tell(left, from, UnitAttention::ReservationsReleased);
        }
    }

    /// PRGENERATION goes on (SPC-4 6.15.2).
    fn count(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }
}

impl Request<'_> {
    /// The target ports that a registration applies to, the one that it came through among them.
    fn target_ports(&self, list: &BasicList) -> Vec<u16> {
        let protocol = self.from.initiator.protocol();
        let reachable = self.ports.iter().filter(|port| port.protocol == protocol);
        let mut ids = Vec::from([self.from.target_port]);
        if list.all_target_ports {
            ids.extend(reachable.map(|port| port.id).filter(|&id| id != self.from.target_port));
        }
        ids
    }
}
