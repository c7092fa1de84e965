//! The block operations beyond READ and WRITE: what reaches a handler, and who waits for whom.

mod model;

use std::collections::BTreeMap;

use lunar_core::{Configuration, DeviceHandle, OperationId, UnitConfiguration};
use lunar_handlers::{CancelAnswer, Outcome as Handler, Request, Run};
use lunar_offload_proto::control::{BackendKind, LogicalUnit};
use lunar_offload_proto::ring::{
    BlockRange, BlockRequest, LBA_DEALLOCATED, LbaRun, Operation, Outcome, SideRecord,
    SubmissionEntry,
};
use model::{Bench, SLOTS, UNIT, block_entry, block_range, unit};
use proptest::prelude::*;
use zerocopy::IntoBytes;

fn entry(token: u64, request: BlockRequest, data_bytes: u32) -> SubmissionEntry {
    let mut entry = block_entry(Operation::Read, token);
    request.encode(&mut entry);
    entry.data_bytes.set(data_bytes);
    entry
}

fn thick_bench() -> Bench {
    let mut bench = Bench::serving();
    let configuration = Configuration { units: vec![unit(1000)], ..Configuration::default() };
    bench.core.set_configuration(configuration, 0).expect("configuration");
    bench.settle();
    bench
}

fn unmap(token: u64, ranges: &[(u64, u32)]) -> (SubmissionEntry, SideRecord) {
    let mut side = SideRecord::empty();
    let ranges: Vec<_> =
        ranges.iter().map(|(lba, blocks)| BlockRange::new(*lba, *blocks)).collect();
    side.set_ranges(&ranges).expect("fits");
    (entry(token, BlockRequest::Unmap, 0), side)
}

#[test]
fn every_operation_reaches_its_handler_with_its_data() {
    let (lba, blocks) = (992, 8);
    let long = u64::from(blocks);
    let cases = [
        (
            BlockRequest::WriteAndVerify { lba, blocks },
            4096,
            Request::WriteAndVerify { lba, blocks },
        ),
        (BlockRequest::Compare { lba, blocks }, 4096, Request::Compare { lba, blocks }),
        (BlockRequest::Compare { lba, blocks }, 512, Request::Compare { lba, blocks }),
        (BlockRequest::Compare { lba, blocks }, 0, Request::Compare { lba, blocks }),
        (
            BlockRequest::CompareAndWrite { lba, blocks, fua: true },
            8192,
            Request::CompareAndWrite { lba, blocks, fua: true },
        ),
        (
            BlockRequest::OrWrite { lba, blocks, fua: false },
            4096,
            Request::OrWrite { lba, blocks, fua: false },
        ),
        (
            BlockRequest::WriteSame { lba, blocks, unmap: true },
            512,
            Request::WriteSame { lba, blocks: long, unmap: true },
        ),
        // 0 blocks: to the end of the unit.
        (
            BlockRequest::WriteSame { lba: 10, blocks: 0, unmap: false },
            0,
            Request::WriteSame { lba: 10, blocks: 990, unmap: false },
        ),
        (
            BlockRequest::Prefetch { lba: 0, blocks: 0 },
            0,
            Request::Prefetch { lba: 0, blocks: 1000 },
        ),
        (BlockRequest::LbaStatus { lba, blocks }, 32, Request::LbaStatus { lba, blocks: long }),
    ];
    for (asked, data_bytes, wanted) in cases {
        let mut bench = Bench::serving();
        bench.submit_and_poll(entry(1, asked, data_bytes));
        let [(_, request, data)] = bench.executing.as_slice() else {
            panic!("{asked:?}: {:?} {:?}", bench.executing, bench.closed);
        };
        assert_eq!(*request, wanted);
        assert_eq!(data.map_or(0, |data| data.length), data_bytes);
        assert!(data.is_none_or(|data| data.offset == block_range().offset));
    }
}

