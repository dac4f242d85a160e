//! What open sessions take of memory: a test of its own, for it is alone in its process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "what was measured; and the server says where it is")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use postrider::message::{Address, MessageId};
use postrider::policy::StartTls;
use postrider::testing::{SmtpServer, TestCertificate};
use postrider::transport::smtp::SmtpTransport;
use postrider::transport::{Protocol, Session, Target, Timeouts, TlsWish, Transaction, Transport};
use tokio::net::TcpListener;

const SESSIONS: usize = 1_000;
const HOST: &str = "mx.example.net";

/// What this process takes now, in octets.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

fn transaction() -> Transaction {
    Transaction {
        message: MessageId::from_uuid(uuid::Uuid::nil()),
        queue: "example.net".into(),
        host: HOST.into(),
        reverse_path: Some(Address::parse("a@example.org").unwrap()),
        recipients: vec![Address::parse("b@example.net").unwrap()],
        body: "Subject: x\r\n\r\n0123456789\r\n".repeat(1_000).into(),
        eight_bit: false,
        chunking: false,
        require_tls: false,
        smtputf8: false,
        host_is_authentic: false,
        dsn: None,
    }
}

/// The server is this program again: what it takes is its own.
const SERVES: &str = "POSTRIDER_SESSIONS_SERVE";

async fn serve() -> ! {
    let certificate = TestCertificate::new([HOST]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("\n{}\n{}END", listener.local_addr().unwrap(), certificate.pem());
    SmtpServer::new().starttls(&certificate).keep(0).serve(listener).await.unwrap();
    unreachable!("a listener has no end");
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server, its address and its certificate.
fn start() -> (Server, SocketAddr, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let child = command.arg("--nocapture").env(SERVES, "").stdout(Stdio::piped()).spawn().unwrap();
    let mut server = Server(child);
    let lines = BufReader::new(server.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut lines = lines.skip_while(|line| line.parse::<SocketAddr>().is_err());
    let address = lines.next().unwrap().parse().unwrap();
    let pem: Vec<String> = lines.take_while(|line| line != "END").collect();
    (server, address, pem.join("\n"))
}

/// Each has TLS and has carried a message.
#[tokio::test]
async fn a_thousand_idle_sessions_take_less_than_50_mb() {
    if std::env::var_os(SERVES).is_some() {
        serve().await;
    }
    let (_server, peer, pem) = start();
    let transport = SmtpTransport::new().with_root_certificates(pem).unwrap();
    let level = StartTls::Verify;
    let target = Target {
        peer,
        host: HOST.into(),
        local: None,
        ehlo: "out.example.org".into(),
        domain: None,
        queue: "example.net".into(),
        source: "default".into(),
        protocol: Protocol::Smtp,
        tls: TlsWish { level, implicit: false },
        credentials: None,
        timeouts: Arc::new(Timeouts::default()),
        mta_sts: None,
        tlsa: None,
    };
    let transaction = transaction();
    let open = async || {
        let mut session = transport.connect(&target).await.unwrap();
        assert_eq!(session.transact(&transaction).await.dot.unwrap().code(), 250);
        session
    };
    let first: Box<dyn Session> = open().await;
    let before = memory();
    let mut sessions = Vec::with_capacity(SESSIONS);
    for _ in 0..SESSIONS {
        sessions.push(open().await);
    }
    let taken = memory().saturating_sub(before);
    println!("{} octets a session", taken / SESSIONS);
    assert!(taken < 50_000_000, "{taken} octets");
    drop((first, sessions));
}
