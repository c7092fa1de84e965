//! The emulated hypervisor's calls, by PAPR's names: return codes, access bits, the order of delivery, and
//! what each partition hears of the other. At the end a real adapter serves a client on it.

mod server;

use lunar_hypervisor::{
    ClientPartition, EmulatedHypervisor, PAGE_BYTES, SERVER_MAY_READ, SERVER_MAY_WRITE,
    ServerAdapter, pair,
};
use lunar_pcie::{AddressSpace, Segment};
use lunar_platform::{
    Hypervisor, HypervisorError, HypervisorEvent, HypervisorOperation, HypervisorRequest, Sge,
    UnitAddress,
};
use lunar_srp::login::{Action as Channels, FORMATS, LoginForm, LoginRequest, PortId};
use lunar_vscsi::adapter::{Event, Reason, State};
use lunar_vscsi::crq::{CrqStatus, Entry, IuKind, Request, TransportEvent};
use lunar_vscsi::hcall::code;
use lunar_vscsi::mad::{self, Mad, MadKind};
use server::{REQUEST_LIMIT, Server, ServerMemory, UNIT};

const MEMORY_BYTES: usize = 1 << 20;
const WINDOW_BYTES: u64 = 1 << 24;
/// Where the client has its queue, of one page, and a page for information units.
const QUEUE: u64 = 0x10_0000;
const UNITS: u64 = 0x20_0000;
const QUEUE_REAL: u64 = 0x3000;
const UNITS_REAL: u64 = 0x5000;
const BOTH: u64 = SERVER_MAY_READ | SERVER_MAY_WRITE;

fn new_pair() -> (ClientPartition, ServerAdapter) {
    let (client, server) = pair(UNIT, MEMORY_BYTES, WINDOW_BYTES).expect("a pair");
    assert_eq!(client.put_tce(QUEUE, QUEUE_REAL | BOTH), 0);
    assert_eq!(client.put_tce(UNITS, UNITS_REAL | BOTH), 0);
    (client, server)
}

/// The server's end with a page of registered memory.
struct Rig {
    client: ClientPartition,
    hypervisor: EmulatedHypervisor,
    segment: Segment,
    local: Sge,
    /// Entries that the client has read.
    read: u64,
}

impl Rig {
    fn new() -> Self {
        let (client, server) = new_pair();
        let mut space = AddressSpace::new();
        let segment = Segment::anonymous(3 * PAGE_BYTES as usize).expect("memory");
        let place = space.register(&segment);
        let hypervisor = EmulatedHypervisor::new(space, vec![server]).expect("a hypervisor");
        let local = Sge { address: place.base, length: 3 * PAGE_BYTES as u32, key: place.key };
        Self { client, hypervisor, segment, local, read: 0 }
    }

    /// Makes a call of the server's, and gives its return code.
    fn call(&mut self, operation: HypervisorOperation) -> i64 {
        let request = HypervisorRequest { id: 77, unit: UNIT, operation };
        self.hypervisor.submit(request).expect("room");
        match self.poll() {
            Some(HypervisorEvent::Returned { id: 77, unit: UNIT, code }) => code,
            other => panic!("{other:?}"),
        }
    }

    fn poll(&mut self) -> Option<HypervisorEvent> {
        let mut events = [HypervisorEvent::Returned { id: 0, unit: UNIT, code: 0 }];
        (self.hypervisor.poll(&mut events) == 1).then_some(events[0])
    }

    fn servers_entry(&mut self) -> Option<Entry> {
        match self.poll()? {
            HypervisorEvent::Entry { unit: UNIT, entry } => Some(Entry::from_bytes(entry)),
            other => panic!("{other:?}"),
        }
    }

    /// The client's next entry; frees its slot.
    fn clients_entry(&mut self) -> Option<Entry> {
        let entry = clients_entry(&self.client, self.read)?;
        self.read += 1;
        Some(entry)
    }

    fn register_both(&mut self) {
        assert_eq!(self.client.register_queue(QUEUE, PAGE_BYTES), code::CLOSED);
        assert_eq!(self.call(HypervisorOperation::RegisterQueue), code::SUCCESS);
    }

