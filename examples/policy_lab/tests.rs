//! Tests of the lab itself.

use super::*;
use crate::lab::{Run, Servers, Tally};
use crate::traffic::Stream;

const HOUR: Duration = Duration::from_secs(3600);
const TUNED: &str = r#"
    [[rollup]]
    queue = "google.rollup"
    mx = ["*.google.com"]
    [[reply-rule]]
    name = "over-quota"
    match = '^452 4\.2\.2 '
    actions = ["bounce-rcpt"]
    [domain."*"]
    bounce-upon-no-mx = "1h"
"#;

fn parse(args: &str) -> Result<Options, End> {
    Options::parse(args.split_whitespace().map(str::to_owned))
}

#[test]
fn arguments_are_read() {
    let options = parse("--policy a.toml --policy b.toml --days 36h --messages 50 --seed 7").ok().unwrap();
    assert_eq!(options.policies, [PathBuf::from("a.toml"), "b.toml".into()]);
    assert_eq!((options.days, options.messages, options.seed), (36 * HOUR, 50, 7));
    assert_eq!(parse("--policy a --days 1.5").ok().unwrap().days, 36 * HOUR);
    for args in [
        "",
        "--policy",
        "--policy a --days x",
        "--policy a --days 0",
        "--policy a --days -1",
        "--policy a --days 61",
        "--policy a --messages -3",
        "--policy a b",
        "--policy a --policy a --policy a --policy a --policy a --policy a --policy a",
    ] {
        assert!(matches!(parse(args), Err(End(2, _))), "{args}");
    }
}

#[test]
fn a_mistake_in_a_policy_is_named_by_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.toml");
    std::fs::write(&file, "[domain.\"*\"]\nretry-after = [\"5x\"]\n").unwrap();
    let End(code, message) = read_policy(&file, None).unwrap_err();
    assert_eq!(code, 2);
    assert!(message.starts_with(&format!("{}: line 2: ", file.display())), "{message}");
    assert!(message.contains("retry-after"), "{message}");
    std::fs::write(&file, TUNED).unwrap();
    assert!(matches!(read_policy(&file, Some("bulk")), Err(End(2, _))), "a source it does not have");
}

#[test]
fn policies_are_told_apart_by_name() {
    let names = |paths: &[&str]| names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
    assert_eq!(names(&["etc/new.toml", "old.toml"]), ["new", "old"]);
    assert_eq!(names(&["a/mailer.toml", "b/mailer.toml"]), ["a/mailer.toml", "b/mailer.toml"]);
    assert_eq!(names(&["a.toml", "b.toml", "a.toml"]), ["a.toml", "b.toml", "a.toml (2)"]);
    assert_eq!(names(&["a", "a", "a (2)", "a"]), ["a", "a (2)", "a (2) (2)", "a (3)"]);
    assert_eq!(names(&["it's\u{1}a\n\u{fffe}.toml"]), [r"it's\u{1}a\n\u{fffe}"]);
    assert_eq!(names(&["x/a\t.toml", "y/a\t.toml"]), [r"x/a\t.toml", r"y/a\t.toml"]);
}

#[test]
fn the_chart_spares_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let check = |svg: PathBuf| {
        let options = parse("--policy -").ok().unwrap();
        check_svg(&Options { policies: vec![path("a.toml"), path("b.toml")], svg, ..options })
    };
    std::fs::write(path("a.toml"), "").unwrap();
    std::fs::write(path("b.toml"), TUNED).unwrap();
    std::fs::create_dir(path("c")).unwrap();
    for svg in ["b.toml", "c/../b.toml"] {
        assert!(matches!(check(path(svg)), Err(End(2, _))), "{svg}");
    }
    assert_eq!(std::fs::read_to_string(path("b.toml")).unwrap(), TUNED);

    assert!(check(path("new.svg")).is_ok() && !path("new.svg").exists(), "there is nothing yet");
    std::fs::write(path("old.svg"), "old").unwrap();
    assert!(check(path("old.svg")).is_ok());
    assert_eq!(std::fs::read_to_string(path("old.svg")).unwrap(), "old", "it is not drawn yet");
    for svg in ["c", "none/x.svg"] {
        assert!(matches!(check(path(svg)), Err(End(1, _))), "{svg}");
    }
}

