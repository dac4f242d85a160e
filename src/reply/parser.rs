//! The reply parser: bytes in, replies out.
