//! The command encoder (RFC 5321 §4.1.1).
//!
//! [`Address`] holds no control character, space or bracket, so no argument can end or extend its command.

use crate::message::{Address, ReversePath};

pub(super) const RSET: &[u8] = b"RSET\r\n";
pub(super) const DATA: &[u8] = b"DATA\r\n";
pub(super) const STARTTLS: &[u8] = b"STARTTLS\r\n";
pub(super) const QUIT: &[u8] = b"QUIT\r\n";

/// MAIL's parameters; each only where the server offers its extension.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MailParameters {
    /// RFC 1870 §5.
    pub(super) size: Option<u64>,
    /// RFC 6152 §2.
    pub(super) eight_bit: bool,
    /// RFC 6531 §3.4.
    pub(super) utf8: bool,
}

/// EHLO or HELO.
pub(super) fn hello(verb: &str, name: &str) -> Vec<u8> {
    format!("{verb} {name}\r\n").into_bytes()
}

/// Appends MAIL.
pub(super) fn mail(out: &mut Vec<u8>, reverse_path: &ReversePath, parameters: MailParameters) {
    out.extend_from_slice(b"MAIL FROM:<");
    if let Some(address) = reverse_path {
        out.extend_from_slice(address.as_str().as_bytes());
    }
    out.push(b'>');
    if let Some(size) = parameters.size {
        out.extend_from_slice(format!(" SIZE={size}").as_bytes());
    }
    if parameters.eight_bit {
        out.extend_from_slice(b" BODY=8BITMIME");
    }
    if parameters.utf8 {
        out.extend_from_slice(b" SMTPUTF8");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends RCPT.
pub(super) fn rcpt(out: &mut Vec<u8>, recipient: &Address) {
    out.extend_from_slice(b"RCPT TO:<");
    out.extend_from_slice(recipient.as_str().as_bytes());
    out.extend_from_slice(b">\r\n");
}

/// Whether `name` may stand in EHLO: one word of visible ASCII, of a domain's length or a literal's.
pub(super) fn is_hello_name(name: &str) -> bool {
    (1..=255).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_as_the_rfcs_have_them() {
        let from = Some(Address::parse("a@x.example").unwrap());
        let none = MailParameters::default();
        let all = MailParameters { size: Some(17), eight_bit: true, utf8: true };
        for (path, parameters, line) in [
            (&None, none, "MAIL FROM:<>\r\n"),
            (&from, none, "MAIL FROM:<a@x.example>\r\n"),
            (&from, all, "MAIL FROM:<a@x.example> SIZE=17 BODY=8BITMIME SMTPUTF8\r\n"),
        ] {
            let mut out = Vec::new();
            mail(&mut out, path, parameters);
            assert_eq!(String::from_utf8(out).unwrap(), line);
        }
        let mut out = Vec::new();
        rcpt(&mut out, &Address::parse("jörg@bücher.example").unwrap());
        assert_eq!(String::from_utf8(out).unwrap(), "RCPT TO:<jörg@xn--bcher-kva.example>\r\n");
        assert_eq!(hello("EHLO", "[192.0.2.1]"), b"EHLO [192.0.2.1]\r\n");
    }

    #[test]
    fn hello_names_are_one_word() {
        assert!(is_hello_name("mta.example.org"));
        assert!(is_hello_name("[IPv6:2001:db8::1]"));
        for bad in ["", "a b", "a\r\nMAIL", "a\0", "bücher.example", &"a".repeat(256)] {
            assert!(!is_hello_name(bad), "{bad:?}");
        }
    }
}
