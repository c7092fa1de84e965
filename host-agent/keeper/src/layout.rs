//! Where each poll group's rings and its part of the data arena lie. Arithmetic only; both ends compute the same from
//! the same three numbers.

use lunar_offload_proto::ring::RingLayout;

/// The data arena's id on the control channel and in ring entries.
pub const DATA_ARENA: u16 = 0;

/// The ring segment's id. It is an arena as well: the card reaches the rings by DMA.
pub const RING_ARENA: u16 = 1;

/// Length of the notes, in which an agent leaves word for its successor: small, and nobody else's business.
pub const NOTES_BYTES: u64 = 4096;

/// Poll groups of one card. Their hint lines (two each) and the three memories have to fit one SCM_RIGHTS message, which
/// carries 253 descriptors.
pub const GROUPS_MAX: u32 = 64;

/// Data areas and rings begin at page borders.
const PAGE_BYTES: u64 = 4096;

/// The shape of what the keeper holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    groups: u32,
    ring: RingLayout,
    data_bytes: u64,
}

impl Layout {
    /// `groups` poll groups, 1..=[`GROUPS_MAX`], with rings of `ring_slots` slots (a power of two from 2 to 65536), and
    /// at least one page of the `arena_bytes` of data memory each. The error says which of them does not hold.
    pub fn new(groups: u32, ring_slots: u32, arena_bytes: u64) -> Result<Self, String> {
        if !(1..=GROUPS_MAX).contains(&groups) {
            return Err(format!("{groups} poll groups: there can be 1 to {GROUPS_MAX}"));
        }
        let ring = RingLayout::new(ring_slots).ok_or_else(|| {
            format!(
                "{ring_slots} ring slots: there can be a power of two from 2 to {}",
                RingLayout::SLOTS_MAX
            )
        })?;
        let data_bytes = arena_bytes / u64::from(groups) / PAGE_BYTES * PAGE_BYTES;
        if data_bytes == 0 || i64::try_from(arena_bytes).is_err() {
            return Err(format!(
                "an arena of {arena_bytes} bytes for {groups} poll groups: each needs at least {PAGE_BYTES} bytes"
            ));
        }
        Ok(Self { groups, ring, data_bytes })
    }

    /// Poll groups, each with a submission ring, a completion ring, a data area and two hint lines.
    pub fn groups(&self) -> u32 {
        self.groups
    }

    /// Layout of each of the rings.
    pub fn ring(&self) -> RingLayout {
        self.ring
    }

    /// Length of the ring segment in bytes.
    pub fn rings_bytes(&self) -> u64 {
        self.ring_stride() * 2 * u64::from(self.groups)
    }

    /// Length of the data arena in bytes.
    pub fn arena_bytes(&self) -> u64 {
        self.data_bytes * u64::from(self.groups)
    }

    /// Where `group`'s submission ring begins in the ring segment.
    pub fn submission_offset(&self, group: u32) -> u64 {
        self.ring_stride() * 2 * u64::from(group)
    }

    /// Where `group`'s completion ring begins in the ring segment.
    pub fn completion_offset(&self, group: u32) -> u64 {
        self.submission_offset(group) + self.ring_stride()
    }

    /// Where `group`'s part of the data arena begins.
    pub fn data_offset(&self, group: u32) -> u64 {
        self.data_bytes * u64::from(group)
    }

    /// Length of each group's part of the data arena in bytes, a multiple of 4096.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    fn ring_stride(&self) -> u64 {
        self.ring.bytes().next_multiple_of(PAGE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_and_data_areas_do_not_overlap_and_fill_their_memory() {
        let layout = Layout::new(3, 64, 1 << 20).unwrap();
        let mut end = 0;
        for group in 0..3 {
            assert_eq!(layout.submission_offset(group), end);
            assert!(layout.completion_offset(group) >= end + layout.ring().bytes());
            end = layout.completion_offset(group) + layout.ring().bytes().next_multiple_of(4096);
        }
        assert_eq!(end, layout.rings_bytes());
        assert_eq!(layout.data_offset(2) + layout.data_bytes(), layout.arena_bytes());
        assert!(layout.arena_bytes() <= 1 << 20);
    }

    #[test]
    fn impossible_shapes_are_refused_with_the_limit() {
        assert!(Layout::new(0, 64, 1 << 20).unwrap_err().contains("1 to 64"));
        assert!(Layout::new(65, 64, 1 << 20).unwrap_err().contains("1 to 64"));
        assert!(Layout::new(1, 63, 1 << 20).unwrap_err().contains("power of two"));
        assert!(Layout::new(2, 64, 8191).unwrap_err().contains("4096"));
        assert!(Layout::new(1, 64, u64::MAX).is_err());
    }
}
