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
use lunar_pcie::{AddressSpace, Backing, CardMemory, CardRegion, DmaConfig, EmulatedDma, HintLine};
use lunar_platform::{Nanoseconds, Platform, UnitAddress};
use lunar_scenario::{Host, TARGET, small_limits};
use lunar_srp::iu::{Residual, Response, parse_response};
use lunar_target::{
    AdapterConfig, AgentLink, Coordinator, GroupLimits, GroupParts, PollGroup, VscsiConnection,
    VscsiListener, VscsiPort, mailbox,
};
use lunar_vscsi::crq::{Answer, CrqStatus, Entry, IuKind};
use lunar_vscsi::hcall::code;
use lunar_vscsi::mad::{OsType, PartitionName, ServerPartition};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Where our answers mean something else than the reference's: in which runs, what, and why that is better. All of them
/// must occur, and nothing else may.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    (
        "AB",
        "MAD entry length",
        "the reference says 24 or 0; 16 is what is put back of a datagram, and what IBM's servers say",
    ),
    (
        "B",
        "capability flags",
        "the reference clears them and so claims to know no list, which it has just answered",
    ),
    (
        "B",
        "capability value",
        "the reference clears the level and the kind, which the client asked about; the support says no",
    ),
    (
        "AB",
        "unit attention of a new nexus",
        "a login makes a new I_T nexus, whose initiator has not been told yet that it may have missed something; the \
         reference forgets that a login came. The client sends the command again. In run B those that fetched it \
         first are cut",
    ),
    (
        "A",
        "which unit attention",
        "29h/00h says that something was reset; 29h/01h and 29h/03h (SPC-6 annex D) say what",
    ),
    (
        "A",
        "medium error",
        "the reference makes an I/O error ABORTED COMMAND, I/O PROCESS TERMINATED, which the client repeats in vain \
         five times; the medium cannot be read there: MEDIUM ERROR, UNRECOVERED READ ERROR",
    ),
    (
        "AB",
        "residual",
        "the reference never reports one; ours is where this client reads it: of short data, and of a READ that moved \
         nothing",
    ),
    (
        "A",
        "REPORT LUNS where nobody is",
        "LUN 0 answers it whether a unit is there or not (SPC-6 6.33): with LUN 0 alone. The client then need not \
         try one LUN after the other",
    ),
    (
        "A",
        "REPORT SUPPORTED OPERATION CODES",
        "the reference knows it not; the client asks for what it may use",
    ),
    ("AB", "INQUIRY: version", "SPC-4, of which the reference's SPC-3 is the predecessor"),
    (
        "AB",
        "INQUIRY: length",
        "ours has version descriptors, which the client did not ask for here",
    ),
    (
        "AB",
        "INQUIRY: flags",
        "third-party copy and several ports are ours; SYNC was for parallel buses, and HISUP is of every unit",
    ),
    ("A", "INQUIRY: names of nobody", "QEMU and QEMU TARGET or QEMU EMPTY: nobody has no name"),
    (
        "A",
        "INQUIRY: qualifier",
        "the reference says of an absent unit of a target that has others that a device could be there (001b), of other \
         absent ones that none can (011b), which is true of both until the configuration changes",
    ),
    (
        "AB",
        "VPD: more pages",
        "mode page policy, extended INQUIRY data and third-party copy are told of too",
    ),
    (
        "AB",
        "VPD: designators",
        "the reference gives the serial number as a vendor specific one; ours has the vendor before it, which makes it \
         one that no other vendor uses",
    ),
    ("A", "VPD: block limits", "what this server does is told, not what that one does"),
    ("A", "VPD: rotation", "these disks rotate, and ours say how fast"),
    ("A", "unmapped blocks read zeros", "the disks promise it, and so may the server (LBPRZ)"),
    ("A", "MODE SENSE: more pages", "the length of all mode pages, of which ours has more"),
];

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

