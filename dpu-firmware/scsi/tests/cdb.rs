//! CDBs: what each command's bytes mean, which are refused and with what field pointer.

use lunar_scsi::cdb::{
    ByteCheck, Command, ModeSense, PageControl, ReportOperationCodes, Transfer, WriteSame, parse,
};
use lunar_scsi::opcodes::{COMMANDS, HostCommand, opcode};
use lunar_scsi::sense::Sense;
use proptest::prelude::*;

fn cdb(head: &[u8]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..head.len()].copy_from_slice(head);
    bytes
}

fn invalid_field(byte: u16, bit: Option<u8>) -> Result<Command, Sense> {
    Err(Sense::INVALID_FIELD_IN_CDB.with_field(byte, bit))
}

fn transfer(lba: u64, blocks: u32, length_byte: u8) -> Transfer {
    Transfer { lba, blocks, fua: false, dpo: false, length_byte }
}

/// A CDB that parses, of the command's own length, for every command that the table has.
fn all() -> Vec<Vec<u8>> {
    COMMANDS
        .iter()
        .map(|row| {
            let mut bytes = vec![0; row.cdb_bytes().into()];
            bytes[0] = row.operation;
            bytes[1] = row.action.unwrap_or(0) as u8;
            bytes
        })
        .collect()
}

#[test]
fn sbc_4_read_and_write_in_all_four_lengths() {
    let six = transfer(0x1F_0203, 4, 4);
    assert_eq!(parse(&cdb(&[0x08, 0xFF, 2, 3, 4])), Ok(Command::Read(six)));
    assert_eq!(parse(&cdb(&[0x0A, 0x1F, 2, 3, 4])), Ok(Command::Write(six)));
    let ten = transfer(0x8203_0405, 0x0708, 7);
    assert_eq!(parse(&cdb(&[0x28, 0, 0x82, 3, 4, 5, 6, 7, 8])), Ok(Command::Read(ten)));
    assert_eq!(parse(&cdb(&[0x2A, 0, 0x82, 3, 4, 5, 6, 7, 8])), Ok(Command::Write(ten)));
    let twelve = transfer(0x8203_0405, 0x8607_0809, 6);
    let bytes = [0, 0, 0x82, 3, 4, 5, 0x86, 7, 8, 9];
    assert_eq!(parse(&cdb(&[&[0xA8], &bytes[1..]].concat())), Ok(Command::Read(twelve)));
    assert_eq!(parse(&cdb(&[&[0xAA], &bytes[1..]].concat())), Ok(Command::Write(twelve)));
    let sixteen = transfer(0x8203_0405_0607_0809, 0x8A0B_0C0D, 10);
    let bytes = [0, 0, 0x82, 3, 4, 5, 6, 7, 8, 9, 0x8A, 11, 12, 13];
    assert_eq!(parse(&cdb(&[&[0x88], &bytes[1..]].concat())), Ok(Command::Read(sixteen)));
    assert_eq!(parse(&cdb(&[&[0x8A], &bytes[1..]].concat())), Ok(Command::Write(sixteen)));
}

#[test]
fn sbc_4_a_6_byte_length_of_zero_is_256_and_elsewhere_it_is_zero() {
    assert_eq!(parse(&cdb(&[0x08])), Ok(Command::Read(transfer(0, 256, 4))));
    assert_eq!(parse(&cdb(&[0x0A])), Ok(Command::Write(transfer(0, 256, 4))));
    assert_eq!(parse(&cdb(&[0x28])), Ok(Command::Read(transfer(0, 0, 7))));
    assert_eq!(parse(&cdb(&[0xAA])), Ok(Command::Write(transfer(0, 0, 6))));
}

