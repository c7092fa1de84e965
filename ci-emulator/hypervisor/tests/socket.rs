//! The socket between a server and the bridge to a real client. The bridge here is the test: it says frames
//! byte by byte, and an adapter serves its client.

mod server;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use lunar_hypervisor::SocketHypervisor;
use lunar_platform::{
    Hypervisor, HypervisorEvent, HypervisorOperation, HypervisorRequest, Sge, UnitAddress,
};
use lunar_vscsi::adapter::{Event, Reason, State};
use lunar_vscsi::crq::{Entry, IuKind, Request, TransportEvent};
use lunar_vscsi::hcall::code;
use proptest::prelude::*;
use server::{REQUEST_LIMIT, Server, ServerMemory, UNIT};

/// The bridge's end.
struct Bridge(UnixStream);

impl Bridge {
    fn say(&mut self, letter: u8, payload: &[u8]) {
        let mut frame = (1 + payload.len() as u32).to_be_bytes().to_vec();
        frame.push(letter);
        frame.extend(payload);
        self.0.write_all(&frame).expect("the server reads");
    }

    /// The next frame; panics when none comes.
    fn hear(&mut self) -> (u8, Vec<u8>) {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).expect("a frame");
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut frame).expect("a whole frame");
        let payload = frame.split_off(1);
        (frame[0], payload)
    }

    /// The server sends an entry, and the bridge's client takes it.
    fn hear_entry(&mut self) -> Entry {
        let (letter, entry) = self.hear();
        assert_eq!(letter, b'S');
        self.say(b's', &0_i64.to_be_bytes());
        Entry::from_bytes(entry.try_into().expect("16 bytes"))
    }

    /// The server has a queue: it says so, and asks for nothing to know whether there is a client.
    fn hear_open(&mut self) {
        assert_eq!(self.hear(), (b'O', vec![1]));
        assert_eq!(self.hear(), (b'R', vec![0; 12]));
        self.say(b'r', &[0]);
    }

    fn registered(&mut self) {
        let mut place = 0xc00_0000_u64.to_be_bytes().to_vec();
        place.extend(65536_u64.to_be_bytes());
        self.say(b'G', &place);
    }
}

fn connected() -> (Bridge, Server<SocketHypervisor>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let patience = std::time::Duration::from_secs(10);
    theirs.set_read_timeout(Some(patience)).expect("a timeout");
    let memory = ServerMemory::new();
    let hypervisor = SocketHypervisor::over(UNIT, memory.space.clone(), ours).expect("a stream");
    (Bridge(theirs), Server::new(hypervisor, memory))
}

/// A client that is already there: `O`, C001, C002, then a login through `R`, `W` and `S`.
#[test]
fn client_5_a_login_through_the_bridge() {
    let (mut bridge, mut server) = connected();
    server.enable();
    // It registered before we heard of it, which found us closed: it waits for us.
    bridge.registered();
    bridge.hear_open();
    server.run();
    assert_eq!(bridge.hear_entry(), Entry::INIT);
    bridge.say(b'C', &Entry::INIT_COMPLETE.to_bytes());
    let request = Request { kind: IuKind::Srp, timeout_s: 60, iu_bytes: 256, address: 0xc01_0200 };
    bridge.say(b'C', &Entry::request(request).to_bytes());
    server.run();
    let mut asked = 0xc01_0200_u64.to_be_bytes().to_vec();
    asked.extend(256_u32.to_be_bytes());
    assert_eq!(bridge.hear(), (b'R', asked));
    // SRP_LOGIN_REQ: tag 7, IUs of 256 bytes, direct and indirect.
    let mut answer = vec![0; 257];
    (answer[1 + 15], answer[1 + 18], answer[1 + 25]) = (7, 1, 6);
    bridge.say(b'r', &answer);
    server.run();
    let (letter, written) = bridge.hear();
    assert_eq!((letter, &written[..9]), (b'W', &[0, 0, 0, 0, 0x0c, 0x01, 0x02, 0, 0xc0][..]));
    assert_eq!(written[8 + 7], REQUEST_LIMIT as u8);
    bridge.say(b'w', &[0]);
    server.run();
    let entry = bridge.hear_entry().read_answer().expect("an answer");
    assert_eq!((entry.tag, entry.iu_bytes), (7, 52));
    server.run();
    assert_eq!(server.state(), State::LoggedIn);
    assert_eq!(server.adapter.requests_in_flight(), 0);
    // The client frees its queue and comes again: FF02 for the server, and C001 from the client.
    bridge.say(b'F', &[]);
    bridge.registered();
    bridge.say(b'E', &[]);
    bridge.say(b'C', &Entry::INIT.to_bytes());
    server.run();
    assert_eq!(server.over, [Reason::PartnerDeregistered]);
    assert_eq!(bridge.hear_entry(), Entry::INIT_COMPLETE);
}

/// A unit that the bridge cannot read is a reconnect: FF02 for the client, `O` 0 and 1, and C001.
#[test]
fn client_5_a_bad_tce_ends_the_connection() {
    let (mut bridge, mut server) = connected();
    server.enable();
    bridge.hear_open();
    bridge.registered();
    bridge.say(b'C', &Entry::INIT.to_bytes());
    server.run();
    assert_eq!(bridge.hear_entry(), Entry::INIT_COMPLETE);
    let request = Request { kind: IuKind::Mad, timeout_s: 30, iu_bytes: 256, address: 0 };
    bridge.say(b'C', &Entry::request(request).to_bytes());
    server.run();
    assert_eq!(bridge.hear().0, b'R');
    bridge.say(b'r', &[1]);
    server.run();
    assert_eq!(server.over, [Reason::IuOutsideWindow]);
    let gone = Entry::transport(TransportEvent::PartnerDeregistered);
    assert_eq!(bridge.hear_entry(), gone);
    assert_eq!(bridge.hear(), (b'O', vec![0]));
    bridge.hear_open();
    server.run();
    assert_eq!(bridge.hear_entry(), Entry::INIT);
}

