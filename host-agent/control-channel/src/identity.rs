//! Who one end of the control channel is, by a directory of three files, and what TLS makes of it.
//!
//! Both ends show a certificate of the same authority. It says for what it is good: an agent's for TLS servers under
//! [`Role::server_name`], a card's for TLS clients, so neither can stand in for the other. Addresses are not in
//! it, because cards and hosts change theirs.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName,
    Error, RootCertStore, ServerConfig, SignatureScheme,
};

use crate::words;
use crate::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};

/// Which end of the control channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The host agent: it listens.
    Agent,
    /// The card's firmware: it connects.
    Card,
}

impl Role {
    /// `agent` or `card`: also the name of the directory that `lunar keys` makes for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Card => "card",
        }
    }

    /// The name that its certificate is for.
    #[must_use]
    pub fn server_name(self) -> &'static str {
        match self {
            Self::Agent => "agent.lunar",
            Self::Card => "card.lunar",
        }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(self) -> Self {
        match self {
            Self::Agent => Self::Card,
            Self::Card => Self::Agent,
        }
    }
}

/// Why a directory is no identity.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file is not there, or is not what it should be.
    #[error("{path}: {reason}; `lunar keys` makes the files of --tls")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Others may read the private key.
    #[error(
        "{path}: others can read it (mode {mode:04o}), and so could pass for this {role}: chmod 600 {path}"
    )]
    Exposed {
        /// The file.
        path: String,
        /// Its permissions.
        mode: u32,
        /// Whose key it is.
        role: &'static str,
    },
    /// The certificate would not convince the other end.
    #[error("{path}: it is no certificate of an {wanted}: {reason}")]
    Useless {
        /// The file.
        path: String,
        /// What it should be.
        wanted: String,
        /// Why it is not.
        reason: String,
    },
}

/// One end's keys, read and found to belong together.
#[derive(Debug)]
pub struct Identity {
    role: Role,
    roots: Arc<RootCertStore>,
    /// Whom `roots` names, for messages.
    authority: String,
    own: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    warning: Option<String>,
}

