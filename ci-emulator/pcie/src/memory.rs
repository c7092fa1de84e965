//! Card DRAM and imported host arenas: the provider of [`lunar_platform::Memory`].

use lunar_platform::{ArenaId, HostArena, LocalKey, Memory, MemoryError, Region};

use crate::host::{ExportBlob, HostSlot};
use crate::segment::{OwnedSegment, Segment};
use crate::space::{AddressSpace, Registration};

/// What card DRAM is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Memory of this process: enough for the card, whose peers never address its memory.
    #[default]
    Anonymous,
    /// Memory with a descriptor, which another process can map: for model initiators, whose memory
    /// the card's HCA addresses by rkey.
    Shared,
}

/// A registered range of card DRAM. Dropping it gives key and memory back.
#[derive(Debug)]
pub struct CardRegion {
    memory: OwnedSegment,
    registration: Registration,
    space: AddressSpace,
}

impl CardRegion {
    /// The memory itself, for hardware and for mapping it in another process.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.memory.segment()
    }
}

impl Drop for CardRegion {
    fn drop(&mut self) {
        self.space.unregister(self.registration.key);
    }
}

impl Region for CardRegion {
    fn key(&self) -> LocalKey {
        self.registration.key
    }

    fn base(&self) -> u64 {
        self.registration.base
    }

    fn length(&self) -> usize {
        self.memory.segment().len()
    }

    #[inline]
    fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        self.memory.bytes(offset, length)
    }

    #[inline]
    fn bytes_mut(&mut self, offset: usize, length: usize) -> &mut [u8] {
        self.memory.bytes_mut(offset, length)
    }
}

/// One poll group's registrar: claims card DRAM within a budget and imports what the slot's host
/// offers.
#[derive(Debug)]
pub struct CardMemory {
    space: AddressSpace,
    slot: Option<HostSlot>,
    backing: Backing,
    left_bytes: u64,
    imported: Vec<(ArenaId, LocalKey)>,
}

impl CardMemory {
    /// A registrar on the device behind `space`. `budget_bytes` is all that [`Memory::claim`] gives
    /// over its life. Without a slot nothing can be imported.
    #[must_use]
    pub fn new(
        space: AddressSpace,
        slot: Option<HostSlot>,
        backing: Backing,
        budget_bytes: u64,
    ) -> Self {
        Self { space, slot, backing, left_bytes: budget_bytes, imported: Vec::new() }
    }
}

impl Drop for CardMemory {
    fn drop(&mut self) {
        for (_, key) in self.imported.drain(..) {
            self.space.unregister(key);
        }
    }
}

impl Memory for CardMemory {
    type Region = CardRegion;

    fn claim(&mut self, length_bytes: usize) -> Result<CardRegion, MemoryError> {
        let refused = MemoryError::NoMemory { wanted_bytes: length_bytes as u64 };
        let left_bytes = self.left_bytes.checked_sub(length_bytes as u64).ok_or(refused)?;
        let segment = match self.backing {
            Backing::Anonymous => Segment::anonymous(length_bytes),
            Backing::Shared => Segment::memfd("lunar-memory", length_bytes),
        };
        let segment = segment.map_err(|_| refused)?;
        self.left_bytes = left_bytes;
        let registration = self.space.register(&segment);
        let space = self.space.clone();
        Ok(CardRegion { memory: OwnedSegment::new(segment), registration, space })
    }

    fn import(&mut self, blob: &[u8]) -> Result<HostArena, MemoryError> {
        let slot = self.slot.as_ref().ok_or(MemoryError::NotSupported)?;
        let blob = ExportBlob::parse(blob).ok_or(MemoryError::BadBlob)?;
        let window = slot.open(&blob).ok_or(MemoryError::BadBlob)?;
        // A second import replaces the first: the arena may have been offered anew meanwhile.
        self.unimport(blob.arena);
        let range = self.space.register_host(&window);
        let arena = HostArena {
            id: blob.arena,
            base: range.base,
            length: range.length,
            key: Some(range.key),
        };
        self.imported.push((blob.arena, range.key));
        Ok(arena)
    }

    fn unimport(&mut self, arena: ArenaId) {
        if let Some(index) = self.imported.iter().position(|(id, _)| *id == arena) {
            let (_, key) = self.imported.swap_remove(index);
            self.space.unregister(key);
        }
    }
}
