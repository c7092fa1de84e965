//! Reservations command by command: what each clause says, from whom, with which parameter list.

mod reservation_kit;

use lunar_scsi::device_server::Ending;
use lunar_scsi::opcodes::opcode;
use lunar_scsi::reservations::ReservationType::{
    ExclusiveAccess, ExclusiveAccessAllRegistrants, WriteExclusive, WriteExclusiveAllRegistrants,
    WriteExclusiveRegistrantsOnly,
};
use lunar_scsi::reservations::{
    Access, AccessTable, Nexus, OutAction, REGISTRATIONS_MAX, ReservationType, Reservations,
    TransportId,
};
use lunar_scsi::sense::Sense;
use lunar_scsi::status::Status;
use reservation_kit::{
    ALL_TG_PT, APTPL, CLEARED, CONFLICT, PORTS, PREEMPTED, RELEASED, SPEC_I_PT, Unit, aborted, at,
    in_list, in_the_cdb, list, list_with_ids, move_list, nexus, out_cdb, refused, told,
};

const REGISTER: OutAction = OutAction::Register;
const IGNORE: OutAction = OutAction::RegisterAndIgnore;

/// The types that keep others out one by one and let registrants in.
fn kinds(admits_registrants: bool) -> impl Iterator<Item = ReservationType> {
    let fits = move |kind: &ReservationType| kind.admits_registrants() == admits_registrants;
    ReservationType::ALL.into_iter().filter(fits)
}

// Registering, SPC-4 5.13.7

#[test]
fn spc_4_table_67_from_a_nexus_that_is_not_registered() {
    let mut unit = Unit::default();
    let done = unit.send(&nexus(1), REGISTER, 0, &list(0, 0, 0)).unwrap();
    assert!(!done.is_new, "do nothing except return GOOD");
    assert_eq!(unit.send(&nexus(1), REGISTER, 0, &list(7, 8, 0)), CONFLICT);
    assert_eq!(unit.send(&nexus(1), REGISTER, 0, &list(7, 0, 0)), CONFLICT);
    let done = unit.send(&nexus(1), REGISTER, 0, &list(0, 8, 0)).unwrap();
    assert!(done.is_new && !done.needs_gate);
    assert_eq!((unit.keys(), unit.0.generation()), (vec![8], 1));
}

#[test]
fn spc_4_table_67_from_a_registered_nexus() {
    let mut unit = Unit::with(&[1]);
    assert_eq!(unit.send(&nexus(1), REGISTER, 0, &list(0, 8, 0)), CONFLICT);
    assert_eq!(unit.send(&nexus(1), REGISTER, 0, &list(2, 0, 0)), CONFLICT);
    unit.send(&nexus(1), REGISTER, 0, &list(1, 8, 0)).unwrap();
    assert_eq!(unit.keys(), [8]);
    for action_key in [0, 9] {
        let list = list_with_ids(8, action_key, 0, &[nexus(2).initiator.as_bytes()]);
        let refused = in_list(20, Some(3));
        assert_eq!(unit.send(&nexus(1), REGISTER, 0, &list), refused);
    }
    unit.send(&nexus(1), REGISTER, 0, &list(8, 0, 0)).unwrap();
    assert!(unit.0.is_empty());
    assert_eq!(unit.0.generation(), 3);
}

#[test]
fn spc_4_table_68_register_and_ignore_existing_key() {
    let mut unit = Unit::default();
    assert!(!unit.send(&nexus(1), IGNORE, 0, &list(5, 0, 0)).unwrap().is_new);
    unit.send(&nexus(1), IGNORE, 0, &list(5, 8, 0)).unwrap();
    assert_eq!(unit.keys(), [8]);
    unit.send(&nexus(1), IGNORE, 0, &list(5, 9, 0)).unwrap();
    assert_eq!(unit.keys(), [9]);
    unit.send(&nexus(1), IGNORE, 0, &list(5, 0, 0)).unwrap();
    assert!(unit.0.is_empty());
    assert_eq!(unit.0.generation(), 3);
}

#[test]
fn spc_4_5_13_7_registering_ignores_scope_and_type_and_leaves_the_reservation() {
    let mut unit = Unit::held(WriteExclusive, &[1, 2]);
    let done = unit.send(&nexus(1), REGISTER, 0xFF, &list(1, 11, 0)).unwrap();
    assert!(!done.needs_gate);
    assert_eq!(unit.holders(), [nexus(1)]);
    unit.send(&nexus(3), REGISTER, 0xFF, &list(0, 3, 0)).unwrap();
    assert_eq!(unit.keys(), [11, 2, 3]);
}

#[test]
fn spc_4_5_13_1_the_same_key_may_be_everybodys_and_a_nexus_is_a_pair_of_ports() {
    let mut unit = Unit::default();
    for from in [at(1, 1), at(1, 2), at(2, 1)] {
        unit.register(&from, 7).unwrap();
    }
    unit.register(&at(1, 2), 0).unwrap();
    let left: Vec<_> = unit.0.registrations().map(|found| found.nexus.clone()).collect();
    assert_eq!(left, [at(1, 1), at(2, 1)]);
}

#[test]
fn spc_4_6_16_3_all_tg_pt_registers_at_every_port_of_the_transport() {
    let mut unit = Unit::default();
    unit.send(&at(1, 2), REGISTER, 0, &list(0, 7, ALL_TG_PT)).unwrap();
    assert_eq!((unit.key(&at(1, 1)), unit.key(&at(1, 2)), unit.key(&at(1, 3))), (7, 7, 0));
    unit.send(&at(1, 1), REGISTER, 0, &list(7, 8, ALL_TG_PT)).unwrap();
    assert_eq!(unit.keys(), [8, 8]);
    // One port alone, as without the bit.
    unit.send(&at(1, 1), REGISTER, 0, &list(8, 9, 0)).unwrap();
    assert_eq!(unit.keys(), [9, 8]);
    let third = unit.send(&at(1, 1), REGISTER, 0, &list(9, 10, ALL_TG_PT));
    assert_eq!(third, CONFLICT, "the other port has neither the old key nor the new one");
    unit.send(&at(1, 1), IGNORE, 0, &list(0, 0, ALL_TG_PT)).unwrap();
    assert!(unit.0.is_empty());
}

