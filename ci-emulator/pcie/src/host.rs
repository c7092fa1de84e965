//! The host as the card sees it over the bus: arenas behind secrets, and the placement queue that
//! holds back what the HCA wrote.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lunar_platform::ArenaId;

use crate::adversary::Randomness;
use crate::segment::Segment;

/// When the HCA's writes into host memory become visible to the host's cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacementMode {
    /// At once.
    Prompt,
    /// Withheld until a flush, an HCA read of the same arena, or (rarely, piecewise and out of
    /// order) the seed's whim. Writes to the same bytes keep their order.
    Withheld {
        /// Seed of the whim.
        seed: u64,
    },
}

/// What a host gives the card so that it may map one arena. A secret: whoever has it has the memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ExportBlob {
    /// The arena.
    pub arena: ArenaId,
    /// Proof of having been told by the arena's owner.
    pub secret: [u8; 16],
}

impl ExportBlob {
    /// Encoded length: the id as little-endian u16, then the secret.
    pub const BYTES: usize = 18;

    /// The bytes that travel over the control channel.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..2].copy_from_slice(&self.arena.0.to_le_bytes());
        bytes[2..].copy_from_slice(&self.secret);
        bytes
    }

    /// Reads a blob; `None` when its length is wrong.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (id, secret) = bytes.split_first_chunk::<2>()?;
        let secret = secret.try_into().ok()?;
        Some(Self { arena: ArenaId(u16::from_le_bytes(*id)), secret })
    }
}

impl std::fmt::Debug for ExportBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExportBlob").field("arena", &self.arena).finish_non_exhaustive()
    }
}

/// A root complex's buffers are finite: beyond this many withheld writes the oldest are placed.
const WITHHELD_COUNT_MAX: usize = 4096;
/// Withheld writes are cut at these boundaries and become visible piece by piece.
const PIECE_BYTES: u64 = 512;

struct Withheld {
    offset: u64,
    bytes: Box<[u8]>,
}

impl Withheld {
    fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.offset + other.bytes.len() as u64
            && other.offset < self.offset + self.bytes.len() as u64
    }
}

/// HCA writes on their way into one arena, oldest first.
struct PlacementQueue {
    pieces: Vec<Withheld>,
    randomness: Randomness,
}

/// One arena as the card's hardware reaches it.
pub(crate) struct HostWindow {
    id: ArenaId,
    secret: [u8; 16],
    segment: Segment,
    live: AtomicBool,
    /// `None` in prompt mode.
    withheld: Option<Mutex<PlacementQueue>>,
}

impl HostWindow {
    pub(crate) fn id(&self) -> ArenaId {
        self.id
    }

    pub(crate) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// False once revoked or removed.
    #[inline]
    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    fn kill(&self) {
        self.live.store(false, Ordering::Release);
        if let Some(mut queue) = self.queue() {
            queue.pieces.clear();
        }
    }

    fn queue(&self) -> Option<MutexGuard<'_, PlacementQueue>> {
        Some(self.withheld.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The HCA writes `bytes` at `offset`.
    pub(crate) fn hca_write(&self, offset: u64, bytes: &[u8]) -> bool {
        if !self.is_live() {
            return false;
        }
        let Some(mut queue) = self.queue() else { return self.segment.write(offset, bytes) };
        let length = self.segment.len() as u64;
        if bytes.len() as u64 > length || offset > length - bytes.len() as u64 {
            return false;
        }
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let cut = rest.len().min((PIECE_BYTES - at % PIECE_BYTES) as usize);
            let (piece, after) = rest.split_at(cut);
            queue.pieces.push(Withheld { offset: at, bytes: piece.into() });
            (at, rest) = (at + cut as u64, after);
        }
        let excess = queue.pieces.len().saturating_sub(WITHHELD_COUNT_MAX);
        for piece in queue.pieces.drain(..excess) {
            self.segment.write(piece.offset, &piece.bytes);
        }
        true
    }

    /// The HCA writes `length` bytes that lie at `from_offset` of `from`.
    pub(crate) fn hca_copy(
        &self,
        offset: u64,
        from: &Segment,
        from_offset: u64,
        length: usize,
    ) -> bool {
        if self.withheld.is_none() {
            return self.is_live() && from.copy_to(from_offset, &self.segment, offset, length);
        }
        if length > from.len() {
            return false;
        }
        let mut bytes = vec![0; length];
        from.read(from_offset, &mut bytes) && self.hca_write(offset, &bytes)
    }

    /// Everything the HCA wrote so far becomes visible: what a flush waits for.
    pub(crate) fn place_all(&self) {
        if let Some(mut queue) = self.queue() {
            for piece in queue.pieces.drain(..) {
                self.segment.write(piece.offset, &piece.bytes);
            }
        }
    }

