//! Target port groups (SPC-6 5.17): the home of their states. The configuration gives the first ones; then
//! initiators change them with SET TARGET PORT GROUPS, and the management does. The card enforces them, and answers
//! REPORT TARGET PORT GROUPS from its snapshot.
//!
//! A SET TARGET PORT GROUPS ends when the card reports the change as made: then every poll group works under it,
//! every other nexus has its unit attention, and what a state no longer allows is over.

use lunar_offload_proto::alua::AccessState;
use lunar_offload_proto::control::{DeviceGroup, TargetPortGroup};
use lunar_scsi::alua;
use lunar_scsi::sense::Sense;

use crate::core::Core;
use crate::effect::Level;
use crate::forwarded::{Ending, Forwarded};
use crate::rings::RingState;
use crate::units::PortState;

/// STATUS CODE: SET TARGET PORT GROUPS changed the state.
const EXPLICIT: u32 = alua::StatusCode::Explicit as u32;
/// STATUS CODE: the target changed it.
const IMPLICIT: u32 = alua::StatusCode::Implicit as u32;

/// A SET TARGET PORT GROUPS that waits for the card to report its change.
#[derive(Debug)]
pub(crate) struct Pending {
    command: Forwarded,
    generation: u32,
}

impl Core {
    /// The device groups with the states that are in force or on their way to the card.
    #[must_use]
    pub fn device_groups(&self) -> &[DeviceGroup] {
        self.units.message().map_or(&[], |message| &message.device_groups)
    }

