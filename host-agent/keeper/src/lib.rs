//! The keeper of what must outlive an agent: the arena that commands' data lies in, the rings, and the hint lines.
//!
//! `lunar-arena` makes them once, holds them, and hands descriptors of them to whoever asks over a Unix socket and runs
//! as the same user (or as root): the agent, the emulated card, and the exporter, a child process that exports the
//! memory over RDMA. It never looks into the memory, runs one thread, and waits in poll(2). An agent that dies and comes
//! back finds its rings as they were; only when the keeper ends is the memory gone.
//!
//! * [`layout`]: where each poll group's rings and data lie.
//! * [`protocol`]: the messages on the socket.
//! * [`server`]: the keeper itself. [`client`]: how the others reach it.

pub mod client;
mod export;
pub mod layout;
pub mod protocol;
#[cfg(feature = "ibverbs")]
mod rdma;
pub mod server;

pub use client::{Client, Offer};
pub use layout::Layout;
pub use server::{Options, run};
