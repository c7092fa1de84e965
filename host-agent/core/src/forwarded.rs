//! Commands that the card forwards: CDB and nexus in, status, sense data and parameter data out. What a
//! CDB and its parameter list say is decided in `scsi`; here is what they change.
//!
//! Parameter data lies in the ring's data area, which the core does not see: the shell brings a
//! parameter list ([`Effect::FetchParameters`], [`Core::on_parameters`]) and takes parameter data away
//! ([`Effect::StoreParameters`]).

use lunar_offload_proto::control::host_command;
use lunar_offload_proto::ring::{CompletionEntry, Outcome, SENSE_BYTES_MAX, SideRecord};
use lunar_scsi::device_server::{self, ModeParameters};
use lunar_scsi::extended_copy::{self, Receive};
use lunar_scsi::opcodes::opcode;
use lunar_scsi::sense::{FieldPointer, Sense};
use lunar_scsi::status::Status;

use crate::alua;
use crate::copy::{Copy, ListKey};
use crate::core::Core;
use crate::effect::{DataRange, Effect, Level};
use crate::operations::Running;
use crate::rings::RingState;
use crate::units::{DeviceHandle, Unit};
use crate::work::Work;

/// What this core executes, as the card's configuration says it.
pub(crate) const HOST_COMMANDS: u32 = host_command::MODE_SELECT
    | host_command::FORMAT_UNIT
    | host_command::EXTENDED_COPY
    | host_command::RECEIVE_COPY_RESULTS
    | RESERVATIONS;

/// Of it, what every kind of unit has.
pub(crate) const RESERVATIONS: u32 = host_command::RESERVE | host_command::PERSISTENT_RESERVE;

/// The longest parameter list that is looked at, in bytes.
const LIST_BYTES_MAX: u32 = 64 << 10;

/// A forwarded command on its way; opaque to the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    pub(crate) ring: u16,
    /// Which life of the ring.
    pub(crate) life: u64,
    pub(crate) token: u64,
    pub(crate) unit: u32,
    pub(crate) nexus: u32,
    pub(crate) nexus_generation: u32,
    pub(crate) cdb: Box<[u8]>,
    pub(crate) data: Option<DataRange>,
    pub(crate) data_out: bool,
}

/// How a forwarded command ended.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// Parameter data.
    pub(crate) parameters: Vec<u8>,
    /// The configuration generation that the card must have applied before the initiator is told.
    pub(crate) required_generation: u32,
}

/// What became of a command.
pub(crate) enum Verdict {
    Good(Ending),
    /// It ends later, by itself.
    Later,
    Copy(Box<Copy>),
    FlushAndEject(DeviceHandle),
}

impl Core {
    /// Takes a forwarded command; its unit may be gone.
    pub(crate) fn forward(&mut self, command: Forwarded) {
        match command.data {
            Some(data) if command.data_out && data.length <= LIST_BYTES_MAX => {
                let command = Box::new(command);
                self.effects.push_back(Effect::FetchParameters { command, data });
            }
            // A longer list than any command has; each checks the length that it needs.
            _ => self.carry_out(&command, &[]),
        }
    }

    /// Takes the parameter list that [`Effect::FetchParameters`] asked for; empty when there is no
    /// such data.
    pub fn on_parameters(&mut self, command: &Forwarded, list: &[u8]) {
        let alive = self
            .ring(command.ring)
            .is_some_and(|ring| ring.life == command.life && ring.state == RingState::Open);
        if alive {
            self.carry_out(command, list);
        }
    }

    fn carry_out(&mut self, command: &Forwarded, list: &[u8]) {
        match self.execute_command(command, list) {
            Ok(Verdict::Good(ending)) => self.end_good(command, ending),
            Ok(Verdict::Later) => {}
            Ok(Verdict::Copy(copy)) => self.start_copy(command, copy),
            Ok(Verdict::FlushAndEject(device)) => self.flush_and_eject(command, device),
            Err(sense) => self.check_condition(command.ring, command.token, command.unit, &sense),
        }
    }

