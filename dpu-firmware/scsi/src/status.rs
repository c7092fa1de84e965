//! The SCSI status byte (SAM-6). Nothing else.

/// How a command ended (SAM-6). The discriminant is the status byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// Completed without error.
    Good = 0x00,
    /// Completed with sense data.
    CheckCondition = 0x02,
    /// The condition asked for was met (PRE-FETCH).
    ConditionMet = 0x04,
    /// Not accepted just now; the initiator tries again.
    Busy = 0x08,
    /// Another I_T nexus holds a reservation that conflicts with the command.
    ReservationConflict = 0x18,
    /// No room for the command in the task set; the initiator lowers its depth.
    TaskSetFull = 0x28,
    /// Refused because of an auto contingent allegiance.
    AcaActive = 0x30,
    /// Aborted by another I_T nexus, with TAS one in the Control mode page.
    TaskAborted = 0x40,
}

impl Status {
    /// The status with this code; `None` for a reserved or obsolete one.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => Self::Good,
            0x02 => Self::CheckCondition,
            0x04 => Self::ConditionMet,
            0x08 => Self::Busy,
            0x18 => Self::ReservationConflict,
            0x28 => Self::TaskSetFull,
            0x30 => Self::AcaActive,
            0x40 => Self::TaskAborted,
            _ => return None,
        })
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_round_trips_or_is_unknown() {
        let known: Vec<u8> =
            (0..=u8::MAX).filter(|&code| Status::from_code(code).is_some()).collect();
        assert_eq!(known, [0x00, 0x02, 0x04, 0x08, 0x18, 0x28, 0x30, 0x40]);
        for code in known {
            assert_eq!(Status::from_code(code).map(Status::code), Some(code));
        }
    }
}
