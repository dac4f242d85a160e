//! Whom a queue authenticates as decides whose sessions it uses, and what failing means.

use super::harness::*;
use crate::event::{DeliveryEvent, Reason};
use crate::policy::Policy;
use crate::reply::{Reply, Stage};
use crate::scheduler::{Bounds, Event};
use crate::transport::{ConnectError, EndCause};

const RELAY: &str = "smtp-hosts = \"[198.51.100.1]\"\n";

fn login(name: &str, password: &str) -> String {
    format!("auth-username = \"{name}\"\nauth-password = \"{password}\"\n")
}

/// Opens the session that is wanted, and returns whom it is to be authenticated as.
fn open(rig: &mut Rig) -> Option<String> {
    let (connection, target) = rig.opening();
    rig.tell(Event::Connected { connection, opened: Default::default() });
    target.credentials.map(|credentials| credentials.username.to_string())
}

#[test]
fn sessions_are_shared_among_the_same_identity() {
    let plain = "use-unencrypted-plain-auth = true\n";
    let rows = [
        (login("ann", "a"), login("ann", "a"), 1),
        (login("ann", "a"), login("ben", "a"), 2),
        (login("ann", "a"), login("ann", "b"), 2),
        (login("ann", "a"), login("ann", "a") + plain, 2),
        (login("ann", "a"), String::new(), 2),
        (String::new(), login("ann", "a"), 2),
        (String::new(), String::new(), 1),
    ];
    for (of_x, of_y, dials) in rows {
        let policy = format!("[domain.\"x.example\"]\n{RELAY}{of_x}[domain.\"y.example\"]\n{RELAY}{of_y}");
        let mut rig = Rig::with_policy(&policy, Bounds::default());
        for domain in ["x.example", "y.example"] {
            rig.lead_to(domain, "[198.51.100.1]", &["198.51.100.1:25"]);
        }
        rig.submit("u@x.example");
        assert_eq!(open(&mut rig).is_some(), !of_x.is_empty());
        rig.accept_all();
        rig.submit("u@y.example");
        assert_eq!(rig.accept_all(), 1, "{policy}");
        assert_eq!(rig.dialled.len(), dials, "{policy}");
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}

/// CONTROLS table 0: the next host, in the end the destination's step, and nobody is charged.
#[test]
fn a_host_that_does_not_take_us_is_a_host_that_failed() {
    let reply = |text| EndCause::Reply(Reply::parse(text).unwrap());
    for (cause, status, reason) in [
        (EndCause::AuthNotOffered, "4.7.4", Reason::AuthNotOffered),
        (EndCause::AuthNeedsTls, "4.7.11", Reason::AuthNeedsTls),
        (reply("454 4.7.0 later"), "4.7.0", Reason::TryLater),
        (reply("535 5.7.8 wrong"), "5.7.8", Reason::Credentials),
        (reply("535 wrong"), "5.0.0", Reason::Credentials),
        (reply("521 no"), "5.0.0", Reason::Credentials),
    ] {
        // A refusal of ours is none of the mail, whatever this says.
        let mut rig = Rig::new("bounce-upon-5xx-greeting = true");
        rig.lead(
            "x.example",
            &[&[("mx1.x.example", &["198.51.100.1:25"])], &[("mx2.x.example", &["198.51.100.2:25"])]],
        );
        rig.submit("a@x.example");
        for _ in 0..2 {
            let (connection, _) = rig.opening();
            let error = ConnectError { stage: Stage::Auth, cause: cause.clone() };
            rig.tell(Event::ConnectFailed { connection, error });
        }
        assert_eq!(rig.timeline(), [format!("0 queue-deferred x.example {status}")]);
        let Some(DeliveryEvent::QueueDeferred(event)) = rig.events.last() else { panic!("{:?}", rig.events) };
        let diagnosis = &event.diagnosis;
        assert_eq!((diagnosis.stage, diagnosis.reason), (Stage::Auth, reason));
        rig.pass(10 * MINUTE);
        rig.accept_all();
        assert_eq!(rig.last_line(), "600 delivered a@x.example");
        let Some(DeliveryEvent::Delivered(event)) = rig.events.last() else { panic!("{:?}", rig.events) };
        assert_eq!(event.record.attempts, 1, "the delivery alone");
    }
}

/// A reply rule may be about this stage alone.
#[test]
fn rules_see_the_refusal() {
    for (stage, mode) in [("auth", true), ("ehlo", false)] {
        let policy = format!(
            "[[reply-rule]]\nname = \"r\"\nmatch = \"^535\"\nactions = [\"mode=backoff\"]\nstage = [\"{stage}\"]\n"
        );
        let mut rig = Rig::with_policy(&policy, Bounds::default());
        rig.submit("a@x.example");
        let (connection, _) = rig.opening();
        let cause = EndCause::Reply(Reply::parse("535 5.7.8 wrong").unwrap());
        rig.tell(Event::ConnectFailed { connection, error: ConnectError { stage: Stage::Auth, cause } });
        let backs_off = rig.events.iter().any(|event| matches!(event, DeliveryEvent::QueueMode(_)));
        assert_eq!(backs_off, mode, "{stage}");
    }
}

/// No mail goes over a session of somebody else from then on.
#[test]
fn sessions_of_another_identity_end_when_the_policy_changes() {
    let policy = |password| {
        format!("[domain.\"*\"]\n{RELAY}{}connection-idle-timeout = \"1m\"", login("ann", password))
    };
    for (next, dials) in [("a", 1), ("b", 2)] {
        let mut rig = Rig::with_policy(&policy("a"), Bounds::default());
        rig.lead_to("x.example", "[198.51.100.1]", &["198.51.100.1:25"]);
        rig.submit("a@x.example");
        rig.accept_all();
        rig.tell(Event::Policy(Box::new(Policy::from_toml(&policy(next)).unwrap())));
        rig.submit("b@x.example");
        assert_eq!(rig.accept_all(), 1);
        assert_eq!(rig.dialled.len(), dials);
    }
}