    fn execute_command(&mut self, command: &Forwarded, list: &[u8]) -> Result<Verdict, Sense> {
        let unit = self.units.get(command.unit).ok_or(Sense::LOGICAL_UNIT_NOT_SUPPORTED)?;
        match command.cdb.first() {
            Some(&(opcode::MODE_SELECT_6 | opcode::MODE_SELECT_10)) => {
                let changed = device_server::select(&unit.scsi, &command.cdb, list)?;
                Ok(Verdict::Good(self.select_mode(command, changed)))
            }
            Some(&opcode::FORMAT_UNIT) => {
                format_unit(unit, &command.cdb, list).map(|()| Verdict::Good(Ending::default()))
            }
            Some(&(opcode::START_STOP_UNIT | opcode::PREVENT_ALLOW_MEDIUM_REMOVAL))
                if unit.scsi.removable =>
            {
                self.medium_removal(command)
            }
            Some(&opcode::MAINTENANCE_OUT) => {
                let ending = self.set_target_port_groups(command, list)?;
                Ok(ending.map_or(Verdict::Later, Verdict::Good))
            }
            Some(
                &(opcode::PERSISTENT_RESERVE_IN
                | opcode::PERSISTENT_RESERVE_OUT
                | opcode::RESERVE_6
                | opcode::RELEASE_6
                | opcode::RESERVE_10
                | opcode::RELEASE_10),
            ) => self.reservation_command(command, list),
            Some(&opcode::THIRD_PARTY_COPY_OUT) => self.extended_copy(command, list),
            Some(&opcode::THIRD_PARTY_COPY_IN) => self.receive_copy_results(command),
            _ => Err(Sense::INVALID_COMMAND_OPERATION_CODE),
        }
    }

    /// MODE SELECT: the card has the new parameters before the initiator has its answer, and tells the
    /// other nexuses.
    fn select_mode(&mut self, command: &Forwarded, changed: ModeParameters) -> Ending {
        let mut ending = Ending::default();
        if self.units.select_mode(command.unit, changed) {
            ending.required_generation = self.units.generation;
            self.remember_card();
            self.send_configuration();
            let name = self.units.get(command.unit).map_or("(removed)", |unit| unit.name.as_str());
            let text = format!(
                "device {name}: nexus {} set SWP to {} and D_SENSE to {}",
                command.nexus,
                u8::from(changed.software_write_protect),
                u8::from(changed.descriptor_sense)
            );
            self.log(Level::Info, "mode-select", text);
        }
        ending
    }

    fn extended_copy(&mut self, command: &Forwarded, list: &[u8]) -> Result<Verdict, Sense> {
        let Some(list) = extended_copy::parse(&command.cdb, list)? else {
            return Ok(Verdict::Good(Ending::default()));
        };
        let luns = self.luns_of(command.nexus);
        let copy = Copy::new(&list, key(command, list.list_identifier), |target| {
            luns.iter().find_map(|(handle, read_only)| {
                let unit = self.units.get(*handle).filter(|unit| target.names(&unit.scsi))?;
                Some((unit, *read_only, self.access_of(command.nexus, *handle)))
            })
        });
        self.copies.check(&copy)?;
        Ok(Verdict::Copy(Box::new(copy)))
    }

    fn start_copy(&mut self, command: &Forwarded, mut copy: Box<Copy>) {
        if !self.copies.claim(&mut copy) {
            return self.end_status(command, Status::Busy);
        }
        let Some(step) = copy.read() else {
            let ending = copy.ending(true);
            self.copies.release(&copy);
            self.copies.keep(&copy, ending.is_ok());
            return self.end_copy(command.ring, command.token, command.unit, ending);
        };
        let (hold, list) = (copy.hold(), copy.list());
        let work = Work::Copy(copy);
        let running = Running::new(command.ring, command.token, command.unit, step, work, hold);
        let operation = self.insert(running);
        self.copies.started(list, operation);
    }

    /// Ends a forwarded command with a status that has no sense data.
    pub(crate) fn end_status(&mut self, command: &Forwarded, status: Status) {
        let mut entry = CompletionEntry::new(command.token, Outcome::Forwarded);
        entry.status = status.code();
        self.settle(command.ring);
        self.publish(command.ring, entry, None);
    }

    /// A copy is over, and not by CANCEL.
    pub(crate) fn end_copy(&mut self, ring: u16, token: u64, unit: u32, ending: Result<(), Sense>) {
        match ending {
            Ok(()) => {
                self.settle(ring);
                self.publish(ring, CompletionEntry::new(token, Outcome::Forwarded), None);
            }
            Err(sense) => self.check_condition(ring, token, unit, &sense),
        }
    }

    fn receive_copy_results(&mut self, command: &Forwarded) -> Result<Verdict, Sense> {
        let mut parameters = vec![0; 256];
        let length = match Receive::parse(&command.cdb)? {
            Receive::Status { list_identifier, allocation } => {
                let operations = &self.operations;
                let status = self.copies.status(key(command, list_identifier), |operation| {
                    operations.get(operation).and_then(|running| running.work.copy())
                });
                let status = status.ok_or(Receive::UNKNOWN_LIST)?;
                extended_copy::copy_status(&status, allocation, &mut parameters)
            }
            Receive::OperatingParameters { allocation } => {
                extended_copy::operating_parameters(allocation, &mut parameters)
            }
        };
        parameters.truncate(length);
        Ok(Verdict::Good(Ending { parameters, ..Ending::default() }))
    }

