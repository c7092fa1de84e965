//! Memory that the hardware may touch: card DRAM regions and imported host arenas.

/// Names a registered region to the HCA and to the DMA engine (verbs: lkey).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalKey(pub u32);

/// Names one host arena between keeper, agent and card. Chosen by the keeper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArenaId(pub u16);

/// What importing a host arena gives: a window that the HCA and the DMA engine can address and the
/// card's cores cannot. There is no pointer on purpose (DESIGN section 5, data placement).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostArena {
    /// The arena's name.
    pub id: ArenaId,
    /// Address of the arena's first byte in work requests' scatter/gather entries.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
    /// Key to use with `base` in scatter/gather entries. `None`: only DMA reaches the arena, so data
    /// is copied through card memory; the HCA is on another machine than the arena.
    pub key: Option<LocalKey>,
}

/// A registered range of card DRAM. Hardware writes to it; the owner reads and writes only ranges
/// that no posted work request covers, which `dma`'s slots and buffers guarantee by ownership.
pub trait Region {
    /// The key for work requests and DMA operations on this region.
    fn key(&self) -> LocalKey;

    /// Address of the first byte, as used in work requests.
    fn base(&self) -> u64;

    /// Length in bytes.
    fn length(&self) -> usize;

    /// `length` bytes from `offset`; the empty slice when the range is not inside the region.
    fn bytes(&self, offset: usize, length: usize) -> &[u8];

    /// `length` bytes from `offset`; the empty slice when the range is not inside the region.
    fn bytes_mut(&mut self, offset: usize, length: usize) -> &mut [u8];
}

/// Why memory could not be claimed or imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// The card has not that much memory left.
    NoMemory {
        /// What was asked for.
        wanted_bytes: u64,
    },
    /// The export blob is malformed, for another device, or its secret is wrong.
    BadBlob,
    /// The provider cannot map host memory at all; use card memory and DMA copies.
    NotSupported,
}

impl core::fmt::Display for MemoryError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoMemory { wanted_bytes } => {
                write!(f, "the card could not give {wanted_bytes} bytes of registered memory")
            }
            Self::BadBlob => f.write_str("the export blob of the host arena is not valid here"),
            Self::NotSupported => f.write_str("this provider cannot import host memory"),
        }
    }
}

impl core::error::Error for MemoryError {}

/// Claims card DRAM and imports host arenas. Called at start, on arena changes and on revoke, never
/// on the data path.
pub trait Memory {
    /// The region type this provider registers.
    type Region: Region;

    /// Claims `length_bytes` of zeroed card DRAM, page-aligned, registered for local write with the
    /// HCA and for both directions with the DMA engine.
    ///
    /// # Errors
    /// [`MemoryError::NoMemory`].
    fn claim(&mut self, length_bytes: usize) -> Result<Self::Region, MemoryError>;

    /// Imports the host arena that `blob` describes, for DMA, and for HCA work requests where the
    /// result has a key.
    ///
    /// # Errors
    /// [`MemoryError::BadBlob`], [`MemoryError::NotSupported`].
    fn import(&mut self, blob: &[u8]) -> Result<HostArena, MemoryError>;

    /// Gives an imported arena back (announced revoke, or the end). Work requests posted on it
    /// fail with a local protection error from now on.
    fn unimport(&mut self, arena: ArenaId);
}
