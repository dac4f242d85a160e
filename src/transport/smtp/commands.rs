//! The command encoder (RFC 5321 §4.1.1).
//!
//! [`Address`] holds no control character, space or bracket, so no argument can end or extend its command.

use crate::message::{Address, MessageDsn, RecipientDsn, ReversePath, Xtext};

pub(super) const RSET: &[u8] = b"RSET\r\n";
pub(super) const DATA: &[u8] = b"DATA\r\n";
pub(super) const STARTTLS: &[u8] = b"STARTTLS\r\n";
pub(super) const QUIT: &[u8] = b"QUIT\r\n";

/// MAIL's parameters; each only where the server offers its extension.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MailParameters<'a> {
    /// RFC 1870 §5.
    pub(super) size: Option<u64>,
    /// RFC 6152 §2.
    pub(super) eight_bit: bool,
    /// RFC 6531 §3.4.
    pub(super) utf8: bool,
    /// RFC 8689 §2.
    pub(super) require_tls: bool,
    /// RFC 3461 §4.3 and §4.4.
    pub(super) dsn: Option<&'a MessageDsn>,
}

/// EHLO or HELO.
pub(super) fn hello(verb: &str, name: &str) -> Vec<u8> {
    format!("{verb} {name}\r\n").into_bytes()
}

/// Appends MAIL.
pub(super) fn mail(out: &mut Vec<u8>, reverse_path: &ReversePath, parameters: MailParameters<'_>) {
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
    if parameters.require_tls {
        out.extend_from_slice(b" REQUIRETLS");
    }
    if let Some(returned) = parameters.dsn.and_then(|dsn| dsn.returned) {
        out.extend_from_slice(format!(" RET={}", returned.as_str()).as_bytes());
    }
    if let Some(id) = parameters.dsn.and_then(|dsn| dsn.envelope_id.as_ref()) {
        out.extend_from_slice(format!(" ENVID={}", Xtext(id.as_str())).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends RCPT, with what is to be reported where the server offers DSN (RFC 3461 §4.1 and §4.2).
pub(super) fn rcpt(out: &mut Vec<u8>, recipient: &Address, dsn: Option<&RecipientDsn>) {
    out.extend_from_slice(b"RCPT TO:<");
    out.extend_from_slice(recipient.as_str().as_bytes());
    out.push(b'>');
    if let Some(notify) = dsn.and_then(|dsn| dsn.notify) {
        out.extend_from_slice(format!(" NOTIFY={notify}").as_bytes());
    }
    if let Some(original) = dsn.and_then(|dsn| dsn.original_recipient.as_ref()) {
        let (address_type, address) = (original.address_type(), Xtext(original.address()));
        out.extend_from_slice(format!(" ORCPT={address_type};{address}").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// BDAT for a chunk of so many octets, the only one and so the last (RFC 3030 §2).
pub(super) fn bdat(octets: u64) -> Vec<u8> {
    format!("BDAT {octets} LAST\r\n").into_bytes()
}

/// Whether `name` may stand in EHLO: one word of visible ASCII, of a domain's length or a literal's.
pub(super) fn is_hello_name(name: &str) -> bool {
    (1..=255).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{DsnReturn, EnvelopeId, Notify, OriginalRecipient};

    #[test]
    fn commands_are_written_as_the_rfcs_have_them() {
        let from = Some(Address::parse("a@x.example").unwrap());
        let none = MailParameters::default();
        let returned = Some(DsnReturn::Headers);
        let dsn = MessageDsn { returned, envelope_id: EnvelopeId::new("a b").ok() };
        let all = MailParameters {
            size: Some(17),
            eight_bit: true,
            utf8: true,
            require_tls: true,
            dsn: Some(&dsn),
        };
        let full = MessageDsn { returned: Some(DsnReturn::Full), envelope_id: None };
        let full = MailParameters { dsn: Some(&full), ..none };
        for (path, parameters, line) in [
            (&None, none, "MAIL FROM:<>\r\n"),
            (&from, none, "MAIL FROM:<a@x.example>\r\n"),
            (&from, full, "MAIL FROM:<a@x.example> RET=FULL\r\n"),
            (
                &from,
                all,
                "MAIL FROM:<a@x.example> SIZE=17 BODY=8BITMIME SMTPUTF8 REQUIRETLS RET=HDRS ENVID=a+20b\r\n",
            ),
        ] {
            let mut out = Vec::new();
            mail(&mut out, path, parameters);
            assert_eq!(String::from_utf8(out).unwrap(), line);
        }
        let mut out = Vec::new();
        rcpt(&mut out, &Address::parse("jörg@bücher.example").unwrap(), None);
        assert_eq!(String::from_utf8(out).unwrap(), "RCPT TO:<jörg@xn--bcher-kva.example>\r\n");
        let notify = Some(Notify::SUCCESS | Notify::DELAY);
        let dsn = RecipientDsn { notify, original_recipient: OriginalRecipient::new("b+c@y.example").ok() };
        let mut out = Vec::new();
        rcpt(&mut out, &Address::parse("b@y.example").unwrap(), Some(&dsn));
        let line = "RCPT TO:<b@y.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b+2Bc@y.example\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), line);
        assert_eq!(bdat(0), b"BDAT 0 LAST\r\n");
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
