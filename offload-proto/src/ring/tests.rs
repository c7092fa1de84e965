use proptest::prelude::*;

use super::*;

#[test]
fn a_submission_lies_in_memory_as_documented() {
    let mut entry = SubmissionEntry::new(Operation::Write, 0x0807_0605_0403_0201);
    entry.sequence.set(0x1413_1211);
    entry.flags = FLAG_FUA;
    entry.arena.set(0x1615);
    entry.unit.set(0x2423_2221);
    entry.nexus.set(0x2827_2625);
    entry.configuration_generation.set(0x3433_3231);
    entry.nexus_generation.set(0x3837_3635);
    entry.lba.set(0x4847_4645_4443_4241);
    entry.blocks.set(0x5453_5251);
    entry.data_bytes.set(0x5857_5655);
    entry.data_offset.set(0x6867_6665_6463_6261);
    let mut expected = vec![0x11, 0x12, 0x13, 0x14, 2, 1, 0x15, 0x16];
    expected.extend(1..=8);
    for row in [0x21, 0x31, 0x41, 0x51, 0x61] {
        expected.extend(row..row + 8);
    }
    expected.extend([0; 8]);
    assert_eq!(entry.as_bytes(), expected);
    assert_eq!(entry.check(), Ok(()));
}

#[test]
fn a_completion_lies_in_memory_as_documented() {
    let mut entry = CompletionEntry::new(0x0807_0605_0403_0201, Outcome::Forwarded);
    entry.sequence.set(0x1413_1211);
    entry.status = 2;
    entry.sense_bytes.set(18);
    entry.required_generation.set(0x2423_2221);
    entry.transferred_bytes.set(0x2827_2625);
    entry.detail.set(0x3837_3635_3433_3231);
    let mut expected = vec![0x11, 0x12, 0x13, 0x14, 15, 2, 18, 0];
    expected.extend(1..=8);
    expected.extend(0x21..=0x28);
    expected.extend(0x31..=0x38);
    expected.extend([0; 32]);
    assert_eq!(entry.as_bytes(), expected);
    assert_eq!(entry.check(), Ok(()));
}

#[test]
fn cleared_memory_is_no_entry() {
    assert_eq!(
        SubmissionEntry::new_zeroed().check(),
        Err(EntryError::UnknownOperation { code: 0 })
    );
    assert_eq!(CompletionEntry::new_zeroed().check(), Err(EntryError::UnknownOutcome { code: 0 }));
}

#[test]
fn unknown_codes_are_kept_and_named() {
    for code in 0..=u8::MAX {
        assert_eq!(Operation::from_code(code).code(), code);
        assert_eq!(Outcome::from_code(code).code(), code);
    }
    assert_eq!(Operation::ALL.len(), 12);
    assert_eq!(Outcome::ALL.len(), 15);
    assert_eq!(Operation::from_code(0xee).to_string(), "unknown code 0xee");
    assert_eq!(Operation::CompareAndWrite.to_string(), "COMPARE_AND_WRITE");
}

#[test]
fn a_refused_entry_names_its_field() {
    let mut entry = SubmissionEntry::new(Operation::Forward, 1);
    assert_eq!(entry.check(), Err(EntryError::SideMissing { operation: Operation::Forward }));
    entry.flags = FLAG_SIDE | 0x80;
    assert_eq!(entry.check(), Err(EntryError::UnknownFlags { flags: 0x82 }));
    entry.flags = FLAG_SIDE;
    assert_eq!(entry.check(), Ok(()));
    entry.reserved[7] = 1;
    assert_eq!(entry.check(), Err(EntryError::Reserved));
    let mut read = SubmissionEntry::new(Operation::Read, 1);
    read.flags = FLAG_UNMAP;
    let error = read.check().unwrap_err().to_string();
    assert_eq!(error, "READ has flags 0x10, only 0x06 mean something there");
    let unmap = SubmissionEntry::new(Operation::Unmap, 1);
    assert_eq!(unmap.check(), Err(EntryError::SideMissing { operation: Operation::Unmap }));
    read.flags = FLAG_SEGMENTS;
    assert_eq!(read.check().unwrap_err().to_string(), "READ needs the side record flag");
    let mut completion = CompletionEntry::new(1, Outcome::Forwarded);
    completion.sense_bytes.set(253);
    assert_eq!(
        completion.check().unwrap_err().to_string(),
        "sense_bytes is 253, at most 252 is possible"
    );
}

