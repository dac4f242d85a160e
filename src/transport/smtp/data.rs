//! The content on the wire, without copying: with dots doubled and the final dot (RFC 5321 §4.5.2), or as one chunk (RFC 3030).

use std::io::IoSlice;

use memchr::memmem;

/// Content goes out in blocks of this many octets, each with its own time limit.
pub(super) const BLOCK: usize = 64 * 1024;

/// The most slices of a block: well under IOV_MAX everywhere.
const SLICES: usize = 64;

/// Cuts a message's content into blocks of slices, ready for vectored writes.
///
/// Nothing is copied: a line's dot is doubled by ending one slice with it and beginning the next with it.
pub(crate) struct Content<'a> {
    body: &'a [u8],
    dots: memmem::FindIter<'a, 'static>,
    /// From where the body is not handed out yet, apart from `pending`.
    rest: usize,
    /// Of the slice being handed out.
    pending: &'a [u8],
}

impl<'a> Content<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        // The content's first line has no CRLF before it, but its dot counts (RFC 5321 §4.5.2).
        let pending = match body {
            [b'.', ..] => body.get(..1).unwrap_or_default(),
            _ => &[],
        };
        Self { body, dots: memmem::find_iter(body, b"\r\n."), rest: 0, pending }
    }

    /// Fills `slices` with the next block. Returns whether it is the last, with the final dot.
    pub(crate) fn next_block(&mut self, slices: &mut Vec<IoSlice<'a>>) -> bool {
        slices.clear();
        let mut room = BLOCK;
        while room > 0 && slices.len() < SLICES {
            if self.pending.is_empty() && !self.advance() {
                slices.push(IoSlice::new(terminator(self.body)));
                return true;
            }
            let (now, later) =
                self.pending.split_at_checked(room.min(self.pending.len())).unwrap_or((self.pending, &[]));
            slices.push(IoSlice::new(now));
            room -= now.len();
            self.pending = later;
        }
        false
    }

    /// Moves to the next slice, up to and with the next dot to double. False at the body's end.
    fn advance(&mut self) -> bool {
        let (end, next) = match self.dots.next() {
            Some(at) => (at + 3, at + 2),
            None => (self.body.len(), self.body.len()),
        };
        self.pending = self.body.get(self.rest..end).unwrap_or_default();
        self.rest = next;
        !self.pending.is_empty()
    }
}

/// A message's content as one chunk (RFC 3030 §2): the command, and then the octets that arrive when [`Content`] is sent.
pub(super) struct Chunk<'a> {
    /// What is not handed out yet.
    parts: [&'a [u8]; 3],
}

impl<'a> Chunk<'a> {
    /// `command` says that [`size`] octets follow.
    pub(super) fn new(command: &'a [u8], body: &'a [u8]) -> Self {
        let line_end: &[u8] = if ends_in_line_end(body) { b"" } else { b"\r\n" };
        Self { parts: [command, body, line_end] }
    }

    /// Fills `slices` with the next block. Returns whether it is the last.
    pub(super) fn next_block(&mut self, slices: &mut Vec<IoSlice<'a>>) -> bool {
        slices.clear();
        let mut room = BLOCK;
        for part in &mut self.parts {
            let (now, later) = part.split_at_checked(room).unwrap_or((*part, &[]));
            if !now.is_empty() {
                slices.push(IoSlice::new(now));
            }
            room -= now.len();
            *part = later;
        }
        self.parts.iter().all(|part| part.is_empty())
    }
}

/// The final dot; before it a line end, if the body's last line has none.
fn terminator(body: &[u8]) -> &'static [u8] {
    if ends_in_line_end(body) { b".\r\n" } else { b"\r\n.\r\n" }
}

/// The CRLF of DATA counts for an empty body (RFC 5321 §4.1.1.4).
fn ends_in_line_end(body: &[u8]) -> bool {
    body.is_empty() || body.ends_with(b"\r\n")
}

/// The message's size as RFC 1870 §3 counts it: as received, without doubled dots and the final one.
pub(super) fn size(body: &[u8]) -> u64 {
    body.len() as u64 + if ends_in_line_end(body) { 0 } else { 2 }
}

