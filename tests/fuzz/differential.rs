//! The reply parser beside that of smtp-proto: on well-formed replies both read the same, and where they are known to
//! differ they still do.

use postrider::reply::ReplyParser;
use smtp_proto::response::parser::ResponseReceiver;

/// Code, enhanced status, and text on one line, of each reply; then why it went no further.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    replies: Vec<(u16, [u16; 3], String)>,
    failed: bool,
}

fn ours(octets: &[u8], size: usize) -> Read {
    let (mut parser, mut replies) = (ReplyParser::new(), Vec::new());
    for mut piece in octets.chunks(size) {
        loop {
            match parser.parse(&mut piece) {
                Ok(Some(reply)) => {
                    let status = reply
                        .enhanced()
                        .map(|status| [u16::from(status.class), status.subject, status.detail]);
                    replies.push((reply.code(), status.unwrap_or_default(), reply.text()));
                }
                Ok(None) => break,
                Err(_) => return Read { replies, failed: true },
            }
        }
    }
    Read { replies, failed: false }
}

fn theirs(octets: &[u8], size: usize) -> Read {
    let (mut parser, mut replies) = (ResponseReceiver::default(), Vec::new());
    for piece in octets.chunks(size) {
        let mut rest = piece.iter();
        loop {
            match parser.parse(&mut rest) {
                Ok(reply) => {
                    let lines: Vec<&str> =
                        reply.message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                    replies.push((reply.code, reply.esc.map(u16::from), lines.join(" ")));
                    parser.reset();
                }
                Err(smtp_proto::Error::NeedsMoreData { .. }) => break,
                Err(_) => return Read { replies, failed: true },
            }
        }
    }
    Read { replies, failed: false }
}

/// Replies by RFC 5321 §4.2 and RFC 2034 §4, as servers write them.
pub(crate) fn well_formed(random: &mut fastrand::Rng) -> Vec<u8> {
    const WORDS: [&str; 10] =
        ["ok", "<ann@x.example>:", "user", "unknown", "(in reply", "to", "RCPT)", "450", "#5.1.1", "café"];
    let mut octets = String::new();
    for _ in 0..random.usize(1..4) {
        let code = random.u16(200..600);
        let status = random.bool().then(|| [code / 100, random.u16(..256), random.u16(..256)]);
        let status = status.filter(|_| [2, 4, 5].contains(&(code / 100)));
        let last = random.usize(..4);
        for line in 0..=last {
            octets.push_str(&format!("{code}{}", if line == last { ' ' } else { '-' }));
            if let Some([class, subject, detail]) = status {
                octets.push_str(&format!("{class}.{subject}.{detail} "));
            }
            let words: Vec<&str> =
                (0..random.usize(1..5)).map(|_| WORDS[random.usize(..WORDS.len())]).collect();
            octets.push_str(&words.join(" "));
            octets.push_str("\r\n");
        }
    }
    octets.into_bytes()
}

/// The same from both, however it is cut.
pub(crate) fn agree(octets: &[u8]) {
    for size in [octets.len().max(1), 1, 7] {
        assert_eq!(ours(octets, size), theirs(octets, size), "cut at each {size}");
    }
}

/// The first reply that each reads, or `error`.
fn first(read: Read) -> String {
    match read.replies.into_iter().next() {
        Some((code, [0, 0, 0], text)) => format!("{code} {}", text.escape_debug()),
        Some((code, [class, subject, detail], text)) => {
            format!("{code} [{class}.{subject}.{detail}] {}", text.escape_debug())
        }
        None if read.failed => "error".to_owned(),
        None => "more".to_owned(),
    }
}

/// Where ours is meant to differ, and why.
#[test]
fn the_known_differences() {
    let long = format!("250 {}\r\n", "x".repeat(5_000));
    let whole = format!("250 {}", "x".repeat(5_000));
    for (octets, ours_reads, theirs_reads) in [
        // Which code counts can not be known (RFC 5321 §4.2.1).
        ("550-5.1.1 no\r\n450 5.1.1 such\r\n", "error", "550 [5.1.1] no such"),
        // No such codes (RFC 5321 §4.2).
        ("199 x\r\n", "error", "199 x"),
        ("600 x\r\n", "error", "600 x"),
        // Three digits each (RFC 3463 §2); theirs are octets.
        ("550 5.7.510 x\r\n", "550 [5.7.510] x", "550 [5.7.255] x"),
        // A leading zero is not written (RFC 3463 §2).
        ("550 05.1.1 x\r\n", "550 05.1.1 x", "550 [5.1.1] x"),
        // The class must be that of the code (RFC 2034 §4).
        ("250 5.1.1 odd\r\n", "250 5.1.1 odd", "250 [5.1.1] odd"),
        // The first status counts, not the last; another one is text.
        (
            "550-5.1.1 no\r\n550-5.7.1 such\r\n550 x\r\n",
            "550 [5.1.1] no 5.7.1 such x",
            "550 [5.7.1] no such x",
        ),
        // What was said is kept, and shown escaped.
        ("250 a\rb\r\n", "250 a\\rb", "250 ab"),
        // A long reply is a reply.
        (&long, &whole, "error"),
    ] {
        let read =
            [first(ours(octets.as_bytes(), octets.len())), first(theirs(octets.as_bytes(), octets.len()))];
        assert_eq!(read, [ours_reads, theirs_reads], "{octets:?}");
    }
}
