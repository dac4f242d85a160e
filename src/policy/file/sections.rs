//! The sections of a policy file, one method each.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::item::{Item, Section};
use super::{classification, read};
use crate::policy::domains::DomainRules;
use crate::policy::error::{PolicyError, PolicyErrorKind, dotted};
use crate::policy::reply_rule::{compile, join, parse_words};
use crate::policy::settings::{DomainSettings, at_least_one, positive};
use crate::policy::source::{check_address, check_name};
use crate::policy::unbuilt::{self, Feature};
use crate::policy::{
    Conditions, Inner, IpConnectionLimit, MxConnectionLimit, Policy, PolicyBase, Pool, ReplyRule, RollupRule,
    Source, smtp,
};
use crate::reply::{ClassificationRules, Classifier, Stage};

type Result<T> = std::result::Result<T, PolicyError>;

const SECTIONS: &[&str] = &[
    "engine",
    "storage",
    "dns",
    "smtp",
    "policy",
    "source",
    "pool",
    "rollup",
    "ip-connection-limit",
    "mx-connection-limit",
    "reply-rule",
    "provider",
    "classification-rule",
    "domain",
];

/// What a file says.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) hostname: Option<String>,
    pub(super) storage_path: Option<PathBuf>,
    pub(super) nameservers: Option<Vec<SocketAddr>>,
    pub(super) policy: Policy,
}

/// Reads a file. What is not built yet is noted and refused at the end, after everything was validated.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) parts: Parts,
    refused: Vec<PolicyError>,
}

impl Reader {
    pub(super) fn read(&mut self, root: &Item<'_>) -> Result<()> {
        let root = root.section(&[SECTIONS])?;
        // First, since all else lies over it.
        self.optional(&root, "policy", Self::policy)?;
        self.optional(&root, "engine", Self::engine)?;
        self.optional(&root, "storage", Self::storage)?;
        self.optional(&root, "dns", Self::dns)?;
        self.optional(&root, "smtp", Self::smtp)?;
        self.each(&root, "source", "name", Self::source)?;
        self.each(&root, "pool", "name", Self::pool)?;
        self.each(&root, "rollup", "queue", Self::rollup)?;
        self.each(&root, "ip-connection-limit", "cidr", Self::ip_connection_limit)?;
        self.each(&root, "mx-connection-limit", "mx", Self::mx_connection_limit)?;
        self.each(&root, "reply-rule", "name", Self::reply_rule)?;
        if let Some(rules) = root.get("reply-rule") {
            self.inner().reply_rules.compile().map_err(|error| error.at_line(rules.line()))?;
        }
        self.classification(&root)?;
        if let Some(domains) = root.get("domain") {
            let mut rules = std::mem::take(&mut self.inner().domains);
            self.domains(&domains, &mut rules)?;
            self.inner().domains = rules;
        }
        Ok(())
    }

    /// What was read, unless something that is not built would be switched on. The first such in the file counts.
    pub(super) fn finish(self) -> Result<Parts> {
        match self.refused.into_iter().min_by_key(PolicyError::line) {
            Some(refused) => Err(refused),
            None => Ok(self.parts),
        }
    }

    fn inner(&mut self) -> &mut Inner {
        self.parts.policy.inner()
    }

    fn refuse(&mut self, item: &Item<'_>, feature: Option<Feature>) {
        self.refused.extend(feature.map(|feature| item.error(PolicyErrorKind::NotBuilt, feature)));
    }