/// The first disk's sector `n`.
fn sector(n: usize) -> [u8; BLOCK] {
    let mut sector = [n as u8; BLOCK];
    let text = format!("SECTOR {n:08x} vscsi-golden ");
    sector[..text.len()].copy_from_slice(text.as_bytes());
    sector
}

/// What the first disk holds: a table of two partitions, and sectors that say which they are. The others hold zeros.
fn golden() -> Medium {
    let medium = Medium::new(512, 131_072);
    for n in 1..131_072 {
        assert!(medium.poke(n * BLOCK, &sector(n)));
    }
    let mut table = [0; BLOCK];
    for (place, first, sectors) in [(446, 2048_u32, 65_536_u32), (462, 67_584, 63_488)] {
        table[place..place + 8].copy_from_slice(&[0, 0xFE, 0xFF, 0xFF, 0x83, 0xFE, 0xFF, 0xFF]);
        table[place + 8..place + 12].copy_from_slice(&first.to_le_bytes());
        table[place + 12..place + 16].copy_from_slice(&sectors.to_le_bytes());
    }
    table[510..].copy_from_slice(&[0x55, 0xAA]);
    assert!(medium.poke(0, &table));
    medium
}

fn disk(described: &Described, first: &Medium) -> Option<Box<dyn BlockDevice>> {
    let blocks = usize::try_from(described.blocks?).expect("small");
    let medium = if described.handle == 1 { first.clone() } else { Medium::new(512, blocks) };
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
    let named = LogicalUnit {
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
            ..named
        },
        None => LogicalUnit {
            backend: BackendKind::CardNull.into(),
            block_bytes: 2048,
            removable: true,
            read_only: true,
            device_type: 5,
            product: "QEMU CD-ROM".to_owned(),
            placement: PlacementKind::CardDram.into(),
            ..named
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
    /// The first disk's.
    medium: Medium,
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
        let medium = golden();
        let disk = |unit: &Described| Some((unit.handle, disk(unit, &medium)?));
        let disks = UNITS.iter().filter_map(disk);
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
        let adapter = AdapterConfig::of_partition(unit, server, 3, TARGET, REQUEST_LIMIT);
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
            medium,
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
        let listed = DIFFERENCES.iter().any(|(_, listed, _)| *listed == what);
        assert!(listed, "{what} is not listed: {}", record["decoded"]);
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
            self.differs("unit attention of a new nexus", record);
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
            self.compare_data(record, &theirs["data_in"], &theirs_response, &response, &ours.data);
        }
        if operation_code(record) == WRITE {
            self.compare_medium(record);
        }
        self.count("responses");
    }

    /// What the client wrote lies on the disk.
    fn compare_medium(&mut self, record: &Value) {
        assert_eq!(text(&record["decoded"], "lun"), "8000000000000000", "the first disk");
        let cdb = hex(text(&record["decoded"], "cdb"));
        let lba = u32::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5]]) as usize;
        let mut written = vec![0; number(&record["data_out"]["len"]) as usize];
        assert!(self.medium.peek(lba * BLOCK, &mut written));
        assert_eq!(digest(&written), text(&record["data_out"], "sha256"));
        self.count("WRITEs");
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
        let operation_code = operation_code(record);
        match (sense_of(theirs), sense_of(ours)) {
            (None, None) => {}
            (Some(theirs), Some(ours)) if theirs == ours => {}
            (Some([6, 0x29, 0]), Some([6, 0x29, 1 | 3])) => {
                self.differs("which unit attention", record);
            }
            (Some([0x0B, 0, 6]), Some([3, 0x11, 0])) => self.differs("medium error", record),
            (Some([5, 0x24, 0]), None) if operation_code == REPORT_LUNS => {
                self.differs("REPORT LUNS where nobody is", record);
            }
            (Some([5, 0x20, 0]), None) if operation_code == MAINTENANCE_IN => {
                self.differs("REPORT SUPPORTED OPERATION CODES", record);
            }
            (theirs, ours) => panic!("{ours:02x?} instead of {theirs:02x?}: {}", record["decoded"]),
        }
        for response in [theirs, ours] {
            assert_eq!(response.status == 2, sense_of(response).is_some(), "CHECK CONDITION");
            assert!(response.status == 2 || response.status == 0);
            assert_eq!(response.data_out_residual, Residual::None);
        }
        assert_eq!(theirs.data_in_residual, Residual::None);
    }

    fn compare_data(
        &mut self,
        record: &Value,
        theirs: &Value,
        their_response: &Response<'_>,
        response: &Response<'_>,
        ours: &[u8],
    ) {
        let known = theirs["hex"].as_str().or(theirs["head"].as_str()).expect("data");
        let mut data = hex(known);
        let operation_code = operation_code(record);
        let there = bytes_there(record, response, ours);
        let residual = Residual::between(there.min(ours.len()) as u32, ours.len() as u32);
        // Linux takes the bytes of an overflow for those that were not moved.
        let read = lunar_vscsi::response::residual_as_read(residual, OsType::LINUX);
        assert_eq!(response.data_in_residual, read, "{}", record["decoded"]);
        if response.data_in_residual != Residual::None {
            self.differs("residual", record);
        }
        if operation_code == READ && response.status == 0 {
            assert_eq!(digest(ours), text(theirs, "sha256"), "{}", record["decoded"]);
            return self.count("READs");
        }
        if operation_code == READ {
            assert!(ours.iter().all(|byte| *byte == 0), "what the client had there stays");
            return self.count("failed READs");
        }
        data.resize(ours.len(), 0);
        assert_eq!(digest(&data), text(theirs, "sha256"), "all of it is known");
        if their_response.status != response.status {
            // What only we can do.
            let list = [&[0, 0, 0, 8][..], &[0; 12]].concat();
            assert!(
                operation_code != REPORT_LUNS || ours[..16] == list,
                "LUN 0 alone: {ours:02x?}"
            );
            return;
        }
        self.fields(record, ours, &data, fields_of(record, &data));
        if hex(text(&record["decoded"], "cdb"))[..3] == [INQUIRY, 1, 0] && ours.len() >= 36 {
            let pages = |page: &[u8]| page[4..4 + usize::from(page[3])].to_vec();
            let (ours, theirs) = (pages(ours), pages(&data));
            assert!(theirs.iter().all(|page| ours.contains(page)), "{ours:02x?}");
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

type Fields = &'static [(&'static str, Range<usize>)];

