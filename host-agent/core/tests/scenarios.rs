//! The core's behaviour, one scenario each.

mod model;

use lunar_core::{LinkState, OperationId, RingState};
use lunar_handlers::memory_disk::{Medium, MemoryDisk};
use lunar_handlers::{BlockDevice, CancelAnswer, Outcome as Handler, Request};
use lunar_offload_proto::control::{
    ConfigurationApplied, Fate, Goodbye, HelloRefused, to_card, to_host,
};
use lunar_offload_proto::cursor::RingMemory;
use lunar_offload_proto::ring::{
    FLAG_FUA, FLAG_SIDE, Operation, Outcome, SideRecord, SubmissionEntry,
};
use model::{Bench, SECOND, SLOTS, block_range, configuration, login, logout, read, unit, write};

#[test]
fn a_read_goes_to_its_handler_and_back() {
    let mut bench = Bench::serving();
    bench.submit_and_poll(read(11));
    let [(_, request, data)] = bench.executing.as_slice() else {
        panic!("{:?}", bench.executing);
    };
    assert_eq!(*request, Request::Read { lba: 16, blocks: 8 });
    assert_eq!(*data, Some(block_range()));
    assert_eq!(bench.core.outstanding(0), 1);
    bench.end(Handler::Done);
    assert_eq!(bench.completions(0), [(11, Outcome::Done)]);
    assert_eq!(bench.core.outstanding(0), 0);
}

#[test]
fn a_write_keeps_its_fua_and_a_flush_has_no_data() {
    let mut bench = Bench::serving();
    let mut durable = write(1);
    durable.flags = FLAG_FUA;
    bench.submit_and_poll(durable);
    let mut flush = SubmissionEntry { operation: Operation::Flush.code(), ..write(2) };
    flush.data_bytes.set(0);
    bench.submit_and_poll(flush);
    let requests: Vec<_> = bench.executing.iter().map(|(_, request, _)| *request).collect();
    assert_eq!(requests, [Request::Write { lba: 16, blocks: 8, fua: true }, Request::Flush]);
    assert_eq!(bench.executing[1].2, None);
}

#[test]
fn data_goes_between_the_medium_and_the_range_that_the_card_named() {
    let medium = Medium::new(512, 1000);
    let mut disk = MemoryDisk::new(medium.clone(), 3, 1);
    let mut bench = Bench::serving();
    let range = block_range();
    assert!(bench.arena.write(range.offset, &[0x6d; 4096]));
    for entry in [write(1), read(2)] {
        bench.submit_and_poll(entry);
        let (operation, request, data) = bench.executing[0];
        let window = data.and_then(|data| bench.arena.window(data.offset, data.length));
        disk.submit(operation.to_request_id(), request, window);
        let mut ended = Vec::new();
        while ended.is_empty() {
            disk.poll(&mut ended);
        }
        assert_eq!(OperationId::from_request_id(ended[0].0), operation);
        bench.end(ended[0].1);
        // The read must bring back what the write took, not what was left in the range.
        let mut stored = [0; 4096];
        assert!(medium.peek(16 * 512, &mut stored));
        assert_eq!(stored, [0x6d; 4096]);
        if entry.token.get() == 1 {
            assert!(bench.arena.write(range.offset, &[0; 4096]));
        }
    }
    assert_eq!(bench.completions(0), [(1, Outcome::Done), (2, Outcome::Done)]);
    let mut landed = [0; 4096];
    assert!(bench.arena.read(range.offset, &mut landed));
    assert_eq!(landed, [0x6d; 4096]);
}

#[test]
fn a_handler_error_is_completed_with_its_lba_and_logged() {
    let mut bench = Bench::serving();
    let mut seen = Vec::new();
    for outcome in [
        Handler::ReadError { lba: 17 },
        Handler::WriteError { lba: 18 },
        Handler::WriteProtected,
        Handler::NoSpace,
        Handler::OutOfRange,
        Handler::HardwareError,
    ] {
        bench.submit_and_poll(read(1));
        bench.end(outcome);
        seen.extend(bench.completions(0).into_iter().map(|(_, outcome)| outcome));
    }
    let wanted = [
        Outcome::MediumReadError,
        Outcome::MediumWriteError,
        Outcome::WriteProtected,
        Outcome::NoSpace,
        Outcome::OutOfRange,
        Outcome::HardwareError,
    ];
    assert_eq!(seen, wanted);
    let errors: Vec<_> = bench.log.iter().filter(|line| line.starts_with("io-error")).collect();
    assert_eq!(errors.len(), 6);
    assert!(errors[0].contains("device disk") && errors[0].contains("LBA 17"), "{}", errors[0]);
    assert_eq!(bench.core.ring_counters(0).expect("ring").errors, 6);
}

