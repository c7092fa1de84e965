//! CD/DVD devices (MMC-6): what a drive says of itself and of its disc, and what it has not.

use lunar_scsi::alua::TargetPort;
use lunar_scsi::device_server::{Verdict, begin_cdb, fill};
use lunar_scsi::opcodes::{COMMANDS, HostCommand, HostCommands};
use lunar_scsi::sense::Sense;
use lunar_scsi::unit::{DeviceType, Identity, LogicalUnit};
use proptest::prelude::*;

/// A drive with a disc of `blocks` blocks of 2048 bytes; none with 0.
fn drive(blocks: u64) -> LogicalUnit {
    let identity = Identity::new("LUNAR", "cd", "0001", "5ad3c1f0", "5ad3c1f0-cd").unwrap();
    let unit = LogicalUnit::new(2048, 1, identity).unwrap();
    let device_type = DeviceType::CdDvd;
    let host_commands = HostCommands::NONE.with(HostCommand::MediumRemoval);
    let removable = true;
    LogicalUnit {
        device_type,
        removable,
        read_only: true,
        blocks,
        forwards: true,
        host_commands,
        ..unit
    }
    .validate()
    .unwrap()
}

fn verdict(unit: &LogicalUnit, head: &[u8]) -> Verdict {
    let mut bytes = [0; 16];
    bytes[..head.len()].copy_from_slice(head);
    begin_cdb(unit, false, &bytes).1
}

fn refused(sense: Sense) -> Verdict {
    Verdict::Done(Err(sense))
}

fn data_after(unit: &LogicalUnit, head: &[u8], changed: bool) -> Vec<u8> {
    let verdict = verdict(unit, head);
    let Verdict::Parameter(mut parameter) = verdict else { panic!("{verdict:?}") };
    if let Some(place) = parameter.media_event() {
        *place = changed;
    }
    let mut out = vec![0xEE; parameter.length_max() as usize];
    let length = fill(
        &parameter,
        Some(unit),
        TargetPort::default(),
        &mut std::iter::empty(),
        None,
        &mut out,
    );
    out.truncate(length);
    out
}

fn data(unit: &LogicalUnit, head: &[u8]) -> Vec<u8> {
    data_after(unit, head, false)
}

fn toc(flags: u8, format: u8, track: u8, control: u8) -> [u8; 10] {
    [0x43, flags, format, 0, 0, 0, track, 0, 255, control]
}

#[test]
fn mmc_6_read_toc_tells_of_one_data_track_and_the_lead_out_behind_it() {
    let unit = drive(1000);
    let track = [0, 0x14, 1, 0, 0, 0, 0, 0];
    let lead_out = [0, 0x14, 0xAA, 0, 0, 0, 3, 0xE8];
    for track_asked_for in [0, 1] {
        let expected = [&[0, 18, 1, 1][..], &track, &lead_out].concat();
        assert_eq!(data(&unit, &toc(0, 0, track_asked_for, 0)), expected);
    }
    assert_eq!(data(&unit, &toc(0, 0, 0xAA, 0)), [&[0, 10, 1, 1][..], &lead_out].concat());
    let wrong = Sense::INVALID_FIELD_IN_CDB.with_field(6, None);
    assert_eq!(verdict(&unit, &toc(0, 0, 2, 0)), refused(wrong));
    let wrong = Sense::INVALID_FIELD_IN_CDB.with_field(2, Some(3));
    assert_eq!(verdict(&unit, &toc(0, 2, 0, 0)), refused(wrong));
}

#[test]
fn mmc_6_msf_addresses_begin_two_seconds_in_and_end_with_their_greatest() {
    // 1000 + 150 frames: 15 seconds and 25 frames.
    let short = data(&drive(1000), &toc(2, 0, 0, 0));
    assert_eq!((&short[8..12], &short[16..20]), (&[0, 0, 2, 0][..], &[0, 0, 15, 25][..]));
    let long = data(&drive(u64::from(u32::MAX) * 4), &toc(2, 0, 0xAA, 0));
    assert_eq!(long[8..12], [0, 255, 59, 74]);
    let long = data(&drive(u64::from(u32::MAX) * 4), &toc(0, 0, 0xAA, 0));
    assert_eq!(long[8..12], [0xFF; 4]);
}

#[test]
fn mmc_6_read_toc_format_1_is_asked_for_in_either_place() {
    let sessions = [0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0];
    assert_eq!(data(&drive(1000), &toc(0, 1, 0, 0)), sessions);
    assert_eq!(data(&drive(1000), &toc(0, 0, 0, 0x40)), sessions);
}

