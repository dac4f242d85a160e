//! Parts for tests, behind the feature `testing`.
//!
//! | | |
//! |---|---|
//! | [`SmtpServer`] | an SMTP server in the process that answers as the test says and keeps what it receives |
//! | [`MemoryNetwork`] | addresses and the servers behind them, over pipes: tests run on paused time |
//! | [`ScriptedTransport`] | a [`Transport`](crate::transport::Transport) without any SMTP, for speed |
//! | [`Replay`] | logged replies through new reply rules: what would change |
//! | [`SchedulerLoad`] | the scheduler alone, for benches |

mod behaviour;
mod conversation;
mod network;
mod replay;
mod scheduler_load;
mod scripted;
mod server;
mod simulation;
#[cfg(test)]
mod tests;
mod world;

pub use behaviour::{Behaviour, Command, Exchange};
pub use network::{MemoryNetwork, MemoryStream};
pub use replay::{ChangeKind, LoggedOutcome, LoggedReply, Replay, ReplayChange, ReplayReport, RuleReplay};
pub use scheduler_load::{SchedulerLoad, SchedulerLoadReport};
pub use scripted::ScriptedTransport;
pub use server::{ReceivedMessage, SmtpServer};
pub use simulation::{Simulation, SimulationError, SimulationReport};
pub use world::{
    DnsFault, DnsLie, Failure, Key, Latency, ModelTls, Observation, Outcome, Seen, ServerModel, ServerReport,
    StoreCall, StoreFault, StoreTrouble, Violation, World, WorldBuilder, WorldError,
};
