//! What new reply rules would have done: the mailer's accounting records through another policy.
//!
//! ```text
//! replay --policy new.toml [--against old.toml] [--show N | --jsonl] < accounting.jsonl
//! ```
//!
//! Each recipient's outcome is compared with what the log says, or with what the policy of `--against` would have done.
//! Printed are a summary of each rule and the first examples of each change, N at most (default 10, up to 100,000);
//! with `--jsonl` every change, one JSON object a line. Of what the log says, 1,000 characters at most are printed.
//!
//! A recipient that would bounce by the new rules has ended there: later records of it are not judged, and counted
//! apart.
//!
//! Exit status: 0 done, 1 input or output failed, 2 wrong arguments or policy.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use postrider::Policy;
use postrider::policy::ReplyVerdict;
use postrider::reply::{Reply, Stage};
use postrider::testing::{
    ChangeKind, LoggedOutcome, LoggedReply, Replay, ReplayChange, ReplayReport, RuleReplay,
};
use serde::Deserialize;
use serde_json::json;

const USAGE: &str = "usage: replay --policy FILE [--against FILE] [--show N | --jsonl] < accounting.jsonl";
/// Malformed lines that are named; the others are counted.
const MOST_NAMED: u64 = 20;
/// What is shown is kept until all is read: more is for `--jsonl`.
const MOST_SHOWN: u64 = 100_000;
/// Characters of one thing that the log says.
const MOST_CHARACTERS: usize = 1_000;
/// Some programs write it at the start of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(End(code, message)) => {
            let _ = writeln!(io::stderr(), "replay: {message}");
            ExitCode::from(code)
        }
    }
}

/// The exit status of an end that is no success, and its message.
struct End(u8, String);

fn usage(message: impl Display) -> End {
    End(2, format!("{message}; {USAGE}"))
}

fn failed<E: Display>(what: &'static str) -> impl FnOnce(E) -> End {
    move |error| End(1, format!("{what}: {error}"))
}

fn run() -> Result<(), End> {
    let options = Options::parse(std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()))?;
    let mut replay = Replay::new(read_policy(&options.policy)?);
    if let Some(old) = &options.against {
        replay = replay.against(read_policy(old)?);
    }
    let (records, malformed) =
        read(io::stdin().lock(), &mut replay, &mut io::stderr()).map_err(failed("stdin"))?;
    if records == 0 && malformed > 0 {
        return Err(End(1, format!("none of the {malformed} lines is a record")));
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = if options.jsonl {
        write_all(replay, &mut out)
    } else {
        let (report, changes) = replayed(replay, options.show);
        print(&report, &changes, options.against.is_some(), &mut out)
    };
    written.and_then(|()| out.flush()).map_err(failed("stdout"))?;
    if malformed > 0 {
        let _ = writeln!(io::stderr(), "replay: {malformed} malformed lines were left out");
    }
    Ok(())
}

/// Every change as a line.
fn write_all(replay: Replay, out: &mut impl Write) -> io::Result<()> {
    let mut written = Ok(());
    replay.finish_with(|change| {
        if written.is_ok() {
            written = writeln!(out, "{}", as_json(&change));
        }
    });
    written
}

/// What is found, and the first changes of each kind.
fn replayed(replay: Replay, show: u64) -> (ReplayReport, Vec<ReplayChange>) {
    let (mut changes, mut shown) = (Vec::new(), BTreeMap::<ChangeKind, u64>::new());
    let report = replay.finish_with(|change| {
        let shown = shown.entry(change.kind).or_default();
        if *shown < show {
            *shown += 1;
            changes.push(change);
        }
    });
    (report, changes)
}

struct Options {
    policy: PathBuf,
    against: Option<PathBuf>,
    show: u64,
    jsonl: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, End> {
        let (mut policy, mut against, mut show, mut jsonl) = (None, None, None, false);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| usage(format!("{arg} wants a value")));
            match &*arg {
                "--policy" if policy.is_some() => return Err(usage("--policy is given twice")),
                "--policy" => policy = Some(value()?),
                "--against" if against.is_some() => return Err(usage("--against is given twice")),
                "--against" => against = Some(value()?),
                "--show" => {
                    let text = value()?;
                    let number = text.parse().ok().filter(|number| *number <= MOST_SHOWN);
                    let wrong = || usage(format!("--show: `{text}` is not a number up to {MOST_SHOWN}"));
                    show = Some(number.ok_or_else(wrong)?);
                }
                "--jsonl" => jsonl = true,
                "--help" | "-h" => return Err(End(0, USAGE.to_owned())),
                _ => return Err(usage(format!("`{arg}` is not an option"))),
            }
        }
        if jsonl && show.is_some() {
            return Err(usage("--jsonl shows every change: leave --show out"));
        }
        let policy = policy.ok_or_else(|| usage("--policy FILE is missing"))?.into();
        Ok(Self { policy, against: against.map(Into::into), show: show.unwrap_or(10), jsonl })
    }
}

