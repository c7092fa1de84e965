use proptest::prelude::*;
use prost::Message;

use super::*;

fn goodbye(reason: String) -> ToHost {
    ToHost { message: Some(to_host::Message::Goodbye(Goodbye { reason })) }
}

fn drain<M: Message + Default>(decoder: &mut Decoder<M>) -> Result<Vec<M>, FrameError> {
    let mut messages = Vec::new();
    while let Some(message) = decoder.next_message()? {
        messages.push(message);
    }
    Ok(messages)
}

fn frame(piece: &Piece) -> Vec<u8> {
    let mut out = u32::try_from(piece.encoded_len()).unwrap().to_le_bytes().to_vec();
    out.extend(piece.encode_to_vec());
    out
}

fn piece(message_id: u32, index: u32, last: bool, bytes: &[u8]) -> Piece {
    Piece { message_id, index, last, bytes: bytes.to_vec() }
}

/// The lengths of the frames in `stream`, prefixes included.
fn frame_lengths(mut stream: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let Some((prefix, rest)) = stream.split_at_checked(4) {
        let length = u32::from_le_bytes(prefix.try_into().unwrap()) as usize;
        lengths.push(length + 4);
        stream = &rest[length..];
    }
    lengths
}

proptest! {
    #[test]
    fn messages_of_any_length_come_back_however_the_stream_is_cut(
        lengths in prop::collection::vec(prop_oneof![0..20_usize, 4000..4200_usize, 0..60_000_usize], 1..5),
        cut in 1..9000_usize,
    ) {
        let messages: Vec<ToHost> = lengths.iter().map(|length| goodbye("x".repeat(*length))).collect();
        let mut encoder = Encoder::new();
        let mut stream = Vec::new();
        for message in &messages {
            encoder.encode(message, &mut stream).unwrap();
        }
        prop_assert!(frame_lengths(&stream).iter().all(|length| *length <= FRAME_BYTES_MAX));
        let mut decoder = Decoder::<ToHost>::new();
        let mut back = Vec::new();
        for part in stream.chunks(cut) {
            decoder.push(part);
            back.extend(drain(&mut decoder).unwrap());
        }
        prop_assert_eq!(back, messages);
    }

    #[test]
    fn any_bytes_give_messages_nothing_or_an_error_that_stays(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut decoder = Decoder::<ToCard>::new();
        decoder.push(&bytes);
        if let Err(error) = drain(&mut decoder) {
            prop_assert!(!error.to_string().is_empty());
            decoder.push(&Encoder::new().to_bytes(&ToCard::default()).unwrap());
            prop_assert_eq!(decoder.next_message(), Err(error));
        }
    }

    #[test]
    fn damaged_streams_give_messages_nothing_or_an_error(
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in 0..9000_usize,
    ) {
        let mut stream = Encoder::new().to_bytes(&goodbye("y".repeat(length))).unwrap();
        for (index, value) in at {
            let index = index.index(stream.len());
            stream[index] = value;
        }
        let mut decoder = Decoder::<ToHost>::new();
        decoder.push(&stream);
        if let Ok(messages) = drain(&mut decoder) {
            prop_assert!(messages.len() <= frame_lengths_at_most(&stream));
        }
    }

    #[test]
    fn any_pieces_keep_the_decoder_within_its_limits(
        pieces in prop::collection::vec((0..7_u32, 0..4_u32, any::<bool>(), 0..300_usize), 0..60),
    ) {
        let mut decoder = Decoder::<ToCard>::with_limit(1000);
        for (message_id, index, last, length) in pieces {
            decoder.push(&frame(&piece(message_id, index, last, &vec![0; length])));
            let result = drain(&mut decoder);
            prop_assert!(decoder.held_bytes() <= 1000);
            if result.is_err() {
                prop_assert_eq!(decoder.held_bytes(), 0);
                break;
            }
        }
    }

    #[test]
    fn both_sides_agree_on_the_same(mine in any_hello(), theirs in any_hello()) {
        match (negotiate(&mine, &theirs), negotiate(&theirs, &mine)) {
            (Ok(here), Ok(there)) => {
                prop_assert_eq!(here, there);
                prop_assert!((mine.version_min..=mine.version_max).contains(&here.version));
                prop_assert!((theirs.version_min..=theirs.version_max).contains(&here.version));
                prop_assert!(here.has(mine.features_required | theirs.features_required));
            }
            (Err(here), Err(_)) => prop_assert!(!here.to_string().is_empty()),
            (here, there) => prop_assert!(false, "{:?} but {:?}", here, there),
        }
    }
}

fn frame_lengths_at_most(stream: &[u8]) -> usize {
    stream.len() / 4
}

fn any_hello() -> impl Strategy<Value = Hello> {
    (1..5_u32, 0..4_u32, 0..16_u64, 0..16_u64).prop_map(
        |(version_min, more, features, required)| {
            let limits = Limits::default();
            let hello = hello("test", 1, [7; 16], features, required & features, limits);
            Hello { version_min, version_max: version_min + more, ..hello }
        },
    )
}