const CAPABILITY_FIELDS: Fields =
    &[("capability flags", 0..4), ("capability value", 76..80), ("capability value", 88..92)];
const INQUIRY_FIELDS: Fields =
    &[("INQUIRY: version", 2..3), ("INQUIRY: length", 4..5), ("INQUIRY: flags", 5..8)];
const NOBODY_FIELDS: Fields = &[
    ("INQUIRY: qualifier", 0..1),
    ("INQUIRY: version", 2..3),
    ("INQUIRY: flags", 3..4),
    ("INQUIRY: flags", 5..8),
    ("INQUIRY: names of nobody", 8..36),
];

const READ: u8 = 0x28;
const WRITE: u8 = 0x2A;
const INQUIRY: u8 = 0x12;
const MODE_SENSE: u8 = 0x1A;
const SERVICE_ACTION_IN: u8 = 0x9E;
const REPORT_LUNS: u8 = 0xA0;
const MAINTENANCE_IN: u8 = 0xA3;

/// The fields of the command's data that may differ. Capacities, serial numbers, LUNs, cache and write protection are
/// not among them.
fn fields_of(record: &Value, theirs: &[u8]) -> Fields {
    match hex(text(&record["decoded"], "cdb"))[..3] {
        // Peripheral device type 1Fh: no device.
        [INQUIRY, 0, _] if theirs[0] & 0x1F == 0x1F => NOBODY_FIELDS,
        [INQUIRY, 0, _] => INQUIRY_FIELDS,
        [INQUIRY, 1, 0x00] => &[("VPD: more pages", 3..36)],
        [INQUIRY, 1, 0x83] => &[("VPD: designators", 3..256)],
        [INQUIRY, 1, 0xB0] => &[("VPD: block limits", 5..64)],
        [INQUIRY, 1, 0xB1] => &[("VPD: rotation", 4..6)],
        [INQUIRY, 1, 0xB2] => &[("unmapped blocks read zeros", 5..6)],
        [SERVICE_ACTION_IN, 0x10, _] => &[("unmapped blocks read zeros", 14..15)],
        [MODE_SENSE, _, 0x3F] => &[("MODE SENSE: more pages", 0..1)],
        _ => &[],
    }
}

