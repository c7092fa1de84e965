//! The tables of commands that are allowed in the presence of various reservations, a test a row: SPC-4
//! tables 65 and 66, SBC-4 table 13, and SPC-2's column for RESERVE. Each row is asked of the state
//! machine, of the table that the card has, and of every type of reservation that its column stands for.

mod reservation_kit;

use lunar_scsi::device_server::{BlockOperation, Ending, Verdict, begin_cdb};
use lunar_scsi::opcodes::{COMMANDS, opcode};
use lunar_scsi::reservations::ReservationType::{
    ExclusiveAccess, ExclusiveAccessAllRegistrants, ExclusiveAccessRegistrantsOnly, WriteExclusive,
    WriteExclusiveAllRegistrants, WriteExclusiveRegistrantsOnly,
};
use lunar_scsi::reservations::{
    Access, Class, Nexus, OutAction, ReservationType, Reservations, class, conflicts,
};
use lunar_scsi::sense::Sense;
use lunar_scsi::status::Status;
use lunar_scsi::unit::{Identity, LogicalUnit};
use reservation_kit::{Unit, list, nexus};

const HOLDER: u16 = 1;
const REGISTERED: u16 = 2;
const STRANGER: u16 = 3;

/// Whether the command is let through, which state and card must agree about.
fn allowed(state: &Reservations, from: &Nexus, cdb: &[u8]) -> bool {
    let access = state.access(from);
    assert_eq!(access, state.access_table().access(from));
    assert_eq!(Access::from_bits(access.bits().into()), access);
    !conflicts(class(cdb), access)
}

/// The columns of the tables: who asks, in the presence of which types.
const COLUMNS: [(&[u16], &[ReservationType]); 5] = [
    (&[REGISTERED, STRANGER], &[WriteExclusive]),
    (&[REGISTERED, STRANGER], &[ExclusiveAccess]),
    (
        &[REGISTERED],
        &[
            WriteExclusiveRegistrantsOnly,
            WriteExclusiveAllRegistrants,
            ExclusiveAccessRegistrantsOnly,
            ExclusiveAccessAllRegistrants,
        ],
    ),
    (&[STRANGER], &[WriteExclusiveRegistrantsOnly, WriteExclusiveAllRegistrants]),
    (&[STRANGER], &[ExclusiveAccessRegistrantsOnly, ExclusiveAccessAllRegistrants]),
];

/// `row`: A(llowed) or C(onflict) in the order of the columns, then what SPC-2 says of another's RESERVE.
fn check_row(row: &str, cdbs: &[&[u8]]) {
    let cells: Vec<bool> = row.split_whitespace().map(|cell| cell == "A").collect();
    assert_eq!(cells.len(), 6);
    for cdb in cdbs {
        for ((askers, kinds), &cell) in COLUMNS.into_iter().zip(&cells) {
            for (&asker, &kind) in askers.iter().flat_map(|a| kinds.iter().map(move |k| (a, k))) {
                let unit = Unit::held(kind, &[HOLDER, REGISTERED]);
                let found = allowed(&unit.0, &nexus(asker), cdb);
                assert_eq!(found, cell, "{cdb:02x?} of {asker} in the presence of {kind:?}");
                assert!(allowed(&unit.0, &nexus(HOLDER), cdb), "{cdb:02x?} of the holder");
            }
        }
        let mut unit = Unit::default();
        unit.reserve_6(&nexus(HOLDER)).unwrap();
        assert_eq!(allowed(&unit.0, &nexus(STRANGER), cdb), cells[5], "{cdb:02x?}, RESERVE");
        assert!(allowed(&unit.0, &nexus(HOLDER), cdb), "{cdb:02x?} of RESERVE's holder");
        let unit = Unit::with(&[REGISTERED]);
        for asker in [REGISTERED, STRANGER] {
            assert!(allowed(&unit.0, &nexus(asker), cdb), "{cdb:02x?} without a reservation");
        }
    }
}

macro_rules! rows {
    ($($name:ident: $row:literal => $($cdb:expr),+;)+) => {
        $(
            #[test]
            fn $name() {
                check_row($row, &[$(&$cdb),+]);
            }
        )+
    };
}

