//! Login by VSCSI's rules (WIRE 4): every reject reason, its order and its words.

use lunar_srp::login::{
    Action, FORMATS, LoginForm, LoginReject, LoginRequest, PortId, encode_request, encode_response,
};
use lunar_vscsi::login;
use proptest::prelude::*;

fn request() -> LoginRequest {
    LoginRequest {
        form: LoginForm::InfiniBand,
        tag: 0xc000_0000_034c_0360,
        it_iu_bytes: 256,
        formats: FORMATS,
        action: Action::Single,
        immediate_offset: None,
        initiator_port: PortId([0; 16]),
        target_port: PortId([0; 16]),
    }
}

fn port(extension: u64, guid: u64) -> PortId {
    PortId(((u128::from(extension) << 64) | u128::from(guid)).to_be_bytes())
}

#[test]
fn wire_4_a_login_is_found_in_an_iu_of_256_bytes_and_not_in_a_short_one() {
    let mut iu = [0; 256];
    assert_eq!(encode_request(&request(), &mut iu), Some(64));
    assert_eq!(login::parse(&iu), Some(request()));
    assert_eq!(login::parse(&iu[..64]), Some(request()));
    // 56 to 63 bytes would be the form of the RDMA/CM, which has no place here.
    assert_eq!(login::parse(&iu[..63]), None);
    iu[0] = 2;
    assert_eq!(login::parse(&iu), None);
}

#[test]
fn wire_4_every_reject_reason_in_its_order() {
    use LoginReject as R;
    let too_long = LoginRequest {
        it_iu_bytes: 257,
        action: Action::Multi,
        formats: 0,
        target_port: port(1, 0),
        ..request()
    };
    let too_short = LoginRequest { it_iu_bytes: 63, ..too_long };
    let multi = LoginRequest { it_iu_bytes: 64, ..too_long };
    let extension = LoginRequest { action: Action::Single, ..multi };
    let other_extension = LoginRequest { initiator_port: port(9, 0), ..request() };
    let no_format = LoginRequest { target_port: port(0, 7), ..extension };
    let immediate_only = LoginRequest { formats: 0x0008, ..request() };
    for (request, code, reject, words) in [
        (too_long, 0x0001_0002, R::IuTooLarge, ["257 bytes", "256 at most", "lower"]),
        (too_short, 0x0001_0000, R::CannotEstablish, ["63 bytes", "needs 64", "raise"]),
        (multi, 0x0001_0005, R::NoMultiChannel, ["further channel", "has one", "another adapter"]),
        (extension, 0x0001_0003, R::CannotAssociate, ["00000001", "extension 0", "zeros"]),
        (other_extension, 0x0001_0003, R::CannotAssociate, ["00000009", "extension 0", "zeros"]),
        (no_format, 0x0001_0004, R::UnsupportedFormat, ["0x0000", "0x0006", "use one"]),
        (immediate_only, 0x0001_0004, R::UnsupportedFormat, ["0x0008", "0x0006", "use one"]),
    ] {
        // The last reason of all is that the client is logged in already.
        for logged_in in [false, true] {
            assert_eq!(login::decide(&request, logged_in), Err(reject));
        }
        assert_eq!(reject.code(), code);
        let text = login::explain(reject, &request).to_string();
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
    }
    assert_eq!(login::decide(&request(), true), Err(R::ChannelLimit));
    assert_eq!(R::ChannelLimit.code(), 0x0001_0006);
    for reject in R::ALL {
        assert!(login::explain(reject, &request()).to_string().starts_with("login refused: "));
    }
}

/// WIRE 11: SLOF names the direct format only; a GUID without an extension is nobody's business.
#[test]
fn wire_11_acceptable_logins_are_accepted() {
    for accepted in [
        request(),
        LoginRequest { formats: 0x0002, it_iu_bytes: 64, ..request() },
        LoginRequest { formats: 0xFFFF, initiator_port: port(0, 5), ..request() },
    ] {
        assert_eq!(login::decide(&accepted, false), Ok(()));
    }
}

/// WIRE 4: limit, IU lengths of 256 and both formats.
#[test]
fn wire_4_the_login_response_byte_by_byte() {
    let mut out = [0; 52];
    assert_eq!(encode_response(&login::accept(&request(), 22), &mut out), Some(52));
    let expected = [
        0xc0, 0, 0, 0, 0, 0, 0, 22, 0xc0, 0, 0, 0, 0x03, 0x4c, 0x03, 0x60, 0, 0, 1, 0, 0, 0, 1, 0,
        0, 6, 0, 0,
    ];
    assert_eq!(out[..28], expected);
    assert_eq!(out[28..], [0; 24]);
}

proptest! {
    #[test]
    fn any_iu_is_decided_as_a_login_or_is_none(
        mut iu in prop::collection::vec(any::<u8>(), 0..300), logged_in: bool,
    ) {
        if let Some(opcode) = iu.first_mut() {
            *opcode = 0;
        }
        let parsed = login::parse(&iu);
        prop_assert_eq!(parsed.is_some(), iu.len() >= 64);
        if let Some(request) = parsed
            && let Err(reject) = login::decide(&request, logged_in)
        {
            prop_assert!(!login::explain(reject, &request).to_string().is_empty());
        }
    }
}