    fn send_to_client(&mut self, entry: Entry) -> i64 {
        self.call(HypervisorOperation::SendEntry(entry.to_bytes()))
    }
}

/// Entry `index` of the client's queue, whose slot becomes free.
fn clients_entry(client: &ClientPartition, index: u64) -> Option<Entry> {
    let place = QUEUE_REAL + index % 256 * 16;
    let mut bytes = [0; 16];
    assert!(client.memory().read(place, &mut bytes));
    assert!(client.memory().write(place, &[0]));
    (bytes[0] != 0).then(|| Entry::from_bytes(bytes))
}

fn transport(event: TransportEvent) -> Option<Entry> {
    Some(Entry::transport(event))
}

/// H_REG_CRQ: H_CLOSED for whoever comes first, H_SUCCESS for the second, H_RESOURCE for one who comes twice.
#[test]
fn h_reg_crq_says_whether_the_partner_is_there() {
    let mut rig = Rig::new();
    assert_eq!(rig.client.register_queue(QUEUE, PAGE_BYTES), code::CLOSED);
    assert_eq!(rig.client.register_queue(QUEUE, PAGE_BYTES), code::RESOURCE);
    assert_eq!(rig.call(HypervisorOperation::RegisterQueue), code::SUCCESS);
    assert_eq!(rig.call(HypervisorOperation::RegisterQueue), code::RESOURCE);
    let mut rig = Rig::new();
    assert_eq!(rig.call(HypervisorOperation::RegisterQueue), code::CLOSED);
    assert_eq!(rig.client.register_queue(QUEUE, PAGE_BYTES), code::SUCCESS);
}

/// H_REG_CRQ: a queue is whole pages, mapped for both directions.
#[test]
fn h_reg_crq_refuses_a_queue_that_cannot_be_one() {
    let rig = Rig::new();
    assert_eq!(rig.client.put_tce(0x1000, 0x6000 | SERVER_MAY_READ), 0);
    for (address, bytes) in [
        (QUEUE, 0),
        (QUEUE, PAGE_BYTES - 16),
        (QUEUE + 16, PAGE_BYTES),
        (QUEUE, 2 * PAGE_BYTES),
        (0x1000, PAGE_BYTES),
        (WINDOW_BYTES, PAGE_BYTES),
    ] {
        assert_eq!(rig.client.register_queue(address, bytes), code::PARAMETER, "{address:#x}");
    }
}

/// H_FREE_CRQ: the partner gets FF02.
#[test]
fn h_free_crq_tells_the_partner() {
    let mut rig = Rig::new();
    rig.register_both();
    assert_eq!(rig.client.free_queue(), code::SUCCESS);
    assert_eq!(rig.client.free_queue(), code::NOT_FOUND);
    assert_eq!(rig.servers_entry(), transport(TransportEvent::PartnerDeregistered));
    assert_eq!(rig.send_to_client(Entry::INIT), code::CLOSED);

    let mut rig = Rig::new();
    rig.register_both();
    assert_eq!(rig.call(HypervisorOperation::FreeQueue), code::SUCCESS);
    assert_eq!(rig.call(HypervisorOperation::FreeQueue), code::NOT_FOUND);
    assert_eq!(rig.clients_entry(), transport(TransportEvent::PartnerDeregistered));
    assert_eq!(rig.client.send(Entry::INIT.to_bytes()), code::CLOSED);
}

/// H_SEND_CRQ: entries come in their order, and a full queue drops them until its owner frees a slot.
#[test]
fn h_send_crq_fills_the_partners_queue_in_order() {
    let mut rig = Rig::new();
    rig.register_both();
    let entry = |n| Entry { pointer: n, ..Entry::INIT };
    for n in 0..256 {
        assert_eq!(rig.send_to_client(entry(n)), code::SUCCESS, "{n}");
    }
    assert_eq!(rig.send_to_client(entry(256)), code::DROPPED);
    assert_eq!(rig.clients_entry(), Some(entry(0)));
    assert_eq!(rig.send_to_client(entry(256)), code::SUCCESS);
    assert_eq!(rig.send_to_client(entry(257)), code::DROPPED);
    for n in 1..257 {
        assert_eq!(rig.clients_entry(), Some(entry(n)));
    }
    assert_eq!(rig.clients_entry(), None);

    let mut sent = 0;
    while rig.client.send(entry(sent).to_bytes()) == code::SUCCESS {
        sent += 1;
    }
    assert_eq!(rig.client.send(entry(0).to_bytes()), code::DROPPED);
    // The hypervisor's own entries have places of their own.
    rig.client.migrate();
    for n in 0..sent {
        assert_eq!(rig.servers_entry(), Some(entry(n)));
    }
    assert_eq!(rig.servers_entry(), transport(TransportEvent::Migrated));
    assert_eq!(rig.servers_entry(), None);
}

