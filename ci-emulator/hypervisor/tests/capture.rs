//! The real client's trace (described with `lunar-vscsi`'s tests) through the emulated hypervisor: its TCEs map
//! its memory, its units and tables lie where it put them, and a server takes each of them through the window.

mod server;

use std::collections::BTreeMap;

use lunar_hypervisor::{ClientPartition, EmulatedHypervisor, SERVER_MAY_WRITE, pair};
use lunar_pcie::Segment;
use lunar_platform::{Hypervisor, HypervisorEvent, HypervisorOperation, HypervisorRequest, Sge};
use lunar_vscsi::adapter::{Reason, State};
use lunar_vscsi::crq::Entry;
use lunar_vscsi::hcall::code;
use serde_json::Value;
use server::{Server, ServerMemory, UNIT};

/// The guest's memory and window, as the trace has them.
const MEMORY_BYTES: usize = 512 << 20;
const WINDOW_BYTES: u64 = 256 << 20;
const PAGE: u64 = 4096;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).expect("hex"))
        .collect()
}

fn text<'a>(record: &'a Value, key: &str) -> &'a str {
    record[key].as_str().unwrap_or_else(|| panic!("no {key} in {record}"))
}

fn parse_hex(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().expect("text"), 16).expect("hex")
}

fn address(record: &Value, key: &str) -> u64 {
    parse_hex(&record[key])
}

/// The client's side of one run.
struct Replay {
    client: ClientPartition,
    server: Server<EmulatedHypervisor>,
    /// A byte of the server's, to try a copy with.
    byte: Sge,
    /// The client's own knowledge of what it mapped.
    tces: BTreeMap<u64, u64>,
    queue: u64,
    entries: u64,
    read: u64,
    counts: BTreeMap<&'static str, u32>,
}