impl Identity {
    /// Reads `directory`, which is to hold the keys of `role`.
    ///
    /// # Errors
    /// A file is missing or is not what it should be, others can read the key, or the certificate is not one that the
    /// other end, with the same authority, would take. Its dates are no error: see [`Self::warning`].
    pub fn load(directory: &Path, role: Role) -> Result<Self, KeysError> {
        let path = |file: &str| directory.join(file);
        let ca = certificates(&path(CA_FILE))?;
        let mut roots = RootCertStore::empty();
        for certificate in &ca {
            let added = roots.add(certificate.clone());
            added.map_err(|error| file_error(&path(CA_FILE), error.to_string()))?;
        }
        let authority = ca.first().map(|ca| words::subject(ca)).unwrap_or_default();
        let chain = certificates(&path(CERTIFICATE_FILE))?;
        let certificate = chain.first().cloned().unwrap_or_else(|| CertificateDer::from(vec![]));
        let key = private_key(&path(KEY_FILE), role)?;
        let provider = Arc::new(ring::default_provider());
        let own = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            Error::InconsistentKeys(_) => {
                file_error(&path(KEY_FILE), format!("it is not the key of {CERTIFICATE_FILE}"))
            }
            error => file_error(&path(KEY_FILE), error.to_string()),
        })?;
        let mut identity = Self {
            role,
            roots: Arc::new(roots),
            authority,
            own: Arc::new(own),
            provider,
            warning: None,
        };
        identity.warning = identity.verify_own(&certificate).map_err(|reason| {
            let path = path(CERTIFICATE_FILE).display().to_string();
            KeysError::Useless { path, wanted: role.name().to_owned(), reason }
        })?;
        Ok(identity)
    }

    /// What is amiss with the own certificate's dates, in words. The other end would refuse it; that the clock is right
    /// is not for this end to say.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Begins the agent's end of a handshake. The witness says of a failed one why.
    ///
    /// # Errors
    /// TLS cannot be set up with these keys.
    pub fn agent(&self) -> Result<(Arc<ServerConfig>, Witness), Error> {
        let witness = self.witness();
        let verifier = Arc::new(Watched { inner: self.card_verifier()?, seen: witness.clone() });
        let mut configuration = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.own))));
        // Who comes back proves itself again.
        configuration.send_tls13_tickets = 0;
        Ok((Arc::new(configuration), witness))
    }

    /// Begins the card's end of a handshake. The witness says of a failed one why.
    ///
    /// # Errors
    /// TLS cannot be set up with these keys.
    pub fn card(&self) -> Result<(ClientConnection, Witness), Error> {
        let witness = self.witness();
        let verifier = Arc::new(Watched { inner: self.agent_verifier()?, seen: witness.clone() });
        let mut configuration = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            // "Dangerous" is to bring a verifier of one's own: `Watched` asks rustls's and only listens.
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.own))));
        configuration.resumption = Resumption::disabled();
        let connection = ClientConnection::new(Arc::new(configuration), name_of(Role::Agent)?)?;
        Ok((connection, witness))
    }

    fn witness(&self) -> Witness {
        let own = self.own.cert.first();
        Witness {
            role: self.role,
            authority: self.authority.clone(),
            own_issuer: own.map(|own| words::issuer(own)).unwrap_or_default(),
            refused: Arc::default(),
        }
    }

    fn agent_verifier(&self) -> Result<Arc<WebPkiServerVerifier>, Error> {
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(&self.provider));
        WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))
    }

    fn card_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(&self.provider));
        WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))
    }

    /// Looks at the own certificate as the other end will. `Ok` with a warning where only its dates are wrong.
    fn verify_own(&self, own: &CertificateDer<'_>) -> Result<Option<String>, String> {
        let seen = self.witness();
        let verified = match self.role {
            Role::Agent => {
                let inner = self.agent_verifier().map_err(|error| error.to_string())?;
                let name = name_of(Role::Agent).map_err(|error| error.to_string())?;
                let others = self.own.cert.get(1..).unwrap_or(&[]);
                inner.verify_server_cert(own, others, &name, &[], UnixTime::now()).map(drop)
            }
            Role::Card => {
                let inner = self.card_verifier().map_err(|error| error.to_string())?;
                let others = self.own.cert.get(1..).unwrap_or(&[]);
                Watched { inner, seen: seen.clone() }
                    .verify_client_cert(own, others, UnixTime::now())
                    .map(drop)
            }
        };
        match verified {
            Ok(()) => Ok(None),
            Err(Error::InvalidCertificate(reason)) => {
                let text = words::of_certificate(&reason, own, self.role, &self.authority);
                if words::is_about_dates(&reason) { Ok(Some(text)) } else { Err(text) }
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Listens to the verification of one peer's certificate.
#[derive(Clone, Debug)]
pub struct Witness {
    /// The own role.
    role: Role,
    authority: String,
    own_issuer: String,
    refused: Arc<OnceLock<String>>,
}

impl Witness {
    /// Why the handshake, or the connection soon after it, failed with `error`: words that follow "refused: " or
    /// "ended: ", with the way out.
    #[must_use]
    pub fn explain(&self, error: &Error) -> String {
        match self.refused.get() {
            Some(reason) => reason.clone(),
            None => words::of_tls(error, self.role, &self.own_issuer),
        }
    }

    /// The same for an I/O error that may carry one of TLS.
    #[must_use]
    pub fn explain_io(&self, error: &io::Error) -> String {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(inner) => self.explain(inner),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                let peer = self.role.peer().name();
                format!("the {peer} closed the connection in the middle of the handshake")
            }
            None => error.to_string(),
        }
    }

    fn heard<T>(&self, certificate: &CertificateDer<'_>, verdict: &Result<T, Error>) {
        if let Err(Error::InvalidCertificate(reason)) = verdict {
            let peer = self.role.peer();
            let text = words::of_certificate(reason, certificate, peer, &self.authority);
            // One certificate is verified for each connection.
            let _ = self.refused.set(text);
        }
    }
}

/// rustls's verifier, listened to.
#[derive(Debug)]
struct Watched<V> {
    inner: V,
    seen: Witness,
}

impl ServerCertVerifier for Watched<Arc<WebPkiServerVerifier>> {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self.inner.verify_server_cert(certificate, intermediates, name, ocsp, now);
        self.seen.heard(certificate, &verdict);
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Watched<Arc<dyn ClientCertVerifier>> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    /// TLS asks of a client's certificate only that it is one; here its name is asked for too, so that an authority
    /// that also signs for others can be used.
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verdict =
            self.inner.verify_client_cert(certificate, intermediates, now).and_then(|verified| {
                let parsed = ParsedCertificate::try_from(certificate)?;
                verify_server_name(&parsed, &name_of(Role::Card)?)?;
                Ok(verified)
            });
        self.seen.heard(certificate, &verdict);
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn name_of(role: Role) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(role.server_name())
        .map_err(|_| Error::InvalidCertificate(CertificateError::NotValidForName))
}

fn file_error(path: &Path, reason: String) -> KeysError {
    KeysError::File { path: path.display().to_string(), reason }
}

/// At least one certificate.
fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, KeysError> {
    let bytes = fs::read(path).map_err(|error| file_error(path, error.to_string()))?;
    let read: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(file_error(path, "there is no certificate in it".to_owned())),
        Err(error) => Err(file_error(path, format!("it is no PEM file: {error}"))),
    }
}

fn private_key(path: &PathBuf, role: Role) -> Result<PrivateKeyDer<'static>, KeysError> {
    let cannot = |error: io::Error| file_error(path, error.to_string());
    let mode = fs::metadata(path).map_err(cannot)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let path = path.display().to_string();
        return Err(KeysError::Exposed { path, mode, role: role.name() });
    }
    let bytes = fs::read(path).map_err(cannot)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => file_error(path, "there is no private key in it".to_owned()),
        error => file_error(path, format!("it is no PEM file: {error}")),
    })
}