#[test]
fn pieces_of_several_messages_may_alternate() {
    let (one, two) = (goodbye("one".repeat(9)), goodbye("two".repeat(9)));
    let (bytes_one, bytes_two) = (one.encode_to_vec(), two.encode_to_vec());
    let mut decoder = Decoder::<ToHost>::new();
    decoder.push(&frame(&piece(1, 0, false, &bytes_one[..5])));
    decoder.push(&frame(&piece(2, 0, false, &bytes_two[..7])));
    decoder.push(&frame(&piece(2, 1, true, &bytes_two[7..])));
    decoder.push(&frame(&piece(1, 1, true, &bytes_one[5..])));
    assert_eq!(drain(&mut decoder), Ok(vec![two, one]));
    assert_eq!(decoder.held_bytes(), 0);
}

fn error_of(frames: &[Piece]) -> FrameError {
    let mut decoder = Decoder::<ToHost>::with_limit(64);
    for one in frames {
        decoder.push(&frame(one));
    }
    drain(&mut decoder).unwrap_err()
}

#[test]
fn every_break_of_the_framing_is_named() {
    let mut decoder = Decoder::<ToHost>::new();
    decoder.push(&4077_u32.to_le_bytes());
    assert_eq!(decoder.next_message(), Err(FrameError::FrameTooLong { bytes: 4077 }));

    let mut decoder = Decoder::<ToHost>::new();
    decoder.push(&[1, 0, 0, 0, 0xff]);
    assert!(matches!(decoder.next_message(), Err(FrameError::MalformedPiece { .. })));

    assert_eq!(
        error_of(&[piece(5, 1, true, b"x")]),
        FrameError::PieceOutOfOrder { message_id: 5, expected: 0, found: 1 }
    );
    assert_eq!(
        error_of(&[piece(5, 0, false, b"x"), piece(5, 2, true, b"x")]),
        FrameError::PieceOutOfOrder { message_id: 5, expected: 1, found: 2 }
    );
    assert_eq!(
        error_of(&[piece(5, 0, false, b"x"), piece(5, 1, false, b"")]),
        FrameError::EmptyPiece { message_id: 5, index: 1 }
    );
    let begun: Vec<Piece> = (0..5).map(|id| piece(id, 0, false, b"x")).collect();
    assert_eq!(error_of(&begun), FrameError::TooManyMessages { message_id: 4 });
    assert_eq!(
        error_of(&[piece(1, 0, false, &[0; 40]), piece(2, 0, false, &[0; 25])]),
        FrameError::MessageTooLong { bytes: 65, limit: 64 }
    );
    assert!(matches!(
        error_of(&[piece(9, 0, true, &[0xff; 9])]),
        FrameError::MalformedMessage { message_id: 9, .. }
    ));
}

#[test]
fn a_message_above_the_limit_is_not_sent() {
    let mut out = vec![1, 2, 3];
    let error =
        Encoder::new().encode(&goodbye("z".repeat(MESSAGE_BYTES_MAX)), &mut out).unwrap_err();
    assert!(matches!(error, FrameError::MessageTooLong { limit: MESSAGE_BYTES_MAX, .. }));
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn a_message_of_an_unknown_kind_is_a_message_without_content() {
    // Field 200, a string: from a newer peer.
    let stream = frame(&piece(1, 0, true, &[0xc2, 0x0c, 1, b'x']));
    let mut decoder = Decoder::<ToHost>::new();
    decoder.push(&stream);
    assert_eq!(decoder.next_message(), Ok(Some(ToHost { message: None })));
}

#[test]
fn refusals_say_what_to_do() {
    let mine = hello("card", 1, [1; 16], feature::ALL, feature::CANCEL, Limits::default());
    let newer = Hello { version_min: 2, version_max: 3, ..mine.clone() };
    assert_eq!(
        negotiate(&mine, &newer).unwrap_err().to_string(),
        "no common protocol version: this side speaks 1 to 1, the peer 2 to 3; update the older side"
    );
    let plain = Hello { features: feature::FORWARD, features_required: 0, ..mine.clone() };
    assert_eq!(
        negotiate(&mine, &plain).unwrap_err().to_string(),
        "the peer lacks features that this side needs: 0x4 (cancel); update the older side"
    );
    assert_eq!(negotiate(&plain, &mine), Err(Refusal::ILack { features: feature::CANCEL }));
    for malformed in [
        Hello { version_min: 0, ..mine.clone() },
        Hello { version_min: 2, version_max: 1, ..mine.clone() },
        Hello { features: 0, ..mine.clone() },
        Hello { boot_id: vec![1; 15], ..mine.clone() },
    ] {
        assert!(matches!(negotiate(&mine, &malformed), Err(Refusal::Malformed { .. })));
    }
}
