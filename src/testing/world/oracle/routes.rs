//! Mail is offered only to hosts that DNS gave for its domain, or that the policy fixes, at addresses that DNS gave for
//! them.
//!
//! What DNS gave once is believed for good: how long the engine may remember it is not judged.

use std::net::IpAddr;
use std::sync::Arc;

use super::super::observation::{Observation, Seen};
use super::modes::SETTLED;
use super::{Facts, Invariant, Judgement};
use crate::policy::{HostName, QueueSettings};

pub(super) struct Routes;

impl Invariant for Routes {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        let Seen::Offered { connection, message, queue, host, recipients } = &observation.seen else {
            return Ok(());
        };
        let Some(open) = facts.open.get(connection) else { return Ok(()) };
        // What was begun by the policy before may go to hosts that it fixed.
        if !facts.policy_at.is_zero() && observation.at <= facts.policy_at + SETTLED {
            return Ok(());
        }
        let settings = facts.settings(queue, &open.source);
        let (fixed, peer) = (fixed(&settings, host), open.peer.ip().to_canonical());
        let leads_there = match bracketed(host) {
            Some(address) => address == peer,
            None => facts.names.leads(host, peer),
        };
        if !leads_there {
            return Err(format!("{message} is offered at {peer}, which is no address of {host}").into());
        }
        let goes_there = |domain: &str| {
            fixed || domain == &**host || domain.starts_with('[') || facts.names.takes_mail(domain, host)
        };
        let mut domains = recipients.iter().map(|recipient| recipient.domain().as_str());
        match domains.find(|domain| !goes_there(domain)) {
            Some(domain) => Err(format!("{message} to {domain} is offered to {host}, no host of its").into()),
            None => Ok(()),
        }
    }
}

fn fixed(settings: &QueueSettings, host: &Arc<str>) -> bool {
    settings.smtp_hosts.iter().flatten().any(|fixed| match &fixed.host {
        HostName::Name(name) => name == host,
        HostName::Address(address) => bracketed(host) == Some(address.to_canonical()),
    })
}

/// A host without a name is its address.
fn bracketed(host: &str) -> Option<IpAddr> {
    let address = host.strip_prefix('[')?.strip_suffix(']')?;
    let address = address.strip_prefix("IPv6:").unwrap_or(address);
    address.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}
