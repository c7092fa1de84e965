//! The bridge between a stub that says what QEMU's says, and a server that speaks byte by byte.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use lunar_hypervisor::{SERVER_MAY_READ, SERVER_MAY_WRITE};
use lunar_pcie::Segment;
use tempfile::TempDir;

use super::*;

const UNIT: u64 = 0x7100_0010;
const BEFORE_CALL: u64 = 0xc000_0000_0010_0000;
const INTERRUPT: u64 = 0x6_0100_2220_0000;
const BOTH: u64 = SERVER_MAY_READ | SERVER_MAY_WRITE;
/// The queue's I/O address and its place in memory.
const QUEUE: u64 = 0xc00_0000;
const QUEUE_REAL: u64 = 0x2_0000;
const QUEUE_BYTES: u64 = 0x1000;
const PATIENCE: Duration = Duration::from_secs(10);

/// A machine whose kernel is this test, and what it is connected to.
struct Rig {
    stub: UnixStream,
    said: Vec<u8>,
    memory: Segment,
    interrupts: Receiver<String>,
    faults: Faults,
    folder: TempDir,
    bridge: JoinHandle<Result<()>>,
}

impl Rig {
    fn new() -> Rig {
        let (stub, gdb) = UnixStream::pair().unwrap();
        stub.set_read_timeout(Some(PATIENCE)).unwrap();
        let (machine, qtest) = UnixStream::pair().unwrap();
        let (sender, interrupts) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(machine.try_clone().unwrap()).lines().map_while(Result::ok) {
                let _ = sender.send(line);
                let _ = (&machine).write_all(b"OK\n");
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("bridge")).unwrap();
        let memory = Segment::anonymous(1 << 20).unwrap();
        let (faults, asked) = Faults::new().unwrap();
        let client = Client::new(memory.clone(), 256 << 20);
        let adapter = Adapter { unit: UNIT, before_call: BEFORE_CALL, interrupt: INTERRUPT };
        let bridge = std::thread::spawn(move || {
            let (gdb, qtest) = (Gdb::over(gdb)?, Qtest::over(qtest)?);
            Bridge::new(adapter, gdb, qtest, client, listener, asked, std::io::sink()).run()
        });
        let mut rig = Rig { stub, said: Vec::new(), memory, interrupts, faults, folder, bridge };
        assert!(rig.packet().starts_with("qXfer:features:read:target.xml:"));
        rig.say("l<target/>");
        assert_eq!(rig.packet(), "Z0,c000000000100000,4");
        rig.say("OK");
        assert_eq!(rig.packet(), "c");
        rig
    }

    fn packet(&mut self) -> String {
        loop {
            if let Some(end) = self.said.iter().position(|byte| *byte == b'#')
                && self.said.len() >= end + 3
            {
                let packet: Vec<u8> = self.said.drain(..end + 3).collect();
                let text = String::from_utf8(packet).unwrap();
                let (start, sum) = (text.find('$').unwrap(), &text[end + 1..]);
                let said = text[start + 1..end].to_string();
                let added = said.bytes().fold(0_u8, u8::wrapping_add);
                assert_eq!(u8::from_str_radix(sum, 16), Ok(added));
                return said;
            }
            let mut bytes = [0; 512];
            let count = self.stub.read(&mut bytes).expect("the bridge says something");
            assert!(count > 0, "the bridge is there");
            self.said.extend(&bytes[..count]);
        }
    }

    fn say(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
        self.stub.write_all(format!("+${packet}#{sum:02x}").as_bytes()).unwrap();
    }

    /// The kernel calls its hypervisor; what it is given back, or `None` when the machine is to make the call.
    fn call(&mut self, call: [u64; 5]) -> Option<i64> {
        self.say("T05thread:01;");
        for (register, value) in (3..).zip(call) {
            assert_eq!(self.packet(), format!("p{register:x}"));
            self.say(&format!("{:016x}", value.swap_bytes()));
        }
        let mut set = |register: &str| {
            let packet = self.packet();
            let value = packet.strip_prefix(register).map(|value| u64::from_str_radix(value, 16));
            if value.is_some() {
                self.say("OK");
            }
            (packet, value.map(|value| value.unwrap().swap_bytes()))
        };
        let (packet, next) = set("P40=");
        let next = next.unwrap_or_else(|| panic!("{packet}"));
        match set("P3=") {
            (packet, None) => {
                assert_eq!((packet.as_str(), next), ("c", BEFORE_CALL + 4), "the call is made");
                None
            }
            (_, Some(result)) => {
                assert_eq!((self.packet().as_str(), next), ("c", BEFORE_CALL + 8), "and is not");
                Some(result as i64)
            }
        }
    }

    fn map_queue(&mut self) {
        let tce = QUEUE_REAL | BOTH;
        assert_eq!(self.call([token::PUT_TCE, UNIT, QUEUE, tce, 0]), None);
    }

    fn register(&mut self) -> Option<i64> {
        self.call([token::REG_CRQ, UNIT, QUEUE, QUEUE_BYTES, 0])
    }