#[test]
fn the_mail_is_spread_as_said() {
    let providers = providers::all();
    assert_eq!(providers.iter().map(|provider| provider.share).sum::<u32>(), 100);
    let mails = traffic::mails(1, 10_000, 3 * DAY, &providers);
    assert_eq!(mails, traffic::mails(1, 10_000, 3 * DAY, &providers));
    assert_ne!(mails, traffic::mails(2, 10_000, 3 * DAY, &providers));
    assert!(mails.is_sorted_by_key(|mail| mail.at));
    let newsletter = mails.iter().filter(|mail| mail.stream == Stream::Newsletter);
    assert!(newsletter.clone().all(|mail| mail.at < HOUR));
    assert_eq!(newsletter.count(), 7_500);
    assert!(mails.last().unwrap().at > 23 * HOUR);
    let google = mails.iter().filter(|mail| mail.provider == 0);
    let gmail = google.clone().filter(|mail| mail.recipient.ends_with("@gmail.com"));
    assert!((3_450..3_750).contains(&google.count()));
    assert!((2_550..2_850).contains(&gmail.count()));
}

#[test]
fn the_table_is_readable() {
    let second = Duration::from_secs(1);
    let all = Tally {
        mail: 1_004,
        bounced: 1,
        deferred: 12_345,
        ages: (1..=1_000).map(|n| n * second).collect(),
        servers: Some(Servers { connections: 70, refused: 3 }),
    };
    let none = Tally { mail: 2, ..Tally::default() };
    let stream = Tally { servers: None, ..all.clone() };
    let run = Run {
        providers: vec![all.clone(), none.clone()],
        newsletter: stream,
        transactional: none,
        total: all,
        attempts: 1,
        waits: [(1, "b.example/default: paused".to_owned())].into(),
    };
    let providers: Vec<_> =
        providers::all().into_iter().filter(|it| ["google", "nowhere"].contains(&it.name)).collect();
    let runs = [("new".to_owned(), run)];
    let want = "
                 mail  delivered  deferred  bounced  queued  median    99 %   421s  conns
google          1,004      1,000    12,345        1       3   8m20s  16m30s      3     70
nowhere             2          0         0        0       2       -       -      -      -
newsletter      1,004      1,000    12,345        1       3   8m20s  16m30s      -      -
transactional       2          0         0        0       2       -       -      -      -
all             1,004      1,000    12,345        1       3   8m20s  16m30s      3     70
";
    assert_eq!(format!("\n{}", table::table(&providers, &runs)), want);
    let waits = table::waits(&providers, &runs);
    assert_eq!(waits, "  nowhere: 2 queued, most of it in b.example/default: paused\n");
}

#[test]
fn two_policies_on_the_same_mail() {
    let options = parse("--policy - --days 6h --messages 300").ok().unwrap();
    let tried = || {
        let policies = [("plain", ""), ("<tuned>", TUNED)];
        let policies =
            policies.map(|(name, text)| (name.to_owned(), Policy::from_toml(text).unwrap())).into_iter();
        try_out(&options, policies).ok().unwrap()
    };
    let (text, drawn) = tried();
    assert!(text.lines().all(|line| line.len() <= 100 || line.starts_with("    ")), "{text}");
    let row = |policy: &str| {
        let at = text.lines().position(|line| line.starts_with("nowhere")).unwrap();
        let mut rows =
            text.lines().skip(at).take(2).map(|line| line.split_whitespace().rev().collect::<Vec<_>>());
        rows.find(|row| row.contains(&policy)).unwrap().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    // From the right: connections, 421s, 99 %, median, queued, bounced.
    assert_eq!(row("plain")[5], "0", "{text}");
    assert_ne!(row("<tuned>")[5], "0", "mistyped domains bounce after an hour: {text}");
    assert!(text.contains("nowhere, plain: "), "{text}");

    assert!(drawn.starts_with("<svg ") && drawn.ends_with("</svg>\n"));
    assert!(drawn.contains("&lt;tuned&gt;: ") && !drawn.contains("NaN"));
    assert_eq!(drawn.matches("<text ").count(), drawn.matches("</text>").count());
    let curves = drawn.lines().filter(|line| line.contains("stroke-linejoin")).count();
    assert_eq!(curves, 2 * 10, "the legend, all mail, seven providers, transactional mail");

    assert_eq!((text, drawn), tried(), "the same again");
}
