//! The HCA: reliable connected queue pairs, one CQ and one SRQ per poll group, and the connection
//! manager. Words and rules are those of IBTA verbs; only what a target needs is named.

use crate::Nanoseconds;
use crate::memory::LocalKey;

/// Names one queue pair of one [`Hca`]: an index and the generation that makes a stale handle fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QpHandle {
    /// Dense index, below [`HcaAttributes::queue_pairs_max`].
    pub index: u32,
    /// Which life of this index.
    pub generation: u32,
}

/// The poster's name for a work request; comes back in its completion (verbs: `wr_id`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkRequestId(pub u64);

/// A local scatter/gather entry. One per work request: buffers are contiguous.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sge {
    /// Address inside the region or imported arena.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// Key of the region or imported arena.
    pub key: LocalKey,
}

/// A range in the peer's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteAddress {
    /// Virtual address at the peer.
    pub address: u64,
    /// The peer's rkey.
    pub key: u32,
}

/// What a send-queue work request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOperation {
    /// SEND to the peer's next receive buffer.
    Send,
    /// RDMA WRITE of the local range to the peer's memory.
    RdmaWrite(RemoteAddress),
    /// RDMA READ from the peer's memory into the local range.
    RdmaRead(RemoteAddress),
}

/// One send-queue work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendRequest {
    /// Comes back in the completion.
    pub id: WorkRequestId,
    /// What to do.
    pub operation: SendOperation,
    /// The local range.
    pub local: Sge,
    /// Whether success is reported. An unsignalled request holds its place in the send queue until a
    /// later signalled one completes; failures are always reported.
    pub signaled: bool,
}

/// One receive work request for the SRQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveRequest {
    /// Comes back in the completion.
    pub id: WorkRequestId,
    /// Where the message goes.
    pub local: Sge,
}

/// The end of a work request (IBTA 11.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionStatus {
    /// Done.
    Success,
    /// The message was longer than the receive buffer, or a length is invalid.
    LocalLength,
    /// The queue pair was not in a state for it.
    LocalQpOperation,
    /// A local key or range was wrong, or its memory was revoked.
    LocalProtection,
    /// The peer's rkey, range or access rights were wrong.
    RemoteAccess,
    /// The peer could not execute it.
    RemoteOperation,
    /// The peer did not answer.
    RetryExceeded,
    /// The peer had no receive buffer for too long.
    RnrRetryExceeded,
    /// The queue pair went to the error state before this ran.
    Flushed,
    /// The device died.
    Fatal,
}

/// One work completion. After a failure only `id`, `status` and `qp` mean anything, which is why
/// `id` must say what the request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkCompletion {
    /// The work request's id.
    pub id: WorkRequestId,
    /// How it ended.
    pub status: CompletionStatus,
    /// The queue pair; for SRQ receives the one the message came in on.
    pub qp: QpHandle,
    /// For receives: message length in bytes.
    pub length: u32,
}

impl WorkCompletion {
    /// A filler for completion arrays.
    pub const EMPTY: Self = Self {
        id: WorkRequestId(0),
        status: CompletionStatus::Success,
        qp: QpHandle { index: 0, generation: 0 },
        length: 0,
    };
}

/// Why a work request was not taken. Nothing of a refused chain was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostError {
    /// The send queue or SRQ has not enough room (unsignalled requests still hold theirs).
    Full,
    /// The handle is stale or the queue pair is not connected.
    NotConnected,
    /// The request is malformed (length beyond the device's maximum).
    Invalid,
}

/// What one poll group's HCA share can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HcaAttributes {
    /// Queue pairs this group may hold at a time.
    pub queue_pairs_max: u32,
    /// Send-queue depth a queue pair may ask for.
    pub send_queue_depth_max: u32,
    /// Receives the SRQ holds.
    pub shared_receive_queue_depth: u32,
    /// Completions the CQ holds; the owner keeps the sum of possible completions below it.
    pub completion_queue_depth: u32,
    /// Outstanding RDMA READs a queue pair may ask for.
    pub rdma_reads_max: u32,
    /// Longest message or RDMA transfer in bytes.
    pub message_bytes_max: u32,
}

