//! What replies tell of: which kind of failure, and what the engine does upon it.
//!
//!     cargo run --example classify < replies.tsv
//!     cargo run --example classify -- '550 5.1.1 No such user here' --stage rcpt --mx mx.example.com
//!
//! Standard input has a reply a line, in columns with tabs between: provider, command, code, enhanced status, text; any
//! may be empty, more are not read. Each line gives one of output: class, category, reason, action, by the recommended
//! policy or that of `--config FILE`. A reply as an argument is explained in words.

#![allow(clippy::print_stderr, reason = "a program that prints")]

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use postrider::event::Reason;
use postrider::policy::{Config, Policy, ReplyContext};
use postrider::reply::{Reply, Stage};

const USAGE: &str = "usage: classify [--config FILE] < replies.tsv
       classify [--config FILE] [--stage STAGE] [--mx HOST] [--attempts N] [--age DURATION] 'CODE [STATUS] TEXT'";

#[derive(Default)]
struct Arguments {
    config: Option<String>,
    stage: Option<Stage>,
    mx: Option<String>,
    attempts: Option<u32>,
    age: Option<std::time::Duration>,
    reply: Option<String>,
}

fn main() -> ExitCode {
    let outcome = arguments(std::env::args().skip(1)).and_then(|arguments| {
        let policy = match &arguments.config {
            None => Policy::recommended(),
            Some(file) => {
                let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
                Config::from_toml(&text).map_err(|error| format!("{file}: {error}"))?.policy
            }
        };
        match &arguments.reply {
            Some(reply) => explain(&policy, reply, &arguments),
            None => match filter(&policy, io::stdin().lock(), io::stdout().lock()) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
                _ => Ok(()),
            },
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("classify: {problem}");
            ExitCode::from(2)
        }
    }
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{word} wants a value\n{USAGE}"));
        match word.as_str() {
            "--config" => arguments.config = Some(value()?),
            "--mx" => arguments.mx = Some(value()?),
            "--stage" => {
                let value = value()?;
                let stage = stage(&value).ok_or_else(|| {
                    format!("{value} is not a stage: write connect, ehlo, auth, mail, rcpt, data or dot")
                })?;
                arguments.stage = Some(stage);
            }
            "--attempts" => {
                let value = value()?;
                arguments.attempts =
                    Some(value.parse().map_err(|_| format!("{value} is not a number of attempts"))?);
            }
            "--age" => {
                let value = value()?;
                arguments.age = Some(
                    postrider::policy::parse_duration(&value)
                        .map_err(|error| format!("{value} is {error}"))?,
                );
            }
            "--help" | "-h" => return Err(USAGE.to_owned()),
            option if option.starts_with("--") => return Err(format!("there is no {option}\n{USAGE}")),
            _ if arguments.reply.is_none() => arguments.reply = Some(word),
            _ => return Err(format!("one reply at a time, in quotes\n{USAGE}")),
        }
    }
    Ok(arguments)
}

/// By SMTP's command, or the stage's own name.
fn stage(command: &str) -> Option<Stage> {
    let verb = command.split(' ').next().unwrap_or_default();
    Some(match verb.to_ascii_lowercase().as_str() {
        "connect" | "conn" => Stage::Connect,
        "ehlo" | "helo" | "lhlo" | "starttls" => Stage::Ehlo,
        "auth" => Stage::Auth,
        "mail" => Stage::Mail,
        "rcpt" => Stage::Rcpt,
        "data" | "bdat" => Stage::Data,
        "dot" | "." | "data_end" | "data-end" | "end-of-data" | "eom" => Stage::Dot,
        _ => return None,
    })
}

/// Of a bare reply most is an answer to RCPT.
const UNKNOWN_STAGE: Stage = Stage::Rcpt;

fn filter(policy: &Policy, input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    for line in input.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let mut columns = line.trim_end_matches('\r').split('\t');
        let [provider, command, code, enhanced, text] =
            [(); 5].map(|()| columns.next().unwrap_or_default().trim());
        let folded = [code, enhanced, text];
        let folded: Vec<_> = folded.into_iter().filter(|part| !part.is_empty()).collect();
        let mut context =
            ReplyContext::new("example.com", "example.com", stage(command).unwrap_or(UNKNOWN_STAGE));
        if !provider.is_empty() {
            context = context.with_provider(provider);
        }
        let (kind, verdict) = policy.judge_reply(&folded.join(" "), &context, |_, _| true);
        let (class, category) = (class(kind.reason), kind.category());
        writeln!(output, "{class}\t{category}\t{}\t{}", kind.reason, verdict.fate.as_str())?;
    }
    output.flush()
}

fn explain(policy: &Policy, text: &str, arguments: &Arguments) -> Result<(), String> {
    let reply = Reply::parse(text).map_err(|error| format!("not a reply: {error}"))?;
    if !reply.is_transient() && !reply.is_permanent() {
        return Err(format!("{} is no refusal: only 4xx and 5xx are read", reply.code()));
    }
    let mut context =
        ReplyContext::new("example.com", "example.com", arguments.stage.unwrap_or(UNKNOWN_STAGE));
    context.host = arguments.mx.as_deref();
    context.attempts = arguments.attempts.unwrap_or(context.attempts);
    context.age = arguments.age.unwrap_or(context.age);
    let (kind, verdict) = policy.judge_reply(&reply.to_string(), &context, |_, _| true);
    let words = [
        format!("{reply}"),
        format!("  category    {} (PowerMTA: {})", kind.category(), kind.category().pmta_name()),
        format!("  reason      {}", kind.reason),
        format!("  read from   {}, rule {}", kind.confidence, kind.rule),
        format!("  recipient   {}", verdict.fate.as_str()),
        format!("  concerns    {}", verdict.scope.as_str()),
        format!("  effects     {}", verdict.effects),
        format!("  suppress    {}", verdict.suppress.as_str()),
    ];
    // Whoever reads may have seen enough.
    let _ = writeln!(io::stdout(), "{}", words.join("\n"));
    Ok(())
}

/// A coarse class for statistics: fourteen of them.
fn class(reason: Reason) -> &'static str {
    use Reason as R;
    match reason {
        R::UserUnknown | R::Moved | R::RecipientRejected => "mailbox_unknown",
        R::MailboxFull => "mailbox_full",
        R::Disabled | R::Suspended => "inactive",
        R::SpamContent | R::UrlBlocklist | R::Virus | R::Attachment | R::ContentRejected => "spam_content",
        R::Spf | R::Dkim | R::Dmarc | R::Unauthenticated | R::Ptr | R::Helo | R::Credentials | R::Policy => {
            "policy_auth"
        }
        R::SenderRejected | R::SenderDomain | R::MalformedMessage => "policy_auth",
        R::IpBlocklist | R::DomainBlocklist | R::Reputation => "blocklist",
        R::TooManyConnections | R::TooManyMessages | R::TooManyRecipients | R::TooManyErrors => "rate_limit",
        R::RelayingDenied => "relay_denied",
        R::DomainUnknown => "domain_not_found",
        R::TooLarge => "too_big",
        R::Greylisted | R::TryLater | R::OutOfResources => "transient_system",
        R::TlsRequired | R::TlsFailed => "tls",
        R::Syntax => "syntax",
        _ => "other",
    }
}
