//! What came of the mail, for people.

use std::fmt::Write as _;
use std::time::Duration;

use crate::lab::{Run, Tally, parts};
use crate::providers::Provider;

/// For each provider a line of each policy, so that what is to be compared stands together. `runs`: each with its
/// policy's name.
pub(crate) fn table(providers: &[Provider], runs: &[(String, Run)]) -> String {
    let widest = |names: &mut dyn Iterator<Item = usize>| names.max().unwrap_or(0);
    let first = widest(&mut providers.iter().map(|provider| provider.name.len())).max("transactional".len());
    // With one policy there is nothing to tell apart.
    let second = match runs {
        [_] => 0,
        runs => widest(&mut runs.iter().map(|(name, _)| name.chars().count())).max("policy".len()) + 2,
    };
    let mut text = String::new();
    let mut row = |name: &str, policy: &str, cells: [String; 9]| {
        let policy = if second == 0 { String::new() } else { format!("  {policy}") };
        let [mail, delivered, deferred, bounced, queued, median, most, refused, connections] = cells;
        let _ = writeln!(
            text,
            "{name:first$}{policy:second$}{mail:>8}{delivered:>11}{deferred:>10}{bounced:>9}{queued:>8}{median:>8}\
             {most:>8}{refused:>7}{connections:>7}"
        );
    };
    let head = ["mail", "delivered", "deferred", "bounced", "queued", "median", "99 %", "421s", "conns"];
    row("", "policy", head.map(str::to_owned));
    for (name, tallies) in parts(providers, runs) {
        for (nth, ((policy, _), tally)) in runs.iter().zip(tallies).enumerate() {
            row(if nth == 0 { name } else { "" }, policy, cells(tally));
        }
    }
    text
}

fn cells(tally: &Tally) -> [String; 9] {
    let age = |part| tally.quantile(part).map_or_else(|| "-".to_owned(), time);
    let servers = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), grouped);
    [
        grouped(tally.mail),
        grouped(tally.delivered()),
        grouped(tally.deferred),
        grouped(tally.bounced),
        grouped(tally.queued()),
        age(0.5),
        age(0.99),
        servers(tally.servers.map(|servers| servers.refused)),
        servers(tally.servers.map(|servers| servers.connections)),
    ]
}

/// What the mail still waits for; empty if there is none.
pub(crate) fn waits(providers: &[Provider], runs: &[(String, Run)]) -> String {
    let mut text = String::new();
    for (policy, run) in runs {
        for (index, wait) in &run.waits {
            let (Some(provider), Some(tally)) = (providers.get(*index), run.providers.get(*index)) else {
                continue;
            };
            let of = if runs.len() > 1 { format!(", {policy}") } else { String::new() };
            let _ = writeln!(
                text,
                "  {}{of}: {} queued, most of it in {wait}",
                provider.name,
                grouped(tally.queued())
            );
        }
    }
    text
}

/// `12345` as `12,345`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// In two units at most.
pub(crate) fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", time.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ if seconds.is_multiple_of(86_400) => format!("{}d", seconds / 86_400),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}
