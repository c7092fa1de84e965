//! Control messages turned into values that can be believed: every index, length and reference was
//! checked, and a refusal says in words which object, which value, which limit.
//!
//! Only checks that need nothing but the message live here. Whether a change is possible *now* is
//! decided by who applies it.

use std::collections::BTreeSet;
use std::fmt;

use crate::access;
use crate::alua::AccessState;
use crate::control::{self, BackendKind, PlacementKind};
use crate::ring::RingLayout;

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// What it is about, for example `logical unit "disk1"`.
    pub object: String,
    /// Value, limit, and what would be right.
    pub reason: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.reason)
    }
}

impl std::error::Error for Invalid {}

/// Collects refusals about one object.
struct About<'a>(&'a dyn Fn() -> String);

impl About<'_> {
    fn require(&self, holds: bool, reason: impl FnOnce() -> String) -> Result<(), Invalid> {
        if holds { Ok(()) } else { Err(self.refuse(reason())) }
    }

    fn refuse(&self, reason: String) -> Invalid {
        Invalid { object: (self.0)(), reason }
    }

    fn name(&self, name: &str, bytes_max: usize) -> Result<(), Invalid> {
        self.require(
            (1..=bytes_max).contains(&name.len()) && !name.chars().any(char::is_control),
            || format!("its name has {} bytes; 1 to {bytes_max} without control characters are possible", name.len()),
        )
    }

    /// Left-aligned ASCII padded with spaces (SPC-6 4.3.1).
    fn padded<const N: usize>(&self, field: &str, text: &str) -> Result<[u8; N], Invalid> {
        self.ascii(field, text, N)?;
        let mut out = [b' '; N];
        for (to, from) in out.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Ok(out)
    }

    fn ascii(&self, field: &str, text: &str, bytes_max: usize) -> Result<(), Invalid> {
        self.require(
            text.len() <= bytes_max && text.bytes().all(|byte| (0x20..=0x7e).contains(&byte)),
            || {
                format!(
                    "{field} {text:?} must be at most {bytes_max} characters of printable ASCII"
                )
            },
        )
    }
}

/// Who executes a logical unit's block operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The card itself, without a medium.
    CardNull,
    /// The agent, through the ring.
    Ring,
}

/// Where a logical unit's data is staged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// The card chooses.
    #[default]
    Any,
    /// Host memory, when its arena could be imported.
    HostDram,
    /// Card memory.
    CardDram,
}

/// NAA designator (SPC-6 7.8.5.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naa {
    /// 8 bytes (NAA 2, 3 or 5).
    Short([u8; 8]),
    /// 16 bytes (NAA 6).
    Long([u8; 16]),
}

/// A checked [`control::LogicalUnit`]; the fields mean what they mean there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LogicalUnit {
    /// Not 0.
    pub handle: u32,
    pub name: String,
    pub backend: Backend,
    /// A power of two, 512 to 65536.
    pub block_bytes: u32,
    /// At least 1, but for a removable unit without a medium and one without a device;
    /// `blocks * block_bytes` is at most 2^63.
    pub blocks: u64,
    pub read_only: bool,
    pub write_cache: bool,
    pub fua: bool,
    pub removable: bool,
    pub rotational: bool,
    pub thin: bool,
    /// 0 to 15.
    pub physical_blocks_exponent: u8,
    pub optimal_transfer_blocks: u32,
    /// 0 or 1.
    pub task_set_type: u8,
    /// Padded with spaces.
    pub vendor: [u8; 8],
    /// Padded with spaces.
    pub product: [u8; 16],
    /// Padded with spaces.
    pub revision: [u8; 4],
    /// Printable ASCII, at most 64 bytes.
    pub serial: String,
    /// Printable ASCII, at most 64 bytes.
    pub t10_id: String,
    pub naa: Option<Naa>,
    pub eui64: Option<[u8; 8]>,
    pub placement: Placement,
    pub forwards: bool,
    pub software_write_protect: bool,
    pub descriptor_sense: bool,
    /// Bits as in the message; unknown ones are kept.
    pub host_commands: u32,
    /// 0, 5 or 31.
    pub device_type: u8,
    pub medium: u32,
    /// Printable ASCII, at most 20 bytes.
    pub vendor_specific: String,
    pub explicit_alua: bool,
    /// Access of the nexuses that are not named, as bits.
    pub access_others: u32,
    pub access_named: Vec<NexusAccess>,
    pub access_effects: Vec<AccessEffect>,
}

