//! RFC 8689 §4.2.1: mail that requires TLS goes on to the other hosts of its route before it bounces, and stops no other mail.

use std::sync::Arc;

use super::harness::*;
use crate::dns::Route;
use crate::event::{DeliveryEvent, Reason};
use crate::message::Message;
use crate::scheduler::Event;
use crate::transport::{EndCause, RecipientReport, TransactionReport, Unsendable};

const PEERS: [&str; 3] = ["198.51.100.1:25", "198.51.100.2:25", "198.51.100.3:25"];

fn hosts(count: usize) -> Arc<Route> {
    let names: Vec<String> = (1..=count).map(|n| format!("mx{n}.x.example")).collect();
    let addresses: Vec<[&str; 1]> = PEERS.iter().map(|&peer| [peer]).collect();
    let groups: Vec<[(&str, &[&str]); 1]> =
        names.iter().zip(&addresses).map(|(name, peer)| [(name.as_str(), &peer[..])]).collect();
    let groups: Vec<&[(&str, &[&str])]> = groups.iter().map(|group| &group[..]).collect();
    route(&groups)
}

fn rig(count: usize, settings: &str) -> Rig {
    let mut rig = Rig::new(settings);
    rig.answer_with("x.example", Ok(hosts(count)));
    rig
}

fn submit_secret(rig: &mut Rig, to: &str) {
    let message = Message::new("s@example.org", [to], "Subject: x\r\n\r\nx\r\n").unwrap();
    rig.submit_message(message.with_require_tls());
}

fn can_not(why: Unsendable) -> impl FnOnce(usize) -> TransactionReport {
    move |count| TransactionReport {
        recipients: vec![RecipientReport::Unsendable(why); count],
        ..TransactionReport::default()
    }
}

/// Carries on until nothing is under way: hosts in `fit` take mail that requires TLS, all take other mail.
fn run(rig: &mut Rig, fit: &[usize]) {
    for _ in 0..100 {
        if let Some((connection, transaction)) = rig.transacts.front() {
            let is_fit = fit.iter().any(|&n| rig.peers[connection].to_string() == PEERS[n]);
            if is_fit || !transaction.require_tls {
                rig.accept();
            } else {
                rig.transact(can_not(Unsendable::RequireTlsNotOffered));
            }
        } else if !rig.connects.is_empty() {
            rig.connect();
        } else {
            return;
        }
    }
    panic!("without end: {:?}", rig.timeline());
}

#[test]
fn it_goes_on_to_a_host_that_can_take_it() {
    for (fit, peer) in PEERS.iter().enumerate() {
        let mut rig = rig(3, "");
        submit_secret(&mut rig, "a@x.example");
        run(&mut rig, &[fit]);
        assert_eq!(rig.timeline(), ["0 delivered a@x.example"]);
        assert_eq!(rig.offered.len(), fit + 1);
        assert_eq!(rig.offered[fit].peer.to_string(), *peer);
    }
}

#[test]
fn when_no_host_can_it_bounces_for_what_was_with_the_last() {
    for count in 1..=3 {
        let mut rig = rig(count, "");
        submit_secret(&mut rig, "a@x.example");
        for n in 0..count {
            rig.connect();
            let why = match n + 1 == count {
                true => Unsendable::RequireTlsNotOffered,
                false => Unsendable::HostNotVerified,
            };
            rig.transact(can_not(why));
        }
        assert_eq!(rig.timeline(), ["0 bounced a@x.example 5.7.30 require-tls-not-offered"]);
        let bounced = rig.bounced();
        assert_eq!(bounced.diagnosis.reason, Reason::RequireTlsNotOffered);
        assert_eq!(bounced.record.mx.as_deref(), Some(format!("mx{count}.x.example").as_str()));
        assert_eq!((bounced.record.attempts, rig.offered.len()), (1, count));
    }
}

#[test]
fn other_mail_goes_on_where_it_was() {
    // With one connection at a time, too.
    for settings in ["", "max-smtp-out = 1\n", "max-smtp-out = 2\nmax-msg-per-connection = 3\n"] {
        let mut rig = rig(2, settings);
        for n in 0..20 {
            rig.submit(&format!("a{n}@x.example"));
            if n % 5 == 0 {
                submit_secret(&mut rig, &format!("secret{n}@x.example"));
            }
        }
        for _ in 0..10 {
            run(&mut rig, &[1]);
            rig.pass(MINUTE);
        }
        let delivered = rig.timeline().iter().filter(|line| line.contains("delivered")).count();
        assert_eq!((delivered, rig.timeline().len()), (24, 24), "{settings} {:?}", rig.timeline());
    }
}