/// A bridge that goes, or that answers what was not asked, is a client that failed.
#[test]
fn client_5_a_bridge_that_goes_or_talks_nonsense_is_a_failed_client() {
    for nonsense in [None, Some((b'w', vec![0])), Some((b'Z', vec![]))] {
        let (mut bridge, mut server) = connected();
        server.enable();
        bridge.hear_open();
        bridge.registered();
        bridge.say(b'C', &Entry::INIT.to_bytes());
        server.run();
        assert_eq!(bridge.hear_entry(), Entry::INIT_COMPLETE);
        let request = Request { kind: IuKind::Mad, timeout_s: 30, iu_bytes: 256, address: 0 };
        bridge.say(b'C', &Entry::request(request).to_bytes());
        server.run();
        match nonsense {
            Some((letter, payload)) => bridge.say(letter, &payload),
            None => drop(bridge),
        }
        server.run();
        assert!(!server.hypervisor.is_connected());
        assert_eq!(server.over, [Reason::WindowClosed]);
        assert_eq!(server.state(), State::WaitConnection);
        assert_eq!(server.adapter.requests_in_flight(), 0);
        server.on(Event::Disable);
        server.run();
        assert_eq!(server.state(), State::Disabled);
    }
}

/// What needs no bridge is answered at once, and `X` makes the client's next send fail.
#[test]
fn client_5_calls_that_cannot_be_made_return_at_once() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let mut bridge = Bridge(theirs);
    let memory = ServerMemory::new();
    let mut hypervisor = SocketHypervisor::over(UNIT, memory.space, ours).expect("a stream");
    let nowhere = Sge { address: 1, length: 4, key: Default::default() };
    let long = Sge { length: 128 * 1024 + 1, ..nowhere };
    for (operation, code) in [
        (HypervisorOperation::SendEntry(Entry::INIT.to_bytes()), code::NOT_FOUND),
        (HypervisorOperation::FreeQueue, code::NOT_FOUND),
        (HypervisorOperation::CopyIn { client_address: 0, local: nowhere }, code::DEST_PARM),
        (HypervisorOperation::CopyOut { client_address: 0, local: nowhere }, code::SOURCE_PARM),
        (HypervisorOperation::CopyIn { client_address: 0, local: long }, code::PARAMETER),
    ] {
        hypervisor.submit(HypervisorRequest { id: 3, unit: UNIT, operation }).expect("room");
        let mut events = [HypervisorEvent::Returned { id: 0, unit: UnitAddress(0), code: 0 }; 2];
        assert_eq!(hypervisor.poll(&mut events), 1);
        assert_eq!(events[0], HypervisorEvent::Returned { id: 3, unit: UNIT, code });
    }
    // The first of these waits for the bridge, the second does not.
    let mut events = [HypervisorEvent::Returned { id: 0, unit: UnitAddress(0), code: 0 }; 2];
    for (id, code) in [(4, None), (5, Some(code::RESOURCE))] {
        let operation = HypervisorOperation::RegisterQueue;
        hypervisor.submit(HypervisorRequest { id, unit: UNIT, operation }).expect("room");
        assert_eq!(hypervisor.poll(&mut events), usize::from(code.is_some()));
        if let Some(code) = code {
            assert_eq!(events[0], HypervisorEvent::Returned { id, unit: UNIT, code });
        }
    }
    bridge.hear_open();
    assert_eq!(hypervisor.poll(&mut events), 1);
    assert_eq!(events[0], HypervisorEvent::Returned { id: 4, unit: UNIT, code: code::CLOSED });
    hypervisor.refuse_clients_send(code::CLOSED);
    assert_eq!(bridge.hear(), (b'X', 2_i64.to_be_bytes().to_vec()));
}

proptest! {
    /// Whatever a bridge says, a call returns once, and the adapter can be disabled.
    #[test]
    fn client_5_any_frames_from_a_bridge(
        frames in prop::collection::vec(
            (prop::sample::select(b"GFECrwsZ".to_vec()), prop::collection::vec(any::<u8>(), 0..20)),
            0..40,
        ),
        cut in 0_usize..3,
    ) {
        let (bridge, mut server) = connected();
        server.enable();
        let mut said = Vec::new();
        for (letter, mut payload) in frames {
            // Mostly of the right length.
            let right = match letter {
                b'G' | b'C' => 16,
                b's' => 8,
                b'w' => 1,
                b'r' => 257,
                _ => 0,
            };
            if payload.first().is_none_or(|first| first % 8 != 0) {
                payload.resize(right, 0);
            }
            if letter == b'C' && payload.len() == 16 {
                payload[0] = [0x80, 0xC0, 0xFF, 0][usize::from(payload[0] % 4)];
                payload[1] %= 3;
            }
            said.extend((1 + payload.len() as u32).to_be_bytes());
            said.push(letter);
            said.extend(payload);
        }
        said.truncate(said.len().saturating_sub(cut));
        let mut stream = &bridge.0;
        for piece in said.chunks(100) {
            if stream.write_all(piece).is_err() {
                break;
            }
            server.run();
        }
        drop(bridge);
        server.run();
        prop_assert_eq!(server.adapter.requests_in_flight(), 0);
        server.on(Event::Disable);
        server.run();
        prop_assert_eq!(server.state(), State::Disabled);
    }
}
