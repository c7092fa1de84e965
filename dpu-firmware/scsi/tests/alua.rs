//! Asymmetric logical unit access by clause: which commands a target port takes in which state, REPORT
//! and SET TARGET PORT GROUPS.

use lunar_scsi::alua::{
    self, AccessState, Change, GROUPS_MAX, PORTS_MAX, StatusCode, TargetPortGroup, Tpgs, changes,
};
use lunar_scsi::device_server::{Parameter, Verdict, begin_cdb};
use lunar_scsi::opcodes::{COMMANDS, CommandRow, HostCommand, HostCommands};
use lunar_scsi::sense::{FieldPointer, Sense, SenseKey};
use lunar_scsi::unit::{Identity, LogicalUnit};
use proptest::prelude::*;

fn disk(tpgs: Tpgs) -> LogicalUnit {
    let identity = Identity::new("LUNAR", "disk1", "0001", "5ad3c1f0", "5ad3c1f0-disk1").unwrap();
    let host_commands = match tpgs {
        Tpgs::Both => HostCommands::NONE.with(HostCommand::SetTargetPortGroups),
        _ => HostCommands::NONE,
    };
    let unit = LogicalUnit::new(512, 1_000, identity).unwrap();
    LogicalUnit { tpgs, forwards: true, host_commands, ..unit }
}

fn cdb(head: &[u8]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..head.len()].copy_from_slice(head);
    bytes
}

/// A CDB of the command in this row.
fn cdb_of(row: &CommandRow) -> [u8; 16] {
    cdb(&[row.operation, row.action.unwrap_or(0) as u8])
}

fn sense_of(state: AccessState, cdb: &[u8]) -> Option<(SenseKey, u8, u8)> {
    alua::check(state, cdb).err().map(|sense| (sense.key, sense.asc, sense.ascq))
}

/// What a port in standby takes (SPC-6 5.17.2.6; READ CAPACITY and the reports of what is supported are
/// beyond the list, as it allows).
const IN_STANDBY: [&str; 14] = [
    "REQUEST SENSE",
    "INQUIRY",
    "MODE SELECT (6)",
    "MODE SENSE (6)",
    "READ CAPACITY (10)",
    "LOG SENSE",
    "MODE SELECT (10)",
    "MODE SENSE (10)",
    "READ CAPACITY (16)",
    "REPORT LUNS",
    "REPORT TARGET PORT GROUPS",
    "REPORT SUPPORTED OPERATION CODES",
    "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
    "SET TARGET PORT GROUPS",
];

/// What an unavailable or offline one takes (SPC-6 5.17.2.7).
const UNAVAILABLE: [&str; 5] = [
    "REQUEST SENSE",
    "INQUIRY",
    "REPORT LUNS",
    "REPORT TARGET PORT GROUPS",
    "SET TARGET PORT GROUPS",
];

fn taken(state: AccessState) -> Vec<&'static str> {
    let rows = COMMANDS.iter().filter(|row| alua::check(state, &cdb_of(row)).is_ok());
    // Persistent reservations are tested where they are made.
    rows.map(|row| row.name).filter(|name| !name.starts_with("PERSISTENT")).collect()
}

#[test]
fn spc_6_5_17_2_active_nonoptimized_and_lba_dependent_ports_take_every_command() {
    for state in [AccessState::Active, AccessState::NonOptimized, AccessState::LbaDependent] {
        assert!(state.reaches_medium());
        for operation in 0..=u8::MAX {
            assert_eq!(alua::check(state, &cdb(&[operation])), Ok(()), "{operation:#x}");
        }
    }
}

#[test]
fn spc_6_5_17_2_each_other_state_takes_its_list_and_says_why_not_the_rest() {
    for (state, list, ascq) in [
        (AccessState::Standby, &IN_STANDBY[..], 0x0B),
        (AccessState::Unavailable, &UNAVAILABLE, 0x0C),
        (AccessState::Offline, &UNAVAILABLE, 0x12),
        (AccessState::Transitioning, &UNAVAILABLE[..4], 0x0A),
    ] {
        assert!(!state.reaches_medium());
        assert_eq!(taken(state), list, "{state:?}");
        for operation in [0x00, 0x28, 0x2A, 0x35, 0x42, 0x83, 0x93] {
            let refused = Some((SenseKey::NotReady, 0x04, ascq));
            assert_eq!(sense_of(state, &cdb(&[operation])), refused, "{state:?} {operation:#x}");
        }
        // Nobody knows these; what is not in the list is refused with the state, known or not.
        for bytes in [&[][..], &[0xFF], &[0xFF; 16], &[0xA3, 0x1F], &[0xA4, 0x00]] {
            assert!(sense_of(state, bytes).is_some(), "{state:?} {bytes:x?}");
        }
    }
}

