//! DANE (RFC 7672) in sessions: what a host's TLSA records make of STARTTLS and of certificates.

use std::sync::Mutex;

use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::dane::TlsaSet;
use crate::dns::TlsaRecord;
use crate::testing::{Command, TestCertificate};
use crate::transport::{CertificateProblem, TlsWish};

const HOST: &str = "mx.example";
const BASE: &str = "base.example";

fn certificate() -> TestCertificate {
    TestCertificate::new([HOST]).unwrap()
}

fn demanding(record: TlsaRecord, level: StartTls) -> Target {
    let set = TlsaSet::new(BASE.into(), [], vec![record]);
    Target { tlsa: Some(Arc::new(set)), tls: TlsWish { level, implicit: false }, ..target() }
}

const LEVELS: [StartTls; 4] = [StartTls::Off, StartTls::Opportunistic, StartTls::Required, StartTls::Verify];

/// Where opportunistic TLS would go on in plain, and also after it did.
#[tokio::test(start_paused = true)]
async fn nothing_goes_on_in_plain() {
    let own = certificate();
    let refusing = || SmtpServer::new().starttls(&own).reply(Command::StartTls, "454 4.7.0 not now");
    for (server, record) in [
        (SmtpServer::new(), own.tlsa(3, 1, 1)),
        (refusing(), own.tlsa(3, 1, 1)),
        (SmtpServer::new().starttls(&certificate()), own.tlsa(3, 1, 1)),
        (SmtpServer::new(), own.tlsa(1, 1, 1)),
        (refusing(), own.tlsa(1, 1, 1)),
    ] {
        let network = MemoryNetwork::new();
        network.listen(peer(), &server);
        let transport = SmtpTransport::over(network.clone());
        // So that it is remembered as one to speak with in plain.
        let plain = transport.connect(&target()).await.unwrap();
        assert!(plain.tls().is_none() || server.tls_handshakes() > 0);
        let before = network.attempts(peer());
        for level in LEVELS {
            let error = transport.connect(&demanding(record.clone(), level)).await.unwrap_err();
            assert_eq!(error.stage, Stage::Ehlo);
        }
        assert_eq!(network.attempts(peer()) - before, 4, "one connection each");
    }
}

/// Each proves what is demanded of it now, whatever was proved before.
#[tokio::test(start_paused = true)]
async fn no_session_is_resumed() {
    let own = certificate();
    let server = SmtpServer::new().starttls(&own);
    let network = MemoryNetwork::new();
    network.listen(peer(), &server);
    let transport = SmtpTransport::over(network).with_root_certificates(own.pem()).unwrap();
    let connect = async |target: Target| transport.connect(&target).await;
    for level in LEVELS {
        // Those leave tickets behind.
        for _ in 0..2 {
            connect(demanding(own.tlsa(3, 1, 1), level)).await.unwrap().quit().await;
        }
        let plain = Target { tls: TlsWish { level, implicit: false }, ..target() };
        connect(plain).await.unwrap().quit().await;
        let error = connect(demanding(certificate().tlsa(3, 1, 1), level)).await.unwrap_err();
        let text = "TLS failed: the certificate matches none of the host's TLSA records";
        assert!(matches!(error.cause, EndCause::Certificate(CertificateProblem::TlsaMismatch, _)));
        assert_eq!(error.to_string(), text, "{level:?}");
        let session = connect(demanding(own.tlsa(3, 1, 1), level)).await.unwrap();
        assert!(session.certificate().unwrap().is_valid_for(HOST), "it is for other hosts to ask");
    }
    // That of the second session that takes any certificate, and was not held to a record.
    assert_eq!(server.tls_resumptions(), 1);
}

