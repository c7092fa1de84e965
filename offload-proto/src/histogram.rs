//! The buckets of latency histograms, so that the card can count and the host can print.
//!
//! Log-linear: values below 16 have a bucket each; above, each power of two is cut into 16 equal
//! buckets, so a bucket is at most 1/16 of its value wide. The last bucket takes everything from
//! [`VALUE_MAX`]. Only the arithmetic lives here.

/// Equal buckets per power of two.
const PER_OCTAVE: u64 = 16;
const PER_OCTAVE_SHIFT: u32 = PER_OCTAVE.trailing_zeros();
/// Values of 2^37 (137 s in nanoseconds) and more share the last bucket.
pub const VALUE_MAX: u64 = 1 << OCTAVE_MAX;
const OCTAVE_MAX: u32 = 37;
/// Number of buckets.
pub const BUCKETS: usize = (OCTAVE_MAX - PER_OCTAVE_SHIFT + 1) as usize * PER_OCTAVE as usize + 1;

/// The bucket of `value`, below [`BUCKETS`].
#[inline]
#[must_use]
pub fn bucket_of(value: u64) -> usize {
    // `| 1` only gives 0 a logarithm; values below 16 are their own bucket either way.
    let octave = (value | 1).ilog2().saturating_sub(PER_OCTAVE_SHIFT);
    let inside = value.wrapping_shr(octave);
    // `inside` is below 32.
    let bucket = u64::from(octave).wrapping_mul(PER_OCTAVE).wrapping_add(inside);
    // Greater values have greater buckets, so all beyond `VALUE_MAX` meet in the last.
    usize::try_from(bucket).map_or(BUCKETS.saturating_sub(1), |b| b.min(BUCKETS.saturating_sub(1)))
}

/// The least value of `bucket`; buckets at or beyond [`BUCKETS`] give [`VALUE_MAX`].
#[must_use]
pub fn least_value_of(bucket: usize) -> u64 {
    let bucket = bucket.min(BUCKETS.saturating_sub(1)) as u64;
    if bucket < PER_OCTAVE {
        return bucket;
    }
    // Buckets of octave o hold `16..32` shifted left by o, and start at 16 * (o + 1).
    let octave = bucket.wrapping_shr(PER_OCTAVE_SHIFT).saturating_sub(1);
    let inside = bucket.saturating_sub(octave.saturating_mul(PER_OCTAVE));
    inside.wrapping_shl(u32::try_from(octave).unwrap_or(0))
}

#[cfg(test)]
mod tests;
