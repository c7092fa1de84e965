//! The card's end of the way into host memory: a reliable connection to the host's endpoint, over
//! which RDMA WRITE is a push, RDMA READ a pull, and a small RDMA READ a flush.
//!
//! The connection is made when an arena is imported, and ends with the last import. Until it is there
//! [`Dma::room`] is 0, so that nobody submits; once it broke, everything ends with [`DmaError::Gone`]
//! until the host's arenas are imported anew.
//!
//! Order: the send queue runs and completes in order, and a WRITE behind a READ carries the fence, for
//! a responder may otherwise execute it before it has read (IBTA 10.8.3.3).
#![allow(unsafe_code)] // posting: calls into the provider's functions

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lunar_platform::{
    ArenaId, CompletionStatus, Dma, DmaCompletion, DmaError, DmaOperation, DmaRequest, HostAddress,
    HostArena, LocalKey, MemoryError, Region as _,
};
use lunar_verbs_ibv_sys as sys;

use crate::completion_queue::{CompletionQueue, RawCompletion, take_all};
use crate::connection::{CmId, Event, EventChannel, MadeQp, QpWishes, Reads};
use crate::device::DeviceState;
use crate::error::OpenError;
use crate::export_blob::{ExportBlob, Hello, Secret};
use crate::group::watch;
use crate::keys::Keys;
use crate::memory::IbvRegion;

/// Operations that may be submitted and not reaped.
const CAPACITY: usize = 256;
/// Hints on their way; more are not sent, as hints may be lost.
const HINTS_MAX: u32 = 16;
/// RDMA READs outstanding.
const READS_MAX: u32 = 16;
/// The connection manager is looked at in one of so many polls once the connection stands.
const EVENT_POLLS: u32 = 256;
/// Between two tries to connect.
const RETRY: Duration = Duration::from_secs(1);
/// How long finding the address or the path may take, in milliseconds.
const RESOLVE_MS: i32 = 2000;
/// A host that dies says nothing. It counts as gone after seven times 0.27 s without acknowledgement;
/// the connection manager's own estimate makes that 18 s (rxe).
const ACK_TIMEOUT: u8 = 16;
/// An operation without an end for so long never gets one: the device owes an answer or an error after [`ACK_TIMEOUT`],
/// and soft RoCE was seen to forget that.
const STALLED: Duration = Duration::from_secs(10);
/// The same where the connection broke: what is posted comes back at once.
const STALLED_BROKEN: Duration = Duration::from_secs(1);
/// Bytes that a flush reads.
const FLUSH_BYTES: u32 = 8;

/// Completion of a receive: a hint of the host.
const HINT_RECEIVED: u64 = 1 << 63;

/// The arenas that a group's memory has imported, as its DMA context learns of them.
#[derive(Debug, Default)]
pub(crate) struct Imports {
    changes: AtomicU32,
    arenas: Mutex<Vec<ExportBlob>>,
}

impl Imports {
    fn change(&self, change: impl FnOnce(&mut Vec<ExportBlob>)) {
        change(&mut self.arenas.lock().unwrap_or_else(PoisonError::into_inner));
        self.changes.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn import(&self, blob: &[u8]) -> Result<HostArena, MemoryError> {
        let blob = ExportBlob::parse(blob).ok_or(MemoryError::BadBlob)?;
        self.change(|arenas| {
            // A second import replaces the first: the arena may have been offered anew meanwhile.
            arenas.retain(|known| known.arena != blob.arena);
            arenas.push(blob);
        });
        Ok(HostArena { id: blob.arena, base: blob.base, length: blob.length, key: None })
    }

    pub(crate) fn unimport(&self, arena: ArenaId) {
        self.change(|arenas| arenas.retain(|known| known.arena != arena));
    }
}

/// Where the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No arena is imported.
    Idle,
    /// On its way, since the last step.
    Connecting,
    /// It failed; the next try is then.
    Waiting(Instant),
    Live,
    /// It stood and broke.
    Broken,
}

