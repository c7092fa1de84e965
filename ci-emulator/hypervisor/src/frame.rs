//! Frames between a VSCSI server and the bridge to a real client: a length, a letter, a payload; numbers
//! are big-endian. What a bridge sends is another process's word and is checked here.

use lunar_vscsi::descriptor::COPY_BYTES_MAX;

/// Bytes of the length before each frame, which counts what follows it.
const LENGTH_BYTES: usize = 4;
/// Longest frame: a letter, a status and the longest copy.
const FRAME_BYTES_MAX: usize = 2 + COPY_BYTES_MAX as usize;

/// What a bridge says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromBridge<'a> {
    /// `G`: the client registered its queue.
    Registered,
    /// `F`: the client freed its queue.
    Freed,
    /// `E`: the client called H_ENABLE_CRQ.
    Enabled,
    /// `C`: the client sent an entry.
    Entry([u8; 16]),
    /// `r`: the bytes that were asked for, or `None` where the window maps none.
    Read(Option<&'a [u8]>),
    /// `w`: whether the bytes were written.
    Wrote(bool),
    /// `s`: the return code of a send.
    Sent(i64),
}

/// What a server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToBridge<'a> {
    /// `O`: whether the server has a queue.
    Open(bool),
    /// `R`: so many bytes from the client's window.
    Read { address: u64, bytes: u32 },
    /// `W`: these bytes into the client's window.
    Write { address: u64, bytes: &'a [u8] },
    /// `S`: an entry for the client's queue.
    Send([u8; 16]),
    /// `X`: what the client's next H_SEND_CRQ is to return.
    Refuse(i64),
}

/// A bridge that does not speak the protocol; the frame's letter, where it got so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nonsense(pub(crate) u8);

/// The first frame in `bytes` and how many bytes it takes; `None` when more have to come.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(FromBridge<'_>, usize)>, Nonsense> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if !(1..=FRAME_BYTES_MAX).contains(&length) {
        return Err(Nonsense(0));
    }
    let Some((letter, payload)) = rest.get(..length).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    let frame = parse_payload(*letter, payload).ok_or(Nonsense(*letter))?;
    Ok(Some((frame, LENGTH_BYTES + length)))
}

fn parse_payload(letter: u8, payload: &[u8]) -> Option<FromBridge<'_>> {
    Some(match (letter, payload) {
        (b'G', place) if place.len() == 16 => FromBridge::Registered,
        (b'F', []) => FromBridge::Freed,
        (b'E', []) => FromBridge::Enabled,
        (b'C', entry) => FromBridge::Entry(entry.try_into().ok()?),
        (b'r', [0, bytes @ ..]) => FromBridge::Read(Some(bytes)),
        (b'r', [_, ..]) => FromBridge::Read(None),
        (b'w', [status]) => FromBridge::Wrote(*status == 0),
        (b's', code) => FromBridge::Sent(i64::from_be_bytes(code.try_into().ok()?)),
        _ => return None,
    })
}

/// Appends a frame.
pub(crate) fn encode(frame: ToBridge<'_>, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend([0; LENGTH_BYTES]);
    match frame {
        ToBridge::Open(open) => out.extend([b'O', u8::from(open)]),
        ToBridge::Read { address, bytes } => {
            out.push(b'R');
            out.extend(address.to_be_bytes());
            out.extend(bytes.to_be_bytes());
        }
        ToBridge::Write { address, bytes } => {
            out.push(b'W');
            out.extend(address.to_be_bytes());
            out.extend(bytes);
        }
        ToBridge::Send(entry) => {
            out.push(b'S');
            out.extend(entry);
        }
        ToBridge::Refuse(code) => {
            out.push(b'X');
            out.extend(code.to_be_bytes());
        }
    }
    let length = (out.len() - at - LENGTH_BYTES) as u32;
    out[at..at + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: &[u8]) -> Vec<u8> {
        let mut out = (bytes.len() as u32).to_be_bytes().to_vec();
        out.extend(bytes);
        out
    }

    #[test]
    fn every_frame_of_a_bridge_is_read() {
        let mut entry = vec![b'C'];
        entry.extend([7; 16]);
        let mut registered = vec![b'G'];
        registered.extend([0; 16]);
        let mut sent = vec![b's'];
        sent.extend((-12_i64).to_be_bytes());
        for (bytes, expected) in [
            (registered, FromBridge::Registered),
            (b"F".to_vec(), FromBridge::Freed),
            (b"E".to_vec(), FromBridge::Enabled),
            (entry, FromBridge::Entry([7; 16])),
            (b"r\0abc".to_vec(), FromBridge::Read(Some(b"abc"))),
            (b"r\x01".to_vec(), FromBridge::Read(None)),
            (b"w\0".to_vec(), FromBridge::Wrote(true)),
            (b"w\x01".to_vec(), FromBridge::Wrote(false)),
            (sent, FromBridge::Sent(-12)),
        ] {
            let whole = frame(&bytes);
            assert_eq!(parse(&whole), Ok(Some((expected, whole.len()))));
            for cut in 0..whole.len() {
                assert_eq!(parse(&whole[..cut]), Ok(None), "more has to come");
            }
        }
    }

    #[test]
    fn a_bridge_that_speaks_something_else_is_found_out() {
        for (bytes, nonsense) in [
            (frame(b"Z"), b'Z'),
            (frame(b"Cshort"), b'C'),
            (frame(b"Fmore"), b'F'),
            (frame(b"w"), b'w'),
            (frame(b"r"), b'r'),
            (frame(b"G"), b'G'),
            (vec![0; 4], 0),
            ((FRAME_BYTES_MAX as u32 + 1).to_be_bytes().to_vec(), 0),
        ] {
            assert_eq!(parse(&bytes), Err(Nonsense(nonsense)), "{bytes:?}");
        }
    }

    #[test]
    fn every_frame_of_a_server_byte_by_byte() {
        let encoded = |frame| {
            let mut out = vec![0xee];
            encode(frame, &mut out);
            out[1..].to_vec()
        };
        assert_eq!(encoded(ToBridge::Open(true)), [0, 0, 0, 2, b'O', 1]);
        let read = ToBridge::Read { address: 0x0102, bytes: 0x0304 };
        assert_eq!(encoded(read), [0, 0, 0, 13, b'R', 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 3, 4]);
        let write = ToBridge::Write { address: 0x0102, bytes: b"ab" };
        assert_eq!(encoded(write), [0, 0, 0, 11, b'W', 0, 0, 0, 0, 0, 0, 1, 2, b'a', b'b']);
        assert_eq!(encoded(ToBridge::Send([9; 16]))[..6], [0, 0, 0, 17, b'S', 9]);
        let refuse = [0, 0, 0, 9, b'X', 255, 255, 255, 255, 255, 255, 255, 254];
        assert_eq!(encoded(ToBridge::Refuse(-2)), refuse);
    }
}
