//! Forwarded commands: MODE SELECT, FORMAT UNIT, EXTENDED COPY and RECEIVE COPY RESULTS.

mod model;

use lunar_core::{COPY_ARENA, Configuration, DeviceHandle, UnitConfiguration};
use lunar_handlers::{CancelAnswer, Outcome as Handler, Request};
use lunar_offload_proto::control::{
    BackendKind, ConfigurationApplied, LogicalUnit, Lun, Target, UnitReset, UnitState,
    host_command, to_card, to_host,
};
use lunar_offload_proto::ring::{
    BlockRequest, CompletionEntry, Operation, Outcome, SideRecord, SubmissionEntry,
};
use model::{Bench, UNIT, block_entry, block_range};

const NAA: [[u8; 8]; 2] = [[0x50, 1, 2, 3, 4, 5, 6, 7], [0x50, 1, 2, 3, 4, 5, 6, 8]];

fn configuration(luns: &[u32]) -> Configuration {
    let unit = |at: usize| UnitConfiguration {
        unit: LogicalUnit {
            handle: UNIT + at as u32,
            name: format!("disk{at}"),
            backend: BackendKind::Ring.into(),
            block_bytes: 512,
            blocks: 4096,
            naa: NAA[at].to_vec(),
            forwards: true,
            ..LogicalUnit::default()
        },
        device: Some(DeviceHandle(at as u32)),
    };
    let lun = |unit: &u32| Lun { lun: 0, unit: *unit, read_only: false };
    let default_luns = luns.iter().map(lun).collect();
    let target = Target { handle: 1, default_luns, ..Target::default() };
    Configuration {
        units: vec![unit(0), unit(1)],
        targets: vec![target],
        ..Configuration::default()
    }
}

fn bench() -> Bench {
    let mut bench = Bench::serving();
    bench.core.set_configuration(configuration(&[UNIT, UNIT + 1]), 0).expect("configuration");
    bench.settle();
    bench
}

/// The card forwards `cdb` with a parameter list, or room for 4096 bytes of parameter data.
fn forward(bench: &mut Bench, token: u64, cdb: &[u8], list: &[u8]) {
    let mut side = SideRecord::empty();
    side.set_cdb(cdb).expect("fits");
    let mut entry = block_entry(Operation::Read, token);
    BlockRequest::Forward { data_out: !list.is_empty() }.encode(&mut entry);
    if !list.is_empty() {
        assert!(bench.arena.write(block_range().offset, list));
        entry.data_bytes.set(list.len() as u32);
    }
    bench.submit(0, entry, Some(&side));
    bench.poll();
}

/// The next completion: it, its sense key with ASC and ASCQ, and its parameter data.
fn completion(bench: &mut Bench) -> (CompletionEntry, (u8, u8, u8), Vec<u8>) {
    let card = &mut bench.card[0];
    let completion = card.completions.pop().expect("sound").expect("completed");
    let mut side = SideRecord::empty();
    if completion.sense_bytes.get() > 0 {
        card.completions.read_side(completion.sequence.get(), &mut side);
    }
    card.completions.release();
    let sense = match side.sense().expect("sound") {
        [] => (0, 0, 0),
        [0x70, _, key, .., _, _] => (*key, side.sense[12], side.sense[13]),
        [_, key, asc, ascq, ..] => (*key, *asc, *ascq),
        other => panic!("{other:?}"),
    };
    let mut data = vec![0; completion.transferred_bytes.get() as usize];
    assert!(bench.arena.read(block_range().offset, &mut data));
    (completion, sense, data)
}

/// Status and sense of `cdb`, which no handler is asked for.
fn ending(bench: &mut Bench, cdb: &[u8], list: &[u8]) -> (u8, (u8, u8, u8)) {
    forward(bench, 1, cdb, list);
    let (completion, sense, _) = completion(bench);
    assert_eq!(completion.outcome(), Outcome::Forwarded);
    (completion.status, sense)
}