#[test]
fn spc_4_6_16_3_all_tg_pt_unregisters_elsewhere_although_it_is_not_registered_here() {
    let mut unit = Unit::default();
    unit.register(&at(1, 2), 7).unwrap();
    let refused = unit.send(&at(1, 1), REGISTER, 0, &list(0, 8, ALL_TG_PT));
    assert_eq!(refused, CONFLICT);
    unit.send(&at(1, 1), IGNORE, 0, &list(0, 0, ALL_TG_PT)).unwrap();
    assert!(unit.0.is_empty());
    assert!(!unit.send(&at(1, 1), IGNORE, 0, &list(0, 0, ALL_TG_PT | APTPL)).unwrap().is_new);
}

#[test]
fn spc_4_6_16_3_spec_i_pt_registers_the_listed_ports_or_nobody() {
    let (two, three) = (nexus(2).initiator, nexus(3).initiator);
    let mut unit = Unit::default();
    let ids = list_with_ids(0, 7, 0, &[two.as_bytes(), three.as_bytes(), two.as_bytes()]);
    unit.send(&nexus(1), REGISTER, 0, &ids).unwrap();
    assert_eq!(unit.keys(), [7, 7, 7]);
    assert_eq!(unit.0.generation(), 1);

    let mut unit = Unit::with(&[3]);
    assert_eq!(unit.send(&nexus(1), REGISTER, 0, &ids), in_list(28 + 24, None));
    assert_eq!(unit.keys(), [3]);

    let both = list_with_ids(0, 7, ALL_TG_PT, &[two.as_bytes()]);
    let mut unit = Unit::default();
    unit.send(&nexus(1), REGISTER, 0, &both).unwrap();
    let registered: Vec<_> = unit.0.registrations().map(|found| found.nexus.clone()).collect();
    assert_eq!(registered, [at(1, 1), at(1, 2), at(2, 1), at(2, 2)]);
}

#[test]
fn spc_4_6_16_3_spec_i_pt_is_for_register_alone() {
    let ids = list_with_ids(1, 7, 0, &[nexus(2).initiator.as_bytes()]);
    for action in OutAction::ALL {
        let mut unit = Unit::held(WriteExclusive, &[1]);
        let found = unit.send(&nexus(1), action, 1, &ids);
        match action {
            OutAction::RegisterAndMove => assert_ne!(found, in_list(20, Some(3))),
            OutAction::ReplaceLost => assert_eq!(found, refused(Sense::INVALID_RELEASE)),
            _ => assert_eq!(found, in_list(20, Some(3)), "{action:?}"),
        }
        assert_eq!(unit.keys(), [1]);
    }
}

#[test]
fn spc_4_6_16_3_a_listed_port_of_another_transport_is_refused_where_it_stands() {
    let sas = TransportId::sas([5; 8]);
    let ids = [nexus(2).initiator, sas];
    let ids = list_with_ids(0, 7, 0, &[ids[0].as_bytes(), ids[1].as_bytes()]);
    let mut unit = Unit::default();
    assert_eq!(unit.send(&nexus(1), REGISTER, 0, &ids), in_list(52, None));
    assert!(unit.0.is_empty());
}

#[test]
fn spc_4_6_16_3_lists_that_lie_about_their_length() {
    let id = nexus(2).initiator;
    let whole = list_with_ids(0, 7, 0, &[id.as_bytes()]);
    for cut in 0..whole.len() {
        let found = Unit::default().send(&nexus(1), REGISTER, 0, &whole[..cut]);
        assert_eq!(found, refused(Sense::PARAMETER_LIST_LENGTH_ERROR), "{cut} bytes");
    }
    // TRANSPORTID PARAMETER DATA LENGTH ends inside the TransportID.
    let mut cut = whole.clone();
    cut[27] = 23;
    let found = Unit::default().send(&nexus(1), REGISTER, 0, &cut);
    assert_eq!(found, refused(Sense::PARAMETER_LIST_LENGTH_ERROR));
    // What is behind it is nobody's.
    let mut unit = Unit::default();
    let longer = [&whole[..], &[0xFF; 9]].concat();
    unit.send(&nexus(1), REGISTER, 0, &longer).unwrap();
    assert_eq!(unit.keys(), [7, 7]);
    // Without SPEC_I_PT there are 24 bytes, and PARAMETER LIST LENGTH is what counts.
    let plain = list(0, 7, 0);
    let long = [&plain[..], &[0]].concat();
    let found = Unit::default().send(&nexus(1), REGISTER, 0, &long);
    assert_eq!(found, refused(Sense::PARAMETER_LIST_LENGTH_ERROR));
    let state = Reservations::default();
    let cdb = out_cdb(REGISTER, 0, 25);
    let found = state.persistent_reserve_out(&nexus(1), &cdb, &plain, &PORTS);
    assert_eq!(found, refused(Sense::PARAMETER_LIST_LENGTH_ERROR));
    let cdb = out_cdb(REGISTER, 0, 24);
    assert!(state.persistent_reserve_out(&nexus(1), &cdb, &long, &PORTS).is_ok());
}

#[test]
fn spc_4_6_16_3_a_transport_id_of_no_known_protocol_has_the_pointer_at_it() {
    for first in [0x00, 0x01, 0x02, 0x03, 0x07, 0x0E, 0x44, 0x85, 0xC6] {
        let mut id = nexus(2).initiator.as_bytes().to_vec();
        id[0] = first;
        let ids = list_with_ids(0, 7, 0, &[nexus(3).initiator.as_bytes(), &id]);
        let found = Unit::default().send(&nexus(1), REGISTER, 0, &ids);
        assert_eq!(found, in_list(52, None), "{first:#04x}");
    }
}

