//! A model of everything around the core: the card's ends of the rings and of the control channel,
//! and a shell that records effects. Handlers' outcomes are given by the test.
#![allow(dead_code)] // each test binary uses its part

use std::collections::{BTreeMap, VecDeque};

use lunar_core::reservations::record::Record;
use lunar_core::ring::{ArenaWindow, RingPair};
use lunar_core::{
    ArenaGeometry, Configuration, Core, CoreConfig, DataRange, DeviceHandle, Effect, Limits,
    LinkState, OperationId, Recovered, RingGeometry, UnitConfiguration,
};
use lunar_handlers::{Arena, CancelAnswer, Outcome as HandlerOutcome, Request};
use lunar_offload_proto::control::{
    self, BackendKind, HelloAccepted, LogicalUnit, NexusEvent, NexusEventKind, Reconcile,
    RingsReady, ToCard, ToHost, UnitState, feature, to_card, to_host,
};
use lunar_offload_proto::cursor::{Consumer, Producer};
use lunar_offload_proto::ring::{
    CompletionEntry, Operation, Outcome, RingLayout, SideRecord, SubmissionEntry,
};

/// Status, and sense key with ASC and ASCQ.
pub type Ended = (u8, (u8, u8, u8));

pub const SLOTS: u32 = 8;
pub const RINGS: u16 = 2;
pub const DATA_BYTES: u64 = 1 << 20;
pub const UNIT: u32 = 7;
pub const NEXUS: u32 = 3;
pub const SECOND: u64 = 1_000_000_000;
const RING_STRIDE: u64 = 1 << 16;

fn layout() -> RingLayout {
    RingLayout::new(SLOTS).expect("a power of two")
}

fn submission_offset(ring: u16) -> u64 {
    u64::from(ring) * 2 * RING_STRIDE
}

fn completion_offset(ring: u16) -> u64 {
    submission_offset(ring) + RING_STRIDE
}

fn data_offset(ring: u16) -> u64 {
    u64::from(RINGS) * 2 * RING_STRIDE + u64::from(ring) * DATA_BYTES
}

fn window(arena: &Arena, offset: u64) -> ArenaWindow {
    ArenaWindow::new(arena.clone(), offset, layout()).expect("inside")
}

/// What outlives agents: the keeper's arena.
pub fn keeper() -> Arena {
    let bytes = data_offset(RINGS);
    Arena::anonymous(usize::try_from(bytes).expect("small")).expect("memory")
}

pub fn unit(blocks: u64) -> UnitConfiguration {
    let unit = LogicalUnit {
        handle: UNIT,
        name: "disk".to_owned(),
        backend: BackendKind::Ring.into(),
        block_bytes: 512,
        blocks,
        ..LogicalUnit::default()
    };
    UnitConfiguration { unit, device: Some(DeviceHandle(1)) }
}

pub fn configuration() -> Configuration {
    let mut thin = unit(1000);
    thin.unit.thin = true;
    Configuration { units: vec![thin], ..Configuration::default() }
}

/// The card's ends of one ring pair.
pub struct CardRing {
    pub submissions: Producer<SubmissionEntry, ArenaWindow>,
    pub completions: Consumer<CompletionEntry, ArenaWindow>,
}

impl CardRing {
    fn new(arena: &Arena, ring: u16) -> Self {
        Self {
            submissions: Producer::new(layout(), window(arena, submission_offset(ring))),
            completions: Consumer::new(layout(), window(arena, completion_offset(ring))),
        }
    }
}

/// The agent's shell with its core, and the card across from it.
pub struct Bench {
    pub arena: Arena,
    pub core: Core,
    pub pairs: Vec<RingPair<ArenaWindow>>,
    pub card: Vec<CardRing>,
    pub now: u64,
    /// Control messages to the card.
    pub sent: VecDeque<to_card::Message>,
    /// Operations at handlers.
    pub executing: Vec<(OperationId, Request, Option<DataRange>)>,
    pub cancels: Vec<OperationId>,
    pub closed: Vec<(u16, String)>,
    pub log: Vec<String>,
    /// (card epoch, configuration generation), as the keeper has them.
    pub remembered: Option<(u64, u32)>,
    pub control_closed: Vec<String>,
    /// What the card says of its units when its rings are ready.
    pub unit_states: Vec<UnitState>,
    /// The card's boot.
    pub boot_id: [u8; 16],
    /// Reservations as they are kept, by unit.
    pub kept: BTreeMap<u32, Record>,
    /// Those that wait for [`Bench::end_keep`]; `None`: they are kept at once.
    pub keeping: Option<VecDeque<(u32, u64, Record)>>,
    /// How changes of reservations by the management ended.
    pub changed: Vec<(u64, Result<(), String>)>,
}