/// H_SEND_CRQ: transport events are the hypervisor's alone; nobody sends without a queue.
#[test]
fn h_send_crq_refuses_what_no_partition_may_send() {
    let mut rig = Rig::new();
    assert_eq!(rig.client.send(Entry::INIT.to_bytes()), code::NOT_FOUND);
    assert_eq!(rig.send_to_client(Entry::INIT), code::NOT_FOUND);
    rig.register_both();
    for valid in [0x00, 0x7F, 0xFF] {
        let entry = Entry { valid, ..Entry::INIT };
        assert_eq!(rig.client.send(entry.to_bytes()), code::PARAMETER);
        assert_eq!(rig.send_to_client(entry), code::PARAMETER);
    }
    rig.client.refuse_servers_send(code::HARDWARE);
    assert_eq!(rig.send_to_client(Entry::INIT), code::HARDWARE, "as was asked for");
    assert_eq!(rig.send_to_client(Entry::INIT), code::SUCCESS);
}

/// H_VIO_SIGNAL: the interrupt comes only while signals are on.
#[test]
fn h_vio_signal_turns_the_interrupt_on_and_off() {
    let mut rig = Rig::new();
    assert_eq!(rig.client.signal(true), code::PARAMETER, "there is no queue");
    rig.register_both();
    rig.send_to_client(Entry::INIT);
    assert!(!rig.client.take_interrupt());
    assert_eq!(rig.client.signal(true), code::SUCCESS);
    rig.send_to_client(Entry::INIT);
    assert!(rig.client.take_interrupt());
    assert_eq!(rig.client.signal(false), code::SUCCESS);
    rig.send_to_client(Entry::INIT);
    assert!(!rig.client.take_interrupt());
}

/// H_PUT_TCE, H_STUFF_TCE, H_PUT_TCE_INDIRECT and H_COPY_RDMA: pages that are not next to each other, with the
/// access that each direction needs.
#[test]
fn h_copy_rdma_goes_through_the_tce_table_with_its_access_bits() {
    let mut rig = Rig::new();
    let address = 0x40_0000;
    // Three pages, in another order in memory; the last only for reading.
    let tces = [0x9000 | BOTH, 0x7000 | BOTH, 0x8000 | SERVER_MAY_READ];
    assert_eq!(rig.client.put_tces(address, &tces), code::SUCCESS);
    for (page, fill) in [(0x9000, 1), (0x7000, 2), (0x8000, 3)] {
        rig.client.memory().write(page, &[fill; PAGE_BYTES as usize]);
    }
    let local = rig.local;
    assert_eq!(rig.call(HypervisorOperation::CopyIn { client_address: address, local }), 0);
    let mut copied = vec![0; 3 * PAGE_BYTES as usize];
    rig.segment.read(0, &mut copied);
    for (page, fill) in copied.chunks(PAGE_BYTES as usize).zip(1..) {
        assert!(page.iter().all(|byte| *byte == fill));
    }
    let out = |client_address, length| HypervisorOperation::CopyOut {
        local: Sge { length, ..local },
        client_address,
    };
    let page = PAGE_BYTES as u32;
    assert_eq!(rig.call(out(address, 3 * page)), code::DEST_PARM, "the last page is not for us");
    rig.segment.write(0, &[9; 20]);
    assert_eq!(rig.call(out(address + PAGE_BYTES - 10, 20)), code::SUCCESS);
    let mut two = [0; 20];
    rig.client.memory().read(0x9000 + PAGE_BYTES - 10, &mut two[..10]);
    rig.client.memory().read(0x7000, &mut two[10..]);
    assert_eq!(two, [9; 20], "across a page's end");
    // Unmapped again, beyond the window, beyond the client's memory, and beyond our own.
    assert_eq!(rig.client.stuff_tce(address, 0, 3), code::SUCCESS);
    assert_eq!(rig.call(out(address, 1)), code::DEST_PARM);
    let input = |client_address| HypervisorOperation::CopyIn { client_address, local };
    assert_eq!(rig.call(input(address)), code::SOURCE_PARM);
    assert_eq!(rig.call(input(WINDOW_BYTES)), code::SOURCE_PARM);
    assert_eq!(rig.call(input(u64::MAX)), code::SOURCE_PARM);
    assert_eq!(rig.client.put_tce(address, MEMORY_BYTES as u64 | BOTH), code::SUCCESS);
    assert_eq!(rig.call(out(address, 1)), code::DEST_PARM);
    let elsewhere = Sge { address: local.address + 1, ..local };
    let operation = HypervisorOperation::CopyOut { local: elsewhere, client_address: UNITS };
    assert_eq!(rig.call(operation), code::SOURCE_PARM);
    assert_eq!(rig.call(out(UNITS, 128 * 1024 + 1)), code::PARAMETER, "longer than a copy may be");
    assert_eq!(rig.client.put_tce(address + 1, 0), code::PARAMETER);
    assert_eq!(rig.client.put_tces(WINDOW_BYTES - PAGE_BYTES, &[0, 0]), code::PARAMETER);
}

