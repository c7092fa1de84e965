//! The commands about the medium besides the ordinary READ and WRITE, and the reports: CDB in, verdict
//! and parameter data out. What the field's conformance suites ask of a disk is asked here first.

use lunar_scsi::alua::{TargetPort, Tpgs};
use lunar_scsi::cdb::ByteCheck;
use lunar_scsi::device_server::{
    BlockOperation, LbaRun, UNMAP_RANGES_MAX, Verdict, all_mapped, begin_cdb, fill,
    fill_lba_status, lba_runs, unmap, unmap_ranges,
};
use lunar_scsi::opcodes::{COMMANDS, HostCommand, HostCommands};
use lunar_scsi::sense::{FieldPointer, Sense};
use lunar_scsi::unit::{DeviceType, Identity, InvalidUnit, LogicalUnit};
use proptest::prelude::*;

/// 512 bytes x 1,000 blocks.
fn disk() -> LogicalUnit {
    let identity = Identity::new("SCST_FIO", "disk1", "380", "5ad3c1f0", "5ad3c1f0-disk1");
    LogicalUnit::new(512, 1_000, identity.unwrap()).unwrap()
}

fn thin() -> LogicalUnit {
    LogicalUnit { thin: true, unmapped_reads_zero: true, ..disk() }
}

fn verdict(unit: &LogicalUnit, head: &[u8]) -> Verdict {
    let mut bytes = [0; 16];
    bytes[..head.len()].copy_from_slice(head);
    begin_cdb(unit, false, &bytes).1
}

const GOOD: Verdict = Verdict::Done(Ok(()));

fn refused(sense: Sense) -> Verdict {
    Verdict::Done(Err(sense))
}

fn invalid_field(byte: u16, bit: Option<u8>) -> Verdict {
    refused(Sense::INVALID_FIELD_IN_CDB.with_field(byte, bit))
}

fn out_of_range(lba: u64) -> Verdict {
    refused(Sense::LBA_OUT_OF_RANGE.with_information(lba))
}

fn ten(operation: u8, flags: u8, lba: u32, blocks: u16) -> Vec<u8> {
    [&[operation, flags][..], &lba.to_be_bytes(), &[0], &blocks.to_be_bytes(), &[0]].concat()
}

fn twelve(operation: u8, flags: u8, lba: u32, blocks: u32) -> Vec<u8> {
    [&[operation, flags][..], &lba.to_be_bytes(), &blocks.to_be_bytes(), &[0, 0]].concat()
}

fn sixteen(operation: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    [&[operation, flags][..], &lba.to_be_bytes(), &blocks.to_be_bytes(), &[0, 0]].concat()
}

