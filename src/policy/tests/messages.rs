//! Every kind of mistake, and the message it gives.

use super::*;

#[test]
fn messages_name_line_key_value_and_what_is_right() {
    #[rustfmt::skip]
    let cases: &[(&str, &str)] = &[
        (
            "[domain.\"*\"]\nretry-after = [\n  \"5m\",\n  \"5x\",\n]",
            r#"line 4: domain."*".retry-after: "5x" is not a duration: write it like "90s", "5m" or "4d12h""#,
        ),
        (
            "[domain.\"*\"]\nretry-affter = \"5m\"",
            r#"line 2: domain."*".retry-affter: is not a key: did you mean `retry-after`?"#,
        ),
        (
            "[domain.gmail.com]\nmax-smtp-out = 1",
            r#"line 1: domain.gmail.com: is not a key: a domain goes in quotes, like [domain."example.com"]"#,
        ),
        ("[domian.\"*\"]", "line 1: domian: is not a key: did you mean `domain`?"),
        (
            "[colours]",
            "line 1: colours: is not a section: the sections are engine, storage, dns, smtp, policy, source, \
                       pool, rollup, ip-connection-limit, mx-connection-limit, reply-rule, provider, classification-rule, domain",
        ),
        ("[storage]\nfolder = \"x\"", "line 2: storage.folder: is not a key of storage: its keys are path"),
        (
            "[engine]\ntotal-max-smtp-out = 3",
            "line 2: engine.total-max-smtp-out: is not a key here: it is called `max-connections` in [engine]",
        ),
        (
            "[engine]\nmax-smtp-out = 3",
            "line 2: engine.max-smtp-out: is a setting of domains: put it under [domain.\"*\"]",
        ),
        (
            "[engine]\nmax-connections = 0",
            "line 2: engine.max-connections: 0 is zero: write a whole number of 1 or more",
        ),
        (
            "[engine]\nhostname = \"a b\"",
            "line 2: engine.hostname: \"a b\" is not a host name: write it like \"mta.example.org\"",
        ),
        (
            "[engine]\nhostname = 5",
            "line 2: engine.hostname: 5 is not a host name: write it like \"mta.example.org\"",
        ),
        ("engine = 5", "line 1: engine: 5 is not a table: write it as [engine]"),
        ("[storage]\npath = \"\"", "line 2: storage.path: \"\" is not a folder: write a path like \"spool\""),
        (
            "[dns]\nnameservers = []",
            "line 2: dns.nameservers: [] is an empty list: name a server, or leave the key out to use the system's",
        ),
        (
            "[dns]\nnameservers = [\"127.0.0.1\",\n\"ns.example\"]",
            "line 3: dns.nameservers: \"ns.example\" is not a name server: write it like \"192.0.2.1\", \"192.0.2.1:5353\" or \"[2001:db8::1]:53\"",
        ),
        ("[smtp]\nport = 0", "line 2: smtp.port: 0 is not a port: write a whole number from 1 to 65535"),
        (
            "[smtp]\nport = 65536",
            "line 2: smtp.port: 65536 is not a port: write a whole number from 1 to 65535",
        ),
        (
            "[smtp]\nmail-timeout = \"2h\"",
            "line 2: smtp.mail-timeout: \"2h\" is too long: write \"1h\" at most",
        ),
        (
            "[smtp]\ndot-timeout = \"0s\"",
            "line 2: smtp.dot-timeout: \"0s\" is no time at all: write a duration like \"5m\"",
        ),
        (
            "[smtp]\ngreeting-timeout = \"1m\"\nsmtp-greeting-timeout = \"2m\"",
            "line 3: smtp.smtp-greeting-timeout: \"2m\" sets the same as `greeting-timeout`: leave one out",
        ),
        (
            "[smtp]\nprohibited-addresses = [\"10.0.0.1/8\"]",
            "line 2: smtp.prohibited-addresses: \"10.0.0.1/8\" is not the start of its range: write 10.0.0.0/8",
        ),
        (
            "[policy]\nbase = \"x\"",
            "line 2: policy.base: \"x\" is not a choice here: write one of \"none\", \"recommended\"",
        ),
        (
            "[domain.\"a b\"]\n",
            "line 1: domain.\"a b\": \"a b\" is not a domain: write \"example.com\", \"name.rollup\", \"*.example.com\" or \"*\"",
        ),
        (
            "[domain.\"[*.]a.example\"]\n",
            "line 1: domain.\"[*.]a.example\": \"[*.]a.example\" is not a domain: write \"example.com\", \"name.rollup\", \"*.example.com\" or \"*\"",
        ),
        (
            "[domain.\"a.example\"]\n\n[domain.\"A.example.\"]",
            "line 3: domain.\"A.example.\": `a.example` has settings already: merge the two",
        ),
        ("[domain]\n\"*\" = 5", "line 2: domain.\"*\": 5 is not a table: write it as [domain.\"*\"]"),
        ("[source]\nname = \"x\"", "line 1: source: is not a list of tables: write [[source]]"),
        ("[[source]]\n", "line 1: source.name: is missing: write name = \"vmta1\""),
        (
            "[[source]]\nname = \"a/b\"",
            "line 2: source.\"a/b\".name: \"a/b\" is not a name: write 1 to 64 letters, digits, hyphens, underscores and dots",
        ),
        (
            "[[source]]\nname = \"a\"\naddress = \"0.0.0.0\"",
            "line 3: source.a.address: \"0.0.0.0\" is no address to send from: leave the key out to let the system choose",
        ),
        (
            "[[source]]\nname = \"a\"\naddress = \"224.0.0.1\"",
            "line 3: source.a.address: \"224.0.0.1\" is a multicast address, from which nothing can be sent",
        ),
        (
            "[[source]]\nname = \"a\"\naddress = [\"192.0.2.1\", \"192.0.2.2\"]",
            "line 3: source.a.address: \"192.0.2.2\" is the second address of its family: make a source for each, and a pool of them",
        ),
        (
            "[[source]]\nname = \"a\"\naddress = \"localhost\"",
            "line 3: source.a.address: \"localhost\" is not an address: write it like \"192.0.2.1\" or \"2001:db8::1\"",
        ),
        (
            "[[source]]\nname = \"a\"\n[[source]]\nname = \"a\"",
            "line 4: source.a: \"a\" is the name of a source already: sources and pools share one set of names",
        ),
        (
            "[[source]]\nname = \"a\"\n[[pool]]\nname = \"a\"\nsources = [\"a\"]",
            "line 4: pool.a: \"a\" is the name of a source already: sources and pools share one set of names",
        ),
        (
            "[[source]]\nname = \"a\"\n[[pool]]\nname = \"p\"\nsources = [\"a\"]\n[[pool]]\nname = \"p\"\nsources = [\"a\"]",
            "line 7: pool.p: \"p\" is the name of a pool already: sources and pools share one set of names",
        ),
        (
            "[[pool]]\nname = \"p\"\nsources = [\"default\"]",
            "line 3: pool.p.sources: \"default\" is unknown: a pool's sources are defined by [[source]]",
        ),
        (
            "[[pool]]\nname = \"p\"\nsources = []",
            "line 3: pool.p.sources: [] is an empty list: name at least one source",
        ),
        (
            "[[pool]]\nname = \"p\"\nsources = \"a\"",
            "line 3: pool.p.sources: \"a\" is not a list: write it like [\"vmta1\"]",
        ),
        ("[[pool]]\nname = \"p\"", "line 1: pool.p.sources: is missing: write sources = [\"vmta1\"]"),
        (
            "[[source]]\nname = \"a\"\n[[pool]]\nname = \"p\"\nsources = [\"a\", { name = \"a\", weight = 2 }]",
            "line 5: pool.p.sources: \"a\" stands there twice: give it a weight instead",
        ),
        (
            "[[source]]\nname = \"a\"\n[[pool]]\nname = \"p\"\nsources = [{ name = \"a\", weight = 0 }]",
            "line 5: pool.p.sources.weight: 0 is weight zero: write 1 or more, or leave the source out",
        ),
        (
            "[[rollup]]\nqueue = \"google\"\nmx = \"*.google.com\"",
            "line 2: rollup.google.queue: \"google\" is not the name of a rollup: write it like \"google.rollup\"",
        ),
        (
            "[[rollup]]\nqueue = \"g.rollup\"\nmx = [\"mx*.google.com\"]",
            "line 3: rollup.\"g.rollup\".mx: \"mx*.google.com\" is not a name or wildcard: write it like \"mx.example.com\", or \"*.example.com\" where * is whole labels",
        ),
        (
            "[[rollup]]\nqueue = \"g.rollup\"\nmx = []",
            "line 3: rollup.\"g.rollup\".mx: [] is an empty list: name the MX hosts, like [\"*.google.com\"]",
        ),
        (
            "[[rollup]]\nqueue = \"g.rollup\"\nmx = \"*.g\"\nmatch = \"first\"",
            "line 4: rollup.\"g.rollup\".match: \"first\" is not a choice here: write one of \"lowest\", \"any\", \"all\"",
        ),
        (
            "[[ip-connection-limit]]\ncidr = \"1.2.3.4/33\"\nlimit = 1",
            "line 2: ip-connection-limit.\"1.2.3.4/33\".cidr: \"1.2.3.4/33\" is not an address range: write it like \"192.0.2.0/24\", \"2001:db8::/32\" or \"192.0.2.1\"",
        ),
        (
            "[[ip-connection-limit]]\ncidr = \"1.2.3.4\"\nlimit = 0",
            "line 3: ip-connection-limit.\"1.2.3.4\".limit: 0 is zero: write a whole number of 1 or more",
        ),
        (
            "[[ip-connection-limit]]\ncidr = \"1.2.3.4\"\nlimit = 1\n[[ip-connection-limit]]\ncidr = \"1.2.3.4/32\"\nlimit = 1",
            "line 4: ip-connection-limit.\"1.2.3.4/32\": this range has a limit already: leave one out",
        ),
        (
            "[[mx-connection-limit]]\nmx = \"*.a\"\n",
            "line 1: mx-connection-limit.\"*.a\".limit: is missing: write limit = 5",
        ),
        (
            "[[reply-rule]]\nname = \"r\"\nmatch = '(x'\nactions = [\"skip-mx\"]",
            "line 3: reply-rule.r.match: '(x' is not a regular expression at column 1: unclosed group",
        ),
        (
            "[[reply-rule]]\nname = \"r\"\nmatch = 'x'\nactions = [\"mode=backoff\", \"mode=normal\"]",
            "line 4: reply-rule.r.actions: [\"mode=backoff\", \"mode=normal\"] is a list with both `mode=backoff` and `mode=normal`: leave one out",
        ),
        (
            "[[reply-rule]]\nname = \"r\"\nmatch = 'x'\nactions = [\"skip-mx\",\n\"bounce-queue\"]",
            "line 4: reply-rule.r.actions: [\"skip-mx\",\\n\"bounce-queue\"] is a list with both `skip-mx`, which holds mail, and `bounce-queue`: leave one out",
        ),
        (
            "[[reply-rule]]\nname = \"r\"\nmatch = 'x'\nactions = \"skip-mx\"\nstage = \"data-end\"",
            "line 5: reply-rule.r.stage: \"data-end\" is not a stage of the delivery: the stages are connect, ehlo, auth, mail, rcpt, data, dot",
        ),
        (
            "[[reply-rule]]\nname = \"r\"\nmatch = 'x'\nactions = \"skip-mx\"\nmin-attempts = 0",
            "line 5: reply-rule.r.min-attempts: 0 is zero: write a whole number of 1 or more",
        ),
        (
            "[[reply-rule]]\nname = \"r\"\nmatch = 'x'\nactions = \"skip-mx\"\nafter = \"unlimited\"",
            "line 5: reply-rule.r.after: \"unlimited\" is not a rate: write it like \"100/h\", \"1/m\" or \"10/30s\"",
        ),
        (
            "[[reply-rule]]\nname = \"r\"\nmatch = 'x'\nactions = \"skip-mx\"\n[[reply-rule]]\nname = \"r\"\nmatch = 'x'\nactions = \"skip-mx\"",
            "line 6: reply-rule.r: \"r\" is the name of a rule already: records name the rule, so each has its own",
        ),
    ];
    for (text, want) in cases {
        assert_eq!(Policy::from_toml(text).unwrap_err().to_string(), *want, "\n{text}");
    }
}