/// A checked [`control::NexusAccess`]; the fields mean what they mean there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NexusAccess {
    pub transport_id: Vec<u8>,
    /// Not 0.
    pub relative_target_port: u16,
    pub access: u32,
}

/// A checked [`control::AccessEffect`]; the fields mean what they mean there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct AccessEffect {
    pub generation: u32,
    pub transport_id: Vec<u8>,
    /// Not 0.
    pub relative_target_port: u16,
    /// 0, or 3 to 5.
    pub attention: u8,
    pub abort: bool,
}

impl About<'_> {
    fn relative_target_port(&self, port: u32) -> Result<u16, Invalid> {
        let port = u16::try_from(port).ok().filter(|port| *port != 0);
        port.ok_or_else(|| self.refuse("relative target ports are 1 to 65535".to_owned()))
    }

    fn access_named(&self, named: &[control::NexusAccess]) -> Result<Vec<NexusAccess>, Invalid> {
        let check = |from: &control::NexusAccess| {
            Ok(NexusAccess {
                transport_id: from.transport_id.clone(),
                relative_target_port: self.relative_target_port(from.relative_target_port)?,
                access: from.access,
            })
        };
        named.iter().map(check).collect()
    }

    fn access_effects(&self, all: &[control::AccessEffect]) -> Result<Vec<AccessEffect>, Invalid> {
        let check = |from: &control::AccessEffect| {
            let known = [0, 3, 4, 5].into_iter().find(|known| u32::from(*known) == from.attention);
            let unknown = || self.refuse(format!("unit attention 2Ah/{:02X}h", from.attention));
            Ok(AccessEffect {
                generation: from.generation,
                transport_id: from.transport_id.clone(),
                relative_target_port: self.relative_target_port(from.relative_target_port)?,
                attention: known.ok_or_else(unknown)?,
                abort: from.abort,
            })
        };
        all.iter().map(check).collect()
    }
}

impl TryFrom<&control::LogicalUnit> for LogicalUnit {
    type Error = Invalid;