#[test]
fn every_code_of_a_state_is_its_own_and_the_others_are_none() {
    let known: Vec<u8> = (0..=u8::MAX).filter(|&c| AccessState::from_code(c).is_some()).collect();
    assert_eq!(known, [0, 1, 2, 3, 4, 14, 15]);
    for state in AccessState::ALL {
        assert_eq!(AccessState::from_code(state as u8), Some(state));
    }
}

#[test]
fn spc_6_inquiry_tells_tpgs() {
    for (tpgs, byte) in [(Tpgs::None, 0x00), (Tpgs::Implicit, 0x10), (Tpgs::Both, 0x30)] {
        let unit = disk(tpgs);
        let (_, verdict) = begin_cdb(&unit, false, &cdb(&[0x12, 0, 0, 0, 96]));
        let Verdict::Parameter(parameter) = verdict else { panic!("{verdict:?}") };
        let mut out = [0; 96];
        let none = &mut std::iter::empty();
        let port = alua::TargetPort::default();
        lunar_scsi::device_server::fill(&parameter, Some(&unit), port, none, None, &mut out);
        assert_eq!(out[5], byte);
    }
}

/// REPORT TARGET PORT GROUPS is there with groups, SET TARGET PORT GROUPS where they are explicit too.
#[test]
fn spc_6_the_commands_are_there_where_tpgs_says_so() {
    for (tpgs, expected) in [(Tpgs::None, 0), (Tpgs::Implicit, 1), (Tpgs::Both, 2)] {
        let unit = disk(tpgs);
        let groups = COMMANDS.iter().filter(|row| row.name.ends_with("TARGET PORT GROUPS"));
        assert_eq!(groups.filter(|row| row.is_supported(&unit)).count(), expected);
    }
    let unknown = Sense::INVALID_COMMAND_OPERATION_CODE.with_field(1, Some(4));
    let alone = LogicalUnit { forwards: false, ..disk(Tpgs::None) };
    for head in [&[0xA3, 0x0A][..], &[0xA4, 0x0A]] {
        assert_eq!(begin_cdb(&alone, false, &cdb(head)).1, Verdict::Done(Err(unknown)));
        assert_eq!(begin_cdb(&disk(Tpgs::None), false, &cdb(head)).1, Verdict::Forward);
    }
    assert_eq!(begin_cdb(&disk(Tpgs::Both), false, &cdb(&[0xA4, 0x0A])).1, Verdict::Forward);
    let report = cdb(&[0xA3, 0x2A, 0, 0, 0, 0, 0, 0, 1, 0]);
    let parameter = Parameter::TargetPortGroups { extended: true, allocation: 256 };
    assert_eq!(begin_cdb(&disk(Tpgs::Implicit), false, &report).1, Verdict::Parameter(parameter));
    let reserved = cdb(&[0xA3, 0x4A, 0, 0, 0, 0, 0, 0, 1, 0]);
    let refused = Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(7));
    assert_eq!(begin_cdb(&disk(Tpgs::Implicit), false, &reserved).1, Verdict::Done(Err(refused)));
}

const GROUPS: [TargetPortGroup<'static>; 2] = [
    TargetPortGroup {
        id: 0x0102,
        state: AccessState::Active,
        preferred: true,
        status: StatusCode::None,
        ports: &[1, 0x0203],
    },
    TargetPortGroup {
        id: 0x0304,
        state: AccessState::Offline,
        preferred: false,
        status: StatusCode::Explicit,
        ports: &[],
    },
];

#[test]
fn spc_6_report_target_port_groups_has_a_descriptor_for_each_group() {
    let descriptors = [
        &[0x80, 0xDF, 1, 2, 0, 0, 0, 2][..],
        &[0, 0, 0, 1, 0, 0, 2, 3],
        &[0x0E, 0xDF, 3, 4, 0, 1, 0, 0],
    ]
    .concat();
    let mut out = [0xEE; 256];
    let length = alua::report(false, GROUPS.into_iter(), &mut out);
    assert_eq!(out[..length], [&[0, 0, 0, 24][..], &descriptors].concat());
    let length = alua::report(true, GROUPS.into_iter(), &mut out);
    let extended = [0, 0, 0, 28, 0x10, 60, 0, 0];
    assert_eq!(out[..length], [&extended[..], &descriptors].concat());
}

#[test]
fn the_longest_report_fits_the_buffer_that_is_claimed_for_it() {
    let ports = [7; PORTS_MAX as usize];
    let group = TargetPortGroup { ports: &ports, ..GROUPS[0] };
    let mut out = vec![0; 1 << 16];
    let groups = std::iter::repeat_n(group, GROUPS_MAX.into());
    let length = alua::report(true, groups, &mut out);
    let parameter = Parameter::TargetPortGroups { extended: true, allocation: u32::MAX };
    assert_eq!(length, parameter.length_max() as usize);
}

