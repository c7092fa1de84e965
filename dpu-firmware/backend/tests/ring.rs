//! The ring backend against a model agent over emulated PCIe, in prompt and adversarial mode.

mod rig;

use lunar_backend::ring::{RingBackend, RingFault, SetupError};
use lunar_backend::{BlockRange, BlockRequest, NoRoom, Outcome};
use lunar_dma::sgv::Placement;
use lunar_offload_proto::cursor::RingMemory;
use lunar_offload_proto::ring::{
    CompletionEntry, ENTRY_BYTES, Entry, Operation, Outcome as Code, RingLayout,
};
use lunar_platform::DmaError;
use rig::{BLOCK_BYTES, Plan, Rig, modes};
use zerocopy::IntoBytes;

const PLACEMENTS: [Placement; 2] = [Placement::CardDram, Placement::HostDram];

fn token(slot: u64, generation: u64) -> u64 {
    generation << 32 | slot
}

#[test]
fn what_is_written_is_read_back_through_many_wraps_of_ring_and_sequence() {
    for seed in modes() {
        // Few slots wrap often; the start makes the sequence itself wrap.
        let mut rig = Rig::new(Plan { seed, start: u32::MAX - 20, ..Plan::default() });
        for turn in 0..40_u64 {
            let placement = PLACEMENTS[turn as usize % 2];
            let buffer = rig.claim(placement, 2 * BLOCK_BYTES as u32);
            let pattern: Vec<u8> =
                (0..2 * BLOCK_BYTES).map(|at| (at as u64 * 7 + turn) as u8).collect();
            rig.fetch_data_out(&buffer, &pattern);
            rig.write(token(1, turn), turn, 2, &buffer).unwrap();
            let outcome = rig.run(token(1, turn));
            assert_eq!((outcome.outcome, outcome.transferred_bytes), (Code::Done, 1024));
            let at = turn as usize * BLOCK_BYTES;
            assert_eq!(rig.agent.disk[at..at + 1024], pattern, "seed {seed:?} turn {turn}");
            rig.release(buffer);
            let other = rig.claim(PLACEMENTS[(turn as usize / 2) % 2], 4096);
            rig.read(token(2, turn), turn, 2, &other).unwrap();
            assert_eq!(rig.run(token(2, turn)).outcome, Code::Done);
            assert_eq!(rig.data_in(&other, 1024), pattern, "seed {seed:?} turn {turn}");
            rig.release(other);
        }
        rig.settle();
        assert_eq!(rig.ring.outstanding(), 0);
        assert_eq!(rig.ring.staged_bytes(), 0);
        assert_eq!(rig.host_cache.held_bytes(), 0);
    }
}

#[test]
fn an_entry_says_what_was_submitted() {
    let mut rig = Rig::new(Plan::default());
    let buffer = rig.claim(Placement::HostDram, 4096);
    rig.write(token(3, 4), 11, 2, &buffer).unwrap();
    rig.submit(token(4, 4), BlockRequest::Flush { lba: 1, blocks: 2 }, None, 0, &[]).unwrap();
    rig.tick();
    assert_eq!(rig.agent.take(9), 2);
    let entry = rig.agent.started[0].entry;
    assert_eq!(entry.operation(), Operation::Write);
    assert!(entry.has(lunar_offload_proto::ring::FLAG_FUA));
    assert_eq!((entry.unit.get(), entry.nexus.get()), (5, 6));
    let generations = (entry.configuration_generation.get(), entry.nexus_generation.get());
    assert_eq!(generations, (7, 8));
    assert_eq!((entry.lba.get(), entry.blocks.get(), entry.data_bytes.get()), (11, 2, 1024));
    assert_eq!(entry.arena.get(), rig::ARENA.0);
    assert_eq!(entry.data_offset.get(), rig.setup.data_offset + buffer.offset());
    let flush = rig.agent.started[1].entry;
    assert_eq!((flush.operation(), flush.data_bytes.get()), (Operation::Flush, 0));
    rig.release(buffer);
}

#[test]
fn a_tick_sends_one_batch_one_flush_and_one_hint() {
    let mut rig = Rig::new(Plan::default());
    let buffers: Vec<_> = (0..4).map(|_| rig.claim(Placement::HostDram, 512)).collect();
    for (slot, buffer) in buffers.iter().enumerate() {
        rig.write(slot as u64, slot as u64, 1, buffer).unwrap();
    }
    rig.tick();
    let statistics = rig.ring.statistics();
    assert_eq!((statistics.batches, statistics.flushes, statistics.payload_copies), (1, 1, 0));
    assert!(rig.to_host.drain());
    assert_eq!(rig.agent.take(9), 4);
    rig.tick();
    assert!(!rig.to_host.drain(), "nothing new");
    // Data-in needs no flush, unless a buffer with data-out was given up before.
    rig.read(8, 0, 1, &buffers[0]).unwrap();
    rig.tick();
    assert_eq!(rig.ring.statistics().flushes, 1);
    rig.ring.flush_before_publish();
    rig.read(9, 0, 1, &buffers[0]).unwrap();
    rig.tick();
    assert_eq!(rig.ring.statistics().flushes, 2);
}