    /// The units whose media a nexus reaches, and whether it may only read them.
    fn luns_of(&self, nexus: u32) -> Vec<(u32, bool)> {
        let nexus = self.nexuses.iter().find(|known| known.handle == nexus);
        let message = self.units.message();
        let (Some(nexus), Some(message)) = (nexus, message) else {
            return Vec::new();
        };
        let target = message.targets.iter().find(|target| target.handle == nexus.target);
        let luns = target.and_then(|target| {
            let mut groups = target.groups.iter();
            if nexus.group.is_empty() {
                return Some(&target.default_luns);
            }
            groups.find(|group| group.name == nexus.group).map(|group| &group.luns)
        });
        let groups = &message.device_groups;
        let reached = luns
            .into_iter()
            .flatten()
            .filter(|lun| alua::reaches_medium(groups, nexus.target, lun.unit));
        reached.map(|lun| (lun.unit, lun.read_only)).collect()
    }

    pub(crate) fn end_good(&mut self, command: &Forwarded, ending: Ending) {
        let room = command.data.map_or(0, |data| data.length);
        let mut parameters = ending.parameters;
        // What does not fit the initiator's buffer is cut off.
        parameters.truncate(usize::try_from(room).unwrap_or(0));
        let mut entry = CompletionEntry::new(command.token, Outcome::Forwarded);
        entry.required_generation.set(ending.required_generation);
        let length = u32::try_from(parameters.len()).unwrap_or(0);
        if let (Some(data), 1..) = (command.data, length) {
            entry.transferred_bytes.set(length);
            let data = DataRange { length, ..data };
            self.effects.push_back(Effect::StoreParameters { data, bytes: parameters });
        }
        self.settle(command.ring);
        self.publish(command.ring, entry, None);
    }

    /// Ends a forwarded command with CHECK CONDITION.
    pub(crate) fn check_condition(&mut self, ring: u16, token: u64, unit: u32, sense: &Sense) {
        let mut bytes = [0; SENSE_BYTES_MAX];
        let descriptors = self.units.get(unit).is_some_and(|unit| unit.scsi.descriptor_sense);
        let length = sense.encode(descriptors, &mut bytes);
        let mut side = Box::new(SideRecord::empty());
        let mut entry = CompletionEntry::new(token, Outcome::Forwarded);
        entry.status = Status::CheckCondition.code();
        // `encode` gives at most what fits, so it is taken.
        if bytes.get(..length).is_some_and(|sense| side.set_sense(sense).is_ok()) {
            entry.sense_bytes = side.sense_bytes;
        }
        self.settle(ring);
        self.publish(ring, entry, Some(side));
    }
}

fn key(command: &Forwarded, list_identifier: u8) -> ListKey {
    ListKey {
        unit: command.unit,
        nexus: command.nexus,
        nexus_generation: command.nexus_generation,
        identifier: list_identifier,
    }
}

/// FORMAT UNIT (SBC-4 5.x): nothing has to be laid out anew, so after its checks it is over, and the
/// blocks keep what they hold, as SCST does. Defect lists, protection information and initialization
/// patterns there are none.
fn format_unit(unit: &Unit, cdb: &[u8], list: &[u8]) -> Result<(), Sense> {
    const PROTECTION: u8 = 0xC0;
    const LONG_LIST: u8 = 0x20;
    const FORMAT_DATA: u8 = 0x10;
    let Some(&flags) = cdb.get(1) else {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None));
    };
    if flags & PROTECTION != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(7)));
    }
    if unit.scsi.read_only {
        return Err(Sense::WRITE_PROTECTED);
    }
    if flags & FORMAT_DATA == 0 {
        // The defect list format, CMPLST and LONGLIST are about a list that is not there.
        return Ok(());
    }
    let in_list = |byte| {
        let pointer = FieldPointer { in_cdb: false, byte, bit: None };
        Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.with_field_pointer(pointer))
    };
    const PROTECTION_USAGE: u8 = 0x07;
    const INITIALIZATION_PATTERN: u8 = 0x08;
    let (usage, options, defects, defects_at) = match (flags & LONG_LIST != 0, list) {
        (false, [usage, options, high, low, ..]) => {
            (*usage, *options, u32::from(u16::from_be_bytes([*high, *low])), 2)
        }
        (true, [usage, options, _, _, b0, b1, b2, b3, ..]) => {
            (*usage, *options, u32::from_be_bytes([*b0, *b1, *b2, *b3]), 4)
        }
        _ => return Err(Sense::PARAMETER_LIST_LENGTH_ERROR),
    };
    match () {
        () if usage & PROTECTION_USAGE != 0 => in_list(0),
        () if options & INITIALIZATION_PATTERN != 0 => in_list(1),
        () if defects != 0 => in_list(defects_at),
        () => Ok(()),
    }
}