#[test]
fn a_forwarded_command_gets_invalid_command_operation_code_sense() {
    let mut bench = Bench::serving();
    let mut side = SideRecord::empty();
    side.set_cdb(&[0xc0, 0, 0, 0, 0, 0, 0, 0, 8, 0]).expect("fits");
    let mut entry = read(5);
    entry.operation = Operation::Forward.code();
    entry.flags = FLAG_SIDE;
    bench.submit(0, entry, Some(&side));
    bench.poll();
    let card = &mut bench.card[0];
    let completion = card.completions.pop().expect("sound").expect("completed");
    assert_eq!((completion.outcome(), completion.status), (Outcome::Forwarded, 2));
    let mut answer = SideRecord::empty();
    card.completions.read_side(completion.sequence.get(), &mut answer);
    let sense = answer.sense().expect("sense");
    assert_eq!(usize::from(completion.sense_bytes.get()), sense.len());
    // SPC-6 4.4.3: fixed format, ILLEGAL REQUEST, 20h/00h.
    assert_eq!((sense[0] & 0x7f, sense[2], sense[12], sense[13]), (0x70, 5, 0x20, 0));
}

#[test]
fn entries_of_a_generation_not_seen_are_parked_in_order_and_released() {
    let mut bench = Bench::serving();
    let mut early = read(1);
    early.configuration_generation.set(2);
    bench.submit_and_poll(early);
    let mut stranger = read(2);
    stranger.nexus.set(99);
    bench.submit_and_poll(stranger);
    assert!(bench.executing.is_empty());
    assert_eq!(bench.core.outstanding(0), 2);

    bench.core.set_configuration(configuration(), 0).expect("configuration");
    bench.settle();
    assert_eq!(bench.executing.len(), 1, "the configuration generation was seen");
    let mut event = login(1);
    event.nexus = 99;
    bench.control(to_host::Message::NexusEvent(event));
    assert_eq!(bench.executing.len(), 2, "the login was seen");
    bench.end(Handler::Done);
    bench.end(Handler::Done);
    assert_eq!(bench.completions(0), [(1, Outcome::Done), (2, Outcome::Done)]);
}

#[test]
fn a_parked_entry_does_not_wait_for_ever() {
    let mut bench = Bench::serving();
    let mut early = read(1);
    early.nexus_generation.set(2);
    bench.submit_and_poll(early);
    assert!(bench.core.next_deadline().is_some());
    // Heartbeats keep the channel up meanwhile.
    for second in 1..=30 {
        bench.control(to_host::Message::Heartbeat(Default::default()));
        bench.tick(second * SECOND);
    }
    assert_eq!(bench.completions(0), [(1, Outcome::Unavailable)]);
    assert_eq!(bench.core.outstanding(0), 0);
}

#[test]
fn an_entry_of_an_older_life_of_a_nexus_is_refused() {
    let mut bench = Bench::serving();
    bench.control(to_host::Message::NexusEvent(logout(1)));
    assert_eq!(bench.core.nexuses().count(), 0);
    bench.login(2);
    assert_eq!(bench.core.nexuses().map(|nexus| nexus.generation).collect::<Vec<_>>(), [2]);
    bench.submit_and_poll(read(1));
    assert_eq!(bench.completions(0), [(1, Outcome::Refused)]);
}

#[test]
fn cancel_of_a_parked_entry_means_that_it_never_started() {
    let mut bench = Bench::serving();
    let mut early = write(1);
    early.nexus_generation.set(2);
    bench.submit_and_poll(early);
    bench.submit_and_poll(SubmissionEntry::cancel(2, 1));
    assert_eq!(bench.completions(0), [(1, Outcome::Cancelled), (2, Outcome::Done)]);
    bench.login(2);
    assert!(bench.executing.is_empty(), "it ran after it was cancelled");
}

