//! The receivers that mail is tried on: what big ones, shared hosting and small servers typically do.
//!
//! Every number here is invented. Host names and reply texts are those that policies are written for, so that rollups
//! by MX and reply rules find something to match; limits are so low that twenty thousand messages meet them. All of it
//! stays in the process. To know a receiver of yours, write it down here in the same way.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use postrider::reply::Stage;
use postrider::testing::{Failure, Latency, ServerModel};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// One row of the table.
pub(crate) struct Provider {
    pub(crate) name: &'static str,
    /// Its part of all mail, in percent.
    pub(crate) share: u32,
    /// Recipients' domains, each with its part of the provider's mail.
    pub(crate) domains: Vec<(String, u32)>,
    pub(crate) zone: String,
    /// `None`: nobody listens there.
    pub(crate) servers: Vec<(IpAddr, Option<ServerModel>)>,
    /// What it says of a mailbox that does not exist.
    pub(crate) unknown: &'static str,
    /// What it says of a mailbox that is full.
    pub(crate) full: &'static str,
}

pub(crate) fn all() -> Vec<Provider> {
    vec![google(), microsoft(), yahoo(), aruba(), greylisters(), small(), nowhere()]
}

/// Many domains behind few hosts, and an hourly rate that new senders meet soon.
fn google() -> Provider {
    let mut google = Provider::new("google", 36)
        .unknown("550 5.1.1 The email account that you tried to reach does not exist")
        .full("452 4.2.2 The email account that you tried to reach is over quota");
    google.domains.push(("gmail.com".to_owned(), 300));
    google.zone.push_str(
        "gmail.com MX 5 gmail-smtp-in.l.google.com\ngmail.com MX 10 alt1.gmail-smtp-in.l.google.com\n",
    );
    for n in 0..100 {
        google.domains.push((format!("workspace{n}.example"), 1));
        line(&mut google.zone, format_args!("workspace{n}.example MX 1 aspmx.l.google.com"));
        line(&mut google.zone, format_args!("workspace{n}.example MX 5 alt1.aspmx.l.google.com"));
    }
    let model = ServerModel::new()
        .with_connect_latency(skewed(20, 200))
        .with_reply_latency(skewed(120, 1_500))
        .with_connection_limit(20)
        .with_message_rate(700, HOUR)
        .with_message_rate_reply(
            "421 4.7.28 Our system has detected an unusual rate of unsolicited mail originating from your IP address",
        );
    for (n, host) in ["gmail-smtp-in", "gmail-smtp-in", "alt1.gmail-smtp-in", "aspmx", "alt1.aspmx"]
        .into_iter()
        .enumerate()
    {
        google.host(&format!("{host}.l.google.com"), test_address(1, n), model.clone());
    }
    google
}

/// A name for each tenant, the same addresses behind all of them. Says 451 beyond its rate, and keeps the session.
fn microsoft() -> Provider {
    let mut microsoft = Provider::new("microsoft", 20)
        .unknown("550 5.5.0 Requested action not taken: mailbox unavailable")
        .full("452 4.2.2 The recipient's mailbox is full");
    let model = ServerModel::new()
        .with_connect_latency(skewed(40, 400))
        .with_reply_latency(skewed(300, 6_000))
        .with_connection_limit(10)
        .with_message_rate(500, HOUR)
        .with_message_rate_reply(
            "451 4.7.650 The mail server has been temporarily rate limited due to IP reputation (S775)",
        );
    let addresses = [test_address(2, 0), test_address(2, 1)];
    for domain in ["outlook.com", "hotmail.com"] {
        microsoft.domains.push((domain.to_owned(), 60));
        let host = format!("{}.olc.protection.outlook.com", domain.replace('.', "-"));
        line(&mut microsoft.zone, format_args!("{domain} MX 2 {host}"));
        addresses.iter().for_each(|address| microsoft.address(&host, *address));
    }
    for n in 0..80 {
        microsoft.domains.push((format!("tenant{n}.example"), 1));
        let host = format!("tenant{n}-example.mail.protection.outlook.com");
        line(&mut microsoft.zone, format_args!("tenant{n}.example MX 0 {host}"));
        addresses.iter().for_each(|address| microsoft.address(&host, *address));
    }
    microsoft.servers.extend(addresses.map(|address| (address, Some(model.clone()))));
    microsoft
}

/// Few connections, few messages in each, and deferrals of whoever sends more.
fn yahoo() -> Provider {
    let mut yahoo = Provider::new("yahoo", 10)
        .unknown("554 5.1.1 mailbox not found")
        .full("452 4.2.2 Mailbox over quota");
    for domain in ["yahoo.com", "aol.com"] {
        yahoo.domains.push((domain.to_owned(), 1));
        for host in ["mta5", "mta6", "mta7"] {
            line(&mut yahoo.zone, format_args!("{domain} MX 1 {host}.am0.yahoodns.net"));
        }
    }
    let model = ServerModel::new()
        .with_connect_latency(skewed(60, 500))
        .with_reply_latency(skewed(200, 3_000))
        .with_connection_limit(5)
        .with_messages_per_connection(20)
        .with_message_rate(200, HOUR)
        .with_message_rate_reply(
            "421 4.7.0 [TSS04] Messages temporarily deferred due to unexpected volume or user complaints",
        );
    for (n, host) in ["mta5", "mta6", "mta7"].into_iter().enumerate() {
        yahoo.host(&format!("{host}.am0.yahoodns.net"), test_address(3, n), model.clone());
    }
    yahoo
}

