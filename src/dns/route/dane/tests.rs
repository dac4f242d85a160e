use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::super::{Route, RouteFailure, RouteFailureKind, RouteOptions, find_fixed_route, find_route};
use crate::clock::{Clock, Timestamp};
use crate::dns::{
    Answer, CachingResolver, DnsError, DnsErrorKind, Dnssec, Freshness, MxRecord, Resolver, StaticResolver,
    TlsaRecord,
};
use crate::policy::FixedHost;

const KEY: &str = "3 1 1 0000000000000000000000000000000000000000000000000000000000000000";

/// `example.net` and `provider.example` are signed, `plain.example` is not.
fn zone(records: &str) -> StaticResolver {
    let zone = StaticResolver::parse(&records.replace("KEY", KEY)).unwrap();
    zone.set_dnssec("example.net", Dnssec::Secure);
    zone.set_dnssec("provider.example", Dnssec::Secure);
    zone
}

fn options() -> RouteOptions {
    RouteOptions { dane: true, ..RouteOptions::default() }
}

async fn find(resolver: &dyn Resolver, domain: &str) -> Result<Route, RouteFailure> {
    find_route(resolver, &domain.parse().unwrap(), &options(), Freshness::Cached).await
}

/// Each host with the base domain of its records, `-` if it has none, `!` if it is barred.
fn shown(route: &Route) -> String {
    let host = |host: &super::super::RouteHost| {
        let base = host.tlsa.as_ref().map_or("-", |set| set.base());
        let base = if host.barred { "!" } else { base };
        assert_eq!(host.barred, host.addresses.is_empty());
        format!("{}={base}", host.name)
    };
    route.hosts.iter().map(host).collect::<Vec<_>>().join(" ")
}

/// RFC 7672 §2.2.
#[tokio::test]
async fn records_are_found_where_all_is_authentic() {
    const MX: &str = "example.net MX 10 mx.example.net\n";
    for (records, domain, expected) in [
        // MX, address and records authentic.
        (
            "example.net MX 10 mx.example.net\nmx.example.net A 192.0.2.1\n_25._tcp.mx.example.net TLSA KEY",
            "example.net",
            "mx.example.net=mx.example.net",
        ),
        (
            "example.net MX 10 mx.example.net\nmx.example.net AAAA 2001:db8::1\n_25._tcp.mx.example.net TLSA KEY",
            "example.net",
            "mx.example.net=mx.example.net",
        ),
        ("example.net MX 10 mx.example.net\nmx.example.net A 192.0.2.1", "example.net", "mx.example.net=-"),
        // No MX: the domain itself.
        ("example.net A 192.0.2.1\n_25._tcp.example.net TLSA KEY", "example.net", "example.net=example.net"),
        // For another port.
        ("example.net A 192.0.2.1\n_587._tcp.example.net TLSA KEY", "example.net", "example.net=-"),
        // Who has put the host there is not known.
        (
            "plain.example MX 10 mx.example.net\nmx.example.net A 192.0.2.1\n_25._tcp.mx.example.net TLSA KEY",
            "plain.example",
            "mx.example.net=-",
        ),
        // Nor, who has put the address there, or the records.
        (
            "example.net MX 10 mx.plain.example\nmx.plain.example A 192.0.2.1\n_25._tcp.mx.plain.example TLSA KEY",
            "example.net",
            "mx.plain.example=-",
        ),
        (
            "example.net MX 10 mx.example.net\nmx.example.net A 192.0.2.1\n_25._tcp.mx.example.net CNAME tlsa.plain.example\ntlsa.plain.example TLSA KEY",
            "example.net",
            "mx.example.net=-",
        ),
        // Records may lie elsewhere: the base domain is that of the question.
        (
            "example.net MX 10 mx.example.net\nmx.example.net A 192.0.2.1\n_25._tcp.mx.example.net CNAME tlsa.provider.example\ntlsa.provider.example TLSA KEY",
            "example.net",
            "mx.example.net=mx.example.net",
        ),
        // An alias: first where it leads to, then its own name (§2.2.3).
        (
            "example.net MX 10 mx.example.net\nmx.example.net CNAME a.provider.example\na.provider.example A 192.0.2.1\n_25._tcp.a.provider.example TLSA KEY\n_25._tcp.mx.example.net TLSA KEY",
            "example.net",
            "mx.example.net=a.provider.example",
        ),
        (
            "example.net MX 10 mx.example.net\nmx.example.net CNAME a.provider.example\na.provider.example A 192.0.2.1\n_25._tcp.mx.example.net TLSA KEY",
            "example.net",
            "mx.example.net=mx.example.net",
        ),
        // An alias that leads out of what is signed: its own name alone.
        (
            "example.net MX 10 mx.example.net\nmx.example.net CNAME a.plain.example\na.plain.example A 192.0.2.1\n_25._tcp.a.plain.example TLSA KEY\n_25._tcp.mx.example.net TLSA KEY",
            "example.net",
            "mx.example.net=mx.example.net",
        ),
        (
            "example.net MX 10 mx.example.net\nmx.example.net CNAME a.plain.example\na.plain.example A 192.0.2.1\n_25._tcp.a.plain.example TLSA KEY",
            "example.net",
            "mx.example.net=-",
        ),
        // An alias that is not signed, whatever it leads to.
        (
            "example.net MX 10 mx.plain.example\nmx.plain.example CNAME a.provider.example\na.provider.example A 192.0.2.1\n_25._tcp.a.provider.example TLSA KEY\n_25._tcp.mx.plain.example TLSA KEY",
            "example.net",
            "mx.plain.example=-",
        ),
        // Hosts of one route differ.
        (
            "example.net MX 10 mx.example.net\nexample.net MX 20 mx.plain.example\nexample.net MX 30 mx.provider.example\nmx.example.net A 192.0.2.1\nmx.plain.example A 192.0.2.2\nmx.provider.example A 192.0.2.3\n_25._tcp.mx.example.net TLSA KEY\n_25._tcp.mx.provider.example TLSA KEY",
            "example.net",
            "mx.example.net=mx.example.net mx.plain.example=- mx.provider.example=mx.provider.example",
        ),
    ] {
        let zone = zone(records);
        assert_eq!(shown(&find(&zone, domain).await.unwrap()), expected, "{records}");
        // Where it does not count nobody is asked.
        assert_eq!(zone.queries("_25._tcp.mx.plain.example") + zone.queries("_25._tcp.a.plain.example"), 0);
    }
    let zone = zone(&format!("{MX}mx.example.net A 192.0.2.1\n_25._tcp.mx.example.net TLSA KEY"));
    let without = RouteOptions::default();
    let route =
        find_route(&zone, &"example.net".parse().unwrap(), &without, Freshness::Cached).await.unwrap();
    assert_eq!((shown(&route).as_str(), zone.queries("_25._tcp.mx.example.net")), ("mx.example.net=-", 0));
}

