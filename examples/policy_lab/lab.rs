//! One policy on all of the mail: a world, run to its end, and what came of it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use postrider::clock::Timestamp;
use postrider::event::DeliveryEvent;
use postrider::message::{MessageId, Priority};
use postrider::testing::{Observation, Seen, World};
use postrider::why::{ItemWaits, QueueWaits, Wait};
use postrider::{Message, Policy};

use crate::providers::Provider;
use crate::traffic::{Mail, Mailbox, Stream};

pub(crate) const START: Timestamp = Timestamp::from_unix_seconds(1_767_225_600);
const SENDER: &str = "news@sender.example";
const CONTENT: &[u8] = b"From: news@sender.example\r\nSubject: Hello\r\n\r\nHello.\r\n";
/// A world keeps no more than this, and a table of half of what happened would be wrong.
const MOST_OBSERVATIONS: usize = 4_000_000;
/// Messages of a provider that are asked for their queue.
const ASKED: usize = 200;

/// What came of a part of the mail.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) mail: u64,
    pub(crate) bounced: u64,
    /// Attempts that put a message off.
    pub(crate) deferred: u64,
    /// From submission to delivery, of each message delivered; in order.
    pub(crate) ages: Vec<Duration>,
    /// Where mail of this part had servers of its own.
    pub(crate) servers: Option<Servers>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Servers {
    pub(crate) connections: u64,
    /// Replies with code 421.
    pub(crate) refused: u64,
}

/// What came of all mail under one policy.
#[derive(Debug, PartialEq)]
pub(crate) struct Run {
    /// As the providers are ordered.
    pub(crate) providers: Vec<Tally>,
    pub(crate) newsletter: Tally,
    pub(crate) transactional: Tally,
    pub(crate) total: Tally,
    /// Transactions and connections that brought none.
    pub(crate) attempts: u64,
    /// For each provider with queued mail, what most of it waits for.
    pub(crate) waits: BTreeMap<usize, String>,
}

impl Tally {
    pub(crate) fn delivered(&self) -> u64 {
        self.ages.len() as u64
    }

    pub(crate) fn queued(&self) -> u64 {
        self.mail.saturating_sub(self.delivered() + self.bounced)
    }

    /// So much of what was delivered took no longer; `part`: 0 to 1.
    pub(crate) fn quantile(&self, part: f64) -> Option<Duration> {
        let rank = (part * self.ages.len() as f64).ceil() as usize;
        self.ages.get(rank.saturating_sub(1)).copied()
    }

    /// The part of the mail that was delivered within this time of its submission.
    pub(crate) fn delivered_within(&self, age: Duration) -> f64 {
        let delivered = self.ages.partition_point(|&it| it <= age);
        delivered as f64 / self.mail.max(1) as f64
    }
}

