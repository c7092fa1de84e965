//! Any private data as a login, a login response and a login reject: whatever is taken for a login
//! comes out the same when it is encoded again, and every refusal has words.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_srp::login::{self, LoginPolicy, PortId};

fuzz_target!(|private_data: &[u8]| {
    let policy = LoginPolicy {
        enabled: private_data.len() % 7 != 0,
        target_port: PortId([0; 16]),
        it_iu_bytes_max: 4148,
        request_limit: 128,
        channels_max: 1 + (private_data.len() as u32 % 3),
    };
    match login::parse(private_data) {
        Ok(request) => {
            let mut out = [0; 64];
            let bytes = login::encode_request(&request, &mut out).expect("64 bytes are enough");
            assert_eq!(login::parse(&out[..bytes]), Ok(request));
            if let Err(reject) = login::decide(&request, &policy) {
                assert!(!reject.explain(&request, &policy).to_string().is_empty());
            }
        }
        Err(_) => assert!(!login::explain_malformed(private_data).to_string().is_empty()),
    }
    if let Some(response) = login::parse_response(private_data) {
        let mut out = [0; 64];
        let bytes = login::encode_response(&response, &mut out).expect("64 bytes are enough");
        assert_eq!(login::parse_response(&out[..bytes]), Some(response));
    }
    let _ = login::parse_reject(private_data);
});