    /// Changes what is given of a target port group, for the management. Gives the configuration generation that
    /// has it, which may be in force already; states stay until the next change, also over configurations.
    ///
    /// # Errors
    /// There is no such group, in words.
    pub fn set_target_port_group(
        &mut self,
        device_group: &str,
        target_group: &str,
        state: Option<AccessState>,
        preferred: Option<bool>,
    ) -> Result<u32, String> {
        let names = |names: Vec<&str>| {
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        let groups = self.device_groups();
        let Some(group) = groups.iter().find(|group| group.name == device_group) else {
            let known = names(groups.iter().map(|group| group.name.as_str()).collect());
            return Err(format!("there is no device group `{device_group}`; there are: {known}"));
        };
        let Some(own) = group.groups.iter().find(|own| own.name == target_group) else {
            let known = names(group.groups.iter().map(|own| own.name.as_str()).collect());
            return Err(format!(
                "device group `{device_group}` has no target group `{target_group}`; it has: {known}"
            ));
        };
        let before = PortState::of(own);
        let mut after = PortState { preferred: preferred.unwrap_or(before.preferred), ..before };
        if let Some(state) = state.filter(|state| u32::from(state.code()) != before.state) {
            (after.state, after.status_code) = (state.code().into(), IMPLICIT);
        }
        if self.units.set_states(device_group, &[(own.id, after)], None) {
            self.announce();
            let text = format!(
                "device group {device_group}: target group {target_group} is {}{} now",
                name(after.state),
                if after.preferred { ", preferred" } else { "" }
            );
            self.log(Level::Info, "access-state", text);
        }
        Ok(self.units.generation)
    }

    /// SET TARGET PORT GROUPS; `None` when its end comes later.
    pub(crate) fn set_target_port_groups(
        &mut self,
        command: &Forwarded,
        list: &[u8],
    ) -> Result<Option<Ending>, Sense> {
        const UNKNOWN: Sense = Sense::INVALID_COMMAND_OPERATION_CODE;
        let message = self.units.message().ok_or(UNKNOWN)?;
        let unit = message.units.iter().find(|unit| unit.handle == command.unit);
        let group = message.device_groups.iter().find(|group| group.units.contains(&command.unit));
        let group = group.filter(|_| unit.is_some_and(|unit| unit.explicit_alua)).ok_or(UNKNOWN)?;
        let known = |id: u16| group.groups.iter().find(|own| own.id == u32::from(id));
        let mut changes = Vec::new();
        for change in alua::changes(&command.cdb, list, &|id| known(id).is_some())? {
            let (Some(own), state) = (known(change.group), change.state as u32) else { continue };
            if own.state == state {
                continue;
            }
            if own.ports.iter().all(|port| port.target == 0) {
                // What another node's ports do is not this one's to say.
                return Err(Sense::SET_TARGET_PORT_GROUPS_FAILED);
            }
            let state = PortState { state, status_code: EXPLICIT, ..PortState::of(own) };
            changes.push((own.id, state));
        }
        let told = changes.iter().map(|(id, state)| format!("{id} to {}", name(state.state)));
        let text = format!(
            "device group {}: nexus {} set target port group {}",
            group.name,
            command.nexus,
            told.collect::<Vec<_>>().join(", ")
        );
        let device_group = group.name.clone();
        // The card may come to see one snapshot for several changes. Who made the last of them is told as everybody,
        // then, or it would not hear of the others.
        let alone = self.applied_generation == self.units.generation;
        let by = alone.then_some((command.nexus, command.unit));
        if !self.units.set_states(&device_group, &changes, by) {
            return Ok(Some(Ending::default()));
        }
        self.announce();
        self.log(Level::Info, "access-state", text);
        let generation = self.units.generation;
        self.pending_states.push(Pending { command: command.clone(), generation });
        Ok(None)
    }

    /// The card reports every generation up to `generation` as made, or `refused` it: what waited for it ends.
    pub(crate) fn end_states(&mut self, generation: u32, refused: bool) {
        let pending = std::mem::take(&mut self.pending_states);
        let (over, waiting) = pending.into_iter().partition(|one| one.generation <= generation);
        self.pending_states = waiting;
        for Pending { command, generation } in over {
            let (ring, life) = (command.ring, command.life);
            let alive = self
                .ring(ring)
                .is_some_and(|ring| ring.life == life && ring.state == RingState::Open);
            match (alive, refused) {
                (false, _) => {}
                (true, false) => {
                    let ending = Ending { required_generation: generation, ..Ending::default() };
                    self.end_good(&command, ending);
                }
                (true, true) => {
                    let sense = Sense::SET_TARGET_PORT_GROUPS_FAILED;
                    self.check_condition(ring, command.token, command.unit, &sense);
                }
            }
        }
    }

    /// What the card goes on with since an agent before this one: the states of target port groups that changed
    /// since that one's configuration, unless this one's begins with another state. A card that was told a
    /// configuration by this agent has nothing to say that this one does not know better.
    pub(crate) fn adopt_states(&mut self, kept: &[DeviceGroup]) {
        if self.applied_generation != 0 {
            return;
        }
        let mut adopted = false;
        for group in kept {
            let own = self.device_groups().iter().find(|own| own.name == group.name);
            let own = own.map_or(&[][..], |own| &own.groups);
            let pairs = group.groups.iter().filter_map(|kept| {
                let own = own.iter().find(|own| own.id == kept.id)?;
                (own.configured_state == kept.configured_state).then_some((own, kept))
            });
            let states: Vec<(u32, PortState)> = pairs
                .map(|(own, kept)| {
                    let (state, status_code) = (kept.state, kept.status_code);
                    (own.id, PortState { state, status_code, ..PortState::of(own) })
                })
                .collect();
            adopted |= self.units.set_states(&group.name, &states, None);
        }
        if adopted {
            self.remember_card();
        }
    }

    fn announce(&mut self) {
        self.remember_card();
        self.send_configuration();
    }
}

/// Whether a target reaches the medium of a unit.
pub(crate) fn reaches_medium(groups: &[DeviceGroup], target: u32, unit: u32) -> bool {
    let groups = groups.iter().find(|group| group.units.contains(&unit));
    let own = groups.and_then(|group| group.groups.iter().find(|own| has(own, target)));
    let state = own.and_then(|own| u8::try_from(own.state).ok());
    state.and_then(alua::AccessState::from_code).is_none_or(alua::AccessState::reaches_medium)
}

fn has(group: &TargetPortGroup, target: u32) -> bool {
    group.ports.iter().any(|port| port.target == target)
}

fn name(state: u32) -> &'static str {
    AccessState::from_code(state).map_or("unknown", AccessState::name)
}
