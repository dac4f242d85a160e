use super::*;
use crate::policy::StartTls;
use crate::reply::{Reply, Stage};
use crate::transport::EndCause;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

fn policy(mode: &str) -> Arc<KnownPolicy> {
    let text = format!("version: STSv1\nmode: {mode}\nmx: mx.example.net\nmax_age: 86400");
    KnownPolicy::for_tests("1", &text)
}

#[test]
fn sessions_are_judged() {
    let there = |certificate| Ok(SessionTls { is_there: true, certificate: Some(certificate) });
    let error = |cause| ConnectError { stage: Stage::Ehlo, cause };
    let certificate = |problem| error(EndCause::Certificate(problem, String::new()));
    let plain = Ok(SessionTls { is_there: false, certificate: None });
    let unseen = Ok(SessionTls { is_there: true, certificate: None });
    let expired = Err(CertificateProblem::Expired);
    for (mode, host, session, expected) in [
        ("enforce", "mx.example.net", there(Ok(())), Some(Ok(()))),
        ("testing", "mx.example.net", there(Ok(())), Some(Ok(()))),
        ("testing", "mx.example.net", plain, Some(Err("starttls-not-supported"))),
        ("testing", "mx2.example.net", there(Ok(())), Some(Err("validation-failure"))),
        ("testing", "mx.example.net", there(expired), Some(Err("certificate-expired"))),
        // Opened before the policy was known.
        ("enforce", "mx.example.net", there(expired), Some(Err("certificate-expired"))),
        (
            "enforce",
            "mx.example.net",
            Err(&error(EndCause::TlsNotOffered)),
            Some(Err("starttls-not-supported")),
        ),
        (
            "enforce",
            "mx.example.net",
            Err(&certificate(CertificateProblem::OtherHost)),
            Some(Err("certificate-host-mismatch")),
        ),
        (
            "enforce",
            "mx.example.net",
            Err(&certificate(CertificateProblem::NotTrusted)),
            Some(Err("certificate-not-trusted")),
        ),
        (
            "enforce",
            "mx.example.net",
            Err(&error(EndCause::Tls(String::new()))),
            Some(Err("validation-failure")),
        ),
        (
            "enforce",
            "mx.example.net",
            Err(&error(EndCause::TlsRefused(Reply::parse("454 4.7.0 not now").unwrap()))),
            Some(Err("starttls-not-supported")),
        ),
        ("enforce", "mx.example.net", Err(&error(EndCause::Closed)), None),
        ("enforce", "mx.example.net", unseen, Some(Ok(()))),
        ("testing", "mx.example.net", unseen, None),
        ("testing", "mx2.example.net", unseen, Some(Err("validation-failure"))),
    ] {
        let judged = judge::by_policy(&policy(mode), host, session);
        let judged = judged.map(|result| result.map_err(TlsResult::as_str));
        assert_eq!(judged, expected, "{mode} {host} {session:?}");
    }
}