#[test]
fn a_unit_takes_as_many_registrations_as_it_says_and_no_more() {
    let mut unit = Unit::default();
    let count = u16::try_from(REGISTRATIONS_MAX).unwrap();
    for number in 0..count {
        unit.0 = {
            let list = list(0, u64::from(number) + 1, 0);
            let cdb = out_cdb(REGISTER, 0, list.len());
            unit.0.persistent_reserve_out(&nexus(number), &cdb, &list, &PORTS).unwrap().state
        };
        if number == 999 {
            assert_eq!(unit.read(0, u16::MAX).unwrap().len(), 8 + 8 * 1_000);
            assert_eq!(unit.read(3, u16::MAX).unwrap().len(), 8 + 48 * 1_000);
        }
    }
    let full = refused(Sense::INSUFFICIENT_REGISTRATION_RESOURCES);
    assert_eq!(unit.register(&nexus(count), 1), full);
    assert!(unit.register(&nexus(0), 2).is_ok(), "who is registered needs no more room");
    unit.reserve(&nexus(0), WriteExclusive).unwrap();
    let to = nexus(count).initiator;
    let over = move_list(2, 1, 0, 1, to.as_bytes());
    assert_eq!(unit.send(&nexus(0), OutAction::RegisterAndMove, 0, &over), full);
    let stays = move_list(2, 1, 2, 1, to.as_bytes());
    assert!(unit.send(&nexus(0), OutAction::RegisterAndMove, 0, &stays).is_ok());
    let preempted = unit.abort(&nexus(1), ExclusiveAccess, 1).unwrap();
    assert_eq!(aborted(&preempted), [count]);
    let cleared = unit.clear(&nexus(1)).unwrap();
    assert_eq!(cleared.effects.attentions.len(), REGISTRATIONS_MAX - 2);
}

// Reserving and releasing, SPC-4 5.13.9 and 5.13.11.2.2

#[test]
fn spc_4_5_13_9_a_holder_may_ask_again_for_the_same_and_for_nothing_else() {
    for kind in ReservationType::ALL {
        let mut unit = Unit::held(kind, &[1, 2]);
        assert!(!unit.reserve(&nexus(1), kind).unwrap().is_new);
        for other in ReservationType::ALL.into_iter().filter(|&other| other != kind) {
            assert_eq!(unit.reserve(&nexus(1), other), CONFLICT);
        }
        let second = unit.reserve(&nexus(2), kind);
        if kind.is_all_registrants() {
            assert!(!second.unwrap().is_new, "everybody who is registered is a holder");
        } else {
            assert_eq!(second, CONFLICT);
        }
    }
}

#[test]
fn spc_4_5_13_9_reserving_takes_a_registration_and_its_key() {
    let mut unit = Unit::with(&[1]);
    let reserve = OutAction::Reserve;
    assert_eq!(unit.send(&nexus(2), reserve, 1, &list(0, 0, 0)), CONFLICT);
    assert_eq!(unit.send(&nexus(1), reserve, 1, &list(2, 0, 0)), CONFLICT);
    let done = unit.send(&nexus(1), reserve, 1, &list(1, 0, 0)).unwrap();
    assert!(done.needs_gate && done.effects.is_empty());
    assert_eq!(unit.0.generation(), 1, "RESERVE does not count");
}

#[test]
fn spc_4_6_15_3_3_bad_scopes_and_types_have_the_pointer_at_them() {
    let mut unit = Unit::with(&[1, 2]);
    for action in [OutAction::Reserve, OutAction::Preempt, OutAction::PreemptAndAbort] {
        let mut unit = unit.clone();
        if action != OutAction::Reserve {
            unit.reserve(&nexus(2), WriteExclusive).unwrap();
        }
        for scope in 1..16 {
            let found = unit.send(&nexus(1), action, scope << 4 | 1, &list(1, 2, 0));
            assert_eq!(found, in_the_cdb(2, Some(7)), "{action:?}");
        }
        for kind in [0, 2, 4, 9, 10, 11, 12, 13, 14, 15] {
            let found = unit.send(&nexus(1), action, kind, &list(1, 2, 0));
            assert_eq!(found, in_the_cdb(2, Some(3)), "{action:?}");
        }
    }
    // They do not matter where no reservation is made of them.
    assert!(unit.send(&nexus(1), OutAction::Preempt, 0xFF, &list(1, 2, 0)).is_ok());
    assert!(unit.send(&nexus(1), OutAction::Clear, 0xFF, &list(1, 0, 0)).is_ok());
}

#[test]
fn spc_4_5_13_11_2_2_releasing_tells_the_registrants_of_the_types_they_had_a_part_in() {
    for kind in ReservationType::ALL {
        let mut unit = Unit::held(kind, &[1, 2, 3]);
        let done = unit.release(&nexus(1), kind).unwrap();
        let expected: &[_] =
            if kind.admits_registrants() { &[(2, RELEASED), (3, RELEASED)] } else { &[] };
        assert_eq!(told(&done), expected, "{kind:?}");
        assert_eq!((unit.kind(), unit.keys().len()), (None, 3));
        assert_eq!(unit.0.generation(), 3, "RELEASE does not count");
    }
}

#[test]
fn spc_4_5_13_11_2_2_releasing_what_one_does_not_hold_does_nothing() {
    for kind in ReservationType::ALL.into_iter().filter(|kind| !kind.is_all_registrants()) {
        let mut unit = Unit::held(kind, &[1, 2]);
        assert!(!unit.release(&nexus(2), kind).unwrap().is_new);
        let list = list(1, 0, 0);
        for other in (0..=u8::MAX).filter(|&other| other != kind as u8) {
            let found = unit.send(&nexus(1), OutAction::Release, other, &list);
            assert_eq!(found, refused(Sense::INVALID_RELEASE));
        }
    }
    assert!(!Unit::with(&[1]).release(&nexus(1), WriteExclusive).unwrap().is_new);
}

// Unregistering and clearing, SPC-4 5.13.11.2.3 and 5.13.11.2.7

#[test]
fn spc_4_5_13_11_2_3_a_holder_that_unregisters_releases() {
    for kind in ReservationType::ALL.into_iter().filter(|kind| !kind.is_all_registrants()) {
        let mut unit = Unit::held(kind, &[1, 2, 3]);
        let done = unit.register(&nexus(1), 0).unwrap();
        let expected: &[_] =
            if kind.admits_registrants() { &[(2, RELEASED), (3, RELEASED)] } else { &[] };
        assert_eq!(told(&done), expected, "{kind:?}");
        assert_eq!(unit.kind(), None);
        assert!(done.needs_gate);
    }
}

