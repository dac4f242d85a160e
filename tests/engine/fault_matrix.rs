//! Every stage of a delivery × every way for a server to fail in it.
//!
//! A message to ann and ben goes to the first of two hosts, which fails once, at RCPT with ben alone. What then happens
//! to each of them is one letter of a cell:
//!
//! | Letter | |
//! |---|---|
//! | `=` | delivered by the first host, as if nothing had been |
//! | `>` | delivered by the second host, in the same attempt |
//! | `d` | deferred, charged, and delivered after the interval |
//! | `p` | likewise, and the record says that it was possibly delivered before |
//! | `b` | bounced |

use std::fmt::Write as _;
use std::time::Duration;

use postrider::Message;
use postrider::event::{DeliveryEvent, Reason, RecipientRecord};
use postrider::storage::MemoryStorage;
use postrider::testing::{Behaviour, Command, SmtpServer, TestCertificate};

use crate::support::{MX, MX2, World, idle};

const ZONE: &str = "
example.net. MX 10 mx1.example.net.
example.net. MX 20 mx2.example.net.
mx1.example.net. A 192.0.2.1
mx2.example.net. A 192.0.2.2
";
const ANN: &str = "ann@example.net";
const BEN: &str = "ben@example.net";
const GONE: &str = "gone@example.net";

/// In the order of the columns.
const FAULTS: [&str; 11] =
    ["close", "reset", "silence", "421", "4xx", "5xx", "garbage", "long", "endless", "octets", "twice"];

/// That a server does not do BDAT, though it offers CHUNKING.
const CODES: [&str; 5] = ["500", "501", "502", "503", "504"];

/// What a server does so. `normal` is what it says else.
fn behaviour(fault: &str, normal: &str) -> Behaviour {
    let code = &normal[..3.min(normal.len())];
    match fault {
        "close" => Behaviour::Close,
        "reset" => Behaviour::Reset,
        "silence" => Behaviour::Silence,
        "421" => "421 4.3.2 shutting down".into(),
        "4xx" => "450 4.3.0 not now".into(),
        "5xx" => "550 5.3.0 never".into(),
        "garbage" => Behaviour::Raw("what would you like?\r\n".into()),
        // Twice what is kept of replies.
        "long" => {
            let line = format!("{code}-{}\n", "long ".repeat(100));
            Behaviour::Reply(line.repeat(1_000) + normal)
        }
        "endless" => Behaviour::Raw(vec![b'2'; 1 << 20].into()),
        "octets" => Behaviour::Trickle(normal.to_owned(), Duration::from_secs(1)),
        "twice" => Behaviour::Reply(format!("{normal}\n{normal}")),
        code if CODES.contains(&code) => format!("{code} 5.5.1 what?").into(),
        other => panic!("{other}?"),
    }
}

struct Row {
    name: &'static str,
    command: Command,
    /// It comes so often before, and all is well.
    before: u64,
    /// What the server says there else.
    normal: &'static str,
    keywords: &'static [&'static str],
    /// What both servers are besides.
    kind: fn(SmtpServer) -> SmtpServer,
    policy: &'static str,
    octets: usize,
    cells: &'static str,
}

const PLAIN: &[&str] = &["8BITMIME"];
const LOGIN_ALONE: &[&str] = &["8BITMIME", "AUTH LOGIN"];
const PIPELINING: &[&str] = &["8BITMIME", "PIPELINING"];
const CHUNKING: &[&str] = &["8BITMIME", "CHUNKING"];
const BOTH: &[&str] = &["8BITMIME", "PIPELINING", "CHUNKING"];

const fn row(name: &'static str, command: Command, normal: &'static str, cells: &'static str) -> Row {
    Row { name, command, before: 0, normal, keywords: PLAIN, kind: usual, policy: "", octets: 10, cells }
}

fn usual(server: SmtpServer) -> SmtpServer {
    server
}

fn old(server: SmtpServer) -> SmtpServer {
    server.reply(Command::Ehlo, "502 5.5.1 what?")
}

fn with_tls(server: SmtpServer) -> SmtpServer {
    server.starttls(&TestCertificate::new(["mx1.example.net"]).unwrap())
}

fn with_passwords(server: SmtpServer) -> SmtpServer {
    server.auth("ann", "secret")
}

const fn pipelined(name: &'static str, command: Command, normal: &'static str, cells: &'static str) -> Row {
    Row { keywords: PIPELINING, ..row(name, command, normal, cells) }
}

const fn with(policy: &'static str, row: Row) -> Row {
    Row { policy, ..row }
}

const fn to(kind: fn(SmtpServer) -> SmtpServer, row: Row) -> Row {
    Row { kind, ..row }
}

