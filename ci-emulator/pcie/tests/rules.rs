//! What the DMA context, the host slot and the card memory promise (`platform/src/dma.rs` and
//! `platform/src/memory.rs`), in prompt and in adversarial mode.

use lunar_pcie::{
    AddressSpace, Backing, CardMemory, CardRegion, DmaConfig, DmaMode, EmulatedDma, ExportBlob,
    HintLine, HostSlot, Kind, PlacementMode, Segment,
};
use lunar_platform::{
    ArenaId, Dma, DmaCompletion, DmaError, DmaOperation, DmaRequest, HostAddress, Memory,
    MemoryError, Region,
};
use proptest::prelude::*;

const ARENA: ArenaId = ArenaId(3);
const BLOB: ExportBlob = ExportBlob { arena: ARENA, secret: *b"sixteen letters!" };
const ARENA_BYTES: usize = 16 << 10;

/// One card with one context, one host with one arena.
struct Bench {
    space: AddressSpace,
    slot: HostSlot,
    host: Segment,
    memory: CardMemory,
    card: CardRegion,
    dma: EmulatedDma,
    to_host: HintLine,
    to_card: HintLine,
}

impl Bench {
    fn new(seed: Option<u64>) -> Self {
        Self::with(
            seed.map_or(PlacementMode::Prompt, |seed| PlacementMode::Withheld { seed }),
            DmaConfig {
                mode: seed.map_or(DmaMode::Prompt, |seed| DmaMode::Adversarial { seed }),
                capacity: 16,
                hints_lost_per_mille: 0,
            },
        )
    }

    fn with(placement: PlacementMode, config: DmaConfig) -> Self {
        let space = AddressSpace::new();
        let slot = HostSlot::new(placement);
        let host = Segment::anonymous(ARENA_BYTES).unwrap();
        slot.plug(BLOB, &host);
        let (to_host, to_card) = (HintLine::new().unwrap(), HintLine::new().unwrap());
        let dma =
            EmulatedDma::new(space.clone(), slot.clone(), to_host.clone(), to_card.clone(), config);
        let mut memory =
            CardMemory::new(space.clone(), Some(slot.clone()), Backing::Anonymous, 1 << 20);
        memory.import(&BLOB.encode()).unwrap();
        let card = memory.claim(ARENA_BYTES).unwrap();
        Self { space, slot, host, memory, card, dma, to_host, to_card }
    }

    fn push(&mut self, id: u64, from: usize, to: u64, length: u32) -> Result<(), DmaError> {
        let (key, address) = (self.card.key(), self.card.base() + from as u64);
        let host = HostAddress { arena: ARENA, offset: to };
        self.dma
            .submit(DmaRequest { id, operation: DmaOperation::Push { key, address, host, length } })
    }

    fn pull(&mut self, id: u64, from: u64, to: usize, length: u32) -> Result<(), DmaError> {
        let (key, address) = (self.card.key(), self.card.base() + to as u64);
        let host = HostAddress { arena: ARENA, offset: from };
        self.dma
            .submit(DmaRequest { id, operation: DmaOperation::Pull { key, address, host, length } })
    }

    fn flush(&mut self, id: u64) -> Result<(), DmaError> {
        self.dma.submit(DmaRequest { id, operation: DmaOperation::Flush { arena: ARENA } })
    }

    fn poll(&mut self) -> Vec<DmaCompletion> {
        let mut out = [DmaCompletion { id: u64::MAX, result: Ok(()) }; 4];
        let count = self.dma.poll(&mut out);
        out[..count].to_vec()
    }

    /// Polls until `id` completed; everything must complete in a bounded number of polls.
    fn wait(&mut self, id: u64) -> Result<(), DmaError> {
        for _ in 0..1000 {
            if let Some(end) = self.poll().iter().find(|end| end.id == id) {
                return end.result;
            }
        }
        panic!("operation {id} never completed");
    }

    fn host_bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        assert!(self.host.read(offset, &mut bytes));
        bytes
    }

    fn host_word(&self, offset: u64) -> u32 {
        self.host.atomic_u32(offset).unwrap().load(std::sync::atomic::Ordering::Acquire)
    }
}

#[test]
fn the_providers_can_move_between_cores() {
    fn movable<T: Send>() {}
    movable::<EmulatedDma>();
    movable::<CardMemory>();
    movable::<CardRegion>();
    movable::<AddressSpace>();
    movable::<HostSlot>();
}

