//! Queue entries and return codes: what PAPR's layouts say, byte by byte, and what any bytes come to.

use lunar_vscsi::crq::{
    Answer, CrqStatus, Entry, Incoming, IuKind, Numbering, PayloadFormat, Request, TransportEvent,
};
use lunar_vscsi::hcall::{Copied, Freed, Registered, Sent};
use proptest::prelude::*;

/// WIRE 1: valid, format, reserved, status, timeout, IU length, pointer.
#[test]
fn wire_1_a_request_byte_by_byte() {
    let request = Request {
        kind: IuKind::Srp,
        timeout_s: 0x0203,
        iu_bytes: 0x0100,
        address: 0x1122_3344_5566_7788,
    };
    let bytes = [0x80, 0x01, 0, 0, 2, 3, 1, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
    assert_eq!(Entry::request(request).to_bytes(), bytes);
    assert_eq!(Entry::from_bytes(bytes).read(), Incoming::Request(request));
    let mad = Request { kind: IuKind::Mad, ..request };
    assert_eq!(Entry::request(mad).to_bytes()[..2], [0x80, 0x02]);
    assert_eq!(Entry::request(mad).read(), Incoming::Request(mad));
}

/// WIRE 5: the answer's pointer is the tag; its status is the transport's.
#[test]
fn wire_5_an_answer_byte_by_byte() {
    let answer = Answer {
        kind: IuKind::Srp,
        status: CrqStatus::AdapterFail,
        iu_bytes: 36,
        tag: 0xc000_0000_034c_0510,
    };
    let bytes = [0x80, 1, 0, 0x10, 0, 0, 0, 36, 0xc0, 0, 0, 0, 0x03, 0x4c, 0x05, 0x10];
    assert_eq!(Entry::answer(answer).to_bytes(), bytes);
    assert_eq!(Entry::from_bytes(bytes).read_answer(), Some(answer));
    assert_eq!(Entry::INIT.read_answer(), None);
}

/// WIRE 1: the handshake's high words, with a low word of zero.
#[test]
fn wire_1_the_handshake_in_the_words_of_h_send_crq() {
    for (entry, high, meaning) in [
        (Entry::INIT, 0xC001_0000_0000_0000, Incoming::Init),
        (Entry::INIT_COMPLETE, 0xC002_0000_0000_0000, Incoming::InitComplete),
    ] {
        assert_eq!(entry.to_words(), (high, 0));
        assert_eq!(Entry::from_words(high, 0).read(), meaning);
    }
    assert_eq!(Entry::from_words(0xC003_0000_0000_0000, 0).read(), Incoming::Unknown);
}

/// WIRE 1: transport events, of which FF00 and those without a name must be ignored.
#[test]
fn wire_1_transport_events() {
    use TransportEvent as E;
    for (code, event) in [
        (0x00, E::Other(0)),
        (0x01, E::PartnerFailed),
        (0x02, E::PartnerDeregistered),
        (0x06, E::Migrated),
        (0x09, E::PrepareForSuspend),
        (0x0A, E::Resume),
        (0x07, E::Other(7)),
    ] {
        let mut bytes = [0; 16];
        (bytes[0], bytes[1]) = (0xFF, code);
        assert_eq!(Entry::from_bytes(bytes).read(), Incoming::Transport(event));
        assert_eq!(Entry::transport(event).to_bytes(), bytes);
    }
}

/// WIRE 1: F5 in a message-in-CRQ entry, under either number of that format, is answered by the same entry
/// with F6.
#[test]
fn wire_1_ping_is_known_in_both_numberings() {
    for (numbering, format) in [(Numbering::Papr, 6), (Numbering::Qemu, 7)] {
        let ping = Entry { reserved: 9, pointer: 77, ..Entry::ping(numbering) };
        assert_eq!((ping.valid, ping.format, ping.status), (0x80, format, 0xF5));
        assert_eq!(ping.read(), Incoming::Ping(ping));
        let response = ping.ping_response();
        assert_eq!(response, Entry { status: 0xF6, ..ping });
        assert_eq!(response.read(), Incoming::PingResponse);
        assert_eq!(Entry { status: 0, ..ping }.read(), Incoming::Unknown);
    }
}

/// WIRE 1, the discrepancy: QEMU and SLOF count LINUX and INLINE one higher.
#[test]
fn wire_1_payload_formats_in_both_numberings() {
    use PayloadFormat as P;
    for (code, papr, qemu) in [
        (0, None, None),
        (1, Some(P::Srp), Some(P::Srp)),
        (2, Some(P::Mad), Some(P::Mad)),
        (3, Some(P::Os400), Some(P::Os400)),
        (4, Some(P::Aix), Some(P::Aix)),
        (5, Some(P::Linux), None),
        (6, Some(P::MessageInCrq), Some(P::Linux)),
        (7, None, Some(P::MessageInCrq)),
        (8, None, None),
    ] {
        assert_eq!(P::from_code(code, Numbering::Papr), papr, "{code}");
        assert_eq!(P::from_code(code, Numbering::Qemu), qemu, "{code}");
    }
    for format in [3, 4, 5] {
        let entry = Entry { valid: 0x80, format, ..Entry::default() };
        assert_eq!(entry.read(), Incoming::Unknown, "format {format}");
    }
}

/// WIRE 1: the client takes 00 and 99 as good.
#[test]
fn wire_1_statuses() {
    for code in 0..=u8::MAX {
        let status = CrqStatus::from_code(code);
        assert_eq!(status.code(), code);
        assert_eq!(status.is_ok(), code == 0 || code == 0x99);
    }
    assert_eq!(CrqStatus::from_code(0xF1), CrqStatus::HeaderDescriptorError);
}

/// WIRE 2: what each call's return codes mean for a server.
#[test]
fn wire_2_return_codes() {
    let ms = 1_000_000;
    for (rc, registered, freed, sent) in [
        (0, Registered::PartnerThere, Freed::Done, Sent::Delivered),
        (2, Registered::PartnerAbsent, Freed::Failed(2), Sent::PartnerAbsent),
        (-16, Registered::AlreadyRegistered, Freed::Failed(-16), Sent::Failed(-16)),
        (1, Registered::Busy(ms), Freed::Busy(ms), Sent::QueueFull),
        (14, Registered::Busy(ms), Freed::Busy(ms), Sent::Failed(14)),
        (9900, Registered::Busy(ms), Freed::Busy(ms), Sent::Failed(9900)),
        (9905, Registered::Busy(100_000 * ms), Freed::Busy(100_000 * ms), Sent::Failed(9905)),
        (9906, Registered::Failed(9906), Freed::Failed(9906), Sent::Failed(9906)),
        (-12, Registered::Failed(-12), Freed::Failed(-12), Sent::QueueFull),
        (-7, Registered::Failed(-7), Freed::Done, Sent::Failed(-7)),
        (-4, Registered::Failed(-4), Freed::Failed(-4), Sent::Failed(-4)),
    ] {
        assert_eq!(Registered::from_code(rc), registered, "H_REG_CRQ {rc}");
        assert_eq!(Freed::from_code(rc), freed, "H_FREE_CRQ {rc}");
        assert_eq!(Sent::from_code(rc), sent, "H_SEND_CRQ {rc}");
    }
    // Which end of a copy is the client's decides whose fault a wrong end is.
    for (rc, to_client, copied) in [
        (0, true, Copied::Done),
        (-14, true, Copied::OutsideWindow),
        (-13, true, Copied::Failed(-13)),
        (-13, false, Copied::OutsideWindow),
        (-14, false, Copied::Failed(-14)),
        (-11, true, Copied::WindowClosed),
        (-11, false, Copied::WindowClosed),
        (-1, false, Copied::Failed(-1)),
    ] {
        assert_eq!(Copied::from_code(rc, to_client), copied, "H_COPY_RDMA {rc}");
    }
}

proptest! {
    #[test]
    fn any_entry_is_read_and_comes_out_the_same(bytes: [u8; 16]) {
        let entry = Entry::from_bytes(bytes);
        prop_assert_eq!(entry.to_bytes(), bytes);
        let (high, low) = entry.to_words();
        prop_assert_eq!(Entry::from_words(high, low), entry);
        let incoming = entry.read();
        prop_assert_eq!(incoming == Incoming::Free, bytes[0] == 0);
        if let Some(answer) = entry.read_answer() {
            let again = Entry::answer(answer);
            prop_assert_eq!(again.read_answer(), Some(answer));
        }
    }
}