#[test]
fn cancel_names_the_other_operation() {
    let entry = SubmissionEntry::cancel(7, 0x1234_5678_9abc_def0);
    assert_eq!(entry.operation(), Operation::Cancel);
    assert_eq!(entry.token.get(), 7);
    assert_eq!(entry.cancelled_token(), 0x1234_5678_9abc_def0);
    assert_eq!(entry.check(), Ok(()));
}

#[test]
fn a_side_record_takes_what_fits_and_refuses_the_rest() {
    let mut side = SideRecord::empty();
    side.set_cdb(&[0x7f; CDB_BYTES_MAX]).unwrap();
    side.set_sense(&[0x70, 0, 5]).unwrap();
    assert_eq!(side.cdb(), Ok(&[0x7f; CDB_BYTES_MAX][..]));
    assert_eq!(side.sense(), Ok(&[0x70, 0, 5][..]));
    assert_eq!(side.segments(), Ok(&[][..]));
    let before = side;
    assert!(side.set_cdb(&[0; CDB_BYTES_MAX + 1]).is_err());
    assert!(side.set_sense(&[0; SENSE_BYTES_MAX + 1]).is_err());
    assert!(side == before);
}

#[test]
fn ranges_lie_where_the_scatter_list_would() {
    let mut side = SideRecord::empty();
    let ranges = [BlockRange::new(0x0807_0605_0403_0201, 0x1413_1211); UNMAP_RANGES_MAX];
    side.set_ranges(&ranges).unwrap();
    assert_eq!(side.ranges(), Ok(&ranges[..]));
    let at = 8 + CDB_BYTES_MAX + SENSE_BYTES_MAX;
    let first = [1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0, 0, 0, 0];
    assert_eq!(side.as_bytes()[at..at + 16], first);
    assert_eq!(side.as_bytes()[4..6], [31, 0]);
    assert!(side.set_ranges(&[ranges[0]; UNMAP_RANGES_MAX + 1]).is_err());
    side.segment_count.set(32);
    let error = side.ranges().unwrap_err().to_string();
    assert_eq!(error, "segment_count is 32, at most 31 is possible");
}

#[test]
fn only_what_compares_with_itself_or_is_opaque_cannot_be_repeated() {
    let once: Vec<_> = Operation::ALL.iter().filter(|one| !one.is_idempotent()).collect();
    assert_eq!(once, [&Operation::CompareAndWrite, &Operation::Forward]);
}

fn block_request() -> impl Strategy<Value = BlockRequest> {
    (0..12_u8, any::<u64>(), any::<u32>(), any::<bool>()).prop_map(|(which, lba, blocks, flag)| {
        match which {
            0 => BlockRequest::Read { lba, blocks },
            1 => BlockRequest::Write { lba, blocks, fua: flag },
            2 => BlockRequest::WriteAndVerify { lba, blocks },
            3 => BlockRequest::Flush { lba, blocks },
            4 => BlockRequest::Compare { lba, blocks },
            5 => BlockRequest::CompareAndWrite { lba, blocks, fua: flag },
            6 => BlockRequest::WriteSame { lba, blocks, unmap: flag },
            7 => BlockRequest::Unmap,
            8 => BlockRequest::OrWrite { lba, blocks, fua: flag },
            9 => BlockRequest::Prefetch { lba, blocks },
            10 => BlockRequest::LbaStatus { lba, blocks },
            _ => BlockRequest::Forward { data_out: flag },
        }
    })
}

#[test]
fn layouts_are_powers_of_two_within_the_limit() {
    for slots in [0, 1, 3, 96, RingLayout::SLOTS_MAX + 1, RingLayout::SLOTS_MAX * 2, u32::MAX] {
        assert_eq!(RingLayout::new(slots), None, "{slots}");
    }
    let layout = RingLayout::new(4).unwrap();
    assert_eq!(layout.bytes(), 128 + 4 * 64 + 4 * 1024);
}

