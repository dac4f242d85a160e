//! STARTTLS, implicit TLS, and what becomes of them when something goes wrong.

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::testing::{Behaviour, Command, TestCertificate};
use crate::transport::smtp::memory::{Hosts, Memory};
use crate::transport::{TlsWish, Unsendable};

const HOST: &str = "mx.example";
const ALL_IN_TLS: (Option<u16>, Option<u16>) = (Some(250), Some(250));

fn wishing(level: StartTls) -> Target {
    Target { tls: TlsWish { level, implicit: false }, ..target() }
}

fn certificate() -> TestCertificate {
    TestCertificate::new([HOST]).unwrap()
}

fn offering() -> SmtpServer {
    SmtpServer::new().starttls(&certificate())
}

/// A network with this server, and a transport over it.
fn network(server: &SmtpServer) -> (MemoryNetwork, SmtpTransport) {
    let network = MemoryNetwork::new();
    network.listen(peer(), server);
    (network.clone(), SmtpTransport::over(network))
}

async fn send(session: &mut Box<dyn Session>, message: &Transaction) -> (Option<u16>, Option<u16>) {
    let report = session.transact(message).await;
    assert_eq!(report.end, None);
    let (mail, _, _, dot) = codes(&report);
    (mail, dot)
}

#[tokio::test(start_paused = true)]
async fn what_is_offered_is_taken() {
    for level in [StartTls::Opportunistic, StartTls::Required] {
        let server = offering();
        let (network, transport) = network(&server);
        let mut session = transport.connect(&wishing(level)).await.unwrap();
        let tls = Some("TLSv1.3 TLS_AES_256_GCM_SHA384".to_owned());
        assert_eq!(session.tls(), tls);
        assert_eq!(send(&mut session, &simple()).await, ALL_IN_TLS);
        session.quit().await;
        assert_eq!(server.messages()[0].tls, tls);
        assert_eq!(verbs(&server), "EHLO STARTTLS EHLO MAIL RCPT DATA . QUIT");
        assert_eq!((network.attempts(peer()), network.open_connections(peer())), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn off_takes_no_offer() {
    let server = offering();
    let session = network(&server).1.connect(&wishing(StartTls::Off)).await.unwrap();
    assert_eq!((session.tls(), verbs(&server).as_str()), (None, "EHLO"));
}

#[tokio::test(start_paused = true)]
async fn without_an_offer() {
    let server = SmtpServer::new();
    let (network, transport) = network(&server);
    let session = transport.connect(&wishing(StartTls::Opportunistic)).await.unwrap();
    assert_eq!(session.tls(), None);
    for level in [StartTls::Required, StartTls::Verify] {
        let error = transport.connect(&wishing(level)).await.unwrap_err();
        assert_eq!(error, ConnectError { stage: Stage::Ehlo, cause: EndCause::TlsNotOffered });
    }
    tokio::task::yield_now().await;
    assert_eq!(verbs(&server), "EHLO EHLO QUIT EHLO QUIT");
    assert_eq!(network.peak_connections(peer()), 2, "the first session and one after the other");
}

/// Long messages both ways through narrow pipes: neither side waits for the other for ever.
#[tokio::test(start_paused = true)]
async fn large_content_goes_through_a_narrow_pipe() {
    let server = offering();
    let (network, transport) = network(&server);
    network.pipe_capacity(100);
    let mut session = transport.connect(&wishing(StartTls::Required)).await.unwrap();
    let line = "x".repeat(70) + "\r\n.y\r\n";
    let body = line.repeat(20_000);
    let to: Vec<String> = (0..100).map(|n| format!("u{n}@y.example")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    assert_eq!(send(&mut session, &transaction(&to, body.clone())).await, ALL_IN_TLS);
    let message = &server.messages()[0];
    assert!(message.content == body && message.recipients.len() == 100);
}

/// How STARTTLS, or the handshake, fails.
fn failures() -> Vec<(&'static str, Behaviour)> {
    let garbage = |octets: &str| Behaviour::Raw(Bytes::from(octets.to_owned()));
    vec![
        ("454", "454 4.7.0 TLS not available".into()),
        ("554", "554 5.7.0 no".into()),
        ("450", garbage(&(format!("450-{}\r\n", "x".repeat(999)).repeat(99) + "450 at last\r\n"))),
        ("502", "502 5.5.1 unknown".into()),
        ("a code out of place", "354 go ahead".into()),
        ("250", Behaviour::ReplyAndClose("250 ok".into())),
        ("no reply", garbage("what?\r\n")),
        ("closed", Behaviour::Close),
        ("reset", Behaviour::Reset),
        ("silence", Behaviour::Silence),
        ("closed after the 220", Behaviour::ReplyAndClose("220 go".into())),
    ]
}

/// How the handshake fails after a 220 said in raw octets.
#[derive(Clone, Copy, Debug)]
enum Handshake {
    Garbage,
    Close,
    Silence,
    /// TLS, in a version of 1996.
    Old,
    /// TLS 1.3 says after the handshake that it wants a certificate of the client.
    WantsCertificate,
}

async fn serve(stream: DuplexStream, how: Handshake) {
    let mut lines = Lines(BufReader::new(stream));
    lines.open("250-mx.example\r\n250 STARTTLS\r\n").await;
    if lines.hear().await != "STARTTLS" {
        return;
    }
    lines.say("220 go\r\n").await;
    if let Handshake::WantsCertificate = how {
        let _ = TlsAcceptor::from(wants_certificate()).accept(lines.0.into_inner()).await;
        return;
    }
    let mut hello = [0; 32];
    let _ = tokio::io::AsyncReadExt::read_exact(&mut lines.0, &mut hello).await;
    match how {
        Handshake::Garbage => lines.say("HTTP/1.1 400 Bad Request\r\n\r\n").await,
        // A fatal alert: protocol_version.
        Handshake::Old => lines.say([21, 3, 0, 0, 2, 2, 70]).await,
        Handshake::Silence => lines.silence().await,
        Handshake::Close | Handshake::WantsCertificate => {}
    }
}

fn wants_certificate() -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let (key, chain) = key_and_certificate();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain[0].clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.unwrap())
        .with_single_cert(chain, key);
    Arc::new(config.unwrap())
}

fn key_and_certificate()
-> (rustls::pki_types::PrivateKeyDer<'static>, Vec<rustls::pki_types::CertificateDer<'static>>) {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
    (
        rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into()),
        vec![made.cert.der().clone()],
    )
}

/// One connection after the other, the second in plain; the third goes in plain at once, for an hour.
#[tokio::test(start_paused = true)]
async fn opportunistic_tls_that_fails_goes_on_in_plain_and_is_remembered() {
    for (name, behaviour) in failures() {
        let server = offering().reply(Command::StartTls, behaviour);
        let (network, transport) = network(&server);
        let target = wishing(StartTls::Opportunistic);
        let mut session = transport.connect(&target).await.unwrap();
        assert_eq!(session.tls(), None, "{name}");
        assert_eq!(send(&mut session, &simple()).await, ALL_IN_TLS, "{name}");
        drop(session);
        assert_eq!((network.attempts(peer()), network.peak_connections(peer())), (2, 1), "{name}");
        server.clear();

        tokio::time::advance(Memory::IN_PLAIN_FOR - Duration::from_secs(1)).await;
        let again = transport.clone().connect(&target).await.unwrap();
        assert_eq!((again.tls(), network.attempts(peer())), (None, 3), "{name}: remembered, also by clones");
        drop(again);
        // Only for this name at this address, and not where TLS is required.
        let other = Target { host: "mx2.example".into(), ..target.clone() };
        assert!(transport.connect(&other).await.unwrap().tls().is_some(), "{name}");
        assert!(transport.connect(&wishing(StartTls::Required)).await.unwrap().tls().is_some(), "{name}");

        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(transport.connect(&target).await.unwrap().tls().is_some(), "{name}: an hour has passed");
    }
}

/// It wants TLS, and TLS fails: that is nothing the mail could bounce for, and TLS is tried with it again.
#[tokio::test(start_paused = true)]
async fn a_530_in_plain_after_tls_failed_is_the_sessions_end() {
    let server = offering()
        .reply(Command::StartTls, Behaviour::Close)
        .on(|exchange| (exchange.command == Command::Mail).then(|| "530 5.7.0 STARTTLS first".into()));
    let (network, transport) = network(&server);
    let target = wishing(StartTls::Opportunistic);
    for attempts in [2, 4] {
        let mut session = transport.connect(&target).await.unwrap();
        assert_eq!((session.tls(), network.attempts(peer())), (None, attempts), "TLS is tried first");
        let report = session.transact(&simple()).await;
        let Some(SessionEnd { stage: Stage::Mail, cause: EndCause::Tls(words) }) = report.end else {
            panic!()
        };
        assert!(words.contains("STARTTLS first"), "{words}");
        assert_eq!((report.mail, &report.recipients[..]), (None, &[RecipientReport::None][..]));
    }
    // Where TLS is not wished for it is a refusal as any other.
    let mut session = transport.connect(&wishing(StartTls::Off)).await.unwrap();
    assert_eq!(session.transact(&simple()).await.mail.map(|reply| reply.code()), Some(530));
}

#[tokio::test(start_paused = true)]
async fn required_tls_that_fails_is_no_session() {
    for (name, behaviour) in failures() {
        for level in [StartTls::Required, StartTls::Verify] {
            let server = offering().reply(Command::StartTls, behaviour.clone());
            let (network, transport) = network(&server);
            let error = transport.connect(&wishing(level)).await.unwrap_err();
            assert_eq!((error.stage, network.attempts(peer())), (Stage::Ehlo, 1), "{name}");
            let expected = match &error.cause {
                EndCause::TlsRefused(reply) => name == reply.code().to_string(),
                EndCause::Reply(reply) => name == "421" && reply.code() == 421,
                EndCause::Protocol(_) => ["a code out of place", "250", "no reply"].contains(&name),
                EndCause::Closed => name.starts_with("closed"),
                EndCause::Broken(_) => name == "reset",
                EndCause::Timeout(limit) => name == "silence" && limit.as_secs() == 60,
                EndCause::Tls(_) => name == "closed after the 220",
                _ => false,
            };
            assert!(expected, "{name}: {error:?}");
            assert_eq!((server.message_count(), network.open_connections(peer())), (0, 0), "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn handshakes_that_fail() {
    for (how, words) in [
        (Handshake::Garbage, "corrupt"),
        (Handshake::Close, "closed the connection in the handshake"),
        (Handshake::Silence, "no handshake within 60 s"),
        (Handshake::Old, "ProtocolVersion"),
        (Handshake::WantsCertificate, "ertificate"),
    ] {
        let network = MemoryNetwork::new();
        let transport = SmtpTransport::over(network.clone());
        network.script(peer(), move |stream| serve(stream, how));
        let clock = clock();
        let error = transport.connect(&wishing(StartTls::Required)).await.unwrap_err();
        assert_eq!(error.stage, Stage::Ehlo, "{how:?}");
        assert!(error.to_string().contains(words), "{how:?}: {error}");
        let took = clock.now().saturating_since(Timestamp::EPOCH);
        let limit = if let Handshake::Silence = how { 60 } else { 0 };
        assert_eq!(took.as_secs(), limit, "{how:?}");

        // In plain this server has no more to say than EHLO's reply.
        let session = transport.connect(&wishing(StartTls::Opportunistic)).await.unwrap();
        assert_eq!((session.tls(), network.peak_connections(peer())), (None, 1), "{how:?}");
        drop(session);
        let before = network.attempts(peer());
        drop(transport.connect(&wishing(StartTls::Opportunistic)).await.unwrap());
        assert_eq!(network.attempts(peer()), before + 1, "{how:?}: remembered");
    }
}

/// What is behind the 220 was put there by somebody in between: no reply to anything, and no reason to send in plain.
#[tokio::test(start_paused = true)]
async fn starttls_response_injection_by_octets_behind_the_220() {
    for behind in ["250 mx.example\r\n", "2", "\r\n", "421 bye\r\n", "\x16\x03\x03", "x\r\n", "220-"] {
        for apart in [false, true] {
            for level in [StartTls::Opportunistic, StartTls::Required] {
                let network = MemoryNetwork::new();
                network.script(peer(), move |stream| async move {
                    let mut lines = Lines(BufReader::new(stream));
                    lines.open("250-mx.example\r\n250 STARTTLS\r\n").await;
                    assert_eq!(lines.hear().await, "STARTTLS");
                    lines
                        .say(if apart { "220 go\r\n".to_owned() } else { format!("220 go\r\n{behind}") })
                        .await;
                    if apart {
                        lines.say(behind).await;
                    }
                    lines.silence().await;
                });
                let error = SmtpTransport::over(network.clone()).connect(&wishing(level)).await.unwrap_err();
                let cause = EndCause::Protocol("octets behind the 220 to STARTTLS".into());
                assert_eq!(error, ConnectError { stage: Stage::Ehlo, cause }, "{behind:?}");
                assert_eq!(network.attempts(peer()), 1, "{behind:?}");
            }
        }
    }
}

/// It has no time for us: that is not about TLS.
#[tokio::test(start_paused = true)]
async fn a_421_to_starttls_ends_the_attempt() {
    let server = offering().reply(Command::StartTls, "421 4.3.2 shutting down");
    let (network, transport) = network(&server);
    let error = transport.connect(&wishing(StartTls::Opportunistic)).await.unwrap_err();
    assert!(matches!(&error.cause, EndCause::Reply(reply) if reply.code() == 421), "{error:?}");
    assert_eq!((error.stage, network.attempts(peer())), (Stage::Ehlo, 1));
}

/// A host that is down in both ways has not shown that TLS is its trouble.
#[tokio::test(start_paused = true)]
async fn a_host_that_fails_in_plain_too_is_not_remembered() {
    let server = offering()
        .reply(Command::StartTls, Behaviour::Close)
        .times(1)
        .reply(Command::Connect, "421 4.3.2 too busy")
        .on_connection(2);
    let (network, transport) = network(&server);
    let target = wishing(StartTls::Opportunistic);
    let error = transport.connect(&target).await.unwrap_err();
    assert_eq!((error.stage, network.attempts(peer())), (Stage::Connect, 2));
    assert!(transport.connect(&target).await.unwrap().tls().is_some());
}

#[tokio::test(start_paused = true)]
async fn refusals_after_the_handshake_are_the_servers_own() {
    let server = offering().reply(Command::Ehlo, "450 4.7.1 later").after(1);
    let (network, transport) = network(&server);
    let error = transport.connect(&wishing(StartTls::Opportunistic)).await.unwrap_err();
    assert!(matches!(&error.cause, EndCause::Reply(reply) if reply.code() == 450), "{error:?}");
    assert_eq!((error.stage, network.attempts(peer())), (Stage::Ehlo, 1));
}

#[tokio::test(start_paused = true)]
async fn only_what_is_offered_in_tls_counts() {
    let eight_bit = transaction(&["b@y.example"], "Subject: é\r\n\r\n");
    for (in_plain, in_tls, sent) in [(true, false, false), (false, true, true)] {
        let keywords = |offered: bool| if offered { ["8BITMIME"].as_slice() } else { &[] }.iter().copied();
        let server = offering().ehlo(keywords(in_plain)).ehlo_in_tls(keywords(in_tls));
        let mut session = network(&server).1.connect(&wishing(StartTls::Required)).await.unwrap();
        let report = session.transact(&eight_bit).await;
        assert_eq!(report.dot.is_some(), sent);
        assert_eq!(matches!(report.recipients[0], RecipientReport::Unsendable(_)), !sent);
    }
}

#[tokio::test(start_paused = true)]
async fn certificates_are_verified_for_the_name() {
    let good = certificate();
    let literal = "[192.0.2.1]";
    for (name, host, certificate, root, words) in [
        ("good", HOST, good.clone(), Some(&good), ""),
        ("unknown root", HOST, certificate(), Some(&good), "invalid peer certificate"),
        ("wrong name", "mx2.example", good.clone(), Some(&good), "not valid for name"),
        ("expired", HOST, TestCertificate::expired([HOST]).unwrap(), None, "expired"),
        ("an address", literal, TestCertificate::new(["192.0.2.1"]).unwrap(), None, ""),
        ("of IPv6", "[IPv6:2001:db8::1]", TestCertificate::new(["2001:db8::1"]).unwrap(), None, ""),
        (
            "another address",
            "[192.0.2.9]",
            TestCertificate::new(["192.0.2.1"]).unwrap(),
            None,
            "not valid for name",
        ),
        ("no such name", "a..b", good.clone(), Some(&good), "no certificate can be for"),
    ] {
        let server = SmtpServer::new().starttls(&certificate);
        let (network, transport) = network(&server);
        let roots = root.unwrap_or(&certificate).pem();
        let transport = transport.with_root_certificates(roots).unwrap();
        let target = Target { host: host.into(), ..wishing(StartTls::Verify) };
        let result = transport.connect(&target).await;
        match result {
            Ok(session) => assert!(words.is_empty() && session.tls().is_some(), "{name}"),
            Err(ConnectError {
                stage: Stage::Ehlo,
                cause: EndCause::Tls(text) | EndCause::Certificate(_, text),
            }) => {
                assert!(!words.is_empty() && text.contains(words), "{name}: {text}");
            }
            Err(error) => panic!("{name}: {error:?}"),
        }
        assert_eq!(network.attempts(peer()), 1, "{name}: never in plain");
        // Who does not verify takes it.
        let target = Target { host: host.into(), ..wishing(StartTls::Required) };
        assert!(transport.connect(&target).await.unwrap().tls().is_some(), "{name}");
        // And a session that was not verified is not resumed as one that is.
        let target = Target { host: host.into(), ..wishing(StartTls::Verify) };
        assert_eq!(transport.connect(&target).await.is_ok(), words.is_empty(), "{name}");
    }
}

#[test]
fn roots_that_are_none_are_refused() {
    let transport = || SmtpTransport::over(MemoryNetwork::new());
    assert_eq!(transport().with_root_certificates("").unwrap_err(), RootsError::None);
    let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for text in [bad, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
        let error = transport().with_root_certificates(text).unwrap_err();
        assert!(matches!(error, RootsError::Malformed(_)), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_are_resumed() {
    let certificate = certificate();
    let server = SmtpServer::new().starttls(&certificate);
    let transport = network(&server).1.with_root_certificates(certificate.pem()).unwrap();
    for (level, resumptions) in [
        (StartTls::Required, 0),
        (StartTls::Opportunistic, 1),
        (StartTls::Verify, 1),
        (StartTls::Verify, 2),
        (StartTls::Required, 3),
    ] {
        let mut session = transport.connect(&wishing(level)).await.unwrap();
        assert_eq!(send(&mut session, &simple()).await, ALL_IN_TLS);
        session.quit().await;
        assert_eq!(server.tls_resumptions(), resumptions, "{level:?}");
    }
    assert_eq!(server.tls_handshakes(), 5);
}

/// TLS 1.2, and a server that closes without TLS's own goodbye.
#[tokio::test(start_paused = true)]
async fn older_servers() {
    let network = MemoryNetwork::new();
    network.script(peer(), |stream| async move {
        let mut lines = Lines(BufReader::new(stream));
        lines.open("250-mx.example\r\n250 STARTTLS\r\n").await;
        assert_eq!(lines.hear().await, "STARTTLS");
        lines.say("220 go\r\n").await;
        let (key, chain) = key_and_certificate();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key);
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let mut tls = BufReader::new(acceptor.accept(lines.0.into_inner()).await.unwrap());
        let mut line = String::new();
        tls.read_line(&mut line).await.unwrap();
        tls.write_all(b"250 mx.example\r\n").await.unwrap();
        tls.flush().await.unwrap();
    });
    let target = wishing(StartTls::Required);
    let mut session = SmtpTransport::over(network).connect(&target).await.unwrap();
    assert_eq!(session.tls().unwrap(), "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384");
    assert_eq!(session.closed().await.cause, EndCause::Closed);
}

#[tokio::test(start_paused = true)]
async fn implicit_tls_is_never_plain() {
    let certificate = certificate();
    for level in [StartTls::Off, StartTls::Opportunistic, StartTls::Verify] {
        let server = SmtpServer::new().implicit_tls(&certificate);
        let (network, transport) = network(&server);
        let transport = transport.with_root_certificates(certificate.pem()).unwrap();
        let target = Target { tls: TlsWish { level, implicit: true }, ..target() };
        let mut session = transport.connect(&target).await.unwrap();
        assert!(session.tls().is_some(), "{level:?}");
        assert_eq!(send(&mut session, &simple()).await, ALL_IN_TLS);
        assert_eq!(verbs(&server), "EHLO MAIL RCPT DATA .");
        drop(session);

        network.listen(peer(), &SmtpServer::new());
        let error = transport.connect(&target).await.unwrap_err();
        assert!(matches!(&error.cause, EndCause::Tls(_)), "{level:?}: {error:?}");
        assert_eq!((error.stage, network.attempts(peer())), (Stage::Connect, 2));

        let unknown = TestCertificate::new([HOST]).unwrap();
        network.listen(peer(), &SmtpServer::new().implicit_tls(&unknown));
        assert_eq!(transport.connect(&target).await.is_ok(), level != StartTls::Verify, "{level:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_bounded() {
    let hosts = Hosts::for_a(Memory::IN_PLAIN_FOR);
    let named = |n: usize| Arc::<str>::from(format!("mx{n}.example"));
    let has = |n| hosts.has(&named(n), peer());
    hosts.add(&named(0), peer());
    (0..=Hosts::MOST).for_each(|n| hosts.add(&named(n), peer()));
    assert!(!has(0) && has(1) && has(Hosts::MOST));
    tokio::time::advance(Memory::IN_PLAIN_FOR).await;
    assert!(!has(Hosts::MOST));
}

/// RFC 8689 §4.2.1.
#[tokio::test(start_paused = true)]
async fn a_message_that_requires_tls_goes_to_verified_hosts_that_offer_it() {
    use Unsendable::{HostNotVerified, RequireTlsNotOffered};
    let certificate = certificate();
    for (level, host_is_authentic, offered, expected) in [
        (StartTls::Verify, true, true, None),
        (StartTls::Verify, true, false, Some(RequireTlsNotOffered)),
        (StartTls::Verify, false, true, Some(HostNotVerified)),
        (StartTls::Required, true, true, Some(HostNotVerified)),
        (StartTls::Opportunistic, true, true, Some(HostNotVerified)),
        (StartTls::Off, true, true, Some(HostNotVerified)),
    ] {
        let keywords = ["REQUIRETLS"].into_iter();
        let server = SmtpServer::new().starttls(&certificate).ehlo(keywords.clone());
        let server = server.ehlo_in_tls(keywords.filter(|_| offered));
        let transport = network(&server).1.with_root_certificates(certificate.pem()).unwrap();
        let mut session = transport.connect(&wishing(level)).await.unwrap();
        let message = Transaction { require_tls: true, host_is_authentic, host: HOST.into(), ..simple() };
        let report = session.transact(&message).await;
        let sent: Vec<_> = server.commands().into_iter().filter(|line| line.starts_with("MAIL")).collect();
        match expected {
            None => {
                assert!(report.dot.is_some(), "{report:?}");
                assert!(sent[0].ends_with("> REQUIRETLS"), "{sent:?}");
            }
            Some(why) => {
                assert_eq!(report.recipients, [RecipientReport::Unsendable(why)], "{level:?}");
                assert!(sent.is_empty(), "{level:?}: {sent:?}");
            }
        }
        // Other mail goes over the same session, without the demand.
        let (mail, _) = send(&mut session, &simple()).await;
        assert_eq!(mail, Some(250));
        assert!(
            !server
                .commands()
                .iter()
                .rev()
                .find(|line| line.starts_with("MAIL"))
                .unwrap()
                .contains("REQUIRE")
        );
    }
}