    /// Time passes: perhaps one withheld piece becomes visible, not necessarily the oldest.
    pub(crate) fn drift(&self) {
        let Some(mut queue) = self.queue() else { return };
        if queue.pieces.is_empty() || !queue.randomness.chance(1, 16) {
            return;
        }
        let count = queue.pieces.len();
        let chosen = queue.randomness.below(count);
        // Posted writes to the same bytes do not pass each other.
        let blocked =
            queue.pieces[..chosen].iter().any(|older| older.overlaps(&queue.pieces[chosen]));
        let piece = queue.pieces.remove(if blocked { 0 } else { chosen });
        self.segment.write(piece.offset, &piece.bytes);
    }
}

struct Plugged {
    windows: Vec<Arc<HostWindow>>,
    seeds: Randomness,
}

struct Slot {
    mode: PlacementMode,
    gone: AtomicBool,
    cut: AtomicBool,
    plugged: Mutex<Plugged>,
}

/// The PCIe slot in which the card sits: which arenas the host has offered. Cloning shares it.
#[derive(Clone)]
pub struct HostSlot(Arc<Slot>);

impl std::fmt::Debug for HostSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostSlot").field("mode", &self.0.mode).finish_non_exhaustive()
    }
}

impl HostSlot {
    /// A slot whose host has offered nothing yet.
    #[must_use]
    pub fn new(mode: PlacementMode) -> Self {
        let seed = match mode {
            PlacementMode::Prompt => 0,
            PlacementMode::Withheld { seed } => seed,
        };
        let plugged = Plugged { windows: Vec::new(), seeds: Randomness::new(seed) };
        let slot = Slot {
            mode,
            gone: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            plugged: Mutex::new(plugged),
        };
        Self(Arc::new(slot))
    }

    fn plugged(&self) -> MutexGuard<'_, Plugged> {
        self.0.plugged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host offers `segment` as an arena to whoever shows the blob. An older arena of that name is
    /// revoked. After a surprise removal the first offer means that a host is there again.
    pub fn plug(&self, blob: ExportBlob, segment: &Segment) {
        let mut plugged = self.plugged();
        let withheld = match self.0.mode {
            PlacementMode::Prompt => None,
            PlacementMode::Withheld { .. } => Some(Mutex::new(PlacementQueue {
                pieces: Vec::new(),
                randomness: Randomness::new(plugged.seeds.next_u64()),
            })),
        };
        plugged.windows.retain(|window| {
            if window.id == blob.arena {
                window.kill();
            }
            window.id != blob.arena
        });
        plugged.windows.push(Arc::new(HostWindow {
            id: blob.arena,
            secret: blob.secret,
            segment: segment.clone(),
            live: AtomicBool::new(true),
            withheld,
        }));
        self.0.gone.store(false, Ordering::Release);
    }

    /// The host takes an arena back, announced or not: everything on it fails with a protection
    /// error from now on, and withheld writes are lost. Whether it was there.
    pub fn revoke(&self, arena: ArenaId) -> bool {
        let mut plugged = self.plugged();
        let before = plugged.windows.len();
        plugged.windows.retain(|window| {
            if window.id == arena {
                window.kill();
            }
            window.id != arena
        });
        plugged.windows.len() != before
    }

    /// The host vanishes with all its arenas. DMA answers `Gone`.
    pub fn surprise_removal(&self) {
        self.0.gone.store(true, Ordering::Release);
        for window in self.plugged().windows.drain(..) {
            window.kill();
        }
    }

    /// The way to the host is cut; its arenas stay. DMA answers `Gone`. What had no end yet may have arrived in part, what
    /// had one arrives.
    pub fn cut(&self) {
        self.0.cut.store(true, Ordering::Release);
    }

    /// The way that was [`Self::cut`] is whole again.
    pub fn mend(&self) {
        self.0.cut.store(false, Ordering::Release);
    }

    /// Whether the way is cut.
    #[inline]
    pub(crate) fn is_cut(&self) -> bool {
        self.0.cut.load(Ordering::Acquire)
    }

    /// Whether the host vanished, or cannot be reached.
    #[inline]
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.0.gone.load(Ordering::Acquire) || self.is_cut()
    }

    /// The HCA writes `bytes` into an offered arena. False when it is not there or too short.
    pub fn hca_write(&self, arena: ArenaId, offset: u64, bytes: &[u8]) -> bool {
        self.window(arena).is_some_and(|window| window.hca_write(offset, bytes))
    }

    fn window(&self, arena: ArenaId) -> Option<Arc<HostWindow>> {
        self.plugged().windows.iter().find(|window| window.id == arena).cloned()
    }

    /// The arena that `blob` opens.
    pub(crate) fn open(&self, blob: &ExportBlob) -> Option<Arc<HostWindow>> {
        let window = self.window(blob.arena)?;
        // No early exit: the time must not tell how much of a guess was right.
        let pairs = window.secret.iter().zip(blob.secret);
        let difference = pairs.fold(0, |sum, (a, b)| sum | (a ^ b));
        (difference == 0).then_some(window)
    }
}