/// All sessions are busy with other mail, without end: one makes room.
#[test]
fn it_does_not_wait_for_an_end_of_other_mail() {
    let mut rig = rig(2, "max-smtp-out = 2");
    for n in 0..3 {
        rig.submit(&format!("b{n}@x.example"));
    }
    rig.connect();
    rig.connect();
    submit_secret(&mut rig, "secret@x.example");
    for sent in 0..40 {
        rig.submit(&format!("a{sent}@x.example"));
        if !rig.connects.is_empty() {
            rig.connect();
        }
        let (connection, transaction) = rig.transacts.front().unwrap();
        if transaction.require_tls && rig.peers[connection].to_string() == PEERS[0] {
            rig.transact(can_not(Unsendable::HostNotVerified));
        } else {
            rig.accept();
        }
        rig.pass(std::time::Duration::from_millis(10));
    }
    assert!(rig.timeline().iter().any(|line| line.contains("delivered secret")), "{:?}", rig.timeline());
}

/// What could take it can not be reached: it waits, and no other mail with it.
#[test]
fn a_host_that_is_down_defers_this_mail_alone() {
    let mut rig = rig(2, "retry-after = [\"10m\"]");
    submit_secret(&mut rig, "secret@x.example");
    rig.submit("a@x.example");
    for _ in 0..20 {
        if let Some((connection, _)) = rig.connects.front()
            && rig.peers[connection].to_string() == PEERS[1]
        {
            rig.fail_connect(EndCause::Closed);
        } else if rig.transacts.front().is_some_and(|(_, transaction)| transaction.require_tls) {
            rig.transact(can_not(Unsendable::HostNotVerified));
        } else if !rig.transacts.is_empty() {
            rig.accept();
        } else if !rig.connects.is_empty() {
            rig.connect();
        }
    }
    let mut lines = rig.timeline();
    lines.sort();
    assert_eq!(lines, ["0 deferred secret@x.example 4.4.1", "0 delivered a@x.example"]);
    rig.submit("b@x.example");
    run(&mut rig, &[]);
    assert_eq!(rig.last_line(), "0 delivered b@x.example");
    rig.pass(15 * MINUTE);
    run(&mut rig, &[1]);
    assert!(rig.last_line().ends_with("delivered secret@x.example"), "{:?}", rig.timeline());
    assert!(rig.events.iter().all(|event| !matches!(event, DeliveryEvent::QueueDeferred(_))));
}

/// What could take it does not answer, for as long as it is waited for: other mail goes where it can.
#[test]
fn a_host_that_is_silent_holds_up_no_other_mail() {
    let mut rig = rig(2, "");
    submit_secret(&mut rig, "secret@x.example");
    rig.connect();
    rig.transact(can_not(Unsendable::HostNotVerified));
    let (silent, target) = rig.opening();
    assert_eq!(target.peer.to_string(), PEERS[1]);
    // The first session idles too long.
    rig.pass(MINUTE);
    rig.submit("a@x.example");
    let (connection, target) = rig.opening();
    assert_eq!(target.peer.to_string(), PEERS[0]);
    rig.tell(Event::Connected { connection, opened: Default::default() });
    rig.accept();
    assert_eq!(rig.timeline(), ["60 delivered a@x.example"]);
    rig.tell(Event::Connected { connection: silent, opened: Default::default() });
    rig.accept();
    assert_eq!(rig.last_line(), "60 delivered secret@x.example");
}

/// It is not known whether another host could: it is asked for again, as any host that can not be reached.
#[test]
fn a_host_that_could_not_be_looked_up_is_no_reason_to_bounce() {
    let mut rig = rig(2, "retry-after = [\"10m\"]");
    let mut found = (*hosts(2)).clone();
    found.hosts[1].addresses.clear();
    found.hosts[1].unknown = true;
    rig.answer_with("x.example", Ok(Arc::new(Route { ttl: MINUTE, ..found })));
    submit_secret(&mut rig, "secret@x.example");
    rig.connect();
    rig.transact(can_not(Unsendable::HostNotVerified));
    run(&mut rig, &[]);
    let lines = rig.timeline();
    assert!(lines.len() == 1 && lines[0].starts_with("0 deferred secret@x.example"), "{lines:?}");
    rig.answer_with("x.example", Ok(hosts(2)));
    rig.pass(15 * MINUTE);
    run(&mut rig, &[1]);
    assert!(rig.last_line().ends_with("delivered secret@x.example"), "{:?}", rig.timeline());
}