rows! {
    spc_4_table_65_access_control_in: "A A A A A A" => [0x86];
    spc_4_table_65_access_control_out: "A A A A A A" => [0x87];
    spc_4_table_65_change_aliases: "C C A C C C" => [0xA4, 0x0B];
    spc_4_table_65_copy_operation_abort: "C C A C C C" => [0x83, 0x1C];
    spc_4_table_65_extended_copy_lid4: "C C A C C C" => [0x83, 0x01];
    spc_4_table_65_extended_copy_lid1: "C C A C C C" => [0x83, 0x00];
    spc_4_table_65_inquiry: "A A A A A A" => [0x12];
    spc_4_table_65_log_select: "C C A C C C" => [0x4C];
    spc_4_table_65_log_sense: "A A A A A A" => [0x4D];
    spc_4_table_65_management_protocol_in: "A C A A C C" => [0xA3, 0x10];
    spc_4_table_65_management_protocol_out: "C C A C C C" => [0xA4, 0x10];
    spc_4_table_65_mode_select: "C C A C C C" => [0x15], [0x55];
    spc_4_table_65_mode_sense: "A C A A C C" => [0x1A], [0x5A];
    spc_4_table_65_read_attribute: "A C A A C C" => [0x8C];
    spc_4_table_65_read_buffer: "A C A A C C" => [0x3C], [0x9B];
    spc_4_table_65_read_media_serial_number: "A A A A A A" => [0xAB, 0x01];
    spc_4_table_65_receive_copy_data_lid4: "A A A A A C" => [0x84, 0x06];
    spc_4_table_65_receive_copy_data_lid1: "A A A A A C" => [0x84, 0x01];
    spc_4_table_65_receive_copy_operating_parameters: "A A A A A C" => [0x84, 0x03];
    spc_4_table_65_receive_copy_failure_details: "A A A A A C" => [0x84, 0x04];
    spc_4_table_65_receive_copy_status_lid4: "A A A A A C" => [0x84, 0x05];
    spc_4_table_65_receive_copy_status_lid1: "A A A A A C" => [0x84, 0x00];
    spc_4_table_65_receive_rod_token_information: "A A A A A C" => [0x84, 0x07];
    spc_4_table_65_receive_diagnostic_results: "A C A A C C" => [0x1C];
    spc_4_table_65_remove_i_t_nexus: "C C A C C C" => [0xA4, 0x0C];
    spc_4_table_65_report_aliases: "A A A A A A" => [0xA3, 0x0B];
    spc_4_table_65_report_all_rod_tokens: "A A A A A C" => [0x84, 0x08];
    spc_4_table_65_report_identifying_information: "A A A A A A" => [0xA3, 0x05];
    spc_4_table_65_report_luns: "A A A A A A" => [0xA0];
    spc_4_table_65_report_priority: "A A A A A A" => [0xA3, 0x0E];
    spc_4_table_65_report_supported_operation_codes: "A C A A C C" => [0xA3, 0x0C];
    spc_4_table_65_report_supported_task_management_functions: "A C A A C C" => [0xA3, 0x0D];
    spc_4_table_65_report_target_port_groups: "A A A A A A" => [0xA3, 0x0A], [0xA3, 0x2A];
    spc_4_table_65_report_timestamp: "A A A A A A" => [0xA3, 0x0F];
    spc_4_table_65_request_sense: "A A A A A A" => [0x03];
    spc_4_table_65_security_protocol_in: "A C A A C C" => [0xA2];
    spc_4_table_65_security_protocol_out: "C C A C C C" => [0xB5];
    spc_4_table_65_send_diagnostic: "C C A C C C" => [0x1D];
    spc_4_table_65_set_identifying_information: "C C A C C C" => [0xA4, 0x06];
    spc_4_table_65_set_priority: "C C A C C C" => [0xA4, 0x0E];
    spc_4_table_65_set_target_port_groups: "C C A C C C" => [0xA4, 0x0A];
    spc_4_table_65_set_timestamp: "C C A C C C" => [0xA4, 0x0F];
    spc_4_table_65_test_unit_ready: "A A A A A C" => [0x00];
    spc_4_table_65_write_attribute: "C C A C C C" => [0x8D];
    spc_4_table_65_write_buffer: "C C A C C C" => [0x3B];

    sbc_4_table_13_background_control: "C C A C C C" => [0x9E, 0x15];
    sbc_4_table_13_compare_and_write: "C C A C C C" => [0x89];
    sbc_4_table_13_format_unit: "C C A C C C" => [0x04];
    sbc_4_table_13_format_with_preset: "C C A C C C" => [0x38];
    sbc_4_table_13_get_lba_status: "A C A A C C" => [0x9E, 0x12];
    sbc_4_table_13_get_physical_element_status: "A C A A C C" => [0x9E, 0x17];
    sbc_4_table_13_get_stream_status: "A C A A C C" => [0x9E, 0x16];
    sbc_4_table_13_orwrite: "C C A C C C" => [0x8B];
    sbc_4_table_13_populate_token: "A C A A C C" => [0x83, 0x10];
    sbc_4_table_13_pre_fetch: "A C A A C C" => [0x34], [0x90];
    sbc_4_table_13_prevent_allow_medium_removal_prevent_zero: "A A A A A A" => [0x1E, 0, 0, 0, 0, 0];
    sbc_4_table_13_prevent_allow_medium_removal_prevent_not_zero: "C C A C C C" =>
        [0x1E, 0, 0, 0, 1, 0], [0x1E, 0, 0, 0, 2, 0], [0x1E, 0, 0, 0, 3, 0];
    sbc_4_table_13_read: "A C A A C C" => [0x08], [0x28], [0xA8], [0x88];
    sbc_4_table_13_read_capacity: "A A A A A A" => [0x25], [0x9E, 0x10];
    sbc_4_table_13_read_defect_data: "A C A A C C" => [0x37], [0xB7];
    sbc_4_table_13_reassign_blocks: "C C A C C C" => [0x07];
    sbc_4_table_13_remove_element_and_truncate: "C C A C C C" => [0x9E, 0x18];
    sbc_4_table_13_report_referrals: "A A A A A A" => [0x9E, 0x13];
    sbc_4_table_13_report_provisioning_initialization_pattern: "A A A A A A" => [0xA3, 0x1D];
    sbc_4_table_13_restore_elements_and_rebuild: "C C A C C C" => [0x9E, 0x19];
    sbc_4_table_13_sanitize: "C C A C C C" => [0x48];
    sbc_4_table_13_start_stop_unit_start_and_no_power_condition: "A A A A A A" =>
        [0x1B, 0, 0, 0, 0x01, 0], [0x1B, 0x01, 0, 0, 0x03, 0];
    sbc_4_table_13_start_stop_unit_stop_or_power_condition: "C C A C C C" =>
        [0x1B, 0, 0, 0, 0x00, 0], [0x1B, 0, 0, 0, 0x11, 0], [0x1B, 0, 0, 0, 0x02, 0];
    sbc_4_table_13_stream_control: "C C A C C C" => [0x9E, 0x14];
    sbc_4_table_13_synchronize_cache: "C C A C C C" => [0x35], [0x91];
    sbc_4_table_13_unmap: "C C A C C C" => [0x42];
    sbc_4_table_13_verify: "A C A A C C" => [0x2F], [0xAF], [0x8F];
    sbc_4_table_13_write: "C C A C C C" => [0x0A], [0x2A], [0xAA], [0x8A];
    sbc_4_table_13_write_and_verify: "C C A C C C" => [0x2E], [0xAE], [0x8E];
    sbc_4_table_13_write_atomic: "C C A C C C" => [0x9C];
    sbc_4_table_13_write_long: "C C A C C C" => [0x3F], [0x9F, 0x11];
    sbc_4_table_13_write_same: "C C A C C C" => [0x41], [0x93];
    sbc_4_table_13_write_scattered: "C C A C C C" => [0x9F, 0x12];
    sbc_4_table_13_write_stream: "C C A C C C" => [0x9A];
    sbc_4_table_13_write_using_token: "C C A C C C" => [0x83, 0x11];

    mmc_6_read_toc: "A C A A C C" => [0x43];
    mmc_6_read_disc_information: "A C A A C C" => [0x51];
    mmc_6_get_configuration: "A A A A A A" => [0x46];
    mmc_6_get_event_status_notification: "A A A A A A" => [0x4A];
    mmc_6_mechanism_status: "A A A A A A" => [0xBD];

    what_is_not_known_conflicts_as_a_write: "C C A C C C" =>
        [], [0xC0], [0xFF], [0x9E], [0xA3], [0x1B], [0x1E];
}

