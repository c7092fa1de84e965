//! What a failed handshake is told as: what is wrong with which certificate, and the way out.

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{AlertDescription, CertificateError, Error};
use time::OffsetDateTime;

use crate::Role;

/// Longest name that is repeated from a certificate, in characters.
const NAME_CHARACTERS_MAX: usize = 64;

/// The way out of most of it.
const MAKE_NEW: &str =
    "make new keys with `lunar keys` and put its `agent` on the host and its `card` on the card";

/// Whether only the dates of the certificate are wrong.
pub(crate) fn is_about_dates(error: &CertificateError) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(error, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
}

/// What is wrong with `certificate`, which should be that of `wanted`, where `authority` is trusted.
pub(crate) fn of_certificate(
    error: &CertificateError,
    certificate: &CertificateDer<'_>,
    wanted: Role,
    authority: &str,
) -> String {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            let signer = issuer(certificate);
            format!(
                "its certificate is signed by `{signer}`, and only those that `{authority}` signed are taken here: \
                 {MAKE_NEW}"
            )
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "its certificate expired on {}, and the clock here says {}: {MAKE_NEW}, or set the clock",
            date(*not_after),
            date(*time)
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate is valid from {} on, and the clock here says {}: set the clock",
            date(*not_before),
            date(*time)
        ),
        CertificateError::InvalidPurpose
        | CertificateError::InvalidPurposeContext { .. }
        | CertificateError::NotValidForName
        | CertificateError::NotValidForNameContext { .. } => format!(
            "its certificate is that of `{}`, which is no {}: give it the directory `{}` that `lunar keys` made",
            subject(certificate),
            wanted.name(),
            wanted.name()
        ),
        error => format!("its certificate cannot be used ({error}): {MAKE_NEW}"),
    }
}

/// What `error` means to the end with the role `own`, whose certificate `own_issuer` signed.
pub(crate) fn of_tls(error: &Error, own: Role, own_issuer: &str) -> String {
    let (own, peer) = (own.name(), own.peer().name());
    match error {
        Error::AlertReceived(AlertDescription::CloseNotify) => {
            format!("the {peer} closed the connection in the middle of the handshake")
        }
        Error::AlertReceived(alert) => {
            let refusal = format!("the {peer} refuses the certificate of this {own}");
            match alert {
                AlertDescription::UnknownCA | AlertDescription::DecryptError => format!(
                    "{refusal}: it does not take those that `{own_issuer}` signed: {MAKE_NEW}"
                ),
                AlertDescription::CertificateExpired => {
                    format!(
                        "{refusal}: it is not valid today by its clock: {MAKE_NEW}, or set its clock"
                    )
                }
                AlertDescription::UnsupportedCertificate | AlertDescription::BadCertificate => {
                    format!(
                        "{refusal}: it is not that of a {own}: give --tls the directory `{own}` that `lunar keys` made"
                    )
                }
                alert => format!("the {peer} refuses this {own} (TLS alert {alert:?}): {MAKE_NEW}"),
            }
        }
        Error::NoCertificatesPresented => {
            format!("the {peer} showed no certificate: {MAKE_NEW}")
        }
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => {
            format!("what it sent is not TLS: only a {peer} of Lunar belongs there")
        }
        Error::PeerIncompatible(reason) => {
            format!("its TLS does not fit ({reason:?}): a {peer} of Lunar speaks TLS 1.3")
        }
        error => format!("TLS failed: {error}"),
    }
}

/// Whose certificate it is.
pub(crate) fn subject(certificate: &CertificateDer<'_>) -> String {
    named(certificate, |parsed| parsed.subject().to_vec())
}

/// Who signed it, as it says itself.
pub(crate) fn issuer(certificate: &CertificateDer<'_>) -> String {
    named(certificate, |parsed| parsed.issuer().to_vec())
}

fn named(
    certificate: &CertificateDer<'_>,
    name: fn(&webpki::EndEntityCert<'_>) -> Vec<u8>,
) -> String {
    let parsed = webpki::EndEntityCert::try_from(certificate);
    let common_name = parsed.ok().and_then(|parsed| common_name(&name(&parsed)));
    common_name.unwrap_or_else(|| "somebody without a name".to_owned())
}

/// The common name in a DER-encoded distinguished name (X.520, id-at-commonName: a string follows it). Only for
/// messages: what a stranger put there is cut and cleaned.
fn common_name(name: &[u8]) -> Option<String> {
    const ID_AT_COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
    let at = name.windows(5).position(|window| window == ID_AT_COMMON_NAME)?;
    let [_tag, length, text @ ..] = name.get(at + 5..)? else { return None };
    // Longer ones have their length elsewhere, and X.520 allows no more than 64 characters anyway.
    let text = text.get(..usize::from(*length))?;
    let text = String::from_utf8_lossy(text);
    let clean = text.chars().map(|letter| if letter.is_control() { '?' } else { letter });
    Some(clean.take(NAME_CHARACTERS_MAX).collect())
}

/// The day, as `2026-11-22`, UTC.
fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(day) => day.date().to_string(),
        Err(_) => format!("second {seconds} of the epoch"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_name_is_cut_and_cleaned() {
        let name = |length: u8, text: &[u8]| {
            [&[0x30, 0x0a, 0x06, 0x03, 0x55, 0x04, 0x03, 0x0c, length], text].concat()
        };
        assert_eq!(common_name(&name(4, b"card")).unwrap(), "card");
        assert_eq!(common_name(&name(4, b"a\n\x1bb")).unwrap(), "a??b");
        assert_eq!(common_name(&name(100, &[b'x'; 100])).unwrap().len(), NAME_CHARACTERS_MAX);
        assert_eq!(common_name(&name(5, b"card")), None);
        assert_eq!(common_name(&[0x06, 0x03, 0x55, 0x04, 0x03]), None);
        assert_eq!(common_name(b""), None);
    }

    #[test]
    fn dates_are_days() {
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        assert_eq!(date(at(0)), "1970-01-01");
        assert_eq!(date(at(1_795_392_000)), "2026-11-23");
        assert!(date(at(u64::MAX)).starts_with("second "));
    }
}
