//! CDBs: what each command's bytes mean, which are refused and with what field pointer.

use lunar_scsi::cdb::{Command, ModeSense, PageControl, Transfer, opcode, parse};
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

/// Operation code and length of every command there is.
const LENGTHS: [(u8, usize); 19] = [
    (opcode::TEST_UNIT_READY, 6),
    (opcode::REQUEST_SENSE, 6),
    (opcode::READ_6, 6),
    (opcode::WRITE_6, 6),
    (opcode::INQUIRY, 6),
    (opcode::MODE_SENSE_6, 6),
    (opcode::START_STOP_UNIT, 6),
    (opcode::READ_CAPACITY_10, 10),
    (opcode::READ_10, 10),
    (opcode::WRITE_10, 10),
    (opcode::SYNCHRONIZE_CACHE_10, 10),
    (opcode::MODE_SENSE_10, 10),
    (opcode::READ_16, 16),
    (opcode::WRITE_16, 16),
    (opcode::SYNCHRONIZE_CACHE_16, 16),
    (opcode::SERVICE_ACTION_IN_16, 16),
    (opcode::REPORT_LUNS, 12),
    (opcode::READ_12, 12),
    (opcode::WRITE_12, 12),
];

/// A CDB that parses, of the command's own length.
fn valid(operation: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bytes[0] = operation;
    if operation == opcode::SERVICE_ACTION_IN_16 {
        bytes[1] = 0x10;
    }
    bytes
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
    for (operation, length) in LENGTHS {
        let mut bytes = valid(operation, length);
        assert!(parse(&bytes).is_ok(), "{operation:#04x}");
        bytes[length - 1] |= 0x04;
        assert_eq!(parse(&bytes), invalid_field(length as u16 - 1, Some(2)), "{operation:#04x}");
    }
}

#[test]
fn a_short_cdb_is_an_invalid_field_where_it_ends() {
    for (operation, length) in LENGTHS {
        let bytes = valid(operation, length);
        for end in 0..length {
            assert_eq!(parse(&bytes[..end]), invalid_field(end as u16, None), "{operation:#04x}");
        }
    }
}

#[test]
fn every_other_operation_code_is_invalid() {
    for operation in 0..=u8::MAX {
        let known = LENGTHS.iter().any(|&(code, _)| code == operation);
        let refused = parse(&cdb(&[operation, 0x10]))
            == Err(Sense::INVALID_COMMAND_OPERATION_CODE.with_field(0, None));
        assert_eq!(refused, !known, "{operation:#04x}");
    }
}

#[test]
fn sbc_4_service_action_in_knows_read_capacity_16_only() {
    let mut bytes = cdb(&[0x9E, 0x10]);
    bytes[10..14].copy_from_slice(&[0x80, 0, 1, 2]);
    assert_eq!(parse(&bytes), Ok(Command::ReadCapacity16 { allocation: 0x8000_0102 }));
    for action in (0..0x20).filter(|&action| action != 0x10) {
        let expected = Sense::INVALID_COMMAND_OPERATION_CODE.with_field(1, Some(4));
        assert_eq!(parse(&cdb(&[0x9E, action])), Err(expected));
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
fn sam_6_three_commands_leave_a_unit_attention_alone() {
    for (operation, length) in LENGTHS {
        let command = parse(&valid(operation, length)).unwrap();
        let expected =
            [opcode::INQUIRY, opcode::REPORT_LUNS, opcode::REQUEST_SENSE].contains(&operation);
        assert_eq!(command.ignores_unit_attention(), expected, "{operation:#04x}");
    }
}

#[test]
fn only_the_writes_are_writes() {
    for (operation, length) in LENGTHS {
        let expected = [0x0A, 0x2A, 0xAA, 0x8A].contains(&operation);
        assert_eq!(parse(&valid(operation, length)).unwrap().is_write(), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn any_bytes_are_a_command_or_one_of_two_errors_that_point_into_them(
        head in prop_oneof![
            prop::sample::select(LENGTHS.to_vec()).prop_map(|(code, _)| code),
            any::<u8>(),
        ],
        mut bytes in prop::collection::vec(any::<u8>(), 0..=260),
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = head;
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
        (operation, length) in prop::sample::select(LENGTHS.to_vec()),
        mut bytes in prop::collection::vec(any::<u8>(), 16..=260),
    ) {
        bytes[0] = operation;
        prop_assert_eq!(parse(&bytes), parse(&bytes[..length]));
    }
}