// SPC-4 table 65, PERSISTENT RESERVE IN and the rows that are "as defined in SPC-2": the card lets these
// through to the state machine, whose answers these are.

#[test]
fn spc_4_table_65_persistent_reserve_in() {
    for kind in ReservationType::ALL {
        let unit = Unit::held(kind, &[HOLDER, REGISTERED]);
        for asker in [HOLDER, REGISTERED, STRANGER] {
            assert!(allowed(&unit.0, &nexus(asker), &reservation_kit::in_cdb(0, 8)));
        }
        for action in 0..4 {
            assert!(unit.read(action, 8).is_ok());
        }
    }
}

#[test]
fn spc_4_table_65_reserve_and_release() {
    for kind in ReservationType::ALL {
        let unit = Unit::held(kind, &[HOLDER, REGISTERED]);
        for operation in
            [opcode::RESERVE_6, opcode::RELEASE_6, opcode::RESERVE_10, opcode::RELEASE_10]
        {
            let ask = |asker: u16| {
                assert!(allowed(&unit.0, &nexus(asker), &[operation]));
                unit.clone().legacy(&nexus(asker), operation).map(|change| change.is_new)
            };
            let conflict = Err(Ending::Status(Status::ReservationConflict));
            assert_eq!(ask(HOLDER), Ok(false), "{operation:#x} with {kind:?}");
            let registered = if kind.admits_registrants() { Ok(false) } else { conflict };
            assert_eq!(ask(REGISTERED), registered, "{operation:#x} with {kind:?}");
            assert_eq!(ask(STRANGER), conflict, "{operation:#x} with {kind:?}");
        }
    }
}