#[test]
fn prompt_operations_happen_at_submit_and_complete_in_order_at_the_next_poll() {
    let mut bench = Bench::new(None);
    bench.card.bytes_mut(0, 100).fill(7);
    bench.push(1, 0, 200, 100).unwrap();
    assert_eq!(bench.host_bytes(199, 102), [&[0][..], &[7; 100], &[0]].concat());
    bench.pull(2, 200, 1000, 50).unwrap();
    bench.flush(3).unwrap();
    assert_eq!(bench.card.bytes(1000, 51), [&[7; 50][..], &[0]].concat());
    let ids: Vec<u64> = bench.poll().iter().map(|end| end.id).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert!(bench.poll().is_empty());
}

#[test]
fn a_context_takes_no_more_than_its_capacity() {
    for seed in [None, Some(1)] {
        let mut bench = Bench::new(seed);
        for id in 0..16 {
            assert_eq!(bench.dma.room(), 16 - id as usize);
            bench.push(id, 0, 0, 4).unwrap();
        }
        assert_eq!(bench.dma.room(), 0);
        assert_eq!(bench.push(16, 0, 0, 4), Err(DmaError::Full));
        bench.wait(0).unwrap();
        assert!(bench.dma.room() >= 1);
        bench.push(17, 0, 0, 4).unwrap();
    }
}

#[test]
fn ranges_that_are_not_registered_are_refused_at_submit() {
    for seed in [None, Some(1)] {
        let mut bench = Bench::new(seed);
        let end = ARENA_BYTES as u64;
        let refused = Err(DmaError::Protection);
        assert_eq!(bench.push(1, 0, end - 3, 4), refused);
        assert_eq!(bench.push(1, 0, u64::MAX, 4), refused);
        assert_eq!(bench.pull(1, end, 0, 1), refused);
        assert_eq!(bench.push(1, ARENA_BYTES - 3, 0, 4), refused);
        let arena = bench.memory.import(&BLOB.encode()).unwrap();
        let host = HostAddress { arena: ARENA, offset: 0 };
        let both_host =
            DmaOperation::Push { key: arena.key.unwrap(), address: arena.base, host, length: 4 };
        assert_eq!(bench.dma.submit(DmaRequest { id: 1, operation: both_host }), refused);
        bench.memory.unimport(ARENA);
        assert_eq!(bench.push(1, 0, 0, 4), refused, "not imported any more");
        assert_eq!(bench.flush(1), refused);
        assert!(bench.poll().is_empty(), "a refused operation has no completion");
    }
}

#[test]
fn a_dropped_region_and_a_dropped_registrar_give_their_keys_back() {
    let mut bench = Bench::new(None);
    let (key, base) = (bench.card.key(), bench.card.base());
    let arena = bench.memory.import(&BLOB.encode()).unwrap();
    let mut space = bench.space.clone();
    assert_eq!(space.resolve(key, base, 1).unwrap().kind(), Kind::Card);
    assert_eq!(space.resolve(arena.key.unwrap(), arena.base, 1).unwrap().kind(), Kind::Host(ARENA));
    drop(bench);
    assert!(space.resolve(key, base, 1).is_none());
    assert!(space.resolve(arena.key.unwrap(), arena.base, 1).is_none());
}

#[test]
fn card_memory_is_zeroed_and_limited_by_its_budget() {
    let mut memory = CardMemory::new(AddressSpace::new(), None, Backing::Shared, 8192);
    let mut region = memory.claim(4096).unwrap();
    assert!(region.segment().fd().is_some());
    assert_eq!(region.bytes(0, 4096), [0; 4096]);
    region.bytes_mut(4095, 1).fill(1);
    assert_eq!(region.bytes(4095, 1), [1]);
    assert!(region.bytes(4095, 2).is_empty());
    assert!(region.bytes_mut(usize::MAX, 2).is_empty());
    let refused = MemoryError::NoMemory { wanted_bytes: 4097 };
    assert_eq!(memory.claim(4097).err(), Some(refused));
    assert!(memory.claim(4096).is_ok());
    assert_eq!(memory.import(&BLOB.encode()), Err(MemoryError::NotSupported));
}

#[test]
fn only_the_right_blob_opens_an_arena() {
    let mut bench = Bench::new(None);
    let good = BLOB.encode();
    for index in 0..good.len() {
        let mut bad = good;
        bad[index] ^= 1;
        assert_eq!(bench.memory.import(&bad), Err(MemoryError::BadBlob), "byte {index}");
    }
    assert_eq!(bench.memory.import(&good[..17]), Err(MemoryError::BadBlob));
    assert_eq!(bench.memory.import(&[]), Err(MemoryError::BadBlob));
    assert_eq!(bench.memory.import(&[&good[..], &[0]].concat()), Err(MemoryError::BadBlob));
    assert!(bench.memory.import(&good).is_ok());
    assert!(!format!("{BLOB:?}").contains("115"), "the secret is not printed");
}

