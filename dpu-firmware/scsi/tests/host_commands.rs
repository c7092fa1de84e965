//! What the host agent executes: MODE SELECT and EXTENDED COPY parameter lists in, decisions out.

use lunar_scsi::alua::TargetPort;
use lunar_scsi::device_server::{ModeParameters, begin_cdb, fill, select};
use lunar_scsi::extended_copy::{
    self, CopyProgress, CopyStatus, LIST_BYTES_MAX, ListIdUsage, Receive, SEGMENTS_MAX, Segment,
    TARGETS_MAX,
};
use lunar_scsi::sense::{FieldPointer, Sense};
use lunar_scsi::unit::{Identity, LogicalUnit, Naa};
use proptest::prelude::*;

/// 512 bytes x 1,000 blocks.
fn disk() -> LogicalUnit {
    let mut identity = Identity::new("SCST_FIO", "disk1", "380", "5ad3c1f0", "disk1").unwrap();
    identity.naa = Some(Naa::Extended([0x60; 16]));
    identity.eui64 = Some([7; 8]);
    LogicalUnit::new(512, 1_000, identity).unwrap()
}

fn in_list<T>(byte: u16) -> Result<T, Sense> {
    let field = FieldPointer { in_cdb: false, byte, bit: None };
    Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.with_field_pointer(field))
}

// MODE SELECT

