//! What the card serves: logical units, targets and who may see which LUN. A snapshot with a
//! generation, replaced as a whole; the poll groups share it read-only. Targets and LUN lists are
//! as the agent sent them, checked; logical units are turned into what the device server uses.

use lunar_dma::sgv::Placement;
use lunar_offload_proto::access;
use lunar_offload_proto::checked::{self, Backend, Naa as CheckedNaa};
pub use lunar_offload_proto::checked::{AccessGroup, Lun, Target};
use lunar_scsi::alua::{AccessState, StatusCode, TargetPort, TargetPortGroup, Tpgs};
use lunar_scsi::opcodes::HostCommands;
use lunar_scsi::reservations::{Access, AccessTable, Nexus, TransportId};
use lunar_scsi::unit::{DeviceType, Identity, LogicalUnit, Naa, Text};
use lunar_scsi::unit_attention::UnitAttention;
use lunar_srp::login::PortId;

/// A configuration snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configuration {
    /// Generation the agent gave it; grows with every change.
    pub generation: u32,
    /// Logical units; the place in the list is *not* the handle.
    pub units: Vec<Unit>,
    /// Targets of this card.
    pub targets: Vec<Target>,
    /// Device groups; a unit is in at most one.
    pub device_groups: Vec<DeviceGroup>,
}

/// Units that are reached through the same target port groups, in the same states (SPC-6 5.17).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceGroup {
    /// Handles of its units, ascending.
    pub units: Vec<u32>,
    /// Its target port groups.
    pub groups: Vec<PortGroup>,
    /// Nexus and unit of the SET TARGET PORT GROUPS that made the last change of states, if one did: they
    /// know of it.
    pub set_by: Option<(u32, u32)>,
}

/// A target port group of a device group.
#[derive(Clone, Debug, PartialEq)]
pub struct PortGroup {
    /// TARGET PORT GROUP.
    pub id: u16,
    /// The state of its ports.
    pub state: AccessState,
    /// PREF.
    pub preferred: bool,
    /// Why it is in its state.
    pub status: StatusCode,
    /// Relative target port identifiers, those of other nodes included.
    pub ports: Vec<u16>,
    /// Handles of those of its targets that are this card's.
    pub targets: Vec<u32>,
}

impl PortGroup {
    /// As REPORT TARGET PORT GROUPS tells it.
    #[must_use]
    pub fn told(&self) -> TargetPortGroup<'_> {
        let Self { id, state, preferred, status, ref ports, targets: _ } = *self;
        TargetPortGroup { id, state, preferred, status, ports }
    }
}

impl TryFrom<checked::DeviceGroup> for DeviceGroup {
    type Error = String;

    fn try_from(from: checked::DeviceGroup) -> Result<Self, String> {
        let port_group = |group: checked::TargetPortGroup| {
            let unknown = || format!("target port group {:?}: its state is not known", group.name);
            Ok(PortGroup {
                id: group.id,
                state: AccessState::from_code(group.state).ok_or_else(unknown)?,
                preferred: group.preferred,
                status: StatusCode::from_code(group.status_code).ok_or_else(unknown)?,
                ports: group.ports,
                targets: group.targets,
            })
        };
        let mut units = from.units;
        units.sort_unstable();
        let groups = from.groups.into_iter().map(port_group).collect::<Result<_, String>>()?;
        Ok(Self { units, groups, set_by: from.set_by })
    }
}

/// Longest transfer of one command in bytes: the greatest class of the SGV caches. Told to
/// initiators as MAXIMUM TRANSFER LENGTH (SBC-4, Block Limits VPD page).
pub const TRANSFER_BYTES_MAX: u32 = 4 << 20;

/// Where a logical unit's blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// The card itself: reads give what the buffer holds, writes go nowhere (nullio).
    CardNull,
    /// The host agent, through the PCIe ring.
    Ring,
}

/// One logical unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// The agent's name for it in ring entries; at most [`Unit::HANDLE_MAX`].
    pub handle: u32,
    /// The device's name in the management tree.
    pub name: String,
    /// What the device server answers from.
    pub logical_unit: LogicalUnit,
    /// Who executes its block operations.
    pub backend: BackendKind,
    /// Where its data buffers are.
    pub placement: Placement,
    /// What reservations let each nexus do.
    pub access: AccessTable,
    /// What came with changes of reservations, in the order of their generations.
    pub access_effects: Vec<AccessEffect>,
}

