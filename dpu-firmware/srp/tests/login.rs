//! Login: both forms, the decision and its words, and both ends' view of the answers.

use lunar_srp::login::{
    self, Action, FORMATS, LoginForm, LoginPolicy, LoginReject, LoginRequest, LoginResponse,
    OtherChannels, PortId, Rejection,
};
use proptest::prelude::*;

const TARGET: PortId = PortId([0x22; 16]);

fn request() -> LoginRequest {
    LoginRequest {
        form: LoginForm::InfiniBand,
        tag: 0x0102_0304_0506_0708,
        it_iu_bytes: 2132,
        formats: FORMATS,
        action: Action::Multi,
        immediate_offset: None,
        initiator_port: PortId([0x11; 16]),
        target_port: TARGET,
    }
}

fn policy() -> LoginPolicy {
    LoginPolicy {
        enabled: true,
        target_port: TARGET,
        it_iu_bytes_max: 4400,
        request_limit: 128,
        channels_max: 8,
    }
}

/// SRP 6.2.
#[test]
fn infiniband_form_byte_by_byte() {
    let mut out = [0; 92];
    let request = LoginRequest { immediate_offset: Some(68), ..request() };
    assert_eq!(login::encode_request(&request, &mut out), Some(64));
    #[rustfmt::skip]
    let expected = [
        0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8,
        0, 0, 0x08, 0x54, 0, 0, 0, 0, 0, 6, 0x81, 0, 0, 68, 0, 0,
    ];
    assert_eq!(out[..32], expected);
    assert_eq!(out[32..48], [0x11; 16]);
    assert_eq!(out[48..64], [0x22; 16]);
    // The CM hands over the whole private data, zero-padded to 92 bytes.
    assert_eq!(login::parse(&out), Ok(request));
}

#[test]
fn rdma_cm_form_byte_by_byte() {
    let mut out = [0xee; 56];
    let request = LoginRequest { form: LoginForm::RdmaCm, action: Action::Single, ..request() };
    assert_eq!(login::encode_request(&request, &mut out), Some(56));
    assert_eq!(out[..16], [1, 2, 3, 4, 5, 6, 7, 8, 0, 6, 0, 0, 0, 0, 0x08, 0x54]);
    assert_eq!(out[16..32], [0x11; 16]);
    assert_eq!(out[32..48], [0x22; 16]);
    assert_eq!(out[48..], [0; 8]);
    assert_eq!(login::parse(&out), Ok(request));
}

#[test]
fn what_is_no_login_request_is_refused_in_words() {
    let mut long = [0; 64];
    long[0] = 2;
    let mut short = [0; 56];
    short[11] = 0xc0;
    for (bytes, words) in [
        (&[0_u8; 55][..], "55 bytes of private data, but an SRP login request has 64"),
        (&[], "0 bytes of private data"),
        (&long, "byte 0 of 64 is 0x02"),
        (&short, "byte 11 of 56 is 0xc0"),
    ] {
        assert_eq!(login::parse(bytes), Err(LoginReject::CannotEstablish));
        let text = login::explain_malformed(bytes).to_string();
        assert!(text.contains(words), "{text}");
    }
}

/// The order is that of SCST and LIO, and each refusal names value, limit and way out.
#[test]
fn login_is_decided_in_order_and_explained() {
    use LoginReject as R;
    let wrong_port = PortId([0x33; 16]);
    let bad = LoginRequest { it_iu_bytes: 5000, target_port: wrong_port, ..request() };
    let closed = LoginPolicy { enabled: false, ..policy() };
    let one_channel = LoginPolicy { channels_max: 1, ..policy() };
    let small = LoginRequest { it_iu_bytes: 63, ..request() };
    let elsewhere = LoginRequest { target_port: wrong_port, ..request() };
    let immediate_only = LoginRequest { formats: 0x0008, ..request() };
    for (request, policy, reject, words) in [
        (bad, closed, R::IuTooLarge, ["5000 bytes", "limit is 4400", "lower cmd_sg_entries"]),
        (small, policy(), R::IuTooLarge, ["63 bytes", "needs 64", "raise"]),
        (elsewhere, closed, R::CannotEstablish, ["0x3333", "is disabled", "enable it"]),
        (
            elsewhere,
            policy(),
            R::CannotAssociate,
            ["0x33333333333333333333333333333333", "0x22222222222222222222222222222222", "id_ext"],
        ),
        (immediate_only, policy(), R::UnsupportedFormat, ["0x0008", "0x0006", "use one of them"]),
        (request(), one_channel, R::NoMultiChannel, ["further channel", "one a nexus", "ch_count"]),
    ] {
        assert_eq!(login::decide(&request, &policy), Err(reject));
        let text = reject.explain(&request, &policy).to_string();
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
        assert!(text.contains("0x11111111111111111111111111111111"), "{text}");
    }
    let text = R::InsufficientResources.explain(&request(), &policy()).to_string();
    assert!(text.contains("128 credits"), "{text}");
    let text = R::ChannelLimit.explain(&request(), &policy()).to_string();
    assert!(text.contains("its 8 channels"), "{text}");
}