/// By LOGIN, after so many prompts.
const fn login(before: u64, name: &'static str, normal: &'static str, cells: &'static str) -> Row {
    let row = to(with_passwords, with(LOGIN, row(name, Command::Auth, normal, cells)));
    Row { keywords: LOGIN_ALONE, before, ..row }
}

/// By LMTP.
const fn local(row: Row) -> Row {
    to(SmtpServer::lmtp, with(LMTP, row))
}

/// By BDAT.
const fn chunked(row: Row) -> Row {
    let keywords = if row.keywords.len() == PIPELINING.len() { BOTH } else { CHUNKING };
    Row { keywords, ..with(CHUNKS, row) }
}

/// By BDAT over LMTP.
const fn chunked_local(row: Row) -> Row {
    with(LOCAL_CHUNKS, chunked(local(row)))
}

/// At the second such command.
const fn second(row: Row) -> Row {
    Row { before: 1, ..row }
}

const fn large(row: Row) -> Row {
    Row { octets: 1 << 20, ..row }
}

const REQUIRED: &str = "[domain.'*']\nuse-starttls = 'required'";
const LOGIN: &str = "[domain.'*']\nsmtp-hosts = '[192.0.2.1];[192.0.2.2]'\nauth-username = 'ann'\n\
                     auth-password = 'secret'\nuse-unencrypted-plain-auth = true";
const LMTP: &str = "[domain.'*']\nsmtp-hosts = '[192.0.2.1];[192.0.2.2]'\nuse-lmtp = true";
const CHUNKS: &str = "[domain.'*']\nuse-chunking = true";
const LOCAL_CHUNKS: &str =
    "[domain.'*']\nsmtp-hosts = '[192.0.2.1];[192.0.2.2]'\nuse-lmtp = true\nuse-chunking = true";

