//! What a sender asks of delivery status notifications (RFC 3461).

use std::fmt::{self, Write as _};
use std::ops::BitOr;

use serde::{Deserialize, Serialize};

/// For the whole message: parameters of MAIL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "the parameters of RFC 3461 §4.3 and §4.4")]
pub struct MessageDsn {
    /// How much of the message a report of a failure brings back (RET).
    pub returned: Option<DsnReturn>,
    /// What reports name the message by (ENVID).
    pub envelope_id: Option<EnvelopeId>,
}

/// For one recipient: parameters of RCPT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "the parameters of RFC 3461 §4.1 and §4.2")]
pub struct RecipientDsn {
    /// What is to be reported (NOTIFY). `None`: a failure, and a delay where the server likes.
    pub notify: Option<Notify>,
    /// Whom the message was for when it was first sent (ORCPT).
    pub original_recipient: Option<OriginalRecipient>,
}

/// RET (RFC 3461 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_enums, reason = "the RFC knows two")]
pub enum DsnReturn {
    /// The whole message.
    Full,
    /// Its header alone.
    Headers,
}

impl DsnReturn {
    /// `FULL` or `HDRS`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Headers => "HDRS",
        }
    }
}

/// NOTIFY (RFC 3461 §4.1): what is to be reported, any of three, or nothing.
///
/// ```
/// use postrider::message::Notify;
/// assert_eq!((Notify::SUCCESS | Notify::FAILURE).to_string(), "SUCCESS,FAILURE");
/// assert_eq!(Notify::NEVER.to_string(), "NEVER");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notify(u8);

impl Notify {
    /// Nothing.
    pub const NEVER: Self = Self(0);
    /// That it was delivered.
    pub const SUCCESS: Self = Self(1);
    /// That it can not be delivered.
    pub const FAILURE: Self = Self(2);
    /// That it is delayed.
    pub const DELAY: Self = Self(4);

    /// Whether all of `other` is to be reported.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Notify {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// As in RCPT.
impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (one, word) in [(Self::SUCCESS, "SUCCESS"), (Self::FAILURE, "FAILURE"), (Self::DELAY, "DELAY")] {
            if self.contains(one) {
                write!(f, "{comma}{word}")?;
                comma = ",";
            }
        }
        if comma.is_empty() { f.write_str("NEVER") } else { Ok(()) }
    }
}

/// ENVID (RFC 3461 §4.4): 1 to 100 printable ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct EnvelopeId(String);

/// ORCPT (RFC 3461 §4.2): a type of address, mostly `rfc822`, and the address, of printable ASCII.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(String, String)", into = "(String, String)")]
pub struct OriginalRecipient {
    address_type: String,
    address: String,
}

/// Why a parameter was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DsnError {
    /// Not an ENVID.
    #[error("`{0}` is no envelope id: 1 to {max} printable ASCII characters, where a space, + and = count as three", max = EnvelopeId::MAX)]
    EnvelopeId(String),
    /// Not a type of address.
    #[error("`{0}` is no type of address: a word such as `rfc822`, of letters, digits and hyphens")]
    AddressType(String),
    /// Not an address that ORCPT can have.
    #[error("`{0}` is no original recipient: 1 to {max} printable ASCII characters, where a space, + and = count as three", max = OriginalRecipient::MAX)]
    OriginalRecipient(String),
}

impl EnvelopeId {
    /// The longest, in octets as it is sent (RFC 3461 §5.4): a space, `+` and `=` are sent as three.
    pub const MAX: usize = 100;

