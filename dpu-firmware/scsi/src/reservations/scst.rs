//! SCST's two forms of a device's persistent reservations: the file that `pr_file_name` names, which is
//! read, and the text of `pr_state`, which is read and written. A running SCST is migrated with either.
//!
//! The file (in the byte order of the host that wrote it, but for keys and TransportIDs, which are as on
//! the wire): signature BBEEEEAAEEBBDD77h (8; zero while it was being written), version 1 (8), APTPL (1),
//! whether there is a reservation (1), type (1), scope (1), and a registrant after the other to the end:
//! whether it is the holder (1), TransportID (its own length), key (8), relative target port identifier
//! (2).
//!
//! The text, a line each: `version 1`, `generation D`, `reservation TT SS` if there is one (type and scope
//! in hexadecimal), and for every registrant `registrant RELTGT KEY HOLDER TIDLEN TIDHEX` (KEY and TIDHEX
//! in hexadecimal, HOLDER 0 or 1).

use alloc::collections::BTreeMap;
use alloc::string::String;
use core::fmt::{self, Write};

use super::state::{Nexus, REGISTRATIONS_MAX, Reservation, ReservationType, Reservations};
use super::transport_id::{TransportId, TransportIdError};

const SIGNATURE: u64 = 0xBBEE_EEAA_EEBB_DD77;
const VERSION: u64 = 1;

/// Why something is not SCST's persistent reservations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportError {
    /// The file's signature is missing: it is another file, or was being written.
    Signature,
    /// A version that is not known here.
    Version(u64),
    /// It ends in the middle of something.
    Cut,
    /// Not a type or scope of a reservation.
    Type {
        /// TYPE.
        kind: u8,
        /// SCOPE.
        scope: u8,
    },
    /// A registrant whose initiator is of a transport that is not known here, or misnamed.
    TransportId {
        /// Which registrant, from 1.
        registrant: usize,
        /// Its first byte: FORMAT CODE and PROTOCOL IDENTIFIER.
        first: u8,
    },
    /// A registrant whose key is zero, or which is there twice.
    Registrant {
        /// Which one, from 1.
        registrant: usize,
    },
    /// A reservation without a holder, or with several, or a holder without a reservation.
    Holder,
    /// More registrants than [`REGISTRATIONS_MAX`].
    TooMany,
    /// A line of the text that says nothing that is known.
    Line {
        /// Which one, from 1.
        line: usize,
    },
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signature => f.write_str(
                "it does not begin with SCST's signature: another file, or one that was being \
                 written; try the copy with suffix .1",
            ),
            Self::Version(version) => write!(f, "version {version}: only version 1 is known"),
            Self::Cut => {
                f.write_str("it ends in the middle of a field; try the copy with suffix .1")
            }
            Self::Type { kind, scope } => {
                write!(f, "reservation type {kind:#x} with scope {scope:#x}: there is no such")
            }
            Self::TransportId { registrant, first } => write!(
                f,
                "registrant {registrant}: a TransportID that begins with {first:#04x}; known are those \
                 of SRP, iSCSI, SAS and VSCSI. Unregister it under SCST first"
            ),
            Self::Registrant { registrant } => {
                write!(f, "registrant {registrant}: its key is zero, or it is there twice")
            }
            Self::Holder => f.write_str(
                "the holders do not fit the reservation: there must be one, and no more",
            ),
            Self::TooMany => write!(f, "more than {REGISTRATIONS_MAX} registrants"),
            Self::Line { line } => write!(f, "line {line} is none that pr_state has"),
        }
    }
}

impl core::error::Error for ImportError {}

/// Whether the bytes begin like the file of an SCST host.
pub(super) fn is_file(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|&signature| {
        [u64::from_le_bytes(signature), u64::from_be_bytes(signature)].contains(&SIGNATURE)
    })
}

