//! The words that two ends of a connection share, and nothing but them: where they lie, who writes
//! them, and in which order they are read. Everything read here was written by a peer that may lie;
//! whoever reads validates.
//!
//! Two kinds of segments:
//! * the **group segment**, one per [`crate::EmulatedHca`], shared with every peer: a control line
//!   (`armed`, `unreachable`), the activity bitmap (peers set the bit of a queue pair that has news),
//!   and the remote-key table (peers read it before they touch the group's memory);
//! * the **queue-pair segment**, one per connection: per end one block of lines that only this end
//!   writes (`consumed`, state), and the message ring it sends on with the headers of its messages.
//!   A header makes its message visible. They lie apart from the messages, eight in a line, so that a
//!   message of 64 bytes costs the other core one line and an eighth.
//!
//! News protocol. A sender first stores what is new (a header, a cursor, a state), then calls
//! [`PeerGroup::tell`], which fences and loads the receiver's `watching` and `armed` words. The receiver does
//! the opposite: it stores `watching = 0` (or `armed = 1`), fences, and looks for news once more. With
//! both fences sequentially consistent at least one of the two sees the other's store, so either the sender
//! sets the bit (writes the eventfd) or the receiver sees the news: no wake-up is lost, as long as the
//! receiver drains its eventfd before it arms and at no other time. `armed` may be taken away for news
//! that it has seen already; then the eventfd alone says so. A receiver
//! that watches a queue pair (looks at its words in every poll) costs its peer no bitmap access at all.
//!
//! Limits of trust: a peer can set or clear bits of the shared bitmap that are not its own, and eat
//! wake-ups. Both delay other connections of the group and corrupt nothing; owners with work
//! outstanding sleep for a bounded time only.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use lunar_pcie::{HintLine, Segment};

/// A cache line.
pub(crate) const LINE: u64 = 64;
/// Bytes of one entry of the remote-key table.
pub(crate) const REMOTE_KEY_BYTES: u64 = LINE;
/// The headers of both message rings, then the rings, start here in a queue-pair segment.
const HEADERS_OFFSET: u64 = 4096;
/// Bytes of one header: the ring's round, then the message's length.
const HEADER_BYTES: u64 = 8;
/// Lines of one end's block: consumed, state.
const END_BYTES: u64 = 2 * LINE;

/// Headers of a message ring: one a line, because no message takes less.
fn headers(ring_bytes: u32) -> u64 {
    u64::from(ring_bytes) / LINE
}

/// Where the first of the two message rings starts in a queue-pair segment.
fn rings_offset(ring_bytes: u32) -> u64 {
    HEADERS_OFFSET + 2 * headers(ring_bytes) * HEADER_BYTES
}

/// Bytes of a queue-pair segment.
fn queue_pair_bytes(ring_bytes: u32) -> u64 {
    rings_offset(ring_bytes) + 2 * u64::from(ring_bytes)
}

/// Stands in for a word that is not inside its segment. Layouts are checked when a segment is
/// adopted, so this is never reached; it keeps the accessors free of panics.
static NOWHERE_U32: AtomicU32 = AtomicU32::new(0);
static NOWHERE_U64: AtomicU64 = AtomicU64::new(0);

fn word(segment: &Segment, offset: u64) -> &AtomicU32 {
    segment.atomic_u32(offset).unwrap_or(&NOWHERE_U32)
}

fn double_word(segment: &Segment, offset: u64) -> &AtomicU64 {
    segment.atomic_u64(offset).unwrap_or(&NOWHERE_U64)
}

/// Where things lie in a group segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupLayout {
    /// Queue pairs the bitmap has room for.
    pub(crate) queue_pairs: u32,
    /// Entries of the remote-key table.
    pub(crate) remote_keys: u32,
}

impl GroupLayout {
    const ARMED: u64 = 0;
    const UNREACHABLE: u64 = 4;

    fn words(self) -> u64 {
        u64::from(self.queue_pairs.div_ceil(64))
    }

    fn summary_words(self) -> u64 {
        self.words().div_ceil(64)
    }

    fn summary_offset(self, index: u64) -> u64 {
        LINE + index * 8
    }

