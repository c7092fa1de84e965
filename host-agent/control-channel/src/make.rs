//! New keys: an authority, and what it signs for the agent and for the card.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use time::OffsetDateTime;

use crate::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, Role};

/// The authority's directory.
const CA_DIRECTORY: &str = "ca";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Why keys could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// Keys are there already.
    #[error(
        "{path} is there already: name another directory, or replace the keys with --force; then what the old ones \
         opened stays closed until both machines have the new ones"
    )]
    Exists {
        /// The first file that is.
        path: String,
    },
    /// A file could not be written.
    #[error("{path}: {source}")]
    Write {
        /// The file or directory.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The library refused.
    #[error("no key could be made: {0}")]
    Library(#[from] rcgen::Error),
}

/// From when until when certificates are valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// The first moment.
    pub from: SystemTime,
    /// The last one.
    pub until: SystemTime,
}

impl Validity {
    /// For `days` from now on; it begins a day ago, so that clocks may differ.
    #[must_use]
    pub fn days(days: u32) -> Self {
        let now = SystemTime::now();
        Self { from: now - DAY, until: now + DAY * days }
    }

    /// The last day, as `2026-11-22`, UTC.
    #[must_use]
    pub fn last_day(&self) -> String {
        OffsetDateTime::from(self.until).date().to_string()
    }
}

/// Who signs.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    name: String,
    validity: Validity,
}

impl Authority {
    /// A new one, with a name that no other has.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn new(validity: Validity) -> Result<Self, MakeError> {
        let key = KeyPair::generate()?;
        // The end of a P-256 public key is as random as can be.
        let unique: String =
            key.public_key_raw().iter().rev().take(4).map(|byte| format!("{byte:02x}")).collect();
        let name = format!("Lunar CA {unique}");
        let mut parameters = parameters(&name, validity);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(parameters, key)?;
        Ok(Self { issuer, name, validity })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes `directory`, the identity of `role`.
    ///
    /// # Errors
    /// A file could not be written.
    pub fn write_identity(
        &self,
        directory: &Path,
        role: Role,
        validity: Validity,
    ) -> Result<(), MakeError> {
        let key = KeyPair::generate()?;
        let mut parameters = parameters(role.name(), validity);
        let name = role.server_name().try_into()?;
        parameters.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.use_authority_key_identifier_extension = true;
        parameters.extended_key_usages = vec![match role {
            Role::Agent => ExtendedKeyUsagePurpose::ServerAuth,
            Role::Card => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        write(&directory.join(CA_FILE), &self.issuer.pem())?;
        write(&directory.join(CERTIFICATE_FILE), &certificate.pem())?;
        write(&directory.join(KEY_FILE), &key.serialize_pem())
    }

    fn write_own(&self, directory: &Path) -> Result<(), MakeError> {
        write(&directory.join(CERTIFICATE_FILE), &self.issuer.pem())?;
        write(&directory.join(KEY_FILE), &self.issuer.key().serialize_pem())
    }
}

/// What [`make`] has made.
pub struct Made {
    /// The authority's name.
    pub authority: String,
    /// The authority's directory. Whoever has its key can pass for both ends.
    pub ca: PathBuf,
    /// What belongs on the host.
    pub agent: PathBuf,
    /// What belongs on the card.
    pub card: PathBuf,
    /// The last day on which they are valid.
    pub valid_until: String,
}

/// Makes `ca`, `agent` and `card` below `directory`: directories of mode 0700, files of mode 0600.
///
/// # Errors
/// One of the files is there and `replace` is not set, or one could not be written.
pub fn make(directory: &Path, validity: Validity, replace: bool) -> Result<Made, MakeError> {
    let below = |name: &str| directory.join(name);
    let (agent, card) = (below(Role::Agent.name()), below(Role::Card.name()));
    let ca = below(CA_DIRECTORY);
    if !replace {
        for folder in [&ca, &agent, &card] {
            for file in [CA_FILE, CERTIFICATE_FILE, KEY_FILE] {
                let path = folder.join(file);
                if path.symlink_metadata().is_ok() {
                    return Err(MakeError::Exists { path: path.display().to_string() });
                }
            }
        }
    }
    let authority = Authority::new(validity)?;
    authority.write_own(&ca)?;
    authority.write_identity(&agent, Role::Agent, validity)?;
    authority.write_identity(&card, Role::Card, validity)?;
    let valid_until = authority.validity.last_day();
    Ok(Made { authority: authority.name, ca, agent, card, valid_until })
}

fn parameters(common_name: &str, validity: Validity) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    parameters.distinguished_name = name;
    parameters.not_before = validity.from.into();
    parameters.not_after = validity.until.into();
    parameters
}

/// Writes beside the file and renames, so that nobody reads half of it, and nobody else reads it at all.
fn write(path: &Path, text: &str) -> Result<(), MakeError> {
    let failed = |source| MakeError::Write { path: path.display().to_string(), source };
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    }
    let beside = path.with_extension("new");
    // Left behind by somebody who was killed.
    let _ = fs::remove_file(&beside);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(failed)
}