#[test]
fn spc_4_5_13_11_2_3_an_all_registrants_reservation_lasts_as_long_as_a_registrant() {
    for kind in [WriteExclusiveAllRegistrants, ExclusiveAccessAllRegistrants] {
        let mut unit = Unit::held(kind, &[1, 2]);
        assert_eq!(told(&unit.register(&nexus(1), 0).unwrap()), []);
        assert_eq!((unit.kind(), unit.holders()), (Some(kind), vec![nexus(2)]));
        assert_eq!(told(&unit.register(&nexus(2), 0).unwrap()), []);
        assert!(unit.0.is_empty());
    }
}

#[test]
fn spc_4_5_13_11_2_3_one_who_is_no_holder_unregisters_alone() {
    for kind in kinds(false).chain([WriteExclusiveRegistrantsOnly]) {
        let mut unit = Unit::held(kind, &[1, 2]);
        let done = unit.register(&nexus(2), 0).unwrap();
        assert_eq!(told(&done), []);
        assert_eq!(unit.holders(), [nexus(1)]);
        assert_eq!(done.needs_gate, kind.admits_registrants());
    }
}

#[test]
fn spc_4_5_13_11_2_7_clear_removes_everything_and_tells_everybody_else() {
    for kind in ReservationType::ALL {
        let mut unit = Unit::held(kind, &[1, 2, 3]);
        assert_eq!(unit.send(&nexus(2), OutAction::Clear, 0, &list(1, 0, 0)), CONFLICT);
        let done = unit.clear(&nexus(2)).unwrap();
        assert_eq!(told(&done), [(1, CLEARED), (3, CLEARED)]);
        assert_eq!(aborted(&done), [0_u16; 0]);
        assert!(unit.0.is_empty());
        assert_eq!(unit.0.generation(), 4);
    }
}

// Preempting, SPC-4 5.13.11.2.4 to 5.13.11.2.6

#[test]
fn spc_4_table_72_preempting_the_holder_of_another_type_than_all_registrants() {
    for kind in ReservationType::ALL.into_iter().filter(|kind| !kind.is_all_registrants()) {
        for new in ReservationType::ALL {
            let mut unit = Unit::held(kind, &[1, 2, 3]);
            unit.register(&nexus(4), 1).unwrap(); // the holder's key
            let done = unit.preempt(&nexus(2), new, 1).unwrap();
            let mut expected = vec![(1, PREEMPTED), (4, PREEMPTED)];
            if new != kind {
                expected.push((3, RELEASED));
            }
            assert_eq!(told(&done), expected, "{kind:?} by {new:?}");
            assert_eq!(aborted(&done), [0_u16; 0]);
            assert_eq!((unit.kind(), unit.keys()), (Some(new), vec![2, 3]));
            assert_eq!(unit.0.is_holder(&nexus(3)), new.is_all_registrants());
            assert_eq!(unit.0.generation(), 5);
        }
    }
}

#[test]
fn spc_4_table_72_zero_preempts_all_registrants_and_nobody_else() {
    for kind in [WriteExclusiveAllRegistrants, ExclusiveAccessAllRegistrants] {
        let mut unit = Unit::held(kind, &[1, 2, 3]);
        let done = unit.abort(&nexus(2), WriteExclusive, 0).unwrap();
        assert_eq!(told(&done), [(1, PREEMPTED), (3, PREEMPTED)]);
        assert_eq!(aborted(&done), [1, 2, 3], "all commands of all registered nexuses");
        assert_eq!((unit.kind(), unit.holders()), (Some(WriteExclusive), vec![nexus(2)]));
        assert_eq!(unit.keys(), [2]);
    }
    for kind in ReservationType::ALL.into_iter().filter(|kind| !kind.is_all_registrants()) {
        assert_eq!(Unit::held(kind, &[1, 2]).preempt(&nexus(2), kind, 0), in_list(8, None));
    }
    assert_eq!(Unit::with(&[1, 2]).preempt(&nexus(2), WriteExclusive, 0), in_list(8, None));
}

#[test]
fn spc_4_5_13_11_2_5_a_key_that_is_not_the_holders_removes_registrations_alone() {
    for kind in ReservationType::ALL {
        let mut unit = Unit::held(kind, &[1, 2, 3]);
        unit.register(&nexus(4), 3).unwrap();
        let done = unit.abort(&nexus(2), ExclusiveAccess, 3).unwrap();
        assert_eq!(told(&done), [(3, PREEMPTED), (4, PREEMPTED)]);
        assert_eq!(aborted(&done), [3, 4]);
        assert_eq!((unit.kind(), unit.keys()), (Some(kind), vec![1, 2]));
        assert_eq!(unit.preempt(&nexus(2), kind, 99), CONFLICT, "nobody has that key");
    }
}

#[test]
fn spc_4_5_13_11_2_5_without_a_reservation_registrations_are_removed() {
    let mut unit = Unit::with(&[1, 2]);
    let done = unit.preempt(&nexus(1), WriteExclusive, 2).unwrap();
    assert_eq!(told(&done), [(2, PREEMPTED)]);
    assert_eq!((unit.kind(), unit.keys()), (None, vec![1]));
    assert_eq!(unit.preempt(&nexus(1), WriteExclusive, 2), CONFLICT);
}

#[test]
fn spc_4_5_13_11_2_5_ones_own_key_is_removed_and_nothing_is_told() {
    let mut unit = Unit::held(WriteExclusiveRegistrantsOnly, &[1, 2]);
    let done = unit.preempt(&nexus(2), WriteExclusive, 2).unwrap();
    assert_eq!(told(&done), []);
    assert_eq!((unit.keys(), unit.holders()), (vec![1], vec![nexus(1)]));

    let mut unit = Unit::held(WriteExclusiveAllRegistrants, &[1]);
    unit.preempt(&nexus(1), WriteExclusive, 1).unwrap();
    assert!(unit.0.is_empty(), "the last registrant took the reservation with it");
}

