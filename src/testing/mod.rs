//! Parts for tests, behind the feature `testing`.
//!
//! | | |
//! |---|---|
//! | [`SmtpServer`] | an SMTP server in the process that answers as the test says and keeps what it receives |
//! | [`MemoryNetwork`] | addresses and the servers behind them, over pipes: tests run on paused time |
//! | [`ScriptedTransport`] | a [`Transport`](crate::transport::Transport) without any SMTP, for speed |
//! | [`SchedulerLoad`] | the scheduler alone, for benches |

mod behaviour;
mod conversation;
mod network;
mod scheduler_load;
mod scripted;
mod server;
#[cfg(test)]
mod tests;

pub use behaviour::{Behaviour, Command, Exchange};
pub use network::{MemoryNetwork, MemoryStream};
pub use scheduler_load::{SchedulerLoad, SchedulerLoadReport};
pub use scripted::ScriptedTransport;
pub use server::{ReceivedMessage, SmtpServer};