proptest! {
    #[test]
    fn any_bytes_are_an_entry_or_an_error_and_keep_their_bytes(bytes in prop::array::uniform32(any::<[u8; 2]>())) {
        let bytes = bytes.as_flattened();
        let submission = SubmissionEntry::read_from_bytes(bytes).unwrap();
        prop_assert_eq!(submission.as_bytes(), bytes);
        if submission.check().is_ok() {
            prop_assert!(Operation::ALL.contains(&submission.operation()));
        }
        let completion = CompletionEntry::read_from_bytes(bytes).unwrap();
        prop_assert_eq!(completion.as_bytes(), bytes);
        if completion.check().is_ok() {
            prop_assert!(Outcome::ALL.contains(&completion.outcome()));
        }
    }

    #[test]
    fn the_agent_reads_what_the_card_asked_for(request in block_request(), token in any::<u64>()) {
        let mut entry = SubmissionEntry::new(Operation::Cancel, token);
        request.encode(&mut entry);
        prop_assert_eq!(entry.check(), Ok(()));
        prop_assert_eq!(BlockRequest::decode(&entry), Some(request));
    }

    #[test]
    fn whatever_passes_the_check_is_a_request_that_encodes_to_itself(bytes in prop::array::uniform32(any::<[u8; 2]>()), operation in 1..=12_u8, flags in 0..64_u8) {
        let mut entry = SubmissionEntry::read_from_bytes(bytes.as_flattened()).unwrap();
        entry.operation = operation;
        entry.flags = flags;
        entry.reserved = [0; 8];
        if entry.check().is_ok() && entry.operation() != Operation::Cancel {
            let request = BlockRequest::decode(&entry).unwrap();
            let mut again = entry;
            request.encode(&mut again);
            prop_assert_eq!(BlockRequest::decode(&again), Some(request));
        }
    }

    #[test]
    fn any_side_record_gives_lists_within_itself(bytes in prop::collection::vec(any::<u8>(), SIDE_BYTES), small in any::<bool>()) {
        let mut side = SideRecord::read_from_bytes(&bytes).unwrap();
        if small {
            side.cdb_bytes.set(side.cdb_bytes.get() % 300);
            side.segment_count.set(side.segment_count.get() % 40);
        }
        prop_assert_eq!(side.cdb().map(<[u8]>::len).ok(), Some(usize::from(side.cdb_bytes.get())).filter(|n| *n <= 260));
        prop_assert_eq!(side.sense().map(<[u8]>::len).ok(), Some(usize::from(side.sense_bytes.get())).filter(|n| *n <= 252));
        prop_assert_eq!(side.segments().map(<[Segment]>::len).ok(), Some(usize::from(side.segment_count.get())).filter(|n| *n <= 31));
        prop_assert_eq!(side.ranges().map(<[BlockRange]>::len).ok(), side.segments().map(<[Segment]>::len).ok());
        let text = format!("{side:?}");
        prop_assert!(text.starts_with("SideRecord"));
    }

    #[test]
    fn nothing_in_a_ring_overlaps(exponent in 1..=16_u32, base in any::<u32>()) {
        let layout = RingLayout::new(1 << exponent).unwrap();
        let near: Vec<u32> = (0..layout.slots().min(4)).map(|step| base.wrapping_add(step)).collect();
        let mut places = vec![(layout.published_offset(), 64), (layout.consumed_offset(), 64)];
        places.extend(near.iter().map(|s| (layout.entry_offset(*s), ENTRY_BYTES as u64)));
        places.extend(near.iter().map(|s| (layout.side_offset(*s), SIDE_BYTES as u64)));
        places.sort_unstable();
        for pair in places.windows(2) {
            prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0);
        }
        let (last, length) = places[places.len() - 1];
        prop_assert!(last + length <= layout.bytes());
        prop_assert_eq!(layout.entry_offset(base), layout.entry_offset(base.wrapping_add(layout.slots())));
    }
}