    fn try_from(from: &control::LogicalUnit) -> Result<Self, Invalid> {
        let object = || format!("logical unit {:?} (handle {})", from.name, from.handle);
        let about = About(&object);
        about.require(from.handle != 0, || "handle 0 is not possible".to_owned())?;
        about.name(&from.name, 64)?;
        let backend = match BackendKind::try_from(from.backend) {
            Ok(BackendKind::CardNull) => Backend::CardNull,
            Ok(BackendKind::Ring) => Backend::Ring,
            Ok(BackendKind::Unspecified) | Err(_) => {
                return Err(about.refuse(format!("backend {} is not known", from.backend)));
            }
        };
        let placement = match PlacementKind::try_from(from.placement) {
            Ok(PlacementKind::Unspecified) => Placement::Any,
            Ok(PlacementKind::HostDram) => Placement::HostDram,
            Ok(PlacementKind::CardDram) => Placement::CardDram,
            Err(_) => {
                return Err(about.refuse(format!("placement {} is not known", from.placement)));
            }
        };
        let block_bytes = from.block_bytes;
        about.require(
            block_bytes.is_power_of_two() && (512..=65536).contains(&block_bytes),
            || {
                format!(
                    "block_bytes is {block_bytes}; a power of two from 512 to 65536 is possible"
                )
            },
        )?;
        let capacity_fits =
            from.blocks.checked_mul(u64::from(block_bytes)).is_some_and(|bytes| bytes <= 1 << 63);
        const NO_DEVICE: u32 = 31;
        let has_medium = from.blocks != 0 || from.removable || from.device_type == NO_DEVICE;
        about.require(has_medium && capacity_fits, || {
            format!("{} blocks of {block_bytes} bytes; 1 byte to 2^63 is possible", from.blocks)
        })?;
        let device_type = u8::try_from(from.device_type)
            .ok()
            .filter(|kind| matches!(kind, 0 | 5 | 31))
            .ok_or_else(|| {
                let value = from.device_type;
                about.refuse(format!("device_type is {value}; 0, 5 or 31 is possible"))
            })?;
        let physical_blocks_exponent = u8::try_from(from.physical_blocks_exponent)
            .ok()
            .filter(|exponent| *exponent <= 15)
            .ok_or_else(|| {
                let value = from.physical_blocks_exponent;
                about.refuse(format!("physical_blocks_exponent is {value}; 0 to 15 is possible"))
            })?;
        let task_set_type = match from.task_set_type {
            0 => 0,
            1 => 1,
            other => {
                return Err(about.refuse(format!("task_set_type is {other}; 0 or 1 is possible")));
            }
        };
        about.ascii("serial", &from.serial, 64)?;
        about.ascii("t10_id", &from.t10_id, 64)?;
        about.ascii("vendor_specific", &from.vendor_specific, 20)?;
        let naa = match from.naa.len() {
            0 => None,
            8 => from.naa.as_slice().try_into().ok().map(Naa::Short),
            16 => from.naa.as_slice().try_into().ok().map(Naa::Long),
            other => {
                return Err(about.refuse(format!("naa has {other} bytes; 0, 8 or 16 are possible")));
            }
        };
        let eui64 = match from.eui64.len() {
            0 => None,
            8 => from.eui64.as_slice().try_into().ok(),
            other => {
                return Err(about.refuse(format!("eui64 has {other} bytes; 0 or 8 are possible")));
            }
        };
        Ok(Self {
            handle: from.handle,
            name: from.name.clone(),
            backend,
            block_bytes,
            blocks: from.blocks,
            read_only: from.read_only,
            write_cache: from.write_cache,
            fua: from.fua,
            removable: from.removable,
            rotational: from.rotational,
            thin: from.thin,
            physical_blocks_exponent,
            optimal_transfer_blocks: from.optimal_transfer_blocks,
            task_set_type,
            vendor: about.padded("vendor", &from.vendor)?,
            product: about.padded("product", &from.product)?,
            revision: about.padded("revision", &from.revision)?,
            serial: from.serial.clone(),
            t10_id: from.t10_id.clone(),
            naa,
            eui64,
            placement,
            forwards: from.forwards,
            software_write_protect: from.software_write_protect,
            descriptor_sense: from.descriptor_sense,
            host_commands: from.host_commands,
            device_type,
            medium: from.medium,
            vendor_specific: from.vendor_specific.clone(),
            explicit_alua: from.explicit_alua,
            access_others: from.access.as_ref().map_or(0, |access| access.others),
            access_named: about
                .access_named(from.access.as_ref().map_or(&[], |access| &access.named))?,
            access_effects: about.access_effects(&from.access_effects)?,
        })
    }
}

/// One LUN of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lun {
    /// 0 to 16383: what flat space addressing can say (SAM-6 4.7.7.3).
    pub lun: u16,
    /// Handle of the unit.
    pub unit: u32,
    /// Writes through this LUN are refused.
    pub read_only: bool,
}

/// The greatest LUN.
pub const LUN_MAX: u16 = 0x3fff;

/// An access group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessGroup {
    /// Its name.
    pub name: String,
    /// Initiator patterns; see [`access::matches`].
    pub patterns: Vec<String>,
    /// Ascending by LUN, each LUN once.
    pub luns: Vec<Lun>,
}

