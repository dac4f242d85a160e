//! DANE over real DNSSEC: knotd signs the zones, Unbound validates them, and the engine asks Unbound.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use postrider::dns::HickoryResolver;
use postrider::event::{DeliveryEvent, Diagnosis, EventSink};
use postrider::storage::MemoryStorage;
use postrider::testing::{SmtpServer, TestCertificate};
use postrider::transport::smtp::SmtpTransport;
use postrider::{DeliveryEngine, Message, Policy};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{Sender, channel};
use tokio::time::timeout;

use crate::site::{Site, program, skip};

const KNOT: u8 = 53;
const UNBOUND: u8 = 54;
/// Signed; one whose trust anchor is another's; and one that is not signed.
const ZONES: [(&str, bool); 3] = [("example", true), ("broken.example", true), ("plain.example", false)];

/// One line for each recipient or domain.
struct Seen(Sender<String>);

impl EventSink for Seen {
    fn on_event(&self, event: &DeliveryEvent) {
        let line = match event {
            DeliveryEvent::Delivered(event) => {
                let tls = if event.tls.is_some() { "TLS" } else { "plain" };
                format!("{} delivered {tls}", event.record.domain)
            }
            DeliveryEvent::QueueDeferred(event) => {
                let Diagnosis { status, reason, .. } = &event.diagnosis;
                format!("{} deferred {status} {reason}", event.domain)
            }
            _ => return,
        };
        self.0.try_send(line).unwrap();
    }
}

/// knotd with these zones, in which `@N` is host N's address.
fn serve_signed(site: &mut Site, zones: &[(&str, String)]) {
    let folder = site.path("signed");
    std::fs::create_dir(&folder).unwrap();
    let mut text = format!(
        "server:\n  rundir: {folder:?}\n  listen: \"{}@{}\"\n  udp-workers: 1\n  tcp-workers: 1\n\
         log:\n  - target: stderr\n    any: info\n\
         database:\n  storage: {folder:?}\n\
         template:\n  - id: default\n    storage: {folder:?}\n    zonefile-sync: -1\nzone:\n",
        site.ip(KNOT),
        site.port,
    );
    for ((zone, records), (_, is_signed)) in zones.iter().zip(ZONES) {
        let prefix = site.ip(0).to_string();
        let address = format!("A {}", prefix.strip_suffix('0').unwrap());
        let head = "$TTL 60\n@ SOA ns hostmaster 1 3600 600 86400 5\n@ NS ns\nns A @53\n";
        let records = format!("$ORIGIN {zone}.\n{head}{records}\n").replace("A @", &address);
        std::fs::write(folder.join(format!("{zone}.zone")), records).unwrap();
        let signing = if is_signed { "on" } else { "off" };
        text += &format!("  - domain: {zone}\n    file: {zone}.zone\n    dnssec-signing: {signing}\n");
    }
    let config = folder.join("knot.conf");
    std::fs::write(&config, text).unwrap();
    let mut knotd = Command::new(program("knotd").unwrap());
    site.serve_until_said(KNOT, knotd.arg("-c").arg(&config), "server started");
}

/// The key-signing key of a zone, as a DS record.
fn ds(site: &Site, zone: &str) -> String {
    let mut keymgr = Command::new(program("keymgr").unwrap());
    let config = site.path("signed/knot.conf");
    // Signed as soon as it is loaded, shortly after the start.
    for _ in 0..100 {
        let output = keymgr_output(keymgr.arg("-c").arg(&config).args([zone, "ds"]));
        if let Some(ds) = output.lines().find(|line| line.split(' ').any(|word| word == "DS")) {
            return ds.to_owned();
        }
        keymgr = Command::new(program("keymgr").unwrap());
        wait(Duration::from_millis(50));
    }
    panic!("{zone} has no key")
}

fn keymgr_output(command: &mut Command) -> String {
    String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
}

fn wait(time: Duration) {
    let (_keep, pause) = std::sync::mpsc::channel::<()>();
    let _ = pause.recv_timeout(time);
}

/// Unbound in front of knotd, with these trust anchors.
fn validate(site: &mut Site, anchors: &[String], options: &str) {
    let folder = site.path("unbound");
    std::fs::create_dir_all(&folder).unwrap();
    let (listen, port) = (site.ip(UNBOUND), site.port);
    let anchors: String = anchors.iter().map(|ds| format!("  trust-anchor: \"{ds}\"\n")).collect();
    let stubs = ZONES
        .map(|(zone, _)| format!("stub-zone:\n  name: \"{zone}\"\n  stub-addr: {}@{port}\n", site.ip(KNOT)));
    let text = format!(
        "server:\n  directory: {folder:?}\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n\
         \x20 use-syslog: no\n  verbosity: 1\n  do-daemonize: no\n  num-threads: 1\n  do-ip6: no\n\
         \x20 interface: {listen}@{port}\n  access-control: 127.0.0.0/8 allow\n  do-not-query-localhost: no\n\
         \x20 module-config: \"validator iterator\"\n{anchors}{options}\
         remote-control:\n  control-enable: no\n{}",
        stubs.concat(),
    );
    let config = folder.join("unbound.conf");
    std::fs::write(&config, text).unwrap();
    site.stop(UNBOUND);
    let mut unbound = Command::new(program("unbound").unwrap());
    site.serve_until_said(UNBOUND, unbound.arg("-d").arg("-c").arg(&config), "start of service");
}

async fn listen(address: SocketAddr, server: &SmtpServer) {
    let listener = TcpListener::bind(address).await.unwrap();
    let server = server.clone();
    tokio::spawn(async move { server.serve(listener).await });
}

