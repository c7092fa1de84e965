//! Reservations judged from what initiators sent, what they were answered, and what landed: is there an order in
//! which the commands may have taken effect, each at once and at some moment between its sending and its end?
//! Every such way that is still possible is kept. What one command makes of a state is
//! `lunar_scsi::reservations`' to say, which has tests of its own; that nothing acknowledged is lost and nothing
//! comes back, that the card enforces it, and when, is judged here. Knows nothing of agent and card.

use std::collections::BTreeMap;
use std::fmt;

use lunar_scsi::device_server::Ending;
use lunar_scsi::opcodes::opcode;
use lunar_scsi::reservations::{
    Access, Class, Nexus, Protocol, Reservations, TargetPort, TransportId, conflicts,
};

use crate::laws::{Broken, Law};
use crate::units::UNITS;

/// The relative target port identifier of the one target.
const TARGET_PORT: TargetPort = TargetPort { id: 1, protocol: Protocol::Srp };
/// Commands of one unit that may be on their way: the ways are as many as their orders.
const COMMANDS_MAX: usize = 4;
/// Ways of one unit with which another change may begin.
const WAYS_MAX: usize = 12;
/// GOOD and CHECK CONDITION.
const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
/// ABORTED COMMAND.
const ABORTED_COMMAND: u8 = 0x0B;
/// INSUFFICIENT REGISTRATION RESOURCES: also the answer when a change cannot be kept.
const NOT_KEPT: (u8, u8, u8) = (0x05, 0x55, 0x04);

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Came {
    /// GOOD, with unit attentions for these nexuses.
    Good(Vec<Nexus>),
    /// GOOD with this data-in.
    Data(Vec<u8>),
    /// Another status, and the sense.
    Refused(u8, (u8, u8, u8)),
}

/// One way in which things may have gone.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Way {
    state: Reservations,
    /// Power ons of the unit that took effect.
    power_ons: u32,
    /// What commands on their way have come to already.
    done: BTreeMap<u64, Came>,
}

/// A command on its way.
#[derive(Debug)]
struct Command {
    nexus: usize,
    cdb: Vec<u8>,
    list: Vec<u8>,
    /// Power ons of the unit before it was sent: it takes effect before the next.
    power_ons: u32,
    /// Its channel died; the moment of that channel's login. Nobody will hear of it, but it may take effect
    /// until a SINGLE login of the nexus ends it.
    lost: Option<u64>,
}

/// What one nexus may do to one unit, in any of the ways.
#[derive(Clone, Copy, Debug, Default)]
struct May {
    now: bool,
    /// Up to which moment, if not now.
    until: u64,
}

impl May {
    fn set(&mut self, now: bool, moment: u64) {
        if self.now && !now {
            self.until = moment;
        }
        self.now = now;
    }

    fn since(self, moment: u64) -> bool {
        self.now || self.until >= moment
    }
}

/// For reads, or for writes.
#[derive(Clone, Copy, Debug, Default)]
struct Possible {
    let_in: May,
    kept_out: May,
}

#[derive(Debug)]
struct Unit {
    ways: Vec<Way>,
    commands: BTreeMap<u64, Command>,
    power_ons: u32,
    /// By nexus, for reads and for writes.
    possible: Vec<[Possible; 2]>,
}

/// The judge's memory.
#[derive(Debug)]
pub(crate) struct Reserving {
    nexuses: Vec<Nexus>,
    /// By LUN.
    units: Vec<Unit>,
    last: u64,
}

/// How a command about reservations ended, as its initiator saw it.
#[derive(Clone, Copy)]
pub(crate) enum Answer<'a> {
    /// A response: status, sense, and what lies in the buffer for data-in.
    Response(u8, (u8, u8, u8), &'a [u8]),
    /// None will come, and it is over: it took effect or never will.
    Over,
}

