//! What a server says it takes at most (RFC 9422) counts where the policy allows more.

use std::num::NonZeroU32;

use super::harness::*;
use crate::scheduler::Event;
use crate::transport::SessionLimits;

/// Opens the session that is wanted, with a server of these limits. Zero: none.
fn open(rig: &mut Rig, recipients: u32, transactions: u32) {
    let (connection, _) = rig.opening();
    let limits = SessionLimits {
        recipients: NonZeroU32::new(recipients),
        transactions: NonZeroU32::new(transactions),
    };
    rig.tell(Event::Connected {
        connection,
        opened: crate::scheduler::Opened { limits, ..Default::default() },
    });
}

fn sizes(rig: &Rig) -> Vec<usize> {
    rig.offered.iter().map(|offer| offer.recipients.len()).collect()
}

#[test]
fn recipients_go_in_as_many_transactions_as_the_server_wants() {
    let to: Vec<String> = (0..7).map(|n| format!("u{n}@x.example")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    for (of_policy, of_server, want) in [
        (100, 0, &[7][..]),
        (100, 3, &[3, 3, 1]),
        (2, 3, &[2, 2, 2, 1]),
        (3, 2, &[2, 1, 2, 1, 1]),
        (100, 1, &[1; 7]),
    ] {
        let mut rig = Rig::new(&format!("max-rcpt-per-transaction = {of_policy}\nmax-smtp-out = 1"));
        rig.submit_to(&to);
        open(&mut rig, of_server, 0);
        rig.accept_all();
        let mut got = sizes(&rig);
        let total: usize = got.iter().sum();
        got.sort_unstable();
        let mut sorted = want.to_vec();
        sorted.sort_unstable();
        assert_eq!((total, got), (7, sorted), "{of_policy}, {of_server}");
        assert_eq!(rig.dialled.len(), 1, "over one session");
        assert_eq!(rig.timeline().iter().filter(|line| line.starts_with("0 delivered")).count(), 7);
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn a_session_ends_after_as_many_messages_as_the_server_wants() {
    for (of_policy, of_server, dials) in
        [("100", 0, 1), ("100", 2, 3), ("\"unlimited\"", 2, 3), ("1", 2, 5), ("100", 1, 5)]
    {
        let mut rig = Rig::new(&format!("max-msg-per-connection = {of_policy}\nmax-smtp-out = 1"));
        for n in 0..5 {
            rig.submit(&format!("u{n}@x.example"));
        }
        while !rig.connects.is_empty() {
            open(&mut rig, 0, of_server);
            while !rig.transacts.is_empty() {
                rig.accept();
            }
        }
        assert_eq!((rig.offered.len(), rig.dialled.len()), (5, dials), "{of_policy}, {of_server}");
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}

/// Another domain does not get more out of it.
#[test]
fn limits_go_with_the_session() {
    let mut rig = Rig::new("");
    for domain in ["x.example", "y.example"] {
        rig.lead_to(domain, "mx.p.example", &["198.51.100.1:25"]);
    }
    rig.submit("a@x.example");
    open(&mut rig, 2, 2);
    rig.accept_all();
    rig.submit_to(&["a@y.example", "b@y.example", "c@y.example"]);
    rig.accept();
    assert_eq!((sizes(&rig), rig.dialled.len()), (vec![1, 2], 2), "the third goes over another");
    open(&mut rig, 0, 0);
    rig.accept_all();
    assert_eq!(sizes(&rig), [1, 2, 1]);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}