#[test]
fn a_miscompare_names_its_byte_and_is_no_error_of_the_device() {
    let mut bench = Bench::serving();
    bench.submit_and_poll(entry(1, BlockRequest::Compare { lba: 0, blocks: 8 }, 4096));
    bench.end(Handler::Miscompare { offset: 777 });
    let completion = bench.card[0].completions.pop().expect("sound").expect("completed");
    assert_eq!((completion.outcome(), completion.detail.get()), (Outcome::Miscompare, 777));
    assert_eq!(bench.core.ring_counters(0).expect("ring").errors, 0);
}

#[test]
fn a_unit_of_another_size_is_checked_by_its_new_size_for_old_entries_too() {
    let mut bench = Bench::serving();
    for (blocks, outcome) in [(2000, None), (10, Some(Outcome::OutOfRange))] {
        let configuration = Configuration { units: vec![unit(blocks)], ..Configuration::default() };
        bench.core.set_configuration(configuration, 0).expect("configuration");
        bench.settle();
        // Made under the first generation, when the unit had 1000 blocks.
        bench.submit_and_poll(entry(1, BlockRequest::Read { lba: 992, blocks: 8 }, 4096));
        if outcome.is_none() {
            bench.end(Handler::Done);
        }
        assert_eq!(bench.completions(0), [(1, outcome.unwrap_or(Outcome::Done))]);
    }
}

#[test]
fn runs_lie_in_the_data_range_as_the_ring_says() {
    let run = Run { lba: 0x0102_0304_0506, blocks: 0x0708_090a, deallocated: true };
    let mut wire =
        LbaRun { lba: run.lba.into(), blocks: run.blocks.into(), state: 0, reserved: [0; 3] };
    wire.state = LBA_DEALLOCATED;
    assert_eq!(run.to_bytes(), wire.as_bytes());
    let mut bench = Bench::serving();
    bench.submit_and_poll(entry(1, BlockRequest::LbaStatus { lba: 0, blocks: 8 }, 64));
    bench.end(Handler::Listed { runs: 3 });
    let completion = bench.card[0].completions.pop().expect("sound").expect("completed");
    assert_eq!((completion.outcome(), completion.transferred_bytes.get()), (Outcome::Done, 48));
}

#[test]
fn unmap_goes_range_by_range_and_is_refused_as_a_whole() {
    let mut bench = Bench::serving();
    let (entry, side) = unmap(1, &[(5, 10), (0, 0), (990, 10), (40, 1)]);
    bench.submit(0, entry, Some(&side));
    bench.poll();
    for wanted in [(5, 10), (990, 10), (40, 1)] {
        let [(_, Request::Unmap { lba, blocks }, None)] = bench.executing.as_slice() else {
            panic!("{:?}", bench.executing);
        };
        assert_eq!((*lba, *blocks), wanted);
        assert_eq!(bench.completions(0), []);
        bench.end(Handler::Done);
    }
    assert_eq!(bench.completions(0), [(1, Outcome::Done)]);
    let (entry, side) = unmap(2, &[(5, 10), (990, 11)]);
    bench.submit(0, entry, Some(&side));
    bench.poll();
    assert!(bench.executing.is_empty(), "no range when one is wrong");
    assert_eq!(bench.completions(0), [(2, Outcome::OutOfRange)]);
    let mut thick = thick_bench();
    let (entry, side) = unmap(3, &[(5, 10)]);
    thick.submit(0, entry, Some(&side));
    thick.poll();
    assert_eq!(thick.completions(0), [(3, Outcome::Refused)]);
}

#[test]
fn an_unmap_of_several_ranges_stops_between_them() {
    let mut bench = Bench::serving();
    let (entry, side) = unmap(1, &[(5, 10), (990, 10)]);
    bench.submit(0, entry, Some(&side));
    bench.submit(0, SubmissionEntry::cancel(9, 1), None);
    bench.poll();
    // The handler cannot stop the first range any more; the second is left out.
    bench.answer_cancel(CancelAnswer::TooLate);
    assert_eq!(bench.completions(0), [(9, Outcome::Done)]);
    bench.end(Handler::Done);
    assert!(bench.executing.is_empty());
    assert_eq!(bench.completions(0), [(1, Outcome::Cancelled)]);
}