#[test]
fn forwarded_commands_carry_long_cdbs_and_sense_in_any_number() {
    for seed in modes() {
        for dma_capacity in [3, 64] {
            let mut rig = Rig::new(Plan { seed, dma_capacity, ..Plan::default() });
            for turn in 0..5_u64 {
                let cdb = |slot: u64| -> Vec<u8> {
                    let length = if slot == 0 { 260 } else { 10 + slot as usize };
                    (0..length).map(|at| (at as u64 + 50 * slot + turn) as u8).collect()
                };
                for slot in 0..6 {
                    let forward = BlockRequest::Forward { data_out: false };
                    rig.submit(token(slot, turn), forward, None, 0, &cdb(slot)).unwrap();
                }
                let mut ended = Vec::new();
                for _ in 0..1000 {
                    rig.tick();
                    assert_eq!(rig.ring.fault(), None);
                    rig.agent.serve();
                    for outcome in rig.outcomes() {
                        let slot = outcome.token & 0xff;
                        assert_eq!((outcome.outcome, outcome.status), (Code::Forwarded, 2));
                        let sense = rig.ring.sense(outcome.token);
                        assert_eq!(sense, &cdb(slot)[..sense.len()], "seed {seed:?} slot {slot}");
                        assert_eq!(sense.len(), cdb(slot).len().min(252));
                        ended.push(slot);
                    }
                    if ended.len() == 6 {
                        break;
                    }
                }
                ended.sort_unstable();
                assert_eq!(ended, [0, 1, 2, 3, 4, 5]);
            }
        }
    }
}

/// Commands with sense hold the round open while others end and their slots are used again: the host
/// must still have a slot for each completion (the model agent asserts it), and no sense may be
/// written over before it was pulled.
#[test]
fn a_ring_kept_full_of_mixed_commands_never_owes_more_than_it_has_slots() {
    for (seed, dma_capacity) in (0..150).flat_map(|seed| [(seed, 3), (seed, 64)]) {
        for forwards in [1, 4] {
            let plan = Plan { seed: Some(seed), dma_capacity, ..Plan::default() };
            let mut rig = Rig::new(plan);
            let buffer = rig.claim(Placement::HostDram, 512);
            let mut turns = [0_u64; 7];
            let mut ended = vec![0, 1, 2, 3, 4, 5, 6];
            for _ in 0..150 {
                ended.retain(|&slot| {
                    let turn = turns[slot as usize];
                    let taken = if slot < forwards {
                        let cdb = [(slot * 31 + turn) as u8; 200];
                        let forward = BlockRequest::Forward { data_out: false };
                        rig.submit(token(slot, turn), forward, None, 0, &cdb)
                    } else {
                        rig.read(token(slot, turn), 0, 1, &buffer)
                    };
                    turns[slot as usize] += u64::from(taken.is_ok());
                    taken.is_err()
                });
                rig.tick();
                assert_eq!(rig.ring.fault(), None);
                rig.agent.serve();
                for outcome in rig.outcomes() {
                    let (slot, turn) = (outcome.token & 0xff, outcome.token >> 32);
                    if slot < forwards {
                        let sense = rig.ring.sense(outcome.token);
                        assert_eq!(sense, [(slot * 31 + turn) as u8; 200], "seed {seed}");
                    }
                    ended.push(slot);
                }
            }
            assert!(turns.iter().all(|&turn| turn > 2), "seed {seed}: {turns:?}");
            rig.release(buffer);
        }
    }
}

#[test]
fn what_no_entry_can_express_is_refused_by_the_card() {
    let mut rig = Rig::new(Plan::default());
    let forward = BlockRequest::Forward { data_out: true };
    rig.submit(1, forward, None, 0, &[0; 261]).unwrap();
    let buffer = rig.claim(Placement::CardDram, 512);
    rig.submit(2, BlockRequest::Read { lba: 0, blocks: 2 }, Some(&buffer), 1024, &[]).unwrap();
    rig.unmap(3, &[BlockRange::new(0, 1); 32]).unwrap();
    let ended: Vec<_> = rig.outcomes().iter().map(|one| (one.token, one.outcome)).collect();
    assert_eq!(ended, [(1, Code::Refused), (2, Code::Refused), (3, Code::Refused)]);
    assert_eq!(rig.ring.outstanding(), 0);
    rig.release(buffer);
}

