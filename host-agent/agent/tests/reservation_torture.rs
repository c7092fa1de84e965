//! The agent, killed with SIGKILL at random points while initiators register, reserve, release and preempt. What it keeps
//! is judged: nothing that an initiator was told is lost, nothing that was given up comes back, what nobody was told of
//! is wholly there or wholly not, and no command runs twice. The state machine is the agent's own (`lunar_scsi` has
//! tests of it): here a second one runs beside, which nobody kills.
//!
//! Besides the agent, the control channel is cut, and the card dies: then it comes back in another epoch, and after a loss
//! of power under another boot id.
//!
//! The points are chosen from a seed, which a failure prints. How far the agent has got by then is the machine's to say, so
//! a seed repeats what is tried, not what happens.

mod board;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use board::{Board, Card, PATIENCE, Polled, Rings};
use lunar_core::reservations::{
    InAction, Nexus, OutAction, Protocol, ReservationType, Reservations, TargetPort, TransportId,
};
use lunar_offload_proto::control::{self, feature, to_card, to_host};
use lunar_offload_proto::ring::{
    BlockRequest, CompletionEntry, Operation, Outcome, SideRecord, SubmissionEntry,
};
use lunar_scsi::device_server::Ending;
use lunar_scsi::status::Status;

/// Kills in a normal run; the variable says another number.
const KILLS: u32 = 500;
const KILLS_VARIABLE: &str = "LUNAR_TORTURE_KILLS";
/// Another first seed.
const SEED_VARIABLE: &str = "LUNAR_TORTURE_SEED";
/// Boards that are tortured at the same time.
const BOARDS: u32 = 2;

const CONFIGURATION: &str = "
HANDLER vdisk_nullio {
    DEVICE disk {
        size_mb 16
        lunar_backend host
    }
}
TARGET_DRIVER ib_srpt {
    TARGET t {
        LUN 0 disk
        enabled 1
    }
    TARGET u {
        LUN 0 disk
        enabled 1
    }
}
";

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn one_of<T: Copy>(&mut self, these: &[T]) -> T {
        these[self.below(these.len() as u64) as usize]
    }

    /// From a microsecond to `longest`, every order of magnitude as likely as the others.
    fn delay(&mut self, longest: Duration) -> Duration {
        let bits = u64::BITS - (longest.as_micros() as u64).leading_zeros();
        let most = 1 << self.below(u64::from(bits) + 1);
        Duration::from_micros(self.below(most))
    }
}

/// What ended a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    /// The agent was killed.
    Killed,
    /// The control channel; both sides live.
    Channel,
    /// The card is gone.
    Card,
}

/// When an agent's life ends, and how far the card goes along.
#[derive(Debug)]
struct Strike {
    cut: Cut,
    /// With this burst of commands; 0: with the start.
    burst: u64,
    /// This long after it.
    delay: Duration,
    /// The card reads the answers to that burst, and brings its configurations in force.
    reads: bool,
    applies: bool,
}

impl Strike {
    fn draw(random: &mut Random) -> Self {
        let cut = match random.below(10) {
            0 => Cut::Channel,
            1 => Cut::Card,
            _ => Cut::Killed,
        };
        let burst = random.below(5);
        // A start takes longer than a command.
        let longest = Duration::from_millis(if burst == 0 { 100 } else { 10 });
        let delay = random.delay(longest);
        Self { cut, burst, delay, reads: !random.one_in(3), applies: !random.one_in(3) }
    }
}

/// A command in flight.
#[derive(Debug)]
struct Sent {
    token: u64,
    sequence: u32,
    from: usize,
    cdb: [u8; 10],
    list: Vec<u8>,
    answer: Option<Answer>,
}