fn compare_and_write(token: u64, lba: u64) -> SubmissionEntry {
    entry(token, BlockRequest::CompareAndWrite { lba, blocks: 1, fua: false }, 1024)
}

fn write_at(token: u64, lba: u64) -> SubmissionEntry {
    entry(token, BlockRequest::Write { lba, blocks: 1, fua: false }, 512)
}

#[test]
fn a_compare_and_write_holds_its_blocks_against_writes_of_another_ring_and_not_against_reads() {
    let mut bench = Bench::serving();
    bench.submit_and_poll(compare_and_write(1, 16));
    let mut other = write_at(2, 16);
    other.data_offset.set(block_range().offset + model::DATA_BYTES);
    bench.submit(1, other, None);
    bench.submit_and_poll(entry(3, BlockRequest::Read { lba: 16, blocks: 1 }, 512));
    bench.submit_and_poll(write_at(4, 17));
    assert_eq!(bench.executing.len(), 3, "the write to the same block waits");
    assert_eq!((bench.core.running(), bench.core.waiting()), (3, 1));
    bench.end(Handler::Miscompare { offset: 0 });
    assert_eq!(bench.executing.len(), 3);
    assert_eq!(bench.executing[2].1, Request::Write { lba: 16, blocks: 1, fua: false });
}

#[test]
fn a_waiting_operation_is_cancelled_at_once_and_those_behind_it_move_up() {
    let mut bench = Bench::serving();
    bench.submit_and_poll(write_at(1, 16));
    bench.submit_and_poll(compare_and_write(2, 16));
    // Behind the waiting one, not beside the running one: no starvation.
    bench.submit_and_poll(write_at(3, 16));
    assert_eq!((bench.core.running(), bench.core.waiting()), (1, 2));
    bench.submit_and_poll(SubmissionEntry::cancel(8, 2));
    assert_eq!(bench.completions(0), [(2, Outcome::Cancelled), (8, Outcome::Done)]);
    assert_eq!((bench.core.running(), bench.core.waiting()), (2, 0));
    assert!(bench.cancels.is_empty(), "no handler had it");
}

#[test]
fn what_an_older_card_left_holds_its_blocks_until_it_ended_and_what_waited_never_starts() {
    let mut bench = Bench::serving();
    bench.submit_and_poll(compare_and_write(1, 16));
    bench.submit_and_poll(write_at(2, 16));
    bench.core.on_control_lost(bench.now);
    bench.connect(101);
    assert_eq!((bench.core.running(), bench.core.waiting()), (1, 0));
    bench.end(Handler::Done);
    assert!(bench.executing.is_empty(), "the older card's write must not land now");
    assert_eq!(bench.core.running(), 0);
}

/// What one operation does to blocks that hold one value each.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Write,
    CompareAndWrite { expected: u64 },
    Or,
    Same,
    Read,
}

#[derive(Clone, Debug)]
enum Event {
    Submit {
        ring: u16,
        kind: u8,
        unit: u32,
        lba: u64,
        blocks: u32,
    },
    /// The operation at this place among those at handlers makes half a turn: a series reads, and
    /// the next time writes.
    Advance(usize),
    Cancel(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let submit = (0..model::RINGS, 0..6_u8, UNIT..UNIT + 2, 0..6_u64, 1..4_u32);
    prop_oneof![
        4 => submit.prop_map(|(ring, kind, unit, lba, blocks)| {
            Event::Submit { ring, kind, unit, lba, blocks }
        }),
        6 => any::<usize>().prop_map(Event::Advance),
        1 => any::<usize>().prop_map(Event::Cancel),
    ]
}

/// An operation as the model knows it, in order of arrival.
#[derive(Clone, Copy, Debug)]
struct Known {
    token: u64,
    ring: u16,
    kind: Kind,
    unit: u32,
    lba: u64,
    blocks: u64,
    /// What it writes: no other operation writes that.
    value: u64,
    ended: bool,
}

impl Known {
    fn is_series(&self) -> bool {
        matches!(self.kind, Kind::CompareAndWrite { .. } | Kind::Or)
    }