#[test]
fn unmap_carries_its_ranges_beside_the_entry_through_withdrawals_too() {
    for seed in modes() {
        let mut rig = Rig::new(Plan { seed, ..Plan::default() });
        rig.agent.disk.fill(7);
        let ranges: Vec<_> = (0..31).map(|at| BlockRange::new(2 * at, 1)).collect();
        rig.unmap(1, &ranges[..1]).unwrap();
        rig.submit(2, BlockRequest::Forward { data_out: false }, None, 0, &[9; 16]).unwrap();
        rig.unmap(3, &ranges).unwrap();
        // The newest takes the place of the withdrawn one, and its side record comes along.
        assert!(rig.ring.cancel(1));
        assert_eq!(rig.run(3).outcome, Code::Done);
        let odd = |at: usize| at / BLOCK_BYTES % 2 == 1 || at / BLOCK_BYTES >= 62;
        let wanted = (0..rig.agent.disk.len()).map(|at| if odd(at) { 7 } else { 0 });
        assert!(rig.agent.disk.iter().copied().eq(wanted), "seed {seed:?}");
    }
}

#[test]
fn a_miscompare_tells_where() {
    for placement in PLACEMENTS {
        let mut rig = Rig::new(Plan::default());
        let buffer = rig.claim(placement, 1024);
        let mut data = [0_u8; 1024];
        data[512..].fill(5);
        rig.fetch_data_out(&buffer, &data);
        let request = BlockRequest::CompareAndWrite { lba: 3, blocks: 1, fua: false };
        rig.submit(token(1, 1), request, Some(&buffer), 1024, &[]).unwrap();
        assert_eq!(rig.run(token(1, 1)).outcome, Code::Done);
        assert!(rig.agent.disk[1536..2048].iter().all(|byte| *byte == 5));
        rig.agent.disk[1536 + 77] = 0;
        rig.submit(token(1, 2), request, Some(&buffer), 1024, &[]).unwrap();
        let outcome = rig.run(token(1, 2));
        assert_eq!((outcome.outcome, outcome.detail), (Code::Miscompare, 0));
        data[..512].fill(5);
        rig.fetch_data_out(&buffer, &data);
        rig.submit(token(1, 3), request, Some(&buffer), 1024, &[]).unwrap();
        let outcome = rig.run(token(1, 3));
        assert_eq!((outcome.outcome, outcome.detail), (Code::Miscompare, 77));
        rig.release(buffer);
    }
}

#[test]
fn a_full_ring_takes_no_operation_but_can_still_cancel() {
    for seed in modes() {
        let mut rig = Rig::new(Plan { seed, ..Plan::default() });
        let buffer = rig.claim(Placement::HostDram, 512);
        for slot in 0..7 {
            rig.read(slot, slot, 1, &buffer).unwrap();
        }
        assert_eq!(rig.read(7, 0, 1, &buffer), Err(NoRoom));
        rig.settle();
        rig.agent.take(9);
        assert_eq!(rig.agent.started.len(), 7);
        assert!(rig.ring.cancel(3));
        rig.settle();
        rig.agent.take(9);
        rig.settle();
        assert_eq!(rig.ring.fault(), None);
        let ended: Vec<_> = rig.outcomes().iter().map(|one| (one.token, one.outcome)).collect();
        assert_eq!(ended, [(3, Code::Cancelled)]);
        rig.read(7, 0, 1, &buffer).unwrap();
        assert_eq!(rig.read(8, 0, 1, &buffer), Err(NoRoom));
        rig.settle();
        rig.agent.serve();
        rig.settle();
        assert_eq!(rig.outcomes().len(), 7);
        rig.release(buffer);
    }
}

#[test]
fn a_cancel_before_publish_withdraws_and_the_others_go_on_unharmed() {
    for seed in modes() {
        for victim in 0..4_u64 {
            let mut rig = Rig::new(Plan { seed, start: 6, ..Plan::default() });
            let forward = BlockRequest::Forward { data_out: false };
            for slot in 0..4 {
                rig.submit(token(slot, 1), forward, None, 0, &[slot as u8 + 1; 16]).unwrap();
            }
            assert!(rig.ring.cancel(token(victim, 1)));
            assert!(!rig.ring.cancel(token(victim, 1)), "it is over");
            let ended = rig.outcomes();
            assert_eq!((ended[0].token, ended[0].outcome), (token(victim, 1), Code::Cancelled));
            let mut left: Vec<_> = (0..4).filter(|&slot| slot != victim).collect();
            for _ in 0..500 {
                rig.tick();
                rig.agent.serve();
                for outcome in rig.outcomes() {
                    let slot = outcome.token & 0xff;
                    assert_eq!(rig.ring.sense(outcome.token), [slot as u8 + 1; 16]);
                    left.retain(|&one| one != slot);
                }
            }
            assert_eq!(rig.ring.fault(), None);
            assert!(left.is_empty(), "seed {seed:?}: {left:?} never ended");
            assert_eq!(rig.ring.statistics().cancels, 0, "nothing was sent");
            assert_eq!(rig.ring.statistics().withdrawn, 1);
        }
    }
}

