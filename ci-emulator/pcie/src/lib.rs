//! The emulated PCIe side of the card: registered card memory, the device's key table, host arenas
//! as the card sees them, the DMA engine and the hints.
//!
//! Here live providers of [`lunar_platform::Memory`], [`lunar_platform::Region`] and
//! [`lunar_platform::Dma`], and nothing that decides about commands. Shared memory is touched with
//! `unsafe` in `segment.rs` and nowhere else.
//!
//! Two modes. *Prompt* carries everything out at once and is what the product runs on; its
//! data-path methods neither allocate nor lock. *Adversarial* uses, under one seed, every freedom
//! that the rules in `platform/src/dma.rs` leave to hardware: completions come late, pushed bytes
//! become visible early, in pieces, in any order, or as late as the next operation; what the HCA
//! wrote into host memory stays withheld until a flush.

mod adversary;
mod dma;
mod hint;
mod host;
mod memory;
mod segment;
mod space;
mod window;

pub use adversary::Randomness;
pub use dma::{DmaConfig, DmaMode, EmulatedDma};
pub use hint::HintLine;
pub use host::{ExportBlob, HostSlot, PlacementMode};
pub use memory::{Backing, CardMemory, CardRegion};
pub use segment::Segment;
pub use space::{AddressSpace, Kind, Registration, Resolved};
pub use window::RingWindow;