fn config(epoch: u64, generation: u32, recovered: Option<Recovered>) -> CoreConfig {
    let rings = (0..RINGS).map(|ring| RingGeometry {
        group: u32::from(ring),
        arena: 1,
        submission_offset: submission_offset(ring),
        completion_offset: completion_offset(ring),
        layout: layout(),
        data_arena: 1,
        data_offset: data_offset(ring),
        data_bytes: DATA_BYTES,
    });
    CoreConfig {
        software: "lunar-agent test".to_owned(),
        epoch,
        boot_id: [1; 16],
        arenas: vec![ArenaGeometry { id: 1, blob: vec![9; 16], bytes: data_offset(RINGS) }],
        rings: rings.collect(),
        configuration_generation: generation,
        recovered,
        limits: Limits::default(),
    }
}

impl Bench {
    /// A first agent on new rings; nothing is connected.
    pub fn new() -> Self {
        let arena = keeper();
        let card = (0..RINGS).map(|ring| CardRing::new(&arena, ring)).collect();
        let pairs = (0..RINGS).map(|ring| {
            let (submission, completion) = (submission_offset(ring), completion_offset(ring));
            RingPair::new(ring, layout(), window(&arena, submission), window(&arena, completion))
        });
        Self {
            pairs: pairs.collect(),
            core: Core::new(config(1, 0, None)),
            card,
            now: 0,
            sent: VecDeque::new(),
            executing: Vec::new(),
            cancels: Vec::new(),
            closed: Vec::new(),
            log: Vec::new(),
            remembered: None,
            control_closed: Vec::new(),
            unit_states: Vec::new(),
            boot_id: [2; 16],
            kept: BTreeMap::new(),
            keeping: None,
            changed: Vec::new(),
            arena,
        }
    }

    /// A serving agent: card 100 connected, configured, the nexus logged in.
    pub fn serving() -> Self {
        let mut bench = Self::new();
        bench.core.set_configuration(configuration(), 0).expect("configuration");
        bench.connect(100);
        bench.ready();
        bench.login(1);
        bench
    }

    /// The agent dies; the next one starts on the same memory, and the same card connects.
    pub fn restart_agent(&mut self, epoch: u64) {
        self.start_agent(epoch, configuration());
        self.connect(self.remembered.expect("a card was admitted").0);
        self.ready();
        self.login(1);
    }

    /// The agent dies; the next one starts on the same memory.
    pub fn start_agent(&mut self, epoch: u64, configuration: Configuration) {
        let (card_epoch, generation) = self.remembered.expect("a card was admitted");
        let mut rings = Vec::new();
        self.pairs.clear();
        for ring in 0..RINGS {
            let (pair, recovery) = RingPair::recover(
                ring,
                layout(),
                window(&self.arena, submission_offset(ring)),
                window(&self.arena, completion_offset(ring)),
            )
            .expect("sound rings");
            self.pairs.push(pair);
            rings.push(recovery);
        }
        let recovered = Some(Recovered { card_epoch, rings });
        self.core = Core::new(config(epoch, generation, recovered));
        self.executing.clear();
        self.cancels.clear();
        self.sent.clear();
        for (unit, record) in &self.kept {
            self.core.restore_reservations(*unit, Some(record.clone()));
        }
        self.core.set_configuration(configuration, self.now).expect("configuration");
    }

    /// The oldest keeping ends.
    pub fn end_keep(&mut self, result: Result<(), String>) {
        let waiting = self.keeping.as_mut().expect("keepings wait");
        let (unit, keep, record) = waiting.pop_front().expect("a keeping");
        if result.is_ok() {
            self.kept.insert(unit, record);
        }
        self.core.on_reservations_kept(unit, keep, result);
        self.settle();
    }