/// Reads the file that `pr_file_name` names, of a host of either byte order. PRGENERATION begins anew, as
/// SCST has it.
///
/// # Errors
/// What is wrong with it; nothing is imported in part.
pub fn import_file(bytes: &[u8]) -> Result<Reservations, ImportError> {
    if !is_file(bytes) {
        return Err(ImportError::Signature);
    }
    let Some((&header, mut rest)) = bytes.split_first_chunk::<20>() else {
        return Err(ImportError::Cut);
    };
    let [_, _, _, _, _, _, _, _, version @ .., aptpl, reserved, kind, scope] = header;
    let little = bytes.first_chunk().is_some_and(|&first| u64::from_le_bytes(first) == SIGNATURE);
    let version = if little { u64::from_le_bytes(version) } else { u64::from_be_bytes(version) };
    if version != VERSION {
        return Err(ImportError::Version(version));
    }
    let mut import = Import { aptpl: aptpl != 0, ..Import::default() };
    if reserved != 0 {
        import.reserve(kind, scope)?;
    }
    while let Some((&holder, tail)) = rest.split_first() {
        let number = import.registrations.len().saturating_add(1);
        let (initiator, taken) = match TransportId::parse(tail) {
            Ok(found) => found,
            Err(TransportIdError::Truncated) => return Err(ImportError::Cut),
            Err(TransportIdError::Field(_)) => {
                let first = tail.first().copied().unwrap_or(0);
                return Err(ImportError::TransportId { registrant: number, first });
            }
        };
        let tail = tail.get(taken..).unwrap_or_default();
        let Some((&[k0, k1, k2, k3, k4, k5, k6, k7, p0, p1], tail)) =
            tail.split_first_chunk::<10>()
        else {
            return Err(ImportError::Cut);
        };
        let key = u64::from_be_bytes([k0, k1, k2, k3, k4, k5, k6, k7]);
        let port = [p0, p1];
        let target_port = if little { u16::from_le_bytes(port) } else { u16::from_be_bytes(port) };
        import.register(Nexus { initiator, target_port }, key, holder != 0)?;
        rest = tail;
    }
    import.finish()
}

/// Reads the text of `pr_state`. It says nothing of APTPL, so what it tells of outlives a loss of power
/// until an initiator says otherwise: a reservation too many can be seen and cleared, one too few
/// cannot.
///
/// # Errors
/// What is wrong with it; nothing is imported in part.
pub fn import_state(text: &str) -> Result<Reservations, ImportError> {
    let mut import = Import { aptpl: true, ..Import::default() };
    let mut has_version = false;
    for (index, line) in text.lines().enumerate() {
        let unknown = ImportError::Line { line: index.saturating_add(1) };
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        let mut word = || words.next().ok_or(unknown);
        match first {
            "version" => {
                let version = word()?.parse().map_err(|_| unknown)?;
                if version != VERSION {
                    return Err(ImportError::Version(version));
                }
                has_version = true;
            }
            "generation" => import.generation = word()?.parse().map_err(|_| unknown)?,
            "reservation" => {
                let mut code = || u8::from_str_radix(word()?, 16).map_err(|_| unknown);
                let (kind, scope) = (code()?, code()?);
                import.reserve(kind, scope)?;
            }
            "registrant" => {
                let target_port = word()?.parse().map_err(|_| unknown)?;
                let key = u64::from_str_radix(word()?, 16).map_err(|_| unknown)?;
                let holder = match word()? {
                    "0" => false,
                    "1" => true,
                    _ => return Err(unknown),
                };
                let bytes: usize = word()?.parse().map_err(|_| unknown)?;
                let registrant = import.registrations.len().saturating_add(1);
                let initiator = parse_hex_id(word()?, bytes, registrant).ok_or(unknown)??;
                import.register(Nexus { initiator, target_port }, key, holder)?;
            }
            _ => return Err(unknown),
        }
        if words.next().is_some() {
            return Err(unknown);
        }
    }
    if has_version { import.finish() } else { Err(ImportError::Cut) }
}

