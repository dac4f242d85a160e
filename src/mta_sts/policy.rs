//! The policy file (RFC 8461 §3.2), and which hosts it permits (§4.1).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::message::is_host_name;

/// The most octets of a policy file that are read. RFC 8461 §3.3 leaves the bound to senders, and names this one.
pub const MAX_POLICY_SIZE: usize = 64 * 1024;
/// The most hosts that a policy may name.
const MAX_PATTERNS: usize = 128;
/// The most octets of their names. They take memory as long as the policy holds, and with every route under it.
const MAX_NAMES: usize = 8 * 1024;
/// The longest `max_age`: about a year (RFC 8461 §3.2).
const LONGEST_AGE: u64 = 31_557_600;

/// What a domain's policy demands of those who send to it.
///
/// ```
/// use postrider::mta_sts::{Mode, StsPolicy};
/// let text = "version: STSv1\nmode: enforce\nmx: mx.example.net\nmx: *.mail.example.net\nmax_age: 604800\n";
/// let policy = StsPolicy::parse(text.as_bytes())?;
/// assert_eq!(policy.mode(), Mode::Enforce);
/// assert!(policy.permits("MX1.mail.example.net"));
/// assert!(!policy.permits("mx.example.org"));
/// # Ok::<(), postrider::mta_sts::StsPolicyError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StsPolicy {
    mode: Mode,
    /// A pattern each line: a host name in lower case without a trailing dot, or `*.` and such a name.
    mx: Box<str>,
    max_age: Duration,
}

/// What becomes of mail that can not be sent as the policy demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Mode {
    /// It waits, and is never sent to another host or in plain.
    Enforce,
    /// It is sent as if there were no policy; failures are counted for the domain's owner.
    Testing,
    /// The domain has no policy any more (RFC 8461 §8.3).
    None,
}

/// Why a policy file is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StsPolicyError {
    /// Larger than [`MAX_POLICY_SIZE`].
    #[error("the policy is larger than {MAX_POLICY_SIZE} octets")]
    TooLarge,
    /// More in `mx` lines than is kept.
    #[error("the policy names more than {MAX_PATTERNS} hosts, or by more than {MAX_NAMES} octets")]
    TooManyHosts,
    /// Not text.
    #[error("the policy is not UTF-8 text")]
    NotText,
    /// A line that is no field.
    #[error("line {line}: `{text}` is not `key: value`")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What stands there, shortened.
        text: String,
    },
    /// A field that must be there.
    #[error("the policy has no `{0}`")]
    Missing(&'static str),
    /// A field with a value it can not have.
    #[error("`{key}: {found}`: expected {expected}")]
    Value {
        /// Which field.
        key: &'static str,
        /// What stands there, shortened.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
}

impl StsPolicy {
    /// Reads a policy file, its lines ended by CRLF or LF. Of a key that may stand once the first counts; keys that
    /// are not known are passed over (RFC 8461 §3.2).
    ///
    /// # Errors
    /// [`StsPolicyError`]: a file that is not well formed is no policy at all.
    pub fn parse(text: &[u8]) -> Result<Self, StsPolicyError> {
        if text.len() > MAX_POLICY_SIZE {
            return Err(StsPolicyError::TooLarge);
        }
        let text = std::str::from_utf8(text).map_err(|_| StsPolicyError::NotText)?;
        let (mut version, mut mode, mut max_age) = (None, None, None);
        let mut mx: Vec<String> = Vec::new();
        for (number, line) in text.split('\n').enumerate() {
            let line = line.strip_suffix('\r').unwrap_or(line).trim_end_matches([' ', '\t']);
            if line.is_empty() {
                continue;
            }
            let Some((key, value)) = line.split_once(':').filter(|(key, _)| is_key(key)) else {
                return Err(StsPolicyError::Line { line: number + 1, text: shortened(line) });
            };
            let value = value.trim_start_matches([' ', '\t']);
            match key {
                "version" => _ = version.get_or_insert(value),
                "mode" => _ = mode.get_or_insert(value),
                "max_age" => _ = max_age.get_or_insert(value),
                "mx" if mx.len() >= MAX_PATTERNS => return Err(StsPolicyError::TooManyHosts),
                "mx" => mx.push(pattern(value)?),
                _ => {}
            }
        }
        let version = version.ok_or(StsPolicyError::Missing("version"))?;
        if version != "STSv1" {
            return Err(wrong("version", version, "STSv1"));
        }
        let mode = Mode::parse(mode.ok_or(StsPolicyError::Missing("mode"))?)?;
        let max_age = age(max_age.ok_or(StsPolicyError::Missing("max_age"))?)?;
        if mx.is_empty() && mode != Mode::None {
            return Err(StsPolicyError::Missing("mx"));
        }
        let mx = mx.join("\n");
        if mx.len() > MAX_NAMES {
            return Err(StsPolicyError::TooManyHosts);
        }
        Ok(Self { mode, mx: mx.into(), max_age })
    }

    /// What becomes of mail that can not be sent as it demands.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How long it holds from when it was fetched, without being seen again.
    pub fn max_age(&self) -> Duration {
        self.max_age
    }

    /// The hosts it permits, as patterns: a name, or `*.` and the name above one label.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.mx.lines()
    }

    /// Whether mail may be given to the host of this name, by RFC 8461 §4.1: a wildcard stands for exactly one label.
    /// Case and a trailing dot do not count.
    pub fn permits(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        self.patterns().any(|pattern| matches(pattern, host))
    }

    /// Octets of the hosts it names.
    pub(super) fn octets(&self) -> usize {
        self.mx.len()
    }
}

