//! The host: what outlives agents (memory, media, notes), and one life of an agent: the real core
//! and the real ring pairs, with memory disks behind delays. Here is only what the agent's shell does.

use std::collections::BTreeMap;

use lunar_core::reservations::record::Record;
use lunar_core::ring::{ArenaWindow, RingPair};
use lunar_core::{
    ArenaGeometry, COPY_ARENA, COPY_ARENA_BYTES, Configuration, Core, CoreConfig, DataRange,
    DeviceHandle, Effect, Limits, OperationId, Recovered, RingGeometry,
};
use lunar_handlers::delay::{Clock, Delay, Lateness};
use lunar_handlers::memory_disk::Medium;
use lunar_handlers::{Arena, BlockDevice, CancelAnswer, HostBuffer};
use lunar_offload_proto::control::Statistics;
use lunar_offload_proto::ring::RingLayout;
use lunar_pcie::{ExportBlob, HostSlot, PlacementMode, Segment};
use lunar_platform::ArenaId;

use crate::card::{GROUPS, Pace};
use crate::disk::{BLOCK_BYTES, Landings, Witnessed};
use crate::journal::Journal;
use crate::random::Random;
use crate::wire::Wire;

/// Slots of each ring: few, so that commands wait for one.
const SLOTS: u32 = 32;
/// Bytes from one ring to the next.
const RING_STRIDE: u64 = 1 << 16;
/// The arena of the rings.
const RINGS: u16 = 1;
/// The arena of the data areas.
const DATA: u16 = 2;
/// Data area of each group.
const DATA_BYTES: u64 = 1 << 20;
/// Submissions taken from a ring at a time.
const BUDGET: usize = 8;
/// How long it takes to keep reservations, in nanoseconds.
const KEEP_NS: (u64, u64) = (1_000, 90_000);
/// How long a disk holds a request back, in nanoseconds.
const DISK_NS: (u64, u64) = (2_000, 120_000);

/// What an agent leaves when it dies.
pub struct Host {
    /// The slot in which the card sits.
    pub slot: HostSlot,
    rings: Segment,
    data: Segment,
    ring_arena: Arena,
    data_arena: Arena,
    blobs: [ExportBlob; 2],
    /// By unit handle.
    media: BTreeMap<u32, Medium>,
    /// What landed on the media.
    pub landings: Landings,
    /// Reservations cannot always be kept.
    pub is_full_now_and_then: bool,
    pace: Pace,
    /// The card's epoch that the rings belong to, kept with them.
    card_epoch: Option<u64>,
    /// The last configuration generation.
    generation: u32,
    /// What is kept of reservations, by unit.
    reservations: BTreeMap<u32, Record>,
    epoch: u64,
}

fn layout() -> RingLayout {
    RingLayout::new(SLOTS).expect("a power of two")
}

fn submission_offset(ring: u16) -> u64 {
    u64::from(ring) * 2 * RING_STRIDE
}

fn completion_offset(ring: u16) -> u64 {
    submission_offset(ring) + RING_STRIDE
}

fn arena_of(segment: &Segment) -> Arena {
    let file = segment.fd().expect("a memory file");
    Arena::from_fd(file, segment.len()).expect("the file is that long")
}

fn blob(arena: u16, random: &mut Random) -> ExportBlob {
    let mut secret = [0; 16];
    secret[..8].copy_from_slice(&random.seed().to_le_bytes());
    ExportBlob { arena: ArenaId(arena), secret }
}