#[test]
fn a_cancel_after_publish_ends_the_operation_or_comes_too_late() {
    for seed in modes() {
        let mut rig = Rig::new(Plan { seed, ..Plan::default() });
        let buffer = rig.claim(Placement::CardDram, 512);
        for slot in 0..2 {
            rig.write(slot, slot, 1, &buffer).unwrap();
        }
        rig.settle();
        assert_eq!(rig.agent.take(9), 2);
        assert!(!rig.ring.cancel(token(0, 9)), "another life of the slot");
        assert!(!rig.ring.cancel(17));
        assert!(rig.ring.cancel(0) && rig.ring.cancel(1));
        assert!(!rig.ring.cancel(1), "cancelled before");
        rig.agent.finish(0);
        for _ in 0..20 {
            rig.settle();
            rig.agent.take(9);
        }
        let mut ended: Vec<_> = rig.outcomes().iter().map(|one| (one.token, one.outcome)).collect();
        ended.sort_unstable_by_key(|one| one.0);
        assert_eq!(ended, [(0, Code::Done), (1, Code::Cancelled)]);
        assert_eq!(rig.ring.in_flight().count(), 0, "the CANCELs are answered as well");
        assert_eq!(rig.ring.staged_bytes(), 0);
        rig.release(buffer);
    }
}

#[test]
fn many_cancels_share_the_few_slots_kept_for_them() {
    for seed in modes() {
        let mut rig = Rig::new(Plan { seed, slots: 32, ..Plan::default() });
        let buffer = rig.claim(Placement::HostDram, 512);
        for slot in 0..28 {
            rig.read(slot, slot, 1, &buffer).unwrap();
        }
        rig.settle();
        rig.agent.take(99);
        for slot in 0..28 {
            assert!(rig.ring.cancel(slot));
        }
        let mut ended = Vec::new();
        for _ in 0..400 {
            rig.tick();
            assert_eq!(rig.ring.fault(), None);
            rig.agent.take(2);
            ended.extend(rig.outcomes());
        }
        assert_eq!(ended.len(), 28, "seed {seed:?}");
        assert!(ended.iter().all(|one| one.outcome == Code::Cancelled));
        rig.release(buffer);
    }
}

#[test]
fn with_every_hint_lost_everything_still_ends() {
    for seed in modes() {
        let mut rig = Rig::new(Plan { seed, hints_lost_per_mille: 1000, ..Plan::default() });
        let buffer = rig.claim(Placement::HostDram, 512);
        for turn in 0..20 {
            rig.read(token(0, turn), turn, 1, &buffer).unwrap();
            assert_eq!(rig.run(token(0, turn)).outcome, Code::Done);
        }
        assert!(!rig.to_host.drain());
        rig.release(buffer);
    }
}

#[test]
fn card_buffers_wait_for_staging_and_never_hold_more_than_their_share() {
    let mut rig = Rig::new(Plan { staging_bytes_max: 1024, ..Plan::default() });
    let buffer = rig.claim(Placement::CardDram, 512);
    let direct = rig.claim(Placement::HostDram, 512);
    rig.read(0, 0, 1, &buffer).unwrap();
    rig.read(1, 0, 1, &buffer).unwrap();
    assert_eq!(rig.ring.staged_bytes(), 1024);
    assert_eq!(rig.read(2, 0, 1, &buffer), Err(NoRoom));
    rig.read(2, 0, 1, &direct).unwrap();
    rig.run(2);
    rig.settle();
    assert_eq!(rig.ring.staged_bytes(), 0);
    rig.read(2, 0, 1, &buffer).unwrap();
    rig.release(buffer);
    rig.release(direct);
}

#[test]
fn a_narrow_dma_engine_is_slow_and_correct() {
    for seed in modes() {
        let mut rig = Rig::new(Plan { seed, dma_capacity: 3, ..Plan::default() });
        let buffers: Vec<_> = (0..7).map(|_| rig.claim(Placement::CardDram, 512)).collect();
        for turn in 0..6 {
            for (slot, buffer) in buffers.iter().enumerate() {
                rig.fetch_data_out(buffer, &[slot as u8 + turn + 1; 512]);
                rig.write(token(slot as u64, turn.into()), slot as u64, 1, buffer).unwrap();
            }
            let mut ended = 0;
            for _ in 0..2000 {
                rig.tick();
                assert_eq!(rig.ring.fault(), None);
                rig.agent.serve();
                ended += rig.outcomes().len();
                if ended == 7 {
                    break;
                }
            }
            assert_eq!(ended, 7, "seed {seed:?}");
            for slot in 0..7 {
                assert_eq!(rig.agent.disk[slot * 512], slot as u8 + turn + 1);
            }
            // The last round has given its slots back.
            rig.settle();
        }
    }
}