/// RFC 7672 §3.2.3: the base domain, the mail's domain, and where that leads to.
#[tokio::test]
async fn names_are_those_of_host_and_domain() {
    let records =
        "example.net CNAME mail.provider.example\nmail.provider.example MX 10 mx.provider.example\n\
        mx.provider.example A 192.0.2.1\n_25._tcp.mx.provider.example TLSA KEY"
            .replace("KEY", &KEY.replace('3', "2"));
    let route = find(&zone(&records), "example.net").await.unwrap();
    let names: Vec<_> = route.hosts[0].tlsa.as_ref().unwrap().names().cloned().collect();
    assert_eq!(names, ["mx.provider.example", "example.net", "mail.provider.example"].map(Into::into));
}

/// RFC 7672 §2.1.2: what could not be found out is never "no records".
#[tokio::test]
async fn a_host_whose_records_are_not_known_is_not_used() {
    let both = "example.net MX 10 mx.example.net\nexample.net MX 20 mx2.example.net\nmx.example.net 900 A 192.0.2.1\n\
        mx2.example.net 900 A 192.0.2.2\n_25._tcp.mx2.example.net 900 TLSA KEY";
    for kind in
        [DnsErrorKind::ServFail, DnsErrorKind::Timeout, DnsErrorKind::Refused, DnsErrorKind::Malformed]
    {
        let zone = zone(both);
        zone.fail("_25._tcp.mx.example.net", kind);
        let route = find(&zone, "example.net").await.unwrap();
        assert_eq!(shown(&route), "mx.example.net=! mx2.example.net=mx2.example.net", "{kind:?}");
        assert_eq!(route.ttl.as_secs(), 60, "soon it is asked again");
        zone.fail("_25._tcp.mx2.example.net", kind);
        let failure = find(&zone, "example.net").await.unwrap_err();
        assert_eq!((failure.kind, failure.is_permanent()), (RouteFailureKind::Dane, false));
        assert_eq!(failure.status().to_string(), "4.7.0");
        let expected =
            "example.net: DANE: what its hosts demand is not known: TLSA of _25._tcp.mx.example.net: ";
        assert!(failure.to_string().starts_with(expected), "{failure}");
    }
    let bogus = zone(both);
    bogus.set_dnssec("_tcp.mx.example.net", Dnssec::Bogus);
    assert_eq!(
        shown(&find(&bogus, "example.net").await.unwrap()),
        "mx.example.net=! mx2.example.net=mx2.example.net"
    );
    // Whether the alias is signed is not known.
    let alias = zone(
        "example.net MX 10 mx.example.net\nmx.example.net CNAME a.plain.example\na.plain.example A 192.0.2.1",
    );
    #[derive(Debug)]
    struct NoCname(StaticResolver, DnsErrorKind);
    for (kind, expected) in
        [(DnsErrorKind::ServFail, None), (DnsErrorKind::Unsupported, Some("mx.example.net=-"))]
    {
        let found = find(&NoCname(alias.clone(), kind), "example.net").await;
        match expected {
            Some(expected) => assert_eq!(shown(&found.unwrap()), expected),
            None => assert_eq!(found.unwrap_err().kind, RouteFailureKind::Dane),
        }
    }
    impl std::fmt::Display for NoCname {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("no cname")
        }
    }
    #[async_trait::async_trait]
    impl Resolver for NoCname {
        async fn mx(&self, name: &str, freshness: Freshness) -> Result<Answer<MxRecord>, DnsError> {
            self.0.mx(name, freshness).await
        }
        async fn ipv4(&self, name: &str, freshness: Freshness) -> Result<Answer<Ipv4Addr>, DnsError> {
            self.0.ipv4(name, freshness).await
        }
        async fn ipv6(&self, name: &str, freshness: Freshness) -> Result<Answer<Ipv6Addr>, DnsError> {
            self.0.ipv6(name, freshness).await
        }
        async fn cname(&self, _: &str, _: Freshness) -> Result<Answer<std::sync::Arc<str>>, DnsError> {
            Err(DnsError::new(self.1, "CNAME"))
        }
    }
    // This machine's own trouble is no news of the host.
    let zone = zone("example.net A 192.0.2.1");
    zone.fail("_25._tcp.example.net", DnsErrorKind::Unreachable);
    assert!(find(&zone, "example.net").await.unwrap_err().kind.is_local());
    zone.fail("_25._tcp.example.net", DnsErrorKind::Unsupported);
    assert_eq!(shown(&find(&zone, "example.net").await.unwrap()), "example.net=-");
}

