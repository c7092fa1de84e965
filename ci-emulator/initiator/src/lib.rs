//! The model SRP initiator: what logs in, sends commands and judges the answers in the emulator's
//! bench process, in the scenario tests and in the simulator.
//!
//! * [`Initiator`] moves: one channel over the emulated HCA, polled from one thread, without a clock,
//! * [`ledger`] decides: tags, credits and what the target may answer; every breach is a
//!   [`Violation`],
//! * [`oracle`] knows what each block of a logical unit may contain,
//! * [`cdbs`] builds command descriptor blocks.
//!
//! Nothing that ships may depend on this crate, and nothing of the target's logic may live here: a
//! mistake must not be made on both sides.
#![forbid(unsafe_code)]

pub mod cdbs;
mod initiator;
pub mod ledger;
pub mod oracle;

pub use initiator::{Command, Config, Data, Initiator, LoginError, Shape, Statistics};
pub use ledger::{Event, SubmitError, Tag, Violation};