/// `row`: what a registered nexus that is no holder gets, and one that is not registered.
fn check_action(action: OutAction, row: [bool; 2]) {
    // Of the all registrants types every registered nexus is a holder.
    let kinds = ReservationType::ALL.into_iter().filter(|kind| !kind.is_all_registrants());
    for kind in kinds {
        for (asker, cell) in [REGISTERED, STRANGER].into_iter().zip(row) {
            let mut unit = Unit::held(kind, &[HOLDER, REGISTERED]);
            let key = unit.key(&nexus(asker));
            let list = match action {
                OutAction::RegisterAndMove => {
                    let to = nexus(9).initiator;
                    reservation_kit::move_list(key, 9, 0, 1, to.as_bytes())
                }
                _ => list(key, u64::from(HOLDER), 0),
            };
            let found = unit.send(&nexus(asker), action, kind as u8, &list);
            let conflict = Err(Ending::Status(Status::ReservationConflict));
            assert_eq!(found != conflict, cell, "{action:?} of {asker} with {kind:?}: {found:?}");
        }
    }
}

macro_rules! action_rows {
    ($($name:ident: $action:ident $row:expr;)+) => {
        $(
            #[test]
            fn $name() {
                check_action(OutAction::$action, $row);
            }
        )+
    };
}

action_rows! {
    spc_4_table_66_clear: Clear [true, false];
    spc_4_table_66_preempt: Preempt [true, false];
    spc_4_table_66_preempt_and_abort: PreemptAndAbort [true, false];
    spc_4_table_66_register: Register [true, true];
    spc_4_table_66_register_and_ignore_existing_key: RegisterAndIgnore [true, true];
    spc_4_table_66_register_and_move: RegisterAndMove [false, false];
    spc_4_table_66_release: Release [true, false];
    spc_4_table_66_replace_lost_reservation: ReplaceLost [true, false];
    spc_4_table_66_reserve: Reserve [false, false];
}

