//! Names with a wildcard, for hosts and queues.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::message::{Domain, normal_name};

/// A host's, domain's or queue's name, or a wildcard such as `*.google.com`.
///
/// `*` stands for one label or more, so `*.google.com` is not `google.com` itself. At most one `*`, for whole
/// labels. Case, a trailing dot and U-labels do not matter.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NamePattern(Kind);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Kind {
    Exact(Box<str>),
    /// What stands before the `*`, with its dot, and what after it.
    Wildcard(Box<str>, Box<str>),
}

/// Neither a name nor a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    r#"not a name or wildcard: write it like "mx.example.com", or "*.example.com" where * is whole labels"#
)]
#[non_exhaustive]
pub struct PatternError;

impl NamePattern {
    /// Whether `name` matches.
    ///
    /// ```
    /// # use postrider::policy::NamePattern;
    /// let pattern: NamePattern = "*.google.com".parse()?;
    /// assert!(pattern.matches("ASPMX.L.Google.com."));
    /// assert!(!pattern.matches("google.com"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn matches(&self, name: &str) -> bool {
        // Case and dot are compared as they are: only U-labels cost a copy.
        let name = if name.is_ascii() { Cow::Borrowed(name) } else { normal_name(name) };
        let name = name.strip_suffix('.').unwrap_or(&name);
        match &self.0 {
            Kind::Exact(exact) => name.eq_ignore_ascii_case(exact),
            Kind::Wildcard(head, tail) => {
                let Some((start, rest)) = name.split_at_checked(head.len()) else { return false };
                let Some(middle) = rest.len().checked_sub(tail.len()).filter(|len| *len > 0) else {
                    return false;
                };
                let Some((_, end)) = rest.split_at_checked(middle) else { return false };
                start.eq_ignore_ascii_case(head) && end.eq_ignore_ascii_case(tail)
            }
        }
    }

    /// Has a `*`.
    pub fn is_wildcard(&self) -> bool {
        matches!(self.0, Kind::Wildcard(..))
    }

    /// A lone `*`: matches every name.
    pub fn matches_all(&self) -> bool {
        matches!(&self.0, Kind::Wildcard(head, tail) if head.is_empty() && tail.is_empty())
    }

    /// What stands before the `*`, with its dot, and what after it, with its dot.
    pub(super) fn around_star(&self) -> Option<(&str, &str)> {
        match &self.0 {
            Kind::Exact(_) => None,
            Kind::Wildcard(head, tail) => Some((head, tail)),
        }
    }

    /// The name, if it has no `*`.
    pub fn exact(&self) -> Option<&str> {
        match &self.0 {
            Kind::Exact(name) => Some(name),
            Kind::Wildcard(..) => None,
        }
    }
}

impl FromStr for NamePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let name = |part: &str| match Domain::parse(part) {
            Ok(name) if name.literal_address().is_none() => Ok(name.to_string()),
            _ => Err(PatternError),
        };
        let Some((head, tail)) = text.split_once('*') else {
            return Ok(Self(Kind::Exact(name(text)?.into())));
        };
        let head = match head.strip_suffix('.') {
            Some(head) => name(head)? + ".",
            None if head.is_empty() => String::new(),
            None => return Err(PatternError),
        };
        let tail = match tail.strip_prefix('.') {
            Some("") => String::new(),
            Some(tail) => format!(".{}", name(tail)?),
            None if tail.is_empty() => String::new(),
            None => return Err(PatternError),
        };
        Ok(Self(Kind::Wildcard(head.into(), tail.into())))
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Exact(name) => f.write_str(name),
            Kind::Wildcard(head, tail) => write!(f, "{head}*{tail}"),
        }
    }
}

impl fmt::Debug for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_star_is_one_label_or_more() {
        for (pattern, name, matches) in [
            ("*.google.com", "aspmx.l.google.com", true),
            ("*.google.com", "MX.Google.COM.", true),
            ("*.google.com", "google.com", false),
            ("*.google.com", "xgoogle.com", false),
            ("*.google.com", ".google.com", false),
            ("*.Google.com.", "a.google.com", true),
            ("mx.*.example", "mx.a.b.example", true),
            ("mx.*.example", "mx.example", false),
            ("mx.*", "mx.example", true),
            ("*", "anything.at.all", true),
            ("mx1.example", "MX1.example.", true),
            ("mx1.example", "mx1.example.org", false),
            ("*.bücher.example", "mx.xn--bcher-kva.example", true),
            ("*.xn--bcher-kva.example", "mx.BÜCHER.example.", true),
            ("bücher.example", "bücher.example", true),
            ("bücher.example", "bucher.example", false),
        ] {
            let parsed: NamePattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", ".", "mx*.example", "*mx.example", "*.*.example", "a b", "*..x", "[192.0.2.1]", "**"]
        {
            assert_eq!(text.parse::<NamePattern>(), Err(PatternError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(pattern in "[a-zé*.]{0,12}", name in "[a-zé.]{0,12}") {
            if let Ok(pattern) = pattern.parse::<NamePattern>() {
                let _ = pattern.matches(&name);
                prop_assert_eq!(pattern.to_string().parse::<NamePattern>().unwrap(), pattern);
            }
        }
    }
}