#[test]
fn a_revoked_arena_fails_every_use_until_it_is_offered_and_imported_again() {
    for seed in [None, Some(5)] {
        let mut bench = Bench::new(seed);
        let arena = bench.memory.import(&BLOB.encode()).unwrap();
        let mut space = bench.space.clone();
        if seed.is_some() {
            // In flight at the time of the revoke: it fails, or it had completed before.
            bench.push(1, 0, 0, 4).unwrap();
        }
        assert!(bench.slot.revoke(ARENA));
        assert!(!bench.slot.revoke(ARENA));
        if seed.is_some() {
            assert_eq!(bench.wait(1), Err(DmaError::Protection));
        }
        assert_eq!(bench.push(2, 0, 0, 4), Err(DmaError::Protection));
        assert!(space.resolve(arena.key.unwrap(), arena.base, 1).is_none());
        assert!(!bench.slot.hca_write(ARENA, 0, &[1]));
        assert_eq!(bench.memory.import(&BLOB.encode()), Err(MemoryError::BadBlob));

        let fresh = Segment::anonymous(4096).unwrap();
        let blob = ExportBlob { arena: ARENA, secret: [9; 16] };
        bench.slot.plug(blob, &fresh);
        assert_eq!(bench.push(3, 0, 0, 4), Err(DmaError::Protection), "the old import is dead");
        let again = bench.memory.import(&blob.encode()).unwrap();
        assert_ne!(again.key, arena.key);
        bench.card.bytes_mut(0, 4).fill(4);
        bench.push(4, 0, 0, 4).unwrap();
        bench.wait(4).unwrap();
        bench.flush(5).unwrap();
        bench.wait(5).unwrap();
        let mut out = [0; 4];
        for _ in 0..100 {
            bench.poll();
        }
        assert!(fresh.read(0, &mut out));
        assert_eq!(out, [4; 4]);
        assert_eq!(bench.host_bytes(0, 4), [0; 4], "the revoked memory is left alone");
    }
}

#[test]
fn after_a_surprise_removal_everything_is_gone() {
    for seed in [None, Some(2)] {
        let mut bench = Bench::new(seed);
        bench.slot.hca_write(ARENA, 64, &[1; 64]);
        if seed.is_some() {
            bench.push(1, 0, 0, 4).unwrap();
            bench.flush(2).unwrap();
        }
        bench.slot.surprise_removal();
        assert!(bench.slot.is_gone());
        if seed.is_some() {
            assert_eq!(bench.wait(1), Err(DmaError::Gone));
        }
        assert_eq!(bench.push(3, 0, 0, 4), Err(DmaError::Gone));
        assert_eq!(bench.memory.import(&BLOB.encode()), Err(MemoryError::BadBlob));
        bench.slot.plug(BLOB, &bench.host.clone());
        assert!(!bench.slot.is_gone());
    }
}

#[test]
fn hints_wake_both_sides_and_a_lossy_line_loses_them() {
    let mut bench = Bench::new(None);
    assert!(!bench.to_host.drain());
    bench.dma.ring_host(0);
    assert!(bench.to_host.drain());
    assert!(bench.dma.arm(), "nothing pending: sleep");
    bench.to_card.signal();
    assert!(!bench.dma.arm(), "a hint came: look again");
    assert!(bench.dma.arm());
    bench.flush(1).unwrap();
    assert!(!bench.dma.arm(), "a completion waits");

    let config = DmaConfig { hints_lost_per_mille: 1000, ..DmaConfig::default() };
    let mut deaf = Bench::with(PlacementMode::Prompt, config);
    deaf.dma.ring_host(0);
    assert!(!deaf.to_host.drain());
    deaf.to_card.signal();
    assert!(deaf.dma.arm(), "the hint got lost");
}

#[test]
fn data_pushed_and_completed_is_visible_whenever_a_later_word_is() {
    for seed in 0..300 {
        let mut bench = Bench::new(Some(seed));
        bench.card.bytes_mut(0, 1000).fill(1);
        bench.card.bytes_mut(2048, 4).copy_from_slice(&1u32.to_ne_bytes());
        bench.push(1, 0, 4000, 1000).unwrap();
        bench.wait(1).unwrap();
        bench.push(2, 2048, 0, 4).unwrap();
        let mut polls = 0;
        while bench.host_word(0) == 0 {
            bench.poll();
            polls += 1;
            assert!(polls < 200, "the word never arrived");
        }
        assert_eq!(bench.host_bytes(4000, 1000), [1; 1000], "seed {seed}");
    }
}

