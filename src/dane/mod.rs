//! DANE for SMTP (RFC 7672): hosts say by TLSA records, which DNSSEC authenticates, that they have TLS, and by which
//! certificate they are known.
//!
//! The engine looks for the TLSA records of hosts whose names and addresses DNS gave authentically, where `use-dane` says
//! so ([`find_route`](crate::dns::find_route)). A [`TlsaSet`] is what it found for one host. A session with such a host has TLS, and its
//! certificate matches one of the records; else the next host is tried, and without one the mail waits.
//!
//! That rests on a resolver that tells what is [authentic](crate::dns::Answer::authentic). Without one there is no DANE.

mod records;

pub use records::TlsaSet;
