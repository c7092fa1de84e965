//! Connection manager messages over a Unix socket, with the descriptors of the shared memory, and the
//! epoll instance that groups and listeners wait on. One datagram a message (SOCK_SEQPACKET), all
//! integers little-endian. What comes in is another process's word: lengths, descriptor counts and
//! sizes are checked here, meaning is checked by the readers.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use lunar_pcie::{HintLine, Segment};
use lunar_platform::PrivateData;
use rustix::event::epoll;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::connection_manager::{Gone, Message, Received};
use crate::shared::{GroupLayout, PeerGroup};

/// Longest encoded message: fixed fields, a peer name and private data, each at most 255 bytes.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Descriptors one message carries at most.
const DESCRIPTORS_MAX: usize = 3;
/// Messages that wait for room in the socket; beyond, the peer counts as gone.
const OUTBOX_MAX: usize = 4096;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const READY_TO_USE: u8 = 3;
const REJECT: u8 = 4;
const DISCONNECT: u8 = 5;
const MEMORY: u8 = 6;

/// One end of a connection manager's socket.
#[derive(Debug)]
pub(crate) struct UnixEnd {
    socket: OwnedFd,
    /// What the socket had no room for.
    outbox: VecDeque<Message>,
}

impl UnixEnd {
    fn new(socket: OwnedFd) -> Self {
        Self { socket, outbox: VecDeque::new() }
    }

