//! Removable media: who prevents their removal, and ejecting and loading them for an initiator (SPC-6,
//! PREVENT ALLOW MEDIUM REMOVAL; SBC-4 and MMC-6, START STOP UNIT). An ejected medium stays open at its
//! handler and can be loaded again; putting another one in is the management's.

use std::collections::{BTreeMap, BTreeSet};

use lunar_handlers::Request;
use lunar_scsi::cdb::{self, Command};
use lunar_scsi::sense::Sense;

use crate::core::Core;
use crate::effect::Level;
use crate::forwarded::{Ending, Forwarded, Verdict};
use crate::holds::Hold;
use crate::operations::{Running, Step};
use crate::units::DeviceHandle;
use crate::work::Work;

/// Which lives of nexuses prevent the removal of which unit's medium. A nexus that ended does not.
#[derive(Debug, Default)]
pub(crate) struct Prevents(BTreeMap<u32, BTreeSet<(u32, u32)>>);

impl Prevents {
    /// A life of a nexus ended.
    pub(crate) fn forget_nexus(&mut self, nexus: u32, nexus_generation: u32) {
        for nexuses in self.0.values_mut() {
            nexuses.remove(&(nexus, nexus_generation));
        }
    }

    /// A life of a nexus prevents nothing at the unit any more.
    pub(crate) fn allow(&mut self, unit: u32, nexus: u32, nexus_generation: u32) {
        if let Some(nexuses) = self.0.get_mut(&unit) {
            nexuses.remove(&(nexus, nexus_generation));
        }
    }

    /// The unit was reset.
    pub(crate) fn forget_unit(&mut self, unit: u32) {
        self.0.remove(&unit);
    }

    /// The card starts anew, and all nexuses with it.
    pub(crate) fn forget_all(&mut self) {
        self.0.clear();
    }
}

impl Core {
    /// A nexus that prevents the removal of the unit's medium: its handle and its peer.
    #[must_use]
    pub fn removal_prevented_by(&self, unit: u32) -> Option<(u32, &str)> {
        let nexuses = self.prevents.0.get(&unit)?;
        self.nexuses()
            .find(|nexus| nexuses.contains(&(nexus.handle, nexus.generation)))
            .map(|nexus| (nexus.handle, nexus.peer.as_str()))
    }

    /// A medium is put into the unit by the next configuration, also where an initiator had ejected the
    /// one before.
    pub fn close_tray(&mut self, unit: u32) {
        self.units.close_tray(unit);
    }

    /// PREVENT ALLOW MEDIUM REMOVAL, or START STOP UNIT with LOEJ.
    pub(crate) fn medium_removal(&mut self, command: &Forwarded) -> Result<Verdict, Sense> {
        let unit = command.unit;
        match cdb::parse(&command.cdb)? {
            Command::PreventAllow { prevent } => {
                let nexus = (command.nexus, command.nexus_generation);
                let nexuses = self.prevents.0.entry(unit).or_default();
                if prevent & 1 == 0 {
                    nexuses.remove(&nexus);
                } else {
                    nexuses.insert(nexus);
                }
                Ok(Verdict::Good(Ending::default()))
            }
            Command::StartStopUnit { start, load_eject: true, no_flush, .. } => {
                if !start && self.removal_prevented_by(unit).is_some() {
                    return Err(Sense::MEDIUM_REMOVAL_PREVENTED);
                }
                let cache = self.units.get(unit).filter(|unit| unit.scsi.write_cache);
                match cache.and_then(|unit| unit.device) {
                    Some(device) if !start && !no_flush => Ok(Verdict::FlushAndEject(device)),
                    _ => Ok(Verdict::Good(self.move_medium(command, start))),
                }
            }
            _ => Err(Sense::INVALID_FIELD_IN_CDB),
        }
    }

    /// Flushes first: what initiators wrote is on the medium that is taken out (SBC-4, START STOP UNIT,
    /// NO_FLUSH).
    pub(crate) fn flush_and_eject(&mut self, command: &Forwarded, device: DeviceHandle) {
        let step = Step { device, request: Request::Flush, data: None };
        let work = Work::Eject(Box::new(command.clone()));
        let (ring, token, unit) = (command.ring, command.token, command.unit);
        self.insert(Running::new(ring, token, unit, step, work, Hold::Nothing));
    }

    /// The cache was flushed. Somebody may have prevented the removal meanwhile.
    pub(crate) fn eject(&mut self, command: &Forwarded) {
        if self.removal_prevented_by(command.unit).is_some() {
            let sense = Sense::MEDIUM_REMOVAL_PREVENTED;
            return self.check_condition(command.ring, command.token, command.unit, &sense);
        }
        let ending = self.move_medium(command, false);
        self.end_good(command, ending);
    }

    fn move_medium(&mut self, command: &Forwarded, load: bool) -> Ending {
        let mut ending = Ending::default();
        if self.units.move_medium(command.unit, load) {
            ending.required_generation = self.units.generation;
            self.remember_card();
            self.send_configuration();
            let name = self.units.get(command.unit).map_or("(removed)", |unit| unit.name.as_str());
            let done = if load { "loaded" } else { "ejected" };
            let text = format!("device {name}: nexus {} {done} the medium", command.nexus);
            self.log(Level::Info, "medium-moved", text);
        }
        ending
    }
}