impl Host {
    /// A host with media for `units`: (handle, blocks).
    ///
    /// # Panics
    /// When this machine has no memory or descriptors for it.
    #[must_use]
    pub fn new(units: &[(u32, u64)], pace: Pace, random: &mut Random) -> Self {
        let groups = usize::from(GROUPS);
        let bytes = |each: u64| usize::try_from(each).unwrap_or(0) * groups;
        let rings = Segment::memfd("lunar-sim-rings", bytes(2 * RING_STRIDE)).expect("memory");
        let data = Segment::memfd("lunar-sim-data", bytes(DATA_BYTES)).expect("memory");
        let media = units.iter().map(|(handle, blocks)| {
            (*handle, Medium::new(BLOCK_BYTES, usize::try_from(*blocks).unwrap_or(0)))
        });
        let host = Self {
            slot: HostSlot::new(match pace {
                Pace::Adverse => PlacementMode::Withheld { seed: random.seed() },
                Pace::Even => PlacementMode::Prompt,
            }),
            is_full_now_and_then: false,
            pace,
            ring_arena: arena_of(&rings),
            data_arena: arena_of(&data),
            rings,
            data,
            blobs: [blob(RINGS, random), blob(DATA, random)],
            media: media.collect(),
            landings: Landings::default(),
            card_epoch: None,
            generation: 0,
            reservations: BTreeMap::new(),
            epoch: 0,
        };
        host.plug();
        host
    }

    fn plug(&self) {
        for (blob, segment) in self.blobs.iter().zip([&self.rings, &self.data]) {
            self.slot.plug(*blob, segment);
        }
    }

    /// The keeper is gone with its memory; another one offers new memory, which knows of no card.
    ///
    /// # Panics
    /// When this machine has no memory or descriptors for it.
    pub fn lose_memory(&mut self, random: &mut Random) {
        self.rings = Segment::memfd("lunar-sim-rings", self.rings.len()).expect("memory");
        self.data = Segment::memfd("lunar-sim-data", self.data.len()).expect("memory");
        self.ring_arena = arena_of(&self.rings);
        self.data_arena = arena_of(&self.data);
        self.card_epoch = None;
        self.replug(random);
    }

    /// The keeper takes the card's access away and offers the memory anew, under new secrets.
    pub fn replug(&mut self, random: &mut Random) {
        for arena in [RINGS, DATA] {
            self.slot.revoke(ArenaId(arena));
        }
        self.blobs = [blob(RINGS, random), blob(DATA, random)];
        self.plug();
    }

    /// Blocks of the medium of `unit`, for the last look at everything.
    #[must_use]
    pub fn medium(&self, unit: u32) -> Option<&Medium> {
        self.media.get(&unit)
    }

    fn window(&self, offset: u64) -> ArenaWindow {
        ArenaWindow::new(self.ring_arena.clone(), offset, layout()).expect("inside the arena")
    }

    /// The next agent starts.
    ///
    /// # Panics
    /// When the rings that the last agent left contradict themselves, or the configuration is bad.
    pub fn start(&mut self, configuration: Configuration, now: u64, random: &mut Random) -> Agent {
        self.epoch += 1;
        let mut pairs = Vec::new();
        let mut recovered = Vec::new();
        for ring in 0..GROUPS {
            let submission = self.window(submission_offset(ring));
            let completion = self.window(completion_offset(ring));
            if self.card_epoch.is_some() {
                let (pair, recovery) = RingPair::recover(ring, layout(), submission, completion)
                    .expect("what an agent leaves is sound");
                pairs.push(pair);
                recovered.push(recovery);
            } else {
                pairs.push(RingPair::new(ring, layout(), submission, completion));
            }
        }
        let rings = (0..GROUPS).map(|ring| RingGeometry {
            group: u32::from(ring),
            arena: RINGS,
            submission_offset: submission_offset(ring),
            completion_offset: completion_offset(ring),
            layout: layout(),
            data_arena: DATA,
            data_offset: u64::from(ring) * DATA_BYTES,
            data_bytes: DATA_BYTES,
        });
        let arenas =
            self.blobs.iter().zip([&self.rings, &self.data]).map(|(blob, segment)| ArenaGeometry {
                id: blob.arena.0,
                blob: blob.encode().to_vec(),
                bytes: segment.len() as u64,
            });
        let mut core = Core::new(CoreConfig {
            software: "lunar-sim agent".to_owned(),
            epoch: self.epoch,
            boot_id: [9; 16],
            arenas: arenas.collect(),
            rings: rings.collect(),
            configuration_generation: self.generation,
            recovered: self.card_epoch.map(|card_epoch| Recovered { card_epoch, rings: recovered }),
            limits: Limits { parked_wait_ns: 20_000_000, ..Limits::default() },
        });
        for (unit, record) in &self.reservations {
            core.restore_reservations(*unit, Some(record.clone()));
        }
        core.set_configuration(configuration, now).expect("a good configuration");
        let clock = Clock::default();
        clock.set(now);
        let devices = self.media.iter().map(|(unit, medium)| {
            let disk = Witnessed::new(*unit, medium, &self.landings, random.seed());
            let (least_ns, most_ns) = match self.pace {
                Pace::Adverse => DISK_NS,
                Pace::Even => (DISK_NS.1, DISK_NS.1),
            };
            let lateness = Lateness::Time { clock: clock.clone(), least_ns, most_ns };
            (*unit, Delay::new(disk, lateness, random.seed()))
        });
        Agent {
            core,
            pairs,
            devices: devices.collect(),
            clock,
            data: self.data_arena.clone(),
            copies: Arena::anonymous(COPY_ARENA_BYTES).expect("memory"),
            executing: BTreeMap::new(),
            ended: Vec::new(),
            keeping: Vec::new(),
            statistics: None,
            revoked: false,
            closing: None,
        }
    }
}

