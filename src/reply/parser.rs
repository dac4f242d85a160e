//! The reply parser: bytes in, replies out.

use bytes::Buf;

use super::Reply;

/// Takes a server's octets as they come and gives its replies (RFC 5321 §4.2), without I/O.
///
/// Replies are octets: nothing is decoded, and a lone LF ends a line as CRLF does. What a reply holds in memory
/// is bounded: text past the limits is dropped and the reply marked [truncated](Reply::is_truncated), but its
/// code and where it ends stay exact. How the octets are cut into pieces never changes the replies.
#[derive(Debug)]
pub struct ReplyParser {
    text_limit: usize,
    /// Of the reply under way.
    code: Option<u16>,
    lines: usize,
    text: Vec<u8>,
    consumed: usize,
    truncated: bool,
    /// The line under way: its first octets, how many it has, and whether the last was CR.
    line: Vec<u8>,
    line_octets: usize,
    line_ends_in_cr: bool,
    failed: Option<ReplyError>,
}

/// Why octets are not an SMTP reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// A line that does not begin with a code from 200 to 599.
    #[error("the line `{line}` does not begin with a reply code from 200 to 599")]
    NoCode {
        /// Its start, escaped.
        line: String,
    },
    /// Something else than a space, a hyphen or the line's end after the code.
    #[error("after the code in `{line}` there must be a space, a hyphen or the end of the line")]
    Separator {
        /// Its start, escaped.
        line: String,
    },
    /// The lines of one reply carry different codes (RFC 5321 §4.2.1): it can not be known which one counts.
    #[error("one reply has both the codes {first} and {other}: every line must carry the same")]
    MixedCodes {
        /// The first line's.
        first: u16,
        /// The first that differs.
        other: u16,
    },
    /// A reply that does not end.
    #[error("a reply goes on for more than {limit} octets")]
    Endless {
        /// [`ReplyParser::MAX_OCTETS`].
        limit: usize,
    },
    /// The text ends before the reply does.
    #[error("the reply is not complete: its last line has a space after the code, not a hyphen")]
    Incomplete,
    /// Something follows the reply's last line.
    #[error("`{line}` follows the end of the reply")]
    Trailing {
        /// Its start, escaped.
        line: String,
    },
}

impl ReplyError {
    pub(super) fn trailing(rest: &[u8]) -> Self {
        Self::Trailing { line: excerpt(rest) }
    }
}

impl Default for ReplyParser {
    fn default() -> Self {
        Self::new()
    }
}

impl ReplyParser {
    /// The most text kept of one reply: 64 KiB.
    pub const MAX_TEXT: usize = 64 * 1024;
    /// The most text kept of one line: 8 KiB. RFC 5321 §4.5.3.1.5 allows servers 512 octets.
    pub const MAX_LINE: usize = 8 * 1024;
    /// The most lines kept of one reply: 512.
    pub const MAX_LINES: usize = 512;
    /// The most octets one reply may have, kept or not: 1 MiB. More is an error.
    pub const MAX_OCTETS: usize = 1024 * 1024;

    /// A parser before the first octet of a reply.
    pub const fn new() -> Self {
        Self {
            text_limit: Self::MAX_TEXT,
            code: None,
            lines: 0,
            text: Vec::new(),
            consumed: 0,
            truncated: false,
            line: Vec::new(),
            line_octets: 0,
            line_ends_in_cr: false,
            failed: None,
        }
    }

    /// Keeps at most `octets` of text of each reply from the next line on, and never more than
    /// [`ReplyParser::MAX_TEXT`].
    pub fn set_text_limit(&mut self, octets: usize) {
        self.text_limit = octets.min(Self::MAX_TEXT);
    }

    /// Whether a reply has begun and not ended.
    pub fn is_mid_reply(&self) -> bool {
        self.consumed > 0
    }

