//! In which queue a domain's mail lies, and where it goes.

use std::sync::Arc;
use std::time::Duration;

use super::hosts::FixedHost;
use super::rollup::RollupRule;
use super::settings::QueueSettings;
use super::{HostName, Policy};
use crate::dns::{Answer, MailExchangers, MxRecord};
use crate::message::{QueueName, normal_name};

/// In which queue a domain's mail lies, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Placement {
    /// The queue: the domain, or `name.rollup`.
    pub queue: QueueName,
    /// The hosts tried, by preference, the most preferred first. Without MX records: the domain itself. Empty: the
    /// domain takes no mail (RFC 7505). Fixed hosts: as [`FixedHost`] displays them.
    pub hosts: Vec<Vec<Arc<str>>>,
}

/// Which queue.
impl Policy {
    /// In which queue the mail of a source for `domain` lies, and where it goes, if these are the domain's MX
    /// records: by `smtp-hosts` and `queue-to`, else by the first rollup rule that matches. No other domain's records
    /// and no names of our own play a part. Case, a trailing dot and U-labels do not matter, of the domain and of the hosts.
    ///
    /// ```
    /// # use postrider::policy::Policy;
    /// let policy = Policy::from_toml("[[rollup]]\nqueue = 'google.rollup'\nmx = ['*.google.com']")?;
    /// let placement = policy.placement("Example.COM", "default", [(10, "aspmx.l.google.com")]);
    /// assert_eq!(&*placement.queue, "google.rollup");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn placement(
        &self,
        domain: &str,
        source: &str,
        records: impl IntoIterator<Item = impl Into<MxRecord>>,
    ) -> Placement {
        let domain = &*normal_name(domain);
        let own = self.settings(domain, source);
        if let Some(rollup) = &own.queue_to {
            let queue = rollup.as_str();
            let fixed = self.settings(queue, source).smtp_hosts;
            return Placement {
                queue: queue.into(),
                hosts: names(&fixed).unwrap_or_else(|| by_mx(domain, records)),
            };
        }
        if let Some(hosts) = names(&own.smtp_hosts) {
            return Placement { queue: domain.into(), hosts };
        }
        let records: Vec<MxRecord> = records.into_iter().map(Into::into).collect();
        let has_mx = !records.is_empty();
        let hosts = by_mx(domain, records);
        match self.rollup_with(&own, &hosts).filter(|_| has_mx) {
            None => Placement { queue: domain.into(), hosts },
            Some(rule) => {
                let queue: QueueName = rule.queue().as_str().into();
                let fixed = names(&self.settings(&queue, source).smtp_hosts);
                Placement { queue, hosts: fixed.unwrap_or_else(|| rule.rolled_up_preferences(&hosts)) }
            }
        }
    }

    /// The rule that rolls up a domain whose own settings these are.
    pub(crate) fn rollup_with(
        &self,
        own: &QueueSettings,
        exchangers: &[Vec<Arc<str>>],
    ) -> Option<&RollupRule> {
        if self.may_roll_up(own) { self.rollup_for(exchangers) } else { None }
    }

    /// Whether there is a rule that may roll up a domain whose own settings these are.
    pub(crate) fn may_roll_up(&self, own: &QueueSettings) -> bool {
        !own.disable_mx_rollup && !self.0.rollups.is_empty()
    }
}

/// Fixed hosts by name; `None`: there are none.
fn names(fixed: &[Vec<FixedHost>]) -> Option<Vec<Vec<Arc<str>>>> {
    let name = |host: &FixedHost| match host {
        FixedHost { host: HostName::Name(name), port: None } => name.clone(),
        _ => host.to_string().into(),
    };
    (!fixed.is_empty()).then(|| fixed.iter().map(|level| level.iter().map(name).collect()).collect())
}

