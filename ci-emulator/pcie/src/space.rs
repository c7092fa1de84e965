//! The card device's key table: which memory a local key and an address mean, for the emulated HCA
//! and the DMA engine alike.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lunar_platform::{ArenaId, LocalKey};

use crate::host::HostWindow;
use crate::segment::Segment;

/// What lies behind a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Card DRAM: what is written is visible at once.
    Card,
    /// Host memory: what the HCA writes may wait for a flush.
    Host(ArenaId),
}

/// A registered range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its key.
    pub key: LocalKey,
    /// Address of its first byte in work requests. Not a pointer: the same from run to run.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Addresses start here and every range begins at a multiple of [`BASE_STEP`].
const BASE_FIRST: u64 = 0x1000_0000_0000;
const BASE_STEP: u64 = 1 << 21;
/// A key is a table index and, above it, the entry's generation (verbs: the key byte of an lkey).
const KEY_INDEX_BITS: u32 = 20;

#[derive(Clone)]
pub(crate) enum Backed {
    Card(Segment),
    Host(Arc<HostWindow>),
}

#[derive(Clone)]
struct Entry {
    registration: Registration,
    backed: Backed,
}

#[derive(Clone, Default)]
struct Slot {
    generation: u32,
    entry: Option<Entry>,
}

/// The table as data-path users see it; replaced as a whole.
#[derive(Clone, Default)]
struct Table {
    slots: Vec<Slot>,
    /// The host windows among the slots, once for each import.
    windows: Vec<Arc<HostWindow>>,
    next_base: u64,
}

impl Table {
    #[inline]
    fn resolve(&self, key: LocalKey, address: u64, length: u64) -> Option<Resolved<'_>> {
        let slot = self.slots.get((key.0 & ((1 << KEY_INDEX_BITS) - 1)) as usize)?;
        let entry = slot.entry.as_ref()?;
        let range = &entry.registration;
        let offset = address.checked_sub(range.base)?;
        if range.key != key || length > range.length || offset > range.length - length {
            return None;
        }
        if let Backed::Host(window) = &entry.backed
            && !window.is_live()
        {
            return None;
        }
        Some(Resolved { backed: &entry.backed, offset, length })
    }

    #[inline]
    fn window(&self, arena: ArenaId) -> Option<&Arc<HostWindow>> {
        self.windows.iter().find(|window| window.id() == arena && window.is_live())
    }
}

struct Shared {
    /// Moves after each replacement of `table`.
    version: AtomicU64,
    table: Mutex<Arc<Table>>,
}

/// A view of the device's key table. Each user (a poll group's HCA share, a DMA context, a memory)
/// holds a clone of its own, which caches the table: looking up costs one atomic load, and takes the
/// lock only after a registration changed something.
#[derive(Clone)]
pub struct AddressSpace {
    shared: Arc<Shared>,
    cached: Arc<Table>,
    cached_version: u64,
}

impl Default for AddressSpace {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressSpace").field("version", &self.cached_version).finish()
    }
}

impl AddressSpace {
    /// The empty key table of a new device.
    #[must_use]
    pub fn new() -> Self {
        let table = Arc::new(Table { next_base: BASE_FIRST, ..Table::default() });
        let shared = Shared { version: AtomicU64::new(0), table: Mutex::new(Arc::clone(&table)) };
        Self { shared: Arc::new(shared), cached: table, cached_version: 0 }
    }

    /// Registers the whole of `segment` as card memory.
    pub fn register(&mut self, segment: &Segment) -> Registration {
        self.add(Backed::Card(segment.clone()), segment.len() as u64)
    }

    /// Registers a host arena's window.
    pub(crate) fn register_host(&mut self, window: &Arc<HostWindow>) -> Registration {
        self.add(Backed::Host(Arc::clone(window)), window.segment().len() as u64)
    }

