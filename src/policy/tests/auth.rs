//! Credentials: for fixed hosts, both or none, and never shown.

use super::*;
use crate::policy::{Credentials, Password};

const LOGIN: &str = "auth-username = \"ann\"\nauth-password = \"s3cret\"\n";
const RELAY: &str = "smtp-hosts = \"relay.example:587\"\n";

fn credentials(policy: &Policy, queue: &str) -> Option<Credentials> {
    policy.settings(queue, "default").credentials()
}

#[test]
fn both_ways_of_writing_are_one() {
    let hosts = FixedHost::parse_list("relay.example:587").unwrap();
    let settings = DomainSettings::new().with_smtp_hosts(hosts).with_credentials("ann", "s3cret");
    let built = Policy::new().with_domain("*", settings).unwrap();
    assert_eq!(built, Policy::from_toml(&domain(&(RELAY.to_owned() + LOGIN))).unwrap());
    let ann = Credentials { username: "ann".into(), password: "s3cret".into(), unencrypted: false };
    assert_eq!(credentials(&built, "x.example"), Some(ann.clone()));
    assert_eq!(ann.password.expose(), "s3cret");
    let text = domain(&format!("{RELAY}{LOGIN}use-unencrypted-plain-auth = true"));
    let unencrypted = Credentials { unencrypted: true, ..ann };
    assert_eq!(credentials(&Policy::from_toml(&text).unwrap(), "x.example"), Some(unencrypted));
}

#[test]
fn what_does_not_go_together_is_refused_by_line() {
    let name = "line 3: domain.\"*\".auth-username: ";
    for (settings, want) in [
        ("auth-username = \"ann\"", format!("{name}has no password: write auth-password = \"…\" beside it")),
        (
            "auth-username = \"ann\"\nauth-password = \"\"",
            format!("{name}has no password: write auth-password = \"…\" beside it"),
        ),
        (
            "auth-password = \"s3cret\"",
            "line 3: domain.\"*\".auth-password: is nobody's: write auth-username = \"…\" beside it"
                .to_owned(),
        ),
    ] {
        let error = Policy::from_toml(&domain(&format!("{RELAY}{settings}"))).unwrap_err();
        assert_eq!((error.to_string(), error.kind()), (want, PolicyErrorKind::Contradiction));
    }
    let want =
        "line 2: domain.\"*\".auth-username: only fixed hosts have it: name them beside it in smtp-hosts";
    assert_eq!(Policy::from_toml(&domain(LOGIN)).unwrap_err().to_string(), want);
    assert_eq!(Policy::from_toml(&domain(&format!("{LOGIN}smtp-hosts = []"))).unwrap_err().to_string(), want);
    let source = Source::new("s").with_domain("*", DomainSettings::new().with_credentials("ann", "s3cret"));
    let want =
        "source.s.domain.\"*\".auth-username: only fixed hosts have it: name them beside it in smtp-hosts";
    assert_eq!(source.unwrap_err().to_string(), want);
}

/// The relay of one section is not sent the password for another's.
#[test]
fn credentials_stay_with_their_hosts() {
    let text = format!(
        "[domain.'*']\n{RELAY}{LOGIN}use-unencrypted-plain-auth = true\n
        [domain.'own.example']\nsmtp-hosts = '[192.0.2.1]'\nauth-username = 'ben'\nauth-password = 'b'\n
        [domain.'other.example']\nsmtp-hosts = '[192.0.2.1]'\n
        [domain.'mx.example']\nsmtp-hosts = []\n
        [domain.'nobody.example']\nauth-username = ''\nauth-password = ''\n
        [domain.'same.example']\nmax-smtp-out = 2\n
        [[source]]\nname = 's'\n[source.domain.'*']\nsmtp-hosts = '[192.0.2.2]'\n"
    );
    let policy = Policy::from_toml(&text).unwrap();
    for (queue, source, want) in [
        ("same.example", "default", Some(("ann", true))),
        ("own.example", "default", Some(("ben", false))),
        ("other.example", "default", None),
        ("mx.example", "default", None),
        ("nobody.example", "default", None),
        ("same.example", "s", None),
    ] {
        let got = policy.settings(queue, source).credentials();
        let got = got.as_ref().map(|credentials| (&*credentials.username, credentials.unencrypted));
        assert_eq!(got, want, "{queue} from {source}");
    }
}

#[test]
fn nothing_shows_a_password() {
    let policy = Policy::from_toml(&domain(&(RELAY.to_owned() + LOGIN))).unwrap();
    let settings = policy.settings("x.example", "default");
    let shown =
        format!("{policy:?} {settings:#?} {:?} {:?}", settings.credentials(), Password::from("s3cret"));
    assert!(shown.contains("ann") && !shown.contains("s3cret"), "{shown}");
    let long = "s3cret".repeat(200);
    for value in ["\"s3cret\\u0000\"", &format!("'{long}'"), "['s3cret']", "{ x = 's3cret' }", "5_3_7"] {
        let error = Policy::from_toml(&domain(&format!("{RELAY}auth-password = {value}"))).unwrap_err();
        assert_eq!(
            (error.line(), error.value(), error.kind()),
            (Some(3), None, PolicyErrorKind::InvalidValue)
        );
        assert!(error.to_string().starts_with("line 3: domain.\"*\".auth-password: is no"), "{error}");
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        assert!(!format!("{error:?}").contains("5_3_7"), "{error}");
    }
    let settings = DomainSettings::new().with_credentials("ann", "s3cret\0");
    let error = Policy::new().with_domain("*", settings).unwrap_err();
    assert!(
        error.to_string().contains("auth-password: ") && !format!("{error:?}").contains("s3cret"),
        "{error}"
    );
    // Where it stands in another place than it should.
    for text in [
        "auth-password = 's3cret'",
        "[smtp]\nauth-password = 's3cret'",
        "[domain]\nauth-password = 's3cret'",
        "[domain.'*']\nauth-pasword = 's3cret'",
        "domain = [{ auth-password = 's3cret' }]",
        "domain.'*' = [[{ auth-password = 's3cret' }]]",
        "[[domain.'*']]\nauth-password = 's3cret'",
        "[domain.'*']\nauth-password = 's3cret",
        "[domain.'*']\nauth-password = s3cret",
        "[domain.'*']\nauth-password = 's3cret'\nauth-password = 's3cret'",
        "[domain.'*']\nauth-password = \"\\s3cret\"",
    ] {
        let error = Policy::from_toml(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
    }
}
