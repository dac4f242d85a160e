//! SMTP replies (RFC 5321 §4.2) and enhanced status codes (RFC 3463).

mod classify;
mod enhanced;
mod parser;
#[cfg(test)]
mod tests;
mod text;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use classify::{Classification, Classifier, Confidence, Origin, PhraseError};
pub(crate) use classify::{ClassificationRule, ClassificationRules, Folded, Phrase};
pub use enhanced::{EnhancedStatus, ParseEnhancedStatusError};
pub use parser::{ReplyError, ReplyParser};
use text::Text;

/// One reply of a server, as it came.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    code: u16,
    enhanced: Option<EnhancedStatus>,
    /// What followed the code and its separator on each line, with a line feed between lines.
    lines: Text,
    truncated: bool,
}

/// At which point of the delivery something happened, in the order of the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Stage {
    /// Waiting in the queue: expiry, cancellation.
    Queue = 0,
    /// Looking up where the mail goes.
    Dns = 1,
    /// Connecting, and the greeting.
    Connect = 2,
    /// EHLO or HELO, and STARTTLS.
    Ehlo = 3,
    /// MAIL.
    Mail = 5,
    /// RCPT.
    Rcpt = 6,
    /// DATA, up to the end of the content.
    Data = 7,
    /// The final dot's reply, or that of a chunk (BDAT).
    Dot = 8,
    // Rows in stores have a stage by its place in this list: what is new comes last.
    /// AUTH, after EHLO and before MAIL.
    Auth = 4,
}

impl Stage {
    /// Lower case, as in records and reply rules.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Ehlo => "ehlo",
            Self::Auth => "auth",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::Dot => "dot",
        }
    }
}

impl Reply {
    /// A reply of one code. The first enhanced status that stands at the start of a line is the reply's
    /// (RFC 2034 §4 has it on every line; some servers leave it out on the first).
    ///
    /// `lines` are what follows code and separator, without line ends; a line feed within one makes two of it. A
    /// reply has at least one line, be it empty.
    pub fn new(code: u16, lines: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let mut text = Vec::new();
        for (line, number) in lines.into_iter().zip(0..) {
            if number > 0 {
                text.push(b'\n');
            }
            text.extend_from_slice(line.as_ref());
        }
        Self::from_text(code, &text)
    }

    /// `text` is its lines with a line feed between each two.
    fn from_text(code: u16, text: &[u8]) -> Self {
        let mut lines = split(text);
        let enhanced = lines.find_map(|line| EnhancedStatus::prefix(code, line)).map(|(status, _)| status);
        Self { code, enhanced, lines: text.into(), truncated: false }
    }

    /// Reads one whole reply as it stands in logs and tests: one line, or several separated by newlines.
    ///
    /// # Errors
    /// [`ReplyError`], when it is no reply, or not exactly one.
    pub fn parse(text: &str) -> Result<Self, ReplyError> {
        let mut parser = ReplyParser::new();
        let mut input = text.as_bytes();
        let reply = match parser.parse(&mut input)? {
            Some(reply) => reply,
            None if text.ends_with('\n') => return Err(ReplyError::Incomplete),
            // The last line end may be missing.
            None => parser.parse(&mut b"\n".as_slice())?.ok_or(ReplyError::Incomplete)?,
        };
        if input.is_empty() { Ok(reply) } else { Err(ReplyError::trailing(input)) }
    }

    /// Drops text past so many octets. Code and enhanced status stay.
    pub(crate) fn shorten(&mut self, octets: usize) {
        if let Some((kept, [_, ..])) = self.lines.split_at_checked(octets) {
            self.lines = kept.into();
            self.truncated = true;
        }
    }

    pub(crate) fn truncated(mut self) -> Self {
        self.truncated = true;
        self
    }

    /// The three-digit code, 200 to 599.
    pub const fn code(&self) -> u16 {
        self.code
    }

    /// The enhanced status, if the reply carries one of its own class.
    pub const fn enhanced(&self) -> Option<EnhancedStatus> {
        self.enhanced
    }

    /// The raw text of each line after code and separator.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        split(&self.lines)
    }

    /// Text past the size cap was dropped.
    pub const fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// 2xx.
    pub const fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// 3xx.
    pub const fn is_intermediate(&self) -> bool {
        self.code / 100 == 3
    }

    /// 4xx.
    pub const fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }

    /// 5xx.
    pub const fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// The text folded to one line: lines joined by single spaces, the enhanced status and its repetitions left
    /// out, invalid UTF-8 replaced.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.lines() {
            let own = match EnhancedStatus::prefix(self.code, line) {
                Some((status, rest)) if Some(status) == self.enhanced => rest,
                _ => line,
            };
            let own = String::from_utf8_lossy(own);
            let own = own.trim();
            if !own.is_empty() {
                if !text.is_empty() {
                    text.push(' ');
                }
                text.push_str(own);
            }
        }
        text
    }

    /// Roughly what it takes in memory.
    pub(crate) fn octets(&self) -> usize {
        self.lines.len() + size_of::<Self>()
    }
}

fn split(lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    lines.split(|&octet| octet == b'\n')
}

/// The reply folded to one line: `code [enhanced] text`. What reply rules match.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        let text = self.text();
        if text.is_empty() { Ok(()) } else { write!(f, " {text}") }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({})", self.to_string().escape_debug())
    }
}
