//! The emulated HCA: reliable connected queue pairs, SRQ, CQ and connection manager as DESIGN
//! section 6 asks for, as a provider of [`lunar_platform::Hca`] and [`lunar_platform::Listener`].
//!
//! Both ends of a connection run the same code ([`EmulatedHca`]); the initiator's end has the extra
//! methods `connect`, `poll_connect`, `register_remote` and `invalidate`. Two ends meet through a
//! [`Fabric`]: in one process (threads, or the single-threaded simulator) or between processes (a
//! Unix socket for the connection manager, shared memory for the data). The data path is the same:
//! each connection has a segment with two message rings and each end executes its own RDMA on the
//! peer's mapped memory, so it costs one copy per RDMA operation, two per SEND, and no system call.
//!
//! An emulated device moves only when its owner calls it: `ring` starts work, `poll` takes what
//! arrived and reports completions, `poll_cm` pumps the connection manager. Used from one thread with
//! a fixed seed everything repeats exactly.
//!
//! Where it is simpler than hardware, on purpose:
//! * a peer that does not poll neither receives nor acknowledges; time-outs come from faults
//!   (`silence`, `sever`), never from a clock;
//! * when a queue pair fails, SENDs before the failed request that were not acknowledged yet are
//!   flushed ahead of it (hardware may still wait for them);
//! * a CQ overrun is counted (`Statistics::completion_queue_overcommits`), not enacted;
//! * remote keys are checked by the poster, in the peer's published table (`remote_keys` says what
//!   that means for an invalidation that races with another core).
//!
//! What may not live here: anything that knows SCSI, SRP or the card's roles. Raw memory is
//! `lunar_pcie::Segment`'s business; this crate has no `unsafe`.
#![forbid(unsafe_code)]

mod connection_manager;
mod device;
mod fabric;
mod group;
mod initiator_side;
mod listener;
mod message_ring;
mod platform;
mod queue_pair;
mod remote_keys;
mod shared;
mod statistics;
mod unix;

pub use device::{Clock, DeviceConfig, EmulatedDevice, Latency, Mode};
pub use fabric::Fabric;
pub use group::EmulatedHca;
pub use initiator_side::{ConnectEvent, ConnectId};
pub use listener::{EmulatedConnection, EmulatedListener};
pub use platform::Emulated;
pub use remote_keys::{RemoteAccess, RemoteKey};
pub use statistics::Statistics;
