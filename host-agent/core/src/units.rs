//! The configuration as the core needs it: units with the handlers behind them, and targets. Plain
//! data; where it comes from is the agent's affair.

use std::collections::{BTreeMap, BTreeSet};

use lunar_offload_proto::control::{
    self, AccessEffect, AccessTable, BackendKind, DeviceGroup, LogicalUnit, Target,
    TargetPortGroup, host_command,
};
use lunar_scsi::device_server::ModeParameters;
use lunar_scsi::unit as scsi;

use crate::forwarded::{HOST_COMMANDS, RESERVATIONS};

/// The shell's name for an open handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceHandle(pub u32);

/// A logical unit and who executes it.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitConfiguration {
    /// As the card gets it. Its handle names the same device as long as the card lives, over
    /// restarts of the agent too: entries in the rings are made with it.
    pub unit: LogicalUnit,
    /// The handler. `None` for a unit that the card serves alone, and for one whose handler could not
    /// be opened: its operations end as unavailable.
    pub device: Option<DeviceHandle>,
}

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configuration {
    /// The logical units; handles are unique.
    pub units: Vec<UnitConfiguration>,
    /// The targets, passed on to the card.
    pub targets: Vec<Target>,
    /// The device groups, in the states that they begin with.
    pub device_groups: Vec<DeviceGroup>,
}

/// Why a configuration is not taken. The one before stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationError {
    /// Two units, or unit 0.
    #[error("device {name}: handle {handle} is used twice or is 0; give every device its own")]
    Handle {
        /// The unit's name.
        name: String,
        /// The handle.
        handle: u32,
    },
    /// The geometry cannot be.
    #[error(
        "device {name}: {blocks} blocks of {block_bytes} bytes; blocks have 512 to 65536 bytes (a power of two), \
         a device has at least one (a removable one may have none) and at most 2^63 bytes"
    )]
    Geometry {
        /// The unit's name.
        name: String,
        /// Bytes of a block.
        block_bytes: u32,
        /// Number of blocks.
        blocks: u64,
    },
    /// What initiators would be told of it cannot be.
    #[error("device {name}: {reason}; correct the attribute")]
    Identity {
        /// The unit's name.
        name: String,
        /// Why, with the value.
        reason: String,
    },
    /// A handler behind a unit that the card serves alone.
    #[error(
        "device {name}: the card serves it alone, so it has no handler; leave one of the two out"
    )]
    Handler {
        /// The unit's name.
        name: String,
    },
    /// Too many units.
    #[error("{count} devices, at most {limit} are possible")]
    TooMany {
        /// How many there are.
        count: usize,
        /// The limit.
        limit: u32,
    },
}

/// What the data path needs of one ring-backed unit.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) device: Option<DeviceHandle>,
    pub(crate) block_bytes: u32,
    /// Zero without a medium.
    pub(crate) blocks: u64,
    /// Those of the medium that is there, ejected or not.
    medium_blocks: u64,
    /// The first generation with this medium: what was asked for before meant another.
    pub(crate) medium_since: u32,
    pub(crate) read_only: bool,
    /// Whatever MODE SELECT says.
    backing_read_only: bool,
    pub(crate) thin: bool,
    /// As its device server knows it.
    pub(crate) scsi: scsi::LogicalUnit,
}

/// The units in force, with the message that told the card.
#[derive(Debug, Default)]
pub(crate) struct Units {
    pub(crate) generation: u32,
    ring_backed: BTreeMap<u32, Unit>,
    /// What MODE SELECT changed, over configurations; an agent starts without.
    modes: BTreeMap<u32, ModeParameters>,
    /// Units whose medium an initiator ejected; an agent starts with all loaded.
    ejected: BTreeSet<u32>,
    /// What became of target port groups, by device group and id, over configurations; an agent starts without.
    states: BTreeMap<(String, u32), PortState>,
    /// What reservations let nexuses do to units, over configurations, and what came with the changes that the card
    /// has not made yet.
    access: BTreeMap<u32, (Option<AccessTable>, Vec<AccessEffect>)>,
    message: Option<control::Configuration>,
    /// Whether the card was told the message with this generation.
    pub(crate) sent: bool,
}