/// Whether a CR or LF stands alone. Receivers disagree about what such a line end means, which is how a second
/// message is smuggled inside a first (RFC 5321 §2.3.8).
pub(super) fn has_bare_line_ending(body: &[u8]) -> bool {
    let mut line_end = None;
    for at in memchr::memchr2_iter(b'\r', b'\n', body) {
        if line_end == Some(at) {
            line_end = None;
        } else if body.get(at..at + 2) == Some(b"\r\n") {
            line_end = Some(at + 1);
        } else {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire(body: &[u8]) -> Vec<u8> {
        let mut content = Content::new(body);
        let (mut slices, mut wire) = (Vec::new(), Vec::new());
        loop {
            let last = content.next_block(&mut slices);
            assert!(slices.len() <= SLICES);
            assert!(slices.iter().map(|slice| slice.len()).sum::<usize>() <= BLOCK + 5);
            wire.extend(slices.iter().flat_map(|slice| slice.to_vec()));
            if last {
                return wire;
            }
        }
    }

    #[test]
    fn dots_are_doubled_at_line_starts_only() {
        for (body, expected) in [
            ("", ".\r\n"),
            (".", "..\r\n.\r\n"),
            ("\r\n", "\r\n.\r\n"),
            ("a", "a\r\n.\r\n"),
            ("a\r\n", "a\r\n.\r\n"),
            (".\r\n", "..\r\n.\r\n"),
            ("..\r\n.\r\n", "...\r\n..\r\n.\r\n"),
            ("a.\r\n.b.\r\n.", "a.\r\n..b.\r\n..\r\n.\r\n"),
            ("\r\n.\r\n.\r\n", "\r\n..\r\n..\r\n.\r\n"),
        ] {
            assert_eq!(String::from_utf8(wire(body.as_bytes())).unwrap(), expected, "{body:?}");
        }
    }

    #[test]
    fn nothing_to_stuff_is_two_slices_of_the_body_itself() {
        let body = b"Subject: x\r\n\r\nhello\r\n";
        let mut slices = Vec::new();
        assert!(Content::new(body).next_block(&mut slices));
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[0].as_ptr(), body.as_ptr());
    }

    /// A chunk's octets, command included.
    fn chunk(command: &[u8], body: &[u8]) -> Vec<u8> {
        let mut chunk = Chunk::new(command, body);
        let (mut slices, mut wire) = (Vec::new(), Vec::new());
        loop {
            let last = chunk.next_block(&mut slices);
            let block = slices.iter().map(|slice| &**slice).collect::<Vec<_>>().concat();
            assert!(
                block.len() == BLOCK || last && !block.is_empty() && block.len() < BLOCK,
                "{}",
                block.len()
            );
            wire.extend(block);
            if last {
                return wire;
            }
        }
    }

    #[test]
    fn a_chunk_is_the_command_and_the_message() {
        for (body, expected) in [
            ("", "BDAT LAST\r\n"),
            (".", "BDAT LAST\r\n.\r\n"),
            ("a", "BDAT LAST\r\na\r\n"),
            ("a\r\n.\r\n..\r\n", "BDAT LAST\r\na\r\n.\r\n..\r\n"),
        ] {
            let wire = chunk(b"BDAT LAST\r\n", body.as_bytes());
            assert_eq!(String::from_utf8(wire).unwrap(), expected, "{body:?}");
        }
        for length in BLOCK - 20..BLOCK + 3 {
            for end in ["", "\r\n"] {
                let body = "x".repeat(length) + end;
                let wire = chunk(b"BDAT LAST\r\n", body.as_bytes());
                assert_eq!(wire.len() as u64, 11 + size(body.as_bytes()), "{length} {end:?}");
                assert!(wire.ends_with(b"x\r\n"), "{length} {end:?}");
            }
        }
    }

    #[test]
    fn a_chunk_is_two_slices_and_one_of_them_the_body_itself() {
        let body = b"Subject: x\r\n\r\nhello\r\n";
        let mut slices = Vec::new();
        assert!(Chunk::new(b"BDAT 23 LAST\r\n", body).next_block(&mut slices));
        assert_eq!((slices.len(), slices[1].as_ptr()), (2, body.as_ptr()));
    }

    #[test]
    fn sizes_are_those_of_the_message() {
        assert_eq!((size(b""), size(b".\r\n"), size(b"a")), (0, 3, 3));
    }

    #[test]
    fn bare_line_endings_are_found() {
        for (body, bare) in [
            ("", false),
            ("a\r\nb\r\n", false),
            ("\r\n\r\n", false),
            ("a\nb", true),
            ("a\rb", true),
            ("\r", true),
            ("\r\r\n", true),
            ("\r\n\n", true),
            ("\n", true),
            ("a\r\n.\n", true),
            ("\r\n.\r", true),
        ] {
            assert_eq!(has_bare_line_ending(body.as_bytes()), bare, "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn the_final_dot_is_the_only_one(
            lines in prop::collection::vec(prop_oneof![Just(String::new()), Just(".".into()), "[.a]{0,5}", Just(".b".repeat(2_500))], 0..80),
            ended in any::<bool>(),
        ) {
            let body = lines.join("\r\n") + if ended { "\r\n" } else { "" };
            let chunk = String::from_utf8(chunk(b"B", body.as_bytes())).unwrap();
            let wire = String::from_utf8(wire(body.as_bytes())).unwrap();
            let content = wire.strip_suffix(".\r\n").unwrap();
            prop_assert!(content.is_empty() || content.ends_with("\r\n"));
            let from_data = ["\r\n", content].concat();
            prop_assert!(!from_data.contains("\r\n.\r\n"));
            let unstuffed: String =
                content.split_inclusive("\r\n").map(|line| line.strip_prefix('.').unwrap_or(line)).collect();
            let added = if body.is_empty() || body.ends_with("\r\n") { "" } else { "\r\n" };
            prop_assert_eq!(&unstuffed, &(body + added));
            // What comes by BDAT is what comes by DATA.
            prop_assert_eq!(chunk, "B".to_owned() + &unstuffed);
        }
    }
}
