//! A ring in host memory as the host's cores see it: plain loads, stores and copies.

use std::sync::atomic::Ordering;

use lunar_offload_proto::cursor::RingMemory;
use lunar_offload_proto::ring::RingLayout;

use crate::segment::Segment;

/// A window of a segment that holds one ring.
#[derive(Clone, Debug)]
pub struct RingWindow {
    segment: Segment,
    first: u64,
}

impl RingWindow {
    /// The ring of `layout` whose first byte lies at `first`; `None` when it does not lie in
    /// `segment` or `first` is not a multiple of 64.
    #[must_use]
    pub fn new(segment: &Segment, first: u64, layout: RingLayout) -> Option<Self> {
        let end = first.checked_add(layout.bytes())?;
        (end <= segment.len() as u64 && first.is_multiple_of(64))
            .then(|| Self { segment: segment.clone(), first })
    }
}

/// Offsets outside of the ring, which its users do not have, read as zero and write nothing.
impl RingMemory for RingWindow {
    #[inline]
    fn load_acquire(&self, offset: u64) -> u32 {
        let word = self.segment.atomic_u32(self.first.saturating_add(offset));
        word.map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    fn store_release(&self, offset: u64, value: u32) {
        if let Some(word) = self.segment.atomic_u32(self.first.saturating_add(offset)) {
            word.store(value, Ordering::Release);
        }
    }

    #[inline]
    fn read(&self, offset: u64, out: &mut [u8]) {
        if !self.segment.read(self.first.saturating_add(offset), out) {
            out.fill(0);
        }
    }

    #[inline]
    fn write(&self, offset: u64, bytes: &[u8]) {
        self.segment.write(self.first.saturating_add(offset), bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_must_hold_the_whole_ring_on_cache_lines() {
        let layout = RingLayout::new(4).unwrap();
        let segment = Segment::anonymous(layout.bytes() as usize + 64).unwrap();
        assert!(RingWindow::new(&segment, 65, layout).is_none());
        assert!(RingWindow::new(&segment, 128, layout).is_none());
        assert!(RingWindow::new(&segment, u64::MAX - 63, layout).is_none());
        let window = RingWindow::new(&segment, 64, layout).unwrap();
        window.store_release(layout.consumed_offset(), 7);
        assert_eq!(window.load_acquire(layout.consumed_offset()), 7);
        window.write(layout.entry_offset(1), &[1, 2, 3]);
        let mut out = [9; 3];
        assert!(segment.read(64 + layout.entry_offset(1), &mut out));
        assert_eq!(out, [1, 2, 3]);
        window.read(u64::MAX, &mut out);
        assert_eq!(out, [0; 3]);
        assert_eq!(window.load_acquire(u64::MAX), 0);
    }
}