fn data(unit: &LogicalUnit, head: &[u8]) -> Vec<u8> {
    let verdict = verdict(unit, head);
    let Verdict::Parameter(parameter) = verdict else { panic!("{verdict:?}") };
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

// VERIFY, WRITE AND VERIFY

#[test]
fn sbc_4_verify_compares_what_bytchk_says() {
    for (flags, check) in
        [(0x00, ByteCheck::Medium), (0x02, ByteCheck::Blocks), (0x06, ByteCheck::OneBlock)]
    {
        let expected = Verdict::Block(BlockOperation::Compare { lba: 992, blocks: 8, check });
        assert_eq!(verdict(&disk(), &ten(0x2F, flags, 992, 8)), expected);
        assert_eq!(verdict(&disk(), &twelve(0xAF, flags, 992, 8)), expected);
        assert_eq!(verdict(&disk(), &sixteen(0x8F, flags, 992, 8)), expected);
        let protected = LogicalUnit { read_only: true, ..disk() };
        assert_eq!(verdict(&protected, &ten(0x2F, flags, 992, 8)), expected, "it is no write");
    }
}

#[test]
fn sbc_4_dpo_is_taken_where_dpofua_is_one_and_refused_where_it_is_zero() {
    let without = LogicalUnit { fua: false, ..disk() };
    for bytes in [ten(0x2F, 0x10, 0, 1), twelve(0xAF, 0x10, 0, 1), ten(0x2E, 0x12, 0, 1)] {
        assert!(matches!(verdict(&disk(), &bytes), Verdict::Block(_)));
        assert_eq!(verdict(&without, &bytes), invalid_field(1, Some(4)));
    }
    for bytes in [sixteen(0x8B, 0x08, 0, 1), sixteen(0x89, 0x08, 0, 1)] {
        let mut bytes = bytes;
        bytes[13] = 1;
        assert!(matches!(verdict(&disk(), &bytes), Verdict::Block(_)));
        assert_eq!(verdict(&without, &bytes), invalid_field(1, Some(3)));
    }
}

#[test]
fn sbc_4_no_blocks_are_good_on_the_medium_and_out_of_range_behind_it() {
    for operation in [0x2F, 0x2E, 0x34] {
        assert_eq!(verdict(&disk(), &ten(operation, 2, 0, 0)), GOOD);
        assert_eq!(verdict(&disk(), &ten(operation, 2, 1_001, 0)), out_of_range(1_001));
        let last = u32::MAX;
        assert_eq!(verdict(&disk(), &ten(operation, 2, last, 0)), out_of_range(last.into()));
    }
    for operation in [0x8F, 0x8E, 0x8B, 0x89, 0x90] {
        assert_eq!(verdict(&disk(), &sixteen(operation, 0, 1_000, 0)), GOOD);
        assert_eq!(verdict(&disk(), &sixteen(operation, 0, u64::MAX, 0)), out_of_range(u64::MAX));
    }
}

#[test]
fn sbc_4_a_range_that_leaves_the_medium_is_refused_by_every_command() {
    for operation in [0x2F, 0x2E, 0x34, 0x41] {
        for (lba, blocks) in [(1_000, 1), (999, 2), (0x8000_0000, 1), (u32::MAX, 256)] {
            let outside = out_of_range(u64::from(lba).max(1_000));
            assert_eq!(verdict(&disk(), &ten(operation, 0, lba, blocks)), outside);
        }
    }
    for operation in [0x8F, 0x8E, 0x8B, 0x89, 0x90, 0x93] {
        let bytes = sixteen(operation, 0, 999, 2);
        assert_eq!(verdict(&disk(), &bytes), out_of_range(1_000), "{operation:#04x}");
        let bytes = sixteen(operation, 0, u64::MAX, 2);
        assert_eq!(verdict(&disk(), &bytes), out_of_range(u64::MAX), "{operation:#04x}");
    }
}

#[test]
fn sbc_4_write_and_verify_reads_back_whether_the_data_is_to_be_compared_or_not() {
    let expected = Verdict::Block(BlockOperation::WriteAndVerify { lba: 7, blocks: 2 });
    for flags in [0x00, 0x02] {
        assert_eq!(verdict(&disk(), &ten(0x2E, flags, 7, 2)), expected);
        assert_eq!(verdict(&disk(), &twelve(0xAE, flags, 7, 2)), expected);
        assert_eq!(verdict(&disk(), &sixteen(0x8E, flags, 7, 2)), expected);
    }
    assert_eq!(verdict(&disk(), &ten(0x2E, 0x06, 7, 2)), invalid_field(1, Some(2)));
}

// WRITE SAME, COMPARE AND WRITE, ORWRITE

#[test]
fn sbc_4_write_same_writes_a_block_or_zeros_and_may_unmap_a_thin_unit() {
    let same = |zeros, unmap| {
        Verdict::Block(BlockOperation::WriteSame { lba: 4, blocks: 8, zeros, unmap })
    };
    assert_eq!(verdict(&disk(), &ten(0x41, 0, 4, 8)), same(false, false));
    assert_eq!(verdict(&disk(), &sixteen(0x93, 0, 4, 8)), same(false, false));
    assert_eq!(verdict(&disk(), &sixteen(0x93, 0x01, 4, 8)), same(true, false), "NDOB");
    assert_eq!(verdict(&thin(), &ten(0x41, 0x08, 4, 8)), same(false, true));
    assert_eq!(verdict(&thin(), &sixteen(0x93, 0x09, 4, 8)), same(true, true));
    // A part of a physical block too.
    let thick = LogicalUnit { physical_blocks_exponent: 3, ..thin() };
    let part =
        Verdict::Block(BlockOperation::WriteSame { lba: 3, blocks: 5, zeros: true, unmap: true });
    assert_eq!(verdict(&thick, &sixteen(0x93, 0x09, 3, 5)), part);
}

#[test]
fn sbc_4_write_same_refuses_unmap_without_lbpme_anchor_zero_blocks_and_too_many() {
    assert_eq!(verdict(&disk(), &ten(0x41, 0x08, 0, 1)), invalid_field(1, Some(3)));
    assert_eq!(verdict(&disk(), &sixteen(0x93, 0x08, 0, 1)), invalid_field(1, Some(3)));
    for flags in [0x10, 0x18] {
        assert_eq!(verdict(&thin(), &ten(0x41, flags, 0, 1)), invalid_field(1, Some(4)));
        assert_eq!(verdict(&thin(), &sixteen(0x93, flags, 0, 1)), invalid_field(1, Some(4)));
    }
    assert_eq!(verdict(&thin(), &ten(0x41, 0, 0, 0)), invalid_field(7, None), "WSNZ");
    assert_eq!(verdict(&thin(), &sixteen(0x93, 0, 0, 0)), invalid_field(10, None), "WSNZ");
    let large = LogicalUnit { blocks: 1 << 30, ..thin() };
    assert!(matches!(verdict(&large, &sixteen(0x93, 0, 0, 0xFFFF)), Verdict::Block(_)));
    assert_eq!(verdict(&large, &sixteen(0x93, 0, 0, 0x1_0000)), invalid_field(10, None));
}

#[test]
fn sbc_4_compare_and_write_takes_as_many_blocks_as_page_b0_says() {
    let bytes = |blocks| sixteen(0x89, 0, 700, blocks);
    let expected = BlockOperation::CompareAndWrite { lba: 700, blocks: 255, fua: false };
    assert_eq!(verdict(&disk(), &bytes(255)), Verdict::Block(expected));
    let large = LogicalUnit { block_bytes: 65_536, ..disk() };
    assert_eq!(data(&large, &[0x12, 1, 0xB0, 0, 64])[5], 16);
    assert!(matches!(verdict(&large, &bytes(16)), Verdict::Block(_)));
    assert_eq!(verdict(&large, &bytes(17)), invalid_field(13, None));
}

#[test]
fn sbc_4_orwrite_carries_fua() {
    let expected = |fua| Verdict::Block(BlockOperation::OrWrite { lba: 7, blocks: 2, fua });
    assert_eq!(verdict(&disk(), &sixteen(0x8B, 0, 7, 2)), expected(false));
    assert_eq!(verdict(&disk(), &sixteen(0x8B, 0x08, 7, 2)), expected(true));
}

#[test]
fn spc_6_every_write_to_a_read_only_unit_is_write_protected_before_anything_else() {
    let unit = LogicalUnit { read_only: true, forwards: true, ..thin() };
    let mut compare = sixteen(0x89, 0, 0, 0);
    compare[13] = 1;
    for bytes in [
        ten(0x2E, 0x02, 0, 1),
        twelve(0xAE, 0x02, 0, 1),
        sixteen(0x8E, 0x02, 0, 1),
        ten(0x41, 0, 0, 1),
        ten(0x41, 0x08, 0, 1),
        sixteen(0x93, 0x08, 0, 1),
        sixteen(0x8B, 0, 0, 1),
        compare,
        vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
        vec![0x04, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(verdict(&unit, &bytes), refused(Sense::WRITE_PROTECTED), "{bytes:02x?}");
        // WRITE SAME with UNMAP to a unit that is not thin as well.
        let thick = LogicalUnit { thin: false, ..unit.clone() };
        assert_eq!(verdict(&thick, &bytes), refused(Sense::WRITE_PROTECTED), "{bytes:02x?}");
    }
}

#[test]
fn spc_6_swp_protects_reads_go_on_and_wp_is_set() {
    let unit = LogicalUnit { software_write_protect: true, ..disk() }.validate().unwrap();
    let protected = refused(Sense::SOFTWARE_WRITE_PROTECTED);
    assert_eq!(verdict(&unit, &ten(0x2A, 0, 0, 1)), protected);
    assert_eq!(verdict(&unit, &ten(0x41, 0, 0, 1)), protected);
    assert!(matches!(verdict(&unit, &ten(0x28, 0, 0, 1)), Verdict::Block(_)));
    assert_eq!(data(&unit, &[0x1A, 0, 0x0A, 0, 255])[2] & 0x80, 0x80, "WP");
}

// UNMAP

fn unmap_parameter_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let bytes = ranges.len() as u16 * 16;
    let mut list = [(bytes + 6).to_be_bytes(), bytes.to_be_bytes(), [0; 2], [0; 2]].concat();
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

#[test]
fn sbc_4_unmap_is_there_for_thin_units_and_wants_its_list() {
    let command = |flags, bytes| vec![0x42, flags, 0, 0, 0, 0, 0, 0, bytes, 0];
    assert_eq!(verdict(&thin(), &command(0, 24)), Verdict::UnmapList { bytes: 24 });
    assert_eq!(verdict(&thin(), &command(0, 0)), GOOD, "no list is no error");
    assert_eq!(
        verdict(&thin(), &command(0, 7)),
        refused(Sense::PARAMETER_LIST_LENGTH_ERROR.with_field(7, None))
    );
    assert_eq!(verdict(&thin(), &command(1, 24)), invalid_field(1, Some(0)), "ANCHOR");
    assert_eq!(
        verdict(&disk(), &command(0, 24)),
        refused(Sense::INVALID_COMMAND_OPERATION_CODE.with_field(0, None))
    );
}

#[test]
fn sbc_4_unmap_of_nothing_is_good() {
    assert_eq!(unmap(&thin(), &unmap_parameter_list(&[])), Ok(None));
    for lba in [0, 255, 1_000] {
        assert_eq!(unmap(&thin(), &unmap_parameter_list(&[(lba, 0)])), Ok(None));
    }
    // A descriptor that is cut is ignored.
    let mut list = unmap_parameter_list(&[(0, 1)]);
    list[3] = 15;
    assert_eq!(unmap(&thin(), &list), Ok(None));
}

#[test]
fn sbc_4_unmap_refuses_the_whole_list_for_one_bad_range() {
    assert_eq!(
        unmap(&thin(), &unmap_parameter_list(&[(0, 1), (999, 2)])),
        Err(Sense::LBA_OUT_OF_RANGE.with_information(1_000))
    );
    let list = unmap_parameter_list(&[(0, 1), (0, 1)]);
    assert_eq!(unmap(&thin(), &list), Ok(Some(BlockOperation::Unmap { ranges: 2 })));
    for cut in 0..list.len() {
        assert_eq!(unmap(&thin(), &list[..cut]), Err(Sense::PARAMETER_LIST_LENGTH_ERROR));
    }
}

#[test]
fn sbc_4_unmap_holds_to_the_limits_of_page_b0() {
    let in_list = |byte| {
        let field = FieldPointer { in_cdb: false, byte, bit: None };
        Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.with_field_pointer(field))
    };
    let most = vec![(0, 1); UNMAP_RANGES_MAX.into()];
    let operation = BlockOperation::Unmap { ranges: UNMAP_RANGES_MAX };
    assert_eq!(unmap(&thin(), &unmap_parameter_list(&most)), Ok(Some(operation)));
    let more = vec![(0, 1); usize::from(UNMAP_RANGES_MAX) + 1];
    assert_eq!(unmap(&thin(), &unmap_parameter_list(&more)), in_list(2));
    let large = LogicalUnit { blocks: 1 << 30, ..thin() };
    let most = [(0, 1 << 19), (0, 1 << 19)];
    assert!(unmap(&large, &unmap_parameter_list(&most)).is_ok());
    let more = [(0, 1 << 19), (0, (1 << 19) + 1)];
    assert_eq!(unmap(&large, &unmap_parameter_list(&more)), in_list(8 + 16 + 8));
}

// PRE-FETCH, GET LBA STATUS, READ DEFECT DATA, LOG SENSE

#[test]
fn sbc_4_pre_fetch_is_good_because_the_card_keeps_no_blocks() {
    for (flags, group) in [(0, 0), (2, 0), (0, 3), (2, 3)] {
        let mut bytes = ten(0x34, flags, 0, 256);
        bytes[6] = group;
        assert_eq!(verdict(&disk(), &bytes), GOOD);
        assert_eq!(verdict(&disk(), &sixteen(0x90, flags, 744, 256)), GOOD);
    }
}

#[test]
fn sbc_4_get_lba_status_begins_on_the_medium() {
    for lba in [1_000, 1_001, 1 << 63, u64::MAX] {
        assert_eq!(verdict(&disk(), &sixteen(0x9E, 0x12, lba, 24)), out_of_range(lba));
    }
    assert_eq!(verdict(&disk(), &sixteen(0x9E, 0x12, 5, 0)), GOOD);
    for unit in [disk(), thin()] {
        let status = |allocation| verdict(&unit, &sixteen(0x9E, 0x12, 5, allocation));
        let asked = |allocation| Verdict::Block(BlockOperation::LbaStatus { lba: 5, allocation });
        for (allocation, runs) in [(1, 1), (9, 1), (24, 1), (25, 2), (u32::MAX, 32)] {
            assert_eq!((status(allocation), lba_runs(allocation)), (asked(allocation), runs));
        }
    }
}

#[test]
fn sbc_4_every_block_of_a_fully_provisioned_unit_is_mapped() {
    let expected = LbaRun { lba: 5, blocks: 995, deallocated: false };
    assert_eq!(all_mapped(&disk(), 5), expected);
    let large = LogicalUnit { blocks: 1 << 40, ..disk() };
    assert_eq!(all_mapped(&large, 0).blocks, u32::MAX);
}

#[test]
fn sbc_4_lba_status_tells_of_runs() {
    let runs = [
        LbaRun { lba: 5, blocks: 3, deallocated: true },
        LbaRun { lba: 8, blocks: 992, deallocated: false },
    ];
    let mut out = [0xEE; 41];
    assert_eq!(fill_lba_status(&runs, &mut out), 40);
    assert_eq!(out[..8], [0, 0, 0, 36, 0, 0, 0, 0]);
    assert_eq!(out[8..24], [0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 3, 1, 0, 0, 0]);
    assert_eq!(out[24..], [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 3, 0xE0, 0, 0, 0, 0, 0xEE]);
}

#[test]
fn sbc_4_the_defect_lists_are_empty_in_the_format_asked_for() {
    assert_eq!(data(&disk(), &[0x37, 0, 0x18, 0, 0, 0, 0, 0, 32, 0]), [0, 0x18, 0, 0]);
    assert_eq!(data(&disk(), &[0x37, 0, 0, 0, 0, 0, 0, 0, 32, 0]), [0; 4]);
    let long = data(&disk(), &[0xB7, 0x0C, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]);
    assert_eq!(long, [0, 0x0C, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn spc_6_log_pages_are_listed_and_each_is_there() {
    let sense = |page: u8, subpage: u8| vec![0x4D, 0, 0x40 | page, subpage, 0, 0, 0, 0, 255, 0];
    assert_eq!(data(&disk(), &sense(0x00, 0)), [0x80, 0, 0, 2, 0x00, 0x2F]);
    let expected = [0xC0, 0xFF, 0, 6, 0x00, 0x00, 0x00, 0xFF, 0x2F, 0x00];
    assert_eq!(data(&disk(), &sense(0x00, 0xFF)), expected);
    let exceptions = data(&disk(), &sense(0x2F, 0));
    assert_eq!(exceptions[..10], [0xAF, 0, 0, 8, 0, 0, 0x03, 4, 0, 0]);
    for page in (0..0x3F).filter(|page| ![0x00, 0x2F].contains(page)) {
        assert_eq!(verdict(&disk(), &sense(page, 0)), invalid_field(2, Some(5)));
    }
    assert_eq!(verdict(&disk(), &sense(0x2F, 0xFF)), invalid_field(3, None));
    let save = [0x4D, 1, 0x40, 0, 0, 0, 0, 0, 255, 0];
    assert_eq!(verdict(&disk(), &save), invalid_field(1, Some(0)));
}

// REPORT SUPPORTED OPERATION CODES, REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS

fn report(options: u8, operation: u8, action: u8) -> Vec<u8> {
    vec![0xA3, 0x0C, options, operation, 0, action, 0, 0, 0xFF, 0xFF, 0, 0]
}

/// Operation code, service action, SERVACTV.
fn listed(unit: &LogicalUnit) -> Vec<(u8, u8, bool)> {
    let bytes = data(unit, &report(0, 0, 0));
    assert_eq!(u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len() - 4);
    bytes[4..].chunks(8).map(|row| (row[0], row[3], row[5] & 1 != 0)).collect()
}

#[test]
fn spc_6_each_command_that_is_listed_can_be_asked_for_singly_and_is_known() {
    let agent = LogicalUnit {
        forwards: true,
        host_commands: HostCommands::NONE
            .with(HostCommand::ModeSelect)
            .with(HostCommand::FormatUnit)
            .with(HostCommand::ExtendedCopy)
            .with(HostCommand::ReceiveCopyResults)
            .with(HostCommand::Reserve)
            .with(HostCommand::PersistentReserve)
            .with(HostCommand::SetTargetPortGroups),
        tpgs: Tpgs::Both,
        ..thin()
    };
    let of_a_disk = COMMANDS.iter().filter(|row| row.types.contains(&DeviceType::Disk));
    assert_eq!(listed(&agent).len(), of_a_disk.count());
    for unit in [disk(), thin(), agent] {
        for (operation, action, has_action) in listed(&unit) {
            assert!(has_action || action == 0, "SERVACTV");
            let (right, wrong) = if has_action { (2, 1) } else { (1, 2) };
            let bytes = data(&unit, &report(right, operation, action));
            assert_eq!(bytes, data(&unit, &report(3, operation, action)));
            assert_eq!(bytes[1], 0b011, "supported as in the standard");
            let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
            assert_eq!((length, bytes[4]), (bytes.len() - 4, operation));
            assert!(!has_action || bytes[5] & 0x1F == action);
            let refused = verdict(&unit, &report(wrong, operation, action));
            assert_eq!(refused, invalid_field(2, Some(2)), "{operation:#04x}");
            let mut cdb = vec![0; length];
            (cdb[0], cdb[1]) = (operation, action);
            let asc = match verdict(&unit, &cdb) {
                Verdict::Done(Err(sense)) => sense.asc,
                _ => 0,
            };
            assert_ne!(asc, 0x20, "{operation:#04x} is listed and not there");
        }
    }
}

#[test]
fn spc_6_what_is_not_there_is_not_supported() {
    // WRITE ATOMIC (16), SANITIZE; UNMAP of a unit that is not thin; MODE SELECT without an agent.
    for operation in [0x9C, 0x48, 0x42, 0x15] {
        assert_eq!(data(&disk(), &report(1, operation, 0)), [0, 0b001, 0, 0]);
        assert!(listed(&disk()).iter().all(|row| row.0 != operation));
    }
    assert_eq!(data(&disk(), &report(2, 0x9E, 0x13)), [0, 0b001, 0, 0]);
    assert_eq!(data(&disk(), &report(3, 0x28, 1)), [0, 0b001, 0, 0]);
    for options in 4..8 {
        assert_eq!(verdict(&disk(), &report(options, 0, 0)), invalid_field(2, Some(2)));
    }
}

#[test]
fn spc_6_rctd_adds_timeouts_to_every_descriptor() {
    let all = data(&disk(), &report(0x80, 0, 0));
    for row in all[4..].chunks(20) {
        assert_eq!((row[5] & 0x02, &row[8..10]), (0x02, &[0, 0x0A][..]));
    }
    let one = data(&disk(), &report(0x81, 0x28, 0));
    assert_eq!(one[..4], [0, 0x83, 0, 10]);
    assert_eq!(one[14..], [0, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 30]);
    assert_eq!(data(&disk(), &report(0x81, 0x9C, 0)), [0, 0b001, 0, 0]);
}

#[test]
fn spc_6_cdb_usage_data_has_dpo_and_fua_as_dpofua_says() {
    let without = LogicalUnit { fua: false, ..disk() };
    for (operation, both) in
        [(0x28, 0x18), (0x8A, 0x18), (0x89, 0x18), (0x8B, 0x18), (0x2F, 0x10), (0x8E, 0x10)]
    {
        let usage = |unit: &LogicalUnit| data(unit, &report(1, operation, 0))[5];
        assert_eq!(usage(&disk()) & 0x18, both, "{operation:#04x}");
        assert_eq!(usage(&without) & 0x18, 0, "{operation:#04x}");
        assert_eq!(usage(&without), usage(&disk()) & !0x18);
    }
    assert_eq!(data(&disk(), &report(1, 0x93, 0))[5] & 0x08, 0, "UNMAP");
    assert_eq!(data(&thin(), &report(1, 0x93, 0))[5] & 0x08, 0x08, "UNMAP");
}

#[test]
fn spc_6_task_management_functions_in_both_forms() {
    let short = data(&disk(), &[0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]);
    assert_eq!(short, [0xD8, 0, 0, 0]);
    let long = data(&disk(), &[0xA3, 0x0D, 0x80, 0, 0, 0, 0, 0, 0, 255, 0, 0]);
    assert_eq!((long.len(), &long[..4]), (16, &[0xD8, 0, 0, 12][..]));
}

#[test]
fn the_bits_of_the_hosts_commands_are_those_of_the_control_message() {
    let in_order = [
        HostCommand::ModeSelect,
        HostCommand::FormatUnit,
        HostCommand::ExtendedCopy,
        HostCommand::ReceiveCopyResults,
        HostCommand::MediumRemoval,
        HostCommand::Reserve,
        HostCommand::PersistentReserve,
        HostCommand::SetTargetPortGroups,
    ];
    for (bit, command) in (0..).zip(in_order) {
        assert_eq!(HostCommands::from_bits(1 << bit), HostCommands::NONE.with(command));
    }
    assert_eq!(HostCommands::from_bits(!0xFF), HostCommands::NONE);
}

// Removable media, other device types

#[test]
fn sbc_4_without_a_medium_what_needs_one_is_not_ready() {
    assert_eq!(LogicalUnit { blocks: 0, ..disk() }.validate(), Err(InvalidUnit::Blocks(0)));
    let empty = LogicalUnit { blocks: 0, removable: true, ..thin() }.validate().unwrap();
    let mut compare = sixteen(0x89, 0, 0, 0);
    compare[13] = 1;
    for bytes in [
        vec![0x00],
        vec![0x25],
        ten(0x35, 2, 0, 1),
        sixteen(0x91, 2, 0, 1),
        ten(0x28, 0, 0, 1),
        ten(0x28, 0, 0, 0),
        twelve(0xA8, 0, 0, 1),
        sixteen(0x88, 0, 0, 1),
        ten(0x2A, 0, 0, 1),
        ten(0x2E, 2, 0, 1),
        ten(0x2F, 2, 0, 1),
        sixteen(0x9E, 0x10, 0, 15),
        sixteen(0x9E, 0x12, 0, 24),
        ten(0x34, 2, 0, 1),
        sixteen(0x90, 2, 0, 1),
        sixteen(0x8B, 0, 0, 1),
        compare,
        ten(0x41, 0, 0, 1),
        sixteen(0x93, 0, 0, 1),
        vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
    ] {
        assert_eq!(verdict(&empty, &bytes), refused(Sense::MEDIUM_NOT_PRESENT), "{bytes:02x?}");
    }
    for bytes in [[0x12, 0, 0, 0, 36], [0x1A, 0, 0x3F, 0, 255], [0x03, 0, 0, 0, 18]] {
        assert!(matches!(verdict(&empty, &bytes), Verdict::Parameter(_)), "{bytes:02x?}");
    }
    assert_eq!(verdict(&empty, &[0x1B, 0, 0, 0, 0]), GOOD, "nothing to flush");
}

#[test]
fn spc_6_removal_is_the_agents_where_there_is_one_and_a_medium_to_remove() {
    let prevent = [0x1E, 0, 0, 0, 1];
    let eject = [0x1B, 0, 0, 0, 2];
    let load = [0x1B, 0, 0, 0, 3];
    assert_eq!(verdict(&disk(), &prevent), GOOD);
    assert_eq!(verdict(&disk(), &[0x1E, 0, 0, 0, 2]), invalid_field(4, Some(1)));
    assert_eq!(verdict(&disk(), &eject), invalid_field(4, Some(1)));
    let host_commands = HostCommands::NONE.with(HostCommand::MediumRemoval);
    let fixed = LogicalUnit { forwards: true, host_commands, ..disk() };
    assert_eq!(verdict(&fixed, &prevent), GOOD);
    assert_eq!(verdict(&fixed, &eject), invalid_field(4, Some(1)));
    let removable = LogicalUnit { removable: true, ..fixed };
    for bytes in [prevent, eject, load] {
        assert_eq!(verdict(&removable, &bytes), Verdict::Forward);
    }
}

#[test]
fn spc_6_a_cd_has_its_type_and_none_of_a_disks_pages_and_writes() {
    let unit = LogicalUnit { device_type: DeviceType::CdDvd, ..disk() };
    assert_eq!(data(&unit, &[0x12, 0, 0, 0, 96])[0], 0x05);
    assert_eq!(data(&unit, &[0x12, 1, 0, 0, 96]), [5, 0, 0, 5, 0x00, 0x80, 0x83, 0x86, 0x87]);
    assert_eq!(verdict(&unit, &[0x12, 1, 0xB0, 0, 96]), invalid_field(2, None));
    let rows = listed(&unit);
    assert!(rows.iter().any(|row| row.0 == 0x28) && rows.iter().all(|row| row.0 != 0x2A));
}

#[test]
fn spc_6_third_party_copy_is_told_of_where_the_agent_copies() {
    let inquiry = [0x12, 0, 0, 0, 96];
    let page = [0x12, 1, 0x8F, 0, 255];
    assert_eq!(data(&disk(), &inquiry)[5], 0);
    assert_eq!(verdict(&disk(), &page), invalid_field(2, None));
    let host_commands = HostCommands::NONE.with(HostCommand::ExtendedCopy);
    let unit = LogicalUnit { forwards: true, host_commands, ..disk() };
    assert_eq!(data(&unit, &inquiry)[5], 0x08, "3PC");
    let bytes = data(&unit, &page);
    let mut kinds = Vec::new();
    let mut rest = &bytes[4..];
    while let [kind_high, kind_low, high, low, ..] = *rest {
        let length = usize::from(u16::from_be_bytes([high, low]));
        assert_eq!(length % 4, 0);
        kinds.push(u16::from_be_bytes([kind_high, kind_low]));
        rest = &rest[4 + length..];
    }
    assert!(rest.is_empty());
    assert_eq!(kinds, [0x0001, 0x0004, 0x0008, 0x000C, 0x8001]);
    assert_eq!(bytes[4..16], [0, 1, 0, 8, 7, 0x83, 1, 0, 0x84, 2, 0, 3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn unmap_finds_the_ranges_that_were_put_in(
        ranges in prop::collection::vec((0_u64..1_000, 0_u32..40), 0..40),
        behind in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let list = [unmap_parameter_list(&ranges), behind].concat();
        let read: Vec<_> = unmap_ranges(&list, ranges.len() as u16).collect();
        prop_assert_eq!(&read, &ranges);
        let inside = ranges.iter().all(|(lba, blocks)| lba + u64::from(*blocks) <= 1_000);
        let empty = ranges.iter().all(|(_, blocks)| *blocks == 0);
        match unmap(&thin(), &list) {
            Ok(None) => prop_assert!(empty && inside),
            Ok(Some(operation)) => {
                prop_assert!(inside && !empty);
                prop_assert_eq!(operation, BlockOperation::Unmap { ranges: ranges.len() as u16 });
            }
            Err(_) => prop_assert!(!inside || ranges.len() > UNMAP_RANGES_MAX.into()),
        }
    }

    #[test]
    fn any_list_that_unmap_takes_lies_on_the_medium(
        mut list in prop::collection::vec(any::<u8>(), 0..600),
        descriptors in 0_u8..36,
    ) {
        if let Some(length) = list.get_mut(2..4) {
            length.copy_from_slice(&(u16::from(descriptors) * 16).to_be_bytes());
        }
        // Most of the LBAs are small ones.
        for place in (8..list.len()).filter(|place| ![6, 7].contains(&((place - 8) % 16))) {
            list[place] = 0;
        }
        if let Ok(Some(BlockOperation::Unmap { ranges })) = unmap(&thin(), &list) {
            prop_assert!(ranges <= UNMAP_RANGES_MAX);
            prop_assert_eq!(unmap_ranges(&list, ranges).count(), usize::from(ranges));
            for (lba, blocks) in unmap_ranges(&list, ranges) {
                prop_assert!(lba + u64::from(blocks) <= 1_000);
            }
        }
    }
}
