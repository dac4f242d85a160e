//! A server of a world: its model, and what it remembers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::model::{Failure, ModelTls, ServerModel};
use crate::message::Address;
use crate::policy::StartTls;
use crate::reply::{Reply, Stage};
use crate::transport::{EndCause, RecipientReport, SessionEnd, TlsWish, Transaction, TransactionReport};

/// Senders and recipients a greylist remembers; past it the oldest are forgotten.
const MOST_GREYLISTED: usize = 1_000_000;

pub(super) struct Server {
    model: ServerModel,
    random: fastrand::Rng,
    open: HashMap<Option<IpAddr>, u32>,
    /// When transactions began whose message was taken or may be yet, within the period of the model's rate.
    taken: HashMap<Option<IpAddr>, VecDeque<Duration>>,
    greylist: HashMap<Triple, Duration>,
    greylisted: VecDeque<Triple>,
}

type Triple = (Option<IpAddr>, String, String);

/// What a transaction came to, so far.
pub(super) struct Envelope {
    pub(super) report: TransactionReport,
    /// The content is wanted.
    pub(super) wanted: bool,
}

/// How an attempt to connect goes on.
pub(super) enum Greeting {
    Accepted,
    /// Refused by the network.
    Refused,
    /// No answer ever.
    Silence,
    /// Closed without a word.
    Closed(Stage),
    Reply(Stage, Reply),
}

impl Server {
    pub(super) fn new(model: ServerModel, seed: u64) -> Self {
        Self {
            model,
            random: fastrand::Rng::with_seed(seed),
            open: HashMap::new(),
            taken: HashMap::new(),
            greylist: HashMap::new(),
            greylisted: VecDeque::new(),
        }
    }

    /// Behaves differently from now on. What it remembers stays.
    pub(super) fn set_model(&mut self, model: ServerModel) {
        self.model = model;
    }

    pub(super) fn connect_latency(&mut self) -> Duration {
        self.model.connect_latency.draw(&mut self.random)
    }

    pub(super) fn reply_latency(&mut self, now: Duration) -> Duration {
        let latency = self.model.reply_latency.draw(&mut self.random);
        let slow = |failure: &Failure| match failure {
            Failure::Slow(time) => *time,
            _ => Duration::ZERO,
        };
        let windows = self.model.failures.iter().filter(|window| (window.from..window.until).contains(&now));
        let by_time =
            windows.map(|window| slow(&window.failure)).fold(Duration::ZERO, Duration::saturating_add);
        let mut by_chance = Duration::ZERO;
        for (probability, failure) in &self.model.chances {
            if matches!(failure, Failure::Slow(_)) && self.random.f64() < *probability {
                by_chance = slow(failure).saturating_add(by_chance);
            }
        }
        latency.saturating_add(by_time).saturating_add(by_chance)
    }

    /// Whether a session with this wish comes to have TLS; `None`: it does not come about.
    pub(super) fn secures(&self, wish: TlsWish) -> Option<bool> {
        match self.model.tls {
            ModelTls::None => (!wish.is_required()).then_some(false),
            ModelTls::Offered | ModelTls::Required => Some(wish.implicit || wish.level != StartTls::Off),
        }
    }

    pub(super) fn idle_timeout(&self) -> Option<Duration> {
        self.model.idle_timeout
    }

    pub(super) fn greet(&mut self, now: Duration, client: Option<IpAddr>) -> Greeting {
        for failure in self.failures(now) {
            match failure {
                Failure::Refuse => return Greeting::Refused,
                Failure::Blackhole => return Greeting::Silence,
                Failure::Close(stage) if stage <= Stage::Ehlo => return Greeting::Closed(stage),
                Failure::Reply(stage, text) if stage <= Stage::Ehlo => {
                    return Greeting::Reply(stage, reply(&text));
                }
                _ => {}
            }
        }
        let open = self.open.entry(client).or_default();
        if self.model.connection_limit.is_some_and(|limit| *open >= limit) {
            return Greeting::Reply(
                Stage::Connect,
                reply("421 4.7.0 too many connections from your address"),
            );
        }
        *open += 1;
        Greeting::Accepted
    }

    pub(super) fn left(&mut self, client: Option<IpAddr>) {
        if let Some(open) = self.open.get_mut(&client) {
            *open = open.saturating_sub(1);
        }
    }

