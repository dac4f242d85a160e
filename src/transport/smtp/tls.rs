//! TLS, by rustls.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, ProtocolVersion, RootCertStore, SignatureScheme,
    SupportedCipherSuite,
};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::connector::Stream;
use super::dane::{NoMatch, TlsaVerifier};
use crate::clock::instant;
use crate::dane::TlsaSet;
use crate::transport::{CertificateBy, CertificateProblem, EndCause, PeerCertificate, Target};

/// Host names whose session tickets are kept, of each kind of session.
const MOST_NAMES: usize = 1_024;
/// When roots are looked for again that could not be read.
const ROOTS_AGAIN: Duration = Duration::from_secs(60);

/// Root certificates that can not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootsError {
    /// Not PEM, or not a certificate.
    #[error("not a root certificate in PEM: {0}")]
    Malformed(String),
    /// No certificate in the text.
    #[error("no certificate in PEM: nothing could be verified")]
    None,
}

/// How handshakes are made. Sessions that were not verified are never resumed as verified ones: each kind has a
/// configuration and tickets of its own, and those that are held to TLSA records have none.
#[derive(Debug, Default)]
pub(super) struct Tls {
    /// The host's own roots, in place of the platform's.
    roots: Option<RootCertStore>,
    any: OnceLock<Result<Arc<ClientConfig>, EndCause>>,
    verified: OnceCell<Arc<ClientConfig>>,
    /// Looks at certificates that need not be valid. Without roots there is none.
    verifier: OnceCell<Arc<WebPkiServerVerifier>>,
    /// Roots could not be read: not for each session anew.
    no_verifier_before: Mutex<Option<Instant>>,
}

/// What a handshake came to.
#[derive(Clone, Debug)]
pub(super) struct Secured {
    /// Version and cipher suite.
    pub(super) what: String,
    /// The certificate, if it was verified.
    pub(super) certificate: Option<PeerCertificate>,
    /// The certificate, if it was taken unseen and somebody may ask.
    unseen: Option<Unseen>,
    /// What is to be said of that one, once somebody has asked.
    verdict: Option<Result<(), CertificateProblem>>,
}

/// A certificate that was taken unseen.
#[derive(Clone, Debug)]
struct Unseen {
    /// With those that the server sent beside it.
    chain: Vec<CertificateDer<'static>>,
    host: Arc<str>,
    tls: Arc<Tls>,
}

impl Secured {
    /// Looks at the certificate when it is first asked for.
    pub(super) async fn certificate_verdict(&mut self) -> Option<Result<(), CertificateProblem>> {
        if let Some(unseen) = &self.unseen {
            self.verdict = unseen.tls.judge(&unseen.chain, &unseen.host).await;
            self.unseen = None;
        }
        self.verdict
    }
}

impl Tls {
    /// Verifies by these roots.
    pub(super) fn with_roots(pem: &[u8]) -> Result<Self, RootsError> {
        Ok(Self { roots: Some(parse_roots(pem)?), ..Self::default() })
    }

    /// Makes a handshake: the stream in TLS, and what is to be known of it.
    pub(super) async fn handshake(
        self: &Arc<Self>,
        stream: Box<dyn Stream>,
        target: &Target,
    ) -> Result<(Box<dyn Stream>, Secured), EndCause> {
        let config = match target.certificate_by() {
            CertificateBy::Tlsa(set) => by_tlsa(set)?,
            CertificateBy::Roots => self.verified().await?,
            CertificateBy::Nobody => self.any()?,
        };
        let name = server_name(target)?;
        let limit = target.timeouts.starttls;
        let handshake = TlsConnector::from(config).connect(name, stream);
        let stream = match timeout(limit, handshake).await {
            Ok(done) => done.map_err(|error| failed(&error))?,
            Err(_) => return Err(EndCause::Tls(format!("no handshake within {} s", limit.as_secs()))),
        };
        let (_, connection) = stream.get_ref();
        let what = describe(connection.protocol_version(), connection.negotiated_cipher_suite());
        let certificate = match target.certificate_by() {
            CertificateBy::Roots | CertificateBy::Tlsa(_) => {
                connection.peer_certificates().and_then(|chain| chain.first()).map(names_of)
            }
            CertificateBy::Nobody => None,
        };
        let unseen = target.tests_certificate().then(|| Unseen {
            chain: connection.peer_certificates().unwrap_or_default().to_vec(),
            host: target.host.clone(),
            tls: self.clone(),
        });
        Ok((Box::new(stream), Secured { what, certificate, unseen, verdict: None }))
    }

