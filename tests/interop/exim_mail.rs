//! Mail for Exim: verdicts, TLS, content, limits, DSN.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider::dns::HickoryResolver;
use postrider::event::{DeliveryEvent, EventSink};
use postrider::message::{DsnReturn, EnvelopeId, MessageDsn, Notify, OriginalRecipient, RecipientDsn};
use postrider::policy::Config;
use postrider::storage::MemoryStorage;
use postrider::testing::TestCertificate;
use postrider::transport::smtp::SmtpTransport;
use postrider::{DeliveryEngine, Message};
use serde_json::{Value, json};

use crate::exim::Exim;
use crate::process::Mailer;
use crate::site::Site;
use crate::{submission, text};

const ZONE: &str = "mail MX 10 mx\nmx A @1\n";
const ACCEPT: &str = "rcpt:\n  accept";
/// Extensions that it does not offer unless asked to.
const OFFERS: &str = "\nchunking_advertise_hosts = *\ndsn_advertise_hosts = *";

/// The keywords that it offers to a client without TLS.
fn offers(address: SocketAddr) -> Vec<String> {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    let mut reply = || {
        let mut reply = Vec::new();
        while reply.last().is_none_or(|line: &String| line.as_bytes()[3] == b'-') {
            reply.push(lines.next().expect("a line"));
        }
        reply
    };
    reply();
    stream.write_all(b"EHLO client.example\r\n").unwrap();
    let offered = reply();
    stream.write_all(b"QUIT\r\n").unwrap();
    reply();
    offered[1..].iter().map(|line| line[4..].split(' ').next().unwrap().to_owned()).collect()
}

fn addresses(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("{name}@mail.example")).collect()
}

/// Its reply in a record: code, enhanced status, text.
fn said(record: &Value) -> (u64, &str, &str) {
    let reply = &record["reply"];
    (reply["code"].as_u64().unwrap_or_default(), text(reply, "enhanced"), text(reply, "text"))
}

#[test]
fn each_recipient_of_a_transaction_has_its_verdict() {
    let Some(mut site) = Site::new() else { return };
    let busy = site.path("busy");
    std::fs::write(&busy, "").unwrap();
    let acls = format!(
        "rcpt:
           deny local_parts = gone
             message = 550 5.1.1 No mailbox of the name $local_part
           deny local_parts = listed
             message = 550-5.7.1 Listed.\\n550-5.7.1 Ask us\\n550 5.7.1 why.
           deny local_parts = denied
           defer local_parts = full
             message = 452 4.2.2 Mailbox full
           defer local_parts = later
           defer local_parts = busy
             condition = ${{if exists{{{}}}}}
             message = 450 4.2.1 Busy
           accept",
        busy.display()
    );
    let Some(exim) = Exim::start(&mut site, 1, "", &acls) else { return };
    site.serve_dns(ZONE);
    let config = site.policy("[domain.\"*\"]\nuse-starttls = \"off\"\nretry-after = [\"1s\", \"10m\"]\n");
    let names = ["gone", "listed", "denied", "full", "later", "busy", "fine", "good"];
    let line = json!({ "ref": "m", "from": "s@sender.example", "to": addresses(&names), "data": "Subject: x\r\n\r\nx\r\n" });
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed([line.to_string()]);
    mailer.until_total("deferred", 3);
    std::fs::remove_file(&busy).unwrap();
    // The busy one is tried again and taken, the others are tried again and wait.
    mailer.until_total("delivered", 3);
    mailer.until_total("bounced", 3);
    mailer.until_total("deferred", 5);
    let ended = mailer.terminate();

    for (name, status, reply) in [
        ("gone", "5.1.1", (550, "5.1.1", "No mailbox of the name gone")),
        ("listed", "5.7.1", (550, "5.7.1", "Listed. Ask us why.")),
        ("denied", "5.0.0", (550, "", "Administrative prohibition")),
    ] {
        let record = ended.only("bounced", &[("recipient", &format!("{name}@mail.example"))]);
        assert_eq!((text(record, "stage"), text(record, "status"), said(record)), ("rcpt", status, reply));
        assert_eq!(record["attempts"], 1, "{record}");
    }
    for (name, status, times, reply) in [
        ("full", "4.2.2", 2, (452, "4.2.2", "Mailbox full")),
        ("later", "4.0.0", 2, (451, "", "Temporary local problem - please try later")),
        ("busy", "4.2.1", 1, (450, "4.2.1", "Busy")),
    ] {
        let records = ended.with("deferred", &[("recipient", &format!("{name}@mail.example"))]);
        assert_eq!(records.len(), times, "{name}: {records:#?}");
        for record in records {
            assert_eq!(
                (text(record, "stage"), text(record, "status"), said(record)),
                ("rcpt", status, reply)
            );
        }
    }
    for (name, attempts) in [("fine", 1), ("good", 1), ("busy", 2)] {
        let record = ended.only("delivered", &[("recipient", &format!("{name}@mail.example"))]);
        assert_eq!(record["attempts"], attempts, "{record}");
        assert!(text(&record["reply"], "text").starts_with("OK id="), "{record}");
    }
    let mut taken: Vec<Vec<_>> =
        exim.queued().into_iter().map(|queued| queued.to.into_keys().collect()).collect();
    taken.sort();
    assert_eq!(taken, [addresses(&["busy"]), addresses(&["fine", "good"])]);
}

