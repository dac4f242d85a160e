//! A certificate for test servers.

use std::fmt;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;

/// A certificate signed by itself, with its key, made when the test runs.
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
        Self::valid_until(names, 4096)
    }

    /// For these names or addresses, valid until the end of 2020.
    ///
    /// # Errors
    /// [`TestCertificateError`], when a name can not stand in a certificate.
    pub fn expired<N: Into<String>>(
        names: impl IntoIterator<Item = N>,
    ) -> Result<Self, TestCertificateError> {
        Self::valid_until(names, 2021)
    }

    fn valid_until<N: Into<String>>(
        names: impl IntoIterator<Item = N>,
        year: i32,
    ) -> Result<Self, TestCertificateError> {
        let failed = |error: &dyn fmt::Display| TestCertificateError(error.to_string());
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let key = rcgen::KeyPair::generate().map_err(|error| failed(&error))?;
        let mut parameters = rcgen::CertificateParams::new(names).map_err(|error| failed(&error))?;
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        let certificate = parameters.self_signed(&key).map_err(|error| failed(&error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .map_err(|error| failed(&error))?;
        Ok(Self { pem: certificate.pem(), key_pem: key.serialize_pem(), config: Arc::new(config) })
    }

    /// In PEM, as a root to verify it by.
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