#[test]
fn cancel_at_a_handler_answers_what_the_handler_says() {
    for (answer, outcome, of_write, of_cancel) in [
        (CancelAnswer::Cancelled, Handler::Cancelled, Outcome::Cancelled, Outcome::Done),
        (CancelAnswer::TooLate, Handler::Done, Outcome::Done, Outcome::TooLate),
    ] {
        let mut bench = Bench::serving();
        bench.submit_and_poll(write(1));
        bench.submit_and_poll(SubmissionEntry::cancel(2, 1));
        assert_eq!(bench.core.outstanding(0), 2);
        assert_eq!(bench.cancels.len(), 1);
        bench.answer_cancel(answer);
        assert_eq!(bench.completions(0), [(2, of_cancel)]);
        bench.end(outcome);
        assert_eq!(bench.completions(0), [(1, of_write)]);
        assert_eq!(bench.core.outstanding(0), 0);
    }
}

#[test]
fn cancel_whose_operation_ends_first_is_still_answered() {
    let mut bench = Bench::serving();
    bench.submit_and_poll(write(1));
    bench.submit_and_poll(SubmissionEntry::cancel(2, 1));
    bench.submit_and_poll(SubmissionEntry::cancel(3, 1));
    assert_eq!(bench.cancels.len(), 1, "the handler is asked once");
    bench.end(Handler::Done);
    bench.answer_cancel(CancelAnswer::TooLate);
    let wanted = [(1, Outcome::Done), (2, Outcome::TooLate), (3, Outcome::TooLate)];
    assert_eq!(bench.completions(0), wanted);
}

#[test]
fn cancel_of_what_is_not_there_is_too_late() {
    let mut bench = Bench::serving();
    bench.submit_and_poll(SubmissionEntry::cancel(2, 1));
    assert_eq!(bench.completions(0), [(2, Outcome::TooLate)]);
}

/// Makes an entry a bad one.
type Change = fn(&mut SubmissionEntry);

/// Entries that cost the sender its ring.
fn hostile() -> Vec<(&'static str, SubmissionEntry)> {
    let with = |change: Change| {
        let mut entry = write(1);
        change(&mut entry);
        entry
    };
    vec![
        ("an arena of others", with(|entry| entry.arena.set(2))),
        ("data before its data area", with(|entry| entry.data_offset.set(0))),
        (
            "data in the next ring's area",
            with(|entry| {
                entry.data_offset.set(block_range().offset + model::DATA_BYTES);
            }),
        ),
        (
            "data across the end",
            with(|entry| {
                entry.data_offset.set(block_range().offset - 8192 + model::DATA_BYTES - 512);
            }),
        ),
        ("an offset that wraps", with(|entry| entry.data_offset.set(u64::MAX - 100))),
        ("less data than blocks", with(|entry| entry.data_bytes.set(512))),
        ("blocks without data", with(|entry| entry.data_bytes.set(0))),
    ]
}

#[test]
fn a_hostile_entry_closes_its_ring_with_a_reason_and_no_other() {
    for (what, entry) in hostile() {
        let mut bench = Bench::serving();
        bench.submit_and_poll(read(50));
        bench.submit_and_poll(entry);
        assert!(matches!(bench.core.ring_state(0), Some(RingState::Closed { .. })), "{what}");
        assert_eq!(bench.closed.len(), 1, "{what}");
        assert!(bench.log.iter().any(|line| line.starts_with("ring-fault")), "{what}");
        assert_eq!(bench.core.ring_counters(0).expect("ring").faults, 1);
        assert_eq!(bench.executing.len(), 1, "{what} reached a handler");
        // What was under way ends without a completion, and nothing more is taken.
        bench.end(Handler::Done);
        assert_eq!(bench.completions(0), []);
        bench.submit(0, read(51), None);
        assert_eq!(bench.poll(), 0);

        let mut other = read(60);
        other.data_offset.set(block_range().offset + model::DATA_BYTES);
        bench.submit(1, other, None);
        bench.poll();
        bench.end(Handler::Done);
        assert_eq!(bench.completions(1), [(60, Outcome::Done)], "{what}: the other ring");
        assert_eq!(bench.core.link_state(), LinkState::Ready);
    }
}