    fn word_offset(self, index: u64) -> u64 {
        LINE + (self.summary_words() * 8).next_multiple_of(LINE) + index * 8
    }

    /// Where entry `index` of the remote-key table lies.
    pub(crate) fn remote_key_offset(self, index: u32) -> u64 {
        self.word_offset(0)
            + (self.words() * 8).next_multiple_of(LINE)
            + u64::from(index) * REMOTE_KEY_BYTES
    }

    /// Bytes of the whole segment.
    pub(crate) fn bytes(self) -> u64 {
        self.remote_key_offset(self.remote_keys)
    }
}

/// The owner's view of its group segment, with the eventfd peers wake it by.
#[derive(Debug)]
pub(crate) struct OwnGroup {
    pub(crate) segment: Segment,
    pub(crate) layout: GroupLayout,
    pub(crate) wake: HintLine,
}

impl OwnGroup {
    pub(crate) fn new(layout: GroupLayout) -> io::Result<Self> {
        let bytes = usize::try_from(layout.bytes()).map_err(io::Error::other)?;
        let segment = Segment::memfd("lunar-hca-group", bytes)?;
        Ok(Self { segment, layout, wake: HintLine::new()? })
    }

    /// Tells peers whether this end can be reached (port up, device alive).
    pub(crate) fn set_unreachable(&self, unreachable: bool) {
        word(&self.segment, GroupLayout::UNREACHABLE)
            .store(u32::from(unreachable), Ordering::Release);
    }

    /// Announces that the owner is about to sleep; it must look for news afterwards.
    pub(crate) fn arm(&self) {
        word(&self.segment, GroupLayout::ARMED).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn disarm(&self) {
        word(&self.segment, GroupLayout::ARMED).store(0, Ordering::Relaxed);
    }

    /// Wakes the owner if it sleeps: for events that do not come from a peer.
    pub(crate) fn wake_self(&self) {
        fence(Ordering::SeqCst);
        if word(&self.segment, GroupLayout::ARMED).swap(0, Ordering::Relaxed) != 0 {
            self.wake.signal();
        }
    }

    /// Takes every set bit and gives its number to `each`. Costs one load per 4096 queue pairs when
    /// there is none. Numbers may lie beyond the queue pairs that exist.
    pub(crate) fn take_activity(&self, mut each: impl FnMut(u32)) {
        for summary_index in 0..self.layout.summary_words() {
            let summary = double_word(&self.segment, self.layout.summary_offset(summary_index));
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            for word_bit in bits(summary.swap(0, Ordering::AcqRel)) {
                let word_index = summary_index * 64 + u64::from(word_bit);
                if word_index >= self.layout.words() {
                    continue;
                }
                let word = double_word(&self.segment, self.layout.word_offset(word_index));
                for bit in bits(word.swap(0, Ordering::AcqRel)) {
                    each((word_index as u32) * 64 + bit);
                }
            }
        }
    }
}

/// The numbers of the set bits of `value`, ascending.
fn bits(mut value: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        (value != 0).then(|| {
            let bit = value.trailing_zeros();
            value &= value - 1;
            bit
        })
    })
}

/// A peer's group segment and this connection's bit in it.
#[derive(Clone, Debug)]
pub(crate) struct PeerGroup {
    pub(crate) segment: Segment,
    pub(crate) layout: GroupLayout,
    pub(crate) bit: u32,
    pub(crate) wake: HintLine,
}

impl PeerGroup {
    /// Checks that what the peer claimed fits the segment it passed.
    pub(crate) fn is_valid(&self) -> bool {
        self.layout.queue_pairs <= 1 << 20
            && self.layout.remote_keys <= 1 << 16
            && self.bit < self.layout.queue_pairs
            && self.layout.bytes() <= self.segment.len() as u64
    }

    /// Whether the peer's port is down or its device dead.
    pub(crate) fn is_unreachable(&self) -> bool {
        word(&self.segment, GroupLayout::UNREACHABLE).load(Ordering::Relaxed) != 0
    }

