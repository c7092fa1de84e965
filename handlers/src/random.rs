//! The seeded generator behind the decorators: the same seed gives the same run, everywhere.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `least` to `most`, both included; `least` when they are the wrong way round.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        match most.checked_sub(least) {
            None => least,
            Some(u64::MAX) => self.next(),
            // The bias of the remainder is far below what a test could see.
            Some(span) => least + self.next() % (span + 1),
        }
    }
}