/// A posted entry of the send queue.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Operation {
        id: u64,
        read: bool,
    },
    /// Unsignalled: its place is free when a later entry is reported.
    Hint,
}

/// One poll group's DMA context.
#[derive(Debug)]
pub struct HostLink {
    // Declared in the order they must go.
    id: Option<CmId>,
    cq: CompletionQueue,
    channel: EventChannel,
    /// What flushes read into.
    scratch: IbvRegion,
    device: Arc<DeviceState>,
    keys: Arc<Keys>,
    imports: Arc<Imports>,
    group: u16,
    epoll: OwnedFd,
    state: State,
    qp: *mut sys::ibv_qp,
    qp_number: u32,
    /// What was imported when it was last looked at.
    seen: u32,
    arenas: Vec<ExportBlob>,
    /// Entries posted and not ended, oldest first; the first one's number.
    posted: VecDeque<Entry>,
    first: u64,
    /// Which entry was the first when the connection was looked at, and since when it is.
    oldest: (u64, Instant),
    reads: u32,
    hints: u32,
    /// Ended, not reaped.
    ended: VecDeque<DmaCompletion>,
    hinted: bool,
    event_polls: u32,
}

// SAFETY: the queue pair belongs to `id`, which may move.
unsafe impl Send for HostLink {}

impl HostLink {
    pub(crate) fn new(
        device: &Arc<DeviceState>,
        group: u16,
        keys: Arc<Keys>,
        imports: Arc<Imports>,
    ) -> Result<Self, OpenError> {
        let depth = CAPACITY as u32 + 2 * HINTS_MAX;
        let cq = CompletionQueue::new(device, depth, group.into())?;
        let channel = EventChannel::new(device.library)
            .map_err(device.failed("a channel of the connection manager (modprobe rdma_ucm)"))?;
        let scratch = IbvRegion::claim(device, device, &keys, FLUSH_BYTES as usize)
            .map_err(device.failed("registered memory (ulimit -l)"))?;
        let epoll = watch(&[(channel.fd(), 0), (cq.fd(), 1)])
            .map_err(device.failed("an epoll instance"))?;
        Ok(Self {
            id: None,
            cq,
            channel,
            scratch,
            device: Arc::clone(device),
            keys,
            imports,
            group,
            epoll,
            state: State::Idle,
            qp: ptr::null_mut(),
            qp_number: 0,
            seen: 0,
            arenas: Vec::new(),
            posted: VecDeque::with_capacity(CAPACITY + HINTS_MAX as usize),
            first: 0,
            oldest: (0, Instant::now()),
            reads: 0,
            hints: 0,
            ended: VecDeque::with_capacity(CAPACITY),
            hinted: false,
            event_polls: 0,
        })
    }

    // ---- the connection ----

    fn endpoint(&self) -> Option<(SocketAddr, Secret)> {
        self.arenas.first().map(|blob| (blob.endpoint, blob.secret))
    }

    /// Takes over what was imported and unimported.
    fn look_at_imports(&mut self) {
        let changes = self.imports.changes.load(Ordering::Acquire);
        if changes == self.seen {
            return;
        }
        self.seen = changes;
        let before = self.endpoint();
        {
            let arenas = self.imports.arenas.lock().unwrap_or_else(PoisonError::into_inner);
            self.arenas.clone_from(&arenas);
        }
        // A broken connection is made anew when the host's arenas are imported anew.
        if self.endpoint() != before || self.state == State::Broken {
            self.hang_up();
            if !self.arenas.is_empty() {
                self.connect();
            }
        }
    }

