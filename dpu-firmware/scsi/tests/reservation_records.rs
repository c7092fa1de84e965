//! Reservations as bytes: Lunar's own record, and SCST's file and text.

mod reservation_kit;

use lunar_scsi::reservations::record::{Operation, Record, RecordError};
use lunar_scsi::reservations::scst::{self, ImportError};
use lunar_scsi::reservations::{
    Effects, Nexus, OutAction, REGISTRATIONS_MAX, ReservationType, Reservations, TransportId,
};
use proptest::prelude::*;
use reservation_kit::{APTPL, CLEARED, PREEMPTED, RELEASED, Unit, at, list, nexus};

fn iscsi() -> TransportId {
    let mut bytes = vec![0x45, 0, 0, 28];
    bytes.extend(b"iqn.2000-01.org:a,i,0x12ab\0\0");
    TransportId::parse(&bytes).unwrap().0
}

/// Two SRP initiators, an iSCSI, a SAS and a VSCSI one; the second holds, with APTPL.
fn mixed(kind: ReservationType) -> Reservations {
    let mut unit = Unit::with(&[1]);
    let others = [iscsi(), TransportId::sas([5; 8]), TransportId::vscsi(3, 0x3000_0002)];
    for (initiator, key) in others.into_iter().zip(0xA0..) {
        unit.register(&Nexus { initiator, target_port: 0x0102 }, key).unwrap();
    }
    unit.send(&nexus(2), OutAction::Register, 0, &list(0, 0x0123_4567_89AB_CDEF, APTPL)).unwrap();
    unit.reserve(&nexus(2), kind).unwrap();
    unit.0
}

fn record(reservations: Reservations) -> Record {
    let effects = Effects {
        attentions: vec![(nexus(1), PREEMPTED), (nexus(2), RELEASED), (nexus(3), CLEARED)],
        aborts: vec![nexus(1), at(1, 2)],
    };
    let operation = Some(Operation { id: [9; 16], effects });
    Record { unit: "5ad3c1f0-disk1".into(), boot_id: [7; 16], operation, reservations }
}

/// Replaces the check sum by the right one.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 4;
    let mut crc = u32::MAX;
    for byte in &bytes[..end] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    bytes[end..].copy_from_slice(&(!crc).to_le_bytes());
    bytes
}

#[test]
fn what_was_written_is_read() {
    let mut reserved = Unit::default();
    reserved.reserve_6(&nexus(1)).unwrap();
    let states = ReservationType::ALL.into_iter().map(mixed);
    let states = states.chain([
        Reservations::default(),
        Reservations::information_lost(),
        Unit::with(&[1, 2]).0,
        reserved.0,
    ]);
    for state in states {
        let with = record(state);
        assert_eq!(Record::decode(&with.encode()), Ok(with.clone()));
        let without = Record { operation: None, ..with };
        assert_eq!(Record::decode(&without.encode()), Ok(without));
    }
}

#[test]
fn another_boot_of_the_card_is_a_power_on_and_another_start_of_the_agent_is_none() {
    let volatile = record(Unit::held(ReservationType::WriteExclusive, &[1]).0);
    let mut same = volatile.clone();
    assert!(!same.on_boot([7; 16]));
    assert_eq!(same, volatile);
    let mut other = volatile;
    assert!(other.on_boot([8; 16]));
    assert_eq!((other.boot_id, &other.operation), ([8; 16], &None));
    assert!(other.reservations.is_empty());
    let mut persistent = record(mixed(ReservationType::WriteExclusive));
    assert!(persistent.on_boot([8; 16]));
    assert_eq!(persistent.reservations.registrations().len(), 5);
    assert!(persistent.reservations.is_holder(&nexus(2)));
}

#[test]
fn a_thousand_registrants_and_as_many_as_there_can_be() {
    let text = |count: usize| {
        let lines = (1..=count).map(|number| {
            let id = at(number as u16, 1).initiator;
            let hex: String = id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("registrant 1 {number:016x} 0 24 {hex}\n")
        });
        format!("version 1\n{}", lines.collect::<String>())
    };
    for count in [1_000, REGISTRATIONS_MAX] {
        let state = scst::import_state(&text(count)).unwrap();
        assert_eq!(state.registrations().len(), count);
        let record = record(state);
        assert_eq!(Record::decode(&record.encode()), Ok(record));
    }
    assert_eq!(scst::import_state(&text(REGISTRATIONS_MAX + 1)), Err(ImportError::TooMany));
}