impl Reserving {
    /// Of nexuses with these initiator ports.
    pub(crate) fn new(ports: &[[u8; 16]]) -> Self {
        let nexus = |port: &[u8; 16]| Nexus {
            initiator: TransportId::srp(*port),
            target_port: TARGET_PORT.id,
        };
        let nexuses: Vec<Nexus> = ports.iter().map(nexus).collect();
        let unit = || {
            let ways =
                vec![Way { state: Reservations::default(), power_ons: 0, done: BTreeMap::new() }];
            let possible = vec![[Possible::default(); 2]; nexuses.len()];
            let mut unit = Unit { ways, commands: BTreeMap::new(), power_ons: 0, possible };
            unit.look(&nexuses, 0);
            unit
        };
        Self { units: UNITS.iter().map(|_| unit()).collect(), nexuses, last: 0 }
    }

    /// Whether one more command on LUN `lun` can be kept account of.
    pub(crate) fn has_room(&self, lun: usize) -> bool {
        self.units[lun].commands.len() < COMMANDS_MAX
    }

    /// Whether it would be good to ask how things went, before there are too many ways to follow.
    pub(crate) fn is_unclear(&self, lun: usize) -> bool {
        self.units[lun].ways.len() > WAYS_MAX
    }

    /// Whether a command that aborts others' may be taking effect.
    pub(crate) fn may_abort(&self, lun: usize) -> bool {
        // PREEMPT AND ABORT.
        self.units[lun].commands.values().any(|command| command.cdb[..2] == [0x5F, 0x05])
    }

    /// A command of `nexus` is about to be sent; gives its name.
    pub(crate) fn begin(
        &mut self,
        lun: usize,
        nexus: usize,
        cdb: &[u8],
        list: &[u8],
        moment: u64,
    ) -> u64 {
        self.last += 1;
        let unit = &mut self.units[lun];
        let command = Command {
            nexus,
            cdb: cdb.to_vec(),
            list: list.to_vec(),
            power_ons: unit.power_ons,
            lost: None,
        };
        unit.commands.insert(self.last, command);
        unit.expand(&self.nexuses);
        unit.look(&self.nexuses, moment);
        self.last
    }

    /// The channel of a command died; it had logged in at `logged_in`.
    pub(crate) fn lose(&mut self, lun: usize, name: u64, logged_in: u64) {
        if let Some(command) = self.units[lun].commands.get_mut(&name) {
            command.lost = Some(logged_in);
        }
    }

    /// A SINGLE login of `nexus` that was asked for at `asked` was accepted: what its older channels lost is over.
    ///
    /// # Errors
    /// Never: what is over may have come to anything.
    pub(crate) fn on_single_login(
        &mut self,
        nexus: usize,
        asked: u64,
        moment: u64,
    ) -> Result<(), Broken> {
        for lun in 0..self.units.len() {
            let over = self.units[lun].commands.iter().filter(|(_, command)| {
                command.nexus == nexus && command.lost.is_some_and(|logged_in| logged_in < asked)
            });
            let over: Vec<u64> = over.map(|(name, _)| *name).collect();
            for name in over {
                self.end(lun, name, Answer::Over, moment)?;
            }
        }
        Ok(())
    }

    /// A command could not be sent: it never took effect.
    pub(crate) fn withdraw(&mut self, lun: usize, name: u64, moment: u64) {
        let unit = &mut self.units[lun];
        unit.commands.remove(&name);
        unit.ways.retain(|way| !way.done.contains_key(&name));
        unit.look(&self.nexuses, moment);
    }

    /// A card with another boot id took over: every unit was powered on.
    pub(crate) fn on_power_on(&mut self, moment: u64) {
        for unit in &mut self.units {
            unit.power_ons += 1;
            unit.expand(&self.nexuses);
            unit.look(&self.nexuses, moment);
        }
    }

