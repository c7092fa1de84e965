//! TransportIDs (SPC-4 7.6.4): the names of initiator ports in parameter lists and records. Any bytes in,
//! a name in its one canonical form or the field that is wrong out.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// PROTOCOL IDENTIFIER (SPC-4 7.6.1) of the transports whose ports are named here. The discriminant is the
/// code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// SRP.
    Srp = 0x4,
    /// iSCSI. Lunar has no such target ports; SCST's records name such initiators.
    Iscsi = 0x5,
    /// SAS. Lunar has no such target ports; SCST's records name such initiators.
    Sas = 0x6,
    /// IBM VSCSI, for which there is no TransportID in SPC-6: "no specific protocol".
    Vscsi = 0xF,
}

impl Protocol {
    /// That of the target ports of a target driver, by SCST's name for it.
    #[must_use]
    pub fn of_driver(driver: &str) -> Self {
        if driver == "ibmvstgt" { Self::Vscsi } else { Self::Srp }
    }
}

/// An initiator port, as SPC-6 names it.
///
/// Reserved bits and bytes are zero and iSCSI names are lower case, so that one port has one form and
/// equality is that of the bytes. The order is that of the bytes too.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransportId(Box<[u8]>);

/// Why bytes are no TransportID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportIdError {
    /// They end inside of it.
    Truncated,
    /// The field that begins at this byte of it.
    Field(u16),
}

/// Bytes of every TransportID but iSCSI's.
const PLAIN_BYTES: usize = 24;
/// ADDITIONAL LENGTH of an iSCSI TransportID: at least this, a multiple of four, at most a name of 223
/// bytes, `,i,0x`, twelve digits, a NUL and what pads them (SPC-4 7.6.4.6, RFC 7143).
const ISCSI_LENGTH_MIN: u16 = 20;
const ISCSI_LENGTH_MAX: u16 = 244;
/// Bytes of an iSCSI name.
const ISCSI_NAME_BYTES_MAX: usize = 223;
/// Between an iSCSI name and the ISID.
const ISCSI_SEPARATOR: &[u8] = b",i,0x";
/// FORMAT CODE 01b, in byte 0: an initiator port instead of an initiator device.
const ISCSI_PORT: u8 = 0x40;
/// Tells VSCSI's form from others without a specific protocol.
const VSCSI_MARK: [u8; 8] = *b"VSCSI\0\0\0";

impl TransportId {
    /// The most bytes that one takes.
    pub const BYTES_MAX: usize = 4 + ISCSI_LENGTH_MAX as usize;

    /// An SRP initiator port (SPC-4 7.6.4.5), by its port identifier.
    #[must_use]
    pub fn srp(initiator_port: [u8; 16]) -> Self {
        let mut bytes = [0; PLAIN_BYTES];
        bytes[0] = Protocol::Srp as u8;
        put(&mut bytes, 8, &initiator_port);
        Self(Box::new(bytes))
    }

    /// A SAS initiator port (SPC-4 7.6.4.7), by its address.
    #[must_use]
    pub fn sas(address: [u8; 8]) -> Self {
        let mut bytes = [0; PLAIN_BYTES];
        bytes[0] = Protocol::Sas as u8;
        put(&mut bytes, 4, &address);
        Self(Box::new(bytes))
    }

    /// The client's adapter of a VSCSI nexus, by the number of its partition and its unit address.
    ///
    /// SPC-6 has no form for it. This one is Lunar's own: byte 0 is 0Fh, bytes 8 to 15 are `VSCSI` and
    /// NULs, 16 to 19 the partition number, 20 to 23 the unit address, both big-endian.
    #[must_use]
    pub fn vscsi(partition: u32, unit_address: u32) -> Self {
        let mut bytes = [0; PLAIN_BYTES];
        bytes[0] = Protocol::Vscsi as u8;
        put(&mut bytes, 8, &VSCSI_MARK);
        put(&mut bytes, 16, &partition.to_be_bytes());
        put(&mut bytes, 20, &unit_address.to_be_bytes());
        Self(Box::new(bytes))
    }

