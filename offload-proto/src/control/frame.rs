//! Messages to frames and back. A frame is a four-byte little-endian length and a [`Piece`], together
//! at most [`FRAME_BYTES_MAX`], because the smallest channel we may run over carries no more in one
//! go.

use std::collections::VecDeque;
use std::marker::PhantomData;

use prost::Message;

use super::Piece;

/// The longest frame in bytes, its length prefix included.
pub const FRAME_BYTES_MAX: usize = 4080;
/// The longest message in bytes; also the most that a decoder keeps of unfinished messages together.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// The most messages that may be unfinished at a time.
pub const MESSAGES_MAX: usize = 4;

const PREFIX_BYTES: usize = 4;
/// What protobuf adds around a piece's bytes, at most: two numbers of 1 + 5 bytes, a bool of 2, a key
/// and a length below 2^14 of 1 + 2.
const PIECE_OVERHEAD_BYTES: usize = 6 + 6 + 2 + 3;
const PIECE_PAYLOAD_BYTES: usize = FRAME_BYTES_MAX - PREFIX_BYTES - PIECE_OVERHEAD_BYTES;

/// Why bytes are not frames, or frames no message. The stream cannot be trusted any more: close it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length prefix above what fits in a frame.
    #[error("a frame claims {bytes} bytes, at most {} fit", FRAME_BYTES_MAX - PREFIX_BYTES)]
    FrameTooLong {
        /// The length in the prefix.
        bytes: u32,
    },
    /// The frame's content is no piece.
    #[error("a frame holds no piece: {reason}")]
    MalformedPiece {
        /// The protobuf decoder's words.
        reason: String,
    },
    /// A piece that is not the next one of its message.
    #[error("message {message_id}: piece {found} came where piece {expected} was due")]
    PieceOutOfOrder {
        /// The message.
        message_id: u32,
        /// The index that was due.
        expected: u32,
        /// The piece's index.
        found: u32,
    },
    /// A piece without bytes that is not the whole of an empty message: endless ones would cost
    /// nothing to send.
    #[error("message {message_id}: piece {index} is empty")]
    EmptyPiece {
        /// The message.
        message_id: u32,
        /// The piece's index.
        index: u32,
    },
    /// Too many messages begun and not finished.
    #[error("message {message_id} begins while {MESSAGES_MAX} others are unfinished")]
    TooManyMessages {
        /// The one too many.
        message_id: u32,
    },
    /// Unfinished messages above the limit, or a message to be sent that is.
    #[error("{bytes} bytes of messages, at most {limit} are taken")]
    MessageTooLong {
        /// What there would be with this piece.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A complete message that protobuf cannot read.
    #[error("message {message_id} is malformed: {reason}")]
    MalformedMessage {
        /// The message.
        message_id: u32,
        /// The protobuf decoder's words.
        reason: String,
    },
}

/// Cuts messages into frames.
#[derive(Debug, Default)]
pub struct Encoder {
    message_id: u32,
}

impl Encoder {
    /// An encoder for a new channel.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `message` to `out`, as whole frames one behind the other.
    ///
    /// # Errors
    /// [`FrameError::MessageTooLong`] above [`MESSAGE_BYTES_MAX`]; `out` is as it was.
    pub fn encode(&mut self, message: &impl Message, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let bytes = message.encoded_len();
        if bytes > MESSAGE_BYTES_MAX {
            return Err(FrameError::MessageTooLong { bytes, limit: MESSAGE_BYTES_MAX });
        }
        let encoded = message.encode_to_vec();
        self.message_id = self.message_id.wrapping_add(1);
        let mut rest = encoded.as_slice();
        let mut index = 0_u32;
        loop {
            let (now, later) = rest.split_at(rest.len().min(PIECE_PAYLOAD_BYTES));
            rest = later;
            let piece = Piece {
                message_id: self.message_id,
                index,
                last: rest.is_empty(),
                bytes: now.to_vec(),
            };
            // Below FRAME_BYTES_MAX by the choice of PIECE_PAYLOAD_BYTES.
            let piece_bytes = u32::try_from(piece.encoded_len()).unwrap_or(u32::MAX);
            out.extend_from_slice(&piece_bytes.to_le_bytes());
            out.extend_from_slice(&piece.encode_to_vec());
            if rest.is_empty() {
                return Ok(());
            }
            index = index.wrapping_add(1);
        }
    }

    /// `message` as frames.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn to_bytes(&mut self, message: &impl Message) -> Result<Vec<u8>, FrameError> {
        let mut out = Vec::new();
        self.encode(message, &mut out)?;
        Ok(out)
    }
}

