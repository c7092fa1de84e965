use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const GRANULE: u32 = 4096;
const CLASSES: usize = 5;
const BASE: u64 = 0x7000_0000;
const KEY: LocalKey = LocalKey(0x51);
const PURGE_AFTER: u64 = 60;

fn cache(granules: u32, cap_bytes: u64) -> SgvCache {
    let config = Config {
        class_bytes_min: GRANULE,
        class_bytes_max: GRANULE << (CLASSES - 1),
        cap_bytes,
        purge_after_ns: PURGE_AFTER,
    };
    // The rest below one granule stays unused.
    let length = u64::from(granules) * u64::from(GRANULE) + 100;
    SgvCache::new(Placement::CardDram, KEY, BASE, length, config)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Claim { bytes: u32, share: usize },
    Release(prop::sample::Index),
    Purge,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![0..GRANULE * 3, 0..(GRANULE << (CLASSES - 1)) + 10];
    prop_oneof![
        6 => (bytes, 0..2_usize).prop_map(|(bytes, share)| Step::Claim { bytes, share }),
        5 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => Just(Step::Purge),
        2 => (0..50_u64).prop_map(Step::Wait),
    ]
}

/// What the cache should do, kept as plain lists.
struct Model {
    granules: u32,
    cap: u64,
    shares: [Share; 2],
    live: Vec<(Buffer, usize)>,
    /// For each class, oldest first: granule and time of release.
    cached: [VecDeque<(u32, u64)>; CLASSES],
    hits: [u64; CLASSES],
    total: [u64; CLASSES],
    share_fails: u64,
    exhausted_fails: u64,
    too_large_fails: u64,
    given_up: u64,
    high_water: u64,
}

impl Model {
    fn class_of(bytes: u32) -> usize {
        (0..CLASSES).find(|class| bytes <= GRANULE << class).unwrap()
    }

    fn held(&self) -> u64 {
        self.live.iter().map(|(buffer, _)| u64::from(buffer.bytes())).sum()
    }

    fn share_held(&self, share: usize) -> u64 {
        let mine = self.live.iter().filter(|(_, owner)| *owner == share);
        mine.map(|(buffer, _)| u64::from(buffer.bytes())).sum()
    }

    fn cached_bytes(&self) -> u64 {
        let bytes = |class: usize| self.cached[class].len() as u64 * u64::from(GRANULE << class);
        (0..CLASSES).map(bytes).sum()
    }

    /// Which granules are in a claimed or cached buffer; fails when one is in two.
    fn used(&self) -> Result<Vec<bool>, TestCaseError> {
        let mut used = vec![false; self.granules as usize];
        let live = self.live.iter().map(|(buffer, _)| {
            ((buffer.offset() / u64::from(GRANULE)) as usize, (buffer.bytes() / GRANULE) as usize)
        });
        let cached = (0..CLASSES).flat_map(|class| {
            self.cached[class].iter().map(move |(granule, _)| (*granule as usize, 1_usize << class))
        });
        for (first, count) in live.chain(cached) {
            prop_assert!(first + count <= used.len(), "outside the arena");
            for granule in &mut used[first..first + count] {
                prop_assert!(!*granule, "two buffers overlap");
                *granule = true;
            }
        }
        Ok(used)
    }

    /// Takes note of the cached buffers that the cache gave back to the arena: the oldest of a class.
    fn follow(&mut self, cache: &SgvCache) -> Result<u64, TestCaseError> {
        let mut gone = 0;
        for (cached, class) in self.cached.iter_mut().zip(cache.statistics().classes()) {
            prop_assert!(class.cached as usize <= cached.len());
            while cached.len() > class.cached as usize {
                cached.pop_front();
                gone += 1;
            }
        }
        Ok(gone)
    }

