//! What must hold for any octets: bodies for a fuzzer. Each panics where it does not.
//!
//! The tests of this crate feed them from seeds (`tests/fuzz`), cargo-fuzz from coverage (`fuzz/`).

#![allow(clippy::panic, reason = "that is how a fuzzer is told")]

use std::io::IoSlice;

use crate::policy::{Config, Policy};
use crate::reply::{Reply, ReplyError, ReplyParser};
use crate::transport::smtp::{Content, Extensions};

/// Octets of a server. How they are cut into pieces changes nothing, and what is kept of them has its bounds. The first
/// octet says how they are cut.
pub fn reply_parser(octets: &[u8]) {
    let Some((&cut, octets)) = octets.split_first() else { return };
    let whole = replies(octets, octets.len().max(1));
    assert_eq!(replies(octets, 1), whole, "cut at each octet");
    assert_eq!(replies(octets, usize::from(cut) + 1), whole, "cut at each {}", usize::from(cut) + 1);
    for reply in &whole.0 {
        assert!((200..=599).contains(&reply.code()));
        let lines: Vec<&[u8]> = reply.lines().collect();
        assert!(lines.len() <= ReplyParser::MAX_LINES && !lines.is_empty());
        assert!(lines.iter().all(|line| line.len() <= ReplyParser::MAX_LINE && !line.contains(&b'\n')));
        assert!(lines.iter().map(|line| line.len()).sum::<usize>() <= ReplyParser::MAX_TEXT);
        if let Some(status) = reply.enhanced() {
            assert_eq!(status.to_string().split('.').next(), Some(&*(reply.code() / 100).to_string()));
        }
        // As it is logged, it is one reply of the same code.
        let logged = Reply::parse(&reply.to_string().replace(['\r', '\n'], " "));
        assert!(logged.is_ok_and(|logged| logged.code() == reply.code()));
        let parts = Reply::new(reply.code(), reply.lines());
        assert_eq!(
            (parts.code(), parts.enhanced(), parts.text()),
            (reply.code(), reply.enhanced(), reply.text())
        );
    }
}

fn replies(octets: &[u8], size: usize) -> (Vec<Reply>, Option<ReplyError>) {
    let (mut parser, mut found) = (ReplyParser::new(), Vec::new());
    for mut piece in octets.chunks(size) {
        loop {
            match parser.parse(&mut piece) {
                Ok(Some(reply)) => found.push(reply),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
        assert!(piece.is_empty());
    }
    (found, None)
}

/// What a server says to EHLO. Keywords count in any case, each line by itself, and the first line not at all.
pub fn ehlo(octets: &[u8]) {
    let lines: Vec<&[u8]> = octets.split(|&octet| octet == b'\n').collect();
    let offered = |lines: &[&[u8]]| Extensions::parse(&Reply::new(250, lines));
    let all = offered(&lines);
    let shouted: Vec<Vec<u8>> = lines.iter().map(|line| line.to_ascii_uppercase()).collect();
    assert_eq!(offered(&shouted.iter().map(Vec::as_slice).collect::<Vec<_>>()), all);
    assert_eq!(offered(lines.get(..1).unwrap_or_default()), Extensions::default());
    let more: Vec<&[u8]> = lines.iter().copied().chain([&b"XUNKNOWN 7"[..], b""]).collect();
    assert_eq!(offered(&more), all);
}

/// A body on the wire, as a server takes it off again: the same, and nothing in it ends it early.
pub fn content(body: &[u8]) {
    let mut sent = Vec::new();
    send_content(body, |slices| sent.extend(slices.iter().flat_map(|slice| slice.iter().copied())));
    let (received, after) = receive(&sent);
    assert!(after.is_empty(), "octets after the end: the next command would be among them");
    let mut expected = body.to_vec();
    if !body.is_empty() && !body.ends_with(b"\r\n") {
        expected.extend_from_slice(b"\r\n");
    }
    assert!(received == expected, "another message was received");
}

/// A server that knows CRLF alone as a line end (RFC 5321 §4.5.2). Returns the message, and what came after it.
fn receive(sent: &[u8]) -> (Vec<u8>, &[u8]) {
    let (mut message, mut rest) = (Vec::new(), sent);
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").map(|at| at + 2);
        let Some((line, after)) = end.and_then(|end| rest.split_at_checked(end)) else {
            panic!("the content does not end");
        };
        rest = after;
        match line {
            b".\r\n" => return (message, rest),
            [b'.', stuffed @ ..] => message.extend_from_slice(stuffed),
            line => message.extend_from_slice(line),
        }
    }
}

/// Hands out a body's blocks as they are written to a server, the final dot included.
pub fn send_content(body: &[u8], mut write: impl FnMut(&[IoSlice<'_>])) {
    let mut content = Content::new(body);
    let mut slices = Vec::new();
    loop {
        let last = content.next_block(&mut slices);
        write(&slices);
        if last {
            return;
        }
    }
}

/// A policy file. What is wrong is said in words, and what is right is read twice alike.
pub fn policy_file(text: &str) {
    for read in
        [|text: &str| Policy::from_toml(text).map(drop), |text: &str| Config::from_toml(text).map(drop)]
    {
        match (read(text), read(text)) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(again)) => {
                assert_eq!(error.to_string(), again.to_string());
                assert!(!error.to_string().is_empty());
            }
            _ => panic!("read twice, it is not the same"),
        }
    }
}
