//! Reservations through a whole agent, where something is in their way: many registrants, no room, damaged files.

mod board;

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use board::{Board, Card, PATIENCE, Polled, Rings, unit};
use lunar_agent::api::wire;
use lunar_core::reservations::{REGISTRATIONS_MAX, TransportId};
use lunar_offload_proto::control::{self, FRAME_BYTES_MAX, to_card, to_host};
use lunar_offload_proto::ring::{BlockRequest, Operation, Outcome, SideRecord, SubmissionEntry};
use prost::Message as _;

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const REPLACE_LOST: u8 = 8;
const WRITE_EXCLUSIVE: u8 = 1;
const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;
const READ_KEYS: u8 = 0;
const READ_FULL_STATUS: u8 = 3;

/// Status, and sense key with ASC and ASCQ.
type Ended = (u8, (u8, u8, u8));
const GOOD: Ended = (0, (0, 0, 0));
const CONFLICT: Ended = (0x18, (0, 0, 0));
const INSUFFICIENT_REGISTRATION_RESOURCES: Ended = (2, (5, 0x55, 4));
const INFORMATION_LOST: Ended = (2, (7, 0x44, 1));

const CONFIGURATION: &str = "
HANDLER vdisk_nullio {
    DEVICE disk {
        size_mb 16
        lunar_backend host
    }
}
TARGET_DRIVER ib_srpt {
    TARGET t {
        LUN 0 disk
        enabled 1
    }
}
";

/// A card with a disk of the agent behind it.
struct Bench {
    board: Board,
    card: Card,
    rings: Rings,
    disk: u32,
    /// The newest configuration.
    configuration: control::Configuration,
    epoch: u64,
    token: u64,
    nexuses: u32,
    last_beat: Instant,
}

/// The port identifier of a nexus, which are numbered from 1.
fn port(nexus: u32) -> Vec<u8> {
    let mut port = vec![0xE0; 16];
    port[12..].copy_from_slice(&nexus.to_be_bytes());
    port
}

impl Bench {
    fn start(nexuses: u32) -> Self {
        let board = Board::start(CONFIGURATION);
        let mut card = Card::connect(&board);
        let (setup, configuration) = card.meet(41, false);
        let rings = Rings::open(&board, &setup);
        let disk = unit(&configuration, "disk");
        let last_beat = Instant::now();
        let (epoch, token) = (41, 0);
        let mut bench =
            Self { board, card, rings, disk, configuration, epoch, token, nexuses, last_beat };
        bench.log_in();
        bench
    }

    fn log_in(&mut self) {
        for nexus in 1..=self.nexuses {
            self.card.send(to_host::Message::NexusEvent(control::NexusEvent {
                kind: control::NexusEventKind::Login.into(),
                // The scripted card has had 3 already.
                nexus: nexus + 100,
                nexus_generation: 1,
                target: 1,
                initiator_port_id: port(nexus),
                peer: format!("fe80::{nexus:x}"),
                channels: 1,
                ..control::NexusEvent::default()
            }));
        }
    }

    /// The next agent, with the same card.
    fn replace_agent(&mut self) {
        self.board.replace_agent();
        self.card = Card::connect(&self.board);
        (_, self.configuration) = self.card.meet(self.epoch, true);
        self.log_in();
    }

    /// Brings in force what the agent sends, and shows that the card lives.
    fn turn(&mut self) {
        match self.card.poll() {
            Polled::Message(to_card::Message::Configuration(configuration)) => {
                let generation = configuration.generation;
                self.configuration = configuration;
                let applied = control::ConfigurationApplied { generation };
                self.card.send(to_host::Message::ConfigurationApplied(applied));
            }
            Polled::Message(other) => panic!("unexpected: {other:?}"),
            Polled::Nothing => {}
            Polled::Closed => panic!("the agent closed the channel: {}", self.board.log()),
        }
        if self.last_beat.elapsed() > Duration::from_millis(500) {
            self.last_beat = Instant::now();
            self.card.send(to_host::Message::Heartbeat(control::Heartbeat::default()));
        }
        std::thread::yield_now();
    }

