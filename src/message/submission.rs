//! A message as the host submits it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::address::{Address, AddressError, ReversePath};
use super::dsn::{MessageDsn, RecipientDsn};
use super::id::MessageId;
use crate::clock::Timestamp;

/// Which mail of a queue goes first. Drawn 16 : 4 : 1, so that none starves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(clippy::exhaustive_enums, reason = "three levels are the design")]
pub enum Priority {
    /// Drawn sixteen times as often as low.
    High,
    /// The default.
    #[default]
    Normal,
    /// Bulk.
    Low,
}

impl Priority {
    /// `high`, `normal` or `low`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// A message to deliver: an envelope (RFC 5321 §2.3.1), the content as it shall reach the receiver, and how to
/// treat it.
///
/// The content is never altered on its way.
#[derive(Clone, Debug)]
pub struct Message {
    pub(crate) id: Option<MessageId>,
    pub(crate) reference: Option<String>,
    pub(crate) reverse_path: ReversePath,
    pub(crate) recipients: Vec<Address>,
    pub(crate) body: Bytes,
    pub(crate) source: Option<String>,
    pub(crate) priority: Priority,
    pub(crate) hold_until: Option<Timestamp>,
    pub(crate) expires_after: Option<Duration>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) dsn: Option<MessageDsn>,
    pub(crate) recipient_dsn: HashMap<Address, RecipientDsn>,
    pub(crate) require_tls: bool,
    pub(crate) smtputf8: bool,
}