    /// A command ended. Gives the nexuses that have a unit attention of it, whatever way things went.
    ///
    /// # Errors
    /// No order of the commands explains the answer.
    pub(crate) fn end(
        &mut self,
        lun: usize,
        name: u64,
        answer: Answer<'_>,
        moment: u64,
    ) -> Result<Vec<usize>, Broken> {
        let unit = &mut self.units[lun];
        let Some(command) = unit.commands.get(&name) else { return Ok(Vec::new()) };
        let before: Vec<Option<Came>> =
            unit.ways.iter().map(|way| way.done.get(&name).cloned()).collect();
        unit.ways.retain(|way| answer.explains(way.done.get(&name)));
        if unit.ways.is_empty() {
            let (cdb, list) = (&command.cdb, &command.list);
            let text = format!(
                "LUN {lun}: nexus {} was answered {answer} to {cdb:02x?} with {list:02x?}, which no order of \
                 the commands explains; it may have come to {before:x?}",
                command.nexus
            );
            return Err(Broken { law: Law::Reservation, text });
        }
        let told = |nexus: &Nexus| {
            unit.ways.iter().all(|way| match way.done.get(&name) {
                Some(Came::Good(told)) => told.contains(nexus),
                _ => false,
            })
        };
        let told = (0..self.nexuses.len()).filter(|&index| told(&self.nexuses[index])).collect();
        unit.commands.remove(&name);
        for way in &mut unit.ways {
            way.done.remove(&name);
        }
        let mut ways = Vec::new();
        for way in std::mem::take(&mut unit.ways) {
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        unit.ways = ways;
        unit.look(&self.nexuses, moment);
        Ok(told)
    }

    /// Whether a command of `class`, sent at moment `since`, may have been let in.
    pub(crate) fn may_be_let_in(&self, lun: usize, nexus: usize, class: Class, since: u64) -> bool {
        self.possible(lun, nexus, class).is_none_or(|possible| possible.let_in.since(since))
    }

    /// Whether a command of `class`, sent at moment `since`, may have been kept out.
    pub(crate) fn may_be_kept_out(
        &self,
        lun: usize,
        nexus: usize,
        class: Class,
        since: u64,
    ) -> bool {
        self.possible(lun, nexus, class).is_some_and(|possible| possible.kept_out.since(since))
    }

    /// `None`: persistent reservations are nothing to a command of this class.
    fn possible(&self, lun: usize, nexus: usize, class: Class) -> Option<&Possible> {
        let of_nexus = &self.units[lun].possible[nexus];
        if conflicts(class, Access::NO_WRITES) {
            Some(&of_nexus[1])
        } else if conflicts(class, Access::NO_TRANSFERS) {
            Some(&of_nexus[0])
        } else {
            None
        }
    }

    /// A write of `nexus` landed.
    ///
    /// # Errors
    /// It may not any more, whatever way things went.
    pub(crate) fn on_landing(&self, lun: usize, nexus: usize, lba: u64) -> Result<(), Broken> {
        if self.units[lun].possible[nexus][1].let_in.now {
            return Ok(());
        }
        let text = format!(
            "LUN {lun} LBA {lba}: a write of nexus {nexus} landed after the change that keeps it out had been \
             answered with GOOD"
        );
        Err(Broken { law: Law::Reservation, text })
    }

    /// What may stand on a LUN, for reports.
    pub(crate) fn words(&self, lun: usize) -> String {
        let Unit { ways, commands, .. } = &self.units[lun];
        format!("the ways are {ways:x?}; on their way are {commands:x?}")
    }

    /// A reservation that may stand, as the type and the keys that are registered tell, by nexus.
    pub(crate) fn guess(&self, lun: usize) -> (u8, Vec<u64>) {
        let Some(way) = self.units[lun].ways.first() else { return (0, Vec::new()) };
        let kind = way.state.reservation().map_or(0, |held| held.kind as u8);
        let key = |nexus: &Nexus| {
            let mut registered = way.state.registrations();
            registered.find(|registration| registration.nexus == nexus).map_or(0, |found| found.key)
        };
        (kind, self.nexuses.iter().map(key).collect())
    }
}

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Response(status, (key, asc, ascq), data) => {
                let first = data.get(..32).unwrap_or(data);
                write!(
                    f,
                    "status {status:#04x}, sense {key:x}/{asc:02x}/{ascq:02x}, data {first:02x?}"
                )
            }
            Self::Over => f.write_str("nothing"),
        }
    }
}