/// What a hostile host does to a ring with one published READ (token 0x1_0000_0001, 512 bytes), and
/// the fault it must bring.
type Hostility = (&'static str, fn(&mut Rig), fn(&RingFault) -> bool);

fn inject(rig: &mut Rig, edit: fn(&mut CompletionEntry)) {
    let mut entry = CompletionEntry::new(token(1, 1), Code::Done);
    entry.set_sequence(rig.agent.completions.cursor().next());
    edit(&mut entry);
    let layout = rig.setup.layout;
    let at = rig.setup.completion_offset + layout.entry_offset(0);
    assert!(rig.agent.memory.write(at, entry.as_bytes()));
    publish(rig, 1);
}

fn publish(rig: &mut Rig, word: u32) {
    let at = rig.setup.completion_offset + rig.setup.layout.published_offset();
    rig.agent.memory.atomic_u32(at).unwrap().store(word, std::sync::atomic::Ordering::Release);
}

const HOSTILITIES: &[Hostility] = &[
    ("more completions than slots", |rig| publish(rig, 9), |f| matches!(f, RingFault::Cursor(_))),
    ("published backwards", |rig| publish(rig, u32::MAX), |f| matches!(f, RingFault::Cursor(_))),
    (
        "wrong sequence",
        |rig| inject(rig, |entry| entry.set_sequence(8)),
        |f| matches!(f, RingFault::Cursor(_)),
    ),
    (
        "token beyond the table",
        |rig| inject(rig, |entry| entry.token.set(token(64, 1))),
        |f| matches!(f, RingFault::Token { .. }),
    ),
    (
        "token of another life",
        |rig| inject(rig, |entry| entry.token.set(token(1, 2))),
        |f| matches!(f, RingFault::Token { .. }),
    ),
    (
        "token of a CANCEL that was not sent",
        |rig| inject(rig, |entry| entry.token.set(1 << 31)),
        |f| matches!(f, RingFault::Token { .. }),
    ),
    (
        "token of a CANCEL that cannot be",
        |rig| inject(rig, |entry| entry.token.set(u64::MAX)),
        |f| matches!(f, RingFault::Token { .. }),
    ),
    (
        "unknown outcome",
        |rig| inject(rig, |entry| entry.outcome = 200),
        |f| matches!(f, RingFault::Entry(_)),
    ),
    (
        "cleared memory as outcome",
        |rig| inject(rig, |entry| entry.outcome = 0),
        |f| matches!(f, RingFault::Entry(_)),
    ),
    (
        "too late, but not a CANCEL",
        |rig| inject(rig, |entry| entry.outcome = Code::TooLate.code()),
        |f| matches!(f, RingFault::Outcome { .. }),
    ),
    (
        "forwarded, but a READ",
        |rig| inject(rig, |entry| entry.outcome = Code::Forwarded.code()),
        |f| matches!(f, RingFault::Outcome { .. }),
    ),
    (
        "more bytes than asked for",
        |rig| inject(rig, |entry| entry.transferred_bytes.set(513)),
        |f| matches!(f, RingFault::Transferred { found: 513, asked: 512, .. }),
    ),
    (
        "sense for a READ",
        |rig| inject(rig, |entry| entry.sense_bytes.set(18)),
        |f| matches!(f, RingFault::Sense { .. }),
    ),
    (
        "more sense than there can be",
        |rig| inject(rig, |entry| entry.sense_bytes.set(253)),
        |f| matches!(f, RingFault::Entry(_)),
    ),
    (
        "reserved bytes",
        |rig| inject(rig, |entry| entry.reserved[31] = 1),
        |f| matches!(f, RingFault::Entry(_)),
    ),
    (
        "the arena revoked",
        |rig| assert!(rig.slot.revoke(rig::ARENA)),
        |f| matches!(f, RingFault::Dma(DmaError::Protection)),
    ),
];

#[test]
fn a_hostile_host_costs_itself_the_ring_and_nothing_else() {
    for seed in [None, Some(3), Some(4)] {
        for (name, attack, expected) in HOSTILITIES {
            let mut rig = Rig::new(Plan { seed, ..Plan::default() });
            let buffer = rig.claim(Placement::CardDram, 512);
            rig.read(token(1, 1), 0, 1, &buffer).unwrap();
            rig.settle();
            attack(&mut rig);
            for _ in 0..100 {
                rig.tick();
                if rig.ring.fault().is_some() {
                    break;
                }
            }
            let fault = rig.ring.fault().unwrap_or_else(|| panic!("{name}: not noticed"));
            assert!(expected(&fault), "{name}: {fault:?}");
            assert!(fault.to_string().len() > 20, "{name}: {fault}");
            assert_eq!(rig.read(5, 0, 1, &buffer), Err(NoRoom), "{name}");
            assert!(!rig.ring.is_attached());
            rig.settle();
            assert!(rig.outcomes().is_empty(), "{name}: nothing of a lie is believed");
            let lost = rig.ring.reset();
            assert!(lost.contains(&token(1, 1)), "{name}");
            assert_eq!(rig.ring.outstanding(), 0);
            rig.release(buffer);
        }
    }
}

#[test]
fn a_completion_guessed_before_its_operation_was_published_is_a_fault() {
    let mut noticed = 0;
    for seed in 0..300 {
        let mut rig = Rig::new(Plan { seed: Some(seed), ..Plan::default() });
        let buffer = rig.claim(Placement::HostDram, 512);
        rig.read(token(1, 1), 0, 1, &buffer).unwrap();
        rig.settle();
        inject(&mut rig, |entry| entry.token.set(2));
        rig.read(2, 0, 1, &buffer).unwrap();
        rig.settle();
        match rig.ring.fault() {
            Some(fault) => {
                assert_eq!(fault, RingFault::Token { token: 2 });
                assert!(rig.outcomes().is_empty());
                noticed += 1;
            }
            // The card looked after it had published: no guess any more.
            None => assert_eq!(rig.outcomes(), [Outcome::done(2)]),
        }
        rig.release(buffer);
    }
    assert!(noticed > 10, "{noticed} of 300 seeds");
}

#[test]
fn a_second_completion_of_one_operation_is_a_fault() {
    for seed in modes() {
        let mut rig = Rig::new(Plan { seed, ..Plan::default() });
        let buffer = rig.claim(Placement::HostDram, 512);
        rig.read(1, 0, 1, &buffer).unwrap();
        rig.settle();
        rig.agent.serve();
        rig.agent.complete(CompletionEntry::new(1, Code::Done), None);
        rig.settle();
        if rig.ring.fault().is_none() {
            // The second came after the round; it is looked at when something is outstanding.
            rig.read(2, 0, 1, &buffer).unwrap();
            rig.settle();
        }
        assert_eq!(rig.ring.fault(), Some(RingFault::Token { token: 1 }));
        assert_eq!(rig.outcomes().iter().map(|one| one.token).collect::<Vec<_>>(), [1]);
        rig.release(buffer);
    }
}

#[test]
fn a_consumed_word_that_cannot_be_is_a_fault() {
    for word in [u32::MAX, 8] {
        let mut rig = Rig::new(Plan::default());
        let buffer = rig.claim(Placement::HostDram, 512);
        for slot in 0..7 {
            rig.read(slot, 0, 1, &buffer).unwrap();
        }
        let at = rig.setup.submission_offset + rig.setup.layout.consumed_offset();
        rig.agent.memory.atomic_u32(at).unwrap().store(word, std::sync::atomic::Ordering::Release);
        rig.settle();
        assert!(matches!(rig.ring.fault(), Some(RingFault::Cursor(_))));
        rig.release(buffer);
    }
}

#[test]
fn a_host_that_does_not_consume_gets_nothing_written_over() {
    let mut rig = Rig::new(Plan::default());
    let buffer = rig.claim(Placement::HostDram, 512);
    for slot in 0..4 {
        rig.read(slot, slot, 1, &buffer).unwrap();
    }
    rig.settle();
    // The host pops and completes, but does not release its slots.
    for slot in 0..4 {
        let entry = rig.agent.submissions.pop().unwrap().unwrap();
        rig.agent.complete(CompletionEntry::new(entry.token.get(), Code::Done), None);
        assert_eq!(entry.token.get(), slot);
    }
    rig.settle();
    assert_eq!(rig.outcomes().len(), 4);
    for slot in 4..8 {
        rig.read(slot, slot, 1, &buffer).unwrap();
    }
    assert_eq!(rig.read(8, 0, 1, &buffer), Err(NoRoom), "eight slots are in use");
    rig.settle();
    assert_eq!(rig.read(8, 0, 1, &buffer), Err(NoRoom));
    rig.agent.submissions.release();
    rig.settle();
    rig.read(8, 0, 1, &buffer).unwrap();
    rig.release(buffer);
}

#[test]
fn operations_survive_an_agent_that_goes_and_comes_back() {
    for seed in modes() {
        let mut rig = Rig::new(Plan { seed, ..Plan::default() });
        let buffers: Vec<_> = (0..4).map(|_| rig.claim(Placement::CardDram, 512)).collect();
        for (slot, buffer) in buffers.iter().enumerate() {
            rig.fetch_data_out(buffer, &[slot as u8 + 1; 512]);
            rig.write(slot as u64, slot as u64, 1, buffer).unwrap();
        }
        rig.settle();
        // 0 is done, 1 was started and is unknown, 2 and 3 are still in the submission ring.
        rig.agent.take(2);
        rig.agent.finish(0);
        rig.ring.detach();
        rig.agent.started.clear();
        rig.settle();
        assert_eq!(rig.read(9, 0, 1, &buffers[0]), Err(NoRoom));
        // A look at the completion ring that was under way may still have brought 0.
        let outcome = |one: &Outcome| (one.token, one.outcome);
        let mut ended: Vec<_> = rig.outcomes().iter().map(outcome).collect();
        let mut in_flight: Vec<_> = rig.ring.in_flight().collect();
        in_flight.sort_unstable();
        assert_eq!(in_flight, [(0, 0), (1, 1), (2, 2), (3, 3)][ended.len()..]);
        // Reconciliation: the new agent answers what it does not know.
        rig.agent.complete(CompletionEntry::new(1, Code::Lost), None);
        rig.ring.attach();
        for _ in 0..300 {
            rig.tick();
            rig.agent.serve();
            ended.extend(rig.outcomes().iter().map(outcome));
        }
        ended.sort_unstable_by_key(|one| one.0);
        let done = Code::Done;
        assert_eq!(ended, [(0, done), (1, Code::Lost), (2, done), (3, done)]);
        assert_eq!(rig.ring.fault(), None);
        assert_eq!([0, 512, 1024, 1536].map(|at| rig.agent.disk[at]), [1, 0, 3, 4]);
        rig.read(9, 0, 1, &buffers[0]).unwrap();
        assert_eq!(rig.run(9).outcome, done);
    }
}

/// Puts the way back that was cut, as the poll group does it.
fn mend(rig: &mut Rig) {
    rig.ring.drain();
    rig.slot.mend();
    rig.ring.restore();
}

#[test]
fn a_cut_way_loses_nothing_wherever_it_is_cut() {
    let mut noticed = 0;
    for seed in modes() {
        for (cut, again) in (1..24).flat_map(|cut| [(cut, None), (cut, Some(cut + 2))]) {
            let mut rig = Rig::new(Plan { seed, dma_capacity: 6, ..Plan::default() });
            let buffers: Vec<_> = (0..6).map(|slot| rig.claim(PLACEMENTS[slot % 2], 512)).collect();
            for (slot, buffer) in buffers.iter().enumerate().take(2) {
                rig.agent.disk[slot * BLOCK_BYTES..][..BLOCK_BYTES].fill(slot as u8 + 1);
                rig.read(slot as u64, slot as u64, 1, buffer).unwrap();
            }
            for (slot, buffer) in buffers.iter().enumerate().take(4).skip(2) {
                rig.fetch_data_out(buffer, &[slot as u8 + 1; BLOCK_BYTES]);
                rig.write(slot as u64, slot as u64, 1, buffer).unwrap();
            }
            let forward = BlockRequest::Forward { data_out: false };
            rig.submit(4, forward, None, 0, &[9; 20]).unwrap();
            rig.unmap(5, &[BlockRange::new(9, 1)]).unwrap();
            let mut ended = Vec::new();
            for turn in 1..400 {
                if turn == cut || Some(turn) == again {
                    rig.slot.cut();
                }
                rig.tick();
                rig.agent.serve();
                for outcome in rig.outcomes() {
                    if outcome.token == 4 {
                        let sense = rig.ring.sense(4);
                        assert!(
                            !sense.is_empty() && sense.iter().all(|byte| *byte == 9),
                            "{sense:?}"
                        );
                    }
                    ended.push(outcome.token);
                }
                if turn > cut && rig.slot.is_gone() {
                    noticed += u32::from(rig.ring.is_cut());
                    mend(&mut rig);
                }
            }
            assert_eq!(rig.ring.fault(), None, "seed {seed:?}, cut at {cut}, {again:?}");
            ended.sort_unstable();
            assert_eq!(ended, [0, 1, 2, 3, 4, 5], "each exactly once; cut at {cut}, {again:?}");
            for (slot, buffer) in buffers.iter().enumerate().take(2) {
                assert_eq!(rig.data_in(buffer, 512), [slot as u8 + 1; 512]);
            }
            for slot in 2..4 {
                assert_eq!(rig.agent.disk[slot * BLOCK_BYTES..][..512], [slot as u8 + 1; 512]);
            }
        }
    }
    assert!(noticed > 200, "the way was cut under work: {noticed}");
}

#[test]
fn a_host_that_is_gone_is_waited_for() {
    let mut rig = Rig::new(Plan::default());
    let buffer = rig.claim(Placement::CardDram, 512);
    rig.read(1, 0, 1, &buffer).unwrap();
    rig.settle();
    rig.slot.surprise_removal();
    rig.settle();
    assert!(rig.ring.is_cut() && !rig.ring.is_attached());
    assert_eq!(rig.read(2, 0, 1, &buffer), Err(NoRoom));
    assert!(rig.outcomes().is_empty());
    assert_eq!(rig.ring.reset(), [1], "another host's memory: nobody knows what became of it");
}

#[test]
fn a_reset_loses_what_is_in_flight_and_leaves_no_dma_behind() {
    for seed in modes() {
        for ticks in 0..12 {
            let mut rig = Rig::new(Plan { seed, ..Plan::default() });
            let buffer = rig.claim(Placement::CardDram, 512);
            for slot in 0..5 {
                rig.read(token(slot, 3), slot, 1, &buffer).unwrap();
            }
            for _ in 0..ticks {
                rig.tick();
                rig.agent.serve();
            }
            let ended: Vec<_> = rig.outcomes().iter().map(|one| one.token).collect();
            let mut all = [ended, rig.ring.reset()].concat();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3, 4].map(|slot| token(slot, 3)), "each exactly once");
            assert_eq!(rig.ring.outstanding(), 0);
            assert_eq!(rig.ring.in_flight().count(), 0);
            assert!(!rig.tick() && rig.outcomes().is_empty());
            let dma = rig.ring.into_dma();
            let again = RingBackend::<rig::DmaOnly>::new(&mut rig.memory, dma, rig.setup, 8);
            assert!(again.is_ok(), "the context serves another ring");
        }
    }
}

