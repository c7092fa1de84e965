//! The real client's trace (`data/ibmvscsi-capture.jsonl`, described in `data/README.md`): everything that
//! Linux's ibmvscsi sent in both runs is parsed and means what the trace says; our answers mean what the
//! reference server's did, except where [`DIFFERENCES`] says otherwise.

use std::collections::{BTreeMap, BTreeSet};

use lunar_scsi::sense::SenseKey;
use lunar_scsi::task_set::TaskManagementFunction;
use lunar_srp::descriptor::{DataBuffer, Descriptor};
use lunar_srp::iu::{self, Request as Iu, Residual, Response, encode_response, parse_response};
use lunar_srp::login::{Action as Channels, LoginForm, PortId};
use lunar_srp::wire::opcode;
use lunar_vscsi::adapter::{Action, Adapter, Event, State, Taken};
use lunar_vscsi::crq::{Entry, Incoming, IuKind, Request, TransportEvent};
use lunar_vscsi::descriptor::Window;
use lunar_vscsi::hcall::{Registered, Sent};
use lunar_vscsi::lun::{self, Address, Destination};
use lunar_vscsi::mad::{self, AdapterInformation, Mad, MadKind, MadStatus, OsType, Step};
use lunar_vscsi::mad::{PartitionName, ServerPartition};
use lunar_vscsi::response::{
    ManagementOutcome, Outcome, crq_status, management_code, residual_as_read,
};
use serde_json::Value;

/// Where we deliberately say something else than the reference server. Each must occur.
const DIFFERENCES: [(&str, &str); 4] = [
    (
        "MAD entry length",
        "the reference says 24 or 0; 16 is what is put back of a datagram, and what IBM's servers say",
    ),
    (
        "capability flags",
        "the reference clears them and so claims to know no list, which it has just answered",
    ),
    (
        "capability value",
        "the reference clears the level and the kind, which the client asked about; the support says no",
    ),
    (
        "short read",
        "the reference reports no residual for a short INQUIRY; ours does, where this client reads it",
    ),
];

/// The client's I/O window in both runs: what the first H_STUFF_TCE of each clears.
const WINDOW: Window = Window { address: 0, bytes: 512 * 4096 * 128 };

fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len() / 2)
        .map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).expect("hex"))
        .collect()
}

fn text<'a>(record: &'a Value, key: &str) -> &'a str {
    record[key].as_str().unwrap_or_else(|| panic!("no {key} in {record}"))
}

fn number(record: &Value, key: &str) -> u64 {
    record[key].as_u64().unwrap_or_else(|| panic!("no {key} in {record}"))
}

/// A number that the trace has in hexadecimal.
fn address(record: &Value, key: &str) -> u64 {
    u64::from_str_radix(text(record, key), 16).expect("hex")
}

fn entry(record: &Value) -> Entry {
    let word = |n: usize| {
        let word = record["words"][n].as_str().expect("a word");
        u64::from_str_radix(word, 16).expect("hex")
    };
    Entry::from_words(word(0), word(1))
}

/// What of a command the comparison of its answer needs.
#[derive(Clone, Copy, Debug)]
struct Command {
    tag: u64,
    operation_code: u8,
    /// INQUIRY: whether it asks for a page of vital product data.
    is_page: bool,
    offered_bytes: u32,
}

/// A request that the reference server has not answered yet.
enum Pending {
    Mad { mad: Mad, payload: Vec<u8> },
    Login(Vec<u8>),
    Command(Command),
    Management { tag: u64 },
}

/// Our adapter in the place of the reference server in one run of the trace.
struct Replay {
    adapter: Adapter,
    pending: BTreeMap<u64, Pending>,
    differences: BTreeSet<&'static str>,
    counts: BTreeMap<&'static str, u32>,
}

