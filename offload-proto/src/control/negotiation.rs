//! What card and agent agree on when they meet: one version, and the features both have.

use core::fmt;

use super::{Hello, Limits};

/// Least protocol version this build speaks.
pub const VERSION_MIN: u32 = 1;
/// Greatest protocol version this build speaks.
pub const VERSION_MAX: u32 = 1;

/// Feature bits of `Hello.features`.
pub mod feature {
    /// Data may be placed in HostDram arenas.
    pub const HOST_DRAM: u64 = 1 << 0;
    /// Unknown CDBs may be forwarded through the ring.
    pub const FORWARD: u64 = 1 << 1;
    /// Ring operations may be cancelled.
    pub const CANCEL: u64 = 1 << 2;
    /// The agent is told when a unit was reset, and answers.
    pub const RESETS: u64 = 1 << 3;
    /// The card enforces access tables of units.
    pub const ACCESS_TABLES: u64 = 1 << 4;
    /// Every feature this build knows.
    pub const ALL: u64 = HOST_DRAM | FORWARD | CANCEL | RESETS | ACCESS_TABLES;
    const NAMES: [(u64, &str); 5] = [
        (HOST_DRAM, "host-dram"),
        (FORWARD, "forward"),
        (CANCEL, "cancel"),
        (RESETS, "resets"),
        (ACCESS_TABLES, "access-tables"),
    ];

    /// The names of the known features in `bits`.
    pub fn names(bits: u64) -> impl Iterator<Item = &'static str> {
        NAMES.iter().filter(move |(bit, _)| bits & bit != 0).map(|(_, name)| *name)
    }
}

/// What both sides work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The greatest version both speak.
    pub version: u32,
    /// The features both have.
    pub features: u64,
}

impl Agreed {
    /// Whether both sides have all features in `bits`.
    #[must_use]
    pub fn has(&self, bits: u64) -> bool {
        self.features & bits == bits
    }
}

/// Why the two cannot work together. Displays as a reason for the log and for `HelloRefused`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The peer's Hello makes no sense.
    Malformed {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The version ranges have nothing in common.
    Version {
        /// Mine: least and greatest.
        mine: (u32, u32),
        /// Theirs: least and greatest.
        theirs: (u32, u32),
    },
    /// I cannot work without features that the peer has not.
    TheyLack {
        /// The missing bits.
        features: u64,
    },
    /// The peer cannot work without features that I have not.
    ILack {
        /// The missing bits.
        features: u64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, bits: u64| {
            write!(f, "{bits:#x} (")?;
            for (index, name) in feature::names(bits).enumerate() {
                if index > 0 {
                    f.write_str(", ")?;
                }
                f.write_str(name)?;
            }
            f.write_str("); update the older side")
        };
        match self {
            Self::Malformed { reason } => write!(f, "the peer's Hello is malformed: {reason}"),
            Self::Version { mine, theirs } => write!(
                f,
                "no common protocol version: this side speaks {} to {}, the peer {} to {}; update the older side",
                mine.0, mine.1, theirs.0, theirs.1
            ),
            Self::TheyLack { features } => {
                f.write_str("the peer lacks features that this side needs: ")?;
                list(f, *features)
            }
            Self::ILack { features } => {
                f.write_str("this side lacks features that the peer needs: ")?;
                list(f, *features)
            }
        }
    }
}

impl core::error::Error for Refusal {}

/// This build's Hello. `features` are those offered, a subset of [`feature::ALL`]; `required` a subset
/// of `features`.
#[must_use]
pub fn hello(
    software: &str,
    epoch: u64,
    boot_id: [u8; 16],
    features: u64,
    required: u64,
    limits: Limits,
) -> Hello {
    Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        features,
        features_required: required,
        epoch,
        boot_id: boot_id.to_vec(),
        limits: Some(limits),
        software: software.to_owned(),
    }
}

/// What two Hellos agree on. Both sides get the same [`Agreed`] when they swap the arguments.
///
/// # Errors
/// [`Refusal`] says why they cannot work together.
pub fn negotiate(mine: &Hello, theirs: &Hello) -> Result<Agreed, Refusal> {
    if theirs.version_min == 0 || theirs.version_min > theirs.version_max {
        return Err(Refusal::Malformed { reason: "its version range is empty or starts at 0" });
    }
    if theirs.features_required & !theirs.features != 0 {
        return Err(Refusal::Malformed { reason: "it requires features that it does not have" });
    }
    if theirs.boot_id.len() != 16 {
        return Err(Refusal::Malformed { reason: "its boot id does not have 16 bytes" });
    }
    let version = mine.version_max.min(theirs.version_max);
    if version < mine.version_min.max(theirs.version_min) {
        return Err(Refusal::Version {
            mine: (mine.version_min, mine.version_max),
            theirs: (theirs.version_min, theirs.version_max),
        });
    }
    match (mine.features_required & !theirs.features, theirs.features_required & !mine.features) {
        (0, 0) => Ok(Agreed { version, features: mine.features & theirs.features }),
        (0, features) => Err(Refusal::ILack { features }),
        (features, _) => Err(Refusal::TheyLack { features }),
    }
}