#[test]
fn spc_4_5_13_11_2_4_3_a_holder_preempts_itself_and_stays_registered() {
    let mut unit = Unit::held(WriteExclusive, &[1, 2]);
    let done = unit.abort(&nexus(1), ExclusiveAccess, 1).unwrap();
    assert_eq!(told(&done), [(2, RELEASED)]);
    assert_eq!(aborted(&done), [1], "its other commands, not this one");
    assert_eq!((unit.kind(), unit.holders()), (Some(ExclusiveAccess), vec![nexus(1)]));
}

#[test]
fn spc_4_5_13_11_2_6_preempt_and_abort_goes_through_a_gate_whatever_it_changes() {
    let mut unit = Unit::with(&[1]);
    let done = unit.abort(&nexus(1), WriteExclusive, 1).unwrap();
    assert!(done.needs_gate && done.effects.attentions.is_empty());
}

#[test]
fn fencing_a_failed_node_as_cluster_software_does() {
    // Both nodes register, one reserves; the other notices its death, preempts its key and verifies.
    let mut unit = Unit::held(WriteExclusiveRegistrantsOnly, &[1, 2]);
    assert_eq!(unit.0.access(&nexus(1)), Access::OPEN);
    let done = unit.abort(&nexus(2), WriteExclusiveRegistrantsOnly, 1).unwrap();
    assert_eq!((told(&done), aborted(&done)), (vec![(1, PREEMPTED)], vec![1]));
    assert_eq!(unit.0.access_table().access(&nexus(1)), Access::NO_WRITES);
    assert_eq!(unit.read(0, 64).unwrap()[8..], 2_u64.to_be_bytes());
    // The fenced node comes back: it has no key any more.
    assert_eq!(unit.send(&nexus(1), REGISTER, 0, &list(1, 1, 0)), CONFLICT);
    unit.send(&nexus(1), REGISTER, 0, &list(0, 1, 0)).unwrap();
    assert_eq!(unit.0.access(&nexus(1)), Access::OPEN);
}

// REGISTER AND MOVE, SPC-4 5.13.8

const MOVE: OutAction = OutAction::RegisterAndMove;

fn moved(unit: &mut Unit, list: &[u8]) -> Result<lunar_scsi::reservations::Change, Ending> {
    unit.send(&nexus(1), MOVE, 0xFF, list)
}

#[test]
fn spc_4_5_13_8_the_reservation_moves_and_the_sender_stays_or_goes() {
    let to = nexus(9).initiator;
    for kind in ReservationType::ALL.into_iter().filter(|kind| !kind.is_all_registrants()) {
        let mut unit = Unit::held(kind, &[1, 2]);
        let done = moved(&mut unit, &move_list(1, 5, 0, 2, to.as_bytes())).unwrap();
        assert!(done.effects.is_empty() && done.needs_gate);
        assert_eq!((unit.kind(), unit.holders()), (Some(kind), vec![at(9, 2)]));
        assert_eq!((unit.key(&at(9, 2)), unit.key(&nexus(1))), (5, 1));
        assert_eq!(unit.0.generation(), 3);

        let mut unit = Unit::held(kind, &[1, 2, 9]);
        moved(&mut unit, &move_list(1, 5, 0x02, 1, to.as_bytes())).unwrap();
        assert_eq!((unit.keys(), unit.holders()), (vec![2, 5], vec![nexus(9)]));
    }
}

#[test]
fn spc_4_table_70_who_may_not_move() {
    let to = nexus(9).initiator;
    let good = move_list(1, 5, 0, 1, to.as_bytes());
    let mut unit = Unit::held(WriteExclusive, &[2, 1]);
    assert_eq!(moved(&mut unit, &good), CONFLICT, "registered, no holder");
    assert_eq!(unit.send(&nexus(3), MOVE, 0, &good), CONFLICT, "not registered");
    assert_eq!(moved(&mut Unit::with(&[1]), &good), in_the_cdb(1, Some(4)), "nothing to move");
    for kind in [WriteExclusiveAllRegistrants, ExclusiveAccessAllRegistrants] {
        assert_eq!(moved(&mut Unit::held(kind, &[1]), &good), CONFLICT);
    }
    let mut unit = Unit::held(WriteExclusive, &[1]);
    assert_eq!(moved(&mut unit, &move_list(2, 5, 0, 1, to.as_bytes())), CONFLICT, "wrong key");
    let zero = move_list(1, 0, 0, 1, to.as_bytes());
    assert_eq!(moved(&mut unit, &zero), in_list(8, None));
}

#[test]
fn spc_4_6_16_4_whereto_it_may_not_move() {
    let mut unit = Unit::held(WriteExclusive, &[1]);
    let (own, to) = (nexus(1).initiator, nexus(9).initiator);
    for port in [1, 2] {
        let list = move_list(1, 5, 0, port, own.as_bytes());
        assert_eq!(moved(&mut unit, &list), in_list(24, None), "to itself");
    }
    for port in [0, 4, u16::MAX] {
        let list = move_list(1, 5, 0, port, to.as_bytes());
        assert_eq!(moved(&mut unit, &list), in_list(18, None), "port {port}");
    }
    let list = move_list(1, 5, 0, 3, to.as_bytes());
    assert_eq!(moved(&mut unit, &list), in_list(24, None), "an SRP initiator at a VSCSI port");
    let vscsi = TransportId::vscsi(3, 0x3000_0002);
    moved(&mut unit, &move_list(1, 5, 0, 3, vscsi.as_bytes())).unwrap();
    assert_eq!(unit.holders(), [Nexus { initiator: vscsi, target_port: 3 }]);
}

#[test]
fn spc_4_6_16_4_lists_that_lie_about_their_length() {
    let to = nexus(9).initiator;
    let whole = move_list(1, 5, 0, 1, to.as_bytes());
    for cut in 0..whole.len() {
        let found = moved(&mut Unit::held(WriteExclusive, &[1]), &whole[..cut]);
        assert_eq!(found, refused(Sense::PARAMETER_LIST_LENGTH_ERROR), "{cut} bytes");
    }
    for length in [0_u32, 20, 23, 25] {
        let mut list = whole.clone();
        list[20..24].copy_from_slice(&length.to_be_bytes());
        list.extend([0; 8]);
        let found = moved(&mut Unit::held(WriteExclusive, &[1]), &list);
        assert_eq!(found, in_list(20, None), "{length} bytes");
    }
    let mut list = whole.clone();
    list.extend([0; 4]);
    list[23] = 28;
    let found = moved(&mut Unit::held(WriteExclusive, &[1]), &list);
    assert_eq!(found, in_list(20, None), "longer than an SRP port's");
    let mut list = whole;
    list[24] = 0x0B;
    assert_eq!(moved(&mut Unit::held(WriteExclusive, &[1]), &list), in_list(24, None));
}