    pub fn connect(&mut self, card_epoch: u64) {
        self.core.on_control_connected(self.now);
        self.settle();
        let hello = match self.sent.pop_back() {
            Some(to_card::Message::Hello(hello)) => hello,
            other => panic!("no Hello but {other:?}"),
        };
        let accepted = HelloAccepted {
            version: hello.version_max,
            features: hello.features,
            hello: Some(control::hello(
                "lunar-firmware test",
                card_epoch,
                self.boot_id,
                feature::ALL,
                0,
                control::Limits::default(),
            )),
        };
        self.control(to_host::Message::HelloAccepted(accepted));
    }

    pub fn ready(&mut self) {
        assert_eq!(self.core.link_state(), LinkState::RingsOffered);
        let unit_states = self.unit_states.clone();
        self.control(to_host::Message::RingsReady(RingsReady {
            unit_states,
            ..RingsReady::default()
        }));
    }

    pub fn login(&mut self, generation: u32) {
        self.control(to_host::Message::NexusEvent(login(generation)));
    }

    pub fn reconcile(&mut self, ring: u16, agent_epoch: u64, in_flight: &[(u64, u32)]) {
        let operations = in_flight
            .iter()
            .map(|&(token, sequence)| control::InFlight { token, sequence })
            .collect();
        let message = Reconcile { ring: u32::from(ring), agent_epoch, operations };
        self.control(to_host::Message::Reconcile(message));
    }

    pub fn control(&mut self, message: to_host::Message) {
        self.core.on_control(ToHost { message: Some(message) }, self.now);
        self.settle();
    }

    pub fn tick(&mut self, now: u64) {
        self.now = now;
        self.core.on_tick(now);
        self.settle();
    }

    /// The card publishes `entry`; gives its sequence.
    pub fn submit(&mut self, ring: u16, entry: SubmissionEntry, side: Option<&SideRecord>) -> u32 {
        let card = &mut self.card[usize::from(ring)];
        let sequence = card.submissions.push(entry, side).expect("room");
        card.submissions.publish();
        sequence
    }

    /// The agent polls all rings and carries the effects out.
    pub fn poll(&mut self) -> usize {
        let mut count = 0;
        for pair in &mut self.pairs {
            count += pair.poll(&mut self.core, 64, self.now);
        }
        self.settle();
        count
    }

    pub fn submit_and_poll(&mut self, entry: SubmissionEntry) {
        self.submit(0, entry, None);
        self.poll();
    }

    /// The completions that the card finds in `ring`: token and outcome.
    pub fn completions(&mut self, ring: u16) -> Vec<(u64, Outcome)> {
        let card = &mut self.card[usize::from(ring)];
        let mut found = Vec::new();
        while let Some(entry) = card.completions.pop().expect("sound") {
            entry.check().expect("well-formed");
            found.push((entry.token.get(), entry.outcome()));
        }
        card.completions.release();
        found
    }

    /// The next completion in the first ring, of a forwarded command, if there is one: its token, and its status with
    /// sense key, ASC and ASCQ.
    pub fn forwarded_end(&mut self) -> Option<(u64, Ended)> {
        let card = &mut self.card[0];
        let completion = card.completions.pop().expect("sound")?;
        assert_eq!(completion.outcome(), Outcome::Forwarded);
        let mut side = SideRecord::empty();
        if completion.sense_bytes.get() > 0 {
            card.completions.read_side(completion.sequence.get(), &mut side);
        }
        card.completions.release();
        let sense = (side.sense[2], side.sense[12], side.sense[13]);
        Some((completion.token.get(), (completion.status, sense)))
    }

    /// The oldest operation at a handler ends.
    pub fn end(&mut self, outcome: HandlerOutcome) {
        let (operation, ..) = self.executing.remove(0);
        self.core.on_outcome(operation, outcome, self.now);
        self.settle();
    }

    pub fn answer_cancel(&mut self, answer: CancelAnswer) {
        let operation = self.cancels.remove(0);
        self.core.on_cancel_answer(operation, answer);
        self.settle();
    }

