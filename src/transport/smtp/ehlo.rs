//! What the server offers in its reply to EHLO (RFC 5321 §4.1.1.1).

use crate::reply::Reply;
use crate::transport::SessionLimits;

/// The extensions this client knows and the server offers. None after HELO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    /// RFC 2920.
    pub(super) pipelining: bool,
    /// RFC 6152.
    pub(super) eight_bit_mime: bool,
    /// RFC 3030.
    pub(super) chunking: bool,
    /// RFC 6531.
    pub(super) smtputf8: bool,
    /// RFC 2034. Enhanced statuses are read in any case; servers send them without offering.
    pub(super) enhanced_status_codes: bool,
    /// RFC 3207.
    pub(super) starttls: bool,
    /// RFC 8689.
    pub(super) require_tls: bool,
    /// RFC 4954.
    pub(super) auth: Mechanisms,
    /// RFC 1870.
    pub(super) size: Option<Size>,
    /// RFC 3461.
    pub(super) dsn: bool,
    /// RFC 9422.
    pub(super) limits: SessionLimits,
}

/// The mechanisms of AUTH that this client knows and the server offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mechanisms {
    /// RFC 4616.
    pub(super) plain: bool,
    /// Never standardised, and all that some servers have.
    pub(super) login: bool,
}

impl Mechanisms {
    fn add(&mut self, name: &[u8]) {
        self.plain |= name.eq_ignore_ascii_case(b"PLAIN");
        self.login |= name.eq_ignore_ascii_case(b"LOGIN");
    }
}

/// SIZE was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// The most octets a message may have, if the server says.
    pub(super) limit: Option<u64>,
}

impl Extensions {
    /// Keywords are case-insensitive; what is unknown or malformed is passed over.
    pub(crate) fn parse(reply: &Reply) -> Self {
        let mut extensions = Self::default();
        // The first line is the server's name and greeting.
        for line in reply.lines().skip(1) {
            let mut words = line.split(|&b| b == b' ' || b == b'\t').filter(|word| !word.is_empty());
            let Some(keyword) = words.next() else { continue };
            match keyword.to_ascii_uppercase().as_slice() {
                b"PIPELINING" => extensions.pipelining = true,
                b"8BITMIME" => extensions.eight_bit_mime = true,
                b"CHUNKING" => extensions.chunking = true,
                b"SMTPUTF8" => extensions.smtputf8 = true,
                b"ENHANCEDSTATUSCODES" => extensions.enhanced_status_codes = true,
                b"STARTTLS" => extensions.starttls = true,
                b"REQUIRETLS" => extensions.require_tls = true,
                b"DSN" => extensions.dsn = true,
                b"AUTH" => words.for_each(|name| extensions.auth.add(name)),
                // As servers wrote it before RFC 2554, the first mechanism behind the sign.
                [b'A', b'U', b'T', b'H', b'=', first @ ..] => {
                    extensions.auth.add(first);
                    words.for_each(|name| extensions.auth.add(name));
                }
                b"LIMITS" => words.for_each(|limit| add_limit(&mut extensions.limits, limit)),
                b"SIZE" => extensions.size = Some(Size { limit: words.next().and_then(size_limit) }),
                _ => {}
            }
        }
        extensions
    }
}

/// `NAME=value`, a number of one to six digits that does not begin with zero; of two the lower counts. RCPTDOMAINMAX, so many
/// domains in a session, is kept by as many transactions: each has recipients of one domain, the next maybe of another.
fn add_limit(limits: &mut SessionLimits, limit: &[u8]) {
    let mut parts = limit.splitn(2, |&b| b == b'=');
    let (Some(name), Some(value)) = (parts.next(), parts.next()) else { return };
    let is_number = value.len() <= 6 && value.iter().all(u8::is_ascii_digit) && !value.starts_with(b"0");
    let number = std::str::from_utf8(value).ok().filter(|_| is_number).and_then(|value| value.parse().ok());
    let known = match name.to_ascii_uppercase().as_slice() {
        b"RCPTMAX" => &mut limits.recipients,
        b"MAILMAX" | b"RCPTDOMAINMAX" => &mut limits.transactions,
        _ => return,
    };
    *known = [*known, number].into_iter().flatten().min();
}

