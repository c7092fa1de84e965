//! A keeper process and its clients over the socket.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lunar_keeper::client::Notice;
use lunar_keeper::layout::{DATA_ARENA, RING_ARENA};
use lunar_keeper::protocol::Request;
use lunar_keeper::{Client, Offer};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType};

/// How long a starting process may take; a test that needs it all has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Keeper {
    child: Child,
    socket: PathBuf,
    directory: tempfile::TempDir,
}

impl Keeper {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("keeper");
        let child = Self::spawn(&socket);
        Self { child, socket, directory }
    }

    fn spawn(socket: &Path) -> Child {
        Command::new(env!("CARGO_BIN_EXE_lunar-arena"))
            .arg("--socket")
            .arg(socket)
            .args([
                "--arena-bytes",
                "1048576",
                "--groups",
                "2",
                "--ring-slots",
                "64",
                "--exit-with-parent",
            ])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn client(&self) -> Client {
        Client::connect_within(&self.socket, PATIENCE).unwrap()
    }

    fn raw(&self) -> rustix::fd::OwnedFd {
        drop(self.client()); // it is up
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(&self.socket).unwrap()).unwrap();
        socket
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_at(fd: impl AsFd, offset: u64, bytes: &[u8]) {
    assert_eq!(rustix::io::pwrite(fd, bytes, offset), Ok(bytes.len()));
}

fn read_at(fd: impl AsFd, offset: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    assert_eq!(rustix::io::pread(fd, &mut bytes, offset), Ok(8));
    bytes
}

#[test]
fn memory_and_hints_outlive_a_client_and_are_shared_by_all() {
    let keeper = Keeper::start();
    let first: Offer = keeper.client().attach().unwrap();
    assert_eq!((first.layout.groups(), first.layout.ring().slots()), (2, 64));
    write_at(&first.arena, 4096, b"in arena");
    write_at(&first.rings, 64, b"in rings");
    write_at(&first.notes, 0, b"in notes");
    rustix::io::write(&first.hints[1].to_card, &1_u64.to_ne_bytes()).unwrap();
    let id = first.keeper_id();
    drop(first);

    let second = keeper.client().attach().unwrap();
    assert_eq!(second.keeper_id(), id);
    assert_eq!(&read_at(&second.arena, 4096), b"in arena");
    assert_eq!(&read_at(&second.rings, 64), b"in rings");
    assert_eq!(&read_at(&second.notes, 0), b"in notes");
    let mut count = [0; 8];
    assert_eq!(rustix::io::read(&second.hints[1].to_card, &mut count), Ok(8));
    assert_eq!(u64::from_ne_bytes(count), 1);
    assert!(rustix::io::read(&second.hints[0].to_card, &mut count).is_err(), "a line of its own");
}

#[test]
fn shared_memory_cannot_be_cut_under_those_who_map_it() {
    let keeper = Keeper::start();
    let offer = keeper.client().attach().unwrap();
    assert_eq!(rustix::fs::ftruncate(&offer.arena, 0), Err(rustix::io::Errno::PERM));
    let length = rustix::fs::fstat(&offer.arena).unwrap().st_size;
    assert_eq!(u64::try_from(length), Ok(offer.layout.arena_bytes()));
}

#[test]
fn a_revoke_changes_the_blob_and_tells_the_other_clients() {
    let keeper = Keeper::start();
    let (mut card, mut agent) = (keeper.client(), keeper.client());
    let before = card.attach().unwrap();
    assert_eq!(card.next_notice().unwrap(), None);
    agent.revoke(DATA_ARENA).unwrap();
    assert_eq!(card.next_notice().unwrap(), Some(Notice::Revoked(DATA_ARENA)));
    assert_eq!(agent.next_notice().unwrap(), None);
    let after = card.attach().unwrap();
    assert_ne!(after.export_blob(DATA_ARENA), before.export_blob(DATA_ARENA));
    assert_eq!(after.export_blob(RING_ARENA), before.export_blob(RING_ARENA));
    assert_eq!(after.export_blob(7), None);
    let error = agent.revoke(7).unwrap_err();
    assert_eq!(error.to_string(), "the keeper has no arena 7");
}

#[test]
fn garbage_costs_its_sender_the_connection_and_nobody_else() {
    let keeper = Keeper::start();
    let mut innocent = keeper.client();
    // Well-formed, but for the exporter alone to say.
    let exported = Request::Exported([[0; 64]; 2]).encode();
    let other_version = b"LKPR\x02\0\x01\0\0\0\0\0";
    for garbage in [&b"x"[..], &[0; 12], &[0xff; 64], &[0; 5000], other_version, &exported] {
        let socket = keeper.raw();
        rustix::net::send(&socket, garbage, SendFlags::NOSIGNAL).unwrap();
        // A refusal, then the end.
        let mut answer = [0; 64];
        let (_, length) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty()).unwrap();
        assert_eq!((length, &answer[..4], answer[6]), (12, &b"LKPR"[..], 0xff));
        let (_, length) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty()).unwrap();
        assert_eq!(length, 0);
    }
    innocent.attach().unwrap();
}

#[test]
fn a_client_that_vanishes_in_the_middle_is_forgotten() {
    let keeper = Keeper::start();
    let mut innocent = keeper.client();
    for _ in 0..100 {
        let socket = keeper.raw();
        // Asks and is gone before the answer.
        rustix::net::send(&socket, b"LKPR\x01\0\x01\0\0\0\0\0", SendFlags::NOSIGNAL).unwrap();
    }
    innocent.attach().unwrap();
    // More than may be connected at a time have come and gone: their places are free again.
    keeper.client().attach().unwrap();
}

#[test]
fn sigterm_ends_it_and_removes_the_socket() {
    let mut keeper = Keeper::start();
    let mut client = keeper.client();
    client.attach().unwrap();
    let pid = rustix::process::Pid::from_child(&keeper.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(keeper.child.wait().unwrap().success());
    assert!(!keeper.socket.exists());
    assert_eq!(client.next_notice().unwrap(), Some(Notice::KeeperGone));
}

#[test]
fn it_ends_with_the_process_that_started_it() {
    let mut keeper = Keeper::start();
    keeper.client().attach().unwrap();
    drop(keeper.child.stdin.take());
    assert!(keeper.child.wait().unwrap().success());
    assert!(!keeper.socket.exists());
}

#[test]
fn a_second_keeper_on_one_socket_is_refused_and_a_dead_one_replaced() {
    let mut keeper = Keeper::start();
    let id = keeper.client().attach().unwrap().keeper_id();
    let mut second = Keeper::spawn(&keeper.socket);
    assert!(!second.wait().unwrap().success());
    let mut text = String::new();
    second.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("another keeper serves"), "{text}");

    keeper.child.kill().unwrap();
    keeper.child.wait().unwrap();
    assert!(keeper.socket.exists(), "killed, it could not tidy up");
    keeper.child = Keeper::spawn(&keeper.socket);
    let mut log = BufReader::new(keeper.child.stderr.take().unwrap());
    log.read_line(&mut String::new()).unwrap();
    let offer = keeper.client().attach().unwrap();
    assert_ne!(offer.keeper_id(), id);
    assert!(keeper.directory.path().exists());
}
