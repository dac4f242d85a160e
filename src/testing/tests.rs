#![allow(clippy::unwrap_used, reason = "the helpers of tests")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;

use super::*;
use crate::message::Address;
use crate::reply::Reply;
use crate::transport::smtp::SmtpTransport;
use crate::transport::{EndCause, Target, Transaction, Transport};

fn target(peer: &str) -> Target {
    Target {
        peer: peer.parse().unwrap(),
        host: "mx.example".into(),
        local: None,
        ehlo: "out.example".into(),
        domain: None,
        queue: "y.example".into(),
        source: "default".into(),
        protocol: crate::transport::Protocol::Smtp,
        tls: crate::transport::TlsWish::default(),
        credentials: None,
        timeouts: Arc::default(),
        mta_sts: None,
        tlsa: None,
    }
}

fn transaction(to: &[&str]) -> Transaction {
    Transaction {
        message: crate::message::MessageId::from_uuid(uuid::Uuid::nil()),
        queue: "y.example".into(),
        host: "mx.example".into(),
        reverse_path: Some(Address::parse("a@x.example").unwrap()),
        recipients: to.iter().map(|to| Address::parse(to).unwrap()).collect(),
        body: Bytes::from_static(b"Subject: x\r\n\r\n.hi\r\n"),
        eight_bit: false,
        chunking: false,
        require_tls: false,
        smtputf8: false,
        host_is_authentic: false,
        dsn: None,
    }
}

