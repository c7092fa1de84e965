//! The state of one unit's reservations, what it means for an I_T nexus, and what happens to it without
//! a command. Commands that change it are in `change` and `legacy`.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::access::{Access, AccessTable};
use super::transport_id::{Protocol, TransportId};

/// The most registrations that a unit takes; more are INSUFFICIENT REGISTRATION RESOURCES.
pub const REGISTRATIONS_MAX: usize = 4096;

/// An I_T nexus, by names that outlive logins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nexus {
    /// The initiator port.
    pub initiator: TransportId,
    /// The target port, by its relative target port identifier, 1..=65,535.
    pub target_port: u16,
}

/// A target port of the SCSI target device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetPort {
    /// Its relative target port identifier, 1..=65,535.
    pub id: u16,
    /// Its transport: only initiators of the same transport can be at it.
    pub protocol: Protocol,
}

/// TYPE of a persistent reservation (SPC-4 6.15.3.4). The discriminant is the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReservationType {
    /// Write Exclusive: only the holder writes.
    WriteExclusive = 0x1,
    /// Exclusive Access: only the holder reads and writes.
    ExclusiveAccess = 0x3,
    /// Write Exclusive - Registrants Only: whoever is registered writes.
    WriteExclusiveRegistrantsOnly = 0x5,
    /// Exclusive Access - Registrants Only: whoever is registered reads and writes.
    ExclusiveAccessRegistrantsOnly = 0x6,
    /// Write Exclusive - All Registrants: as registrants only, and each of them is a holder.
    WriteExclusiveAllRegistrants = 0x7,
    /// Exclusive Access - All Registrants: as registrants only, and each of them is a holder.
    ExclusiveAccessAllRegistrants = 0x8,
}

impl ReservationType {
    /// Every one, in the order of their codes.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// The type with this code; `None` for a reserved or obsolete one.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == code)
    }

    /// Every registered nexus may do what the holder may.
    #[must_use]
    pub fn admits_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Every registered nexus is a holder.
    #[must_use]
    pub fn is_all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }

    /// What those may do that it keeps out.
    fn access(self) -> Access {
        match self {
            Self::WriteExclusive
            | Self::WriteExclusiveRegistrantsOnly
            | Self::WriteExclusiveAllRegistrants => Access::NO_WRITES,
            Self::ExclusiveAccess
            | Self::ExclusiveAccessRegistrantsOnly
            | Self::ExclusiveAccessAllRegistrants => Access::NO_TRANSFERS,
        }
    }
}

/// A persistent reservation. Its scope is the logical unit, there is no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// TYPE.
    pub kind: ReservationType,
    /// Who holds it; `None`: every registered nexus, as the all registrants types have it.
    pub holder: Option<Nexus>,
}

impl Reservation {
    /// The reservation of this type that `nexus` asks for.
    pub(super) fn of(kind: ReservationType, nexus: &Nexus) -> Self {
        Self { kind, holder: (!kind.is_all_registrants()).then(|| nexus.clone()) }
    }
}

/// One registration, as `lunar pr show` tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration<'a> {
    /// Who is registered.
    pub nexus: &'a Nexus,
    /// The reservation key, not zero.
    pub key: u64,
    /// Whether it holds the persistent reservation.
    pub holder: bool,
}

/// The reservations of one logical unit.
///
/// What always holds: a holder is registered; an all registrants reservation has a registration; a
/// unit reserved by RESERVE has neither registration nor persistent reservation; no key is zero; and
/// while the information is lost there is nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservations {
    /// Reservation keys.
    pub(super) registrations: BTreeMap<Nexus, u64>,
    pub(super) reservation: Option<Reservation>,
    /// PRGENERATION.
    pub(super) generation: u32,
    /// APTPL as the last registration had it.
    pub(super) aptpl: bool,
    /// Who reserved the unit by RESERVE.
    pub(super) legacy_holder: Option<Nexus>,
    /// A recoverable lost persistent reservation (SPC-4 5.13.5.3).
    pub(super) lost: bool,
}

impl Reservations {
    /// The state of a unit whose kept reservations cannot be trusted: nobody may do anything until REPLACE
    /// LOST RESERVATION, or until people say what it is.
    #[must_use]
    pub fn information_lost() -> Self {
        Self { lost: true, aptpl: true, ..Self::default() }
    }