    fn send(&mut self, entry: Entry) -> Option<i64> {
        let (high, low) = entry.to_words();
        self.call([token::SEND_CRQ, UNIT, high, low, 0])
    }

    fn entry(&self, slot: u64) -> Entry {
        let mut entry = [0; 16];
        assert!(self.memory.read(QUEUE_REAL + 16 * slot, &mut entry));
        Entry::from_bytes(entry)
    }

    fn server(&self) -> Server {
        let stream = UnixStream::connect(self.folder.path().join("bridge")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Server(stream)
    }

    /// The machine ends, and the bridge with it.
    fn end(self) {
        drop(self.stub);
        self.bridge.join().unwrap().unwrap();
    }
}

/// A server.
struct Server(UnixStream);

impl Server {
    fn say(&mut self, letter: u8, payload: &[u8]) {
        let mut frame = (1 + payload.len() as u32).to_be_bytes().to_vec();
        frame.push(letter);
        frame.extend(payload);
        self.0.write_all(&frame).unwrap();
    }

    fn hear(&mut self) -> (u8, Vec<u8>) {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).expect("a frame");
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut frame).expect("a whole frame");
        let payload = frame.split_off(1);
        (frame[0], payload)
    }

    /// What is answered to a frame.
    fn ask(&mut self, letter: u8, payload: &[u8]) -> (u8, Vec<u8>) {
        self.say(letter, payload);
        self.hear()
    }

    /// Has a queue from now on.
    fn open(&mut self) {
        self.say(b'O', &[1]);
        assert_eq!(self.read(0, 0), Some(Vec::new()));
    }

    fn send(&mut self, entry: Entry) -> i64 {
        let (letter, code) = self.ask(b'S', &entry.to_bytes());
        assert_eq!(letter, b's');
        i64::from_be_bytes(code.try_into().unwrap())
    }

    fn read(&mut self, address: u64, bytes: u32) -> Option<Vec<u8>> {
        let place = [&address.to_be_bytes()[..], &bytes.to_be_bytes()].concat();
        match self.ask(b'R', &place) {
            (b'r', mut read) => (read.remove(0) == 0).then_some(read),
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let (letter, status) = self.ask(b'W', &[&address.to_be_bytes()[..], bytes].concat());
        assert_eq!(letter, b'w');
        status == [0]
    }
}

/// A client that was there first, and is told by the server's C001.
#[test]
fn a_client_that_waits_for_a_server_hears_of_it() {
    let mut rig = Rig::new();
    rig.map_queue();
    assert_eq!(rig.register(), Some(code::CLOSED));
    assert_eq!(rig.register(), Some(code::RESOURCE));
    assert_eq!(rig.call([token::VIO_SIGNAL, UNIT, 1, 0, 0]), Some(code::SUCCESS));
    assert_eq!(rig.send(Entry::INIT), Some(code::CLOSED));
    let mut server = rig.server();
    let queue = [QUEUE.to_be_bytes(), QUEUE_BYTES.to_be_bytes()].concat();
    assert_eq!(server.hear(), (b'G', queue));
    server.open();
    assert_eq!(server.send(Entry::INIT), code::SUCCESS);
    assert_eq!(rig.entry(0), Entry::INIT);
    let interrupt = rig.interrupts.recv_timeout(PATIENCE).unwrap();
    assert_eq!(interrupt, "writeq 0x6010022200000 0x0");
    assert_eq!(rig.send(Entry::INIT_COMPLETE), Some(code::SUCCESS));
    assert_eq!(server.hear(), (b'C', Entry::INIT_COMPLETE.to_bytes().to_vec()));
    assert_eq!(rig.call([token::VIO_SIGNAL, UNIT, 0, 0, 0]), Some(code::SUCCESS));
    // It is killed: the client is told by the hypervisor, and finds it closed.
    drop(server);
    let gone = Entry::transport(TransportEvent::PartnerDeregistered);
    let mut server = rig.server();
    assert_eq!(server.hear().0, b'G');
    assert_eq!(rig.entry(1), gone);
    assert_eq!(rig.send(Entry::INIT), Some(code::CLOSED));
    assert_eq!(rig.call([token::FREE_CRQ, UNIT, 0, 0, 0]), Some(code::SUCCESS));
    assert_eq!(server.hear(), (b'F', vec![]));
    server.open();
    assert_eq!(server.send(Entry::INIT), code::CLOSED, "nobody has a queue");
    assert_eq!(rig.register(), Some(code::SUCCESS));
    assert!(rig.interrupts.try_recv().is_err(), "signals are off");
    rig.end();
}

/// The machine makes all calls that are not about the adapter's queue.
#[test]
fn calls_of_others_are_left_to_the_machine() {
    let mut rig = Rig::new();
    for call in [
        [0x58, UNIT, 0, 0, 0],
        [token::REG_CRQ, UNIT + 1, QUEUE, QUEUE_BYTES, 0],
        [token::PUT_TCE, UNIT + 1, QUEUE, QUEUE_REAL | BOTH, 0],
        [token::STUFF_TCE, UNIT, 0, 0, u64::MAX],
    ] {
        assert_eq!(rig.call(call), None);
    }
    assert_eq!(rig.register(), Some(code::PARAMETER), "the window was another one's");
    rig.end();
}

