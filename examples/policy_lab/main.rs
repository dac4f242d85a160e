//! Policies tried on providers, before any real mail is sent.
//!
//! ```text
//! cargo run --release --example policy_lab -- --policy new.toml [--policy old.toml …] [--days 3] [--messages 20000]
//!     [--seed 1] [--source NAME] [--svg policy_lab.svg]
//! ```
//!
//! Each policy sends the same mail to the same receivers: a newsletter within an hour, single messages with high
//! priority over the first third of the time. Engine and policy are the real ones; the receivers are models
//! (`providers.rs`), and time is virtual. Printed are, for each provider and policy:
//!
//! - mail: messages, of one recipient each. delivered, bounced, queued: what became of them by the end
//! - deferred: attempts that put a message off
//! - median, 99 %: from submission to delivery, of what was delivered
//! - 421s: replies with this code, which close a connection. conns: connections, those that failed included
//!
//! The models are invented: two policies compare well on them, but they foretell nothing. The same arguments give the
//! same output.
//!
//! Exit status: 0 done, 1 it failed or the engine broke a promise, 2 wrong arguments or policy.

mod chart;
mod lab;
mod providers;
mod table;
#[cfg(test)]
mod tests;
mod traffic;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use postrider::Policy;
use postrider::message::MessageId;
use postrider::policy::parse_duration;

const USAGE: &str = "usage: policy_lab --policy FILE [--policy FILE …] [--days N] [--messages N] [--seed N] [--source NAME] \
                     [--svg FILE]";
const DAY: Duration = Duration::from_secs(86_400);
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(60 * 86_400);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(End(code, message)) => {
            let _ = writeln!(io::stderr(), "policy_lab: {message}");
            ExitCode::from(code)
        }
    }
}

/// The exit status of an end that is no success, and its message.
#[derive(Debug)]
struct End(u8, String);

fn usage(message: impl Display) -> End {
    End(2, format!("{message}; {USAGE}"))
}

fn failed<E: Display>(what: impl Display) -> impl FnOnce(E) -> End {
    move |error| End(1, format!("{what}: {error}"))
}

fn run() -> Result<(), End> {
    let options = Options::parse(std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()))?;
    let policies = options.policies.iter().map(|path| read_policy(path, options.source.as_deref()));
    let policies: Vec<Policy> = policies.collect::<Result<_, _>>()?;
    let names = names(&options.policies);
    check_svg(&options)?;
    let svg = printable(&options.svg.to_string_lossy());
    let (text, drawn) = try_out(&options, names.into_iter().zip(policies))?;
    std::fs::write(&options.svg, drawn).map_err(failed(&svg))?;
    let mut out = io::stdout().lock();
    let written = write!(out, "{text}\nThe curves are in {svg}\n");
    written.and_then(|()| out.flush()).map_err(failed("stdout"))
}

/// That the chart can be written is known before anything is tried. What lies there stays until the chart is drawn.
fn check_svg(options: &Options) -> Result<(), End> {
    let svg = &options.svg;
    let found = svg.canonicalize().ok();
    let is_svg = |policy: &&PathBuf| found.is_some() && policy.canonicalize().ok() == found;
    if let Some(policy) = options.policies.iter().find(is_svg) {
        let policy = printable(&policy.to_string_lossy());
        return Err(usage(format!("--svg: {policy} is a policy, which the chart would overwrite")));
    }
    let opened = match File::options().write(true).create_new(true).open(svg) {
        Ok(_) => std::fs::remove_file(svg),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            File::options().write(true).open(svg).map(drop)
        }
        Err(error) => Err(error),
    };
    opened.map_err(failed(printable(&svg.to_string_lossy())))
}