    fn add(&mut self, backed: Backed, length: u64) -> Registration {
        self.change(|table| {
            let index = table.slots.iter().position(|slot| slot.entry.is_none());
            let index = index.unwrap_or_else(|| {
                table.slots.push(Slot::default());
                table.slots.len() - 1
            });
            let slot = &mut table.slots[index];
            // Key 0 stays free: all-zero work requests must not hit anything.
            slot.generation = (slot.generation + 1) & (u32::MAX >> KEY_INDEX_BITS);
            if slot.generation == 0 {
                slot.generation = 1;
            }
            let registration = Registration {
                key: LocalKey(index as u32 | slot.generation << KEY_INDEX_BITS),
                base: table.next_base,
                length,
            };
            slot.entry = Some(Entry { registration, backed });
            // One step of no man's land behind each range.
            table.next_base += length.next_multiple_of(BASE_STEP) + BASE_STEP;
            registration
        })
    }

    /// Removes a registration; whether it was there. The key's next life has another value.
    pub fn unregister(&mut self, key: LocalKey) -> bool {
        self.change(|table| {
            let slot = table.slots.get_mut((key.0 & ((1 << KEY_INDEX_BITS) - 1)) as usize);
            match slot {
                Some(slot) if slot.entry.as_ref().is_some_and(|e| e.registration.key == key) => {
                    slot.entry = None;
                    true
                }
                _ => false,
            }
        })
    }

    fn change<R>(&mut self, edit: impl FnOnce(&mut Table) -> R) -> R {
        let result = {
            let mut table = self.shared.table.lock().unwrap_or_else(PoisonError::into_inner);
            let table = Arc::make_mut(&mut table);
            let result = edit(table);
            table.windows.clear();
            table.windows.extend(table.slots.iter().filter_map(|slot| match &slot.entry {
                Some(Entry { backed: Backed::Host(window), .. }) => Some(Arc::clone(window)),
                _ => None,
            }));
            self.shared.version.fetch_add(1, Ordering::Release);
            result
        };
        self.refresh();
        result
    }

    #[cold]
    fn refresh(&mut self) {
        let table = self.shared.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.cached = Arc::clone(&table);
        self.cached_version = self.shared.version.load(Ordering::Acquire);
    }

    #[inline]
    fn current(&mut self) -> &Table {
        if self.shared.version.load(Ordering::Acquire) != self.cached_version {
            self.refresh();
        }
        &self.cached
    }

    /// The memory behind `length` bytes from `address` under `key`; `None` when the key is unknown or
    /// stale, the range is not inside, or the host arena was revoked.
    #[inline]
    pub fn resolve(&mut self, key: LocalKey, address: u64, length: u64) -> Option<Resolved<'_>> {
        self.current().resolve(key, address, length)
    }

    /// The window of an imported arena that was not revoked.
    #[inline]
    pub(crate) fn window(&mut self, arena: ArenaId) -> Option<&Arc<HostWindow>> {
        self.current().window(arena)
    }

    /// Both ends of a DMA operation: the card segment and the offset of the range in it, and the
    /// arena's window. `None` when either is not registered, or the key names host memory.
    #[inline]
    pub(crate) fn transfer(
        &mut self,
        key: LocalKey,
        address: u64,
        length: u32,
        arena: ArenaId,
    ) -> Option<(&Segment, u64, &Arc<HostWindow>)> {
        let table = self.current();
        let range = table.resolve(key, address, u64::from(length))?;
        let Backed::Card(segment) = range.backed else { return None };
        Some((segment, range.offset, table.window(arena)?))
    }

    /// Every imported window.
    pub(crate) fn windows(&mut self) -> &[Arc<HostWindow>] {
        &self.current().windows
    }
}

/// A checked range of memory, for as long as the table is not asked again. Offsets `at` count from
/// the range's first byte; an access that leaves the range does nothing and gives false.
pub struct Resolved<'a> {
    backed: &'a Backed,
    offset: u64,
    length: u64,
}