#[tokio::test]
async fn a_route_holds_as_long_as_its_records() {
    let records = "example.net 900 MX 10 mx.example.net\nmx.example.net 900 A 192.0.2.1\n_25._tcp.mx.example.net 90 TLSA KEY";
    assert_eq!(find(&zone(records), "example.net").await.unwrap().ttl.as_secs(), 90);
    let none = "example.net 900 MX 10 mx.example.net\nmx.example.net 900 A 192.0.2.1";
    assert_eq!(find(&zone(none), "example.net").await.unwrap().ttl.as_secs(), 300);
}

/// RFC 7672 §2.2.2: a name that was configured needs no MX to be believed.
#[tokio::test]
async fn fixed_hosts_have_records_for_their_port() {
    let zone =
        zone("mx.example.net A 192.0.2.1\nmx.plain.example A 192.0.2.2\n_587._tcp.mx.example.net TLSA KEY");
    let host = |text: &str| text.parse::<FixedHost>().unwrap();
    let groups = [vec![host("mx.example.net:587"), host("mx.plain.example:587"), host("[192.0.2.7]")]];
    let route = find_fixed_route(&zone, &groups, &options()).await.unwrap();
    assert_eq!(shown(&route), "mx.example.net=mx.example.net mx.plain.example=- [192.0.2.7]=-");
}

/// Answers that stand in while DNS is away neither take DANE from a host nor vouch for one.
#[tokio::test(start_paused = true)]
async fn answers_past_their_time_demand_what_they_did() {
    let zone = zone(
        "example.net 60 MX 10 mx.example.net\nmx.example.net 60 A 192.0.2.1\n_25._tcp.mx.example.net 600 TLSA KEY",
    );
    let clock = Clock::starting_at(Timestamp::from_unix_seconds(1_000));
    let cache = CachingResolver::new(zone.clone(), clock);
    let expected = "mx.example.net=mx.example.net";
    assert_eq!(shown(&find(&cache, "example.net").await.unwrap()), expected);
    let names = ["example.net", "mx.example.net", "_25._tcp.mx.example.net"];
    names.iter().for_each(|name| zone.fail(name, DnsErrorKind::ServFail));
    tokio::time::advance(Duration::from_secs(120)).await;
    let route = find(&cache, "example.net").await.unwrap();
    assert_eq!((shown(&route).as_str(), route.ttl.as_secs()), (expected, 30), "records within their TTL");
    tokio::time::advance(Duration::from_secs(600)).await;
    let failure = find(&cache, "example.net").await.unwrap_err();
    assert_eq!((failure.kind, failure.is_permanent()), (RouteFailureKind::Dane, false));
    zone.recover("_25._tcp.mx.example.net");
    assert_eq!(shown(&find(&cache, "example.net").await.unwrap()), expected, "MX and address stand in");
}

