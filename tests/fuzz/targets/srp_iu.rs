//! Any bytes as an information unit, from an initiator and from a target: a request, a reply, or an
//! error that says why not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_srp::descriptor::DataBuffer;
use lunar_srp::iu::{reply, request};

fuzz_target!(|iu: &[u8]| {
    match request::parse(iu) {
        Ok(request::Request::Command(command)) => {
            assert!(command.cdb.len() >= 16);
            for buffer in [command.data_out, command.data_in] {
                if matches!(buffer, DataBuffer::External { .. }) {
                    continue;
                }
                let offered: u64 = buffer.descriptors(iu).map(|d| u64::from(d.length)).sum();
                assert!(offered >= u64::from(buffer.total_bytes()));
            }
        }
        Ok(_) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Err(error) = reply::parse_reply(iu) {
        assert!(!error.to_string().is_empty());
    }
    if let Ok(response) = reply::parse_response(iu) {
        let mut out = [0; 36 + 4 + 252];
        if let Some(bytes) = reply::encode_response(&response, &mut out) {
            assert_eq!(reply::parse_response(&out[..bytes]), Ok(response));
        }
    }
});
