//! Faults put back that random worlds seldom meet, each in a world of its own.

use super::*;
use crate::scheduler::Fault;

/// Nothing is found without the fault, and with it this invariant is broken.
fn finds(fault: Fault, invariant: &str, run: impl Fn() -> Result<(), Violation>) {
    run().unwrap();
    let found = fault.put_back(&run).expect_err("the fault is found");
    assert_eq!(found.invariant, invariant, "{found}");
}

fn ruled(text: &str, model: ServerModel) -> World {
    World::builder().policy(policy(text)).zone(ZONE).server(SERVER, model).build().unwrap()
}

/// Refuses recipients for the first minute.
fn refusing(reply: &str) -> ServerModel {
    let failure = Failure::Reply(Stage::Rcpt, reply.to_owned());
    ServerModel::new().with_reply_latency(SECOND).with_failure(Duration::ZERO..MINUTE, failure)
}

#[test]
fn attempts_are_counted_also_where_a_fuse_may_blow() {
    finds(Fault::UncountedAttempt, "schedule", || {
        let text = "[domain.'*']\nretry-after = ['5m', '1h']\nbounce-fuse = '1000/10m'";
        let mut world = ruled(text, ServerModel::new().with_greylist(3 * HOUR));
        submit(&mut world, 3);
        world.try_run_for(DAY)
    });
}

#[test]
fn a_slow_rate_holds_over_starts() {
    for crashes in [true, false] {
        finds(Fault::SlowRateForgotten, "rates", || {
            let mut world = ruled("[domain.'*']\nmax-msg-rate = '10/h'", ServerModel::new());
            submit(&mut world, 20);
            for _ in 0..20 {
                world.try_run_for(MINUTE)?;
                if crashes { world.crash() } else { world.restart() }
            }
            Ok(())
        });
    }
}

#[test]
fn what_is_paused_is_not_sent() {
    let selectors = [Selector::queue("example.net"), Selector::source("default")];
    for selector in selectors {
        finds(Fault::SentWhilePaused, "held", || {
            let mut world = world(ServerModel::new());
            world.pause(selector.clone()).unwrap();
            world.try_run_for(5 * MINUTE)?;
            submit(&mut world, 3);
            world.try_run_for(5 * MINUTE)?;
            world.crash();
            world.try_run_for(HOUR)?;
            world.resume(selector.clone()).unwrap();
            world.try_run_for(HOUR)?;
            assert_eq!(world.count(Outcome::Delivered), 3);
            Ok(())
        });
    }
}

/// By a rule, at the refusal of the first of many recipients.
fn after_a_rule(actions: &str) -> Result<(), Violation> {
    let rule = format!("[[reply-rule]]\nname = 'rest'\nmatch = 'busy'\nactions = [{actions}]");
    let text = format!("{rule}\n[domain.'*']\nretry-after = ['20m']\nmax-smtp-out = 5");
    let mut world = ruled(&text, refusing("450 4.7.1 busy"));
    submit(&mut world, 3);
    for _ in 0..10 {
        world.try_run_for(2 * MINUTE)?;
        submit(&mut world, 20);
    }
    assert!(world.try_run_until_idle(DAY)?);
    Ok(())
}

#[test]
fn a_disabled_source_is_not_used() {
    finds(Fault::SentWhileDisabled, "held", || after_a_rule("'disable-source-ip', 'reenable-after=2h'"));
}

#[test]
fn a_deferred_queue_is_not_sent_from() {
    finds(Fault::SentWhileDeferred, "held", || after_a_rule("'defer-queue'"));
}

#[test]
fn a_capped_queue_keeps_to_the_cap() {
    finds(Fault::CapsForgotten, "limits", || after_a_rule("'limit-connections=1 for=5h'"));
    finds(Fault::CapsForgotten, "rates", || after_a_rule("'limit-rate=30/h for=5h'"));
}

const TENANTS: &str =
    "t1.example. MX 10 a.p.example.\nt2.example. MX 10 a.p.example.\na.p.example. A 192.0.2.3";