    fn conflicts(&self, other: &Self) -> bool {
        let writes = |one: &Self| !matches!(one.kind, Kind::Read);
        (self.is_series() || other.is_series())
            && writes(self)
            && writes(other)
            && self.unit == other.unit
            && self.lba < other.lba + other.blocks
            && other.lba < self.lba + self.blocks
    }
}

/// Where the data of an operation lies, which tells them apart at the handlers.
fn data_place(ring: u16, token: u64) -> u64 {
    block_range().offset + u64::from(ring) * model::DATA_BYTES + token * 4096
}

/// Devices that make a series' two halves apart, and watch that nobody comes between.
struct World {
    bench: Bench,
    known: Vec<Known>,
    medium: BTreeMap<(u32, u64), u64>,
    /// What a series read.
    read: BTreeMap<OperationId, Vec<u64>>,
    /// (unit, block, expected value) of the COMPARE AND WRITEs that succeeded.
    taken: Vec<(u32, u64, u64)>,
}

impl World {
    fn new() -> Self {
        let mut bench = Bench::serving();
        let unit = |handle: u32| {
            let unit = LogicalUnit {
                handle,
                name: format!("disk{handle}"),
                backend: BackendKind::Ring.into(),
                block_bytes: 512,
                blocks: 1000,
                ..LogicalUnit::default()
            };
            UnitConfiguration { unit, device: Some(DeviceHandle(handle)) }
        };
        let configuration =
            Configuration { units: vec![unit(UNIT), unit(UNIT + 1)], ..Configuration::default() };
        bench.core.set_configuration(configuration, 0).expect("configuration");
        bench.settle();
        let (known, medium) = (Vec::new(), BTreeMap::new());
        Self { bench, known, medium, read: BTreeMap::new(), taken: Vec::new() }
    }

    fn submit(&mut self, ring: u16, kind: u8, unit: u32, lba: u64, blocks: u32) {
        if self.bench.core.outstanding(ring) >= SLOTS - 1 {
            return;
        }
        let token = self.known.len() as u64 + 1;
        let stored = self.medium.get(&(unit, lba)).copied().unwrap_or(0);
        let (kind, request, data_blocks) = match kind {
            0 | 1 => {
                let request = BlockRequest::CompareAndWrite { lba, blocks: 1, fua: false };
                (Kind::CompareAndWrite { expected: stored }, request, 2)
            }
            2 => (Kind::Or, BlockRequest::OrWrite { lba, blocks, fua: false }, blocks),
            3 => (Kind::Same, BlockRequest::WriteSame { lba, blocks, unmap: false }, 1),
            4 => (Kind::Read, BlockRequest::Read { lba, blocks }, blocks),
            _ => (Kind::Write, BlockRequest::Write { lba, blocks, fua: false }, blocks),
        };
        let blocks =
            if matches!(kind, Kind::CompareAndWrite { .. }) { 1 } else { u64::from(blocks) };
        let known = Known { token, ring, kind, unit, lba, blocks, value: token << 8, ended: false };
        self.known.push(known);
        let mut entry = entry(token, request, data_blocks * 512);
        entry.unit.set(unit);
        entry.data_offset.set(data_place(ring, token));
        self.bench.submit(ring, entry, None);
        self.bench.poll();
    }

    fn started(&self) -> Result<(), TestCaseError> {
        let at_handlers = self.bench.core.running();
        let open = self.known.iter().filter(|one| !one.ended);
        // Exactly those run that no earlier open one conflicts with.
        let free = open.filter(|one| {
            let earlier = self.known.iter().filter(|other| other.token < one.token && !other.ended);
            !earlier.into_iter().any(|other| other.conflicts(one))
        });
        prop_assert_eq!(free.count(), at_handlers);
        prop_assert_eq!(self.bench.executing.len(), at_handlers);
        Ok(())
    }

