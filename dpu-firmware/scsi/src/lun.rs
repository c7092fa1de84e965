//! Logical unit numbers and the eight bytes that name one (SAM-6 4.7). Which unit a number leads to
//! is the LUN map's business.

/// What [`decode`] and [`encode`] call a LUN: a single-level number.
pub type LunNumber = u16;

/// Numbers below this have a peripheral device address; [`encode`] uses it because every initiator
/// understands it.
const PERIPHERAL_END: LunNumber = 0x100;
/// Numbers below this have a flat space address.
const FLAT_END: LunNumber = 0x4000;

/// Extended logical unit addressing, 3-byte flat space form (SAM-6 4.7): method 11b, length 01b,
/// extended method 2h.
const EXTENDED_FLAT: u8 = 0xD2;

/// The number that the eight bytes name (SAM-6 4.7): peripheral device, flat space, logical unit
/// (bus and target zero) or extended flat space addressing, single level. `None` for every other
/// address: there is no logical unit at it.
///
/// There are no buses behind a target, so the bus identifier of a peripheral device address is read
/// as the number's high bits: that is how older SRP initiators write a number above 255.
#[inline]
#[must_use]
pub fn decode(lun: [u8; 8]) -> Option<LunNumber> {
    // Nearly every LUN: peripheral device addressing of a number below 256, which is its second byte.
    let value = u64::from_le_bytes(lun);
    if value & !0xFF00 == 0 {
        return Some((value >> 8) as LunNumber);
    }
    decode_rare(lun)
}

fn decode_rare(lun: [u8; 8]) -> Option<LunNumber> {
    let [first, second, third, fourth, rest @ ..] = lun;
    if rest != [0; 4] {
        return None;
    }
    let single_level = third == 0 && fourth == 0;
    match first >> 6 {
        0b00 | 0b01 if single_level => Some(LunNumber::from_be_bytes([first & 0x3F, second])),
        0b10 if single_level && first & 0x3F == 0 && second & 0xE0 == 0 => {
            Some(LunNumber::from(second))
        }
        0b11 if first == EXTENDED_FLAT && second == 0 => {
            Some(LunNumber::from_be_bytes([third, fourth]))
        }
        _ => None,
    }
}

/// The eight bytes for a number, in the form REPORT LUNS shows it: peripheral device addressing
/// below 256, flat space below 16,384, extended flat space above.
#[must_use]
pub fn encode(number: LunNumber) -> [u8; 8] {
    let [high, low] = number.to_be_bytes();
    if number < PERIPHERAL_END {
        [0, low, 0, 0, 0, 0, 0, 0]
    } else if number < FLAT_END {
        [0x40 | high, low, 0, 0, 0, 0, 0, 0]
    } else {
        [EXTENDED_FLAT, 0, high, low, 0, 0, 0, 0]
    }
}

/// True for C1 01: the REPORT LUNS well known logical unit (SAM-6 4.7, SPC-6).
#[must_use]
pub fn is_report_luns_well_known(lun: [u8; 8]) -> bool {
    lun == [0xC1, 0x01, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(head: &[u8]) -> [u8; 8] {
        let mut lun = [0; 8];
        lun[..head.len()].copy_from_slice(head);
        lun
    }

    #[test]
    fn every_number_round_trips() {
        for number in 0..=LunNumber::MAX {
            assert_eq!(decode(encode(number)), Some(number));
        }
    }

    #[test]
    fn sam_6_the_forms_of_one_number_are_equal() {
        assert_eq!(encode(5), bytes(&[0x00, 0x05]));
        assert_eq!(decode(bytes(&[0x00, 0x05])), Some(5), "peripheral device");
        assert_eq!(decode(bytes(&[0x40, 0x05])), Some(5), "flat space");
        assert_eq!(decode(bytes(&[0x80, 0x05])), Some(5), "logical unit");
        assert_eq!(decode(bytes(&[0xD2, 0x00, 0x00, 0x05])), Some(5), "extended flat space");
        assert_eq!(encode(0x1234), bytes(&[0x52, 0x34]));
        assert_eq!(encode(0x4000), bytes(&[0xD2, 0x00, 0x40, 0x00]));
    }

    #[test]
    fn a_number_above_255_in_a_peripheral_address_is_read_as_older_initiators_mean_it() {
        assert_eq!(decode(bytes(&[0x01, 0x05])), Some(0x0105));
    }

    #[test]
    fn addresses_of_another_bus_target_level_or_form_name_nothing() {
        for head in [
            &[0x81, 0x05][..],            // logical unit of target 1
            &[0x80, 0x25],                // logical unit on bus 1
            &[0x00, 0x05, 0x00, 0x01],    // a second level
            &[0x40, 0x05, 0, 0, 0, 0, 1], // a fourth level
            &[0xC1, 0x01],                // well known
            &[0xD2, 0x01, 0x00, 0x00],    // above 16 bits
            &[0xE2, 0, 0, 0, 5],          // five-byte extended flat space
            &[0xFF, 0xFF],                // not specified
        ] {
            assert_eq!(decode(bytes(head)), None, "{head:02x?}");
        }
    }

    #[test]
    fn only_c1_01_is_report_luns() {
        assert!(is_report_luns_well_known(bytes(&[0xC1, 0x01])));
        assert!(!is_report_luns_well_known(bytes(&[0xC1, 0x02])));
        assert!(!is_report_luns_well_known(bytes(&[0xC1, 0x01, 0, 1])));
    }

    proptest! {
        #[test]
        fn any_eight_bytes_decode_to_a_number_that_encodes_back(lun: [u8; 8]) {
            if let Some(number) = decode(lun) {
                prop_assert_eq!(decode(encode(number)), Some(number));
            }
        }
    }
}