/// Roots vouch for the host that mail is for, and not for where its name leads.
#[tokio::test(start_paused = true)]
async fn unusable_records_leave_the_name_to_the_host() {
    for (name, is_valid) in [(HOST, true), (BASE, false)] {
        let own = TestCertificate::new([name]).unwrap();
        let network = MemoryNetwork::new();
        network.listen(peer(), &SmtpServer::new().starttls(&own));
        let transport = SmtpTransport::over(network).with_root_certificates(own.pem()).unwrap();
        let target = Target { host: HOST.into(), ..demanding(own.tlsa(1, 1, 1), StartTls::Verify) };
        match transport.connect(&target).await {
            Ok(_) => assert!(is_valid, "{name}"),
            Err(ConnectError { cause: EndCause::Certificate(CertificateProblem::OtherHost, _), .. }) => {
                assert!(!is_valid, "{name}");
            }
            Err(error) => panic!("{name}: {error:?}"),
        }
    }
}

/// Without a usable record any certificate will do, unless it is to be verified in any case.
#[tokio::test(start_paused = true)]
async fn unusable_records_leave_certificates_to_the_wish() {
    let own = TestCertificate::new([BASE]).unwrap();
    let network = MemoryNetwork::new();
    network.listen(peer(), &SmtpServer::new().starttls(&own));
    let transport = SmtpTransport::over(network).with_root_certificates(certificate().pem()).unwrap();
    for level in LEVELS {
        let session = transport.connect(&demanding(own.tlsa(0, 1, 1), level)).await;
        match level {
            StartTls::Verify => {
                let cause = session.unwrap_err().cause;
                assert!(
                    matches!(cause, EndCause::Certificate(CertificateProblem::NotTrusted, _)),
                    "{cause:?}"
                );
            }
            _ => assert!(session.unwrap().tls().is_some()),
        }
    }
}

/// Shows a certificate, and remembers whom it was asked for.
#[derive(Debug)]
struct Shows {
    key: Arc<CertifiedKey>,
    asked: Mutex<Vec<Option<String>>>,
}

impl ResolvesServerCert for Shows {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.asked.lock().unwrap().push(hello.server_name().map(str::to_owned));
        Some(self.key.clone())
    }
}

/// The name in SNI is the base domain (RFC 7672 §8.1), and who shows a certificate has its key.
#[tokio::test(start_paused = true)]
async fn the_server_is_asked_for_the_base_domain_and_has_the_key() {
    let provider = Arc::new(ring::default_provider());
    let made = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let (own, other) = (made(HOST), made(HOST));
    let key = |of: &rcgen::CertifiedKey<rcgen::KeyPair>| {
        let der = rustls::pki_types::PrivateKeyDer::Pkcs8(of.signing_key.serialize_der().into());
        provider.key_provider.load_private_key(der).unwrap()
    };
    let digest = ::ring::digest::digest(&::ring::digest::SHA256, own.cert.der());
    let record = TlsaRecord::new(3, 0, 1, digest.as_ref());
    for (version, has_key) in [
        (&rustls::version::TLS12, true),
        (&rustls::version::TLS13, true),
        (&rustls::version::TLS12, false),
        (&rustls::version::TLS13, false),
    ] {
        let key = key(if has_key { &own } else { &other });
        let key = Arc::new(CertifiedKey::new(vec![own.cert.der().clone()], key));
        let shows = Arc::new(Shows { key, asked: Mutex::default() });
        let config = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(shows.clone());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let network = MemoryNetwork::new();
        network.script(peer(), move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(tls) = acceptor.accept(stream).await else { return };
                let mut tls = BufReader::new(tls);
                tls.write_all(b"220 mx.example\r\n").await.unwrap();
                tls.flush().await.unwrap();
                tls.read_line(&mut String::new()).await.unwrap();
                tls.write_all(b"250 mx.example\r\n").await.unwrap();
                tls.flush().await.unwrap();
                tls.read_line(&mut String::new()).await.unwrap();
            }
        });
        let target = demanding(record.clone(), StartTls::Opportunistic);
        let target = Target { tls: TlsWish { implicit: true, ..target.tls }, ..target };
        let session = SmtpTransport::over(network).connect(&target).await;
        assert_eq!(session.is_ok(), has_key, "{version:?}");
        assert_eq!(*shows.asked.lock().unwrap(), [Some(BASE.to_owned())]);
    }
}
