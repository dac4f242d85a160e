//! Certificates held to TLSA records (RFC 7672 §3, RFC 7671).

use std::fmt;
use std::sync::Arc;

use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, Der, ServerName, TrustAnchor, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use crate::dane::TlsaSet;
use crate::dns::TlsaRecord;

/// Certificates of a server's chain that are compared.
const MOST_CERTIFICATES: usize = 16;

/// Takes certificates that match one of a host's TLSA records.
pub(super) struct TlsaVerifier {
    set: Arc<TlsaSet>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The certificate matches no record.
#[derive(Debug, thiserror::Error)]
#[error("the certificate matches none of the host's TLSA records")]
pub(super) struct NoMatch;

impl TlsaVerifier {
    pub(super) fn new(set: Arc<TlsaSet>, provider: &CryptoProvider) -> Self {
        Self { set, algorithms: provider.signature_verification_algorithms }
    }

    fn of_usage(&self, usage: u8) -> impl Iterator<Item = &TlsaRecord> {
        self.set.records().iter().filter(move |record| record.usage == usage)
    }

    /// RFC 7672 §3.1.1: neither names nor dates nor who has signed it count.
    fn is_known_by_itself(&self, own: &CertificateDer<'_>) -> bool {
        self.of_usage(3).any(|record| matches(record, own))
    }

    /// RFC 7672 §3.1.2: signed by who is named, now, for one of the names.
    fn is_signed_as_said(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let others = others.get(..MOST_CERTIFICATES).unwrap_or(others);
        let mut anchors = RootCertStore::empty();
        for record in self.of_usage(2) {
            // One that can not be read is none.
            for other in others.iter().filter(|other| matches(record, other)) {
                let _ = anchors.add(other.clone());
            }
            // The server need not send what the record has in full.
            match (record.selector, record.matching_type) {
                (0, 0) => drop(anchors.add(CertificateDer::from(&*record.data))),
                (1, 0) => anchors.roots.extend(by_bare_key(&record.data, own, others)),
                _ => {}
            }
        }
        if anchors.is_empty() {
            return Err(no_match());
        }
        let parsed = ParsedCertificate::try_from(own)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &anchors, others, now, algorithms)?;
        let mut result = Err(no_match());
        for name in self.set.names() {
            let Ok(name) = ServerName::try_from(&**name) else { continue };
            match verify_server_name(&parsed, &name) {
                Ok(()) => return Ok(()),
                Err(error) => result = Err(error),
            }
        }
        result
    }
}

impl ServerCertVerifier for TlsaVerifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.is_known_by_itself(own) {
            self.is_signed_as_said(own, others, now)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Debug for TlsaVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsaVerifier").field(&self.set).finish()
    }
}

fn no_match() -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(NoMatch))))
}

/// RFC 6698 §2.1.
fn matches(record: &TlsaRecord, certificate: &CertificateDer<'_>) -> bool {
    let key;
    let selected: &[u8] = match record.selector {
        0 => certificate,
        1 => {
            let Ok(parsed) = ParsedCertificate::try_from(certificate) else { return false };
            key = parsed.subject_public_key_info();
            &key
        }
        _ => return false,
    };
    let data = &*record.data;
    match record.matching_type {
        0 => selected == data,
        1 => digest::digest(&digest::SHA256, selected).as_ref() == data,
        2 => digest::digest(&digest::SHA512, selected).as_ref() == data,
        _ => false,
    }
}

/// A public key that signs certificates, under the names of those who have signed the server's.
fn by_bare_key(
    key: &[u8],
    own: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
) -> Vec<TrustAnchor<'static>> {
    let Some(content) = content_of(key) else { return Vec::new() };
    let mut issuers: Vec<Vec<u8>> = Vec::new();
    for certificate in std::iter::once(own).chain(others) {
        if let Ok(parsed) = webpki::EndEntityCert::try_from(certificate)
            && !issuers.iter().any(|issuer| issuer == parsed.issuer())
        {
            issuers.push(parsed.issuer().to_vec());
        }
    }
    let anchor = |issuer| TrustAnchor {
        subject: Der::from(issuer),
        subject_public_key_info: Der::from(content.to_vec()),
        name_constraints: None,
    };
    issuers.into_iter().map(anchor).collect()
}

/// What is in a DER sequence, which [`TlsaSet`] has found well formed.
fn content_of(sequence: &[u8]) -> Option<&[u8]> {
    let length = *sequence.get(1)?;
    let header = if length < 0x80 { 2 } else { 2 + usize::from(length & 0x7f) };
    sequence.get(header..)
}

#[cfg(all(test, feature = "testing"))]
mod tests;
