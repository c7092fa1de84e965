//! The SGV (scatter-gather vector) cache: contiguous data buffers in power-of-two classes, carved from
//! one registered arena and kept for reuse.
//!
//! SCST builds a buffer from pages and merges neighbours ("clustering"); here the arena is registered
//! once and a buddy allocator (`buddy`) gives each buffer in one piece, so every buffer is one
//! scatter/gather entry. Released buffers stay on their class's list, last in, first out: a claim that
//! finds one there is a *hit*. Buffers idle for [`Config::purge_after_ns`] go back to the arena and
//! merge ([`SgvCache::purge`]).
//!
//! Two caps, because one nexus must not starve the others: [`Share`] for one nexus, and
//! [`Config::cap_bytes`] for all that commands hold. Nothing waits here: a refused claim says why, and
//! the caller answers TASK SET FULL or puts the command into its FIFO.
//!
//! One cache serves one placement of one poll group. It never looks into the memory.

mod buddy;

use lunar_platform::{LocalKey, Nanoseconds};

use buddy::Buddy;

/// Classes a cache can have.
pub const CLASSES_MAX: usize = 16;
/// SCST's page: buffers longer than this are merged pages.
pub const PAGE_BYTES: u32 = 4096;
/// Buffers that one [`SgvCache::purge`] gives back at most.
pub const PURGE_MAX: u32 = 32;
/// Cached buffers that one claim gives up at most before it says [`ClaimError::Exhausted`]: as many of
/// the least class as the greatest class has room for (4 KiB and 4 MiB).
pub const RECLAIM_MAX: u32 = 1024;

/// Where a buffer's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// In the card's DRAM.
    CardDram,
    /// In an imported arena in host memory. The card's cores cannot look into it.
    HostDram,
}

/// One contiguous buffer. It can be neither copied nor cloned, and [`SgvCache::release`] takes it by
/// value, so it cannot be released twice.
///
/// Dropping one loses its memory until the cache is made anew. That is no panic, on purpose: a poll
/// group that ends with commands outstanding drops cache and buffers together, and may. A leak in a
/// living group shows as [`SgvCache::held_bytes`] above zero when it is idle, which the tests assert.
#[derive(Debug)]
#[must_use = "a dropped buffer is lost: give it back with SgvCache::release"]
pub struct Buffer {
    address: u64,
    /// Its first granule, counted from the cache's base.
    granule: u32,
    key: LocalKey,
    bytes: u32,
    /// Its length is that of a granule shifted left by this.
    class: u8,
    placement: Placement,
}

impl Buffer {
    /// Address of the first byte for scatter/gather entries and DMA operations.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Key for scatter/gather entries and DMA operations.
    #[must_use]
    pub fn key(&self) -> LocalKey {
        self.key
    }

    /// Offset in bytes from the cache's base.
    #[must_use]
    pub fn offset(&self) -> u64 {
        u64::from(self.granule) * u64::from(self.bytes >> self.class)
    }

    /// Length in bytes: that of the class, not less than what was asked for.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Where the memory is.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }
}

/// What one nexus holds, and may hold, in bytes of all caches of its poll group.
#[derive(Debug)]
pub struct Share {
    cap_bytes: u64,
    held_bytes: u64,
}

impl Share {
    /// A nexus that holds nothing and may hold `cap_bytes`. A nexus that holds nothing always may
    /// claim one buffer, however small its cap: else a command longer than the cap could never run.
    #[must_use]
    pub fn new(cap_bytes: u64) -> Self {
        Self { cap_bytes, held_bytes: 0 }
    }

    /// What it holds, in bytes.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held_bytes
    }

    /// What it may hold, in bytes.
    #[must_use]
    pub fn cap(&self) -> u64 {
        self.cap_bytes
    }

    /// Changes the cap. What is held above it stays held.
    pub fn set_cap(&mut self, cap_bytes: u64) {
        self.cap_bytes = cap_bytes;
    }
}

/// Why a claim was refused. Nothing is held for it; a counter tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// The nexus holds its share: answer TASK SET FULL (SAM-6 5.3.1).
    ShareExceeded,
    /// The arena or the global cap is used up: wait. Ask again after a release, and also in a later
    /// tick: while other classes have cached buffers, a refused claim has given up to
    /// [`RECLAIM_MAX`] of them back to the arena, so asking again makes progress even when nobody
    /// holds anything.
    Exhausted,
    /// Longer than the greatest class: the command must be refused or cut.
    TooLarge,
}

impl core::fmt::Display for ClaimError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::ShareExceeded => "the nexus holds its share of buffer memory",
            Self::Exhausted => "the buffer memory is used up",
            Self::TooLarge => "longer than the greatest buffer class",
        })
    }
}

