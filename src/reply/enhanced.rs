//! Enhanced mail system status codes (RFC 3463 §2).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `class.subject.detail`, such as 4.2.2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "three numbers are the standard")]
pub struct EnhancedStatus {
    /// 2 success, 4 transient, 5 permanent.
    pub class: u8,
    /// What it is about: 1 addresses, 2 mailboxes, 3 the mail system, 4 routing …
    pub subject: u16,
    /// Which condition.
    pub detail: u16,
}

/// Not of the form `2.1.5`, `4.7.500` …
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an enhanced status like 4.2.2: class 2, 4 or 5, then two numbers of one to three digits")]
#[allow(clippy::exhaustive_structs, reason = "there is no more to say")]
pub struct ParseEnhancedStatusError;

impl EnhancedStatus {
    /// A status from its parts.
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        Self { class, subject, detail }
    }

    /// The status at the start of a reply line's text, if its class is that of `code`, and what follows it.
    ///
    /// Servers that relay another's reply often repeat the code before it, as in `550 550-5.1.1 no such user`.
    pub(crate) fn prefix(code: u16, line: &[u8]) -> Option<(Self, &[u8])> {
        Self::own_prefix(code, line).or_else(|| {
            let (repeated, rest) = line.split_first_chunk::<4>()?;
            let (digits, separator) = repeated.split_at_checked(3)?;
            let same = std::str::from_utf8(digits).ok()?.parse() == Ok(code);
            if same && matches!(separator, b"-" | b" ") { Self::own_prefix(code, rest) } else { None }
        })
    }

    fn own_prefix(code: u16, line: &[u8]) -> Option<(Self, &[u8])> {
        let end = line.iter().position(|&b| b != b'.' && !b.is_ascii_digit()).unwrap_or(line.len());
        let (status, rest) = line.split_at_checked(end)?;
        if !matches!(rest.first(), None | Some(b' ' | b'\t')) {
            return None;
        }
        let status: Self = std::str::from_utf8(status).ok()?.parse().ok()?;
        (u16::from(status.class) == code / 100).then_some((status, rest.trim_ascii_start()))
    }
}

impl FromStr for EnhancedStatus {
    type Err = ParseEnhancedStatusError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |part: Option<&str>| {
            part.filter(|p| (1..=3).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|p| p.parse::<u16>().ok())
                .ok_or(ParseEnhancedStatusError)
        };
        let mut parts = text.split('.');
        let class = match parts.next() {
            Some("2") => 2,
            Some("4") => 4,
            Some("5") => 5,
            _ => return Err(ParseEnhancedStatusError),
        };
        let status = Self { class, subject: number(parts.next())?, detail: number(parts.next())? };
        if parts.next().is_some() { Err(ParseEnhancedStatusError) } else { Ok(status) }
    }
}

impl fmt::Display for EnhancedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

impl fmt::Debug for EnhancedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