/// The host it was not found unfit for is gone from the route meanwhile.
#[test]
fn a_route_that_leads_nowhere_else_any_more_bounces_it() {
    let mut rig = rig(2, "");
    rig.answer_with("x.example", Ok(Arc::new(Route { ttl: MINUTE, ..(*hosts(2)).clone() })));
    submit_secret(&mut rig, "secret@x.example");
    rig.connect();
    rig.answer_with("x.example", Ok(hosts(1)));
    rig.pass(2 * MINUTE);
    rig.transact(can_not(Unsendable::HostNotVerified));
    run(&mut rig, &[]);
    assert_eq!(rig.timeline(), ["120 bounced secret@x.example 5.7.10 host-not-verified"]);
}

/// Another engine, or this one after a restart, begins with the first host again.
#[test]
fn cancelled_or_shut_down_it_leaves_its_line() {
    let mut rig = rig(2, "");
    submit_secret(&mut rig, "secret@x.example");
    rig.connect();
    rig.transact(can_not(Unsendable::HostNotVerified));
    let message = rig.offered[0].clone();
    assert_eq!(message.recipients.len(), 1);
    rig.tell(Event::Shutdown);
    rig.refuse();
    let mut rig = rig.restarted("");
    rig.answer_with("x.example", Ok(hosts(2)));
    run(&mut rig, &[1]);
    assert_eq!(rig.last_line(), "0 delivered secret@x.example");
}

/// A policy that is not known may say that the host is the receiver's: until then the message waits.
#[test]
fn it_waits_for_a_policy_that_is_not_known() {
    let unknown = || Arc::new(Route { ttl: MINUTE, policy_unknown: true, ..(*hosts(2)).clone() });
    for (why, known, end) in [
        (Unsendable::HostNotVerified, false, "600 bounced a@x.example 5.7.10 host-not-verified"),
        (Unsendable::HostNotVerified, true, "600 delivered a@x.example"),
    ] {
        let mut rig = Rig::new("retry-after = [\"10m\"]");
        rig.answer_with("x.example", Ok(unknown()));
        submit_secret(&mut rig, "a@x.example");
        for _ in 0..2 {
            rig.connect();
            rig.transact(can_not(why));
        }
        assert_eq!(rig.timeline(), ["0 deferred a@x.example 4.7.10"]);
        assert_eq!(rig.deferred().diagnosis.reason, Reason::HostNotVerified);
        rig.answer_with("x.example", Ok(Arc::new(Route { policy_unknown: false, ..(*unknown()).clone() })));
        rig.pass(MINUTE * 10);
        for _ in 0..20 {
            if !rig.connects.is_empty() {
                rig.connect();
            } else if rig.transacts.is_empty() {
                break;
            } else if known {
                rig.accept();
            } else {
                rig.transact(can_not(why));
            }
        }
        assert_eq!(rig.last_line(), end);
    }
    // What no policy can change is no reason to wait.
    let mut rig = Rig::new("");
    rig.answer_with("x.example", Ok(unknown()));
    submit_secret(&mut rig, "a@x.example");
    for _ in 0..2 {
        rig.connect();
        rig.transact(can_not(Unsendable::RequireTlsNotOffered));
    }
    assert_eq!(rig.timeline(), ["0 bounced a@x.example 5.7.30 require-tls-not-offered"]);
}

/// In a rollup each domain knows its own.
#[test]
fn in_a_rollup_it_waits_for_its_own_domains_policy() {
    let settings = "[[rollup]]\nqueue = \"p.rollup\"\nmx = \"*.p.example\"\n";
    let mut rig = Rig::with_policy(settings, crate::scheduler::Bounds::default());
    let known = route(&[&[("mx.p.example", &[PEERS[0]])]]);
    for (domain, policy_unknown) in [("x.example", true), ("y.example", false)] {
        rig.answer_with(domain, Ok(Arc::new(Route { policy_unknown, ..(*known).clone() })));
    }
    for domain in ["x.example", "y.example"] {
        submit_secret(&mut rig, &format!("a@{domain}"));
    }
    for _ in 0..20 {
        if !rig.connects.is_empty() {
            rig.connect();
        } else if !rig.transacts.is_empty() {
            rig.transact(can_not(Unsendable::HostNotVerified));
        }
    }
    let mut timeline = rig.timeline();
    timeline.sort();
    assert_eq!(timeline, ["0 bounced a@y.example 5.7.10 host-not-verified", "0 deferred a@x.example 4.7.10"]);
}