/// A TransportID of `bytes` bytes in hexadecimal; `None`: the digits are none, or not so many.
fn parse_hex_id(
    hex: &str,
    bytes: usize,
    registrant: usize,
) -> Option<Result<TransportId, ImportError>> {
    let mut id = [0; TransportId::BYTES_MAX];
    let room = id.get_mut(..bytes)?;
    if Some(hex.len()) != bytes.checked_mul(2) {
        return None;
    }
    for (to, [high, low]) in room.iter_mut().zip(hex.as_bytes().as_chunks::<2>().0) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *to = digit(*high)? << 4 | digit(*low)?;
    }
    let first = room.first().copied()?;
    Some(match TransportId::parse(room) {
        Ok((id, taken)) if taken == bytes => Ok(id),
        _ => Err(ImportError::TransportId { registrant, first }),
    })
}

/// What has been read so far.
#[derive(Default)]
struct Import {
    registrations: BTreeMap<Nexus, u64>,
    kind: Option<ReservationType>,
    holder: Option<Nexus>,
    holders: usize,
    generation: u32,
    aptpl: bool,
}

impl Import {
    fn reserve(&mut self, kind: u8, scope: u8) -> Result<(), ImportError> {
        let known = ReservationType::from_code(kind).filter(|_| scope == 0);
        self.kind = Some(known.ok_or(ImportError::Type { kind, scope })?);
        Ok(())
    }

    fn register(&mut self, nexus: Nexus, key: u64, holder: bool) -> Result<(), ImportError> {
        let registrant = self.registrations.len().saturating_add(1);
        if holder {
            self.holders = self.holders.saturating_add(1);
            self.holder = Some(nexus.clone());
        }
        if key == 0 || self.registrations.insert(nexus, key).is_some() {
            return Err(ImportError::Registrant { registrant });
        }
        if registrant > REGISTRATIONS_MAX { Err(ImportError::TooMany) } else { Ok(()) }
    }

    /// Of the all registrants types SCST marks whom it likes: everybody who is registered holds them.
    fn finish(self) -> Result<Reservations, ImportError> {
        let reservation = match (self.kind, self.holder) {
            (None, None) => None,
            (Some(kind), _) if kind.is_all_registrants() => {
                Some(Reservation { kind, holder: None })
            }
            (Some(kind), holder @ Some(_)) if self.holders == 1 => {
                Some(Reservation { kind, holder })
            }
            _ => return Err(ImportError::Holder),
        };
        let state = Reservations {
            registrations: self.registrations,
            reservation,
            generation: self.generation,
            aptpl: self.aptpl,
            ..Reservations::default()
        };
        if state.is_consistent() { Ok(state) } else { Err(ImportError::Holder) }
    }
}

/// Writes the text of `pr_state`, every registrant in it (SCST's own is cut at a page). What it cannot
/// say is left out: APTPL, and who reserved the unit by RESERVE. `None`: the information is lost, and an
/// empty text would say that there was none.
#[must_use]
pub fn export_state(state: &Reservations) -> Option<String> {
    if state.is_lost() {
        return None;
    }
    let mut text = String::new();
    write_state(state, &mut text).ok()?;
    Some(text)
}

fn write_state(state: &Reservations, text: &mut String) -> fmt::Result {
    writeln!(text, "version {VERSION}")?;
    writeln!(text, "generation {}", state.generation)?;
    if let Some(held) = &state.reservation {
        writeln!(text, "reservation {:02x} 00", held.kind as u8)?;
    }
    let everybody = state.reservation.as_ref().is_some_and(|held| held.holder.is_none());
    for (index, registration) in state.registrations().enumerate() {
        // SCST has one holder also where everybody is one.
        let holder = registration.holder && (!everybody || index == 0);
        let id = registration.nexus.initiator.as_bytes();
        write!(
            text,
            "registrant {} {:016x} {} {} ",
            registration.nexus.target_port,
            registration.key,
            u8::from(holder),
            id.len()
        )?;
        id.iter().try_for_each(|byte| write!(text, "{byte:02x}"))?;
        writeln!(text)?;
    }
    Ok(())
}
