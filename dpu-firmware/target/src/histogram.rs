//! Latency histograms that are always on: fixed size, a handful of instructions to record. The
//! buckets are those that card and host agreed on.

use lunar_offload_proto::histogram::{BUCKETS, bucket_of};

/// Counts of latencies in nanoseconds.
#[derive(Clone)]
pub struct Histogram {
    counts: [u32; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS] }
    }
}

impl Histogram {
    /// Counts one latency.
    #[inline]
    pub fn record(&mut self, nanoseconds: u64) {
        if let Some(count) = self.counts.get_mut(bucket_of(nanoseconds)) {
            *count = count.wrapping_add(1);
        }
    }

    /// Pairs of (bucket, count) that are not zero, ascending.
    pub fn counts(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.counts.iter().copied().enumerate().filter(|(_, count)| *count != 0)
    }
}
