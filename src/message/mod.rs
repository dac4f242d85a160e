//! What a host hands in: a message, its envelope and its addresses (RFC 5321 §2.3.1).

mod address;
mod domain;
mod dsn;
mod id;
mod queue_name;
mod submission;

pub use address::{Address, AddressError, ReversePath};
pub use domain::{Domain, DomainError};
pub(crate) use domain::{is_host_name, normal_name};
pub(crate) use dsn::Xtext;
pub use dsn::{DsnError, DsnReturn, EnvelopeId, MessageDsn, Notify, OriginalRecipient, RecipientDsn};
pub use id::{EventId, MessageId};
pub use queue_name::QueueName;
pub use submission::{Message, MessageError, Priority, with_line_endings};