#[test]
fn a_verdict_on_the_message_is_every_recipients() {
    let Some(mut site) = Site::new() else { return };
    let options = "acl_smtp_mail = mail\nacl_smtp_predata = predata\nacl_smtp_data = content";
    let acls = "mail:
                  deny senders = spammer@sender.example
                    message = 550 5.7.1 Not from you
                  accept
                rcpt:
                  accept
                predata:
                  deny senders = silent@sender.example
                    message = 554 5.7.0 Say nothing
                  accept
                content:
                  deny condition = ${if eq{$h_subject:}{spam}}
                    message = 550 5.7.1 Spam
                  defer condition = ${if eq{$h_subject:}{later}}
                    message = 451 4.7.1 Content is looked at
                  accept";
    let Some(exim) = Exim::start(&mut site, 1, options, acls) else { return };
    site.serve_dns(ZONE);
    let config = site.policy("[domain.\"*\"]\nuse-starttls = \"off\"\nretry-after = \"10m\"\n");
    let line = |reference: &str, from: &str, subject: &str| {
        let data = format!("Subject: {subject}\r\n\r\nx\r\n");
        json!({ "ref": reference, "from": from, "to": addresses(&["a", "b"]), "data": data }).to_string()
    };
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed([
        line("mail", "spammer@sender.example", "x"),
        line("data", "silent@sender.example", "x"),
        line("dot", "s@sender.example", "spam"),
        line("wait", "s@sender.example", "later"),
        line("fine", "s@sender.example", "x"),
    ]);
    mailer.until_total("bounced", 6);
    mailer.until_total("deferred", 2);
    mailer.until_total("delivered", 2);
    let ended = mailer.terminate();
    for (kind, reference, stage, reply) in [
        ("bounced", "mail", "mail", (550, "5.7.1", "Not from you")),
        ("bounced", "data", "data", (554, "5.7.0", "Say nothing")),
        ("bounced", "dot", "dot", (550, "5.7.1", "Spam")),
        ("deferred", "wait", "dot", (451, "4.7.1", "Content is looked at")),
    ] {
        for record in ended.with(kind, &[("ref", reference)]) {
            assert_eq!((text(record, "stage"), said(record)), (stage, reply), "{record}");
        }
        assert_eq!(ended.with(kind, &[("ref", reference)]).len(), 2, "{reference}");
    }
    assert_eq!(ended.with("delivered", &[("ref", "fine")]).len(), 2);
    assert_eq!(exim.queued().len(), 1);
}