#[test]
fn a_ring_that_cannot_be_is_refused_with_the_dma_context_back() {
    let Rig { mut memory, mut ring, setup, .. } = Rig::new(Plan::default());
    ring.reset();
    let dma = ring.into_dma();
    let mut refuse = |dma, setup| match RingBackend::<rig::DmaOnly>::new(&mut memory, dma, setup, 8)
    {
        Ok(_) => panic!("accepted {setup:?}"),
        Err((dma, error)) => {
            assert!(!error.to_string().is_empty());
            (dma, error)
        }
    };
    let mut small = setup;
    small.layout = RingLayout::new(2).unwrap();
    let (dma, error) = refuse(dma, small);
    assert_eq!(error, SetupError::TooFewSlots { slots: 2 });
    let mut crooked = setup;
    crooked.completion_offset += ENTRY_BYTES as u64 / 2;
    let (dma, error) = refuse(dma, crooked);
    assert!(matches!(error, SetupError::Unaligned { .. }));
    let mut far = setup;
    far.submission_offset = u64::MAX - 63;
    let (dma, error) = refuse(dma, far);
    assert_eq!(error, SetupError::OutOfRange);
    let mut large = setup;
    large.layout = RingLayout::new(RingLayout::SLOTS_MAX).unwrap();
    let (_, error) = refuse(dma, large);
    assert!(matches!(error, SetupError::Memory(_)), "beyond the card's budget");
}

