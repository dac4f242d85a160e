//! Walking the parsed text: values that know their line and key.

use std::fmt::Display;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::hint;
use crate::policy::error::{PolicyError, PolicyErrorKind, dotted};

/// The most of a value that a message repeats.
const SHOWN: usize = 60;

/// The key whose value no message repeats.
const SECRET: &str = "auth-password";

/// A value of the file, with where it stands.
#[derive(Clone)]
pub(in crate::policy) struct Item<'t> {
    text: &'t str,
    pub(super) path: String,
    /// Octet in the text, for the line.
    at: usize,
    value: &'t Spanned<DeValue<'t>>,
}

/// A table of the file. All its keys are known.
pub(super) struct Section<'t> {
    text: &'t str,
    pub(super) path: String,
    at: usize,
    table: &'t DeTable<'t>,
}

/// The line, from 1, on which an octet of the text stands.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

impl<'t> Item<'t> {
    pub(super) fn line(&self) -> usize {
        line_of(self.text, self.at)
    }

    /// Calls it by another name in messages.
    pub(super) fn named(mut self, path: String) -> Self {
        self.path = path;
        self
    }

    /// The value as it was written, on one line and shortened. A table written with a header has no text of its
    /// own, and what may hold a password is not repeated.
    fn raw(&self) -> Option<String> {
        if self.path.ends_with(SECRET) || has_table(self.value.get_ref()) {
            return None;
        }
        let raw = self.text.get(self.value.span()).unwrap_or_default();
        let mut shown = String::new();
        for c in raw.chars().take(SHOWN) {
            if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
        }
        if raw.chars().nth(SHOWN).is_some() {
            shown.push('…');
        }
        Some(shown)
    }

    /// An error here: the value and what is wrong with it, as the predicate of a sentence.
    pub(in crate::policy) fn wrong(&self, problem: impl Display) -> PolicyError {
        self.error(PolicyErrorKind::InvalidValue, problem)
    }

    pub(super) fn error(&self, kind: PolicyErrorKind, problem: impl Display) -> PolicyError {
        let error = PolicyError::new(kind, self.path.clone(), problem).at_line(self.line());
        match self.raw() {
            Some(raw) => error.with_value(raw),
            None => error,
        }
    }

    pub(super) fn as_str(&self) -> Option<&'t str> {
        self.value.get_ref().as_str()
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        self.value.get_ref().as_bool()
    }

    /// A whole number that fits.
    pub(super) fn as_u32(&self) -> Option<u32> {
        let integer = self.value.get_ref().as_integer()?;
        u32::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    /// A number, whole or not.
    pub(super) fn as_f64(&self) -> Option<f64> {
        match self.value.get_ref() {
            DeValue::Float(float) => float.as_str().parse().ok(),
            _ => self.as_u32().map(f64::from),
        }
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// The elements of a list; `None` if it is none.
    pub(super) fn elements(&self) -> Option<Vec<Item<'t>>> {
        let array = self.value.get_ref().as_array()?;
        let element = |value: &'t Spanned<DeValue<'t>>| Item {
            text: self.text,
            path: self.path.clone(),
            at: value.span().start,
            value,
        };
        Some(array.iter().map(element).collect())
    }

    /// The elements of a list, or the value itself as the only one.
    pub(super) fn one_or_more(&self) -> Vec<Item<'t>> {
        self.elements().unwrap_or_else(|| vec![self.clone()])
    }

    /// The table that this is, with no key but those of `known`.
    pub(super) fn section(&self, known: &[&[&str]]) -> Result<Section<'t>, PolicyError> {
        let section = self.open_section()?;
        for (key, value) in section.table {
            if !known.iter().any(|keys| keys.contains(&&**key.get_ref())) {
                let problem = hint::unknown(key.get_ref(), known, &self.path, value.get_ref().is_table());
                let path = dotted(&self.path, key.get_ref());
                let error = PolicyError::new(PolicyErrorKind::UnknownKey, path, problem);
                return Err(error.at_line(line_of(self.text, key.span().start)));
            }
        }
        Ok(section)
    }

    /// The table that this is, with keys of the user's choosing.
    pub(super) fn open_section(&self) -> Result<Section<'t>, PolicyError> {
        match self.value.get_ref() {
            DeValue::Table(table) => {
                Ok(Section { text: self.text, path: self.path.clone(), at: self.at, table })
            }
            _ => Err(self.wrong(format_args!("is not a table: write it as [{}]", self.path))),
        }
    }
}

impl<'t> Section<'t> {
    pub(super) fn line(&self) -> usize {
        line_of(self.text, self.at)
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<Item<'t>> {
        let (key, value) = self.table.get_key_value(key)?;
        Some(self.item(key, value))
    }

    /// The value of a key that must be there.
    pub(super) fn require(&self, key: &str, example: &str) -> Result<Item<'t>, PolicyError> {
        self.get(key).ok_or_else(|| {
            let problem = format_args!("is missing: write {key} = {example}");
            let line = self.line();
            PolicyError::new(PolicyErrorKind::MissingKey, dotted(&self.path, key), problem).at_line(line)
        })
    }

    /// All keys with their values, in the order of the file, so that the first mistake is the one reported.
    pub(super) fn items(&self) -> Vec<(&'t str, Item<'t>)> {
        let items = self.table.iter().map(|(key, value)| (&**key.get_ref(), self.item(key, value)));
        let mut items: Vec<_> = items.collect();
        items.sort_by_key(|(_, item)| item.at);
        items
    }

    fn item<S: AsRef<str>>(&self, key: &'t Spanned<S>, value: &'t Spanned<DeValue<'t>>) -> Item<'t> {
        Item {
            text: self.text,
            path: dotted(&self.path, key.get_ref().as_ref()),
            at: key.span().start,
            value,
        }
    }
}

fn has_table(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Table(_) => true,
        DeValue::Array(elements) => elements.iter().any(|element| has_table(element.get_ref())),
        _ => false,
    }
}

/// Parses the text and gives its root to `read`.
pub(super) fn with_document<T>(
    text: &str,
    read: impl FnOnce(Item<'_>) -> Result<T, PolicyError>,
) -> Result<T, PolicyError> {
    let document = DeTable::parse(text).map_err(|error| {
        let line = line_of(text, error.span().map_or(0, |span| span.start));
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        PolicyError::new(PolicyErrorKind::Syntax, "", format_args!("not valid TOML: {message}")).at_line(line)
    })?;
    let span = document.span();
    let root = Spanned::new(span, DeValue::Table(document.into_inner()));
    read(Item { text, path: String::new(), at: 0, value: &root })
}
