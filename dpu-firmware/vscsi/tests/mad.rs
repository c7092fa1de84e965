//! Management datagrams (WIRE 3): byte by byte, with every length that they may and may not have.

use lunar_vscsi::crq::{Answer, CrqStatus, IuKind};
use lunar_vscsi::mad::{
    self, ADAPTER_INFORMATION_BYTES, AdapterInformation, CAPABILITIES_BYTES_MAX, HEADER_BYTES, Mad,
    MadKind, MadStatus, OsType, PartitionName, ServerPartition, Step,
};
use proptest::prelude::*;

fn server() -> ServerPartition {
    ServerPartition {
        name: PartitionName::new("lunar").expect("a name"),
        number: 7,
        os_type: OsType::AIX,
        transfer_bytes_max: 0x20_0000,
        migration: true,
        reserve: false,
    }
}

fn mad(kind: MadKind, payload_bytes: u16) -> Mad {
    Mad { kind, payload_bytes, tag: 0x0102_0304_0506_0708, payload_address: Some(0xabcd) }
}

/// A list element: type, length, server support, value.
fn element(kind: u32, bytes: u16, support: u16, value: u32) -> Vec<u8> {
    let mut out = kind.to_be_bytes().to_vec();
    out.extend(bytes.to_be_bytes());
    out.extend(support.to_be_bytes());
    out.extend(value.to_be_bytes());
    out
}

fn capabilities(flags: u32, list: &[Vec<u8>]) -> Vec<u8> {
    let mut out = flags.to_be_bytes().to_vec();
    out.extend([0x5a; 64]);
    out.extend(list.concat());
    out
}

/// WIRE 3: type, status, length, tag; the buffer's address follows for the types that have one.
#[test]
fn wire_3_a_datagram_byte_by_byte() {
    let mad = mad(MadKind::AdapterInformation, 148);
    let mut iu = [0xee; 256];
    assert_eq!(mad.encode(&mut iu), Some(24));
    let expected = [0, 0, 0, 3, 0, 0, 0, 148, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0xab, 0xcd];
    assert_eq!(iu[..24], expected);
    assert_eq!(Mad::parse(&iu), Some(mad));
    assert_eq!(Mad::parse(&iu[..24]), Some(mad));
    let headless = Mad { payload_address: None, ..mad };
    assert_eq!(Mad::parse(&iu[..23]), Some(headless), "no room for the address");
    assert_eq!(headless.encode(&mut iu), Some(16));
    assert_eq!(Mad::parse(&iu[..15]), None);
    assert_eq!(mad.encode(&mut [0; 23]), None);
}

/// WIRE 3: what is put back are the first 16 bytes, with a status; the entry says as much.
#[test]
fn wire_3_the_answer_is_the_header_and_an_entry_with_the_tag() {
    let mad = mad(MadKind::Other(0x99), 148);
    let mut iu = [0; 256];
    mad.encode(&mut iu).expect("fits");
    let header = mad.answer_header(MadStatus::NotSupported);
    assert_eq!(header.len(), 16);
    assert_eq!(header[4..6], [0, 0xF1]);
    assert_eq!((&header[..4], &header[6..]), (&iu[..4], &iu[6..16]), "all else is as it came");
    assert_eq!(mad::parse_answer(&header), Some((0xF1, 0x0102_0304_0506_0708)));
    let answer = Answer {
        kind: IuKind::Mad,
        status: CrqStatus::Ok,
        iu_bytes: HEADER_BYTES as u16,
        tag: 0x0102_0304_0506_0708,
    };
    assert_eq!(mad.answer_entry().read_answer(), Some(answer));
}

/// WIRE 3: unknown types are F1, lengths that no payload has are F7.
#[test]
fn wire_3_every_type_and_length() {
    use MadKind as K;
    use MadStatus as S;
    let exchange = |bytes| Step::Exchange { address: 0xabcd, bytes };
    for (kind, bytes, step) in [
        (K::EmptyIu, 0, Step::Answer(S::NotSupported)),
        (K::ErrorLog, 100, Step::Answer(S::NotSupported)),
        (K::HostConfiguration, 4096, Step::Answer(S::NotSupported)),
        (K::Other(0), 16, Step::Answer(S::NotSupported)),
        (K::Other(6), 16, Step::Answer(S::NotSupported)),
        (K::Other(u32::MAX), 16, Step::Answer(S::NotSupported)),
        (K::AdapterInformation, 0, Step::Answer(S::Failed)),
        (K::AdapterInformation, 1, exchange(1)),
        (K::AdapterInformation, 148, exchange(148)),
        (K::AdapterInformation, 149, Step::Answer(S::Failed)),
        (K::Capabilities, 67, Step::Answer(S::Failed)),
        (K::Capabilities, 68, exchange(68)),
        (K::Capabilities, 92, exchange(92)),
        (K::Capabilities, 93, Step::Answer(S::Failed)),
        (K::EnableFastFail, 16, Step::Answer(S::Success)),
    ] {
        assert_eq!(mad(kind, bytes).begin(false), step, "{kind:?} of {bytes} bytes");
        assert_eq!(MadKind::from_code(kind.code()), kind);
    }
    let nowhere = Mad { payload_address: None, ..mad(K::Capabilities, 92) };
    assert_eq!(nowhere.begin(false), Step::Answer(S::Failed));
    // WIRE 7: fast-fail is accepted before the login only.
    assert_eq!(mad(K::EnableFastFail, 16).begin(true), Step::Answer(S::Failed));
    assert_eq!(mad(K::Capabilities, 92).begin(true), exchange(92));
}