    /// Tells the peer that this connection has news, which must be stored already: sets the bit
    /// unless the peer is `watching`, and wakes it if it sleeps. Gives whether it was woken.
    pub(crate) fn tell(&self, watching: impl FnOnce() -> bool, lose_wake_up: bool) -> bool {
        fence(Ordering::SeqCst);
        if !watching() {
            self.set_bit();
        }
        self.wake_if_armed(lose_wake_up)
    }

    fn set_bit(&self) {
        let bit = u64::from(self.bit);
        double_word(&self.segment, self.layout.word_offset(bit / 64))
            .fetch_or(1 << (bit % 64), Ordering::AcqRel);
        double_word(&self.segment, self.layout.summary_offset(bit / 4096))
            .fetch_or(1 << (bit / 64 % 64), Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    fn wake_if_armed(&self, lose_wake_up: bool) -> bool {
        let armed = word(&self.segment, GroupLayout::ARMED);
        let woken = armed.load(Ordering::Relaxed) != 0 && armed.swap(0, Ordering::Relaxed) != 0;
        if woken && !lose_wake_up {
            self.wake.signal();
        }
        woken
    }
}

/// What one end tells the other about its queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndState {
    /// Not connected yet.
    Idle,
    /// Takes messages and RDMA.
    Ready,
    /// In the error state: takes nothing any more.
    Error,
}

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The end that asked for the connection.
    Active,
    /// The end that accepted it.
    Passive,
}

/// What a receiver says about a message it cannot take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    None,
    /// Longer than the receive buffer (NAK, remote invalid request).
    TooLong,
    /// The receive buffer's memory is bad (NAK, remote operational error).
    Operation,
}

/// The peer's cursors or headers make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lie;

/// One end's view of a queue-pair segment.
#[derive(Clone, Debug)]
pub(crate) struct QueuePairMemory {
    pub(crate) segment: Segment,
    own: u64,
    peer: u64,
    out_headers: u64,
    in_headers: u64,
    /// Where the ring this end sends on begins.
    pub(crate) out_ring: u64,
    /// Where the ring this end receives on begins.
    pub(crate) in_ring: u64,
    /// Bytes of each ring, a power of two.
    pub(crate) ring_bytes: u32,
}

impl QueuePairMemory {
    const CONSUMED: u64 = 0;
    const RECEIVER_NOT_READY: u64 = 4;
    const REFUSAL: u64 = 8;
    const STATE: u64 = LINE;
    const WATCHING: u64 = LINE + 4;
    /// The other end found this end's rkey or range wrong, or its words mad: go to the error state.
    const ACCUSATION: u64 = LINE + 8;

    /// Makes the segment of a new connection. `ring_bytes` is a power of two.
    pub(crate) fn create(ring_bytes: u32) -> io::Result<Self> {
        let bytes = usize::try_from(queue_pair_bytes(ring_bytes)).map_err(io::Error::other)?;
        let segment = Segment::memfd("lunar-hca-qp", bytes)?;
        Self::adopt(segment, End::Active, ring_bytes)
            .ok_or_else(|| io::Error::other("message ring layout"))
    }

    /// Takes `end`'s view of a segment that may come from a peer; `None` when the sizes do not fit.
    pub(crate) fn adopt(segment: Segment, end: End, ring_bytes: u32) -> Option<Self> {
        let fits = ring_bytes.is_power_of_two()
            && (4 << 10..=16 << 20).contains(&ring_bytes)
            && segment.len() as u64 >= queue_pair_bytes(ring_bytes);
        if !fits {
            return None;
        }
        let (out, inward) = match end {
            End::Active => (0, 1),
            End::Passive => (1, 0),
        };
        let headers_at = |which| HEADERS_OFFSET + which * headers(ring_bytes) * HEADER_BYTES;
        let ring_at = |which| rings_offset(ring_bytes) + which * u64::from(ring_bytes);
        Some(Self {
            segment,
            own: out * END_BYTES,
            peer: inward * END_BYTES,
            out_headers: headers_at(out),
            in_headers: headers_at(inward),
            out_ring: ring_at(out),
            in_ring: ring_at(inward),
            ring_bytes,
        })
    }

    fn own(&self, offset: u64) -> &AtomicU32 {
        word(&self.segment, self.own + offset)
    }

