//! Any MAD to a port with up to 19 targets: a response of the same transaction, or silence.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_srp::device_management::{Controller, answer};

fuzz_target!(|bytes: &[u8]| {
    let Some((count, mad)) = bytes.split_first() else { return };
    let controller = Controller {
        guid: u64::MAX,
        identifier_extension: 0x0123_4567_89ab_cdef,
        service_id: 1,
        vendor: u32::MAX,
        device: (u32::MAX, u16::MAX),
        send_queue_depth: u16::MAX,
        rdma_read_depth: u8::MAX,
        it_iu_bytes_max: u32::MAX,
        rdma_bytes_max: u32::MAX,
        name: "a name that is longer than the sixty-four bytes which the profile has for it, by far",
    };
    let controllers = [controller; 19];
    if let Some(answer) = answer(mad, &controllers[..usize::from(*count) % 20]) {
        assert_eq!((answer[3], &answer[8..18]), (0x81, &mad[8..18]));
    }
});