impl Mode {
    fn parse(word: &str) -> Result<Self, StsPolicyError> {
        match word {
            "enforce" => Ok(Self::Enforce),
            "testing" => Ok(Self::Testing),
            "none" => Ok(Self::None),
            _ => Err(wrong("mode", word, "enforce, testing or none")),
        }
    }

    /// The word in a policy file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Testing => "testing",
            Self::None => "none",
        }
    }
}

/// The value of an `mx` line, as it is kept.
fn pattern(text: &str) -> Result<String, StsPolicyError> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if !is_host_name(text.strip_prefix("*.").unwrap_or(text)) {
        return Err(wrong("mx", text, "a host name, or `*.` and a name: mx.example.net, *.example.net"));
    }
    Ok(text.to_ascii_lowercase())
}

/// A wildcard stands for one label.
fn matches(pattern: &str, host: &str) -> bool {
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (None, _) => host.eq_ignore_ascii_case(pattern),
        (Some(above), Some((label, rest))) => !label.is_empty() && rest.eq_ignore_ascii_case(above),
        (Some(_), None) => false,
    }
}

fn is_key(key: &str) -> bool {
    let is_part = |octet: u8| octet.is_ascii_alphanumeric() || b"_-.".contains(&octet);
    key.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) && key.bytes().all(is_part)
}

fn age(text: &str) -> Result<Duration, StsPolicyError> {
    let is_number = (1..=10).contains(&text.len()) && text.bytes().all(|octet| octet.is_ascii_digit());
    let seconds = text.parse::<u64>().ok().filter(|&seconds| is_number && seconds <= LONGEST_AGE);
    seconds.map(Duration::from_secs).ok_or_else(|| wrong("max_age", text, "seconds, 0 to 31557600"))
}

fn wrong(key: &'static str, found: &str, expected: &'static str) -> StsPolicyError {
    StsPolicyError::Value { key, found: shortened(found), expected }
}