/// A policy that comes or goes says of open sessions too whose host they lead to.
#[test]
fn what_vouches_for_a_host_may_come_and_go() {
    use crate::mta_sts::KnownPolicy;
    let text = "version: STSv1\nmode: enforce\nmx: *.x.example\nmax_age: 86400";
    let plain = Arc::new(Route { ttl: MINUTE, ..(*hosts(1)).clone() });
    let vouched = (*plain).clone().under_policy("x.example", KnownPolicy::for_tests("1", text)).unwrap();
    let vouched = Arc::new(vouched);
    for (first, then) in [(&plain, &vouched), (&vouched, &plain)] {
        let mut rig = Rig::new("use-starttls = \"verify\"\nconnection-idle-timeout = \"10m\"");
        rig.answer_with("x.example", Ok(first.clone()));
        rig.submit("a@x.example");
        rig.connect();
        assert_eq!(rig.transacts[0].1.host_is_authentic, first.is_enforced());
        rig.accept_all();
        rig.answer_with("x.example", Ok(then.clone()));
        rig.pass(2 * MINUTE);
        rig.submit("b@x.example");
        assert_eq!((rig.dialled.len(), rig.transacts.len()), (1, 1), "the session serves both");
        assert_eq!(rig.transacts[0].1.host_is_authentic, then.is_enforced());
    }
}

/// Of a session too that was opening when the policy came.
#[test]
fn what_vouches_for_a_host_may_come_while_a_session_opens() {
    use crate::mta_sts::KnownPolicy;
    let text = "version: STSv1\nmode: enforce\nmx: *.x.example\nmax_age: 86400";
    let plain = Arc::new(Route { ttl: MINUTE, ..(*hosts(1)).clone() });
    let vouched = (*plain).clone().under_policy("x.example", KnownPolicy::for_tests("1", text)).unwrap();
    let mut rig = Rig::new("use-starttls = \"verify\"\nconnection-idle-timeout = \"10m\"");
    rig.answer_with("x.example", Ok(plain));
    rig.submit("a@x.example");
    rig.connect();
    rig.submit("b@x.example");
    rig.submit("c@x.example");
    let (opening, _) = rig.opening();
    rig.answer_with("x.example", Ok(Arc::new(vouched)));
    rig.pass(2 * MINUTE);
    rig.submit("d@x.example");
    rig.tell(Event::Connected { connection: opening, opened: Default::default() });
    let over =
        |id| move |offer: &&(crate::scheduler::ConnectionId, crate::scheduler::Outgoing)| offer.0 == id;
    let transaction = rig.transacts.iter().find(over(opening)).map(|offer| offer.1.host_is_authentic);
    assert_eq!(transaction, Some(true));
}

/// What a host could not prove before a policy was known is no reason to bounce under it.
#[test]
fn a_policy_that_comes_while_it_looks_for_a_host_gives_those_it_met_another_chance() {
    use crate::mta_sts::KnownPolicy;
    let unknown = Arc::new(Route { ttl: MINUTE, policy_unknown: true, ..(*hosts(2)).clone() });
    for (is_told, end) in [(true, "0 delivered secret@x.example"), (false, "720 delivered secret@x.example")]
    {
        let mut rig = Rig::new("retry-after = [\"10m\"]");
        rig.answer_with("x.example", Ok(unknown.clone()));
        submit_secret(&mut rig, "secret@x.example");
        rig.connect();
        let met = rig.peers[&rig.transacts[0].0].to_string();
        let met = PEERS.iter().position(|&peer| peer == met).unwrap();
        rig.transact(can_not(Unsendable::HostNotVerified));
        let text = format!("version: STSv1\nmode: enforce\nmx: mx{}.x.example\nmax_age: 86400", met + 1);
        let known = Route { policy_unknown: false, ..(*unknown).clone() };
        let known = known.under_policy("x.example", KnownPolicy::for_tests("1", &text)).unwrap();
        rig.answer_with("x.example", Ok(Arc::new(known)));
        if is_told {
            rig.connect();
            let (connection, _) = rig.transacts.pop_front().unwrap();
            rig.tell(Event::AgainstPolicy { connection });
        } else {
            // Looked up for other mail, while the session to the other host opens.
            let (opening, _) = rig.opening();
            rig.pass(2 * MINUTE);
            rig.submit("b@x.example");
            rig.tell(Event::Connected { connection: opening, opened: Default::default() });
        }
        run(&mut rig, &[met]);
        rig.pass(10 * MINUTE);
        run(&mut rig, &[met]);
        assert_eq!(rig.last_line(), end);
    }
}
