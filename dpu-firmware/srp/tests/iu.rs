//! Information units: what the standard's layouts say, what each end makes of the other's bytes, and
//! what hostile bytes come to.

use lunar_scsi::task_set::{TaskAttribute, TaskManagementFunction};
use lunar_srp::descriptor::{BufferFault, DataBuffer, Descriptor};
use lunar_srp::iu::{
    self, BufferLayout, COMMAND_BYTES_MIN, CommandFault, CommandLayout, EventRequest, IuError,
    Malformed, RESPONSE_BYTES_MAX, Reply, Request, Residual, Response, SolicitedNotification,
    TaskManagement, response_code,
};
use proptest::prelude::*;

const LUN: [u8; 8] = [0, 5, 0, 0, 0, 0, 0, 0];
const QUIET: SolicitedNotification = SolicitedNotification::new(false, false);

fn read_layout(data_in: BufferLayout<'_>) -> CommandLayout<'_> {
    CommandLayout {
        tag: 0x0102_0304_0506_0708,
        lun: LUN,
        attribute: TaskAttribute::Simple,
        solicited: QUIET,
        cdb: &[0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0],
        data_out: BufferLayout::None,
        data_in,
    }
}

fn encode(layout: &CommandLayout<'_>) -> Vec<u8> {
    let mut iu = vec![0; 16 * 1024];
    let bytes = iu::encode_command(layout, &mut iu).expect("fits");
    iu.truncate(bytes);
    iu
}

fn pieces(count: usize) -> Vec<Descriptor> {
    (0..count)
        .map(|n| Descriptor { address: 0x10_0000 + 0x2000 * n as u64, key: 7, length: 0x1000 })
        .collect()
}

fn indirect(pieces: &[Descriptor]) -> BufferLayout<'_> {
    BufferLayout::Indirect { table_address: 0x9000, table_key: 7, pieces }
}

fn command_fault(iu: &[u8]) -> CommandFault {
    match iu::parse(iu) {
        Err(IuError::Command { tag, lun, reason, .. }) => {
            assert_eq!((tag, lun), (0x0102_0304_0506_0708, LUN), "a refusal must be answerable");
            reason
        }
        other => panic!("expected a refused command, got {other:?}"),
    }
}

/// SRP 5.6.2.4: a table of which the IU holds only a part is fetched, and then read like an inlined one.
#[test]
fn srp_5_6_2_a_table_in_the_initiators_memory_is_read_once_it_was_fetched() {
    let pieces = pieces(5);
    let external =
        BufferLayout::External { table_address: 0x9000, table_key: 7, pieces: &pieces, inline: 2 };
    let iu = encode(&read_layout(external));
    let Ok(Request::Command(command)) = iu::parse(&iu) else { panic!("sound") };
    let table = Descriptor { address: 0x9000, key: 7, length: 80 };
    assert_eq!(command.data_in, DataBuffer::External { table, total_bytes: 0x5000 });
    assert_eq!(command.data_in.descriptors(&iu).count(), 0, "none before the list is there");
    let mut list: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_bytes()).collect();
    let fetched = command.data_in.fetched(&list).expect("sound");
    assert_eq!(fetched.total_bytes(), 0x5000);
    assert_eq!(fetched.descriptors(&list).collect::<Vec<_>>(), pieces);
    // The list changed since: less than declared is what counts, and no range may wrap.
    list[12..16].fill(0);
    assert_eq!(command.data_in.fetched(&list).expect("sound").total_bytes(), 0x4000);
    list[12..16].copy_from_slice(&0x1000_u32.to_be_bytes());
    list[..8].fill(0xff);
    let wraps = BufferFault::AddressWraps { address: u64::MAX, length: 0x1000 };
    assert_eq!(command.data_in.fetched(&list), Err(wraps));
    let short = BufferFault::BeyondIu { needed_bytes: 80, iu_bytes: 79 };
    assert_eq!(command.data_in.fetched(&list[..79]), Err(short));
}

