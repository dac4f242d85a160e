use super::*;
use crate::policy::{Policy, PolicyErrorKind, ReplyContext, Suppression};

fn read(reply: &str) -> (Reason, Confidence) {
    let found = Classifier::default().classify(reply, Origin::at(Stage::Rcpt));
    (found.reason, found.confidence)
}

#[test]
fn the_rules_that_are_built_in_can_be_read() {
    let rules = crate::policy::read_classification(RULES).unwrap();
    assert_eq!(rules.rules.len(), Classifier::default().rules().count());
    for rule in &rules.rules {
        assert!(!rule.off, "{}", rule.name);
        for provider in &rule.providers {
            let is_known = rules.providers.iter().any(|(name, _)| name == provider);
            assert!(is_known, "{} names {provider}, which has no hosts", rule.name);
        }
    }
}

/// Issue and design: provider's words, words, statuses, weak statuses, codes.
#[test]
fn evidence_goes_by_its_worth() {
    let rank: Vec<_> = Classifier::default().0.rules.iter().map(ClassificationRule::confidence).collect();
    assert!(rank.is_sorted_by(|a, b| a >= b));
    let classifier = Classifier::default();
    let barracuda = |origin: Origin<'_>| {
        let found = classifier.classify("550 5.1.1 Blocked", origin);
        (found.reason, found.confidence)
    };
    let at = Origin::at(Stage::Rcpt);
    assert_eq!(
        barracuda(at.with_host("d1.ess.barracudanetworks.com")),
        (Reason::IpBlocklist, Confidence::ProviderText)
    );
    assert_eq!(barracuda(at.with_provider("barracuda")), (Reason::IpBlocklist, Confidence::ProviderText));
    assert_eq!(barracuda(at.with_host("mx.example.com")).1, Confidence::Text);
    for (reply, expected) in [
        ("550 5.7.1 The mailbox is full", (Reason::MailboxFull, Confidence::Text)),
        ("550 5.1.1 rejected by our spam filter", (Reason::SpamContent, Confidence::Text)),
        ("550 5.2.2 xyz", (Reason::MailboxFull, Confidence::Status)),
        ("550 5.1.1 xyz", (Reason::RecipientRejected, Confidence::WeakStatus)),
        ("550 5.7.1 xyz", (Reason::Policy, Confidence::WeakStatus)),
        ("552 xyz", (Reason::MailboxFull, Confidence::Code)),
        ("450 xyz", (Reason::TryLater, Confidence::Code)),
        ("550", (Reason::Policy, Confidence::Code)),
        // Among the words, since the code has none, or one that says nothing.
        ("550 xyz (#5.2.2)", (Reason::MailboxFull, Confidence::Status)),
        ("550 5.0.0 xyz (#5.2.2)", (Reason::MailboxFull, Confidence::Status)),
        ("550 5.7.10 xyz (#5.2.2)", (Reason::TlsRequired, Confidence::Status)),
    ] {
        assert_eq!(read(reply), expected, "{reply}");
    }
    let nothing = Classifier::default().classify("what is this", Origin::default());
    assert_eq!((nothing.reason, &*nothing.rule), (Reason::Unspecified, "none"));
}

#[test]
fn the_stage_counts() {
    let classifier = Classifier::default();
    let reason = |reply, stage| classifier.classify(reply, Origin::at(stage)).reason;
    assert_eq!(reason("550 no such thing: does not exist", Stage::Mail), Reason::SenderRejected);
    assert_eq!(reason("550 no such thing: does not exist", Stage::Rcpt), Reason::RecipientRejected);
    assert_eq!(reason("550 go away, refused", Stage::Connect), Reason::IpBlocklist);
    assert_eq!(reason("550 go away, refused", Stage::Dot), Reason::Policy);
}

#[test]
fn causes_go_before_what_they_lead_to() {
    for (reply, expected) in [
        ("421 4.7.26 Your mail is rate limited because SPF did not pass", Reason::Spf),
        ("451 4.7.1 rate limited due to poor reputation", Reason::Reputation),
        ("450 4.7.1 you are greylisted, too many messages", Reason::Greylisted),
        ("550 5.7.1 daily relay quota exceeded", Reason::TooManyMessages),
        ("552 5.2.2 mailbox quota exceeded", Reason::MailboxFull),
        ("552 5.3.4 message size exceeds the fixed maximum", Reason::TooLarge),
        ("550 5.1.1 Sender address rejected: Domain not found", Reason::SenderDomain),
        ("450 4.1.2 Recipient address rejected: Domain not found", Reason::DomainUnknown),
        ("550 5.1.1 Recipient address rejected: User unknown in local table", Reason::UserUnknown),
        ("550 Account suspended", Reason::Suspended),
        ("550 Account closed", Reason::Disabled),
        ("554 5.7.1 Client host [192.0.2.1] blocked using zen.spamhaus.org", Reason::IpBlocklist),
        ("554 5.7.1 a link in your message is listed by SURBL", Reason::UrlBlocklist),
        ("550 Le compte du destinataire est fermé", Reason::Disabled),
        ("550 Empfänger unbekannt", Reason::UserUnknown),
        ("550 El usuario no existe", Reason::UserUnknown),
        ("550 ящик переполнен", Reason::MailboxFull),
        ("550 ユーザーが存在しません", Reason::UserUnknown),
    ] {
        assert_eq!(read(reply).0, expected, "{reply}");
    }
}

