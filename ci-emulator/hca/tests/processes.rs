//! The fabric between processes: a real second process (this binary again) connects over a Unix
//! socket and is served by RDMA READ, RDMA WRITE and SEND through shared memory, polling and sleeping;
//! then it disconnects, or is killed.

mod rig;

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Child, Command};

use lunar_hca::{ConnectEvent, DeviceConfig, EmulatedHca, Fabric, RemoteAccess, RemoteKey};
use lunar_platform::{
    CmEvent, CompletionStatus, ConnectRequest, Hca, Listener, QpHandle, SendOperation,
};
use rig::{PARAMETERS, Side, attributes, modes, read_from, write_to};

const DIRECTORY: &str = "LUNAR_HCA_TEST_DIRECTORY";
const ENDING: &str = "LUNAR_HCA_TEST_ENDING";
const TURNS: u64 = 300;
const COMMAND: u64 = 512 << 10;
const LATE_KEY: u64 = 600 << 10;

fn encode(key: RemoteKey) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&key.rkey.to_le_bytes());
    bytes[4..].copy_from_slice(&key.base.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> RemoteKey {
    RemoteKey {
        rkey: u32::from_le_bytes(bytes[..4].try_into().unwrap()),
        base: u64::from_le_bytes(bytes[4..12].try_into().unwrap()),
    }
}

/// Sleeps until `fd` is readable. A minute without news means that a wake-up was lost.
fn sleep(fd: BorrowedFd<'_>) {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    let limit = rustix::fs::Timespec { tv_sec: 60, tv_nsec: 0 };
    let ready = rustix::event::poll(&mut fds, Some(&limit)).unwrap();
    assert_eq!(ready, 1, "a wake-up was lost");
}

/// Polls `side` until `done`; sleeps in between where `sleeps`.
fn wait(side: &mut Side, sleeps: bool, done: impl Fn(&Side) -> bool) {
    loop {
        side.poll();
        if done(side) {
            return;
        }
        if sleeps && side.hca.arm() {
            sleep(side.hca.event_fd().unwrap());
        } else {
            std::thread::yield_now();
        }
    }
}

/// The part of the second process; without the variable there is nothing to be.
#[test]
fn the_second_process() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let mut side = Side::new(DeviceConfig::new("client"), attributes());
    let key = side.expose(0, 8192, RemoteAccess::READ_WRITE);
    let fabric = Fabric::unix(Path::new(&directory));
    let id = side.hca.connect(&fabric, "srp", PARAMETERS, &encode(key));
    wait(&mut side, true, |side| !side.answers.is_empty());
    let Some(ConnectEvent::Accepted { id: answered, qp, private_data }) = side.answers.pop() else {
        panic!("not accepted")
    };
    assert_eq!((answered, private_data.as_bytes()), (id, &b"welcome"[..]));
    for turn in 0..TURNS {
        let fill = turn as u8;
        side.fill(0, &[fill; 4096]);
        side.receive(1000 + turn, COMMAND + 64, 64);
        side.send(qp, turn, COMMAND, 8);
        wait(&mut side, turn % 2 == 1, |side| {
            side.ended(1000 + turn).is_some() && side.ended(turn).is_some()
        });
        assert_eq!(side.bytes(4096, 4096), [!fill; 4096]);
    }
    // Memory that is exposed only now, when the connection has long been up.
    let segment = lunar_pcie::Segment::memfd("late", 4096).unwrap();
    let late = side.hca.register_remote(&segment, 0, 4096, RemoteAccess::WRITE).unwrap();
    side.fill(COMMAND as usize, &encode(late));
    side.receive(5000, COMMAND + 64, 64);
    side.send(qp, 5001, COMMAND, 12);
    wait(&mut side, true, |side| side.ended(5000).is_some());
    let mut bytes = [0; 4];
    segment.read(100, &mut bytes);
    assert_eq!(&bytes, b"late");
    match std::env::var(ENDING).as_deref() {
        Ok("disconnect") => {
            side.hca.disconnect(qp);
            wait(&mut side, false, |side| side.events.contains(&CmEvent::Drained(qp)));
        }
        // Waits to be killed, and polls meanwhile: who does not poll tells nobody what it took.
        _ => loop {
            side.poll();
            std::thread::sleep(std::time::Duration::from_millis(1));
        },
    }
}

fn start_second_process(directory: &Path, ending: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_second_process", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(ENDING, ending)
        .spawn()
        .unwrap()
}

fn accept<L>(listener: &mut L, hca: &mut EmulatedHca) -> (QpHandle, RemoteKey)
where
    L: Listener<Connection = lunar_hca::EmulatedConnection>,
{
    let ConnectRequest { connection, private_data, peer, .. } = loop {
        match listener.poll() {
            Some(request) => break request,
            None => sleep(listener.event_fd().unwrap()),
        }
    };
    assert_eq!(peer.as_str(), "client");
    let key = decode(private_data.as_bytes());
    (hca.accept(connection, PARAMETERS, b"welcome").unwrap(), key)
}