    /// MAIL, RCPT and DATA, in one group.
    pub(super) fn envelope(
        &mut self,
        now: Duration,
        client: Option<IpAddr>,
        (used, has_tls): (u32, bool),
        transaction: &Transaction,
    ) -> Envelope {
        let mut report = TransactionReport {
            recipients: vec![RecipientReport::None; transaction.recipients.len()],
            ..TransactionReport::default()
        };
        let failures = self.failures(now);
        let planned = Planned::of(&failures);
        if let Some(end) = planned.end(Stage::Mail) {
            return Envelope { report: ended(report, end), wanted: false };
        }
        let mail = planned.reply(Stage::Mail).or_else(|| self.mail(now, client, used, has_tls));
        let mail = mail.unwrap_or_else(|| reply("250 2.1.0 ok"));
        let refused = !mail.is_positive();
        let closing = mail.code() == 421;
        report.mail = Some(mail.clone());
        if closing {
            return Envelope { report: ended(report, said(Stage::Mail, mail)), wanted: false };
        }
        if refused {
            return Envelope { report, wanted: false };
        }
        if let Some(end) = planned.end(Stage::Rcpt) {
            return Envelope { report: ended(report, end), wanted: false };
        }
        let sender = transaction.reverse_path.as_ref().map_or("", Address::as_str).to_owned();
        let mut accepted = false;
        for (index, recipient) in transaction.recipients.iter().enumerate() {
            let answer = planned.reply(Stage::Rcpt);
            let answer = answer.or_else(|| self.rcpt(now, client, &sender, recipient.as_str()));
            let answer = answer.unwrap_or_else(|| reply("250 2.1.5 ok"));
            accepted |= answer.is_positive();
            let closing = answer.code() == 421;
            if let Some(slot) = report.recipients.get_mut(index) {
                *slot = RecipientReport::Reply(answer.clone());
            }
            if closing {
                return Envelope { report: ended(report, said(Stage::Rcpt, answer)), wanted: false };
            }
        }
        if !accepted {
            return Envelope { report, wanted: false };
        }
        if let Some(end) = planned.end(Stage::Data) {
            return Envelope { report: ended(report, end), wanted: false };
        }
        let envelope = match planned.reply(Stage::Data) {
            Some(answer) => {
                report.data = Some(answer.clone());
                let wanted = answer.is_intermediate();
                if answer.code() == 421 {
                    report = ended(report, said(Stage::Data, answer));
                }
                Envelope { report, wanted }
            }
            None => {
                report.data = Some(reply("354 go ahead"));
                Envelope { report, wanted: true }
            }
        };
        if envelope.wanted {
            self.count(now, client);
        }
        envelope
    }

    /// The content and the final dot of a transaction that began at `begun`. Returns whether it was taken, though that
    /// may not have been said.
    pub(super) fn content(
        &mut self,
        begun: Duration,
        now: Duration,
        client: Option<IpAddr>,
        report: &mut TransactionReport,
    ) -> bool {
        report.dot_sent = true;
        let failures = self.failures(now);
        let planned = Planned::of(&failures);
        let taken = match planned.end(Stage::Dot) {
            Some(end) => {
                report.end = Some(end);
                self.random.bool()
            }
            None => {
                let answer = planned.reply(Stage::Dot).unwrap_or_else(|| reply("250 2.0.0 queued"));
                if answer.code() == 421 {
                    report.end = Some(said(Stage::Dot, answer.clone()));
                }
                let taken = answer.is_positive();
                report.dot = Some(answer);
                taken
            }
        };
        if !taken {
            self.uncount(begun, client);
        }
        taken
    }

    fn mail(&mut self, now: Duration, client: Option<IpAddr>, used: u32, has_tls: bool) -> Option<Reply> {
        if self.model.tls == ModelTls::Required && !has_tls {
            return Some(reply("530 5.7.0 must issue a STARTTLS command first"));
        }
        if self.model.messages_per_connection.is_some_and(|most| used >= most) {
            return Some(reply("421 4.7.0 too many messages in this session"));
        }
        let (most, period) = self.model.message_rate?;
        let taken = self.taken.entry(client).or_default();
        while taken.front().is_some_and(|&at| now.saturating_sub(at) >= period) {
            taken.pop_front();
        }
        let full = taken.len() >= most as usize;
        full.then(|| {
            let own = self.model.message_rate_reply.clone();
            own.unwrap_or_else(|| reply("421 4.7.28 too many messages from your address, try again later"))
        })
    }

    /// Counted before the content comes, so that transactions at the same time can not exceed the rate.
    fn count(&mut self, now: Duration, client: Option<IpAddr>) {
        if self.model.message_rate.is_some() {
            self.taken.entry(client).or_default().push_back(now);
        }
    }

    fn uncount(&mut self, begun: Duration, client: Option<IpAddr>) {
        if let Some(taken) = self.taken.get_mut(&client)
            && let Some(index) = taken.iter().rposition(|&at| at == begun)
        {
            taken.remove(index);
        }
    }