#[rustfmt::skip]
const ROWS: [Row; 43] = [
    //                                                                        close reset silence 421 4xx 5xx garbage long endless octets twice
    // A host that does not know EHLO is asked with HELO. One whose STARTTLS fails is asked without, if its session did not
    // end by its own word or by what it said behind its 220.
    row("greeting", Command::Connect, "220 mx ready",                            ">> >> >> >> >> >> >> == >> == >>"),
    row("EHLO", Command::Ehlo, "250-mx\n250 8BITMIME",                           ">> >> >> >> >> == >> == >> == >>"),
    to(old, row("HELO", Command::Helo, "250 mx",                                 ">> >> >> >> >> >> >> == >> == >>")),
    to(with_tls, row("STARTTLS", Command::StartTls, "220 go ahead",              "== == == >> == == == == == == >>")),
    to(with_tls, with(REQUIRED, row("STARTTLS, required", Command::StartTls, "220 go ahead",
                                                                                 ">> >> >> >> >> >> >> == >> == >>"))),
    // Who closes over it is asked without TLS.
    second(to(with_tls, row("EHLO in TLS", Command::Ehlo, "250-mx\n250 8BITMIME", "== == >> >> >> == >> == >> == >>"))),
    second(to(with_tls, with(REQUIRED, row("EHLO in TLS, required", Command::Ehlo, "250-mx\n250 8BITMIME",
                                                                                 ">> >> >> >> >> == >> == >> == >>")))),
    to(with_passwords, with(LOGIN, row("AUTH", Command::Auth, "235 2.7.0 welcome",
                                                                                 ">> >> >> >> >> >> >> == >> == >>"))),
    login(0, "AUTH LOGIN", "334 VXNlcm5hbWU6",                                   ">> >> >> >> >> >> >> >> >> == >>"),
    login(1, "its user", "334 UGFzc3dvcmQ6",                                     ">> >> >> >> >> >> >> >> >> == >>"),
    login(2, "its password", "235 2.7.0 welcome",                                ">> >> >> >> >> >> >> == >> == >>"),
    row("MAIL", Command::Mail, "250 ok",                                         "dd dd dd >> dd bb dd == dd == dd"),
    row("RCPT", Command::Rcpt, "250 ok",                                         "dd dd dd =d =d =b dd == dd == dd"),
    row("DATA", Command::Data, "354 go ahead",                                   "dd dd dd dd dd bb dd == dd == dd"),
    // A reply to content before its end can be no acceptance.
    large(row("content", Command::Content, "250 ok",                             "dd dd pp dd dd bb dd dd dd dd dd")),
    row("dot", Command::Dot, "250 ok",                                           "pp pp pp dd dd bb pp == pp == =="),
    // After a transaction that came to nothing. It is said with MAIL, and what it meets is charged as with MAIL.
    row("RSET", Command::Rset, "250 reset",                                      "== == dd == == == dd == dd == dd"),
    row("QUIT", Command::Quit, "221 bye",                                        "== == == == == == == == == == =="),
    pipelined("MAIL", Command::Mail, "250 ok",                                   "dd dd dd >> dd bb dd == dd == dd"),
    pipelined("RCPT", Command::Rcpt, "250 ok",                                   "dd dd dd =d =d =b dd == dd == dd"),
    pipelined("DATA", Command::Data, "354 go ahead",                             "dd dd dd dd dd bb dd == dd == dd"),
    large(pipelined("content", Command::Content, "250 ok",                       "dd dd pp dd dd bb dd dd dd dd dd")),
    pipelined("dot", Command::Dot, "250 ok",                                     "pp pp pp dd dd bb pp == pp == =="),
    pipelined("RSET", Command::Rset, "250 reset",                                "== == dd == == == dd == dd == dd"),
    pipelined("QUIT", Command::Quit, "221 bye",                                  "== == == == == == == == == == =="),
    local(row("LHLO", Command::Ehlo, "250-mx\n250 8BITMIME",                     ">> >> >> >> >> >> >> == >> == >>")),
    local(row("LMTP: MAIL", Command::Mail, "250 ok",                             "dd dd dd >> dd bb dd == dd == dd")),
    local(row("LMTP: RCPT", Command::Rcpt, "250 ok",                             "dd dd dd =d =d =b dd == dd == dd")),
    local(row("LMTP: DATA", Command::Data, "354 go ahead",                       "dd dd dd dd dd bb dd == dd == dd")),
    large(local(row("LMTP: content", Command::Content, "250 ok",                 "dd dd pp dd dd bb dd dd dd dd dd"))),
    // The first of the two replies.
    local(row("LMTP: dot", Command::Dot, "250 ok",                               "pp pp pp dp d= b= pp == pp == ==")),
    local(row("LMTP: RSET", Command::Rset, "250 reset",                          "== == dd == == == dd == dd == dd")),
    local(pipelined("LMTP: dot", Command::Dot, "250 ok",                         "pp pp pp dp d= b= pp == pp == ==")),
    chunked(row("BDAT: MAIL", Command::Mail, "250 ok",                           "dd dd dd >> dd bb dd == dd == dd")),
    chunked(row("BDAT: RCPT", Command::Rcpt, "250 ok",                           "dd dd dd =d =d =b dd == dd == dd")),
    // Nothing follows DATA before its reply; by BDAT all of the content goes out while a line that never ends comes in.
    large(chunked(row("BDAT: content", Command::Content, "250 ok",               "dd dd pp dd dd bb dd dd pp dd dd"))),
    chunked(row("chunk", Command::Dot, "250 ok",                                 "pp pp pp dd dd bb pp == pp == ==")),
    chunked(pipelined("BDAT: RCPT", Command::Rcpt, "250 ok",                     "dd dd dd =d =d =b dd == dd == dd")),
    large(chunked(pipelined("BDAT: content", Command::Content, "250 ok",         "dd dd pp dd dd bb dd dd pp dd dd"))),
    chunked(pipelined("chunk", Command::Dot, "250 ok",                           "pp pp pp dd dd bb pp == pp == ==")),
    chunked(pipelined("BDAT: RSET", Command::Rset, "250 reset",                  "== == dd == == == dd == dd == dd")),
    large(chunked_local(row("LMTP: BDAT: content", Command::Content, "250 ok",   "dd dd pp dd dd bb dd dd pp dd dd"))),
    chunked_local(pipelined("LMTP: chunk", Command::Dot, "250 ok",               "pp pp pp dp d= b= pp == pp == ==")),
];

