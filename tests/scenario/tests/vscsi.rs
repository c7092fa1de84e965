//! VSCSI on the whole card: a client partition on the emulated hypervisor, the real poll groups, one with the VSCSI port
//! and one with RDMA, and units on the card. What the client sends is what ibmvscsi sends.

use lunar_hca::{DeviceConfig, Emulated, EmulatedDevice, Fabric};
use lunar_hypervisor::{
    ClientPartition, EmulatedHypervisor, PAGE_BYTES, SERVER_MAY_READ, SERVER_MAY_WRITE, pair,
};
use lunar_initiator::{Config, Event, Initiator, cdbs};
use lunar_pcie::{
    AddressSpace, Backing, CardMemory, CardRegion, DmaConfig, EmulatedDma, HintLine, HostSlot,
    PlacementMode,
};
use lunar_platform::{Nanoseconds, Platform, UnitAddress};
use lunar_scenario::{TARGET, attributes, configuration, small_limits, submit};
use lunar_srp::login::PortId;
use lunar_target::configuration::Lun;
use lunar_target::{
    AdapterConfig, Coordinator, GroupLimits, GroupLink, GroupParts, PollGroup, Transport,
    TransportConnection, TransportListener, VscsiConnection, VscsiListener, VscsiPort, mailbox,
};
use lunar_vscsi::crq::{CrqStatus, Entry, IuKind, Request};
use lunar_vscsi::hcall::code;
use lunar_vscsi::mad::{OsType, PartitionName, ServerPartition};

/// A card with both transports.
struct Card;

impl Platform for Card {
    type Region = CardRegion;
    type Connection = TransportConnection<<Emulated as Platform>::Connection, VscsiConnection>;
    type Listener = TransportListener<<Emulated as Platform>::Listener, VscsiListener>;
    type Hca = Transport<<Emulated as Platform>::Hca, VscsiPort<EmulatedHypervisor>>;
    type Dma = EmulatedDma;
    type Memory = CardMemory;
}

const BOTH: u64 = SERVER_MAY_READ | SERVER_MAY_WRITE;
/// The client's window: its queue, a page of IUs, a page of buffers, and data.
const QUEUE: u64 = 0x10_0000;
const IUS: u64 = 0x20_0000;
const BUFFERS: u64 = 0x30_0000;
const DATA: u64 = 0x40_0000;
/// Where those are in its memory.
const QUEUE_REAL: u64 = 0x1000;
const IUS_REAL: u64 = 0x2000;
const BUFFERS_REAL: u64 = 0x3000;
const DATA_REAL: u64 = 0x10_0000;
const DATA_PAGES: u64 = 256;
const REQUEST_LIMIT: u32 = 32;

/// An answer as the client finds it.
#[derive(Debug, PartialEq)]
struct Answered {
    status: CrqStatus,
    iu: Vec<u8>,
}

struct Lab {
    fabric: Fabric,
    device: EmulatedDevice,
    /// RDMA's, then VSCSI's.
    groups: [PollGroup<Card>; 2],
    coordinator: Coordinator<Card>,
    client: ClientPartition,
    /// Entries that the client has read.
    read: u64,
    now: Nanoseconds,
}