impl Replay {
    /// An adapter that says about itself what the reference server does.
    fn new() -> Self {
        let server = ServerPartition {
            name: PartitionName::new("qemu").expect("a name"),
            number: 0,
            os_type: OsType::LINUX,
            transfer_bytes_max: 0x20_0000,
            migration: false,
            reserve: false,
        };
        let mut adapter = Adapter::new(server, 22);
        adapter.on_event(Event::Enable, 0);
        adapter.on_event(Event::Registered(Registered::PartnerAbsent), 0);
        Self {
            adapter,
            pending: BTreeMap::new(),
            differences: BTreeSet::new(),
            counts: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn differs(&mut self, what: &'static str) {
        assert!(DIFFERENCES.iter().any(|(listed, _)| *listed == what), "{what} is not listed");
        self.differences.insert(what);
    }

    fn on(&mut self, event: Event) -> Vec<Action> {
        self.adapter.on_event(event, 0).into_iter().collect()
    }

    fn arrived(&mut self, incoming: Incoming) -> Vec<Action> {
        self.on(Event::Arrived(incoming))
    }

    fn replay(&mut self, record: &Value) {
        match text(record, "kind") {
            "hcall" if text(record, "op") == "H_FREE_CRQ" => {
                let event = TransportEvent::PartnerDeregistered;
                assert_eq!(Entry::transport(event).to_words().0 >> 48, 0xFF02);
                assert!(matches!(
                    self.arrived(Incoming::Transport(event))[..],
                    [Action::ConnectionOver(_)]
                ));
                assert!(self.pending.is_empty(), "the client leaves nothing open");
                self.count("H_FREE_CRQ");
            }
            // The trace is cut here: what was open was answered in the missing part.
            "note" => {
                for _ in 0..std::mem::take(&mut self.pending).len() {
                    self.adapter.answer_delta();
                    self.on(Event::RequestEnded);
                    self.count("cut");
                }
            }
            "crq" if text(record, "dir") == "c2s" => self.client_said(record),
            "crq" => self.server_said(record),
            _ => {}
        }
    }

    fn client_said(&mut self, record: &Value) {
        let entry = entry(record);
        if entry == Entry::INIT {
            assert_eq!(self.adapter.state(), State::WaitConnection);
            assert_eq!(
                self.arrived(entry.read()),
                [Action::Send(Entry::INIT_COMPLETE)],
                "and the reference server does so"
            );
            self.on(Event::Sent(Sent::Delivered));
            return self.count("INIT");
        }
        let Incoming::Request(request) = entry.read() else { panic!("{record}") };
        assert_eq!(request.iu_bytes, 256);
        assert_eq!(request.address, address(record, "iu_ioba"));
        assert_eq!(u64::from(request.timeout_s), number(record, "timeout_s"));
        assert_eq!(Entry::request(request), entry);
        assert!(WINDOW.holds(request.address, request.iu_bytes.into()));
        let iu = hex(text(record, "iu"));
        let decoded = &record["decoded"];
        check_iu(request, &iu, record);
        if record["swallowed"].as_bool() == Some(true) {
            return self.count("swallowed");
        }
        assert_eq!(self.arrived(entry.read()), [Action::Fetch(request)]);
        let pending = match self.adapter.on_iu(request.kind, &iu, 0) {
            Taken::Mad(mad, step) => self.take_mad(mad, step, record),
            Taken::Login(request, decision) => {
                assert_eq!(decision, Ok(()));
                let response = self.adapter.log_in(&request).expect("connected");
                let mut out = vec![0; 52];
                lunar_srp::login::encode_response(&response, &mut out).expect("fits");
                self.count("SRP_LOGIN_REQ");
                Pending::Login(out)
            }
            Taken::Command(head) => {
                self.count("SRP_CMD");
                let (mut data_out, mut data_in) = (DataBuffer::None, DataBuffer::None);
                assert!(head.read_buffers(None, &mut data_out, &mut data_in));
                Pending::Command(Command {
                    tag: head.tag(),
                    operation_code: head.cdb()[0],
                    is_page: head.cdb()[1] & 1 != 0,
                    offered_bytes: data_out.total_bytes() + data_in.total_bytes(),
                })
            }
            Taken::TaskManagement(management) => {
                self.count("SRP_TSK_MGMT");
                Pending::Management { tag: management.tag }
            }
            Taken::Nothing(_) => panic!("{decoded}"),
        };
        let earlier = self.pending.insert(number(record, "seq"), pending);
        assert!(earlier.is_none());
    }

    fn take_mad(&mut self, mad: Mad, step: Step, record: &Value) -> Pending {
        let payload = match step {
            Step::Answer(_) => Vec::new(),
            Step::Exchange { address, bytes } => {
                assert_eq!(mad.payload_address, Some(address));
                let before = hex(text(&record["buffer_before"], "hex"));
                assert_eq!(before.len(), usize::from(bytes));
                before
            }
        };
        self.count(match mad.kind {
            MadKind::AdapterInformation => "MAD_ADAPTER_INFO",
            MadKind::Capabilities => "MAD_CAPABILITIES",
            MadKind::EnableFastFail => "MAD_ENABLE_FAST_FAIL",
            other => panic!("{other:?}"),
        });
        Pending::Mad { mad, payload }
    }

    fn server_said(&mut self, record: &Value) {
        let entry = entry(record);
        if entry == Entry::INIT_COMPLETE {
            return self.count("INIT COMPLETE");
        }
        let theirs = entry.read_answer().unwrap_or_else(|| panic!("{record}"));
        assert!(theirs.status.is_ok());
        let pending = self.pending.remove(&number(record, "req_seq")).expect("a request");
        let iu = hex(text(record, "iu"));
        match pending {
            Pending::Mad { mad, payload } => {
                assert_eq!((theirs.kind, theirs.tag), (IuKind::Mad, mad.tag));
                self.answer_mad(mad, payload, &iu, record);
                let ours = mad.answer_entry().read_answer().expect("an answer");
                assert_eq!(
                    (ours.kind, ours.status, ours.tag),
                    (theirs.kind, theirs.status, theirs.tag)
                );
                if ours.iu_bytes != theirs.iu_bytes {
                    self.differs("MAD entry length");
                }
            }
            Pending::Login(ours) => {
                assert_eq!((theirs.kind, usize::from(theirs.iu_bytes)), (IuKind::Srp, ours.len()));
                assert_eq!(iu, ours, "the login response, byte by byte");
            }
            Pending::Command(command) => {
                let response = self.answer_srp(command.tag, theirs.iu_bytes, &iu);
                self.compare_response(command, &response, record);
            }
            Pending::Management { tag } => {
                let response = self.answer_srp(tag, theirs.iu_bytes, &iu);
                // A reset that was done, and an abort of a command that never came.
                let code = Some(management_code(ManagementOutcome::NoSuchTask));
                assert_eq!((response.response_code, response.status), (code, 0));
                assert_eq!(code, Some(management_code(ManagementOutcome::Complete)));
            }
        }
        assert_eq!(self.on(Event::AnswerSent(Sent::Delivered)), []);
        assert_eq!(self.on(Event::RequestEnded), []);
    }

    fn answer_mad(&mut self, mad: Mad, mut payload: Vec<u8>, iu: &[u8], record: &Value) {
        let status = self.adapter.answer_mad(&mad, &mut payload);
        assert_eq!(status, MadStatus::Success);
        assert_eq!(iu[..mad::HEADER_BYTES], mad.answer_header(status), "the header, byte by byte");
        assert_eq!(mad::parse_answer(iu), Some((0, mad.tag)));
        match mad.kind {
            MadKind::EnableFastFail => assert!(self.adapter.fast_fail()),
            MadKind::AdapterInformation => {
                assert_eq!(self.adapter.client(), OsType::LINUX);
                assert_eq!(payload, hex(text(&record["buffer_after"], "hex")));
            }
            _ => self.compare_capabilities(&payload, &hex(text(&record["buffer_after"], "hex"))),
        }
    }

    fn compare_capabilities(&mut self, ours: &[u8], theirs: &[u8]) {
        assert_eq!(ours.len(), theirs.len());
        if ours[..4] != theirs[..4] {
            self.differs("capability flags");
        }
        assert_eq!(ours[4..68], theirs[4..68], "name and location");
        for (ours, theirs) in ours[68..].chunks(12).zip(theirs[68..].chunks(12)) {
            assert_eq!(ours[..8], theirs[..8], "type, length and support");
            if ours[8..] != theirs[8..] {
                self.differs("capability value");
            }
        }
    }

    /// Reads the reference server's SRP_RSP and encodes the same one: the bytes must be the same, and so must
    /// the credit that we would give.
    fn answer_srp<'a>(&mut self, tag: u64, iu_bytes: u16, iu: &'a [u8]) -> Response<'a> {
        let response = parse_response(iu).expect("a response");
        assert_eq!(response.tag, tag);
        assert_eq!(response.request_limit_delta, self.adapter.answer_delta());
        let mut out = [0; 256];
        let bytes = encode_response(&response, &mut out).expect("fits");
        assert_eq!(bytes, usize::from(iu_bytes));
        assert_eq!(out[..bytes], iu[..bytes]);
        response
    }

