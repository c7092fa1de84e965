//! Names for the hardware: the traits that the moving code (`dma`, `backend`, `target`) is generic
//! over, and the plain data that crosses them.
//!
//! Here live trait definitions and value types. Implementations ("providers") may not live here:
//! the real ones are in `verbs-ibv`, the emulated ones in `ci-emulator`.
//!
//! Who owns what: a [`Platform`] is a bundle of types. One [`Listener`] serves a whole card; each
//! poll group (one core) owns one [`Hca`] (one CQ, one SRQ, its queue pairs), one [`Dma`] context
//! and one [`Memory`]. None of them is shared between cores, so none of them needs `Sync`.
#![forbid(unsafe_code)]

mod dma;
mod hca;
mod hypervisor;
mod memory;

pub use dma::{Dma, DmaCompletion, DmaError, DmaOperation, DmaRequest, HostAddress};
pub use hca::{
    AnsweredRequest, CmError, CmEvent, CompletionStatus, ConnectRequest, Delivery, Hca,
    HcaAttributes, Listener, PeerAddress, PostError, PrivateData, QpHandle, QpParameters,
    ReceiveRequest, RemoteAddress, SendOperation, SendRequest, Sge, WorkCompletion, WorkRequestId,
};
pub use hypervisor::{
    Hypervisor, HypervisorError, HypervisorEvent, HypervisorOperation, HypervisorRequest,
    UnitAddress,
};
pub use memory::{ArenaId, HostArena, LocalKey, Memory, MemoryError, Region};

/// All type choices of one card in one place, so that generics do not spread.
pub trait Platform: 'static {
    /// Registered card DRAM.
    type Region: Region + Send;
    /// A connection request that was not answered yet; travels from the listener's core to the
    /// core of the poll group that accepts it.
    type Connection: Send;
    /// Where connection requests arrive.
    type Listener: Listener<Connection = Self::Connection> + Send;
    /// One poll group's share of the HCA.
    type Hca: Hca<Connection = Self::Connection> + Send;
    /// One poll group's DMA context between card and host memory.
    type Dma: Dma + Send;
    /// One poll group's registrar of card memory and importer of host arenas.
    type Memory: Memory<Region = Self::Region> + Send;
}

/// A hardware time stamp or virtual time: nanoseconds since an arbitrary start, never decreasing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanoseconds(pub u64);

impl Nanoseconds {
    /// Time since `earlier`, zero when `earlier` lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This instant plus `nanoseconds`, saturating.
    #[must_use]
    pub fn plus(self, nanoseconds: u64) -> Self {
        Self(self.0.saturating_add(nanoseconds))
    }
}