    fn peer(&self, offset: u64) -> &AtomicU32 {
        word(&self.segment, self.peer + offset)
    }

    /// Where the header of the message numbered `sequence` lies after the first header, and which
    /// round through the headers it belongs to. Fresh memory is zero, so rounds begin with 1.
    #[inline]
    fn header(&self, sequence: u64) -> (u64, u32) {
        let headers = headers(self.ring_bytes);
        let (index, round) = (sequence & (headers - 1), sequence >> headers.trailing_zeros());
        (index * HEADER_BYTES, (round as u32).wrapping_add(1))
    }

    /// Makes the message numbered `sequence`, which was written to the out ring, visible.
    #[inline]
    pub(crate) fn publish(&self, sequence: u64, length: u32) {
        let (at, round) = self.header(sequence);
        double_word(&self.segment, self.out_headers + at)
            .store(u64::from(length) << 32 | u64::from(round), Ordering::Release);
    }

    /// The length of the message numbered `sequence`, as the peer says it; `None` when it was not
    /// published yet.
    ///
    /// # Errors
    /// When the header is neither this message's nor that of a round before.
    #[inline]
    pub(crate) fn peer_published(&self, sequence: u64) -> Result<Option<u32>, Lie> {
        let (at, round) = self.header(sequence);
        let header = double_word(&self.segment, self.in_headers + at).load(Ordering::Acquire);
        if header as u32 == round {
            Ok(Some((header >> 32) as u32))
        } else if header as u32 == round.wrapping_sub(1) {
            Ok(None)
        } else {
            Err(Lie)
        }
    }

    /// Acknowledges everything received up to `cursor`.
    pub(crate) fn acknowledge(&self, cursor: u32) {
        self.own(Self::CONSUMED).store(cursor, Ordering::Release);
    }

    pub(crate) fn peer_consumed(&self) -> u32 {
        self.peer(Self::CONSUMED).load(Ordering::Acquire)
    }

    /// RNR NAKs sent for the message at the ring's head.
    pub(crate) fn set_receiver_not_ready(&self, naks: u32) {
        self.own(Self::RECEIVER_NOT_READY).store(naks, Ordering::Release);
    }

    /// To be read before [`Self::peer_consumed`], so that it belongs to the oldest message that is
    /// still not acknowledged then (or to an older one, never to a newer).
    pub(crate) fn peer_receiver_not_ready(&self) -> u32 {
        self.peer(Self::RECEIVER_NOT_READY).load(Ordering::Acquire)
    }

    pub(crate) fn refuse(&self, refusal: Refusal) {
        self.own(Self::REFUSAL).store(refusal as u32, Ordering::Release);
    }

    pub(crate) fn peer_refusal(&self) -> Refusal {
        match self.peer(Self::REFUSAL).load(Ordering::Acquire) {
            0 => Refusal::None,
            1 => Refusal::TooLong,
            _ => Refusal::Operation,
        }
    }

    pub(crate) fn set_state(&self, state: EndState) {
        self.own(Self::STATE).store(state as u32, Ordering::Release);
    }

    pub(crate) fn peer_state(&self) -> EndState {
        match self.peer(Self::STATE).load(Ordering::Acquire) {
            0 => EndState::Idle,
            1 => EndState::Ready,
            _ => EndState::Error,
        }
    }

    /// Blames the peer's end for a request it could not have granted.
    pub(crate) fn accuse(&self) {
        self.own(Self::ACCUSATION).store(1, Ordering::Release);
    }

    pub(crate) fn is_accused(&self) -> bool {
        self.peer(Self::ACCUSATION).load(Ordering::Acquire) != 0
    }

    /// Starts watching: the peer need not set the activity bit.
    pub(crate) fn watch(&self) {
        self.own(Self::WATCHING).store(1, Ordering::Relaxed);
    }

    /// Stops watching; the caller looks for news afterwards.
    pub(crate) fn stop_watching(&self) {
        self.own(Self::WATCHING).store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn is_peer_watching(&self) -> bool {
        self.peer(Self::WATCHING).load(Ordering::Relaxed) != 0
    }
}