/// What MODE SENSE (6) or (10) gives, as MODE SELECT takes it back.
fn sensed(unit: &LogicalUnit, long: bool, page: u8, subpage: u8) -> Vec<u8> {
    let cdb: &[u8] = if long {
        &[0x5A, 0x10, page, subpage, 0, 0, 0, 1, 0, 0]
    } else {
        &[0x1A, 0, page, subpage, 255, 0]
    };
    let verdict = begin_cdb(unit, false, cdb).1;
    let lunar_scsi::device_server::Verdict::Parameter(parameter) = verdict else {
        panic!("{verdict:?}")
    };
    let mut out = vec![0; parameter.length_max() as usize];
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

fn select_6(unit: &LogicalUnit, list: &[u8]) -> Result<ModeParameters, Sense> {
    select(unit, &[0x15, 0x10, 0, 0, list.len() as u8, 0], list)
}

fn select_10(unit: &LogicalUnit, list: &[u8]) -> Result<ModeParameters, Sense> {
    let [high, low] = (list.len() as u16).to_be_bytes();
    select(unit, &[0x55, 0x10, 0, 0, 0, 0, 0, high, low, 0], list)
}

/// Where the Control mode page's parameters begin in what [`sensed`] gives of it alone.
const CONTROL_6: usize = 4 + 8 + 2;

#[test]
fn spc_6_what_mode_sense_tells_mode_select_takes_and_nothing_changes() {
    let changed = LogicalUnit { software_write_protect: true, ..disk() };
    for unit in [disk(), changed.validate().unwrap()] {
        for subpage in [0, 0xFF] {
            for page in [0x01, 0x02, 0x03, 0x04, 0x08, 0x0A, 0x1C, 0x3F] {
                let unchanged = Ok(ModeParameters::of(&unit));
                assert_eq!(select_6(&unit, &sensed(&unit, false, page, subpage)), unchanged);
                assert_eq!(select_10(&unit, &sensed(&unit, true, page, subpage)), unchanged);
            }
        }
    }
}

#[test]
fn spc_6_swp_and_d_sense_change() {
    let mut list = sensed(&disk(), false, 0x0A, 0);
    list[CONTROL_6 + 2] |= 0x08;
    let protected = ModeParameters { software_write_protect: true, descriptor_sense: false };
    assert_eq!(select_6(&disk(), &list), Ok(protected));
    list[CONTROL_6] |= 0x04;
    let both = ModeParameters { software_write_protect: true, descriptor_sense: true };
    assert_eq!(select_6(&disk(), &list), Ok(both));
    let unit = LogicalUnit { software_write_protect: true, descriptor_sense: true, ..disk() };
    let neither = ModeParameters { software_write_protect: false, descriptor_sense: false };
    assert_eq!(select_6(&unit, &sensed(&disk(), false, 0x0A, 0)), Ok(neither));
}

#[test]
fn spc_6_a_bit_that_cannot_be_changed_is_pointed_at() {
    let list = sensed(&disk(), false, 0x0A, 0);
    for (offset, bit) in [(0, 0x20), (1, 0x80), (2, 0x10), (3, 0x40), (9, 0x01)] {
        let mut list = list.clone();
        list[CONTROL_6 + offset] ^= bit;
        assert_eq!(select_6(&disk(), &list), in_list((CONTROL_6 + offset) as u16));
    }
    let mut caching = sensed(&disk(), false, 0x08, 0);
    caching[CONTROL_6] ^= 0x04;
    assert_eq!(select_6(&disk(), &caching), in_list(CONTROL_6 as u16), "WCE");
}

#[test]
fn spc_6_mode_select_refuses_pages_that_are_not_there_or_cut_and_other_blocks() {
    let list = sensed(&disk(), false, 0x0A, 0);
    let with = |place: usize, value: u8| {
        let mut list = list.clone();
        list[place] = value;
        select_6(&disk(), &list)
    };
    assert_eq!(with(12, 0x0B), in_list(12), "no such page");
    assert_eq!(with(13, 0x0B), in_list(13), "PAGE LENGTH");
    assert_eq!(with(3, 7), in_list(3), "BLOCK DESCRIPTOR LENGTH");
    assert_eq!(with(7, 1), in_list(4), "NUMBER OF LOGICAL BLOCKS");
    assert_eq!(with(10, 4), in_list(9), "LOGICAL BLOCK LENGTH");
    for cut in (1..list.len()).filter(|cut| *cut != 4 + 8) {
        let cut = select_6(&disk(), &list[..cut]);
        assert_eq!(cut, Err(Sense::PARAMETER_LIST_LENGTH_ERROR));
    }
    let short = select(&disk(), &[0x15, 0x10, 0, 0, list.len() as u8 + 1, 0], &list);
    assert_eq!(short, Err(Sense::PARAMETER_LIST_LENGTH_ERROR), "less data than the CDB says");
}

#[test]
fn spc_6_mode_select_saves_nothing_and_knows_standard_pages_only() {
    let list = sensed(&disk(), false, 0x0A, 0);
    for (flags, bit) in [(0x00, 4), (0x12, 1), (0x11, 0)] {
        let refused = select(&disk(), &[0x15, flags, 0, 0, list.len() as u8, 0], &list);
        assert_eq!(refused, Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(bit))));
    }
    let nothing = select(&disk(), &[0x15, 0x10, 0, 0, 0, 0], &[]);
    assert_eq!(nothing, Ok(ModeParameters::of(&disk())));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn mode_select_changes_exactly_the_two_bits(
        protect: bool, sense: bool, was_protect: bool, was_sense: bool, long: bool,
    ) {
        let unit = |software_write_protect, descriptor_sense| {
            LogicalUnit { software_write_protect, descriptor_sense, ..disk() }
        };
        let list = sensed(&unit(protect, sense), long, 0x3F, 0xFF);
        let before = unit(was_protect, was_sense);
        let after = if long { select_10(&before, &list) } else { select_6(&before, &list) };
        let expected =
            ModeParameters { software_write_protect: protect, descriptor_sense: sense };
        prop_assert_eq!(after, Ok(expected));
    }

    #[test]
    fn any_mode_parameter_list_is_taken_or_refused(
        long: bool,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut list = sensed(&disk(), long, 0x3F, 0xFF);
        for (place, value) in flips {
            let place = place.index(list.len());
            list[place] = value;
        }
        list.truncate(cut.index(list.len() + 1));
        let outcome = if long { select_10(&disk(), &list) } else { select_6(&disk(), &list) };
        if let Err(sense) = outcome {
            prop_assert!([0x1A, 0x26].contains(&sense.asc));
            prop_assert!(sense.field.is_none_or(|field| usize::from(field.byte) < list.len()));
        }
    }
}

// EXTENDED COPY

const NAA: &[u8] = &[0x60; 16];