fn set(length: u32) -> Vec<u8> {
    [&[0xA4, 0x0A, 0, 0, 0, 0][..], &length.to_be_bytes(), &[0, 0]].concat()
}

/// SET TARGET PORT GROUPS with this list, to a unit with groups 1 and 2.
fn asked(list: &[u8]) -> Result<Vec<Change>, Sense> {
    let known = |group| matches!(group, 1 | 2);
    changes(&set(list.len() as u32), list, &known).map(Iterator::collect)
}

fn in_list(byte: u16, bit: Option<u8>) -> Sense {
    let pointer = FieldPointer { in_cdb: false, byte, bit };
    Sense::INVALID_FIELD_IN_PARAMETER_LIST.with_field_pointer(pointer)
}

#[test]
fn spc_6_set_target_port_groups_takes_the_primary_states() {
    for (code, state) in [
        (0, AccessState::Active),
        (1, AccessState::NonOptimized),
        (2, AccessState::Standby),
        (3, AccessState::Unavailable),
    ] {
        let list = [0, 0, 0, 0, code, 0, 0, 2, 0xF0, 0, 0, 1];
        let active = Change { group: 1, state: AccessState::Active };
        assert_eq!(asked(&list), Ok(vec![Change { group: 2, state }, active]));
    }
    for code in 4..16 {
        let list = [0, 0, 0, 0, 0, 0, 0, 1, code, 0, 0, 2];
        assert_eq!(asked(&list), Err(in_list(8, Some(3))), "state {code:x}h");
    }
}

#[test]
fn spc_6_set_target_port_groups_names_each_known_group_once() {
    assert_eq!(asked(&[0, 0, 0, 0, 0, 0, 0, 3]), Err(in_list(6, None)));
    assert_eq!(asked(&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]), Err(in_list(10, None)));
}

#[test]
fn spc_6_a_cut_parameter_list_is_refused_and_an_empty_one_changes_nothing() {
    assert_eq!(asked(&[]), Ok(vec![]));
    assert_eq!(asked(&[0; 4]), Ok(vec![]));
    for length in [1, 3, 5, 7, 9] {
        assert_eq!(asked(&vec![0; length]), Err(Sense::PARAMETER_LIST_LENGTH_ERROR), "{length}");
    }
    let shorter = changes(&set(8), &[0, 0, 0, 0], &|_| true).err();
    assert_eq!(shorter, Some(Sense::PARAMETER_LIST_LENGTH_ERROR), "than the CDB says");
    let longer: Vec<_> = changes(&set(0), &[0xFF; 8], &|_| true).unwrap().collect();
    assert_eq!(longer, [], "only the CDB's length counts");
    assert!(changes(&set(0)[..11], &[], &|_| true).is_err(), "a cut CDB");
    let mut naca = set(0);
    naca[11] = 0x04;
    let refused = Sense::INVALID_FIELD_IN_CDB.with_field(11, Some(2));
    assert_eq!(changes(&naca, &[], &|_| true).err(), Some(refused));
}

proptest! {
    /// Whatever the list holds: what is taken names known groups, each once, in states that are reported.
    #[test]
    fn any_list_is_taken_or_refused_as_a_whole(
        length in 0_u32..80, list in prop::collection::vec(0_u8..6, 0..80), known in 0_u16..1286,
    ) {
        let knows = |group| group <= known;
        let Ok(taken) = changes(&set(length), &list, &knows) else { return Ok(()) };
        let mut groups: Vec<u16> = taken.clone().map(|change| change.group).collect();
        prop_assert_eq!(groups.len(), (length as usize).saturating_sub(4) / 4);
        prop_assert!(groups.iter().all(|&group| group <= known));
        prop_assert!(taken.into_iter().all(|change| (change.state as u8) < 4));
        groups.sort_unstable();
        let count = groups.len();
        groups.dedup();
        prop_assert_eq!(groups.len(), count);
    }

    #[test]
    fn a_cut_report_is_a_prefix_of_the_whole(
        ports in prop::collection::vec(any::<u16>(), 0..10), count in 0_usize..8, room in 0_usize..300,
        extended: bool,
    ) {
        let group = TargetPortGroup { ports: &ports, ..GROUPS[0] };
        let groups = || std::iter::repeat_n(group, count);
        let mut whole = vec![0; 4096];
        let length = alua::report(extended, groups(), &mut whole);
        let told = u32::from_be_bytes(whole[..4].try_into().unwrap()) as usize;
        prop_assert_eq!(told + 4, length);
        let mut out = vec![0xEE; room];
        let written = alua::report(extended, groups(), &mut out);
        prop_assert_eq!(written, length.min(room));
        prop_assert_eq!(&out[..written], &whole[..written]);
    }
}
