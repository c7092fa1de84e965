//! The DMA engine between card DRAM and host memory (DOCA DMA, an RC queue pair, or emulated).
//!
//! Operations of one context execute in order and complete in order. A completion is *local*: a
//! push's bytes are visible to the host once it completed, and only relative to later operations of
//! the same context. Data that the **HCA** wrote into host memory is ordered with nothing here until
//! a [`DmaOperation::Flush`] of its arena completed.

use crate::memory::{ArenaId, LocalKey};

/// A place in host memory: an arena and an offset in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// Which imported arena.
    pub arena: ArenaId,
    /// Offset in bytes from the arena's first byte.
    pub offset: u64,
}

/// One DMA operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaOperation {
    /// Card to host.
    Push {
        /// Key of the card region.
        key: LocalKey,
        /// Address in the card region (its base plus an offset).
        address: u64,
        /// Where the bytes go.
        host: HostAddress,
        /// Length in bytes.
        length: u32,
    },
    /// Host to card.
    Pull {
        /// Key of the card region.
        key: LocalKey,
        /// Address in the card region.
        address: u64,
        /// Where the bytes come from.
        host: HostAddress,
        /// Length in bytes.
        length: u32,
    },
    /// Completes when everything the HCA wrote into `arena` before is visible to the host's cores
    /// (a read-back on the same PCIe function).
    Flush {
        /// The arena.
        arena: ArenaId,
    },
}

/// One entry for [`Dma::submit`]. `id` comes back in the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRequest {
    /// The submitter's name for it, opaque to the provider.
    pub id: u64,
    /// What to do.
    pub operation: DmaOperation,
}

/// The end of one DMA operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaCompletion {
    /// The request's `id`.
    pub id: u64,
    /// Whether it was carried out. After an error nothing is known about the destination.
    pub result: Result<(), DmaError>,
}

/// Why a DMA operation was refused or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaError {
    /// No room in the queue now; poll and try again.
    Full,
    /// The key or range is not registered, or the arena is not imported (any more).
    Protection,
    /// The host vanished (surprise removal) or the context is broken.
    Gone,
}

/// One DMA context. Every method is non-blocking and does not allocate.
pub trait Dma {
    /// How many operations [`Dma::submit`] takes right now. 0 also while the way to the host is being made, which
    /// [`Dma::poll`] and [`Dma::arm`] drive.
    fn room(&self) -> usize;

    /// Queues one operation behind all earlier ones of this context.
    ///
    /// # Errors
    /// [`DmaError::Full`] when there is no room, [`DmaError::Protection`] for ranges that are known
    /// to be bad at once, [`DmaError::Gone`].
    fn submit(&mut self, request: DmaRequest) -> Result<(), DmaError>;

    /// Reaps completions in order; gives their number.
    fn poll(&mut self, completions: &mut [DmaCompletion]) -> usize;

    /// Tells the host that something was published in ring `ring`. A hint: it may be lost.
    fn ring_host(&mut self, ring: u16);

    /// Asks for a wake-up through [`Dma::event_fd`] at the host's next hint. Returns `false` when
    /// something is pending already, so the caller must not sleep.
    fn arm(&mut self) -> bool;

    /// A descriptor that becomes readable at a hint after [`Dma::arm`]; `None` where the provider
    /// has none (then sleep by time alone).
    fn event_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>>;
}