    /// Whether that is the state.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether there is neither registration nor reservation of any kind.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.registrations.is_empty() && self.legacy_holder.is_none() && !self.lost
    }

    /// PRGENERATION (SPC-4 6.15.2).
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// PTPL_A: registrations and the reservation outlive a loss of power.
    #[must_use]
    pub fn persists_through_power_loss(&self) -> bool {
        self.aptpl
    }

    /// The persistent reservation.
    #[must_use]
    pub fn reservation(&self) -> Option<&Reservation> {
        self.reservation.as_ref()
    }

    /// Who reserved the unit by RESERVE (6) or (10).
    #[must_use]
    pub fn legacy_holder(&self) -> Option<&Nexus> {
        self.legacy_holder.as_ref()
    }

    /// The registrations, ascending by nexus.
    pub fn registrations(&self) -> impl ExactSizeIterator<Item = Registration<'_>> {
        self.registrations.iter().map(|(nexus, &key)| Registration {
            nexus,
            key,
            holder: self.is_holder(nexus),
        })
    }

    /// Whether the nexus holds the persistent reservation (SPC-4 5.13.10).
    #[must_use]
    pub fn is_holder(&self, nexus: &Nexus) -> bool {
        match &self.reservation {
            Some(Reservation { holder: Some(holder), .. }) => holder == nexus,
            Some(Reservation { holder: None, .. }) => self.registrations.contains_key(nexus),
            None => false,
        }
    }

    /// What the nexus may do to the unit.
    #[must_use]
    pub fn access(&self, nexus: &Nexus) -> Access {
        if self.lost {
            return Access::INFORMATION_LOST;
        }
        if let Some(holder) = &self.legacy_holder {
            return if holder == nexus { Access::OPEN } else { Access::RESERVED };
        }
        match &self.reservation {
            Some(reservation) if !self.is_admitted(reservation, nexus) => reservation.kind.access(),
            _ => Access::OPEN,
        }
    }

    fn is_admitted(&self, reservation: &Reservation, nexus: &Nexus) -> bool {
        if reservation.kind.admits_registrants() {
            self.registrations.contains_key(nexus)
        } else {
            reservation.holder.as_ref() == Some(nexus)
        }
    }

    /// [`Reservations::access`] of every nexus there is or will be.
    #[must_use]
    pub fn access_table(&self) -> AccessTable {
        let open = |nexus: &Nexus| (nexus.clone(), Access::OPEN);
        let (others, admitted): (_, Vec<_>) = match (&self.legacy_holder, &self.reservation) {
            _ if self.lost => (Access::INFORMATION_LOST, Vec::new()),
            (Some(holder), _) => (Access::RESERVED, Vec::from([open(holder)])),
            (None, Some(reservation)) if reservation.kind.admits_registrants() => {
                (reservation.kind.access(), self.registrations.keys().map(open).collect())
            }
            (None, Some(reservation)) => {
                (reservation.kind.access(), reservation.holder.iter().map(open).collect())
            }
            (None, None) => (Access::OPEN, Vec::new()),
        };
        AccessTable::new(others, admitted)
    }

    /// LOGICAL UNIT RESET, and every reset that includes it: RESERVE ends (SPC-2 5.5.2), persistent
    /// reservations stay (SPC-4 5.13.1). True: something changed.
    pub fn on_logical_unit_reset(&mut self) -> bool {
        self.legacy_holder.take().is_some()
    }

    /// The I_T nexus was lost: its RESERVE ends (SAM-6, I_T nexus loss), persistent reservations stay. True:
    /// something changed.
    pub fn on_nexus_loss(&mut self, nexus: &Nexus) -> bool {
        self.legacy_holder.take_if(|holder| holder == nexus).is_some()
    }

    /// The unit lost its power since this state was kept: RESERVE ends, PRGENERATION begins anew, and
    /// without APTPL nothing is left (SPC-4 5.13.5.1 and 6.15.2). True: something changed.
    pub fn on_power_on(&mut self) -> bool {
        let before = core::mem::take(self);
        if before.aptpl {
            *self = Self { generation: 0, legacy_holder: None, ..before.clone() };
        }
        *self != before
    }

    /// What [`Reservations`] promises of itself, for states that come from outside.
    pub(super) fn is_consistent(&self) -> bool {
        let held = match &self.reservation {
            None => true,
            Some(Reservation { kind, holder: None }) => {
                kind.is_all_registrants() && !self.registrations.is_empty()
            }
            Some(Reservation { kind, holder: Some(holder) }) => {
                !kind.is_all_registrants() && self.registrations.contains_key(holder)
            }
        };
        let nothing = self.registrations.is_empty() && self.reservation.is_none();
        held && self.registrations.values().all(|&key| key != 0)
            && self.registrations.len() <= REGISTRATIONS_MAX
            && (nothing || (self.legacy_holder.is_none() && !self.lost))
            && (self.legacy_holder.is_none() || !self.lost)
    }
}
