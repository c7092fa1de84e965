//! Where the control channel is, as both command lines write it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where the agent takes the card's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAddress {
    /// A Unix socket: card and host are processes of one machine.
    Unix(PathBuf),
    /// TCP with mutual TLS.
    Tcp(SocketAddr),
}

/// A word that is neither form of a [`ControlAddress`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is neither the path of a Unix socket, which has a slash in it, nor ADDRESS:PORT with the address in numbers \
     (192.0.2.1:5558, [2001:db8::1]:5558)"
)]
pub struct AddressError(String);

impl FromStr for ControlAddress {
    type Err = AddressError;

    fn from_str(word: &str) -> Result<Self, AddressError> {
        if word.contains('/') {
            return Ok(Self::Unix(word.into()));
        }
        word.parse().map(Self::Tcp).map_err(|_| AddressError(word.to_owned()))
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_a_slash_and_everything_else_is_an_address_with_a_port() {
        let read = |word: &str| word.parse::<ControlAddress>();
        assert_eq!(read("./control"), Ok(ControlAddress::Unix("./control".into())));
        let tcp = |word: &str| Ok(ControlAddress::Tcp(word.parse().unwrap()));
        assert_eq!(read("192.0.2.1:5558"), tcp("192.0.2.1:5558"));
        assert_eq!(read("[2001:db8::1]:5558"), tcp("[2001:db8::1]:5558"));
        for wrong in ["control.sock", "192.0.2.1", "host:5558", "192.0.2.1:70000", ""] {
            let reason = read(wrong).unwrap_err().to_string();
            assert!(reason.contains("which has a slash in it"), "{reason}");
        }
    }

    #[test]
    fn an_address_is_shown_as_it_is_written() {
        for word in ["/run/lunar/control.sock", "192.0.2.1:5558", "[2001:db8::1]:5558"] {
            assert_eq!(word.parse::<ControlAddress>().unwrap().to_string(), word);
        }
    }
}
