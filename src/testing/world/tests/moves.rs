//! What happens to a world while it runs: crashes, steps of the clock, a new policy, zone or server.

use super::*;

fn refusing() -> ServerModel {
    ServerModel::new().with_failure(Duration::ZERO..Duration::MAX, Failure::Refuse)
}

#[test]
fn a_crash_loses_what_was_in_memory_and_no_mail() {
    let mut world = world(ServerModel::new().with_reply_latency(10 * SECOND));
    let id = world.submit(message(BOB)).unwrap();
    world.run_for(35 * SECOND);
    assert_eq!(world.attempts(id, BOB), 1);
    let before = world.elapsed();
    world.crash();
    assert_eq!(world.elapsed(), before);
    assert_eq!(world.stats().connections, 0);
    assert!(world.run_until_idle(HOUR));
    assert_eq!(world.attempts(id, BOB), 2);
    assert_eq!(world.outcome(id, BOB), Outcome::Delivered);
    let lines = world.trace_text();
    assert!(
        lines.contains("the process crashed\n") && lines.matches("the engine was started\n").count() == 2
    );
}

#[test]
fn a_restart_lets_transactions_end() {
    let mut world = world(ServerModel::new().with_reply_latency(10 * SECOND));
    let id = world.submit(message(BOB)).unwrap();
    world.run_for(25 * SECOND);
    world.restart();
    assert!(world.run_until_idle(HOUR));
    assert_eq!(world.attempts(id, BOB), 1);
    assert!(world.trace_text().contains("the engine was shut down\n"));
}

#[test]
fn a_step_forward_makes_held_mail_due() {
    let mut world = world(ServerModel::new());
    let until = world.now().saturating_add(DAY);
    let id = world.submit(message(BOB).hold_until(until)).unwrap();
    world.run_for(HOUR);
    assert_eq!(world.outcome(id, BOB), Outcome::Queued);
    world.step_clock(until);
    world.run_for(2 * MINUTE);
    assert_eq!(world.now(), until.saturating_add(2 * MINUTE));
    assert_eq!(world.outcome(id, BOB), Outcome::Delivered);
    assert!(world.elapsed() == HOUR + 2 * MINUTE, "no step moves the world's own time");
}

#[test]
fn a_step_back_keeps_mail() {
    let mut world = world(ServerModel::new().with_greylist(4 * MINUTE));
    let id = world.submit(message(BOB)).unwrap();
    world.run_for(MINUTE);
    world.step_clock(world.now().saturating_sub(HOUR));
    world.crash();
    world.run_for(3 * HOUR);
    assert_eq!(world.outcome(id, BOB), Outcome::Delivered);
}

#[test]
fn time_goes_on_over_a_crash_after_a_step() {
    let mut world = world(ServerModel::new());
    let to = world.now().saturating_add(7 * DAY);
    world.step_clock(to);
    world.crash();
    world.run_for(MINUTE);
    assert_eq!(world.now(), to.saturating_add(MINUTE));
    assert_eq!(world.elapsed(), MINUTE);
}

#[test]
fn a_policy_is_replaced_also_for_the_next_process() {
    let mut world = world(ServerModel::new().with_greylist(30 * DAY));
    let id = world.submit(message(BOB)).unwrap();
    world.run_for(MINUTE);
    world.set_policy(policy("[domain.'*']\nretry-after = ['1m']\nbounce-after = '1h'"));
    world.run_for(20 * MINUTE);
    world.crash();
    assert!(world.run_until_idle(DAY));
    assert_eq!(ended_at(&world, id), Some(HOUR));
    assert!(world.attempts(id, BOB) > 40);
}

#[test]
fn a_policy_replaced_while_the_process_dies_is_the_next_one_s() {
    let mut world = world(ServerModel::new().with_greylist(30 * DAY));
    let id = world.submit(message(BOB)).unwrap();
    world.book.crash();
    world.set_policy(policy("[domain.'*']\nretry-after = ['1m']\nbounce-after = '1h'"));
    assert!(world.run_until_idle(DAY));
    assert_eq!(ended_at(&world, id), Some(HOUR));
}

#[test]
fn the_zone_is_replaced() {
    let zone = "example.net. 60 MX 10 mx.example.net.\nmx.example.net. 60 A 192.0.2.1";
    let mut world = World::builder()
        .policy(usual())
        .zone(zone)
        .server(SERVER, refusing())
        .server("192.0.2.2", ServerModel::new())
        .build()
        .unwrap();
    let id = world.submit(message(BOB)).unwrap();
    world.run_for(MINUTE);
    assert!(world.set_zone("example.net. MX ten").is_err());
    world.set_zone(&zone.replace("192.0.2.1", "192.0.2.2")).unwrap();
    assert!(world.run_until_idle(HOUR));
    assert_eq!(world.outcome(id, BOB), Outcome::Delivered);
    assert_eq!((world.server(SERVER).taken, world.server("192.0.2.2").taken), (0, 1));
}

#[test]
fn a_server_changes_and_remembers() {
    let mut world = world(ServerModel::new().with_greylist(20 * MINUTE));
    let id = world.submit(message(BOB)).unwrap();
    world.run_for(MINUTE);
    world.set_server(SERVER, refusing()).unwrap();
    world.run_for(20 * MINUTE);
    world.set_server(SERVER, ServerModel::new().with_greylist(20 * MINUTE)).unwrap();
    assert!(world.run_until_idle(DAY));
    assert_eq!(world.attempts(id, BOB), 2, "it knows since when it was asked");
    assert!(matches!(world.set_server("mx", ServerModel::new()), Err(WorldError::Address(_))));
}