fn target(code_set: u8, kind: u8, designator: &[u8], block_bytes: u32) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[0] = 0xE4;
    bytes[4..8].copy_from_slice(&[code_set, kind, 0, designator.len() as u8]);
    bytes[8..8 + designator.len()].copy_from_slice(designator);
    bytes[29..].copy_from_slice(&block_bytes.to_be_bytes()[1..]);
    bytes
}

fn segment(segment: &Segment) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0x18];
    bytes.extend(segment.source.to_be_bytes());
    bytes.extend(segment.destination.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(segment.blocks.to_be_bytes());
    bytes.extend(segment.source_lba.to_be_bytes());
    bytes.extend(segment.destination_lba.to_be_bytes());
    bytes
}

fn copy_list(identifier: u8, usage: u8, targets: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (targets, segments) = (targets.concat(), segments.concat());
    let mut list = vec![identifier, usage << 3];
    list.extend((targets.len() as u16).to_be_bytes());
    list.extend([0; 4]);
    list.extend((segments.len() as u32).to_be_bytes());
    list.extend([0; 4]);
    [list, targets, segments].concat()
}

fn parse(list: &[u8]) -> Result<Option<extended_copy::CopyList<'_>>, Sense> {
    extended_copy::parse(&copy_cdb(list.len()), list)
}

fn copy_cdb(list_bytes: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&(list_bytes as u32).to_be_bytes());
    cdb
}

fn some_segment() -> Segment {
    Segment { source: 0, destination: 0, blocks: 100, source_lba: 0, destination_lba: 900 }
}

#[test]
fn spc_6_extended_copy_is_targets_by_name_and_segments() {
    let segments = [
        some_segment(),
        Segment { source: 1, destination: 0, blocks: 0xFFFF, source_lba: 1, destination_lba: 2 },
    ];
    let list = copy_list(
        7,
        0b10,
        &[target(1, 3, NAA, 512), target(1, 2, &[7; 8], 512)],
        &segments.each_ref().map(segment),
    );
    let copy = parse(&list).unwrap().unwrap();
    assert_eq!((copy.list_identifier, copy.usage), (7, ListIdUsage::Discarded));
    assert_eq!(copy.segments().collect::<Vec<_>>(), segments);
    let stranger =
        LogicalUnit { identity: Identity::new("v", "p", "r", "s", "t").unwrap(), ..disk() };
    for place in [0, 1] {
        let target = copy.target(place).unwrap();
        assert_eq!(target.block_bytes, 512);
        assert!(target.names(&disk()) && !target.names(&stranger));
    }
    assert_eq!(copy.target(2), Err(Sense::COPY_TARGET_NOT_REACHABLE));
    let list = copy_list(0, 0, &[target(2, 1, b"SCST_FIOdisk1", 512)], &[]);
    assert!(parse(&list).unwrap().unwrap().target(0).unwrap().names(&disk()), "T10 vendor ID");
}

#[test]
fn spc_6_no_parameter_list_is_good_and_a_cut_one_is_not() {
    assert_eq!(parse(&[]), Ok(None));
    let list = copy_list(1, 0, &[target(1, 3, NAA, 512)], &[segment(&some_segment())]);
    for cut in 1..list.len() {
        assert_eq!(parse(&list[..cut]), Err(Sense::PARAMETER_LIST_LENGTH_ERROR), "{cut}");
    }
    let short = extended_copy::parse(&copy_cdb(list.len() + 1), &list);
    assert_eq!(short, Err(Sense::PARAMETER_LIST_LENGTH_ERROR), "less data than the CDB says");
}

#[test]
fn spc_6_too_many_descriptors_and_too_long_a_list() {
    let targets = |count| vec![target(1, 3, NAA, 512); count];
    let segments = |count| vec![segment(&some_segment()); count];
    let (t, s) = (usize::from(TARGETS_MAX), usize::from(SEGMENTS_MAX));
    assert!(parse(&copy_list(1, 0, &targets(t), &segments(s))).is_ok());
    assert_eq!(
        parse(&copy_list(1, 0, &targets(t + 1), &segments(1))),
        Err(Sense::TOO_MANY_TARGET_DESCRIPTORS)
    );
    assert_eq!(
        parse(&copy_list(1, 0, &targets(1), &segments(s + 1))),
        Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS)
    );
    assert_eq!(
        parse(&copy_list(1, 0, &targets(t + 1), &segments(s + 1))),
        Err(Sense::PARAMETER_LIST_LENGTH_ERROR)
    );
    assert_eq!(LIST_BYTES_MAX as usize, t * 32 + s * 28);
}