#[test]
fn the_adversary_shows_a_word_before_data_that_was_not_waited_for() {
    let mut early = 0;
    for seed in 0..100 {
        let mut bench = Bench::new(Some(seed));
        bench.card.bytes_mut(0, 1000).fill(1);
        bench.push(1, 0, 4000, 1000).unwrap();
        bench.push(2, 0, 0, 4).unwrap();
        while bench.host_word(0) == 0 {
            bench.poll();
        }
        early += u32::from(bench.host_bytes(4000, 1000) != [1; 1000]);
    }
    assert!(early > 20, "only {early} of 100 seeds");
}

#[test]
fn the_adversary_reads_the_source_late_and_delays_completed_pushes() {
    let (mut late, mut delayed) = (0, 0);
    for seed in 0..100 {
        let mut bench = Bench::new(Some(seed));
        bench.card.bytes_mut(0, 64).fill(1);
        bench.push(1, 0, 0, 64).unwrap();
        bench.card.bytes_mut(0, 64).fill(2);
        bench.wait(1).unwrap();
        delayed += u32::from(bench.host_bytes(0, 64) == [0; 64]);
        for _ in 0..100 {
            bench.poll();
        }
        assert_ne!(bench.host_bytes(0, 64), [0; 64], "visible in the end, seed {seed}");
        late += u32::from(bench.host_bytes(0, 64) == [2; 64]);
    }
    assert!(late > 20, "source read late in {late} of 100 seeds");
    assert!(delayed > 5, "visibility behind completion in {delayed} of 100 seeds");
}

#[test]
fn what_the_hca_wrote_is_visible_after_a_flush_and_withheld_before() {
    let mut withheld = 0;
    for seed in 0..100 {
        let mut bench = Bench::new(Some(seed));
        assert!(bench.slot.hca_write(ARENA, 100, &[1; 3000]));
        assert!(!bench.slot.hca_write(ARENA, ARENA_BYTES as u64 - 1, &[1; 2]));
        // Pushes and their completions do not help: the HCA and the DMA engine have no order.
        bench.push(1, 0, 8000, 4).unwrap();
        bench.wait(1).unwrap();
        withheld += u32::from(bench.host_bytes(100, 3000) != [1; 3000]);
        bench.flush(2).unwrap();
        bench.wait(2).unwrap();
        assert_eq!(bench.host_bytes(100, 3000), [1; 3000], "seed {seed}");
    }
    assert_eq!(withheld, 100);
}

#[test]
fn a_flush_need_not_cover_what_came_after_its_submit() {
    let mut uncovered = 0;
    for seed in 0..100 {
        let mut bench = Bench::new(Some(seed));
        bench.flush(1).unwrap();
        bench.slot.hca_write(ARENA, 0, &[1; 64]);
        bench.wait(1).unwrap();
        uncovered += u32::from(bench.host_bytes(0, 64) != [1; 64]);
    }
    assert!((20..=95).contains(&uncovered), "{uncovered} of 100 seeds");
}

#[test]
fn an_hca_read_pushes_the_hcas_own_writes_ahead_and_same_bytes_keep_their_order() {
    for seed in 0..50 {
        let mut bench = Bench::new(Some(seed));
        let arena = bench.memory.import(&BLOB.encode()).unwrap();
        let mut space = bench.space.clone();
        let range = space.resolve(arena.key.unwrap(), arena.base + 512, 2048).unwrap();
        let peer = Segment::anonymous(4096).unwrap();
        peer.write(0, &[2; 2048]);
        assert!(range.write(0, &[1; 1024]));
        assert!(range.copy_in(512, &peer, 0, 1024));
        for _ in 0..20 {
            bench.poll();
        }
        assert!(range.copy_out(0, &peer, 2048, 1536));
        let mut out = [0; 1536];
        assert!(peer.read(2048, &mut out));
        assert_eq!(out[..512], [1; 512]);
        assert_eq!(out[512..], [2; 1024]);
        let mut again = [0; 1536];
        assert!(range.read(0, &mut again));
        assert_eq!(out, again);
    }
}

/// A completion is local, but what completed does not stay away for ever.
#[test]
fn what_completed_is_visible_after_a_bounded_number_of_polls() {
    for seed in 0..20_000 {
        let mut bench = Bench::new(Some(seed));
        bench.card.bytes_mut(0, 200).fill(7);
        bench.push(1, 0, 28, 200).unwrap();
        bench.wait(1).unwrap();
        for _ in 0..64 {
            bench.poll();
        }
        assert_eq!(bench.host_bytes(28, 200), [7; 200], "seed {seed}");
    }
}

