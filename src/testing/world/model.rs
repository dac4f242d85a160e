//! [`ServerModel`]: how a receiver behaves.

use std::collections::BTreeMap;
use std::time::Duration;

use super::WorldError;
use super::builder::{check_chance, check_times};
use super::latency::Latency;
use crate::message::Address;
use crate::reply::{Reply, Stage};

/// How a receiver behaves. It accepts all mail at once, except as it is told here.
///
/// Replies are given as text, as a server would say them; [`WorldBuilder::build`](super::WorldBuilder::build) refuses
/// a model with one that is none.
///
/// ```
/// use std::time::Duration;
/// use postrider::testing::ServerModel;
/// let picky = ServerModel::new()
///     .with_greylist(Duration::from_secs(300))
///     .with_message_rate(100, Duration::from_secs(3600))
///     .with_mailbox("gone@example.net", "550 5.1.1 no such user");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ServerModel {
    pub(super) greylist: Option<Duration>,
    pub(super) message_rate: Option<(u32, Duration)>,
    pub(super) message_rate_reply: Option<Reply>,
    pub(super) connection_limit: Option<u32>,
    pub(super) messages_per_connection: Option<u32>,
    pub(super) connect_latency: Latency,
    pub(super) reply_latency: Latency,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) tls: ModelTls,
    pub(super) mailboxes: BTreeMap<String, Reply>,
    pub(super) others: Option<Reply>,
    pub(super) failures: Vec<Window>,
    pub(super) chances: Vec<(f64, Failure)>,
    problem: Option<WorldError>,
}

/// Whether a modelled server speaks TLS. Its certificate is valid for whatever it is called. None offers REQUIRETLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelTls {
    /// Not offered. The default.
    #[default]
    None,
    /// Offered: used as the queue's `use-starttls` wishes.
    Offered,
    /// Demanded: MAIL without it is answered `530 5.7.0`.
    Required,
}

/// What goes wrong at a modelled server.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Failure {
    /// Nobody listens: connections are refused, and open sessions break off at their next transaction.
    Refuse,
    /// Nothing ever answers a connection, and open sessions break off at their next transaction.
    Blackhole,
    /// This reply, in place of the usual one, at this stage: at [`Stage::Connect`] it is the greeting.
    Reply(Stage, String),
    /// The connection is closed in place of the reply of this stage. At [`Stage::Dot`] the message was taken in every
    /// second case.
    Close(Stage),
    /// Each reply takes so much longer. By chance: each for itself.
    Slow(Duration),
}

#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) from: Duration,
    pub(super) until: Duration,
    pub(super) failure: Failure,
}

impl Default for ServerModel {
    fn default() -> Self {
        Self::new()
    }
}

impl ServerModel {
    /// Accepts all mail, at once.
    pub fn new() -> Self {
        Self {
            greylist: None,
            message_rate: None,
            message_rate_reply: None,
            connection_limit: None,
            messages_per_connection: None,
            connect_latency: Latency::ZERO,
            reply_latency: Latency::ZERO,
            idle_timeout: None,
            tls: ModelTls::None,
            mailboxes: BTreeMap::new(),
            others: None,
            failures: Vec::new(),
            chances: Vec::new(),
            problem: None,
        }
    }

    /// Never answers a connection.
    pub fn blackhole() -> Self {
        Self::new().with_failure(Duration::ZERO..Duration::MAX, Failure::Blackhole)
    }

    /// Refuses a client address, sender and recipient seen for the first time with `451 4.7.1`, until so long after.
    pub fn with_greylist(mut self, wait: Duration) -> Self {
        self.greylist = Some(wait);
        self
    }

    /// Takes so many messages in any such time from one client address, then answers MAIL with `421 4.7.28`.
    pub fn with_message_rate(mut self, messages: u32, per: Duration) -> Self {
        self.message_rate = Some((messages, per));
        self
    }

    /// What it answers to MAIL beyond its message rate, in place of `421 4.7.28`: receivers have words of their own,
    /// and reply rules are about these.
    pub fn with_message_rate_reply(mut self, reply: &str) -> Self {
        self.message_rate_reply = self.read(reply);
        self
    }

