//! Any bytes on the control channel, cut anywhere: messages or an error, the same ones however the
//! bytes are cut, and what is a message comes out the same when it is sent again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_offload_proto::control::{Decoder, Encoder, ToCard, ToHost};
use prost::Message;

/// The messages up to the first error, and that error in words.
fn decode<M: Message + Default>(bytes: &[u8], cut_bytes: usize) -> (Vec<M>, Option<String>) {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    for part in bytes.chunks(cut_bytes) {
        decoder.push(part);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error.to_string())),
            }
        }
    }
    (messages, None)
}

fn check<M: Message + Default + PartialEq>(bytes: &[u8], cut_bytes: usize) {
    let (messages, error) = decode::<M>(bytes, cut_bytes);
    let whole = decode::<M>(bytes, bytes.len().max(1));
    assert!(messages == whole.0 && error == whole.1, "how the bytes are cut makes a difference");
    let mut encoder = Encoder::new();
    for message in messages {
        let sent = encoder.to_bytes(&message).expect("it came in one");
        let (again, error) = decode::<M>(&sent, cut_bytes);
        // Compared as bytes: a NaN does not equal itself.
        assert!(error.is_none() && again.len() == 1);
        assert_eq!(again[0].encode_to_vec(), message.encode_to_vec());
    }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (cut_bytes, bytes) = input;
    let cut_bytes = usize::from(cut_bytes).max(1);
    check::<ToCard>(bytes, cut_bytes);
    check::<ToHost>(bytes, cut_bytes);
});