/// Zero means no limit is in force (RFC 1870 §4).
fn size_limit(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok().filter(|&limit| limit > 0)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn offers(text: &str) -> Extensions {
        Extensions::parse(&Reply::parse(text).unwrap())
    }

    /// Zero: none.
    fn limits(recipients: u32, transactions: u32) -> SessionLimits {
        SessionLimits { recipients: NonZeroU32::new(recipients), transactions: NonZeroU32::new(transactions) }
    }

    #[test]
    fn keywords_in_any_case() {
        let all = Extensions {
            pipelining: true,
            eight_bit_mime: true,
            chunking: true,
            smtputf8: true,
            enhanced_status_codes: true,
            starttls: true,
            require_tls: true,
            auth: Mechanisms { plain: false, login: true },
            size: Some(Size { limit: Some(35_882_577) }),
            dsn: true,
            limits: limits(20, 5),
        };
        let text = "250-mx.example at your service\n250-SIZE 35882577\n250-8bitmime\n250-Chunking\n250-STARTTLS\n250-Dsn\n250-RequireTLS\n\
                    250-EnhancedStatusCodes\n250-PIPELINING\n250-AUTH=LOGIN\n250-AUTH LOGIN\n\
                    250-limits MailMax=5 RCPTMAX=20 RCPTDOMAINMAX=8\n250 SMTPUTF8";
        assert_eq!(offers(text), all);
    }

    #[test]
    fn oddities_are_passed_over() {
        assert_eq!(offers("250 PIPELINING"), Extensions::default());
        assert_eq!(offers("250-mx\n250-XPIPELINING\n250-\n250 "), Extensions::default());
        assert!(offers("250-mx\n250-PIPELINING \n250 ").pipelining);
        for (line, plain, login) in [
            ("AUTH", false, false),
            ("AUTH GSSAPI XPLAIN", false, false),
            ("auth cram-md5 Plain", true, false),
            ("AUTH=PLAIN LOGIN", true, true),
            ("AUTH= LOGIN", false, true),
            ("XAUTH PLAIN", false, false),
        ] {
            assert_eq!(offers(&format!("250-mx\n250 {line}")).auth, Mechanisms { plain, login }, "{line}");
        }
        for (line, recipients, transactions) in [
            ("LIMITS", 0, 0),
            ("LIMITS RCPTMAX", 0, 0),
            ("LIMITS RCPTMAX=", 0, 0),
            ("LIMITS RCPTMAX=0 MAILMAX=1", 0, 1),
            ("LIMITS RCPTMAX=07 MAILMAX=+1", 0, 0),
            ("LIMITS RCPTMAX=1000000 MAILMAX=999999", 0, 999_999),
            ("LIMITS RCPTMAX=5=6 MAILMAX= 7", 0, 0),
            ("LIMITS XMAX=3 RCPTDOMAINMAX=1  RCPTMAX=9", 9, 1),
            ("LIMITS MAILMAX=5 RCPTDOMAINMAX=2", 0, 2),
            ("LIMITS RCPTMAX=9 RCPTMAX=3 RCPTMAX=7 RCPTMAX=x", 3, 0),
        ] {
            let got = offers(&format!("250-mx\n250 {line}")).limits;
            assert_eq!(got, limits(recipients, transactions), "{line}");
        }
        for (line, limit) in [
            ("SIZE", None),
            ("SIZE 0", None),
            ("SIZE x", None),
            ("SIZE 99999999999999999999", None),
            ("size 7", Some(7)),
        ] {
            assert_eq!(offers(&format!("250-mx\n250 {line}")).size, Some(Size { limit }), "{line}");
        }
    }
}