    fn advance(&mut self, which: usize) -> Result<(), TestCaseError> {
        if self.bench.executing.is_empty() {
            return Ok(());
        }
        let at = which % self.bench.executing.len();
        let (id, request, data) = self.bench.executing[at];
        let place = data.expect("all have data").offset;
        let owner = self.known.iter().find(|one| data_place(one.ring, one.token) == place);
        let known = *owner.expect("of the model");
        let blocks: Vec<(u32, u64)> =
            (known.lba..known.lba + known.blocks).map(|lba| (known.unit, lba)).collect();
        prop_assert_eq!(request.range(), Some((known.lba, known.blocks)));
        let stored: Vec<u64> =
            blocks.iter().map(|at| self.medium.get(at).copied().unwrap_or(0)).collect();
        if known.is_series() && !self.read.contains_key(&id) {
            self.read.insert(id, stored);
            return Ok(());
        }
        let mut outcome = Handler::Done;
        if let Some(seen) = self.read.remove(&id) {
            prop_assert_eq!(&seen, &stored, "somebody wrote within a series: {:?}", known);
        }
        for (at, stored) in blocks.into_iter().zip(stored) {
            let new = match known.kind {
                // What an OR makes is as good as anything, if only it is new.
                Kind::Write | Kind::Same | Kind::Or => known.value,
                Kind::Read => continue,
                Kind::CompareAndWrite { expected } if expected == stored => {
                    let taken = (known.unit, known.lba, expected);
                    prop_assert!(!self.taken.contains(&taken), "two won: {:?}", taken);
                    self.taken.push(taken);
                    known.value
                }
                Kind::CompareAndWrite { .. } => {
                    outcome = Handler::Miscompare { offset: 0 };
                    continue;
                }
            };
            self.medium.insert(at, new);
        }
        self.end(at, outcome)
    }

    fn end(&mut self, at: usize, outcome: Handler) -> Result<(), TestCaseError> {
        let (id, ..) = self.bench.executing.remove(at);
        self.bench.core.on_outcome(id, outcome, 0);
        self.bench.settle();
        self.collect()
    }

    fn cancel(&mut self, which: usize) -> Result<(), TestCaseError> {
        let open: Vec<Known> = self.known.iter().filter(|one| !one.ended).copied().collect();
        let Some(target) = open.get(which % open.len().max(1)) else {
            return Ok(());
        };
        if self.bench.core.outstanding(target.ring) >= SLOTS - 1 {
            return Ok(());
        }
        let token = 1 << 40 | self.known.len() as u64;
        self.bench.submit(target.ring, SubmissionEntry::cancel(token, target.token), None);
        self.bench.poll();
        while !self.bench.cancels.is_empty() {
            self.bench.answer_cancel(CancelAnswer::TooLate);
        }
        self.collect()
    }

    /// Takes the completions.
    fn collect(&mut self) -> Result<(), TestCaseError> {
        for ring in 0..model::RINGS {
            for (token, outcome) in self.bench.completions(ring) {
                if let Some(one) = self.known.iter_mut().find(|one| one.token == token) {
                    prop_assert!(!one.ended, "{:?} ended twice: {:?}", one, outcome);
                    one.ended = true;
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_series_is_uninterrupted_fair_and_ends_whatever_the_interleaving(
        events in prop::collection::vec(event(), 1..120),
    ) {
        let mut world = World::new();
        for event in events {
            match event {
                Event::Submit { ring, kind, unit, lba, blocks } => {
                    world.submit(ring, kind, unit, lba, blocks);
                }
                Event::Advance(which) => world.advance(which)?,
                Event::Cancel(which) => world.cancel(which)?,
            }
            world.started()?;
        }
        while !world.bench.executing.is_empty() {
            world.advance(0)?;
            world.started()?;
        }
        prop_assert!(world.known.iter().all(|one| one.ended), "somebody waits for ever");
        prop_assert_eq!(world.bench.core.waiting(), 0);
    }
}