#[test]
fn spc_4_5_13_5_2_while_information_is_lost_only_the_listed_commands_are_answered() {
    let state = Reservations::information_lost();
    let answered: &[&[u8]] = &[
        &[0x12],
        &[0x4D],
        &[0x3C],
        &[0xA0],
        &[0xA3, 0x0A],
        &[0x03],
        &[0x1B, 0, 0, 0, 0x01, 0],
        &[0x3B],
    ];
    for cdb in answered {
        assert!(allowed(&state, &nexus(HOLDER), cdb), "{cdb:02x?}");
    }
    let refused: &[&[u8]] = &[
        &[0x00],
        &[0x25],
        &[0x28],
        &[0x2A],
        &[0x1A],
        &[0x1E, 0, 0, 0, 0, 0],
        &[0x46],
        &[0xA3, 0x0C],
        &[0x84],
    ];
    for cdb in refused {
        assert!(!allowed(&state, &nexus(HOLDER), cdb), "{cdb:02x?}");
    }
    let refusal = state.access(&nexus(HOLDER)).refusal();
    assert_eq!(refusal, Ending::Sense(Sense::RESERVATION_INFORMATION_LOST));
}

#[test]
fn every_command_there_is_was_classified() {
    // Those that change the medium, a mode or a copy; what is not here must be some other class, so a new
    // command that nobody classified is found here.
    let writes = [
        "FORMAT UNIT",
        "WRITE (6)",
        "MODE SELECT (6)",
        "WRITE (10)",
        "WRITE AND VERIFY (10)",
        "SYNCHRONIZE CACHE (10)",
        "WRITE SAME (10)",
        "UNMAP",
        "MODE SELECT (10)",
        "EXTENDED COPY (LID1)",
        "COMPARE AND WRITE",
        "WRITE (16)",
        "ORWRITE (16)",
        "WRITE AND VERIFY (16)",
        "SYNCHRONIZE CACHE (16)",
        "WRITE SAME (16)",
        "WRITE (12)",
        "WRITE AND VERIFY (12)",
        "START STOP UNIT",
        "SET TARGET PORT GROUPS",
    ];
    for row in COMMANDS {
        let action = row.action.unwrap_or(0) as u8;
        let cdb = [row.operation, action, 0, 0, 0, 0];
        let is_write = class(&cdb) == Class::WRITE;
        assert_eq!(is_write, writes.contains(&row.name), "{}", row.name);
    }
}

#[test]
fn what_a_command_comes_to_has_the_class_of_the_command() {
    let identity = Identity::new("SCST_FIO", "disk1", "380", "5ad3c1f0", "5ad3c1f0-disk1");
    let unit = LogicalUnit::new(512, 1_000, identity.unwrap()).unwrap();
    let unit = LogicalUnit { thin: true, ..unit };
    let mut operations = 0;
    for row in COMMANDS {
        let mut cdb = [0; 16];
        cdb[..2].copy_from_slice(&[row.operation, row.action.unwrap_or(0) as u8]);
        // A block or a byte, wherever the command has its length.
        let length = match row.cdb_bytes() {
            6 => 4,
            10 => 8,
            12 => 9,
            _ => 13,
        };
        cdb[length] = 1;
        if let (_, Verdict::Block(operation)) = begin_cdb(&unit, false, &cdb) {
            assert_eq!(class(&cdb), Class::of_operation(&operation), "{}", row.name);
            operations += 1;
        }
    }
    // UNMAP comes to one only when its list is there.
    assert_eq!(class(&[opcode::UNMAP]), Class::of_operation(&BlockOperation::Unmap { ranges: 1 }));
    let lba_status = BlockOperation::LbaStatus { lba: 0, allocation: 1 };
    assert_eq!(class(&[0x9E, 0x12]), Class::of_operation(&lba_status));
    assert!(operations >= 20, "{operations} commands came to an operation");
}

#[test]
fn access_that_another_version_knows_keeps_everything_out() {
    for bits in [0x10, 0x80, 0x100, u32::MAX] {
        assert_eq!(Access::from_bits(bits), Access::RESERVED);
    }
    assert_eq!(Access::RESERVED.refusal(), Ending::Status(Status::ReservationConflict));
}