    /// Ends the connection with its queue pair, and so everything that was posted.
    fn hang_up(&mut self) {
        if let Some(id) = self.id.take() {
            id.disconnect();
        }
        self.qp = ptr::null_mut();
        self.qp_number = 0;
        // Numbers go on: completions of this life are none of the next one's.
        while let Some(entry) = self.posted.pop_front() {
            self.first += 1;
            if let Entry::Operation { id, .. } = entry {
                self.ended.push_back(DmaCompletion { id, result: Err(DmaError::Gone) });
            }
        }
        (self.reads, self.hints) = (0, 0);
        self.state = State::Idle;
    }

    fn connect(&mut self) {
        let Some((endpoint, _)) = self.endpoint() else { return };
        let started = self.channel.create_id().and_then(|id| {
            id.set_ack_timeout(ACK_TIMEOUT);
            id.resolve_address(&endpoint, RESOLVE_MS)?;
            Ok(id)
        });
        match started {
            Ok(id) => {
                self.id = Some(id);
                self.state = State::Connecting;
            }
            Err(error) => self.failed(&error.to_string()),
        }
    }

    /// The try failed: the next one follows.
    fn failed(&mut self, reason: &str) {
        if let Some((endpoint, _)) = self.endpoint() {
            tracing::warn!(%endpoint, reason, "the host's memory cannot be reached over RDMA yet");
        }
        self.hang_up();
        self.state = State::Waiting(Instant::now() + RETRY);
    }