impl Sent {
    fn changes(&self) -> bool {
        self.cdb[0] == PERSISTENT_RESERVE_OUT
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Answer {
    /// Status, and sense or parameter data.
    Ended(u8, Vec<u8>),
    /// Nobody knows whether it ran.
    Lost,
}

const PERSISTENT_RESERVE_IN: u8 = 0x5E;
const PERSISTENT_RESERVE_OUT: u8 = 0x5F;

/// Between two heartbeats.
const BEAT: Duration = Duration::from_millis(500);

/// Bytes of a command's data, and where those of token 0 lie.
const DATA_BYTES: u64 = 1024;
const DATA_OFFSET: u64 = 8192;

struct Torture {
    board: Board,
    random: Random,
    card: Option<Card>,
    rings: Option<Rings>,
    /// The card's, with the boot of its machine.
    epoch: u64,
    boot_id: [u8; 16],
    /// Of the agent that is connected, and of the one before.
    agent_epoch: u64,
    previous_epoch: u64,
    unit: u32,
    /// The configuration that the card has, and whether this connection brought one.
    generation: u32,
    configured: bool,
    applied: u32,
    /// What the card has enforced since nothing was in flight, the newest last.
    enforced: Vec<control::AccessTable>,
    nexuses: Vec<Nexus>,
    ports: Vec<TargetPort>,
    /// What the reservations may be: several where nobody was told.
    states: Vec<Reservations>,
    /// In the order of their sequences.
    sent: VecDeque<Sent>,
    token: u64,
    key: u64,
    strike: Strike,
    strike_at: Option<Instant>,
    /// When the card showed that it lives.
    last_beat: Instant,
    /// What was done, for whoever has to find out.
    trace: VecDeque<String>,
    /// How often each kind of thing happened that the torture is about.
    seen: Seen,
}

/// A torture that never meets what it is about proves nothing.
#[derive(Debug, Default)]
struct Seen {
    kills: u32,
    good: u32,
    refused: u32,
    /// Of the commands in flight at a cut: lost, and never told of.
    lost: u32,
    untold: u32,
    power_ons: u32,
}

impl Torture {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let initiators = [[0xA1; 16], [0xB2; 16]].map(TransportId::srp);
        let at = |target_port| initiators.clone().map(|initiator| Nexus { initiator, target_port });
        Self {
            board: Board::start(CONFIGURATION),
            card: None,
            rings: None,
            epoch: 1,
            boot_id: [1; 16],
            agent_epoch: 0,
            previous_epoch: 0,
            unit: 0,
            generation: 0,
            configured: false,
            applied: 0,
            enforced: Vec::new(),
            nexuses: [at(1), at(2)].concat(),
            ports: [1, 2].map(|id| TargetPort { id, protocol: Protocol::Srp }).to_vec(),
            states: vec![Reservations::default()],
            sent: VecDeque::new(),
            token: 0,
            key: 0,
            strike: Strike::draw(&mut random),
            strike_at: None,
            last_beat: Instant::now(),
            trace: VecDeque::new(),
            seen: Seen::default(),
            random,
        }
    }

    fn run(&mut self, kills: u32) {
        while self.seen.kills < kills {
            self.strike = Strike::draw(&mut self.random);
            self.note(format!("{:?}", self.strike));
            self.arm(0);
            let cut = match self.live() {
                Err(cut) => cut,
                Ok(never) => match never {},
            };
            self.on_cut(cut);
        }
        // What the last one left is judged, too.
        self.strike =
            Strike { cut: Cut::Channel, burst: u64::MAX, ..Strike::draw(&mut self.random) };
        self.strike_at = None;
        let judged = self.meet().and_then(|()| self.read_back());
        assert_eq!(judged, Ok(()));
    }

    /// From the connection to its end.
    fn live(&mut self) -> Result<std::convert::Infallible, Cut> {
        self.meet()?;
        self.read_back()?;
        for burst in 1.. {
            self.send_burst();
            if burst == self.strike.burst {
                self.arm(burst);
            }
            self.wait_for_answers()?;
        }
        unreachable!("every life is cut")
    }

    fn arm(&mut self, burst: u64) {
        if self.strike.burst == burst {
            self.strike_at = Some(Instant::now() + self.strike.delay);
        }
    }

    /// The strike, when it is time.
    fn check(&mut self) -> Result<(), Cut> {
        if self.strike_at.is_none_or(|at| Instant::now() < at) {
            return Ok(());
        }
        self.strike_at = None;
        if self.strike.cut == Cut::Killed {
            self.board.kill_agent();
        }
        Err(self.strike.cut)
    }

    /// What becomes of everything after a cut.
    fn on_cut(&mut self, cut: Cut) {
        if self.card.take().is_some() {
            self.previous_epoch = self.agent_epoch;
        }
        self.strike_at = None;
        let card_dies = match cut {
            Cut::Killed => self.random.one_in(4),
            Cut::Channel => false,
            Cut::Card => true,
        };
        let power_on = card_dies && self.random.one_in(2);
        let left = self.sent.len();
        self.note(format!("{cut:?}, {left} in flight; card dies {card_dies}, power {power_on}"));
        if card_dies {
            self.on_card_death(power_on);
        }
        if cut == Cut::Killed {
            self.seen.kills += 1;
            self.board.start_agent();
        }
    }

    /// Nobody waits for an answer any more: of what was in flight, as much may have been made as has its turn first.
    fn on_card_death(&mut self, power_on: bool) {
        self.settle();
        let mut made = self.states.clone();
        for one in std::mem::take(&mut self.sent).iter().filter(|one| one.changes()) {
            self.seen.untold += 1;
            made = made.iter().map(|state| self.after(state, one).0).collect();
            self.states.extend(made.iter().cloned());
        }
        self.rings = None;
        self.applied = 0;
        self.epoch += 1;
        if power_on {
            self.seen.power_ons += 1;
            self.boot_id = self.random.next().to_le_bytes().repeat(2).try_into().unwrap();
            for state in &mut self.states {
                state.on_power_on();
            }
        }
        self.forget_twins();
    }

    /// From Hello to the first configuration, which is to be as it was kept.
    fn meet(&mut self) -> Result<(), Cut> {
        self.configured = false;
        let start = Instant::now();
        let card = loop {
            self.check()?;
            match Card::try_connect(&self.board) {
                Ok(card) => break card,
                Err(error) if start.elapsed() > PATIENCE => {
                    self.fail(&format!("no agent: {error}"))
                }
                Err(_) => std::thread::sleep(Duration::from_micros(300)),
            }
        };
        self.card = Some(card);
        let hello = match self.message()? {
            to_card::Message::Hello(hello) => hello,
            other => self.fail(&format!("no Hello but {other:?}")),
        };
        self.agent_epoch = hello.epoch;
        let limits = control::Limits::default();
        let software = "scripted card";
        let mine = control::hello(software, self.epoch, self.boot_id, feature::ALL, 0, limits);
        let agreed = control::negotiate(&mine, &hello).unwrap();
        self.tell(to_host::Message::HelloAccepted(control::HelloAccepted {
            version: agreed.version,
            features: agreed.features,
            hello: Some(mine),
        }));
        let setup = match self.message()? {
            to_card::Message::RingSetup(setup) => setup,
            other => self.fail(&format!("no RingSetup but {other:?}")),
        };
        let resumes = self.rings.is_some();
        if !resumes {
            self.rings = Some(Rings::open(&self.board, &setup));
        }
        self.tell(to_host::Message::RingsReady(control::RingsReady::default()));
        for (nexus, number) in self.nexuses.clone().iter().zip(1..) {
            self.tell(to_host::Message::NexusEvent(control::NexusEvent {
                kind: control::NexusEventKind::Login.into(),
                nexus: number,
                nexus_generation: 1,
                target: nexus.target_port.into(),
                initiator_port_id: nexus.initiator.as_bytes()[8..].to_vec(),
                peer: format!("fe80::{number}"),
                channels: 1,
                ..control::NexusEvent::default()
            }));
        }
        let in_flight = |one: &Sent| control::InFlight { token: one.token, sequence: one.sequence };
        let unanswered = self.sent.iter().filter(|one| one.answer.is_none());
        let operations = unanswered.map(in_flight).collect();
        let agent_epoch = self.previous_epoch;
        let reconcile = control::Reconcile { ring: 0, agent_epoch, operations };
        self.tell(to_host::Message::Reconcile(reconcile));
        let start = Instant::now();
        while !self.configured {
            self.turn(start, "no configuration")?;
        }
        // What was in flight ends first: then there is one state again.
        self.wait_for_answers()
    }

    /// Every service action that tells of them, against what they may be.
    fn read_back(&mut self) -> Result<(), Cut> {
        let actions = InAction::ALL;
        for action in actions {
            let mut cdb = [0; 10];
            (cdb[0], cdb[1]) = (PERSISTENT_RESERVE_IN, action as u8);
            cdb[7..9].copy_from_slice(&(DATA_BYTES as u16).to_be_bytes());
            let from = self.random.below(self.nexuses.len() as u64) as usize;
            self.send(from, cdb, Vec::new(), true);
            let start = Instant::now();
            let answer = loop {
                self.turn(start, "no answer to PERSISTENT RESERVE IN")?;
                if let Some(Sent { answer: Some(answer), .. }) = self.sent.front() {
                    break answer.clone();
                }
            };
            self.sent.pop_front();
            let expected = |state: &Reservations| {
                let mut data = vec![0; DATA_BYTES as usize];
                let length = state.persistent_reserve_in(&cdb, &mut data).unwrap();
                data.truncate(length);
                Answer::Ended(0, data)
            };
            let before = self.states.clone();
            self.states.retain(|state| expected(state) == answer);
            if self.states.is_empty() {
                self.states = before;
                self.fail(&format!("{action:?} says {answer:02x?}, which no possible state does"));
            }
        }
        if self.states.len() > 1 {
            self.fail("states that nobody can tell apart");
        }
        Ok(())
    }

    /// One to three commands, at once.
    fn send_burst(&mut self) {
        let first = self.random.below(self.nexuses.len() as u64) as usize;
        let count = if self.random.one_in(2) { 1 } else { 1 + self.random.below(3) as usize };
        let hints = !self.random.one_in(8);
        for at in first..first + count {
            let from = at % self.nexuses.len();
            let (cdb, list) = self.draw_command(from);
            let text = format!("{from}: {cdb:02x?} {list:02x?}");
            self.send(from, cdb, list, hints);
            self.note(format!("{} from {text}", self.token));
        }
    }

    /// One that makes sense, mostly.
    fn draw_command(&mut self, from: usize) -> ([u8; 10], Vec<u8>) {
        use OutAction::{
            Clear, Preempt, PreemptAndAbort, Register, RegisterAndIgnore, RegisterAndMove, Release,
            Reserve,
        };
        let state = self.states[0].clone();
        let registrations: Vec<_> =
            state.registrations().map(|one| (one.nexus.clone(), one.key)).collect();
        let own = registrations.iter().find(|(nexus, _)| *nexus == self.nexuses[from]);
        let own = own.map(|(_, key)| *key);
        let actions: &[OutAction] = match own {
            None => &[Register, Register, Register, RegisterAndIgnore, Reserve],
            Some(_) => &[
                Reserve,
                Reserve,
                Reserve,
                Release,
                Release,
                Preempt,
                Preempt,
                PreemptAndAbort,
                Register,
                Register,
                RegisterAndIgnore,
                RegisterAndMove,
                Clear,
            ],
        };
        let action = self.random.one_of(actions);
        self.key += 1;
        let new = self.key;
        let held = state.reservation().map(|held| held.kind);
        let kind = match (action, held) {
            (Release, Some(held)) if !self.random.one_in(8) => held,
            _ => self.random.one_of(&ReservationType::ALL),
        };
        let key = if self.random.one_in(16) { 99_999 } else { own.unwrap_or(0) };
        let action_key = match action {
            Register | RegisterAndIgnore if self.random.one_in(4) => 0,
            Preempt | PreemptAndAbort if registrations.is_empty() => 0,
            Preempt | PreemptAndAbort => self.random.one_of(&registrations_keys(&registrations)),
            _ => new,
        };
        let mut list = [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat();
        let aptpl = self.random.below(2) as u8;
        if action == RegisterAndMove {
            let to = self.random.below(self.nexuses.len() as u64) as usize;
            let to = &self.nexuses[to];
            list[17] = aptpl | (self.random.below(2) as u8) << 1;
            list[18..20].copy_from_slice(&to.target_port.to_be_bytes());
            list[23] = 24;
            list.extend(to.initiator.as_bytes());
        } else {
            const ALL_TG_PT: u8 = 4;
            list[20] = aptpl | if self.random.one_in(8) { ALL_TG_PT } else { 0 };
        }
        let mut cdb = [0; 10];
        cdb[..3].copy_from_slice(&[PERSISTENT_RESERVE_OUT, action as u8, kind as u8]);
        cdb[8] = list.len() as u8;
        (cdb, list)
    }

    fn send(&mut self, from: usize, cdb: [u8; 10], list: Vec<u8>, hints: bool) {
        self.token += 1;
        let Some(rings) = &mut self.rings else { panic!("a card has rings") };
        let mut entry = SubmissionEntry::new(Operation::Read, self.token);
        BlockRequest::Forward { data_out: !list.is_empty() }.encode(&mut entry);
        entry.unit = self.unit.into();
        entry.nexus = (from as u32 + 1).into();
        entry.nexus_generation = 1.into();
        entry.configuration_generation = self.generation.into();
        entry.data_offset = data_offset(self.token).into();
        entry.data_bytes = (DATA_BYTES as u32).into();
        if !list.is_empty() {
            entry.data_bytes = (list.len() as u32).into();
            assert!(rings.arena.write(data_offset(self.token), &list));
        }
        let mut side = SideRecord::empty();
        side.set_cdb(&cdb).unwrap();
        let sequence = rings.submissions.push(entry, Some(&side)).unwrap();
        assert!(rings.submissions.publish());
        if hints {
            rings.hint();
        }
        let token = self.token;
        self.sent.push_back(Sent { token, sequence, from, cdb, list, answer: None });
    }

    /// Until nothing is in flight.
    fn wait_for_answers(&mut self) -> Result<(), Cut> {
        let start = Instant::now();
        while !self.sent.is_empty() {
            self.turn(start, "no answer")?;
            self.settle();
        }
        self.enforced.drain(..self.enforced.len().saturating_sub(1));
        Ok(())
    }

    /// What a card does all the time. `start`: since when `what` is waited for.
    fn turn(&mut self, start: Instant, what: &str) -> Result<(), Cut> {
        self.check()?;
        if start.elapsed() > PATIENCE {
            self.fail(what);
        }
        if self.last_beat.elapsed() > BEAT {
            self.last_beat = Instant::now();
            self.tell(to_host::Message::Heartbeat(control::Heartbeat::default()));
        }
        let struck = self.strike_at.is_some() && self.strike.burst > 0;
        if !struck || self.strike.applies {
            self.poll_control()?;
        }
        if !struck || self.strike.reads {
            self.poll_ring();
        }
        std::thread::yield_now();
        Ok(())
    }

    fn poll_control(&mut self) -> Result<(), Cut> {
        match self.card.as_mut().unwrap().poll() {
            Polled::Nothing => {}
            Polled::Message(to_card::Message::Configuration(new)) => self.on_configuration(&new),
            Polled::Message(to_card::Message::Reconciled(_)) => {}
            Polled::Message(other) => self.fail(&format!("unexpected: {other:?}")),
            Polled::Closed => return Err(self.on_closed()),
        }
        Ok(())
    }

    /// A machine with too much to do may keep the card silent for longer than an agent bears.
    fn on_closed(&self) -> Cut {
        let log = self.board.log();
        let reason = log.rsplit("card-connected").next().unwrap_or_default();
        if !reason.contains("the card said nothing for") {
            self.fail("the agent closed the channel");
        }
        Cut::Channel
    }

    /// The next message, when there is one.
    fn message(&mut self) -> Result<to_card::Message, Cut> {
        let start = Instant::now();
        loop {
            self.check()?;
            match self.card.as_mut().unwrap().poll() {
                Polled::Message(message) => return Ok(message),
                Polled::Closed => return Err(self.on_closed()),
                Polled::Nothing if start.elapsed() > PATIENCE => self.fail("no message"),
                Polled::Nothing => std::thread::yield_now(),
            }
        }
    }

    fn on_configuration(&mut self, new: &control::Configuration) {
        let unit = new.units.iter().find(|unit| unit.name == "disk").unwrap();
        let table = unit.access.clone().unwrap_or_default();
        if !self.configured {
            let mut possible = self.states.clone();
            let mut made = self.states.clone();
            for one in self.sent.iter().filter(|one| one.changes()) {
                made = made.iter().map(|state| self.after(state, one).0).collect();
                possible.extend(made.iter().cloned());
            }
            if !possible.iter().any(|state| message(state) == table) {
                self.fail(&format!("the card is told {table:?}, which no possible state says"));
            }
        }
        self.configured = true;
        self.unit = unit.handle;
        let generation = new.generation;
        self.generation = generation;
        self.applied = generation;
        self.enforced.push(table);
        let applied = control::ConfigurationApplied { generation };
        self.tell(to_host::Message::ConfigurationApplied(applied));
    }

    fn poll_ring(&mut self) {
        let Some(rings) = &mut self.rings else { return };
        let mut ended: Vec<(CompletionEntry, Vec<u8>)> = Vec::new();
        while let Some(entry) = rings.completions.pop().expect("a sound ring") {
            let mut data = Vec::new();
            if entry.sense_bytes.get() > 0 {
                let mut side = SideRecord::empty();
                rings.completions.read_side(entry.sequence.get(), &mut side);
                data = side.sense[..usize::from(entry.sense_bytes.get())].to_vec();
            } else if entry.transferred_bytes.get() > 0 {
                data.resize(entry.transferred_bytes.get() as usize, 0);
                assert!(rings.arena.read(data_offset(entry.token.get()), &mut data));
            }
            ended.push((entry, data));
        }
        rings.completions.release();
        for (entry, data) in ended {
            self.on_completion(&entry, data);
        }
    }

    fn on_completion(&mut self, entry: &CompletionEntry, data: Vec<u8>) {
        let token = entry.token.get();
        let answer = match entry.outcome() {
            Outcome::Forwarded => Answer::Ended(entry.status, data),
            Outcome::Lost => Answer::Lost,
            other => self.fail(&format!("{token} ended as {other:?}")),
        };
        self.note(format!("{token} ended: {answer:02x?}"));
        if entry.required_generation.get() > self.applied {
            self.fail(&format!("{token} is answered before the card enforces it"));
        }
        match self.sent.iter_mut().find(|one| one.token == token) {
            Some(one) if one.answer.is_none() => one.answer = Some(answer),
            _ => self.fail(&format!("{token} ended twice")),
        }
    }

    /// Changes are made in the order of their commands, so their answers are taken in that order.
    fn settle(&mut self) {
        while let Some(one) = self.sent.pop_front_if(|one| one.answer.is_some()) {
            let Some(answer) = &one.answer else { return };
            if !one.changes() {
                continue;
            }
            let both = self.states.iter().map(|state| (state, self.after(state, &one)));
            let mut next: Vec<Reservations> = Vec::new();
            for (before, (after, expected)) in both {
                match answer {
                    Answer::Ended(0, _) if !self.enforced.contains(&message(&after)) => {}
                    Answer::Ended(..) if expected == *answer => next.push(after),
                    Answer::Ended(..) => {}
                    // What comes after it may have been kept in its place. The last one is told of.
                    Answer::Lost if self.sent.iter().any(Sent::changes) => {
                        next.extend([before.clone(), after]);
                    }
                    Answer::Lost => next.push(before.clone()),
                }
            }
            if next.is_empty() {
                self.fail(&format!("{one:02x?}: no possible state that is enforced answers so"));
            }
            match answer {
                Answer::Ended(0, _) => self.seen.good += 1,
                Answer::Ended(..) => self.seen.refused += 1,
                Answer::Lost => self.seen.lost += 1,
            }
            self.states = next;
            self.forget_twins();
        }
    }

    /// What a command makes of a state, and how it ends.
    fn after(&self, state: &Reservations, one: &Sent) -> (Reservations, Answer) {
        let from = &self.nexuses[one.from];
        match state.persistent_reserve_out(from, &one.cdb, &one.list, &self.ports) {
            Ok(change) => (change.state, Answer::Ended(0, Vec::new())),
            Err(Ending::Status(status)) => {
                (state.clone(), Answer::Ended(status.code(), Vec::new()))
            }
            Err(Ending::Sense(sense)) => {
                let mut bytes = [0; 64];
                let length = sense.encode(false, &mut bytes);
                let status = Status::CheckCondition.code();
                (state.clone(), Answer::Ended(status, bytes[..length].to_vec()))
            }
        }
    }

    fn forget_twins(&mut self) {
        let mut different: Vec<Reservations> = Vec::new();
        for state in self.states.drain(..) {
            if !different.contains(&state) {
                different.push(state);
            }
        }
        self.states = different;
    }

    /// An agent that is gone, or about to be found gone, is told nothing.
    fn tell(&mut self, message: to_host::Message) {
        let _ = self.card.as_mut().unwrap().try_send(message);
    }

    fn note(&mut self, text: String) {
        if self.trace.len() == 60 {
            self.trace.pop_front();
        }
        self.trace.push_back(text);
    }

    fn fail(&self, text: &str) -> ! {
        let trace: Vec<&str> = self.trace.iter().map(String::as_str).collect();
        let log = self.board.log();
        let last: Vec<&str> = log.lines().rev().take(30).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        panic!(
            "{text}\nafter {:?}\nwhat was done:\n{}\nin flight: {:02x?}\nwhat it may be: {:#?}\n{}",
            self.seen,
            trace.join("\n"),
            self.sent,
            self.states,
            last.join("\n")
        )
    }
}

fn registrations_keys(registrations: &[(Nexus, u64)]) -> Vec<u64> {
    // Zero stands for all of them, where an all registrants type is held.
    registrations.iter().map(|(_, key)| *key).chain([0]).collect()
}

fn data_offset(token: u64) -> u64 {
    DATA_OFFSET + token % 16 * DATA_BYTES
}

/// A state's access table as the card is told of it.
fn message(state: &Reservations) -> control::AccessTable {
    let table = state.access_table();
    let named = table.named().map(|(nexus, access)| control::NexusAccess {
        transport_id: nexus.initiator.as_bytes().to_vec(),
        relative_target_port: nexus.target_port.into(),
        access: access.bits().into(),
    });
    control::AccessTable { others: table.others().bits().into(), named: named.collect() }
}

fn from_environment<T: std::str::FromStr>(variable: &str) -> Option<T> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is `{text}`, which is no number")))
}

#[test]
fn no_kill_loses_an_acknowledged_reservation_or_brings_one_back() {
    let kills = from_environment(KILLS_VARIABLE).unwrap_or(KILLS);
    let seed = from_environment(SEED_VARIABLE).unwrap_or(1_u64);
    println!("{SEED_VARIABLE}={seed} {KILLS_VARIABLE}={kills}");
    let each = kills.div_ceil(BOARDS);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..u64::from(BOARDS) {
            scope.spawn(move || {
                let mut torture = Torture::new(seed.wrapping_mul(1000).wrapping_add(number));
                torture.run(each);
                let seen = &torture.seen;
                println!("board {number}: {seen:?}");
                let all = [seen.good, seen.refused, seen.lost, seen.untold, seen.power_ons];
                assert!(kills < KILLS || !all.contains(&0), "something never happened");
            });
        }
    });
    println!("{kills} kills took {:?}", start.elapsed());
}
