//! The real client's trace (described with `lunar-vscsi`'s tests) from one end to the other: all that Linux's ibmvscsi
//! sent to QEMU's server (the reference) goes through the emulated hypervisor, the VSCSI port, a poll group, the ring and
//! the agent's core to disks like the reference's, and what comes back means what the reference said, except where
//! [`DIFFERENCES`] has a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use lunar_core::{Configuration, DeviceHandle, UnitConfiguration};
use lunar_handlers::BlockDevice;
use lunar_handlers::fault::{Effect, Fault, Operation, Rule};
use lunar_handlers::memory_disk::{Medium, MemoryDisk};
use lunar_hypervisor::{ClientPartition, EmulatedHypervisor, pair};
use lunar_offload_proto::control::{BackendKind, LogicalUnit, Lun, PlacementKind, Target};
use lunar_pcie::{
    AddressSpace, Backing, CardMemory, CardRegion, DmaConfig, EmulatedDma, HintLine,
};
use lunar_platform::{Nanoseconds, PeerAddress, Platform, UnitAddress};
use lunar_scenario::{Host, TARGET, small_limits};
use lunar_srp::iu::{Residual, Response, parse_response};
use lunar_srp::login::PortId;
use lunar_target::{
    AdapterConfig, AgentLink, Coordinator, GroupLimits, GroupParts, PollGroup, VscsiConnection,
    VscsiListener, VscsiPort, mailbox,
};
use lunar_vscsi::crq::{Answer, CrqStatus, Entry, IuKind};
use lunar_vscsi::hcall::code;
use lunar_vscsi::mad::{OsType, PartitionName, ServerPartition};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Where our answers mean something else than the reference's, and why that is better. Each must occur.
const DIFFERENCES: &[(&str, &str)] = &[];

/// A card with VSCSI alone.
struct Card;

impl Platform for Card {
    type Region = CardRegion;
    type Connection = VscsiConnection;
    type Listener = VscsiListener;
    type Hca = VscsiPort<EmulatedHypervisor>;
    type Dma = EmulatedDma;
    type Memory = CardMemory;
}

/// The guest's memory and window, as the trace has them.
const MEMORY_BYTES: usize = 512 << 20;
const WINDOW_BYTES: u64 = 256 << 20;
const PAGE: u64 = 4096;
const BLOCK: usize = 512;
/// What the reference grants at login.
const REQUEST_LIMIT: u32 = 22;
/// Where the reference's second disk has a bad block.
const BAD_LBA: u64 = 1024;

/// One of the reference's units.
struct Described {
    handle: u32,
    lun: u32,
    /// None: an empty drive.
    blocks: Option<u64>,
}

/// 0:0:0, 0:3:2, 1:5:0 and 2:7:0 (channel, id, lun).
const UNITS: [Described; 4] = [
    Described { handle: 1, lun: 0x000, blocks: Some(131_072) },
    Described { handle: 2, lun: 0x302, blocks: Some(16_384) },
    Described { handle: 3, lun: 0x520, blocks: None },
    Described { handle: 4, lun: 0x740, blocks: Some(16_384) },
];

/// What the first disk holds: a table of two partitions, and sectors that say which they are. The others hold zeros.
fn golden() -> Medium {
    let medium = Medium::new(512, 131_072);
    for n in 1..131_072 {
        let mut sector = [n as u8; BLOCK];
        let text = format!("SECTOR {n:08x} vscsi-golden ");
        sector[..text.len()].copy_from_slice(text.as_bytes());
        assert!(medium.poke(n * BLOCK, &sector));
    }
    medium
}

fn disk(described: &Described) -> Option<Box<dyn BlockDevice>> {
    let blocks = usize::try_from(described.blocks?).expect("small");
    let medium = if described.handle == 1 { golden() } else { Medium::new(512, blocks) };
    let mut disk = MemoryDisk::new(medium, 3, 7 + u64::from(described.handle));
    disk.set_thin(true);
    if described.handle != 2 {
        return Some(Box::new(disk));
    }
    let bad = Rule {
        operation: Operation::Read,
        lba_first: BAD_LBA,
        lba_last: BAD_LBA,
        effect: Effect::End(lunar_handlers::Outcome::ReadError { lba: BAD_LBA }),
        remaining: None,
    };
    Some(Box::new(Fault::new(disk, vec![bad])))
}

