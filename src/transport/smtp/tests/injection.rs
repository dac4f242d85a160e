//! Attacks by what others write: each test is called after its class.
//!
//! That octets behind the 220 to STARTTLS end the session is in `tls.rs`.

use proptest::prelude::*;

use super::*;
use crate::message::{DsnReturn, EnvelopeId, MessageDsn, Notify, OriginalRecipient, RecipientDsn};
use crate::testing::SmtpServer;
use crate::transport::TransactionDsn;

/// What would be a command of its own if it came into one.
fn poison() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("\r\n"),
        Just("\n"),
        Just("\r"),
        Just("\0"),
        Just(" "),
        Just("\t"),
        Just(">"),
        Just("<"),
        Just("\""),
        Just("\\"),
        Just("@"),
        Just("."),
        Just("a"),
        Just("y.example"),
        Just("\u{fc}"),
        Just("\u{2028}"),
        Just("=2B"),
        Just("RCPT TO:<evil@x.example>"),
        Just("QUIT"),
        Just("+"),
        Just("[192.0.2.1]"),
    ];
    prop::collection::vec(part, 1..12).prop_map(|parts| parts.concat())
}

/// The commands of a session with one transaction, each as the server read it.
fn commands_of(transaction: &Transaction, target: &Target) -> Vec<String> {
    let server = SmtpServer::new().ehlo(["PIPELINING", "SMTPUTF8", "8BITMIME", "DSN"]);
    paused(async {
        let network = MemoryNetwork::new();
        network.listen(peer(), &server);
        if let Ok(mut session) = SmtpTransport::over(network).connect(target).await {
            session.transact(transaction).await;
            session.quit().await;
        }
    });
    server.commands()
}

fn verbs(commands: &[String]) -> Vec<&str> {
    commands.iter().map(|line| line.split(' ').next().unwrap_or_default()).collect()
}

const ONE: [&str; 6] = ["EHLO", "MAIL", "RCPT", "DATA", ".", "QUIT"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// RFC 5321 §4.1.1.2, §4.1.1.3: what is no address is refused, and what is one can not end its command.
    #[test]
    fn smtp_command_injection_by_addresses(local in poison(), domain in poison()) {
        for text in [format!("{local}@y.example"), format!("b@{domain}"), format!("{local}@{domain}")] {
            let Ok(address) = Address::parse(&text) else { continue };
            let written = address.as_str();
            prop_assert!(!written.contains(['\r', '\n', '\0', '\t']), "{text:?}: {written:?}");
            // A space stands in a quoted local part, or nowhere (RFC 5321 §4.1.2).
            let (local, domain) = written.rsplit_once('@').unwrap_or_default();
            prop_assert!(!domain.contains(' ') && (local.starts_with('"') || !local.contains(' ')), "{written:?}");
            let transaction = Transaction {
                reverse_path: Some(address.clone()),
                recipients: vec![address.clone()],
                ..simple()
            };
            let commands = commands_of(&transaction, &target());
            prop_assert_eq!(verbs(&commands), ONE, "{:?}", &commands);
            prop_assert_eq!(&commands[2], &format!("RCPT TO:<{written}>"));
        }
    }

    /// RFC 3461 §4: what the host says of reports is one parameter each.
    #[test]
    fn smtp_command_injection_by_parameters(id in poison(), original in poison(), kind in poison()) {
        let id = EnvelopeId::new(id).ok();
        let originals =
            [OriginalRecipient::new(original.clone()).ok(), OriginalRecipient::with_type(kind, original).ok()];
        for original_recipient in originals {
            let parameters = 1 + usize::from(original_recipient.is_some());
            let recipient = RecipientDsn { notify: Some(Notify::SUCCESS), original_recipient };
            let message = MessageDsn { returned: Some(DsnReturn::Full), envelope_id: id.clone() };
            let dsn = Some(Box::new(TransactionDsn { message, recipients: vec![recipient] }));
            let commands = commands_of(&Transaction { dsn, ..simple() }, &target());
            prop_assert_eq!(verbs(&commands), ONE, "{:?}", &commands);
            let words = |line: &str| line.split(' ').count();
            prop_assert_eq!(words(&commands[1]), 3 + usize::from(id.is_some()), "{:?}", &commands[1]);
            prop_assert_eq!(words(&commands[2]), 2 + parameters, "{:?}", &commands[2]);
        }
    }

    /// RFC 5321 §4.1.1.1: a name that is more than one word is no name.
    #[test]
    fn smtp_command_injection_by_our_own_name(ehlo in poison()) {
        let commands = commands_of(&simple(), &Target { ehlo: ehlo.as_str().into(), ..target() });
        let is_one_word = ehlo.bytes().all(|octet| octet.is_ascii_graphic());
        prop_assert_eq!(verbs(&commands), if is_one_word { &ONE[..] } else { &[] }, "{:?}", &commands);
    }

    #[test]
    fn smtp_smuggling_by_bare_line_endings(
        parts in prop::collection::vec(
            prop_oneof![
                Just("\r\n"), Just("\n"), Just("\r"), Just("."), Just("x"), Just("\0"),
                Just("MAIL FROM:<evil@x.example>\r\n"), Just("RCPT TO:<b@y.example>\r\n"), Just("DATA\r\n"),
            ],
            0..20,
        ),
    ) {
        let body = parts.concat();
        let server = SmtpServer::new();
        paused(async {
            let mut session = session(&server).await;
            session.transact(&transaction(&["b@y.example"], body.clone())).await;
            session.quit().await;
        });
        let bare = body.replace("\r\n", "").contains(['\r', '\n']);
        prop_assert_eq!(server.message_count(), u64::from(!bare));
        prop_assert_eq!(server.transactions(), u64::from(!bare));
    }
}