const GOOD: (u8, (u8, u8, u8)) = (0, (0, 0, 0));

#[test]
fn the_card_is_told_what_the_agent_executes() {
    let bench = bench();
    let units = bench.sent.iter().rev().find_map(|message| match message {
        to_card::Message::Configuration(configuration) => Some(&configuration.units),
        _ => None,
    });
    let commands = units.expect("sent")[0].host_commands;
    assert_eq!(commands & host_command::MODE_SELECT, host_command::MODE_SELECT);
    assert_eq!(commands & host_command::MEDIUM_REMOVAL, 0);
}

#[test]
fn format_unit_is_over_at_once_after_its_checks() {
    let mut bench = bench();
    assert_eq!(ending(&mut bench, &[4, 0, 0, 0, 0, 0], &[]), GOOD);
    assert_eq!(ending(&mut bench, &[4, 0x10, 0, 0, 0, 0], &[0, 0x82, 0, 0]), GOOD);
    // Protection information, a defect list, an initialization pattern, no list at all.
    assert_eq!(ending(&mut bench, &[4, 0x80, 0, 0, 0, 0], &[]), (2, (5, 0x24, 0)));
    assert_eq!(ending(&mut bench, &[4, 0x10, 0, 0, 0, 0], &[0, 0, 0, 8]), (2, (5, 0x26, 0)));
    assert_eq!(ending(&mut bench, &[4, 0x10, 0, 0, 0, 0], &[0, 8, 0, 0]), (2, (5, 0x26, 0)));
    assert_eq!(ending(&mut bench, &[4, 0x10, 0, 0, 0, 0], &[]), (2, (5, 0x1A, 0)));
    assert!(bench.executing.is_empty());
}

/// MODE SELECT of the control mode page (SPC-6 7.5.10) with D_SENSE and SWP as given and the rest, GLTSD
/// and unrestricted reordering, as it is.
fn control_page(bench: &mut Bench, descriptors: bool, protect: bool) -> (u8, (u8, u8, u8)) {
    let mut list = [0; 16];
    list[4..9].copy_from_slice(&[0x0A, 10, 0x02, 0x10, 0]);
    list[6] |= if descriptors { 0x04 } else { 0 };
    list[8] |= if protect { 0x08 } else { 0 };
    ending(bench, &[0x15, 0x10, 0, 0, 16, 0], &list)
}

#[test]
fn mode_select_changes_the_configuration_before_the_initiator_is_answered() {
    let mut bench = bench();
    let before = bench.core.configuration_generation();
    assert_eq!(control_page(&mut bench, true, true), GOOD);
    let generation = bench.core.configuration_generation();
    assert_eq!(generation, before + 1);
    assert_eq!(bench.sent_generation(), Some(generation));
    let unit = bench.sent.iter().rev().find_map(|message| match message {
        to_card::Message::Configuration(configuration) => Some(configuration.units[0].clone()),
        _ => None,
    });
    let unit = unit.expect("sent");
    assert!(unit.software_write_protect && unit.descriptor_sense && unit.read_only);
    // The agent refuses writes too, and speaks in descriptors.
    let mut write = block_entry(Operation::Write, 5);
    write.configuration_generation.set(generation);
    bench.submit_and_poll(write);
    assert_eq!(bench.completions(0), [(5, Outcome::WriteProtected)]);
    assert_eq!(ending(&mut bench, &[4, 0, 0, 0, 0, 0], &[]).1, (7, 0x27, 0));
    // A configuration from elsewhere keeps it; another MODE SELECT takes it back.
    bench.core.set_configuration(configuration(&[UNIT]), 0).expect("configuration");
    bench.settle();
    assert_eq!(ending(&mut bench, &[4, 0, 0, 0, 0, 0], &[]).1, (7, 0x27, 0));
    assert_eq!(control_page(&mut bench, false, false), GOOD);
    assert_eq!(ending(&mut bench, &[4, 0, 0, 0, 0, 0], &[]), GOOD);
}