#[test]
fn sbc_4_fua_and_dpo_in_10_12_and_16_bytes() {
    for operation in [0x28, 0x2A, 0xA8, 0xAA, 0x88, 0x8A] {
        for (flags, fua, dpo) in [(0x08, true, false), (0x10, false, true), (0x18, true, true)] {
            match parse(&cdb(&[operation, flags])) {
                Ok(Command::Read(transfer) | Command::Write(transfer)) => {
                    assert_eq!((transfer.fua, transfer.dpo), (fua, dpo), "{operation:#04x}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn sbc_4_protection_information_is_refused() {
    for operation in [0x28, 0x2A, 0xA8, 0xAA, 0x88, 0x8A] {
        for protect in 1..8 {
            assert_eq!(parse(&cdb(&[operation, protect << 5])), invalid_field(1, Some(7)));
        }
    }
}

#[test]
fn sam_6_naca_is_refused_in_every_command() {
    for mut bytes in all() {
        assert!(parse(&bytes).is_ok(), "{bytes:02x?}");
        let last = bytes.len() - 1;
        bytes[last] |= 0x04;
        assert_eq!(parse(&bytes), invalid_field(last as u16, Some(2)), "{bytes:02x?}");
    }
}

#[test]
fn a_short_cdb_is_an_invalid_field_where_it_ends() {
    for bytes in all() {
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), invalid_field(end as u16, None), "{bytes:02x?}");
        }
    }
}

#[test]
fn every_operation_code_and_service_action_outside_the_table_is_invalid() {
    for operation in 0..=u8::MAX {
        let rows: Vec<_> = COMMANDS.iter().filter(|row| row.operation == operation).collect();
        let has_actions = rows.iter().any(|row| row.action.is_some());
        for action in 0..0x20 {
            let known = if has_actions {
                rows.iter().any(|row| row.action == Some(action.into()))
            } else {
                !rows.is_empty()
            };
            let answer = parse(&cdb(&[operation, action]));
            let refused = answer.is_err_and(|sense| sense.asc == 0x20);
            assert_eq!(refused, !known, "{operation:#04x} {action:#04x}");
            if refused {
                let field = if has_actions { (1, Some(4)) } else { (0, None) };
                let expected = Sense::INVALID_COMMAND_OPERATION_CODE.with_field(field.0, field.1);
                assert_eq!(answer, Err(expected));
            }
        }
    }
}

#[test]
fn the_table_is_ascending_and_its_usage_begins_with_the_operation_code() {
    let unit = lunar_scsi::unit::Identity::new("V", "p", "r", "s", "t").unwrap();
    let unit = lunar_scsi::unit::LogicalUnit::new(512, 1, unit).unwrap();
    let order: Vec<_> = COMMANDS.iter().map(|row| (row.operation, row.action)).collect();
    assert!(order.is_sorted() && order.windows(2).all(|pair| pair[0] != pair[1]));
    for row in COMMANDS {
        assert_eq!(row.usage(&unit).next(), Some(row.operation), "{}", row.name);
        assert!([6, 10, 12, 16].contains(&row.cdb_bytes()), "{}", row.name);
        // SPC-6, operation code: its group code tells the CDB's length.
        let expected = match row.operation >> 5 {
            0 => 6,
            1 | 2 => 10,
            4 => 16,
            _ => 12,
        };
        assert_eq!(row.cdb_bytes(), expected, "{}", row.name);
    }
}

#[test]
fn sbc_4_read_capacity_16_and_get_lba_status() {
    let mut bytes = cdb(&[0x9E, 0x10]);
    bytes[10..14].copy_from_slice(&[0x80, 0, 1, 2]);
    assert_eq!(parse(&bytes), Ok(Command::ReadCapacity16 { allocation: 0x8000_0102 }));
    let bytes = cdb(&[0x9E, 0x12, 0x80, 1, 2, 3, 4, 5, 6, 7, 0x88, 9, 10, 11]);
    let (lba, allocation) = (0x8001_0203_0405_0607, 0x8809_0A0B);
    assert_eq!(parse(&bytes), Ok(Command::GetLbaStatus { lba, allocation }));
}

#[test]
fn sbc_4_verify_and_write_and_verify_in_three_lengths() {
    let ten = (transfer(0x8203_0405, 0x0708, 7), cdb(&[0, 0, 0x82, 3, 4, 5, 6, 7, 8]));
    let bytes = cdb(&[0, 0, 0x82, 3, 4, 5, 0x86, 7, 8, 9]);
    let twelve = (transfer(0x8203_0405, 0x8607_0809, 6), bytes);
    let bytes = cdb(&[0, 0, 0x82, 3, 4, 5, 6, 7, 8, 9, 0x8A, 11, 12, 13]);
    let sixteen = (transfer(0x8203_0405_0607_0809, 0x8A0B_0C0D, 10), bytes);
    for (verify, write, (expected, mut bytes)) in
        [(0x2F, 0x2E, ten), (0xAF, 0xAE, twelve), (0x8F, 0x8E, sixteen)]
    {
        for (flags, check) in
            [(0x00, ByteCheck::Medium), (0x02, ByteCheck::Blocks), (0x06, ByteCheck::OneBlock)]
        {
            // Where others have FUA there is nothing.
            bytes[1] = flags | 0x10 | 0x08;
            let expected = Transfer { dpo: true, ..expected };
            bytes[0] = verify;
            assert_eq!(parse(&bytes), Ok(Command::Verify(expected, check)));
            bytes[0] = write;
            assert_eq!(parse(&bytes), Ok(Command::WriteAndVerify(expected, check)));
        }
        bytes[1] = 0x04;
        assert_eq!(parse(&bytes), invalid_field(1, Some(2)), "BYTCHK 10b is reserved");
        bytes[1] = 0x20;
        assert_eq!(parse(&bytes), invalid_field(1, Some(7)), "VRPROTECT");
    }
}

#[test]
fn sbc_4_write_same_10_and_16() {
    let same = WriteSame {
        lba: 0x8203_0405,
        blocks: 0x0708,
        anchor: true,
        unmap: true,
        no_data_out: false,
        length_byte: 7,
    };
    let ten = cdb(&[0x41, 0x18, 0x82, 3, 4, 5, 6, 7, 8]);
    assert_eq!(parse(&ten), Ok(Command::WriteSame(same)));
    let sixteen = cdb(&[0x93, 0x01, 0x82, 3, 4, 5, 6, 7, 8, 9, 0x8A, 11, 12, 13]);
    let same = WriteSame {
        lba: 0x8203_0405_0607_0809,
        blocks: 0x8A0B_0C0D,
        anchor: false,
        unmap: false,
        no_data_out: true,
        length_byte: 10,
    };
    assert_eq!(parse(&sixteen), Ok(Command::WriteSame(same)));
    assert_eq!(parse(&cdb(&[0x41, 0x01])), invalid_field(1, Some(0)), "NDOB is not in it");
    for operation in [0x41, 0x93] {
        assert_eq!(parse(&cdb(&[operation, 0x20])), invalid_field(1, Some(7)), "WRPROTECT");
        assert_eq!(parse(&cdb(&[operation, 0x02])), invalid_field(1, Some(2)), "LBDATA");
        assert_eq!(parse(&cdb(&[operation, 0x04])), invalid_field(1, Some(2)), "PBDATA");
    }
}

#[test]
fn sbc_4_orwrite_compare_and_write_unmap_and_pre_fetch() {
    let bytes = cdb(&[0x8B, 0x08, 0x82, 3, 4, 5, 6, 7, 8, 9, 0x8A, 11, 12, 13]);
    let or = Transfer { fua: true, ..transfer(0x8203_0405_0607_0809, 0x8A0B_0C0D, 10) };
    assert_eq!(parse(&bytes), Ok(Command::OrWrite(or)));
    let bytes = cdb(&[0x89, 0x10, 0x82, 3, 4, 5, 6, 7, 8, 9, 0xFF, 0xFF, 0xFF, 13]);
    let compare = Transfer { dpo: true, ..transfer(0x8203_0405_0607_0809, 13, 13) };
    assert_eq!(parse(&bytes), Ok(Command::CompareAndWrite(compare)));
    let unmap = Command::Unmap { anchor: true, list_bytes: 0x8182 };
    assert_eq!(parse(&cdb(&[0x42, 1, 0, 0, 0, 0, 0, 0x81, 0x82])), Ok(unmap));
    let ten = Command::PreFetch { lba: 0x8203_0405, blocks: 0x0708 };
    assert_eq!(parse(&cdb(&[0x34, 2, 0x82, 3, 4, 5, 0x1F, 7, 8])), Ok(ten));
    let sixteen = Command::PreFetch { lba: 0x8203_0405_0607_0809, blocks: 0x8A0B_0C0D };
    let bytes = cdb(&[0x90, 2, 0x82, 3, 4, 5, 6, 7, 8, 9, 0x8A, 11, 12, 13]);
    assert_eq!(parse(&bytes), Ok(sixteen));
}

#[test]
fn spc_6_reports_logs_defects_and_prevention() {
    let report = ReportOperationCodes {
        timeouts: true,
        options: 3,
        operation: 0x9E,
        action: 0x0110,
        allocation: 0x8001_0203,
    };
    let bytes = cdb(&[0xA3, 0x0C, 0x83, 0x9E, 1, 0x10, 0x80, 1, 2, 3]);
    assert_eq!(parse(&bytes), Ok(Command::ReportOperationCodes(report)));
    let report = Command::ReportTaskManagement { extended: true, allocation: 0x8001_0203 };
    assert_eq!(parse(&cdb(&[0xA3, 0x0D, 0x80, 0, 0, 0, 0x80, 1, 2, 3])), Ok(report));
    let log = Command::LogSense { page: 0x2F, subpage: 0xFF, save: true, allocation: 0x0102 };
    assert_eq!(parse(&cdb(&[0x4D, 1, 0x6F, 0xFF, 0, 0, 0, 1, 2])), Ok(log));
    let defects = Command::ReadDefectData { long: false, lists: 0x1D, allocation: 0x0102 };
    assert_eq!(parse(&cdb(&[0x37, 0, 0xFD, 0, 0, 0, 0, 1, 2])), Ok(defects));
    let defects = Command::ReadDefectData { long: true, lists: 0x0D, allocation: 0x8001_0203 };
    assert_eq!(parse(&cdb(&[0xB7, 0x0D, 0, 0, 0, 0, 0x80, 1, 2, 3])), Ok(defects));
    assert_eq!(parse(&cdb(&[0x1E, 0, 0, 0, 0x03])), Ok(Command::PreventAllow { prevent: 3 }));
}

#[test]
fn what_the_host_executes_is_named_and_no_more() {
    for (bytes, expected) in [
        (cdb(&[0x04, 0x10]), HostCommand::FormatUnit),
        (cdb(&[0x15, 0x11]), HostCommand::ModeSelect),
        (cdb(&[0x55, 0x11]), HostCommand::ModeSelect),
        (cdb(&[0x16]), HostCommand::Reserve),
        (cdb(&[0x17]), HostCommand::Reserve),
        (cdb(&[0x56]), HostCommand::Reserve),
        (cdb(&[0x57]), HostCommand::Reserve),
        (cdb(&[0x5E, 3]), HostCommand::PersistentReserve),
        (cdb(&[0x5F, 8]), HostCommand::PersistentReserve),
        (cdb(&[0x83]), HostCommand::ExtendedCopy),
        (cdb(&[0x84]), HostCommand::ReceiveCopyResults),
        (cdb(&[0x84, 3]), HostCommand::ReceiveCopyResults),
    ] {
        assert_eq!(parse(&bytes), Ok(Command::Host(expected)), "{bytes:02x?}");
    }
}

#[test]
fn spc_6_inquiry() {
    let standard = Command::Inquiry { vpd: None, allocation: 0x0102 };
    assert_eq!(parse(&cdb(&[0x12, 0, 0, 1, 2])), Ok(standard));
    let page = Command::Inquiry { vpd: Some(0x83), allocation: 0x00FF };
    assert_eq!(parse(&cdb(&[0x12, 1, 0x83, 0, 0xFF])), Ok(page));
    assert_eq!(parse(&cdb(&[0x12, 0, 0x83, 0, 0xFF])), invalid_field(2, None));
    assert_eq!(parse(&cdb(&[0x12, 2, 0, 0, 0xFF])), invalid_field(1, Some(1)));
}

#[test]
fn spc_6_mode_sense_6_and_10() {
    let six = ModeSense {
        page: 0x3F,
        subpage: 0xFF,
        control: PageControl::Default,
        dbd: true,
        long: false,
        allocation: 0xC0,
        llbaa: false,
    };
    // LLBAA's bit is reserved in the 6-byte command.
    assert_eq!(parse(&cdb(&[0x1A, 0x18, 0xBF, 0xFF, 0xC0])), Ok(Command::ModeSense(six)));
    let ten = ModeSense {
        page: 0x08,
        subpage: 0,
        control: PageControl::Changeable,
        dbd: false,
        long: true,
        allocation: 0x0102,
        llbaa: true,
    };
    let bytes = cdb(&[0x5A, 0x10, 0x48, 0, 0, 0, 0, 1, 2]);
    assert_eq!(parse(&bytes), Ok(Command::ModeSense(ten)));
}

#[test]
fn the_remaining_commands() {
    assert_eq!(parse(&cdb(&[0x00])), Ok(Command::TestUnitReady));
    assert_eq!(
        parse(&cdb(&[0x03, 1, 0, 0, 0xFC])),
        Ok(Command::RequestSense { descriptor_format: true, allocation: 0xFC })
    );
    assert_eq!(
        parse(&cdb(&[0xA0, 0, 2, 0, 0, 0, 0x80, 1, 2, 3])),
        Ok(Command::ReportLuns { select: 2, allocation: 0x8001_0203 })
    );
    assert_eq!(parse(&cdb(&[0x25])), Ok(Command::ReadCapacity10));
    assert_eq!(
        parse(&cdb(&[0x35, 2, 0x80, 1, 2, 3, 0, 4, 5])),
        Ok(Command::SynchronizeCache { lba: 0x8001_0203, blocks: 0x0405, immediate: true })
    );
    assert_eq!(
        parse(&cdb(&[0x91, 0, 0x80, 1, 2, 3, 4, 5, 6, 7, 0x88, 9, 10, 11])),
        Ok(Command::SynchronizeCache {
            lba: 0x8001_0203_0405_0607,
            blocks: 0x8809_0A0B,
            immediate: false
        })
    );
    assert_eq!(
        parse(&cdb(&[0x1B, 1, 0, 0, 0x53])),
        Ok(Command::StartStopUnit {
            power_condition: 5,
            start: true,
            load_eject: true,
            no_flush: false,
            immediate: true
        })
    );
}

#[test]
fn sam_6_and_mmc_6_five_commands_leave_a_unit_attention_alone() {
    let alone = [
        opcode::INQUIRY,
        opcode::REPORT_LUNS,
        opcode::REQUEST_SENSE,
        opcode::GET_CONFIGURATION,
        opcode::GET_EVENT_STATUS_NOTIFICATION,
    ];
    for bytes in all() {
        let command = parse(&bytes).unwrap();
        assert_eq!(command.ignores_unit_attention(), alone.contains(&bytes[0]), "{bytes:02x?}");
    }
}

#[test]
fn only_what_changes_the_medium_is_a_write() {
    let writes = [0x04, 0x0A, 0x2A, 0x2E, 0x41, 0x42, 0x89, 0x8A, 0x8B, 0x8E, 0x93, 0xAA, 0xAE];
    for bytes in all() {
        assert_eq!(parse(&bytes).unwrap().is_write(), writes.contains(&bytes[0]), "{bytes:02x?}");
    }
}

fn any_known() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(all())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn any_bytes_are_a_command_or_one_of_two_errors_that_point_into_them(
        known in prop::option::weighted(0.9, any_known()),
        mut bytes in prop::collection::vec(any::<u8>(), 0..=260),
    ) {
        for (to, from) in bytes.iter_mut().zip(known.iter().flatten()).take(2) {
            *to = *from;
        }
        if let Err(sense) = parse(&bytes) {
            let codes = [0x20, 0x24];
            prop_assert!(codes.contains(&sense.asc));
            let field = sense.field.expect("every refusal of a CDB points at a field");
            prop_assert!(field.in_cdb && usize::from(field.byte) <= bytes.len());
        }
    }

    #[test]
    fn bytes_after_the_command_change_nothing(
        known in any_known(),
        mut bytes in prop::collection::vec(any::<u8>(), 16..=260),
    ) {
        bytes[..2].copy_from_slice(&known[..2]);
        prop_assert_eq!(parse(&bytes), parse(&bytes[..known.len()]));
    }
}