impl Lab {
    fn new() -> Self {
        let unit = UnitAddress(0x3000_0002);
        let (client, server) = pair(unit, 4 << 20, 1 << 24).expect("a pair");
        for (address, real) in [(QUEUE, QUEUE_REAL), (IUS, IUS_REAL), (BUFFERS, BUFFERS_REAL)] {
            assert_eq!(client.put_tce(address, real | BOTH), code::SUCCESS);
        }
        for page in 0..DATA_PAGES {
            let at = page * PAGE_BYTES;
            assert_eq!(client.put_tce(DATA + at, (DATA_REAL + at) | BOTH), code::SUCCESS);
        }
        let limits = GroupLimits { slots: 64, ..small_limits() };
        let fabric = Fabric::in_process();
        let device = EmulatedDevice::new(DeviceConfig::new("card"));
        let rdma = device.listener(&fabric, "srp").expect("free");
        let space = AddressSpace::new();
        let hca = device.group(attributes(&limits), space.clone()).expect("memory");
        let (rdma_link, rdma_group) = group(0, Transport::Rdma(hca), space, &limits);
        let space = AddressSpace::new();
        let hypervisor = EmulatedHypervisor::new(space.clone(), vec![server]).expect("descriptors");
        let server = ServerPartition {
            name: PartitionName::new("lunar").expect("short"),
            number: 1,
            os_type: OsType::AIX,
            transfer_bytes_max: 1 << 20,
            migration: true,
            reserve: true,
        };
        let adapter = AdapterConfig::of_partition(unit, server, 3, TARGET, REQUEST_LIMIT);
        let (port, vscsi) = VscsiPort::new(hypervisor, vec![adapter], limits.slots, 1);
        let (vscsi_link, vscsi_group) = group(1, Transport::Vscsi(port), space, &limits);
        let links = vec![rdma_link, vscsi_link.on_device(1)];
        let coordinator = Coordinator::new(TransportListener::new(rdma, vscsi), links);
        let groups = [rdma_group, vscsi_group];
        let now = Nanoseconds(0);
        let mut lab = Self { fabric, device, groups, coordinator, client, read: 0, now };
        let mut configuration = configuration(1);
        configuration.targets[0].request_limit = REQUEST_LIMIT;
        // Unit 2 of target 3 on channel 0, and unit 0 of target 5 on channel 1.
        for (lun, unit) in [(0x302, 1), (0x520, 2)] {
            configuration.targets[0].default_luns.push(Lun { lun, unit, read_only: false });
        }
        lab.coordinator.configure(configuration);
        lab.steps(600);
        lab
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.now = self.now.plus(1_000);
            self.device.advance(self.now);
            self.coordinator.poll();
            for group in &mut self.groups {
                group.tick(self.now);
            }
        }
    }

    /// The next entry in the client's queue, after some time; frees its slot.
    fn entry(&mut self) -> Option<Entry> {
        let place = QUEUE_REAL + self.read % 256 * 16;
        for _ in 0..3_000 {
            self.steps(1);
            let mut bytes = [0; 16];
            assert!(self.client.memory().read(place, &mut bytes));
            if bytes[0] != 0 {
                assert!(self.client.memory().write(place, &[0]));
                self.read += 1;
                return Some(Entry::from_bytes(bytes));
            }
        }
        None
    }

    /// Sends the IU in slot `slot`; gives its answer, whose tag is `tag`.
    fn ask(&mut self, kind: IuKind, slot: u64, iu: &[u8], tag: u64) -> Answered {
        self.send(kind, slot, iu);
        let answer = self.entry().expect("an answer").read_answer().expect("an answer");
        assert_eq!((answer.kind, answer.tag), (kind, tag));
        let mut iu = vec![0; answer.iu_bytes.into()];
        assert!(self.client.memory().read(IUS_REAL + slot * 256, &mut iu));
        Answered { status: answer.status, iu }
    }

    fn send(&mut self, kind: IuKind, slot: u64, iu: &[u8]) {
        assert!(self.client.memory().write(IUS_REAL + slot * 256, iu));
        let address = IUS + slot * 256;
        let request = Request { kind, timeout_s: 60, iu_bytes: 256, address };
        assert_eq!(self.client.send(Entry::request(request).to_bytes()), code::SUCCESS);
    }

    /// C001, C002.
    fn connect(&mut self) {
        assert_eq!(self.client.register_queue(QUEUE, PAGE_BYTES), code::SUCCESS);
        // The server was there first: it does not know of us, we send INIT.
        assert_eq!(self.client.send(Entry::INIT.to_bytes()), code::SUCCESS);
        assert_eq!(self.entry(), Some(Entry::INIT_COMPLETE));
    }

    fn login(&mut self) -> Answered {
        let mut iu = [0; 64];
        iu[8..16].copy_from_slice(&7_u64.to_be_bytes());
        iu[16..20].copy_from_slice(&256_u32.to_be_bytes());
        iu[24..26].copy_from_slice(&6_u16.to_be_bytes());
        self.ask(IuKind::Srp, 0, &iu, 7)
    }

    fn logged_in() -> Self {
        let mut lab = Self::new();
        lab.connect();
        assert_eq!(lab.login().iu[0], 0xC0, "SRP_LOGIN_RSP");
        lab
    }

    /// A command to unit `number` of target 0 on channel 0, with direct data at `DATA`.
    fn command(&mut self, number: u16, cdb: &[u8], data: Option<(Way, u32)>) -> Answered {
        let tag = 0xC000_0000_0000_1000 + u64::from(number);
        let mut iu = [0; 256];
        iu[0] = 2;
        iu[8..16].copy_from_slice(&tag.to_be_bytes());
        iu[20..22].copy_from_slice(&(0x8000 | number).to_be_bytes());
        iu[32..32 + cdb.len()].copy_from_slice(cdb);
        if let Some((way, bytes)) = data {
            iu[5] = if way == Way::Out { 0x10 } else { 0x01 };
            iu[48..56].copy_from_slice(&DATA.to_be_bytes());
            iu[60..64].copy_from_slice(&bytes.to_be_bytes());
        }
        self.ask(IuKind::Srp, 1, &iu, tag)
    }

    fn data(&self, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        assert!(self.client.memory().read(DATA_REAL, &mut data));
        data
    }
}

