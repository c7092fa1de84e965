//! Device management answers, byte by byte, as `srp_daemon` reads them.

use lunar_srp::device_management::{Controller, MAD_BYTES, answer};
use proptest::prelude::*;

const CONTROLLER: Controller<'_> = Controller {
    guid: 0x0002_c903_0005_f34b,
    identifier_extension: 0x0002_c903_00ab_cdef,
    service_id: 0x0000_0000_013f_15b4,
    vendor: 0x00_02c9,
    device: (0xa2d6, 1),
    send_queue_depth: 256,
    rdma_read_depth: 16,
    it_iu_bytes_max: 8276,
    rdma_bytes_max: 65536,
    name: "Lunar SRP target",
};

/// A Get of `attribute` with `modifier`.
fn get(attribute: u16, modifier: u32) -> [u8; MAD_BYTES] {
    let mut mad = [0; MAD_BYTES];
    mad[..4].copy_from_slice(&[1, 6, 1, 1]);
    mad[8..16].copy_from_slice(&0x1122_3344_5566_7788_u64.to_be_bytes());
    mad[16..18].copy_from_slice(&attribute.to_be_bytes());
    mad[20..24].copy_from_slice(&modifier.to_be_bytes());
    mad
}

/// Status and data of the answer to a Get.
fn answered(attribute: u16, modifier: u32, controllers: &[Controller<'_>]) -> (u16, Vec<u8>) {
    let request = get(attribute, modifier);
    let answer = answer(&request, controllers).expect("a Get is answered");
    assert_eq!(answer[..4], [1, 6, 1, 0x81], "GetResp");
    assert_eq!(answer[8..16], request[8..16], "the transaction");
    assert_eq!(answer[16..24], request[16..24], "attribute and modifier");
    (u16::from_be_bytes([answer[4], answer[5]]), answer[64..].to_vec())
}

#[test]
fn class_port_info_says_which_version_and_how_long_an_answer_takes() {
    let (status, data) = answered(1, 0, &[]);
    assert_eq!((status, &data[..8]), (0, &[1, 1, 0, 0, 0, 0, 0, 20][..]));
}

#[test]
fn io_unit_info_has_a_nibble_for_each_slot_the_first_in_the_high_one() {
    let (status, data) = answered(0x10, 0, &[CONTROLLER; 3]);
    assert_eq!((status, &data[..7]), (0, &[0, 1, 16, 0, 0x11, 0x10, 0][..]));
    let (_, data) = answered(0x10, 0, &[CONTROLLER; 40]);
    assert_eq!((&data[4..12], data[12]), (&[0x11; 8][..], 0), "sixteen are told");
}

#[test]
fn io_controller_profile_byte_by_byte() {
    let (status, data) = answered(0x11, 1, &[CONTROLLER]);
    assert_eq!(status, 0);
    assert_eq!(data[..8], CONTROLLER.guid.to_be_bytes());
    assert_eq!(data[8..12], [0x00, 0x02, 0xc9, 0], "the OUI in the three high bytes");
    assert_eq!(data[12..18], [0, 0, 0xa2, 0xd6, 0, 1]);
    assert_eq!(data[28..36], [0x01, 0x00, 0x60, 0x9e, 0x01, 0x08, 0, 1], "class to version");
    assert_eq!((data[40], data[41], data[43]), (1, 0, 16), "queue and READ depth");
    assert_eq!(data[44..52], [0, 0, 0x20, 0x54, 0, 1, 0, 0], "IU and RDMA size");
    assert_eq!((data[52], data[54]), (0x2b, 1), "operations, one service");
    assert_eq!(&data[64..80], b"Lunar SRP target");
    assert!(data[80..].iter().all(|byte| *byte == 0));
}

#[test]
fn service_entries_name_the_identifier_extension_where_srp_daemon_looks_for_it() {
    let (status, data) = answered(0x12, 1 << 16, &[CONTROLLER]);
    assert_eq!(status, 0);
    assert_eq!(&data[..24], b"SRP.T10:0002c90300abcdef");
    assert!(data[24..40].iter().all(|byte| *byte == 0));
    assert_eq!(data[40..48], CONTROLLER.service_id.to_be_bytes());
    // srp_daemon asks for entries 0 to 3, whatever the profile said.
    assert_eq!(answered(0x12, 1 << 16 | 3 << 8, &[CONTROLLER]).0, 0);
}

#[test]
fn what_is_not_there_has_its_status() {
    let one = &[CONTROLLER][..];
    for (attribute, modifier, status, about) in [
        (0x11, 0, 0x001c, "slots count from 1"),
        (0x11, 17, 0x001c, "no such slot"),
        (0x11, 2, 0x0100, "a slot without a controller"),
        (0x12, 2 << 16, 0x0100, "services of no controller"),
        (0x12, 1 << 16 | 1, 0x001c, "first entry behind the last"),
        (0x12, 1 << 16 | 4 << 8, 0x001c, "five entries"),
        (0x12, 1 << 16 | 1 << 8 | 1, 0x001c, "a second service"),
        (0x20, 0, 0x000c, "an attribute that is not known"),
    ] {
        assert_eq!(answered(attribute, modifier, one).0, status, "{about}");
    }
    let mut set = get(0x10, 0);
    set[3] = 2;
    assert_eq!(answer(&set, one).expect("answered")[4..6], [0, 0x0c]);
    set[3] = 5;
    assert_eq!(answer(&set, one).expect("answered")[4..6], [0, 0x08]);
}

#[test]
fn other_classes_responses_and_cut_mads_are_met_with_silence() {
    for (at, byte) in [(0, 2), (1, 4), (3, 0x81)] {
        let mut other = get(0x10, 0);
        other[at] = byte;
        assert_eq!(answer(&other, &[CONTROLLER]), None);
    }
    assert_eq!(answer(&get(0x10, 0)[..255], &[CONTROLLER]), None);
}

proptest! {
    #[test]
    fn any_mad_is_answered_as_a_get_response_or_not_at_all(
        bytes in prop::collection::vec(any::<u8>(), MAD_BYTES),
        count in 0..20_usize,
    ) {
        let controllers = vec![CONTROLLER; count];
        if let Some(answer) = answer(&bytes, &controllers) {
            prop_assert_eq!(answer[3], 0x81);
            prop_assert_eq!(&answer[8..18], &bytes[8..18]);
        }
    }
}