/// RFC 8460 §4.2: a session is held to what its host's records say, else to the domain's policy, else to nothing.
#[test]
fn sessions_count_for_what_they_are_held_to() {
    use crate::dns::TlsaRecord;
    let set = |usage| {
        Some(Arc::new(TlsaSet::new("mx.example.net".into(), [], vec![TlsaRecord::new(usage, 1, 1, [1; 32])])))
    };
    let (usable, unusable) = (set(3), set(1));
    let there = || Ok(SessionTls { is_there: true, certificate: Some(Ok(())) });
    // Where nobody is held to it, it makes no difference.
    let odd = || Ok(SessionTls { is_there: true, certificate: Some(Err(CertificateProblem::NotTrusted)) });
    let plain = || Ok(SessionTls { is_there: false, certificate: None });
    let error = |cause| ConnectError { stage: Stage::Ehlo, cause };
    let none = error(EndCause::TlsNotOffered);
    let handshake = error(EndCause::Tls(String::new()));
    let mismatch = error(EndCause::Certificate(CertificateProblem::TlsaMismatch, String::new()));
    let expired = error(EndCause::Certificate(CertificateProblem::Expired, String::new()));
    let closed = error(EndCause::Closed);
    let enforced = || Some(policy("enforce"));
    type Session<'a> = Result<SessionTls, &'a ConnectError>;
    let rows: [(_, _, Session<'_>, &[&str]); 16] = [
        (usable.clone(), None, there(), &["tlsa ok"]),
        (usable.clone(), enforced(), there(), &["tlsa ok"]),
        (usable.clone(), None, Err(&none), &["tlsa starttls-not-supported"]),
        (usable.clone(), None, Err(&handshake), &["tlsa validation-failure"]),
        (usable.clone(), enforced(), Err(&mismatch), &["tlsa validation-failure"]),
        (usable.clone(), None, Err(&expired), &["tlsa certificate-expired"]),
        (usable, None, Err(&closed), &[]),
        (unusable.clone(), None, there(), &["tlsa tlsa-invalid"]),
        (unusable.clone(), enforced(), there(), &["sts ok", "tlsa tlsa-invalid"]),
        (unusable.clone(), enforced(), Err(&expired), &["sts certificate-expired", "tlsa tlsa-invalid"]),
        (unusable, None, Err(&none), &["tlsa starttls-not-supported"]),
        (None, enforced(), there(), &["sts ok"]),
        (None, None, there(), &["no-policy-found ok"]),
        (None, None, odd(), &["no-policy-found ok"]),
        (None, None, plain(), &["no-policy-found starttls-not-supported"]),
        (None, None, Err(&closed), &[]),
    ];
    for (tlsa, mta_sts, session, expected) in rows {
        let target = Target { tlsa, mta_sts, ..Target::for_tests() };
        assert_eq!(counted(&target, session), expected, "{target:?} {session:?}");
    }
    let off = crate::transport::TlsWish { level: StartTls::Off, implicit: false };
    assert!(counted(&Target { tls: off, ..Target::for_tests() }, plain()).is_empty());
}

/// All of it is the target's own.
fn held_to(target: &Target) -> HeldTo<'_> {
    let (host, tlsa, mta_sts) = (&target.host, target.tlsa.as_deref(), target.mta_sts.as_ref());
    HeldTo { domain: target.domain.as_ref().unwrap().as_str(), host, tlsa, mta_sts, target }
}

fn counted(target: &Target, session: Result<SessionTls, &ConnectError>) -> Vec<String> {
    let mut counts = Counts::new(at(0));
    counts.session(&held_to(target), session);
    let report = counts.take(at(1));
    let line = |of: &DomainTls| {
        assert_eq!((&*of.domain, of.successful + of.failures.len() as u64), ("x.example", 1));
        let result = of.failures.first().map_or("ok", |failure| failure.result.as_str());
        format!("{} {result}", of.policy.as_str())
    };
    let mut lines: Vec<String> = report.domains.iter().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn what_is_found_out_without_a_session_counts_too() {
    let counts = TlsCounts::new(Clock::starting_at(at(5)));
    counts.fetch("a.example", FetchErrorKind::NoPolicy);
    counts.records_unknown("a.example", Some(&"mx.a.example".into()));
    counts.records_unknown("a.example", None);
    let report = counts.take();
    let words: Vec<_> = report.domains.iter().map(|of| (of.policy.as_str(), of.failures.len())).collect();
    assert_eq!(words, [("tlsa", 2), ("sts", 1)]);
    let hosts: Vec<_> = report.domains[0].failures.iter().map(|failure| failure.mx.as_deref()).collect();
    assert_eq!(hosts, [None, Some("mx.a.example")]);
}

/// RFC 8460 §4.4: where it failed, and from where.
#[test]
fn failures_say_where_they_were() {
    let mut counts = Counts::new(at(0));
    let error = ConnectError { stage: Stage::Ehlo, cause: EndCause::TlsNotOffered };
    for local in [None, Some(IpAddr::from([203, 0, 113, 7]))] {
        counts.session(&held_to(&Target { local, ..Target::for_tests() }), Err(&error));
    }
    let of = &counts.take(at(1)).domains[0];
    let places: Vec<_> =
        of.failures.iter().map(|of| (of.mx.as_deref(), of.receiving_ip, of.sending_ip)).collect();
    let host = (Some("mx.example.net"), Some(IpAddr::from([192, 0, 2, 1])));
    let expected = [None, Some(IpAddr::from([203, 0, 113, 7]))].map(|from| (host.0, host.1, from));
    assert_eq!(places, expected);
}
