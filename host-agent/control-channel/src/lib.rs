//! What both ends of the control channel need besides its messages: the form of its address, and how agent and card
//! prove themselves to each other where it runs over TCP (TLS 1.3, a certificate on each side).
//!
//! * `address`: a path or an address with a port. `identity`: a directory with keys, and what TLS makes of it.
//!   `words`: what a refused certificate is told as. [`make`]: new keys, behind a feature.
//!
//! No sockets and no messages here: each end moves bytes in its own way.
#![forbid(unsafe_code)]

mod address;
mod identity;
#[cfg(feature = "make")]
pub mod make;
mod words;

pub use address::{AddressError, ControlAddress};
pub use identity::{Identity, KeysError, Role, Witness};
pub use rustls;

/// The authority's certificate: whoever it signed is believed.
pub const CA_FILE: &str = "ca.pem";
/// The own certificate.
pub const CERTIFICATE_FILE: &str = "cert.pem";
/// The own private key.
pub const KEY_FILE: &str = "key.pem";