/// The feature numbers with their current bits, after the profile.
fn features(unit: &LogicalUnit, requested: u8, first: u16) -> (u16, Vec<(u16, bool)>) {
    let [high, low] = first.to_be_bytes();
    let bytes = data(unit, &[0x46, requested, high, low, 0, 0, 0, 1, 0, 0]);
    let length = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
    assert_eq!(length + 4, bytes.len(), "DATA LENGTH");
    let mut found = Vec::new();
    let mut rest = &bytes[8..];
    while let [high, low, flags, additional, ..] = *rest {
        assert_eq!(additional % 4, 0);
        found.push((u16::from_be_bytes([high, low]), flags & 1 != 0));
        rest = &rest[4 + usize::from(additional)..];
    }
    assert!(rest.is_empty());
    (u16::from_be_bytes([bytes[6], bytes[7]]), found)
}

#[test]
fn mmc_6_the_profile_is_that_of_the_disc() {
    assert_eq!(features(&drive(0), 0, 0).0, 0);
    assert_eq!(features(&drive(360_000), 0, 0).0, 0x0008, "80 minutes are a CD");
    assert_eq!(features(&drive(360_001), 0, 0).0, 0x0010);
}

#[test]
fn mmc_6_features_are_ascending_and_random_readable_comes_and_goes_with_the_disc() {
    const RANDOM_READABLE: u16 = 0x0010;
    for blocks in [0, 1000, 1 << 22] {
        let unit = drive(blocks);
        let (_, all) = features(&unit, 0, 0);
        assert!(all.is_sorted());
        for needed in [0x0000, 0x0001, 0x0003, RANDOM_READABLE] {
            assert!(all.iter().any(|(code, _)| *code == needed), "{needed:#x}");
        }
        let current: Vec<_> = all.iter().copied().filter(|(_, current)| *current).collect();
        assert_eq!(features(&unit, 1, 0).1, current);
        assert_eq!(current.contains(&(RANDOM_READABLE, true)), blocks != 0);
        assert_eq!(features(&unit, 2, RANDOM_READABLE).1, [(RANDOM_READABLE, blocks != 0)]);
        assert_eq!(features(&unit, 2, 0x0004).1, []);
        assert!(features(&unit, 0, 0x0010).1.iter().all(|(code, _)| *code >= 0x0010));
    }
    let wrong = Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(1));
    assert_eq!(verdict(&drive(1), &[0x46, 3, 0, 0, 0, 0, 0, 0, 8]), refused(wrong));
}

#[test]
fn mmc_6_media_events_are_polled_and_tell_what_came_and_went() {
    let poll = [0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0];
    let header = [0, 6, 4, 0x10];
    for (blocks, changed, event) in [
        (9, false, [0, 2, 0, 0]),
        (9, true, [2, 2, 0, 0]),
        (0, true, [3, 0, 0, 0]),
        (0, false, [0; 4]),
    ] {
        let told = data_after(&drive(blocks), &poll, changed);
        assert_eq!(told, [header, event].concat());
    }
    let other_class = [0x4A, 1, 0, 0, 0x02, 0, 0, 0, 8, 0];
    assert_eq!(data_after(&drive(9), &other_class, true), [0, 2, 0x80, 0x10]);
    let wrong = Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(0));
    assert_eq!(verdict(&drive(9), &[0x4A, 0, 0, 0, 0x10, 0, 0, 0, 8]), refused(wrong));
}

#[test]
fn mmc_6_disc_information_is_of_a_finished_disc_and_the_mechanism_is_idle() {
    let bytes = data(&drive(9), &[0x51, 0, 0, 0, 0, 0, 0, 0, 255, 0]);
    assert_eq!((bytes.len(), &bytes[..8]), (34, &[0, 32, 0x0E, 1, 1, 1, 1, 0x20][..]));
    let wrong = Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(2));
    assert_eq!(verdict(&drive(9), &[0x51, 1, 0, 0, 0, 0, 0, 0, 255]), refused(wrong));
    assert_eq!(data(&drive(9), &[0xBD, 0, 0, 0, 0, 0, 0, 0, 0, 8]), [0; 8]);
}

