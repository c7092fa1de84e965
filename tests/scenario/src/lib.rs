//! A card and its initiators in one thread, for scenarios: the real target on the emulated HCA, with
//! card-local units; with [`Host`], a host whose agent serves the units from disks. Chance and failures are the
//! simulator's and the emulator's business.
//!
//! Time is virtual: it moves a microsecond with every [`Lab::step`].

mod host;

pub use host::Host;

use lunar_dma::sgv::Placement;
use lunar_hca::{DeviceConfig, Emulated, EmulatedDevice, Fabric, Latency};
use lunar_initiator::{Command, Config, Data, Event, Initiator, Tag};
use lunar_pcie::{
    AddressSpace, Backing, CardMemory, DmaConfig, EmulatedDma, HintLine, HostSlot, PlacementMode,
};
use lunar_platform::{HcaAttributes, Nanoseconds};
use lunar_scsi::reservations::AccessTable;
use lunar_scsi::unit::{Identity, LogicalUnit};
use lunar_srp::login::PortId;
use lunar_target::configuration::{AccessGroup, BackendKind, Configuration, Lun, Target, Unit};
use lunar_target::{Coordinator, GroupLimits, GroupParts, PollGroup, mailbox};

/// The target port of [`Lab`]'s target.
pub const TARGET: PortId = PortId(*b"lunar-target-001");

/// How the emulated hardware behaves.
#[derive(Clone, Copy, Debug)]
pub enum Hardware {
    /// Work is done when the doorbell rings.
    Prompt,
    /// Nothing completes at once; the seed decides when.
    Deferring(u64),
}

/// The modes that every scenario runs under.
pub const HARDWARE: [Hardware; 4] =
    [Hardware::Prompt, Hardware::Deferring(1), Hardware::Deferring(2), Hardware::Deferring(3)];

/// The card.
pub struct Lab {
    /// Where initiators find it.
    pub fabric: Fabric,
    /// The card's HCA.
    pub device: EmulatedDevice,
    initiator_device: EmulatedDevice,
    /// The poll groups.
    pub groups: Vec<PollGroup<Emulated>>,
    /// The coordinator.
    pub coordinator: Coordinator<Emulated>,
    /// Virtual time.
    pub now: Nanoseconds,
}

/// Sizes that suit tests.
#[must_use]
pub fn small_limits() -> GroupLimits {
    GroupLimits { slots: 256, channels: 16, card_arena_bytes: 8 << 20, ..GroupLimits::default() }
}

/// A unit on the card: `blocks` of 512 bytes that nobody stores.
///
/// # Panics
/// When the device server refuses the unit.
#[must_use]
pub fn null_unit(handle: u32, blocks: u64) -> Unit {
    let identity = Identity::new("LUNAR", "null", "0001", "serial", "id").expect("identity");
    let logical_unit = LogicalUnit::new(512, blocks, identity).expect("unit");
    Unit {
        handle,
        name: format!("null{handle}"),
        logical_unit: LogicalUnit { tst: 1, fua: true, write_cache: true, ..logical_unit },
        backend: BackendKind::CardNull,
        placement: Placement::CardDram,
        access: AccessTable::default(),
        access_effects: Vec::new(),
    }
}

/// One target with LUN 0 (unit 1) and LUN 1 (unit 2, read only).
#[must_use]
pub fn configuration(generation: u32) -> Configuration {
    Configuration {
        generation,
        units: vec![null_unit(1, 1 << 20), null_unit(2, 2048)],
        targets: vec![Target {
            handle: 1,
            name: "t0".into(),
            driver: "ib_srpt".into(),
            enabled: true,
            port_id: TARGET.0,
            relative_target_port: 1,
            request_limit: 32,
            it_iu_bytes_max: 2176,
            nexus_memory_bytes_max: None,
            groups: Vec::<AccessGroup>::new(),
            default_luns: vec![
                Lun { lun: 0, unit: 1, read_only: false },
                Lun { lun: 1, unit: 2, read_only: true },
            ],
        }],
        device_groups: Vec::new(),
    }
}

impl Lab {
    /// A card with `groups` poll groups that serves [`configuration`].
    ///
    /// # Panics
    /// When the emulated hardware cannot be made.
    #[must_use]
    pub fn new(hardware: Hardware, groups: usize, limits: &GroupLimits) -> Self {
        let fabric = Fabric::in_process();
        let device = EmulatedDevice::new(device_config("card", hardware));
        let listener = device.listener(&fabric, "srp").expect("listener");
        let mut links = Vec::new();
        let mut made = Vec::new();
        for index in 0..groups {
            let space = AddressSpace::new();
            let slot = HostSlot::new(PlacementMode::Prompt);
            let hca = device.group(attributes(limits), space.clone()).expect("group");
            let hint = || HintLine::new().expect("eventfd");
            let dma =
                EmulatedDma::new(space.clone(), slot.clone(), hint(), hint(), DmaConfig::default());
            let memory = CardMemory::new(space, Some(slot), Backing::Anonymous, 1 << 30);
            let (link, inbox, outbox) = mailbox();
            links.push(link);
            let parts = GroupParts {
                index: u16::try_from(index).expect("few groups"),
                limits: limits.clone(),
                hca,
                dma,
                memory,
                inbox,
                outbox,
            };
            made.push(PollGroup::new(parts).expect("poll group"));
        }
        let coordinator = Coordinator::new(listener, links);
        let mut lab = Self {
            fabric,
            device,
            initiator_device: EmulatedDevice::new(device_config("initiator", hardware)),
            groups: made,
            coordinator,
            now: Nanoseconds(0),
        };
        lab.configure(configuration(1));
        lab
    }