#[test]
fn a_record_that_is_cut_or_goes_on_is_damaged() {
    let bytes = record(mixed(ReservationType::WriteExclusive)).encode();
    for cut in 0..bytes.len() {
        let found = Record::decode(&bytes[..cut]);
        assert!(matches!(found, Err(RecordError::Damaged(_))), "{cut} bytes: {found:?}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(Record::decode(&longer), Err(RecordError::Damaged(_))));
}

#[test]
fn a_record_with_any_bit_changed_is_not_trusted() {
    let bytes = record(mixed(ReservationType::WriteExclusiveAllRegistrants)).encode();
    for byte in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[byte] ^= 1 << bit;
            assert!(Record::decode(&changed).is_err(), "bit {bit} of byte {byte}");
        }
    }
}

#[test]
fn foreign_newer_and_scsts_files_are_told_apart() {
    assert_eq!(
        Record::decode(b"#!/bin/sh and so on, more than a header"),
        Err(RecordError::Foreign)
    );
    assert_eq!(Record::decode(b"#!"), Err(RecordError::Foreign));
    assert!(matches!(Record::decode(b""), Err(RecordError::Damaged(_))));
    let mut bytes = record(Reservations::default()).encode();
    bytes[8] = 2;
    let newer = Record::decode(&bytes).unwrap_err();
    assert_eq!(newer, RecordError::TooNew { version: 2 });
    assert!(newer.to_string().contains("format 2"), "{newer}");
    assert_eq!(Record::decode(&scst_file(true, &[])), Err(RecordError::Scst));
}

#[test]
fn a_state_that_cannot_be_is_damaged_whatever_its_check_sum() {
    let impossible = Err(RecordError::Damaged("it tells of a state that cannot be"));
    let state = Unit::held(ReservationType::WriteExclusive, &[1]).0;
    let record = Record { operation: None, unit: "d".into(), ..record(state) };
    let bytes = record.encode();
    assert_eq!(Record::decode(&sealed(bytes.clone())), Ok(record));
    // Header 16, name 3, boot id 16, flags, generation 4, type, holder 28, count 4, nexus 28, key 8.
    let at = |byte: usize, value: u8| {
        let mut changed = bytes.clone();
        changed[byte] = value;
        Record::decode(&sealed(changed))
    };
    assert_eq!(at(35, 0x10), impossible, "an unknown flag");
    assert_eq!(at(35, 0x02), impossible, "lost, and yet there");
    assert_eq!(at(40, 2), impossible, "no such type");
    assert_eq!(at(41, 9), impossible, "a holder who is not registered");
    assert_eq!(at(45, 3), impossible, "a TransportID of no known protocol");
    assert_eq!(at(46, 1), impossible, "a TransportID that is not in its one form");
    assert_eq!(at(69, 2), impossible, "more registrations than there are");
    assert_eq!(at(72, 0xFF), impossible, "more than there can be");
    assert_eq!(at(101, 0), impossible, "a key of zero");
}

#[test]
fn a_record_that_registers_one_nexus_twice_is_damaged() {
    let state = Unit::with(&[1, 2]).0;
    let record = Record { operation: None, ..record(state) };
    let mut bytes = record.encode();
    // The last registration is 28 bytes of nexus and 8 of key before the check sum.
    let last = bytes.len() - 4 - 36;
    bytes.copy_within(last - 36..last, last);
    let twice = Record::decode(&sealed(bytes));
    assert_eq!(twice, Err(RecordError::Damaged("it tells of a state that cannot be")));
}

#[test]
fn a_name_too_long_is_cut() {
    let mut long = record(Reservations::default());
    long.unit = "ü".repeat(300);
    let read = Record::decode(&long.encode()).unwrap();
    assert_eq!(read.unit, "ü".repeat(127));
}

// SCST

/// A file as an SCST host of either byte order writes it: APTPL, Write Exclusive - Registrants Only, and
/// for each registrant whether it holds, its TransportID, key and port.
fn scst_file(little: bool, registrants: &[(u8, TransportId, u64, u16)]) -> Vec<u8> {
    let word = |value: u64| if little { value.to_le_bytes() } else { value.to_be_bytes() };
    let short = |value: u16| if little { value.to_le_bytes() } else { value.to_be_bytes() };
    let reserved = u8::from(!registrants.is_empty());
    let mut file = [word(0xBBEE_EEAA_EEBB_DD77), word(1)].concat();
    file.extend([1, reserved, 5, 0]);
    for (holder, id, key, port) in registrants {
        file.push(*holder);
        file.extend(id.as_bytes());
        file.extend(key.to_be_bytes());
        file.extend(short(*port));
    }
    file
}

