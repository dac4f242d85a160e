//! Policies: how mail is sent.

mod choices;
mod cidr;
mod hosts;
mod limits;
mod pattern;
mod retry;
mod rollup;
mod value;

pub use choices::{IpFamily, NoMx, NoMxLiveHost, NxDomain, PolicyBase, StartTls};
pub use cidr::{Cidr, CidrError};
pub use hosts::{FixedHost, FixedHostError, HostName};
pub use limits::{IpConnectionLimit, MxConnectionLimit};
pub use pattern::{NamePattern, PatternError};
pub use retry::{RetryAfter, RetryAfterError, with_jitter};
pub use rollup::{RollupError, RollupMatch, RollupName, RollupNameError, RollupRule};
pub use value::{DurationError, MAX_DURATION, Rate, RateError, parse_duration};
