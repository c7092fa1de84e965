//! The local keys of one poll group: which of our memory each names, and the device's lkey for it.
//!
//! The platform's [`LocalKey`] is ours, not the device's: an index and a generation into this table.
//! So a key that is over is known before it is posted, and an inline send, whose bytes the CPU copies
//! while posting, reads only memory that is registered at that moment.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lunar_platform::LocalKey;

/// Regions a group may have registered at a time: receive, response and SGV memory, ring mirrors.
const KEYS_MAX: usize = 64;
const INDEX_BITS: u32 = 6;

#[derive(Debug, Default)]
struct Entry {
    /// 0: vacant.
    key: AtomicU32,
    lkey: AtomicU32,
    dma_lkey: AtomicU32,
    first: AtomicU64,
    bytes: AtomicU64,
}

/// What a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) lkey: u32,
    /// The lkey at the device of the DMA context, which may be another one.
    pub(crate) dma_lkey: u32,
    first: u64,
    bytes: u64,
}

impl Registered {
    /// Whether `bytes` from `address` lie in it.
    #[inline]
    pub(crate) fn holds(&self, address: u64, bytes: u64) -> bool {
        address
            .checked_sub(self.first)
            .and_then(|offset| offset.checked_add(bytes))
            .is_some_and(|end| end <= self.bytes)
    }
}

/// The keys of one group, shared by its memory, its HCA and its DMA context.
#[derive(Debug)]
pub(crate) struct Keys {
    entries: [Entry; KEYS_MAX],
    /// Who looks at registered memory at this moment.
    readers: AtomicU32,
    /// Next generation; changes are made under this lock.
    generation: Mutex<u32>,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            entries: std::array::from_fn(|_| Entry::default()),
            readers: AtomicU32::new(0),
            generation: Mutex::new(1),
        }
    }
}

/// While it lives, no region of the group is unmapped.
#[derive(Debug)]
pub(crate) struct Reading<'a>(&'a Keys);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::Release);
    }
}

impl Reading<'_> {
    /// What `key` names; `None` for one that is over or never was.
    #[inline]
    pub(crate) fn get(&self, key: LocalKey) -> Option<Registered> {
        let entry = self.0.entries.get(key.0 as usize & (KEYS_MAX - 1))?;
        // SeqCst orders this load behind the announcement in `read`, as `remove` needs.
        (key.0 != 0 && entry.key.load(Ordering::SeqCst) == key.0).then(|| Registered {
            lkey: entry.lkey.load(Ordering::Relaxed),
            dma_lkey: entry.dma_lkey.load(Ordering::Relaxed),
            first: entry.first.load(Ordering::Relaxed),
            bytes: entry.bytes.load(Ordering::Relaxed),
        })
    }
}

impl Keys {
    /// Announces that registered memory will be looked at.
    #[inline]
    pub(crate) fn read(&self) -> Reading<'_> {
        self.readers.fetch_add(1, Ordering::SeqCst);
        Reading(self)
    }

    /// Names a region with its keys at the HCA and at the device of the DMA context; `None` when
    /// [`KEYS_MAX`] are named.
    pub(crate) fn insert(
        &self,
        (lkey, dma_lkey): (u32, u32),
        first: u64,
        bytes: u64,
    ) -> Option<LocalKey> {
        let mut generation = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
        let vacant = |entry: &Entry| entry.key.load(Ordering::Relaxed) == 0;
        let index = self.entries.iter().position(vacant)?;
        let key = *generation << INDEX_BITS | index as u32;
        *generation = (*generation + 1) & (u32::MAX >> INDEX_BITS);
        // A generation of 0 at index 0 would be the vacant key.
        *generation = (*generation).max(1);
        let entry = &self.entries[index];
        entry.lkey.store(lkey, Ordering::Relaxed);
        entry.dma_lkey.store(dma_lkey, Ordering::Relaxed);
        entry.first.store(first, Ordering::Relaxed);
        entry.bytes.store(bytes, Ordering::Relaxed);
        entry.key.store(key, Ordering::SeqCst);
        Some(LocalKey(key))
    }

    /// The key is over. Returns when nobody reads under it any more, which takes no longer than one
    /// doorbell.
    pub(crate) fn remove(&self, key: LocalKey) {
        let guard = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = self.entries.get(key.0 as usize & (KEYS_MAX - 1)) {
            let (current, new) = (key.0, 0);
            let _ = entry.key.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst);
        }
        drop(guard);
        while self.readers.load(Ordering::SeqCst) != 0 {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_region_until_it_is_over() {
        let keys = Keys::default();
        let first = keys.insert((77, 7), 0x1000, 0x100).unwrap();
        let known = keys.read().get(first).unwrap();
        assert_eq!((known.lkey, known.dma_lkey), (77, 7));
        assert!(known.holds(0x1000, 0x100) && known.holds(0x10ff, 1) && known.holds(0x1100, 0));
        assert!(!known.holds(0x1000, 0x101) && !known.holds(0xfff, 1));
        assert!(!known.holds(u64::MAX, 1) && !known.holds(0x1001, u64::MAX));
        keys.remove(first);
        assert_eq!(keys.read().get(first), None);
        let second = keys.insert((78, 8), 0x1000, 0x100).unwrap();
        assert_ne!(first, second);
        assert_eq!(keys.read().get(first), None);
        keys.remove(first);
        assert!(keys.read().get(second).is_some(), "removed by a stale key");
    }

    #[test]
    fn keys_run_out_and_come_back() {
        let keys = Keys::default();
        let all: Vec<_> = (0..KEYS_MAX).map(|_| keys.insert((1, 1), 0, 1).unwrap()).collect();
        assert_eq!(keys.insert((1, 1), 0, 1), None);
        keys.remove(all[40]);
        let again = keys.insert((1, 1), 0, 1).unwrap();
        assert!(all.iter().all(|key| *key != again));
    }

    #[test]
    fn the_default_key_names_nothing() {
        let keys = Keys::default();
        assert_eq!(keys.read().get(LocalKey::default()), None);
    }
}
