//! An emulated PAPR hypervisor: pairs of VSCSI adapters, one end a client partition's, the other the
//! server's.
//!
//! Here live providers of [`lunar_platform::Hypervisor`], and nothing that decides about adapters or
//! knows SCSI:
//!
//! * [`EmulatedHypervisor`]: the server's end in this process. The other end is a [`ClientPartition`],
//!   with memory, a TCE table and hypervisor calls of its own.
//! * [`SocketHypervisor`]: the server's end of one adapter whose client, a real one, sits behind a bridge
//!   on a Unix socket. A bridge keeps its client's window in a [`TceTable`] of ours.
//!
//! Return codes are those of [`lunar_vscsi::hcall::code`]. An adapter pair is one lock: partitions call
//! their hypervisor from any thread.

mod client;
mod frame;
mod pair;
mod server;
mod socket;
mod tce;

pub use client::ClientPartition;
pub use pair::{PAGE_BYTES, pair};
pub use server::{EmulatedHypervisor, ServerAdapter};
pub use socket::SocketHypervisor;
pub use tce::{SERVER_MAY_READ, SERVER_MAY_WRITE, TceTable};