/// A stranger's words, for a message.
fn shortened(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<StsPolicy, String> {
        StsPolicy::parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn hosts_have_a_bound() {
        let named = |count: usize| {
            parse(&format!("version: STSv1\nmode: enforce\nmax_age: 1\n{}", "mx: a\n".repeat(count)))
        };
        assert_eq!(named(MAX_PATTERNS).unwrap().patterns().count(), 128);
        let too_many = StsPolicyError::TooManyHosts.to_string();
        assert_eq!(named(MAX_PATTERNS + 1).unwrap_err(), too_many);
        let long = |count: usize| {
            let name = format!("{}example", "a23456789.".repeat(12));
            parse(&format!(
                "version: STSv1\nmode: enforce\nmax_age: 1\n{}",
                format!("mx: {name}\n").repeat(count)
            ))
        };
        assert_eq!(long(64).unwrap().octets(), 64 * 127 + 63);
        assert_eq!(long(65).unwrap_err(), too_many);
    }

    #[test]
    fn files_are_read() {
        let plain = "version: STSv1\nmode: enforce\nmx: a.example\nmx: *.B.example.\nmax_age: 86400\n";
        let expected = parse(plain).unwrap();
        assert_eq!(expected.patterns().collect::<Vec<_>>(), ["a.example", "*.b.example"]);
        assert_eq!((expected.mode(), expected.max_age()), (Mode::Enforce, Duration::from_secs(86_400)));
        for same in [
            plain.replace('\n', "\r\n"),
            plain.trim_end().to_owned(),
            plain.replace(": ", ":"),
            plain.replace(": ", ": \t ").replace('\n', " \t\n\n"),
            format!("{plain}x-new: what: ever\nmode: none\nversion: STSv2\nmax_age: 1"),
            "max_age: 86400\nmx: a.example\nmode: enforce\nmx: *.b.example\nversion: STSv1".to_owned(),
        ] {
            assert_eq!(parse(&same).as_ref(), Ok(&expected), "{same}");
        }
        assert_eq!(parse("version: STSv1\nmode: none\nmax_age: 0").unwrap().mode(), Mode::None);
        let year = parse("version: STSv1\nmode: testing\nmax_age: 31557600\nmx: a").unwrap();
        assert_eq!((year.mode(), year.max_age().as_secs()), (Mode::Testing, LONGEST_AGE));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let rest = "mode: enforce\nmx: a.example\nmax_age: 86400\n";
        for (text, message) in [
            ("", "the policy has no `version`"),
            (rest, "the policy has no `version`"),
            ("version: STSv1\nmx: a\nmax_age: 1", "the policy has no `mode`"),
            ("version: STSv1\nmode: enforce\nmx: a", "the policy has no `max_age`"),
            ("version: STSv1\nmode: testing\nmax_age: 1", "the policy has no `mx`"),
            (&format!("version: STSv2\n{rest}"), "`version: STSv2`: expected STSv1"),
            ("version: STSv1\nmode: Enforce", "`mode: Enforce`: expected enforce, testing or none"),
            (
                "version: STSv1\nmode: none\nmax_age: 31557601",
                "`max_age: 31557601`: expected seconds, 0 to 31557600",
            ),
            ("version: STSv1\nmode: none\nmax_age: +1", "`max_age: +1`: expected seconds, 0 to 31557600"),
            ("version: STSv1\nmode: none\nmax_age:", "`max_age: `: expected seconds, 0 to 31557600"),
            (
                "mx: *.*.example",
                "`mx: *.*.example`: expected a host name, or `*.` and a name: mx.example.net, *.example.net",
            ),
            ("version: STSv1\n<html>", "line 2: `<html>` is not `key: value`"),
            ("version: STSv1\nVersion STSv1", "line 2: `Version STSv1` is not `key: value`"),
            (": x", "line 1: `: x` is not `key: value`"),
        ] {
            assert_eq!(parse(text).unwrap_err(), message, "{text}");
        }
        for mx in
            [".example.net", "*", "", "*.", "a..b", "ex ample", "mx*.example.net", "b\u{fc}cher.example"]
        {
            assert!(parse(&format!("version: STSv1\nmode: enforce\nmax_age: 1\nmx: {mx}")).is_err(), "{mx}");
        }
        assert_eq!(StsPolicy::parse(b"version: \xff"), Err(StsPolicyError::NotText));
    }

    #[test]
    fn the_size_has_a_bound() {
        let policy = "version: STSv1\nmode: enforce\nmx: a.example\nmax_age: 86400\n".to_owned();
        let full = policy.clone() + &" ".repeat(MAX_POLICY_SIZE - policy.len());
        assert!(parse(&full).is_ok());
        assert_eq!(StsPolicy::parse((full + " ").as_bytes()), Err(StsPolicyError::TooLarge));
    }

    /// RFC 8461 §4.1.
    #[test]
    fn hosts_are_matched() {
        let text = "version: STSv1\nmode: enforce\nmax_age: 1\nmx: mx.example.net\nmx: *.mail.example.net";
        let policy = parse(text).unwrap();
        for (host, permitted) in [
            ("mx.example.net", true),
            ("MX.Example.NET.", true),
            ("mx2.example.net", false),
            ("a.mx.example.net", false),
            ("example.net", false),
            ("a.mail.example.net", true),
            ("A.MAIL.example.net", true),
            ("a.b.mail.example.net", false),
            ("mail.example.net", false),
            (".mail.example.net", false),
            ("xmail.example.net", false),
            ("", false),
            (".", false),
        ] {
            assert_eq!(policy.permits(host), permitted, "{host}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "(version: STSv1\r?\n)?(mode: (enforce|none)\n)?(mx: [*.a]{0,6}\n)?.{0,60}") {
            if let Ok(policy) = parse(&text) {
                policy.permits(&text);
                prop_assert!(policy.mode() == Mode::None || policy.patterns().next().is_some());
            }
        }
    }
}
