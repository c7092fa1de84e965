//! The access states of target port groups by their names in `scst.conf`, and by their numbers in the control
//! messages. What a state means is decided elsewhere.

use std::fmt;

/// ASYMMETRIC ACCESS STATE (SPC-6, REPORT TARGET PORT GROUPS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are the standard's own")]
pub enum AccessState {
    #[default]
    Active,
    NonOptimized,
    Standby,
    Unavailable,
    LbaDependent,
    Offline,
    Transitioning,
}

impl AccessState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Active,
        Self::NonOptimized,
        Self::Standby,
        Self::Unavailable,
        Self::LbaDependent,
        Self::Offline,
        Self::Transitioning,
    ];

    /// The name in `scst.conf`: SCST's, but for `lba-dependent`, which SCST has not.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::NonOptimized => "nonoptimized",
            Self::Standby => "standby",
            Self::Unavailable => "unavailable",
            Self::LbaDependent => "lba-dependent",
            Self::Offline => "offline",
            Self::Transitioning => "transitioning",
        }
    }

    /// The state of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Active => 0x0,
            Self::NonOptimized => 0x1,
            Self::Standby => 0x2,
            Self::Unavailable => 0x3,
            Self::LbaDependent => 0x4,
            Self::Offline => 0xE,
            Self::Transitioning => 0xF,
        }
    }

    /// The state of a number, as a control message has it.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|state| u32::from(state.code()) == code)
    }

    /// The names of all, for messages.
    #[must_use]
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for AccessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back_to_their_state() {
        for state in AccessState::ALL {
            assert_eq!(AccessState::from_name(state.name()), Some(state));
            assert_eq!(AccessState::from_code(state.code().into()), Some(state));
        }
        assert_eq!(AccessState::from_name("Active"), None);
        assert_eq!(AccessState::from_code(5), None);
    }
}