/// What local parts and names say is not what the server says.
#[test]
fn an_address_is_no_evidence() {
    for address in ["spam@example.com", "mailbox.full@example.com", "virus-unknown@spam.example.com"] {
        assert_eq!(read(&format!("550 5.7.10 <{address}>: xyz")).0, Reason::TlsRequired, "{address}");
    }
}

#[test]
fn a_policy_adds_replaces_and_switches_off() {
    let text = r#"
        [[provider]]
        name = "house"
        mx = ["*.house.example"]
        [[classification-rule]]
        name = "house-code"
        provider = "house"
        match = "hx17"
        reason = "mailbox-full"
        [[classification-rule]]
        name = "mailbox-full"
        match = "bin ist voll"
        reason = "mailbox-full"
        [[classification-rule]]
        name = "code-quota"
        match = []
        reason = "mailbox-full"
        [[classification-rule]]
        name = "status-of-ours"
        status = "5.7.77"
        code = ["550", "551"]
        reason = "virus"
    "#;
    let policy = Policy::from_toml(text).unwrap();
    let classifier = policy.classifier();
    let of =
        |reply: &str| classifier.classify(reply, Origin::default().with_host("mx1.house.example")).reason;
    assert_eq!(of("550 hx17 spam"), Reason::MailboxFull, "one's own go first");
    assert_ne!(classifier.classify("550 hx17 spam", Origin::default()).reason, Reason::MailboxFull);
    assert_eq!(of("550 bin ist voll"), Reason::MailboxFull);
    assert_ne!(of("550 your mailbox is full"), Reason::MailboxFull, "replaced");
    assert_ne!(of("552 xyz"), Reason::MailboxFull, "switched off");
    assert_eq!(of("550 5.7.77 xyz"), Reason::Virus);
    assert_ne!(of("554 5.7.77 xyz"), Reason::Virus);
    assert_eq!(of("550 5.7.77 spam"), Reason::SpamContent, "words go before statuses, whosever they are");
    assert_ne!(*classifier, Classifier::default());
    assert_eq!(*Policy::new().classifier(), Classifier::default());
    let in_rust = Policy::new().with_classification_rules(text).unwrap();
    assert_eq!(in_rust.classifier(), classifier);
    let unknown = text.replace("provider = \"house\"", "provider = \"nobody\"");
    let error = Policy::new().with_classification_rules(&unknown).unwrap_err().to_string();
    assert!(error.contains("names the provider \"nobody\""), "{error}");
}

#[test]
fn mistakes_are_named() {
    let rule = |line: &str| format!("[[classification-rule]]\nname = \"x\"\nreason = \"spf\"\n{line}\n");
    for (text, key, problem) in [
        (rule("match = \"a*b\""), "classification-rule.x.match", "`*` in the middle"),
        (rule("match = \"(a\""), "classification-rule.x.match", "parenthesis"),
        (rule("code = \"250\""), "classification-rule.x.code", "not a reply code"),
        (rule("status = \"2.2\""), "classification-rule.x.status", "not a status"),
        (rule("stage = \"queue\""), "classification-rule.x.stage", "not a stage"),
        (
            rule("provider = \"nobody\"\nmatch = \"a\""),
            "classification-rule",
            "names the provider \"nobody\"",
        ),
        (rule("match = \"over-quota\""), "classification-rule.x.match", "punctuation"),
        (rule("weak = 1"), "classification-rule.x.weak", "yes or no"),
        (rule(""), "classification-rule.x", "no condition"),
        (rule("colour = 1"), "classification-rule.x.colour", ""),
        (
            "[[classification-rule]]\nname = \"x\"\nreason = \"bad\"\nmatch = \"a\"".to_owned(),
            "classification-rule.x.reason",
            "not a reason",
        ),
        (
            rule("match = \"a\"") + &rule("match = \"b\""),
            "classification-rule.x",
            "second classification rule",
        ),
        ("[[provider]]\nname = \"x\"\nmx = [\"a*\"]".to_owned(), "provider.x.mx", "not a name or wildcard"),
        (
            "[[provider]]\nname = \"x\"\nmx = \"a.example\"\n[[provider]]\nname = \"x\"\nmx = \"b.example\""
                .to_owned(),
            "provider.x",
            "second provider",
        ),
    ] {
        let error = Policy::from_toml(&text).unwrap_err();
        let message = error.to_string();
        assert!(error.key().starts_with(key) && message.contains(problem), "{message}");
        assert!(error.line().is_some() && error.kind() != PolicyErrorKind::Syntax, "{message}");
    }
}