/// What a queue pair is created with at accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpParameters {
    /// Send-queue depth in work requests.
    pub send_queue_depth: u32,
    /// Outstanding RDMA READs (initiator depth).
    pub rdma_reads: u32,
}

/// CM private data: at most 196 bytes (REP), valid up to `length`.
#[derive(Clone, Copy)]
pub struct PrivateData {
    bytes: [u8; Self::MAX],
    length: u8,
}

impl PrivateData {
    /// The longest private data any CM message carries (IBTA 12.7: REP).
    pub const MAX: usize = 196;

    /// Takes the first [`Self::MAX`] bytes of `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut kept = [0; Self::MAX];
        let length = bytes.len().min(Self::MAX);
        for (to, from) in kept.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self { bytes: kept, length: u8::try_from(length).unwrap_or(0) }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or(&[])
    }
}

impl core::fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "PrivateData({:02x?})", self.as_bytes())
    }
}

/// The peer's address as the fabric knows it, for access patterns and logs: a GID or IP as text, at
/// most 46 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress {
    bytes: [u8; 46],
    length: u8,
}

impl PeerAddress {
    /// Takes the first 46 bytes of `text` (cut at a character boundary).
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut end = text.len().min(46);
        while !text.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        let mut bytes = [0; 46];
        for (to, from) in bytes.iter_mut().zip(text.as_bytes().iter().take(end)) {
            *to = *from;
        }
        Self { bytes, length: u8::try_from(end).unwrap_or(0) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.bytes
            .get(..usize::from(self.length))
            .and_then(|bytes| core::str::from_utf8(bytes).ok())
            .unwrap_or("")
    }
}

impl core::fmt::Debug for PeerAddress {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A connection request (CM REQ) that waits for accept or reject.
pub struct ConnectRequest<C> {
    /// The connection; dropping it rejects the request without private data.
    pub connection: C,
    /// The REQ's private data: the SRP login request.
    pub private_data: PrivateData,
    /// Who asks.
    pub peer: PeerAddress,
    /// Which of the card's HCAs it came in on, counted from 0: only a poll group of that one can accept.
    pub device: u16,
}

/// A request whose response is about to be posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnsweredRequest {
    /// Its tag.
    pub tag: u64,
    /// A command's operation code; zero of anything else.
    pub operation_code: u8,
    /// Bytes that the initiator offered for data, in either direction.
    pub offered_bytes: u32,
}

/// What becomes of a message that [`Hca::deliver`] was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is the poll group's, and so long in bytes.
    Message(u32),
    /// It was the provider's own, and so is the receive buffer: nobody reposts it.
    Kept,
}

/// What the connection manager or the device reports to a poll group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmEvent {
    /// RTU arrived (or the first message made it implicit): the queue pair is live.
    Established(QpHandle),
    /// The peer disconnected or vanished, or [`Hca::disconnect`] was carried out. The queue pair is
    /// in the error state; posted requests come back flushed.
    Disconnected(QpHandle),
    /// The queue pair left the connected states on its own (fatal queue pair event).
    QpFatal(QpHandle),
    /// Every work request of a disconnected queue pair was reported; it can be destroyed.
    Drained(QpHandle),
    /// A port went down: connections survive or end with `Disconnected`.
    PortDown,
    /// A port is up (again).
    PortUp,
    /// The device is gone; every queue pair is lost.
    DeviceFatal,
}

/// Why the connection manager refused an accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmError {
    /// The peer went away meanwhile.
    Gone,
    /// No queue pair, memory or queue space left.
    NoResources,
    /// The parameters are beyond the device's attributes.
    Invalid,
}

/// Where connection requests of a whole card arrive.
pub trait Listener {
    /// A request not answered yet.
    type Connection;

    /// The next connection request, if any.
    fn poll(&mut self) -> Option<ConnectRequest<Self::Connection>>;

    /// Refuses `connection` (CM REJ, reason 28: consumer defined) with `private_data`: the SRP login
    /// reject, at most 148 bytes.
    fn reject(&mut self, connection: Self::Connection, private_data: &[u8]);

    /// Readable when [`Listener::poll`] has something; `None` where the provider has none.
    fn event_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>>;
}

