//! What the core is started with: plain data from the agent's configuration, the keeper, and the
//! memory of the rings.

use lunar_offload_proto::ring::RingLayout;

/// Everything that is fixed for the life of one agent.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Name and version for the card's log, for example `lunar-agent 0.1.0`.
    pub software: String,
    /// Which start of the agent this is; grows with every start.
    pub epoch: u64,
    /// Names the boot of this machine.
    pub boot_id: [u8; 16],
    /// The arenas that rings and data areas lie in.
    pub arenas: Vec<ArenaGeometry>,
    /// The ring pairs. A ring is named by its index here.
    pub rings: Vec<RingGeometry>,
    /// The last configuration generation of the agent before this one (the keeper keeps it), 0 for
    /// the first: generations go on growing, so that an entry made under an older one is told apart.
    pub configuration_generation: u32,
    /// What the agent before this one left in the rings; `None` when they are new.
    pub recovered: Option<Recovered>,
    /// Bounds in number and time.
    pub limits: Limits,
}

/// One arena.
#[derive(Clone, PartialEq, Eq)]
pub struct ArenaGeometry {
    /// Its name, chosen by the keeper.
    pub id: u16,
    /// The export blob for the card. A secret.
    pub blob: Vec<u8>,
    /// Length in bytes.
    pub bytes: u64,
}

impl std::fmt::Debug for ArenaGeometry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ArenaGeometry({}, {} bytes)", self.id, self.bytes)
    }
}

/// Where one ring pair and its data area lie. The agent checked that both lie inside their arenas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingGeometry {
    /// The card's poll group that uses it.
    pub group: u32,
    /// The arena of both rings.
    pub arena: u16,
    /// Bytes from the arena's start to the submission ring; a multiple of 64.
    pub submission_offset: u64,
    /// Bytes from the arena's start to the completion ring; a multiple of 64.
    pub completion_offset: u64,
    /// Slots of each of the two.
    pub layout: RingLayout,
    /// The arena of the data area.
    pub data_arena: u16,
    /// Bytes from the data arena's start to the data area.
    pub data_offset: u64,
    /// Length of the data area in bytes.
    pub data_bytes: u64,
}

/// What an agent finds when it starts on rings that were in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The card's epoch that the rings were used by (see [`crate::Effect::RememberCard`]).
    pub card_epoch: u64,
    /// One for each ring, in order.
    pub rings: Vec<RingRecovery>,
}

/// What the words and entries of one ring pair told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingRecovery {
    /// Sequence of the next submission to take: those before were taken by the agent before.
    pub next_submission: u32,
    /// Sequence of the next completion to publish.
    pub next_completion: u32,
    /// Tokens of the completions that are published and, by the card's word, not consumed.
    pub unread: Vec<u64>,
}

/// Bounds. Times are in nanoseconds of the `now` that the shell gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nexuses in the table; logins beyond it are logged and not tracked.
    pub nexuses_max: u32,
    /// Logical units of a configuration.
    pub units_max: u32,
    /// How long a new card epoch waits for the operations of the one before.
    pub older_epoch_wait_ns: u64,
    /// How long an entry waits for the generation it was made under.
    pub parked_wait_ns: u64,
    /// Between two heartbeats.
    pub heartbeat_ns: u64,
    /// Without any message for so long, the card is gone.
    pub silence_ns: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const SECOND: u64 = 1_000_000_000;
        Self {
            nexuses_max: 16_384,
            units_max: 16_384,
            older_epoch_wait_ns: SECOND.saturating_mul(30),
            parked_wait_ns: SECOND.saturating_mul(30),
            heartbeat_ns: SECOND,
            silence_ns: SECOND.saturating_mul(3),
        }
    }
}
