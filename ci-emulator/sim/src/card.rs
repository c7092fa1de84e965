//! The card: the real poll groups, coordinator and agent link, over the emulated hardware. Here is
//! only what the firmware's threads do: ticks, sleep, and the carrying of messages.

use lunar_hca::{DeviceConfig, Emulated, EmulatedDevice, Fabric, Latency};
use lunar_offload_proto::control::{Limits, feature, hello};
use lunar_offload_proto::ring::RingLayout;
use lunar_pcie::{
    AddressSpace, Backing, CardMemory, DmaConfig, DmaMode, EmulatedDma, HintLine, HostSlot,
};
use lunar_platform::{HcaAttributes, Nanoseconds};
use lunar_target::trace::{Record, Trace};
use lunar_target::{
    Activity, AgentLink, Coordinator, GroupLimits, GroupParts, PollGroup, State, mailbox,
};

use crate::random::Random;
use crate::wire::Wire;

/// Poll groups of the card.
pub const GROUPS: u16 = 2;
/// The service that initiators look for.
pub const SERVICE: &str = "card";
/// How late the card's and the initiators' HCAs are, in nanoseconds.
pub const LATENCY: Latency = Latency { minimum: 400, spread: 6_000 };
/// Longest transfer in bytes.
pub const TRANSFER_BYTES_MAX: u32 = 128 << 10;
/// Longest IU an initiator may send, in bytes.
pub const IT_IU_BYTES_MAX: u32 = 2112;
/// Of 1000 hints over PCIe, how many get lost.
const HINTS_LOST_PER_MILLE: u16 = 300;
/// Room for trace records between two looks.
const TRACE_RECORDS: usize = 1 << 13;

/// The sizes of a poll group, small enough that everything runs out now and then.
fn limits() -> GroupLimits {
    GroupLimits {
        slots: 256,
        channels: 24,
        receive_bytes: IT_IU_BYTES_MAX,
        card_arena_bytes: 512 << 10,
        nexus_share_bytes: 448 << 10,
        agent_wait_ns: 6_000_000,
        drain_wait_ns: 2_000_000,
    }
}

struct Group {
    group: PollGroup<Emulated>,
    /// It does not run before.
    awake_at: u64,
    /// It sleeps by its own choice, rather than being held up.
    asleep: bool,
}

/// How the machine behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As badly as it may.
    Adverse,
    /// The same at all times, so that what takes longer took longer for a cause.
    #[cfg_attr(not(test), expect(dead_code, reason = "for directed sequences"))]
    Even,
}

impl Pace {
    /// How late the HCAs are.
    #[must_use]
    pub fn latency(self) -> Latency {
        match self {
            Self::Adverse => LATENCY,
            Self::Even => Latency { minimum: 2_000, spread: 0 },
        }
    }
}

/// Which start of a card it is.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Of the firmware.
    pub epoch: u64,
    /// Of the machine: another one means that its power was gone.
    pub boot_id: [u8; 16],
}

impl Start {
    /// The first.
    pub const FIRST: Self = Self { epoch: 1000, boot_id: [7; 16] };

    /// The next, after a loss of power or without one.
    #[must_use]
    pub fn next(self, power_on: bool) -> Self {
        let mut boot_id = self.boot_id;
        boot_id[0] = boot_id[0].wrapping_add(u8::from(power_on));
        Self { epoch: self.epoch + 1, boot_id }
    }
}

/// The card.
pub struct Card {
    device: EmulatedDevice,
    groups: Vec<Group>,
    /// The coordinator.
    pub coordinator: Coordinator<Emulated>,
    link: AgentLink,
    pace: Pace,
}

impl Card {
    /// A card on `fabric` in `slot`.
    ///
    /// # Panics
    /// When this machine has no memory or descriptors for it.
    #[must_use]
    pub fn new(
        fabric: &Fabric,
        slot: &HostSlot,
        start: Start,
        pace: Pace,
        random: &mut Random,
    ) -> Self {
        let attributes = HcaAttributes {
            queue_pairs_max: 24,
            send_queue_depth_max: 256,
            shared_receive_queue_depth: 256,
            completion_queue_depth: 8192,
            // Few, so that data-out waits for them.
            rdma_reads_max: 3,
            message_bytes_max: 1 << 20,
        };
        let config = DeviceConfig::new("card");
        let config = config.deferring(pace.latency(), random.seed()).virtual_time();
        let device = EmulatedDevice::new(config);
        let listener = device.listener(fabric, SERVICE).expect("the service is free");
        let mut links = Vec::new();
        let mut groups = Vec::new();
        for index in 0..GROUPS {
            let space = AddressSpace::new();
            let dma = EmulatedDma::new(
                space.clone(),
                slot.clone(),
                HintLine::new().expect("descriptors"),
                HintLine::new().expect("descriptors"),
                DmaConfig {
                    mode: match pace {
                        Pace::Adverse => DmaMode::Adversarial { seed: random.seed() },
                        Pace::Even => DmaMode::Prompt,
                    },
                    capacity: 64,
                    hints_lost_per_mille: match pace {
                        Pace::Adverse => HINTS_LOST_PER_MILLE,
                        Pace::Even => 0,
                    },
                },
            );
            let (link, inbox, outbox) = mailbox::<Emulated>();
            let mut group = PollGroup::new(GroupParts {
                index,
                limits: limits(),
                hca: device.group(attributes, space.clone()).expect("memory"),
                dma,
                memory: CardMemory::new(space, Some(slot.clone()), Backing::Anonymous, 64 << 20),
                inbox,
                outbox,
            })
            .expect("memory");
            group.set_trace(Some(Trace::new(TRACE_RECORDS)));
            links.push(link);
            groups.push(Group { group, awake_at: 0, asleep: false });
        }
        let limits = Limits {
            poll_groups: u32::from(GROUPS),
            ring_slots_max: RingLayout::SLOTS_MAX,
            nexuses_max: 64,
            units_max: 64,
            ..Limits::default()
        };
        let features = feature::HOST_DRAM
            | feature::FORWARD
            | feature::CANCEL
            | feature::RESETS
            | feature::ACCESS_TABLES;
        let link = AgentLink::new(hello(
            "lunar-sim card",
            start.epoch,
            start.boot_id,
            features,
            0,
            limits,
        ));
        Self { device, groups, coordinator: Coordinator::new(listener, links), link, pace }
    }