    /// Takes so many connections at once from one client address; further ones are greeted with `421 4.7.0`.
    pub fn with_connection_limit(mut self, connections: u32) -> Self {
        self.connection_limit = Some(connections);
        self
    }

    /// Answers MAIL with `421 4.7.0` after so many messages of one connection.
    pub fn with_messages_per_connection(mut self, messages: u32) -> Self {
        self.messages_per_connection = Some(messages);
        self
    }

    /// A connection takes so long to come about. Default: no time.
    pub fn with_connect_latency(mut self, latency: impl Into<Latency>) -> Self {
        self.connect_latency = latency.into();
        self
    }

    /// Each answer takes so long: greeting, EHLO, the group of MAIL, RCPT and DATA, the content. Default: no time.
    pub fn with_reply_latency(mut self, latency: impl Into<Latency>) -> Self {
        self.reply_latency = latency.into();
        self
    }

    /// Ends sessions that do nothing for so long, with `421 4.4.2`. Default: never.
    pub fn with_idle_timeout(mut self, idle: Duration) -> Self {
        self.idle_timeout = Some(idle);
        self
    }

    /// Whether it speaks TLS.
    pub fn with_tls(mut self, tls: ModelTls) -> Self {
        self.tls = tls;
        self
    }

    /// RCPT of this recipient is answered so: the mailbox table's line. Case does not matter.
    pub fn with_mailbox(mut self, recipient: &str, reply: &str) -> Self {
        if let Some(reply) = self.read(reply) {
            self.mailboxes.insert(recipient.to_ascii_lowercase(), reply);
        }
        self
    }

    /// RCPT of a recipient not in the mailbox table is answered so.
    pub fn with_other_mailboxes(mut self, reply: &str) -> Self {
        self.others = self.read(reply);
        self
    }

    /// Fails so in this time, counted from the world's beginning.
    pub fn with_failure(mut self, times: std::ops::Range<Duration>, failure: Failure) -> Self {
        self.check(&failure);
        self.failures.push(Window { from: times.start, until: times.end, failure });
        self
    }

    /// Fails so now and then: with this probability, 0 to 1, drawn anew for each connection (up to EHLO) or
    /// transaction.
    pub fn with_chance_of(mut self, probability: f64, failure: Failure) -> Self {
        self.check(&failure);
        self.chances.push((probability, failure));
        self
    }

    pub(super) fn problem(&self) -> Result<(), WorldError> {
        self.problem.clone().map_or(Ok(()), Err)?;
        self.chances.iter().try_for_each(|&(probability, _)| check_chance(probability))?;
        self.failures
            .iter()
            .try_for_each(|window| check_times("a server fails", &(window.from..window.until)))?;
        if let Some((messages, Duration::ZERO)) = self.message_rate {
            return Err(WorldError::MessageRate(messages));
        }
        if let Some(name) = self.mailboxes.keys().find(|name| Address::parse(name).is_err()) {
            return Err(WorldError::Mailbox(name.clone()));
        }
        self.connect_latency.check()?;
        self.reply_latency.check()
    }

    fn check(&mut self, failure: &Failure) {
        let (Failure::Reply(stage, _) | Failure::Close(stage)) = failure else { return };
        if matches!(stage, Stage::Queue | Stage::Dns | Stage::Auth) {
            self.problem.get_or_insert(WorldError::Stage { stage: *stage });
        }
        let Failure::Reply(_, text) = failure else { return };
        // Later in a session a positive reply may be out of place.
        if let Some(reply) = self.read(text)
            && *stage <= Stage::Ehlo
            && reply.code() < 400
        {
            self.problem.get_or_insert(WorldError::NoFailure(text.clone()));
        }
    }

    /// The first text that is no reply is remembered.
    fn read(&mut self, text: &str) -> Option<Reply> {
        match Reply::parse(text) {
            Ok(reply) => Some(reply),
            Err(error) => {
                let problem = WorldError::Reply { reply: text.to_owned(), error: error.to_string() };
                self.problem.get_or_insert(problem);
                None
            }
        }
    }
}
