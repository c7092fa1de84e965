//! The emulated providers as one platform: what every emulated card is made of.

use lunar_pcie::{CardMemory, CardRegion, EmulatedDma};
use lunar_platform::Platform;

use crate::{EmulatedConnection, EmulatedHca, EmulatedListener};

/// A card of emulated providers.
#[derive(Debug)]
pub struct Emulated;

impl Platform for Emulated {
    type Region = CardRegion;
    type Connection = EmulatedConnection;
    type Listener = EmulatedListener;
    type Hca = EmulatedHca;
    type Dma = EmulatedDma;
    type Memory = CardMemory;
}