#[test]
fn what_cannot_be_carried_out_is_answered_and_the_ring_goes_on() {
    let mut bench = Bench::serving();
    let cases: [(Change, Outcome); 9] = [
        (|entry| entry.unit.set(8), Outcome::Refused),
        (|entry| entry.operation = 200, Outcome::Refused),
        (|entry| entry.operation = 0, Outcome::Refused),
        (|entry| entry.flags = 0x80, Outcome::Refused),
        (|entry| entry.reserved = [1; 8], Outcome::Refused),
        (|entry| entry.operation = Operation::Unmap.code(), Outcome::Refused),
        (|entry| entry.lba.set(993), Outcome::OutOfRange),
        (|entry| entry.lba.set(u64::MAX), Outcome::OutOfRange),
        (|entry| entry.operation = Operation::Forward.code(), Outcome::Refused),
    ];
    for (change, outcome) in cases {
        let mut entry = write(1);
        change(&mut entry);
        bench.submit_and_poll(entry);
        assert_eq!(bench.completions(0), [(1, outcome)]);
    }
    assert!(bench.executing.is_empty());
    assert_eq!(bench.core.ring_state(0), Some(&RingState::Open));
}

#[test]
fn an_older_generation_with_other_blocks_is_refused_not_punished() {
    let mut bench = Bench::serving();
    let mut larger = unit(100);
    larger.unit.block_bytes = 4096;
    let configuration =
        lunar_core::Configuration { units: vec![larger], ..lunar_core::Configuration::default() };
    bench.core.set_configuration(configuration, 0).expect("configuration");
    bench.submit_and_poll(read(1));
    assert_eq!(bench.completions(0), [(1, Outcome::Refused)]);
    assert_eq!(bench.core.ring_state(0), Some(&RingState::Open));
}

#[test]
fn a_write_to_a_read_only_unit_and_a_unit_without_handler_are_answered() {
    let mut bench = Bench::serving();
    let mut read_only = unit(1000);
    read_only.unit.read_only = true;
    let mut closed = unit(1000);
    closed.unit.handle = 8;
    closed.device = None;
    let units = vec![read_only, closed];
    let configuration = lunar_core::Configuration { units, ..lunar_core::Configuration::default() };
    bench.core.set_configuration(configuration, 0).expect("configuration");
    bench.submit_and_poll(write(1));
    let mut elsewhere = write(2);
    elsewhere.unit.set(8);
    bench.submit_and_poll(elsewhere);
    let wanted = [(1, Outcome::WriteProtected), (2, Outcome::Unavailable)];
    assert_eq!(bench.completions(0), wanted);
}

#[test]
fn more_outstanding_than_slots_closes_the_ring() {
    let mut bench = Bench::serving();
    for token in 0..u64::from(SLOTS) {
        bench.submit_and_poll(read(token));
    }
    assert_eq!(bench.core.outstanding(0), SLOTS);
    bench.submit_and_poll(read(100));
    assert!(bench.closed[0].1.contains("outstanding"), "{:?}", bench.closed);
}

#[test]
fn a_card_that_never_consumes_completions_loses_the_ring_not_the_agent() {
    let mut bench = Bench::serving();
    for token in 0..=u64::from(SLOTS) {
        bench.submit_and_poll(read(token));
        if !bench.executing.is_empty() {
            bench.end(Handler::Done);
        }
    }
    assert!(bench.closed[0].1.contains("slots of the ring"), "{:?}", bench.closed);
}

#[test]
fn a_published_word_beyond_the_slots_closes_the_ring() {
    let mut bench = Bench::serving();
    let layout = lunar_offload_proto::ring::RingLayout::new(SLOTS).expect("layout");
    let window = lunar_core::ring::ArenaWindow::new(bench.arena.clone(), 0, layout);
    window.expect("inside").store_release(layout.published_offset(), SLOTS + 1);
    bench.poll();
    assert_eq!(bench.closed.len(), 1);
    assert!(bench.closed[0].1.contains("published"), "{:?}", bench.closed);
}