/// Content with something awkward in it.
pub(crate) fn contents() -> BTreeMap<String, Vec<u8>> {
    let head = |name: &str| format!("Subject: {name}\r\n\r\n").into_bytes();
    let all = [
        ("dots", b".\r\n..\r\n.a leading dot\r\n...\r\n\r\n.\r\n".to_vec()),
        ("eight bits", [&b"latin-1 \xe9\xff\x80\x01\x7f "[..], "grüße, 日本語, 🐘\r\n".as_bytes()].concat()),
        (
            "long lines",
            [&[b'.'; 998][..], b"\r\n", &[b'x'; 50_000], b"\r\n.", &[b'y'; 3000], b"\r\n"].concat(),
        ),
        ("no end of line", b"no end of line".to_vec()),
        ("white space", b" \t \r\n\r\n \r\ntrailing \t\r\n\r\n\r\n".to_vec()),
        ("commands", b"x\r\n.\r\nMAIL FROM:<evil@sender.example>\r\nBDAT 5 LAST\r\nQUIT\r\n".to_vec()),
        ("large", b".0123456789abcdef\r\n".repeat(150_000)),
    ];
    let with_head = all.into_iter().map(|(name, body)| (name.to_owned(), [head(name), body].concat()));
    with_head.chain([("headless".to_owned(), b".first octet is a dot\r\n.".to_vec())]).collect()
}

/// As Exim keeps it: the end of the last line is the transfer's own.
pub(crate) fn kept(content: &[u8]) -> Vec<u8> {
    let mut kept: Vec<u8> = content.iter().copied().filter(|octet| *octet != b'\r').collect();
    if kept.last() != Some(&b'\n') {
        kept.push(b'\n');
    }
    kept
}

#[test]
fn content_arrives_unchanged_over_starttls_and_by_data() {
    let Some(mut site) = Site::new() else { return };
    let certificate = TestCertificate::new(["another.example"]).unwrap();
    let options = Exim::tls(&site, &certificate) + OFFERS;
    let Some(exim) = Exim::start(&mut site, 1, &options, ACCEPT) else { return };
    let Some(plain) = Exim::start(&mut site, 2, "tls_advertise_hosts =", ACCEPT) else { return };
    let offered = offers(site.smtp(1));
    for keyword in ["STARTTLS", "CHUNKING", "PIPELINING", "8BITMIME", "DSN", "SIZE"] {
        assert!(offered.iter().any(|offer| offer == keyword), "{offered:?}");
    }
    assert!(!offers(site.smtp(2)).iter().any(|offer| offer == "STARTTLS"));
    site.serve_dns("mail MX 10 mx\nmx A @1\nplain MX 10 mxplain\nmxplain A @2\n");
    // A certificate for another name will do where it is not verified.
    let config = site.policy("[domain.\"*\"]\nuse-starttls = \"required\"\nretry-after = \"10m\"\n");
    let contents = contents();
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed(contents.iter().enumerate().map(|(number, (name, content))| {
        let file = site.path(&format!("content{number}"));
        std::fs::write(&file, content).unwrap();
        json!({ "ref": name, "from": "s@sender.example", "to": [format!("r{number}@mail.example")], "file": file })
            .to_string()
    }));
    mailer.feed([submission("plain", "a@plain.example", "Subject: x\r\n\r\nx\r\n")]);
    mailer.until_total("delivered", contents.len());
    mailer.until_total("queue-deferred", 1);
    let ended = mailer.terminate();

    let queued: BTreeMap<_, _> =
        exim.queued().into_iter().map(|queued| (queued.to.keys().next().unwrap().clone(), queued)).collect();
    assert_eq!(queued.len(), contents.len());
    for (number, (name, content)) in contents.iter().enumerate() {
        let record = ended.only("delivered", &[("ref", name)]);
        assert!(text(record, "tls").starts_with("TLSv1.3 TLS_"), "{record}");
        let queued = &queued[&format!("r{number}@mail.example")];
        assert!(queued.content == kept(content), "{name}: {:?}", String::from_utf8_lossy(&queued.content));
        assert_eq!(queued.from, "<s@sender.example>");
        assert!(queued.notes["tls_cipher"].starts_with("TLS1.3:"), "{:?}", queued.notes);
    }
    // What comes by BDAT has a K.
    for line in exim.arrivals() {
        assert!(line.contains(" P=esmtps X=TLS1.3:") && !line.contains(" K "), "{line}");
    }
    let refused = ended.only("queue-deferred", &[("domain", "plain.example")]);
    assert_eq!((text(refused, "status"), text(refused, "reason")), ("4.7.4", "tls-not-offered"), "{refused}");
    assert!(plain.queued().is_empty());
}

