//! A host beside a card in one thread: the real agent core and the real ring pairs, with disks that the scenario gives.
//! Here is only what an agent's shell does, without chance and without failures; those are the simulator's business.

use std::collections::BTreeMap;

use lunar_core::ring::{ArenaWindow, RingPair};
use lunar_core::{
    ArenaGeometry, COPY_ARENA, COPY_ARENA_BYTES, Configuration, Core, CoreConfig, DataRange,
    Effect, Limits, OperationId, RingGeometry,
};
use lunar_handlers::{Arena, BlockDevice, CancelAnswer, Ended, HostBuffer, Outcome};
use lunar_offload_proto::control::{self, feature, hello};
use lunar_offload_proto::ring::RingLayout;
use lunar_pcie::{ExportBlob, HostSlot, PlacementMode, Segment};
use lunar_platform::{ArenaId, Nanoseconds, Platform};
use lunar_target::{AgentLink, Coordinator};

/// Slots of each ring.
const SLOTS: u32 = 32;
/// Bytes from one ring to the next.
const RING_STRIDE: u64 = 1 << 16;
/// The arena of the rings.
const RINGS: u16 = 1;
/// The arena of the data areas.
const DATA: u16 = 2;
/// Data area of each poll group.
const DATA_BYTES: u64 = 8 << 20;
/// Submissions taken from a ring at a time.
const BUDGET: usize = 8;

/// A host with its agent.
pub struct Host {
    /// The slot in which the card sits, for its poll groups' DMA and memory.
    pub slot: HostSlot,
    core: Core,
    pairs: Vec<RingPair<ArenaWindow>>,
    /// By device handle.
    disks: BTreeMap<u32, Box<dyn BlockDevice>>,
    data: Arena,
    copies: Arena,
    ended: Vec<Ended>,
    // The card reaches them for as long as they are plugged.
    _memory: [Segment; 2],
}

impl Host {
    /// A host for a card of `groups` poll groups, whose agent serves `configuration` with these disks, by device handle.
    ///
    /// # Panics
    /// When this machine has no memory or descriptors for it, or the configuration is bad.
    #[must_use]
    pub fn new(
        groups: u16,
        configuration: Configuration,
        disks: BTreeMap<u32, Box<dyn BlockDevice>>,
    ) -> Self {
        let bytes = |each: u64| usize::try_from(each).unwrap_or(0) * usize::from(groups);
        let rings = Segment::memfd("lunar-rings", bytes(2 * RING_STRIDE)).expect("memory");
        let data = Segment::memfd("lunar-data", bytes(DATA_BYTES)).expect("memory");
        let slot = HostSlot::new(PlacementMode::Prompt);
        let memory = [(RINGS, &rings), (DATA, &data)];
        let arenas = memory.map(|(id, segment)| {
            let blob = ExportBlob { arena: ArenaId(id), secret: [id as u8; 16] };
            slot.plug(blob, segment);
            let bytes = segment.len() as u64;
            ArenaGeometry { id, blob: blob.encode().to_vec(), bytes }
        });
        let layout = RingLayout::new(SLOTS).expect("a power of two");
        let ring_arena = arena_of(&rings);
        let window = |offset| {
            ArenaWindow::new(ring_arena.clone(), offset, layout).expect("inside the arena")
        };
        let submission = |ring: u16| u64::from(ring) * 2 * RING_STRIDE;
        let completion = |ring: u16| submission(ring) + RING_STRIDE;
        let geometry = (0..groups).map(|ring| RingGeometry {
            group: ring.into(),
            arena: RINGS,
            submission_offset: submission(ring),
            completion_offset: completion(ring),
            layout,
            data_arena: DATA,
            data_offset: u64::from(ring) * DATA_BYTES,
            data_bytes: DATA_BYTES,
        });
        let mut core = Core::new(CoreConfig {
            software: "lunar scenario".to_owned(),
            epoch: 1,
            boot_id: [9; 16],
            arenas: arenas.to_vec(),
            rings: geometry.collect(),
            configuration_generation: 0,
            recovered: None,
            limits: Limits::default(),
        });
        core.set_configuration(configuration, 0).expect("a good configuration");
        core.on_control_connected(0);
        let pairs = (0..groups).map(|ring| {
            RingPair::new(ring, layout, window(submission(ring)), window(completion(ring)))
        });
        Self {
            slot,
            core,
            pairs: pairs.collect(),
            disks,
            data: arena_of(&data),
            copies: Arena::anonymous(COPY_ARENA_BYTES).expect("memory"),
            ended: Vec::new(),
            _memory: [rings, data],
        }
    }