#[test]
fn a_restarted_agent_runs_what_never_started_keeps_what_is_done_and_loses_the_rest() {
    let mut bench = Bench::serving();
    let done = bench.submit(0, write(1), None);
    bench.poll();
    bench.end(Handler::Done);
    let unknown = bench.submit(0, write(2), None);
    bench.poll();
    let never_started = bench.submit(0, write(3), None);

    bench.restart_agent(2);
    assert_eq!(bench.core.ring_state(0), Some(&RingState::Reconciling));
    assert_eq!(bench.poll(), 0, "nothing runs before the card said what was in flight");
    bench.reconcile(0, 1, &[(1, done), (2, unknown), (3, never_started)]);
    bench.reconcile(1, 1, &[]);
    let wanted = [(1, Fate::Done), (2, Fate::Unknown), (3, Fate::NeverStarted)];
    let fates = bench.sent.iter().find_map(|message| match message {
        to_card::Message::Reconciled(one) if one.ring == 0 => Some(one.operations.clone()),
        _ => None,
    });
    let fates: Vec<_> =
        fates.expect("answered").iter().map(|one| (one.token, one.fate())).collect();
    assert_eq!(fates, wanted);
    assert_eq!(bench.completions(0), [(1, Outcome::Done), (2, Outcome::Lost)]);
    assert_eq!(bench.poll(), 1);
    bench.end(Handler::Done);
    assert_eq!(bench.completions(0), [(3, Outcome::Done)]);
    assert_eq!(bench.core.ring_counters(0).expect("ring").lost, 1);
}

#[test]
fn a_restarted_agent_sends_its_configuration_after_every_ring_is_reconciled() {
    let mut bench = Bench::serving();
    assert_eq!(bench.sent_generation(), Some(1));
    bench.restart_agent(2);
    bench.reconcile(0, 1, &[]);
    assert_eq!(bench.sent_generation(), None);
    bench.reconcile(1, 1, &[]);
    assert_eq!(bench.sent_generation(), Some(2), "generations go on over restarts");
    bench.control(to_host::Message::ConfigurationApplied(ConfigurationApplied { generation: 2 }));
    assert_eq!(bench.core.applied_generation(), 2);
}

#[test]
fn agents_that_die_one_after_the_other_lose_an_operation_once() {
    let mut bench = Bench::serving();
    let unknown = bench.submit(0, write(2), None);
    bench.poll();
    bench.restart_agent(2);
    bench.reconcile(0, 1, &[(2, unknown)]);
    // The card has not read the completion when this agent dies too.
    bench.restart_agent(3);
    bench.reconcile(0, 1, &[(2, unknown)]);
    assert_eq!(bench.sent_fates(), [(2, Fate::Done)]);
    assert_eq!(bench.completions(0), [(2, Outcome::Lost)]);
}

#[test]
fn a_lost_control_channel_disturbs_nothing_in_the_rings() {
    let mut bench = Bench::serving();
    let first = bench.submit(0, write(1), None);
    bench.poll();
    bench.core.on_control_lost(0);
    let second = bench.submit(0, write(2), None);
    bench.poll();
    bench.end(Handler::Done);
    bench.connect(100);
    bench.ready();
    // The card lists both; neither is lost, neither runs twice.
    bench.reconcile(0, 1, &[(1, first), (2, second)]);
    assert_eq!(bench.sent_fates(), [(1, Fate::Done), (2, Fate::Done)]);
    assert_eq!(bench.executing.len(), 1);
    bench.end(Handler::Done);
    assert_eq!(bench.completions(0), [(1, Outcome::Done), (2, Outcome::Done)]);
    assert_eq!(bench.sent_generation(), Some(2), "a generation is sent once");
}

#[test]
fn a_new_card_epoch_is_admitted_when_the_older_operations_are_over() {
    let mut bench = Bench::serving();
    bench.submit_and_poll(write(1));
    bench.submit(0, write(2), None);
    bench.core.on_control_lost(0);
    bench.sent.clear();
    bench.connect(101);
    assert_eq!(bench.core.link_state(), LinkState::HoldingBack);
    assert_eq!(bench.cancels.len(), 1, "the older write is to be cancelled");
    assert_eq!(bench.remembered.map(|(epoch, _)| epoch), Some(100));
    assert_eq!(bench.poll(), 0, "the older card's entry is not run");

    bench.answer_cancel(CancelAnswer::TooLate);
    bench.end(Handler::Done);
    assert_eq!(bench.core.link_state(), LinkState::RingsOffered);
    assert_eq!(bench.remembered.map(|(epoch, _)| epoch), Some(101));
    assert_eq!(bench.core.nexuses().count(), 0, "a new card has no nexuses yet");
    bench.ready();
    bench.login(1);
    assert_eq!(bench.poll(), 0, "the rings were emptied");
    assert_eq!(bench.completions(0), []);
    bench.submit_and_poll(read(1));
    bench.end(Handler::Done);
    assert_eq!(bench.completions(0), [(1, Outcome::Done)]);
}

