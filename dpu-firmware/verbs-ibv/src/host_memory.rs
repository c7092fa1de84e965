//! The host's end of the way into its memory: arenas registered for the card's RDMA READs and WRITEs,
//! and an endpoint at which the card's poll groups connect.
//!
//! The host moves no data itself. It takes connections that show the secret of a blob, passes hints in
//! both directions, and takes arenas back. A message of no bytes is a hint; each poll group has a
//! connection, and a pair of hint lines, of its own.
#![allow(unsafe_code)] // mapping and registering memory, posting to the provider

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use lunar_platform::{ArenaId, CompletionStatus};
use lunar_verbs_ibv_sys as sys;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::mm::{MapFlags, ProtFlags};

use crate::completion_queue::{CompletionQueue, RawCompletion, take_all};
use crate::connection::{CmId, Event, EventChannel, Reads};
use crate::device::{Device, DeviceState};
use crate::error::OpenError;
use crate::export_blob::{ExportBlob, Hello, Secret};
use crate::group::{token, watch};
use crate::host_link::{create_qp, post_hint_receive};
use crate::memory::Registration;

/// Receives for the card's hints, and hints to the card on their way, per connection.
const HINTS: u32 = 64;
/// Poll groups that may connect.
pub const GROUPS_MAX: usize = 256;

const CHANNEL_TOKEN: u64 = 1 << 32;
const COMPLETION_TOKEN: u64 = 2 << 32;
const STOP_TOKEN: u64 = 3 << 32;
/// `wr_id` of a hint to the card; a hint received has the connection's number alone.
const SENT: u64 = 1 << 63;

/// Memory that the host gives the card, as a descriptor that can be mapped (a memfd).
#[derive(Debug)]
pub struct Arena {
    /// Its name between keeper, agent and card.
    pub id: ArenaId,
    /// What is mapped, from its first byte.
    pub memory: OwnedFd,
    /// Its length in bytes.
    pub bytes: usize,
}

/// The hint lines of one poll group: two eventfds.
#[derive(Debug)]
pub struct HintLines {
    /// Signalled when the card hints.
    pub to_host: OwnedFd,
    /// Read when the host hints; then the card is told.
    pub to_card: OwnedFd,
}

/// A mapped and registered arena.
#[derive(Debug)]
struct Exposed {
    id: ArenaId,
    first: *mut u8,
    bytes: usize,
    /// `None` once it was taken back.
    registration: Option<Registration>,
}

// SAFETY: the mapping is only handed to the device.
unsafe impl Send for Exposed {}

impl Exposed {
    fn new(device: &Arc<DeviceState>, arena: &Arena) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping of the arena. Nothing in this process reads or writes it
        // through here.
        let first = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                arena.bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &arena.memory,
                0,
            )
        }?;
        let (first, bytes) = (first.cast::<u8>(), arena.bytes);
        let mut exposed = Self { id: arena.id, first, bytes, registration: None };
        exposed.register(device)?;
        Ok(exposed)
    }

    /// Registers it (anew): with a new key, and the old one is over.
    fn register(&mut self, device: &Arc<DeviceState>) -> io::Result<()> {
        self.registration = None;
        let access = sys::IBV_ACCESS_LOCAL_WRITE
            | sys::IBV_ACCESS_REMOTE_READ
            | sys::IBV_ACCESS_REMOTE_WRITE;
        // SAFETY: mapped until `drop`, which revokes first. Arenas are what both sides write; all
        // readers take them for another machine's word.
        let registration = unsafe { Registration::new(device, self.first, self.bytes, access) }?;
        self.registration = Some(registration);
        Ok(())
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        self.registration = None;
        // SAFETY: exactly what was mapped, and the device has let go of it.
        let _ = unsafe { rustix::mm::munmap(self.first.cast(), self.bytes) };
    }
}

/// The connection of one poll group.
#[derive(Debug)]
struct Connection {
    id: CmId,
    qp: *mut sys::ibv_qp,
    number: u32,
    /// Hints sent and not reported.
    sent: u32,
}