fn by_mx(domain: &str, records: impl IntoIterator<Item = impl Into<MxRecord>>) -> Vec<Vec<Arc<str>>> {
    let records = records.into_iter().map(Into::into).collect();
    match MailExchangers::new(&Answer::records(records, Duration::ZERO), &[]) {
        MailExchangers::Hosts(levels) => {
            levels.into_iter().map(|level| level.into_iter().map(Into::into).collect()).collect()
        }
        MailExchangers::Implicit => vec![vec![domain.into()]],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `10 mx1, 20 mx2`.
    fn records(text: &str) -> Vec<(u16, &str)> {
        let records = text.split(", ").filter(|record| !record.is_empty());
        records
            .map(|record| record.split_once(' ').unwrap())
            .map(|(n, host)| (n.parse().unwrap(), host))
            .collect()
    }

    fn written(placement: &Placement) -> String {
        let levels: Vec<_> = placement.hosts.iter().map(|level| level.join(" ")).collect();
        format!("{}: {}", placement.queue, levels.join(" | "))
    }

    /// The table of the documentation of this control: rule, records, result.
    #[test]
    fn rollups_by_name() {
        for (hosts, mx, want) in [
            (r#"["mx1", "mx2"]"#, "10 mx1, 10 mx2", "p.rollup: mx1 mx2"),
            (r#"["mx1", "mx2"]"#, "10 mx1, 20 mx2", "d.example: mx1 | mx2"),
            (r#"["mx1", "mx2"]"#, "10 mx1, 10 mx2, 10 mx3", "p.rollup: mx1 mx2 | mx3"),
            (r#"["mx1", "mx2"]"#, "10 mx1", "d.example: mx1"),
            (r#"["mx1"]"#, "10 mx1, 10 mx2", "p.rollup: mx1 | mx2"),
            (r#"["mx1"]"#, "10 mx1, 20 mx1", "p.rollup: mx1"),
            (r#"["mx1", "mx2"]"#, "10 mx1.mail.example", "d.example: mx1.mail.example"),
            // Beyond the table.
            (r#"["mx1"]"#, "", "d.example: d.example"),
            (r#"["d.example"]"#, "", "d.example: d.example"),
            (r#"["mx1"]"#, "0 .", "d.example: "),
            (r#"["mx1"]"#, "10 MX1.", "p.rollup: mx1"),
        ] {
            let policy = Policy::from_toml(&format!("[[rollup]]\nqueue = 'p.rollup'\nmx = {hosts}")).unwrap();
            assert_eq!(
                written(&policy.placement("d.example", "default", records(mx))),
                want,
                "{hosts} of {mx}"
            );
        }
    }

    #[test]
    fn settings_go_before_rules() {
        let policy = Policy::from_toml(
            r#"
            [[rollup]]
            queue = "p.rollup"
            mx = ["*.example"]
            [[rollup]]
            queue = "relay.rollup"
            mx = ["*.test"]
            [domain."relay.rollup"]
            smtp-hosts = ["relay.example:2525"]
            [domain."out.example"]
            disable-mx-rollup = true
            [domain."fixed.example"]
            smtp-hosts = ["a.example; [192.0.2.1]"]
            [domain."static.example"]
            queue-to = "p.rollup"
            [domain."to-relay.example"]
            queue-to = "relay.rollup"
            "#,
        )
        .unwrap();
        for (domain, mx, want) in [
            ("d.example", "10 mx.example", "p.rollup: mx.example"),
            ("d.example", "10 mx.test", "relay.rollup: relay.example:2525"),
            ("out.example", "10 mx.example", "out.example: mx.example"),
            ("fixed.example", "10 mx.example", "fixed.example: a.example | [192.0.2.1]"),
            ("static.example", "10 mx.else", "p.rollup: mx.else"),
            ("to-relay.example", "10 mx.else", "relay.rollup: relay.example:2525"),
        ] {
            assert_eq!(written(&policy.placement(domain, "default", records(mx))), want, "{domain}");
        }
    }
}