#[test]
fn broken_toml_names_its_line() {
    for (text, line) in [
        ("[engine]\nhostname = \"a", 2),
        ("[engine]\nhostname = \"a\"\n[engine]\n", 3),
        ("x", 1),
        ("[domain.\"*\"]\n\nretry-after = [\"5m\"\nbounce-after = \"1d\"", 4),
        ("[domain.\"*\"]\nbounce-after = \"1d\"\nbounce-after = \"2d\"", 3),
    ] {
        let error = Policy::from_toml(text).unwrap_err();
        assert_eq!((error.kind(), error.line()), (PolicyErrorKind::Syntax, Some(line)), "{error}");
        assert!(error.to_string().starts_with(&format!("line {line}: not valid TOML: ")), "{error}");
        assert!(!error.to_string().contains('\n'));
    }
}

#[test]
fn values_are_shown_on_one_line_and_shortened() {
    let long = "x".repeat(500);
    let error = message(&domain(&format!("bounce-after = \"{long}\"")));
    assert!(error.chars().count() < 200 && error.contains('…'), "{error}");
    let error = message(&domain("bounce-after = \"\"\"\na\u{7}\"\"\""));
    assert!(!error.contains(['\n', '\u{7}']), "{error}");
    let error = message(&format!("[engine]\n\"{}\\n\" = 1", "k".repeat(200)));
    assert!(!error.contains('\n'), "{error}");
}