    fn compare_response(&mut self, command: Command, response: &Response<'_>, record: &Value) {
        let decoded = &record["decoded"];
        assert_eq!(format!("{:02x}", response.status), text(decoded, "status"));
        assert_eq!(response.sense.len() as u64, number(decoded, "sense_len"));
        // This run's errors are no path failures, with fast-fail (run B) or without.
        let outcome = Outcome {
            operation_code: command.operation_code,
            status: lunar_scsi::status::Status::from_code(response.status).expect("a status"),
            sense_key: response.sense.get(2).and_then(|byte| sense_key(byte & 0x0F)),
            residual: response.data_in_residual,
            offered_bytes: command.offered_bytes,
        };
        assert!(crq_status(&outcome, self.adapter.fast_fail()).is_ok());
        self.count(match response.status {
            0 => "GOOD",
            _ => "CHECK CONDITION",
        });
        // INQUIRY's data says its own length.
        if command.operation_code == 0x12 && response.status == 0 {
            self.compare_inquiry(command, response, record);
        }
    }

    fn compare_inquiry(&mut self, command: Command, response: &Response<'_>, record: &Value) {
        let data = record["data_in"]["hex"].as_str().or(record["data_in"]["head"].as_str());
        let data = hex(data.unwrap_or_else(|| panic!("no data in {record}")));
        // Pages have their length at byte 3, standard data at byte 4.
        let there = if command.is_page { 4 + u32::from(data[3]) } else { 5 + u32::from(data[4]) };
        let residual = Residual::between(there.min(command.offered_bytes), command.offered_bytes);
        assert_eq!(response.data_in_residual, Residual::None);
        if residual_as_read(residual, self.adapter.client()) != response.data_in_residual {
            assert_eq!(
                residual_as_read(residual, self.adapter.client()),
                Residual::Over(command.offered_bytes - there)
            );
            self.differs("short read");
        }
    }
}

