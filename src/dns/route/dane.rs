//! The TLSA records of a route's hosts (RFC 7672 §2.2).

use std::sync::Arc;
use std::time::Duration;

use super::addresses::Hosts;
use crate::dane::TlsaSet;
use crate::dns::{Answer, Data, DnsError, DnsErrorKind, is_too_much};
use crate::message::is_host_name;

/// Octets of a name in text (RFC 1035 §2.3.4).
const LONGEST_NAME: usize = 253;

/// What a host demands by DANE.
#[derive(Clone, Debug, Default)]
pub(super) enum Demand {
    /// Nothing: there is no record, or none that is authentic.
    #[default]
    Nothing,
    /// What these records say.
    Tlsa(Arc<TlsaSet>),
    /// It can not be found out: the host must not be used (RFC 7672 §2.1.2).
    Unknown(DnsError),
}

/// What is known of a host's name from the look-up of its addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    /// Addresses, and all that led to them, are authentic.
    pub(super) is_secure: bool,
    /// The name that CNAMEs led to.
    pub(super) canonical: Option<Arc<str>>,
}

impl Origin {
    /// An answer has addresses. One that is authentic counts more than another: whoever adds a forged answer beside it
    /// must not be able to take it from us.
    pub(super) fn learn<T>(&mut self, answer: &Answer<T>) {
        if answer.authentic && !self.is_secure {
            *self = Self { is_secure: true, canonical: answer.canonical.clone() };
        } else if answer.authentic == self.is_secure && self.canonical.is_none() {
            self.canonical.clone_from(&answer.canonical);
        }
    }
}

impl Hosts<'_> {
    /// What a host demands that has addresses, and how long that holds.
    pub(super) async fn demand(self, host: &Arc<str>, port: u16, origin: &Origin) -> (Demand, Duration) {
        let mut ttl = Duration::MAX;
        let Some(next_hop) = self.dane else { return (Demand::Nothing, ttl) };
        let bases = match self.bases(host, origin).await {
            Ok(bases) => bases,
            Err(error) => return (unknown(error), ttl),
        };
        for base in bases {
            let name = format!("_{port}._tcp.{base}");
            if name.len() > LONGEST_NAME || !is_host_name(&base) {
                continue;
            }
            match self.limit.keep("TLSA", &name, self.resolver.tlsa(&name, self.freshness)).await {
                Ok(answer) => {
                    ttl = ttl.min(answer.ttl);
                    if let Data::Records(records) = answer.data
                        && answer.authentic
                    {
                        if is_too_much(&records) {
                            let message = format!("TLSA of {name}: more than is read of one answer");
                            return (unknown(DnsError::new(DnsErrorKind::Malformed, message)), ttl);
                        }
                        let set = TlsaSet::new(base, next_hop.iter().cloned(), records);
                        return (Demand::Tlsa(Arc::new(set)), ttl);
                    }
                }
                Err(error) => return (unknown(error), ttl),
            }
        }
        (Demand::Nothing, ttl)
    }

    /// Where the host's TLSA records may be, the first that has any (RFC 7672 §2.2.2, §2.2.3): at the name that all CNAMEs lead
    /// to, if that is authentic, then at its own.
    async fn bases(self, host: &Arc<str>, origin: &Origin) -> Result<Vec<Arc<str>>, DnsError> {
        match (origin.is_secure, &origin.canonical) {
            (true, Some(canonical)) => Ok(vec![canonical.clone(), host.clone()]),
            (true, None) => Ok(vec![host.clone()]),
            (false, None) => Ok(Vec::new()),
            // The name may be in a signed zone and lead out of it. Name servers of others may not even answer for TLSA.
            (false, Some(_)) => {
                let cname = self.resolver.cname(host, self.freshness);
                let cname = self.limit.keep("CNAME", host, cname).await?;
                let is_secure = cname.authentic && matches!(cname.data, Data::Records(_));
                Ok(if is_secure { vec![host.clone()] } else { Vec::new() })
            }
        }
    }
}

/// With a resolver that does not ask for such records there is no DANE.
fn unknown(error: DnsError) -> Demand {
    match error.kind() {
        DnsErrorKind::Unsupported => Demand::Nothing,
        _ => Demand::Unknown(error),
    }
}

#[cfg(test)]
mod tests;