#[test]
fn no_reply_is_too_much() {
    let classifier = Classifier::default();
    let mut random = fastrand::Rng::with_seed(7);
    let alphabet: Vec<char> = "ab 5.1@#[]<>:;-'eé用\u{0}*(|".chars().collect();
    for _ in 0..2000 {
        let length = random.usize(..400);
        let text: String = (0..length).filter_map(|_| random.choice(&alphabet)).collect();
        let _ = classifier.classify(&format!("550 {text}"), Origin::at(Stage::Dot));
    }
    let _ = classifier.classify(&"550 mailbox ".repeat(100_000), Origin::default());
}

/// What is said of the sender, the host, or for a while, is no reason never to write to the recipient again.
#[test]
fn addresses_are_given_up_for_their_own_fault_alone() {
    let suppression = |reply: &str, stage| {
        let context = ReplyContext::new("a.example", "a.example", stage);
        Policy::new().judge_reply(reply, &context, |_, _| true).1.suppress
    };
    for reply in [
        "550 Sender's mailbox does not exist",
        "550 5.1.7 The sender's address does not exist",
        "550 sender user unknown",
        "550 <a@x.example>: Sender is unknown",
        "550 Envelope-From user not found",
        "550 return path address unknown",
        "550 reply-to address invalid",
        "550 The account you are sending from does not exist",
        "550 Your email address does not exist on our system, sender verification",
        "550 5.1.7 Invalid address",
        "550 5.1.8 Invalid address <a@x.example>",
        "554 5.6.0 Bad email address in header From",
        "550 From: header address no such user",
        "550 5.1.1 Your host is not known here; mail refused",
        "550 your mail server's address 192.0.2.1 does not exist in our whitelist",
        "550 Invalid address 192.0.2.1: listed",
        "550 server name not found for 192.0.2.1",
        "550 Host name does not exist for your address",
        "550 Your DNS name is wrong",
        "554 5.7.1 certificate name not valid",
        "550 5.7.129 RESOLVER.RST.RestrictedToRecipientsPermission; not authorized to this recipient because the sender isn't on the recipient's allowed senders list",
        "550 Recipient does not accept mail from you",
        "550 User not allowed to send mail to this list",
        "550 Address not allowed",
        "550 Absender unbekannt",
        "550 Absenderadresse existiert nicht",
        "550 Client ist unbekannt",
        "550 Empfänger nimmt von Ihnen nicht an",
        "550 Utente non autorizzato a inviare",
        "550 Dominio del mittente non esiste",
        "550 Remitente inexistente",
        "550 Usted no existe en la lista blanca",
        "550 Адрес отправителя не существует",
        "550 HELO nie istnieje",
        "550 发送用户未认证",
        "550 收件人拒收",
        "550 宛先が多すぎます",
        "550 5.2.1 Mailbox temporarily disabled while migration in progress",
        "550 This user has blocked you",
        "550 5.3.0 internal error: user lookup failed; mailbox not found in database due to timeout",
        "550 user account not available at this time, backend down",
        "550 Requested action not taken: mailbox unavailable Reject due to policy restrictions.",
    ] {
        assert_ne!(suppression(reply, Stage::Rcpt), Suppression::Permanent, "{reply}");
    }
    for reply in [
        "550 5.1.1 <x@y.example>: Recipient address rejected: User unknown in virtual mailbox table",
        "550 No such user here",
        "550 mx1.dkim.example: no such user here",
        "550 5.1.1 No such user (mailserver greylist.example)",
        "550 5.1.1 User unknown. See http://mail.example/limits per hour",
        "550 5.2.1 The account is disabled",
    ] {
        assert_eq!(suppression(reply, Stage::Rcpt), Suppression::Permanent, "{reply}");
        // Of the content of several, or of the sender.
        assert_eq!(suppression(reply, Stage::Dot), Suppression::Temporary, "{reply}");
        assert_eq!(suppression(reply, Stage::Mail), Suppression::Never, "{reply}");
    }
    assert_eq!(
        suppression("550 5.7.1 User unknown", Stage::Rcpt),
        Suppression::Temporary,
        "the status is of policy"
    );
    assert_eq!(suppression("450 4.1.1 User unknown", Stage::Rcpt), Suppression::Never, "it does not bounce");
}