fn registrants() -> Vec<(u8, TransportId, u64, u16)> {
    vec![
        (0, nexus(1).initiator, 0x0123_4567_89AB_CDEF, 1),
        (1, iscsi(), 7, 0x0102),
        (0, TransportId::sas([5; 8]), 7, 3),
    ]
}

#[test]
fn scsts_file_is_imported_from_hosts_of_either_byte_order() {
    for little in [true, false] {
        let state = scst::import_file(&scst_file(little, &registrants())).unwrap();
        assert_eq!(state.registrations().len(), 3);
        assert!(state.persists_through_power_loss());
        assert_eq!(state.generation(), 0);
        let held = state.reservation().unwrap();
        assert_eq!(held.kind, ReservationType::WriteExclusiveRegistrantsOnly);
        assert_eq!(held.holder, Some(Nexus { initiator: iscsi(), target_port: 0x0102 }));
        let first = state.registrations().find(|found| found.nexus == &nexus(1)).unwrap();
        assert_eq!(first.key, 0x0123_4567_89AB_CDEF);
    }
    assert!(scst::import_file(&scst_file(true, &[])).unwrap().is_empty());
}

#[test]
fn scsts_file_that_is_cut_or_was_being_written_is_refused() {
    let file = scst_file(true, &registrants());
    let whole = scst::import_file(&file).unwrap();
    for cut in 0..file.len() {
        match scst::import_file(&file[..cut]) {
            // Cut between registrants nothing tells that there were more, but the holder is missed.
            Ok(state) => assert_ne!(state.registrations().len(), whole.registrations().len()),
            Err(ImportError::Signature) => assert!(cut < 8),
            Err(error) => assert!(matches!(error, ImportError::Cut | ImportError::Holder)),
        }
    }
    let mut unfinished = file.clone();
    unfinished[..8].fill(0);
    assert_eq!(scst::import_file(&unfinished), Err(ImportError::Signature));
    let mut newer = file.clone();
    newer[8] = 2;
    assert_eq!(scst::import_file(&newer), Err(ImportError::Version(2)));
    let mut bad = file.clone();
    bad[18] = 4;
    assert_eq!(scst::import_file(&bad), Err(ImportError::Type { kind: 4, scope: 0 }));
    let mut fibre_channel = file;
    fibre_channel[21] = 0x00;
    let error = ImportError::TransportId { registrant: 1, first: 0 };
    assert_eq!(scst::import_file(&fibre_channel), Err(error));
}

#[test]
fn holders_that_do_not_fit_the_reservation_are_refused() {
    let mut two = registrants();
    two[0].0 = 1;
    assert_eq!(scst::import_file(&scst_file(true, &two)), Err(ImportError::Holder));
    let mut file = scst_file(true, &registrants());
    file[17] = 0;
    assert_eq!(scst::import_file(&file), Err(ImportError::Holder), "a holder of nothing");
    // Of the all registrants types anybody may be marked.
    let mut file = scst_file(true, &two);
    file[18] = 7;
    let state = scst::import_file(&file).unwrap();
    assert!(state.registrations().all(|registration| registration.holder));
    let mut zero = registrants();
    zero[2].2 = 0;
    let error = Err(ImportError::Registrant { registrant: 3 });
    assert_eq!(scst::import_file(&scst_file(true, &zero)), error);
    let mut twice = registrants();
    twice[2] = twice[0].clone();
    assert_eq!(scst::import_file(&scst_file(true, &twice)), error);
}

#[test]
fn pr_state_as_scst_has_it() {
    let mut unit = Unit::held(ReservationType::ExclusiveAccessRegistrantsOnly, &[2, 3]);
    let text = scst::export_state(&unit.0).unwrap();
    assert_eq!(
        text,
        "version 1\n\
         generation 2\n\
         reservation 06 00\n\
         registrant 1 0000000000000002 1 24 0400000000000000e0e0e0e0e0e0e0e0e0e0e0e0e0e00002\n\
         registrant 1 0000000000000003 0 24 0400000000000000e0e0e0e0e0e0e0e0e0e0e0e0e0e00003\n"
    );
    // What the text does not say is on the safe side.
    unit.send(&nexus(2), OutAction::Register, 0, &list(2, 2, APTPL)).unwrap();
    let text = text.replace("generation 2", "generation 3");
    assert_eq!(scst::import_state(&text), Ok(unit.0));
}