    /// A command of `nexus` from its submission to its end; with parameter data.
    fn command(&mut self, nexus: u32, cdb: &[u8], list: &[u8]) -> (Ended, Vec<u8>) {
        self.token += 1;
        let mut entry = SubmissionEntry::new(Operation::Read, self.token);
        BlockRequest::Forward { data_out: !list.is_empty() }.encode(&mut entry);
        entry.unit = self.disk.into();
        entry.nexus = (nexus + 100).into();
        entry.nexus_generation = 1.into();
        entry.configuration_generation = self.configuration.generation.into();
        entry.data_offset = 8192.into();
        let length = if list.is_empty() { 65_535 } else { u32::try_from(list.len()).unwrap() };
        entry.data_bytes = length.into();
        assert!(self.rings.arena.write(8192, list));
        let mut side = SideRecord::empty();
        side.set_cdb(cdb).unwrap();
        self.rings.submissions.push(entry, Some(&side)).unwrap();
        assert!(self.rings.submissions.publish());
        self.rings.hint();
        let start = Instant::now();
        let entry = loop {
            self.turn();
            if let Some(entry) = self.rings.completions.pop().unwrap() {
                break entry;
            }
            assert!(start.elapsed() < PATIENCE, "no completion");
        };
        assert_eq!((entry.token.get(), entry.outcome()), (self.token, Outcome::Forwarded));
        let mut sense = (0, 0, 0);
        if entry.sense_bytes.get() > 0 {
            self.rings.completions.read_side(entry.sequence.get(), &mut side);
            let bytes = side.sense().unwrap();
            sense = (bytes[2], bytes[12], bytes[13]);
        }
        self.rings.completions.release();
        let mut data = vec![0; entry.transferred_bytes.get() as usize];
        assert!(self.rings.arena.read(8192, &mut data));
        ((entry.status, sense), data)
    }

    fn out(&mut self, nexus: u32, action: u8, kind: u8, keys: (u64, u64)) -> Ended {
        const APTPL: u8 = 1;
        let mut list = [keys.0.to_be_bytes(), keys.1.to_be_bytes(), [0; 8]].concat();
        list[20] = APTPL;
        self.command(nexus, &[0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0], &list).0
    }

    fn register(&mut self, nexus: u32, key: u64) -> Ended {
        self.out(nexus, REGISTER, 0, (0, key))
    }

    /// PERSISTENT RESERVE IN with an allocation length.
    fn read(&mut self, action: u8, allocation: u16) -> (Ended, Vec<u8>) {
        let [high, low] = allocation.to_be_bytes();
        self.command(1, &[0x5E, action, 0, 0, 0, 0, 0, high, low, 0], &[])
    }

    fn keys(&mut self) -> Vec<u64> {
        let (ended, data) = self.read(READ_KEYS, 65_535);
        assert_eq!(ended, GOOD);
        let keys = data[8..].as_chunks().0;
        assert_eq!(be32(&data[4..]) as usize, data.len() - 8);
        keys.iter().map(|key| u64::from_be_bytes(*key)).collect()
    }

    /// `import` in place of what is there; nothing clears it.
    fn change(&mut self, import: &[u8]) -> Result<wire::ReservationsReply, String> {
        let request =
            wire::ChangeReservationsRequest { device: "disk".to_owned(), import: import.to_vec() };
        let path = self.board.path("api");
        let asking = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut api = lunar_agent::api::connect(&path).await.unwrap();
                let reply = api.change_reservations(request).await;
                reply.map(tonic::Response::into_inner).map_err(|s| s.message().to_owned())
            })
        });
        while !asking.is_finished() {
            self.turn();
        }
        asking.join().unwrap()
    }

    fn access(&self) -> (u32, usize) {
        let units = &self.configuration.units;
        let unit = units.iter().find(|unit| unit.handle == self.disk).unwrap();
        unit.access.as_ref().map_or((0, 0), |table| (table.others, table.named.len()))
    }
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(*bytes.first_chunk().unwrap())
}

