//! The HCA and the listener against an initiator that knows nothing of them.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use lunar_platform::{
    CmEvent, CompletionStatus, Hca, HcaAttributes, Listener, Memory, PostError, QpHandle,
    QpParameters, ReceiveRequest, Region, RemoteAddress, SendOperation, SendRequest, Sge,
    WorkCompletion, WorkRequestId,
};
use lunar_verbs_ibv::{Device, IbvHca, IbvListener, IbvRegion};

use crate::rdma::{Answer, DATA_AT, Initiator, RECEIVE_BYTES};

/// One test.
pub type Test = fn(&Device, Ipv4Addr) -> anyhow::Result<()>;

pub const TESTS: &[(&str, Test)] = &[
    ("login_rejected_with_private_data", login_rejected_with_private_data),
    ("unanswered_request_is_rejected", unanswered_request_is_rejected),
    ("messages_in_both_directions", messages_in_both_directions),
    ("rdma_in_both_directions", rdma_in_both_directions),
    ("chains_are_all_or_nothing", chains_are_all_or_nothing),
    ("a_sleeper_is_woken", a_sleeper_is_woken),
    ("a_bad_key_ends_the_connection", a_bad_key_ends_the_connection),
    ("a_bad_local_key_is_reported", a_bad_local_key_is_reported),
    ("peer_disconnects_with_work_posted", peer_disconnects_with_work_posted),
    ("peer_vanishes", peer_vanishes),
    ("logins_in_a_loop", logins_in_a_loop),
    ("two_poll_groups", two_poll_groups),
];

pub const WANTED: HcaAttributes = HcaAttributes {
    queue_pairs_max: 8,
    send_queue_depth_max: 64,
    shared_receive_queue_depth: 32,
    completion_queue_depth: 2048,
    rdma_reads_max: 16,
    message_bytes_max: 16 << 20,
};
const PARAMETERS: QpParameters = QpParameters { send_queue_depth: 16, rdma_reads: 16 };
const LOGIN: [u8; 56] = [0x5a; 56];
const RESPONSE: [u8; 52] = [0xc0; 52];
const BYTES: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

struct Rig {
    listener: IbvListener,
    address: SocketAddrV4,
    hca: IbvHca,
    region: IbvRegion,
    /// What was seen and not asked for yet.
    events: VecDeque<CmEvent>,
    completions: VecDeque<WorkCompletion>,
}

impl Rig {
    /// A group with 16 receives of 4 KiB posted at the region's first bytes.
    fn new(device: &Device, address: Ipv4Addr) -> anyhow::Result<Self> {
        let any = SocketAddr::new(address.into(), 0);
        let listener = IbvListener::new(std::slice::from_ref(device), &[any])?;
        let port = listener.port(0).context("no port")?;
        let mut pieces = device.group(0, WANTED, device)?;
        let region = pieces.memory.claim(DATA_AT + BYTES)?;
        let mut rig = Self {
            listener,
            address: SocketAddrV4::new(address, port),
            hca: pieces.hca,
            region,
            events: VecDeque::new(),
            completions: VecDeque::new(),
        };
        // The memory's registrar may go: the region stays registered.
        drop(pieces.memory);
        for receive in 0..16 {
            rig.post_receive(receive)?;
        }
        Ok(rig)
    }

    fn sge(&self, offset: usize, length: usize) -> Sge {
        let address = self.region.base() + offset as u64;
        Sge { address, length: length as u32, key: self.region.key() }
    }

    fn post_receive(&mut self, receive: usize) -> anyhow::Result<()> {
        let local = self.sge(receive * RECEIVE_BYTES, RECEIVE_BYTES);
        let id = WorkRequestId(u64::MAX - receive as u64);
        let posted = self.hca.post_receive(ReceiveRequest { id, local });
        posted.map_err(|error| anyhow::anyhow!("post_receive: {error:?}"))
    }

    fn request(
        &self,
        id: u64,
        operation: SendOperation,
        offset: usize,
        length: usize,
    ) -> SendRequest {
        SendRequest {
            id: WorkRequestId(id),
            operation,
            local: self.sge(offset, length),
            signaled: true,
        }
    }

    fn post(&mut self, qp: QpHandle, chain: &[SendRequest]) -> anyhow::Result<()> {
        self.hca.post_send(qp, chain).map_err(|error| anyhow::anyhow!("post_send: {error:?}"))?;
        self.hca.ring(qp);
        Ok(())
    }

