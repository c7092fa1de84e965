//! One run: a card, a host, initiators, and the steps of virtual time that move them. What goes
//! wrong on purpose is in `faults`, what initiators send in `load`, what they see in `seen`.

use lunar_hca::Fabric;
use lunar_target::trace::Point;

use crate::agent::{Agent, Host};
use crate::card::{Card, Pace, Start};
use crate::channel::Channel;
use crate::coverage::Coverage;
use crate::faults::Faults;
use crate::journal::Journal;
use crate::laws::{Broken, Law, Laws};
use crate::order::Order;
use crate::random::Random;
use crate::reserving::Reserving;
use crate::units::{BLOCKS, LOAD_BLOCKS, Shape, UNITS, configuration};
use crate::wire::Wire;

/// Channels of each nexus.
const NEXUSES: [usize; 5] = [2, 1, 1, 2, 1];
/// Steps between two looks at the trace.
const TRACE_STEPS: u64 = 64;
/// Virtual time after which everything must have come to its end, in nanoseconds.
const DRAIN_NS: u64 = 400_000_000;
/// A command that nobody took away is answered within this time, in nanoseconds.
pub(crate) const ANSWER_NS: u64 = 120_000_000;

/// What a run is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides everything.
    pub seed: u64,
    /// Commands to send before the run comes to its end.
    pub commands: u64,
    /// Print every event.
    pub trace: bool,
}

/// How a run that broke no law ended.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Hash over every event.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Commands sent.
    pub commands: u64,
    /// Virtual time in nanoseconds.
    pub now: u64,
    /// What was reached.
    pub coverage: Coverage,
    /// Counts by name, for people.
    pub counts: Counts,
}

/// What happened how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Commands answered GOOD.
    pub good: u64,
    /// Other answers.
    pub check_conditions: u64,
    /// BUSY and TASK SET FULL.
    pub refused: u64,
    /// RESERVATION CONFLICT.
    pub conflicts: u64,
    /// Commands about reservations that were answered.
    pub reserving: u64,
    /// EXTENDED COPY that ended with GOOD.
    pub copies: u64,
    /// Commands that a function of their own nexus ended.
    pub aborted: u64,
    /// Requests that went with their channel.
    pub lost: u64,
    /// Functions that answered FUNCTION COMPLETE.
    pub functions: u64,
    /// Logins accepted.
    pub logins: u64,
    /// Logins refused.
    pub rejects: u64,
    /// Agents that died.
    pub restarts: u64,
    /// Cards that died.
    pub card_restarts: u64,
    /// Control channels lost.
    pub control_losses: u64,
    /// Arenas revoked, announced or not.
    pub revokes: u64,
    /// Times that the card lost the way to the host's memory.
    pub cuts: u64,
    /// Configurations applied.
    pub configurations: u64,
    /// Blocks witnessed on the media.
    pub landed: u64,
}

/// A run that broke a law.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which and how.
    pub broken: Broken,
    /// The last events.
    pub last: Vec<String>,
    /// Commands sent until then.
    pub commands: u64,
}