fn serve(config: fn(&str) -> DeviceConfig, ending: &str) {
    let directory = tempfile::tempdir().unwrap();
    let fabric = Fabric::unix(directory.path());
    let mut card = Side::new(config("card"), attributes());
    let mut listener = card.device.listener(&fabric, "srp").unwrap();
    let mut child = start_second_process(directory.path(), ending);
    let (qp, key) = accept(&mut listener, &mut card.hca);
    for turn in 0..TURNS {
        card.receive(10_000 + turn, COMMAND, 64);
        wait(&mut card, turn % 3 == 1, |card| card.ended(10_000 + turn).is_some());
        assert_eq!(card.ended(10_000 + turn).unwrap().qp, qp);
        let fetch = card.request(turn, read_from(key, 0), 0, 4096, true);
        card.hca.post_send(qp, &[fetch]).unwrap();
        card.hca.ring(qp);
        wait(&mut card, false, |card| card.ended(turn).is_some());
        assert_eq!(card.bytes(0, 4096), [turn as u8; 4096]);
        card.fill(0, &[!(turn as u8); 4096]);
        let chain = [
            card.request(0, write_to(key, 4096), 0, 4096, false),
            card.request(20_000 + turn, SendOperation::Send, 8192, 36, true),
        ];
        card.hca.post_send(qp, &chain).unwrap();
        card.hca.ring(qp);
        wait(&mut card, turn % 5 == 1, |card| card.ended(20_000 + turn).is_some());
    }
    card.receive(30_000, LATE_KEY, 64);
    wait(&mut card, false, |card| card.ended(30_000).is_some());
    let late = decode(card.bytes(LATE_KEY as usize, 12));
    card.fill(0, b"late");
    let chain = [
        card.request(30_001, write_to(late, 100), 0, 4, true),
        card.request(30_002, SendOperation::Send, 0, 4, true),
    ];
    card.hca.post_send(qp, &chain).unwrap();
    card.hca.ring(qp);
    wait(&mut card, false, |card| card.ended(30_002).is_some());
    assert!(card.completions.iter().all(|c| c.status == CompletionStatus::Success));
    if ending == "kill" {
        // Something that the peer will never take.
        let unanswered = card.request(40_000, SendOperation::Send, 0, 4, false);
        card.hca.post_send(qp, &[unanswered]).unwrap();
        card.hca.ring(qp);
        child.kill().unwrap();
    }
    let drained = CmEvent::Drained(qp);
    wait(&mut card, true, |card| card.events.contains(&drained));
    let connected: Vec<_> = [CmEvent::Established(qp), CmEvent::Disconnected(qp), drained].into();
    assert_eq!(card.events, connected);
    let last = card.ended(40_000).map(|completion| completion.status);
    assert_eq!(last, (ending == "kill").then_some(CompletionStatus::Flushed));
    let status = child.wait().unwrap();
    assert_eq!(status.success(), ending == "disconnect", "{status}");
}

#[test]
fn a_second_process_is_served_and_disconnects() {
    for (name, config) in modes().into_iter().take(2) {
        println!("mode: {name}");
        serve(config, "disconnect");
    }
}

#[test]
fn a_second_process_that_is_killed_is_disconnected() {
    serve(DeviceConfig::new, "kill");
}

/// Two threads send to and fro and sleep whenever they may; a lost wake-up would end it.
#[test]
fn sleeping_ends_are_woken_by_every_message() {
    let mut rig = rig::Rig::new(DeviceConfig::new);
    let rig::Rig { target, initiator, target_qp, initiator_qp, .. } = &mut rig;
    let turns = 3000;
    std::thread::scope(|scope| {
        scope.spawn(|| ping_pong(target, *target_qp, turns, false));
        scope.spawn(|| ping_pong(initiator, *initiator_qp, turns, true));
    });
    // Why none is lost is argued in `shared`; that some were needed shows that this test sleeps.
    assert!(rig.target.hca.statistics().wake_ups > 0);
}

fn ping_pong(side: &mut Side, qp: QpHandle, turns: u64, first: bool) {
    for id in 0..32 {
        side.receive(id, 0, 64);
    }
    for turn in 0..turns {
        if first {
            side.send(qp, 1_000_000 + turn, 1024, 8);
        }
        // Sometimes the peer still spins when the answer comes, sometimes it sleeps.
        for _ in 0..turn % 7 * 100 {
            std::hint::spin_loop();
        }
        wait(side, true, |side| side.completions.iter().any(|c| c.id.0 < 1_000_000));
        if !first {
            side.send(qp, 1_000_000 + turn, 1024, 8);
        }
        wait(side, true, |side| side.ended(1_000_000 + turn).is_some());
        // A receive that came early stays for the next turn.
        let at = side.completions.iter().position(|c| c.id.0 < 1_000_000).unwrap();
        side.completions.remove(at);
        side.completions.retain(|c| c.id.0 < 1_000_000);
        side.receive(turn % 32, 0, 64);
    }
}