/// The keys that occur in the trace, and the one that would be a path failure.
fn sense_key(code: u8) -> Option<SenseKey> {
    let keys = [
        SenseKey::NotReady,
        SenseKey::HardwareError,
        SenseKey::IllegalRequest,
        SenseKey::UnitAttention,
        SenseKey::AbortedCommand,
    ];
    let found = keys.into_iter().find(|key| *key as u8 == code);
    assert!(found.is_some(), "sense key {code}");
    found
}

/// Parses one unit of the client's and holds it against what the trace says about it.
fn check_iu(request: Request, iu: &[u8], record: &Value) {
    let decoded = &record["decoded"];
    let tag = u64::from_str_radix(text(decoded, "tag"), 16).expect("hex");
    match text(decoded, "op") {
        op if op.starts_with("MAD_") => {
            assert_eq!(request.kind, IuKind::Mad);
            let mad = Mad::parse(iu).expect("a datagram");
            assert_eq!(mad.tag, tag);
            assert_eq!(u64::from(mad.payload_bytes), number(decoded, "length"));
            let mut out = [0; 24];
            mad.encode(&mut out).expect("fits");
            assert_eq!(out, iu[..24]);
            if mad.kind != MadKind::EnableFastFail {
                assert_eq!(mad.payload_address, Some(address(decoded, "buffer")));
            }
            if mad.kind == MadKind::AdapterInformation {
                check_client(&hex(text(&record["buffer_before"], "hex")));
            }
        }
        "SRP_LOGIN_REQ" => {
            let login = lunar_vscsi::login::parse(iu).expect("a login");
            assert_eq!((login.form, login.tag), (LoginForm::InfiniBand, tag));
            assert_eq!(u64::from(login.it_iu_bytes), number(decoded, "req_it_iu_len"));
            assert_eq!(format!("{:04x}", login.formats), text(decoded, "req_buf_fmt"));
            assert_eq!(login.action, Channels::Single);
            assert_eq!(
                (login.initiator_port, login.target_port),
                (PortId([0; 16]), PortId([0; 16]))
            );
            assert_eq!(lunar_vscsi::login::decide(&login, false), Ok(()));
        }
        "SRP_CMD" => check_command(iu, tag, record),
        "SRP_TSK_MGMT" => {
            assert_eq!(iu[0], opcode::TASK_MANAGEMENT);
            let Ok(Iu::TaskManagement(management)) = iu::parse(iu) else { panic!("{decoded}") };
            assert_eq!(management.tag, tag);
            assert_eq!(management.lun.to_vec(), hex(text(decoded, "lun")));
            let function = match text(decoded, "func") {
                "LUN_RESET" => TaskManagementFunction::LogicalUnitReset,
                "ABORT_TASK" => TaskManagementFunction::AbortTask,
                other => panic!("{other}"),
            };
            assert_eq!(management.function, Some(function));
            assert_eq!(management.task_tag, address(decoded, "task_tag"));
        }
        other => panic!("{other}"),
    }
}

