//! RESERVE (6) and (10), RELEASE (6) and (10): SPC-2 5.5 and 7.16 to 7.22, with the exceptions that SPC-4
//! 5.13.3 makes for whoever a persistent reservation lets in (CRH).

use super::change::{CONFLICT, Change, Effects};
use super::command::parse_legacy;
use super::state::{Nexus, Reservations};
use crate::device_server::Ending;
use crate::sense::Sense;

impl Reservations {
    /// Decides a RESERVE or RELEASE of either length. Both ways of reserving exclude each other: while
    /// anybody is registered they conflict, but for a nexus that the persistent reservation lets in,
    /// for which they do nothing.
    ///
    /// # Errors
    /// How the command ends instead; nothing changes then.
    pub fn reserve_or_release(&self, from: &Nexus, cdb: &[u8]) -> Result<Change, Ending> {
        let reserve = parse_legacy(cdb)?;
        if self.lost {
            return Err(Sense::RESERVATION_INFORMATION_LOST.into());
        }
        let let_in = |kind: super::ReservationType| {
            kind.admits_registrants() && self.registrations.contains_key(from)
        };
        if self.is_holder(from) || self.reservation.as_ref().is_some_and(|held| let_in(held.kind)) {
            return Ok(Change::none(self));
        }
        if !self.registrations.is_empty() {
            return Err(CONFLICT);
        }
        let legacy_holder = match (reserve, &self.legacy_holder) {
            (true, Some(holder)) if holder != from => return Err(CONFLICT),
            (true, _) => Some(from.clone()),
            (false, Some(holder)) if holder != from => return Ok(Change::none(self)),
            (false, _) => None,
        };
        let next = Self { legacy_holder, ..self.clone() };
        Ok(Change::new(self, next, Effects::default()))
    }
}
