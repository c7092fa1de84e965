//! The queue pairs of a poll group by handle, and their handles by queue pair number. No device is
//! touched here.

use lunar_platform::QpHandle;

/// One entry.
#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    /// Number of the first send-queue entry of its next life.
    next_sequence: u32,
    content: Option<T>,
}

/// A table of up to a fixed number of queue pairs with stale-proof handles.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Box<[Slot<T>]>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    pub(crate) fn new(capacity: u32) -> Self {
        let slot = |_| Slot { generation: 0, next_sequence: 0, content: None };
        Self { slots: (0..capacity).map(slot).collect(), free: (0..capacity).rev().collect() }
    }

    /// Takes a free slot; `make` is told its handle and the number its send queue begins with.
    pub(crate) fn claim<E>(
        &mut self,
        make: impl FnOnce(QpHandle, u32) -> Result<T, E>,
    ) -> Option<Result<QpHandle, E>> {
        let index = *self.free.last()?;
        let slot = &mut self.slots[index as usize];
        let handle = QpHandle { index, generation: slot.generation };
        Some(make(handle, slot.next_sequence).map(|content| {
            slot.content = Some(content);
            self.free.pop();
            handle
        }))
    }

    /// Empties the slot of `index`; all its handles are stale from now on.
    pub(crate) fn release(&mut self, index: u32, next_sequence: u32) -> Option<T> {
        let slot = self.slots.get_mut(index as usize)?;
        let content = slot.content.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        slot.next_sequence = next_sequence;
        self.free.push(index);
        Some(content)
    }

    /// What lives under `handle`.
    #[inline]
    pub(crate) fn get_mut(&mut self, handle: QpHandle) -> Option<&mut T> {
        let slot = self.slots.get_mut(handle.index as usize)?;
        if slot.generation == handle.generation { slot.content.as_mut() } else { None }
    }

    /// What lives at `index`, whichever life it is.
    #[inline]
    pub(crate) fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.content.as_mut()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub(crate) fn capacity(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }
}

/// Queue pair number to slot index: open addressing, at most half full, so that a receive completion
/// costs one or two loads. Numbers are dense or random over 24 bits; their low bits spread well.
#[derive(Debug)]
pub(crate) struct QpNumbers {
    /// `(number, index)`; an index of [`VACANT`] is an empty place.
    places: Box<[(u32, u32)]>,
}

const VACANT: u32 = u32::MAX;

impl QpNumbers {
    /// Room for `capacity` numbers.
    pub(crate) fn new(capacity: u32) -> Self {
        let places = (capacity.max(1) as usize * 2).next_power_of_two();
        Self { places: vec![(0, VACANT); places].into_boxed_slice() }
    }

    #[inline]
    fn home(&self, number: u32) -> usize {
        number as usize & (self.places.len() - 1)
    }

    fn after(&self, place: usize) -> usize {
        (place + 1) & (self.places.len() - 1)
    }

    /// The slot of `number`.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<u32> {
        let mut place = self.home(number);
        loop {
            match self.places[place] {
                (_, VACANT) => return None,
                (known, index) if known == number => return Some(index),
                _ => place = self.after(place),
            }
        }
    }

    /// `number` leads to `index` from now on. The caller has at most `capacity` numbers in.
    pub(crate) fn insert(&mut self, number: u32, index: u32) {
        let mut place = self.home(number);
        while self.places[place].1 != VACANT && self.places[place].0 != number {
            place = self.after(place);
        }
        self.places[place] = (number, index);
    }

    /// `number` leads nowhere. What stood behind it moves up, so no walk ends too early.
    pub(crate) fn remove(&mut self, number: u32) {
        let mut hole = self.home(number);
        while self.places[hole].1 != VACANT && self.places[hole].0 != number {
            hole = self.after(hole);
        }
        if self.places[hole].1 == VACANT {
            return;
        }
        let mask = self.places.len() - 1;
        let mut place = hole;
        loop {
            place = self.after(place);
            let (moving, index) = self.places[place];
            if index == VACANT {
                break;
            }
            // It may move unless its home lies between the hole and it.
            let from_home = place.wrapping_sub(self.home(moving)) & mask;
            if from_home >= place.wrapping_sub(hole) & mask {
                self.places[hole] = self.places[place];
                hole = place;
            }
        }
        self.places[hole].1 = VACANT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn claim(slots: &mut Slots<u32>, content: u32) -> Option<QpHandle> {
        slots.claim(|_, _| Ok::<_, ()>(content)).map(Result::unwrap)
    }

    #[test]
    fn a_handle_is_stale_after_its_queue_pair_is_gone() {
        let mut slots = Slots::new(2);
        let first = claim(&mut slots, 10).unwrap();
        assert_eq!(slots.get_mut(first), Some(&mut 10));
        assert_eq!(slots.release(first.index, 7), Some(10));
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.release(first.index, 7), None);
        let mut begins = 0;
        let second = slots
            .claim(|_, sequence| {
                begins = sequence;
                Ok::<_, ()>(11)
            })
            .unwrap()
            .unwrap();
        assert_eq!((second.index, begins), (first.index, 7));
        assert_ne!(second, first);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.get_mut(second), Some(&mut 11));
        assert_eq!(slots.get_mut(QpHandle { index: 9, generation: 0 }), None);
    }

    #[test]
    fn a_full_table_refuses_and_a_failed_claim_costs_nothing() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.claim(|_, _| Err::<u32, _>("no")), Some(Err("no")));
        assert!(claim(&mut slots, 1).is_some());
        assert!(claim(&mut slots, 2).is_some());
        assert!(claim(&mut slots, 3).is_none());
    }

    #[test]
    fn numbers_are_found_after_any_order_of_insertions_and_removals() {
        let mut numbers = QpNumbers::new(16);
        let mut model = BTreeMap::new();
        let mut state = 1u32;
        for step in 0..20_000u32 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Few homes, so that runs form and wrap around the end.
            let number = (state >> 16) % 5 * 32 + (state >> 8) % 4 + 29;
            if state & 1 == 0 && model.len() < 16 {
                numbers.insert(number, step);
                model.insert(number, step);
            } else {
                numbers.remove(number);
                model.remove(&number);
            }
            for number in 29..200 {
                assert_eq!(numbers.get(number), model.get(&number).copied());
            }
        }
    }
}