// The CDBs themselves

#[test]
fn spc_4_6_16_1_unknown_service_actions_and_short_cdbs() {
    let state = Reservations::default();
    let mut out = [0; 8];
    for action in 9..=0x1F {
        let mut cdb = out_cdb(REGISTER, 0, 24);
        cdb[1] = action;
        let found = state.persistent_reserve_out(&nexus(1), &cdb, &list(0, 1, 0), &PORTS);
        assert_eq!(found, in_the_cdb(1, Some(4)));
        let found = state.persistent_reserve_in(&reservation_kit::in_cdb(action, 8), &mut out);
        assert_eq!(found, in_the_cdb(1, Some(4)));
    }
    let cdb = out_cdb(REGISTER, 0, 24);
    for cut in 0..cdb.len() {
        let found = state.persistent_reserve_out(&nexus(1), &cdb[..cut], &list(0, 1, 0), &PORTS);
        assert_eq!(found, in_the_cdb(0, None));
    }
}

// PERSISTENT RESERVE IN, SPC-4 6.15

#[test]
fn spc_4_6_15_2_read_keys_tells_every_key_twice_if_need_be() {
    let mut unit = Unit::with(&[1, 2]);
    unit.register(&nexus(3), 2).unwrap();
    let expected = [&[0, 0, 0, 3, 0, 0, 0, 24][..], &[1_u64, 2, 2].map(u64::to_be_bytes).concat()];
    let expected = expected.concat();
    assert_eq!(unit.read(0, 1_000).unwrap(), expected);
    for allocation in 0..32 {
        let cut = unit.read(0, allocation).unwrap();
        assert_eq!(cut, expected[..allocation.into()], "the lengths are those of the whole");
    }
}

#[test]
fn spc_4_6_15_3_read_reservation() {
    let mut unit = Unit::with(&[0x0102, 2]);
    assert_eq!(unit.read(1, 99).unwrap(), [0, 0, 0, 2, 0, 0, 0, 0]);
    unit.reserve(&nexus(0x0102), WriteExclusiveRegistrantsOnly).unwrap();
    let descriptor = [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 5, 0, 0];
    let expected = [&[0, 0, 0, 2, 0, 0, 0, 16][..], &descriptor].concat();
    assert_eq!(unit.read(1, 99).unwrap(), expected);
    let all = Unit::held(ExclusiveAccessAllRegistrants, &[1]).read(1, 99).unwrap();
    assert_eq!(all[8..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], "nobody's key");
}

#[test]
fn spc_4_6_15_4_report_capabilities() {
    let mut unit = Unit::default();
    assert_eq!(unit.read(2, 99).unwrap(), [0, 8, 0x9D, 0xC0, 0xEA, 0x01, 0, 0]);
    unit.send(&nexus(1), REGISTER, 0, &list(0, 1, APTPL)).unwrap();
    assert_eq!(unit.read(2, 99).unwrap(), [0, 8, 0x9D, 0xC1, 0xEA, 0x01, 0, 0]);
    assert_eq!(unit.read(2, 3).unwrap(), [0, 8, 0x9D]);
}

#[test]
fn spc_4_6_15_5_read_full_status() {
    let unit = Unit::held(WriteExclusive, &[1, 2]);
    let data = unit.read(3, 999).unwrap();
    assert_eq!(data[..8], [0, 0, 0, 2, 0, 0, 0, 96]);
    let descriptor = |number: u16, holder: u8, kind: u8| {
        let key = u64::from(number).to_be_bytes();
        let id = nexus(number).initiator;
        let fixed = [0, 0, 0, 0, holder, kind, 0, 0, 0, 0, 0, 1, 0, 0, 0, 24];
        [&key[..], &fixed, id.as_bytes()].concat()
    };
    assert_eq!(data[8..56], descriptor(1, 1, 1));
    assert_eq!(data[56..], descriptor(2, 0, 0));
    let all = Unit::held(ExclusiveAccessAllRegistrants, &[1, 2]).read(3, 999).unwrap();
    assert_eq!(all[8..], [descriptor(1, 1, 8), descriptor(2, 1, 8)].concat());
}

// RESERVE and RELEASE, SPC-2 5.5, and SPC-4 5.13.3

#[test]
fn spc_2_reserve_keeps_others_out_until_it_is_released() {
    for (reserve, release) in
        [(opcode::RESERVE_6, opcode::RELEASE_10), (opcode::RESERVE_10, opcode::RELEASE_6)]
    {
        let mut unit = Unit::default();
        assert!(!unit.legacy(&nexus(1), release).unwrap().is_new);
        let done = unit.legacy(&nexus(1), reserve).unwrap();
        assert!(done.is_new && done.needs_gate && done.effects.is_empty());
        assert!(!unit.legacy(&nexus(1), reserve).unwrap().is_new);
        assert_eq!(unit.legacy(&nexus(2), reserve), CONFLICT);
        assert!(!unit.legacy(&nexus(2), release).unwrap().is_new, "it is not released");
        assert_eq!(unit.0.access(&nexus(2)), Access::RESERVED);
        assert_eq!(unit.0.access(&at(1, 2)), Access::RESERVED, "another nexus");
        assert_eq!(unit.0.access(&nexus(1)), Access::OPEN);
        assert!(unit.legacy(&nexus(1), release).unwrap().needs_gate);
        assert!(unit.0.is_empty());
    }
}

