use proptest::prelude::*;

use super::*;
use crate::dns::{CachingResolver, DnsErrorKind, StaticResolver};
use crate::event::{Category, Reason};
use crate::policy::IpFamily;
use crate::reply::EnhancedStatus;

const ZONE: &str = "
    mx.example       300 MX 20 b.hosts.example.
    mx.example       300 MX 10 a.hosts.example.
    mx.example       300 MX 10 c.hosts.example.
    a.hosts.example  60  A 192.0.2.1
    a.hosts.example  60  A 192.0.2.2
    a.hosts.example  90  AAAA 2001:db8::1
    b.hosts.example  A 192.0.2.3
    c.hosts.example  MX 0 .

    implicit.example 120 A 192.0.2.10
    null.example     MX 0 .
    nohost.example   MX 10 nothing.nohost.example.
    www.empty.example A 192.0.2.11
    noaddress.example MX 10 nowhere.example.
    broken.example   MX 10 failing.example.
    broken.example   MX 20 nowhere.example.
    half.example     MX 10 failing.example.
    half.example     MX 20 b.hosts.example.
    loop.example     MX 10 mta.example.org.
    loop.example     MX 20 b.hosts.example.
    local.example    MX 10 localhost.example.
    localhost.example A 127.0.0.1
    localhost.example AAAA ::1
    mapped.example   AAAA ::ffff:127.0.0.1
    mapped4.example  AAAA ::ffff:192.0.2.44
    six.example      MX 10 six.hosts.example.
    six.hosts.example AAAA 2001:db8::6
    odd.example      MX 10 odd.hosts.example.
    odd.hosts.example CNAME a.hosts.example.
";

fn zone() -> StaticResolver {
    let zone = StaticResolver::parse(ZONE).unwrap();
    zone.fail("failing.example", DnsErrorKind::ServFail);
    zone
}

fn options() -> RouteOptions {
    RouteOptions { own_names: vec!["mta.example.org".to_owned()], ..RouteOptions::default() }
}

async fn find(resolver: &dyn Resolver, domain: &str, options: &RouteOptions) -> Result<Route, RouteFailure> {
    find_route(resolver, &domain.parse().unwrap(), options, Freshness::Cached).await
}

fn text(route: &Route) -> String {
    let host = |host: &RouteHost| {
        let addresses: Vec<String> = host.addresses.iter().map(ToString::to_string).collect();
        format!("{}={}", host.name, addresses.join(","))
    };
    let group = |group: &[RouteHost]| {
        group.iter().filter(|host| host.has_address()).map(host).collect::<Vec<_>>().join(" ")
    };
    route.preferences().map(group).filter(|group| !group.is_empty()).collect::<Vec<_>>().join(" / ")
}

#[tokio::test]
async fn routes() {
    for (domain, kind, expected, ttl) in [
        (
            "mx.example",
            RouteKind::Mx,
            "a.hosts.example=192.0.2.1:25,[2001:db8::1]:25,192.0.2.2:25 / b.hosts.example=192.0.2.3:25",
            60,
        ),
        ("implicit.example", RouteKind::Implicit, "implicit.example=192.0.2.10:25", 120),
        ("mapped4.example", RouteKind::Implicit, "mapped4.example=192.0.2.44:25", 300),
        // A CNAME as exchange is followed, the published name stays.
        ("odd.example", RouteKind::Mx, "odd.hosts.example=192.0.2.1:25,[2001:db8::1]:25,192.0.2.2:25", 60),
        // One host's look-up failed: the other serves, and soon DNS is asked again.
        ("half.example", RouteKind::Mx, "b.hosts.example=192.0.2.3:25", 60),
        ("[192.0.2.77]", RouteKind::Literal, "[192.0.2.77]=192.0.2.77:25", 86_400),
        ("[IPv6:2001:db8::7]", RouteKind::Literal, "[IPv6:2001:db8::7]=[2001:db8::7]:25", 86_400),
    ] {
        let route = find(&zone(), domain, &options()).await.unwrap();
        assert_eq!(
            (route.kind, text(&route).as_str(), route.ttl.as_secs()),
            (kind, expected, ttl),
            "{domain}"
        );
    }
    let route = find(&zone(), "mx.example", &options()).await.unwrap();
    let names: Vec<_> = route.exchangers().iter().map(|group| group.join(" ")).collect();
    assert_eq!(names, ["a.hosts.example c.hosts.example", "b.hosts.example"]);
}

