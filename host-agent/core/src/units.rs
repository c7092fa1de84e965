//! The configuration as the core needs it: units with the handlers behind them, and targets. Plain
//! data; where it comes from is the agent's affair.

use std::collections::BTreeMap;

use lunar_offload_proto::control::{self, BackendKind, LogicalUnit, Target};

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
         a device has at least one and at most 2^63 bytes"
    )]
    Geometry {
        /// The unit's name.
        name: String,
        /// Bytes of a block.
        block_bytes: u32,
        /// Number of blocks.
        blocks: u64,
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
    pub(crate) blocks: u64,
    pub(crate) read_only: bool,
    pub(crate) thin: bool,
}

/// The units in force, with the message that told the card.
#[derive(Debug, Default)]
pub(crate) struct Units {
    pub(crate) generation: u32,
    ring_backed: BTreeMap<u32, Unit>,
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
        let mut handles = std::collections::BTreeSet::new();
        let mut units = Vec::with_capacity(new.units.len());
        for UnitConfiguration { unit, device } in new.units {
            let name = unit.name.clone();
            if unit.handle == 0 || !handles.insert(unit.handle) {
                return Err(ConfigurationError::Handle { name, handle: unit.handle });
            }
            let (block_bytes, blocks) = (unit.block_bytes, unit.blocks);
            let possible = block_bytes.is_power_of_two()
                && (512..=65536).contains(&block_bytes)
                && blocks > 0
                && blocks.checked_mul(u64::from(block_bytes)).is_some_and(|all| all <= 1 << 63);
            if !possible {
                return Err(ConfigurationError::Geometry { name, block_bytes, blocks });
            }
            match (unit.backend == BackendKind::Ring as i32, device) {
                (true, device) => {
                    let (read_only, thin) = (unit.read_only, unit.thin);
                    let kept = Unit { name, device, block_bytes, blocks, read_only, thin };
                    ring_backed.insert(unit.handle, kept);
                }
                (false, None) => {}
                _ => return Err(ConfigurationError::Handler { name }),
            }
            units.push(unit);
        }
        self.advance();
        self.ring_backed = ring_backed;
        let generation = self.generation;
        self.message = Some(control::Configuration { generation, units, targets: new.targets });
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

    pub(crate) fn get(&self, handle: u32) -> Option<&Unit> {
        self.ring_backed.get(&handle)
    }

    /// The message for the card; `None` before the first configuration.
    pub(crate) fn message(&self) -> Option<&control::Configuration> {
        self.message.as_ref()
    }
}
