//! Identifiers of messages and events.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Timestamp;

/// Identifies a message: a UUID, version 7 (RFC 9562) unless the host gave its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MessageId(Uuid);

/// Identifies one event for ever: the same outcome reported twice carries the same id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventId(Uuid);

macro_rules! uuid_newtype {
    ($name:ident) => {
        impl $name {
            /// Wraps a UUID of the host's.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID.
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }

            pub(crate) fn generate(now: Timestamp, random: u128) -> Self {
                let bytes = random.to_be_bytes();
                let mut tail = [0; 10];
                tail.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
                let millis = now.as_unix_micros() / 1000;
                Self(uuid::Builder::from_unix_timestamp_millis(millis, &tail).into_uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_newtype!(MessageId);
uuid_newtype!(EventId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_sort_by_time() {
        let early = MessageId::generate(Timestamp::from_unix_seconds(10), u128::MAX);
        let late = MessageId::generate(Timestamp::from_unix_seconds(11), 0);
        assert!(early < late);
        assert_eq!(late.as_uuid().get_version_num(), 7);
        assert_eq!(late.to_string().parse::<MessageId>().unwrap(), late);
    }
}