impl Answer<'_> {
    /// Whether a command that `came` to this is answered so; `None`: it has not taken effect.
    fn explains(self, came: Option<&Came>) -> bool {
        match (self, came) {
            (Self::Over, _) => true,
            // The agent died: nobody knows.
            (Self::Response(CHECK_CONDITION, (ABORTED_COMMAND, ..), _), _) => true,
            (Self::Response(GOOD, _, _), Some(Came::Good(_))) => true,
            (Self::Response(GOOD, _, data), Some(Came::Data(told))) => data.starts_with(told),
            (Self::Response(GOOD, _, _), _) => false,
            (Self::Response(status, sense, _), Some(Came::Refused(known, reason))) => {
                (status, sense) == (*known, *reason)
            }
            (Self::Response(..), Some(_)) => false,
            // Before the command is looked at: unit attentions, BUSY; and what could not be kept.
            (Self::Response(_, sense, _), None) => sense == NOT_KEPT || !is_refusal(self),
        }
    }
}

/// Whether it is the device server's own answer to a command about reservations.
fn is_refusal(answer: Answer<'_>) -> bool {
    // RESERVATION CONFLICT; ILLEGAL REQUEST.
    matches!(answer, Answer::Response(0x18, ..) | Answer::Response(CHECK_CONDITION, (0x05, ..), _))
}

impl Unit {
    /// Adds every way that comes of a command or a power on taking effect.
    fn expand(&mut self, nexuses: &[Nexus]) {
        let mut next = 0;
        while let Some(way) = self.ways.get(next).cloned() {
            next += 1;
            let mut more = Vec::new();
            if way.power_ons < self.power_ons {
                let mut state = way.state.clone();
                state.on_power_on();
                more.push(Way { state, power_ons: way.power_ons + 1, done: way.done.clone() });
            }
            for (name, command) in &self.commands {
                if command.power_ons == way.power_ons && !way.done.contains_key(name) {
                    let (state, came) = command.run(&way.state, &nexuses[command.nexus]);
                    let mut done = way.done.clone();
                    done.insert(*name, came);
                    more.push(Way { state, done, power_ons: way.power_ons });
                }
            }
            for way in more {
                if !self.ways.contains(&way) {
                    self.ways.push(way);
                }
            }
        }
    }

    /// Notes what each nexus may do now.
    fn look(&mut self, nexuses: &[Nexus], moment: u64) {
        for (nexus, possible) in nexuses.iter().zip(&mut self.possible) {
            for (possible, class) in possible.iter_mut().zip([Class::READ, Class::WRITE]) {
                let out = |way: &Way| conflicts(class, way.state.access(nexus));
                possible.kept_out.set(self.ways.iter().any(out), moment);
                possible.let_in.set(!self.ways.iter().all(out), moment);
            }
        }
    }
}

impl Command {
    /// What it makes of `state`, and comes to.
    fn run(&self, state: &Reservations, nexus: &Nexus) -> (Reservations, Came) {
        if self.cdb[0] == opcode::PERSISTENT_RESERVE_IN {
            let mut data = [0; 255];
            return match state.persistent_reserve_in(&self.cdb, &mut data) {
                Ok(length) => (state.clone(), Came::Data(data[..length].to_vec())),
                Err(ending) => (state.clone(), refused(ending)),
            };
        }
        match state.persistent_reserve_out(nexus, &self.cdb, &self.list, &[TARGET_PORT]) {
            Ok(change) => {
                let told = change.effects.attentions.into_iter().map(|(nexus, _)| nexus);
                (change.state, Came::Good(told.collect()))
            }
            Err(ending) => (state.clone(), refused(ending)),
        }
    }
}

fn refused(ending: Ending) -> Came {
    match ending {
        Ending::Status(status) => Came::Refused(status as u8, (0, 0, 0)),
        Ending::Sense(sense) => {
            Came::Refused(CHECK_CONDITION, (sense.key as u8, sense.asc, sense.ascq))
        }
    }
}