/// Bytes of data that there are, as the data itself says; for others, what the client asked for.
fn bytes_there(record: &Value, response: &Response<'_>, data: &[u8]) -> usize {
    let cdb = hex(text(&record["decoded"], "cdb"));
    match cdb[..2] {
        _ if response.status != 0 => 0,
        // Not more than the CDB allows.
        [INQUIRY, 0] => (5 + usize::from(data[4])).min(cdb[4].into()),
        [INQUIRY, 1] => (4 + usize::from(data[3])).min(cdb[4].into()),
        [REPORT_LUNS, _] => 8 + u32::from_be_bytes([data[0], data[1], data[2], data[3]]) as usize,
        _ => data.len(),
    }
}

fn operation_code(record: &Value) -> u8 {
    record["decoded"]["cdb"].as_str().map_or(0, |cdb| hex(cdb)[0])
}

fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sense key, ASC and ASCQ.
fn sense_of(response: &Response<'_>) -> Option<[u8; 3]> {
    let sense = response.sense;
    (sense.len() >= 14).then(|| [sense[2] & 0x0F, sense[12], sense[13]])
}

fn is_attention(response: &Response<'_>) -> bool {
    matches!(sense_of(response), Some([6, 0x29, _]))
}

/// What the client wrote: repetitions of one line, or a page of sectors of which it changed some.
fn data_out(record: &Value) -> Vec<u8> {
    let line = b"ibmvscsi-golden-0123456789abcdef\n";
    let lines = |bytes| line.iter().copied().cycle().take(bytes).collect::<Vec<u8>>();
    let mut data = lines(number(&record["len"]) as usize);
    if !text(record, "head").starts_with("69626d76") {
        data = (0x1280..0x1300).flat_map(sector).collect();
        data[0x8000..0x9000].copy_from_slice(&lines(0x1000));
    }
    assert_eq!(digest(&data), text(record, "sha256"));
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

/// Replays one run and gives what was seen, after all differences were held against the list.
fn seen(run: &str) -> Vec<(&'static str, u32)> {
    let replay = replay(run);
    let listed = DIFFERENCES.iter().filter(|(runs, ..)| runs.contains(run));
    let listed: BTreeSet<&str> = listed.map(|(_, what, _)| *what).collect();
    assert_eq!(replay.differences, listed, "each occurs where it is listed");
    replay.counts.into_iter().collect()
}

#[test]
fn run_a_is_answered_as_the_reference_server_does() {
    #[rustfmt::skip]
    let wanted = [
        ("INIT", 2), ("READs", 23), ("WRITEs", 5), ("connections over", 2), ("datagrams", 2), ("external tables", 2),
        ("failed READs", 7), ("kept from the server", 1), ("logins", 2), ("responses", 240), ("swallowed", 1),
    ];
    assert_eq!(seen("A"), wanted);
}

#[test]
fn run_b_with_fast_fail_and_capabilities_too() {
    #[rustfmt::skip]
    let wanted = [
        ("INIT", 1), ("READs", 1), ("connections over", 1), ("cut", 1), ("datagrams", 3), ("logins", 1),
        ("patched", 1), ("responses", 15),
    ];
    assert_eq!(seen("B"), wanted);
}
