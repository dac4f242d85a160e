//! The mailer's own records through reply rules, by the example `replay`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::example::executable;
use crate::process::Mailer;
use crate::recorder::{GREETING, Recorder};
use crate::site::Site;
use crate::{submission, text};

fn replay(args: &[&str], policy: &Path, log: &Path) -> Output {
    Command::new(executable("replay"))
        .arg("--policy")
        .arg(policy)
        .args(args)
        .stdin(std::fs::File::open(log).unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap()
}

/// The changes, and nothing to complain about.
fn changes(policy: &Path, log: &Path) -> Vec<Value> {
    let output = replay(&["--jsonl"], policy, log);
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr)), (Some(0), "".into()));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What the engine decided by a policy is what the same policy decides in a replay.
#[test]
fn the_same_rules_change_nothing_and_others_do() {
    let Some(mut site) = Site::new() else { return };
    let script = |line: &str| {
        let reply = match line {
            _ if line.starts_with("RCPT TO:<full@") => "452-4.2.2 The mailbox is\r\n452 4.2.2 over quota",
            _ if line.starts_with("RCPT TO:<busy@") => "450 4.2.1 busy",
            _ if line.starts_with("RCPT TO:<gone@") => "550 5.1.1 gone",
            _ if line.starts_with("RCPT TO:<moved@") => "550 moved away",
            "." => "451 4.7.1 looks like spam",
            _ => return None,
        };
        Some(reply.to_owned())
    };
    let _refuses = Recorder::scripted(site.smtp(1), script);
    let _greets_badly =
        Recorder::scripted(site.smtp(2), |line| (line == GREETING).then(|| "421 4.7.0 too many".to_owned()));
    let _takes = Recorder::start(site.smtp(3));
    site.serve_dns(
        "a MX 10 mx.a\nmx.a A @1\nb MX 10 mx.b\nmx.b A @2\nc MX 10 mx.c\nmx.c A @3\nd MX 10 mx.a\n",
    );
    let rules = "[[reply-rule]]\nname = \"quota\"\nmatch = '^452 4\\.2\\.2 .*over quota'\nactions = [\"bounce-rcpt\"]\nmx = [\"mx.a.example\"]\n\
         [[reply-rule]]\nname = \"busy\"\nmatch = 'busy'\nactions = [\"bounce-rcpt\", \"mode=backoff\"]\nafter = \"3/1h\"\n\
         [[reply-rule]]\nname = \"spam\"\nmatch = 'spam'\nactions = [\"bounce-rcpt\"]\n\
         [[reply-rule]]\nname = \"moved\"\nmatch = 'moved away'\nactions = [\"bounce-queue\"]\ndomain = [\"d.example\"]\n\
         [[reply-rule]]\nname = \"keep\"\nmatch = '^550 5\\.1\\.1'\nactions = [\"retry-rcpt\"]\n";
    let settings = "[domain.\"*\"]\nretry-after = \"1s\"\nbackoff-retry-after = [\"1s\"]\nbackoff-max-msg-rate = \"unlimited\"\n\
         bounce-after = \"6s\"\n[domain.\"b.example\"]\nmax-attempts = 3\n";
    let policy = site.policy(&format!("{settings}{rules}"));

    let mut mailer = Mailer::start(&policy, &["--until-idle"]);
    let two = json!({ "ref": "two", "from": "s@sender.example", "to": ["x@a.example", "y@a.example"], "data": "1\r\n" });
    mailer.feed([two.to_string()]);
    for to in ["full@a", "busy@a", "busy@a", "gone@a", "z@b", "z@c", "moved@d", "w@d"] {
        mailer.feed([submission(to, &format!("{to}.example"), "1\r\n")]);
    }
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let log = site.path("accounting.jsonl");
    let lines: Vec<_> = ended.records.iter().map(ToString::to_string).collect();
    std::fs::write(&log, lines.join("\n")).unwrap();
    assert!(ended.count("deferred") > 3 && ended.count("queue-deferred") > 0, "{:#?}", ended.records);

    assert_eq!(changes(&policy, &log), [] as [Value; 0], "{:#?}", ended.records);

    // Without rules: what they bounced would be retried, what they kept would bounce.
    let none = site.path("none.toml");
    std::fs::write(&none, settings).unwrap();
    let all = changes(&none, &log);
    let of = |recipient: &str| -> Vec<_> {
        let own = all.iter().filter(|change| text(change, "recipient") == format!("{recipient}.example"));
        own.map(|change| (text(change, "change"), text(change, "before_rule"))).collect()
    };
    assert_eq!(of("full@a"), [("retries", "quota")]);
    assert_eq!(of("x@a"), [("retries", "spam")]);
    assert_eq!(of("gone@a").first(), Some(&("bounces", "keep")));
    assert_eq!(of("z@c"), []);
    assert!(of("busy@a").contains(&("retries", "busy")), "{all:#?}");

    let summary = replay(&["--against", policy.to_str().unwrap(), "--show", "1"], &none, &log);
    assert_eq!(summary.status.code(), Some(0));
    let summary = String::from_utf8(summary.stdout).unwrap();
    assert!(summary.contains("would be retried, not bounced: "), "{summary}");

    std::fs::write(&none, "[[reply-rule]]\nname = \"x\"\nmatch = \"(\"\nactions = \"bounce-rcpt\"").unwrap();
    let refused = replay(&[], &none, &log);
    let complaint = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(complaint.contains("none.toml: line 3: reply-rule.x.match: "), "{complaint}");
}