#[test]
fn spc_2_the_two_ways_of_reserving_exclude_each_other() {
    let mut unit = Unit::default();
    unit.reserve_6(&nexus(1)).unwrap();
    for from in [nexus(1), nexus(2)] {
        for action in OutAction::ALL {
            assert_eq!(unit.send(&from, action, 1, &list(0, 1, 0)), CONFLICT);
        }
        for action in 0..4 {
            let conflict = Err(Ending::Status(Status::ReservationConflict));
            assert_eq!(unit.read(action, 99), conflict);
        }
    }
    // Registered, nothing reserved: RESERVE and RELEASE conflict, for the registered too.
    let mut unit = Unit::with(&[1]);
    for from in [nexus(1), nexus(2)] {
        assert_eq!(unit.reserve_6(&from), CONFLICT);
        assert_eq!(unit.release_6(&from), CONFLICT);
    }
}

#[test]
fn spc_2_third_parties_and_extents_are_refused() {
    let state = Reservations::default();
    let ask = |cdb: &[u8]| state.reserve_or_release(&nexus(1), cdb).map(|_| ());
    for operation in [0x16, 0x17, 0x56, 0x57] {
        let mut cdb = [operation, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(ask(&cdb), in_the_cdb(1, Some(4)));
        cdb[1] = 0x01;
        assert_eq!(ask(&cdb), in_the_cdb(1, Some(0)));
        cdb[1] = 0x02;
        let long_id = if operation > 0x20 { in_the_cdb(1, Some(1)) } else { Ok(()) };
        assert_eq!(ask(&cdb), long_id);
        cdb[1] = 0;
        assert_eq!(ask(&cdb), Ok(()));
        let short = if operation > 0x20 { in_the_cdb(0, None) } else { Ok(()) };
        assert_eq!(ask(&cdb[..6]), short);
        assert_eq!(ask(&cdb[..5]), in_the_cdb(0, None));
    }
    assert_eq!(ask(&[0x12, 0, 0, 0, 0, 0]), in_the_cdb(0, None));
}

#[test]
fn spc_2_reserve_ends_with_a_reset_its_nexus_and_power_and_persistent_ones_do_not() {
    let mut reserved = Unit::default();
    reserved.reserve_6(&nexus(1)).unwrap();
    let mut unit = reserved.clone();
    assert!(unit.0.on_logical_unit_reset() && unit.0.is_empty());
    let mut unit = reserved.clone();
    assert!(!unit.0.on_nexus_loss(&nexus(2)) && !unit.0.on_nexus_loss(&at(1, 2)));
    assert!(unit.0.on_nexus_loss(&nexus(1)) && unit.0.is_empty());
    let mut unit = reserved;
    assert!(unit.0.on_power_on() && unit.0.is_empty());

    let mut unit = Unit::held(WriteExclusive, &[1, 2]);
    assert!(!unit.0.on_logical_unit_reset() && !unit.0.on_nexus_loss(&nexus(1)));
    assert_eq!(unit.holders(), [nexus(1)]);
}

// Power loss, SPC-4 5.13.5

#[test]
fn spc_4_5_13_5_1_the_last_aptpl_decides_what_power_takes() {
    let mut unit = Unit::held(WriteExclusive, &[1, 2]);
    unit.send(&nexus(2), REGISTER, 0, &list(2, 3, APTPL)).unwrap();
    let mut kept = unit.clone();
    assert!(kept.0.on_power_on());
    assert_eq!((kept.keys(), kept.holders()), (vec![1, 3], vec![nexus(1)]));
    assert_eq!(kept.0.generation(), 0, "whatever APTPL");
    assert!(kept.0.persists_through_power_loss());
    assert!(!kept.0.on_power_on(), "nothing is new");
    // RESERVE's list has no say in it.
    unit.send(&nexus(1), OutAction::Reserve, 1, &list(1, 0, 0)).unwrap();
    assert!(unit.0.persists_through_power_loss());
    unit.send(&nexus(1), REGISTER, 0, &list(1, 1, 0)).unwrap();
    assert!(unit.0.on_power_on());
    assert_eq!(unit.0, Reservations::default());
}

#[test]
fn spc_4_5_13_8_register_and_move_sets_aptpl_where_its_list_has_it() {
    let mut unit = Unit::held(WriteExclusive, &[1]);
    let to = nexus(9).initiator;
    moved(&mut unit, &move_list(1, 5, 0x01, 1, to.as_bytes())).unwrap();
    assert!(unit.0.persists_through_power_loss());
}

// Lost information, SPC-4 5.13.5.3 and 5.13.11.3

#[test]
fn spc_4_5_13_5_3_while_information_is_lost_nothing_but_its_replacement_is_taken() {
    let lost = Reservations::information_lost();
    let mut unit = Unit(lost.clone());
    let sense = Sense::RESERVATION_INFORMATION_LOST;
    for action in OutAction::ALL.into_iter().filter(|&action| action != OutAction::ReplaceLost) {
        assert_eq!(unit.send(&nexus(1), action, 1, &list(0, 1, 0)), refused(sense));
    }
    for action in 0..4 {
        assert_eq!(unit.read(action, 99), refused(sense));
    }
    assert_eq!(unit.reserve_6(&nexus(1)), refused(sense));
    assert_eq!(unit.release_6(&nexus(1)), refused(sense));
    assert!(!unit.0.on_logical_unit_reset() && !unit.0.on_power_on());
    assert_eq!(unit.0, lost);
    assert!(unit.0.is_lost() && !unit.0.is_empty());
    assert_eq!(unit.0.access_table().others(), Access::INFORMATION_LOST);
}

#[test]
fn spc_4_5_13_11_3_replace_lost_reservation() {
    let replace = OutAction::ReplaceLost;
    let mut unit = Unit(Reservations::information_lost());
    assert_eq!(unit.send(&nexus(1), replace, 1, &list(1, 2, 0)), in_list(0, None));
    assert_eq!(unit.send(&nexus(1), replace, 1, &list(0, 0, 0)), in_list(8, None));
    assert_eq!(unit.send(&nexus(1), replace, 1, &list(0, 2, ALL_TG_PT)), in_list(20, Some(2)));
    assert_eq!(unit.send(&nexus(1), replace, 1, &list(0, 2, SPEC_I_PT)), in_list(20, Some(3)));
    assert_eq!(unit.send(&nexus(1), replace, 0x11, &list(0, 2, 0)), in_the_cdb(2, Some(7)));
    assert_eq!(unit.send(&nexus(1), replace, 0x04, &list(0, 2, 0)), in_the_cdb(2, Some(3)));
    let done = unit.send(&nexus(1), replace, 5, &list(0, 2, APTPL)).unwrap();
    assert!(done.needs_gate && done.effects.is_empty());
    assert_eq!((unit.keys(), unit.holders()), (vec![2], vec![nexus(1)]));
    assert_eq!((unit.kind(), unit.0.generation()), (Some(WriteExclusiveRegistrantsOnly), 0));
    assert!(unit.0.persists_through_power_loss() && !unit.0.is_lost());
    // Nothing is lost any more.
    let again = unit.send(&nexus(1), replace, 5, &list(0, 2, 0));
    assert_eq!(again, refused(Sense::INVALID_RELEASE));
    assert_eq!(unit.send(&nexus(2), replace, 5, &list(0, 2, 0)), CONFLICT);
}

#[test]
fn people_clear_what_initiators_cannot() {
    for (state, attentions) in [
        (Reservations::information_lost(), 0),
        (Unit::held(WriteExclusive, &[1, 2]).0, 2),
        (
            {
                let mut unit = Unit::default();
                unit.reserve_6(&nexus(1)).unwrap();
                unit.0
            },
            0,
        ),
    ] {
        let change = state.clear();
        assert!(change.is_new && change.needs_gate && change.state.is_empty());
        assert_eq!(change.effects.attentions.len(), attentions);
    }
}

// TransportIDs, SPC-4 7.6.4

#[test]
fn spc_4_7_6_4_forms_of_one_port_are_one_port() {
    let mut bytes = nexus(1).initiator.as_bytes().to_vec();
    bytes[0] |= 0x30;
    bytes[1..8].fill(0xAA);
    assert_eq!(TransportId::parse(&bytes), Ok((nexus(1).initiator, 24)), "reserved bits");
    let iscsi = |first: u8, name: &str, padded: usize| {
        let mut bytes = vec![first, 0xAA, 0, padded as u8];
        bytes.extend(name.bytes());
        bytes.resize(4 + padded, 0);
        bytes
    };
    let short = TransportId::parse(&iscsi(0x45, "iqn.2000-01.org:a,i,0x12ab", 28)).unwrap();
    let long = TransportId::parse(&iscsi(0x45, "IQN.2000-01.org:a,i,0x12AB", 40)).unwrap();
    assert_eq!(short.0, long.0, "upper case and padding");
    assert_eq!((short.1, long.1), (32, 44));
    assert_eq!(short.0.to_string(), "iscsi iqn.2000-01.org:a,i,0x12ab");
    let device = TransportId::parse(&iscsi(0x05, "iqn.2000-01.org:a", 20)).unwrap();
    assert_eq!(device.0.as_bytes().len(), 24);
}

#[test]
fn spc_4_7_6_4_6_the_shortest_name_is_padded_to_the_shortest_length() {
    let mut bytes = [0; 24];
    bytes[..5].copy_from_slice(&[0x05, 0, 0, 20, b'a']);
    let (id, _) = TransportId::parse(&bytes).unwrap();
    assert_eq!(id.as_bytes(), bytes);
}

#[test]
fn an_access_table_names_each_nexus_once_and_only_whom_it_must() {
    let open = |number| (nexus(number), Access::OPEN);
    let named = vec![open(3), (nexus(2), Access::NO_WRITES), open(1), (nexus(3), Access::RESERVED)];
    let table = AccessTable::new(Access::NO_WRITES, named);
    let found: Vec<_> = table.named().map(|(nexus, access)| (nexus.clone(), access)).collect();
    assert_eq!(found, [open(1), open(3)]);
    assert_eq!(table.access(&nexus(2)), Access::NO_WRITES);
    assert_eq!(table.access(&at(1, 2)), Access::NO_WRITES);
}

#[test]
fn spc_4_7_6_4_6_iscsi_names_that_are_none() {
    use lunar_scsi::reservations::TransportIdError::{Field, Truncated};
    let parse = |first: u8, length: u16, name: &[u8]| {
        let [high, low] = length.to_be_bytes();
        TransportId::parse(&[&[first, 0, high, low], name].concat()).map(|(id, _)| id.to_string())
    };
    let mut name = [0; 244];
    assert_eq!(parse(0x05, 20, &name[..20]), Err(Field(4)), "no name");
    name[..12].copy_from_slice(b"iqn.a,i,0x12");
    assert!(parse(0x45, 20, &name).is_ok());
    for length in [0, 16, 19, 21, 22, 248, u16::MAX] {
        assert_eq!(parse(0x45, length, &name), Err(Field(2)), "{length}");
    }
    assert_eq!(parse(0x45, 24, &name[..23]), Err(Truncated));
    assert_eq!(parse(0x05, 20, &name), Err(Field(4)), "a comma in a device's name");
    assert_eq!(parse(0x85, 20, &name), Err(Field(0)));
    assert_eq!(parse(0xC5, 20, &name), Err(Field(0)));
    assert_eq!(parse(0x45, 20, &[b'a'; 20]), Err(Field(4)), "no end");
    for bad in
        [&b"iqn.a"[..], b"iqn.a,i,0x", b"iqn.a,i,0xg1", b",i,0x12", b"iqn.a,t,0x1", b"\xFF,i,0x1"]
    {
        let mut name = [0; 20];
        name[..bad.len()].copy_from_slice(bad);
        assert_eq!(parse(0x45, 20, &name), Err(Field(4)), "{bad:?}");
    }
    let mut name = *b"iqn.a\0behind the end";
    assert_eq!(parse(0x05, 20, &name), Err(Field(4)));
    name[6..].fill(0);
    assert!(parse(0x05, 20, &name).is_ok());
}

#[test]
fn transport_ids_are_told_to_people_by_protocol_and_name() {
    let texts =
        [TransportId::srp([0xAB; 16]), TransportId::sas([0x5A; 8]), TransportId::vscsi(3, 2)]
            .map(|id| id.to_string());
    assert_eq!(
        texts,
        [
            "srp 0xabababababababababababababababab",
            "sas 0x5a5a5a5a5a5a5a5a",
            "vscsi partition 0x00000003 unit 0x00000002"
        ]
    );
}