/// A checked [`control::Target`]; the fields mean what they mean there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Target {
    /// Not 0.
    pub handle: u32,
    pub name: String,
    pub driver: String,
    pub enabled: bool,
    pub port_id: [u8; 16],
    /// Not 0.
    pub relative_target_port: u16,
    /// 1 to 4096.
    pub request_limit: u32,
    /// 64 to 65535.
    pub it_iu_bytes_max: u32,
    /// `None`: the card's default.
    pub nexus_memory_bytes_max: Option<u64>,
    pub groups: Vec<AccessGroup>,
    /// Ascending by LUN, each LUN once.
    pub default_luns: Vec<Lun>,
}

impl Target {
    /// What the initiator named `name` sees: the group, `None` for the default, and its LUNs.
    #[must_use]
    pub fn luns_of(&self, name: &str) -> (Option<&AccessGroup>, &[Lun]) {
        let found = access::find_group(
            self.groups.iter().map(|g| g.patterns.iter().map(String::as_str)),
            name,
        );
        match found.and_then(|index| self.groups.get(index)) {
            Some(group) => (Some(group), &group.luns),
            None => (None, &self.default_luns),
        }
    }
}

impl TryFrom<&control::Target> for Target {
    type Error = Invalid;

    fn try_from(from: &control::Target) -> Result<Self, Invalid> {
        let object = || format!("target {:?} (handle {})", from.name, from.handle);
        let about = About(&object);
        about.require(from.handle != 0, || "handle 0 is not possible".to_owned())?;
        about.name(&from.name, 223)?;
        let port_id = from.port_id.as_slice().try_into().map_err(|_| {
            about.refuse(format!("port_id has {} bytes; 16 are needed", from.port_id.len()))
        })?;
        let relative_target_port = u16::try_from(from.relative_target_port)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| {
                let value = from.relative_target_port;
                about.refuse(format!("relative_target_port is {value}; 1 to 65535 is possible"))
            })?;
        about.require((1..=4096).contains(&from.request_limit), || {
            format!("request_limit is {}; 1 to 4096 is possible", from.request_limit)
        })?;
        about.require((64..=65535).contains(&from.it_iu_bytes_max), || {
            format!("it_iu_bytes_max is {}; 64 to 65535 is possible", from.it_iu_bytes_max)
        })?;
        let mut names = BTreeSet::new();
        let mut groups = Vec::new();
        for group in &from.groups {
            let object = || format!("group {:?} of target {:?}", group.name, from.name);
            let about = About(&object);
            about.name(&group.name, 223)?;
            about.require(names.insert(&group.name), || "the name is used twice".to_owned())?;
            groups.push(AccessGroup {
                name: group.name.clone(),
                patterns: group.patterns.clone(),
                luns: luns(&about, &group.luns)?,
            });
        }
        Ok(Self {
            handle: from.handle,
            name: from.name.clone(),
            driver: from.driver.clone(),
            enabled: from.enabled,
            port_id,
            relative_target_port,
            request_limit: from.request_limit,
            it_iu_bytes_max: from.it_iu_bytes_max,
            nexus_memory_bytes_max: Some(from.nexus_memory_bytes_max).filter(|bytes| *bytes != 0),
            groups,
            default_luns: luns(&about, &from.default_luns)?,
        })
    }
}

fn luns(about: &About<'_>, from: &[control::Lun]) -> Result<Vec<Lun>, Invalid> {
    let mut luns = Vec::new();
    for one in from {
        let lun = u16::try_from(one.lun).ok().filter(|lun| *lun <= LUN_MAX).ok_or_else(|| {
            about.refuse(format!("LUN {} is not possible, 0 to {LUN_MAX} is", one.lun))
        })?;
        luns.push(Lun { lun, unit: one.unit, read_only: one.read_only });
    }
    luns.sort_by_key(|one| one.lun);
    for pair in luns.windows(2) {
        if let [one, next] = pair {
            about.require(one.lun != next.lun, || format!("LUN {} is mapped twice", one.lun))?;
        }
    }
    Ok(luns)
}

/// Target port groups of a device group, and target ports of a group, at most.
pub const PORT_GROUPS_MAX: usize = 32;

