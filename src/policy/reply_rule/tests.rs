use super::*;
use proptest::prelude::*;

fn actions(texts: &[&str]) -> Result<Vec<Action>, ActionError> {
    let mut words = Vec::new();
    for text in texts {
        words.extend(parse_words(text)?);
    }
    let actions = join(words)?;
    action::check(&actions)?;
    Ok(actions)
}

#[test]
fn every_action_is_read() {
    let hour = Duration::from_secs(3600);
    let minutes = Duration::from_secs(600);
    let rate = "100/h".parse().unwrap();
    for (texts, want) in [
        (&["bounce-rcpt"][..], vec![Action::BounceRecipient]),
        (&["bounce-queue"], vec![Action::BounceQueue]),
        (&["skip-mx"], vec![Action::SkipMx]),
        (&["mode=backoff"], vec![Action::EnterBackoff]),
        (&["mode=normal"], vec![Action::LeaveBackoff]),
        (&["defer-queue"], vec![Action::DeferQueue]),
        (&["disable-source-ip"], vec![Action::DisableSource { reenable_after: None }]),
        (
            &["reenable-after=1h", "disable-source-ip"],
            vec![Action::DisableSource { reenable_after: Some(hour) }],
        ),
        (
            &["disable-source-ip reenable-after=1h"],
            vec![Action::DisableSource { reenable_after: Some(hour) }],
        ),
        (&["retry-rcpt,retry-after=1h"], vec![Action::RetryRecipient, Action::RetryAfter(hour)]),
        (&["limit-connections=2 for=10m"], vec![Action::LimitConnections { limit: 2, period: minutes }]),
        (&["limit-rate=100/h for=10m"], vec![Action::LimitRate { rate, period: minutes }]),
    ] {
        assert_eq!(actions(texts), Ok(want), "{texts:?}");
    }
}

#[test]
fn wrong_actions_say_what_is_wrong() {
    for (texts, message) in [
        (&[][..], "an empty list"),
        (&[" "], "an empty list"),
        (&["bounce-recipient"], "`bounce-recipient` is unknown"),
        (&["bounce-rcpt=1"], "write bounce-rcpt alone"),
        (&["mode=fast"], "write mode=backoff or mode=normal"),
        (&["mode"], "write mode=backoff or mode=normal"),
        (&["mode=backoff", "mode=normal"], "both `mode=backoff` and `mode=normal`"),
        (&["skip-mx", "bounce-queue"], "`skip-mx`, which holds mail, and `bounce-queue`"),
        (&["reenable-after=1h"], "without `disable-source-ip`"),
        (&["disable-source-ip", "reenable-after=1h", "reenable-after=2h"], "`reenable-after` twice"),
        (&["skip-mx", "skip-mx"], "`skip-mx` twice"),
        (&["bounce-rcpt", "retry-rcpt"], "both bounces and retries"),
        (&["retry-after=soon"], "like retry-after=1h"),
        (&["retry-after=0s"], "out of range (`retry-after`)"),
        (&["limit-connections=2"], "like limit-connections=2 for=10m"),
        (&["limit-connections=0 for=10m"], "out of range (`limit-connections`)"),
        (&["limit-rate=2 for=10m"], "like limit-rate=100/h for=10m"),
        (&["for=10m"], "`for=10m` stands alone"),
    ] {
        let error = actions(texts).unwrap_err().to_string();
        assert!(error.contains(message), "{texts:?}: {error}");
    }
}

#[test]
fn patterns_find_the_seeds_reply() {
    let rule =
        ReplyRule::new("quota", r"^452 4\.2\.2 .*(over ?quota|out of storage)", [Action::BounceRecipient])
            .unwrap();
    assert!(rule.matches("452 4.2.2 The email account that you tried to reach is OVER quota"));
    assert!(!rule.matches("452 4.2.2 Too many recipients"));
    assert_eq!(
        [Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Dot]
            .map(|s| rule.applies_at(&Action::BounceRecipient, s)),
        [false, true, true, true]
    );
    assert!(rule.applies_at(&Action::EnterBackoff, Stage::Connect));
    let mail = Conditions { stages: vec![Stage::Mail], ..Conditions::default() };
    let rule = rule.with_conditions(mail).unwrap();
    assert!(rule.applies_at(&Action::BounceRecipient, Stage::Mail));
    assert!(!rule.applies_at(&Action::EnterBackoff, Stage::Connect));
}

#[test]
fn bad_patterns_name_their_column() {
    for (pattern, message) in [
        ("abc(def", "not a regular expression at column 4: unclosed group"),
        ("a{2", "not a regular expression at column 2: "),
        (r"(a)\1", "not a regular expression at column 4: backreferences are not supported"),
        (r"\w{1000}{1000}", "it is too large once compiled"),
    ] {
        let error = ReplyRule::new("r", pattern, [Action::SkipMx]).unwrap_err().to_string();
        assert!(error.contains(message), "{pattern}: {error}");
        assert!(!error.contains('\n'));
    }
}

#[test]
fn conditions_out_of_range_are_refused() {
    for conditions in [
        Conditions { min_attempts: Some(0), ..Conditions::default() },
        Conditions { min_age: Some(Duration::ZERO), ..Conditions::default() },
        Conditions { stages: vec![Stage::Dns], ..Conditions::default() },
    ] {
        let rule = ReplyRule::new("r", "x", [Action::SkipMx]).unwrap();
        assert!(rule.with_conditions(conditions).is_err());
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>(), close in "[a-z0-9=/, -]{0,40}", pattern in r"[a-z0-9\\(){}\[\]|*+?^$.\n]{0,20}") {
        let _ = actions(&[&text, &close]);
        if let Err(error) = compile(&pattern) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