#[tokio::test(start_paused = true)]
async fn every_stage_fails_in_every_way() {
    let mut wrong = String::new();
    for row in ROWS {
        let mut cells = Vec::new();
        for fault in FAULTS {
            cells.push(cell(&row, fault).await);
        }
        let cells = cells.join(" ");
        if cells != row.cells {
            let pipelining = if row.keywords.contains(&"PIPELINING") { ", pipelined" } else { "" };
            writeln!(wrong, "{}{pipelining}:\n  {cells}, not\n  {}", row.name, row.cells).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{}\n{wrong}", FAULTS.join(" "));
}

/// Refused as a command, early or late, BDAT is no verdict on the mail, and nobody has it: the next attempt takes it by DATA, or to the
/// other host.
#[tokio::test(start_paused = true)]
async fn bdat_is_refused_as_a_command() {
    for command in [Command::Bdat, Command::Content, Command::Dot] {
        for row in [
            large(chunked(pipelined("large", command, "250 ok", "dd"))),
            large(chunked_local(row("large, LMTP", command, "250 ok", "dd"))),
            chunked(row("small", command, "250 ok", "dd")),
            chunked_local(pipelined("small, LMTP", command, "250 ok", "dd")),
        ] {
            // What has come to its end is not answered before it.
            if command == Command::Content && row.octets < 1_000 {
                continue;
            }
            // In LMTP the first reply to a whole chunk may be the first recipient's own, and the other have the mail.
            let is_in_doubt = row.policy == LOCAL_CHUNKS && (command == Command::Dot || row.octets < 1_000);
            let cells = if is_in_doubt { "pp" } else { row.cells };
            for code in CODES {
                assert_eq!(cell(&row, code).await, cells, "{} {command:?} {code}", row.name);
            }
        }
    }
}

async fn cell(row: &Row, fault: &str) -> String {
    let world = World::new();
    world.zone.set_zone(ZONE).unwrap();
    let server = || (row.kind)(SmtpServer::new().ehlo(row.keywords.iter().copied()));
    let fails = behaviour(fault, row.normal);
    let first = match row.command {
        Command::Rcpt => server().reply_to_rcpt(BEN, fails),
        command => server().reply(command, fails),
    };
    // A server that refuses BDAT refuses it for everybody.
    let times = if CODES.contains(&fault) && row.policy == LOCAL_CHUNKS && row.command == Command::Dot {
        2
    } else {
        1
    };
    let (first, second) = (first.times(times).after(row.before), server());
    world.server(MX, &first).server(MX2, &second);
    let engine = world.engine(MemoryStorage::new(), row.policy).await;
    if row.command == Command::Rset {
        let _ = first.clone().reply_to_rcpt(GONE, "550 5.1.1 nobody");
        engine.submit(Message::new("a@example.org", [GONE], "gone\r\n").unwrap()).await.unwrap();
        idle(&engine).await;
    }
    let message = Message::new("a@example.org", [ANN, BEN], "long\r\n".repeat(row.octets / 6)).unwrap();
    engine.submit(message).await.unwrap();
    idle(&engine).await;
    let events = world.seen.events();
    let place = format!("{} × {fault}", row.name);
    [ANN, BEN].map(|recipient| letter(&place, recipient, &events, &first, &second)).concat()
}

/// What happened to a recipient; and that nothing happened that never may.
fn letter(
    place: &str,
    recipient: &str,
    events: &[DeliveryEvent],
    first: &SmtpServer,
    second: &SmtpServer,
) -> &'static str {
    let is_it = |record: &RecipientRecord| record.recipient.to_string() == recipient;
    let taken_by = |server: &SmtpServer| {
        let messages = server.messages();
        messages.iter().filter(|message| message.recipients.iter().any(|taken| taken == recipient)).count()
    };
    let taken = taken_by(first) + taken_by(second);
    let mut deferrals = Vec::new();
    let mut last = Vec::new();
    for event in events {
        match event {
            DeliveryEvent::Deferred(event) if is_it(&event.record) => {
                assert!(event.next_attempt >= event.record.time + Duration::from_secs(600), "{place}");
                deferrals.push(event);
            }
            DeliveryEvent::Delivered(event) if is_it(&event.record) => last.push(&event.record),
            DeliveryEvent::Bounced(event) if is_it(&event.record) => last.push(&event.record),
            DeliveryEvent::QueueDeferred(event) => panic!("{place}: {event:?}, and the second host works"),
            _ => {}
        }
    }
    let &[record] = &last[..] else { panic!("{place}: {recipient} ended {} times: {events:#?}", last.len()) };
    assert_eq!(record.attempts as usize, deferrals.len() + 1, "{place}: each attempt is charged once");
    let is_delivered =
        events.iter().any(|event| matches!(event, DeliveryEvent::Delivered(event) if is_it(&event.record)));
    let possibly = deferrals.iter().filter(|event| event.diagnosis.reason == Reason::PossiblyDelivered);
    let possibly = possibly.count();
    let least = usize::from(is_delivered);
    assert!(
        (least..=least + possibly).contains(&taken),
        "{place}: {recipient} has it {taken} times: {events:#?}"
    );
    match &deferrals[..] {
        [] if !is_delivered => "b",
        [] if record.mx.as_deref() == Some("mx2.example.net")
            || record.peer == Some(MX2.parse().unwrap()) =>
        {
            ">"
        }
        [] => "=",
        [deferral] if is_delivered => {
            assert!(record.time >= deferral.next_attempt, "{place}: before the interval");
            if possibly > 0 { "p" } else { "d" }
        }
        _ => panic!("{place}: {recipient}: {events:#?}"),
    }
}
