//! What the random worlds are made of.

use std::sync::Arc;
use std::time::Duration;

use super::harness::route;
use crate::dns::{Route, RouteKind};

const POLICY: &str =
    "[engine]\nmax-connections = 6\n[domain.\"*\"]\nmax-smtp-out = 3\nmax-msg-per-connection = 4
max-rcpt-per-transaction = 3\nretry-after = [\"5m\", \"10m\"]\nbounce-after = \"3h\"
[domain.\"d1.example\"]\nmax-attempts = 2\nretry-jitter = 0.3
[domain.\"d2.example\"]\nretry-upon-new-mail = true\nconnection-idle-timeout = \"0s\"";

/// All controls at once, over few hosts that have much in common.
const CONTROLS: &str = r#"
[engine]
max-connections = 6
[[source]]
name = "a"
address = "192.0.2.101"
[[source]]
name = "b"
address = "192.0.2.102"
[[pool]]
name = "ab"
sources = ["a", "b"]
[[rollup]]
queue = "p.rollup"
mx = ["*.p.example"]
[[rollup]]
queue = "q.rollup"
mx = ["mx1", "mx2"]
[[ip-connection-limit]]
cidr = "192.0.2.0/30"
limit = 2
[[ip-connection-limit]]
cidr = "192.0.2.3"
limit = 1
per-source = true
[[mx-connection-limit]]
mx = "mx1"
limit = 1
[[reply-rule]]
name = "later"
match = 'later'
actions = ["mode=backoff", "limit-connections=1 for=10m"]
min-attempts = 2
[[reply-rule]]
name = "full"
match = 'full'
actions = ["bounce-rcpt"]
[[reply-rule]]
name = "block"
match = 'bye'
actions = ["disable-source-ip", "reenable-after=20m"]
after = "3/1h"
[[reply-rule]]
name = "skip"
match = '521'
actions = ["skip-mx"]
[domain."*"]
max-smtp-out = 3
source-ip-max-smtp-out = 2
max-msg-per-connection = 4
max-rcpt-per-transaction = 3
retry-after = ["5m", "10m"]
bounce-after = "3h"
backoff-to-normal-after = "15m"
[domain."p.rollup"]
max-msg-rate = "20/m"
source-ip-max-msg-rate = "15/m"
[domain."q.rollup"]
max-connect-rate = "10/m"
source-ip-max-connect-rate = "6/m"
[domain."d3.example"]
max-msg-rate = "90/h"
bounce-upon-no-mx = "1h"
"#;

/// Four of eight worlds have the controls.
pub(super) fn has_controls(seed: u64) -> bool {
    seed % 8 >= 4
}

pub(super) fn policy_of(seed: u64) -> &'static str {
    if has_controls(seed) { CONTROLS } else { POLICY }
}

/// Of a provider by wildcard, of one by name, or the domain's own; with addresses in common.
pub(super) fn shared_route(random: &mut fastrand::Rng, domain: &str) -> Arc<Route> {
    let own = format!("{domain}.p.example");
    let mut found = match random.usize(..5) {
        0 => route(&[&[("mx.p.example", &["192.0.2.1:25", "192.0.2.2:25"])]]),
        1 => route(&[&[(&own, &["192.0.2.2:25"])]]),
        2 => route(&[&[("mx1", &["192.0.2.1:25"]), ("mx2", &["192.0.2.3:25"])]]),
        3 => route(&[&[("mx3", &["192.0.2.2:25"])], &[("mx1", &["192.0.2.1:25"])]]),
        _ => {
            let mx = route(&[&[(domain, &["192.0.2.3:25"])]]);
            Arc::new(Route { kind: RouteKind::Implicit, ..(*mx).clone() })
        }
    };
    Arc::make_mut(&mut found).ttl = Duration::from_secs(random.u64(..600));
    found
}
