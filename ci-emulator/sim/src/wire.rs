//! The control channel: two streams of bytes with virtual delay, through the real encoder and
//! decoder, cut anywhere.

use std::collections::VecDeque;

use lunar_offload_proto::control::{Decoder, Encoder, ToCard, ToHost};
use prost::Message;

use crate::random::Random;

/// Least and most nanoseconds that a piece is on its way.
const DELAY_NS: (u64, u64) = (2_000, 60_000);

/// One direction.
#[derive(Debug)]
struct Stream<M> {
    encoder: Encoder,
    decoder: Decoder<M>,
    under_way: VecDeque<(u64, Vec<u8>)>,
}

impl<M: Message + Default> Stream<M> {
    fn new() -> Self {
        Self { encoder: Encoder::new(), decoder: Decoder::new(), under_way: VecDeque::new() }
    }

    fn send(&mut self, message: &M, now: u64, random: &mut Random) {
        let mut bytes = self.encoder.to_bytes(message).expect("control messages are short");
        let mut earliest = self.under_way.back().map_or(now, |(due, _)| *due);
        while !bytes.is_empty() {
            let cut = match random.chance(1, 4) {
                true => 1 + random.index(bytes.len()),
                false => bytes.len(),
            };
            let rest = bytes.split_off(cut.min(bytes.len()));
            let due = earliest.max(now + random.between(DELAY_NS.0, DELAY_NS.1));
            self.under_way.push_back((due, std::mem::replace(&mut bytes, rest)));
            earliest = due;
        }
    }

    fn receive(&mut self, now: u64) -> Option<M> {
        while self.under_way.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, bytes)) = self.under_way.pop_front() {
                self.decoder.push(&bytes);
            }
        }
        self.decoder.next_message().expect("what the encoder made")
    }
}

/// One connection between a card and an agent.
#[derive(Debug)]
pub struct Wire {
    to_card: Stream<ToCard>,
    to_host: Stream<ToHost>,
}

impl Default for Wire {
    fn default() -> Self {
        Self { to_card: Stream::new(), to_host: Stream::new() }
    }
}

impl Wire {
    /// The agent sends.
    pub fn send_to_card(&mut self, message: &ToCard, now: u64, random: &mut Random) {
        self.to_card.send(message, now, random);
    }

    /// The card sends.
    pub fn send_to_host(&mut self, message: &ToHost, now: u64, random: &mut Random) {
        self.to_host.send(message, now, random);
    }

    /// What arrived at the card.
    pub fn at_card(&mut self, now: u64) -> Option<ToCard> {
        self.to_card.receive(now)
    }

    /// What arrived at the agent.
    pub fn at_host(&mut self, now: u64) -> Option<ToHost> {
        self.to_host.receive(now)
    }
}
