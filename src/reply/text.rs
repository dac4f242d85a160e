//! What a reply says.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Octets that lie in it. Most of the replies that one gets are `2.1.0 Ok`, `2.1.5 Ok` and the like, three or four for
/// each message, and take no memory elsewhere.
const SHORT: usize = 30;

/// A text of octets, shared by its copies if it is long.
#[derive(Clone)]
pub(super) enum Text {
    Short { octets: [u8; SHORT], len: u8 },
    Long(Arc<[u8]>),
}

impl Deref for Text {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { octets, len } => octets.get(..usize::from(*len)).unwrap_or_default(),
            Self::Long(octets) => octets,
        }
    }
}

impl From<&[u8]> for Text {
    fn from(text: &[u8]) -> Self {
        let mut octets = [0; SHORT];
        match (octets.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(text);
                Self::Short { octets, len }
            }
            _ => Self::Long(text.into()),
        }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

/// As a sequence of octets.
impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            (**self).serialize(serializer)
        } else {
            serializer.serialize_bytes(self)
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_seq(Octets)
        } else {
            deserializer.deserialize_bytes(Octets)
        }
    }
}

struct Octets;

impl<'de> Visitor<'de> for Octets {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("octets")
    }

    fn visit_bytes<E>(self, octets: &[u8]) -> Result<Text, E> {
        Ok(octets.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Text, A::Error> {
        let mut octets = Vec::new();
        while let Some(octet) = sequence.next_element()? {
            octets.push(octet);
        }
        Ok((*octets).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_text_however_long_it_is() {
        for len in [0, 1, SHORT - 1, SHORT, SHORT + 1, 3 * SHORT, 256, 300] {
            let octets: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
            let text = Text::from(&*octets);
            assert_eq!((&*text, matches!(text, Text::Short { .. })), (&*octets, len <= SHORT));
            assert!(text == text.clone() && text != Text::from(b"another".as_slice()));
            let stored = postcard::to_stdvec(&text).unwrap();
            assert_eq!(stored, postcard::to_stdvec(&octets).unwrap(), "as any sequence");
            assert_eq!(&*postcard::from_bytes::<Text>(&stored).unwrap(), &*octets);
            let shown = serde_json::to_string(&text).unwrap();
            assert_eq!(shown, serde_json::to_string(&octets).unwrap(), "as any sequence");
            assert_eq!(&*serde_json::from_str::<Text>(&shown).unwrap(), &*octets);
        }
    }
}