/// Poll group `index` with this transport, and the coordinator's link to it.
fn group(
    index: u16,
    hca: <Card as Platform>::Hca,
    space: AddressSpace,
    limits: &GroupLimits,
) -> (GroupLink<Card>, PollGroup<Card>) {
    let slot = HostSlot::new(PlacementMode::Prompt);
    let hint = || HintLine::new().expect("descriptors");
    let dma = EmulatedDma::new(space.clone(), slot.clone(), hint(), hint(), DmaConfig::default());
    let memory = CardMemory::new(space, Some(slot), Backing::Anonymous, 1 << 28);
    let (link, inbox, outbox) = mailbox();
    let parts = GroupParts { index, limits: limits.clone(), hca, dma, memory, inbox, outbox };
    (link, PollGroup::new(parts).expect("memory"))
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    In,
    Out,
}

impl Answered {
    /// SCSI status, and sense key with ASC and ASCQ.
    fn scsi(&self) -> (u8, [u8; 3]) {
        assert_eq!((self.status, self.iu[0]), (CrqStatus::Ok, 0xC1), "SRP_RSP");
        let sense = self.iu.get(36..).unwrap_or(&[]);
        let at = |place: usize| sense.get(place).copied().unwrap_or(0);
        (self.iu[19], [at(2) & 0xF, at(12), at(13)])
    }
}

const GOOD: (u8, [u8; 3]) = (0, [0; 3]);

/// WIRE 3 and 4: the handshake, ADAPTER_INFO, ENABLE_FAST_FAIL, CAPABILITIES, login.
#[test]
fn wire_4_a_client_starts_as_ibmvscsi_does() {
    let mut lab = Lab::new();
    lab.connect();
    let mad = |kind: u32, bytes: u16| {
        let mut iu = [0; 256];
        iu[..4].copy_from_slice(&kind.to_be_bytes());
        iu[6..8].copy_from_slice(&bytes.to_be_bytes());
        iu[8..16].copy_from_slice(&5_u64.to_be_bytes());
        iu[16..24].copy_from_slice(&BUFFERS.to_be_bytes());
        iu
    };
    let answer = lab.ask(IuKind::Mad, 0, &mad(3, 148), 5);
    assert_eq!((answer.status, &answer.iu[4..6]), (CrqStatus::Ok, &[0, 0][..]));
    let mut information = [0; 148];
    assert!(lab.client.memory().read(BUFFERS_REAL, &mut information));
    assert_eq!((&information[..4], &information[8..13]), (&b"16.a"[..], &b"lunar"[..]));
    assert_eq!(information[112..116], 3_u32.to_be_bytes(), "os_type");
    assert_eq!(lab.ask(IuKind::Mad, 0, &mad(8, 16), 5).iu[4..6], [0, 0], "fast-fail");
    let mut capabilities = [0; 92];
    capabilities[3] = 4;
    capabilities[4..9].copy_from_slice(b"host0");
    capabilities[68..80].copy_from_slice(&[0, 0, 0, 1, 0, 12, 0, 1, 0, 0, 0, 1]);
    capabilities[80..92].copy_from_slice(&[0, 0, 0, 2, 0, 12, 0, 1, 0, 0, 0, 1]);
    assert!(lab.client.memory().write(BUFFERS_REAL, &capabilities));
    assert_eq!(lab.ask(IuKind::Mad, 0, &mad(5, 92), 5).iu[4..6], [0, 0], "capabilities");
    assert_eq!(lab.ask(IuKind::Mad, 0, &mad(0x77, 16), 5).iu[4..6], [0, 0xF1], "unknown");
    let response = lab.login();
    assert_eq!((response.iu.len(), response.iu[0]), (52, 0xC0));
    assert_eq!(response.iu[4..8], REQUEST_LIMIT.to_be_bytes());
    // A second one is refused: ALREADY LOGGED IN.
    assert_eq!(lab.login().iu[0], 0xC2);
}