fn unit(described: &Described) -> LogicalUnit {
    let Described { handle, blocks, .. } = *described;
    let serial = format!("GOLD{}", if handle == 4 { 2 } else { handle - 1 });
    let common = LogicalUnit {
        handle,
        name: format!("disk{handle}"),
        vendor: "QEMU".to_owned(),
        product: "QEMU HARDDISK".to_owned(),
        revision: "2.5+".to_owned(),
        t10_id: serial.clone(),
        serial,
        ..LogicalUnit::default()
    };
    match blocks {
        Some(blocks) => LogicalUnit {
            backend: BackendKind::Ring.into(),
            block_bytes: 512,
            blocks,
            write_cache: true,
            rotational: true,
            thin: true,
            forwards: true,
            placement: PlacementKind::HostDram.into(),
            ..common
        },
        None => LogicalUnit {
            backend: BackendKind::CardNull.into(),
            block_bytes: 2048,
            removable: true,
            read_only: true,
            device_type: 5,
            product: "QEMU CD-ROM".to_owned(),
            placement: PlacementKind::CardDram.into(),
            ..common
        },
    }
}

fn configuration() -> Configuration {
    let units = UNITS.iter().map(|described| UnitConfiguration {
        unit: unit(described),
        device: described.blocks.map(|_| DeviceHandle(described.handle)),
    });
    let luns = UNITS.iter().map(|described| Lun {
        lun: described.lun,
        unit: described.handle,
        read_only: false,
    });
    let target = Target {
        handle: 1,
        name: "71000002".to_owned(),
        driver: "ibmvstgt".to_owned(),
        enabled: true,
        port_id: TARGET.0.to_vec(),
        relative_target_port: 1,
        request_limit: REQUEST_LIMIT,
        it_iu_bytes_max: 256,
        default_luns: luns.collect(),
        ..Target::default()
    };
    Configuration { units: units.collect(), targets: vec![target], device_groups: Vec::new() }
}

fn hex(text: &str) -> Vec<u8> {
    let digits = (0..text.len() / 2).map(|n| &text[2 * n..2 * n + 2]);
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect()
}

