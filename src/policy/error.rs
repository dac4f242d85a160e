//! What is wrong with a policy.

use std::fmt;

/// Why a policy was refused: where, what was written there, and what would be right.
///
/// Displays as one line, such as
/// `line 12: domain."*".retry-after: "5x" is not a duration: write it like "90s", "5m" or "4d12h"`. The name of
/// the file is for the caller to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    kind: PolicyErrorKind,
    line: Option<usize>,
    key: String,
    value: Option<String>,
    problem: String,
}

/// What [`Config::from_toml`](super::Config::from_toml) fails with: a config is a policy and where the parts are.
pub type ConfigError = PolicyError;

/// What kind of mistake it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PolicyErrorKind {
    /// The text is not TOML.
    Syntax,
    /// There is no such key.
    UnknownKey,
    /// A key that must be there is not.
    MissingKey,
    /// The value is not one the key takes.
    InvalidValue,
    /// Two parts of the policy exclude each other: a name given twice, a pool of unknown sources …
    Contradiction,
    /// Valid, but it asks for something this version of the engine does not do.
    NotBuilt,
}

impl PolicyError {
    pub(super) fn new(kind: PolicyErrorKind, key: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self { kind, line: None, key: key.into(), value: None, problem: problem.to_string() }
    }

    pub(super) fn invalid(
        key: impl Into<String>,
        value: impl fmt::Display,
        problem: impl fmt::Display,
    ) -> Self {
        Self::new(PolicyErrorKind::InvalidValue, key, problem).with_value(value)
    }

    pub(super) fn contradiction(key: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self::new(PolicyErrorKind::Contradiction, key, problem)
    }

    pub(super) fn at_line(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }

    pub(super) fn with_value(mut self, value: impl fmt::Display) -> Self {
        self.value = Some(value.to_string());
        self
    }

    /// What kind of mistake it is.
    pub fn kind(&self) -> PolicyErrorKind {
        self.kind
    }

    /// The line of the text, from 1; `None` when the policy was built in Rust.
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// The key as a dotted path, such as `domain."*".retry-after`; empty when the text is not TOML.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The offending value as it was written, shortened if long.
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        if let Some(value) = &self.value {
            // "5x" is no duration; but "100/h": not built yet.
            f.write_str(value)?;
            f.write_str(if self.kind == PolicyErrorKind::NotBuilt { ": " } else { " " })?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for PolicyError {}

/// `path.segment`, the segment in quotes if TOML wants them.
pub(super) fn dotted(path: &str, segment: &str) -> String {
    let bare =
        !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let segment = if bare { segment.to_owned() } else { format!("\"{}\"", segment.escape_debug()) };
    if path.is_empty() { segment } else { format!("{path}.{segment}") }
}