    /// Brings a configuration in and lets it settle.
    pub fn configure(&mut self, configuration: Configuration) {
        self.coordinator.configure(configuration);
        self.steps(600);
    }

    /// An initiator that does not log in yet.
    ///
    /// # Panics
    /// When the emulated hardware cannot be made.
    #[must_use]
    pub fn initiator(&self, name: u8, change: impl FnOnce(&mut Config)) -> Initiator {
        let mut config = Config::new(PortId([name; 16]), TARGET);
        config.data_bytes = 4 << 20;
        change(&mut config);
        Initiator::new(&self.initiator_device, &self.fabric, "srp", config).expect("initiator")
    }

    /// An initiator that is logged in, its unit attentions taken.
    ///
    /// # Panics
    /// When the login is not accepted.
    #[must_use]
    pub fn logged_in(&mut self, name: u8) -> Initiator {
        let mut initiator = self.initiator(name, |_| {});
        initiator.login().expect("idle");
        let events = self.run(&mut initiator, |event| matches!(event, Event::LoggedIn { .. }));
        assert!(matches!(events.last(), Some(Event::LoggedIn { .. })), "{events:?}");
        for lun in [0, 1] {
            let tag = submit(&mut initiator, lun, &lunar_initiator::cdbs::test_unit_ready());
            let response = self.response(&mut initiator, tag);
            assert_eq!(response.0, 2, "a new nexus has a unit attention");
        }
        initiator
    }

    /// One turn of everything on the card.
    pub fn step(&mut self) {
        self.now = self.now.plus(1000);
        self.device.advance(self.now);
        self.initiator_device.advance(self.now);
        self.coordinator.poll();
        for group in &mut self.groups {
            group.tick(self.now);
        }
    }

    /// `count` turns.
    pub fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    /// Runs until `done` says so of an event, or nothing more happens; gives the events.
    pub fn run(
        &mut self,
        initiator: &mut Initiator,
        mut done: impl FnMut(&Event) -> bool,
    ) -> Vec<Event> {
        let mut all = Vec::new();
        let mut events = Vec::new();
        for _ in 0..20_000 {
            initiator.flush();
            self.step();
            initiator.poll(&mut events);
            let end = events.iter().any(&mut done);
            all.append(&mut events);
            if end {
                break;
            }
        }
        all
    }

    /// Runs until the response of `tag`; gives status and sense.
    ///
    /// # Panics
    /// When it does not come.
    pub fn response(&mut self, initiator: &mut Initiator, tag: Tag) -> (u8, Option<Box<[u8]>>) {
        let events = self.run(
            initiator,
            |event| matches!(event, Event::Response { tag: answered, .. } if *answered == tag),
        );
        match events.into_iter().next_back() {
            Some(Event::Response { status, sense, .. }) => (status, sense),
            other => panic!("no response for {tag:?}: {other:?}"),
        }
    }

    /// Tasks in progress on the whole card.
    #[must_use]
    pub fn tasks(&self) -> u32 {
        self.groups.iter().map(PollGroup::tasks_in_progress).sum()
    }
}

fn device_config(name: &str, hardware: Hardware) -> DeviceConfig {
    let config = DeviceConfig::new(name);
    match hardware {
        Hardware::Prompt => config,
        Hardware::Deferring(seed) => {
            config.deferring(Latency { minimum: 1000, spread: 9000 }, seed).virtual_time()
        }
    }
}

/// What a group of `limits` asks of its HCA.
#[must_use]
pub fn attributes(limits: &GroupLimits) -> HcaAttributes {
    HcaAttributes {
        queue_pairs_max: limits.channels,
        send_queue_depth_max: 4096,
        shared_receive_queue_depth: limits.slots,
        completion_queue_depth: 65_536,
        rdma_reads_max: 16,
        message_bytes_max: 16 << 20,
    }
}

/// Submits a command without data to LUN `lun`.
///
/// # Panics
/// When the initiator has no room.
pub fn submit(initiator: &mut Initiator, lun: u16, cdb: &[u8]) -> Tag {
    submit_with(initiator, lun, cdb, Data::None)
}

/// Submits a command with data to LUN `lun`.
///
/// # Panics
/// When the initiator has no room.
pub fn submit_with(initiator: &mut Initiator, lun: u16, cdb: &[u8], data: Data) -> Tag {
    let command = Command::new(lunar_scsi::lun::encode(lun), cdb, data);
    initiator.submit(&command).expect("room for a command")
}