#[tokio::test]
async fn failures() {
    let zone = zone();
    zone.fail("down.example", DnsErrorKind::Timeout);
    use RouteFailureKind as Kind;
    for (domain, kind, status, category, reason, message) in [
        (
            "null.example",
            Kind::NullMx,
            EnhancedStatus::new(5, 1, 10),
            Category::RoutingErrors,
            Reason::NullMx,
            "null.example: the domain takes no mail (null MX, RFC 7505)",
        ),
        (
            "nowhere.example",
            Kind::NxDomain,
            EnhancedStatus::new(5, 1, 2),
            Category::BadDomain,
            Reason::NxDomain,
            "nowhere.example: the domain does not exist (NXDOMAIN)",
        ),
        (
            "empty.example",
            Kind::NoHost,
            EnhancedStatus::new(5, 4, 4),
            Category::BadDomain,
            Reason::NoHost,
            "empty.example: the domain has neither MX nor A nor AAAA",
        ),
        (
            "loop.example",
            Kind::MailLoop,
            EnhancedStatus::new(5, 4, 6),
            Category::RoutingErrors,
            Reason::MailLoop,
            "loop.example: its most preferred MX is this host: mail would loop",
        ),
        (
            "noaddress.example",
            Kind::NoAddress,
            EnhancedStatus::new(4, 4, 4),
            Category::RoutingErrors,
            Reason::NoAddress,
            "noaddress.example: none of its hosts has an address (A or AAAA)",
        ),
        (
            "broken.example",
            Kind::LookUp(DnsErrorKind::ServFail),
            EnhancedStatus::new(4, 4, 3),
            Category::RoutingErrors,
            Reason::LookUpFailed,
            "broken.example: no address found, and a look-up failed: A of failing.example: the server could not answer (SERVFAIL)",
        ),
        (
            "down.example",
            Kind::LookUp(DnsErrorKind::Timeout),
            EnhancedStatus::new(4, 4, 3),
            Category::RoutingErrors,
            Reason::LookUpFailed,
            "down.example: look-up of MX failed: MX of down.example: no answer in time",
        ),
        (
            "local.example",
            Kind::Prohibited,
            EnhancedStatus::new(4, 4, 4),
            Category::RoutingErrors,
            Reason::ProhibitedAddress,
            "local.example: its addresses, such as 127.0.0.1, are of a kind that is never tried",
        ),
        (
            "mapped.example",
            Kind::Prohibited,
            EnhancedStatus::new(4, 4, 4),
            Category::RoutingErrors,
            Reason::ProhibitedAddress,
            "mapped.example: its addresses, such as 127.0.0.1, are of a kind that is never tried",
        ),
        (
            "[127.0.0.1]",
            Kind::Prohibited,
            EnhancedStatus::new(4, 4, 4),
            Category::RoutingErrors,
            Reason::ProhibitedAddress,
            "[127.0.0.1]: its addresses, such as 127.0.0.1, are of a kind that is never tried",
        ),
    ] {
        let failure = find(&zone, domain, &options()).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{domain}");
        assert_eq!(failure.message, message);
        assert_eq!(
            (failure.status(), failure.reason().category(), failure.reason()),
            (status, category, reason)
        );
        assert_eq!(failure.is_permanent(), status.class == 5, "{domain}");
    }
}

#[tokio::test]
async fn families() {
    let with =
        |families, ipv4_source, ipv6_source| RouteOptions { families, ipv4_source, ipv6_source, ..options() };
    let usable = |route: Result<Route, RouteFailure>| route.map(|r| text(&r)).map_err(|f| f.kind);
    use RouteFailureKind::NoRouteForFamily;
    for (domain, options, expected) in [
        ("six.example", with(IpFamily::Both, true, true), Ok("six.hosts.example=[2001:db8::6]:25")),
        ("six.example", with(IpFamily::Both, true, false), Err(NoRouteForFamily)),
        ("six.example", with(IpFamily::Ipv4, true, true), Err(NoRouteForFamily)),
        ("implicit.example", with(IpFamily::Ipv6, true, true), Err(NoRouteForFamily)),
        ("implicit.example", with(IpFamily::Both, false, false), Err(NoRouteForFamily)),
        ("odd.example", with(IpFamily::Ipv6, true, true), Ok("odd.hosts.example=[2001:db8::1]:25")),
        ("[IPv6:2001:db8::7]", with(IpFamily::Both, true, false), Err(NoRouteForFamily)),
        // No address of any family stays what it is.
        ("empty.example", with(IpFamily::Ipv4, true, true), Err(RouteFailureKind::NoHost)),
        ("noaddress.example", with(IpFamily::Both, true, false), Err(RouteFailureKind::NoAddress)),
    ] {
        let found = usable(find(&zone(), domain, &options).await);
        assert_eq!(found, expected.map(str::to_owned), "{domain} {options:?}");
    }
    // The family not used is not asked for while it does not matter.
    let zone = zone();
    find(&zone, "implicit.example", &with(IpFamily::Ipv4, true, true)).await.unwrap();
    assert_eq!(zone.queries("implicit.example"), 2);
}

