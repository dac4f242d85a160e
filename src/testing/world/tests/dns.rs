//! What a [`DnsFault`] promises.

use super::*;
use crate::dns::DnsErrorKind;

const TWO: &str =
    "example.net. MX 10 mx.example.net.\nmx.example.net. A 192.0.2.1\nother.example. A 192.0.2.2";

fn lying(fault: DnsFault) -> World {
    let model = ServerModel::new();
    let builder = World::builder().policy(usual()).zone(TWO).servers_elsewhere(model);
    builder.dns_fault(fault).build().unwrap()
}

fn status(world: &World, id: MessageId, to: &str) -> String {
    match world.final_event(id, to) {
        Some(DeliveryEvent::Bounced(bounced)) => bounced.diagnosis.status.to_string(),
        other => format!("{other:?}"),
    }
}

#[test]
fn questions_fail() {
    for kind in [DnsErrorKind::ServFail, DnsErrorKind::Timeout, DnsErrorKind::Unreachable] {
        let mut world = lying(DnsFault::new(DnsLie::Fails(kind)).during(Duration::ZERO..MINUTE));
        let id = world.submit(message(BOB)).unwrap();
        world.run_for(30 * SECOND);
        assert_eq!(world.outcome(id, BOB), Outcome::Queued, "{kind:?}");
        assert_eq!(world.servers().count(), 0);
        assert!(world.run_until_idle(HOUR), "{kind:?}");
        assert_eq!(world.outcome(id, BOB), Outcome::Delivered, "{kind:?}");
    }
}

#[test]
fn names_and_records_are_denied() {
    let mut world = lying(DnsFault::new(DnsLie::NxDomain).about("Example.net."));
    let id = world.submit(message(BOB)).unwrap();
    let other = world.submit(message("ann@other.example")).unwrap();
    assert!(world.run_until_idle(HOUR));
    assert_eq!(status(&world, id, BOB), "5.1.2");
    assert_eq!(world.outcome(other, "ann@other.example"), Outcome::Delivered);
    let mut world = lying(DnsFault::new(DnsLie::NoData).about("example.net"));
    let id = world.submit(message(BOB)).unwrap();
    assert!(world.run_until_idle(HOUR));
    assert_eq!(status(&world, id, BOB), "5.4.4");
}

#[test]
fn answers_are_slow() {
    let mut world = lying(DnsFault::new(DnsLie::Slow(2 * SECOND)).about("example.net"));
    let id = world.submit(message(BOB)).unwrap();
    assert!(world.run_until_idle(HOUR));
    assert_eq!(ended_at(&world, id), Some(2 * SECOND));
}

#[test]
fn answers_name_others() {
    let exchanger = DnsFault::new(DnsLie::Exchanger("other.example".to_owned())).about("example.net");
    let address = DnsFault::new(DnsLie::Address([192, 0, 2, 9].into())).about("mx.example.net");
    for (fault, server) in [(exchanger, "192.0.2.2"), (address, "192.0.2.9")] {
        let mut world = lying(fault);
        world.submit(message(BOB)).unwrap();
        assert!(world.run_until_idle(HOUR));
        assert_eq!(world.server(server).taken, 1);
    }
}

#[test]
fn a_lie_does_not_hide_one_of_another_kind() {
    let mut world = lying(DnsFault::new(DnsLie::Exchanger("other.example".to_owned())));
    world
        .set_dns_faults([
            DnsFault::new(DnsLie::Exchanger("other.example".to_owned())),
            DnsFault::new(DnsLie::Address([192, 0, 2, 9].into())),
        ])
        .unwrap();
    world.submit(message(BOB)).unwrap();
    assert!(world.run_until_idle(HOUR));
    assert_eq!(world.server("192.0.2.9").taken, 1);
}

#[test]
fn lies_have_their_chance_and_an_end() {
    let never = DnsFault::new(DnsLie::NxDomain).with_chance(0.0);
    let mut world = lying(never);
    world.submit(message(BOB)).unwrap();
    assert!(world.run_until_idle(HOUR));
    assert_eq!(world.count(Outcome::Delivered), 1);

    let mut world = lying(DnsFault::new(DnsLie::Fails(DnsErrorKind::ServFail)));
    let id = world.submit(message(BOB)).unwrap();
    world.run_for(HOUR);
    world.set_dns_faults([]).unwrap();
    assert!(world.run_until_idle(DAY));
    assert_eq!(world.outcome(id, BOB), Outcome::Delivered);
}