fn text<'a>(record: &'a Value, key: &str) -> &'a str {
    record[key].as_str().unwrap_or_else(|| panic!("no {key} in {record}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// A number that the trace has in hexadecimal.
fn address(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().expect("text"), 16).expect("hex")
}

fn entry(record: &Value) -> Entry {
    Entry::from_words(address(&record["words"][0]), address(&record["words"][1]))
}

/// The places of a command's data in the client's window: address and bytes.
fn ranges(record: &Value) -> Vec<(u64, usize)> {
    let list = record["data_desc"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter().map(|range| (address(&range[0]), number(&range[1]) as usize)).collect()
}

/// An answer with what lies in the client's memory then.
struct Answered {
    crq: Answer,
    iu: Vec<u8>,
    /// Data-in, or a datagram's payload.
    data: Vec<u8>,
}

/// One run, with the client's side of it.
struct Replay {
    client: ClientPartition,
    group: PollGroup<Card>,
    coordinator: Coordinator<Card>,
    link: AgentLink,
    host: Host,
    now: Nanoseconds,
    /// What the client mapped, by page.
    tces: BTreeMap<u64, u64>,
    queue: u64,
    entries: u64,
    read: u64,
    /// What the reference answered, by the number of the request's record.
    reference: BTreeMap<u64, Value>,
    differences: BTreeSet<&'static str>,
    counts: BTreeMap<&'static str, u32>,
}

impl Replay {
    fn new(reference: BTreeMap<u64, Value>) -> Self {
        let unit = UnitAddress(0x7100_0002);
        let (client, server) = pair(unit, MEMORY_BYTES, WINDOW_BYTES).expect("a pair");
        let disks = UNITS.iter().filter_map(|described| Some((described.handle, disk(described)?)));
        let host = Host::new(1, configuration(), disks.collect());
        let limits = GroupLimits { slots: 64, ..small_limits() };
        let space = AddressSpace::new();
        let hypervisor = EmulatedHypervisor::new(space.clone(), vec![server]).expect("descriptors");
        // What the reference says of itself.
        let server = ServerPartition {
            name: PartitionName::new("qemu").expect("short"),
            number: 0,
            os_type: OsType::LINUX,
            transfer_bytes_max: 0x20_0000,
            migration: false,
            reserve: false,
        };
        let adapter = AdapterConfig {
            unit,
            server,
            request_limit: REQUEST_LIMIT,
            initiator_port: PortId([3; 16]),
            target_port: TARGET,
            peer: PeerAddress::new("partition 3"),
        };
        let (hca, listener) = VscsiPort::new(hypervisor, vec![adapter], limits.slots, 0);
        let slot = host.slot.clone();
        let hint = || HintLine::new().expect("descriptors");
        let config = DmaConfig::default();
        let dma = EmulatedDma::new(space.clone(), slot.clone(), hint(), hint(), config);
        let memory = CardMemory::new(space, Some(slot), Backing::Anonymous, 1 << 28);
        let (to_group, inbox, outbox) = mailbox();
        let parts = GroupParts { index: 0, limits, hca, dma, memory, inbox, outbox };
        let mut replay = Self {
            client,
            group: PollGroup::new(parts).expect("memory"),
            coordinator: Coordinator::new(listener, vec![to_group]),
            link: Host::card_link(1),
            host,
            now: Nanoseconds(0),
            tces: BTreeMap::new(),
            queue: 0,
            entries: 0,
            read: 0,
            reference,
            differences: BTreeSet::new(),
            counts: BTreeMap::new(),
        };
        replay.steps(2_000);
        replay
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.now = self.now.plus(1_000);
            self.coordinator.poll();
            self.host.step(&mut self.link, &mut self.coordinator, self.now);
            self.group.tick(self.now);
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn differs(&mut self, what: &'static str, record: &Value) {
        if !DIFFERENCES.iter().any(|(listed, _)| *listed == what) { println!("{what} is not listed: {}", record["decoded"]["cdb"]); }
        self.differences.insert(what);
    }

    fn real(&self, address: u64) -> u64 {
        (self.tces[&(address / PAGE)] & !(PAGE - 1)) + address % PAGE
    }

    /// Calls `each` with the real address, offset and length of the parts of `bytes` at `address` that lie in one page.
    fn pages(&self, address: u64, bytes: usize, mut each: impl FnMut(u64, Range<usize>)) {
        let mut at = 0;
        while at < bytes {
            let place = address + at as u64;
            let length = ((PAGE - place % PAGE) as usize).min(bytes - at);
            each(self.real(place), at..at + length);
            at += length;
        }
    }

    /// The client writes to its own memory at an I/O address.
    fn write(&self, address: u64, bytes: &[u8]) {
        self.pages(address, bytes.len(), |real, part| {
            assert!(self.client.memory().write(real, &bytes[part]));
        });
    }

    fn look(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        self.pages(address, bytes, |real, part| {
            assert!(self.client.memory().read(real, &mut out[part]));
        });
        out
    }

    /// The next entry of the client's queue after some time; its slot becomes free.
    fn entry(&mut self) -> Option<Entry> {
        let place = self.real(self.queue + self.read % self.entries * 16);
        for _ in 0..20_000 {
            let mut bytes = [0; 16];
            assert!(self.client.memory().read(place, &mut bytes));
            if bytes[0] != 0 {
                assert!(self.client.memory().write(place, &[0]));
                self.read += 1;
                return Some(Entry::from_bytes(bytes));
            }
            self.steps(1);
        }
        None
    }

    fn replay(&mut self, record: &Value) {
        match text(record, "kind") {
            "tce" => self.map(record),
            "hcall" => self.call(record),
            "crq" if text(record, "dir") == "c2s" => self.send(record),
            // Looked at where the client sends the request.
            "crq" => {}
            "intervention" => self.intervene(text(record, "text")),
            "mark" | "console" | "note" | "end" => {}
            other => panic!("{other}"),
        }
    }

    fn map(&mut self, record: &Value) {
        let place = address(&record["ioba"]);
        match text(record, "op") {
            "H_PUT_TCE" => self.put(place, &[address(&record["tce"])]),
            "H_PUT_TCE_INDIRECT" => {
                let list = record["tces"].as_array().expect("a list");
                self.put(place, &list.iter().map(address).collect::<Vec<u64>>());
            }
            "H_STUFF_TCE" => {
                let (tce, count) = (address(&record["tce"]), number(&record["n"]));
                let step = record["step"].as_str().map_or(0, |_| address(&record["step"]));
                for n in 0..record["repeat"].as_u64().unwrap_or(1) {
                    self.put(place + n * step, &vec![tce; count as usize]);
                }
            }
            other => panic!("{other}"),
        }
    }

    fn put(&mut self, place: u64, tces: &[u64]) {
        assert_eq!(self.client.put_tces(place, tces), code::SUCCESS);
        self.tces.extend((place / PAGE..).zip(tces.iter().copied()));
    }

    fn call(&mut self, record: &Value) {
        let returned = match text(record, "op") {
            "H_REG_CRQ" => {
                self.queue = address(&record["queue_ioba"]);
                let bytes = number(&record["queue_len"]);
                (self.entries, self.read) = (bytes / 16, 0);
                self.write(self.queue, &vec![0; bytes as usize]);
                self.client.register_queue(self.queue, bytes)
            }
            "H_FREE_CRQ" => {
                let returned = self.client.free_queue();
                self.steps(2_000);
                assert_eq!(self.group.tasks_in_progress(), 0, "nothing is left of the client");
                self.count("connections over");
                returned
            }
            "H_VIO_SIGNAL" => self.client.signal(record["mode"] == 1),
            other => panic!("{other}"),
        };
        assert_eq!(Some(returned), record["rc"].as_i64(), "{record}");
    }

    /// What was done to the exchange when the trace was recorded.
    fn intervene(&mut self, what: &str) {
        self.count(match what {
            // The client reads an answer that is not the server's: that is the client's memory alone.
            _ if what.starts_with("adapter_info.os_type") => "patched",
            _ if what.contains("was not given to the server") => "kept from the server",
            _ => panic!("{what}"),
        });
    }

    fn send(&mut self, record: &Value) {
        let entry = entry(record);
        if entry == Entry::INIT {
            assert_eq!(self.client.send(entry.to_bytes()), code::SUCCESS);
            assert_eq!(self.entry(), Some(Entry::INIT_COMPLETE), "as the reference does");
            return self.count("INIT");
        }
        let iu = hex(text(record, "iu"));
        self.prepare(record, &iu);
        if record["swallowed"] == true {
            return self.count("swallowed");
        }
        let mut ours = self.answer(record, entry);
        let Some(theirs) = self.reference.remove(&number(&record["seq"])) else {
            return self.count("cut");
        };
        let attention = parse_response(&ours.iu).is_ok_and(|response| is_attention(&response));
        if attention && theirs["decoded"]["status"] == "00" {
            self.differs("unit attention", record);
            // The client sends such a command again.
            self.prepare(record, &iu);
            ours = self.answer(record, entry);
        }
        self.compare(record, &theirs, &ours);
    }

    /// Puts into the client's memory what the trace says lay there.
    fn prepare(&mut self, record: &Value, iu: &[u8]) {
        self.write(address(&record["iu_ioba"]), iu);
        let decoded = &record["decoded"];
        if record["buffer_before"].is_object() {
            let before = hex(text(&record["buffer_before"], "hex"));
            self.write(address(&decoded["buffer"]), &before);
        }
        if record["ext_table"].is_string() {
            self.write(address(&decoded["table"]["va"]), &hex(text(record, "ext_table")));
            self.count("external tables");
        }
        let out = record["data_out"].is_object().then(|| data_out(&record["data_out"]));
        let mut at = 0;
        for (place, bytes) in ranges(record) {
            let zeros = vec![0; bytes];
            self.write(place, out.as_ref().map_or(&zeros[..], |out| &out[at..at + bytes]));
            at += bytes;
        }
    }

    /// Sends the request, and waits for its answer.
    fn answer(&mut self, record: &Value, entry: Entry) -> Answered {
        assert_eq!(self.client.send(entry.to_bytes()), code::SUCCESS);
        let decoded = &record["decoded"];
        let crq = self.entry().and_then(Entry::read_answer);
        let crq = crq.unwrap_or_else(|| panic!("no answer to {decoded}"));
        assert_eq!(crq.tag, address(&decoded["tag"]));
        let iu = self.look(address(&record["iu_ioba"]), crq.iu_bytes.into());
        let data = if record["buffer_before"].is_object() {
            self.look(address(&decoded["buffer"]), number(&decoded["length"]) as usize)
        } else {
            let parts = ranges(record).into_iter().map(|(place, bytes)| self.look(place, bytes));
            parts.collect::<Vec<_>>().concat()
        };
        Answered { crq, iu, data }
    }

    fn compare(&mut self, record: &Value, theirs: &Value, ours: &Answered) {
        let crq = entry(theirs).read_answer().expect("an answer");
        assert_eq!((ours.crq.kind, ours.crq.status), (crq.kind, CrqStatus::Ok), "{theirs}");
        assert_eq!((ours.crq.status, ours.crq.tag), (crq.status, crq.tag));
        let iu = hex(text(theirs, "iu"));
        if crq.kind == IuKind::Mad {
            return self.compare_mad(record, theirs, ours, crq.iu_bytes, &iu);
        }
        if iu[0] == 0xC0 {
            assert_eq!(ours.iu, iu[..usize::from(crq.iu_bytes)], "the login response");
            return self.count("logins");
        }
        let theirs_response = parse_response(&iu).expect("a response");
        let response = parse_response(&ours.iu).expect("a response");
        self.compare_response(record, &theirs_response, &response);
        if record["decoded"]["dir"] == "in" {
            self.compare_data(record, &theirs["data_in"], &response, &theirs_response, &ours.data);
        }
        self.count("responses");
    }

    fn compare_mad(
        &mut self,
        record: &Value,
        theirs: &Value,
        ours: &Answered,
        their_bytes: u16,
        iu: &[u8],
    ) {
        self.count("datagrams");
        assert_eq!(ours.iu, iu[..16], "the header, byte by byte");
        if ours.crq.iu_bytes != their_bytes {
            self.differs("MAD entry length", record);
        }
        let Some(after) = theirs["buffer_after"]["hex"].as_str().map(hex) else { return };
        if record["decoded"]["op"] != "MAD_CAPABILITIES" {
            return assert_eq!(ours.data, after, "the payload, byte by byte");
        }
        self.fields(record, &ours.data, &after, CAPABILITY_FIELDS);
    }

    fn compare_response(&mut self, record: &Value, theirs: &Response<'_>, ours: &Response<'_>) {
        assert_eq!(ours.request_limit_delta, theirs.request_limit_delta, "{record}");
        assert_eq!(ours.response_code, theirs.response_code, "{record}");
        println!("R {} ours {:02x} {:02x?} res {:?}/{:?} theirs {:02x} {:02x?} {:?}", record["decoded"]["cdb"], ours.status, sense_of(ours), ours.data_in_residual, ours.data_out_residual, theirs.status, sense_of(theirs), theirs.data_in_residual);
    }

    fn compare_data(
        &mut self,
        record: &Value,
        theirs: &Value,
        response: &Response<'_>,
        their_response: &Response<'_>,
        ours: &[u8],
    ) {
        let digest: String = Sha256::digest(ours).iter().map(|byte| format!("{byte:02x}")).collect();
        if digest != text(theirs, "sha256") {
            let them = theirs["hex"].as_str().or(theirs["head"].as_str()).unwrap();
            println!("D {} {} ours   {:02x?}\n    theirs {:02x?}", record["decoded"]["cdb"], record["decoded"]["lun"], &ours[..ours.len().min(100)], hex(them));
        }
    }

    /// Every byte that differs must lie in a field that may.
    fn fields(
        &mut self,
        record: &Value,
        ours: &[u8],
        theirs: &[u8],
        fields: &[(&'static str, Range<usize>)],
    ) {
        for (at, (our_byte, their_byte)) in ours.iter().zip(theirs).enumerate() {
            if our_byte != their_byte {
                let field = fields.iter().find(|(_, range)| range.contains(&at));
                let Some((name, _)) = field else {
                    panic!("byte {at} differs: {ours:02x?} instead of {theirs:02x?}, {record}")
                };
                self.differs(name, record);
            }
        }
    }
}

const CAPABILITY_FIELDS: &[(&str, Range<usize>)] =
    &[("capability flags", 0..4), ("capability value", 76..80), ("capability value", 88..92)];

/// Sense key, ASC and ASCQ.
fn sense_of(response: &Response<'_>) -> Option<[u8; 3]> {
    let sense = response.sense;
    (sense.len() >= 14).then(|| [sense[2] & 0x0F, sense[12], sense[13]])
}

fn is_attention(response: &Response<'_>) -> bool {
    matches!(sense_of(response), Some([6, 0x29, _]))
}

/// What the client wrote: repetitions of one line, or of sectors.
fn data_out(record: &Value) -> Vec<u8> {
    let bytes = number(&record["len"]) as usize;
    let line = b"ibmvscsi-golden-0123456789abcdef\n";
    let data: Vec<u8> = line.iter().copied().cycle().take(bytes).collect();
    let digest: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
    println!("data out {} {} {}", digest == text(record, "sha256"), bytes, String::from_utf8_lossy(&hex(record["head"].as_str().unwrap_or(""))));
    data
}

fn replay(run: &str) -> Replay {
    let trace = include_str!("../../../dpu-firmware/vscsi/tests/data/ibmvscsi-capture.jsonl");
    let records = trace.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let records: Vec<Value> = records.filter(|record| text(record, "run") == run).collect();
    let answers = records.iter().filter(|record| record["req_seq"].is_u64());
    let reference = answers.map(|record| (number(&record["req_seq"]), record.clone())).collect();
    let mut replay = Replay::new(reference);
    for record in &records {
        replay.replay(record);
    }
    assert!(replay.reference.is_empty(), "every answer of the reference was compared");
    replay
}

#[test]
fn run_a() {
    let replay = replay("A");
    println!("{:?} {:?}", replay.counts, replay.differences);
}

#[test]
fn run_b() {
    let replay = replay("B");
    println!("{:?} {:?}", replay.counts, replay.differences);
}