#[test]
fn a_rollup_waits_for_its_hosts() {
    finds(Fault::RollupClockForgotten, "schedule", || {
        let text =
            "[[rollup]]\nqueue = 't.rollup'\nmx = ['*.p.example']\n[domain.'*']\nretry-after = ['5m', '1h']";
        let dead = ServerModel::new().with_failure(Duration::ZERO..10 * HOUR, Failure::Refuse);
        let world = World::builder().policy(policy(text)).zone(TENANTS).server("192.0.2.3", dead);
        let mut world = world.build().unwrap();
        for domain in ["t1.example", "t2.example"] {
            world.submit(message(&format!("bob@{domain}"))).unwrap();
            world.try_run_for(2 * HOUR)?;
        }
        world.crash();
        assert!(world.try_run_until_idle(DAY)?);
        Ok(())
    });
}

#[test]
fn new_mail_ends_the_wait_where_it_is_to() {
    finds(Fault::RetryResetAtRestart, "due", || {
        let text =
            "[domain.'*']\nretry-after = ['30m']\nretry-upon-new-mail = true\nbounce-upon-no-mx = '1d'";
        let mut world =
            ruled(text, ServerModel::new().with_failure(Duration::ZERO..2 * HOUR, Failure::Refuse));
        for _ in 0..3 {
            submit(&mut world, 1);
            world.try_run_for(10 * MINUTE)?;
        }
        world.crash();
        assert!(world.try_run_until_idle(DAY)?);
        Ok(())
    });
}

#[test]
fn mail_goes_where_dns_says() {
    finds(Fault::SentElsewhere, "routes", || {
        let text = "[domain.'*']\nconnection-idle-timeout = '5m'\nuse-starttls = 'off'";
        let zone = format!("{ZONE}\n{TENANTS}");
        let world = World::builder().policy(policy(text)).zone(&zone).servers_elsewhere(ServerModel::new());
        let mut world = world.build().unwrap();
        for _ in 0..5 {
            world.submit(message(BOB)).unwrap();
            world.submit(message("bob@t1.example")).unwrap();
            world.try_run_for(MINUTE)?;
        }
        assert_eq!(world.count(Outcome::Delivered), 10);
        Ok(())
    });
}

#[test]
fn mail_is_not_forgotten_until_it_expires() {
    for others in [true, false] {
        finds(Fault::ForgottenForDays, "neglected", || {
            // Alone it would be found as starved if it had more time.
            let bounce_after = if others { "18h" } else { "5h" };
            let text = format!("[domain.'*']\nretry-after = ['5m']\nbounce-after = '{bounce_after}'");
            let mut world = ruled(&text, ServerModel::new());
            world.submit(message("forgotten@example.net")).unwrap();
            for _ in 0..18 {
                if others {
                    submit(&mut world, 1);
                }
                world.try_run_for(HOUR)?;
            }
            world.try_run_for(HOUR)
        });
    }
}

#[test]
fn outcomes_are_reported() {
    finds(Fault::OutcomesUntold, "reported", || {
        let mut world = world(ServerModel::new());
        for _ in 0..3 {
            submit(&mut world, 2);
            world.try_run_for(HOUR)?;
        }
        world.try_run_for(DAY)
    });
}

#[test]
fn a_bounce_has_a_reason() {
    finds(Fault::BouncedTransient, "bounces", || after_a_rule("'mode=backoff'"));
}

#[test]
fn a_fuse_holds_what_is_past_it() {
    for recipients in [1, 4] {
        finds(Fault::OneBounceMore, "fuses", || {
            let mut world = ruled("[domain.'*']\nbounce-fuse = '3/1h'", ServerModel::new());
            world.try_run_for(SECOND)?;
            for n in 0..8 / recipients {
                let to: Vec<String> = (0..recipients).map(|r| format!("r{n}{r}@nowhere.example")).collect();
                world.submit(Message::new("news@sender.example", to, "x").unwrap()).unwrap();
            }
            world.try_run_for(10 * MINUTE)?;
            assert_eq!(world.count(Outcome::Bounced), 3);
            world.decide_fuse("nowhere.example", FuseDecision::Bounce).unwrap();
            world.try_run_for(10 * MINUTE)?;
            assert_eq!(world.count(Outcome::Bounced), 8);
            Ok(())
        });
    }
}
