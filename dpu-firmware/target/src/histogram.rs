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
    /// The bucket of one latency, for [`Self::count`]: a latency is counted in several histograms.
    #[inline]
    #[must_use]
    pub fn bucket(nanoseconds: u64) -> usize {
        bucket_of(nanoseconds)
    }

    /// Counts one latency by its bucket.
    #[inline]
    pub fn count(&mut self, bucket: usize) {
        if let Some(count) = self.counts.get_mut(bucket) {
            *count = count.wrapping_add(1);
        }
    }

    /// Pairs of (bucket, count) that are not zero, ascending.
    pub fn counts(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.counts.iter().copied().enumerate().filter(|(_, count)| *count != 0)
    }
}
