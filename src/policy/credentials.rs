//! Who a queue authenticates as at its fixed hosts.

use std::fmt;
use std::sync::Arc;

/// The most octets of a name or a password. RFC 4616 §2 has servers take 255 of each; tokens may be longer.
const MOST: usize = 1_024;

/// A password (`auth-password`). It shows in no output of `Debug`, and has no `Display`.
#[derive(Clone, PartialEq, Eq, Hash)]
#[doc(alias = "secret")]
pub struct Password(Arc<str>);

impl Password {
    /// The password itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Password {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Whom a session is authenticated as (RFC 4954). Sessions are shared only among the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "all that PLAIN and LOGIN take")]
pub struct Credentials {
    /// The name (`auth-username`).
    pub username: Arc<str>,
    /// The password (`auth-password`).
    pub password: Password,
    /// They may be sent without TLS (`use-unencrypted-plain-auth`).
    pub unencrypted: bool,
}

pub(super) fn check_username(name: &Option<Arc<str>>) -> Result<(), &'static str> {
    match name.as_deref().is_none_or(is_sendable) {
        true => Ok(()),
        false => Err("is no name to authenticate as: write 1 to 1024 octets, none of them NUL"),
    }
}

pub(super) fn check_password(password: &Option<Password>) -> Result<(), &'static str> {
    match password.as_ref().map(Password::expose).is_none_or(is_sendable) {
        true => Ok(()),
        false => Err("is no password to authenticate with: write 1 to 1024 octets, none of them NUL"),
    }
}

/// NUL separates name and password in PLAIN (RFC 4616 §2).
fn is_sendable(text: &str) -> bool {
    (1..=MOST).contains(&text.len()) && !text.contains('\0')
}
