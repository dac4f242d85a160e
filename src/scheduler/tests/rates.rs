//! Rates of recipients and of connections: never exceeded, and kept up (CONTROLS §4).

use std::time::Duration;

use super::harness::*;
use crate::clock::Timestamp;
use crate::scheduler::Bounds;

const SECOND: Duration = Duration::from_secs(1);

/// When how many recipients were offered.
fn offers(rig: &Rig) -> Vec<(Timestamp, usize)> {
    rig.offered.iter().map(|offer| (offer.at, offer.recipients.len())).collect()
}

/// In no time `t` more than `t` times the rate and a burst.
fn assert_paced(taken: &[(Timestamp, usize)], count: u128, period: Duration, burst: usize, name: &str) {
    for (i, &(from, _)) in taken.iter().enumerate() {
        let mut sum = 0;
        for &(to, units) in &taken[i..] {
            sum += units;
            let span = to.saturating_since(from).as_micros();
            let most = span * count / period.as_micros() + burst as u128;
            assert!(sum as u128 <= most, "{name}: {sum} in {}µs, not {most}", span);
        }
    }
}

/// Settings, domains in one rollup, messages to each, recipients of each, rate, burst.
#[test]
fn recipients_are_offered_at_the_rate_and_no_slower() {
    for (name, settings, domains, messages, recipients, count, period, burst) in [
        ("one by one", "max-msg-rate = \"6/m\"", 1, 20, 1, 6, MINUTE, 1),
        ("several recipients", "max-msg-rate = \"6/m\"", 1, 5, 4, 6, MINUTE, 1),
        ("a burst", "max-msg-rate = \"10/s\"", 1, 60, 1, 10, SECOND, 10),
        ("more recipients than a burst", "max-msg-rate = \"10/s\"", 1, 4, 25, 10, SECOND, 10),
        ("several destinations", "max-msg-rate = \"30/m\"", 10, 4, 1, 30, MINUTE, 1),
        ("and recipients", "max-msg-rate = \"5/s\"", 10, 4, 3, 5, SECOND, 5),
        ("with few connections", "max-msg-rate = \"2/s\"\nmax-smtp-out = 1", 7, 5, 2, 2, SECOND, 2),
        ("by local address", "source-ip-max-msg-rate = \"30/m\"", 10, 4, 1, 30, MINUTE, 1),
        ("by local address, bursts", "source-ip-max-msg-rate = \"5/s\"", 3, 10, 3, 5, SECOND, 5),
        (
            "the smaller of two",
            "max-msg-rate = \"20/s\"\nsource-ip-max-msg-rate = \"120/m\"",
            4,
            10,
            2,
            2,
            SECOND,
            2,
        ),
        (
            "the other way round",
            "max-msg-rate = \"120/m\"\nsource-ip-max-msg-rate = \"20/s\"",
            4,
            10,
            2,
            2,
            SECOND,
            2,
        ),
    ] {
        let policy = format!(
            "[[rollup]]\nqueue = \"p.rollup\"\nmx = \"*.p.example\"\n[domain.\"p.rollup\"]\n{settings}"
        );
        let mut rig = Rig::with_policy(&policy, Bounds::default());
        rig.check_every = 5;
        for n in 0..domains {
            let domain = format!("d{n}.example");
            rig.lead_to(&domain, &format!("mx{n}.p.example"), &[&format!("198.51.100.{n}:25")]);
            for _ in 0..messages {
                let to: Vec<_> = (0..recipients).map(|r| format!("u{r}@{domain}")).collect();
                rig.submit_to(&to.iter().map(String::as_str).collect::<Vec<_>>());
            }
        }
        let all = domains * messages * recipients;
        let taken = rig.run_dry(HOUR);
        let offers = offers(&rig);
        assert_eq!(offers.iter().map(|&(_, n)| n).sum::<usize>(), all, "{name}");
        assert_paced(&offers, count, period, burst, name);
        let share = period.as_secs_f64() / count as f64;
        let due = Duration::from_secs_f64((all - burst) as f64 * share);
        let slack = Duration::from_secs_f64(share * burst as f64);
        assert!(taken <= due + slack, "{name}: {taken:?}, not {due:?}");
        assert!(rig.timeline().iter().all(|line| line.contains("delivered")), "{name}: nothing is deferred");
        rig.pass(HOUR);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn connections_are_opened_at_the_rate_and_no_slower() {
    for (name, settings, count, period, burst) in [
        ("slow", "max-connect-rate = \"6/m\"", 6, MINUTE, 1),
        ("a burst", "max-connect-rate = \"4/s\"", 4, SECOND, 4),
        ("by local address", "source-ip-max-connect-rate = \"6/m\"", 6, MINUTE, 1),
        ("both", "source-ip-max-connect-rate = \"6/m\"\nmax-connect-rate = \"4/s\"", 6, MINUTE, 1),
    ] {
        let policy = format!(
            "[[rollup]]\nqueue = \"p.rollup\"\nmx = \"*.p.example\"\n[domain.\"p.rollup\"]\nmax-msg-per-connection = 2\n{settings}"
        );
        let mut rig = Rig::with_policy(&policy, Bounds::default());
        for n in 0..6 {
            let domain = format!("d{n}.example");
            rig.lead_to(&domain, &format!("mx{n}.p.example"), &[&format!("198.51.100.{n}:25")]);
            (0..8).for_each(|_| {
                rig.submit(&format!("u@{domain}"));
            });
        }
        let taken = rig.run_dry(HOUR);
        let dialled: Vec<_> = rig.dialled.iter().map(|&(at, _)| (at, 1)).collect();
        assert_eq!(dialled.len(), 24, "{name}: two messages each");
        assert_paced(&dialled, count, period, burst, name);
        let due = Duration::from_secs_f64((24 - burst) as f64 * period.as_secs_f64() / count as f64);
        assert!(taken <= due + SECOND, "{name}: {taken:?}, not {due:?}");
        rig.pass(HOUR);
        rig.scheduler.assert_empty();
    }
}

/// Each takes the session over when it is called for the rate of its address. Its turn is not over by that: the two
/// would call each other without end.
#[test]
fn destinations_that_share_a_session_take_turns_at_the_rate_of_their_address() {
    for settings in ["", "\nmax-msg-rate = \"1/s\""] {
        let policy = format!(
            "[[rollup]]\nqueue = \"p.rollup\"\nmx = \"*.p.example\"\n[domain.\"p.rollup\"]\nmax-smtp-out = 1
            connection-idle-timeout = \"1m\"\nsource-ip-max-msg-rate = \"30/m\"{settings}"
        );
        let mut rig = Rig::with_policy(&policy, Bounds::default());
        for n in 0..8 {
            let domain = format!("d{}.example", n % 2);
            rig.lead_to(&domain, &format!("mx{}.p.example", n % 2), &["198.51.100.1:25"]);
            rig.submit(&format!("u{n}@{domain}"));
        }
        assert_eq!(rig.run_dry(HOUR), 14 * SECOND, "{settings}");
        assert_eq!(rig.dialled.len(), 1, "{settings}");
    }
}

/// Hosts that take long to greet and then greet all at once: the rate is one of offers, not of wishes.
#[test]
fn slow_greetings_do_not_bunch_what_is_offered() {
    let policy = "[[rollup]]\nqueue = \"p.rollup\"\nmx = \"*.p.example\"\n[domain.\"p.rollup\"]\nmax-msg-rate = \"60/m\"
        connection-idle-timeout = \"5m\"";
    let mut rig = Rig::with_policy(policy, Bounds::default());
    for n in 0..30 {
        let domain = format!("d{n}.example");
        rig.lead_to(&domain, &format!("mx{n}.p.example"), &[&format!("198.51.100.{n}:25")]);
        rig.submit(&format!("u@{domain}"));
    }
    rig.pass(Duration::from_millis(9_500));
    assert_eq!(rig.connects.len(), 10, "as many connect as may send by then");
    let taken = rig.run_dry(HOUR);
    assert_paced(&offers(&rig), 1, SECOND, 1, "after ten at once");
    assert!(taken <= 30 * SECOND, "{taken:?}");
    // Who came first goes first: those that had connected.
    let first: Vec<_> = rig.offered.iter().take(10).map(|offer| offer.peer.to_string()).collect();
    assert!(
        first.iter().all(|peer| rig.dialled[..10].iter().any(|(_, p)| p.to_string() == *peer)),
        "{first:?}"
    );
    rig.pass(HOUR);
    rig.scheduler.assert_empty();
}

/// An address that refuses uses up the rate as one that does not; what comes after waits its time and goes on.
#[test]
fn each_address_tried_counts_as_a_connection() {
    let mut rig = Rig::new("max-connect-rate = \"6/m\"");
    let hosts: &[(&str, &[&str])] = &[("mx", &["198.51.100.1:25", "198.51.100.2:25", "198.51.100.3:25"])];
    rig.lead("x.example", &[hosts]);
    rig.submit("u@x.example");
    let mut tried = vec![rig.refuse()];
    assert!(rig.connects.is_empty(), "the next one waits for the rate");
    assert_eq!(rig.next_timer(), Duration::from_secs(10));
    tried.push(rig.refuse());
    assert_eq!(rig.next_timer(), Duration::from_secs(10));
    assert_eq!(rig.timeline(), [""; 0]);
    tried.push(rig.refuse());
    tried.sort();
    tried.dedup();
    assert_eq!(tried.len(), 3);
    assert_eq!(rig.timeline(), ["20 queue-deferred x.example 4.4.1"]);
}

/// Two sources with one local address share what is counted by address, of each queue by itself.
#[test]
fn rates_by_local_address_are_shared_by_its_sources() {
    let policy = "[[source]]\nname = \"a\"\naddress = \"192.0.2.101\"\n[[source]]\nname = \"b\"\naddress = \"192.0.2.101\"\n
        [[source]]\nname = \"c\"\naddress = \"192.0.2.102\"\n[domain.\"*\"]\nsource-ip-max-msg-rate = \"6/m\"";
    let mut rig = Rig::with_policy(policy, Bounds::default());
    for source in ["a", "b", "c"] {
        (0..3).for_each(|_| rig.submit_by(source, "u@x.example"));
        (0..3).for_each(|_| rig.submit_by(source, "u@y.example"));
    }
    rig.accept_all();
    let by_now = |rig: &Rig| rig.offered.len();
    assert_eq!(by_now(&rig), 4, "one by each address to each domain");
    rig.pass(Duration::from_secs(10));
    rig.accept_all();
    assert_eq!(by_now(&rig), 8);
    assert_eq!(rig.run_dry(HOUR), Duration::from_secs(40), "five more by the address of two");
}

/// A lone timer for a rate, at the time there is room, however many wait.
#[test]
fn nobody_polls_for_a_rate() {
    let mut rig = Rig::new("max-msg-rate = \"1/m\"");
    (0..30).for_each(|_| {
        rig.submit("u@x.example");
    });
    rig.accept_all();
    let mut timers = 0;
    while rig.scheduler.lanes.len() > 0 {
        rig.next_timer();
        timers += 1;
        rig.accept_all();
    }
    assert_eq!(rig.elapsed(), 29 * 60);
    // Of each minute: the rate's timer, and that of the idle session.
    assert!(timers <= 2 * 30, "{timers}");
}

/// What was used of a rate of an hour or more is used after a restart too.
#[test]
fn a_slow_rate_survives_a_restart() {
    for settings in [
        "max-msg-rate = \"2/h\"",
        "source-ip-max-msg-rate = \"2/h\"",
        "max-connect-rate = \"2/h\"\nmax-msg-per-connection = 1",
    ] {
        let policy = format!("[domain.\"*\"]\n{settings}");
        let mut rig = Rig::with_policy(&policy, Bounds::default());
        (0..3).for_each(|_| {
            rig.submit("u@x.example");
        });
        assert_eq!(rig.accept_all(), 1, "{settings}");
        rig.pass(10 * MINUTE);
        let mut rig = rig.restarted(&policy);
        assert_eq!(rig.accept_all(), 0, "{settings}");
        rig.pass(20 * MINUTE - SECOND);
        assert_eq!(rig.accept_all(), 0, "{settings}");
        rig.pass(SECOND);
        assert_eq!(rig.accept_all(), 1, "{settings}");
        rig.pass(30 * MINUTE);
        assert_eq!(rig.accept_all(), 1, "{settings}");
        rig.pass(2 * HOUR);
        rig.scheduler.assert_empty();
        assert!(rig.restarted(&policy).scheduler.limits.all().count() <= 1, "and is forgotten when it rests");
    }
}