/// A partition that fails is gone with its window (FF01), and comes back with a new queue.
#[test]
fn a_failed_client_closes_its_window() {
    let mut rig = Rig::new();
    rig.register_both();
    rig.client.crash();
    let operation = HypervisorOperation::CopyOut {
        local: Sge { length: 16, ..rig.local },
        client_address: UNITS,
    };
    rig.hypervisor.submit(HypervisorRequest { id: 1, unit: UNIT, operation }).expect("room");
    // A return comes before what arrived earlier, or after it; never before what arrived later.
    let returned = HypervisorEvent::Returned { id: 1, unit: UNIT, code: code::PERMISSION };
    assert_eq!(rig.poll(), Some(returned));
    assert_eq!(rig.servers_entry(), transport(TransportEvent::PartnerFailed));
    assert_eq!(rig.client.register_queue(QUEUE, PAGE_BYTES), code::SUCCESS);
    assert_eq!(rig.call(operation), code::SUCCESS);
}

/// FF06 for both ends; the client's queue rests until H_ENABLE_CRQ, and goes on where it was.
#[test]
fn h_enable_crq_after_a_migration() {
    let mut rig = Rig::new();
    assert_eq!(rig.client.enable_queue(), code::PARAMETER, "there is no queue");
    rig.register_both();
    rig.client.migrate();
    assert_eq!(rig.servers_entry(), transport(TransportEvent::Migrated));
    assert_eq!(rig.send_to_client(Entry::INIT), code::CLOSED);
    assert_eq!(rig.client.send(Entry::INIT.to_bytes()), code::CLOSED);
    assert_eq!(rig.clients_entry(), transport(TransportEvent::Migrated));
    assert_eq!(rig.client.enable_queue(), code::SUCCESS);
    assert_eq!(rig.send_to_client(Entry::INIT), code::SUCCESS);
    assert_eq!(rig.clients_entry(), Some(Entry::INIT));
}

/// The server's partition crashes: the client gets FF02.
#[test]
fn a_server_that_goes_is_reported_to_the_client() {
    let mut rig = Rig::new();
    rig.register_both();
    drop(rig.hypervisor);
    let entry = clients_entry(&rig.client, 0);
    assert_eq!(entry, transport(TransportEvent::PartnerDeregistered));
}