    fn rcpt(
        &mut self,
        now: Duration,
        client: Option<IpAddr>,
        sender: &str,
        recipient: &str,
    ) -> Option<Reply> {
        let recipient = recipient.to_ascii_lowercase();
        let answer = self.model.mailboxes.get(&recipient).or(self.model.others.as_ref()).cloned();
        let Some(wait) = self.model.greylist else { return answer };
        if answer.as_ref().is_some_and(|answer| !answer.is_positive()) {
            return answer;
        }
        let triple = (client, sender.to_owned(), recipient);
        let first = *self.greylist.entry(triple.clone()).or_insert_with(|| {
            self.greylisted.push_back(triple);
            now
        });
        if self.greylisted.len() > MOST_GREYLISTED
            && let Some(oldest) = self.greylisted.pop_front()
        {
            self.greylist.remove(&oldest);
        }
        let passed = now.saturating_sub(first) >= wait;
        if passed { answer } else { Some(reply("451 4.7.1 greylisted, try again later")) }
    }

    /// What fails now: the windows' failures, and what chance adds.
    fn failures(&mut self, now: Duration) -> Vec<Failure> {
        let windows = self.model.failures.iter().filter(|window| (window.from..window.until).contains(&now));
        let mut failures: Vec<_> = windows.map(|window| window.failure.clone()).collect();
        for (probability, failure) in &self.model.chances {
            if !matches!(failure, Failure::Slow(_)) && self.random.f64() < *probability {
                failures.push(failure.clone());
            }
        }
        failures
    }
}

/// Failures of a transaction, by stage.
struct Planned<'a>(&'a [Failure]);

impl<'a> Planned<'a> {
    fn of(failures: &'a [Failure]) -> Self {
        Self(failures)
    }

    fn reply(&self, at: Stage) -> Option<Reply> {
        self.0.iter().find_map(|failure| match failure {
            Failure::Reply(stage, text) if *stage == at => Some(reply(text)),
            _ => None,
        })
    }

    /// The session ends in place of this stage's reply.
    fn end(&self, at: Stage) -> Option<SessionEnd> {
        let closes = self.0.iter().any(|failure| match failure {
            Failure::Close(stage) => *stage == at,
            // A server that goes away takes its sessions along, before they can say anything more.
            Failure::Blackhole | Failure::Refuse => at == Stage::Mail,
            _ => false,
        });
        closes.then_some(SessionEnd { stage: at, cause: EndCause::Closed })
    }
}

fn ended(mut report: TransactionReport, end: SessionEnd) -> TransactionReport {
    report.end = Some(end);
    report
}

fn said(stage: Stage, reply: Reply) -> SessionEnd {
    SessionEnd { stage, cause: EndCause::Reply(reply) }
}

/// Who has the message, if the content was taken.
pub(super) fn accepted(transaction: &Transaction, report: &TransactionReport) -> Vec<Address> {
    let mut seen = HashSet::new();
    let pairs = transaction.recipients.iter().zip(&report.recipients);
    let positive =
        pairs.filter(|(_, answer)| matches!(answer, RecipientReport::Reply(reply) if reply.is_positive()));
    positive
        .map(|(recipient, _)| recipient.clone())
        .filter(|recipient| seen.insert(recipient.clone()))
        .collect()
}

/// Texts were read once when the model was made; one that is no reply was refused then.
fn reply(text: &str) -> Reply {
    Reply::parse(text).unwrap_or_else(|_| Reply::new(421, ["4.3.0 no reply".as_bytes()]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;
    use crate::policy::Policy;
    use crate::testing::{Outcome, World};

    #[test]
    fn a_receiver_says_in_its_own_words_that_the_rate_is_too_high() {
        const SAID: &str = "451 4.7.650 temporarily rate limited due to IP reputation";
        let hour = Duration::from_secs(3600);
        let policy = "[[reply-rule]]\nname = 'rate'\nmatch = '^451 4\\.7\\.650 '\nstage = 'mail'\n\
                      actions = 'bounce-rcpt'";
        let model = ServerModel::new().with_message_rate(1, hour).with_message_rate_reply(SAID);
        let world = World::builder().zone("example.net. A 192.0.2.1").server("192.0.2.1", model);
        let mut world = world.policy(Policy::from_toml(policy).unwrap()).build().unwrap();
        for outcome in [Outcome::Delivered, Outcome::Bounced] {
            let message = Message::new("news@sender.example", ["ann@example.net"], "\r\n").unwrap();
            let id = world.submit(message).unwrap();
            world.run_until_idle(hour / 2);
            assert_eq!(world.outcome(id, "ann@example.net"), outcome);
        }
    }
}