#[tokio::test(start_paused = true)]
async fn before_a_permanent_failure_dns_is_asked_once_more() {
    let clock = crate::clock::Clock::starting_at(crate::clock::Timestamp::from_unix_seconds(1));
    for (before, after) in [
        ("", "new.example MX 10 a.example\na.example A 192.0.2.1"),
        ("new.example MX 0 .", "new.example MX 10 a.example\na.example A 192.0.2.1"),
        ("sub.new.example A 192.0.2.2", "new.example A 192.0.2.1"),
        ("new.example MX 0 mta.example.org", "new.example MX 10 a.example\na.example A 192.0.2.1"),
    ] {
        let zone = StaticResolver::parse(before).unwrap();
        let cache = CachingResolver::new(zone.clone(), clock.clone());
        assert!(find(&cache, "new.example", &options()).await.unwrap_err().is_permanent());
        zone.set_zone(after).unwrap();
        assert!(find(&cache, "new.example", &options()).await.is_ok(), "{before:?}");
    }
    // What was permanent by the cache is not while DNS can not be asked.
    let zone = StaticResolver::new();
    let cache = CachingResolver::new(zone.clone(), clock);
    assert!(find(&cache, "gone.example", &options()).await.unwrap_err().is_permanent());
    zone.fail("gone.example", DnsErrorKind::ServFail);
    let failure = find(&cache, "gone.example", &options()).await.unwrap_err();
    assert_eq!(failure.kind, RouteFailureKind::LookUp(DnsErrorKind::ServFail));
}

#[tokio::test(start_paused = true)]
async fn stale_answers_deliver_but_do_not_bounce() {
    let clock = crate::clock::Clock::starting_at(crate::clock::Timestamp::from_unix_seconds(1));
    let zone = zone();
    let cache = CachingResolver::new(zone.clone(), clock);
    find(&cache, "mx.example", &options()).await.unwrap();
    find(&cache, "null.example", &options()).await.unwrap_err();
    for name in ["mx.example", "a.hosts.example", "b.hosts.example", "c.hosts.example", "null.example"] {
        zone.fail(name, DnsErrorKind::Timeout);
    }
    tokio::time::advance(Duration::from_secs(3_600)).await;
    assert_eq!(find(&cache, "mx.example", &options()).await.unwrap().preferences().count(), 2);
    let failure = find(&cache, "null.example", &options()).await.unwrap_err();
    assert_eq!(failure.kind, RouteFailureKind::LookUp(DnsErrorKind::Timeout));
}

#[tokio::test]
async fn fixed_hosts_need_no_mx_and_may_be_local() {
    let groups = |text: &[&[&str]]| -> Vec<Vec<FixedHost>> {
        text.iter().map(|group| group.iter().map(|host| host.parse().unwrap()).collect()).collect()
    };
    let zone = zone();
    let route = find_fixed_route(
        &zone,
        &groups(&[
            &["[127.0.0.9]:2525", "implicit.example"],
            &["nowhere.example"],
            &["mx.example", "localhost.example:26"],
        ]),
        &RouteOptions { port: 587, ..options() },
    )
    .await
    .unwrap();
    assert_eq!(
        text(&route),
        "[127.0.0.9]=127.0.0.9:2525 implicit.example=192.0.2.10:587 / localhost.example=127.0.0.1:26,[::1]:26"
    );
    assert_eq!(route.kind, RouteKind::Fixed);

    let failure = find_fixed_route(&zone, &groups(&[&["nowhere.example"]]), &options()).await.unwrap_err();
    assert_eq!(failure.kind, RouteFailureKind::NoAddress);
    assert!(failure.message.starts_with("fixed hosts nowhere.example: "));
    let failure = find_fixed_route(&zone, &groups(&[&["failing.example"]]), &options()).await.unwrap_err();
    assert_eq!(failure.kind, RouteFailureKind::LookUp(DnsErrorKind::ServFail));
    let failure = find_fixed_route(&zone, &[], &options()).await.unwrap_err();
    assert!(!failure.is_permanent());
}

proptest! {
    #[test]
    fn a_route_always_has_an_address_and_never_a_prohibited_one(
        hosts in prop::collection::vec((0u16..4, prop::collection::vec(any::<[u8; 4]>(), 0..3)), 0..6),
        ipv4_source in any::<bool>(),
    ) {
        let mut text = String::new();
        for (n, (preference, addresses)) in hosts.iter().enumerate() {
            text += &format!("d.example MX {preference} h{n}.example\n");
            for address in addresses {
                text += &format!("h{n}.example A {}\n", std::net::Ipv4Addr::from(*address));
            }
        }
        let zone = StaticResolver::parse(&text).unwrap();
        let options = RouteOptions { ipv4_source, ..options() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        if let Ok(route) = runtime.block_on(find(&zone, "d.example", &options)) {
            prop_assert!(route.hosts.iter().any(RouteHost::has_address));
            prop_assert!(route.hosts.is_sorted_by_key(|host| host.preference));
            for host in &route.hosts {
                prop_assert!(host.addresses.iter().all(|a| ipv4_source && !options.is_prohibited(a.ip())));
            }
        }
    }
}