#[tokio::test(start_paused = true)]
async fn instructions_count_as_often_as_they_say() {
    let server = SmtpServer::new()
        .reply_to_rcpt("bob@example.net", "450 4.2.0 busy")
        .times(2)
        .reply(Command::Mail, "452 4.3.1 full")
        .on_connection(2)
        .after(1);
    let network = MemoryNetwork::new();
    let peer = target("192.0.2.1:25");
    network.listen(peer.peer, &server);
    let transport = SmtpTransport::over(network.clone());

    let mut codes = Vec::new();
    for _ in 0..2 {
        let mut session = transport.connect(&peer).await.unwrap();
        for _ in 0..2 {
            let report = session.transact(&transaction(&["bob@example.net"])).await;
            codes.push((report.mail.unwrap().code(), report.dot.map(|reply| reply.code())));
        }
        session.quit().await;
    }
    assert_eq!(codes, [(250, None), (250, None), (250, Some(250)), (452, None)]);
    assert_eq!((server.connections(), server.peak_connections(), server.transactions()), (2, 1, 3));
    let messages = server.messages();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].content, "Subject: x\r\n\r\n.hi\r\n");
    assert_eq!(messages[0].recipients, ["bob@example.net"]);
    assert_eq!((messages[0].ehlo.as_str(), messages[0].connection), ("out.example", 2));
    assert_eq!((network.attempts(peer.peer), network.open_connections(peer.peer)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn hooks_see_the_exchange() {
    let server = SmtpServer::new().on(|exchange| {
        (exchange.command == Command::Rcpt && exchange.recipients.len() == 2)
            .then(|| "452 4.5.3 too many".into())
    });
    let network = MemoryNetwork::new();
    network.listen(target("192.0.2.1:25").peer, &server);
    let mut session = SmtpTransport::over(network).connect(&target("192.0.2.1:25")).await.unwrap();
    let report = session.transact(&transaction(&["a@y.example", "b@y.example", "c@y.example"])).await;
    assert_eq!(report.dot.unwrap().code(), 250);
    assert_eq!(server.messages()[0].recipients, ["a@y.example", "b@y.example"]);
    assert_eq!(server.delivery_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_a_message_all_the_same() {
    let server = SmtpServer::new().reply(Command::Dot, Behaviour::LoseReply);
    let network = MemoryNetwork::new();
    network.listen(target("192.0.2.1:25").peer, &server);
    let mut session = SmtpTransport::over(network).connect(&target("192.0.2.1:25")).await.unwrap();
    let report = session.transact(&transaction(&["a@y.example"])).await;
    assert_eq!((report.dot_sent, report.dot, report.end.unwrap().cause), (true, None, EndCause::Closed));
    assert_eq!(server.message_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn addresses_refuse_vanish_and_fail_locally() {
    let network = MemoryNetwork::new();
    let transport = SmtpTransport::over(network.clone());
    let peer = target("192.0.2.1:25");
    let cause = transport.connect(&peer).await.unwrap_err().cause;
    assert_eq!(cause, EndCause::Broken("connection refused".into()));
    network.blackhole(peer.peer);
    let cause = transport.connect(&peer).await.unwrap_err().cause;
    assert_eq!(cause, EndCause::Timeout(Duration::from_secs(60)));
    network.local_trouble(None, "too many open files");
    let cause = transport.connect(&peer).await.unwrap_err().cause;
    assert_eq!(cause, EndCause::Local("too many open files".into()));
    network.local_trouble_over().listen(peer.peer, &SmtpServer::new());
    assert!(transport.connect(&peer).await.is_ok());
}

#[tokio::test]
async fn serves_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = target(&listener.local_addr().unwrap().to_string());
    let server = SmtpServer::new();
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve(listener).await }
    });
    let mut session = SmtpTransport::new().connect(&peer).await.unwrap();
    for _ in 0..3 {
        let report = session.transact(&transaction(&["a@y.example"])).await;
        assert_eq!(report.dot.unwrap().code(), 250);
    }
    session.quit().await;
    assert_eq!(server.message_count(), 3);
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn scripted_transports_count() {
    let refusal = Reply::parse("550 5.1.1 no").unwrap();
    let transport = ScriptedTransport::new()
        .with_times(Duration::from_secs(1), Duration::from_secs(2))
        .with_idle_time(Duration::from_secs(30))
        .on_transaction(move |target, transaction| match target.peer.port() {
            25 => ScriptedTransport::accepted(transaction),
            _ => ScriptedTransport::refused_recipients(transaction, &refusal),
        });
    let (good, bad) = (target("192.0.2.1:25"), target("192.0.2.1:26"));
    let mut one = transport.connect(&good).await.unwrap();
    let mut two = transport.connect(&bad).await.unwrap();
    assert!(one.transact(&transaction(&["a@y.example", "b@y.example"])).await.dot.is_some());
    assert!(two.transact(&transaction(&["a@y.example"])).await.dot.is_none());
    assert_eq!((transport.transactions(), transport.delivered(), transport.peak_sessions()), (2, 2, 2));
    assert!(matches!(one.closed().await.cause, EndCause::Reply(reply) if reply.code() == 421));
    assert!(one.transact(&transaction(&["a@y.example"])).await.end.is_some());
    drop((one, two));
    assert_eq!((transport.open_sessions(), transport.peak_sessions_at(good.peer)), (0, 1));
}

/// What the server says to all of this at once, the codes and the messages it took.
async fn talk(server: &SmtpServer, octets: &[u8]) -> (Vec<String>, Vec<Bytes>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut client, stream) = tokio::io::duplex(1 << 16);
    client.write_all(octets).await.unwrap();
    client.shutdown().await.unwrap();
    server.talk(stream, "192.0.2.1:25".parse().unwrap(), None).await;
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    let codes = said.lines().filter(|line| line.as_bytes().get(3) == Some(&b' '));
    let messages = server.messages().into_iter().map(|message| message.content).collect();
    (codes.map(|line| line.split(' ').next().unwrap().to_owned()).collect(), messages)
}

#[tokio::test(start_paused = true)]
async fn chunks_are_counted_to_the_octet() {
    let chunking = || SmtpServer::new().ehlo(["CHUNKING"]);
    let begun = "EHLO c\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n";
    for (server, said, codes, messages) in [
        (chunking(), "BDAT 3\r\na\r\nBDAT 5 LAST\r\n.\r\nx\rQUIT\r\n", "250 250 221", &["a\r\n.\r\nx\r"][..]),
        (chunking(), "bdat 0 last\r\nQUIT\r\n", "250 221", &[""]),
        // One octet too few, and one too many.
        (chunking(), "BDAT 2 LAST\r\nx\r\nQUIT\r\n", "250 500", &["x\r"]),
        (chunking(), "BDAT 4 LAST\r\nx\r\nQUIT\r\n", "250 500", &["x\r\nQ"]),
        (chunking(), "BDAT 3\r\na\r\nDATA\r\nQUIT\r\n", "250 503 221", &[]),
        (chunking(), "BDAT x LAST\r\nBDAT\r\nBDAT 1 FIRST\r\nQUIT\r\n", "501 501 501 221", &[]),
        // For nobody: the chunk is read, and then nothing will do but RSET or QUIT.
        (
            chunking(),
            "RSET\r\nBDAT 6 LAST\r\nQUIT\r\nMAIL FROM:<a@x.example>\r\nNOOP\r\nBDAT 6\r\nRSET\r\nRSET\r\nNOOP\r\nQUIT\r\n",
            "250 503 503 503 503 250 250 221",
            &[],
        ),
        // A server that does not know BDAT reads the chunk as commands; so does one that offers it, and is told to.
        (SmtpServer::new(), "BDAT 6 LAST\r\nNOOP\r\nQUIT\r\n", "500 250 221", &[]),
        (
            chunking().reply(Command::Bdat, "502 5.5.1 no"),
            "BDAT 6 LAST\r\nNOOP\r\nQUIT\r\n",
            "502 250 221",
            &[],
        ),
        (
            chunking().reply(Command::Dot, "550 5.7.1 no"),
            "BDAT 6 LAST\r\nNOOP\r\nMAIL FROM:<a@x.example>\r\nRSET\r\nMAIL FROM:<a@x.example>\r\nQUIT\r\n",
            "550 503 250 250 221",
            &[],
        ),
    ] {
        let (got, taken) = talk(&server, [begun, said].concat().as_bytes()).await;
        assert_eq!((got[4..].join(" ").as_str(), taken.len()), (codes, messages.len()), "{said:?}");
        assert!(taken.iter().zip(messages).all(|(taken, message)| taken == message), "{said:?}: {taken:?}");
    }
}