    /// The next connection request.
    fn login(
        &mut self,
    ) -> anyhow::Result<lunar_platform::ConnectRequest<lunar_verbs_ibv::IbvConnection>> {
        wait("a connection request", || Ok(self.listener.poll()))
    }

    /// Accepts an initiator that connects by itself, and waits until it is live.
    fn connect(&mut self) -> anyhow::Result<(QpHandle, Initiator)> {
        let address = self.address;
        let initiator = std::thread::spawn(move || Initiator::accepted(address, &LOGIN, BYTES));
        let request = self.login()?;
        ensure!(request.private_data.as_bytes() == LOGIN, "other private data came");
        ensure!(
            request.peer.as_str() == address.ip().to_string(),
            "the peer is {:?}, not {}",
            request.peer,
            address.ip()
        );
        let accepted = self.hca.accept(request.connection, PARAMETERS, &RESPONSE);
        let qp = accepted.map_err(|error| anyhow::anyhow!("accept: {error:?}"))?;
        let (initiator, answer) = join(initiator)?;
        ensure!(answer.starts_with(&RESPONSE), "other private data came back: {answer:02x?}");
        self.expect_event(CmEvent::Established(qp))?;
        Ok((qp, initiator))
    }

    fn turn(&mut self) {
        while let Some(event) = self.hca.poll_cm() {
            // A port comes up when it likes, as soon as the machine has started.
            if event != CmEvent::PortUp {
                self.events.push_back(event);
            }
        }
        let mut out = [WorkCompletion::EMPTY; 4];
        let count = self.hca.poll(&mut out);
        self.completions.extend(&out[..count]);
    }

    fn expect_event(&mut self, expected: CmEvent) -> anyhow::Result<()> {
        let event = wait(&format!("{expected:?}"), || {
            self.turn();
            Ok(self.events.pop_front())
        })?;
        ensure!(event == expected, "{event:?} came, not {expected:?}");
        Ok(())
    }

    fn completion(&mut self) -> anyhow::Result<WorkCompletion> {
        wait("a completion", || {
            self.turn();
            Ok(self.completions.pop_front())
        })
    }

    fn expect_success(&mut self, id: u64) -> anyhow::Result<()> {
        let completion = self.completion()?;
        ensure!(
            completion.id.0 == id && completion.status == CompletionStatus::Success,
            "{completion:?} came, not the success of {id}"
        );
        Ok(())
    }

    /// Disconnects and takes the queue pair to its end; gives how what was posted ended.
    fn end(&mut self, qp: QpHandle) -> anyhow::Result<Vec<WorkCompletion>> {
        self.hca.disconnect(qp);
        self.ended(qp)
    }

    fn ended(&mut self, qp: QpHandle) -> anyhow::Result<Vec<WorkCompletion>> {
        self.expect_event(CmEvent::Disconnected(qp))?;
        self.expect_event(CmEvent::Drained(qp))?;
        let request = self.request(1, SendOperation::Send, 0, 8);
        let refused = self.hca.post_send(qp, &[request]);
        ensure!(refused == Err(PostError::NotConnected), "a drained queue pair took work");
        self.hca.destroy(qp);
        self.turn();
        ensure!(self.events.is_empty(), "events after the end: {:?}", self.events);
        Ok(self.completions.drain(..).collect())
    }
}

/// Polls until there is something.
pub fn wait<T>(
    what: &str,
    mut poll: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Some(found) = poll()? {
            return Ok(found);
        }
        std::thread::yield_now();
    }
    bail!("no {what} within {PATIENCE:?}")
}

fn join<T>(thread: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("the initiator panicked"))?
}

/// Disconnects, which blocks until the other end has answered.
fn leave(mut initiator: Initiator) -> JoinHandle<anyhow::Result<()>> {
    std::thread::spawn(move || {
        initiator.disconnect();
        Ok(())
    })
}

fn login_rejected_with_private_data(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut rig = Rig::new(device, address)?;
    let at = rig.address;
    for by_group in [false, true] {
        let initiator =
            std::thread::spawn(move || Initiator::connect(*at.ip(), at.port(), &LOGIN, 0));
        let request = rig.login()?;
        if by_group {
            rig.hca.reject(request.connection, &[0xc2; 32]);
        } else {
            rig.listener.reject(request.connection, &[0xc2; 32]);
        }
        match join(initiator)? {
            Answer::Rejected(answer) => {
                ensure!(answer.starts_with(&[0xc2; 32]), "other private data came: {answer:02x?}");
            }
            Answer::Accepted(..) => bail!("accepted"),
        }
    }
    Ok(())
}