#[test]
fn mmc_3_page_2a_and_none_of_a_disks() {
    let page = data(&drive(9), &[0x1A, 8, 0x2A, 0, 255]);
    assert_eq!(page[..4], [25, 0, 0, 0], "nothing device specific in the header");
    assert_eq!(page[4..9], [0x2A, 0x14, 0x0B, 0, 0]);
    assert_eq!(page[10], 0x29, "a tray that ejects and can be locked");
    let wrong = Sense::INVALID_FIELD_IN_CDB.with_field(2, Some(5));
    assert_eq!(verdict(&drive(9), &[0x1A, 8, 0x03, 0, 255]), refused(wrong));
    let disk = LogicalUnit { device_type: DeviceType::Disk, ..drive(9) };
    assert_eq!(verdict(&disk, &[0x1A, 8, 0x2A, 0, 255]), refused(wrong));
}

#[test]
fn mmc_6_an_empty_drive_answers_about_itself_and_is_not_ready_otherwise() {
    let empty = drive(0);
    for cdb in [&[0x00][..], &[0x25], &[0x28, 0, 0, 0, 0, 0, 0, 0, 1], &toc(0, 0, 0, 0), &[0x51]] {
        assert_eq!(verdict(&empty, cdb), refused(Sense::MEDIUM_NOT_PRESENT), "{cdb:02x?}");
    }
    for cdb in [&[0x12, 0, 0, 0, 36][..], &[0x46, 0, 0, 0, 0, 0, 0, 0, 8], &[0x1A, 0, 0x2A, 0, 9]] {
        assert!(matches!(verdict(&empty, cdb), Verdict::Parameter(_)), "{cdb:02x?}");
    }
    let [eject, load] = [[0x1B, 0, 0, 0, 2], [0x1B, 0, 0, 0, 3]];
    for cdb in [eject, load, [0x1E, 0, 0, 0, 1]] {
        assert_eq!(verdict(&empty, &cdb), Verdict::Forward);
    }
}

/// SAM-6 5.14 names INQUIRY, REPORT LUNS and REQUEST SENSE; MMC-6 adds two.
#[test]
fn mmc_6_get_configuration_and_events_leave_a_unit_attention_pending() {
    for (operation, ignores) in [(0x46, true), (0x43, false), (0x51, false), (0x00, false)] {
        let mut cdb = [0; 16];
        cdb[0] = operation;
        let (command, _) = begin_cdb(&drive(9), false, &cdb);
        assert_eq!(command.unwrap().ignores_unit_attention(), ignores);
    }
    let (command, _) = begin_cdb(&drive(9), false, &[0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0]);
    assert!(command.unwrap().ignores_unit_attention());
}

#[test]
fn a_command_is_refused_by_the_types_that_have_it_not_and_reported_by_those_that_have() {
    let disk = LogicalUnit { device_type: DeviceType::Disk, ..drive(9) };
    for unit in [&drive(9), &disk] {
        for row in COMMANDS {
            let has = row.types.contains(&unit.device_type);
            let mut cdb = [0; 16];
            cdb[0] = row.operation;
            cdb[1] = row.action.unwrap_or(0) as u8;
            let unknown = Sense::INVALID_COMMAND_OPERATION_CODE.with_field(0, None);
            let is_refused = verdict(unit, &cdb) == refused(unknown);
            assert!(has || is_refused, "{}", row.name);
            assert!(has || !row.is_supported(unit), "{}", row.name);
        }
    }
    let of_a_drive = COMMANDS.iter().filter(|row| row.is_supported(&drive(9)));
    let operations: Vec<u8> = of_a_drive.map(|row| row.operation).collect();
    // MODE SELECT is the agent's, and this one has it not.
    let expected = [
        0x00, 0x03, 0x12, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0x43, 0x46, 0x4A, 0x4D, 0x51, 0x5A, 0xA0,
        0xA3, 0xA3, 0xA8, 0xBD,
    ];
    assert_eq!(operations, expected);
}

proptest! {
    #[test]
    fn whatever_the_cdb_parameter_data_stays_within_its_allocation_length(
        operation in prop::sample::select(vec![0x43_u8, 0x46, 0x4A, 0x51, 0x5A, 0xBD]),
        rest in any::<[u8; 15]>(), blocks in any::<u32>(), changed in any::<bool>(),
    ) {
        let cdb = [&[operation][..], &rest].concat();
        let unit = drive(blocks.into());
        if let Verdict::Parameter(mut parameter) = begin_cdb(&unit, false, &cdb).1 {
            if let Some(place) = parameter.media_event() {
                *place = changed;
            }
            let room = parameter.length_max() as usize;
            let mut out = vec![0xEE; room + 64];
            let length =
                fill(&parameter, Some(&unit), TargetPort::default(), &mut std::iter::empty(), None, &mut out);
            prop_assert!(length <= room);
            prop_assert!(out[length..].iter().all(|byte| *byte == 0xEE));
        }
    }
}
