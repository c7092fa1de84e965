//! Any descriptors in an otherwise good command: every range is addressable, none lies outside the
//! table, and their sum is what the command may move.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_srp::descriptor::DataBuffer;
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
    let immediate_offset = (out_count & 1 != 0).then_some(u16::from(in_count));
    let (mut data_out, mut data_in) = (DataBuffer::None, DataBuffer::None);
    let head = request::command_head(&iu).expect("a command's head is whole here");
    let sound = head.read_buffers(immediate_offset, &mut data_out, &mut data_in);
    match request::parse_granted(&iu, immediate_offset) {
        Ok(Request::Command(command)) => {
            assert!(sound, "the data path's reader refuses what the parser takes");
            assert_eq!((data_out, data_in), (command.data_out, command.data_in));
            for buffer in [command.data_out, command.data_in] {
                check(buffer, &iu, descriptors);
            }
        }
        Ok(_) => panic!("a command was taken for something else"),
        Err(IuError::Command { reason, .. }) => {
            assert!(!sound, "the data path's reader takes what the parser refuses: {reason}");
            assert!(!reason.to_string().is_empty());
        }
        Err(IuError::Malformed(reason)) => panic!("a command's head is whole here: {reason}"),
    }
});

fn check(buffer: DataBuffer, iu: &[u8], descriptors: &[u8]) {
    match buffer {
        DataBuffer::Immediate { offset, length } => {
            assert!(usize::from(offset) + length as usize <= iu.len());
        }
        // What is fetched may be anything.
        DataBuffer::External { .. } => match buffer.fetched(descriptors) {
            Ok(fetched) => check_ranges(fetched, descriptors),
            Err(reason) => assert!(!reason.to_string().is_empty()),
        },
        _ => check_ranges(buffer, iu),
    }
}

fn check_ranges(buffer: DataBuffer, list: &[u8]) {
    let mut sum = 0;
    for descriptor in buffer.descriptors(list) {
        assert!(descriptor.address.checked_add(descriptor.length.into()).is_some());
        sum += u64::from(descriptor.length);
    }
    assert_eq!(sum, u64::from(buffer.total_bytes()));
}