fn unanswered_request_is_rejected(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut rig = Rig::new(device, address)?;
    let at = rig.address;
    let initiator = std::thread::spawn(move || Initiator::connect(*at.ip(), at.port(), &LOGIN, 0));
    drop(rig.login()?);
    ensure!(matches!(join(initiator)?, Answer::Rejected(_)), "accepted");
    Ok(())
}

fn messages_in_both_directions(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut rig = Rig::new(device, address)?;
    let (qp, mut initiator) = rig.connect()?;
    for turn in 0..40usize {
        let length = [1, 68, 1000, 4096][turn % 4];
        initiator.bytes()[DATA_AT..DATA_AT + length].fill(turn as u8 + 1);
        let sender =
            std::thread::spawn(move || initiator.send(DATA_AT, length).map(|()| initiator));
        let completion = rig.completion()?;
        initiator = join(sender)?;
        ensure!(
            completion.status == CompletionStatus::Success
                && completion.qp == qp
                && completion.length as usize == length,
            "{completion:?}"
        );
        let receive = (u64::MAX - completion.id.0) as usize;
        let bytes = rig.region.bytes(receive * RECEIVE_BYTES, length);
        ensure!(bytes.iter().all(|byte| *byte == turn as u8 + 1), "other bytes came");
        rig.post_receive(receive)?;

        // Back: short ones inline, long ones from memory.
        rig.region.bytes_mut(DATA_AT, length).fill(turn as u8 + 100);
        let request = rig.request(turn as u64, SendOperation::Send, DATA_AT, length);
        rig.post(qp, &[request])?;
        rig.expect_success(turn as u64)?;
        let received = initiator.completion()?;
        ensure!(received.byte_len as usize == length, "{received:?}");
        let at = received.wr_id as usize * RECEIVE_BYTES;
        let bytes = &initiator.bytes()[at..at + length];
        ensure!(bytes.iter().all(|byte| *byte == turn as u8 + 100), "other bytes arrived");
        initiator.post_receive(received.wr_id as usize)?;
    }
    let left = rig.end(qp)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn rdma_in_both_directions(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut rig = Rig::new(device, address)?;
    let (qp, mut initiator) = rig.connect()?;
    for (place, byte) in rig.region.bytes_mut(DATA_AT, BYTES).iter_mut().enumerate() {
        *byte = (place / 7) as u8;
    }
    let to = initiator.remote(DATA_AT);
    // A batch as a target sends it: unsignalled writes, then a signalled response.
    let piece = BYTES / 8;
    let mut chain: Vec<SendRequest> = (0..8)
        .map(|place| {
            let offset = place * piece;
            let to = RemoteAddress { address: to.address + offset as u64, ..to };
            let write = SendOperation::RdmaWrite(to);
            SendRequest { signaled: false, ..rig.request(7, write, DATA_AT + offset, piece) }
        })
        .collect();
    chain.push(rig.request(8, SendOperation::Send, DATA_AT, 36));
    rig.post(qp, &chain)?;
    rig.expect_success(8)?;
    let response = initiator.completion()?;
    ensure!(response.byte_len == 36, "{response:?}");
    let arrived = &initiator.bytes()[DATA_AT..];
    let same = arrived.iter().enumerate().all(|(place, byte)| *byte == (place / 7) as u8);
    ensure!(same, "other bytes arrived");

    initiator.bytes()[DATA_AT..].fill(0x3c);
    // More reads than the peer's four.
    let chain: Vec<SendRequest> = (0..8)
        .map(|place| {
            let offset = place * piece;
            let from = RemoteAddress { address: to.address + offset as u64, ..to };
            let read = SendOperation::RdmaRead(from);
            SendRequest { signaled: place == 7, ..rig.request(9, read, DATA_AT + offset, piece) }
        })
        .collect();
    rig.post(qp, &chain)?;
    rig.expect_success(9)?;
    ensure!(rig.region.bytes(DATA_AT, BYTES).iter().all(|byte| *byte == 0x3c), "other bytes came");
    let left = rig.end(qp)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn chains_are_all_or_nothing(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut rig = Rig::new(device, address)?;
    let (qp, initiator) = rig.connect()?;
    let write = SendOperation::RdmaWrite(initiator.remote(DATA_AT));
    let depth = PARAMETERS.send_queue_depth as usize;
    let chain: Vec<SendRequest> = (0..depth)
        .map(|place| SendRequest {
            signaled: false,
            ..rig.request(place as u64, write, DATA_AT, 64)
        })
        .collect();
    for _ in 0..50 {
        ensure!(rig.hca.post_send(qp, &chain[..depth - 2]).is_ok(), "no room");
        rig.hca.ring(qp);
        let refused = rig.hca.post_send(qp, &chain[..3]);
        ensure!(refused == Err(PostError::Full), "3 went where 2 fit: {refused:?}");
        // Unsignalled requests hold their places until this one is reported.
        rig.post(qp, &[chain[0], SendRequest { signaled: true, ..chain[1] }])?;
        ensure!(rig.hca.post_send(qp, &chain[..1]) == Err(PostError::Full), "it is not full");
        rig.expect_success(1)?;
    }
    let long = rig.request(1, write, DATA_AT, 64);
    let long = SendRequest { local: Sge { length: u32::MAX, ..long.local }, ..long };
    ensure!(rig.hca.post_send(qp, &[chain[0], long]) == Err(PostError::Invalid), "4 GiB");
    ensure!(rig.hca.post_send(qp, &chain).is_ok(), "part of a refused chain holds places");
    rig.end(qp)?;
    Ok(())
}

fn a_sleeper_is_woken(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut rig = Rig::new(device, address)?;
    let (qp, mut initiator) = rig.connect()?;
    for turn in 0..20usize {
        let armed = wait("armed", || {
            rig.turn();
            Ok(rig.hca.arm().then_some(()))
        });
        armed?;
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            initiator.send(DATA_AT, 8).map(|()| initiator)
        });
        ensure!(sleep(&rig.hca)?, "turn {turn}: not woken by a message");
        let completion = rig.completion()?;
        rig.post_receive((u64::MAX - completion.id.0) as usize)?;
        initiator = join(sender)?;
    }
    wait("armed", || {
        rig.turn();
        Ok(rig.hca.arm().then_some(()))
    })?;
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        initiator.disconnect();
        Ok(initiator)
    });
    ensure!(sleep(&rig.hca)?, "not woken by the end of a connection");
    rig.ended(qp)?;
    join(closer)?;
    Ok(())
}

