#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "the helpers of tests")]

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::crypto::ring as provider;

use super::*;

const BASE: &str = "mx.example.net";

/// Root, one between, and a host's own certificate.
struct Chain {
    root: CertificateDer<'static>,
    between: CertificateDer<'static>,
    own: CertificateDer<'static>,
}

fn authority(name: &str) -> (CertificateParams, KeyPair) {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, name);
    (parameters, KeyPair::generate().unwrap())
}

fn chain(host: &str, until: i32) -> Chain {
    let (root, root_key) = authority("root");
    let (between, between_key) = authority("between");
    let root_certificate = root.self_signed(&root_key).unwrap();
    let by_root = Issuer::new(root, root_key);
    let between_certificate = between.signed_by(&between_key, &by_root).unwrap();
    let by_between = Issuer::new(between, between_key);
    let mut own = CertificateParams::new(vec![host.to_owned()]).unwrap();
    own.not_after = date_time_ymd(until, 1, 1);
    let own = own.signed_by(&KeyPair::generate().unwrap(), &by_between).unwrap();
    Chain {
        root: root_certificate.der().clone(),
        between: between_certificate.der().clone(),
        own: own.der().clone(),
    }
}

fn record(usage: u8, selector: u8, matching_type: u8, certificate: &CertificateDer<'_>) -> TlsaRecord {
    let selected = match selector {
        0 => certificate.to_vec(),
        _ => ParsedCertificate::try_from(certificate).unwrap().subject_public_key_info().to_vec(),
    };
    let data = match matching_type {
        0 => selected,
        1 => digest::digest(&digest::SHA256, &selected).as_ref().to_vec(),
        _ => digest::digest(&digest::SHA512, &selected).as_ref().to_vec(),
    };
    TlsaRecord::new(usage, selector, matching_type, data)
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000))
}

/// What comes of a chain for a host at `mx.example.net`, of mail to `example.net`.
fn verify(records: Vec<TlsaRecord>, chain: &[&CertificateDer<'static>]) -> Result<(), String> {
    let set = TlsaSet::new(BASE.into(), ["example.net".into()], records);
    assert!(set.authenticates());
    let verifier = TlsaVerifier::new(Arc::new(set), &provider::default_provider());
    let (own, others) = chain.split_first().unwrap();
    let others: Vec<CertificateDer<'_>> = others.iter().map(|&other| other.clone()).collect();
    // The name asked for is no matter of the verifier's.
    let name = ServerName::try_from("another.example").unwrap();
    let verified = verifier.verify_server_cert(own, &others, &name, &[], now());
    verified.map(|_| ()).map_err(|error| match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.0.to_string(),
        error => error.to_string(),
    })
}

const NO_MATCH: Result<(), &str> = Err("the certificate matches none of the host's TLSA records");

fn as_str(result: &Result<(), String>) -> Result<(), &str> {
    result.as_ref().map(|_| ()).map_err(String::as_str)
}

const ALL: [(u8, u8); 6] = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)];

/// RFC 7672 §3.1.1.
#[test]
fn the_hosts_own_certificate_needs_nothing_else() {
    let stranger = chain("www.example.org", 2021);
    let other = chain(BASE, 4096);
    for (selector, matching) in ALL {
        let records = vec![record(3, selector, matching, &stranger.own)];
        for sent in [&[&stranger.own][..], &[&stranger.own, &other.between], &[&stranger.own, &stranger.own]]
        {
            assert_eq!(verify(records.clone(), sent), Ok(()), "{selector} {matching}");
        }
        assert_eq!(as_str(&verify(records.clone(), &[&other.own])), NO_MATCH, "{selector} {matching}");
        // It is not among the others.
        assert_eq!(as_str(&verify(records, &[&other.own, &stranger.own])), NO_MATCH);
        // Nor is who has signed it the host.
        let records = vec![record(3, selector, matching, &other.between)];
        assert_eq!(as_str(&verify(records, &[&other.own, &other.between])), NO_MATCH);
    }
}

/// RFC 7672 §3.1.2.
#[test]
fn who_has_signed_it_must_be_the_one() {
    let chain_of = chain(BASE, 4096);
    let Chain { root, between, own } = &chain_of;
    let other = chain(BASE, 4096);
    for (selector, matching) in ALL {
        let of = |certificate| vec![record(2, selector, matching, certificate)];
        assert_eq!(verify(of(root), &[own, between, root]), Ok(()), "{selector} {matching}");
        assert_eq!(verify(of(root), &[own, root, between]), Ok(()), "{selector} {matching}");
        assert_eq!(verify(of(between), &[own, between]), Ok(()), "{selector} {matching}");
        assert_eq!(verify(of(between), &[own, between, root]), Ok(()), "{selector} {matching}");
        // The server need not send what the record has in full.
        assert_eq!(verify(of(root), &[own, between]).is_ok(), matching == 0, "{selector} {matching}");
        assert_eq!(verify(of(between), &[own]).is_ok(), matching == 0, "{selector} {matching}");
        // A chain with a gap.
        assert!(verify(of(root), &[own, root]).is_err(), "{selector} {matching}");
        // Sent along, and has signed nothing of it.
        assert!(verify(of(&other.root), &[own, between, &other.root]).is_err(), "{selector} {matching}");
        assert!(verify(of(&other.between), &[own, between, root]).is_err(), "{selector} {matching}");
        // The certificate itself has signed nothing.
        assert!(verify(of(own), &[own, between, root]).is_err(), "{selector} {matching}");
    }
    assert_eq!(as_str(&verify(vec![record(2, 0, 1, &other.root)], &[own, between, root])), NO_MATCH);
}

/// RFC 7672 §3.2.3: names and dates count.
#[test]
fn what_is_signed_is_for_the_host_and_now() {
    for (host, until, ok) in [
        (BASE, 4096, true),
        ("example.net", 4096, true),
        ("*.example.net", 4096, true),
        ("mx2.example.net", 4096, false),
        ("another.example", 4096, false),
        (BASE, 2021, false),
    ] {
        let Chain { root, between, own } = chain(host, until);
        for (selector, matching) in ALL {
            let records = vec![record(2, selector, matching, &root)];
            assert_eq!(verify(records, &[&own, &between, &root]).is_ok(), ok, "{host} {selector} {matching}");
        }
        // One record that matches is enough.
        let records = vec![record(2, 0, 1, &root), record(3, 1, 1, &own)];
        assert_eq!(verify(records, &[&own, &between, &root]), Ok(()), "{host}");
    }
}

#[test]
fn odd_data_is_no_match() {
    let Chain { root, between, own } = chain(BASE, 4096);
    let odd = |usage, selector, data: &[u8]| TlsaRecord::new(usage, selector, 0, data);
    for data in [&[0x30, 0][..], &[0x30, 2, 5, 0], &[0x30, 3, 0x30, 1, 0]] {
        for selector in [0, 1] {
            for usage in [2, 3] {
                assert!(verify(vec![odd(usage, selector, data)], &[&own, &between, &root]).is_err());
            }
        }
    }
    let garbage = CertificateDer::from(vec![0x30, 2, 5, 0]);
    assert!(verify(vec![record(2, 0, 1, &root)], &[&garbage, &root]).is_err());
    assert!(verify(vec![record(2, 1, 0, &root)], &[&garbage, &garbage]).is_err());
    // Beside one that can be read.
    assert_eq!(
        verify(vec![odd(2, 0, &[0x30, 0]), record(2, 0, 1, &root)], &[&own, &garbage, &between, &root]),
        Ok(())
    );
}
