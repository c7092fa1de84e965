//! What a host gives the card so that it may reach one of the host's arenas over RDMA, as bytes. A
//! secret: whoever has it has the memory.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lunar_platform::{ArenaId, PrivateData};

/// Marks our blobs, and which format it is.
const MAGIC: [u8; 4] = *b"LUA1";
/// Marks our connection requests.
const HELLO_MAGIC: [u8; 4] = *b"LUH1";

/// Proof of having been told by the arena's owner.
pub(crate) type Secret = [u8; 16];

/// One arena and the way to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ExportBlob {
    /// The arena.
    pub arena: ArenaId,
    /// Its length in bytes.
    pub length: u64,
    /// Address of its first byte in RDMA requests.
    pub base: u64,
    /// The key for RDMA requests.
    pub rkey: u32,
    /// Where the host takes the card's connections.
    pub endpoint: SocketAddr,
    /// What the card must show there.
    pub(crate) secret: Secret,
}

impl ExportBlob {
    /// Encoded length.
    pub const BYTES: usize = 4 + 2 + 2 + 8 + 8 + 4 + 4 + 16 + 16;

    /// The bytes that travel over the control channel, integers little-endian: magic, arena, port,
    /// length, base, rkey, scope of the address, IPv6 (or mapped IPv4) address, secret.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let (ip, scope) = match self.endpoint {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        let mut bytes = [0; Self::BYTES];
        let mut rest = bytes.as_mut_slice();
        for field in [
            MAGIC.as_slice(),
            &self.arena.0.to_le_bytes(),
            &self.endpoint.port().to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.base.to_le_bytes(),
            &self.rkey.to_le_bytes(),
            &scope.to_le_bytes(),
            &ip.octets(),
            &self.secret,
        ] {
            let (place, behind) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = behind;
        }
        bytes
    }

    /// Reads a blob. `None` when it is not one: wrong length or mark, memory that ends beyond the
    /// address space, or an endpoint that cannot be connected to.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let magic = take::<4>(&mut rest)?;
        let arena = ArenaId(u16::from_le_bytes(take(&mut rest)?));
        let port = u16::from_le_bytes(take(&mut rest)?);
        let length = u64::from_le_bytes(take(&mut rest)?);
        let base = u64::from_le_bytes(take(&mut rest)?);
        let rkey = u32::from_le_bytes(take(&mut rest)?);
        let scope = u32::from_le_bytes(take(&mut rest)?);
        let ip = Ipv6Addr::from(take::<16>(&mut rest)?);
        let secret = take(&mut rest)?;
        let endpoint = match ip.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
            None => std::net::SocketAddrV6::new(ip, port, 0, scope).into(),
        };
        let valid = magic == MAGIC
            && rest.is_empty()
            && length != 0
            && base.checked_add(length).is_some()
            && port != 0
            && !endpoint.ip().is_unspecified()
            && !endpoint.ip().is_multicast();
        valid.then_some(Self { arena, length, base, rkey, endpoint, secret })
    }
}

impl fmt::Debug for ExportBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExportBlob")
            .field("arena", &self.arena)
            .field("length", &self.length)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// Private data of the card's connection request: which poll group asks, and the secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) group: u16,
    pub(crate) secret: Secret,
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; 22] {
        let mut bytes = [0; 22];
        bytes[..4].copy_from_slice(&HELLO_MAGIC);
        bytes[4..6].copy_from_slice(&self.group.to_le_bytes());
        bytes[6..].copy_from_slice(&self.secret);
        bytes
    }

    /// Reads it from a REQ, whose private data the connection manager pads with zeroes.
    pub(crate) fn parse(private_data: &PrivateData) -> Option<Self> {
        let mut rest = private_data.as_bytes();
        let magic = take::<4>(&mut rest)?;
        let group = u16::from_le_bytes(take(&mut rest)?);
        let secret = take(&mut rest)?;
        let padded = rest.iter().all(|byte| *byte == 0);
        (magic == HELLO_MAGIC && padded).then_some(Self { group, secret })
    }

    /// Compares secrets without an early exit: the time must not tell how much of a guess was right.
    pub(crate) fn shows(&self, secret: &Secret) -> bool {
        self.secret.iter().zip(secret).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (field, behind) = rest.split_first_chunk::<N>()?;
    *rest = behind;
    Some(*field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(endpoint: &str) -> ExportBlob {
        ExportBlob {
            arena: ArenaId(0x0102),
            length: 1 << 30,
            base: 0x7f00_0000_0000,
            rkey: 0xdead_beef,
            endpoint: endpoint.parse().unwrap(),
            secret: *b"0123456789abcdef",
        }
    }

    #[test]
    fn a_blob_survives_the_way() {
        for endpoint in ["192.168.99.1:7471", "[fe80::1%3]:1", "[2001:db8::7]:65535"] {
            let blob = blob(endpoint);
            assert_eq!(ExportBlob::parse(&blob.encode()), Some(blob));
        }
    }

    #[test]
    fn what_is_not_a_blob_is_refused() {
        let good = blob("10.0.0.1:7471");
        let bytes = good.encode();
        for length in 0..bytes.len() {
            assert_eq!(ExportBlob::parse(&bytes[..length]), None);
        }
        assert_eq!(ExportBlob::parse(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(ExportBlob::parse(&[&b"LUA2"[..], &bytes[4..]].concat()), None);
        for bad in [
            ExportBlob { length: 0, ..good },
            ExportBlob { base: u64::MAX - 10, ..good },
            blob("0.0.0.0:7471"),
            blob("[::]:7471"),
            blob("224.0.0.1:7471"),
            blob("10.0.0.1:0"),
        ] {
            assert_eq!(ExportBlob::parse(&bad.encode()), None, "{bad:?}");
        }
    }

    #[test]
    fn no_blob_makes_the_parser_panic() {
        let mut state = 1u64;
        for _ in 0..2000 {
            let mut bytes = blob("10.0.0.1:1").encode();
            for byte in &mut bytes[4..] {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (state >> 56) as u8;
            }
            if let Some(blob) = ExportBlob::parse(&bytes) {
                assert!(blob.base.checked_add(blob.length).is_some());
            }
        }
    }

    #[test]
    fn a_hello_is_read_through_the_padding_and_the_secret_counts() {
        let hello = Hello { group: 3, secret: [7; 16] };
        let padded = [&hello.encode()[..], &[0; 34]].concat();
        let read = Hello::parse(&PrivateData::new(&padded)).unwrap();
        assert_eq!(read.group, 3);
        assert!(read.shows(&[7; 16]));
        let mut wrong = [7; 16];
        wrong[15] ^= 1;
        assert!(!read.shows(&wrong));
        assert!(Hello::parse(&PrivateData::new(&padded[..20])).is_none());
        assert!(Hello::parse(&PrivateData::new(&[&padded[..], &[1]].concat())).is_none());
        assert!(Hello::parse(&PrivateData::new(&[0; 56])).is_none());
    }
}