/// The table, and the chart.
fn try_out(
    options: &Options,
    policies: impl Iterator<Item = (String, Policy)>,
) -> Result<(String, String), End> {
    let Options { days, messages, seed, source, .. } = options;
    let providers = providers::all();
    let mails = traffic::mails(*seed, *messages, *days, &providers);
    let mut runs = Vec::new();
    for (name, policy) in policies {
        let began = now();
        let run =
            lab::run(*seed, *days, policy, source.as_deref(), &providers, &mails).map_err(failed(&name))?;
        let took = began.elapsed().as_secs_f64();
        let _ = writeln!(io::stderr(), "policy_lab: {name}: {} attempts in {took:.2} s", run.attempts);
        runs.push((name, run));
    }
    let title = format!(
        "{} messages, {} from {}, seed {seed}",
        table::grouped(*messages),
        table::time(*days),
        lab::START
    );
    let mut text = format!("{title}\n\n{}", table::table(&providers, &runs));
    let waits = table::waits(&providers, &runs);
    if !waits.is_empty() {
        text.push_str("\nWhat is still queued waits for this:\n");
        text.push_str(&waits);
    }
    let drawn = chart::svg(&title, *days, &providers, &runs);
    Ok((text, drawn))
}

#[allow(clippy::disallowed_methods, reason = "how long it takes is a matter of real time")]
fn now() -> Instant {
    Instant::now()
}

#[derive(Debug, PartialEq)]
struct Options {
    policies: Vec<PathBuf>,
    days: Duration,
    messages: u64,
    seed: u64,
    source: Option<String>,
    svg: PathBuf,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, End> {
        let mut options = Self {
            policies: Vec::new(),
            days: 3 * DAY,
            messages: 20_000,
            seed: 1,
            source: None,
            svg: "policy_lab.svg".into(),
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| usage(format!("{arg} wants a value")));
            match &*arg {
                "--policy" => options.policies.push(value()?.into()),
                "--days" => options.days = days(&value()?)?,
                "--messages" => options.messages = number(&arg, &value()?)?,
                "--seed" => options.seed = number(&arg, &value()?)?,
                "--source" => options.source = Some(value()?),
                "--svg" => options.svg = value()?.into(),
                "--help" | "-h" => return Err(End(0, USAGE.to_owned())),
                _ => return Err(usage(format!("`{arg}` is not an option"))),
            }
        }
        match options.policies.len() {
            0 => Err(usage("--policy FILE is missing")),
            1..=chart::MOST_POLICIES => Ok(options),
            _ => Err(usage(format!("at most {} policies can be told apart", chart::MOST_POLICIES))),
        }
    }
}

fn number(option: &str, text: &str) -> Result<u64, End> {
    text.parse().map_err(|_| usage(format!("{option}: `{text}` is not a number")))
}

/// `3`, `1.5`, or a duration such as `36h`.
fn days(text: &str) -> Result<Duration, End> {
    let days = text.parse().ok().and_then(|days: f64| Duration::try_from_secs_f64(days * 86_400.0).ok());
    let time = days.or_else(|| parse_duration(text).ok());
    let time = time.ok_or_else(|| usage(format!("--days: `{text}` is neither a number nor like 36h")))?;
    if !(SHORTEST..=LONGEST).contains(&time) {
        return Err(usage(format!("--days: {text} is not from a minute to 60 days")));
    }
    Ok(time)
}

fn read_policy(path: &Path, source: Option<&str>) -> Result<Policy, End> {
    let wrong = |error: &dyn Display| End(2, format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    let policy = Policy::from_toml(&text).map_err(|error| wrong(&error))?;
    policy.choose_source(source, &MessageId::from_uuid(uuid::Uuid::nil())).map_err(|error| wrong(&error))?;
    Ok(policy)
}

/// The files' names without what they have in common, or their paths where that is not enough. The same file again has
/// a number.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let short = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
        printable(&name.chars().take(20).collect::<String>())
    };
    let names: Vec<_> = paths.iter().map(short).collect();
    let different: BTreeSet<_> = names.iter().collect();
    if different.len() == names.len() {
        return names;
    }
    let mut taken = BTreeSet::new();
    let numbered = |path: &PathBuf| {
        let path = printable(&path.to_string_lossy());
        let mut name = path.clone();
        for number in 2_u32.. {
            if taken.insert(name.clone()) {
                break;
            }
            name = format!("{path} ({number})");
        }
        name
    };
    paths.iter().map(numbered).collect()
}

/// A file may be called anything: neither the table nor the chart may break over it.
fn printable(name: &str) -> String {
    let escaped = |char: char| match char {
        '"' | '\'' => char.to_string(),
        _ => char.escape_debug().to_string(),
    };
    name.chars().map(escaped).collect()
}