/// One life of an agent.
pub struct Agent {
    /// The core.
    pub core: Core,
    pairs: Vec<RingPair<ArenaWindow>>,
    devices: BTreeMap<u32, Delay<Witnessed>>,
    clock: Clock,
    data: Arena,
    /// What EXTENDED COPY moves its data through.
    copies: Arena,
    /// Operations at the disks, with the disk.
    executing: BTreeMap<u64, u32>,
    ended: Vec<lunar_handlers::Ended>,
    /// Records on their way to where they are kept: when they are there, the unit and the name of the task.
    keeping: Vec<(u64, u32, u64, Box<Record>)>,
    /// The last answer to a request for statistics.
    pub statistics: Option<Box<Statistics>>,
    /// The card gave the arenas back.
    pub revoked: bool,
    /// Why it wants the control channel closed.
    pub closing: Option<String>,
}

impl Agent {
    /// One turn of the agent's loop.
    ///
    /// # Errors
    /// In words, what an agent does only when its card is hostile: closing a ring.
    pub fn run(
        &mut self,
        host: &mut Host,
        mut wire: Option<&mut Wire>,
        now: u64,
        random: &mut Random,
        journal: &mut Journal,
    ) -> Result<(), String> {
        self.clock.set(now);
        while let Some(message) = wire.as_mut().and_then(|wire| wire.at_host(now)) {
            self.core.on_control(message, now);
            self.carry_out(host, wire.as_deref_mut(), now, random, journal)?;
        }
        if self.core.next_deadline().is_some_and(|due| due <= now) {
            self.core.on_tick(now);
        }
        for pair in &mut self.pairs {
            pair.poll(&mut self.core, BUDGET, now);
        }
        self.carry_out(host, wire.as_deref_mut(), now, random, journal)?;
        for device in self.devices.values_mut() {
            device.poll(&mut self.ended);
        }
        for (id, outcome) in std::mem::take(&mut self.ended) {
            self.executing.remove(&id.0);
            self.core.on_outcome(OperationId::from_request_id(id), outcome, now);
        }
        for (_, unit, keep, record) in self.keeping.extract_if(.., |keeping| keeping.0 <= now) {
            let is_full = host.is_full_now_and_then && random.chance(1, 24);
            let result = if is_full { Err("no space".to_owned()) } else { Ok(()) };
            if result.is_ok() {
                host.reservations.insert(unit, *record);
            }
            self.core.on_reservations_kept(unit, keep, result);
        }
        self.carry_out(host, wire, now, random, journal)?;
        for pair in &mut self.pairs {
            pair.publish();
        }
        Ok(())
    }