impl core::error::Error for ClaimError {}

/// How a cache is cut.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes of the least class; a power of two, at least 512. The metadata take 24 bytes for each
    /// of these that the arena holds.
    pub class_bytes_min: u32,
    /// Bytes of the greatest class; a power of two, at most 2^15 times the least.
    pub class_bytes_max: u32,
    /// What all commands together may hold, in bytes.
    pub cap_bytes: u64,
    /// Cached buffers idle for longer go back to the arena, in nanoseconds.
    pub purge_after_ns: u64,
}

impl Default for Config {
    /// SCST's: 4 KiB to 4 MiB, purged after 60 s; no cap but the arena's end.
    fn default() -> Self {
        Self {
            class_bytes_min: PAGE_BYTES,
            class_bytes_max: 4 << 20,
            cap_bytes: u64::MAX,
            purge_after_ns: 60_000_000_000,
        }
    }
}

/// Counters of one class, in SCST's terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStatistics {
    /// Bytes of a buffer.
    pub buffer_bytes: u32,
    /// Claims served from the cached list.
    pub hits: u64,
    /// Claims served.
    pub total: u64,
    /// Claims served with freshly carved buffers of more than one page, whose pages are merged into
    /// one scatter entry. All carved ones of such a class are, so in percent of `total - hits` it is
    /// 100 or 0.
    pub merged: u64,
    /// Buffers cached now.
    pub cached: u32,
}

/// Counters of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SgvStatistics {
    classes: [ClassStatistics; CLASSES_MAX],
    class_count: usize,
    /// Length of the arena in bytes, as far as it is used.
    pub arena_bytes: u64,
    /// Bytes in claimed buffers.
    pub active_bytes: u64,
    /// Bytes in cached buffers.
    pub inactive_bytes: u64,
    /// Most bytes in claimed buffers at a time.
    pub high_water_bytes: u64,
    /// Claims refused with [`ClaimError::ShareExceeded`].
    pub share_fails: u64,
    /// Claims refused with [`ClaimError::Exhausted`].
    pub exhausted_fails: u64,
    /// Claims refused with [`ClaimError::TooLarge`].
    pub too_large_fails: u64,
    /// Cached buffers given up for a claim of another class.
    pub reclaimed: u64,
    /// Cached buffers given up because they were idle.
    pub purged: u64,
    /// Buffers that another cache gave; they were refused and are lost. Not 0 is a bug of the caller.
    pub foreign: u64,
}

impl SgvStatistics {
    /// The classes, ascending.
    #[must_use]
    pub fn classes(&self) -> &[ClassStatistics] {
        self.classes.get(..self.class_count).unwrap_or(&[])
    }
}

/// The cached buffers of one class: a list through [`CachedNode`]s, newest first. The ends mean
/// something only while `count` is not 0, and a node's links only towards nodes that are on the list,
/// which spares the claim from tidying up.
#[derive(Clone, Copy, Debug, Default)]
struct CachedList {
    newest: u32,
    oldest: u32,
    count: u32,
    hits: u64,
    /// Claims that were no hits.
    carved: u64,
}

/// Links of a cached buffer, kept at the index of its first granule.
#[derive(Clone, Copy, Debug, Default)]
struct CachedNode {
    newer: u32,
    older: u32,
    released_at: Nanoseconds,
}

/// The cache. See the module.
#[derive(Debug)]
pub struct SgvCache {
    placement: Placement,
    key: LocalKey,
    base: u64,
    granule_shift: u32,
    class_bytes_max: u32,
    class_count: usize,
    cap_bytes: u64,
    purge_after_ns: u64,
    held_bytes: u64,
    high_water_bytes: u64,
    lists: [CachedList; CLASSES_MAX],
    nodes: Box<[CachedNode]>,
    buddy: Buddy,
    /// No cached buffer is due before.
    purge_due: Nanoseconds,
    share_fails: u64,
    exhausted_fails: u64,
    too_large_fails: u64,
    reclaimed: u64,
    purged: u64,
    foreign: u64,
}

