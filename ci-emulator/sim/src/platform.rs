//! The emulated providers as one platform.

use lunar_hca::{EmulatedConnection, EmulatedHca, EmulatedListener};
use lunar_pcie::{CardMemory, CardRegion, EmulatedDma};
use lunar_platform::Platform;

/// The platform that the simulated card runs on.
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
