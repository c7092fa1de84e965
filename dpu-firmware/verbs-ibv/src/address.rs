//! Socket addresses between Rust, C and the text that access patterns and logs see.
#![allow(unsafe_code)] // `sockaddr_storage` is read as the family says

use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lunar_platform::PeerAddress;

/// Address family of native InfiniBand (linux/socket.h); libc has no name for it.
const AF_IB: u16 = 27;
/// Offset of the GID in `struct sockaddr_ib`.
const GID_OFFSET: usize = 8;

/// `address` as C wants it.
pub(crate) fn to_c(address: &SocketAddr) -> libc::sockaddr_storage {
    // SAFETY: all zeroes is a valid value, and each write stays inside the storage, which has room
    // and alignment for every kind of address.
    unsafe {
        let mut storage: libc::sockaddr_storage = mem::zeroed();
        match address {
            SocketAddr::V4(v4) => {
                let to = (&raw mut storage).cast::<libc::sockaddr_in>();
                (*to).sin_family = libc::AF_INET as u16;
                (*to).sin_port = v4.port().to_be();
                (*to).sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            }
            SocketAddr::V6(v6) => {
                let to = (&raw mut storage).cast::<libc::sockaddr_in6>();
                (*to).sin6_family = libc::AF_INET6 as u16;
                (*to).sin6_port = v6.port().to_be();
                (*to).sin6_flowinfo = v6.flowinfo();
                (*to).sin6_addr.s6_addr = v6.ip().octets();
                (*to).sin6_scope_id = v6.scope_id();
            }
        }
        storage
    }
}

/// The address without its port: an IP, or a GID in the notation of an IPv6 address.
pub(crate) fn peer(storage: &libc::sockaddr_storage) -> PeerAddress {
    // SAFETY: the family says which structure it is, and all of them fit into the storage.
    let ip = unsafe {
        match storage.ss_family {
            family if family == libc::AF_INET as u16 => {
                let from = (&raw const *storage).cast::<libc::sockaddr_in>();
                IpAddr::V4(Ipv4Addr::from((*from).sin_addr.s_addr.to_ne_bytes()))
            }
            family if family == libc::AF_INET6 as u16 => {
                let from = (&raw const *storage).cast::<libc::sockaddr_in6>();
                IpAddr::V6(Ipv6Addr::from((*from).sin6_addr.s6_addr))
            }
            AF_IB => {
                let bytes = (&raw const *storage).cast::<u8>().add(GID_OFFSET);
                IpAddr::V6(Ipv6Addr::from(bytes.cast::<[u8; 16]>().read_unaligned()))
            }
            _ => return PeerAddress::new("unknown"),
        }
    };
    // A listener on [::] sees IPv4 peers as mapped addresses.
    PeerAddress::new(&ip.to_canonical().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(address: &str) -> String {
        peer(&to_c(&address.parse().unwrap())).as_str().to_owned()
    }

    #[test]
    fn peers_are_shown_without_their_port() {
        assert_eq!(text("192.168.99.1:4711"), "192.168.99.1");
        assert_eq!(text("[fe80::1:2]:1"), "fe80::1:2");
        assert_eq!(text("[::ffff:10.0.0.7]:9"), "10.0.0.7");
    }

    #[test]
    fn a_gid_and_an_unknown_family_have_a_text() {
        let mut storage = to_c(&"[::]:0".parse().unwrap());
        storage.ss_family = AF_IB;
        // SAFETY: inside the storage.
        unsafe { (&raw mut storage).cast::<u8>().add(GID_OFFSET).write(0xfe) };
        assert_eq!(peer(&storage).as_str(), "fe00::");
        storage.ss_family = 1;
        assert_eq!(peer(&storage).as_str(), "unknown");
    }

    #[test]
    fn ports_and_scopes_are_kept() {
        let address: SocketAddr = "[fe80::1%7]:5000".parse().unwrap();
        let storage = to_c(&address);
        // SAFETY: just written as this.
        let v6 = unsafe { *(&raw const storage).cast::<libc::sockaddr_in6>() };
        assert_eq!((u16::from_be(v6.sin6_port), v6.sin6_scope_id), (5000, 7));
    }
}