/// SRP-2: immediate data is taken where the login put it, and only if it did.
#[test]
fn srp_2_immediate_data_is_taken_where_the_login_put_it_and_nowhere_else() {
    let data: Vec<u8> = (0..=255).collect();
    let iu = encode(&CommandLayout {
        data_out: BufferLayout::Immediate { offset: 68, data: &data },
        ..read_layout(BufferLayout::None)
    });
    assert_eq!(iu.len(), 68 + 256);
    assert_eq!(iu[5], 0x30, "data-out format 3");
    assert_eq!(iu[48..52], [0, 0, 1, 0], "the length");
    assert_eq!(iu[68..], data, "the data");
    let expected = DataBuffer::Immediate { offset: 68, length: 256 };
    let Ok(Request::Command(command)) = iu::parse_granted(&iu, Some(68)) else { panic!("sound") };
    assert_eq!((command.data_out, command.data_in), (expected, DataBuffer::None));
    let head = iu::command_head(&iu).expect("a command");
    let (mut data_out, mut data_in) = (DataBuffer::None, DataBuffer::None);
    assert!(head.read_buffers(Some(68), &mut data_out, &mut data_in));
    assert_eq!((data_out, data_in), (expected, DataBuffer::None));
    // The login granted none.
    assert_eq!(command_fault(&iu), CommandFault::DataOut(BufferFault::Immediate));
    assert!(!head.read_buffers(None, &mut data_out, &mut data_in));
    let fault = |iu: &[u8], offset| match iu::parse_granted(iu, Some(offset)) {
        Err(IuError::Command { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    // The data would begin within the descriptor.
    let overlap = BufferFault::ImmediateOverlap { descriptors_end: 52, immediate_offset: 51 };
    assert_eq!(fault(&iu, 51), CommandFault::DataOut(overlap));
    // The data would end behind the IU.
    let beyond = BufferFault::BeyondIu { needed_bytes: 325, iu_bytes: 324 };
    assert_eq!(fault(&iu, 69), CommandFault::DataOut(beyond));
    // Data-in cannot be immediate.
    let mut iu = iu;
    iu[5] = 0x03;
    assert_eq!(fault(&iu, 68), CommandFault::DataIn(BufferFault::Immediate));
}

/// SRP 6.8: every field in its place, with values that no other field has.
#[test]
fn command_with_a_direct_data_in_descriptor_byte_by_byte() {
    let iu = encode(&CommandLayout {
        attribute: TaskAttribute::Ordered,
        solicited: SolicitedNotification::new(false, true),
        ..read_layout(BufferLayout::Direct(Descriptor {
            address: 0x1122_3344_5566_7788,
            key: 0x99aa_bbcc,
            length: 0x1000,
        }))
    });
    #[rustfmt::skip]
    let expected = [
        0x02, 0x04, 0, 0, 0, 0x01, 0, 0,            // opcode, UCSOLNT, data-in direct, counts
        1, 2, 3, 4, 5, 6, 7, 8,                     // tag
        0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0,         // reserved, LUN
        0, 2, 0, 0,                                 // ORDERED, no additional CDB
        0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0,
        0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0, 0, 0x10, 0,
    ];
    assert_eq!(iu, expected);
}

/// SRP 6.9, with response data before sense data.
#[test]
fn response_byte_by_byte() {
    let mut out = [0xee; RESPONSE_BYTES_MAX];
    let response = Response {
        tag: 0x0102_0304_0506_0708,
        request_limit_delta: 3,
        status: 2,
        data_out_residual: Residual::Over(0x11),
        data_in_residual: Residual::Under(0x2200),
        response_code: Some(response_code::FUNCTION_FAILED),
        sense: &[0x70, 0, 5],
        solicited: true,
    };
    let bytes = iu::encode_response(&response, &mut out).expect("fits");
    #[rustfmt::skip]
    let expected = [
        0xc1, 0x01, 0, 0, 0, 0, 0, 3,
        1, 2, 3, 4, 5, 6, 7, 8,
        0, 0, 0x01 | 0x02 | 0x04 | 0x20, 2,
        0, 0, 0, 0x11, 0, 0, 0x22, 0,
        0, 0, 0, 3, 0, 0, 0, 4,
        0, 0, 0, 5, 0x70, 0, 5,
    ];
    assert_eq!(out[..bytes], expected);
    assert_eq!(iu::parse_response(&out[..bytes]), Ok(response));
}

#[test]
fn response_that_does_not_fit_is_refused_not_cut() {
    let sense = [0; iu::SENSE_BYTES_MAX + 1];
    let response = Response { sense: &sense[..18], ..Response::default() };
    assert_eq!(iu::encode_response(&response, &mut [0; 53]), None);
    assert_eq!(iu::encode_response(&response, &mut [0; 54]), Some(54));
    let response = Response { sense: &sense, ..Response::default() };
    assert_eq!(iu::encode_response(&response, &mut [0; 512]), None);
}

/// SRP 6.8: ADDITIONAL CDB LENGTH counts dwords; its low two bits are reserved and ignored.
#[test]
fn additional_cdb_length_ignores_its_reserved_bits() {
    let cdb: Vec<u8> = (0..32).collect();
    let mut iu = encode(&CommandLayout { cdb: &cdb, ..read_layout(BufferLayout::None) });
    assert_eq!(iu[31], 16);
    iu[31] |= 3;
    match iu::parse(&iu) {
        Ok(Request::Command(command)) => assert_eq!(command.cdb, cdb),
        other => panic!("{other:?}"),
    }
    iu[31] = 20;
    assert_eq!(
        command_fault(&iu),
        CommandFault::CdbBeyondIu { additional_bytes: 20, iu_bytes: 64 }
    );
}

#[test]
fn unknown_task_attribute_counts_as_ordered() {
    let mut iu = encode(&read_layout(BufferLayout::None));
    iu[29] = 3;
    match iu::parse(&iu) {
        Ok(Request::Command(command)) => assert_eq!(command.attribute, TaskAttribute::Ordered),
        other => panic!("{other:?}"),
    }
}

/// The descriptor count bytes mean nothing for direct descriptors (SCST and LIO ignore them too).
#[test]
fn descriptor_count_of_a_direct_buffer_is_ignored() {
    let descriptor = Descriptor { address: 4096, key: 1, length: 512 };
    let mut iu = encode(&read_layout(BufferLayout::Direct(descriptor)));
    iu[6] = 200;
    iu[7] = 1;
    match iu::parse(&iu) {
        Ok(Request::Command(command)) => {
            assert_eq!(command.data_in, DataBuffer::Direct(descriptor));
            assert_eq!(command.data_out, DataBuffer::None);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn task_management_functions_have_their_codes() {
    use TaskManagementFunction::{
        AbortTask, AbortTaskSet, ClearAca, ClearTaskSet, LogicalUnitReset,
    };
    let mut iu = [0; 48];
    for (function, code) in [
        (AbortTask, 1),
        (AbortTaskSet, 2),
        (ClearTaskSet, 4),
        (LogicalUnitReset, 8),
        (ClearAca, 0x40),
    ] {
        assert_eq!(iu::function_code(function), code);
        iu::encode_task_management(9, LUN, code, 77, QUIET, &mut iu).expect("fits");
        let parsed = TaskManagement {
            tag: 9,
            lun: LUN,
            function: Some(function),
            task_tag: 77,
            solicited: QUIET,
        };
        assert_eq!(iu::parse(&iu), Ok(Request::TaskManagement(parsed)));
    }
    iu[30] = 0x10;
    assert!(matches!(
        iu::parse(&iu),
        Ok(Request::TaskManagement(TaskManagement { function: None, task_tag: 77, .. }))
    ));
}

#[test]
fn ius_that_cannot_be_answered_are_malformed() {
    assert_eq!(iu::parse(&[]), Err(Malformed::Empty.into()));
    // A login request belongs into the connection manager's private data (SRP 5.3).
    for opcode in [0x00, 0x04, 0x80, 0xc1, 0xff] {
        assert_eq!(iu::parse(&[opcode; 64]), Err(Malformed::UnknownOpcode(opcode).into()));
    }
    for (opcode, needed_bytes) in [(0x01, 48), (0x02, 48), (0x03, 16), (0x41, 16), (0x42, 16)] {
        let short = vec![opcode; needed_bytes as usize - 1];
        let iu_bytes = needed_bytes - 1;
        assert_eq!(
            iu::parse(&short),
            Err(Malformed::TooShort { opcode, needed_bytes, iu_bytes }.into())
        );
    }
}

#[test]
fn direct_descriptor_beyond_the_iu_is_named() {
    let mut iu = encode(&read_layout(BufferLayout::Direct(Descriptor::default())));
    iu.pop();
    let beyond = BufferFault::BeyondIu { needed_bytes: 64, iu_bytes: 63 };
    assert_eq!(command_fault(&iu), CommandFault::DataIn(beyond));
    // Both directions: data-out takes the place, data-in is what is missing.
    iu.push(0);
    iu[5] = 0x11;
    let beyond = BufferFault::BeyondIu { needed_bytes: 80, iu_bytes: 64 };
    assert_eq!(command_fault(&iu), CommandFault::DataIn(beyond));
}

#[test]
fn every_contradiction_in_an_indirect_descriptor_is_named() {
    let list = pieces(3);
    let layout = CommandLayout { data_out: indirect(&list), ..read_layout(BufferLayout::None) };
    let good = encode(&layout);
    let refused = |change: fn(&mut Vec<u8>)| {
        let mut iu = good.clone();
        change(&mut iu);
        match command_fault(&iu) {
            CommandFault::DataOut(fault) => fault,
            other => panic!("{other:?}"),
        }
    };
    assert!(iu::parse(&good).is_ok());
    assert_eq!(
        refused(|iu| iu.truncate(115)),
        BufferFault::BeyondIu { needed_bytes: 116, iu_bytes: 115 }
    );
    assert_eq!(
        refused(|iu| iu.truncate(50)),
        BufferFault::BeyondIu { needed_bytes: 68, iu_bytes: 50 }
    );
    assert_eq!(
        refused(|iu| iu[6] = 4),
        BufferFault::CountExceedsTable { inline_count: 4, table_count: 3 }
    );
    assert_eq!(
        // 4096 descriptors, all but three in the initiator's memory.
        refused(|iu| iu[60..64].copy_from_slice(&[0, 1, 0, 0])),
        BufferFault::TableTooLong { table_count: 4096 }
    );
    assert_eq!(refused(|iu| iu[63] = 49), BufferFault::TableLength(49));
    assert_eq!(
        refused(|iu| iu[68..76].fill(0xff)),
        BufferFault::AddressWraps { address: u64::MAX, length: 0x1000 }
    );
    assert_eq!(refused(|iu| iu[5] = 0x30), BufferFault::Immediate);
    assert_eq!(refused(|iu| iu[5] = 0x70), BufferFault::UnknownFormat(7));
}

/// As SCST and LIO: the list may hold more or less than the declared total; the lesser counts.
#[test]
fn indirect_list_and_total_may_differ_and_the_lesser_counts() {
    let list = pieces(3);
    let good = encode(&read_layout(indirect(&list)));
    let parsed = |total: u32| {
        let mut iu = good.clone();
        iu[64..68].copy_from_slice(&total.to_be_bytes());
        match iu::parse(&iu) {
            Ok(Request::Command(command)) => (
                command.data_in.total_bytes(),
                command.data_in.descriptors(&iu).map(|piece| piece.length).collect::<Vec<_>>(),
            ),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(parsed(0x3000), (0x3000, vec![0x1000; 3]));
    assert_eq!(parsed(0x9000), (0x3000, vec![0x1000; 3]));
    assert_eq!(parsed(0x1200), (0x1200, vec![0x1000, 0x200]));
    assert_eq!(parsed(0x1000), (0x1000, vec![0x1000]));
    assert_eq!(parsed(0), (0, vec![]));
}

#[test]
fn empty_pieces_are_left_out() {
    let mut list = pieces(4);
    list[0].length = 0;
    list[2].length = 0;
    let iu = encode(&read_layout(indirect(&list)));
    let Ok(Request::Command(command)) = iu::parse(&iu) else { panic!("parses") };
    assert_eq!(command.data_in.descriptors(&iu).collect::<Vec<_>>(), [list[1], list[3]]);
}

#[test]
fn refusals_say_in_words_what_contradicts_what() {
    let list = pieces(3);
    let mut iu = encode(&read_layout(indirect(&list)));
    // 4096 descriptors, which is beyond what is fetched.
    iu[60..64].copy_from_slice(&[0, 1, 0, 0]);
    assert_eq!(
        iu::parse(&iu).unwrap_err().to_string(),
        "command with tag 0x102030405060708: data-in buffer: indirect table of 4096 descriptors in \
         the initiator's memory; at most 2048 are fetched: lower sg_tablesize at the initiator"
    );
}

#[test]
fn encoder_refuses_what_the_format_cannot_say() {
    let mut out = vec![0; 16 * 1024];
    let long_cdb = [0; iu::CDB_BYTES_MAX + 1];
    let layout = read_layout(BufferLayout::None);
    assert_eq!(iu::encode_command(&CommandLayout { cdb: &long_cdb, ..layout }, &mut out), None);
    let list = pieces(256);
    assert_eq!(iu::encode_command(&read_layout(indirect(&list)), &mut out), None);
    assert!(iu::encode_command(&read_layout(indirect(&list[..255])), &mut out).is_some());
    let huge = [Descriptor { address: 0, key: 0, length: u32::MAX }; 2];
    assert_eq!(iu::encode_command(&read_layout(indirect(&huge)), &mut out), None);
    assert_eq!(iu::encode_command(&layout, &mut out[..COMMAND_BYTES_MIN - 1]), None);
}

#[test]
fn replies_with_lengths_that_lie_are_malformed() {
    let mut out = [0; RESPONSE_BYTES_MAX];
    let response =
        Response { sense: &[1; 18], response_code: Some(0), status: 2, ..Response::default() };
    let bytes = iu::encode_response(&response, &mut out).expect("fits");
    let too_short =
        |needed_bytes, iu_bytes| Err(Malformed::TooShort { opcode: 0xc1, needed_bytes, iu_bytes });
    assert_eq!(iu::parse_reply(&out[..bytes - 1]), too_short(58, 57));
    assert_eq!(iu::parse_reply(&out[..35]), too_short(36, 35));
    out[28..32].fill(0xff);
    assert!(iu::parse_reply(&out[..bytes]).is_err());
    let mut both = out;
    both[18] = 0x0c;
    assert_eq!(iu::parse_reply(&both), Err(Malformed::ContradictoryResidual));
}

#[test]
fn residual_is_told_from_what_was_wanted_and_what_was_offered() {
    assert_eq!(Residual::between(512, 512), Residual::None);
    assert_eq!(Residual::between(512, 4096), Residual::Under(3584));
    assert_eq!(Residual::between(4096, 512), Residual::Over(3584));
}

fn attribute() -> impl Strategy<Value = TaskAttribute> {
    prop_oneof![
        Just(TaskAttribute::Simple),
        Just(TaskAttribute::HeadOfQueue),
        Just(TaskAttribute::Ordered),
        Just(TaskAttribute::Aca),
    ]
}

fn notification() -> impl Strategy<Value = SolicitedNotification> {
    any::<(bool, bool)>()
        .prop_map(|(on_success, on_failure)| SolicitedNotification::new(on_success, on_failure))
}

fn residual() -> impl Strategy<Value = Residual> {
    prop_oneof![
        Just(Residual::None),
        any::<u32>().prop_map(Residual::Over),
        any::<u32>().prop_map(Residual::Under),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    (0..u64::MAX >> 1, any::<u32>(), 1_u32..0x100_0000)
        .prop_map(|(address, key, length)| Descriptor { address, key, length })
}

/// A data buffer by its pieces; one piece may be direct or a list of one.
#[derive(Clone, Debug)]
enum Shape {
    None,
    Direct(Descriptor),
    Indirect(Vec<Descriptor>),
}

impl Shape {
    fn layout(&self) -> BufferLayout<'_> {
        match self {
            Self::None => BufferLayout::None,
            Self::Direct(descriptor) => BufferLayout::Direct(*descriptor),
            Self::Indirect(list) => indirect(list),
        }
    }

    fn pieces(&self) -> Vec<Descriptor> {
        match self {
            Self::None => vec![],
            Self::Direct(descriptor) => vec![*descriptor],
            Self::Indirect(list) => list.clone(),
        }
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        Just(Shape::None),
        descriptor().prop_map(Shape::Direct),
        prop::collection::vec(descriptor(), 0..40).prop_map(Shape::Indirect),
    ]
}

prop_compose! {
    fn command_iu()(
        tag: u64, lun: [u8; 8], attribute in attribute(), solicited in notification(),
        cdb in prop::collection::vec(any::<u8>(), 0..=iu::CDB_BYTES_MAX),
        data_out in shape(), data_in in shape(),
    ) -> Vec<u8> {
        let (data_out, data_in) = (data_out.layout(), data_in.layout());
        encode(&CommandLayout { tag, lun, attribute, solicited, cdb: &cdb, data_out, data_in })
    }
}

/// Touches everything a parsed request says, as the target does.
fn use_request(iu: &[u8]) {
    for immediate_offset in [None, Some(0), Some(68), Some(200)] {
        let parsed = iu::parse_granted(iu, immediate_offset);
        agree(iu, immediate_offset, &parsed);
        let Ok(Request::Command(command)) = parsed else { continue };
        for buffer in [command.data_out, command.data_in] {
            use_buffer(buffer, iu, immediate_offset);
        }
    }
}

/// The data path's reader says what the parser says.
fn agree(iu: &[u8], immediate_offset: Option<u16>, parsed: &Result<Request<'_>, IuError>) {
    let (mut data_out, mut data_in) = (DataBuffer::None, DataBuffer::None);
    let head = iu::command_head(iu);
    let sound = head.map(|head| head.read_buffers(immediate_offset, &mut data_out, &mut data_in));
    match (parsed, head) {
        (Ok(Request::Command(command)), Some(head)) => {
            assert_eq!((sound, data_out, data_in), (Some(true), command.data_out, command.data_in));
            assert_eq!((head.tag(), head.lun()), (command.tag, command.lun));
            assert_eq!(usize::from(head.cdb_bytes()), command.cdb.len());
            assert_eq!(head.cdb(), command.cdb[..16]);
        }
        (Err(IuError::Command { tag, .. }), Some(head)) => {
            assert_eq!((sound, head.tag()), (Some(false), *tag));
        }
        (_, head) => assert!(head.is_none(), "only commands have a head"),
    }
}

fn use_buffer(buffer: DataBuffer, iu: &[u8], immediate_offset: Option<u16>) {
    match buffer {
        DataBuffer::Immediate { offset, length } => {
            assert_eq!(Some(offset), immediate_offset);
            assert!(usize::from(offset) + length as usize <= iu.len(), "inside the IU");
            return;
        }
        DataBuffer::External { table, .. } => {
            assert!(table.address.checked_add(table.length.into()).is_some());
            // Whatever comes back when it is fetched.
            let list: Vec<u8> = iu.iter().copied().cycle().take(table.length as usize).collect();
            if let Ok(fetched) = buffer.fetched(&list) {
                use_ranges(fetched, &list);
            }
            assert!(buffer.fetched(&list[1..]).is_err(), "a list that is too short");
            return;
        }
        DataBuffer::None | DataBuffer::Direct(_) | DataBuffer::Indirect { .. } => {}
    }
    use_ranges(buffer, iu);
    // Read against other bytes: wrong, but harmless.
    let _ = buffer.descriptors(&iu[..iu.len() / 2]).count();
}

fn use_ranges(buffer: DataBuffer, list: &[u8]) {
    let sum: u64 = buffer.descriptors(list).map(|piece| u64::from(piece.length)).sum();
    assert_eq!(sum, u64::from(buffer.total_bytes()));
    for piece in buffer.descriptors(list) {
        assert!(piece.address.checked_add(piece.length.into()).is_some());
    }
}

proptest! {
    #[test]
    fn command_round_trip(
        tag: u64, lun: [u8; 8], attribute in attribute(), solicited in notification(),
        cdb in prop::collection::vec(any::<u8>(), 0..=iu::CDB_BYTES_MAX),
        out_shape in shape(), in_shape in shape(), trailing in 0_usize..32,
    ) {
        let (data_out, data_in) = (out_shape.layout(), in_shape.layout());
        let mut bytes =
            encode(&CommandLayout { tag, lun, attribute, solicited, cdb: &cdb, data_out, data_in });
        bytes.extend(vec![0x5a; trailing]);
        let Ok(Request::Command(command)) = iu::parse(&bytes) else {
            return Err(TestCaseError::fail("does not parse"));
        };
        prop_assert_eq!(
            (command.tag, command.lun, command.attribute, command.solicited),
            (tag, lun, attribute, solicited)
        );
        prop_assert_eq!(command.cdb.len(), cdb.len().next_multiple_of(4).max(16));
        prop_assert_eq!(&command.cdb[..cdb.len()], &cdb[..]);
        prop_assert!(command.cdb[cdb.len()..].iter().all(|byte| *byte == 0));
        for (buffer, shape) in [(command.data_out, out_shape), (command.data_in, in_shape)] {
            prop_assert_eq!(buffer.descriptors(&bytes).collect::<Vec<_>>(), shape.pieces());
        }
    }

    #[test]
    fn response_round_trip(
        tag: u64, request_limit_delta: i32, status: u8,
        data_out_residual in residual(), data_in_residual in residual(),
        response_code: Option<u8>, sense in prop::collection::vec(any::<u8>(), 0..=252),
        solicited: bool,
    ) {
        let response = Response {
            tag, request_limit_delta, status, data_out_residual, data_in_residual, response_code,
            sense: &sense, solicited,
        };
        let mut out = [0; RESPONSE_BYTES_MAX];
        let bytes = iu::encode_response(&response, &mut out).expect("fits");
        prop_assert_eq!(iu::parse_reply(&out[..bytes]), Ok(Reply::Response(response)));
    }

    #[test]
    fn rare_ius_round_trip(
        tag: u64, lun: [u8; 8], value: i32, reason: u32, task_tag: u64,
        solicited in notification(), sense in prop::collection::vec(any::<u8>(), 0..=252),
    ) {
        let mut out = [0; 512];
        let bytes = iu::encode_logout(tag, &mut out).expect("fits");
        prop_assert_eq!(iu::parse(&out[..bytes]), Ok(Request::Logout { tag }));
        let bytes = iu::encode_credit_response(tag, &mut out).expect("fits");
        prop_assert_eq!(iu::parse(&out[..bytes]), Ok(Request::CredResponse { tag }));
        let bytes = iu::encode_event_response(tag, &mut out).expect("fits");
        prop_assert_eq!(iu::parse(&out[..bytes]), Ok(Request::AerResponse { tag }));
        let bytes = iu::encode_task_management(tag, lun, 2, task_tag, solicited, &mut out).expect("fits");
        prop_assert_eq!(iu::parse(&out[..bytes]), Ok(Request::TaskManagement(TaskManagement {
            tag, lun, function: Some(TaskManagementFunction::AbortTaskSet), task_tag, solicited,
        })));
        let solicited = solicited.wanted(true);
        let bytes = iu::encode_credit_request(tag, value, solicited, &mut out).expect("fits");
        prop_assert_eq!(
            iu::parse_reply(&out[..bytes]),
            Ok(Reply::CredRequest { tag, request_limit_delta: value, solicited })
        );
        let bytes = iu::encode_target_logout(tag, reason, &mut out).expect("fits");
        prop_assert_eq!(iu::parse_reply(&out[..bytes]), Ok(Reply::Logout { tag, reason }));
        let event = EventRequest { tag, request_limit_delta: value, lun, sense: &sense, solicited };
        let bytes = iu::encode_event_request(&event, &mut out).expect("fits");
        prop_assert_eq!(iu::parse_reply(&out[..bytes]), Ok(Reply::AerRequest(event)));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        use_request(&bytes);
        let _ = iu::parse_reply(&bytes);
    }

    /// Sound commands with a few bytes changed and the end cut off get much deeper than noise.
    #[test]
    fn damaged_commands_are_parsed_or_refused(
        mut bytes in command_iu(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        cuts: bool,
    ) {
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        use_request(&bytes);
    }
}