/// Answers after a while, to questions for names that begin so.
#[derive(Debug)]
struct Slow(StaticResolver, &'static str, Duration);

impl Slow {
    #[allow(clippy::disallowed_methods, reason = "a server that takes its time")]
    async fn wait(&self, name: &str) {
        if name.starts_with(self.1) {
            tokio::time::sleep(self.2).await;
        }
    }
}

impl std::fmt::Display for Slow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("slow")
    }
}

#[async_trait::async_trait]
impl Resolver for Slow {
    async fn mx(&self, name: &str, freshness: Freshness) -> Result<Answer<MxRecord>, DnsError> {
        self.wait(name).await;
        self.0.mx(name, freshness).await
    }
    async fn ipv4(&self, name: &str, freshness: Freshness) -> Result<Answer<Ipv4Addr>, DnsError> {
        self.wait(name).await;
        self.0.ipv4(name, freshness).await
    }
    async fn ipv6(&self, name: &str, freshness: Freshness) -> Result<Answer<Ipv6Addr>, DnsError> {
        self.0.ipv6(name, freshness).await
    }
    async fn tlsa(&self, name: &str, freshness: Freshness) -> Result<Answer<TlsaRecord>, DnsError> {
        self.wait(name).await;
        self.0.tlsa(name, freshness).await
    }
}

/// What is not answered in time is not known; nothing is left out that a host may demand.
#[tokio::test(start_paused = true)]
async fn all_of_a_look_up_has_a_limit() {
    let slow = |prefix, seconds| {
        let records = (0..20).map(|n| {
            format!("example.net MX {n} mx{n}.example.net\nmx{n}.example.net A 192.0.2.{n}\n_25._tcp.mx{n}.example.net TLSA KEY\n")
        });
        Slow(zone(&records.collect::<String>()), prefix, Duration::from_secs(seconds))
    };
    let clock = Clock::starting_at(Timestamp::from_unix_seconds(1_000));
    for (prefix, seconds, took, expected) in [
        ("example.net", 70, 60, Err(RouteFailureKind::LookUp(DnsErrorKind::Timeout))),
        ("mx", 70, 60, Err(RouteFailureKind::LookUp(DnsErrorKind::Timeout))),
        ("_25", 70, 60, Err(RouteFailureKind::Dane)),
        // Eight hosts at a time: the last are not reached.
        ("_25", 25, 60, Ok(16)),
        ("mx", 25, 60, Ok(16)),
        ("_25", 19, 57, Ok(20)),
    ] {
        let (begun, resolver) = (clock.now(), slow(prefix, seconds));
        let found = find(&resolver, "example.net").await;
        let usable = |route: Route| {
            let shown = shown_with_unknown(&route);
            shown.iter().filter(|host| host.ends_with("example.net")).count()
        };
        assert_eq!(found.map(usable).map_err(|failure| failure.kind), expected, "{prefix} {seconds}");
        assert_eq!(clock.now().saturating_since(begun).as_secs(), took, "{prefix} {seconds}");
    }
}

/// Each host: `name=base`, `name=!` if it is barred, the name alone if it has no address.
fn shown_with_unknown(route: &Route) -> Vec<String> {
    let host = |host: &super::super::RouteHost| match &host.tlsa {
        _ if host.barred => format!("{}=!", host.name),
        _ if !host.has_address() => format!("{}=?", host.name),
        Some(set) => format!("{}={}", host.name, set.base()),
        None => format!("{}=-", host.name),
    };
    route.hosts.iter().map(host).collect()
}

/// A host with more records than are read is not used, whoever answers.
#[tokio::test]
async fn records_beyond_the_bound_bar_the_host() {
    for (count, octets, fits) in [(32, 32, true), (33, 32, false), (2, 8_192, true), (2, 8_193, false)] {
        let record =
            |n: usize| format!("_25._tcp.mx.example.net TLSA 3 1 {} {}\n", n + 1, "00".repeat(octets));
        let records: String = (0..count).map(record).collect();
        let zone = zone(&format!("example.net MX 10 mx.example.net\nmx.example.net A 192.0.2.1\n{records}"));
        let found = find(&zone, "example.net").await;
        assert_eq!(
            found.map(|route| shown(&route)).map_err(|failure| failure.kind),
            match fits {
                true => Ok("mx.example.net=mx.example.net".to_owned()),
                false => Err(RouteFailureKind::Dane),
            }
        );
    }
}