#[test]
fn pr_state_cannot_say_that_information_is_lost() {
    assert_eq!(scst::export_state(&Reservations::information_lost()), None);
    let none = scst::export_state(&Reservations::default()).unwrap();
    assert_eq!(none, "version 1\ngeneration 0\n");
}

#[test]
fn pr_state_of_all_registrants_marks_one_holder() {
    let unit = Unit::held(ReservationType::WriteExclusiveAllRegistrants, &[2, 3]);
    let text = scst::export_state(&unit.0).unwrap();
    assert_eq!(text.matches(" 1 24 ").count(), 1);
    let imported = scst::import_state(&text).unwrap();
    assert_eq!(imported.reservation(), unit.0.reservation());
}

#[test]
fn pr_state_lines_that_say_nothing_known_are_refused_by_number() {
    let id = "0400000000000000e0e0e0e0e0e0e0e0e0e0e0e0e0e00002";
    let short = &id[2..];
    for line in [
        "registrants 1".to_owned(),
        "generation".to_owned(),
        "generation -1".to_owned(),
        "generation 1 2".to_owned(),
        "reservation 05".to_owned(),
        "registrant 65536 1 0 24 00".to_owned(),
        format!("registrant 1 g 0 24 {id}"),
        format!("registrant 1 1 2 24 {id}"),
        format!("registrant 1 1 0 24 {short}"),
        format!("registrant 1 1 0 23 {id}"),
        format!("registrant 1 1 0 9999999 {id}"),
        format!("registrant 1 1 0 24 {}", id.replace('e', "x")),
        format!("registrant 1 1 0 24 {id} x"),
    ] {
        let text = format!("version 1\n\n{line}\n");
        assert_eq!(scst::import_state(&text), Err(ImportError::Line { line: 3 }), "{line}");
    }
    assert_eq!(scst::import_state("generation 1\n"), Err(ImportError::Cut));
    assert_eq!(scst::import_state("version 2\n"), Err(ImportError::Version(2)));
    let other = format!("version 1\nregistrant 1 1 0 24 00{short}\n");
    let error = ImportError::TransportId { registrant: 1, first: 0 };
    assert_eq!(scst::import_state(&other), Err(error));
    let orphan = format!("version 1\nreservation 05 00\nregistrant 1 1 0 24 {id}\n");
    assert_eq!(scst::import_state(&orphan), Err(ImportError::Holder));
    let scope = "version 1\nreservation 05 01\n";
    assert_eq!(scst::import_state(scope), Err(ImportError::Type { kind: 5, scope: 1 }));
}

proptest! {
    #[test]
    fn any_bytes_and_any_text_are_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        text in "(version 1\n)?((generation|reservation|registrant)( [0-9a-f]{1,4}){1,5}\n){0,4}",
        head in 0_u8..3,
    ) {
        let head: &[u8] = match head {
            0 => b"LUNARPR\0\x01\0\0\0",
            1 => b"\x77\xDD\xBB\xEE\xAA\xEE\xEE\xBB\x01\0\0\0\0\0\0\0",
            _ => b"",
        };
        let bytes = [head, &bytes].concat();
        let _ = Record::decode(&bytes);
        let _ = Record::decode(&sealed([&bytes[..], &[0; 4]].concat()));
        let _ = scst::import_file(&bytes);
        let _ = scst::import_state(&text);
    }

    #[test]
    fn what_is_exported_is_imported(
        numbers in prop::collection::btree_set(1_u16..500, 1..40),
        kind in prop::option::of(prop::sample::select(ReservationType::ALL.to_vec())),
    ) {
        let numbers: Vec<_> = numbers.into_iter().collect();
        let unit = match kind {
            Some(kind) => Unit::held(kind, &numbers),
            None => Unit::with(&numbers),
        };
        let imported = scst::import_state(&scst::export_state(&unit.0).unwrap()).unwrap();
        prop_assert!(imported.registrations().eq(unit.0.registrations()));
        prop_assert_eq!(imported.reservation(), unit.0.reservation());
        prop_assert_eq!(imported.generation(), unit.0.generation());
    }
}