#[test]
fn spc_6_descriptors_of_other_kinds_are_not_supported() {
    let mut fibre_channel = target(1, 3, NAA, 512);
    fibre_channel[0] = 0xE0;
    assert_eq!(
        parse(&copy_list(1, 0, &[fibre_channel], &[segment(&some_segment())])),
        Err(Sense::UNSUPPORTED_TARGET_DESCRIPTOR)
    );
    let stream = vec![0x03, 0, 0, 4, 0, 0, 0, 0];
    for segments in [vec![stream.clone()], vec![segment(&some_segment()), stream]] {
        assert_eq!(
            parse(&copy_list(1, 0, &[target(1, 3, NAA, 512)], &segments)),
            Err(Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR)
        );
    }
}

#[test]
fn spc_6_the_header_and_descriptors_fields_are_pointed_at() {
    let list = copy_list(1, 0, &[target(1, 3, NAA, 512)], &[segment(&some_segment())]);
    let with = |place: usize, value: u8| {
        let mut list = list.clone();
        list[place] = value;
        parse(&list).map(|_| ())
    };
    assert_eq!(with(1, 0b01 << 3), in_list(1), "LIST ID USAGE 01b is reserved");
    assert_eq!(with(1, 0b11 << 3), in_list(0), "no identifier, and yet one");
    assert_eq!(with(15, 1), in_list(12), "inline data");
    assert_eq!(with(16 + 1, 0x20), in_list(17), "NUL");
    assert_eq!(with(16 + 1, 0xC0), Ok(()), "LU ID TYPE is reserved since SPC-4");
    assert_eq!(with(16 + 7, 21), in_list(23), "DESIGNATOR LENGTH");
    assert_eq!(with(16 + 32 + 3, 0x19), in_list(50), "DESCRIPTOR LENGTH");
}

#[test]
fn spc_6_a_segment_that_leaves_a_medium_or_has_other_blocks_is_aborted() {
    let list = copy_list(1, 0, &[target(1, 3, NAA, 512), target(1, 3, NAA, 4096)], &[]);
    let copy = parse(&list).unwrap().unwrap();
    let (right, wrong) = (copy.target(0).unwrap(), copy.target(1).unwrap());
    let check = |segment: Segment| segment.check((&right, &disk()), (&right, &disk()));
    assert_eq!(check(some_segment()), Ok(()));
    let aborted = Err(Sense::COPY_ABORTED);
    assert_eq!(check(Segment { destination_lba: 901, ..some_segment() }), aborted);
    assert_eq!(check(Segment { source_lba: u64::MAX, ..some_segment() }), aborted);
    let segment = some_segment();
    assert_eq!(segment.check((&right, &disk()), (&wrong, &disk())), aborted);
    let other = LogicalUnit { block_bytes: 4096, ..disk() };
    assert_eq!(segment.check((&right, &disk()), (&wrong, &other)), aborted);
    let large = LogicalUnit { blocks: 1 << 30, block_bytes: 65_536, ..disk() };
    let list = copy_list(1, 0, &[target(1, 3, NAA, 65_536)], &[]);
    let copy = parse(&list).unwrap().unwrap();
    let target = copy.target(0).unwrap();
    let check = |blocks| {
        let segment = Segment { blocks, ..some_segment() };
        segment.check((&target, &large), (&target, &large))
    };
    assert_eq!((check(4_096), check(4_097)), (Ok(()), aborted), "256 MiB");
}