impl Resolved<'_> {
    /// What kind of memory it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.backed {
            Backed::Card(_) => Kind::Card,
            Backed::Host(window) => Kind::Host(window.id()),
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The segment that holds it. Writing here goes around the placement queue; it is meant for
    /// mapping the memory elsewhere.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        match self.backed {
            Backed::Card(segment) => segment,
            Backed::Host(window) => window.segment(),
        }
    }

    /// Offset of the range's first byte in [`Self::segment`].
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    #[inline]
    fn place(&self, at: u64, length: usize) -> Option<u64> {
        let length = length as u64;
        (length <= self.length && at <= self.length - length).then(|| self.offset + at)
    }

    /// The HCA reads `out.len()` bytes. Reads push the HCA's own earlier writes ahead of them.
    pub fn read(&self, at: u64, out: &mut [u8]) -> bool {
        let Some(offset) = self.place(at, out.len()) else { return false };
        match self.backed {
            Backed::Card(segment) => segment.read(offset, out),
            Backed::Host(window) => {
                window.place_all();
                window.segment().read(offset, out)
            }
        }
    }

    /// The HCA writes `bytes`: at once into card memory, through the placement queue into host
    /// memory.
    pub fn write(&self, at: u64, bytes: &[u8]) -> bool {
        let Some(offset) = self.place(at, bytes.len()) else { return false };
        match self.backed {
            Backed::Card(segment) => segment.write(offset, bytes),
            Backed::Host(window) => window.hca_write(offset, bytes),
        }
    }

    /// The HCA writes `length` bytes that lie at `from_offset` of `from` (a peer's memory).
    pub fn copy_in(&self, at: u64, from: &Segment, from_offset: u64, length: usize) -> bool {
        let Some(offset) = self.place(at, length) else { return false };
        match self.backed {
            Backed::Card(segment) => from.copy_to(from_offset, segment, offset, length),
            Backed::Host(window) => window.hca_copy(offset, from, from_offset, length),
        }
    }

    /// The HCA reads `length` bytes and puts them at `to_offset` of `to` (a peer's memory).
    pub fn copy_out(&self, at: u64, to: &Segment, to_offset: u64, length: usize) -> bool {
        let Some(offset) = self.place(at, length) else { return false };
        if let Backed::Host(window) = self.backed {
            window.place_all();
        }
        self.segment().copy_to(offset, to, to_offset, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_resolves_its_own_range_and_nothing_else() {
        let mut space = AddressSpace::new();
        let first = space.register(&Segment::anonymous(4096).unwrap());
        let second = space.register(&Segment::anonymous(4096).unwrap());
        assert_ne!(first.key, second.key);
        assert!(space.resolve(first.key, first.base, 4096).is_some());
        assert!(space.resolve(first.key, first.base + 4096, 0).is_some());
        assert!(space.resolve(first.key, first.base + 1, 4096).is_none());
        assert!(space.resolve(first.key, first.base - 1, 1).is_none());
        assert!(space.resolve(first.key, u64::MAX, u64::MAX).is_none());
        assert!(space.resolve(first.key, second.base, 1).is_none());
        assert!(space.resolve(LocalKey(0), first.base, 1).is_none());
    }

    #[test]
    fn an_unregistered_key_is_stale_for_every_user_and_its_slot_gets_another_key() {
        let mut space = AddressSpace::new();
        let mut user = space.clone();
        let segment = Segment::anonymous(64).unwrap();
        let old = space.register(&segment);
        assert!(user.resolve(old.key, old.base, 64).is_some(), "users see new keys");
        assert!(space.unregister(old.key));
        assert!(!space.unregister(old.key));
        assert!(user.resolve(old.key, old.base, 64).is_none());
        let new = space.register(&segment);
        assert_ne!(new.key, old.key);
        assert!(user.resolve(old.key, new.base, 64).is_none());
        assert!(user.resolve(new.key, new.base, 64).is_some());
    }

    #[test]
    fn accesses_stay_inside_the_resolved_range() {
        let mut space = AddressSpace::new();
        let segment = Segment::anonymous(4096).unwrap();
        let other = Segment::anonymous(64).unwrap();
        let range = space.register(&segment);
        let resolved = space.resolve(range.key, range.base + 100, 16).unwrap();
        assert!(resolved.write(8, &[1; 8]));
        assert!(!resolved.write(9, &[2; 8]));
        assert!(!resolved.copy_in(9, &other, 0, 8));
        assert!(!resolved.copy_out(u64::MAX, &other, 0, 8));
        assert!(resolved.copy_out(8, &other, 0, 8));
        let mut out = [0; 9];
        assert!(segment.read(108, &mut out));
        assert_eq!(out, [1, 1, 1, 1, 1, 1, 1, 1, 0]);
        assert!(other.read(0, &mut out));
        assert_eq!(out, [1, 1, 1, 1, 1, 1, 1, 1, 0]);
    }
}