fn read_policy(path: &PathBuf) -> Result<Policy, End> {
    let wrong = |error: &dyn Display| End(2, format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    Policy::from_toml(&text).map_err(|error| wrong(&error))
}

/// Reads records, and says which lines are none. How many of either there are.
fn read(mut input: impl BufRead, replay: &mut Replay, complaints: &mut impl Write) -> io::Result<(u64, u64)> {
    let (mut number, mut records, mut malformed, mut line) = (0_u64, 0, 0, Vec::new());
    while input.read_until(b'\n', &mut line)? > 0 {
        number += 1;
        let text = match line.strip_prefix(BYTE_ORDER_MARK) {
            Some(text) if number == 1 => text,
            _ => &line,
        };
        if !text.trim_ascii().is_empty() {
            match Record::parse(text) {
                Ok(logged) => {
                    records += 1;
                    logged.into_iter().for_each(|logged| replay.add(logged));
                }
                Err(error) => {
                    malformed += 1;
                    if malformed <= MOST_NAMED {
                        writeln!(complaints, "replay: line {number}: {}", shown(&error))?;
                    }
                }
            }
        }
        line.clear();
    }
    Ok((records, malformed))
}

/// A record of the mailer, as far as it matters here.
#[derive(Deserialize)]
struct Record {
    time: String,
    event: Option<Arc<str>>,
    id: Option<Arc<str>>,
    recipient: Option<Arc<str>>,
    domain: Arc<str>,
    queue: Arc<str>,
    source: Arc<str>,
    mx: Option<Arc<str>>,
    stage: Option<String>,
    status: Option<String>,
    category: Option<String>,
    reason: Option<String>,
    reply: Option<RecordedReply>,
    rule: Option<Arc<str>>,
    #[serde(default)]
    attempts: u32,
    #[serde(default)]
    queued_ms: u64,
}

#[derive(Deserialize)]
struct RecordedReply {
    code: u16,
    enhanced: Option<String>,
    #[serde(default)]
    text: String,
}

#[derive(Deserialize)]
struct Kind {
    r#type: String,
}

impl Record {
    /// `None`: a record of another kind.
    fn parse(line: &[u8]) -> Result<Option<LoggedReply>, String> {
        let kind: Kind = serde_json::from_slice(line).map_err(|error| in_line(&error))?;
        if !["delivered", "deferred", "bounced", "queue-deferred"].contains(&&*kind.r#type) {
            return Ok(None);
        }
        let record: Self = serde_json::from_slice(line).map_err(|error| in_line(&error))?;
        let outcome = record.outcome(&kind.r#type);
        record.logged(outcome).map(Some)
    }

    fn outcome(&self, kind: &str) -> LoggedOutcome {
        let is = |field: &Option<String>, word: &str| field.as_deref() == Some(word);
        // A real reply with this status bounces by a rule, if at all.
        let expired =
            is(&self.status, "4.4.7") && is(&self.category, "message-expired") && self.rule.is_none();
        match kind {
            "delivered" => LoggedOutcome::Delivered,
            "queue-deferred" => LoggedOutcome::QueueDeferred,
            "bounced" if expired && is(&self.reason, "too-many-attempts") => LoggedOutcome::TriedTooOften,
            "bounced" if expired => LoggedOutcome::EndedWaiting,
            // No host was talked to: it shares the fate of its queue.
            _ if self.mx.is_none() => LoggedOutcome::EndedWaiting,
            "bounced" => LoggedOutcome::Bounced,
            _ => LoggedOutcome::Deferred,
        }
    }

    fn logged(self, outcome: LoggedOutcome) -> Result<LoggedReply, String> {
        let time = self.time.parse().map_err(|error| format!("time: {error}"))?;
        let stage = match self.stage.as_deref() {
            None if outcome == LoggedOutcome::Delivered => Stage::Dot,
            None => return Err("missing field `stage`".to_owned()),
            Some(name) => {
                let stages = [
                    Stage::Queue,
                    Stage::Dns,
                    Stage::Connect,
                    Stage::Ehlo,
                    Stage::Auth,
                    Stage::Mail,
                    Stage::Rcpt,
                    Stage::Data,
                    Stage::Dot,
                ];
                let stage = stages.into_iter().find(|stage| stage.as_str() == name);
                stage.ok_or_else(|| format!("stage: `{name}` is none"))?
            }
        };
        let reply = self.reply.map(RecordedReply::into_reply).transpose()?;
        let mut logged = LoggedReply::new(time, self.domain, stage, reply)
            .with_outcome(outcome)
            .with_queue(self.queue, self.source)
            .with_attempts(self.attempts, Duration::from_millis(self.queued_ms));
        logged.mx = self.mx;
        logged.rule = self.rule;
        logged.event = self.event;
        logged.message = self.id;
        logged.recipient = self.recipient;
        Ok(logged)
    }
}

impl RecordedReply {
    fn into_reply(self) -> Result<Reply, String> {
        if !(200..600).contains(&self.code) {
            return Err(format!("reply.code: {} is not 200 to 599", self.code));
        }
        let text = match self.enhanced {
            Some(status) => format!("{status} {}", self.text),
            None => self.text,
        };
        Ok(Reply::new(self.code, [text.into_bytes()]))
    }
}

fn in_line(error: &serde_json::Error) -> String {
    // The line it names is always 1, which is not the one that counts.
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("{what} (column {})", error.column())
}

fn print(
    report: &ReplayReport,
    changes: &[ReplayChange],
    against: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    let widest = report.rules.iter().map(|rule| rule.rule.len()).chain([9]).max().unwrap_or(9);
    writeln!(out, "{:widest$}  matched    acted  bounces  retries  backoff", "rule")?;
    for rule in &report.rules {
        let RuleReplay { rule: name, matched, acted, bounces, retries, .. } = rule;
        writeln!(out, "{name:widest$} {matched:8} {acted:8} {bounces:8} {retries:8}  {}", queues(rule))?;
    }
    writeln!(out, "{:widest$} {:8}  of {} in all", "(no rule)", report.unmatched, report.replies)?;
    for rule in report.unused() {
        let why = if rule.matched == 0 { "matches nothing" } else { "never decides anything" };
        writeln!(out, "rule {} {why}", rule.rule)?;
    }
    for kind in ChangeKind::ALL {
        let count = report.count(kind);
        if count == 0 {
            continue;
        }
        writeln!(out, "\n{}: {}", heading(kind), numbers(report, kind))?;
        let mut shown = 0;
        for change in changes.iter().filter(|change| change.kind == kind) {
            writeln!(out, "  {}", sentence(change, against))?;
            shown += 1;
        }
        if count > shown {
            writeln!(out, "  and {} more", count - shown)?;
        }
    }
    if ChangeKind::ALL.into_iter().all(|kind| report.count(kind) == 0) {
        writeln!(out, "\nNothing would change.")?;
    }
    let ReplayReport { deliveries, engine_made, ended_waiting, repeated, .. } = report;
    writeln!(
        out,
        "\nNo reply to judge: {deliveries} delivered, {engine_made} failed without a reply, {ended_waiting} ended while \
         waiting; {repeated} repeated"
    )?;
    let ReplayReport { after_end, delivered_after_end, .. } = report;
    match after_end {
        0 => Ok(()),
        _ => writeln!(
            out,
            "Not judged, since the recipient would have bounced before: {}, {delivered_after_end} of them deliveries",
            counted(*after_end, "record")
        ),
    }
}

/// Into how many queues' mode a rule reaches.
fn queues(rule: &RuleReplay) -> String {
    let mut parts = Vec::new();
    if !rule.backoffs.is_empty() {
        let times: u64 = rule.backoffs.values().sum();
        parts.push(format!("{}, {}", counted(rule.backoffs.len() as u64, "queue"), counted(times, "time")));
    }
    if !rule.bounced_queues.is_empty() {
        parts.push(format!("all mail of {} bounces", counted(rule.bounced_queues.len() as u64, "queue")));
    }
    if parts.is_empty() { "-".to_owned() } else { parts.join("; ") }
}

/// How many recipients, and how many steps that charge none.
fn numbers(report: &ReplayReport, kind: ChangeKind) -> String {
    let of = |counts: &BTreeMap<ChangeKind, u64>| counts.get(&kind).copied().unwrap_or(0);
    let steps = counted(of(&report.changed_steps), "failed step");
    match (of(&report.changed), of(&report.changed_steps)) {
        (recipients, 0) => recipients.to_string(),
        (0, _) => format!("{steps} of a queue"),
        (recipients, _) => format!("{recipients}, and {steps} of a queue"),
    }
}

fn heading(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Bounces => "would bounce",
        ChangeKind::Retries => "would be retried, not bounced",
        ChangeKind::NextHost => "would go on to the next host",
        ChangeKind::OneByOne => "would be sent one by one, and bounce if refused again",
        _ => "the same, by another rule or with other effects on the queue",
    }
}

/// `time recipient domain: reply; was deferred, would bounce by rule X`.
fn sentence(change: &ReplayChange, against: bool) -> String {
    let logged = &change.logged;
    let by = |rule: Option<&Arc<str>>| rule.map_or(String::new(), |rule| format!(" by rule {}", shown(rule)));
    let mut before = by(change.before_rule.as_ref());
    let mut after = by(change.decision.rule());
    if change.kind == ChangeKind::Otherwise {
        // The rules may be the same, or several: what they do is what differs.
        after = format!(" ({})", change.decision);
        before = change.before_decision.as_ref().map_or(before, |decision| format!(" ({decision})"));
    }
    // However a rule has it retried: it was the last of its attempts.
    let was_last = logged.outcome == LoggedOutcome::TriedTooOften;
    let words = |verdict| match verdict {
        ReplyVerdict::Retry if was_last => "end as tried too often",
        verdict => words(verdict),
    };
    let was = match logged.outcome {
        _ if against => format!("by the old policy it would {}{before}, now it would", words(change.before)),
        LoggedOutcome::Bounced => format!("was bounced{before}, would"),
        LoggedOutcome::TriedTooOften => format!("was tried too often{before}, would"),
        LoggedOutcome::QueueDeferred => format!("its queue was deferred{before}, would"),
        _ => format!("was deferred{before}, would"),
    };
    let reply = logged.reply.as_ref().map_or(String::new(), |reply| shown(&reply.to_string()));
    let recipient = shown(logged.recipient.as_deref().unwrap_or(&logged.queue));
    let would = words(change.after);
    format!("{} {recipient} {}: {reply}; {was} {would}{after}", logged.time, shown(&logged.domain))
}

/// The words of a log are a stranger's: they may be long, and may not steer a terminal.
fn shown(text: &str) -> String {
    let start = text.chars().take(MOST_CHARACTERS);
    let escaped = |char: char| match char {
        '"' | '\'' => char.to_string(),
        _ => char.escape_debug().to_string(),
    };
    let mut shown: String = start.map(escaped).collect();
    if is_long(text) {
        shown.push('…');
    }
    shown
}

fn is_long(text: &str) -> bool {
    text.chars().nth(MOST_CHARACTERS).is_some()
}

fn cut(text: &str) -> String {
    let start = text.chars().take(MOST_CHARACTERS);
    start.chain(is_long(text).then_some('…')).collect()
}

fn words(verdict: ReplyVerdict) -> &'static str {
    match verdict {
        ReplyVerdict::Retry => "be retried",
        ReplyVerdict::Bounce => "bounce",
        ReplyVerdict::BounceQueue => "bounce with its queue",
        ReplyVerdict::NextHost => "go on to the next host",
        ReplyVerdict::OneByOne => "be sent the message by itself",
        other => other.as_str(),
    }
}

fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn as_json(change: &ReplayChange) -> serde_json::Value {
    let logged = &change.logged;
    let mut fields = json!({
        "time": logged.time.to_string(),
        "change": change.kind.as_str(),
        "outcome": logged.outcome.as_str(),
        "domain": cut(&logged.domain),
        "queue": cut(&logged.queue),
        "source": cut(&logged.source),
        "stage": logged.stage.as_str(),
        "attempts": logged.attempts,
        "before": change.before.as_str(),
        "after": change.after.as_str(),
    });
    let optional = [
        ("event", &logged.event),
        ("id", &logged.message),
        ("recipient", &logged.recipient),
        ("mx", &logged.mx),
        ("reply", &logged.reply.as_ref().map(|reply| reply.to_string().into())),
        ("before_rule", &change.before_rule),
        ("before_decision", &change.before_decision.as_ref().map(|decision| decision.to_string().into())),
        ("rule", &change.decision.rule().cloned()),
        ("decision", &Some(change.decision.to_string().into())),
    ];
    if let Some(fields) = fields.as_object_mut() {
        let known = optional.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        fields.extend(known.map(|(name, value)| (name.to_owned(), cut(value).into())));
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the mailer writes them.
    const LOG: &str = r#"
{"type":"received","time":"2026-11-25T08:00:00.000Z","id":"01","from":"n@x.example","size":9,"recipients":3}
{"type":"deferred","time":"2026-11-25T08:00:01.000Z","event":"e1","id":"01","recipient":"ann@a.example","domain":"a.example","queue":"google.rollup","source":"out1","mx":"mx.google.com","ip":"192.0.2.1","port":25,"attempts":1,"queued_ms":900,"stage":"rcpt","status":"4.2.2","category":"quota-issues","reply":{"code":452,"text":"The account is over quota","enhanced":"4.2.2"},"next_attempt":"2026-11-25T08:10:01.000Z"}
{"type":"deferred","time":"2026-11-25T08:00:01.000Z","event":"e2","id":"01","recipient":"bob@a.example","domain":"a.example","queue":"google.rollup","source":"out1","mx":"mx.google.com","attempts":1,"queued_ms":900,"stage":"dot","status":"4.4.2","category":"bad-connection","reason":"possibly-delivered","error":"over quota","next_attempt":"2026-11-25T08:10:01.000Z"}
{"type":"bounced","time":"2026-11-25T08:00:02.000Z","event":"e3","id":"02","recipient":"eve@b.example","domain":"b.example","queue":"b.example","source":"out1","mx":"mx.b.example","attempts":1,"queued_ms":1,"stage":"rcpt","status":"5.0.0","category":"other","reply":{"code":550,"text":"greylisted, come back"}}
{"type":"bounced","time":"2026-11-25T08:00:02.000Z","event":"e3","id":"02","recipient":"eve@b.example","domain":"b.example","queue":"b.example","source":"out1","mx":"mx.b.example","attempts":1,"queued_ms":1,"stage":"rcpt","status":"5.0.0","category":"other","reply":{"code":550,"text":"greylisted, come back"}}
{"type":"bounced","time":"2026-11-29T20:00:00.000Z","event":"e4","id":"01","recipient":"ann@a.example","domain":"a.example","queue":"google.rollup","source":"out1","mx":"mx.google.com","attempts":9,"queued_ms":388800000,"stage":"rcpt","status":"4.4.7","category":"message-expired","reply":{"code":452,"text":"The account is over quota","enhanced":"4.2.2"}}
{"type":"queue-deferred","time":"2026-11-25T08:00:03.000Z","event":"e5","queue":"c.example","source":"out1","domain":"c.example","mx":"mx.c.example","stage":"connect","status":"4.7.0","category":"policy-related","reply":{"code":421,"text":"too many connections","enhanced":"4.7.0"},"next_attempt":"2026-11-25T08:10:03.000Z"}
{"type":"delivered","time":"2026-11-25T08:00:04.000Z","event":"e6","id":"03","recipient":"d@d.example","domain":"d.example","queue":"d.example","source":"out1","mx":"mx.d.example","attempts":1,"queued_ms":5,"reply":{"code":250,"text":"ok"},"tls":null}
{"type":"deferred","time":"soon","domain":"a.example","queue":"a.example","source":"out1","stage":"rcpt"}
{"type":"defer
"#;

    const RULES: &str = r#"
        [[reply-rule]]
        name = "quota"
        match = '^452 4\.2\.2 .*over quota'
        actions = "bounce-rcpt"
        mx = "*.google.com"
        [[reply-rule]]
        name = "grey"
        match = "greylist"
        actions = "retry-rcpt"
        [[reply-rule]]
        name = "slow-down"
        match = "too many"
        actions = "mode=backoff"
        [[reply-rule]]
        name = "idle"
        match = "nobody says this"
        actions = "skip-mx"
    "#;

    fn of(log: &str, rules: &str) -> (ReplayReport, Vec<ReplayChange>, String) {
        let mut replay = Replay::new(Policy::from_toml(rules).unwrap());
        let mut complaints = Vec::new();
        read(log.as_bytes(), &mut replay, &mut complaints).unwrap();
        let (report, changes) = replayed(replay, 10);
        (report, changes, String::from_utf8(complaints).unwrap())
    }

    fn printed(log: &str, rules: &str) -> String {
        let (report, changes, complaints) = of(log, rules);
        let mut out = complaints.into_bytes();
        print(&report, &changes, false, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_mailers_records_are_read() {
        let (report, _, complaints) = of(LOG, RULES);
        let counts =
            (report.replies, report.deliveries, report.engine_made, report.after_end, report.repeated);
        assert_eq!(counts, (3, 1, 1, 1, 1));
        let lines: Vec<_> = complaints.lines().collect();
        assert!(lines[0].starts_with("replay: line 10: time: `soon`"), "{complaints}");
        assert!(lines[1].starts_with("replay: line 11: "), "{complaints}");
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn the_summary_is_readable() {
        let (records, _) = LOG.split_once(r#"{"type":"deferred","time":"soon""#).unwrap();
        let want = "\
rule       matched    acted  bounces  retries  backoff
quota            1        1        1        0  -
grey             1        1        0        1  -
slow-down        1        1        0        0  1 queue, 1 time
idle             0        0        0        0  -
(no rule)        0  of 3 in all
rule idle matches nothing

would bounce: 1
  2026-11-25T08:00:01.000Z ann@a.example a.example: 452 4.2.2 The account is over quota; was deferred, would bounce by rule quota

would be retried, not bounced: 1
  2026-11-25T08:00:02.000Z eve@b.example b.example: 550 greylisted, come back; was bounced, would be retried by rule grey

the same, by another rule or with other effects on the queue: 1 failed step of a queue
  2026-11-25T08:00:03.000Z c.example c.example: 421 4.7.0 too many connections; its queue was deferred, would be retried (mode=backoff by slow-down)

No reply to judge: 1 delivered, 1 failed without a reply, 0 ended while waiting; 1 repeated
Not judged, since the recipient would have bounced before: 1 record, 0 of them deliveries
";
        assert_eq!(printed(records, RULES), want);
    }

    /// A record as the mailer writes it.
    fn record(kind: &str, seconds: u64, to: &str, attempts: u32, reply: (u16, &str)) -> String {
        let (code, text) = reply;
        let record = json!({
            "type": kind, "time": format!("2026-11-25T08:00:{seconds:02}.000Z"), "id": "01", "recipient": to,
            "domain": "a.example", "queue": "a.example", "source": "out1", "mx": "mx.a.example",
            "attempts": attempts, "queued_ms": 1, "stage": "rcpt", "reply": { "code": code, "text": text },
        });
        format!("{record}\n")
    }

    const QUOTA: &str = "[[reply-rule]]\nname = 'quota'\nmatch = '^452'\nactions = 'bounce-rcpt'";

    #[test]
    fn recipients_are_counted_not_replies() {
        let all = ["r1@a.example", "r2@a.example", "r3@a.example"];
        let twice =
            |to| [1, 2].map(|n| record("deferred", u64::from(n), to, n, (452, "over quota"))).concat();
        let later = record("delivered", 9, all[2], 3, (250, "ok"));
        let out = printed(&(all.map(twice).concat() + &later), QUOTA);
        assert!(out.contains("\nquota            3        3        3        0  -\n"), "{out}");
        assert!(out.contains("\nwould bounce: 3\n"), "{out}");
        assert!(out.contains("No reply to judge: 0 delivered, "), "{out}");
        assert!(out.ends_with("bounced before: 4 records, 1 of them deliveries\n"), "{out}");
    }

    #[test]
    fn who_was_tried_too_often_is_not_retried() {
        let log = record("bounced", 1, "r1@a.example", 3, (450, "busy"));
        let log = log.replace(
            "}\n",
            r#","status":"4.4.7","category":"message-expired","reason":"too-many-attempts"}"#,
        );
        let rules = "[[reply-rule]]\nname = 'slow'\nmatch = 'busy'\nactions = 'mode=backoff'";
        let out = printed(&log, rules);
        assert!(
            out.contains(
                "450 busy; was tried too often, would end as tried too often (mode=backoff by slow)\n"
            ),
            "{out}"
        );
        let mut replay = Replay::new(Policy::from_toml(rules).unwrap()).against(Policy::default());
        read(log.as_bytes(), &mut replay, &mut Vec::new()).unwrap();
        let (_, changes) = replayed(replay, 1);
        let got = sentence(&changes[0], true);
        assert!(!got.contains("be retried"), "{got}");
    }

    #[test]
    fn as_many_changes_are_kept_as_are_shown() {
        let to = |n: u32| record("deferred", 1, &format!("r{n}@a.example"), 1, (452, "over quota"));
        let log: String = (0..30).map(to).collect();
        let out = printed(&log, QUOTA);
        assert!(out.contains("\nwould bounce: 30\n") && out.contains("\n  and 20 more\n"), "{out}");
        assert_eq!(of(&log, QUOTA).1.len(), 10);
    }

    #[test]
    fn long_and_wild_words_are_cut_and_escaped() {
        let long = "x".repeat(1 << 20);
        let to = format!("\u{1b}[2J{long}@a.example");
        let log = record("deferred", 1, &to, 1, (452, &long))
            + "{\"type\": 5 }\n{\"type\":\"deferred\",\"time\":\""
            + &long
            + "\",\"domain\":\"\",\"queue\":\"\",\"source\":\"\",\"stage\":\"rcpt\"}\n";
        let out = printed(&log, QUOTA);
        assert!(out.len() < 5_000, "{}", out.len());
        assert!(
            out.contains(r"\u{1b}[2Jxxx") && out.contains("452 xxx") && out.contains("xxx…; was"),
            "{out}"
        );
        assert!(as_json(&of(&log, QUOTA).1[0]).to_string().len() < 5_000);
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        let line = record("deferred", 1, "r1@a.example", 1, (452, "over quota"));
        let (report, _, complaints) = of(&format!("\u{feff}{line}"), QUOTA);
        assert_eq!((report.replies, &*complaints), (1, ""));
        assert_ne!(of(&format!("{line}\u{feff}{line}"), QUOTA).2, "", "at the start alone");
    }

    #[test]
    fn the_same_rule_with_other_effects_shows_them() {
        let policy = |interval: &str| {
            let actions = format!("['retry-after={interval}', 'limit-rate=6/m for=1h']");
            let rule = format!("[[reply-rule]]\nname = 'q'\nmatch = 'quota'\nactions = {actions}");
            Policy::from_toml(&rule).unwrap()
        };
        let mut replay = Replay::new(policy("10m")).against(policy("90s"));
        read(LOG.as_bytes(), &mut replay, &mut Vec::new()).unwrap();
        let (_, changes) = replayed(replay, 1);
        let got = sentence(&changes[0], true);
        let (_, got) = got.split_once("; ").unwrap();
        let want = "by the old policy it would be retried (retry-after=1m30s by q, limit-rate=6/m for=1h by q), \
                    now it would be retried (retry-after=10m by q, limit-rate=6/m for=1h by q)";
        assert_eq!(got, want);
    }

    #[test]
    fn a_change_is_an_object() {
        let want = json!({
            "time": "2026-11-25T08:00:01.000Z", "change": "bounces", "outcome": "deferred", "event": "e1", "id": "01",
            "recipient": "ann@a.example", "domain": "a.example", "queue": "google.rollup", "source": "out1",
            "mx": "mx.google.com", "stage": "rcpt", "attempts": 1,
            "reply": "452 4.2.2 The account is over quota", "before": "retry", "after": "bounce", "rule": "quota",
            "decision": "bounce-rcpt by quota",
        });
        assert_eq!(as_json(&of(LOG, RULES).1[0]), want);
    }

    #[test]
    fn arguments_are_checked() {
        let parse = |args: &str| Options::parse(args.split_whitespace().map(str::to_owned));
        let options = parse("--policy a --against b --show 3").ok().unwrap();
        assert_eq!((options.against, options.show, options.jsonl), (Some("b".into()), 3, false));
        for args in [
            "",
            "--policy",
            "--policy a --policy b",
            "--policy a --against b --against c",
            "--policy a --show x",
            "--policy a --show 100001",
            "--policy a --jsonl --show 1",
            "--policy a b",
        ] {
            assert!(matches!(parse(args), Err(End(2, _))), "{args}");
        }
    }
}