    /// The card's end of the control channel to [`Host`], of a card of `groups` poll groups.
    #[must_use]
    pub fn card_link(groups: u16) -> AgentLink {
        let limits = control::Limits {
            poll_groups: groups.into(),
            ring_slots_max: RingLayout::SLOTS_MAX,
            nexuses_max: 64,
            units_max: 64,
            ..control::Limits::default()
        };
        let features = feature::HOST_DRAM
            | feature::FORWARD
            | feature::CANCEL
            | feature::RESETS
            | feature::ACCESS_TABLES;
        AgentLink::new(hello("lunar scenario", 1, [7; 16], features, 0, limits))
    }

    /// One turn of the control channel, the rings and the disks.
    ///
    /// # Panics
    /// When card and agent do not get on with each other.
    pub fn step<P: Platform>(
        &mut self,
        link: &mut AgentLink,
        coordinator: &mut Coordinator<P>,
        now: Nanoseconds,
    ) {
        link.poll(coordinator, now);
        while let Some(message) = link.next_message() {
            self.core.on_control(message, now.0);
        }
        if self.core.next_deadline().is_some_and(|due| due <= now.0) {
            self.core.on_tick(now.0);
        }
        for pair in &mut self.pairs {
            pair.poll(&mut self.core, BUDGET, now.0);
        }
        self.carry_out(link, coordinator);
        for disk in self.disks.values_mut() {
            disk.poll(&mut self.ended);
        }
        for (id, outcome) in self.ended.drain(..) {
            self.core.on_outcome(OperationId::from_request_id(id), outcome, now.0);
        }
        self.carry_out(link, coordinator);
        for pair in &mut self.pairs {
            pair.publish();
        }
        assert_eq!(link.take_closing(), None, "the card ends the control channel");
    }

    fn carry_out<P: Platform>(&mut self, link: &mut AgentLink, coordinator: &mut Coordinator<P>) {
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::SendControl(message) => link.receive(*message, coordinator),
                Effect::Execute { operation, device, request, data } => {
                    let id = operation.to_request_id();
                    let window = data.and_then(|data| self.window(data));
                    match self.disks.get_mut(&device.0) {
                        Some(disk) => disk.submit(id, request, window),
                        None => self.ended.push((id, Outcome::HardwareError)),
                    }
                }
                Effect::Cancel { operation, device } => {
                    let disk = self.disks.get_mut(&device.0);
                    let id = operation.to_request_id();
                    let answer = disk.map_or(CancelAnswer::TooLate, |disk| disk.cancel(id));
                    self.core.on_cancel_answer(operation, answer);
                }
                Effect::FetchParameters { command, data } => {
                    let mut list = vec![0; data.length as usize];
                    let window = self.window(data).expect("inside the arena");
                    assert!(window.read(0, &mut list));
                    self.core.on_parameters(&command, &list);
                }
                Effect::StoreParameters { data, bytes } => {
                    let window = self.window(data).expect("inside the arena");
                    assert!(window.write(0, &bytes));
                }
                Effect::Complete { ring, entry, side } => {
                    let pair = &mut self.pairs[usize::from(ring)];
                    pair.complete(&mut self.core, entry, side.as_deref());
                }
                Effect::ResetRing { ring } => self.pairs[usize::from(ring)].reset(),
                Effect::KeepReservations { unit, keep, .. } => {
                    self.core.on_reservations_kept(unit, keep, Ok(()));
                }
                Effect::CloseControl { reason } | Effect::CloseRing { reason, .. } => {
                    panic!("the agent cannot go on: {reason}");
                }
                // Nothing here outlives the agent, and nobody asks for the others.
                Effect::RememberCard { .. }
                | Effect::ReservationsChanged { .. }
                | Effect::ArenaRevoked { .. }
                | Effect::Statistics(_)
                | Effect::Log(_) => {}
            }
        }
    }

    fn window(&self, range: DataRange) -> Option<HostBuffer> {
        let arena = if range.arena == COPY_ARENA { &self.copies } else { &self.data };
        arena.window(range.offset, range.length)
    }
}

fn arena_of(segment: &Segment) -> Arena {
    let file = segment.fd().expect("a memory file");
    Arena::from_fd(file, segment.len()).expect("the file is that long")
}