/// The unit that SRP's initiators see at LUN 0 is the client's unit 0 of target 0.
#[test]
fn commands_data_and_sense_go_as_over_srp() {
    let mut lab = Lab::logged_in();
    let attention = lab.command(0, &[0; 6], None).scsi();
    assert_eq!(attention, (2, [6, 0x29, 1]), "a new nexus");
    assert_eq!(lab.command(0, &[0; 6], None).scsi(), GOOD);
    let inquiry = lab.command(0, &[0x12, 0, 0, 0, 96, 0], Some((Way::In, 96)));
    assert_eq!((inquiry.scsi(), &lab.data(16)[8..13]), (GOOD, &b"LUNAR"[..]));
    // Nobody stores it, but it moves: 64 KiB, then more than one H_COPY_RDMA takes.
    for blocks in [128_u16, 512] {
        let mut cdb = [0x2A, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
        let bytes = u32::from(blocks) * 512;
        assert_eq!(lab.command(0, &cdb, Some((Way::Out, bytes))).scsi(), GOOD);
        cdb[0] = 0x28;
        assert_eq!(lab.command(0, &cdb, Some((Way::In, bytes))).scsi(), GOOD);
    }
    let beyond = lab.command(0, &[0x28, 0, 0xFF, 0, 0, 0, 0, 0, 1, 0], Some((Way::In, 512))).scsi();
    assert_eq!(beyond, (2, [5, 0x21, 0]), "past the end");
    assert_eq!(lab.command(5, &[0; 6], None).scsi(), (2, [5, 0x25, 0]), "nobody there");
}

/// WIRE 5: a client asks each of its targets, and reads the list as the units of that one.
#[test]
fn report_luns_tells_of_the_target_that_is_asked() {
    let mut lab = Lab::logged_in();
    let mut report = |number| {
        let cdb = [0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
        assert_eq!(lab.command(number, &cdb, Some((Way::In, 64))).scsi(), GOOD);
        let data = lab.data(64);
        let bytes = u32::from_be_bytes(data[..4].try_into().expect("four")) as usize;
        let entries = data[8..8 + bytes].chunks(8);
        entries.map(|entry| u16::from_be_bytes([entry[0], entry[1]])).collect::<Vec<u16>>()
    };
    assert_eq!(report(0), [0, 1]);
    assert_eq!(report(0x302), [0, 2]);
    assert_eq!(report(0x520), [0]);
    assert_eq!(report(0x700), [0], "nobody is there");
    assert_eq!(report(0x300), [0, 2], "the client asks at unit 0, whether it is there or not");
    assert_eq!(lab.command(0x302, &[0; 6], None).scsi(), (2, [6, 0x29, 1]));
    assert_eq!(lab.command(0x302, &[0; 6], None).scsi(), GOOD);
}

/// WIRE 5: Linux finds a short transfer in the overflow flag. The client here did not say that it is Linux.
#[test]
fn a_short_transfer_is_told() {
    let mut lab = Lab::logged_in();
    lab.command(0, &[0; 6], None);
    let short = lab.command(0, &[0x12, 0, 0, 0, 96, 0], Some((Way::In, 255)));
    assert_eq!((short.iu[18], &short.iu[24..28]), (0x20, &(255_u32 - 96).to_be_bytes()[..]));
}

/// WIRE 5: data outside the window costs the client its connection, which comes again: nothing else is at stake.
#[test]
fn data_outside_the_window_ends_the_connection_and_the_next_one_works() {
    let mut lab = Lab::logged_in();
    lab.command(0, &[0; 6], None);
    let mut iu = [0; 256];
    (iu[0], iu[5]) = (2, 0x01);
    iu[20] = 0x80;
    iu[32..38].copy_from_slice(&[0x12, 0, 0, 0, 96, 0]);
    iu[48..56].copy_from_slice(&0xF0_0000_u64.to_be_bytes());
    iu[60..64].copy_from_slice(&96_u32.to_be_bytes());
    lab.send(IuKind::Srp, 1, &iu);
    // The server's queue goes and comes again.
    let gone = lab.entry().expect("a transport event").to_bytes();
    assert_eq!(gone[0], 0xFF);
    assert_eq!(lab.entry(), Some(Entry::INIT));
    assert_eq!(lab.client.free_queue(), code::SUCCESS);
    lab.read = 0;
    lab.steps(200);
    lab.connect();
    assert_eq!(lab.login().iu[0], 0xC0);
    assert_eq!(lab.command(0, &[0; 6], None).scsi(), (2, [6, 0x29, 1]), "a new nexus");
    lab.steps(50);
    assert_eq!(lab.groups[1].tasks_in_progress(), 0);
}

/// WIRE 5: more requests than credits end the connection, whatever else is in flight.
#[test]
fn a_client_that_goes_in_the_middle_leaves_nothing() {
    let mut lab = Lab::logged_in();
    for slot in 0..8 {
        let mut iu = [0; 256];
        iu[0] = 2;
        iu[8..16].copy_from_slice(&slot_tag(slot));
        iu[20] = 0x80;
        lab.send(IuKind::Srp, slot, &iu);
    }
    lab.client.crash();
    lab.steps(2_000);
    assert_eq!(lab.groups[1].tasks_in_progress(), 0);
    assert_eq!(lab.groups[1].states(), []);
}

fn slot_tag(slot: u64) -> [u8; 8] {
    (0x1000 + slot).to_be_bytes()
}

/// One unit over both transports: what a function over one of them does to it, initiators of the other are told.
#[test]
fn wire_5_a_reset_over_vscsi_is_told_over_srp() {
    let mut lab = Lab::logged_in();
    let device = EmulatedDevice::new(DeviceConfig::new("initiator"));
    let config = Config { data_bytes: 4096, ..Config::new(PortId([9; 16]), TARGET) };
    let mut initiator = Initiator::new(&device, &lab.fabric, "srp", config).expect("memory");
    let mut events = Vec::new();
    let mut end = |lab: &mut Lab, initiator: &mut Initiator| {
        for _ in 0..3_000 {
            lab.steps(1);
            device.advance(lab.now);
            initiator.flush();
            initiator.poll(&mut events);
            if let Some(event) = events.pop() {
                return event;
            }
        }
        panic!("nothing happens");
    };
    initiator.login().expect("idle");
    assert!(matches!(end(&mut lab, &mut initiator), Event::LoggedIn { .. }));
    let mut ready = |lab: &mut Lab| {
        submit(&mut initiator, 0, &cdbs::test_unit_ready());
        match end(lab, &mut initiator) {
            Event::Response { status: 2, sense: Some(sense), .. } => (sense[12], sense[13]),
            Event::Response { status: 0, .. } => (0, 0),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ready(&mut lab), (0x29, 1), "a new nexus");
    assert_eq!(ready(&mut lab), (0, 0));
    let mut iu = [0; 256];
    iu[0] = 1;
    iu[15] = 0x55;
    iu[20] = 0x80;
    // LOGICAL UNIT RESET.
    iu[30] = 0x08;
    let answer = lab.ask(IuKind::Srp, 2, &iu, 0x55);
    assert_eq!((answer.status, answer.iu[0]), (CrqStatus::Ok, 0xC1));
    assert_eq!((answer.iu[18] & 1, &answer.iu[36..40]), (1, &[0; 4][..]), "function complete");
    assert_eq!(ready(&mut lab), (0x29, 3), "BUS DEVICE RESET FUNCTION OCCURRED");
    assert_eq!(ready(&mut lab), (0, 0));
}