    /// An initiator port as card and host name it: by the 16 bytes of its port identifier, at a target of this driver.
    /// What `ibmvstgt` serves is a client partition's adapter, named by bytes 8 to 23 of its TransportID.
    #[must_use]
    pub fn of_port(driver: &str, port: [u8; 16]) -> Self {
        match (Protocol::of_driver(driver), parse_vscsi(&port)) {
            (Protocol::Vscsi, Ok(id)) => id,
            _ => Self::srp(port),
        }
    }

    /// The port identifier for [`Self::of_port`] of a client partition's adapter.
    #[must_use]
    pub fn vscsi_port(partition: u32, unit_address: u32) -> [u8; 16] {
        let id = Self::vscsi(partition, unit_address);
        id.as_bytes().get(8..).and_then(|name| name.try_into().ok()).unwrap_or_default()
    }

    /// The TransportID that `bytes` begin with, and the bytes that it takes.
    ///
    /// # Errors
    /// Bytes that end too early, an unknown PROTOCOL IDENTIFIER or FORMAT CODE, and an iSCSI name that is
    /// none or contradicts its length.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), TransportIdError> {
        let &first = bytes.first().ok_or(TransportIdError::Truncated)?;
        const FORMAT: u8 = 0xC0;
        const PROTOCOL: u8 = 0x0F;
        const ISCSI: u8 = Protocol::Iscsi as u8;
        const SRP: u8 = Protocol::Srp as u8;
        const SAS: u8 = Protocol::Sas as u8;
        const VSCSI: u8 = Protocol::Vscsi as u8;
        if first & PROTOCOL == ISCSI {
            return parse_iscsi(first & FORMAT, bytes);
        }
        if first & FORMAT != 0 {
            return Err(TransportIdError::Field(0));
        }
        let known = matches!(first & PROTOCOL, SRP | SAS | VSCSI);
        if !known {
            return Err(TransportIdError::Field(0));
        }
        let Some(plain) = bytes.first_chunk::<PLAIN_BYTES>() else {
            return Err(TransportIdError::Truncated);
        };
        let [_, _, _, _, a0, a1, a2, a3, a4, a5, a6, a7, ..] = *plain;
        let [_, _, _, _, _, _, _, _, ref name @ ..] = *plain;
        let id = match first & PROTOCOL {
            SRP => Self::srp(*name),
            SAS => Self::sas([a0, a1, a2, a3, a4, a5, a6, a7]),
            _ => parse_vscsi(name)?,
        };
        Ok((id, PLAIN_BYTES))
    }

    /// The bytes on the wire, a multiple of four.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Which transport's port it is.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self.0.first().map(|first| first & 0x0F) {
            Some(0x5) => Protocol::Iscsi,
            Some(0x6) => Protocol::Sas,
            Some(0xF) => Protocol::Vscsi,
            _ => Protocol::Srp,
        }
    }
}

/// Writes `field` at `position` of `bytes`, which it fits in.
fn put(bytes: &mut [u8; PLAIN_BYTES], position: usize, field: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(position).zip(field) {
        *to = *from;
    }
}

fn parse_vscsi(name: &[u8; 16]) -> Result<TransportId, TransportIdError> {
    let [mark @ .., p0, p1, p2, p3, u0, u1, u2, u3] = *name;
    if mark != VSCSI_MARK {
        return Err(TransportIdError::Field(8));
    }
    let partition = u32::from_be_bytes([p0, p1, p2, p3]);
    Ok(TransportId::vscsi(partition, u32::from_be_bytes([u0, u1, u2, u3])))
}

