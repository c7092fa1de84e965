//! PERSISTENT RESERVE IN (SPC-4 6.15): the state as parameter data.

use super::change::CONFLICT;
use super::command::{InAction, parse_in};
use super::state::{ReservationType, Reservations};
use crate::device_server::Ending;
use crate::sense::Sense;
use crate::writer::Writer;

/// RLR_C, CRH, SIP_C, ATP_C, PTPL_C: all of it is there.
const CAPABLE: u8 = 0x80 | 0x10 | 0x08 | 0x04 | 0x01;
/// TMV, and ALLOW COMMANDS 100b: TEST UNIT READY and RECEIVE COPY RESULTS through every type, MODE SENSE,
/// REPORT SUPPORTED OPERATION CODES, READ DEFECT DATA and their like through the write exclusive ones.
const ALLOWS: u8 = 0x80 | 0x40;
/// PTPL_A.
const PERSISTS: u8 = 0x01;

impl Reservations {
    /// Writes the parameter data of a PERSISTENT RESERVE IN, cut where its allocation length or `out`
    /// ends. Gives the bytes written; the lengths inside the data are those of the whole. Nobody has to be
    /// registered for it.
    ///
    /// # Errors
    /// How the command ends instead: INVALID FIELD IN CDB, RESERVATION CONFLICT while the unit is
    /// reserved by RESERVE, by whomever (SPC-2 5.5.1), and PERSISTENT RESERVATION INFORMATION LOST.
    pub fn persistent_reserve_in(&self, cdb: &[u8], out: &mut [u8]) -> Result<usize, Ending> {
        let (action, allocation) = parse_in(cdb)?;
        if self.legacy_holder.is_some() {
            return Err(CONFLICT);
        }
        if self.lost {
            return Err(Sense::RESERVATION_INFORMATION_LOST.into());
        }
        let room = usize::from(allocation).min(out.len());
        let mut writer = Writer::new(out.get_mut(..room).unwrap_or_default());
        match action {
            InAction::ReadKeys => self.listed(&mut writer, Self::keys),
            InAction::ReadReservation => self.listed(&mut writer, Self::reservation_descriptor),
            InAction::ReportCapabilities => self.capabilities(&mut writer),
            InAction::ReadFullStatus => self.listed(&mut writer, Self::full_status),
        }
        Ok(writer.written())
    }

    /// PRGENERATION and ADDITIONAL LENGTH, and what `body` writes behind them.
    fn listed(&self, writer: &mut Writer<'_>, body: fn(&Self, &mut Writer<'_>)) {
        writer.put(&self.generation.to_be_bytes());
        writer.zeros(4);
        body(self, writer);
        let length = u32::try_from(writer.position().saturating_sub(8)).unwrap_or(u32::MAX);
        writer.patch(4, &length.to_be_bytes());
    }

    /// SPC-4 6.15.2.
    fn keys(&self, writer: &mut Writer<'_>) {
        for key in self.registrations.values() {
            writer.put(&key.to_be_bytes());
        }
    }

    /// SPC-4 6.15.3: of an all registrants type the key is zero.
    fn reservation_descriptor(&self, writer: &mut Writer<'_>) {
        let Some(held) = &self.reservation else { return };
        let key = held.holder.as_ref().and_then(|holder| self.registrations.get(holder));
        writer.put(&key.copied().unwrap_or(0).to_be_bytes());
        writer.zeros(5);
        writer.put(&[held.kind as u8, 0, 0]);
    }

    /// SPC-4 6.15.4.
    fn capabilities(&self, writer: &mut Writer<'_>) {
        const LENGTH: u16 = 8;
        let persists = if self.aptpl { PERSISTS } else { 0 };
        // PERSISTENT RESERVATION TYPE MASK: bit n of the first byte is type n, the rest is in the second.
        let mask = ReservationType::ALL
            .into_iter()
            .fold(0_u16, |mask, kind| mask | 1_u16.checked_shl(u32::from(kind as u8)).unwrap_or(0));
        writer.put(&LENGTH.to_be_bytes());
        writer.put(&[CAPABLE, ALLOWS | persists]);
        writer.put(&mask.to_le_bytes());
        writer.zeros(2);
    }

    /// SPC-4 6.15.5. A registration at every target port is as many registrations, so ALL_TG_PT is zero.
    fn full_status(&self, writer: &mut Writer<'_>) {
        const R_HOLDER: u8 = 0x01;
        for registration in self.registrations() {
            let id = registration.nexus.initiator.as_bytes();
            let (holder, kind) = match &self.reservation {
                Some(held) if registration.holder => (R_HOLDER, held.kind as u8),
                _ => (0, 0),
            };
            writer.put(&registration.key.to_be_bytes());
            writer.put(&[0, 0, 0, 0, holder, kind, 0, 0, 0, 0]);
            writer.put(&registration.nexus.target_port.to_be_bytes());
            writer.put(&u32::try_from(id.len()).unwrap_or(0).to_be_bytes());
            writer.put(id);
        }
    }
}