/// A checked [`control::TargetPortGroup`]; the fields mean what they mean there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TargetPortGroup {
    pub name: String,
    /// Not 0.
    pub id: u16,
    /// 0 to 4, 14 or 15.
    pub state: u8,
    pub preferred: bool,
    /// 0 to 2.
    pub status_code: u8,
    /// Relative target port identifiers, none of them 0.
    pub ports: Vec<u16>,
    /// Handles of those of its targets that are this card's.
    pub targets: Vec<u32>,
}

impl TryFrom<&control::TargetPortGroup> for TargetPortGroup {
    type Error = Invalid;

    fn try_from(from: &control::TargetPortGroup) -> Result<Self, Invalid> {
        let object = || format!("target port group {:?} ({})", from.name, from.id);
        let about = About(&object);
        about.name(&from.name, 223)?;
        let not_zero = |value: u32, field: &str| {
            u16::try_from(value)
                .ok()
                .filter(|value| *value != 0)
                .ok_or_else(|| about.refuse(format!("{field} is {value}; 1 to 65535 is possible")))
        };
        let state = AccessState::from_code(from.state).map(AccessState::code).ok_or_else(|| {
            about.refuse(format!("state is {}; 0 to 4, 14 or 15 is possible", from.state))
        })?;
        let status_code = u8::try_from(from.status_code).ok().filter(|code| *code <= 2);
        let status_code = status_code.ok_or_else(|| {
            about.refuse(format!("status_code is {}; 0 to 2 is possible", from.status_code))
        })?;
        about.require(from.ports.len() <= PORT_GROUPS_MAX, || {
            format!("{} ports; at most {PORT_GROUPS_MAX} are possible", from.ports.len())
        })?;
        let ports = from.ports.iter();
        let ports = ports.map(|port| not_zero(port.relative_target_port, "relative_target_port"));
        Ok(Self {
            name: from.name.clone(),
            id: not_zero(from.id, "id")?,
            state,
            preferred: from.preferred,
            status_code,
            ports: ports.collect::<Result<_, _>>()?,
            targets: from.ports.iter().map(|port| port.target).filter(|own| *own != 0).collect(),
        })
    }
}

/// A checked [`control::DeviceGroup`]; the fields mean what they mean there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DeviceGroup {
    pub name: String,
    pub units: Vec<u32>,
    /// Each id, each port and each target once.
    pub groups: Vec<TargetPortGroup>,
    /// Nexus and unit.
    pub set_by: Option<(u32, u32)>,
}

impl TryFrom<&control::DeviceGroup> for DeviceGroup {
    type Error = Invalid;

    fn try_from(from: &control::DeviceGroup) -> Result<Self, Invalid> {
        let object = || format!("device group {:?}", from.name);
        let about = About(&object);
        about.name(&from.name, 223)?;
        about.require(from.groups.len() <= PORT_GROUPS_MAX, || {
            let count = from.groups.len();
            format!("{count} target port groups; at most {PORT_GROUPS_MAX} are possible")
        })?;
        let (mut ids, mut ports, mut targets) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut groups = Vec::new();
        for group in &from.groups {
            let group = TargetPortGroup::try_from(group)?;
            about.require(ids.insert(group.id), || {
                format!("two target port groups have the id {}", group.id)
            })?;
            for port in &group.ports {
                about.require(ports.insert(*port), || {
                    format!("relative target port {port} is in it twice")
                })?;
            }
            for target in &group.targets {
                about.require(targets.insert(*target), || {
                    format!("the target with handle {target} is in it twice")
                })?;
            }
            groups.push(group);
        }
        let set_by = (from.set_by_nexus, from.set_by_unit);
        Ok(Self {
            name: from.name.clone(),
            units: from.units.clone(),
            groups,
            set_by: Some(set_by).filter(|(nexus, _)| *nexus != 0),
        })
    }
}