impl Replay {
    fn new() -> Self {
        let (client, end) = pair(UNIT, MEMORY_BYTES, WINDOW_BYTES).expect("a pair");
        let mut memory = ServerMemory::new();
        let place = memory.space.register(&Segment::anonymous(1).expect("memory"));
        let byte = Sge { address: place.base, length: 1, key: place.key };
        let hypervisor = EmulatedHypervisor::new(memory.space.clone(), vec![end]);
        let mut server = Server::new(hypervisor.expect("a hypervisor"), memory);
        server.enable();
        Self {
            client,
            server,
            byte,
            tces: BTreeMap::new(),
            queue: 0,
            entries: 0,
            read: 0,
            counts: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn real(&self, address: u64) -> u64 {
        (self.tces[&(address / PAGE)] & !(PAGE - 1)) + address % PAGE
    }

    /// The client writes to its own memory at an I/O address.
    fn write(&self, address: u64, bytes: &[u8]) {
        for (at, byte) in (address..).zip(bytes) {
            assert!(self.client.memory().write(self.real(at), &[*byte]));
        }
    }

    /// The next entry of the client's queue, whose slot becomes free.
    fn entry(&mut self) -> Option<Entry> {
        let place = self.real(self.queue + self.read % self.entries * 16);
        let mut bytes = [0; 16];
        assert!(self.client.memory().read(place, &mut bytes));
        if bytes[0] == 0 {
            return None;
        }
        self.client.memory().write(place, &[0]);
        self.read += 1;
        Some(Entry::from_bytes(bytes))
    }

    /// The return code of copying a byte to or from the client.
    fn copy(&mut self, client_address: u64, to_client: bool) -> i64 {
        let local = self.byte;
        let operation = if to_client {
            HypervisorOperation::CopyOut { local, client_address }
        } else {
            HypervisorOperation::CopyIn { client_address, local }
        };
        let request = HypervisorRequest { id: u64::MAX, unit: UNIT, operation };
        self.server.hypervisor.submit(request).expect("room");
        let mut events = [HypervisorEvent::Returned { id: 0, unit: UNIT, code: 0 }];
        assert_eq!(self.server.hypervisor.poll(&mut events), 1);
        match events[0] {
            HypervisorEvent::Returned { id: u64::MAX, code, .. } => code,
            other => panic!("{other:?}"),
        }
    }

    fn replay(&mut self, record: &Value) {
        match text(record, "kind") {
            "tce" => self.map(record),
            "hcall" => self.hcall(record),
            "crq" if text(record, "dir") == "c2s" && record["swallowed"].is_null() => {
                self.send(record);
            }
            _ => {}
        }
    }

    fn map(&mut self, record: &Value) {
        let place = address(record, "ioba");
        match text(record, "op") {
            "H_PUT_TCE" => self.put(place, &[address(record, "tce")]),
            "H_PUT_TCE_INDIRECT" => {
                let list = record["tces"].as_array().expect("a list");
                let tces: Vec<u64> = list.iter().map(parse_hex).collect();
                self.put(place, &tces);
            }
            "H_STUFF_TCE" => {
                let count = record["n"].as_u64().expect("a number");
                let step = record["step"].as_str().map_or(0, |_| address(record, "step"));
                for n in 0..record["repeat"].as_u64().unwrap_or(1) {
                    let tce = address(record, "tce");
                    let first = place + n * step;
                    assert_eq!(self.client.stuff_tce(first, tce, count), 0);
                    for page in 0..count {
                        self.tces.insert(first / PAGE + page, tce);
                    }
                }
            }
            other => panic!("{other}"),
        }
    }

    fn put(&mut self, place: u64, tces: &[u64]) {
        assert_eq!(self.client.put_tces(place, tces), 0);
        self.tces.extend((place / PAGE..).zip(tces.iter().copied()));
    }

    fn hcall(&mut self, record: &Value) {
        let returned = match text(record, "op") {
            "H_REG_CRQ" => {
                self.queue = address(record, "queue_ioba");
                let bytes = record["queue_len"].as_u64().expect("a length");
                (self.entries, self.read) = (bytes / 16, 0);
                self.write(self.queue, &vec![0; bytes as usize]);
                self.client.register_queue(self.queue, bytes)
            }
            "H_FREE_CRQ" => {
                let returned = self.client.free_queue();
                self.server.run();
                assert_eq!(self.server.over.pop(), Some(Reason::PartnerDeregistered));
                assert_eq!(self.server.state(), State::WaitConnection);
                returned
            }
            "H_VIO_SIGNAL" => self.client.signal(record["mode"] == 1),
            other => panic!("{other}"),
        };
        assert_eq!(Some(returned), record["rc"].as_i64(), "{record}");
    }

    fn send(&mut self, record: &Value) {
        let word = |n: usize| parse_hex(&record["words"][n]);
        let entry = Entry::from_words(word(0), word(1));
        if entry == Entry::INIT {
            assert_eq!(self.client.send(entry.to_bytes()), code::SUCCESS);
            self.server.run();
            assert_eq!(self.entry(), Some(Entry::INIT_COMPLETE));
            return;
        }
        let decoded = &record["decoded"];
        self.write(address(record, "iu_ioba"), &hex(text(record, "iu")));
        if record["buffer_before"].is_object() {
            let before = hex(text(&record["buffer_before"], "hex"));
            self.write(address(decoded, "buffer"), &before);
        }
        if record["ext_table"].is_string() {
            let place = address(&decoded["table"], "va");
            self.write(place, &hex(text(record, "ext_table")));
            assert_eq!(self.copy(place, false), code::SUCCESS);
            self.count("external tables");
        }
        self.try_data(record);
        assert_eq!(self.client.send(entry.to_bytes()), code::SUCCESS);
        self.server.run();
        assert_eq!(self.server.over, [], "{decoded}");
        let answer = self.entry().and_then(Entry::read_answer).expect("an answer");
        assert_eq!(answer.tag, address(decoded, "tag"));
        assert!(answer.status.is_ok());
        assert_eq!(self.entry(), None, "one answer a request");
        self.count("answers");
    }

    /// CLIENT 2: pages are mapped for reading only where data go out, and for both otherwise; and before the
    /// command is sent.
    fn try_data(&mut self, record: &Value) {
        let Some(ranges) = record["data_desc"].as_array() else { return };
        let goes_out = record["decoded"]["dir"] == "out";
        for range in ranges {
            let first = parse_hex(&range[0]);
            let last = first + range[1].as_u64().expect("a length") - 1;
            for place in [first, last] {
                assert_eq!(self.copy(place, false), code::SUCCESS, "{record}");
                let writable = self.tces[&(place / PAGE)] & SERVER_MAY_WRITE != 0;
                assert_eq!(writable, !goes_out);
                let expected = if writable { code::SUCCESS } else { code::DEST_PARM };
                assert_eq!(self.copy(place, true), expected);
            }
            self.count(if goes_out { "data-out ranges" } else { "data-in ranges" });
        }
    }
}

fn replay(run: &str) -> BTreeMap<&'static str, u32> {
    let trace = include_str!("../../../dpu-firmware/vscsi/tests/data/ibmvscsi-capture.jsonl");
    let mut replay = Replay::new();
    for line in trace.lines() {
        let record: Value = serde_json::from_str(line).expect("JSON");
        if text(&record, "run") == run {
            replay.replay(&record);
        }
    }
    assert_eq!(replay.server.state(), State::WaitConnection);
    replay.counts
}

#[test]
fn run_a_through_the_clients_own_tces() {
    let counts: Vec<(&str, u32)> = replay("A").into_iter().collect();
    let seen = [
        ("answers", 244),
        ("data-in ranges", 230),
        ("data-out ranges", 24),
        ("external tables", 2),
    ];
    assert_eq!(counts, seen);
}

#[test]
fn run_b_through_the_clients_own_tces() {
    let counts: Vec<(&str, u32)> = replay("B").into_iter().collect();
    assert_eq!(counts, [("answers", 20), ("data-in ranges", 13)]);
}