/// Why a message was refused before it was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The reverse-path is not an address. The null reverse-path is the empty string.
    #[error("from: {0}")]
    ReversePath(#[source] AddressError),
    /// A recipient is not an address.
    #[error("to: {0}")]
    Recipient(#[source] AddressError),
    /// Somebody else was named than the recipients of the message.
    #[error("{0} is no recipient of the message")]
    NoRecipientOf(Address),
    /// Nobody to deliver to.
    #[error("a message needs at least one recipient")]
    NoRecipients,
    /// More recipients than one message may have.
    #[error("{0} recipients are too many for one message: at most {max}", max = Message::MAX_RECIPIENTS)]
    TooManyRecipients(usize),
    /// A carriage return or line feed that is not part of a CRLF (RFC 5321 §2.3.8).
    #[error("the body has a bare {name} at octet {offset}: lines must end in CRLF", name = if *.carriage_return { "CR" } else { "LF" })]
    BareLineEnding {
        /// Where, counted from zero.
        offset: usize,
        /// A CR without LF, else an LF without CR.
        carriage_return: bool,
    },
    /// Larger than the engine takes.
    #[error("a body of {size} octets is too large: at most {limit}")]
    TooLarge {
        /// The body's size.
        size: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// Too many or too long tags, or too long a reference.
    #[error("reference and tags take {0} octets: at most {max}", max = Message::MAX_TAG_OCTETS)]
    TagsTooLarge(usize),
}

impl Message {
    /// The most recipients of one message.
    pub const MAX_RECIPIENTS: usize = 50_000;
    /// The largest body, in octets.
    pub const MAX_BODY_OCTETS: usize = 256 * 1024 * 1024;
    /// The most octets of reference, tag names and tag values together: they are stored with every recipient.
    pub const MAX_TAG_OCTETS: usize = 16 * 1024;

    /// A message from `from` (empty: the null reverse-path) to `to`. A recipient named twice counts once.
    ///
    /// # Errors
    /// [`MessageError`]: a bad address, no recipient, or a body with a bare CR or LF, which could smuggle a
    /// second message past a receiver. [`with_line_endings`] makes a body of such lines.
    pub fn new<T: AsRef<str>>(
        from: &str,
        to: impl IntoIterator<Item = T>,
        body: impl Into<Bytes>,
    ) -> Result<Self, MessageError> {
        let reverse_path = match from {
            "" => None,
            from => Some(Address::parse(from).map_err(MessageError::ReversePath)?),
        };
        let mut seen = HashSet::new();
        let mut recipients = Vec::new();
        for text in to {
            let address = Address::parse(text.as_ref()).map_err(MessageError::Recipient)?;
            if seen.insert(address.clone()) {
                recipients.push(address);
            }
        }
        if recipients.is_empty() {
            return Err(MessageError::NoRecipients);
        }
        if recipients.len() > Self::MAX_RECIPIENTS {
            return Err(MessageError::TooManyRecipients(recipients.len()));
        }
        let body = body.into();
        if body.len() > Self::MAX_BODY_OCTETS {
            return Err(MessageError::TooLarge { size: body.len(), limit: Self::MAX_BODY_OCTETS });
        }
        check_line_endings(&body)?;
        Ok(Self {
            id: None,
            reference: None,
            reverse_path,
            recipients,
            body,
            source: None,
            priority: Priority::Normal,
            hold_until: None,
            expires_after: None,
            tags: BTreeMap::new(),
            dsn: None,
            recipient_dsn: HashMap::new(),
            require_tls: false,
            smtputf8: false,
        })
    }

    /// The host's own id: submitting the same id again stores nothing twice.
    pub fn with_id(mut self, id: MessageId) -> Self {
        self.id = Some(id);
        self
    }

    /// Any text of the host's, returned on every record of this message.
    pub fn with_reference(mut self, reference: impl Into<String>) -> Self {
        self.reference = Some(reference.into());
        self
    }

    /// The source or pool of sources to send from; default: the policy's first source.
    #[doc(alias = "virtual-mta")]
    pub fn with_source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Which mail of the same queue goes first.
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// No attempt before this time; the message's age counts from it.
    pub fn hold_until(mut self, time: Timestamp) -> Self {
        self.hold_until = Some(time);
        self
    }

    /// Bounces at this age in place of the queue's `bounce-after`.
    pub fn expires_after(mut self, age: Duration) -> Self {
        self.expires_after = Some(age);
        self
    }

    /// A name and value returned on every record of this message.
    pub fn with_tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(name.into(), value.into());
        self
    }

    /// Sends it only over TLS, to hosts that are verified to be the receiver's, whose servers promise the same for the rest of
    /// its way (REQUIRETLS, RFC 8689). All hosts of a domain are tried; if none will do it bounces for what the last one lacks: as 5.7.10
    /// where the host is not verified, as 5.7.30 where the server does not offer REQUIRETLS.
    ///
    /// Verified is a host by its certificate, and by its name: a fixed host's (`smtp-hosts`), one that the domain's MTA-STS policy
    /// permits or that has TLSA records (DANE), or the domain itself. So its queue needs `use-starttls = "verify"`, or its
    /// domain such a policy in mode `enforce` or DANE.
    pub fn with_require_tls(mut self) -> Self {
        self.require_tls = true;
        self
    }

    /// Says that its header has UTF-8 (RFC 6532). It is sent with SMTPUTF8 (RFC 6531), and bounces as 5.6.9 where the server does not
    /// offer that. An address that is not ASCII needs no such word.
    ///
    /// Nothing is read in the content to find out: most servers take such a header from who does not say so.
    pub fn with_smtputf8(mut self) -> Self {
        self.smtputf8 = true;
        self
    }

    /// What reports about this message are to be like (RFC 3461). Servers that offer DSN are told; others are not, and
    /// [`Delivered::dsn_passed_on`](crate::event::Delivered::dsn_passed_on) says so. Every record of the message
    /// carries it, for the host makes the reports that this engine owes.
    pub fn with_dsn(mut self, dsn: MessageDsn) -> Self {
        self.dsn = Some(dsn);
        self
    }

    /// What is to be reported about one recipient, likewise.
    ///
    /// # Errors
    /// [`MessageError::Recipient`] if it is no address, [`MessageError::NoRecipientOf`] if the message is not for it.
    pub fn with_recipient_dsn(mut self, recipient: &str, dsn: RecipientDsn) -> Result<Self, MessageError> {
        let recipient = Address::parse(recipient).map_err(MessageError::Recipient)?;
        if !self.recipients.contains(&recipient) {
            return Err(MessageError::NoRecipientOf(recipient));
        }
        self.recipient_dsn.insert(recipient, dsn);
        Ok(self)
    }

    /// The recipients, each once.
    pub fn recipients(&self) -> &[Address] {
        &self.recipients
    }

    /// The content.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// What can only be checked once all is set.
    pub(crate) fn check(&self) -> Result<(), MessageError> {
        let tags: usize = self.tags.iter().map(|(name, value)| name.len() + value.len()).sum();
        let octets = tags + self.reference.as_ref().map_or(0, String::len);
        if octets > Self::MAX_TAG_OCTETS { Err(MessageError::TagsTooLarge(octets)) } else { Ok(()) }
    }
}

/// The body with lines that end in CRLF (RFC 5321 §2.3.8): each LF without a CR before it, and each CR without an LF behind it,
/// becomes one. For hosts that have their content with the line ends of their system; a body that has CRLF alone is given back as it
/// is, without a copy. Signatures (DKIM) are made over what this gives.
///
/// ```
/// let body = postrider::message::with_line_endings("Subject: hi\n\nHello\n");
/// assert_eq!(body, "Subject: hi\r\n\r\nHello\r\n");
/// ```
pub fn with_line_endings(body: impl Into<Bytes>) -> Bytes {
    let body = body.into();
    if check_line_endings(&body).is_ok() {
        return body;
    }
    let mut out = Vec::with_capacity(body.len() + body.len() / 32);
    let mut rest = &body[..];
    while let Some((line, end, after)) = next_line(rest) {
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
        rest = if end == b'\r' { after.strip_prefix(b"\n").unwrap_or(after) } else { after };
    }
    out.extend_from_slice(rest);
    out.into()
}

/// What comes before the first CR or LF, that, and what comes behind it.
fn next_line(body: &[u8]) -> Option<(&[u8], u8, &[u8])> {
    let (line, rest) = body.split_at_checked(memchr::memchr2(b'\r', b'\n', body)?)?;
    let (&end, after) = rest.split_first()?;
    Some((line, end, after))
}

/// Every CR is followed by LF and every LF preceded by CR (RFC 5321 §2.3.8).
fn check_line_endings(body: &[u8]) -> Result<(), MessageError> {
    let mut expected_lf = None;
    for offset in memchr::memchr2_iter(b'\r', b'\n', body) {
        let carriage_return = body.get(offset) == Some(&b'\r');
        if carriage_return {
            if body.get(offset + 1) != Some(&b'\n') {
                return Err(MessageError::BareLineEnding { offset, carriage_return });
            }
            expected_lf = Some(offset + 1);
        } else if expected_lf != Some(offset) {
            return Err(MessageError::BareLineEnding { offset, carriage_return });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(body: &'static str) -> Result<Message, MessageError> {
        Message::new("a@x.example", ["b@y.example"], body)
    }

    #[test]
    fn bare_line_endings_are_refused_with_their_place() {
        assert!(body("Subject: x\r\n\r\nhi\r\n").is_ok());
        assert!(body("").is_ok());
        let refused =
            |offset, carriage_return| Some(MessageError::BareLineEnding { offset, carriage_return });
        assert_eq!(body("a\nb").err(), refused(1, false));
        assert_eq!(body("a\rb").err(), refused(1, true));
        assert_eq!(body("a\r").err(), refused(1, true));
        assert_eq!(body("\r\n.\n\r\n").err(), refused(3, false));
        assert_eq!(body("\r\r\n").err(), refused(0, true));
    }

    #[test]
    fn line_endings_are_made_where_that_is_asked_for() {
        for (body, made) in [
            ("", ""),
            ("a", "a"),
            ("a\nb", "a\r\nb"),
            ("a\r", "a\r\n"),
            ("\n\n", "\r\n\r\n"),
            ("\r\r\n", "\r\n\r\n"),
            ("\n\r", "\r\n\r\n"),
            ("a\r\nb\nc\rd", "a\r\nb\r\nc\r\nd"),
            ("a\r\n.\n.\r\n", "a\r\n.\r\n.\r\n"),
        ] {
            let found = with_line_endings(body);
            assert_eq!(found, made, "{body:?}");
            assert!(check_line_endings(&found).is_ok());
        }
        let whole = Bytes::from_static(b"a\r\n");
        assert_eq!(with_line_endings(whole.clone()).as_ptr(), whole.as_ptr(), "not copied");
    }

    #[test]
    fn recipients_count_once_and_must_exist() {
        let none: [&str; 0] = [];
        assert_eq!(Message::new("", none, "").err(), Some(MessageError::NoRecipients));
        let message = Message::new("", ["a@x.example", "a@X.example", "b@x.example"], "").unwrap();
        assert_eq!(message.recipients().len(), 2);
        assert!(message.reverse_path.is_none());
        assert!(matches!(Message::new("<>", ["a@x.example"], ""), Err(MessageError::ReversePath(_))));
    }
}
