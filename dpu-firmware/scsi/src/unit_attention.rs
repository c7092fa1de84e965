//! Unit attention conditions of one I_T nexus and logical unit (SAM-6 5.14). When they are
//! established and which command reports them is the caller's; which one is reported first is
//! decided here.

use crate::sense::{Sense, SenseKey};

/// A unit attention condition. The order is the order of reporting, first reported first: SAM-6
/// 5.14 gives the reset conditions their precedence, the rest are equal there and ordered here by
/// how much an initiator has to learn again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum UnitAttention {
    /// 29/00 POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
    PowerOnOrReset,
    /// 29/01 POWER ON OCCURRED.
    PowerOn,
    /// 29/04 DEVICE INTERNAL RESET.
    DeviceInternalReset,
    /// 29/02 SCSI BUS RESET OCCURRED: a hard reset, whatever the transport calls it.
    BusReset,
    /// 29/03 BUS DEVICE RESET FUNCTION OCCURRED: LOGICAL UNIT RESET.
    BusDeviceReset,
    /// 29/07 I_T NEXUS LOSS OCCURRED.
    NexusLoss,
    /// 28/00 NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED.
    MediumMayHaveChanged,
    /// 2F/00 COMMANDS CLEARED BY ANOTHER INITIATOR.
    CommandsClearedByAnotherInitiator,
    /// 2A/03 RESERVATIONS PREEMPTED: CLEAR removed this I_T nexus's registration.
    ReservationsPreempted,
    /// 2A/05 REGISTRATIONS PREEMPTED: PREEMPT removed this I_T nexus's registration.
    RegistrationsPreempted,
    /// 2A/04 RESERVATIONS RELEASED: this I_T nexus is registered still, the reservation is gone.
    ReservationsReleased,
    /// 3F/0E REPORTED LUNS DATA HAS CHANGED.
    ReportedLunsDataChanged,
    /// 3F/03 INQUIRY DATA HAS CHANGED.
    InquiryDataChanged,
    /// 2A/09 CAPACITY DATA HAS CHANGED.
    CapacityDataChanged,
    /// 2A/06 ASYMMETRIC ACCESS STATE CHANGED.
    AsymmetricAccessStateChanged,
    /// 2A/01 MODE PARAMETERS CHANGED.
    ModeParametersChanged,
}

/// In order of reporting; the index is the discriminant and the bit in [`UnitAttentions`].
const ALL: [UnitAttention; 16] = [
    UnitAttention::PowerOnOrReset,
    UnitAttention::PowerOn,
    UnitAttention::DeviceInternalReset,
    UnitAttention::BusReset,
    UnitAttention::BusDeviceReset,
    UnitAttention::NexusLoss,
    UnitAttention::MediumMayHaveChanged,
    UnitAttention::CommandsClearedByAnotherInitiator,
    UnitAttention::ReservationsPreempted,
    UnitAttention::RegistrationsPreempted,
    UnitAttention::ReservationsReleased,
    UnitAttention::ReportedLunsDataChanged,
    UnitAttention::InquiryDataChanged,
    UnitAttention::CapacityDataChanged,
    UnitAttention::AsymmetricAccessStateChanged,
    UnitAttention::ModeParametersChanged,
];

impl UnitAttention {
    /// The sense data that reports it: UNIT ATTENTION and the code above.
    #[must_use]
    pub const fn sense(self) -> Sense {
        let (asc, ascq) = match self {
            Self::PowerOnOrReset => (0x29, 0x00),
            Self::PowerOn => (0x29, 0x01),
            Self::DeviceInternalReset => (0x29, 0x04),
            Self::BusReset => (0x29, 0x02),
            Self::BusDeviceReset => (0x29, 0x03),
            Self::NexusLoss => (0x29, 0x07),
            Self::MediumMayHaveChanged => (0x28, 0x00),
            Self::CommandsClearedByAnotherInitiator => (0x2F, 0x00),
            Self::ReservationsPreempted => (0x2A, 0x03),
            Self::RegistrationsPreempted => (0x2A, 0x05),
            Self::ReservationsReleased => (0x2A, 0x04),
            Self::ReportedLunsDataChanged => (0x3F, 0x0E),
            Self::InquiryDataChanged => (0x3F, 0x03),
            Self::CapacityDataChanged => (0x2A, 0x09),
            Self::AsymmetricAccessStateChanged => (0x2A, 0x06),
            Self::ModeParametersChanged => (0x2A, 0x01),
        };
        Sense::new(SenseKey::UnitAttention, asc, ascq)
    }

    const fn bit(self) -> u32 {
        1 << self as u8
    }

    /// The conditions that say nothing new to an initiator that will hear of this one. A reset ends
    /// every command, every nexus' state in the unit and every changed mode parameter; it says
    /// nothing about registrations, LUNs, identity, capacity or paths, so those stay.
    const fn covers(self) -> u32 {
        let reset = Self::PowerOnOrReset.bit()
            | Self::PowerOn.bit()
            | Self::DeviceInternalReset.bit()
            | Self::BusReset.bit()
            | Self::BusDeviceReset.bit()
            | Self::NexusLoss.bit()
            | Self::CommandsClearedByAnotherInitiator.bit()
            | Self::ModeParametersChanged.bit();
        match self {
            Self::PowerOnOrReset
            | Self::PowerOn
            | Self::DeviceInternalReset
            | Self::BusReset
            | Self::BusDeviceReset => reset & !(self.bit() | (self.bit().wrapping_sub(1))),
            Self::NexusLoss => Self::CommandsClearedByAnotherInitiator.bit(),
            _ => 0,
        }
    }
}