    fn claim(
        &mut self,
        cache: &mut SgvCache,
        bytes: u32,
        share: usize,
    ) -> Result<(), TestCaseError> {
        let result = cache.claim(bytes, &mut self.shares[share]);
        if bytes > GRANULE << (CLASSES - 1) {
            self.too_large_fails += 1;
            prop_assert_eq!(result.unwrap_err(), ClaimError::TooLarge);
            return Ok(());
        }
        let class = Self::class_of(bytes);
        let class_bytes = u64::from(GRANULE << class);
        let (mine, all) = (self.share_held(share), self.held());
        if mine != 0 && mine + class_bytes > self.shares[share].cap() {
            self.share_fails += 1;
            prop_assert_eq!(result.unwrap_err(), ClaimError::ShareExceeded);
            return Ok(());
        }
        if all != 0 && all + class_bytes > self.cap {
            self.exhausted_fails += 1;
            prop_assert_eq!(result.unwrap_err(), ClaimError::Exhausted);
            return Ok(());
        }
        let hit = self.cached[class].pop_back();
        let gone = self.follow(cache)?;
        self.given_up += gone;
        match result {
            Ok(buffer) => {
                prop_assert!(buffer.bytes() >= bytes.max(1));
                prop_assert_eq!(u64::from(buffer.bytes()), class_bytes);
                prop_assert_eq!(buffer.offset() % class_bytes, 0);
                prop_assert_eq!(buffer.address(), BASE + buffer.offset());
                prop_assert_eq!((buffer.key(), buffer.placement()), (KEY, Placement::CardDram));
                self.total[class] += 1;
                if let Some((granule, _)) = hit {
                    self.hits[class] += 1;
                    prop_assert_eq!(buffer.offset(), u64::from(granule) * u64::from(GRANULE));
                    prop_assert_eq!(gone, 0, "a hit gives nothing up");
                }
                self.live.push((buffer, share));
                self.high_water = self.high_water.max(self.held());
            }
            Err(error) => {
                prop_assert_eq!(error, ClaimError::Exhausted);
                self.exhausted_fails += 1;
                prop_assert!(hit.is_none());
                prop_assert_eq!(self.cached_bytes(), 0, "cached memory was not given up");
                let used = self.used()?;
                let fits = used.chunks_exact(1 << class).any(|block| !block.contains(&true));
                prop_assert!(!fits, "there was room");
            }
        }
        Ok(())
    }

