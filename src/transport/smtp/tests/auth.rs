//! AUTH: by which mechanism, when not, and what is made of the server's answers.

use std::time::Duration;

use super::*;
use crate::policy::Credentials;
use crate::testing::{Behaviour, Command};

/// Of `ann` and `s3cret`.
const PLAIN: &str = "AUTH PLAIN AGFubgBzM2NyZXQ=";
const NAME: &str = "YW5u";
const PASSWORD: &str = "czNjcmV0";

fn credentials() -> Credentials {
    Credentials { username: "ann".into(), password: "s3cret".into(), unencrypted: true }
}

fn as_ann() -> Target {
    Target { credentials: Some(credentials()), ..target() }
}

fn asking() -> SmtpServer {
    SmtpServer::new().auth("ann", "s3cret")
}

async fn connect(server: &SmtpServer, target: &Target) -> Result<Box<dyn Session>, ConnectError> {
    let network = MemoryNetwork::new();
    network.listen(peer(), server);
    let result = SmtpTransport::over(network.clone()).connect(target).await;
    if result.is_err() {
        // What was sent last is heard yet.
        tokio::time::advance(Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
        assert_eq!(network.open_connections(peer()), 0);
    }
    result
}

async fn refusal(server: &SmtpServer, target: &Target) -> EndCause {
    let error = connect(server, target).await.unwrap_err();
    assert_eq!(error.stage, Stage::Auth);
    let shown = format!("{error} {error:?} {target:?}");
    assert!(!shown.contains("s3cret") && !shown.contains(PASSWORD), "{shown}");
    error.cause
}

#[tokio::test(start_paused = true)]
async fn plain_is_preferred_to_login() {
    let login = [NAME, PASSWORD].map(str::to_owned);
    let rows = [
        ("AUTH LOGIN PLAIN", vec![PLAIN.to_owned()]),
        ("AUTH=PLAIN", vec![PLAIN.to_owned()]),
        ("AUTH CRAM-MD5 LOGIN", [vec!["AUTH LOGIN".to_owned()], login.to_vec()].concat()),
    ];
    for (keyword, lines) in rows {
        let server = asking().ehlo(["PIPELINING", keyword]);
        let mut session = connect(&server, &as_ann()).await.unwrap();
        assert_eq!(server.commands()[1..], lines, "{keyword}");
        for _ in 0..2 {
            assert_eq!(codes(&session.transact(&simple()).await).3, Some(250));
        }
        assert_eq!(server.messages()[1].username.as_deref(), Some("ann"));
        assert_eq!(server.messages()[1].mail_parameters, "", "no AUTH= at MAIL");
    }
}

#[tokio::test(start_paused = true)]
async fn without_credentials_nobody_is_named() {
    let server = asking();
    let mut session = connect(&server, &target()).await.unwrap();
    assert_eq!(codes(&session.transact(&simple()).await).0, Some(530));
    assert_eq!(server.commands()[..2], ["EHLO out.example", "MAIL FROM:<a@x.example> SIZE=18"]);
}

/// RFC 4954 §4: no line with an initial response is longer than 512 octets.
#[tokio::test(start_paused = true)]
async fn a_long_password_has_a_line_of_its_own() {
    for (length, lines) in [(367, 2), (368, 3), (1_024, 3)] {
        let password = "é".repeat(length / 2) + &"x".repeat(length % 2);
        let server = SmtpServer::new().auth("ann", password.clone());
        let long = Credentials { password: password.into(), ..credentials() };
        connect(&server, &Target { credentials: Some(long), ..target() }).await.unwrap();
        let commands = server.commands();
        assert_eq!(commands.len(), lines, "{length}: {commands:?}");
        assert!(commands[1].len() + 2 <= 512);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_offered_is_not_tried() {
    for keywords in [&["PIPELINING"][..], &["AUTH"], &["AUTH CRAM-MD5 GSSAPI"]] {
        let server = SmtpServer::new().ehlo(keywords.iter().copied());
        assert_eq!(refusal(&server, &as_ann()).await, EndCause::AuthNotOffered);
        assert_eq!(server.commands(), ["EHLO out.example", "QUIT"], "{keywords:?}");
    }
    // HELO has no offers.
    let server = asking().reply(Command::Ehlo, "502 5.5.1 unknown");
    assert_eq!(refusal(&server, &as_ann()).await, EndCause::AuthNotOffered);
}

#[tokio::test(start_paused = true)]
async fn credentials_are_not_sent_in_plain_unless_allowed() {
    let hidden = Credentials { unencrypted: false, ..credentials() };
    let server = asking();
    let target = Target { credentials: Some(hidden), ..target() };
    assert_eq!(refusal(&server, &target).await, EndCause::AuthNeedsTls);
    assert_eq!(server.commands(), ["EHLO out.example", "QUIT"]);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_the_servers_own() {
    for (text, quits) in [
        ("535 5.7.8 name or password is wrong", true),
        ("454 4.7.0 try again later", true),
        ("432 4.7.12 a password transition is needed", true),
        ("534 5.7.9 mechanism too weak", true),
        ("538 5.7.11 encryption required", true),
        ("421 4.3.2 closing", false),
    ] {
        for keyword in ["AUTH PLAIN", "AUTH LOGIN"] {
            let server = asking().ehlo([keyword]).reply(Command::Auth, text);
            assert_eq!(refusal(&server, &as_ann()).await, EndCause::Reply(Reply::parse(text).unwrap()));
            assert_eq!(server.commands().len(), if quits { 3 } else { 2 }, "{text}: {:?}", server.commands());
        }
    }
    for keyword in ["AUTH PLAIN", "AUTH LOGIN"] {
        let wrong = Credentials { password: "wrong".into(), ..credentials() };
        let target = Target { credentials: Some(wrong), ..target() };
        let EndCause::Reply(reply) = refusal(&asking().ehlo([keyword]), &target).await else { panic!() };
        assert_eq!(reply.code(), 535);
    }
}

/// LOGIN is through after two responses, PLAIN after one; challenges are Base64.
#[tokio::test(start_paused = true)]
async fn challenges_out_of_place_are_no_smtp() {
    let long = format!("334 {}", "A".repeat(20_000));
    for (keyword, text, from) in [
        ("AUTH PLAIN", "334 ", 0),
        ("AUTH LOGIN", "334 UGFzc3dvcmQ6", 2),
        ("AUTH LOGIN", "334 Username?", 0),
        ("AUTH LOGIN", "334-VXNl\n334 VXNl", 0),
        ("AUTH LOGIN", "354 go ahead", 1),
        ("AUTH LOGIN", &long, 1),
    ] {
        let server = asking().ehlo([keyword]).reply(Command::Auth, text).after(from);
        let cause = refusal(&server, &as_ann()).await;
        assert!(matches!(&cause, EndCause::Protocol(what) if what.starts_with("AUTH: 3")), "{text}: {cause}");
        assert!(cause.to_string().len() < 300);
    }
    let server = asking().reply(Command::Auth, Behaviour::Raw(Bytes::from_static(b"welcome\r\n")));
    assert!(matches!(refusal(&server, &as_ann()).await, EndCause::Protocol(_)));
}

#[tokio::test(start_paused = true)]
async fn connections_lost_in_auth() {
    let limit = target().timeouts.ehlo;
    for (behaviour, cause) in [
        (Behaviour::Close, EndCause::Closed),
        (Behaviour::LoseReply, EndCause::Closed),
        (Behaviour::Silence, EndCause::Timeout(limit)),
    ] {
        assert_eq!(refusal(&asking().reply(Command::Auth, behaviour), &as_ann()).await, cause);
    }
}

/// Records have replies whole.
#[tokio::test(start_paused = true)]
async fn a_reply_that_repeats_the_password_is_cut() {
    let server = asking().on(|exchange| {
        (exchange.command == Command::Auth).then(|| format!("500 5.5.1 unknown: {}", exchange.line).into())
    });
    let EndCause::Reply(reply) = refusal(&server, &as_ann()).await else { panic!() };
    assert_eq!(reply.to_string(), "500 5.5.1 (the reply repeats the password)");
    let server = asking().on(|exchange| {
        (exchange.command == Command::Auth).then(|| Behaviour::Raw(format!("{}\r\n", exchange.line).into()))
    });
    let EndCause::Protocol(words) = refusal(&server, &as_ann()).await else { panic!() };
    assert_eq!(words, "what AUTH was answered is no reply (and may repeat the password)");
}

#[cfg(feature = "tls")]
mod in_tls {
    use super::*;
    use crate::testing::TestCertificate;
    use crate::transport::TlsWish;

    fn offering() -> SmtpServer {
        asking().starttls(&TestCertificate::new(["mx.example"]).unwrap())
    }

    fn hidden(level: StartTls) -> Target {
        let credentials = Some(Credentials { unencrypted: false, ..credentials() });
        Target { credentials, tls: TlsWish { level, implicit: false }, ..target() }
    }

    #[tokio::test(start_paused = true)]
    async fn auth_comes_after_the_second_ehlo() {
        for level in [StartTls::Opportunistic, StartTls::Required] {
            let server = offering().ehlo(["AUTH CRAM-MD5"]).ehlo_in_tls(["AUTH PLAIN"]);
            connect(&server, &hidden(level)).await.unwrap();
            assert_eq!(server.commands(), ["EHLO out.example", "STARTTLS", "EHLO out.example", PLAIN]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn implicit_tls_is_tls() {
        let server = asking().implicit_tls(&TestCertificate::new(["mx.example"]).unwrap());
        let mut target = hidden(StartTls::Off);
        target.tls.implicit = true;
        connect(&server, &target).await.unwrap();
        assert_eq!(server.commands(), ["EHLO out.example", PLAIN]);
    }

    /// Opportunistic TLS that fails does not go on in plain, where nothing could be sent; nor is it remembered.
    #[tokio::test(start_paused = true)]
    async fn plain_is_no_way_out() {
        let server = offering().reply(Command::StartTls, "454 4.7.0 not now").times(2);
        let (network, target) = (MemoryNetwork::new(), hidden(StartTls::Opportunistic));
        network.listen(peer(), &server);
        let transport = SmtpTransport::over(network.clone());
        let error = transport.connect(&target).await.unwrap_err();
        assert_eq!((error.stage, network.attempts(peer())), (Stage::Ehlo, 1), "{error}");
        // Somebody without credentials has it remembered.
        let others = Target { credentials: None, ..target.clone() };
        transport.connect(&others).await.unwrap();
        assert!(transport.connect(&target).await.unwrap().tls().is_some());
        // In plain where that is allowed.
        let server = offering().reply(Command::StartTls, "454 4.7.0 not now");
        let allowed = Target { credentials: Some(credentials()), ..target };
        assert_eq!(connect(&server, &allowed).await.unwrap().tls(), None);
    }
}