/// What a change of reservations brings a nexus, in the first configuration with at least this generation.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessEffect {
    /// The generation.
    pub generation: u32,
    /// Whom.
    pub nexus: Nexus,
    /// A unit attention to establish.
    pub attention: Option<UnitAttention>,
    /// Whether its commands to the unit are aborted.
    pub abort: bool,
}

impl Unit {
    /// Handles are indexes of per-group arrays, so they are bounded.
    pub const HANDLE_MAX: u32 = 16_383;
}

impl TryFrom<checked::Configuration> for Configuration {
    type Error = String;

    fn try_from(from: checked::Configuration) -> Result<Self, String> {
        let groups = from.device_groups.into_iter().map(DeviceGroup::try_from);
        let device_groups: Vec<_> = groups.collect::<Result<_, _>>()?;
        let unit = |unit: &checked::LogicalUnit| convert_unit(unit, &device_groups);
        let units = from.units.iter().map(unit).collect::<Result<_, _>>()?;
        Ok(Self { generation: from.generation, units, targets: from.targets, device_groups })
    }
}

fn convert_unit(
    unit: &checked::LogicalUnit,
    device_groups: &[DeviceGroup],
) -> Result<Unit, String> {
    let about = |reason: String| format!("logical unit {:?}: {reason}", unit.name);
    if unit.handle > Unit::HANDLE_MAX {
        return Err(about(format!(
            "its handle is {}; this card takes up to {}",
            unit.handle,
            Unit::HANDLE_MAX
        )));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (vendor, product, revision) =
        (text(&unit.vendor), text(&unit.product), text(&unit.revision));
    let naa = match &unit.naa {
        None => None,
        Some(CheckedNaa::Short(bytes)) => Some(Naa::new(bytes)),
        Some(CheckedNaa::Long(bytes)) => Some(Naa::new(bytes)),
    };
    let identity = Identity {
        naa: naa.transpose().map_err(|error| about(error.to_string()))?,
        eui64: unit.eui64,
        // Checked before.
        vendor_specific: Text::new(&unit.vendor_specific).unwrap_or(Text::EMPTY),
        ..Identity::new(&vendor, &product, &revision, &unit.serial, &unit.t10_id)
            .map_err(|error| about(error.to_string()))?
    };
    let logical_unit = LogicalUnit {
        read_only: unit.read_only,
        write_cache: unit.write_cache,
        fua: unit.fua,
        removable: unit.removable,
        rotational: unit.rotational,
        thin: unit.thin,
        physical_blocks_exponent: unit.physical_blocks_exponent,
        optimal_transfer_blocks: unit.optimal_transfer_blocks,
        maximum_transfer_blocks: TRANSFER_BYTES_MAX / unit.block_bytes,
        tst: unit.task_set_type,
        tpgs: match (device_group(device_groups, unit.handle), unit.explicit_alua) {
            (None, _) => Tpgs::None,
            (Some(_), false) => Tpgs::Implicit,
            (Some(_), true) => Tpgs::Both,
        },
        forwards: unit.forwards,
        host_commands: HostCommands::from_bits(unit.host_commands),
        software_write_protect: unit.software_write_protect,
        descriptor_sense: unit.descriptor_sense,
        // Every handler that unmaps makes holes, which read as zeros.
        unmapped_reads_zero: unit.thin,
        blocks: unit.blocks,
        device_type: match unit.device_type {
            5 => DeviceType::CdDvd,
            31 => DeviceType::NoDevice,
            _ => DeviceType::Disk,
        },
        medium: unit.medium,
        // A removable one may have no medium.
        ..LogicalUnit::new(unit.block_bytes, unit.blocks.max(1), identity)
            .map_err(|error| about(error.to_string()))?
    };
    let (backend, by_default) = match unit.backend {
        Backend::CardNull => (BackendKind::CardNull, Placement::CardDram),
        Backend::Ring => (BackendKind::Ring, Placement::HostDram),
    };
    Ok(Unit {
        handle: unit.handle,
        name: unit.name.clone(),
        logical_unit: logical_unit.validate().map_err(|error| about(error.to_string()))?,
        backend,
        placement: match unit.placement {
            checked::Placement::Any => by_default,
            checked::Placement::HostDram => Placement::HostDram,
            checked::Placement::CardDram => Placement::CardDram,
        },
        access: convert_access(unit).map_err(about)?,
        access_effects: convert_effects(unit).map_err(about)?,
    })
}

fn convert_nexus(transport_id: &[u8], target_port: u16) -> Result<Nexus, String> {
    let refused = |error| format!("a nexus of its access table: TransportID: {error:?}");
    let (initiator, _) = TransportId::parse(transport_id).map_err(refused)?;
    Ok(Nexus { initiator, target_port })
}

fn convert_access(unit: &checked::LogicalUnit) -> Result<AccessTable, String> {
    let named = unit.access_named.iter().map(|named| {
        let nexus = convert_nexus(&named.transport_id, named.relative_target_port)?;
        Ok((nexus, Access::from_bits(named.access)))
    });
    let named = named.collect::<Result<_, String>>()?;
    Ok(AccessTable::new(Access::from_bits(unit.access_others), named))
}

fn convert_effects(unit: &checked::LogicalUnit) -> Result<Vec<AccessEffect>, String> {
    let effect = |effect: &checked::AccessEffect| {
        Ok(AccessEffect {
            generation: effect.generation,
            nexus: convert_nexus(&effect.transport_id, effect.relative_target_port)?,
            attention: match effect.attention {
                3 => Some(UnitAttention::ReservationsPreempted),
                4 => Some(UnitAttention::ReservationsReleased),
                5 => Some(UnitAttention::RegistrationsPreempted),
                _ => None,
            },
            abort: effect.abort,
        })
    };
    unit.access_effects.iter().map(effect).collect()
}

impl Configuration {
    /// The target that answers to `port`.
    #[must_use]
    pub fn target_of_port(&self, port: &PortId) -> Option<&Target> {
        self.targets.iter().find(|target| target.port_id == port.0)
    }

    /// The target with `handle`.
    #[must_use]
    pub fn target(&self, handle: u32) -> Option<&Target> {
        self.targets.iter().find(|target| target.handle == handle)
    }

    /// The unit with `handle`.
    #[must_use]
    pub fn unit(&self, handle: u32) -> Option<&Unit> {
        self.units.iter().find(|unit| unit.handle == handle)
    }

    /// The device group of the unit with `handle`.
    #[must_use]
    pub fn device_group(&self, unit: u32) -> Option<&DeviceGroup> {
        device_group(&self.device_groups, unit)
    }

    /// The target port group of a target for a unit, by their handles.
    #[must_use]
    pub fn port_group(&self, target: u32, unit: u32) -> Option<&PortGroup> {
        let groups = &self.device_group(unit)?.groups;
        groups.iter().find(|group| group.targets.contains(&target))
    }

    /// The state in which a target reaches a unit: active without a target port group.
    #[must_use]
    pub fn access_state(&self, target: u32, unit: u32) -> AccessState {
        self.port_group(target, unit).map_or(AccessState::Active, |group| group.state)
    }

    /// The nexus of an initiator port at a target, as reservations name it.
    #[must_use]
    pub fn reserving_nexus(&self, initiator: &PortId, target: u32) -> Nexus {
        let target = self.target(target);
        let driver = target.map_or("", |target| target.driver.as_str());
        Nexus {
            initiator: TransportId::of_port(driver, initiator.0),
            target_port: target.map_or(0, |target| target.relative_target_port),
        }
    }

    /// What reservations let a nexus do to a unit.
    #[must_use]
    pub fn access(&self, nexus: &Nexus, unit: u32) -> Access {
        self.unit(unit).map_or(Access::OPEN, |unit| unit.access.access(nexus))
    }

    /// The target port of a target as a unit tells of it.
    #[must_use]
    pub fn target_port(&self, target: u32, unit: u32) -> TargetPort {
        TargetPort {
            relative: self.target(target).map_or(0, |target| target.relative_target_port),
            group: self.port_group(target, unit).map(|group| group.id),
        }
    }
}

fn device_group(groups: &[DeviceGroup], unit: u32) -> Option<&DeviceGroup> {
    groups.iter().find(|group| group.units.binary_search(&unit).is_ok())
}

/// The LUNs that an initiator with any of these names sees at `target`: those of the first group
/// with a pattern that matches one of them, else the target's own.
#[must_use]
pub fn luns_for<'a>(target: &'a Target, names: &[&str]) -> &'a [Lun] {
    target
        .groups
        .iter()
        .find(|group| {
            group
                .patterns
                .iter()
                .any(|pattern| names.iter().any(|name| access::matches(pattern, name)))
        })
        .map_or(&target.default_luns, |group| &group.luns)
}