#[test]
fn a_poll_group_with_two_clients_starves_none() {
    let (first, first_end) = new_pair();
    let (second, second_end) = pair(UnitAddress(2), MEMORY_BYTES, WINDOW_BYTES).expect("a pair");
    second.put_tce(QUEUE, QUEUE_REAL | BOTH);
    let ends = vec![first_end, second_end];
    let mut hypervisor = EmulatedHypervisor::new(AddressSpace::new(), ends).expect("a hypervisor");
    let mut events = [HypervisorEvent::Returned { id: 0, unit: UNIT, code: 0 }; 8];
    assert!(hypervisor.arm(), "nothing is pending");
    for unit in [UNIT, UnitAddress(2)] {
        let operation = HypervisorOperation::RegisterQueue;
        hypervisor.submit(HypervisorRequest { id: 1, unit, operation }).expect("room");
    }
    assert!(!hypervisor.arm(), "two returns are");
    assert_eq!(hypervisor.poll(&mut events), 2);
    for client in [&first, &second] {
        client.register_queue(QUEUE, PAGE_BYTES);
        for _ in 0..3 {
            assert_eq!(client.send(Entry::INIT.to_bytes()), code::SUCCESS);
        }
    }
    assert!(!hypervisor.arm());
    assert_eq!(hypervisor.poll(&mut events), 6);
    let units: Vec<u32> = events[..6]
        .iter()
        .map(|event| match event {
            HypervisorEvent::Entry { unit, .. } => unit.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(units, [UNIT.0, 2, UNIT.0, 2, UNIT.0, 2]);
    assert!(hypervisor.arm());
    let operation = HypervisorOperation::FreeQueue;
    let nobody = HypervisorRequest { id: 1, unit: UnitAddress(9), operation };
    assert_eq!(hypervisor.submit(nobody), Err(HypervisorError::UnknownUnit));
}

// ---------------------------------------------------------------------------------------------------------
// An adapter on it
// ---------------------------------------------------------------------------------------------------------

/// A client that speaks to a [`Server`].
struct Client {
    partition: ClientPartition,
    read: u64,
}

impl Client {
    fn send(&self, kind: IuKind, iu: &[u8]) -> i64 {
        let mut unit = [0; 256];
        unit[..iu.len()].copy_from_slice(iu);
        self.partition.memory().write(UNITS_REAL, &unit);
        let request = Request { kind, timeout_s: 60, iu_bytes: 256, address: UNITS };
        self.partition.send(Entry::request(request).to_bytes())
    }

    fn entry(&mut self) -> Option<Entry> {
        let entry = clients_entry(&self.partition, self.read)?;
        self.read += 1;
        Some(entry)
    }

    /// The tag of the next answer, and the unit that it is about.
    fn answer(&mut self) -> (u64, Vec<u8>) {
        let answer = self.entry().and_then(Entry::read_answer).expect("an answer");
        assert_eq!(answer.status, CrqStatus::Ok);
        let mut unit = vec![0; answer.iu_bytes.into()];
        self.partition.memory().read(UNITS_REAL, &mut unit);
        (answer.tag, unit)
    }

    fn register(&mut self) -> i64 {
        self.read = 0;
        self.partition.memory().write(QUEUE_REAL, &[0; PAGE_BYTES as usize]);
        self.partition.register_queue(QUEUE, PAGE_BYTES)
    }

    fn log_in<H: Hypervisor>(&mut self, server: &mut Server<H>) {
        assert_eq!(self.send(IuKind::Srp, &login()), code::SUCCESS);
        server.run();
        let (tag, unit) = self.answer();
        assert_eq!((tag, unit[0]), (0xc000_0000, 0xc0));
        assert_eq!(unit[4..8], REQUEST_LIMIT.to_be_bytes());
        assert_eq!(server.state(), State::LoggedIn);
    }
}

fn login() -> Vec<u8> {
    let request = LoginRequest {
        form: LoginForm::InfiniBand,
        tag: 0xc000_0000,
        it_iu_bytes: 256,
        formats: FORMATS,
        action: Channels::Single,
        immediate_offset: None,
        initiator_port: PortId::default(),
        target_port: PortId::default(),
    };
    let mut iu = vec![0; 64];
    lunar_srp::login::encode_request(&request, &mut iu).expect("fits");
    iu
}

fn test_unit_ready(tag: u8) -> Vec<u8> {
    let mut iu = vec![0; 48];
    (iu[0], iu[15], iu[20]) = (2, tag, 0x80);
    iu
}

fn served() -> (Client, Server<EmulatedHypervisor>) {
    let (partition, end) = new_pair();
    let memory = ServerMemory::new();
    let hypervisor = EmulatedHypervisor::new(memory.space.clone(), vec![end]).expect("hypervisor");
    (Client { partition, read: 0 }, Server::new(hypervisor, memory))
}

/// C001 by the client, a datagram with its payload, login, commands.
#[test]
fn an_adapter_serves_a_client_from_start_to_command() {
    let (mut client, mut server) = served();
    server.enable();
    assert_eq!(client.register(), code::SUCCESS);
    client.partition.send(Entry::INIT.to_bytes());
    server.run();
    assert_eq!(client.entry(), Some(Entry::INIT_COMPLETE));

    let payload_address = Some(UNITS + 0x400);
    let kind = MadKind::AdapterInformation;
    let request = Mad { kind, payload_bytes: 148, tag: 5, payload_address };
    let mut iu = [0; 24];
    request.encode(&mut iu).expect("fits");
    client.send(IuKind::Mad, &iu);
    server.run();
    let (tag, unit) = client.answer();
    assert_eq!((tag, mad::parse_answer(&unit)), (5, Some((0, 5))));
    let mut payload = [0; 13];
    client.partition.memory().read(UNITS_REAL + 0x400, &mut payload);
    assert_eq!(payload, *b"16.a\0\0\0\0lunar");

    client.log_in(&mut server);
    for tag in 1..=3 * REQUEST_LIMIT as u8 {
        client.send(IuKind::Srp, &test_unit_ready(tag));
        server.run();
        let (answered, unit) = client.answer();
        assert_eq!((answered, unit[0], unit[7]), (u64::from(tag), 0xc1, 1), "credit for credit");
    }
}

/// A payload where the window maps nothing is F7; a unit there is a reconnect.
#[test]
fn an_adapter_answers_a_client_whose_addresses_lead_nowhere() {
    let (mut client, mut server) = served();
    server.enable();
    client.register();
    client.partition.send(Entry::INIT.to_bytes());
    server.run();
    client.entry();
    let payload_address = Some(0x5000);
    let kind = MadKind::AdapterInformation;
    let request = Mad { kind, payload_bytes: 148, tag: 5, payload_address };
    let mut iu = [0; 24];
    request.encode(&mut iu).expect("fits");
    client.send(IuKind::Mad, &iu);
    server.run();
    assert_eq!(mad::parse_answer(&client.answer().1), Some((0xF7, 5)));

    let nowhere = Request { kind: IuKind::Srp, timeout_s: 0, iu_bytes: 256, address: 0x5000 };
    client.partition.send(Entry::request(nowhere).to_bytes());
    server.run();
    assert_eq!(server.over, [Reason::IuOutsideWindow]);
    assert_eq!(client.entry(), transport(TransportEvent::PartnerDeregistered));
    assert_eq!(client.entry(), Some(Entry::INIT), "and the server is there again");
}

/// The server is killed and starts again while the client waits: the server sends C001.
#[test]
fn an_adapter_comes_back_to_a_client_that_waits() {
    let (mut client, server) = served();
    assert_eq!(client.register(), code::CLOSED);
    let mut server = server;
    server.enable();
    assert_eq!(client.entry(), Some(Entry::INIT));
    client.partition.send(Entry::INIT_COMPLETE.to_bytes());
    server.run();
    client.log_in(&mut server);
    // A host reset: queue freed, registered, C001, login.
    client.partition.free_queue();
    assert_eq!(client.register(), code::SUCCESS);
    client.partition.send(Entry::INIT.to_bytes());
    server.run();
    assert_eq!(server.over, [Reason::PartnerDeregistered]);
    assert_eq!(client.entry(), Some(Entry::INIT_COMPLETE));
    client.log_in(&mut server);
    // Suspension: ready at once, and a resumed client goes on.
    client.partition.prepare_for_suspend();
    assert!(!client.partition.is_ready_for_suspend());
    server.run();
    assert!(client.partition.is_ready_for_suspend());
    client.partition.resume();
    server.run();
    client.send(IuKind::Srp, &test_unit_ready(1));
    server.run();
    assert_eq!(client.answer().0, 1);
    server.on(Event::Disable);
    server.run();
    assert_eq!(server.state(), State::Disabled);
    assert_eq!(client.entry(), transport(TransportEvent::PartnerDeregistered));
}
