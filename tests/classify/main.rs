//! What is read from replies, measured against labelled ones.
//!
//! `samples.tsv` beside this file was written for it. Real replies with labels are read as well where they are:
//! `POSTRIDER_REPLIES` names their file, `../shared/data/replies.tsv` is tried without it.
//!
//!     POSTRIDER_REPLIES=replies.tsv cargo test --test classify -- --nocapture

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test panics when something is wrong, and shows its figures"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use postrider::policy::{Policy, ReplyContext, Suppression};
use postrider::reply::{Classifier, Origin, Stage};

const SAMPLES: &str = include_str!("samples.tsv");
const RULES: &str = include_str!("../../src/reply/classify/rules.toml");

/// A reply, and the classes that are right.
struct Labelled<'a> {
    columns: [&'a str; 5],
    class: &'a str,
    others: Vec<&'a str>,
}

impl Labelled<'_> {
    fn folded(&self) -> String {
        let [_, _, code, status, text] = self.columns;
        [code, status, text].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

fn labelled(text: &str) -> Vec<Labelled<'_>> {
    let lines = text.lines().filter(|line| !line.starts_with("provider\t") && !line.is_empty());
    let read = |line| {
        let columns: Vec<&str> = str::split(line, '\t').collect();
        let [a, b, c, d, e, class, others] = columns[..] else { panic!("not seven columns: {line}") };
        let others = others.split(',').filter(|class| !class.is_empty()).collect();
        Labelled { columns: [a, b, c, d, e], class, others }
    };
    lines.map(read).collect()
}

/// The file of real replies, if there is one.
fn real_replies() -> Option<String> {
    let named = std::env::var_os("POSTRIDER_REPLIES").map(PathBuf::from);
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data/replies.tsv");
    let path = named.clone().unwrap_or(beside);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if named.is_some() => panic!("{}: {error}", path.display()),
        Err(_) => {
            eprintln!("NOT MEASURED: no real replies here; name their file by POSTRIDER_REPLIES");
            None
        }
    }
}

/// What the example program says: class, category, reason, action, a line each.
fn classified(replies: &[Labelled<'_>]) -> Vec<[String; 4]> {
    let mut input = String::new();
    for reply in replies {
        writeln!(input, "{}", reply.columns.join("\t")).unwrap();
    }
    let mut program = Command::new(program()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = program.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let output = program.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<[String; 4]> = text
        .lines()
        .map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap())
        .collect();
    assert_eq!(lines.len(), replies.len(), "one line for one line");
    lines
}

/// `examples/classify`, which cargo builds with the tests.
fn program() -> PathBuf {
    let mut folder = std::env::current_exe().unwrap();
    folder.pop();
    folder.pop();
    folder.join("examples").join(format!("classify{}", std::env::consts::EXE_SUFFIX))
}

/// Accuracy and macro-F1, with a table of each class.
fn measure(what: &str, replies: &[Labelled<'_>]) -> (f64, f64) {
    #[derive(Default)]
    struct Count {
        right: f64,
        missed: f64,
        wrongly: f64,
    }
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    let found = classified(replies);
    for (reply, [class, ..]) in replies.iter().zip(&found) {
        let count = counts.entry(reply.class).or_default();
        if class == reply.class || reply.others.contains(&class.as_str()) {
            count.right += 1.0;
        } else {
            count.missed += 1.0;
            println!("{} is {}, not {class}: {}", reply.columns[0], reply.class, reply.folded());
            if let Some(other) = replies.iter().map(|reply| reply.class).find(|other| other == class) {
                counts.entry(other).or_default().wrongly += 1.0;
            }
        }
    }
    println!(
        "{what}: {} replies\n{:18}{:>8}{:>11}{:>8}{:>6}",
        replies.len(),
        "class",
        "replies",
        "precision",
        "recall",
        "F1"
    );
    let share = |part: f64, of: f64| if of == 0.0 { 0.0 } else { part / of };
    let (mut right, mut sum) = (0.0, 0.0);
    for (class, Count { right: hits, missed, wrongly }) in &counts {
        let (precision, recall) = (share(*hits, hits + wrongly), share(*hits, hits + missed));
        let f1 = share(2.0 * precision * recall, precision + recall);
        println!("{class:18}{:8}{precision:11.3}{recall:8.3}{f1:6.2}", hits + missed);
        right += hits;
        sum += f1;
    }
    let accuracy = right / replies.len() as f64;
    let macro_f1 = sum / counts.len() as f64;
    println!("accuracy {accuracy:.3}, macro-F1 {macro_f1:.3}");
    (accuracy, macro_f1)
}

#[test]
fn what_replies_tell_of_is_found_out() {
    let (accuracy, macro_f1) = measure("samples", &labelled(SAMPLES));
    assert!(accuracy >= 0.98 && macro_f1 >= 0.98, "{accuracy} {macro_f1}");
    if let Some(text) = real_replies() {
        let (accuracy, macro_f1) = measure("real replies", &labelled(&text));
        assert!(accuracy >= 0.9 && macro_f1 >= 0.85, "{accuracy} {macro_f1}");
    }
}

/// An address is not given up for the sender's own matters: neither by default nor by the recommended policy.
#[test]
fn nobody_is_suppressed_for_what_is_the_senders_matter() {
    let real = real_replies().unwrap_or_default();
    for reply in labelled(SAMPLES).into_iter().chain(labelled(&real)) {
        let never = ["blocklist", "rate_limit", "policy_auth", "spam_content", "transient_system"];
        if !never.contains(&reply.class) {
            continue;
        }
        for policy in [Policy::new(), Policy::recommended()] {
            for stage in [Stage::Connect, Stage::Ehlo, Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Dot] {
                let mut context = ReplyContext::new("a.example", "a.example", stage)
                    .with_attempts(100)
                    .with_age(std::time::Duration::from_secs(100 * 3600));
                for provider in [None, Some(reply.columns[0])] {
                    context.provider = provider;
                    let (kind, verdict) = policy.judge_reply(&reply.folded(), &context, |_, _| true);
                    assert_ne!(
                        verdict.suppress,
                        Suppression::Permanent,
                        "{} by {}",
                        reply.folded(),
                        kind.rule
                    );
                }
            }
        }
    }
}

/// A rule that fewer than two replies speak for says where it is from.
#[test]
fn each_rule_has_replies_or_a_source() {
    let rules: toml::Table = RULES.parse().unwrap();
    let sourced: BTreeSet<&str> = rules["classification-rule"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| {
            rule.get("source").is_some_and(|source| source.as_str().is_some_and(|text| text.len() > 5))
        })
        .map(|rule| rule["name"].as_str().unwrap())
        .collect();
    let Some(real) = real_replies() else { return };
    let classifier = Classifier::default();
    let mut met: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for reply in labelled(&real) {
        let origin = Origin::at(Stage::Rcpt).with_provider(reply.columns[0]);
        let found = classifier.classify(&reply.folded(), origin);
        met.entry(found.rule.to_string()).or_default().insert(reply.columns[4].to_owned());
    }
    let unfounded: Vec<_> = classifier
        .rules()
        .map(|(name, _)| &**name)
        .filter(|name| met.get(*name).is_none_or(|replies| replies.len() < 2) && !sourced.contains(name))
        .collect();
    assert_eq!(unfounded, Vec::<&str>::new(), "write `source` for these");
}