#[test]
fn a_thousand_registrants_are_read_enforced_and_there_after_a_restart() {
    const COUNT: u32 = 1000;
    let mut bench = Bench::start(COUNT);
    for nexus in 1..=COUNT {
        assert_eq!(bench.register(nexus, u64::from(nexus)), GOOD);
    }
    let all: Vec<u64> = (1..=u64::from(COUNT)).collect();
    assert_eq!(bench.keys(), all);

    // SPC-4 6.15.1: what does not fit is cut, and the lengths are those of the whole.
    let (ended, whole) = bench.read(READ_FULL_STATUS, 65_535);
    assert_eq!((ended, whole.len()), (GOOD, 8 + 48 * COUNT as usize));
    for allocation in [0, 7, 8, 100] {
        let (ended, data) = bench.read(READ_FULL_STATUS, allocation);
        assert_eq!((ended, &data[..]), (GOOD, &whole[..usize::from(allocation)]));
    }
    assert_eq!(be32(&whole[4..]), 48 * COUNT);

    let kind = WRITE_EXCLUSIVE_REGISTRANTS_ONLY;
    assert_eq!(bench.out(7, RESERVE, kind, (7, 0)), GOOD);
    let enforced = (2, COUNT as usize);
    assert_eq!(bench.access(), enforced);
    let bytes = bench.configuration.encoded_len();
    assert!(bytes > 4 * FRAME_BYTES_MAX, "{bytes} bytes take a few frames");

    bench.replace_agent();
    assert_eq!(bench.access(), enforced);
    assert_eq!(bench.keys(), all);
    let (_, data) = bench.read(READ_FULL_STATUS, 65_535);
    const HOLDER: usize = 12;
    let holders: Vec<_> =
        data[8..].as_chunks::<48>().0.iter().filter(|one| one[HOLDER] == 1).collect();
    assert_eq!(holders.len(), 1);
    assert_eq!(holders[0][32..], port(7));
}

#[test]
fn one_registrant_more_than_there_is_room_for_changes_nothing() {
    let mut bench = Bench::start(2);
    let line = |number: u16| {
        let id =
            TransportId::srp([number.to_be_bytes(), [9; 2]].concat().repeat(4).try_into().unwrap());
        let hex: String = id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("registrant 1 {number:016x} 0 24 {hex}\n")
    };
    let count = u16::try_from(REGISTRATIONS_MAX).unwrap();
    let text = |count| format!("version 1\n{}", (1..=count).map(line).collect::<String>());
    let reply = bench.change(text(count).as_bytes()).unwrap();
    assert!(reply.in_force);
    assert_eq!(reply.registrations.len(), REGISTRATIONS_MAX);
    assert_eq!(bench.register(1, 0xA1), INSUFFICIENT_REGISTRATION_RESOURCES);
    assert_eq!(bench.keys().len(), REGISTRATIONS_MAX);
    let refused = bench.change(text(count + 1).as_bytes()).unwrap_err();
    assert!(refused.contains("device disk") && refused.contains("more than 4096"), "{refused}");
    assert_eq!(bench.keys().len(), REGISTRATIONS_MAX);
    let less = text(count - 1);
    assert!(bench.change(less.as_bytes()).unwrap().in_force);
    assert_eq!(bench.register(1, 0xA1), GOOD);
}