#[test]
fn a_new_card_epoch_waits_a_bounded_time_and_may_come_again() {
    let mut bench = Bench::serving();
    bench.submit_and_poll(write(1));
    bench.core.on_control_lost(0);
    bench.connect(101);
    for second in 1..=30 {
        assert!(bench.control_closed.is_empty());
        bench.control(to_host::Message::Heartbeat(Default::default()));
        bench.tick(second * SECOND);
    }
    assert!(bench.control_closed[0].contains("older epoch"), "{:?}", bench.control_closed);
    assert_eq!(bench.core.ring_state(0), Some(&RingState::Idle));
    assert_eq!(bench.core.link_state(), LinkState::Down);
    bench.end(Handler::Done);
    bench.connect(101);
    assert_eq!(bench.core.link_state(), LinkState::RingsOffered);
}

#[test]
fn a_ring_that_was_closed_is_open_for_a_card_that_starts_anew() {
    let mut bench = Bench::serving();
    bench.submit_and_poll(hostile().remove(0).1);
    bench.core.on_control_lost(0);
    bench.connect(101);
    bench.ready();
    assert_eq!(bench.core.ring_state(0), Some(&RingState::Open));
}

#[test]
fn a_restarted_agent_that_meets_another_card_starts_with_empty_rings() {
    let mut bench = Bench::serving();
    bench.submit_and_poll(write(1));
    bench.submit(0, write(2), None);
    bench.remembered = bench.remembered.map(|(_, generation)| (99, generation));
    let (_, generation) = bench.remembered.expect("remembered");
    bench.restart_agent(2);
    assert_eq!(generation, 1);
    bench.core.on_control_lost(0);
    bench.connect(100);
    bench.ready();
    assert_eq!(bench.core.ring_state(0), Some(&RingState::Open));
    assert_eq!(bench.poll(), 0);
}

#[test]
fn a_refused_hello_closes_the_channel_with_the_cards_reason() {
    let mut bench = Bench::new();
    bench.core.on_control_connected(0);
    bench.settle();
    let refused = HelloRefused { reason: "too old".to_owned(), ..HelloRefused::default() };
    bench.control(to_host::Message::HelloRefused(refused));
    assert!(bench.control_closed[0].contains("too old"));
    assert_eq!(bench.core.link_state(), LinkState::Down);
}

#[test]
fn a_message_without_place_closes_the_channel() {
    let mut bench = Bench::serving();
    bench.control(to_host::Message::RingsReady(Default::default()));
    assert!(bench.control_closed[0].contains("no place"), "{:?}", bench.control_closed);
    let mut bench = Bench::serving();
    bench.control(to_host::Message::ConfigurationApplied(ConfigurationApplied { generation: 9 }));
    assert!(bench.control_closed[0].contains("generation 9"), "{:?}", bench.control_closed);
    assert!(matches!(bench.sent.back(), Some(to_card::Message::Goodbye(Goodbye { .. }))));
}

#[test]
fn a_silent_card_is_gone_after_three_seconds_and_heartbeats_go_every_second() {
    let mut bench = Bench::serving();
    bench.sent.clear();
    assert_eq!(bench.core.next_deadline(), Some(SECOND));
    bench.tick(SECOND - 1);
    assert!(bench.sent.is_empty());
    bench.tick(SECOND);
    bench.tick(2 * SECOND);
    let beats = bench.sent.iter().filter(|m| matches!(m, to_card::Message::Heartbeat(_)));
    assert_eq!(beats.count(), 2);
    assert!(bench.control_closed.is_empty());
    bench.tick(3 * SECOND);
    assert!(bench.control_closed[0].contains("nothing"), "{:?}", bench.control_closed);
    assert_eq!(bench.core.next_deadline(), None);
}