    /// What is to be said of a certificate that was taken unseen.
    async fn judge(
        &self,
        certificates: &[CertificateDer<'_>],
        host: &str,
    ) -> Option<Result<(), CertificateProblem>> {
        let (own, others) = certificates.split_first()?;
        let verifier = self.verifier().await?;
        let Ok(name) = ServerName::try_from(host) else { return Some(Err(CertificateProblem::OtherHost)) };
        let verified = verifier.verify_server_cert(own, others, &name, &[], UnixTime::now());
        Some(verified.map(drop).map_err(|error| match error {
            rustls::Error::InvalidCertificate(error) => problem_of(&error),
            _ => CertificateProblem::Invalid,
        }))
    }

    async fn verifier(&self) -> Option<Arc<WebPkiServerVerifier>> {
        let not_before = || self.no_verifier_before.lock().unwrap_or_else(PoisonError::into_inner);
        if not_before().is_some_and(|before| instant() < before) {
            return None;
        }
        let make = || async {
            let (roots, provider) = (self.roots().await.ok()?, Arc::new(ring::default_provider()));
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()
        };
        let made = self.verifier.get_or_try_init(|| async { make().await.ok_or(()) }).await;
        *not_before() = made.is_err().then(|| instant() + ROOTS_AGAIN);
        made.ok().cloned()
    }

    async fn roots(&self) -> Result<RootCertStore, EndCause> {
        match &self.roots {
            Some(roots) => Ok(roots.clone()),
            None => platform_roots().await,
        }
    }

    fn any(&self) -> Result<Arc<ClientConfig>, EndCause> {
        let config = self.any.get_or_init(|| {
            let mut config = configure(RootCertStore::empty())?;
            config.dangerous().set_certificate_verifier(Arc::new(AnyCertificate(ring::default_provider())));
            Ok(Arc::new(config))
        });
        config.clone()
    }

    /// The platform's roots are read once, when they are first needed.
    async fn verified(&self) -> Result<Arc<ClientConfig>, EndCause> {
        let make = || async { Ok(Arc::new(configure(self.roots().await?)?)) };
        self.verified.get_or_try_init(make).await.cloned()
    }
}

/// Roots in PEM, at least one.
pub(crate) fn parse_roots(pem: &[u8]) -> Result<RootCertStore, RootsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| RootsError::Malformed(error.to_string()))?;
        roots.add(certificate).map_err(|error| RootsError::Malformed(error.to_string()))?;
    }
    if roots.is_empty() { Err(RootsError::None) } else { Ok(roots) }
}

/// For one handshake. Without roots: the verifier knows what counts.
fn by_tlsa(set: &Arc<TlsaSet>) -> Result<Arc<ClientConfig>, EndCause> {
    let mut config = configure(RootCertStore::empty())?;
    let verifier = TlsaVerifier::new(set.clone(), config.crypto_provider());
    config.dangerous().set_certificate_verifier(Arc::new(verifier));
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// TLS 1.2 and 1.3.
pub(crate) fn configure(roots: RootCertStore) -> Result<ClientConfig, EndCause> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| EndCause::Local(format!("no TLS: {error}")))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(MOST_NAMES)));
    Ok(config)
}

pub(crate) async fn platform_roots() -> Result<RootCertStore, EndCause> {
    // It reads files.
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let found = found.map_err(|error| EndCause::Local(format!("no root certificates: {error}")))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "none are installed".to_owned(), ToString::to_string);
        return Err(EndCause::Local(format!("no root certificates: {why}")));
    }
    Ok(roots)
}

/// Who the server is to be: also SNI, unless it is an address (RFC 6066 §3).
fn server_name(target: &Target) -> Result<ServerName<'static>, EndCause> {
    let host = match (target.certificate_by(), &target.tlsa) {
        // RFC 7672 §8.1.
        (CertificateBy::Tlsa(_) | CertificateBy::Nobody, Some(set)) => set.base(),
        // What roots vouch for is the host's own name.
        _ => &target.host,
    };
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let address = literal.map(|literal| literal.strip_prefix("IPv6:").unwrap_or(literal));
    if let Some(address) = address.and_then(|address| address.parse::<IpAddr>().ok()) {
        return Ok(ServerName::IpAddress(address.into()));
    }
    match ServerName::try_from(host.to_string()) {
        Ok(name) => Ok(name),
        // Nothing is verified: a name that no certificate can have is no hindrance.
        Err(_) if matches!(target.certificate_by(), CertificateBy::Nobody) => {
            Ok(ServerName::IpAddress(target.peer.ip().into()))
        }
        Err(_) => {
            let host = host.escape_debug();
            Err(EndCause::Tls(format!("no certificate can be for a host called `{host}`")))
        }
    }
}

fn failed(error: &io::Error) -> EndCause {
    if error.kind() == ErrorKind::UnexpectedEof {
        return EndCause::Tls("the server closed the connection in the handshake".into());
    }
    // Parts of it are the server's words.
    let text: String = error.to_string().chars().take(200).flat_map(char::escape_debug).collect();
    match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
            if other.0.is::<NoMatch>() =>
        {
            EndCause::Certificate(CertificateProblem::TlsaMismatch, NoMatch.to_string())
        }
        Some(rustls::Error::InvalidCertificate(error)) => EndCause::Certificate(problem_of(error), text),
        _ => EndCause::Tls(text),
    }
}

/// Its chain was verified; what is left of the question is the name.
fn names_of(certificate: &CertificateDer<'_>) -> PeerCertificate {
    let certificate = certificate.clone().into_owned();
    PeerCertificate::new(move |host| {
        let parsed = ParsedCertificate::try_from(&certificate);
        let name = ServerName::try_from(host);
        parsed.is_ok_and(|parsed| name.is_ok_and(|name| verify_server_name(&parsed, &name).is_ok()))
    })
}

fn problem_of(error: &CertificateError) -> CertificateProblem {
    match error {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            CertificateProblem::OtherHost
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => CertificateProblem::Expired,
        CertificateError::UnknownIssuer | CertificateError::BadSignature | CertificateError::Revoked => {
            CertificateProblem::NotTrusted
        }
        _ => CertificateProblem::Invalid,
    }
}

/// As OpenSSL and RFC 8446 write them: `TLSv1.3 TLS_AES_256_GCM_SHA384`.
pub(crate) fn describe(version: Option<ProtocolVersion>, suite: Option<SupportedCipherSuite>) -> String {
    let version = match version {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLS",
    };
    match suite.and_then(|suite| suite.suite().as_str()) {
        Some(suite) => format!("{version} {}", suite.replacen("TLS13_", "TLS_", 1)),
        None => version.to_owned(),
    }
}

/// Takes every certificate, and every signature by it: who could be in between could as well have taken STARTTLS
/// from the offer, and a server with an odd certificate is spoken to in TLS rather than in plain.
struct AnyCertificate(CryptoProvider);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for AnyCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyCertificate")
    }
}