impl SgvCache {
    /// A cache over the `length` bytes at `base` in the region or imported arena `key`. A rest
    /// shorter than the least class stays unused.
    ///
    /// # Panics
    /// At start, when `config` breaks the ranges it documents or the arena has 2^32 - 1 or more
    /// granules of the least class.
    #[must_use]
    pub fn new(
        placement: Placement,
        key: LocalKey,
        base: u64,
        length: u64,
        config: Config,
    ) -> Self {
        let (min, max) = (config.class_bytes_min, config.class_bytes_max);
        assert!(min.is_power_of_two() && min >= 512, "least class of {min} bytes");
        assert!(max.is_power_of_two() && max >= min, "greatest class of {max} bytes");
        let granule_shift = min.trailing_zeros();
        let class_count = (max.trailing_zeros() - granule_shift + 1) as usize;
        assert!(class_count <= CLASSES_MAX, "{class_count} classes");
        let granules = length >> granule_shift;
        assert!(granules < u64::from(u32::MAX), "{granules} granules");
        let granules = granules as u32;
        Self {
            placement,
            key,
            base,
            granule_shift,
            class_bytes_max: max,
            class_count,
            cap_bytes: config.cap_bytes,
            purge_after_ns: config.purge_after_ns,
            held_bytes: 0,
            high_water_bytes: 0,
            lists: [CachedList::default(); CLASSES_MAX],
            nodes: vec![CachedNode::default(); granules as usize].into_boxed_slice(),
            buddy: Buddy::new(granules, class_count),
            purge_due: Nanoseconds(0),
            share_fails: 0,
            exhausted_fails: 0,
            too_large_fails: 0,
            reclaimed: 0,
            purged: 0,
            foreign: 0,
        }
    }

    /// Claims a buffer of at least `bytes` (0 gives the least class) on account of `share`.
    ///
    /// # Errors
    /// See [`ClaimError`]. What is checked first is said first: length, share, global cap, arena.
    #[inline(always)]
    pub fn claim(&mut self, bytes: u32, share: &mut Share) -> Result<Buffer, ClaimError> {
        if bytes > self.class_bytes_max {
            self.too_large_fails += 1;
            return Err(ClaimError::TooLarge);
        }
        let class = self.class_of(bytes);
        let class_bytes = 1_u32 << (self.granule_shift + class as u32);
        let share_after = share.held_bytes + u64::from(class_bytes);
        let held_after = self.held_bytes + u64::from(class_bytes);
        if share_after > share.cap_bytes || held_after > self.cap_bytes {
            self.check_caps(share, share_after, held_after)?;
        }
        let list = &mut self.lists[class];
        let granule = if list.count != 0 {
            let granule = list.newest;
            list.newest = self.nodes[granule as usize].older;
            list.count -= 1;
            list.hits += 1;
            granule
        } else {
            self.carve(class)?
        };
        share.held_bytes = share_after;
        self.held_bytes = held_after;
        self.high_water_bytes = self.high_water_bytes.max(held_after);
        Ok(Buffer {
            address: self.base + (u64::from(granule) << self.granule_shift),
            granule,
            key: self.key,
            bytes: class_bytes,
            class: class as u8,
            placement: self.placement,
        })
    }

    /// Whether a claim beyond a cap is allowed all the same: to whoever holds nothing.
    #[cold]
    fn check_caps(
        &mut self,
        share: &Share,
        share_after: u64,
        held_after: u64,
    ) -> Result<(), ClaimError> {
        if share_after > share.cap_bytes && share.held_bytes != 0 {
            self.share_fails += 1;
            return Err(ClaimError::ShareExceeded);
        }
        if held_after > self.cap_bytes && self.held_bytes != 0 {
            self.exhausted_fails += 1;
            return Err(ClaimError::Exhausted);
        }
        Ok(())
    }

    /// Takes a buffer back, on account of the share it was claimed on.
    #[inline(always)]
    pub fn release(&mut self, buffer: Buffer, share: &mut Share, now: Nanoseconds) {
        let offset = u64::from(buffer.granule) << self.granule_shift;
        let ours = buffer.key == self.key
            && buffer.address == self.base.wrapping_add(offset)
            && (buffer.granule as usize) < self.nodes.len();
        debug_assert!(ours, "{buffer:?} is of another cache");
        if !ours {
            self.foreign += 1;
            return;
        }
        let bytes = u64::from(buffer.bytes);
        debug_assert!(share.held_bytes >= bytes, "{buffer:?} was claimed on another share");
        share.held_bytes -= bytes;
        self.held_bytes -= bytes;
        self.push_cached(usize::from(buffer.class), buffer.granule, now);
    }

    /// Gives cached buffers that were idle for [`Config::purge_after_ns`] back to the arena, where
    /// they merge; at most [`PURGE_MAX`] a call, the greatest class first. Gives their number. Costs
    /// next to nothing while none is due: call it every tick.
    pub fn purge(&mut self, now: Nanoseconds) -> u32 {
        if now < self.purge_due {
            return 0;
        }
        let mut given = 0;
        let mut next_due = now.plus(self.purge_after_ns);
        for class in (0..self.class_count).rev() {
            while let Some(oldest) = self.oldest(class) {
                let due = self.nodes[oldest as usize].released_at.plus(self.purge_after_ns);
                if due > now {
                    next_due = next_due.min(due);
                    break;
                }
                if given == PURGE_MAX {
                    self.purged += u64::from(given);
                    return given;
                }
                self.give_back_oldest(class);
                given += 1;
            }
        }
        self.purge_due = next_due;
        self.purged += u64::from(given);
        given
    }

