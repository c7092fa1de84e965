//! The moving part of the card: poll groups that carry commands from the HCA through the SCSI
//! device server to a backend and back. Generic over [`lunar_platform::Platform`], so the same code
//! runs on a card, in the emulator and in the simulator.
//!
//! Decisions are not made here (`scsi`, `srp`, `vscsi` make them) and hardware is not named here (`platform`
//! does). Nothing on a command's way allocates, locks, logs or panics on input; broken invariants
//! assert. Start reading at [`PollGroup::tick`] and at `task`, with docs/one-read.md beside.
#![forbid(unsafe_code)]

mod agent_link;
mod announce;
mod channel;
mod control;
mod coordinator;
mod fifo;
mod focus;
mod kit;
mod login;
mod management;
mod nexus;
mod poll_group;
mod report;
mod resume;
mod srp_port;
mod task;
mod transport;
mod vscsi_port;

pub mod configuration;
pub mod histogram;
pub mod message;
pub mod mutant;
pub mod statistics;
pub mod trace;

pub use agent_link::AgentLink;
pub use coordinator::{Coordinator, GroupLink, Report, group_of, mailbox};
pub use poll_group::{Activity, GroupLimits, GroupParts, PollGroup};
pub use task::State;
pub use transport::{Transport, TransportConnection, TransportListener};
pub use vscsi_port::{AdapterConfig, VscsiConnection, VscsiListener, VscsiPort};
