//! The one source of chance of a run. Everything that could be otherwise is drawn here, from one
//! seed; providers that need draws of their own get their seeds from here.

use rand_core::Rng;
use rand_pcg::Pcg64;

/// The generator of one run.
#[derive(Clone, Debug)]
pub struct Random(Pcg64);

impl Random {
    /// The generator of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Pcg64::new(u128::from(seed), 0x6c75_6e61_7273_696d))
    }

    /// A seed for a provider.
    pub fn seed(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Below `limit`, 0 for a limit of 0. The bias of the remainder does not matter here.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit.max(1)
    }

    /// As [`Self::below`], for indexes.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    /// From `least` to `most`, both possible.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most.saturating_sub(least) + 1)
    }

    /// True in `of` out of `all` cases.
    pub fn chance(&mut self, of: u64, all: u64) -> bool {
        self.below(all) < of
    }
}