/// WIRE 3: "16.a", the partition, version 1, the operating system, and the longest transfer.
#[test]
fn wire_3_adapter_information_byte_by_byte() {
    let mut payload = [0xee; ADAPTER_INFORMATION_BYTES];
    let request = mad(MadKind::AdapterInformation, 148);
    assert_eq!(request.fill(&server(), &mut payload), MadStatus::Success);
    assert_eq!(payload[..13], *b"16.a\0\0\0\0lunar");
    assert_eq!(payload[13..104], [0; 91]);
    assert_eq!(payload[104..120], [0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0x20, 0, 0]);
    assert_eq!(payload[120..], [0; 28]);
    let read = AdapterInformation::from_bytes(&payload).expect("whole");
    assert_eq!(read, server().adapter_information());
    assert_eq!(AdapterInformation::from_bytes(&payload[1..]), None);
    // A client with room for less gets as much as it has room for.
    let mut short = [0xee; 10];
    assert_eq!(request.fill(&server(), &mut short), MadStatus::Success);
    assert_eq!(short, *b"16.a\0\0\0\0lu");
}

#[test]
fn a_partition_name_has_95_bytes_and_no_nul() {
    assert!(PartitionName::new(&"n".repeat(95)).is_some());
    assert!(PartitionName::new(&"n".repeat(96)).is_none());
    assert!(PartitionName::new("a\0b").is_none());
    let name = PartitionName::new("mond").expect("a name");
    assert_eq!((name.as_bytes(), format!("{name:?}").as_str()), (&b"mond"[..], "\"mond\""));
}

/// WIRE 3: each element says whether the server has it; unknown ones and unknown values it has not.
#[test]
fn wire_3_capabilities_are_answered_one_by_one() {
    let list = [element(1, 12, 1, 1), element(2, 12, 1, 1)];
    let request = mad(MadKind::Capabilities, 92);
    for (migration, reserve) in [(false, false), (true, false), (false, true), (true, true)] {
        let server = ServerPartition { migration, reserve, ..server() };
        let mut payload = capabilities(4, &list);
        assert_eq!(payload.len(), CAPABILITIES_BYTES_MAX);
        assert_eq!(request.fill(&server, &mut payload), MadStatus::Success);
        let answered = [element(1, 12, migration.into(), 1), element(2, 12, reserve.into(), 1)];
        // Flags: list supported, list holds an answer.
        assert_eq!(payload, capabilities(0xC, &answered));
    }
    let all = ServerPartition { migration: true, reserve: true, ..server() };
    let mut payload = capabilities(5, &[element(3, 12, 1, 1), element(2, 12, 1, 2)]);
    assert_eq!(request.fill(&all, &mut payload), MadStatus::Success);
    assert_eq!(payload, capabilities(0xC, &[element(3, 12, 0, 1), element(2, 12, 0, 2)]));
    // Without a list, and with an element that has more to say.
    let mut payload = capabilities(4, &[]);
    assert_eq!(request.fill(&all, &mut payload), MadStatus::Success);
    let mut payload = capabilities(4, &[element(1, 16, 1, 1), vec![9; 4]]);
    assert_eq!(request.fill(&all, &mut payload), MadStatus::Success);
    assert_eq!(payload, capabilities(0xC, &[element(1, 16, 1, 1), vec![9; 4]]));
}

#[test]
fn a_capability_list_that_lies_is_refused() {
    let request = mad(MadKind::Capabilities, 92);
    for (why, list) in [
        ("an element of no bytes", vec![element(1, 0, 1, 1)]),
        ("shorter than an element", vec![element(1, 11, 1, 1)]),
        ("reaches beyond the list", vec![element(1, 13, 1, 1)]),
        // The next element would begin within this one, with a length that fits.
        ("overlaps the next", vec![element(1, 8, 1, 1), element(0x0010_0000, 0, 0, 0)]),
        ("half an element", vec![element(1, 12, 1, 1), vec![0; 11]]),
    ] {
        let mut payload = capabilities(4, &list);
        assert_eq!(request.fill(&server(), &mut payload), MadStatus::Failed, "{why}");
    }
    assert_eq!(request.fill(&server(), &mut [0; 67]), MadStatus::Failed);
}

proptest! {
    #[test]
    fn any_datagram_is_answered_or_has_no_tag(iu in prop::collection::vec(any::<u8>(), 0..256)) {
        let Some(mad) = Mad::parse(&iu) else {
            prop_assert!(iu.len() < HEADER_BYTES);
            return Ok(());
        };
        prop_assert_eq!(MadKind::from_code(mad.kind.code()), mad.kind);
        let header = mad.answer_header(MadStatus::Failed);
        prop_assert_eq!(&header[6..], &iu[6..HEADER_BYTES]);
        if let Step::Exchange { bytes, .. } = mad.begin(false) {
            prop_assert!(usize::from(bytes) <= mad::PAYLOAD_BYTES_MAX);
        }
    }

    /// What is behind an element's own bytes is the client's, and stays.
    #[test]
    fn any_capabilities_are_answered_in_place(payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut answered = payload.clone();
        let status = mad(MadKind::Capabilities, 92).fill(&server(), &mut answered);
        prop_assert!(matches!(status, MadStatus::Success | MadStatus::Failed));
        if payload.len() >= 68 {
            prop_assert_eq!(&answered[4..68], &payload[4..68]);
        } else {
            prop_assert_eq!(answered, payload);
        }
    }
}