    fn optional(
        &mut self,
        root: &Section<'_>,
        key: &str,
        read: fn(&mut Self, &Item<'_>) -> Result<()>,
    ) -> Result<()> {
        root.get(key).map_or(Ok(()), |item| read(self, &item))
    }

    fn each(
        &mut self,
        root: &Section<'_>,
        key: &str,
        title: &str,
        read: fn(&mut Self, &Item<'_>) -> Result<()>,
    ) -> Result<()> {
        each(root, key, title, |item| read(self, item))
    }

    fn engine(&mut self, item: &Item<'_>) -> Result<()> {
        let section = item.section(&[&["hostname", "max-connections"]])?;
        self.parts.hostname = section.get("hostname").as_ref().map(read::host_name).transpose()?;
        if let Some(limit) = section.get("max-connections") {
            self.inner().max_connections = checked(&limit, read::count, at_least_one)?;
        }
        Ok(())
    }

    fn storage(&mut self, item: &Item<'_>) -> Result<()> {
        let section = item.section(&[&["path"]])?;
        if let Some(path) = section.get("path") {
            let text = path.as_str().filter(|text| !text.is_empty() && !text.contains('\0'));
            let text = text.ok_or_else(|| path.wrong("is not a folder: write a path like \"spool\""))?;
            self.parts.storage_path = Some(text.into());
        }
        Ok(())
    }

    fn dns(&mut self, item: &Item<'_>) -> Result<()> {
        let section = item.section(&[&["nameservers"]])?;
        self.parts.nameservers = section.get("nameservers").as_ref().map(read::nameservers).transpose()?;
        Ok(())
    }

    fn smtp(&mut self, item: &Item<'_>) -> Result<()> {
        let mut phases = Vec::new();
        for (key, alias, _) in smtp::PHASES {
            phases.push(*key);
            phases.extend(alias);
        }
        let section = item.section(&[&["port", "prohibited-addresses"], &phases])?;
        if let Some(port) = section.get("port") {
            self.inner().smtp.port = read::port(&port)?;
        }
        for (key, alias, phase) in smtp::PHASES {
            let item = match (section.get(key), alias.and_then(|alias| section.get(alias))) {
                (Some(_), Some(alias)) => {
                    let problem = format_args!("sets the same as `{key}`: leave one out");
                    return Err(alias.error(PolicyErrorKind::Contradiction, problem));
                }
                (item, alias) => item.or(alias),
            };
            if let Some(item) = item {
                *phase(&mut self.inner().smtp.timeouts) =
                    checked(&item, read::duration, smtp::check_timeout)?;
            }
        }
        if let Some(ranges) = section.get("prohibited-addresses") {
            self.inner().prohibited = read::strings(&ranges, str::parse, "127.0.0.0/8")?;
        }
        Ok(())
    }

    fn policy(&mut self, item: &Item<'_>) -> Result<()> {
        let section = item.section(&[&["base"]])?;
        if let Some(item) = section.get("base") {
            self.parts.policy = match read::base(&item)? {
                PolicyBase::None => Policy::new(),
                PolicyBase::Recommended => Policy::recommended(),
            };
        }
        Ok(())
    }

    fn source(&mut self, item: &Item<'_>) -> Result<()> {
        let section = item.section(&[&["name", "address", "ehlo", "domain"]])?;
        let mut source = Source::new(name(&section, "\"vmta1\"")?);
        if let Some(list) = section.get("address") {
            for element in list.one_or_more() {
                let address = read::address(&element)?;
                check_address(address).map_err(|problem| element.wrong(problem))?;
                let taken = match address.to_canonical() {
                    std::net::IpAddr::V4(_) => source.ipv4().is_some(),
                    std::net::IpAddr::V6(_) => source.ipv6().is_some(),
                };
                if taken {
                    let problem =
                        "is the second address of its family: make a source for each, and a pool of them";
                    return Err(element.error(PolicyErrorKind::Contradiction, problem));
                }
                source = source.with_address(address);
            }
        }
        if let Some(ehlo) = section.get("ehlo") {
            source = source.with_ehlo(&read::host_name(&ehlo)?)?;
        }
        if let Some(domains) = section.get("domain") {
            self.domains(&domains, &mut source.domains)?;
        }
        let added = self.inner().add_source(source);
        added.map_err(|error| at(&section, error))
    }

    fn domains(&mut self, item: &Item<'_>, rules: &mut DomainRules) -> Result<()> {
        for (name, domain) in item.open_section()?.items() {
            let mut settings = DomainSettings::default();
            let section = domain.section(&[DomainSettings::KEYS])?;
            for (key, value) in section.items() {
                settings.read(key, &value)?;
            }
            for (key, feature) in unbuilt::in_settings(&settings) {
                if let Some(value) = section.get(key) {
                    self.refuse(&value, Some(feature));
                }
            }
            rules.add(&item.path, name, settings).map_err(|error| at(&section, error))?;
        }
        Ok(())
    }

    fn pool(&mut self, item: &Item<'_>) -> Result<()> {
        const EXAMPLE: &str = "[\"vmta1\"]";
        let section = item.section(&[&["name", "sources"]])?;
        let mut pool = Pool::new(name(&section, "\"bulk\"")?);
        let list = section.require("sources", EXAMPLE)?;
        let elements = list
            .elements()
            .ok_or_else(|| list.wrong(format_args!("is not a list: write it like {EXAMPLE}")))?;
        for element in elements {
            if !element.is_table() {
                pool = pool.with_source(read::string(&element, "vmta1")?);
                continue;
            }
            let member = element.section(&[&["name", "weight"]])?;
            let source = read::string(&member.require("name", "\"vmta1\"")?, "vmta1")?;
            let weight = match member.get("weight") {
                Some(weight) => checked(&weight, read::count, |weight| Pool::check_weight(*weight))?,
                None => 1,
            };
            pool = pool.with_weighted_source(source, weight);
        }
        let added = self.inner().add_pool(pool);
        added.map_err(|error| at(&section, error))
    }

    fn rollup(&mut self, item: &Item<'_>) -> Result<()> {
        let section = item.section(&[&["queue", "mx", "match"]])?;
        let queue =
            read::parsed(&section.require("queue", "\"google.rollup\"")?, str::parse, "google.rollup")?;
        let mx = section.require("mx", "[\"*.google.com\"]")?;
        let hosts = read::strings(&mx, str::parse, "*.google.com")?;
        let mut rule = RollupRule::new(queue, hosts).map_err(|error| mx.wrong(format_args!("is {error}")))?;
        if let Some(matching) = section.get("match") {
            rule = rule.with_match(read::rollup_match(&matching)?);
        }
        self.inner().add_rollup(rule);
        Ok(())
    }

    fn ip_connection_limit(&mut self, item: &Item<'_>) -> Result<()> {
        let section = item.section(&[&["cidr", "limit", "shared", "per-source"]])?;
        let cidr = read::parsed(&section.require("cidr", "\"192.0.2.0/24\"")?, str::parse, "192.0.2.0/24")?;
        let mut limit = IpConnectionLimit::new(
            cidr,
            checked(&section.require("limit", "10")?, read::count, at_least_one)?,
        );
        if let Some(shared) = section.get("shared") {
            limit = limit.with_shared(read::boolean(&shared)?);
        }
        if let Some(per_source) = section.get("per-source") {
            limit = limit.with_per_source(read::boolean(&per_source)?);
        }
        let added = self.inner().add_ip_limit(limit);
        added.map_err(|error| at(&section, error))
    }

    fn mx_connection_limit(&mut self, item: &Item<'_>) -> Result<()> {
        let section = item.section(&[&["mx", "limit"]])?;
        let mx = read::parsed(&section.require("mx", "\"*.mail.example\"")?, str::parse, "*.mail.example")?;
        let limit = checked(&section.require("limit", "5")?, read::count, at_least_one)?;
        let added = self.inner().add_mx_limit(MxConnectionLimit::new(mx, limit));
        added.map_err(|error| at(&section, error))
    }

    /// Rules of the file's own for what replies tell of.
    fn classification(&mut self, root: &Section<'_>) -> Result<()> {
        let mut own = ClassificationRules::default();
        each(root, "provider", "name", |item| classification::provider(item, &mut own))?;
        each(root, "classification-rule", "name", |item| {
            classification::classification_rule(item, &mut own)
        })?;
        let list = root.get("classification-rule").or_else(|| root.get("provider"));
        if let Some(list) = list {
            let refused = |error| list.error(PolicyErrorKind::Contradiction, error);
            self.inner().classifier = Classifier::with_own(own).map_err(refused)?;
        }
        Ok(())
    }

    fn reply_rule(&mut self, item: &Item<'_>) -> Result<()> {
        const PLACES: &[&str] = &["domain", "queue", "mx", "stage", "category", "reason"];
        let section =
            item.section(&[&["name", "match", "actions", "min-attempts", "min-age", "after"], PLACES])?;
        let name = name(&section, "\"over-quota\"")?;
        // What a reply tells of may be condition enough.
        let reads_kind = section.get("category").is_some() || section.get("reason").is_some();
        let pattern = match section.get("match") {
            None if reads_kind => "",
            _ => {
                let item = section.require("match", "'over ?quota'")?;
                let pattern = read::string(&item, "over ?quota")?;
                compile(pattern).map_err(|error| item.wrong(format_args!("is {error}")))?;
                pattern
            }
        };
        let actions_item = section.require("actions", "[\"bounce-rcpt\"]")?;
        let words = read::strings(&actions_item, parse_words, "bounce-rcpt")?.into_iter().flatten();
        let conditions = conditions(&section)?;
        let rule = join(words).map_err(Into::into).and_then(|actions| ReplyRule::new(name, pattern, actions));
        let rule = rule.map_err(|error| actions_item.wrong(format_args!("is {error}")))?;
        let rule =
            rule.with_conditions(conditions).map_err(|error| item.wrong(format_args!("is {error}")))?;
        let added = self.inner().add_reply_rule(rule);
        added.map_err(|error| at(&section, error))
    }
}

/// Reads a list of tables. In messages each goes by the value of `title`, as soon as it has one.
pub(super) fn each(
    root: &Section<'_>,
    key: &str,
    title: &str,
    mut read: impl FnMut(&Item<'_>) -> Result<()>,
) -> Result<()> {
    let Some(list) = root.get(key) else { return Ok(()) };
    let elements = list.elements().filter(|elements| elements.iter().all(Item::is_table));
    let elements =
        elements.ok_or_else(|| list.wrong(format_args!("is not a list of tables: write [[{key}]]")))?;
    for element in elements {
        let value = element.open_section()?.get(title);
        let title = value.as_ref().and_then(|value| value.one_or_more().first().and_then(Item::as_str));
        let path = match title.filter(|title| title.len() <= 64) {
            Some(title) => dotted(key, title),
            None => key.to_owned(),
        };
        read(&element.named(path))?;
    }
    Ok(())
}

fn conditions(section: &Section<'_>) -> Result<Conditions> {
    let mut conditions = Conditions {
        domains: words(section, "domain", "*.example.com")?,
        queues: words(section, "queue", "google.rollup")?,
        hosts: words(section, "mx", "*.google.com")?,
        categories: words(section, "category", "quota-issues")?,
        reasons: words(section, "reason", "mailbox-full")?,
        ..Conditions::default()
    };
    if let Some(item) = section.get("stage") {
        conditions.stages = read::strings(&item, check_stage, "rcpt")?;
    }
    if let Some(item) = section.get("min-attempts") {
        conditions.min_attempts = Some(checked(&item, read::count, at_least_one)?);
    }
    if let Some(item) = section.get("min-age") {
        conditions.min_age = Some(checked(&item, read::duration, positive)?);
    }
    if let Some(item) = section.get("after") {
        conditions.after = Some(read::parsed(&item, str::parse, "10/1h")?);
    }
    Ok(conditions)
}

/// A list of fixed words, or one; empty without the key.
fn words<T: std::str::FromStr<Err: std::fmt::Display>>(
    section: &Section<'_>,
    key: &str,
    example: &str,
) -> Result<Vec<T>> {
    let list = section.get(key).map(|item| read::strings(&item, str::parse, example));
    list.transpose().map(Option::unwrap_or_default)
}

pub(super) fn check_stage(word: &str) -> std::result::Result<Stage, &'static str> {
    let stage = Conditions::STAGES.into_iter().find(|stage| stage.as_str() == word);
    stage.ok_or("not a stage of the delivery: the stages are connect, ehlo, auth, mail, rcpt, data, dot")
}

/// A name of the user's choosing.
pub(super) fn name(section: &Section<'_>, example: &str) -> Result<Arc<str>> {
    let item = section.require("name", example)?;
    let text = item
        .as_str()
        .ok_or_else(|| item.wrong(format_args!("is not a string: write one, like {example}")))?;
    check_name(text).map_err(|problem| item.wrong(problem))?;
    Ok(text.into())
}

fn checked<T>(
    item: &Item<'_>,
    read: impl FnOnce(&Item<'_>) -> Result<T>,
    check: impl FnOnce(&T) -> std::result::Result<(), &'static str>,
) -> Result<T> {
    let value = read(item)?;
    check(&value).map_err(|problem| item.wrong(problem))?;
    Ok(value)
}

/// Gives an error that names a key of `section`, or its name, the line of that.
fn at(section: &Section<'_>, error: PolicyError) -> PolicyError {
    let key =
        error.key().strip_prefix(&section.path).and_then(|rest| rest.strip_prefix('.')).unwrap_or("name");
    let line = section.get(key).map_or_else(|| section.line(), |item| item.line());
    error.at_line(line)
}

/// The one key that a [`Config`](super::Config) can not do without.
pub(super) fn missing_hostname(root: &Item<'_>) -> PolicyError {
    let problem = "is missing: write hostname = \"mta.example.org\" under [engine]";
    let error = PolicyError::new(PolicyErrorKind::MissingKey, "engine.hostname", problem);
    let engine = root.open_section().ok().and_then(|root| root.get("engine"));
    error.at_line(engine.map_or(1, |engine| engine.line()))
}