    /// Carries out what the core wants.
    pub fn settle(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::SendControl(message) => self.sent.extend((*message).into_message()),
                Effect::CloseControl { reason } => {
                    self.control_closed.push(reason);
                    self.core.on_control_lost(self.now);
                }
                Effect::Execute { operation, request, data, .. } => {
                    self.executing.push((operation, request, data));
                }
                Effect::Cancel { operation, .. } => self.cancels.push(operation),
                Effect::FetchParameters { command, data } => {
                    let mut list = vec![0; data.length as usize];
                    assert!(self.arena.read(data.offset, &mut list));
                    self.core.on_parameters(&command, &list);
                }
                Effect::StoreParameters { data, bytes } => {
                    assert_eq!(data.length as usize, bytes.len());
                    assert!(self.arena.write(data.offset, &bytes));
                }
                Effect::Complete { ring, entry, side } => {
                    let pair = &mut self.pairs[usize::from(ring)];
                    pair.complete(&mut self.core, entry, side.as_deref());
                    pair.publish();
                }
                Effect::CloseRing { ring, reason } => self.closed.push((ring, reason)),
                Effect::ResetRing { ring } => {
                    self.pairs[usize::from(ring)].reset();
                    self.card[usize::from(ring)] = CardRing::new(&self.arena, ring);
                }
                Effect::RememberCard { epoch, configuration_generation } => {
                    self.remembered = Some((epoch, configuration_generation));
                }
                Effect::Log(event) => self.log.push(format!("{}: {}", event.code, event.text)),
                Effect::KeepReservations { unit, keep, record } => match &mut self.keeping {
                    Some(waiting) => waiting.push_back((unit, keep, *record)),
                    None => {
                        self.kept.insert(unit, *record);
                        self.core.on_reservations_kept(unit, keep, Ok(()));
                    }
                },
                Effect::ReservationsChanged { id, result } => self.changed.push((id, result)),
                Effect::ArenaRevoked { .. } | Effect::Statistics(_) => {}
            }
        }
    }

    /// The last configuration generation that was sent to the card.
    pub fn sent_generation(&self) -> Option<u32> {
        self.sent.iter().rev().find_map(|message| match message {
            to_card::Message::Configuration(configuration) => Some(configuration.generation),
            _ => None,
        })
    }

    pub fn sent_fates(&self) -> Vec<(u64, control::Fate)> {
        let reconciled = self.sent.iter().rev().find_map(|message| match message {
            to_card::Message::Reconciled(reconciled) => Some(reconciled),
            _ => None,
        });
        let operations = reconciled.map(|reconciled| reconciled.operations.as_slice());
        operations.unwrap_or_default().iter().map(|one| (one.token, one.fate())).collect()
    }
}

trait IntoMessage {
    fn into_message(self) -> Option<to_card::Message>;
}

impl IntoMessage for ToCard {
    fn into_message(self) -> Option<to_card::Message> {
        self.message
    }
}

pub fn login(generation: u32) -> NexusEvent {
    NexusEvent {
        kind: NexusEventKind::Login.into(),
        nexus: NEXUS,
        nexus_generation: generation,
        target: 1,
        initiator_port_id: vec![5; 16],
        peer: "fe80::1".to_owned(),
        channels: 1,
        ..NexusEvent::default()
    }
}

pub fn logout(generation: u32) -> NexusEvent {
    NexusEvent { kind: NexusEventKind::Logout.into(), channels: 0, ..login(generation) }
}

/// A READ or WRITE of 8 blocks in ring 0's data area, under generation 1 of everything.
pub fn block_entry(operation: Operation, token: u64) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(operation, token);
    entry.arena.set(1);
    entry.unit.set(UNIT);
    entry.nexus.set(NEXUS);
    entry.nexus_generation.set(1);
    entry.configuration_generation.set(1);
    entry.lba.set(16);
    entry.blocks.set(8);
    entry.data_bytes.set(4096);
    entry.data_offset.set(data_offset(0) + 8192);
    entry
}

pub fn read(token: u64) -> SubmissionEntry {
    block_entry(Operation::Read, token)
}

pub fn write(token: u64) -> SubmissionEntry {
    block_entry(Operation::Write, token)
}

/// The range that [`block_entry`] names.
pub fn block_range() -> DataRange {
    DataRange { arena: 1, offset: data_offset(0) + 8192, length: 4096 }
}
