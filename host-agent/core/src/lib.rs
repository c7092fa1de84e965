//! The agent's core: decides what becomes of everything the card asks for, in rings and on the
//! control channel. Sans-IO: the agent (and the simulator) brings messages, ring entries, handlers'
//! outcomes and the time, and carries out the [`Effect`]s it gets back.
//!
//! The one story, told from the shell's side:
//! 1. [`Core::new`] with the rings' places and, after a restart, what [`ring::RingPair::recover`]
//!    found in them; [`Core::set_configuration`];
//! 2. [`Core::on_control_connected`], then [`Core::on_control`] for every message;
//! 3. [`ring::RingPair::poll`] for every ring, which calls [`Core::on_submission`];
//! 4. [`Core::poll_effect`] until it gives `None`: `Execute` goes to a handler, whose end comes back
//!    through [`Core::on_outcome`]; `Complete` goes to the ring, by [`ring::RingPair::complete`];
//! 5. [`Core::on_tick`] no later than [`Core::next_deadline`].
//!
//! No I/O, clock, threads or logs live here, and nothing that differs from run to run: no
//! randomised hashing. Whatever the card sends, the answer is an effect; nothing panics.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

mod alua;
mod config;
mod control;
mod copy;
mod core;
mod effect;
mod forwarded;
mod holds;
mod link;
pub mod mutant;
mod nexus;
mod operations;
mod removal;
mod reserving;
pub mod ring;
mod rings;
mod submission;
mod units;
mod work;

pub use crate::core::Core;
pub use config::{ArenaGeometry, CoreConfig, Limits, Recovered, RingGeometry, RingRecovery};
pub use copy::{COPY_ARENA, COPY_ARENA_BYTES};
pub use effect::{DataRange, Effect, Level, LogEvent};
pub use forwarded::Forwarded;
pub use link::LinkState;
/// Reservations as they are kept and shown, for the shell.
pub use lunar_scsi::reservations;
/// The commands that card and host know, for whoever prints them.
pub use lunar_scsi::{opcodes, unit::DeviceType};
pub use nexus::Nexus;
pub use operations::OperationId;
pub use rings::{RingCounters, RingState};
pub use units::{Configuration, ConfigurationError, DeviceHandle, UnitConfiguration};
