//! What the card serves: logical units, targets and who may see which LUN. A snapshot with a
//! generation, replaced as a whole; the poll groups share it read-only.

use lunar_dma::sgv::Placement;
use lunar_offload_proto::access;
use lunar_scsi::unit::LogicalUnit;
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
}

/// Where a logical unit's blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// The card itself: reads give zeroes or stale buffer content, writes go nowhere (nullio).
    CardNull,
    /// The host agent, through the PCIe ring.
    Ring,
}

/// One logical unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// The agent's name for it in ring entries; below [`Unit::HANDLES_MAX`].
    pub handle: u32,
    /// The device's name in the management tree.
    pub name: String,
    /// What the device server answers from.
    pub logical_unit: LogicalUnit,
    /// Who executes its block operations.
    pub backend: BackendKind,
    /// Where its data buffers are.
    pub placement: Placement,
}

impl Unit {
    /// Handles are indexes of per-group arrays, so they are bounded.
    pub const HANDLES_MAX: u32 = 16_384;
}

/// One SRP target (a port with its LUN lists).
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The agent's name for it.
    pub handle: u32,
    /// Its name in the management tree.
    pub name: String,
    /// Logins are refused while it is not enabled.
    pub enabled: bool,
    /// SRP target port identifier.
    pub port: PortId,
    /// Credits given at login (SRP request limit), 1..=4096.
    pub request_limit: u32,
    /// Largest initiator-to-target IU in bytes.
    pub it_iu_bytes_max: u32,
    /// Initiator groups in order; the first with a matching pattern decides.
    pub groups: Vec<Group>,
    /// LUNs of initiators that no group names.
    pub luns: Vec<Lun>,
}

/// An initiator group: who, and which LUNs they see.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Patterns as SCST matches them.
    pub patterns: Vec<String>,
    /// Its LUNs.
    pub luns: Vec<Lun>,
}

/// One LUN of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lun {
    /// LUN number, 0..=16383.
    pub number: u16,
    /// Handle of its logical unit.
    pub unit: u32,
    /// Writes through this LUN are refused.
    pub read_only: bool,
}

impl Configuration {
    /// The target that answers to `port`.
    #[must_use]
    pub fn target_of_port(&self, port: &PortId) -> Option<&Target> {
        self.targets.iter().find(|target| target.port == *port)
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
}

impl Target {
    /// The LUNs that an initiator with any of these names sees: those of the first group with a
    /// pattern that matches one of them, else the target's own.
    #[must_use]
    pub fn luns_for(&self, names: &[&str]) -> &[Lun] {
        self.groups
            .iter()
            .find(|group| {
                group
                    .patterns
                    .iter()
                    .any(|pattern| names.iter().any(|name| access::matches(pattern, name)))
            })
            .map_or(&self.luns, |group| &group.luns)
    }
}