/// H_PUT_TCE, H_STUFF_TCE and H_PUT_TCE_INDIRECT are seen, and hold for the server.
#[test]
fn the_server_reaches_what_the_client_maps_and_nothing_else() {
    let mut rig = Rig::new();
    let mut server = rig.server();
    let list = [0x3_0000 | BOTH, 0x5_0000 | SERVER_MAY_READ].map(u64::to_be_bytes).concat();
    assert!(rig.memory.write(0x1_0000, &list));
    assert!(rig.memory.write(0x3_0fff, &[7]));
    assert!(rig.memory.write(0x5_0000, &[8]));
    assert_eq!(rig.call([token::PUT_TCE_INDIRECT, UNIT, 0x2000, 0x1_0000, 2]), None);
    assert_eq!(server.read(0x2fff, 2), Some(vec![7, 8]));
    assert_eq!(server.read(0x3fff, 2), None);
    assert!(server.write(0x2010, &[9; 16]));
    assert!(!server.write(0x2ff0, &[9; 32]), "the second page is not to be written");
    let mut written = [0; 17];
    assert!(rig.memory.read(0x3_0010, &mut written));
    assert_eq!((&written[..16], written[16]), (&[9; 16][..], 0));
    assert_eq!(rig.call([token::STUFF_TCE, UNIT, 0x2000, 0, 2]), None);
    assert_eq!(server.read(0x2000, 1), None);
    assert!(!server.write(0x2000, &[1]));
    rig.end();
}

#[test]
fn a_client_that_does_not_empty_its_queue_loses_nothing_silently() {
    let mut rig = Rig::new();
    rig.map_queue();
    rig.register();
    let mut server = rig.server();
    server.hear();
    server.open();
    for _ in 0..QUEUE_BYTES / 16 {
        assert_eq!(server.send(Entry::INIT), code::SUCCESS);
    }
    assert_eq!(server.send(Entry::INIT_COMPLETE), code::DROPPED);
    assert!(rig.memory.write(QUEUE_REAL, &[0]));
    assert_eq!(server.send(Entry::INIT_COMPLETE), code::SUCCESS);
    assert_eq!(rig.entry(0), Entry::INIT_COMPLETE);
    assert_eq!(server.send(Entry::INIT_COMPLETE), code::DROPPED);
    rig.end();
}

/// Each fault befalls what it says, and only as often.
#[test]
fn faults_befall_the_client_once() {
    let mut rig = Rig::new();
    rig.map_queue();
    rig.register();
    let mut server = rig.server();
    server.hear();
    server.open();
    let command = Entry::from_words(0x8001_003c_0000_0100, QUEUE);
    rig.faults.ask(Fault::LostCommand);
    rig.faults.ask(Fault::Refusals);
    rig.faults.ask(Fault::Migration);
    // The last of them can be seen.
    let migrated = Entry::transport(TransportEvent::Migrated);
    while rig.entry(0) != migrated {
        std::thread::yield_now();
    }
    assert_eq!(rig.send(command), Some(code::CLOSED));
    assert_eq!(rig.send(command), Some(code::CLOSED));
    assert_eq!(rig.send(command), Some(code::CLOSED), "the queue rests");
    assert_eq!(server.send(Entry::INIT), code::CLOSED);
    assert_eq!(rig.call([token::ENABLE_CRQ, UNIT, 0, 0, 0]), Some(code::SUCCESS));
    assert_eq!(server.hear(), (b'E', vec![]));
    assert_eq!(rig.send(command), Some(code::SUCCESS), "it is lost");
    assert_eq!(rig.send(command), Some(code::SUCCESS));
    assert_eq!(server.hear(), (b'C', command.to_bytes().to_vec()));
    rig.end();
}

#[test]
fn a_server_that_speaks_nonsense_is_gone() {
    let mut rig = Rig::new();
    rig.map_queue();
    rig.register();
    for nonsense in [&b"Z"[..], b"O", b"Rshort", b"Sshort", b"X"] {
        let mut server = rig.server();
        assert_eq!(server.hear().0, b'G');
        server.open();
        server.say(nonsense[0], &nonsense[1..]);
        assert_eq!(server.0.read(&mut [0]).unwrap_or(0), 0, "{nonsense:?}");
        assert_eq!(rig.send(Entry::INIT), Some(code::CLOSED));
    }
    let mut server = rig.server();
    server.hear();
    server.open();
    server.say(b'X', &(-1_i64).to_be_bytes());
    server.open();
    assert_eq!(rig.send(Entry::INIT), Some(code::HARDWARE));
    assert_eq!(rig.send(Entry::INIT), Some(code::SUCCESS));
    rig.end();
}