#[test]
fn a_mode_select_that_changes_nothing_makes_the_card_wait_for_nothing() {
    let mut bench = bench();
    let list = [0, 0, 0, 0, 0x0A, 10, 0x06, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut required = Vec::new();
    for _ in 0..2 {
        forward(&mut bench, 1, &[0x15, 0x10, 0, 0, 16, 0], &list);
        required.push(completion(&mut bench).0.required_generation.get());
    }
    assert_eq!(required, [bench.core.configuration_generation(), 0]);
}

/// An EXTENDED COPY (LID1) of segments (source, destination, blocks, source LBA, destination LBA).
fn copy_list(usage: u8, segments: &[(u16, u16, u16, u64, u64)]) -> (Vec<u8>, Vec<u8>) {
    let mut list = vec![7, usage << 3, 0, 64, 0, 0, 0, 0];
    list.extend((28 * segments.len() as u32).to_be_bytes());
    list.extend([0; 4]);
    for naa in NAA {
        list.extend([0xE4, 0, 0, 0, 1, 3, 0, 8]);
        list.extend(naa);
        list.extend([0; 13]);
        list.extend([0, 2, 0]);
    }
    for (source, destination, blocks, from, to) in segments {
        list.extend([2, 0, 0, 24]);
        list.extend(source.to_be_bytes());
        list.extend(destination.to_be_bytes());
        list.extend([0, 0]);
        list.extend(blocks.to_be_bytes());
        list.extend(from.to_be_bytes());
        list.extend(to.to_be_bytes());
    }
    let mut cdb = vec![0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb.extend((list.len() as u32).to_be_bytes());
    cdb.extend([0, 0]);
    (cdb, list)
}

/// The one request at a handler.
fn request(bench: &Bench) -> (Request, u64, u32) {
    let [(_, request, Some(data))] = bench.executing.as_slice() else {
        panic!("{:?}", bench.executing);
    };
    assert_eq!(data.arena, COPY_ARENA);
    (*request, data.offset, data.length)
}

#[test]
fn a_copy_goes_piece_by_piece_from_handler_to_handler() {
    let mut bench = bench();
    let (cdb, list) = copy_list(0, &[(0, 1, 600, 10, 1000), (1, 0, 0, 0, 0), (1, 1, 1, 5, 6)]);
    forward(&mut bench, 3, &cdb, &list);
    for (lba, to, blocks) in [(10, 1000, 512), (522, 1512, 88), (5, 6, 1)] {
        let bytes = blocks * 512;
        assert_eq!(request(&bench), (Request::Read { lba, blocks }, 0, bytes));
        bench.end(Handler::Done);
        assert_eq!(request(&bench), (Request::Write { lba: to, blocks, fua: false }, 0, bytes));
        bench.end(Handler::Done);
    }
    let (completion, sense, _) = completion(&mut bench);
    assert_eq!((completion.token.get(), completion.status, sense), (3, 0, (0, 0, 0)));
    // COPY STATUS: 8 bytes available, completed, 3 segments, 300 KiB; told once.
    let status = [0x84, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    forward(&mut bench, 4, &status, &[]);
    let (_, _, data) = self::completion(&mut bench);
    assert_eq!(data, [0, 0, 0, 8, 1, 0, 3, 1, 0, 0, 1, 44]);
    assert_eq!(ending(&mut bench, &status, &[]), (2, (5, 0x24, 0)));
}

/// SPC-6, RECEIVE COPY STATUS (LID1): kept for a vendor specific period of time, and known only to the
/// nexus and the copy manager that it belongs to.
#[test]
fn spc_6_a_status_that_nobody_asks_for_is_given_up_after_a_while() {
    const STATUS: [u8; 16] = [0x84, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0];
    for (seconds, is_known) in [(9, true), (10, false)] {
        let mut bench = bench();
        let (cdb, list) = copy_list(0, &[(0, 1, 1, 0, 4096)]);
        assert_eq!(
            ending(&mut bench, &cdb, &list).1.0,
            0x0A,
            "a copy that failed has a status too"
        );
        bench.now += seconds * model::SECOND;
        bench.core.on_tick(bench.now);
        bench.settle();
        let known = ending(&mut bench, &STATUS, &[]);
        assert_eq!(known, if is_known { GOOD } else { (2, (5, 0x24, 0)) }, "after {seconds} s");
    }
}

#[test]
fn a_copy_under_way_tells_its_progress_and_keeps_its_identifier() {
    let mut bench = bench();
    let (cdb, list) = copy_list(0, &[(0, 1, 600, 10, 1000)]);
    forward(&mut bench, 3, &cdb, &list);
    bench.end(Handler::Done);
    bench.end(Handler::Done);
    forward(&mut bench, 4, &[0x84, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], &[]);
    let (_, _, data) = completion(&mut bench);
    assert_eq!(data, [0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 1, 0]);
    assert_eq!(ending(&mut bench, &cdb, &list), (2, (5, 0, 0x16)));
    assert_eq!(bench.executing.len(), 1);
}

#[test]
fn segments_before_a_bad_one_are_copied_and_then_the_command_fails() {
    let mut bench = bench();
    let (cdb, list) = copy_list(2, &[(0, 1, 1, 0, 0), (0, 1, 1, 0, 4096), (0, 1, 1, 1, 1)]);
    forward(&mut bench, 3, &cdb, &list);
    bench.end(Handler::Done);
    bench.end(Handler::Done);
    let (completion, sense, _) = completion(&mut bench);
    assert_eq!((completion.status, sense.0), (2, 0x0A));
    assert!(bench.executing.is_empty());
}

#[test]
fn a_failing_handler_aborts_the_copy() {
    for failing in 0..2 {
        let mut bench = bench();
        let (cdb, list) = copy_list(3, &[(0, 1, 1, 0, 0)]);
        let list = [&[0][..], &list[1..]].concat();
        forward(&mut bench, 3, &cdb, &list);
        for _ in 0..failing {
            bench.end(Handler::Done);
        }
        bench.end(Handler::ReadError { lba: 0 });
        let (completion, sense, _) = completion(&mut bench);
        assert_eq!((completion.status, sense), (2, (0x0A, 0x0D, 1)));
        assert!(bench.executing.is_empty());
    }
}

#[test]
fn a_unit_that_the_initiator_does_not_reach_is_not_copied_to() {
    let mut bench = Bench::serving();
    bench.core.set_configuration(configuration(&[UNIT]), 0).expect("configuration");
    bench.settle();
    let (cdb, list) = copy_list(2, &[(0, 1, 1, 0, 0)]);
    assert_eq!(ending(&mut bench, &cdb, &list), (2, (0x0A, 0x0D, 2)));
    assert!(bench.executing.is_empty());
}

#[test]
fn a_copy_keeps_others_series_off_its_destination_and_ends_between_two_pieces() {
    let mut bench = bench();
    let (cdb, list) = copy_list(2, &[(0, 1, 600, 0, 0)]);
    forward(&mut bench, 3, &cdb, &list);
    let mut series = block_entry(Operation::Read, 4);
    BlockRequest::CompareAndWrite { lba: 599, blocks: 1, fua: false }.encode(&mut series);
    series.unit.set(UNIT + 1);
    series.data_bytes.set(1024);
    bench.submit_and_poll(series);
    assert_eq!((bench.core.running(), bench.core.waiting()), (1, 1));
    bench.submit_and_poll(SubmissionEntry::cancel(9, 3));
    bench.answer_cancel(CancelAnswer::TooLate);
    assert_eq!(bench.completions(0), [(9, Outcome::Done)]);
    bench.end(Handler::Done);
    assert_eq!(bench.completions(0), [(3, Outcome::Cancelled)]);
    let series = Request::CompareAndWrite { lba: 599, blocks: 1, fua: false };
    assert_eq!(bench.executing[0].1, series);
}

#[test]
fn a_scratch_piece_is_free_when_its_copy_is_over() {
    let mut bench = bench();
    // The rings hold fewer than there are pieces, so every piece is used again and again.
    for token in 0..40 {
        let (cdb, list) = copy_list(2, &[(0, 1, 1, 0, 0)]);
        forward(&mut bench, token, &cdb, &list);
        bench.end(Handler::Done);
        bench.end(Handler::Done);
        assert_eq!(completion(&mut bench).0.status, 0, "copy {token}");
    }
}

/// As [`configuration`], with a CD/DVD drive for the first unit.
fn with_drive(medium: u32, blocks: u64) -> Configuration {
    let mut configuration = configuration(&[UNIT, UNIT + 1]);
    let unit = &mut configuration.units[0].unit;
    unit.device_type = 5;
    unit.removable = true;
    unit.read_only = true;
    unit.block_bytes = 2048;
    (unit.medium, unit.blocks) = (medium, blocks);
    configuration
}

fn drive(medium: u32, blocks: u64) -> Bench {
    let mut bench = Bench::serving();
    bench.core.set_configuration(with_drive(medium, blocks), 0).expect("configuration");
    bench.settle();
    bench
}

/// Blocks of the drive as the card was told last.
fn told_blocks(bench: &Bench) -> u64 {
    told(bench)[0].blocks
}

const EJECT: [u8; 6] = [0x1B, 0, 0, 0, 2, 0];
const LOAD: [u8; 6] = [0x1B, 0, 0, 0, 3, 0];
const PREVENT: [u8; 6] = [0x1E, 0, 0, 0, 1, 0];
const ALLOW: [u8; 6] = [0x1E, 0, 0, 0, 0, 0];

#[test]
fn an_ejected_medium_is_gone_until_it_is_loaded_or_another_is_put_in() {
    let mut bench = drive(7, 100);
    assert_eq!(told_blocks(&bench), 100);
    forward(&mut bench, 1, &EJECT, &[]);
    let (ejected, sense, _) = completion(&mut bench);
    let generation = bench.core.configuration_generation();
    assert_eq!(
        (ejected.status, sense, ejected.required_generation.get()),
        (0, (0, 0, 0), generation)
    );
    assert_eq!((told_blocks(&bench), bench.sent_generation()), (0, Some(generation)));
    assert_eq!(ending(&mut bench, &EJECT, &[]), GOOD);
    assert_eq!(bench.core.configuration_generation(), generation, "nothing is there to eject");
    // Another change does not load it.
    bench.core.set_configuration(with_drive(7, 100), 0).expect("configuration");
    bench.settle();
    assert_eq!(told_blocks(&bench), 0);
    assert_eq!(ending(&mut bench, &LOAD, &[]), GOOD);
    assert_eq!(told_blocks(&bench), 100);
    assert_eq!(ending(&mut bench, &EJECT, &[]), GOOD);
    bench.core.close_tray(UNIT);
    bench.core.set_configuration(with_drive(8, 200), 0).expect("configuration");
    bench.settle();
    assert_eq!(told_blocks(&bench), 200);
}

/// SBC-4, START STOP UNIT: a disk whose medium is removable is ejected with all that was written to it.
#[test]
fn sbc_4_a_disks_cache_is_flushed_before_its_medium_is_ejected() {
    const NO_FLUSH: [u8; 6] = [0x1B, 0, 0, 0, 0x06, 0];
    let removable_disk = || {
        let mut configuration = configuration(&[UNIT, UNIT + 1]);
        configuration.units[0].unit.removable = true;
        configuration.units[0].unit.write_cache = true;
        configuration
    };
    let mut bench = Bench::serving();
    bench.core.set_configuration(removable_disk(), 0).expect("configuration");
    bench.settle();
    let commands: Vec<u32> = told(&bench).iter().map(|unit| unit.host_commands).collect();
    let removal = host_command::MEDIUM_REMOVAL;
    assert_eq!((commands[0] & removal, commands[1] & removal), (removal, 0));

    forward(&mut bench, 1, &EJECT, &[]);
    assert_eq!(bench.executing.first().map(|(_, request, _)| *request), Some(Request::Flush));
    assert_eq!(told_blocks(&bench), 4096, "not before it is flushed");
    bench.end(Handler::Done);
    let (ejected, ..) = completion(&mut bench);
    assert_eq!((ejected.status, told_blocks(&bench)), (0, 0));
    assert_eq!(ejected.required_generation.get(), bench.core.configuration_generation());
    assert_eq!(ending(&mut bench, &LOAD, &[]), GOOD);
    assert_eq!(told_blocks(&bench), 4096);

    // A flush that fails, or somebody who prevents the removal meanwhile: the medium stays.
    forward(&mut bench, 2, &EJECT, &[]);
    bench.end(Handler::WriteError { lba: 9 });
    assert_eq!(completion(&mut bench).0.outcome(), Outcome::MediumWriteError);
    forward(&mut bench, 3, &EJECT, &[]);
    forward(&mut bench, 4, &PREVENT, &[]);
    assert_eq!(completion(&mut bench).0.token.get(), 4);
    bench.end(Handler::Done);
    assert_eq!(completion(&mut bench).1, (5, 0x53, 0x02));
    assert_eq!(told_blocks(&bench), 4096);
    assert_eq!(ending(&mut bench, &ALLOW, &[]), GOOD);
    assert_eq!(ending(&mut bench, &NO_FLUSH, &[]), GOOD);
    assert_eq!(told_blocks(&bench), 0);
}

#[test]
fn spc_6_a_nexus_that_prevents_the_removal_is_asked_before_an_ejection() {
    let mut bench = drive(7, 100);
    assert_eq!(bench.core.removal_prevented_by(UNIT), None);
    assert_eq!(ending(&mut bench, &PREVENT, &[]), GOOD);
    assert!(bench.core.removal_prevented_by(UNIT).is_some());
    assert_eq!(bench.core.removal_prevented_by(UNIT + 1), None);
    assert_eq!(ending(&mut bench, &EJECT, &[]), (2, (5, 0x53, 0x02)));
    assert_eq!(ending(&mut bench, &LOAD, &[]), GOOD);
    assert_eq!(told_blocks(&bench), 100);
    assert_eq!(ending(&mut bench, &ALLOW, &[]), GOOD);
    assert_eq!(ending(&mut bench, &EJECT, &[]), GOOD);
    assert_eq!(told_blocks(&bench), 0);
}

#[test]
fn a_read_that_was_meant_for_the_medium_before_does_not_read_the_new_one() {
    let mut bench = drive(7, 100);
    let before = bench.core.configuration_generation();
    bench.core.set_configuration(with_drive(8, 100), 0).expect("configuration");
    bench.settle();
    let after = bench.core.configuration_generation();
    for (generation, outcome) in [(before, Outcome::Unavailable), (after, Outcome::Done)] {
        let mut entry = block_entry(Operation::Read, 1);
        entry.configuration_generation.set(generation);
        entry.blocks.set(1);
        entry.data_bytes.set(2048);
        bench.submit(0, entry, None);
        bench.poll();
        if outcome == Outcome::Done {
            bench.end(Handler::Done);
        }
        assert_eq!(completion(&mut bench).0.outcome(), outcome);
    }
}

/// What the card was told last of the units.
fn told(bench: &Bench) -> Vec<LogicalUnit> {
    let configuration = bench.sent.iter().rev().find_map(|message| match message {
        to_card::Message::Configuration(configuration) => Some(configuration.units.clone()),
        _ => None,
    });
    configuration.expect("sent")
}

fn reset(bench: &mut Bench, gate: u32) -> u32 {
    bench.control(to_host::Message::UnitReset(UnitReset { unit: UNIT, gate }));
    match bench.sent.back() {
        Some(to_card::Message::UnitResetDone(done)) => {
            assert_eq!(done.gate, gate);
            done.required_generation
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn spc_6_a_logical_unit_reset_ends_preventions_and_brings_mode_parameters_back() {
    let mut bench = drive(7, 100);
    assert_eq!(ending(&mut bench, &PREVENT, &[]), GOOD);
    // Nothing has to be told to the card, so it waits for nothing.
    assert_eq!(reset(&mut bench, 1), 0);
    assert_eq!(bench.core.removal_prevented_by(UNIT), None);
    assert_eq!(ending(&mut bench, &EJECT, &[]), GOOD);
    assert_eq!(reset(&mut bench, 2), 0);
    assert_eq!(told_blocks(&bench), 0, "what was ejected stays out");

    let mut bench = self::bench();
    assert_eq!(control_page(&mut bench, true, true), GOOD);
    assert_eq!(reset(&mut bench, 3), bench.core.configuration_generation());
    let unit = &told(&bench)[0];
    assert_eq!((unit.software_write_protect, unit.descriptor_sense), (false, false));
    assert!(!unit.read_only);
}

/// SPC-6, RECEIVE COPY STATUS (LID1): a logical unit reset ends what is held of the unit's copies.
#[test]
fn spc_6_a_logical_unit_reset_forgets_the_statuses_of_its_copies() {
    const STATUS: [u8; 16] = [0x84, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0];
    for (unit, known) in [(UNIT, (2, (5, 0x24, 0))), (UNIT + 1, GOOD)] {
        let mut bench = bench();
        let (cdb, list) = copy_list(0, &[(0, 1, 1, 0, 4096)]);
        assert_eq!(ending(&mut bench, &cdb, &list).0, 2);
        bench.control(to_host::Message::UnitReset(UnitReset { unit, gate: 1 }));
        assert_eq!(ending(&mut bench, &STATUS, &[]), known);
    }
}

#[test]
fn spc_6_the_loss_of_an_i_t_nexus_ends_its_prevention() {
    let mut bench = drive(7, 100);
    assert_eq!(ending(&mut bench, &PREVENT, &[]), GOOD);
    bench.control(to_host::Message::NexusEvent(model::logout(1)));
    bench.login(2);
    assert_eq!(bench.core.removal_prevented_by(UNIT), None);
}

/// SPC-6, MODE SELECT: current values are lost with power, and the card that holds them had it all the
/// time.
#[test]
fn spc_6_mode_parameters_and_an_open_tray_outlive_the_agent() {
    let mut bench = bench();
    let kept = UnitState {
        unit: UNIT,
        software_write_protect: true,
        descriptor_sense: true,
        ..UnitState::default()
    };
    bench.unit_states = vec![kept, UnitState { unit: 99, ..kept }];
    bench.restart_agent(2);
    for ring in 0..model::RINGS {
        bench.reconcile(ring, 1, &[]);
    }
    let unit = &told(&bench)[0];
    assert!(unit.software_write_protect && unit.descriptor_sense && unit.read_only);
    // The agent knows better what it told itself.
    let before = bench.core.configuration_generation();
    bench.control(to_host::Message::ConfigurationApplied(ConfigurationApplied {
        generation: before,
    }));
    bench.unit_states[0].software_write_protect = false;
    bench.core.on_control_lost(bench.now);
    bench.connect(100);
    bench.ready();
    assert!(told(&bench)[0].software_write_protect);
}

#[test]
fn a_medium_that_was_ejected_stays_out_when_the_agent_is_another() {
    for (medium, blocks) in [(7, 0), (8, 100)] {
        let mut bench = Bench::new();
        let state = UnitState { unit: UNIT, no_medium: true, medium: 7, ..UnitState::default() };
        bench.unit_states = vec![state];
        bench.core.set_configuration(with_drive(medium, 100), 0).expect("configuration");
        bench.connect(100);
        bench.ready();
        assert_eq!(told_blocks(&bench), blocks, "medium {medium} after 7 was ejected");
    }
}