/// All that is told apart, each with its tallies: one for each run.
pub(crate) fn parts<'a>(
    providers: &[Provider],
    runs: &'a [(String, Run)],
) -> Vec<(&'static str, Vec<&'a Tally>)> {
    let part = |name, tally: &dyn Fn(&'a Run) -> Option<&'a Tally>| {
        (name, runs.iter().filter_map(|(_, run)| tally(run)).collect())
    };
    let own = providers.iter().enumerate();
    let own = own.map(|(index, provider)| part(provider.name, &|run| run.providers.get(index)));
    let mut parts: Vec<_> = own.collect();
    parts.push(part("newsletter", &|run| Some(&run.newsletter)));
    parts.push(part("transactional", &|run| Some(&run.transactional)));
    parts.push(part("all", &|run| Some(&run.total)));
    parts
}

/// Lets a policy send the mail. `source`: the source or pool that sends it, if not the policy's default.
pub(crate) fn run(
    seed: u64,
    time: Duration,
    policy: Policy,
    source: Option<&str>,
    providers: &[Provider],
    mails: &[Mail],
) -> Result<Run, String> {
    let mut world = build(seed, policy, providers, mails)?;
    let mut ids = Vec::with_capacity(mails.len());
    for mail in mails {
        let wait = mail.at.saturating_sub(world.elapsed());
        if !wait.is_zero() {
            world.try_run_for(wait).map_err(|violation| violation.to_string())?;
        }
        let message = Message::new(SENDER, [&mail.recipient], CONTENT).map_err(|error| error.to_string())?;
        let priority = match mail.stream {
            Stream::Newsletter => Priority::Normal,
            Stream::Transactional => Priority::High,
        };
        let message = message.with_priority(priority);
        let message = match source {
            Some(source) => message.with_source(source),
            None => message,
        };
        ids.push(submit(&mut world, message)?);
    }
    let left = time.saturating_sub(world.elapsed());
    world.try_run_for(left).map_err(|violation| violation.to_string())?;
    world.verify().map_err(|violation| violation.to_string())?;
    let trace = world.trace();
    if trace.len() >= MOST_OBSERVATIONS {
        return Err("more happened than is kept: try fewer messages or days".to_owned());
    }
    let (mut run, ended) = tally(&trace, providers.len(), mails, &ids);
    add_servers(&mut run, &world, providers);
    let mut queued: BTreeMap<usize, Vec<MessageId>> = BTreeMap::new();
    for ((mail, id), _) in mails.iter().zip(&ids).zip(&ended).filter(|(_, ended)| !**ended) {
        queued.entry(mail.provider).or_default().push(*id);
    }
    run.waits = waits(&mut world, queued);
    Ok(run)
}

fn submit(world: &mut World, message: Message) -> Result<MessageId, String> {
    world.submit(message).or_else(|error| {
        // An engine that was stopped for what it did does not answer.
        world.verify().map_err(|violation| violation.to_string())?;
        Err(error.to_string())
    })
}

fn build(seed: u64, policy: Policy, providers: &[Provider], mails: &[Mail]) -> Result<World, String> {
    let mut world = World::builder().seed(seed).start(START).policy(policy);
    for (index, provider) in providers.iter().enumerate() {
        world = world.zone(&provider.zone);
        let bad: Vec<_> = mails
            .iter()
            .filter(|mail| mail.provider == index)
            .filter_map(|mail| match mail.mailbox {
                Mailbox::Good => None,
                Mailbox::Unknown => Some((&mail.recipient, provider.unknown)),
                Mailbox::Full => Some((&mail.recipient, provider.full)),
            })
            .collect();
        for (address, model) in &provider.servers {
            let Some(model) = model else { continue };
            let model = bad.iter().fold(model.clone(), |model, (to, reply)| model.with_mailbox(to, reply));
            world = world.server(address.to_string(), model);
        }
    }
    world.build().map_err(|error| error.to_string())
}

/// Goes through what was seen. Servers and waits are not in it yet.
fn tally(trace: &[Observation], providers: usize, mails: &[Mail], ids: &[MessageId]) -> (Run, Vec<bool>) {
    let mut ended = vec![false; mails.len()];
    let mut run = Run {
        providers: vec![Tally::default(); providers],
        newsletter: Tally::default(),
        transactional: Tally::default(),
        total: Tally::default(),
        attempts: 0,
        waits: BTreeMap::new(),
    };
    for mail in mails {
        run.of(mail).for_each(|tally| tally.mail += 1);
    }
    let index_of: HashMap<_, _> = ids.iter().zip(0..).collect();
    for observation in trace {
        let Seen::Event(event) = &observation.seen else { continue };
        let (record, age, bounced) = match &**event {
            DeliveryEvent::Delivered(event) => (&event.record, Some(event.record.queued), false),
            DeliveryEvent::Bounced(event) => (&event.record, None, true),
            DeliveryEvent::Deferred(event) => (&event.record, None, false),
            _ => continue,
        };
        let Some((index, mail)) =
            index_of.get(&record.id).and_then(|&index| Some((index, mails.get(index)?)))
        else {
            continue;
        };
        if let Some(ended) = ended.get_mut(index) {
            *ended |= bounced || age.is_some();
        }
        for tally in run.of(mail) {
            match age {
                Some(age) => tally.ages.push(age),
                None if bounced => tally.bounced += 1,
                None => tally.deferred += 1,
            }
        }
    }
    let all = run.providers.iter_mut().chain([&mut run.newsletter, &mut run.transactional, &mut run.total]);
    all.for_each(|tally| tally.ages.sort_unstable());
    (run, ended)
}

impl Run {
    /// All tallies that this mail counts for.
    fn of(&mut self, mail: &Mail) -> impl Iterator<Item = &mut Tally> {
        let stream = match mail.stream {
            Stream::Newsletter => &mut self.newsletter,
            Stream::Transactional => &mut self.transactional,
        };
        self.providers.get_mut(mail.provider).into_iter().chain([stream, &mut self.total])
    }
}

fn add_servers(run: &mut Run, world: &World, providers: &[Provider]) {
    let mut owners: HashMap<IpAddr, usize> = HashMap::new();
    for (index, provider) in providers.iter().enumerate() {
        owners.extend(provider.servers.iter().map(|(address, _)| (*address, index)));
    }
    for (address, report) in world.servers() {
        run.attempts += report.transactions + report.attempts.saturating_sub(report.sessions);
        let owner = owners.get(&address.ip()).and_then(|&index| run.providers.get_mut(index));
        for tally in owner.into_iter().chain([&mut run.total]) {
            let servers = tally.servers.get_or_insert_default();
            servers.connections += report.attempts;
            servers.refused += report.refusals.get(&421).copied().unwrap_or(0);
        }
    }
}

/// What most of each provider's mail waits for that is still queued.
fn waits(world: &mut World, queued: BTreeMap<usize, Vec<MessageId>>) -> BTreeMap<usize, String> {
    let told = world.with_engine(async |engine| {
        let mut told = BTreeMap::new();
        for (provider, ids) in queued {
            let mut queues: BTreeMap<_, Vec<ItemWaits>> = BTreeMap::new();
            for id in ids.into_iter().take(ASKED) {
                for item in engine.why(id).await.map(|waits| waits.items).unwrap_or_default() {
                    queues.entry((item.queue.clone(), item.source.clone())).or_default().push(item);
                }
            }
            let largest = queues.into_iter().rev().max_by_key(|(_, items)| items.len());
            let Some(((queue, source), items)) = largest else { continue };
            let all = engine.why_queue(&queue).await.unwrap_or_default();
            if let Some(waits) = all.iter().find(|waits| waits.source == source) {
                told.insert(provider, in_two_lines(waits, items.first()));
            }
        }
        told
    });
    told.unwrap_or_default()
}

/// What holds the queue, and its destination with the oldest mail; or, if that is mail not due yet, what one of the
/// queue's messages met.
fn in_two_lines(waits: &QueueWaits, item: Option<&ItemWaits>) -> String {
    let destination = waits.destinations.first();
    let not_due = destination.is_some_and(|it| matches!(it.waits.first(), Some(Wait::NotDue { .. })));
    match (destination, item) {
        (_, Some(item)) if not_due => format!("{waits}\n    {item}"),
        (Some(destination), _) => format!("{waits}\n    {destination}"),
        (None, _) => waits.to_string(),
    }
}