impl Units {
    /// No configuration yet; generations go on after `generation`.
    pub(crate) fn after(generation: u32) -> Self {
        Self { generation, ..Self::default() }
    }

    /// Replaces the configuration; gives its generation.
    pub(crate) fn replace(
        &mut self,
        new: Configuration,
        units_max: u32,
    ) -> Result<u32, ConfigurationError> {
        let count = new.units.len();
        if u32::try_from(count).is_ok_and(|count| count <= units_max) {
            self.install(new)
        } else {
            Err(ConfigurationError::TooMany { count, limit: units_max })
        }
    }

    fn install(&mut self, new: Configuration) -> Result<u32, ConfigurationError> {
        let mut ring_backed = BTreeMap::new();
        let generation = self.generation.saturating_add(1);
        let mut handles = BTreeSet::new();
        let mut units = Vec::with_capacity(new.units.len());
        for UnitConfiguration { mut unit, device } in new.units {
            let backing_read_only = unit.read_only;
            if let Some(mode) = self.modes.get(&unit.handle) {
                set_mode(&mut unit, mode);
            }
            if let Some((access, effects)) = self.access.get(&unit.handle) {
                (unit.access, unit.access_effects) = (access.clone(), effects.clone());
            }
            let name = unit.name.clone();
            if unit.handle == 0 || !handles.insert(unit.handle) {
                return Err(ConfigurationError::Handle { name, handle: unit.handle });
            }
            let (block_bytes, blocks) = (unit.block_bytes, unit.blocks);
            let possible = block_bytes.is_power_of_two()
                && (512..=65536).contains(&block_bytes)
                && (blocks > 0 || unit.removable || unit.device_type == NO_DEVICE)
                && blocks.checked_mul(u64::from(block_bytes)).is_some_and(|all| all <= 1 << 63);
            if !possible {
                return Err(ConfigurationError::Geometry { name, block_bytes, blocks });
            }
            match (unit.backend == BackendKind::Ring as i32, device) {
                (true, device) => {
                    let (read_only, thin) = (unit.read_only, unit.thin);
                    if self.ejected.contains(&unit.handle) {
                        unit.blocks = 0;
                    }
                    let scsi = scsi_unit(&unit).map_err(|reason| ConfigurationError::Identity {
                        name: name.clone(),
                        reason,
                    })?;
                    unit.host_commands = host_commands(&unit);
                    let known = self.ring_backed.get(&unit.handle);
                    let same = known.filter(|known| known.scsi.medium == unit.medium);
                    let kept = Unit {
                        name,
                        device,
                        block_bytes,
                        blocks: unit.blocks,
                        medium_blocks: blocks,
                        medium_since: match (unit.device_type, same) {
                            (CD_DVD, None) => generation,
                            (_, known) => known.map_or(0, |known| known.medium_since),
                        },
                        read_only,
                        backing_read_only,
                        thin,
                        scsi,
                    };
                    ring_backed.insert(unit.handle, kept);
                }
                (false, None) => {}
                _ => return Err(ConfigurationError::Handler { name }),
            }
            units.push(unit);
        }
        self.advance();
        self.modes.retain(|handle, _| handles.contains(handle));
        self.ejected.retain(|handle| handles.contains(handle));
        self.ring_backed = ring_backed;
        let generation = self.generation;
        let mut device_groups = new.device_groups;
        let mut states = std::mem::take(&mut self.states);
        states.retain(|(name, id), state| {
            let group = device_groups.iter_mut().find(|group| group.name == *name);
            let own = group.and_then(|group| group.groups.iter_mut().find(|own| own.id == *id));
            own.is_some_and(|own| {
                state.put(own);
                true
            })
        });
        self.states = states;
        let targets = new.targets;
        self.message = Some(control::Configuration { generation, units, targets, device_groups });
        Ok(generation)
    }