    fn on_cm(&mut self, event: &Event) -> Result<(), String> {
        let Some(id) = self.id.as_ref().filter(|id| id.raw() == event.id) else { return Ok(()) };
        let words = |error: std::io::Error| error.to_string();
        match event.kind {
            sys::RDMA_CM_EVENT_ADDR_RESOLVED => {
                if id.verbs() != self.device.context {
                    return Err(format!(
                        "it is not reached over RDMA device {}",
                        self.device.name.device
                    ));
                }
                id.resolve_route(RESOLVE_MS).map_err(words)
            }
            sys::RDMA_CM_EVENT_ROUTE_RESOLVED => self.request().map_err(words),
            sys::RDMA_CM_EVENT_ESTABLISHED => {
                self.state = State::Live;
                tracing::info!(group = self.group, "the host's memory is reached over RDMA");
                Ok(())
            }
            sys::RDMA_CM_EVENT_REJECTED => {
                let text = String::from_utf8_lossy(event.private_data.as_bytes());
                let text = text.trim_end_matches('\0');
                Err(if text.is_empty() {
                    format!("the host rejected the connection (reason {})", event.status)
                } else {
                    format!("the host rejected the connection: {text}")
                })
            }
            sys::RDMA_CM_EVENT_ADDR_ERROR
            | sys::RDMA_CM_EVENT_ROUTE_ERROR
            | sys::RDMA_CM_EVENT_UNREACHABLE
            | sys::RDMA_CM_EVENT_CONNECT_ERROR => {
                Err(format!("no way there, or nobody answers (status {})", event.status))
            }
            sys::RDMA_CM_EVENT_DISCONNECTED | sys::RDMA_CM_EVENT_DEVICE_REMOVAL => {
                self.broke("the host ended the connection");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Makes the queue pair and sends REQ.
    fn request(&mut self) -> std::io::Result<()> {
        let (Some(id), Some((_, secret))) = (self.id.as_ref(), self.endpoint()) else {
            return Ok(());
        };
        let depths = (CAPACITY as u32 + HINTS_MAX, HINTS_MAX);
        let made = create_qp(id, &self.device, &self.cq, depths, HINT_RECEIVED)?;
        (self.qp, self.qp_number) = (made.qp, made.number);
        let attributes = &self.device.attributes;
        let wanted = Reads { initiator: u8::MAX, responder: 0 };
        let reads = Reads::agree(READS_MAX, wanted, attributes);
        id.connect(&Hello { group: self.group, secret }.encode(), reads)
    }

    /// The connection stood and is over. Posted work comes back flushed.
    fn broke(&mut self, reason: &str) {
        if self.state == State::Live {
            tracing::warn!(group = self.group, reason, "the way to the host's memory is lost");
            self.state = State::Broken;
            if let Some(id) = &self.id {
                id.disconnect();
            }
        } else if self.state == State::Connecting {
            self.failed(reason);
        }
    }

    fn look_at_connection(&mut self) {
        self.look_at_imports();
        if let State::Waiting(until) = self.state
            && Instant::now() >= until
        {
            self.connect();
        }
        while let Some(event) = self.channel.next() {
            if let Err(reason) = self.on_cm(&event) {
                self.broke(&reason);
            }
        }
        self.look_at_oldest();
    }

    /// Ends what is posted when the device forgot it: without its queue pair it touches no memory any more.
    fn look_at_oldest(&mut self) {
        let operations = self.posted.len() - self.hints as usize;
        if operations == 0 || self.oldest.0 != self.first {
            self.oldest = (self.first, Instant::now());
            return;
        }
        let limit = if self.state == State::Broken { STALLED_BROKEN } else { STALLED };
        if self.oldest.1.elapsed() >= limit {
            tracing::warn!(
                group = self.group,
                "the way to the host's memory is given up: a transfer had no end for {limit:?}"
            );
            self.hang_up();
            self.state = State::Broken;
        }
    }

    // ---- data path ----

    /// The address at the host and the arena's key; `None` when it is not imported or too short.
    #[inline]
    fn remote(&self, host: HostAddress, length: u32) -> Option<(u64, u32)> {
        let arena = self.arenas.iter().find(|arena| arena.arena == host.arena)?;
        let end = host.offset.checked_add(u64::from(length))?;
        (end <= arena.length).then(|| (arena.base + host.offset, arena.rkey))
    }

    /// The device's key of a range of card memory.
    #[inline]
    fn local(&self, key: LocalKey, address: u64, length: u32) -> Option<sys::ibv_sge> {
        let known = self.keys.read().get(key)?;
        known.holds(address, u64::from(length)).then_some(sys::ibv_sge {
            addr: address,
            length,
            lkey: known.dma_lkey,
        })
    }

    /// Posts one work request with its doorbell.
    #[inline]
    fn post(&mut self, mut work: sys::ibv_send_wr, entry: Option<sys::ibv_sge>) -> bool {
        let mut entry = entry.unwrap_or_default();
        work.wr_id = self.first + self.posted.len() as u64;
        if entry.length != 0 {
            work.sg_list = &raw mut entry;
            work.num_sge = 1;
        }
        let mut refused = ptr::null_mut();
        // SAFETY: a live connection has a queue pair; the ranges are checked against what is
        // registered and imported, and their owner keeps them until the completion.
        unsafe { sys::ibv_post_send(self.qp, &raw mut work, &raw mut refused) == 0 }
    }

    #[inline]
    fn take_completions(&mut self) {
        take_all(self, |link| &mut link.cq, Self::complete);
    }

    fn complete(&mut self, raw: &RawCompletion) {
        if raw.wr_id & HINT_RECEIVED != 0 {
            // One of an earlier connection says nothing about this one.
            if raw.qp_number == self.qp_number && raw.status == CompletionStatus::Success {
                self.hinted = true;
                if post_hint_receive(self.qp, HINT_RECEIVED).is_err() {
                    self.broke("the device takes no receive");
                }
            }
            return;
        }
        if raw.wr_id.wrapping_sub(self.first) >= self.posted.len() as u64 {
            return;
        }
        while self.first <= raw.wr_id
            && let Some(entry) = self.posted.pop_front()
        {
            let last = self.first == raw.wr_id;
            self.first += 1;
            match entry {
                Entry::Hint => self.hints -= 1,
                Entry::Operation { id, read } => {
                    self.reads -= u32::from(read);
                    // Operations are all signalled, so only the last one can be one.
                    let result = if last { outcome(raw.status) } else { Err(DmaError::Gone) };
                    self.ended.push_back(DmaCompletion { id, result });
                }
            }
        }
        if raw.status != CompletionStatus::Success {
            self.broke("a transfer failed");
        }
    }
}

/// What a failed transfer means to whoever asked for it.
fn outcome(status: CompletionStatus) -> Result<(), DmaError> {
    match status {
        CompletionStatus::Success => Ok(()),
        CompletionStatus::LocalProtection
        | CompletionStatus::LocalLength
        | CompletionStatus::RemoteAccess => Err(DmaError::Protection),
        _ => Err(DmaError::Gone),
    }
}

/// Makes the queue pair of a connection between card and host, with so many places for sends and for hints; the
/// receives for these are posted under `wr_id`.
pub(crate) fn create_qp(
    id: &CmId,
    device: &Arc<DeviceState>,
    cq: &CompletionQueue,
    (send_depth, receive_depth): (u32, u32),
    wr_id: u64,
) -> std::io::Result<MadeQp> {
    let wishes = QpWishes {
        send_cq: cq.raw(),
        receive_cq: cq.raw(),
        srq: ptr::null_mut(),
        send_depth,
        receive_depth,
        inline_bytes: 0,
    };
    let made = id.create_qp(device, &wishes)?;
    (0..receive_depth).try_for_each(|_| post_hint_receive(made.qp, wr_id))?;
    Ok(made)
}

/// Posts a receive for a message of no bytes.
pub(crate) fn post_hint_receive(qp: *mut sys::ibv_qp, wr_id: u64) -> std::io::Result<()> {
    let mut work =
        sys::ibv_recv_wr { wr_id, next: ptr::null_mut(), sg_list: ptr::null_mut(), num_sge: 0 };
    let mut refused = ptr::null_mut();
    // SAFETY: the caller's queue pair is alive; the request names no memory.
    let result = unsafe { sys::ibv_post_recv(qp, &raw mut work, &raw mut refused) };
    crate::error::checked_errno(result)
}

impl Drop for HostLink {
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl Dma for HostLink {
    #[inline]
    fn room(&self) -> usize {
        match self.state {
            // What was imported and is not looked at yet may need a connection first.
            State::Live | State::Broken
                if self.imports.changes.load(Ordering::Acquire) == self.seen =>
            {
                CAPACITY - (self.posted.len() - self.hints as usize) - self.ended.len()
            }
            _ => 0,
        }
    }

    #[inline]
    fn submit(&mut self, request: DmaRequest) -> Result<(), DmaError> {
        match self.state {
            State::Live => {}
            State::Broken => return Err(DmaError::Gone),
            _ => return Err(DmaError::Full),
        }
        if self.room() == 0 {
            return Err(DmaError::Full);
        }
        let (opcode, host, length, local) = match request.operation {
            DmaOperation::Push { key, address, host, length } => {
                (sys::IBV_WR_RDMA_WRITE, host, length, self.local(key, address, length))
            }
            DmaOperation::Pull { key, address, host, length } => {
                (sys::IBV_WR_RDMA_READ, host, length, self.local(key, address, length))
            }
            DmaOperation::Flush { arena } => {
                let (host, key) = (HostAddress { arena, offset: 0 }, self.scratch.key());
                let local = self.local(key, self.scratch.base(), FLUSH_BYTES);
                (sys::IBV_WR_RDMA_READ, host, FLUSH_BYTES, local)
            }
        };
        let (remote_addr, rkey) = self.remote(host, length).ok_or(DmaError::Protection)?;
        let local = local.ok_or(DmaError::Protection)?;
        let read = opcode == sys::IBV_WR_RDMA_READ;
        let fence = if !read && self.reads > 0 { sys::IBV_SEND_FENCE } else { 0 };
        let work = sys::ibv_send_wr {
            opcode,
            send_flags: sys::IBV_SEND_SIGNALED | fence,
            remote_addr,
            rkey,
            ..sys::ibv_send_wr::EMPTY
        };
        if !self.post(work, Some(local)) {
            self.broke("the device takes no work");
            return Err(DmaError::Gone);
        }
        self.reads += u32::from(read);
        self.posted.push_back(Entry::Operation { id: request.id, read });
        Ok(())
    }

    fn poll(&mut self, completions: &mut [DmaCompletion]) -> usize {
        self.event_polls = self.event_polls.wrapping_add(1);
        if matches!(self.state, State::Connecting | State::Waiting(_))
            || self.event_polls.is_multiple_of(EVENT_POLLS)
        {
            self.look_at_connection();
        } else {
            self.look_at_imports();
        }
        self.take_completions();
        let count = completions.len().min(self.ended.len());
        for (out, completion) in completions.iter_mut().zip(self.ended.drain(..count)) {
            *out = completion;
        }
        count
    }

    fn ring_host(&mut self, _ring: u16) {
        // Each connection is one poll group's, so the host need not be told which ring.
        if self.state != State::Live || self.hints >= HINTS_MAX {
            return;
        }
        let work = sys::ibv_send_wr { opcode: sys::IBV_WR_SEND, ..sys::ibv_send_wr::EMPTY };
        if self.post(work, None) {
            self.hints += 1;
            self.posted.push_back(Entry::Hint);
        }
    }

    fn arm(&mut self) -> bool {
        self.look_at_connection();
        if std::mem::take(&mut self.hinted) {
            return false;
        }
        if let Err(error) = self.cq.arm() {
            tracing::warn!(%error, "the completion queue cannot be armed");
            return false;
        }
        // What came before the CQ was armed has no event.
        self.take_completions();
        !std::mem::take(&mut self.hinted) && self.ended.is_empty()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(arena: u16, base: u64) -> ExportBlob {
        ExportBlob {
            arena: ArenaId(arena),
            length: 4096,
            base,
            rkey: 1,
            endpoint: "10.0.0.1:7471".parse().unwrap(),
            secret: [0; 16],
        }
    }

    #[test]
    fn an_imported_arena_can_be_copied_to_and_is_no_work_requests_business() {
        let imports = Imports::default();
        assert_eq!(imports.import(b"nonsense"), Err(MemoryError::BadBlob));
        assert_eq!(imports.changes.load(Ordering::Acquire), 0);
        let arena = imports.import(&blob(7, 0x1000).encode()).unwrap();
        assert_eq!((arena.id, arena.length, arena.key), (ArenaId(7), 4096, None));
    }

    #[test]
    fn a_second_import_replaces_the_first_and_unimport_ends_it() {
        let imports = Imports::default();
        imports.import(&blob(7, 0x1000).encode()).unwrap();
        imports.import(&blob(8, 0x1000).encode()).unwrap();
        imports.import(&blob(7, 0x9000).encode()).unwrap();
        let bases = || -> Vec<(u16, u64)> {
            let arenas = imports.arenas.lock().unwrap();
            arenas.iter().map(|blob| (blob.arena.0, blob.base)).collect()
        };
        assert_eq!(bases(), [(8, 0x1000), (7, 0x9000)]);
        imports.unimport(ArenaId(8));
        imports.unimport(ArenaId(9));
        assert_eq!(bases(), [(7, 0x9000)]);
    }

    #[test]
    fn errors_of_ranges_and_errors_of_the_way_differ() {
        assert_eq!(outcome(CompletionStatus::Success), Ok(()));
        assert_eq!(outcome(CompletionStatus::RemoteAccess), Err(DmaError::Protection));
        assert_eq!(outcome(CompletionStatus::LocalProtection), Err(DmaError::Protection));
        assert_eq!(outcome(CompletionStatus::Flushed), Err(DmaError::Gone));
        assert_eq!(outcome(CompletionStatus::RetryExceeded), Err(DmaError::Gone));
    }
}
