//! STARTTLS with OpenSSL at the other side, through Python.

use std::io::{BufRead, BufReader, Lines};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};

use postrider::message::{Address, MessageId};
use postrider::policy::StartTls;
use postrider::testing::TestCertificate;
use postrider::transport::smtp::SmtpTransport;
use postrider::transport::{CertificateProblem, EndCause, Target, Timeouts, TlsWish, Transaction, Transport};

use crate::site::skip;

struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
}

impl Server {
    /// `None`, and a visible line, where Python is missing and nobody requires it.
    fn start(certificate: &TestCertificate) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let [chain, key] = ["chain.pem", "key.pem"].map(|name| folder.path().join(name));
        std::fs::write(&chain, certificate.pem()).unwrap();
        std::fs::write(&key, certificate.key_pem()).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/starttls.py");
        let child = Command::new("python3").arg(script).args([chain, key]).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = child else {
            skip("python3");
            return None;
        };
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // It has read its certificate when it says where it listens.
        let port: u16 = lines.next().expect("a port").unwrap().parse().unwrap();
        Some(Self { child, lines, address: ([127, 0, 0, 1], port).into() })
    }

    fn target(&self, host: &str, level: StartTls) -> Target {
        Target {
            peer: self.address,
            host: host.into(),
            local: None,
            ehlo: "out.example.org".into(),
            domain: None,
            queue: "example.net".into(),
            source: "default".into(),
            protocol: postrider::transport::Protocol::Smtp,
            tls: TlsWish { level, implicit: false },
            credentials: None,
            timeouts: Timeouts::default().into(),
            mta_sts: None,
            tlsa: None,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn starttls_with_openssl() {
    const HOST: &str = "mx.example.net";
    let certificate = TestCertificate::new([HOST]).unwrap();
    let Some(mut server) = Server::start(&certificate) else { return };
    let transport = SmtpTransport::new().with_root_certificates(certificate.pem()).unwrap();
    let body = "Subject: x\r\n\r\n".to_owned() + &"0123456789\r\n".repeat(100_000);
    let transaction = Transaction {
        message: MessageId::from_uuid(uuid::Uuid::nil()),
        queue: "example.net".into(),
        host: HOST.into(),
        reverse_path: Some(Address::parse("a@example.org").unwrap()),
        recipients: vec![Address::parse("b@example.net").unwrap()],
        body: body.clone().into(),
        eight_bit: false,
        chunking: false,
        require_tls: false,
        smtputf8: false,
        host_is_authentic: false,
        dsn: None,
    };
    for (level, resumed) in [
        (StartTls::Off, false),
        (StartTls::Opportunistic, false),
        (StartTls::Required, true),
        (StartTls::Verify, false),
        (StartTls::Verify, true),
    ] {
        let mut session = transport.connect(&server.target(HOST, level)).await.unwrap();
        let tls = session.tls();
        let report = session.transact(&transaction).await;
        assert_eq!((report.dot.map(|dot| dot.code()), report.end), (Some(250), None), "{level:?}");
        session.quit().await;
        let said = server.lines.next().unwrap().unwrap();
        let resumed = if resumed { "True" } else { "False" };
        let expected = match tls {
            Some(tls) => format!("{tls} {resumed} {}", body.len()),
            None => format!("plain - False {}", body.len()),
        };
        assert_eq!(said, expected, "{level:?}");
        assert_eq!(said.starts_with("TLSv1.3 TLS_"), level != StartTls::Off, "{said}");
    }
    let error = transport.connect(&server.target("mx2.example.net", StartTls::Verify)).await.unwrap_err();
    assert!(matches!(&error.cause, EndCause::Certificate(CertificateProblem::OtherHost, _)), "{error:?}");
}
