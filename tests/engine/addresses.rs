//! Where mail goes and from where: both families, address literals, international names.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use postrider::storage::MemoryStorage;
use postrider::testing::{Command, SmtpServer};

use crate::support::{World, idle, message};

const V4: &str = "192.0.2.1:25";
const V6: &str = "[2001:db8::1]:25";

type Client = Arc<Mutex<Option<IpAddr>>>;

/// Remembers where its last client came from.
fn server() -> (SmtpServer, Client) {
    let seen = Client::default();
    let client = seen.clone();
    let server = SmtpServer::new().on(move |exchange| {
        if exchange.command == Command::Mail {
            *client.lock().unwrap() = exchange.client;
        }
        None
    });
    (server, seen)
}

/// In the same attempt, and each from the source's own address of the family.
#[tokio::test(start_paused = true)]
async fn a_host_that_answers_in_one_family_alone_is_reached_by_it() {
    let own = ["192.0.2.250", "2001:db8::250"];
    for (answers, from, other) in [(V4, own[0], V6), (V6, own[1], V4)] {
        let world = World::new();
        world.zone.set_zone("example.net. MX 10 mx.\nmx. A 192.0.2.1\nmx. AAAA 2001:db8::1").unwrap();
        let (server, client) = server();
        world.server(answers, &server);
        let policy = format!("[[source]]\nname = 'out'\naddress = {own:?}");
        let engine = world.engine(MemoryStorage::new(), &policy).await;
        engine.submit(message(&["ann@example.net"])).await.unwrap();
        idle(&engine).await;
        assert_eq!(world.seen.timeline(), ["0 delivered ann@example.net"], "{answers}");
        assert_eq!(*client.lock().unwrap(), Some(from.parse().unwrap()));
        assert!(world.network.attempts(other.parse().unwrap()) <= 1, "whichever is first");

        // From one family alone the other is not tried.
        let world = World::new();
        world.zone.set_zone("example.net. MX 10 mx.\nmx. A 192.0.2.1\nmx. AAAA 2001:db8::1").unwrap();
        world.server(answers, &server);
        let policy = format!("[[source]]\nname = 'out'\naddress = '{from}'");
        let engine = world.engine(MemoryStorage::new(), &policy).await;
        engine.submit(message(&["ann@example.net"])).await.unwrap();
        idle(&engine).await;
        assert_eq!(world.network.attempts(other.parse().unwrap()), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn address_literals_are_their_own_hosts() {
    for (domain, address) in [("[192.0.2.1]", V4), ("[IPv6:2001:db8::1]", V6)] {
        let world = World::new();
        let (server, _) = server();
        world.server(address, &server);
        let engine = world.engine(MemoryStorage::new(), "").await;
        let to = format!("ann@{domain}");
        engine.submit(message(&[&to])).await.unwrap();
        idle(&engine).await;
        assert_eq!(world.seen.timeline(), [format!("0 delivered {to}")]);
        assert_eq!(server.messages()[0].recipients, [to]);
    }
}

/// DNS and the domain in RCPT have A-labels; only a local part needs SMTPUTF8.
#[tokio::test(start_paused = true)]
async fn international_domains_are_asked_for_in_ascii() {
    for (keywords, timeline) in [
        (
            &["SMTPUTF8", "8BITMIME"][..],
            ["0 delivered ann@xn--bcher-kva.example", "0 delivered jörg@xn--bcher-kva.example"],
        ),
        (&[], ["0 bounced jörg@xn--bcher-kva.example 5.6.7", "0 delivered ann@xn--bcher-kva.example"]),
    ] {
        let world = World::new();
        world.zone.set_zone("xn--bcher-kva.example. MX 10 mx.\nmx. A 192.0.2.1").unwrap();
        let server = SmtpServer::new().ehlo(keywords.iter().copied());
        world.server(V4, &server);
        let engine = world.engine(MemoryStorage::new(), "").await;
        engine.submit(message(&["ann@Bücher.example", "jörg@bücher.example"])).await.unwrap();
        idle(&engine).await;
        let mut got = world.seen.timeline();
        got.sort();
        assert_eq!(got, timeline);
    }
}