/// A message whose last piece has not come.
#[derive(Debug)]
struct Unfinished {
    message_id: u32,
    next_index: u32,
    bytes: Vec<u8>,
}

/// Joins frames to messages of type `M`. Holds at most one frame, [`MESSAGE_BYTES_MAX`] of unfinished
/// messages, and the bytes that [`Decoder::push`] got since [`Decoder::next_message`] last gave `None`.
#[derive(Debug)]
pub struct Decoder<M> {
    received: VecDeque<u8>,
    unfinished: Vec<Unfinished>,
    message_bytes_max: usize,
    failed: Option<FrameError>,
    message: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Default for Decoder<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Message + Default> Decoder<M> {
    /// A decoder for a new channel.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(MESSAGE_BYTES_MAX)
    }

    /// A decoder that takes at most `message_bytes_max` bytes of unfinished messages.
    #[must_use]
    pub fn with_limit(message_bytes_max: usize) -> Self {
        Self {
            received: VecDeque::new(),
            unfinished: Vec::new(),
            message_bytes_max: message_bytes_max.min(MESSAGE_BYTES_MAX),
            failed: None,
            message: PhantomData,
        }
    }

    /// Takes bytes as they came. Ask [`Self::next_message`] until it gives `None` afterwards.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.received.extend(bytes);
        }
    }

    /// The next complete message; `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`], and the same one again from then on: close the channel.
    pub fn next_message(&mut self) -> Result<Option<M>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.advance();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            self.received = VecDeque::new();
            self.unfinished = Vec::new();
        }
        result
    }

    fn advance(&mut self) -> Result<Option<M>, FrameError> {
        while let Some(piece) = self.next_piece()? {
            let message_id = piece.message_id;
            if let Some(bytes) = self.join(piece)? {
                return M::decode(bytes.as_slice()).map(Some).map_err(|error| {
                    FrameError::MalformedMessage { message_id, reason: error.to_string() }
                });
            }
        }
        Ok(None)
    }

    /// Takes one frame from the received bytes.
    fn next_piece(&mut self) -> Result<Option<Piece>, FrameError> {
        let mut prefix = [0; PREFIX_BYTES];
        if self.received.len() < PREFIX_BYTES {
            return Ok(None);
        }
        for (to, from) in prefix.iter_mut().zip(&self.received) {
            *to = *from;
        }
        let bytes = u32::from_le_bytes(prefix);
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        if length > FRAME_BYTES_MAX - PREFIX_BYTES {
            return Err(FrameError::FrameTooLong { bytes });
        }
        let end = PREFIX_BYTES.saturating_add(length);
        if self.received.len() < end {
            return Ok(None);
        }
        let frame: Vec<u8> = self.received.drain(..end).skip(PREFIX_BYTES).collect();
        Piece::decode(frame.as_slice())
            .map(Some)
            .map_err(|error| FrameError::MalformedPiece { reason: error.to_string() })
    }

    /// Adds a piece to its message; gives the message's bytes with its last one.
    fn join(&mut self, piece: Piece) -> Result<Option<Vec<u8>>, FrameError> {
        let Piece { message_id, index, last, bytes } = piece;
        let place = self.unfinished.iter().position(|message| message.message_id == message_id);
        let expected =
            place.and_then(|place| self.unfinished.get(place)).map_or(0, |m| m.next_index);
        if index != expected {
            return Err(FrameError::PieceOutOfOrder { message_id, expected, found: index });
        }
        if bytes.is_empty() && !(last && index == 0) {
            return Err(FrameError::EmptyPiece { message_id, index });
        }
        let held: usize = self.unfinished.iter().map(|message| message.bytes.len()).sum();
        let with_this = held.saturating_add(bytes.len());
        if with_this > self.message_bytes_max {
            let limit = self.message_bytes_max;
            return Err(FrameError::MessageTooLong { bytes: with_this, limit });
        }
        match place {
            None if last => Ok(Some(bytes)),
            None if self.unfinished.len() >= MESSAGES_MAX => {
                Err(FrameError::TooManyMessages { message_id })
            }
            None => {
                self.unfinished.push(Unfinished { message_id, next_index: 1, bytes });
                Ok(None)
            }
            Some(place) => {
                if let Some(message) = self.unfinished.get_mut(place) {
                    message.bytes.extend_from_slice(&bytes);
                    message.next_index = message.next_index.wrapping_add(1);
                }
                Ok(last.then(|| self.unfinished.swap_remove(place).bytes))
            }
        }
    }
}