/// What CLIENT 2 says of Linux's adapter information.
fn check_client(payload: &[u8]) {
    let client = AdapterInformation::from_bytes(payload).expect("whole");
    assert_eq!(client.partition_name.as_bytes(), b"UNKNOWN");
    assert_eq!((client.partition_number, client.mad_version), (u32::MAX, 1));
    assert_eq!((&client.srp_version, client.os_type), (b"16.a\0\0\0\0", OsType::LINUX));
    assert_eq!(client.to_bytes().to_vec(), payload);
}

fn check_command(iu: &[u8], tag: u64, record: &Value) {
    let decoded = &record["decoded"];
    let Ok(Iu::Command(command)) = iu::parse(iu) else { panic!("{decoded}") };
    assert_eq!(command.tag, tag);
    assert_eq!(command.lun.to_vec(), hex(text(decoded, "lun")));
    assert_eq!(command.cdb.to_vec(), hex(text(decoded, "cdb")));
    let Some(Destination::Unit(unit)) = lun::decode(command.lun) else { panic!("{decoded}") };
    assert_eq!(lun::encode(unit), Some(command.lun));
    assert_eq!(Address::from_number(unit).number(), Some(unit));

    let buffer = match (command.data_out, command.data_in) {
        (buffer, DataBuffer::None) | (DataBuffer::None, buffer) => buffer,
        both => panic!("{both:?}"),
    };
    assert_eq!(WINDOW.check(&buffer, iu), Ok(()));
    let (buffer, list) = match (buffer, record["ext_table"].as_str()) {
        (DataBuffer::External { table, .. }, Some(list)) => {
            let list = hex(list);
            assert_eq!(table.address, address(&decoded["table"], "va"));
            assert_eq!(list.len(), table.length as usize);
            (buffer.fetched(&list).expect("sound"), list)
        }
        (DataBuffer::External { .. }, None) => panic!("{decoded}"),
        _ => (buffer, iu.to_vec()),
    };
    if let (DataBuffer::Indirect { table, inline_offset: 68, .. }, None) =
        (buffer, record["ext_table"].as_str())
    {
        // CLIENT 2: the table of a list that is all inlined is named at IU + 44h.
        assert_eq!(table.address, address(record, "iu_ioba") + 0x44);
    }
    assert_eq!(WINDOW.check(&buffer, &list), Ok(()));
    let ranges: Vec<Descriptor> = buffer.descriptors(&list).collect();
    assert!(ranges.iter().all(|range| range.key == 0));
    if let Some(wanted) = record["data_desc"].as_array() {
        let wanted: Vec<(u64, u64)> = wanted
            .iter()
            .map(|range| {
                let address = range[0].as_str().expect("an address");
                let address = u64::from_str_radix(address, 16).expect("hex");
                (address, range[1].as_u64().expect("a length"))
            })
            .collect();
        let found: Vec<(u64, u64)> =
            ranges.iter().map(|range| (range.address, range.length.into())).collect();
        assert_eq!(found, wanted);
    }
    let total = decoded["data_len"].as_u64().unwrap_or(0);
    assert_eq!(u64::from(buffer.total_bytes()), total, "{decoded}");
    let copied: u64 = lunar_vscsi::descriptor::copies(&buffer, &list, 0, u32::MAX)
        .map(|copy| u64::from(copy.bytes))
        .sum();
    assert_eq!(copied, total);
}

