//! A certificate for test servers.

use std::fmt;
use std::sync::Arc;

use ::ring::digest;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;

use crate::dns::TlsaRecord;

/// A certificate, with its key, made when the test runs.
///
/// ```
/// use postrider::testing::{SmtpServer, TestCertificate};
/// use postrider::transport::smtp::SmtpTransport;
/// let certificate = TestCertificate::new(["mx.example.net"]).unwrap();
/// let server = SmtpServer::new().starttls(&certificate);
/// // A transport that takes it for valid:
/// let transport = SmtpTransport::new().with_root_certificates(certificate.pem()).unwrap();
/// ```
#[derive(Clone)]
pub struct TestCertificate {
    pem: String,
    key_pem: String,
    config: Arc<ServerConfig>,
    /// As the server sends it: its own, then the root if that is another.
    chain: Vec<CertificateDer<'static>>,
}

/// No certificate could be made, such as for a name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no certificate: {0}")]
pub struct TestCertificateError(String);

impl TestCertificate {
    /// For these names or addresses, valid from 1975 to 4096.
    ///
    /// # Errors
    /// [`TestCertificateError`], when a name can not stand in a certificate.
    pub fn new<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Result<Self, TestCertificateError> {
        Self::make(names, 4096, false)
    }

    /// For these names or addresses, signed by a root that is made for it, which the server sends too; valid from 1975 to
    /// 4096.
    ///
    /// # Errors
    /// [`TestCertificateError`], when a name can not stand in a certificate.
    pub fn signed<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Result<Self, TestCertificateError> {
        Self::make(names, 4096, true)
    }

    /// For these names or addresses, valid until the end of 2020.
    ///
    /// # Errors
    /// [`TestCertificateError`], when a name can not stand in a certificate.
    pub fn expired<N: Into<String>>(
        names: impl IntoIterator<Item = N>,
    ) -> Result<Self, TestCertificateError> {
        Self::make(names, 2021, false)
    }

    fn make<N: Into<String>>(
        names: impl IntoIterator<Item = N>,
        year: i32,
        signed: bool,
    ) -> Result<Self, TestCertificateError> {
        let failed = |error: &dyn fmt::Display| TestCertificateError(error.to_string());
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let key = rcgen::KeyPair::generate().map_err(|error| failed(&error))?;
        let mut parameters = rcgen::CertificateParams::new(names).map_err(|error| failed(&error))?;
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        let (chain, pem) = if signed {
            let root_key = rcgen::KeyPair::generate().map_err(|error| failed(&error))?;
            let mut root = rcgen::CertificateParams::default();
            root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            root.distinguished_name.push(rcgen::DnType::CommonName, "Test Root");
            let root_certificate = root.self_signed(&root_key).map_err(|error| failed(&error))?;
            let issuer = rcgen::Issuer::new(root, root_key);
            let own = parameters.signed_by(&key, &issuer).map_err(|error| failed(&error))?;
            (vec![own.der().clone(), root_certificate.der().clone()], root_certificate.pem())
        } else {
            let own = parameters.self_signed(&key).map_err(|error| failed(&error))?;
            (vec![own.der().clone()], own.pem())
        };
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_no_client_auth()
            .with_single_cert(chain.clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .map_err(|error| failed(&error))?;
        Ok(Self { pem, key_pem: key.serialize_pem(), config: Arc::new(config), chain })
    }

    /// A TLSA record for it (RFC 6698): of usage DANE-EE (3) for itself, of usage DANE-TA (2) for who has signed it. The record
    /// of a selector or matching type that is none has no data.
    pub fn tlsa(&self, usage: u8, selector: u8, matching_type: u8) -> TlsaRecord {
        let certificate = if usage == 2 { self.chain.last() } else { self.chain.first() };
        let selected = certificate.and_then(|certificate| match selector {
            0 => Some(certificate.to_vec()),
            1 => Some(ParsedCertificate::try_from(certificate).ok()?.subject_public_key_info().to_vec()),
            _ => None,
        });
        let selected = selected.unwrap_or_default();
        let data = match matching_type {
            0 => selected,
            1 => digest::digest(&digest::SHA256, &selected).as_ref().to_vec(),
            2 => digest::digest(&digest::SHA512, &selected).as_ref().to_vec(),
            _ => Vec::new(),
        };
        TlsaRecord::new(usage, selector, matching_type, data)
    }

    /// In PEM, as a root to verify it by: its own, or that of who has signed it.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its key, in PEM, for a server of another kind.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

impl fmt::Debug for TestCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestCertificate").finish_non_exhaustive()
    }
}