    /// A new generation, of the same configuration too: each is sent once.
    pub(crate) fn advance(&mut self) -> u32 {
        self.generation = self.generation.saturating_add(1);
        self.sent = false;
        if let Some(message) = &mut self.message {
            message.generation = self.generation;
        }
        self.generation
    }

    /// MODE SELECT; whether anything changed: then there is a new generation.
    pub(crate) fn select_mode(&mut self, handle: u32, mode: ModeParameters) -> bool {
        let message = self.message.as_mut();
        let sent =
            message.and_then(|message| message.units.iter_mut().find(|unit| unit.handle == handle));
        let (Some(own), Some(sent)) = (self.ring_backed.get_mut(&handle), sent) else {
            return false;
        };
        if ModeParameters::of(&own.scsi) == mode {
            return false;
        }
        sent.read_only = own.backing_read_only;
        set_mode(sent, &mode);
        own.read_only = sent.read_only;
        own.scsi.read_only = sent.read_only;
        own.scsi.software_write_protect = mode.software_write_protect;
        own.scsi.descriptor_sense = mode.descriptor_sense;
        self.modes.insert(handle, mode);
        self.advance();
        true
    }

    /// Puts target port groups of one device group, by their ids, into these states; whether anything changed: then
    /// there is a new generation. `by`: nexus and unit of a command that does so and knows.
    pub(crate) fn set_states(
        &mut self,
        device_group: &str,
        states: &[(u32, PortState)],
        by: Option<(u32, u32)>,
    ) -> bool {
        let groups = self.message.iter_mut().flat_map(|message| &mut message.device_groups);
        let Some(group) = groups.into_iter().find(|group| group.name == device_group) else {
            return false;
        };
        let mut changed = false;
        for own in &mut group.groups {
            let new = states.iter().find(|(id, _)| *id == own.id).map(|(_, state)| *state);
            if let Some(new) = new.filter(|new| PortState::of(own) != *new) {
                new.put(own);
                self.states.insert((device_group.to_owned(), own.id), new);
                changed = true;
            }
        }
        if changed {
            (group.set_by_nexus, group.set_by_unit) = by.unwrap_or_default();
            self.advance();
        }
        changed
    }

    /// What reservations let nexuses do to the unit from a new generation on, and what comes with that.
    pub(crate) fn set_access(
        &mut self,
        handle: u32,
        access: Option<AccessTable>,
        news: &[AccessEffect],
    ) {
        let generation = self.advance();
        let (table, effects) = self.access.entry(handle).or_default();
        *table = access;
        effects.extend(news.iter().map(|effect| AccessEffect { generation, ..effect.clone() }));
        let (table, effects) = (table.clone(), effects.clone());
        let mut units = self.message.iter_mut().flat_map(|message| &mut message.units);
        if let Some(sent) = units.find(|unit| unit.handle == handle) {
            (sent.access, sent.access_effects) = (table, effects);
        }
    }

    /// The card has made the changes up to this generation: what came with them came.
    pub(crate) fn forget_effects(&mut self, applied: u32) {
        for (_, effects) in self.access.values_mut() {
            effects.retain(|effect| effect.generation > applied);
        }
        for sent in self.message.iter_mut().flat_map(|message| &mut message.units) {
            sent.access_effects.retain(|effect| effect.generation > applied);
        }
    }

    /// Ejects or loads the medium of a removable unit; whether anything changed: then there is a new
    /// generation.
    pub(crate) fn move_medium(&mut self, handle: u32, load: bool) -> bool {
        let message = self.message.as_mut();
        let sent =
            message.and_then(|message| message.units.iter_mut().find(|unit| unit.handle == handle));
        let (Some(own), Some(sent)) = (self.ring_backed.get_mut(&handle), sent) else {
            return false;
        };
        let moved = if load { self.ejected.remove(&handle) } else { self.ejected.insert(handle) };
        let blocks = if load { own.medium_blocks } else { 0 };
        if own.blocks == blocks {
            return false;
        }
        own.blocks = blocks;
        own.scsi.blocks = blocks;
        sent.blocks = blocks;
        self.advance();
        moved
    }

