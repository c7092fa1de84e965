//! Reservations of one logical unit: persistent ones (SPC-4 5.13) and those by RESERVE and RELEASE
//! (SPC-2 5.5, with SPC-4's exceptions 5.13.3).
//!
//! [`Reservations`] is the whole state. It lives in the agent's core, on the host: every command about
//! reservations is forwarded there and decided here, from the state, the I_T nexus and the bytes of the
//! command, to a [`Change`] or the ending of the command. A [`Change`] holds the new state instead of
//! making it: the caller keeps it on disk and has the card enforce it first, and a change that cannot be
//! kept is dropped with nothing to undo. What the card enforces is [`AccessTable`], and for a nexus that
//! is logged in one [`Access`]: those and [`class`] are all of this module that runs on the card.
//!
//! The clause numbers are those of SPC-4, the last text that has both ways of reserving; SPC-6 carries the
//! rules of the persistent ones on.
//!
//! Only this module of the crate allocates, and only for the agent; it does no I/O, not even for its own
//! records: [`record`] and [`scst`] make bytes of a state and a state of bytes.

mod access;
mod change;
mod command;
mod legacy;
pub mod record;
mod report;
pub mod scst;
mod state;
mod transport_id;

pub use access::{Access, AccessTable, Class, class, conflicts};
pub use change::{Change, Effects};
pub use command::{InAction, OutAction};
pub use state::{
    Nexus, REGISTRATIONS_MAX, Registration, Reservation, ReservationType, Reservations, TargetPort,
};
pub use transport_id::{Protocol, TransportId, TransportIdError};