/// SPC-4 7.6.4.6: a name, NULs to the end.
fn parse_iscsi(format: u8, bytes: &[u8]) -> Result<(TransportId, usize), TransportIdError> {
    if format & !ISCSI_PORT != 0 {
        return Err(TransportIdError::Field(0));
    }
    let Some((&[_, _, high, low], rest)) = bytes.split_first_chunk::<4>() else {
        return Err(TransportIdError::Truncated);
    };
    let length = u16::from_be_bytes([high, low]);
    if !(ISCSI_LENGTH_MIN..=ISCSI_LENGTH_MAX).contains(&length) || length % 4 != 0 {
        return Err(TransportIdError::Field(2));
    }
    let padded = rest.get(..length.into()).ok_or(TransportIdError::Truncated)?;
    let end = padded.iter().position(|&byte| byte == 0).ok_or(TransportIdError::Field(4))?;
    let (name, padding) = padded.split_at_checked(end).unwrap_or_default();
    let valid = padding.iter().all(|&byte| byte == 0)
        && match format {
            ISCSI_PORT => is_iscsi_port(name),
            _ => is_iscsi_name(name),
        };
    if !valid {
        return Err(TransportIdError::Field(4));
    }
    // The padding may be longer than it must be; the shortest is canonical.
    let needed = name.len().saturating_add(1).next_multiple_of(4).max(ISCSI_LENGTH_MIN.into());
    let mut canonical = Vec::with_capacity(needed.saturating_add(4));
    let [high, low] = u16::try_from(needed).unwrap_or(ISCSI_LENGTH_MAX).to_be_bytes();
    canonical.extend_from_slice(&[format | Protocol::Iscsi as u8, 0, high, low]);
    canonical.extend(name.iter().map(u8::to_ascii_lowercase));
    canonical.resize(needed.saturating_add(4), 0);
    Ok((TransportId(canonical.into()), usize::from(length).saturating_add(4)))
}

fn is_iscsi_name(name: &[u8]) -> bool {
    let printable = core::str::from_utf8(name)
        .is_ok_and(|name| name.chars().all(|c| !c.is_control() && !c.is_whitespace()));
    printable && (1..=ISCSI_NAME_BYTES_MAX).contains(&name.len()) && !name.contains(&b',')
}

/// A name, the separator and an ISID of one to twelve hexadecimal digits.
fn is_iscsi_port(name: &[u8]) -> bool {
    let Some(comma) = name.iter().position(|&byte| byte == b',') else {
        return false;
    };
    let (name, isid) = name.split_at_checked(comma).unwrap_or_default();
    let isid = isid.strip_prefix(ISCSI_SEPARATOR).unwrap_or_default();
    is_iscsi_name(name) && (1..=12).contains(&isid.len()) && isid.iter().all(u8::is_ascii_hexdigit)
}

/// For people: the protocol and the name.
impl fmt::Display for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = &*self.0;
        let hex = |f: &mut fmt::Formatter<'_>, bytes: Option<&[u8]>| {
            bytes.unwrap_or_default().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        match self.protocol() {
            Protocol::Srp => {
                f.write_str("srp 0x")?;
                hex(f, bytes.get(8..))
            }
            Protocol::Sas => {
                f.write_str("sas 0x")?;
                hex(f, bytes.get(4..12))
            }
            Protocol::Iscsi => {
                let name = bytes.get(4..).unwrap_or_default();
                let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
                write!(f, "iscsi {}", name.escape_ascii())
            }
            Protocol::Vscsi => {
                f.write_str("vscsi partition 0x")?;
                hex(f, bytes.get(16..20))?;
                f.write_str(" unit 0x")?;
                hex(f, bytes.get(20..))
            }
        }
    }
}

impl fmt::Debug for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_named_as_its_targets_driver_has_it() {
        let port = TransportId::vscsi_port(3, 0x3000_0002);
        assert_eq!(TransportId::of_port("ibmvstgt", port), TransportId::vscsi(3, 0x3000_0002));
        assert_eq!(TransportId::of_port("ib_srpt", port), TransportId::srp(port));
        assert_eq!(TransportId::of_port("ibmvstgt", [7; 16]), TransportId::srp([7; 16]));
    }
}