    /// A medium is put into the unit: whatever an initiator ejected is out.
    pub(crate) fn close_tray(&mut self, handle: u32) {
        self.ejected.remove(&handle);
    }

    pub(crate) fn get(&self, handle: u32) -> Option<&Unit> {
        self.ring_backed.get(&handle)
    }

    /// The message for the card; `None` before the first configuration.
    pub(crate) fn message(&self) -> Option<&control::Configuration> {
        self.message.as_ref()
    }
}

/// What the agent executes for a unit.
fn host_commands(unit: &LogicalUnit) -> u32 {
    let set_states = if unit.explicit_alua { host_command::SET_TARGET_PORT_GROUPS } else { 0 };
    match (unit.forwards, unit.device_type) {
        (false, _) => 0,
        (true, CD_DVD) => {
            host_command::MODE_SELECT | host_command::MEDIUM_REMOVAL | RESERVATIONS | set_states
        }
        (true, _) if unit.removable => HOST_COMMANDS | host_command::MEDIUM_REMOVAL | set_states,
        (true, _) => HOST_COMMANDS | set_states,
    }
}

/// What can change of a target port group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortState {
    /// As in the control message.
    pub(crate) state: u32,
    pub(crate) preferred: bool,
    /// As in the control message.
    pub(crate) status_code: u32,
}

impl PortState {
    pub(crate) fn of(group: &TargetPortGroup) -> Self {
        let TargetPortGroup { state, preferred, status_code, .. } = *group;
        Self { state, preferred, status_code }
    }

    fn put(self, group: &mut TargetPortGroup) {
        (group.state, group.preferred) = (self.state, self.preferred);
        group.status_code = self.status_code;
    }
}

/// PERIPHERAL DEVICE TYPE of a CD/DVD device, and of a unit that only holds its LUN.
const CD_DVD: u32 = scsi::DeviceType::CdDvd as u32;
const NO_DEVICE: u32 = scsi::DeviceType::NoDevice as u32;

fn set_mode(unit: &mut LogicalUnit, mode: &ModeParameters) {
    unit.software_write_protect = mode.software_write_protect;
    unit.descriptor_sense = mode.descriptor_sense;
    unit.read_only |= mode.software_write_protect;
}

/// The unit as the device server knows it: what forwarded commands look at. The card makes its own
/// from the same message.
fn scsi_unit(unit: &LogicalUnit) -> Result<scsi::LogicalUnit, String> {
    let words = |error: scsi::InvalidUnit| error.to_string();
    let naa =
        if unit.naa.is_empty() { None } else { Some(scsi::Naa::new(&unit.naa).map_err(words)?) };
    let identity = scsi::Identity {
        naa,
        eui64: unit.eui64.as_slice().try_into().ok(),
        ..scsi::Identity::new(
            &unit.vendor,
            &unit.product,
            &unit.revision,
            &unit.serial,
            &unit.t10_id,
        )
        .map_err(words)?
    };
    Ok(scsi::LogicalUnit {
        read_only: unit.read_only,
        write_cache: unit.write_cache,
        fua: unit.fua,
        removable: unit.removable,
        rotational: unit.rotational,
        thin: unit.thin,
        // 0 or 1: the card refuses others.
        tst: u8::try_from(unit.task_set_type).unwrap_or(0),
        forwards: unit.forwards,
        software_write_protect: unit.software_write_protect,
        descriptor_sense: unit.descriptor_sense,
        device_type: match unit.device_type {
            CD_DVD => scsi::DeviceType::CdDvd,
            _ => scsi::DeviceType::Disk,
        },
        medium: unit.medium,
        blocks: unit.blocks,
        // A removable one may have no medium.
        ..scsi::LogicalUnit::new(unit.block_bytes, unit.blocks.max(1), identity).map_err(words)?
    })
}
