//! The words in which waits are told.

use std::fmt::{self, Display, Formatter};

use super::{
    Bounce, DestinationWaits, Holder, ItemWaits, LimitOf, MOST_AHEAD, MessageWaits, QueueWaits, Wait,
};
use crate::clock::Timestamp;
use crate::event::{Diagnosis, Failure};
use crate::policy::Written;

/// One line for each item.
impl Display for MessageWaits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.items.is_empty() {
            return f.write_str("nothing of it is queued");
        }
        separated(f, &self.items, "\n")?;
        match self.more_items {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl Display for ItemWaits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &*self.recipients {
            [one] => write!(f, "{}", one.address)?,
            all => write!(f, "{} recipients at {}", all.len(), self.domain)?,
        }
        write!(f, " in {}/{}: ", self.queue, self.source)?;
        separated(f, &self.waits, "; ")?;
        match self.until {
            None => Ok(()),
            Some(until) => match &self.bounces {
                Some(bounce) if bounce.at <= until => write!(f, "; {bounce}"),
                _ if self.expires_at <= until => write!(f, "; expires before, at {}", self.expires_at),
                _ => Ok(()),
            },
        }
    }
}

/// What holds all of it, or nothing more; each destination prints by itself.
impl Display for QueueWaits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { name, source, connections, in_flight, .. } = self;
        write!(f, "{name}/{source}: {connections} open, {in_flight} in transactions")?;
        if !self.waits.is_empty() {
            f.write_str("; ")?;
        }
        separated(f, &self.waits, "; ")
    }
}

impl Display for DestinationWaits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.domain)?;
        if self.domains > 1 {
            write!(f, " and {} more", self.domains - 1)?;
        }
        if let Some(oldest) = self.oldest {
            write!(f, ", oldest {}", Written(std::time::Duration::from_secs(oldest.as_secs())))?;
        }
        f.write_str(": ")?;
        match &*self.waits {
            [] => f.write_str("waits with its queue")?,
            waits => separated(f, waits, "; ")?,
        }
        match &self.bounces {
            Some(bounce) if self.until.is_some_and(|until| bounce.at <= until) => {
                write!(f, "; its oldest {bounce}")
            }
            _ => Ok(()),
        }
    }
}

/// As that which comes before an attempt.
impl Display for Bounce {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "bounces before, at {}: {}", self.at, words(&self.diagnosis))
    }
}