/// The world of one run.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    pub(crate) now: u64,
    /// Counts everything that initiators do and see.
    pub(crate) moment: u64,
    pub(crate) journal: Journal,
    fabric: Fabric,
    /// `None` while it is down.
    pub(crate) card: Option<Card>,
    /// The card's newest start.
    start: Start,
    pub(crate) host: Host,
    pub(crate) agent: Option<Agent>,
    pub(crate) wire: Option<Wire>,
    pub(crate) channels: Vec<Channel>,
    pub(crate) laws: Laws,
    pub(crate) order: Order,
    pub(crate) reserving: Reserving,
    /// By LUN: the one copy that writes to it.
    pub(crate) copies: [Option<reserve::Copying>; UNITS.len()],
    /// By nexus: writes whose channel died, with their LUN and the moment of that channel's login, until
    /// a SINGLE login ends them.
    pub(crate) limbo: Vec<Vec<(usize, lunar_initiator::oracle::Write, u64)>>,
    /// By nexus and LUN: the last moment at which something of another channel or nexus may have
    /// taken commands away.
    pub(crate) taken_away: Vec<[u64; UNITS.len()]>,
    /// By nexus: moment of its newest login.
    pub(crate) nexus_since: Vec<u64>,
    pub(crate) shape: Shape,
    /// By LUN: the generation that made it read-only.
    pub(crate) read_only_since: [Option<u32>; UNITS.len()],
    /// By LUN: the generation that put it into standby, while it is.
    pub(crate) standby_since: [Option<u32>; UNITS.len()],
    /// By LUN: the generation that made it active again, until that is in force.
    pub(crate) active_since: [Option<u32>; UNITS.len()],
    /// By LUN: since when no command finds it in standby.
    pub(crate) active_at: [u64; UNITS.len()],
    /// The newest generation that was reported as applied.
    pub(crate) applied: u32,
    pub(crate) faults: Faults,
    pub(crate) commands: u64,
    pub(crate) coverage: Coverage,
    pub(crate) counts: Counts,
    steps: u64,
    /// No new load and no new faults.
    pub(crate) ending: bool,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let fabric = Fabric::in_process();
        let stored: Vec<(u32, u64)> =
            UNITS.iter().filter(|unit| unit.stores).map(|unit| (unit.unit, BLOCKS)).collect();
        let mut host = Host::new(&stored, Pace::Adverse, &mut random);
        host.is_full_now_and_then = true;
        let card = Card::new(&fabric, &host.slot, Start::FIRST, Pace::Adverse, &mut random);
        let shape = Shape::default();
        let agent = host.start(configuration(&shape), 0, &mut random);
        let mut channels = Vec::new();
        let mut ports = Vec::new();
        for (nexus, count) in NEXUSES.into_iter().enumerate() {
            let mut port = [0; 16];
            port[..8].copy_from_slice(&random.seed().to_be_bytes());
            port[15] = u8::try_from(nexus).unwrap_or(0);
            ports.push(port);
            for place in 0..count {
                let number = channels.len();
                let single = place == 0;
                channels.push(Channel::new(&fabric, number, nexus, single, port, &mut random));
            }
        }
        let mut world = Self {
            plan,
            now: 0,
            moment: 1,
            journal: Journal::new(plan.trace),
            fabric,
            card: Some(card),
            start: Start::FIRST,
            host,
            agent: Some(agent),
            wire: None,
            channels,
            laws: Laws::new(NEXUSES.len()),
            order: Order::default(),
            reserving: Reserving::new(&ports),
            copies: [None; UNITS.len()],
            limbo: NEXUSES.iter().map(|_| Vec::new()).collect(),
            taken_away: vec![[0; UNITS.len()]; NEXUSES.len()],
            nexus_since: vec![0; NEXUSES.len()],
            shape,
            read_only_since: [None; UNITS.len()],
            standby_since: [None; UNITS.len()],
            active_since: [None; UNITS.len()],
            active_at: [0; UNITS.len()],
            applied: 0,
            faults: Faults::new(&mut random),
            commands: 0,
            coverage: Coverage::default(),
            counts: Counts::default(),
            steps: 0,
            ending: false,
            random,
        };
        world.connect();
        for channel in 0..world.channels.len() {
            world.channels[channel].login_at = world.random.between(200_000, 900_000);
        }
        world
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Result<Summary, Box<Failure>> {
        match self.run_all() {
            Ok(()) => Ok(Summary {
                hash: self.journal.hash(),
                events: self.journal.events(),
                commands: self.commands,
                now: self.now,
                coverage: self.coverage,
                counts: Counts { landed: self.laws.landed, ..self.counts },
            }),
            Err(broken) => Err(Box::new(Failure {
                broken,
                last: self.journal.last().map(ToString::to_string).collect(),
                commands: self.commands,
            })),
        }
    }

    fn run_all(&mut self) -> Result<(), Broken> {
        while self.commands < self.plan.commands {
            self.step()?;
        }
        self.ending = true;
        let deadline = self.now + DRAIN_NS;
        self.until(deadline, "commands are outstanding", |world| {
            world.is_serving()
                && world.channels.iter().all(|channel| {
                    channel.initiator.outstanding() == 0 && channel.initiator.is_logged_in()
                })
        })?;
        self.judge_media()?;
        self.log_out()?;
        self.ask_statistics(deadline)
    }

    /// The medium of every unit holds what some order of the writes explains.
    fn judge_media(&mut self) -> Result<(), Broken> {
        for (lun, unit) in UNITS.iter().enumerate().filter(|(_, unit)| unit.stores) {
            // Writes of dead channels whose nexus did not log in with SINGLE again are still open,
            // which the model knows.
            let Some(medium) = self.host.medium(unit.unit) else { continue };
            self.laws.judge_medium(lun, |lba, block| {
                let offset = usize::try_from(lba).unwrap_or(0) * block.len();
                assert!(medium.peek(offset, block), "inside the medium");
            })?;
        }
        Ok(())
    }

    fn log_out(&mut self) -> Result<(), Broken> {
        for channel in &mut self.channels {
            channel.login_at = u64::MAX;
            // A channel that goes down at this moment needs no logout.
            let _ = channel.initiator.logout();
        }
        let deadline = self.now + DRAIN_NS;
        self.until(deadline, "a logout does not end its channel", |world| {
            world.channels.iter().all(|channel| channel.initiator.is_idle())
        })?;
        self.until(deadline, "tasks are left after every channel is gone", |world| {
            world.card.as_ref().is_some_and(|card| card.tasks() == 0)
        })
    }

    fn ask_statistics(&mut self, deadline: u64) -> Result<(), Broken> {
        // The card's own cleaning up comes with its slow work.
        let settle = self.now + 3_000_000;
        while self.now < settle {
            self.step()?;
        }
        if let Some(agent) = self.agent.as_mut() {
            agent.statistics = None;
            agent.core.request_statistics(77, false);
        }
        self.until(deadline.max(self.now + DRAIN_NS), "no statistics came", |world| {
            world.agent.as_ref().is_some_and(|agent| agent.statistics.is_some())
        })?;
        let Some(statistics) = self.agent.as_mut().and_then(|agent| agent.statistics.take()) else {
            return Ok(());
        };
        let leak = |text: String| Err(Broken { law: Law::Leak, text });
        if let Some(sgv) = statistics.sgv.iter().find(|sgv| sgv.active_bytes != 0) {
            return leak(format!(
                "poll group {} holds {} bytes of SGV memory (placement {}) for nobody",
                sgv.group, sgv.active_bytes, sgv.placement
            ));
        }
        if let Some(ring) = statistics.rings.iter().find(|ring| ring.outstanding != 0) {
            return leak(format!(
                "{} operations are outstanding in ring {} for nobody",
                ring.outstanding, ring.ring
            ));
        }
        match statistics.nexuses.len() {
            0 => Ok(()),
            count => leak(format!("{count} nexuses are left without a channel")),
        }
    }

    fn until(
        &mut self,
        deadline: u64,
        otherwise: &str,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), Broken> {
        while !done(self) {
            if self.now >= deadline {
                let states = self.card.as_ref().map(Card::states);
                let text = format!(
                    "{otherwise} after {} ms of virtual time without load; tasks on the card: {states:x?}",
                    DRAIN_NS / 1_000_000
                );
                return Err(Broken { law: Law::Liveness, text });
            }
            self.step()?;
        }
        Ok(())
    }

    /// One step of virtual time.
    pub(crate) fn step(&mut self) -> Result<(), Broken> {
        self.steps += 1;
        self.now += self.random.between(150, 1_100);
        self.journal.set_time(self.now);
        self.run_faults()?;
        self.run_card();
        self.run_agent()?;
        self.look_at_landings()?;
        for channel in 0..self.channels.len() {
            self.run_channel(channel)?;
        }
        if self.steps.is_multiple_of(TRACE_STEPS) {
            self.look_at_trace()?;
            self.look_for_forgotten()?;
        }
        Ok(())
    }

    fn run_card(&mut self) {
        let Some(card) = self.card.as_mut() else { return };
        let ended = card.run(self.now, self.wire.as_mut(), &mut self.random);
        if ended.is_err() {
            self.journal.note("the card closes the control channel", [0; 3]);
            self.disconnect();
        }
    }

    fn run_agent(&mut self) -> Result<(), Broken> {
        if self.now < self.faults.agent_stalled_until {
            return Ok(());
        }
        let Some(agent) = self.agent.as_mut() else { return Ok(()) };
        agent
            .run(&mut self.host, self.wire.as_mut(), self.now, &mut self.random, &mut self.journal)
            .map_err(|text| Broken { law: Law::Trust, text })?;
        let applied = agent.core.applied_generation();
        if let Some(reason) = agent.closing.take() {
            // The faults of a run never make a card hostile or silent.
            if !reason.contains("goodbye") {
                let text = format!("the agent closes the control channel: {reason}");
                return Err(Broken { law: Law::Trust, text });
            }
            self.disconnect();
        }
        if applied > self.applied {
            self.applied = applied;
            self.counts.configurations += 1;
            self.journal.note("configuration applied: generation", [applied.into(), 0, 0]);
        }
        for (lun, fence) in self.laws.fenced.iter_mut().enumerate() {
            let closed = [self.read_only_since[lun], self.standby_since[lun]];
            *fence = closed.into_iter().flatten().any(|since| since <= self.applied);
            if self.active_since[lun].is_some_and(|since| since <= self.applied) {
                (self.active_since[lun], self.active_at[lun]) = (None, self.now);
            }
        }
        Ok(())
    }

    fn look_at_landings(&mut self) -> Result<(), Broken> {
        for landing in self.host.landings.take() {
            self.journal.count("landed: unit, LBA", [landing.unit.into(), landing.lba, 0]);
            let (lun, nexus) = match landing.lba {
                ..LOAD_BLOCKS => self.laws.on_landing(&landing)?,
                _ => self.judge_copied(&landing)?,
            };
            self.reserving.on_landing(lun, nexus, landing.lba)?;
        }
        Ok(())
    }

    fn look_at_trace(&mut self) -> Result<(), Broken> {
        let Some(card) = self.card.as_mut() else { return Ok(()) };
        let records = card.take_trace();
        for record in &records {
            self.coverage.add(record.point);
            let (point, detail) = number_of(record.point);
            self.journal.count("card", [record.tag, point, detail ^ record.at.0]);
        }
        self.order.on_records(&records)
    }

    /// Connects card and agent.
    pub(crate) fn connect(&mut self) {
        self.wire = Some(Wire::default());
        if let Some(agent) = self.agent.as_mut() {
            agent.core.on_control_connected(self.now);
        }
        self.journal.note("control channel connected", [0; 3]);
    }

    /// The control channel breaks; what was on its way is lost.
    pub(crate) fn disconnect(&mut self) {
        if self.wire.take().is_none() {
            return;
        }
        self.counts.control_losses += 1;
        self.faults.last_outage = Some(self.now);
        self.journal.note("control channel lost", [0; 3]);
        if let Some(card) = self.card.as_mut() {
            card.control_lost();
        }
        if let Some(agent) = self.agent.as_mut() {
            agent.core.on_control_lost(self.now);
        }
        self.faults.connect_at = self.now + self.random.between(5_000, 2_000_000);
    }

    /// The firmware dies, with all that is on the card.
    pub(crate) fn kill_card(&mut self) -> Result<(), Broken> {
        self.look_at_trace()?;
        if self.card.take().is_some() {
            self.counts.card_restarts += 1;
            self.journal.note("the card dies", [0; 3]);
            self.order.forget();
            self.faults.last_outage = Some(self.now);
            self.disconnect();
        }
        Ok(())
    }

    /// It starts again, after a loss of power or without one.
    pub(crate) fn start_card(&mut self, power_on: bool) {
        self.journal.note("a card starts: with power lost", [power_on.into(), 0, 0]);
        self.start = self.start.next(power_on);
        let (slot, random) = (&self.host.slot, &mut self.random);
        self.card = Some(Card::new(&self.fabric, slot, self.start, Pace::Adverse, random));
        if power_on {
            self.reserving.on_power_on(self.moment);
        }
    }

    /// The agent dies.
    pub(crate) fn kill_agent(&mut self) {
        let Some(mut agent) = self.agent.take() else { return };
        self.counts.restarts += 1;
        self.journal.note("the agent dies", [0; 3]);
        agent.die(&mut self.host, &mut self.random);
        self.disconnect();
    }

    /// The next agent starts; it connects later.
    pub(crate) fn start_agent(&mut self) {
        self.journal.note("an agent starts", [0; 3]);
        let shape = configuration(&self.shape);
        let agent = self.host.start(shape, self.now, &mut self.random);
        let generation = agent.core.configuration_generation();
        let closed = self.read_only_since.iter_mut().chain(&mut self.standby_since);
        for since in closed.chain(&mut self.active_since) {
            if *since == Some(u32::MAX) {
                *since = Some(generation);
            }
        }
        self.agent = Some(agent);
    }

    /// Whether the agent runs and the card uses its rings.
    pub(crate) fn is_serving(&self) -> bool {
        self.wire.is_some()
            && self.agent.as_ref().is_some_and(|agent| {
                agent.core.link_state() == lunar_core::LinkState::Ready
                    && agent.core.applied_generation() == agent.core.configuration_generation()
            })
    }
}

/// A point as numbers, for the hash.
fn number_of(point: Point) -> (u64, u64) {
    match point {
        Point::Received => (1, 0),
        Point::Claimed => (2, 0),
        Point::Entered(state) => (3, state as u64),
        Point::Buffer => (4, 0),
        Point::ReadsPosted { work_requests } => (5, work_requests.into()),
        Point::ReadsDone => (6, 0),
        Point::Submitted => (7, 0),
        Point::Outcome => (8, 0),
        Point::Reposted => (9, 0),
        Point::ResponsePosted { writes } => (10, writes.into()),
        Point::Doorbell => (11, 0),
        Point::Over => (12, 0),
        Point::Aborted(state) => (13, state as u64),
        Point::Gated(state) => (14, state as u64),
        Point::ChannelLost(state) => (15, state as u64),
        Point::RingLost(state) => (16, state as u64),
        Point::Revoked(state) => (17, state as u64),
    }
}

#[cfg(test)]
mod disk_commands;
mod reserve;