/// Sleeps until the group's descriptor is readable; `false` when it does not become so.
fn sleep(hca: &IbvHca) -> anyhow::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd = hca.event_fd().context("no descriptor")?;
    let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
    let count = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&patience))?;
    Ok(count == 1)
}

fn a_bad_key_ends_the_connection(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut rig = Rig::new(device, address)?;
    let (qp, initiator) = rig.connect()?;
    let good = initiator.remote(DATA_AT);
    let bad = RemoteAddress { key: good.key ^ 0x5500, ..good };
    // The unsignalled failure is reported, and everything behind it.
    let chain = [
        SendRequest {
            signaled: false,
            ..rig.request(1, SendOperation::RdmaWrite(good), DATA_AT, 64)
        },
        SendRequest {
            signaled: false,
            ..rig.request(2, SendOperation::RdmaWrite(bad), DATA_AT, 64)
        },
        SendRequest {
            signaled: false,
            ..rig.request(3, SendOperation::RdmaWrite(good), DATA_AT, 64)
        },
        rig.request(4, SendOperation::Send, DATA_AT, 8),
    ];
    rig.post(qp, &chain)?;
    let first = rig.completion()?;
    ensure!(first.id.0 == 2 && first.status == CompletionStatus::RemoteAccess, "{first:?}");
    // Posted behind the failure, before the owner knows, and never rung.
    let unrung = rig.request(5, SendOperation::Send, DATA_AT, 8);
    ensure!(rig.hca.post_send(qp, &[unrung]).is_ok(), "a failed queue pair takes no work");
    rig.hca.disconnect(qp);
    rig.hca.disconnect(qp);
    let mut ends = rig.ended(qp)?;
    ends.retain(|end| end.status != CompletionStatus::Success);
    let ids: Vec<u64> = ends.iter().map(|end| end.id.0).collect();
    ensure!(ids == [3, 4, 5], "flushed: {ends:?}");
    ensure!(ends.iter().all(|end| end.status == CompletionStatus::Flushed), "{ends:?}");
    Ok(())
}