/// A checked [`control::Configuration`]: every LUN's unit is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Not 0.
    pub generation: u32,
    /// Ascending by handle, each handle once.
    pub units: Vec<LogicalUnit>,
    /// Ascending by handle, each handle once.
    pub targets: Vec<Target>,
    /// A unit is in at most one.
    pub device_groups: Vec<DeviceGroup>,
}

impl TryFrom<&control::Configuration> for Configuration {
    type Error = Invalid;

    fn try_from(from: &control::Configuration) -> Result<Self, Invalid> {
        let object = || format!("configuration {}", from.generation);
        let about = About(&object);
        about.require(from.generation != 0, || "generation 0 is not possible".to_owned())?;
        let mut handles = BTreeSet::new();
        let mut units = Vec::new();
        for unit in &from.units {
            about.require(handles.insert(unit.handle), || {
                format!("two logical units have handle {}", unit.handle)
            })?;
            units.push(LogicalUnit::try_from(unit)?);
        }
        let mut targets = Vec::new();
        let (mut target_handles, mut ports, mut names) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for target in &from.targets {
            let target = Target::try_from(target)?;
            about.require(target_handles.insert(target.handle), || {
                format!("two targets have handle {}", target.handle)
            })?;
            about.require(names.insert((target.driver.clone(), target.name.clone())), || {
                format!("two targets of driver {:?} are named {:?}", target.driver, target.name)
            })?;
            about.require(ports.insert((target.driver.clone(), target.port_id)), || {
                format!("target {:?} has the port id of another target", target.name)
            })?;
            for lun in target.groups.iter().flat_map(|g| &g.luns).chain(&target.default_luns) {
                about.require(handles.contains(&lun.unit), || {
                    format!(
                        "target {:?} maps LUN {} to logical unit {}, which is not there",
                        target.name, lun.lun, lun.unit
                    )
                })?;
            }
            targets.push(target);
        }
        let mut grouped = BTreeSet::new();
        let mut device_groups = Vec::new();
        for group in &from.device_groups {
            let group = DeviceGroup::try_from(group)?;
            for unit in &group.units {
                about.require(handles.contains(unit) && grouped.insert(*unit), || {
                    format!(
                        "device group {:?} has logical unit {unit}, which is not there or in another",
                        group.name
                    )
                })?;
            }
            for target in group.groups.iter().flat_map(|group| &group.targets) {
                about.require(target_handles.contains(target), || {
                    format!("device group {:?} has target {target}, which is not there", group.name)
                })?;
            }
            device_groups.push(group);
        }
        units.sort_by_key(|unit| unit.handle);
        targets.sort_by_key(|target| target.handle);
        Ok(Self { generation: from.generation, units, targets, device_groups })
    }
}

/// One ring pair and data area, inside their arenas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Names the ring pair.
    pub id: u16,
    /// The poll group that uses it.
    pub group: u32,
    /// Arena of both rings.
    pub arena: u16,
    /// Bytes from the arena's start to the submission ring.
    pub submission_offset: u64,
    /// Bytes from the arena's start to the completion ring.
    pub completion_offset: u64,
    /// The layout of each of the two.
    pub layout: RingLayout,
    /// Arena of the data area.
    pub data_arena: u16,
    /// Bytes from the data arena's start to the data area.
    pub data_offset: u64,
    /// Length of the data area in bytes; 0: there is none.
    pub data_bytes: u64,
    /// Sequence of the next submission.
    pub submission_sequence: u32,
    /// Sequence of the next completion.
    pub completion_sequence: u32,
}

/// Host memory to import.
#[derive(Clone, PartialEq, Eq)]
pub struct Arena {
    /// Names the arena.
    pub id: u16,
    /// The export blob: a secret.
    pub blob: Vec<u8>,
    /// Length in bytes.
    pub bytes: u64,
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("id", &self.id)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// A checked [`control::RingSetup`]: nothing lies outside its arena, and no two things overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingSetup {
    /// The arenas, each id once.
    pub arenas: Vec<Arena>,
    /// The rings, each id and each poll group once.
    pub rings: Vec<Ring>,
}