/// Replays one run; gives what of it was seen.
fn replay(run: &str) -> Replay {
    let trace = include_str!("data/ibmvscsi-capture.jsonl");
    let mut replay = Replay::new();
    let mut cut = false;
    for line in trace.lines() {
        let record: Value = serde_json::from_str(line).expect("JSON");
        if text(&record, "run") != run {
            continue;
        }
        cut |= text(&record, "kind") == "note";
        replay.replay(&record);
    }
    assert_eq!(cut, run == "B");
    assert!(replay.pending.is_empty(), "every request was answered");
    assert_eq!(replay.adapter.state(), State::WaitConnection, "rmmod freed the queue");
    replay
}

#[test]
fn run_a_every_byte_of_the_client_is_understood_and_answered_as_the_reference_server_does() {
    let replay = replay("A");
    let counts: Vec<(&str, u32)> = replay.counts.into_iter().collect();
    #[rustfmt::skip]
    let seen = [
        ("CHECK CONDITION", 44), ("GOOD", 194), ("H_FREE_CRQ", 2), ("INIT", 2), ("INIT COMPLETE", 2),
        ("MAD_ADAPTER_INFO", 2), ("SRP_CMD", 238), ("SRP_LOGIN_REQ", 2), ("SRP_TSK_MGMT", 2),
        ("swallowed", 1),
    ];
    assert_eq!(counts, seen);
    assert_eq!(Vec::from_iter(replay.differences), ["MAD entry length", "short read"]);
}

#[test]
fn run_b_fast_fail_and_capabilities_too() {
    let replay = replay("B");
    let counts: Vec<(&str, u32)> = replay.counts.into_iter().collect();
    #[rustfmt::skip]
    let seen = [
        ("GOOD", 15), ("H_FREE_CRQ", 1), ("INIT", 1), ("INIT COMPLETE", 1), ("MAD_ADAPTER_INFO", 1),
        ("MAD_CAPABILITIES", 1), ("MAD_ENABLE_FAST_FAIL", 1), ("SRP_CMD", 16), ("SRP_LOGIN_REQ", 1),
        ("cut", 1),
    ];
    assert_eq!(counts, seen);
    let mut listed: Vec<&str> = DIFFERENCES.iter().map(|(what, _)| *what).collect();
    listed.sort_unstable();
    assert_eq!(Vec::from_iter(replay.differences), listed);
}
