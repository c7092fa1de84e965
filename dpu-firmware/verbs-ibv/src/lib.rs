//! The provider for real RDMA hardware, over libibverbs and librdmacm: [`Ibverbs`] is a
//! [`lunar_platform::Platform`]. And [`host_memory`], the host's end of the same.
//!
//! The libraries are opened at the first use ([`Device::open`]), so a program that has this crate in
//! it starts everywhere, and says what is missing where rdma-core is not installed.
//!
//! One [`Device`] or several, with their ports, serve a card. What each poll group gets ([`Device::group`]) is shared
//! with no other one: a CQ, an SRQ, an event channel of the connection manager, and a connection to
//! the host's memory. Asynchronous events of the device are told to every group by whichever looks
//! first.
//!
//! What may not live here: anything that knows SCSI or SRP.
#![deny(unsafe_code)] // allowed by the modules that call the libraries, each with its reason

mod address;
mod completion_queue;
mod connection;
mod device;
mod error;
mod export_blob;
mod group;
mod host_link;
pub mod host_memory;
mod keys;
mod listener;
mod memory;
mod send_queue;
mod slots;

use lunar_platform::Platform;

pub use connection::IbvConnection;
pub use device::{Device, HcaName};
pub use error::OpenError;
pub use export_blob::ExportBlob;
pub use group::{GroupPieces, IbvHca};
pub use host_link::HostLink;
pub use listener::IbvListener;
pub use memory::{IbvMemory, IbvRegion};

/// A card of libibverbs devices.
#[derive(Debug)]
pub struct Ibverbs;

impl Platform for Ibverbs {
    type Region = IbvRegion;
    type Connection = IbvConnection;
    type Listener = IbvListener;
    type Hca = IbvHca;
    type Dma = HostLink;
    type Memory = IbvMemory;
}