    fn check(&self, cache: &SgvCache) -> Result<(), TestCaseError> {
        let statistics = cache.statistics();
        prop_assert_eq!(statistics.active_bytes, self.held());
        prop_assert_eq!(cache.held_bytes(), self.held());
        prop_assert_eq!(statistics.inactive_bytes, self.cached_bytes());
        prop_assert_eq!(statistics.high_water_bytes, self.high_water);
        prop_assert_eq!(statistics.arena_bytes, u64::from(self.granules) * u64::from(GRANULE));
        prop_assert_eq!(statistics.classes().len(), CLASSES);
        for (class, counted) in statistics.classes().iter().enumerate() {
            let carved = self.total[class] - self.hits[class];
            prop_assert_eq!(
                *counted,
                ClassStatistics {
                    buffer_bytes: GRANULE << class,
                    hits: self.hits[class],
                    total: self.total[class],
                    merged: if class == 0 { 0 } else { carved },
                    cached: self.cached[class].len() as u32,
                }
            );
        }
        let fails =
            (statistics.share_fails, statistics.exhausted_fails, statistics.too_large_fails);
        prop_assert_eq!(fails, (self.share_fails, self.exhausted_fails, self.too_large_fails));
        prop_assert_eq!(statistics.reclaimed + statistics.purged, self.given_up);
        prop_assert_eq!(statistics.foreign, 0);
        for share in 0..2 {
            prop_assert_eq!(self.shares[share].held(), self.share_held(share));
        }
        let used = self.used()?.iter().filter(|used| **used).count() as u32;
        prop_assert_eq!(cache.buddy.free_granules(), self.granules - used);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_cache_does_what_the_plain_model_does(
        granules in 1..80_u32,
        cap in prop_oneof![Just(u64::MAX), (1..40_u64).prop_map(|n| n * 4096)],
        share_caps in [0..30_u64, 20..200_u64],
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut cache = cache(granules, cap);
        let fresh = cache.buddy.free_blocks();
        let mut model = Model {
            granules,
            cap,
            shares: share_caps.map(|cap| Share::new(cap * 4096)),
            live: Vec::new(),
            cached: Default::default(),
            hits: [0; CLASSES],
            total: [0; CLASSES],
            share_fails: 0,
            exhausted_fails: 0,
            too_large_fails: 0,
            given_up: 0,
            high_water: 0,
        };
        let mut now = 1000;
        for step in steps {
            match step {
                Step::Claim { bytes, share } => model.claim(&mut cache, bytes, share)?,
                Step::Release(which) if !model.live.is_empty() => {
                    let (buffer, share) = model.live.swap_remove(which.index(model.live.len()));
                    let class = Model::class_of(buffer.bytes());
                    let granule = (buffer.offset() / u64::from(GRANULE)) as u32;
                    cache.release(buffer, &mut model.shares[share], Nanoseconds(now));
                    model.cached[class].push_back((granule, now));
                }
                Step::Release(_) => {}
                Step::Purge => {
                    let due = |entry: &&(u32, u64)| entry.1 + PURGE_AFTER <= now;
                    let expected = model.cached.iter().flatten().filter(due).count() as u32;
                    let given = cache.purge(Nanoseconds(now));
                    prop_assert_eq!(given, expected.min(PURGE_MAX));
                    prop_assert_eq!(model.follow(&cache)?, u64::from(given));
                    model.given_up += u64::from(given);
                }
                Step::Wait(nanoseconds) => now += nanoseconds,
            }
            model.check(&cache)?;
        }
        for (buffer, share) in model.live.drain(..) {
            cache.release(buffer, &mut model.shares[share], Nanoseconds(now));
        }
        prop_assert_eq!(cache.held_bytes(), 0);
        while cache.purge(Nanoseconds(now + PURGE_AFTER)) != 0 {}
        prop_assert_eq!(cache.cached_bytes(), 0);
        prop_assert_eq!(cache.buddy.free_blocks(), fresh, "the arena is whole again");
    }
}

#[test]
fn an_arena_cut_up_by_cached_buffers_still_gives_long_ones() {
    let mut cache = cache(64, u64::MAX);
    let mut share = Share::new(u64::MAX);
    let small: Vec<Buffer> = (0..64).map(|_| cache.claim(1, &mut share).unwrap()).collect();
    assert_eq!(cache.claim(1, &mut share).unwrap_err(), ClaimError::Exhausted);
    for buffer in small {
        cache.release(buffer, &mut share, Nanoseconds(0));
    }
    let long = cache.claim(GRANULE << 4, &mut share).unwrap();
    assert_eq!(long.bytes(), GRANULE << 4);
    let statistics = cache.statistics();
    assert!((16..=64).contains(&statistics.reclaimed));
    assert_eq!(statistics.inactive_bytes, u64::from(64 - statistics.reclaimed as u32) * 4096);
    cache.release(long, &mut share, Nanoseconds(0));
}

#[test]
fn a_claim_gives_up_a_bounded_number_and_asking_again_succeeds() {
    let granules = 1 << 13;
    let config = Config {
        class_bytes_min: GRANULE,
        class_bytes_max: GRANULE << 13,
        cap_bytes: u64::MAX,
        purge_after_ns: u64::MAX,
    };
    let length = u64::from(GRANULE) * granules;
    let mut cache = SgvCache::new(Placement::HostDram, KEY, 0, length, config);
    let mut share = Share::new(u64::MAX);
    let small: Vec<Buffer> = (0..granules).map(|_| cache.claim(1, &mut share).unwrap()).collect();
    for buffer in small {
        cache.release(buffer, &mut share, Nanoseconds(0));
    }
    let mut refused = 0;
    let whole = loop {
        match cache.claim(GRANULE << 13, &mut share) {
            Ok(buffer) => break buffer,
            Err(error) => {
                assert_eq!(error, ClaimError::Exhausted);
                refused += 1;
                assert_eq!(cache.statistics().reclaimed, refused * u64::from(RECLAIM_MAX));
            }
        }
    };
    assert_eq!(refused, granules / u64::from(RECLAIM_MAX) - 1);
    cache.release(whole, &mut share, Nanoseconds(0));
}

#[test]
fn one_nexus_at_its_cap_does_not_hinder_another() {
    let mut cache = cache(16, u64::MAX);
    let (mut greedy, mut other) = (Share::new(8 * 4096), Share::new(8 * 4096));
    let held: Vec<Buffer> = (0..8).map(|_| cache.claim(1, &mut greedy).unwrap()).collect();
    assert_eq!(cache.claim(1, &mut greedy).unwrap_err(), ClaimError::ShareExceeded);
    let buffer = cache.claim(8 * 4096, &mut other).unwrap();
    assert_eq!(other.held(), 8 * 4096);
    cache.release(buffer, &mut other, Nanoseconds(0));
    for buffer in held {
        cache.release(buffer, &mut greedy, Nanoseconds(0));
    }
    assert_eq!((greedy.held(), other.held()), (0, 0));
}

#[test]
fn a_nexus_with_a_cap_below_its_command_gets_one_buffer_at_a_time() {
    let mut cache = cache(16, u64::MAX);
    let mut share = Share::new(1);
    let buffer = cache.claim(4 * 4096, &mut share).unwrap();
    assert_eq!(cache.claim(1, &mut share).unwrap_err(), ClaimError::ShareExceeded);
    cache.release(buffer, &mut share, Nanoseconds(0));
    let again = cache.claim(4 * 4096, &mut share).unwrap();
    cache.release(again, &mut share, Nanoseconds(0));
}

#[test]
fn statistics_start_from_zero_again_and_keep_what_is_there() {
    let mut cache = cache(16, u64::MAX);
    let mut share = Share::new(u64::MAX);
    let (one, two) = (cache.claim(1, &mut share).unwrap(), cache.claim(1, &mut share).unwrap());
    cache.release(one, &mut share, Nanoseconds(0));
    cache.reset_statistics();
    let statistics = cache.statistics();
    let class = statistics.classes()[0];
    assert_eq!((class.hits, class.total, class.cached), (0, 0, 1));
    assert_eq!((statistics.active_bytes, statistics.high_water_bytes), (4096, 4096));
    cache.release(two, &mut share, Nanoseconds(0));
}
