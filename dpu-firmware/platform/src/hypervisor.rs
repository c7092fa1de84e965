//! The hypervisor under a partition (PAPR): what a VSCSI server asks of it for its adapters.
//!
//! One poll group owns one [`Hypervisor`], which serves any number of adapters. Calls are submitted and
//! come back as events, because the partition that makes them may be another one than the card: then a
//! port ring lies between. The queue's pages and the interrupt are the provider's.

use crate::hca::Sge;

/// An adapter's unit address: it names the server's end of one client's adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitAddress(pub u32);

/// What the hypervisor is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HypervisorOperation {
    /// H_REG_CRQ, with an empty queue, and signals on.
    RegisterQueue,
    /// H_FREE_CRQ. What is in the queue is lost.
    FreeQueue,
    /// H_SEND_CRQ of these 16 bytes.
    SendEntry([u8; 16]),
    /// H_COPY_RDMA from the client's I/O window into the local range.
    CopyIn {
        /// I/O address in the client's window.
        client_address: u64,
        /// Where the bytes go, and how many.
        local: Sge,
    },
    /// H_COPY_RDMA from the local range into the client's I/O window.
    CopyOut {
        /// Where the bytes come from, and how many.
        local: Sge,
        /// I/O address in the client's window.
        client_address: u64,
    },
    /// H_VIOCTL: nothing of the client's is in flight, and it may be suspended.
    ReadyForSuspend,
}

/// One call for [`Hypervisor::submit`]. `id` comes back with its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HypervisorRequest {
    /// The submitter's name for it, opaque to the provider.
    pub id: u64,
    /// For which adapter.
    pub unit: UnitAddress,
    /// What to do.
    pub operation: HypervisorOperation,
}

/// What [`Hypervisor::poll`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HypervisorEvent {
    /// An entry appeared in an adapter's queue.
    Entry {
        /// Whose queue.
        unit: UnitAddress,
        /// Its 16 bytes.
        entry: [u8; 16],
    },
    /// A call came back.
    Returned {
        /// The request's `id`.
        id: u64,
        /// The request's adapter.
        unit: UnitAddress,
        /// PAPR's return code.
        code: i64,
    },
}

/// Why a call was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HypervisorError {
    /// No room now; poll and try again.
    Full,
    /// There is no such adapter.
    UnknownUnit,
}

/// One poll group's way to its adapters. Every method is non-blocking.
///
/// Calls for one adapter are carried out in the order of their submission. The return of a call is given
/// before entries that arrived after it; entries of one adapter come in their order.
pub trait Hypervisor {
    /// How many calls [`Hypervisor::submit`] takes right now.
    fn room(&self) -> usize;

    /// Makes a call, or queues it.
    ///
    /// # Errors
    /// [`HypervisorError::Full`] when there is no room, [`HypervisorError::UnknownUnit`].
    fn submit(&mut self, request: HypervisorRequest) -> Result<(), HypervisorError>;

    /// Takes events into the front of `events`; gives their number.
    fn poll(&mut self, events: &mut [HypervisorEvent]) -> usize;

    /// Asks for a wake-up through [`Hypervisor::event_fd`] at the next event. Returns `false` when something
    /// is pending already, so the caller must not sleep.
    fn arm(&mut self) -> bool;

    /// A descriptor that becomes readable at an event after [`Hypervisor::arm`]; `None` where the provider has
    /// none (then sleep by time alone).
    fn event_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>>;
}