impl Display for Wait {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeldBack { until } => write!(f, "held back until {until}"),
            Self::BodyRefused { until } => {
                write!(f, "the store refused its content for the moment, next try at {until}")
            }
            Self::NotDue { until } => write!(f, "not due before {until}"),
            Self::RecipientRetry { until, attempts, last } => {
                write!(f, "retry at {until}, attempts so far: {attempts}")?;
                met(f, last.as_deref())
            }
            Self::DestinationRetry { until, step, last } => {
                write!(f, "hosts not usable (step {step}), next try at {until}")?;
                met(f, last.as_deref())
            }
            Self::HoldOff { until, allowed } => {
                write!(f, "no new connection before {until} since one failed, {allowed} allowed")
            }
            Self::Concurrency { open, allowed } => {
                write!(f, "{open} of {allowed} connections that the destination may have now are open")
            }
            Self::ConnectionLimit { setting, of, used, limit, holders, more_holders, ahead } => {
                write!(f, "limit {setting} of {of}: {used} of {limit} taken")?;
                if !holders.is_empty() {
                    f.write_str(" (")?;
                    separated(f, holders, ", ")?;
                    if *more_holders > 0 {
                        write!(f, ", and {more_holders} more queues")?;
                    }
                    f.write_str(")")?;
                }
                in_line(f, *ahead)
            }
            Self::Rate { setting, of, rate, until, ahead } => {
                write!(f, "rate {setting} of {of}: {rate}, room at {until}")?;
                in_line(f, *ahead)
            }
            Self::Backoff { since, until } => write!(f, "queue in backoff since {since}{}", ends(*until)),
            Self::Paused { selector: Some(selector) } => write!(f, "paused: {selector}"),
            Self::Paused { selector: None } => f.write_str("paused"),
            Self::SourceDisabled { source, until } => {
                write!(f, "source {source} is disabled for its queue{}", ends(*until))
            }
            Self::FuseBlown => f.write_str("held by the queue's blown fuse until somebody decides"),
            Self::QueueDeferred { until, step } => {
                write!(f, "a reply rule deferred its queue (step {step}) until {until}")
            }
            Self::LookUp { domain, under_way: true } => write!(f, "DNS is asked about {domain}"),
            Self::LookUp { domain, .. } => write!(f, "in line to ask DNS about {domain}"),
            Self::ResolverUnreachable { until } => {
                write!(f, "no name server could be reached, next try at {until}")
            }
            Self::SourceResting { source, until } => {
                write!(f, "this machine could not send from source {source}, next try at {until}")
            }
            Self::StoreStopped => {
                f.write_str("the store has failed: nothing is sent until it is opened anew")
            }
            Self::StoreFull => {
                f.write_str("the store has no room for outcomes: nothing is sent until it has")
            }
            Self::StoreScarce => f.write_str(
                "the store has little room: what is next waits until all outcomes are stored and reported",
            ),
            Self::StorePaused { until } => {
                write!(f, "the store refused for the moment, next try at {until}")
            }
            Self::Settling { unsettled, limit } => {
                write!(
                    f,
                    "{unsettled} outcomes are not durable yet: with {limit} or more no transaction starts"
                )
            }
            Self::ReportsBlocked => {
                f.write_str("the sink or a live stream has not taken what there is to report")
            }
            Self::Writing => f.write_str("what was decided about it is being written"),
            Self::Claim { under_way: true } => f.write_str("being taken out of the store"),
            Self::Claim { .. } => f.write_str("in line to be taken out of the store"),
            Self::WindowFull { limit } => {
                write!(f, "{limit} items are in hand, no more are taken out of the store")
            }
            Self::BodyMemory { octets, limit, in_line } => {
                write!(f, "content in transactions takes {octets} of {limit} octets, {in_line} in line")
            }
            Self::Connecting { host, peer, probing } => {
                let probing = if *probing { ", to find out whether the hosts work again" } else { "" };
                write!(f, "connecting to {host} at {peer}{probing}")
            }
            Self::InTransaction { host, peer, since } => {
                write!(f, "in a transaction with {host} at {peer} since {since}")
            }
            Self::Turn { at_hand } => write!(f, "its turn among {at_hand} items at hand"),
        }
    }
}

impl Display for LimitOf {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine => f.write_str("the engine"),
            Self::Queue { queue, source } => write!(f, "{queue}/{source}"),
            Self::QueueFrom { queue, from } => write!(f, "{queue} from {from}"),
            Self::Host { host } => f.write_str(host),
            Self::Address { address, from: None } => write!(f, "{address}"),
            Self::Address { address, from: Some(from) } => write!(f, "{address} from {from}"),
            Self::Range { cidr, from: None } => write!(f, "{cidr}"),
            Self::Range { cidr, from: Some(from) } => write!(f, "{cidr} from {from}"),
        }
    }
}

impl Display for Holder {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}", self.queue, self.source, self.connections)
    }
}

fn separated(f: &mut Formatter<'_>, all: &[impl Display], by: &str) -> fmt::Result {
    for (n, one) in all.iter().enumerate() {
        if n > 0 {
            f.write_str(by)?;
        }
        one.fmt(f)?;
    }
    Ok(())
}

fn in_line(f: &mut Formatter<'_>, ahead: u64) -> fmt::Result {
    let or_more = if ahead == MOST_AHEAD { " or more" } else { "" };
    write!(f, ", {ahead}{or_more} ahead in line")
}

fn ends(until: Option<Timestamp>) -> String {
    until.map(|until| format!(" until {until}")).unwrap_or_default()
}

fn met(f: &mut Formatter<'_>, last: Option<&Diagnosis>) -> fmt::Result {
    last.map_or(Ok(()), |last| write!(f, "; the last met: {}", words(last)))
}

/// A server's words are a stranger's: they may not steer a terminal.
fn words(diagnosis: &Diagnosis) -> String {
    let words = match &diagnosis.failure {
        Failure::Reply(reply) => reply.to_string(),
        Failure::Engine(message) => message.clone(),
    };
    words.replace(char::is_control, " ")
}