/// Shared hosting: two hundred domains, two hundred MX names, two slow addresses that take few connections each.
fn aruba() -> Provider {
    let mut aruba = Provider::new("aruba", 8)
        .unknown("550 5.1.1 recipient rejected")
        .full("452 4.2.2 mailbox over quota");
    let addresses = [151, 154].map(|last| IpAddr::V4(Ipv4Addr::new(62, 149, 128, last)));
    for n in 0..200 {
        aruba.domains.push((format!("shop{n}.example"), 1));
        line(&mut aruba.zone, format_args!("shop{n}.example MX 10 mx.shop{n}.example"));
        addresses.iter().for_each(|address| aruba.address(&format!("mx.shop{n}.example"), *address));
    }
    let model = ServerModel::new()
        .with_connect_latency(skewed(50, 1_000))
        .with_reply_latency(skewed(2_500, 20_000))
        .with_connection_limit(4);
    aruba.servers.extend(addresses.map(|address| (address, Some(model.clone()))));
    aruba
}

/// Servers that let nobody in at the first attempt.
fn greylisters() -> Provider {
    let mut greylisters = Provider::new("greylisters", 10);
    for n in 0..60 {
        let wait = [5, 5, 15].get(n % 3).map_or(MINUTE, |&minutes| minutes * MINUTE);
        greylisters.site(&format!("grey{n}.example"), test_address(4, n), Some(usual().with_greylist(wait)));
    }
    greylisters
}

/// The long tail: a server for each domain. Some are slow, some say no now and then, some are down for hours.
fn small() -> Provider {
    let mut small = Provider::new("small", 14);
    for n in 0..300 {
        let mut model = usual();
        if n % 10 == 1 {
            let busy = Failure::Reply(Stage::Connect, "421 4.3.2 too busy, try again later".to_owned());
            model = model.with_connection_limit(1).with_chance_of(0.2, busy);
        }
        if n % 10 == 4 {
            model = model.with_failure(Duration::ZERO..6 * HOUR, Failure::Refuse);
        }
        if n % 10 == 7 {
            model = model.with_reply_latency(skewed(5_000, 60_000)).with_connection_limit(2);
        }
        small.site(&format!("small{n}.example"), test_address(8, n), Some(model));
    }
    small
}

/// Mistyped domains, which have a web server and no MX, and domains whose server never answers.
fn nowhere() -> Provider {
    let mut nowhere = Provider::new("nowhere", 2);
    for n in 0..20 {
        let domain = format!("mistyped{n}.example");
        let address = test_address(16, n);
        nowhere.address(&domain, address);
        nowhere.domains.push((domain, 1));
        nowhere.servers.push((address, None));
    }
    for n in 0..10 {
        nowhere.site(&format!("dead{n}.example"), test_address(17, n), Some(ServerModel::blackhole()));
    }
    nowhere
}

fn usual() -> ServerModel {
    ServerModel::new()
        .with_connect_latency(skewed(80, 2_000))
        .with_reply_latency(skewed(300, 15_000))
        .with_connection_limit(10)
}

fn skewed(median_ms: u64, p99_ms: u64) -> Latency {
    Latency::Skewed { median: Duration::from_millis(median_ms), p99: Duration::from_millis(p99_ms) }
}

/// The `nth` address of a block of 256 or more, in the network that is set aside for benchmarks (RFC 2544).
fn test_address(block: u8, nth: usize) -> IpAddr {
    let first = u32::from(Ipv4Addr::new(198, 18, block, 0));
    IpAddr::V4(Ipv4Addr::from(first + nth as u32))
}

fn line(zone: &mut String, record: std::fmt::Arguments<'_>) {
    let _ = writeln!(zone, "{record}");
}

impl Provider {
    fn new(name: &'static str, share: u32) -> Self {
        Self {
            name,
            share,
            domains: Vec::new(),
            zone: String::new(),
            servers: Vec::new(),
            unknown: "550 5.1.1 no such user here",
            full: "452 4.2.2 over quota",
        }
    }

    fn unknown(mut self, reply: &'static str) -> Self {
        self.unknown = reply;
        self
    }

    fn full(mut self, reply: &'static str) -> Self {
        self.full = reply;
        self
    }

    /// A domain with one MX host of its own.
    fn site(&mut self, domain: &str, address: IpAddr, model: Option<ServerModel>) {
        line(&mut self.zone, format_args!("{domain} MX 10 mx.{domain}"));
        self.address(&format!("mx.{domain}"), address);
        self.domains.push((domain.to_owned(), 1));
        self.servers.push((address, model));
    }

    fn host(&mut self, host: &str, address: IpAddr, model: ServerModel) {
        self.address(host, address);
        self.servers.push((address, Some(model)));
    }

    fn address(&mut self, host: &str, address: IpAddr) {
        line(&mut self.zone, format_args!("{host} A {address}"));
    }
}