/// The pending unit attention conditions of one I_T nexus and logical unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitAttentions(u32);

impl UnitAttentions {
    /// Adds a condition. A reset swallows the lesser conditions it covers, whichever came first.
    pub fn establish(&mut self, attention: UnitAttention) {
        self.0 |= attention.bit();
        for greater in ALL {
            if self.0 & greater.bit() != 0 {
                self.0 &= !greater.covers();
            }
        }
    }

    /// Takes one condition back without reporting it: REPORT LUNS does so for
    /// [`UnitAttention::ReportedLunsDataChanged`] (SPC-6, REPORT LUNS).
    pub fn clear(&mut self, attention: UnitAttention) {
        self.0 &= !attention.bit();
    }

    /// The condition to report next, which stays pending.
    #[must_use]
    #[inline]
    pub fn pending(&self) -> Option<Sense> {
        self.first().map(UnitAttention::sense)
    }

    /// The condition to report now, which is thereby cleared (SAM-6 5.14).
    #[inline]
    pub fn take(&mut self) -> Option<Sense> {
        let attention = self.first()?;
        self.clear(attention);
        Some(attention.sense())
    }

    /// True while nothing is pending: the data path's check.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }

    #[inline]
    fn first(&self) -> Option<UnitAttention> {
        ALL.get(self.0.trailing_zeros() as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn established(attentions: &[UnitAttention]) -> UnitAttentions {
        let mut set = UnitAttentions::default();
        for &attention in attentions {
            set.establish(attention);
        }
        set
    }

    fn drained(mut set: UnitAttentions) -> Vec<(u8, u8)> {
        std::iter::from_fn(|| set.take()).map(|sense| (sense.asc, sense.ascq)).collect()
    }

    #[test]
    fn the_index_in_all_is_the_discriminant() {
        for (index, attention) in ALL.into_iter().enumerate() {
            assert_eq!(attention as usize, index);
        }
    }

    #[test]
    fn sam_6_taking_reports_once_and_pending_does_not_clear() {
        let mut set = established(&[UnitAttention::CapacityDataChanged]);
        assert_eq!(set.pending(), Some(UnitAttention::CapacityDataChanged.sense()));
        assert_eq!(set.take(), Some(UnitAttention::CapacityDataChanged.sense()));
        assert_eq!(set.take(), None);
        assert!(set.is_empty());
    }

    #[test]
    fn sam_6_a_nexus_loss_is_reported_before_changed_inquiry_data() {
        let set = established(&[UnitAttention::InquiryDataChanged, UnitAttention::NexusLoss]);
        assert_eq!(drained(set), [(0x29, 0x07), (0x3F, 0x03)]);
    }

    #[test]
    fn sam_6_a_power_on_swallows_lesser_resets_but_not_news_about_the_unit() {
        let set = established(&[
            UnitAttention::BusDeviceReset,
            UnitAttention::ReportedLunsDataChanged,
            UnitAttention::CommandsClearedByAnotherInitiator,
            UnitAttention::PowerOnOrReset,
            UnitAttention::NexusLoss,
            UnitAttention::ModeParametersChanged,
        ]);
        assert_eq!(drained(set), [(0x29, 0x00), (0x3F, 0x0E)]);
    }

    #[test]
    fn a_nexus_loss_swallows_cleared_commands_but_not_mode_parameters() {
        let set = established(&[
            UnitAttention::CommandsClearedByAnotherInitiator,
            UnitAttention::NexusLoss,
            UnitAttention::ModeParametersChanged,
        ]);
        assert_eq!(drained(set), [(0x29, 0x07), (0x2A, 0x01)]);
    }

    #[test]
    fn spc_6_report_luns_takes_back_its_own_condition_only() {
        let mut set = established(&[
            UnitAttention::ReportedLunsDataChanged,
            UnitAttention::CapacityDataChanged,
        ]);
        set.clear(UnitAttention::ReportedLunsDataChanged);
        assert_eq!(drained(set), [(0x2A, 0x09)]);
    }

    proptest! {
        #[test]
        fn the_order_of_establishing_does_not_matter(
            attentions in prop::collection::vec(prop::sample::select(ALL.to_vec()), 0..8),
        ) {
            let mut backwards = attentions.clone();
            backwards.reverse();
            prop_assert_eq!(established(&attentions), established(&backwards));
        }

        #[test]
        fn everything_established_is_reported_or_covered_by_something_reported(
            attentions in prop::collection::vec(prop::sample::select(ALL.to_vec()), 0..8),
        ) {
            let mut set = established(&attentions);
            let mut reported = Vec::new();
            while let Some(sense) = set.take() {
                let attention = ALL.into_iter().find(|candidate| candidate.sense() == sense);
                reported.push(attention.unwrap());
            }
            prop_assert!(reported.is_sorted());
            for attention in attentions {
                prop_assert!(
                    reported.contains(&attention)
                        || reported.iter().any(|greater| greater.covers() & attention.bit() != 0)
                );
            }
        }
    }
}
