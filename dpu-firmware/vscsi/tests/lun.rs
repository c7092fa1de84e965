//! VSCSI's LUN field, as clients write it, and the lists that they read.

use lunar_vscsi::lun::{Address, Destination, decode, encode, reported};
use proptest::prelude::*;

fn field(head: u16) -> [u8; 8] {
    let [first, second] = head.to_be_bytes();
    [first, second, 0, 0, 0, 0, 0, 0]
}

fn address(channel: u8, id: u8, lun: u8) -> Address {
    Address { channel, id, lun }
}

/// CLIENT 2: 0:0:0 = 8000, channel 0 id 3 lun 2 = 8302, channel 1 id 5 = 8520.
#[test]
fn client_2_the_fields_that_linux_writes() {
    for (head, number, place) in [
        (0x8000, 0x0000, address(0, 0, 0)),
        (0x8302, 0x0302, address(0, 3, 2)),
        (0x8520, 0x0520, address(1, 5, 0)),
        (0x8740, 0x0740, address(2, 7, 0)),
        (0x801F, 0x001F, address(0, 0, 31)),
        (0xBFFF, 0x3FFF, address(7, 63, 31)),
    ] {
        assert_eq!(decode(field(head)), Some(Destination::Unit(number)), "{head:04x}");
        assert_eq!(encode(number), Some(field(head)));
        assert_eq!(Address::from_number(number), place);
        assert_eq!(place.number(), Some(number));
    }
}

/// WIRE 11: peripheral, flat and logical unit addressing, and C101.
#[test]
fn wire_11_other_forms_of_a_lun() {
    assert_eq!(decode(field(0x0005)), Some(Destination::Unit(5)), "peripheral");
    assert_eq!(decode(field(0x4302)), Some(Destination::Unit(0x302)), "flat");
    assert_eq!(decode(field(0xC101)), Some(Destination::ReportLuns));
    assert_eq!(decode(field(0xC102)), None, "another well known unit");
    for second_level in [2, 7] {
        let mut lun = field(0x8302);
        lun[second_level] = 1;
        assert_eq!(decode(lun), None, "a second level at byte {second_level}");
    }
}

/// WIRE 5: 64 ids, 8 channels, 32 units.
#[test]
fn wire_5_addresses_have_limits() {
    assert_eq!(address(8, 0, 0).number(), None);
    assert_eq!(address(0, 64, 0).number(), None);
    assert_eq!(address(0, 0, 32).number(), None);
    assert_eq!(encode(0x4000), None, "beyond what a client can address");
}

/// A client asks every target for its units, and takes the list as that target's alone: 0:0 has 0, 0:3 has 2.
#[test]
fn wire_11_report_luns_names_the_units_of_the_target_that_is_asked() {
    let asked = Destination::Unit(0x300);
    assert_eq!(reported(0x302, asked), Some([0, 2, 0, 0, 0, 0, 0, 0]));
    assert_eq!(reported(0x302, Destination::Unit(0x31f)), Some([0, 2, 0, 0, 0, 0, 0, 0]));
    for elsewhere in [0x000, 0x322, 0x402, 0x4302] {
        assert_eq!(reported(elsewhere, asked), None, "{elsewhere:#x}");
    }
    assert_eq!(reported(0x302, Destination::ReportLuns), Some(field(0x8302)), "all, in full");
    assert_eq!(reported(0x4000, Destination::ReportLuns), None);
}

proptest! {
    #[test]
    fn every_number_that_a_client_can_address_round_trips(number in 0_u16..0x4000) {
        prop_assert_eq!(encode(number).and_then(decode), Some(Destination::Unit(number)));
        prop_assert_eq!(Address::from_number(number).number(), Some(number));
    }

    #[test]
    fn any_field_names_at_most_one_unit(field: [u8; 8]) {
        if let Some(Destination::Unit(number)) = decode(field)
            && let Some(canonical) = encode(number)
        {
            prop_assert_eq!(decode(canonical), Some(Destination::Unit(number)));
        }
    }
}
