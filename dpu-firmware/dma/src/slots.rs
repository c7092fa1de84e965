//! A fixed number of places, each with a generation, so that a handle from an earlier life is noticed.
//!
//! A work request or ring entry carries a [`SlotId`] as 64-bit token; when its completion comes back
//! after the slot was released and claimed again, the generation does not fit and the completion is
//! stale, not somebody else's.

/// Names one life of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId {
    /// The slot, below [`Slots::capacity`].
    pub index: u32,
    /// Which life of it; odd. The default, 0, never was a life.
    pub generation: u32,
}

impl SlotId {
    /// As a token: index in the low, generation in the high 32 bits.
    #[must_use]
    pub const fn to_token(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The id in a token. Any token gives an id; whether it lives, the slots tell.
    #[must_use]
    pub const fn from_token(token: u64) -> Self {
        Self { index: token as u32, generation: (token >> 32) as u32 }
    }
}

/// End of the free list.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Slot<T> {
    /// Odd while claimed, even while free; grows by one at each claim and release.
    generation: u32,
    /// The next free slot, while this one is free.
    next_free: u32,
    value: T,
}

/// `capacity` values of type `T`, made once. Claiming is last in, first out: the slot that was
/// released last is the one most likely in the cache.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Box<[Slot<T>]>,
    free: u32,
    live: u32,
}

impl<T> Slots<T> {
    /// Makes `capacity` free slots (at most 2^32 - 2; more are not made) with `make(index)` in each.
    #[must_use]
    pub fn new(capacity: u32, mut make: impl FnMut(u32) -> T) -> Self {
        let capacity = capacity.min(NONE - 1);
        let slots = (0..capacity)
            .map(|index| {
                let next_free = if index + 1 < capacity { index + 1 } else { NONE };
                Slot { generation: 0, next_free, value: make(index) }
            })
            .collect();
        Self { slots, free: if capacity == 0 { NONE } else { 0 }, live: 0 }
    }

    /// Claims a free slot; `None` when all are claimed. Its value is as the last owner left it.
    #[inline]
    pub fn claim(&mut self) -> Option<(SlotId, &mut T)> {
        let index = self.free;
        let slot = self.slots.get_mut(index as usize)?;
        self.free = slot.next_free;
        slot.generation = slot.generation.wrapping_add(1);
        self.live += 1;
        Some((SlotId { index, generation: slot.generation }, &mut slot.value))
    }

    /// Releases a slot: `id` and its copies are stale from now on. `false` when it was stale already,
    /// and nothing happened.
    #[inline]
    pub fn release(&mut self, id: SlotId) -> bool {
        let free = self.free;
        let Some(slot) = self.living_mut(id) else { return false };
        slot.generation = slot.generation.wrapping_add(1);
        slot.next_free = free;
        self.free = id.index;
        self.live -= 1;
        true
    }

    /// The value of a claimed slot; `None` when `id` is stale or was never given.
    #[must_use]
    pub fn get(&self, id: SlotId) -> Option<&T> {
        self.slots
            .get(id.index as usize)
            .filter(|slot| slot.generation == id.generation && is_live(slot.generation))
            .map(|slot| &slot.value)
    }

    /// As [`Self::get`].
    #[must_use]
    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        self.living_mut(id).map(|slot| &mut slot.value)
    }

    /// The value at `index`, claimed or not, whatever its generation: for walking over all slots and
    /// for ids that were just checked.
    #[must_use]
    pub fn at(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize).map(|slot| &slot.value)
    }

    /// As [`Self::at`].
    #[must_use]
    pub fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize).map(|slot| &mut slot.value)
    }

    /// As [`Self::at_mut`], with the id of the slot's present life, which means something only while
    /// the slot is claimed.
    #[inline]
    #[must_use]
    pub fn entry(&mut self, index: u32) -> Option<(SlotId, &mut T)> {
        let slot = self.slots.get_mut(index as usize)?;
        Some((SlotId { index, generation: slot.generation }, &mut slot.value))
    }

    /// The id of the slot at `index`, when it is claimed.
    #[must_use]
    pub fn id_at(&self, index: u32) -> Option<SlotId> {
        let generation = self.slots.get(index as usize)?.generation;
        is_live(generation).then_some(SlotId { index, generation })
    }

    /// Claimed slots, by index. Takes time in proportion to the capacity: not for the data path.
    pub fn iter_live(&self) -> impl Iterator<Item = (SlotId, &T)> {
        (0_u32..)
            .zip(&self.slots)
            .filter(|(_, slot)| is_live(slot.generation))
            .map(|(index, slot)| (SlotId { index, generation: slot.generation }, &slot.value))
    }

    /// Number of claimed slots.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.live
    }

    /// Whether no slot is claimed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Number of slots.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(NONE)
    }

    fn living_mut(&mut self, id: SlotId) -> Option<&mut Slot<T>> {
        self.slots
            .get_mut(id.index as usize)
            .filter(|slot| slot.generation == id.generation && is_live(slot.generation))
    }
}

const fn is_live(generation: u32) -> bool {
    generation & 1 == 1
}

#[cfg(test)]
mod tests;