#[test]
fn what_the_host_says_reaches_the_engine() {
    let mut world = world(refusing());
    let ids = submit(&mut world, 3);
    world.run_for(SECOND);
    assert_eq!(world.server(SERVER).attempts, 1);
    world.retry_now(Selector::queue("example.net")).unwrap();
    world.run_for(SECOND);
    assert_eq!(world.server(SERVER).attempts, 2);
    world.pause(Selector::queue("example.net")).unwrap();
    world.run_for(HOUR);
    assert_eq!(world.server(SERVER).attempts, 2);
    assert!(world.why(ids[0])[0].contains("paused"), "{:?}", world.why(ids[0]));
    assert!(world.resume(Selector::queue("example.net")).unwrap());
    world.run_for(HOUR);
    assert!(world.server(SERVER).attempts > 2);
    world.set_backoff(Selector::queue("example.net"), true).unwrap();
    assert!(world.why_queue("example.net").join("\n").contains("backoff"));
    world.cancel_all(Selector::queue("example.net"), CancelAs::Cancelled).unwrap();
    assert!(world.run_until_idle(HOUR));
    assert_eq!(world.count(Outcome::Cancelled), 3);
    world.note("the end");
    assert!(world.trace_text().ends_with("note: the end\n"));
}

#[test]
fn an_engine_that_was_stopped_is_never_idle() {
    let mut world = world(ServerModel::new());
    world.with_engine(async |engine| engine.shutdown(SECOND).await);
    assert!(!world.run_until_idle(HOUR));
    assert!(world.elapsed() >= HOUR);
}

#[test]
fn a_clock_set_back_by_days_holds_no_new_mail_up() {
    for settings in [
        "max-msg-rate = '50/h'",
        "max-connect-rate = '50/h'\nmax-msg-per-connection = 1",
        "source-ip-max-msg-rate = '50/h'",
        "retry-after = ['10m', '20m']",
    ] {
        let refuses = ServerModel::new().with_failure(Duration::ZERO..HOUR, Failure::Refuse);
        let model = if settings.starts_with("retry") { refuses } else { ServerModel::new() };
        let policy = policy(&format!("[domain.'*']\n{settings}"));
        let mut world = builder(model).policy(policy).build().unwrap();
        for n in 0..5 {
            world.submit(message(&format!("r{n}@example.net"))).unwrap();
        }
        world.run_for(MINUTE);
        world.step_clock(world.now().saturating_sub(2 * DAY));
        // Until the engine has followed.
        world.run_for(2 * MINUTE);
        let id = world.submit(message(BOB).expires_after(8 * HOUR)).unwrap();
        world.run_for(3 * HOUR);
        assert_eq!(world.outcome(id, BOB), Outcome::Delivered, "{settings}");
        // What it kept says so too.
        world.crash();
        let id = world.submit(message(BOB).expires_after(8 * HOUR)).unwrap();
        world.run_for(3 * HOUR);
        assert_eq!(world.outcome(id, BOB), Outcome::Delivered, "{settings}");
    }
}

#[test]
fn a_clock_set_back_by_days_passes_no_host_over_for_days() {
    let zone = "example.net. MX 10 mx1.example.net.\nexample.net. MX 20 mx2.example.net.\n\
                mx1.example.net. A 192.0.2.1\nmx2.example.net. A 192.0.2.2";
    let skips = "[[reply-rule]]\nname = 'r'\nmatch = 'not now'\nactions = ['skip-mx']";
    let refuses = Failure::Reply(Stage::Mail, "450 4.3.0 not now".into());
    let first = ServerModel::new().with_failure(Duration::ZERO..MINUTE, refuses);
    let world = World::builder().policy(policy(skips)).zone(zone).server(SERVER, first);
    let mut world = world.server("192.0.2.2", ServerModel::new()).build().unwrap();
    // What waits keeps the destination.
    world.submit(message("ann@example.net").hold_until(world.now() + 10 * DAY)).unwrap();
    world.submit(message(BOB)).unwrap();
    world.run_for(MINUTE);
    assert_eq!(world.server("192.0.2.2").taken, 1, "the first is passed over");
    world.step_clock(world.now().saturating_sub(2 * DAY));
    world.run_for(HOUR);
    world.submit(message(BOB)).unwrap();
    world.run_for(MINUTE);
    assert_eq!(world.server(SERVER).taken, 1, "and asked again");
}

#[test]
fn another_policy_may_come_when_a_fuse_would_blow() {
    let fuse = policy("[domain.'*']\nbounce-fuse = '2/1h'");
    let mut world = builder(ServerModel::new()).policy(fuse).build().unwrap();
    let hold = world.now() + 30 * MINUTE;
    for n in 0..9 {
        let message = message(&format!("r{n}@gone.example"));
        world.submit(if n % 2 == 0 { message.hold_until(hold) } else { message }).unwrap();
    }
    world.run_for(10 * MINUTE);
    // To the moment at which the others bounce.
    world.run_for(20 * MINUTE);
    world.set_policy(policy("[domain.'*']\nqueue-to = 'man.rollup'"));
    world.run_for(HOUR);
}