#[test]
fn spc_6_receive_copy_results() {
    let mut cdb = [0; 16];
    cdb[0] = 0x84;
    cdb[2] = 9;
    cdb[10..14].copy_from_slice(&[0, 0, 1, 2]);
    let status = Receive::Status { list_identifier: 9, allocation: 0x0102 };
    assert_eq!(Receive::parse(&cdb), Ok(status));
    cdb[1] = 3;
    let parameters = Receive::OperatingParameters { allocation: 0x0102 };
    assert_eq!(Receive::parse(&cdb), Ok(parameters));
    cdb[1] = 1;
    let unknown = Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(4));
    assert_eq!(Receive::parse(&cdb), Err(unknown));

    let mut out = [0xEE; 64];
    let length = extended_copy::operating_parameters(1024, &mut out);
    assert_eq!(length, 46);
    assert_eq!(u32::from_be_bytes(out[..4].try_into().unwrap()) as usize, length - 4);
    assert_eq!(out[8..12], [0, 4, 0, 16]);
    assert_eq!(out[12..16], LIST_BYTES_MAX.to_be_bytes());
    assert_eq!(out[34..46], [0, 16, 16, 9, 0, 0, 0, 0, 0, 2, 0x02, 0xE4]);
    assert_eq!(extended_copy::operating_parameters(8, &mut out), 8);

    let status = CopyStatus { progress: CopyProgress::Completed, segments: 2, bytes: 5 << 10 };
    let length = extended_copy::copy_status(&status, 1024, &mut out);
    assert_eq!(out[..length], [0, 0, 0, 8, 0x01, 0, 2, 0x01, 0, 0, 0, 5]);
}

fn any_segment() -> impl Strategy<Value = Segment> {
    (any::<(u16, u16, u16)>(), any::<(u64, u64)>()).prop_map(
        |((source, destination, blocks), (source_lba, destination_lba))| Segment {
            source,
            destination,
            blocks,
            source_lba,
            destination_lba,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn extended_copy_reads_the_segments_that_were_put_in(
        segments in prop::collection::vec(any_segment(), 0..=SEGMENTS_MAX.into()),
        targets in 0..=usize::from(TARGETS_MAX),
    ) {
        let written: Vec<_> = segments.iter().map(segment).collect();
        let list = copy_list(1, 0, &vec![target(1, 3, NAA, 512); targets], &written);
        let copy = parse(&list).unwrap().unwrap();
        prop_assert_eq!(copy.segments().collect::<Vec<_>>(), segments);
        prop_assert_eq!(copy.target(targets as u16), Err(Sense::COPY_TARGET_NOT_REACHABLE));
        for place in 0..targets {
            prop_assert!(copy.target(place as u16).unwrap().names(&disk()));
        }
    }

    #[test]
    fn any_copy_list_is_taken_or_refused(
        mut list in prop::collection::vec(any::<u8>(), 0..800),
        targets in 0_u8..6,
        segments in 0_u8..18,
        tame: bool,
    ) {
        if tame && let Some(header) = list.first_chunk_mut::<16>() {
            *header = [1, 0, 0, targets * 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            header[10..12].copy_from_slice(&(u16::from(segments) * 28).to_be_bytes());
            for place in 0..usize::from(targets) {
                if let Some(head) = list.get_mut(16 + place * 32..24 + place * 32) {
                    head.copy_from_slice(&[0xE4, 0, 0, 0, 1, 3, 0, 16]);
                }
            }
            for place in 0..usize::from(segments) {
                let begin = 16 + usize::from(targets) * 32 + place * 28;
                if let Some(head) = list.get_mut(begin..begin + 4) {
                    head.copy_from_slice(&[0x02, 0, 0, 0x18]);
                }
            }
        }
        match parse(&list) {
            Ok(None) => prop_assert!(list.is_empty()),
            Ok(Some(copy)) => {
                prop_assert!(copy.segments().len() <= usize::from(SEGMENTS_MAX));
                for segment in copy.segments() {
                    if let Ok(target) = copy.target(segment.source) {
                        let _ = segment.check((&target, &disk()), (&target, &disk()));
                    }
                }
            }
            Err(sense) => prop_assert!([0x1A, 0x26].contains(&sense.asc)),
        }
    }
}