/// SPC-4 6.16.1 and 6.16.3.
#[test]
fn parameter_lists_that_lie_about_their_length_change_nothing() {
    const LIST_LENGTH_ERROR: Ended = (2, (5, 0x1A, 0));
    const INVALID_FIELD_IN_PARAMETER_LIST: Ended = (2, (5, 0x26, 0));
    const SPEC_I_PT: u8 = 8;
    let mut bench = Bench::start(1);
    assert_eq!(bench.register(1, 0xA1), GOOD);
    let plain = [0xA1_u64.to_be_bytes(), 0xB2_u64.to_be_bytes(), [0; 8]].concat();
    let mut listed = [&plain[..], &[0, 0, 0, 24], &[0; 24]].concat();
    (listed[20], listed[28]) = (SPEC_I_PT, 4);
    let with = |byte: usize, value: u8| {
        let mut list = listed.clone();
        list[byte] = value;
        list
    };
    for (told, list, expected) in [
        (24, plain[..10].to_vec(), LIST_LENGTH_ERROR),
        (10, plain.clone(), LIST_LENGTH_ERROR),
        (25, plain.clone(), LIST_LENGTH_ERROR),
        (u32::MAX, plain.clone(), LIST_LENGTH_ERROR),
        // Longer than any list that is looked at.
        (70_000, vec![0; 70_000], LIST_LENGTH_ERROR),
        // Of TransportIDs: more than there are, cut, and of no protocol.
        (52, with(27, 25), LIST_LENGTH_ERROR),
        (52, with(27, 20), LIST_LENGTH_ERROR),
        (52, with(28, 3), INVALID_FIELD_IN_PARAMETER_LIST),
    ] {
        let mut cdb = [0x5F, REGISTER, 0, 0, 0, 0, 0, 0, 0, 0];
        cdb[5..9].copy_from_slice(&told.to_be_bytes());
        let bytes = list.len();
        assert_eq!(bench.command(1, &cdb, &list).0, expected, "{told} of {bytes} bytes");
    }
    assert_eq!(bench.keys(), [0xA1]);
    assert_eq!(bench.read(READ_FULL_STATUS, 65_535).1[..4], [0, 0, 0, 1], "PRGENERATION");
}