#[test]
fn acceptable_logins_are_accepted() {
    assert_eq!(login::decide(&request(), &policy()), Ok(()));
    let single = LoginRequest { action: Action::Single, ..request() };
    assert_eq!(login::decide(&single, &LoginPolicy { channels_max: 1, ..policy() }), Ok(()));
    for it_iu_bytes in [64, 4400] {
        assert_eq!(login::decide(&LoginRequest { it_iu_bytes, ..request() }, &policy()), Ok(()));
    }
    // More formats than are supported: the response says which.
    assert_eq!(login::decide(&LoginRequest { formats: 0x000e, ..request() }, &policy()), Ok(()));
    assert_eq!(login::decide(&LoginRequest { formats: 0, ..request() }, &policy()), Ok(()));
}

/// SRP 6.4: the codes, and what the initiator reads from a REJ whose private data is padded.
#[test]
fn login_reject_round_trip() {
    for (n, reason) in (0_u32..).zip(LoginReject::ALL) {
        assert_eq!(reason.code(), 0x0001_0000 + n);
        let mut out = [0; 148];
        assert_eq!(login::encode_reject(reason, 77, &mut out), Some(32));
        let rejection = login::parse_reject(&out).expect("a reject");
        assert_eq!(rejection, Rejection { tag: 77, reason: reason.code(), formats: FORMATS });
        assert_eq!(LoginReject::from_code(rejection.reason), Some(reason));
        assert_eq!(login::parse_response(&out), None);
    }
    assert_eq!(LoginReject::from_code(0), None);
    assert_eq!(login::encode_reject(LoginReject::ChannelLimit, 0, &mut [0; 31]), None);
    assert_eq!(login::parse_reject(&[]), None, "the CM refused without the target's words");
}

proptest! {
    #[test]
    fn login_request_round_trip(
        rdma_cm: bool, tag: u64, it_iu_bytes: u32, formats: u16, multi: bool,
        immediate_offset: Option<u16>, initiator_port: [u8; 16], target_port: [u8; 16],
        padding in 0_usize..8,
    ) {
        let request = LoginRequest {
            form: if rdma_cm { LoginForm::RdmaCm } else { LoginForm::InfiniBand },
            tag, it_iu_bytes, formats,
            action: if multi { Action::Multi } else { Action::Single },
            immediate_offset,
            initiator_port: PortId(initiator_port),
            target_port: PortId(target_port),
        };
        let mut out = [0; 128];
        let bytes = login::encode_request(&request, &mut out).expect("fits");
        prop_assert_eq!(login::parse(&out[..bytes + padding]), Ok(request));
    }

    #[test]
    fn login_response_round_trip(
        tag: u64, request_limit: i32, it_iu_bytes_max: u32, ti_iu_bytes_max: u32, formats: u16,
        others in prop_oneof![
            Just(OtherChannels::None), Just(OtherChannels::Terminated), Just(OtherChannels::Maintained)
        ],
        immediate: bool,
    ) {
        let response = LoginResponse {
            tag, request_limit, it_iu_bytes_max, ti_iu_bytes_max, formats, others, immediate,
        };
        let mut out = [0; 196];
        prop_assert_eq!(login::encode_response(&response, &mut out), Some(52));
        prop_assert_eq!(login::parse_response(&out), Some(response));
        prop_assert_eq!(login::parse_reject(&out), None);
    }

    #[test]
    fn any_private_data_is_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        match login::parse(&bytes) {
            Ok(request) => {
                if let Err(reject) = login::decide(&request, &policy()) {
                    prop_assert!(!reject.explain(&request, &policy()).to_string().is_empty());
                }
            }
            Err(_) => prop_assert!(!login::explain_malformed(&bytes).to_string().is_empty()),
        }
        let _ = login::parse_response(&bytes);
        let _ = login::parse_reject(&bytes);
    }
}