#[test]
fn its_limits_are_kept() {
    let Some(mut site) = Site::new() else { return };
    let options = "recipients_max = 3\nsmtp_accept_max_per_connection = 2\nmessage_size_limit = 20K";
    let Some(exim) = Exim::start(&mut site, 1, options, ACCEPT) else { return };
    site.serve_dns(ZONE);
    let config =
        site.policy("[domain.\"*\"]\nuse-starttls = \"off\"\nretry-after = \"1s\"\nmax-smtp-out = 1\n");
    let names: Vec<_> = (0..8).map(|number| format!("m{number}@mail.example")).collect();
    let many =
        json!({ "ref": "many", "from": "s@sender.example", "to": names, "data": "Subject: x\r\n\r\nx\r\n" });
    let large = "Subject: x\r\n\r\n".to_owned() + &"0123456789\r\n".repeat(2000);
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed([many.to_string(), submission("large", "large@mail.example", &large)]);
    mailer.feed(
        (0..5).map(|number| submission("one", &format!("o{number}@mail.example"), "Subject: x\r\n\r\nx\r\n")),
    );
    let ended = mailer.finish();
    assert_eq!(
        (ended.code, ended.count("delivered"), ended.count("deferred")),
        (Some(0), 13, 0),
        "{}",
        ended.stderr
    );
    assert!(ended.of_type("delivered").all(|record| record["attempts"] == 1), "{:#?}", ended.records);
    let bounced = ended.only("bounced", &[("ref", "large")]);
    assert_eq!(text(bounced, "status"), "5.3.4", "{bounced}");
    assert!(bounced.get("reply").is_none(), "refused before it is offered: {bounced}");
    let mut taken: Vec<_> = exim.queued().into_iter().flat_map(|queued| queued.to.into_keys()).collect();
    taken.sort();
    let mut wanted = names;
    wanted.extend((0..5).map(|number| format!("o{number}@mail.example")));
    assert_eq!(taken, wanted, "each once");
}

/// Of each delivered recipient, whether the server took over what is to be reported, and the session's TLS.
type Delivered = BTreeMap<String, (bool, Option<String>)>;

#[derive(Clone, Default)]
struct Passed(Arc<Mutex<Delivered>>);

impl EventSink for Passed {
    fn on_event(&self, event: &DeliveryEvent) {
        if let DeliveryEvent::Delivered(event) = event {
            let said = (event.dsn_passed_on, event.tls.clone());
            self.0.lock().unwrap().insert(event.record.recipient.to_string(), said);
        }
    }
}