    fn carry_out(
        &mut self,
        host: &mut Host,
        mut wire: Option<&mut Wire>,
        now: u64,
        random: &mut Random,
        journal: &mut Journal,
    ) -> Result<(), String> {
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::SendControl(message) => {
                    if let Some(wire) = wire.as_mut() {
                        wire.send_to_card(&message, now, random);
                    }
                }
                Effect::CloseControl { reason } => self.closing = Some(reason),
                Effect::Execute { operation, device, request, data } => {
                    self.execute(operation, device, request, data);
                }
                Effect::Cancel { operation, device } => {
                    let disk = self.devices.get_mut(&device.0);
                    let id = operation.to_request_id();
                    let answer = disk.map_or(CancelAnswer::TooLate, |disk| disk.cancel(id));
                    self.core.on_cancel_answer(operation, answer);
                }
                Effect::FetchParameters { command, data } => {
                    let mut list = vec![0; data.length as usize];
                    if !self.window(data).is_some_and(|window| window.read(0, &mut list)) {
                        return Err("a parameter list lies outside the arena".to_owned());
                    }
                    self.core.on_parameters(&command, &list);
                }
                Effect::StoreParameters { data, bytes } => {
                    if !self.window(data).is_some_and(|window| window.write(0, &bytes)) {
                        return Err("parameter data lies outside the arena".to_owned());
                    }
                }
                Effect::Complete { ring, entry, side } => {
                    if let Some(pair) = self.pairs.get_mut(usize::from(ring)) {
                        pair.complete(&mut self.core, entry, side.as_deref());
                    }
                }
                Effect::CloseRing { ring, reason } => {
                    return Err(format!("the agent closed ring {ring}: {reason}"));
                }
                Effect::ResetRing { ring } => {
                    if let Some(pair) = self.pairs.get_mut(usize::from(ring)) {
                        pair.reset();
                    }
                }
                Effect::RememberCard { epoch, configuration_generation } => {
                    host.card_epoch = Some(epoch);
                    host.generation = configuration_generation;
                }
                Effect::KeepReservations { unit, keep, record } => {
                    let due = now + random.between(KEEP_NS.0, KEEP_NS.1);
                    self.keeping.push((due, unit, keep, record));
                }
                Effect::ReservationsChanged { .. } => {}
                Effect::ArenaRevoked { .. } => self.revoked = true,
                Effect::Statistics(statistics) => self.statistics = Some(statistics),
                Effect::Log(event) => {
                    journal.count("agent log", [event.text.len() as u64, 0, 0]);
                }
            }
        }
        Ok(())
    }

    fn execute(
        &mut self,
        operation: OperationId,
        device: DeviceHandle,
        request: lunar_handlers::Request,
        data: Option<DataRange>,
    ) {
        let id = operation.to_request_id();
        let window = data.and_then(|data| self.window(data));
        match self.devices.get_mut(&device.0) {
            Some(disk) => {
                self.executing.insert(id.0, device.0);
                disk.submit(id, request, window.clone());
            }
            None => self.ended.push((id, lunar_handlers::Outcome::HardwareError)),
        }
    }

    fn window(&self, range: DataRange) -> Option<HostBuffer> {
        let arena = if range.arena == COPY_ARENA { &self.copies } else { &self.data };
        arena.window(range.offset, range.length)
    }

    /// The agent dies. What its disks had either reached the medium or not, before anybody else
    /// touches it, and what it was keeping was kept or was not.
    pub fn die(&mut self, host: &mut Host, random: &mut Random) {
        for (_, unit, _, record) in self.keeping.drain(..) {
            if random.chance(1, 2) {
                host.reservations.insert(unit, *record);
            }
        }
        for (id, device) in std::mem::take(&mut self.executing) {
            if random.chance(1, 2)
                && let Some(disk) = self.devices.get_mut(&device)
            {
                disk.cancel(lunar_handlers::RequestId(id));
            }
        }
        self.clock.set(u64::MAX);
        for disk in self.devices.values_mut() {
            while disk.outstanding() > 0 {
                disk.poll(&mut self.ended);
            }
        }
    }
}