/// A message to each domain by an engine that asks this name server; what has come of each first.
async fn send(site: &Site, dns: u8, domains: &[&str]) -> Vec<String> {
    let (seen, mut lines) = channel(100);
    let policy =
        format!("[smtp]\nport = {}\nprohibited-addresses = []\n[domain.'*']\nuse-dane = true", site.port);
    let engine = DeliveryEngine::builder("mta.sender.example")
        .storage(MemoryStorage::new())
        .resolver(HickoryResolver::with_nameservers(&[site.smtp(dns)]).unwrap())
        .transport(SmtpTransport::new())
        .policy(Policy::from_toml(&policy).unwrap())
        .event_sink(Seen(seen))
        .start()
        .await
        .unwrap();
    for domain in domains {
        let to = format!("b@{domain}");
        engine
            .submit(Message::new("a@sender.example", [to.as_str()], "x: y\r\n\r\n").unwrap())
            .await
            .unwrap();
    }
    let mut said = Vec::new();
    while said.len() < domains.len() {
        match timeout(Duration::from_secs(30), lines.recv()).await {
            Ok(Some(line)) => said.push(line),
            ended => panic!("{ended:?} after {said:?}"),
        }
    }
    engine.shutdown(Duration::from_secs(5)).await;
    said.sort();
    said
}

fn tools_are_there() -> bool {
    let missing: Vec<_> =
        ["knotd", "keymgr", "unbound"].into_iter().filter(|name| program(name).is_none()).collect();
    if !missing.is_empty() {
        skip(&missing.join(" and "));
    }
    missing.is_empty()
}

#[tokio::test]
async fn mail_goes_by_signed_records() {
    let Some(mut site) = Site::new().filter(|_| tools_are_there()) else { return };
    let names = ["mx1.example"];
    let (own, other) = (TestCertificate::new(names).unwrap(), TestCertificate::new(names).unwrap());
    let by_root = TestCertificate::signed(["mx5.example"]).unwrap();
    let port = site.port;
    let tlsa = |host: &str, record: &dyn std::fmt::Display| format!("_{port}._tcp.{host} TLSA {record}\n");
    let domain = |name: &str, host: u8| format!("{name} MX 10 mx{host}\nmx{host} A @{host}\n");
    let example = [
        domain("good", 1),
        tlsa("mx1", &own.tlsa(3, 1, 1)),
        domain("mismatch", 2),
        tlsa("mx2", &other.tlsa(3, 1, 1)),
        domain("bogus", 3),
        format!("_{port}._tcp.mx3 CNAME tlsa.broken\n"),
        domain("absent", 4),
        domain("root", 5),
        tlsa("mx5", &by_root.tlsa(2, 0, 2)),
        domain("unusable", 6),
        tlsa("mx6", &own.tlsa(1, 1, 1)),
        // The name that an alias leads to is the base domain (RFC 7672 \u{a7}2.2.3).
        "alias MX 10 mx7\nmx7 CNAME mx1\n".to_owned(),
        // No MX at all.
        "implicit A @2\n".to_owned(),
        tlsa("implicit", &other.tlsa(3, 1, 1)),
        "broken NS ns\nplain NS ns\n".to_owned(),
    ];
    let broken = format!("tlsa TLSA {}\n", own.tlsa(3, 1, 1));
    let plain = domain("@", 2) + &tlsa("mx2", &other.tlsa(3, 1, 1));
    serve_signed(
        &mut site,
        &[("example", example.concat()), ("broken.example", broken), ("plain.example", plain)],
    );
    let (anchor, of_broken) = (ds(&site, "example"), ds(&site, "broken.example"));
    // The digest of another key.
    let (rest, digest) = of_broken.rsplit_once(' ').unwrap();
    let wrong = format!("{rest} {}", digest.chars().rev().collect::<String>());
    for (host, server) in [
        (1, SmtpServer::new().starttls(&own)),
        (2, SmtpServer::new().starttls(&own)),
        (3, SmtpServer::new().starttls(&own)),
        (4, SmtpServer::new()),
        (5, SmtpServer::new().starttls(&by_root)),
        (6, SmtpServer::new().starttls(&other)),
    ] {
        listen(site.smtp(host), &server).await;
    }
    let domains = [
        "absent.example",
        "alias.example",
        "bogus.example",
        "good.example",
        "implicit.example",
        "mismatch.example",
        "plain.example",
        "root.example",
        "unusable.example",
    ];

    validate(&mut site, &[anchor.clone(), wrong], "");
    assert_eq!(
        send(&site, UNBOUND, &domains).await,
        [
            "absent.example delivered plain",
            "alias.example delivered TLS",
            "bogus.example deferred 4.7.0 dane",
            "good.example delivered TLS",
            "implicit.example deferred 4.7.5 dane",
            "mismatch.example deferred 4.7.5 dane",
            "plain.example delivered TLS",
            "root.example delivered TLS",
            "unusable.example delivered TLS",
        ]
    );
    // With the right anchor nothing is bogus.
    validate(&mut site, &[anchor.clone(), of_broken], "");
    assert_eq!(send(&site, UNBOUND, &["bogus.example"]).await, ["bogus.example delivered TLS"]);
    // Signatures that have run out: nobody knows where mail goes.
    validate(&mut site, &[anchor], "  val-override-date: 20900101000000\n");
    let lines = send(&site, UNBOUND, &["absent.example", "good.example"]).await;
    assert_eq!(
        lines,
        ["absent.example deferred 4.4.3 look-up-failed", "good.example deferred 4.4.3 look-up-failed"]
    );
    // Who does not validate says nothing of what is authentic.
    let lines = send(&site, KNOT, &["good.example", "mismatch.example"]).await;
    assert_eq!(lines, ["good.example delivered TLS", "mismatch.example delivered TLS"]);
}
