//! What a seed decides, and how worlds come about.

use std::process::Command;

use super::*;
use crate::storage::StorageErrorKind;

/// Where the other process leaves what it saw.
const WRITE_TO: &str = "POSTRIDER_TEST_WRITE_TO";

/// With something of everything that draws from chance.
fn eventful(builder: WorldBuilder) -> World {
    let text = "[domain.'*']\nretry-after = ['3m', '20m']\nretry-jitter = 0.5\nbounce-after = '6h'";
    let latency = Latency::Skewed { median: SECOND / 5, p99: 10 * SECOND };
    let busy = Failure::Reply(Stage::Rcpt, "450 4.2.1 busy".to_owned());
    let zone = "a.example. MX 10 mx1.x.example.\na.example. MX 10 mx2.x.example.\nb.example. MX 10 mx2.x.example.\n\
        mx1.x.example. A 192.0.2.1\nmx2.x.example. A 192.0.2.2\nmx2.x.example. A 192.0.2.3\nc.example. A 192.0.2.4";
    let model = ServerModel::new()
        .with_reply_latency(latency)
        .with_chance_of(0.3, busy)
        .with_chance_of(0.1, Failure::Close(Stage::Dot))
        .with_idle_timeout(20 * SECOND);
    let mut world = builder
        .policy(policy(text))
        .zone(zone)
        .servers_elsewhere(model)
        .dns_fault(DnsFault::new(DnsLie::Fails(crate::dns::DnsErrorKind::ServFail)).with_chance(0.2))
        .store_fault(StoreFault::new(StoreCall::Commit, StoreTrouble::Crash { applied: true }).at(9))
        .store_fault(
            StoreFault::new(StoreCall::Claim, StoreTrouble::Fails(StorageErrorKind::Temporary)).at(2),
        )
        .build()
        .unwrap();
    for n in 0..60 {
        let to = [format!("r{n}@a.example"), format!("r{n}@b.example"), format!("r{n}@c.example")];
        let _ = world.submit(Message::new("news@sender.example", to, "hi\r\n").unwrap());
        if n == 30 {
            world.run_for(HOUR);
            world.crash();
        }
    }
    world.run_until_idle(DAY);
    world
}

#[test]
fn a_seed_gives_one_trace() {
    let trace = |seed| eventful(World::builder().seed(seed)).trace_text();
    let first = trace(5);
    assert!(first.lines().count() > 500, "{}", first.lines().count());
    let second = trace(5);
    let differs = first.lines().zip(second.lines()).position(|(a, b)| a != b);
    assert!(
        first == second,
        "the same seed gives the same trace, but not from line {differs:?} on: {:?} {:?}",
        differs.and_then(|n| first.lines().nth(n)),
        differs.and_then(|n| second.lines().nth(n))
    );
    assert!(first != trace(6), "another gives another");
}

/// Does nothing by itself: see below.
#[test]
fn write_a_trace_for_another_process() {
    if let Ok(path) = std::env::var(WRITE_TO) {
        let world = eventful(World::builder());
        std::fs::write(path, format!("{}\n{}", world.seed(), world.trace_text())).unwrap();
    }
}

#[test]
fn a_seed_gives_one_trace_in_every_process_and_may_come_from_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let written = |seed: &str| {
        let path = folder.path().join("trace");
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "testing::world::tests::seeds::write_a_trace_for_another_process"])
            .env(builder::SEED_VARIABLE, seed)
            .env(WRITE_TO, &path)
            .output()
            .unwrap();
        done.status.success().then(|| std::fs::read_to_string(path).unwrap())
    };
    let here = eventful(World::builder().seed(23));
    assert!(written("23") == Some(format!("23\n{}", here.trace_text())));
    assert_eq!(written("twenty-three"), None);
}

#[test]
fn a_world_can_not_be_built_inside_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let built = runtime.block_on(async { World::builder().build() });
    assert!(matches!(&built, Err(WorldError::InsideRuntime)));
    assert!(built.unwrap_err().to_string().contains("from a plain #[test]"));
}

#[test]
fn mistakes_are_told() {
    let error = |builder: WorldBuilder| builder.build().unwrap_err().to_string();
    assert!(error(World::builder().zone("example.net. MX ten")).starts_with("the zone: "));
    let address = error(World::builder().server("mx.example.net", ServerModel::new()));
    assert!(address.starts_with("`mx.example.net` is not a server's address"), "{address}");
    assert!(error(World::builder().hostname("not a name")).starts_with("the engine: "));
}

#[test]
fn a_world_begins_where_it_is_told() {
    let start = Timestamp::from_unix_seconds(1_000_000_000);
    let ported = policy("[smtp]\nport = 2525");
    let mut world = World::builder()
        .start(start)
        .hostname("mta.host.example")
        .policy(ported)
        .zone("example.net. MX 10 mx.example.net.")
        .zone("mx.example.net. A 192.0.2.1\nmx.example.net. AAAA 2001:db8::1")
        .server(SERVER, ServerModel::new())
        .server("[2001:db8::1]:2525", ServerModel::new())
        .build()
        .unwrap();
    assert_eq!((world.now(), world.elapsed()), (start, Duration::ZERO));
    world.submit(message(BOB)).unwrap();
    assert!(world.run_until_idle(HOUR));
    assert_eq!(world.server(SERVER).taken + world.server("2001:db8::1").taken, 1);
    assert!(world.now() >= start);
}