    /// An envelope id, as it shall stand in reports.
    ///
    /// # Errors
    /// [`DsnError::EnvelopeId`].
    pub fn new(text: impl Into<String>) -> Result<Self, DsnError> {
        let text = text.into();
        if is_printable(&text, Self::MAX) { Ok(Self(text)) } else { Err(DsnError::EnvelopeId(text)) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for EnvelopeId {
    type Error = DsnError;

    fn try_from(text: String) -> Result<Self, DsnError> {
        Self::new(text)
    }
}

impl OriginalRecipient {
    /// The longest address, in octets as it is sent: RFC 3461 §5.4 has servers take a parameter of 500, with its type. A space,
    /// `+` and `=` are sent as three.
    pub const MAX: usize = 450;
    const MAX_TYPE: usize = 40;

    /// Of type `rfc822`.
    ///
    /// # Errors
    /// [`DsnError::OriginalRecipient`].
    pub fn new(address: impl Into<String>) -> Result<Self, DsnError> {
        Self::with_type("rfc822", address)
    }

    /// Of another type.
    ///
    /// # Errors
    /// [`DsnError::AddressType`] and [`DsnError::OriginalRecipient`].
    pub fn with_type(address_type: impl Into<String>, address: impl Into<String>) -> Result<Self, DsnError> {
        let (address_type, address) = (address_type.into(), address.into());
        let is_word = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-';
        if !(1..=Self::MAX_TYPE).contains(&address_type.len()) || !address_type.bytes().all(is_word) {
            Err(DsnError::AddressType(address_type))
        } else if !is_printable(&address, Self::MAX) {
            Err(DsnError::OriginalRecipient(address))
        } else {
            Ok(Self { address_type, address })
        }
    }

    /// Such as `rfc822`.
    pub fn address_type(&self) -> &str {
        &self.address_type
    }

    /// The address.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl TryFrom<(String, String)> for OriginalRecipient {
    type Error = DsnError;

    fn try_from((address_type, address): (String, String)) -> Result<Self, DsnError> {
        Self::with_type(address_type, address)
    }
}

impl From<OriginalRecipient> for (String, String) {
    fn from(original: OriginalRecipient) -> Self {
        (original.address_type, original.address)
    }
}

fn is_printable(text: &str, max: usize) -> bool {
    let sent = |octet| if Xtext::is_escaped(octet) { 3 } else { 1 };
    (1..=max).contains(&text.bytes().map(sent).sum())
        && text.bytes().all(|octet| octet.is_ascii_graphic() || octet == b' ')
}

/// Printable ASCII as parameters have it (RFC 3461 §4).
pub(crate) struct Xtext<'a>(pub(crate) &'a str);

impl Xtext<'_> {
    fn is_escaped(octet: u8) -> bool {
        matches!(octet, b'+' | b'=') || !octet.is_ascii_graphic()
    }
}

impl fmt::Display for Xtext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for octet in self.0.bytes() {
            if Self::is_escaped(octet) {
                write!(f, "+{octet:02X}")?;
            } else {
                f.write_char(octet.into())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_checked_where_they_are_made() {
        assert_eq!(EnvelopeId::new("QQ 314+159").unwrap().as_str(), "QQ 314+159");
        assert!(EnvelopeId::new("+".repeat(33)).is_ok());
        for bad in ["", "a\r\nRCPT", "ü", &"a".repeat(101), &"+".repeat(34)] {
            assert_eq!(EnvelopeId::new(bad), Err(DsnError::EnvelopeId(bad.to_owned())));
        }
        let original = OriginalRecipient::new("Bob <bob@example.net>").unwrap();
        assert_eq!((original.address_type(), original.address()), ("rfc822", "Bob <bob@example.net>"));
        for bad in ["", "rfc 822", "rfc822;", "x\n", &"x".repeat(41)] {
            let refused = OriginalRecipient::with_type(bad, "bob");
            assert_eq!(refused, Err(DsnError::AddressType(bad.to_owned())));
        }
        assert!(OriginalRecipient::new("=".repeat(150)).is_ok());
        for bad in ["", "bob\0", "jörg", &"a".repeat(451), &" ".repeat(151)] {
            assert_eq!(OriginalRecipient::new(bad), Err(DsnError::OriginalRecipient(bad.to_owned())));
        }
    }

    #[test]
    fn what_a_store_gives_back_is_checked_too() {
        let kept = postcard::to_stdvec(&OriginalRecipient::new("bob").unwrap()).unwrap();
        assert_eq!(postcard::from_bytes(&kept), Ok(OriginalRecipient::new("bob").unwrap()));
        let forged = postcard::to_stdvec(&("rfc822", "bob>\r\nDATA")).unwrap();
        assert!(postcard::from_bytes::<OriginalRecipient>(&forged).is_err());
        let forged = postcard::to_stdvec("a\r\nDATA").unwrap();
        assert!(postcard::from_bytes::<EnvelopeId>(&forged).is_err());
    }

    #[test]
    fn xtext_has_neither_space_nor_sign() {
        assert_eq!(Xtext("a b+c=d\u{7f}~!").to_string(), "a+20b+2Bc+3Dd+7F~!");
        assert_eq!(Xtext("a\r\nb").to_string(), "a+0D+0Ab");
    }

    #[test]
    fn what_is_asked_for() {
        assert_eq!((Notify::SUCCESS | Notify::FAILURE | Notify::DELAY).to_string(), "SUCCESS,FAILURE,DELAY");
        assert_eq!((Notify::NEVER | Notify::DELAY).to_string(), "DELAY");
        assert!(Notify::SUCCESS.contains(Notify::SUCCESS) && !Notify::SUCCESS.contains(Notify::DELAY));
    }
}