    /// Whatever the card does in a moment at `now`. `Err` tells why the control channel must end.
    ///
    /// # Errors
    /// The card's reason to close the control channel.
    pub fn run(
        &mut self,
        now: u64,
        wire: Option<&mut Wire>,
        random: &mut Random,
    ) -> Result<(), String> {
        self.device.advance(Nanoseconds(now));
        match self.pace {
            Pace::Adverse => {
                let first = random.index(self.groups.len());
                for offset in 0..self.groups.len() {
                    let index = (first + offset) % self.groups.len();
                    self.groups[index].run(now, random);
                }
            }
            Pace::Even => {
                for group in &mut self.groups {
                    group.group.tick(Nanoseconds(now));
                }
            }
        }
        let control = self.run_control(now, wire, random);
        if self.coordinator.take_sent() {
            for group in self.groups.iter_mut().filter(|group| group.asleep) {
                group.awake_at = now;
            }
        }
        control
    }

    fn run_control(
        &mut self,
        now: u64,
        wire: Option<&mut Wire>,
        random: &mut Random,
    ) -> Result<(), String> {
        self.coordinator.poll();
        let Some(wire) = wire else {
            self.link.poll(&mut self.coordinator, Nanoseconds(now));
            return Ok(());
        };
        while let Some(message) = wire.at_card(now) {
            self.link.receive(message, &mut self.coordinator);
        }
        self.link.poll(&mut self.coordinator, Nanoseconds(now));
        while let Some(message) = self.link.next_message() {
            wire.send_to_host(&message, now, random);
        }
        match self.link.take_closing() {
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }

    /// The control channel is gone.
    pub fn control_lost(&mut self) {
        self.link.lost(&mut self.coordinator);
    }

    /// Group `index` is held up (by its core's other business) until `until`.
    pub fn stall(&mut self, index: usize, until: u64) {
        let group = &mut self.groups[index];
        group.awake_at = until;
        group.asleep = false;
    }

    /// The card's HCA, for its faults.
    #[must_use]
    pub fn device(&self) -> &EmulatedDevice {
        &self.device
    }

    /// Tasks in progress in all groups.
    #[must_use]
    pub fn tasks(&self) -> u32 {
        self.groups.iter().map(|group| group.group.tasks_in_progress()).sum()
    }

    /// Tasks of every group with their states.
    #[must_use]
    pub fn states(&self) -> Vec<(u64, State)> {
        self.groups.iter().flat_map(|group| group.group.states()).collect()
    }

    /// What was traced since the last call, by group.
    ///
    /// # Panics
    /// When records were lost, because then coverage and hash are not to be trusted.
    pub fn take_trace(&mut self) -> Vec<Record> {
        let mut all = Vec::new();
        for group in &mut self.groups {
            let Some(trace) = group.group.trace_mut() else { continue };
            let (records, lost) = trace.take();
            assert_eq!(lost, 0, "the trace overflowed; take it more often");
            all.extend(records);
        }
        all
    }
}

impl Group {
    fn run(&mut self, now: u64, random: &mut Random) {
        if now < self.awake_at {
            return;
        }
        if std::mem::take(&mut self.asleep) {
            self.group.after_sleep(Nanoseconds(now));
        }
        // A core is not always as fast as virtual time.
        if random.chance(1, 8) {
            return;
        }
        if self.group.tick(Nanoseconds(now)) == Activity::Busy || !random.chance(1, 6) {
            return;
        }
        // Hints may be lost, so a sleep may last until its bound whatever happens.
        if let Some(bound) = self.group.may_sleep() {
            let short = if random.chance(1, 60) { 1_000_000 } else { 6_000 };
            self.awake_at = now + 1 + random.below(bound.min(short));
            self.asleep = true;
        }
    }
}