#[derive(Debug)]
struct Group {
    lines: HintLines,
    connection: Option<Connection>,
}

/// Asks [`HostMemory::serve`] to end, from another thread.
#[derive(Clone, Debug)]
pub struct StopServing(Arc<OwnedFd>);

impl StopServing {
    /// It ends soon.
    pub fn request(&self) {
        // It fails only when the counter is full, and then the line is signalled.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// The host's memory on an RDMA device.
#[derive(Debug)]
pub struct HostMemory {
    // Declared in the order they must go.
    groups: Vec<Group>,
    /// Takes connections as long as it lives.
    _listening: CmId,
    cq: CompletionQueue,
    channel: EventChannel,
    arenas: Vec<Exposed>,
    device: Arc<DeviceState>,
    endpoint: SocketAddr,
    secret: Secret,
    epoll: OwnedFd,
    stop: Arc<OwnedFd>,
}

// SAFETY: the queue pairs' pointers belong to ids, which may move.
unsafe impl Send for HostMemory {}

impl HostMemory {
    /// Registers `arenas` with `device` and listens at `endpoint` for as many poll groups as there are
    /// pairs of hint lines. The endpoint travels in the blobs, so it must be an address that the card
    /// can reach; its port may be 0, which chooses one.
    ///
    /// # Errors
    /// When memory cannot be registered or the endpoint not be listened on.
    pub fn new(
        device: &Device,
        endpoint: SocketAddr,
        arenas: &[Arena],
        lines: Vec<HintLines>,
    ) -> Result<Self, OpenError> {
        let state = &device.0;
        let refused = |reason| OpenError::Listen { address: endpoint, reason };
        if endpoint.ip().is_unspecified() {
            let text = "the card must be told one address that it can reach";
            return Err(refused(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        let exposed: Vec<Exposed> = arenas
            .iter()
            .map(|arena| {
                let (id, bytes) = (arena.id.0, arena.bytes);
                let what = format!("a registration of arena {id}, {bytes} bytes (ulimit -l)");
                Exposed::new(state, arena).map_err(state.failed(what))
            })
            .collect::<Result<_, _>>()?;
        let count = u32::try_from(lines.len().min(GROUPS_MAX)).unwrap_or(0);
        let cq = CompletionQueue::new(state, (count * 4 * HINTS).max(1), 0)?;
        let channel = EventChannel::new(state.library)
            .map_err(state.failed("a channel of the connection manager (modprobe rdma_ucm)"))?;
        let listening = channel.create_id().map_err(refused)?;
        listening.listen(&endpoint, i32::try_from(count).unwrap_or(1)).map_err(refused)?;
        let mut secret = [0; 16];
        let system = |error: rustix::io::Errno| state.failed("an event line")(error.into());
        rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())
            .map_err(system)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(system)?;
        let mut watched = vec![
            (channel.fd(), CHANNEL_TOKEN),
            (cq.fd(), COMPLETION_TOKEN),
            (stop.as_fd(), STOP_TOKEN),
        ];
        for (index, lines) in lines.iter().enumerate() {
            watched.push((lines.to_card.as_fd(), index as u64));
        }
        let epoll = watch(&watched).map_err(state.failed("an epoll instance"))?;
        for lines in &lines {
            rustix::io::ioctl_fionbio(&lines.to_card, true).map_err(system)?;
        }
        let endpoint = SocketAddr::new(endpoint.ip(), listening.local_port());
        Ok(Self {
            groups: lines.into_iter().map(|lines| Group { lines, connection: None }).collect(),
            _listening: listening,
            cq,
            channel,
            arenas: exposed,
            device: Arc::clone(state),
            endpoint,
            secret,
            epoll,
            stop: Arc::new(stop),
        })
    }

    /// What the card needs to reach `arena`; a secret. `None` when there is no such arena any more.
    #[must_use]
    pub fn blob(&self, arena: ArenaId) -> Option<Vec<u8>> {
        let exposed = self.arenas.iter().find(|exposed| exposed.id == arena)?;
        let registration = exposed.registration.as_ref()?;
        let blob = ExportBlob {
            arena,
            length: exposed.bytes as u64,
            base: exposed.first as u64,
            rkey: registration.rkey(),
            endpoint: self.endpoint,
            secret: self.secret,
        };
        Some(blob.encode().to_vec())
    }

    /// Takes an arena back: the card's transfers from and to it fail from now on.
    pub fn revoke(&mut self, arena: ArenaId) {
        for exposed in self.arenas.iter_mut().filter(|exposed| exposed.id == arena) {
            exposed.registration = None;
        }
    }

    /// Takes an arena back and offers it anew: its old blobs open nothing any more.
    ///
    /// # Errors
    /// When it cannot be registered again; then it stays taken back.
    pub fn renew(&mut self, arena: ArenaId) -> Result<(), OpenError> {
        for exposed in self.arenas.iter_mut().filter(|exposed| exposed.id == arena) {
            let what = format!("a new registration of arena {}", arena.0);
            exposed.register(&self.device).map_err(self.device.failed(what))?;
        }
        Ok(())
    }

    /// How another thread ends [`Self::serve`].
    #[must_use]
    pub fn stopper(&self) -> StopServing {
        StopServing(Arc::clone(&self.stop))
    }

    /// Where the card connects.
    #[must_use]
    pub fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    /// Readable when [`Self::serve_once`] has something to do.
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Takes connections and passes hints until it is asked to stop. Blocks.
    ///
    /// # Errors
    /// When waiting fails or the device was removed; nothing of it can be used then.
    pub fn serve(&mut self) -> io::Result<()> {
        while self.serve_until(None)? {}
        Ok(())
    }

    /// Does what there is to do now, without waiting. `false` once the end was asked for.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub fn serve_once(&mut self) -> io::Result<bool> {
        self.serve_until(Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    fn serve_until(&mut self, timeout: Option<&rustix::event::Timespec>) -> io::Result<bool> {
        let nothing = epoll::Event { flags: epoll::EventFlags::empty(), data: token(0) };
        let mut ready = [nothing; 16];
        // Armed before the look, so that what comes after it wakes the next wait.
        self.cq.arm()?;
        self.take_completions();
        let count = match epoll::wait(&self.epoll, &mut ready[..], timeout) {
            Err(rustix::io::Errno::INTR) => 0,
            other => other?,
        };
        for ready in ready.iter().take(count) {
            match ready.data.u64() {
                STOP_TOKEN => return Ok(false),
                COMPLETION_TOKEN => self.take_completions(),
                CHANNEL_TOKEN => {
                    while let Some(event) = self.channel.next() {
                        if event.kind == sys::RDMA_CM_EVENT_DEVICE_REMOVAL {
                            return Err(io::Error::other("the RDMA device was removed"));
                        }
                        self.on_cm(event);
                    }
                }
                group => self.hint_card(group as usize),
            }
        }
        Ok(true)
    }

    fn on_cm(&mut self, mut event: Event) {
        if let Some(id) = event.request.take() {
            if let Err(reason) = self.accept(id, &event) {
                tracing::warn!(peer = event.peer.as_str(), reason, "a card was refused");
            }
            return;
        }
        let ended = matches!(
            event.kind,
            sys::RDMA_CM_EVENT_DISCONNECTED
                | sys::RDMA_CM_EVENT_REJECTED
                | sys::RDMA_CM_EVENT_UNREACHABLE
                | sys::RDMA_CM_EVENT_CONNECT_ERROR
        );
        let owner = self.groups.iter().position(|group| {
            group.connection.as_ref().is_some_and(|connection| connection.id.raw() == event.id)
        });
        if ended && let Some(index) = owner {
            self.end_connection(index, "the connection was ended");
        }
    }

    /// Answers a connection request.
    fn accept(&mut self, id: CmId, event: &Event) -> Result<(), &'static str> {
        let refuse = |reason: &'static str| {
            id.reject(reason.as_bytes());
            reason
        };
        let hello = Hello::parse(&event.private_data)
            .ok_or_else(|| refuse("this is the memory of a Lunar host, for Lunar's cards alone"))?;
        if !hello.shows(&self.secret) {
            return Err(refuse("the export blob is of an earlier start of this host"));
        }
        let Some(group) = self.groups.get_mut(usize::from(hello.group)) else {
            return Err(refuse("the host has no ring for a poll group of this number"));
        };
        if id.verbs() != self.device.context {
            return Err(refuse("the arenas are not registered with this RDMA device"));
        }
        let made = create_qp(&id, &self.device, &self.cq, (HINTS, HINTS), hello.group.into())
            .map_err(|_| refuse("the host's RDMA device has no room for another connection"))?;
        let asked =
            Reads { initiator: event.initiator_depth, responder: event.responder_resources };
        let reads = Reads::agree(0, asked, &self.device.attributes);
        id.accept(&[], reads).map_err(|_| "the card went away while it connected")?;
        // A card that started anew replaces what is left of its earlier start.
        if let Some(older) = group.connection.take() {
            older.id.disconnect();
        }
        group.connection = Some(Connection { id, qp: made.qp, number: made.number, sent: 0 });
        tracing::info!(group = hello.group, peer = event.peer.as_str(), "a poll group connected");
        Ok(())
    }

    fn take_completions(&mut self) {
        take_all(self, |memory| &mut memory.cq, Self::complete);
    }

    fn complete(&mut self, raw: &RawCompletion) {
        let index = usize::try_from(raw.wr_id & !SENT).unwrap_or(usize::MAX);
        let Some(group) = self.groups.get_mut(index) else { return };
        // One of an earlier connection says nothing about this one.
        let ours = |connection: &&mut Connection| connection.number == raw.qp_number;
        let Some(connection) = group.connection.as_mut().filter(ours) else { return };
        if raw.status != CompletionStatus::Success {
            return self.end_connection(index, "a hint could not be passed on");
        }
        if raw.wr_id & SENT != 0 {
            connection.sent = connection.sent.saturating_sub(1);
        } else {
            signal(&group.lines.to_host);
            // Where it is refused the connection is over, which the connection manager reports.
            let _ = post_hint_receive(connection.qp, raw.wr_id);
        }
    }

    /// Ends the connection of poll group `index`. The card learns of it at the latest when it next uses it.
    fn end_connection(&mut self, index: usize, reason: &str) {
        if let Some(connection) =
            self.groups.get_mut(index).and_then(|group| group.connection.take())
        {
            tracing::info!(group = index, reason, "a poll group of the card is gone");
            connection.id.disconnect();
        }
    }

    /// The host hinted for poll group `index`: the card is told, unless many hints are on their way.
    fn hint_card(&mut self, index: usize) {
        let Some(group) = self.groups.get_mut(index) else { return };
        let _ = rustix::io::read(&group.lines.to_card, &mut [0; 8]);
        let Some(connection) = group.connection.as_mut() else { return };
        if connection.sent >= HINTS / 2 {
            return;
        }
        let mut work = sys::ibv_send_wr {
            wr_id: SENT | index as u64,
            opcode: sys::IBV_WR_SEND,
            send_flags: sys::IBV_SEND_SIGNALED,
            ..sys::ibv_send_wr::EMPTY
        };
        let mut refused = ptr::null_mut();
        // SAFETY: the connection has its queue pair; the request names no memory.
        let result = unsafe { sys::ibv_post_send(connection.qp, &raw mut work, &raw mut refused) };
        // A refused hint is a lost one.
        connection.sent += u32::from(result == 0);
    }
}

fn signal(line: &OwnedFd) {
    // It fails only when the counter is full, and then the line is signalled.
    let _ = rustix::io::write(line, &1u64.to_ne_bytes());
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        for connection in self.groups.iter().filter_map(|group| group.connection.as_ref()) {
            connection.id.disconnect();
        }
    }
}