impl TryFrom<&control::RingSetup> for RingSetup {
    type Error = Invalid;

    fn try_from(from: &control::RingSetup) -> Result<Self, Invalid> {
        let mut arenas: Vec<Arena> = Vec::new();
        for arena in &from.arenas {
            let object = || format!("arena {}", arena.id);
            let about = About(&object);
            let id = u16::try_from(arena.id)
                .map_err(|_| about.refuse("the id must be 0 to 65535".to_owned()))?;
            about.require(!arenas.iter().any(|other| other.id == id), || {
                "the id is used twice".to_owned()
            })?;
            about.require(arena.bytes != 0, || "its length is 0".to_owned())?;
            arenas.push(Arena { id, blob: arena.blob.clone(), bytes: arena.bytes });
        }
        let mut ranges = Ranges::default();
        let mut rings: Vec<Ring> = Vec::new();
        for ring in &from.rings {
            let object = || format!("ring {}", ring.id);
            let about = About(&object);
            let id = u16::try_from(ring.id)
                .map_err(|_| about.refuse("the id must be 0 to 65535".to_owned()))?;
            about.require(
                !rings.iter().any(|other| other.id == id || other.group == ring.group),
                || format!("its id or its poll group {} is used twice", ring.group),
            )?;
            let layout = RingLayout::new(ring.slots).ok_or_else(|| {
                let (slots, most) = (ring.slots, RingLayout::SLOTS_MAX);
                about.refuse(format!("{slots} slots; a power of two from 2 to {most} is possible"))
            })?;
            let arena = arena_of(&about, &arenas, ring.arena)?;
            let data_arena = arena_of(&about, &arenas, ring.data_arena)?;
            let bytes = layout.bytes();
            ranges.add(&about, "submission ring", arena, ring.submission_offset, bytes, 64)?;
            ranges.add(&about, "completion ring", arena, ring.completion_offset, bytes, 64)?;
            ranges.add(&about, "data area", data_arena, ring.data_offset, ring.data_bytes, 4096)?;
            rings.push(Ring {
                id,
                group: ring.group,
                arena: arena.id,
                submission_offset: ring.submission_offset,
                completion_offset: ring.completion_offset,
                layout,
                data_arena: data_arena.id,
                data_offset: ring.data_offset,
                data_bytes: ring.data_bytes,
                submission_sequence: ring.submission_sequence,
                completion_sequence: ring.completion_sequence,
            });
        }
        Ok(Self { arenas, rings })
    }
}

fn arena_of<'a>(about: &About<'_>, arenas: &'a [Arena], id: u32) -> Result<&'a Arena, Invalid> {
    arenas
        .iter()
        .find(|arena| u32::from(arena.id) == id)
        .ok_or_else(|| about.refuse(format!("arena {id} is not in the message")))
}

/// What was placed so far, as (arena, start, end).
#[derive(Default)]
struct Ranges(Vec<(u16, u64, u64)>);

impl Ranges {
    fn add(
        &mut self,
        about: &About<'_>,
        what: &str,
        arena: &Arena,
        start: u64,
        bytes: u64,
        alignment: u64,
    ) -> Result<(), Invalid> {
        about.require(start.is_multiple_of(alignment), || {
            format!("its {what} begins at {start}, which is no multiple of {alignment}")
        })?;
        let end = start.checked_add(bytes).filter(|end| *end <= arena.bytes).ok_or_else(|| {
            let (id, length) = (arena.id, arena.bytes);
            about.refuse(format!(
                "its {what} of {bytes} bytes at {start} is not inside arena {id} of {length} bytes"
            ))
        })?;
        let overlaps =
            |other: &(u16, u64, u64)| other.0 == arena.id && start < other.2 && other.1 < end;
        about.require(bytes == 0 || !self.0.iter().any(overlaps), || {
            format!("its {what} overlaps another ring or data area")
        })?;
        if bytes != 0 {
            self.0.push((arena.id, start, end));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
