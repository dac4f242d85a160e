use super::*;

const ZONE: &str = "
    ; a comment
    example.net.     600 IN MX 10 mx.example.net.   ; and another
    example.net.     IN 60  MX 20 Mx2.Example.NET
    mx.example.net.  A 192.0.2.1
    mx.example.net.  AAAA 2001:db8::1
    a.b.example.org  A 192.0.2.2
    alias.example.   30 CNAME example.net.
    dangling.example. CNAME nowhere.example.
    loop1.example.   CNAME loop2.example.
    loop2.example.   CNAME loop1.example.
    silent.example.  MX 0 .
";

fn mx(preference: u16, exchange: &str) -> MxRecord {
    MxRecord { preference, exchange: exchange.to_owned() }
}

#[tokio::test]
async fn answers_as_dns_would() {
    let resolver = StaticResolver::parse(ZONE).unwrap();
    let ask = async |name: &str| resolver.mx(name, Freshness::Cached).await;
    let both = vec![mx(10, "mx.example.net"), mx(20, "mx2.example.net")];
    let seconds = Duration::from_secs;
    for (name, expected) in [
        ("example.net", Answer::records(both.clone(), seconds(60))),
        ("Example.NET.", Answer::records(both.clone(), seconds(60))),
        ("alias.example", Answer::records(both, seconds(30)).at(Some("example.net".into()))),
        ("silent.example", Answer::records(vec![mx(0, "")], DEFAULT_TTL)),
        ("mx.example.net", Answer::no_data(DEFAULT_TTL)),
        ("b.example.org", Answer::no_data(DEFAULT_TTL)),
        ("example.org", Answer::no_data(DEFAULT_TTL)),
        ("nowhere.example", Answer::nx_domain(DEFAULT_TTL)),
        ("dangling.example", Answer::nx_domain(DEFAULT_TTL).at(Some("nowhere.example".into()))),
    ] {
        assert_eq!(ask(name).await.unwrap(), expected, "{name}");
    }
    assert_eq!(ask("loop1.example").await.unwrap_err().kind(), DnsErrorKind::ServFail);
    let ipv6 = resolver.ipv6("mx.example.net", Freshness::Fresh).await.unwrap();
    assert_eq!(ipv6, Answer::records(vec!["2001:db8::1".parse().unwrap()], DEFAULT_TTL));
}

#[tokio::test]
async fn text_is_taken_as_it_stands() {
    let zone = r#"
        a.example. TXT "v=STSv1; id=1;"  ; a comment with a "
        a.example. 60 IN txt "one  " "two" ""
        b.example. TXT "say \"no\"; \\"
        c.example. TXT ""
    "#;
    let resolver = StaticResolver::parse(zone).unwrap();
    let txt = async |name: &str| resolver.txt(name, Freshness::Cached).await.unwrap();
    let seconds = Duration::from_secs;
    for (name, records, ttl) in [
        ("a.example", &["v=STSv1; id=1;", "one  two"][..], seconds(60)),
        ("b.example", &[r#"say "no"; \"#], DEFAULT_TTL),
        ("c.example", &[""], DEFAULT_TTL),
    ] {
        let records = records.iter().map(|&text| text.into()).collect();
        assert_eq!(txt(name).await, Answer::records(records, ttl), "{name}");
    }
    assert_eq!(txt("example").await, Answer::no_data(DEFAULT_TTL));
}

#[tokio::test]
async fn lies_when_told_and_counts() {
    let resolver = StaticResolver::parse(ZONE).unwrap();
    let clone = resolver.clone();
    clone.fail("example.net", DnsErrorKind::Timeout);
    let error = resolver.mx("alias.example", Freshness::Cached).await.unwrap_err();
    assert_eq!(error.kind(), DnsErrorKind::Timeout);
    assert_eq!(error.to_string(), "MX of alias.example: no answer in time");
    clone.recover("example.net");
    assert!(resolver.mx("alias.example", Freshness::Cached).await.is_ok());
    assert_eq!((resolver.queries("ALIAS.example."), resolver.queries("example.net")), (2, 0));

    clone.set_zone("alias.example A 192.0.2.9").unwrap();
    assert_eq!(resolver.mx("alias.example", Freshness::Cached).await.unwrap(), Answer::no_data(DEFAULT_TTL));
}

#[test]
fn bad_lines_are_named() {
    for (text, message) in [
        (
            "\nexample.net. MX mx.example.net.",
            "line 2: expected a preference (0 to 65535) and a name, such as `10 mx.example.net.`, found `mx.example.net.`",
        ),
        (
            "example.net. MX 70000 mx.example.net.",
            "line 1: expected a preference (0 to 65535) and a name, such as `10 mx.example.net.`, found `70000 mx.example.net.`",
        ),
        (
            "example.net. SRV hello",
            "line 1: expected a type after owner, TTL and class: MX, A, AAAA, TXT, TLSA or CNAME, found `SRV`",
        ),
        (
            "example.net. TXT hello",
            "line 1: expected text in quotation marks, such as \"v=STSv1; id=1;\", found `hello`",
        ),
        (
            "example.net. TXT \"hello ; world",
            "line 1: expected text in quotation marks, such as \"v=STSv1; id=1;\", found `\"hello ; world`",
        ),
        (
            "example.net. TXT \"a\" b",
            "line 1: expected text in quotation marks, such as \"v=STSv1; id=1;\", found `\"a\" b`",
        ),
        (
            "example.net. 300 IN",
            "line 1: expected a type after owner, TTL and class: MX, A, AAAA, TXT, TLSA or CNAME, found ``",
        ),
        (
            "example.net. A 192.0.2.256",
            "line 1: expected one IPv4 address, such as 192.0.2.1, found `192.0.2.256`",
        ),
        (
            "a.example TLSA 3 1 1 abc",
            "line 1: expected three numbers (0 to 255) and octets in hexadecimal, such as `3 1 1 8CB0…`, found `3 1 1 abc`",
        ),
        (
            "a.example TLSA 256 1 1 ab",
            "line 1: expected three numbers (0 to 255) and octets in hexadecimal, such as `3 1 1 8CB0…`, found `256 1 1 ab`",
        ),
        (
            "exa mple A 192.0.2.1",
            "line 1: expected a type after owner, TTL and class: MX, A, AAAA, TXT, TLSA or CNAME, found `mple`",
        ),
        ("a..b A 192.0.2.1", "line 1: `a..b` is not a domain name like mx.example.net."),
        (
            "a.example A 192.0.2.1\na.example CNAME b.example",
            "line 2: a.example has a CNAME: no other record can stand beside it",
        ),
    ] {
        assert_eq!(StaticResolver::parse(text).unwrap_err().to_string(), message);
    }
    let resolver = StaticResolver::parse("a.example A 192.0.2.1").unwrap();
    assert!(resolver.set_zone("?").is_err());
    assert!(resolver.lock().zone.nodes.contains_key("a.example"));
}
