//! What TLS a queue wishes decides what it connects with, whose sessions it uses, and what failing means.

use super::harness::*;
use crate::event::{Category, DeliveryEvent, Reason};
use crate::policy::{Policy, StartTls};
use crate::scheduler::{Bounds, Event};
use crate::transport::{EndCause, TlsWish};

const ADDRESS: &[&str] = &["198.51.100.1:25"];

/// Opens the session that is wanted, and returns what TLS is wanted for it.
fn open(rig: &mut Rig) -> TlsWish {
    let (connection, target) = rig.opening();
    rig.tell(Event::Connected { connection, opened: Default::default() });
    target.tls
}

#[test]
fn sessions_are_shared_among_the_same_wish() {
    let rows = [
        ("opportunistic", "opportunistic", "mx.y.example", 1),
        ("required", "required", "mx.y.example", 1),
        ("verify", "verify", "mx.x.example", 1),
        ("verify", "verify", "mx.y.example", 2),
        ("off", "opportunistic", "mx.x.example", 2),
        ("opportunistic", "required", "mx.x.example", 2),
        ("required", "verify", "mx.x.example", 2),
        ("verify", "required", "mx.x.example", 2),
    ];
    for (of_x, of_y, host, dials) in rows {
        let policy = format!(
            "[domain.\"x.example\"]\nuse-starttls = \"{of_x}\"\n[domain.\"y.example\"]\nuse-starttls = \"{of_y}\"\n"
        );
        let mut rig = Rig::with_policy(&policy, Bounds::default());
        rig.lead_to("x.example", "mx.x.example", ADDRESS);
        rig.lead_to("y.example", host, ADDRESS);
        rig.submit("u@x.example");
        assert_eq!(open(&mut rig).level.as_str(), of_x);
        rig.accept_all();
        rig.submit("u@y.example");
        assert_eq!(rig.accept_all(), 1, "{of_x}, {of_y}");
        assert_eq!(rig.dialled.len(), dials, "{of_x}, {of_y} to {host}");
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn implicit_tls_is_asked_for_at_fixed_hosts() {
    let policy = "[domain.\"x.example\"]\nsmtp-hosts = \"[198.51.100.1]:465\"\nuse-implicit-tls = true\n
        [domain.\"y.example\"]\nsmtp-hosts = \"[198.51.100.1]:465\"\n";
    let mut rig = Rig::with_policy(policy, Bounds::default());
    for (domain, implicit) in [("x.example", true), ("y.example", false)] {
        rig.lead_to(domain, "[198.51.100.1]", &["198.51.100.1:465"]);
        rig.submit(&format!("u@{domain}"));
        assert_eq!(open(&mut rig), TlsWish { level: StartTls::Opportunistic, implicit });
        rig.accept_all();
    }
    assert_eq!(rig.dialled.len(), 2, "not the same wish");
}

/// CONTROLS table 0: the next host, and in the end the destination's step.
#[test]
fn required_tls_that_can_not_be_had_is_a_host_that_failed() {
    for (cause, status, reason) in [
        (EndCause::TlsNotOffered, "4.7.4", Reason::TlsNotOffered),
        (EndCause::Tls("UnknownIssuer".to_owned()), "4.7.5", Reason::TlsFailed),
    ] {
        let mut rig = Rig::new("use-starttls = \"required\"");
        rig.lead("x.example", &[&[("mx1.x.example", ADDRESS)], &[("mx2.x.example", &["198.51.100.2:25"])]]);
        rig.submit("a@x.example");
        let first = rig.fail_connect(cause.clone());
        let second = rig.fail_connect(cause);
        assert_ne!(first, second);
        assert_eq!(rig.timeline(), [format!("0 queue-deferred x.example {status}")]);
        let Some(DeliveryEvent::QueueDeferred(event)) = rig.events.last() else { panic!("{:?}", rig.events) };
        assert_eq!((event.diagnosis.category(), event.diagnosis.reason), (Category::TlsFailed, reason));
    }
}

/// A new policy that wishes for more is kept from then on: no mail goes over a session opened for less.
#[test]
fn sessions_of_another_wish_end_when_the_policy_changes() {
    let required = "[domain.\"*\"]\nuse-starttls = \"required\"\n";
    for busy in [false, true] {
        let mut rig = Rig::new("connection-idle-timeout = \"1m\"\nmax-smtp-out = 1");
        rig.submit("a@x.example");
        let first = rig.connect();
        if !busy {
            rig.accept();
        }
        rig.tell(Event::Policy(Box::new(Policy::from_toml(required).unwrap())));
        if busy {
            assert_eq!(rig.transacts.len(), 1, "nothing is cut");
            rig.accept();
        }
        rig.submit("b@x.example");
        assert_eq!(open(&mut rig).level, StartTls::Required);
        let second = rig.accept();
        assert_ne!(first, second);
        rig.pass(HOUR);
        rig.scheduler.assert_empty();
    }
    // While it was opening.
    let mut rig = Rig::new("");
    rig.submit("a@x.example");
    rig.tell(Event::Policy(Box::new(Policy::from_toml(required).unwrap())));
    rig.connect();
    assert!(rig.transacts.is_empty());
    assert_eq!(open(&mut rig).level, StartTls::Required);
    rig.accept_all();
    assert_eq!(rig.timeline(), ["0 delivered a@x.example"]);
}
