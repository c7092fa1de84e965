//! Any descriptors in an otherwise good command: every range is addressable, none lies outside the
//! table, and their sum is what the command may move.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_srp::iu::request::{self, IuError, Request};

fuzz_target!(|input: (u8, u8, u8, u8, &[u8])| {
    let (formats, out_count, in_count, additional_cdb_dwords, descriptors) = input;
    // SRP_CMD: opcode, formats at 5, counts at 6 and 7, additional CDB length at 31 (in dwords, from
    // bit 2), then 16 bytes of CDB.
    let mut iu = vec![0; 48];
    iu[0] = 0x02;
    iu[5] = formats;
    iu[6] = out_count;
    iu[7] = in_count;
    iu[31] = additional_cdb_dwords << 2;
    iu.extend_from_slice(descriptors);
    match request::parse(&iu) {
        Ok(Request::Command(command)) => {
            for buffer in [command.data_out, command.data_in] {
                let mut sum = 0;
                for descriptor in buffer.descriptors(&iu) {
                    assert!(descriptor.address.checked_add(descriptor.length.into()).is_some());
                    sum += u64::from(descriptor.length);
                }
                assert_eq!(sum, u64::from(buffer.total_bytes()));
            }
        }
        Ok(_) => panic!("a command was taken for something else"),
        Err(IuError::Command { reason, .. }) => assert!(!reason.to_string().is_empty()),
        Err(IuError::Malformed(reason)) => panic!("a command's head is whole here: {reason}"),
    }
});