#[test]
fn the_card_may_sleep_only_when_nothing_is_left_to_do() {
    let mut rig = Rig::new(Plan::default());
    assert!(rig.ring.arm());
    rig.submit(0, BlockRequest::Flush { lba: 0, blocks: 0 }, None, 0, &[]).unwrap();
    assert!(!rig.ring.arm(), "something is queued");
    rig.tick();
    assert!(rig.ring.arm(), "it is the host's turn");
    rig.agent.serve();
    rig.to_card.signal();
    assert!(!rig.ring.arm(), "a hint");
    rig.tick();
    assert!(!rig.ring.arm(), "an outcome waits");
    assert_eq!(rig.outcomes(), [Outcome::done(0)]);
    assert!(rig.ring.arm());
    assert!(rig.ring.event_fd().is_some());
}

/// The publish word must not be seen before what it publishes: checked from the host's side at every
/// step of the adversary, without serving.
#[test]
fn nothing_is_published_before_it_is_complete() {
    for seed in 0..60 {
        let mut rig = Rig::new(Plan { seed: Some(seed), ..Plan::default() });
        let buffers: Vec<_> = (0..6).map(|at| rig.claim(PLACEMENTS[at % 2], 4096)).collect();
        for (slot, buffer) in buffers.iter().enumerate() {
            rig.fetch_data_out(buffer, &[slot as u8 + 1; 4096]);
            rig.write(slot as u64, slot as u64 * 8, 8, buffer).unwrap();
        }
        let window = lunar_pcie::RingWindow::new(&rig.agent.memory, 0, rig.setup.layout).unwrap();
        let mut steps = 0;
        while window.load_acquire(rig.setup.layout.published_offset()) == 0 {
            rig.tick();
            steps += 1;
            assert!(steps < 1000);
        }
        rig.agent.serve();
        for slot in 0..6 {
            let at = slot * 4096;
            assert_eq!(rig.agent.disk[at..at + 4096], [slot as u8 + 1; 4096], "seed {seed}");
        }
    }
}

#[cfg(feature = "mutants")]
#[test]
fn the_skipped_flush_would_be_noticed() {
    let mut corrupted = 0;
    for seed in 0..20 {
        let mut rig = Rig::new(Plan { seed: Some(seed), ..Plan::default() });
        rig.ring.set_mutation(lunar_backend::ring::Mutation::FlushSkipped);
        let buffer = rig.claim(Placement::HostDram, 4096);
        rig.fetch_data_out(&buffer, &[1; 4096]);
        rig.write(1, 0, 8, &buffer).unwrap();
        rig.run(1);
        corrupted += u32::from(rig.agent.disk[..4096] != [1; 4096]);
        rig.release(buffer);
    }
    assert!(corrupted > 15, "{corrupted} of 20 seeds");
}
