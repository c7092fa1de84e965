//! Any datagram with any payload: an answer that keeps everything but the status, and a payload of the same
//! length, of which the server's part alone has changed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_vscsi::mad::{
    AdapterInformation, HEADER_BYTES, Mad, MadKind, MadStatus, OsType, PAYLOAD_BYTES_MAX,
    PartitionName, ServerPartition, Step, parse_answer,
};

fuzz_target!(|input: &[u8]| {
    let Some(([flags, iu_bytes], rest)) = input.split_first_chunk() else { return };
    let (iu, payload) = rest.split_at(rest.len().min(usize::from(*iu_bytes)));
    let Some(mad) = Mad::parse(iu) else {
        assert!(iu.len() < HEADER_BYTES);
        return;
    };
    let header = mad.answer_header(MadStatus::Success);
    assert_eq!((&header[..4], &header[6..]), (&iu[..4], &iu[6..HEADER_BYTES]));
    assert_eq!(parse_answer(&header), Some((0, mad.tag)));
    let Step::Exchange { bytes, .. } = mad.begin(flags & 1 != 0) else { return };
    assert!((1..=PAYLOAD_BYTES_MAX).contains(&usize::from(bytes)));
    let server = ServerPartition {
        name: PartitionName::new("a partition").expect("a name"),
        number: 1,
        os_type: OsType(u32::from(*flags)),
        transfer_bytes_max: u32::MAX,
        migration: flags & 2 != 0,
        reserve: flags & 4 != 0,
    };
    let mut answered = payload.to_vec();
    answered.resize(bytes.into(), 0);
    let before = answered.clone();
    match (mad.kind, mad.fill(&server, &mut answered)) {
        (MadKind::AdapterInformation, status) => {
            assert_eq!(status, MadStatus::Success);
            assert_eq!(answered[..], server.adapter_information().to_bytes()[..bytes.into()]);
            if let Some(client) = AdapterInformation::from_bytes(&before) {
                assert_eq!(AdapterInformation::from_bytes(&client.to_bytes()), Some(client));
            }
        }
        (_, status) => {
            assert!(matches!(status, MadStatus::Success | MadStatus::Failed));
            assert_eq!(answered[4..68], before[4..68], "name and location are the client's");
        }
    }
});
