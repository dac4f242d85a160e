use super::*;
use crate::mta_sts::FetchErrorKind;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

fn policy(mode: &str) -> Arc<KnownPolicy> {
    let text = format!("version: STSv1\nmode: {mode}\nmx: mx.example.net\nmax_age: 86400");
    KnownPolicy::for_tests("1", &text)
}

/// Of the policies that are kept.
fn octets(counts: &Counts) -> usize {
    let domains = counts.types.values().flat_map(|domains| domains.by_name.values());
    domains.filter_map(|domain| domain.policy.as_ref()).map(|(policy, _)| policy.weight()).sum()
}

/// What is kept is what the shares have.
fn is_consistent(counts: &Counts) -> bool {
    let mut policies = counts.policies.clone();
    let mut is_so = true;
    for domains in counts.types.values() {
        let mut shares = domains.shares.clone();
        for (name, domain) in &domains.by_name {
            shares.remove(&domain_held(name, domain.tick));
            if let Some((policy, tick)) = &domain.policy {
                policies.remove(&policy_held(policy, *tick));
            }
        }
        is_so &= shares.is_empty();
    }
    is_so && policies.is_empty()
}

#[test]
fn a_report_is_taken_once() {
    let mut counts = Counts::new(at(5));
    let mut failed = |result: TlsResult| counts.count(Type::Sts, "a.example", Err(Kind::of(result)));
    failed(FetchErrorKind::NoAnswer.into());
    failed(FetchErrorKind::NoAnswer.into());
    failed(FetchErrorKind::Certificate.into());
    counts.nothing_permitted(&policy("enforce"));
    let report = counts.take(at(9));
    assert_eq!((report.since, report.until, report.domains.len()), (at(5), at(9), 2));
    let failure =
        |result, count| TlsFailures { result, mx: None, receiving_ip: None, sending_ip: None, count };
    let expected = [failure(TlsResult::StsPolicyFetchError, 2), failure(TlsResult::StsWebpkiInvalid, 1)];
    assert_eq!(report.domains[0].failures, expected);
    assert_eq!(report.domains[1].policy, TlsPolicy::Sts(Some(policy("enforce"))));
    let next = counts.take(at(10));
    assert_eq!((next.since, next.domains.len()), (at(9), 0));
}

#[test]
fn what_is_counted_is_bounded() {
    let mut counts = Counts::new(at(0));
    for n in 0..MOST_DOMAINS + 7 {
        counts.count(Type::NoPolicyFound, &format!("d{n}.example"), Ok(()));
    }
    counts.count(Type::NoPolicyFound, "d0.example", Ok(()));
    counts.count(Type::Sts, "other.example", Ok(()));
    let report = counts.take(at(1));
    assert_eq!((report.domains.len(), report.uncounted), (MOST_DOMAINS + 1, 7));
    let mut domain = Domain::default();
    for n in 0..100u8 {
        let (host, address) = (format!("mx{n}.example").into(), IpAddr::from([192, 0, 2, n]));
        let kind = Kind::of(TlsResult::CertificateExpired);
        domain.failed(Kind { mx: Some(host), receiving_ip: Some(address), ..kind });
    }
    assert_eq!(domain.failures.len(), MOST_FAILURES + 1);
    assert_eq!(domain.failures[&Kind::of(TlsResult::CertificateExpired)], 68);
}

#[test]
fn policies_kept_for_a_report_have_a_bound() {
    let long = "mx: a123456789.b123456789.c123456789.d123456789.example\n".repeat(128);
    let of = |domain: String, mx: &str| {
        let text = format!("version: STSv1\nmode: enforce\nmax_age: 1\n{mx}");
        KnownPolicy::of_domain_for_tests(&domain, &text)
    };
    let mut counts = Counts::new(at(0));
    for n in 0..2_000 {
        counts.nothing_permitted(&of(format!("d{n}.example"), &long));
    }
    assert!((MOST_OCTETS - 10_000..=MOST_OCTETS).contains(&octets(&counts)), "{}", octets(&counts));
    // Another policy of a domain takes the place of the one before.
    for n in 0..2_000 {
        counts.nothing_permitted(&of(format!("d{n}.example"), "mx: a.example\n"));
    }
    assert!(is_consistent(&counts));
    let report = counts.take(at(1));
    let has_policy = |of: &&DomainTls| matches!(of.policy, TlsPolicy::Sts(Some(_)));
    assert_eq!(report.domains.iter().filter(has_policy).count(), 2_000);
    assert_eq!((octets(&counts), report.domains[0].failures[0].count), (0, 2));
}

/// Who has names without end displaces nobody else's counters and policies.
#[test]
fn an_owner_with_many_names_displaces_its_own_counters() {
    let mx = "mx: a123456789.b123456789.c123456789.d123456789.example\n".repeat(16);
    let text = format!("version: STSv1\nmode: testing\nmax_age: 1\n{mx}");
    let failed = |counts: &mut Counts, domain: &str| {
        counts.nothing_permitted(&KnownPolicy::of_domain_for_tests(domain, &text));
    };
    for suffix in ["flood.example", "flood.co.uk"] {
        let mut counts = Counts::new(at(0));
        (0..MOST_DOMAINS + 100).for_each(|n| failed(&mut counts, &format!("s{n}.{suffix}")));
        (0..500).for_each(|n| failed(&mut counts, &format!("d{n}.co.uk")));
        // Without room for more, whoever comes from a small owner takes the place of one of the large one's.
        (0..MOST_DOMAINS).for_each(|n| failed(&mut counts, &format!("t{n}.{suffix}")));
        assert!(is_consistent(&counts));
        let report = counts.take(at(1));
        let others: Vec<&DomainTls> = report.domains.iter().filter(|of| of.domain.starts_with('d')).collect();
        let with_policy = |of: &&&DomainTls| matches!(of.policy, TlsPolicy::Sts(Some(_)));
        assert_eq!((others.len(), others.iter().filter(with_policy).count()), (500, 500), "{suffix}");
        let all: u64 = report.domains.iter().flat_map(|of| &of.failures).map(|failures| failures.count).sum();
        assert_eq!(
            (report.domains.len(), all + report.uncounted),
            (MOST_DOMAINS, 2 * MOST_DOMAINS as u64 + 600)
        );
    }
}