/// One poll group's share of the HCA. Every method is non-blocking; the data-path ones
/// (`post_*`, `ring`, `poll`) do not allocate.
///
/// A transport that is no RDMA but carries SRP's IUs (VSCSI) is one too: it sets [`Hca::SHOWS_IUS`] and sees to
/// what it has of its own in the methods that need it.
pub trait Hca {
    /// A request not answered yet.
    type Connection;

    /// Whether the poll group calls [`Hca::deliver`], [`Hca::prepare_answer`] and [`Hca::forget_request`].
    const SHOWS_IUS: bool = false;

    /// Whether peers take requests of the target: SRP_CRED_REQ, SRP_AER_REQ and SRP_T_LOGOUT. Where they do not, credits
    /// that are owed go back with the next response.
    #[inline]
    fn takes_requests(&self) -> bool {
        true
    }

    /// Under which number REPORT LUNS, sent to LUN `asked` (`None`: the address is no number), tells a peer of unit `number`;
    /// `None`: not at all.
    #[inline]
    #[must_use]
    fn reported_lun(&self, number: u16, asked: Option<u16>) -> Option<u16> {
        let _ = asked;
        Some(number)
    }

    /// A tick begins at this time.
    #[inline]
    fn begin_tick(&mut self, now: Nanoseconds) {
        let _ = now;
    }

    /// A receive completed well; `buffer` is the whole receive buffer. Receives are shown in the order of their
    /// completions.
    fn deliver(&mut self, completion: &WorkCompletion, buffer: &mut [u8]) -> Delivery {
        let _ = buffer;
        Delivery::Message(completion.length)
    }

    /// The response to `request` is encoded in `iu`, and is posted next.
    fn prepare_answer(&mut self, qp: QpHandle, request: AnsweredRequest, iu: &mut [u8]) {
        let _ = (qp, request, iu);
    }

    /// The request with `tag` is over and gets no response.
    fn forget_request(&mut self, qp: QpHandle, tag: u64) {
        let _ = (qp, tag);
    }

    /// The limits.
    fn attributes(&self) -> HcaAttributes;

    /// Creates a queue pair on this group's CQ and SRQ and accepts (CM REP with `private_data`).
    ///
    /// # Errors
    /// See [`CmError`]; the peer was sent a reject without private data where it still listens.
    fn accept(
        &mut self,
        connection: Self::Connection,
        parameters: QpParameters,
        private_data: &[u8],
    ) -> Result<QpHandle, CmError>;

    /// Refuses `connection` with `private_data`, as [`Listener::reject`].
    fn reject(&mut self, connection: Self::Connection, private_data: &[u8]);

    /// Starts closing (CM DREQ, queue pair to the error state). Work requests come back flushed, then
    /// [`CmEvent::Disconnected`] and [`CmEvent::Drained`] arrive. Idempotent.
    fn disconnect(&mut self, qp: QpHandle);

    /// Frees a drained queue pair's resources; the handle is stale afterwards.
    fn destroy(&mut self, qp: QpHandle);

    /// The next connection or device event, if any.
    fn poll_cm(&mut self) -> Option<CmEvent>;

    /// Gives the SRQ one receive buffer. Takes effect at once.
    ///
    /// # Errors
    /// [`PostError::Full`], [`PostError::Invalid`].
    fn post_receive(&mut self, request: ReceiveRequest) -> Result<(), PostError>;

    /// Queues a chain on the send queue, all or nothing. The device need not look at it before
    /// [`Hca::ring`].
    ///
    /// # Errors
    /// See [`PostError`]. A queue pair in the error state takes requests and flushes them.
    fn post_send(&mut self, qp: QpHandle, chain: &[SendRequest]) -> Result<(), PostError>;

    /// Rings the doorbell: the device starts on what was posted.
    fn ring(&mut self, qp: QpHandle);

    /// Reaps completions; gives their number.
    fn poll(&mut self, completions: &mut [WorkCompletion]) -> usize;

    /// Asks for a wake-up through [`Hca::event_fd`] at the next completion or CM event. Returns
    /// `false` when something is pending already, so the caller must not sleep.
    fn arm(&mut self) -> bool;

    /// Readable at an event after [`Hca::arm`]; `None` where the provider has none.
    fn event_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>>;
}