/// By the library: the mailer has no input for them. Here the certificate is verified.
#[tokio::test(flavor = "multi_thread")]
async fn dsn_parameters_arrive_as_they_were_asked_for() {
    let Some(mut site) = Site::new() else { return };
    let certificate = TestCertificate::new(["mx.example"]).unwrap();
    let options = Exim::tls(&site, &certificate) + OFFERS;
    let Some(exim) = Exim::start(&mut site, 1, &options, ACCEPT) else { return };
    let Some(without) = Exim::start(&mut site, 2, "", ACCEPT) else { return };
    site.serve_dns("mail MX 10 mx\nmx A @1\nold MX 10 mxold\nmxold A @2\n");
    let policy =
        "[domain.\"*\"]\nuse-starttls = \"verify\"\n[domain.\"old.example\"]\nuse-starttls = \"off\"\n";
    let config = Config::from_toml(&std::fs::read_to_string(site.policy(policy)).unwrap()).unwrap();
    let passed = Passed::default();
    let engine = DeliveryEngine::builder(config.hostname.clone())
        .storage(MemoryStorage::new())
        .resolver(HickoryResolver::with_nameservers(config.nameservers.as_ref().unwrap()).unwrap())
        .transport(SmtpTransport::new().with_root_certificates(certificate.pem()).unwrap())
        .policy(config.policy)
        .event_sink(passed.clone())
        .start()
        .await
        .unwrap();
    let about = |notify, original: Option<&str>| RecipientDsn {
        notify,
        original_recipient: original.map(|address| OriginalRecipient::new(address).unwrap()),
    };
    let to = ["all", "success", "never", "plain"].map(|name| format!("{name}@mail.example"));
    let message = Message::new("s@sender.example", to.iter().map(String::as_str), "Subject: x\r\n\r\nx\r\n")
        .and_then(|message| {
            let all = Notify::SUCCESS | Notify::FAILURE | Notify::DELAY;
            message.with_recipient_dsn(&to[0], about(Some(all), Some("a+b=c@origin.example")))
        })
        .and_then(|message| message.with_recipient_dsn(&to[1], about(Some(Notify::SUCCESS), None)))
        .and_then(|message| message.with_recipient_dsn(&to[2], about(Some(Notify::NEVER), None)))
        .unwrap()
        .with_dsn(MessageDsn {
            returned: Some(DsnReturn::Headers),
            envelope_id: Some(EnvelopeId::new("mail 7+1=x").unwrap()),
        });
    engine.submit(message).await.unwrap();
    let old = Message::new("s@sender.example", ["a@old.example"], "Subject: x\r\n\r\nx\r\n")
        .and_then(|message| message.with_recipient_dsn("a@old.example", about(Some(Notify::NEVER), None)))
        .unwrap()
        .with_dsn(MessageDsn { returned: Some(DsnReturn::Full), envelope_id: None });
    engine.submit(old).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), engine.wait_idle()).await.unwrap().unwrap();
    engine.shutdown(Duration::from_secs(5)).await;

    let queued = exim.queued();
    let [queued] = &queued[..] else { panic!("{queued:?}") };
    let noted = |name: &str| queued.notes.get(name).map(String::as_str);
    // RET=HDRS is 2 to it.
    assert_eq!((noted("dsn_ret"), noted("dsn_envid")), (Some("2"), Some("mail+207+2B1+3Dx")));
    // ORCPT, its length, and a sum: NEVER is 2, SUCCESS 4, FAILURE 8, DELAY 16. Nothing if nothing was asked.
    for (recipient, asked) in to.iter().zip(["rfc822;a+2Bb+3Dc@origin.example 31,28 ", " 0,4 ", " 0,2 ", ""])
    {
        let taken = &queued.to[recipient];
        assert!(taken.starts_with(asked) && taken.is_empty() == asked.is_empty(), "{recipient}: {taken}");
    }
    let old = without.queued();
    let [old] = &old[..] else { panic!("{old:?}") };
    assert_eq!(old.to, BTreeMap::from([("a@old.example".to_owned(), String::new())]));
    assert!(!old.notes.keys().any(|name| name.starts_with("dsn")), "{:?}", old.notes);

    let tls = Some("TLSv1.3 TLS_AES_256_GCM_SHA384".to_owned());
    let mut wanted: BTreeMap<_, _> =
        to.into_iter().map(|recipient| (recipient, (true, tls.clone()))).collect();
    wanted.insert("a@old.example".to_owned(), (false, None));
    assert_eq!(*passed.0.lock().unwrap(), wanted);
}
