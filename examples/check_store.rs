//! Verifies a store that nobody has open, and lists what is in it.
//!
//! ```text
//! check_store FOLDER [--list]
//! ```
//!
//! Nothing is changed. With `--list` each message takes a line: its id, its reverse-path, and each recipient left with
//! its due time and attempts.
//!
//! Exit status: 0 nothing is damaged, 1 something is, 2 wrong arguments, or it can not be checked: no store, one in use, or one
//! of another version.

use std::io::{self, Write};
use std::process::ExitCode;

use postrider::storage::{CheckReport, DiskStorage, StoredMessage};

const USAGE: &str = "usage: check_store FOLDER [--list]";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Over damaged pages redb panics. That is caught, and told in the report.
    std::panic::set_hook(Box::new(|_| {}));
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let all = arguments.len();
    arguments.retain(|argument| argument != "--list");
    let list = arguments.len() < all;
    let [folder] = arguments.as_slice() else { return failed(USAGE) };
    if folder.to_string_lossy().starts_with("--") {
        return failed(USAGE);
    }
    let visit = move |message: StoredMessage| {
        if list {
            let _ = writeln!(io::stdout(), "{}", line(&message));
        }
    };
    match DiskStorage::check_each(folder, visit).await {
        Ok(report) => {
            let _ = print(&report);
            ExitCode::from(u8::from(!report.is_clean()))
        }
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(message: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "check_store: {message}");
    ExitCode::from(2)
}

fn line(message: &StoredMessage) -> String {
    let envelope = &message.envelope;
    let from = envelope.reverse_path.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut line = format!("{} from=<{from}>", envelope.id);
    for item in &message.items {
        for recipient in &item.recipients {
            let (to, attempts) = (&recipient.address, recipient.attempts);
            line += &format!(" to=<{to}> due={} attempts={attempts}", item.due);
        }
    }
    line
}

fn print(report: &CheckReport) -> io::Result<()> {
    let mut out = io::stdout();
    let CheckReport { messages, items, recipients, outbox, state_rows, body_files, octets, .. } = report;
    let CheckReport { set_aside_files, set_aside_octets, .. } = report;
    writeln!(out, "{messages} messages, {items} items, {recipients} recipients left")?;
    writeln!(out, "{outbox} outbox entries, {state_rows} state rows")?;
    writeln!(out, "{body_files} body files, {octets} octets with the metadata")?;
    if *set_aside_files > 0 {
        writeln!(
            out,
            "{set_aside_files} body files of {set_aside_octets} octets set aside over damage: see the README"
        )?;
    }
    if report.unflushed {
        writeln!(
            out,
            "a flush has failed: what is read here need not be on disk; opening the store writes it again"
        )?;
    }
    for problem in &report.problems {
        writeln!(out, "damaged: {problem}")?;
    }
    match report.problem_count {
        0 => writeln!(out, "nothing is damaged"),
        1 => writeln!(out, "1 problem"),
        count => writeln!(out, "{count} problems, {} of them above", report.problems.len()),
    }
}