fn a_bad_local_key_is_reported(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut rig = Rig::new(device, address)?;
    let (qp, initiator) = rig.connect()?;
    let mut request =
        rig.request(1, SendOperation::RdmaWrite(initiator.remote(DATA_AT)), DATA_AT, 64);
    request.local.key = lunar_platform::LocalKey(0x7777);
    // Whether the device refuses it at the doorbell or reports it is the device's business.
    rig.post(qp, &[request])?;
    let completion = rig.completion()?;
    ensure!(
        completion.id.0 == 1 && completion.status != CompletionStatus::Success,
        "{completion:?}"
    );
    rig.hca.disconnect(qp);
    wait("the end", || {
        rig.turn();
        Ok(rig.events.iter().any(|event| *event == CmEvent::Drained(qp)).then_some(()))
    })?;
    rig.hca.destroy(qp);
    Ok(())
}

fn peer_disconnects_with_work_posted(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut rig = Rig::new(device, address)?;
    let (qp, mut initiator) = rig.connect()?;
    initiator.send(DATA_AT, 8)?;
    let leaving = leave(initiator);
    let unrung = [rig.request(1, SendOperation::Send, DATA_AT, 8); 3];
    rig.hca.post_send(qp, &unrung).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let ends = rig.ended(qp)?;
    let message = ends.iter().filter(|end| end.id.0 > 1000).count();
    let flushed = ends.iter().filter(|end| end.status == CompletionStatus::Flushed).count();
    ensure!(message == 1 && flushed == 3, "{ends:?}");
    join(leaving)?;
    Ok(())
}

fn peer_vanishes(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut rig = Rig::new(device, address)?;
    let (qp, mut initiator) = rig.connect()?;
    initiator.vanish();
    let request = rig.request(1, SendOperation::Send, DATA_AT, 8);
    rig.post(qp, &[request, request])?;
    let first = rig.completion()?;
    ensure!(first.status == CompletionStatus::RetryExceeded, "{first:?}");
    let ends = rig.end(qp)?;
    ensure!(ends.len() == 1 && ends[0].status == CompletionStatus::Flushed, "{ends:?}");
    Ok(())
}

fn logins_in_a_loop(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut rig = Rig::new(device, address)?;
    for turn in 0..30 {
        let (qp, mut initiator) = rig.connect().with_context(|| format!("turn {turn}"))?;
        initiator.send(DATA_AT, 8)?;
        let completion = rig.completion()?;
        ensure!(completion.qp == qp, "{completion:?} is not of {qp:?}");
        rig.post_receive((u64::MAX - completion.id.0) as usize)?;
        if turn % 2 == 0 {
            let leaving = leave(initiator);
            rig.ended(qp)?;
            join(leaving)?;
        } else {
            rig.end(qp)?;
        }
    }
    // All receives are back: sixteen posted of thirty-two, so sixteen more fit, and no other.
    for _ in 0..16 {
        rig.post_receive(0)?;
    }
    ensure!(rig.post_receive(0).is_err(), "the SRQ takes more than it was made for");
    Ok(())
}

fn two_poll_groups(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut rig = Rig::new(device, address)?;
    let mut other = Rig::new(device, address)?;
    let (first, mut one) = rig.connect()?;
    // A connection that came to the card's listener and is accepted by another group.
    let at = rig.address;
    let initiator = std::thread::spawn(move || Initiator::accepted(at, &LOGIN, BYTES));
    let request = rig.login()?;
    let accepted = other.hca.accept(request.connection, PARAMETERS, &RESPONSE);
    let second = accepted.map_err(|error| anyhow::anyhow!("accept: {error:?}"))?;
    let (mut two, _) = join(initiator)?;
    other.expect_event(CmEvent::Established(second))?;
    one.send(DATA_AT, 10)?;
    two.send(DATA_AT, 20)?;
    let (at_one, at_other) = (rig.completion()?, other.completion()?);
    ensure!(at_one.length == 10 && at_one.qp == first, "{at_one:?}");
    ensure!(at_other.length == 20 && at_other.qp == second, "{at_other:?}");
    let leaving = leave(two);
    other.ended(second)?;
    join(leaving)?;
    rig.end(first)?;
    Ok(())
}
