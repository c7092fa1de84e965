//! Data in the client's window: what lies in it, what does not, and the copies that move it.

use lunar_srp::descriptor::{DataBuffer, Descriptor};
use lunar_srp::iu::{self, BufferLayout, CommandLayout, Request, SolicitedNotification};
use lunar_vscsi::descriptor::{COPY_BYTES_MAX, Copy, OutsideWindow, Window, copies};
use proptest::prelude::*;

const WINDOW: Window = Window { address: 0x1000, bytes: 0x10_0000 };

fn at(address: u64, length: u32) -> Descriptor {
    Descriptor { address, key: 0, length }
}

/// The data-in buffer of a command with this layout, as the server reads it, and its IU.
fn buffer(data_in: BufferLayout<'_>) -> (DataBuffer, Vec<u8>) {
    let command = CommandLayout {
        tag: 1,
        lun: [0x80, 0, 0, 0, 0, 0, 0, 0],
        attribute: lunar_scsi::task_set::TaskAttribute::Simple,
        solicited: SolicitedNotification::new(false, false),
        cdb: &[0x28],
        data_out: BufferLayout::None,
        data_in,
    };
    let mut iu = vec![0; 256];
    iu::encode_command(&command, &mut iu).expect("fits");
    match iu::parse(&iu) {
        Ok(Request::Command(command)) => (command.data_in, iu),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_window_holds_what_begins_and_ends_in_it() {
    for (address, bytes, holds) in [
        (0x1000, 0, true),
        (0x1000, 0x10_0000, true),
        (0x10_0fff, 1, true),
        (0x10_1000, 0, true),
        (0x0fff, 1, false),
        (0x10_0fff, 2, false),
        (0x10_1001, 0, false),
        (u64::MAX, 1, false),
        (0x1000, u64::MAX, false),
    ] {
        assert_eq!(WINDOW.holds(address, bytes), holds, "{bytes:#x} bytes at {address:#x}");
    }
    assert!(Window::WHOLE.holds(0, u64::MAX));
}

/// WIRE 5: direct, inlined and external lists are checked; keys mean nothing.
#[test]
fn wire_5_a_range_outside_the_window_is_found_whatever_names_it() {
    let (good, wrong) = (at(0x2000, 0x1000), at(0x10_0000, 0x1001));
    let outside = OutsideWindow { address: 0x10_0000, bytes: 0x1001, window: WINDOW };
    for (range, checked) in [(good, Ok(())), (wrong, Err(outside))] {
        let (direct, iu) = buffer(BufferLayout::Direct(Descriptor { key: 99, ..range }));
        assert_eq!(WINDOW.check(&direct, &iu), checked);
        let pieces = [good, range];
        let (inlined, iu) =
            buffer(BufferLayout::Indirect { table_address: 1, table_key: 0, pieces: &pieces });
        assert_eq!(WINDOW.check(&inlined, &iu), checked);
    }
    let pieces = [good, good, wrong];
    let layout =
        BufferLayout::External { table_address: 0x3000, table_key: 0, pieces: &pieces, inline: 1 };
    let (external, iu) = buffer(layout);
    assert_eq!(WINDOW.check(&external, &iu), Ok(()), "the list can be fetched");
    let list: Vec<u8> = pieces.iter().flat_map(Descriptor::to_bytes).collect();
    let fetched = external.fetched(&list).expect("sound");
    assert_eq!(WINDOW.check(&fetched, &list), Err(outside), "but not what it names");
    let text = outside.to_string();
    for word in ["4097 bytes", "0x100000", "0x1000"] {
        assert!(text.contains(word), "{text}");
    }
    let below =
        BufferLayout::External { table_address: 0, table_key: 0, pieces: &pieces, inline: 1 };
    let (external, iu) = buffer(below);
    assert_eq!(
        WINDOW.check(&external, &iu),
        Err(OutsideWindow { address: 0, bytes: 48, window: WINDOW })
    );
    assert_eq!(WINDOW.check(&DataBuffer::None, &[]), Ok(()));
}

/// WIRE 6: at most 128 KiB a copy.
#[test]
fn wire_6_a_long_range_is_copied_in_pieces_of_128_kib() {
    let (direct, iu) = buffer(BufferLayout::Direct(at(0x10_0000, 300 * 1024)));
    let all: Vec<Copy> = copies(&direct, &iu, 0, u32::MAX).collect();
    let copy = |offset: u32, bytes| Copy { offset, address: 0x10_0000 + u64::from(offset), bytes };
    let kib = |kib: u32| kib * 1024;
    assert_eq!(all, [copy(0, kib(128)), copy(kib(128), kib(128)), copy(kib(256), kib(44))]);
    let part: Vec<Copy> = copies(&direct, &iu, kib(100), kib(130)).collect();
    assert_eq!(part, [copy(kib(100), kib(128)), copy(kib(228), kib(2))]);
    assert_eq!(copies(&direct, &iu, kib(300), 1).count(), 0);
    assert_eq!(copies(&direct, &iu, 0, 0).count(), 0);
}

proptest! {
    /// The copies of any part of a buffer are the bytes that the ranges name there, in order.
    #[test]
    fn copies_cover_the_part_exactly(
        lengths in prop::collection::vec(0_u32..400_000, 1..8), offset in 0_u32..600_000,
        bytes in 0_u32..1_000_000,
    ) {
        let pieces: Vec<Descriptor> =
            (0..).zip(&lengths).map(|(n, length)| at(n << 32, *length)).collect();
        let (buffer, iu) =
            buffer(BufferLayout::Indirect { table_address: 0, table_key: 0, pieces: &pieces });
        let mut place = offset;
        for copy in copies(&buffer, &iu, offset, bytes) {
            prop_assert!((1..=COPY_BYTES_MAX).contains(&copy.bytes));
            prop_assert_eq!(copy.offset, place);
            let piece = (copy.address >> 32) as usize;
            let within = (copy.address & 0xffff_ffff) as u32;
            prop_assert_eq!(lengths[..piece].iter().sum::<u32>() + within, place);
            prop_assert!(within + copy.bytes <= lengths[piece]);
            place += copy.bytes;
        }
        let total: u32 = lengths.iter().sum();
        prop_assert_eq!(place - offset, bytes.min(total.saturating_sub(offset)));
    }
}