    /// Connects to a listener's socket; never waits.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let socket = new_socket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self::new(socket))
    }

    /// Has `epoll` report this socket as `token`.
    pub(crate) fn watch(&self, epoll: &OwnedFd, token: u32) -> io::Result<()> {
        add(epoll, self.socket.as_fd(), u64::from(token))
    }

    pub(crate) fn send(&mut self, message: &Message) -> Result<(), Gone> {
        self.outbox.push_back(message.clone());
        if self.outbox.len() > OUTBOX_MAX { Err(Gone) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), Gone> {
        while let Some(message) = self.outbox.front() {
            match send(&self.socket, message) {
                Ok(()) => {
                    self.outbox.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    pub(crate) fn receive(&mut self) -> Received {
        // A broken way out shows as an end of the way in, after what was sent before.
        let _ = self.flush();
        match receive(&self.socket) {
            Ok(Some(message)) => Received::Message(message),
            Ok(None) => Received::Gone,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Nothing,
            Err(_) => Received::Gone,
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn missing_descriptor() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "memory without a descriptor cannot be shown to another process",
    )
}

/// Builds an encoded message.
struct Writer(Vec<u8>);

impl Writer {
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// At most 255 bytes, after their number.
    fn short(mut self, bytes: &[u8]) -> Self {
        let bytes = bytes.get(..255).unwrap_or(bytes);
        self.0.push(bytes.len() as u8);
        self.0.extend(bytes);
        self
    }

    fn endpoint(self, endpoint: &PeerGroup) -> Self {
        self.u32(endpoint.layout.queue_pairs)
            .u32(endpoint.layout.remote_keys)
            .u32(endpoint.bit)
            .u64(endpoint.segment.len() as u64)
    }
}

/// Takes an encoded message apart; `None` where it ends too early.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn short(&mut self) -> Option<&'a [u8]> {
        let [length] = self.take()?;
        let (bytes, rest) = self.0.split_at_checked(usize::from(length))?;
        self.0 = rest;
        Some(bytes)
    }

    fn segment(&mut self, descriptor: Option<OwnedFd>) -> Option<Segment> {
        let length = usize::try_from(self.u64()?).ok()?;
        Segment::from_fd(descriptor?, length).ok()
    }

    fn endpoint(&mut self, descriptors: &mut VecDeque<OwnedFd>) -> Option<PeerGroup> {
        let layout = GroupLayout { queue_pairs: self.u32()?, remote_keys: self.u32()? };
        let bit = self.u32()?;
        let segment = self.segment(descriptors.pop_front())?;
        let wake = HintLine::from_fd(descriptors.pop_front()?).ok()?;
        Some(PeerGroup { segment, layout, bit, wake })
    }
}

fn send(socket: &OwnedFd, message: &Message) -> io::Result<()> {
    let (bytes, descriptors) = encode(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let parts = [IoSlice::new(&bytes)];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &parts, &mut control, flags)?;
    Ok(())
}

fn encode(message: &Message) -> io::Result<(Vec<u8>, Vec<BorrowedFd<'_>>)> {
    fn fd(segment: &Segment) -> io::Result<BorrowedFd<'_>> {
        segment.fd().ok_or_else(missing_descriptor)
    }
    Ok(match message {
        Message::Request { endpoint, queue_pair, ring_bytes, peer, private_data } => (
            Writer(vec![REQUEST])
                .endpoint(endpoint)
                .u32(*ring_bytes)
                .u64(queue_pair.len() as u64)
                .short(peer.as_bytes())
                .short(private_data.as_bytes())
                .0,
            vec![fd(&endpoint.segment)?, endpoint.wake.fd(), fd(queue_pair)?],
        ),
        Message::Reply { endpoint, private_data } => (
            Writer(vec![REPLY]).endpoint(endpoint).short(private_data.as_bytes()).0,
            vec![fd(&endpoint.segment)?, endpoint.wake.fd()],
        ),
        Message::ReadyToUse => (vec![READY_TO_USE], Vec::new()),
        Message::Reject { private_data } => {
            (Writer(vec![REJECT]).short(private_data.as_bytes()).0, Vec::new())
        }
        Message::Disconnect => (vec![DISCONNECT], Vec::new()),
        Message::Memory { index, segment } => {
            (Writer(vec![MEMORY]).u32(*index).u64(segment.len() as u64).0, vec![fd(segment)?])
        }
    })
}

/// The next message; `None` at the end of the stream or where the peer sends nonsense, which ends the
/// connection all the same.
fn receive(socket: &OwnedFd) -> io::Result<Option<Message>> {
    let mut bytes = [0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = rustix::net::recvmsg(socket, &mut parts, &mut control, flags)?;
    let mut descriptors = VecDeque::new();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = item {
            descriptors.extend(passed);
        }
    }
    let length = received.bytes;
    Ok(bytes.get(..length).and_then(|bytes| decode(bytes, descriptors)))
}

fn decode(bytes: &[u8], mut descriptors: VecDeque<OwnedFd>) -> Option<Message> {
    let (kind, rest) = bytes.split_first()?;
    let mut reader = Reader(rest);
    Some(match *kind {
        REQUEST => {
            let endpoint = reader.endpoint(&mut descriptors)?;
            let ring_bytes = reader.u32()?;
            let queue_pair = reader.segment(descriptors.pop_front())?;
            let peer = String::from_utf8_lossy(reader.short()?).into_owned();
            let private_data = PrivateData::new(reader.short()?);
            Message::Request { endpoint, queue_pair, ring_bytes, peer, private_data }
        }
        REPLY => Message::Reply {
            endpoint: reader.endpoint(&mut descriptors)?,
            private_data: PrivateData::new(reader.short()?),
        },
        READY_TO_USE => Message::ReadyToUse,
        REJECT => Message::Reject { private_data: PrivateData::new(reader.short()?) },
        DISCONNECT => Message::Disconnect,
        MEMORY => Message::Memory {
            index: reader.u32()?,
            segment: reader.segment(descriptors.pop_front())?,
        },
        _ => return None,
    })
}

/// A listening socket, and the accepted ones whose REQ has not come yet.
#[derive(Debug)]
pub(crate) struct UnixListener {
    path: PathBuf,
    socket: OwnedFd,
    epoll: OwnedFd,
    unread: Vec<UnixEnd>,
}

impl UnixListener {
    /// Listens at `path`. A socket that a dead process left there is replaced.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let socket = new_socket()?;
        match rustix::net::bind(&socket, &address) {
            Err(rustix::io::Errno::ADDRINUSE) if is_abandoned(path) => {
                std::fs::remove_file(path)?;
                rustix::net::bind(&socket, &address)?;
            }
            other => other?,
        }
        rustix::net::listen(&socket, 128)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        add(&epoll, socket.as_fd(), LISTENING)?;
        Ok(Self { path: path.to_owned(), socket, epoll, unread: Vec::new() })
    }

    /// The next accepted socket on which something has arrived, with what it is.
    pub(crate) fn next(&mut self) -> Option<(UnixEnd, Received)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = rustix::net::accept_with(&self.socket, flags) {
            let end = UnixEnd::new(socket);
            if end.watch(&self.epoll, 0).is_ok() {
                self.unread.push(end);
            }
        }
        for index in 0..self.unread.len() {
            let received = match self.unread.get_mut(index)?.receive() {
                Received::Nothing => continue,
                received => received,
            };
            let end = self.unread.swap_remove(index);
            // From now on its group watches it.
            let _ = epoll::delete(&self.epoll, &end.socket);
            return Some((end, received));
        }
        None
    }

    /// Readable when [`Self::next`] may have something.
    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        // Somebody else may have cleaned up.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether nobody listens at `path` any more.
fn is_abandoned(path: &Path) -> bool {
    UnixEnd::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

const LISTENING: u64 = u64::MAX;
const WAKE: u64 = u64::MAX;

/// An epoll instance that reports `wake` as a number beyond `u32`.
pub(crate) fn epoll(wake: &HintLine) -> io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    add(&epoll, wake.fd(), WAKE)?;
    Ok(epoll)
}

fn add(epoll: &OwnedFd, source: BorrowedFd<'_>, token: u64) -> io::Result<()> {
    Ok(epoll::add(epoll, source, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?)
}

/// The tokens that are ready now, without waiting; gives their number.
pub(crate) fn ready(epoll: &OwnedFd, tokens: &mut [u64; 32]) -> usize {
    let empty =
        epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
    let mut events = [empty; 32];
    let timeout = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
    let count = epoll::wait(epoll, &mut events, Some(&timeout)).unwrap_or(0);
    for (token, event) in tokens.iter_mut().zip(events.iter().take(count)) {
        *token = event.data.u64();
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::OwnGroup;
    use proptest::prelude::*;

    fn descriptors() -> VecDeque<OwnedFd> {
        let own = OwnGroup::new(GroupLayout { queue_pairs: 64, remote_keys: 4 }).unwrap();
        let memory = own.segment.fd().unwrap().try_clone_to_owned().unwrap();
        let wake = own.wake.fd().try_clone_to_owned().unwrap();
        let queue_pair = Segment::memfd("test", 12 << 10).unwrap();
        let queue_pair = queue_pair.fd().unwrap().try_clone_to_owned().unwrap();
        [memory, wake, queue_pair].into()
    }

    proptest! {
        #[test]
        fn no_message_from_another_process_panics(
            kind in 0u8..8,
            rest in prop::collection::vec(any::<u8>(), 0..64),
            with_descriptors in any::<bool>(),
        ) {
            let mut bytes = vec![kind];
            bytes.extend(rest);
            let passed = if with_descriptors { descriptors() } else { VecDeque::new() };
            if let Some(Message::Request { endpoint, .. }) = decode(&bytes, passed) {
                // What decodes is still only a claim.
                let _ = endpoint.is_valid();
            }
        }
    }

    #[test]
    fn messages_survive_the_socket_in_order_even_when_it_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("srp.sock");
        let mut listener = UnixListener::bind(&path).unwrap();
        let mut near = UnixEnd::connect(&path).unwrap();
        for number in 0..2000u32 {
            let private_data = PrivateData::new(&number.to_le_bytes());
            near.send(&Message::Reject { private_data }).unwrap();
        }
        let mut far = None;
        for number in 0..2000u32 {
            let received = match &mut far {
                None => {
                    let (end, received) = listener.next().unwrap();
                    far = Some(end);
                    received
                }
                Some(far) => {
                    // The sender moves on whenever it is looked at.
                    assert!(matches!(near.receive(), Received::Nothing));
                    far.receive()
                }
            };
            let Received::Message(Message::Reject { private_data }) = received else {
                panic!("{received:?}")
            };
            assert_eq!(private_data.as_bytes(), number.to_le_bytes());
        }
        drop(near);
        assert!(matches!(far.unwrap().receive(), Received::Gone));
    }

    #[test]
    fn an_abandoned_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("srp.sock");
        let abandoned = new_socket().unwrap();
        rustix::net::bind(&abandoned, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        drop(abandoned);
        let live = UnixListener::bind(&path).unwrap();
        let taken = UnixListener::bind(&path).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn memory_without_a_descriptor_cannot_be_announced() {
        let segment = Segment::anonymous(4096).unwrap();
        assert!(encode(&Message::Memory { index: 0, segment }).is_err());
    }
}