/// One step of a random program: areas are 256 bytes apart on both sides.
#[derive(Clone, Debug)]
enum Step {
    Push { area: usize, value: u8 },
    Pull { area: usize },
    HostWrite { area: usize, value: u8 },
    Poll,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6usize, 1..255u8).prop_map(|(area, value)| Step::Push { area, value }),
        (0..6usize).prop_map(|area| Step::Pull { area }),
        (0..6usize, 1..255u8).prop_map(|(area, value)| Step::HostWrite { area, value }),
        Just(Step::Poll),
        Just(Step::Poll),
    ]
}

const AREA_BYTES: usize = 200;

proptest! {
    /// For random programs that never touch an area twice at once: a pull gives exactly what the
    /// pushes submitted before it left, completions come in order, and in the end the host has
    /// everything.
    #[test]
    fn operations_are_carried_out_in_order(
        seed in any::<Option<u64>>(), steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut bench = Bench::new(seed);
        let mut expected = [0u8; 6];
        // Area and expected value of operations in flight, by id; `None` for a push.
        let mut flying: std::collections::VecDeque<(u64, usize, Option<u8>)> = Default::default();
        let mut next_id = 0;
        let mut steps = steps.into_iter();
        loop {
            let step = match steps.next() {
                Some(step) => step,
                None if flying.is_empty() => break,
                None => Step::Poll,
            };
            match step {
                Step::Push { area, value } => {
                    // A later push to an area with operations in flight has its own staging.
                    if flying.iter().any(|one| one.1 == area) || bench.dma.room() == 0 {
                        continue;
                    }
                    bench.card.bytes_mut(area * 256, AREA_BYTES).fill(value);
                    bench.push(next_id, area * 256, area as u64 * 256 + 28, AREA_BYTES as u32).unwrap();
                    flying.push_back((next_id, area, None));
                    expected[area] = value;
                    next_id += 1;
                }
                Step::Pull { area } => {
                    if flying.iter().any(|one| one.1 == area && one.2.is_some()) || bench.dma.room() == 0 {
                        continue;
                    }
                    bench.pull(next_id, area as u64 * 256 + 28, 4096 + area * 256, AREA_BYTES as u32).unwrap();
                    flying.push_back((next_id, area, Some(expected[area])));
                    next_id += 1;
                }
                Step::HostWrite { area, value } => {
                    // Also behind completed pushes that are still on their way, so wait for a pull.
                    if flying.is_empty() {
                        bench.flush(u64::MAX).unwrap();
                        bench.wait(u64::MAX).unwrap();
                        for _ in 0..64 { bench.poll(); }
                        bench.host.write(area as u64 * 256 + 28, &[value; AREA_BYTES]);
                        expected[area] = value;
                    }
                }
                Step::Poll => {
                    for end in bench.poll() {
                        let (id, area, pulled) = flying.pop_front().unwrap();
                        prop_assert_eq!(end.id, id);
                        prop_assert_eq!(end.result, Ok(()));
                        if let Some(value) = pulled {
                            let got = bench.card.bytes(4096 + area * 256, AREA_BYTES);
                            prop_assert!(got.iter().all(|&byte| byte == value));
                        }
                    }
                }
            }
        }
        for _ in 0..64 { bench.poll(); }
        for (area, &value) in expected.iter().enumerate() {
            prop_assert_eq!(bench.host_bytes(area as u64 * 256 + 28, AREA_BYTES), vec![value; AREA_BYTES]);
        }
    }

    /// HCA writes of any shape: after a flush that was submitted behind them, the host sees exactly
    /// what the writes in their order leave.
    #[test]
    fn a_flush_places_hca_writes_in_their_order(
        seed in any::<u64>(),
        writes in prop::collection::vec((0..8000u64, 1..2000usize, any::<u8>()), 1..30),
        polls in 0..20usize,
    ) {
        let mut bench = Bench::new(Some(seed));
        let mut model = vec![0u8; ARENA_BYTES];
        for &(offset, length, value) in &writes {
            prop_assert!(bench.slot.hca_write(ARENA, offset, &vec![value; length]));
            model[offset as usize..offset as usize + length].fill(value);
            for _ in 0..polls { bench.poll(); }
        }
        bench.flush(1).unwrap();
        bench.wait(1).unwrap();
        prop_assert_eq!(bench.host_bytes(0, ARENA_BYTES), model);
    }
}