/// Registers while `obstacle` is in the way, and again when `remove` has taken it away.
fn refused_and_then_not(obstacle: fn(&Board), remove: fn(&Board), reason: &str) {
    let mut bench = Bench::start(3);
    assert_eq!(bench.register(1, 0xA1), GOOD);
    assert_eq!(bench.out(1, RESERVE, WRITE_EXCLUSIVE, (0xA1, 0)), GOOD);
    obstacle(&bench.board);
    assert_eq!(bench.register(2, 0xB2), INSUFFICIENT_REGISTRATION_RESOURCES);
    let log = bench.board.log();
    let told = log.lines().find(|line| line.contains("reservations-not-kept")).expect("logged");
    let path = bench.board.path("pr/disk");
    for words in ["ERROR", "device disk", path.to_str().unwrap(), reason, "--pr-dir"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    // Nothing has changed, for this agent and for the card.
    assert_eq!(bench.keys(), [0xA1]);
    assert_eq!(bench.access(), (2, 1));
    assert_eq!(bench.register(3, 0xC3), INSUFFICIENT_REGISTRATION_RESOURCES);
    // The management hears it too.
    let refused = bench.change(b"").unwrap_err();
    assert!(refused.contains(path.to_str().unwrap()) && refused.contains(reason), "{refused}");
    assert_eq!(bench.keys(), [0xA1]);

    remove(&bench.board);
    bench.replace_agent();
    assert_eq!(bench.keys(), [0xA1], "and for the next one");
    assert_eq!(bench.access(), (2, 1));
    assert_eq!(bench.register(2, 0xB2), GOOD);
    assert_eq!(bench.keys(), [0xA1, 0xB2]);
    bench.replace_agent();
    assert_eq!(bench.keys(), [0xA1, 0xB2]);
}

#[test]
fn a_full_disk_refuses_and_keeps_what_is_there() {
    // The superuser finds it full, too.
    let fill = |board: &Board| symlink("/dev/full", board.path("pr/disk.new")).unwrap();
    let make_room = |board: &Board| fs::remove_file(board.path("pr/disk.new")).unwrap();
    refused_and_then_not(fill, make_room, "No space left on device");
}

#[test]
fn a_directory_that_cannot_be_written_refuses_and_keeps_what_is_there() {
    let replace = |board: &Board| {
        fs::rename(board.path("pr"), board.path("away")).unwrap();
        fs::write(board.path("pr"), "a file, where the superuser may not make directories")
            .unwrap();
    };
    let put_back = |board: &Board| {
        fs::remove_file(board.path("pr")).unwrap();
        fs::rename(board.path("away"), board.path("pr")).unwrap();
    };
    refused_and_then_not(replace, put_back, "/pr cannot be made: File exists");
}

#[test]
fn once_there_is_room_the_same_agent_goes_on() {
    let mut bench = Bench::start(1);
    fs::create_dir(bench.board.path("pr")).unwrap();
    symlink("/dev/full", bench.board.path("pr/disk.new")).unwrap();
    assert_eq!(bench.register(1, 0xA1), INSUFFICIENT_REGISTRATION_RESOURCES);
    fs::remove_file(bench.board.path("pr/disk.new")).unwrap();
    assert_eq!(bench.register(1, 0xA1), GOOD);
    assert_eq!(bench.keys(), [0xA1]);
}

/// The version before of `disk` is `disk.1`.
#[test]
fn two_devices_never_share_a_file() {
    let other = |attribute: &str| {
        let device =
            format!("DEVICE disk.1 {{\nsize_mb 16\nlunar_backend host\n{attribute}\n}}\n}}");
        CONFIGURATION.replacen("    }\n}", &format!("    }}\n{device}"), 1)
    };
    let mut board = Board::start(&other(""));
    assert!(!board.agent.wait().unwrap().success());
    let log = board.log();
    for words in ["devices disk and disk.1", "pr/disk.1", "another pr_file_name"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("pr");
    let board = Board::start(&other(&format!("pr_file_name {}", path.display())));
    let (_, configuration) = Card::connect(&board).meet(41, false);
    assert_eq!(configuration.units.len(), 2);
}

fn damage(board: &Board, version: &str) {
    let mut bytes = fs::read(board.path(version)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(board.path(version), bytes).unwrap();
}

#[test]
fn a_damaged_version_gives_way_to_the_one_before_and_is_named() {
    let mut bench = Bench::start(2);
    assert_eq!(bench.register(1, 0xA1), GOOD);
    assert_eq!(bench.register(2, 0xB2), GOOD);
    damage(&bench.board, "pr/disk");
    bench.replace_agent();
    assert_eq!(bench.keys(), [0xA1]);
    let log = bench.board.log();
    let told = log.lines().find(|line| line.contains("previous version")).expect("logged");
    let path = bench.board.path("pr/disk");
    assert!(told.contains("WARN") && told.contains(path.to_str().unwrap()), "{told}");
    assert!(bench.board.path("pr/disk.damaged").exists());
    // What is kept next does not put the damaged one in the place of the good one.
    assert_eq!(bench.register(2, 0xB3), GOOD);
    damage(&bench.board, "pr/disk");
    bench.replace_agent();
    assert_eq!(bench.keys(), [0xA1]);
}

/// SPC-4 5.13.5.3 and 5.13.11.3.
#[test]
fn two_damaged_versions_let_nobody_in_until_somebody_replaces_the_reservation() {
    let mut bench = Bench::start(2);
    assert_eq!(bench.register(1, 0xA1), GOOD);
    assert_eq!(bench.register(2, 0xB2), GOOD);
    damage(&bench.board, "pr/disk");
    damage(&bench.board, "pr/disk.1");
    bench.replace_agent();
    const LOST: u32 = 8;
    assert_eq!(bench.access(), (LOST, 0));
    assert_eq!(bench.read(READ_KEYS, 100).0, INFORMATION_LOST);
    assert_eq!(bench.register(1, 0xA1), INFORMATION_LOST);
    let log = bench.board.log();
    let told = log.lines().find(|line| line.contains("its reservations are lost")).expect("logged");
    let path = bench.board.path("pr/disk");
    for words in ["ERROR", "disk", path.to_str().unwrap(), "lunar pr", "REPLACE LOST RESERVATION"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(bench.out(2, REPLACE_LOST, WRITE_EXCLUSIVE, (0, 0xB2)), GOOD);
    assert_eq!(bench.access(), (2, 1));
    assert_eq!(bench.keys(), [0xB2]);
    assert_eq!(bench.out(1, RESERVE, WRITE_EXCLUSIVE, (0xA1, 0)), CONFLICT);
    bench.replace_agent();
    assert_eq!(bench.keys(), [0xB2]);
}