    /// Bytes in claimed buffers.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Bytes in cached buffers.
    #[must_use]
    pub fn cached_bytes(&self) -> u64 {
        (0..self.class_count)
            .map(|class| u64::from(self.lists[class].count) * u64::from(self.class_bytes(class)))
            .sum()
    }

    /// Where this cache's memory is.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The longest buffer in bytes.
    #[must_use]
    pub fn buffer_bytes_max(&self) -> u32 {
        self.class_bytes_max
    }

    /// All counters.
    #[must_use]
    pub fn statistics(&self) -> SgvStatistics {
        let mut classes = [ClassStatistics::default(); CLASSES_MAX];
        for (class, (to, from)) in classes.iter_mut().zip(&self.lists).enumerate() {
            if class < self.class_count {
                let buffer_bytes = self.class_bytes(class);
                *to = ClassStatistics {
                    buffer_bytes,
                    hits: from.hits,
                    total: from.hits + from.carved,
                    merged: if buffer_bytes > PAGE_BYTES { from.carved } else { 0 },
                    cached: from.count,
                };
            }
        }
        SgvStatistics {
            classes,
            class_count: self.class_count,
            arena_bytes: (self.nodes.len() as u64) << self.granule_shift,
            active_bytes: self.held_bytes,
            inactive_bytes: self.cached_bytes(),
            high_water_bytes: self.high_water_bytes,
            share_fails: self.share_fails,
            exhausted_fails: self.exhausted_fails,
            too_large_fails: self.too_large_fails,
            reclaimed: self.reclaimed,
            purged: self.purged,
            foreign: self.foreign,
        }
    }

    /// Starts all counters from zero; what is held and cached stays. The high-water mark starts from
    /// what is held now.
    pub fn reset_statistics(&mut self) {
        for list in &mut self.lists {
            list.hits = 0;
            list.carved = 0;
        }
        self.high_water_bytes = self.held_bytes;
        self.share_fails = 0;
        self.exhausted_fails = 0;
        self.too_large_fails = 0;
        self.reclaimed = 0;
        self.purged = 0;
        self.foreign = 0;
    }

    /// The least class whose buffers hold `bytes`, which is not above the greatest class.
    fn class_of(&self, bytes: u32) -> usize {
        (u32::BITS - (bytes.saturating_sub(1) >> self.granule_shift).leading_zeros()) as usize
    }

    fn class_bytes(&self, class: usize) -> u32 {
        1 << (self.granule_shift as usize + class)
    }

    /// A miss: takes a buffer of `class` from the arena, and from other classes' cached buffers when
    /// the arena has none.
    #[cold]
    fn carve(&mut self, class: usize) -> Result<u32, ClaimError> {
        let mut given = 0;
        let granule = loop {
            if let Some(granule) = self.buddy.claim(class) {
                break Some(granule);
            }
            // A longer one can be split at once: the least of those. Else the next shorter ones merge
            // soonest.
            let victim = (class + 1..self.class_count)
                .chain((0..class).rev())
                .find(|&class| self.lists[class].count != 0);
            match victim {
                Some(victim) if given < RECLAIM_MAX => {
                    self.give_back_oldest(victim);
                    given += 1;
                }
                _ => break None,
            }
        };
        self.reclaimed += u64::from(given);
        let Some(granule) = granule else {
            self.exhausted_fails += 1;
            return Err(ClaimError::Exhausted);
        };
        self.lists[class].carved += 1;
        Ok(granule)
    }

    fn oldest(&self, class: usize) -> Option<u32> {
        let list = &self.lists[class];
        (list.count != 0).then_some(list.oldest)
    }

    #[inline(always)]
    fn push_cached(&mut self, class: usize, granule: u32, now: Nanoseconds) {
        let list = &mut self.lists[class];
        if list.count == 0 {
            list.oldest = granule;
        } else {
            self.nodes[list.newest as usize].newer = granule;
        }
        self.nodes[granule as usize] =
            CachedNode { newer: granule, older: list.newest, released_at: now };
        list.newest = granule;
        list.count += 1;
    }

    /// Gives the oldest cached buffer of `class` back to the arena.
    fn give_back_oldest(&mut self, class: usize) {
        let list = &mut self.lists[class];
        if list.count == 0 {
            return;
        }
        let granule = list.oldest;
        list.oldest = self.nodes[granule as usize].newer;
        list.count -= 1;
        self.buddy.release(granule, class);
    }
}

#[cfg(test)]
mod tests;