    /// Takes octets from `input` up to the end of one reply. `None`: all was taken, more is needed.
    ///
    /// # Errors
    /// [`ReplyError`]. Where the next reply begins is then unknown, so every later call fails the same.
    pub fn parse(&mut self, input: &mut impl Buf) -> Result<Option<Reply>, ReplyError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.parse_lines(input);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    fn parse_lines(&mut self, input: &mut impl Buf) -> Result<Option<Reply>, ReplyError> {
        while input.has_remaining() {
            let chunk = input.chunk();
            let line_end = memchr::memchr(b'\n', chunk);
            let piece = chunk.get(..line_end.unwrap_or(chunk.len())).unwrap_or(chunk);
            let taken = piece.len() + usize::from(line_end.is_some());

            self.consumed += taken;
            if self.consumed > Self::MAX_OCTETS {
                return Err(ReplyError::Endless { limit: Self::MAX_OCTETS });
            }
            self.push_piece(piece);
            input.advance(taken);
            if line_end.is_some() && self.end_line()? {
                return Ok(self.end_reply());
            }
        }
        Ok(None)
    }

    fn push_piece(&mut self, piece: &[u8]) {
        // Code and separator come on top of the text.
        let room = (Self::MAX_LINE + 4).saturating_sub(self.line.len());
        self.line.extend_from_slice(piece.get(..room).unwrap_or(piece));
        self.line_octets += piece.len();
        if let Some(last) = piece.last() {
            self.line_ends_in_cr = *last == b'\r';
        }
    }

    /// Takes the line into the reply. Returns whether it was the reply's last.
    fn end_line(&mut self) -> Result<bool, ReplyError> {
        let octets = self.line_octets - usize::from(self.line_ends_in_cr);
        let line = self.line.get(..octets).unwrap_or(&self.line);
        self.truncated |= octets > line.len();

        let code = code(line).ok_or_else(|| ReplyError::NoCode { line: excerpt(line) })?;
        let last = match line.get(3) {
            // Some servers send a bare code; RFC 5321 §4.2 asks clients to take it.
            None | Some(b' ') => true,
            Some(b'-') => false,
            Some(_) => return Err(ReplyError::Separator { line: excerpt(line) }),
        };
        let first = *self.code.get_or_insert(code);
        if first != code {
            return Err(ReplyError::MixedCodes { first, other: code });
        }

        let text = line.get(4..).unwrap_or_default();
        let line_ends = self.lines.saturating_sub(1);
        let room = self.text_limit.saturating_sub(self.text.len() - line_ends);
        if self.lines < Self::MAX_LINES && (room > 0 || text.is_empty()) {
            let kept = text.get(..room).unwrap_or(text);
            self.truncated |= kept.len() < text.len();
            if self.lines > 0 {
                self.text.push(b'\n');
            }
            self.text.extend_from_slice(kept);
            self.lines += 1;
        } else {
            self.truncated = true;
        }
        self.line.clear();
        self.line_octets = 0;
        self.line_ends_in_cr = false;
        Ok(last)
    }

    fn end_reply(&mut self) -> Option<Reply> {
        let reply = Reply::from_text(self.code.take()?, &self.text);
        let reply = if self.truncated { reply.truncated() } else { reply };
        self.lines = 0;
        self.text.clear();
        self.consumed = 0;
        self.truncated = false;
        // An idle session shall not hold on to the longest reply it ever saw.
        self.line.shrink_to(128);
        self.text.shrink_to(128);
        Some(reply)
    }
}

/// The code a line begins with. The RFC's grammar has second digits only up to 5; servers go beyond.
fn code(line: &[u8]) -> Option<u16> {
    let digits = line.get(..3)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    (200..=599).contains(&code).then_some(code)
}

/// The start of a line, fit for a message.
fn excerpt(line: &[u8]) -> String {
    let line = line.get(..80).unwrap_or(line);
    String::from_utf8_lossy(line).escape_debug().to_string()
}
