use proptest::prelude::*;

use super::*;

fn all(mut input: &[u8]) -> (Vec<Reply>, Result<(), ReplyError>) {
    let mut parser = ReplyParser::new();
    let mut replies = Vec::new();
    loop {
        match parser.parse(&mut input) {
            Ok(Some(reply)) => replies.push(reply),
            Ok(None) => return (replies, Ok(())),
            Err(error) => return (replies, Err(error)),
        }
    }
}

fn in_pieces(input: &[u8], size: usize) -> (Vec<Reply>, Result<(), ReplyError>) {
    let mut parser = ReplyParser::new();
    let mut replies = Vec::new();
    for mut piece in input.chunks(size) {
        while !piece.is_empty() {
            match parser.parse(&mut piece) {
                Ok(reply) => replies.extend(reply),
                Err(error) => return (replies, Err(error)),
            }
        }
    }
    (replies, Ok(()))
}

fn one(input: &[u8]) -> Reply {
    let (mut replies, end) = all(input);
    assert_eq!(end, Ok(()), "{}", input.escape_ascii());
    assert_eq!(replies.len(), 1, "{}", input.escape_ascii());
    replies.remove(0)
}

#[test]
fn replies_fold_to_one_line() {
    for (wire, folded) in [
        ("250 OK\r\n", "250 OK"),
        ("250 OK\n", "250 OK"),
        ("250\r\n", "250"),
        ("250 \r\n", "250"),
        ("250-mx.example\r\n250-SIZE 1000\r\n250 \r\n", "250 mx.example SIZE 1000"),
        ("250-\r\n250\r\n", "250"),
        ("452 4.2.2 mailbox full\r\n", "452 4.2.2 mailbox full"),
        (
            "550-5.1.1 Nobody here\r\n550-5.1.1 by that name\r\n550 5.1.1 q-17\r\n",
            "550 5.1.1 Nobody here by that name q-17",
        ),
        ("550 550-5.1.1 Nobody here\r\n", "550 5.1.1 Nobody here"),
        ("550-550-5.1.1 Nobody\r\n550 550 5.1.1 here\r\n", "550 5.1.1 Nobody here"),
        ("550-Rejected\r\n550 5.7.1 by policy\r\n", "550 5.7.1 Rejected by policy"),
        ("550-5.7.1 one\r\n550 5.7.26 two\r\n", "550 5.7.1 one 5.7.26 two"),
        ("550 4.2.2 class of another code\r\n", "550 4.2.2 class of another code"),
        ("550 5.7.606 numbers over 255\r\n", "550 5.7.606 numbers over 255"),
        ("550 5.1.1\r\n", "550 5.1.1"),
        ("550 5.1 not a status\r\n", "550 5.1 not a status"),
        ("550 5.1.1.1 nor this\r\n", "550 5.1.1.1 nor this"),
        ("554 \u{e9}t\u{e9}\r\n", "554 \u{e9}t\u{e9}"),
        ("299 x\r\n", "299 x"),
    ] {
        assert_eq!(one(wire.as_bytes()).to_string(), folded, "{wire:?}");
    }
    assert_eq!(one(b"550 4.2.2 x\r\n").enhanced(), None);
    assert_eq!(one(b"550 5.7.606 x\r\n").enhanced(), Some(EnhancedStatus::new(5, 7, 606)));
    assert_eq!(one(b"550 550-5.1.1 x\r\n").enhanced(), Some(EnhancedStatus::new(5, 1, 1)));
}

#[test]
fn octets_are_kept_as_they_are() {
    let reply = one(b"554-a\0b\r\n554 \xff\xfe\rx\r\n");
    assert_eq!(reply.lines().collect::<Vec<_>>(), [b"a\0b".as_slice(), b"\xff\xfe\rx"]);
    assert_eq!(one(b"250 a\r\r\n").lines().next(), Some(b"a\r".as_slice()));
}

#[test]
fn what_is_not_a_reply_is_named() {
    for (wire, error) in [
        ("hello there\r\n", "does not begin with a reply code"),
        ("\r\n", "does not begin with a reply code"),
        ("25\r\n", "does not begin with a reply code"),
        ("2x0 ok\r\n", "does not begin with a reply code"),
        ("199 ok\r\n", "does not begin with a reply code"),
        ("600 ok\r\n", "does not begin with a reply code"),
        ("2500 ok\r\n", "must be a space"),
        ("250\tok\r\n", "must be a space"),
        ("250-a\r\n550 b\r\n", "both the codes 250 and 550"),
        ("550-a\r\n250-b\r\n", "both the codes 550 and 250"),
    ] {
        let (replies, end) = all(wire.as_bytes());
        assert!(replies.is_empty(), "{wire:?}");
        let end = end.unwrap_err().to_string();
        assert!(end.contains(error), "{wire:?}: {end}");
    }
}

#[test]
fn a_failed_parser_stays_failed() {
    let mut parser = ReplyParser::new();
    assert!(parser.parse(&mut b"what\r\n".as_slice()).is_err());
    assert!(parser.parse(&mut b"250 ok\r\n".as_slice()).is_err());
}

#[test]
fn past_the_caps_text_goes_and_code_and_framing_stay() {
    let long = "x".repeat(20_000);
    let (replies, end) = all(format!("550 {long}\r\n250 next\r\n").as_bytes());
    assert_eq!(end, Ok(()));
    assert!(replies[0].is_truncated());
    assert_eq!((replies[0].code(), replies[0].text().len()), (550, ReplyParser::MAX_LINE));
    assert_eq!((replies[1].to_string().as_str(), replies[1].is_truncated()), ("250 next", false));

    let many = format!("550-{}\r\n", "y".repeat(1000)).repeat(100) + "550 end\r\n250 next\r\n";
    let (replies, _) = all(many.as_bytes());
    assert_eq!(replies[0].lines().map(<[u8]>::len).sum::<usize>(), ReplyParser::MAX_TEXT);
    assert!(replies[0].is_truncated());
    assert_eq!(replies[1].to_string(), "250 next");

    let lines = "250-z\r\n".repeat(1000) + "250 z\r\n";
    assert_eq!(one(lines.as_bytes()).lines().count(), ReplyParser::MAX_LINES);

    let exact = format!("250 {}\r\n", "x".repeat(ReplyParser::MAX_LINE));
    assert!(!one(exact.as_bytes()).is_truncated());
}

#[test]
fn a_different_code_past_the_caps_is_still_an_error() {
    let lines = "250-z\r\n".repeat(1000) + "550 z\r\n";
    assert_eq!(all(lines.as_bytes()).1, Err(ReplyError::MixedCodes { first: 250, other: 550 }));
}

#[test]
fn endless_replies_are_an_error() {
    let endless = Err(ReplyError::Endless { limit: ReplyParser::MAX_OCTETS });
    assert_eq!(all("250-go on\r\n".repeat(200_000).as_bytes()).1, endless);
    assert_eq!(all(&vec![b'2'; 2_000_000]).1, endless);
    // The bound is per reply, not per session.
    assert_eq!(all("250 go on\r\n".repeat(200_000).as_bytes()).0.len(), 200_000);
}

#[test]
fn the_text_limit_can_be_lowered() {
    let mut parser = ReplyParser::new();
    parser.set_text_limit(3);
    let reply = parser.parse(&mut b"550-ab\r\n550-cdef\r\n550 gh\r\n".as_slice()).unwrap().unwrap();
    assert_eq!(reply.to_string(), "550 ab c");
    assert!(reply.is_truncated());
}

#[test]
fn whole_texts_are_read() {
    assert_eq!(Reply::parse("450 4.2.0 busy").unwrap().to_string(), "450 4.2.0 busy");
    assert_eq!(Reply::parse("450-a\n450 b\n").unwrap().text(), "a b");
    assert_eq!(Reply::parse("450-a\r\n450 b").unwrap().text(), "a b");
    assert_eq!(Reply::parse("450-a"), Err(ReplyError::Incomplete));
    assert_eq!(Reply::parse("450-a\n"), Err(ReplyError::Incomplete));
    assert_eq!(Reply::parse("450 a\n"), Ok(Reply::new(450, [*b"a"])));
    assert!(matches!(Reply::parse("450 a\n450 b"), Err(ReplyError::Trailing { .. })));
    assert!(matches!(Reply::parse(""), Err(ReplyError::NoCode { .. })));
}

#[test]
fn statuses_parse_and_print() {
    for good in ["2.0.0", "4.7.500", "5.999.999"] {
        assert_eq!(good.parse::<EnhancedStatus>().unwrap().to_string(), good);
    }
    for bad in ["", "3.1.1", "5.1", "5.1.1.1", "5.1.1000", "5..1", "5.1.x", " 5.1.1", "5.+1.1"] {
        assert!(bad.parse::<EnhancedStatus>().is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn pieces_never_change_the_replies(
        parts in prop::collection::vec(prop_oneof![
            Just(b"250-".to_vec()), Just(b"250 ".to_vec()), Just(b"550 ".to_vec()), Just(b"\r\n".to_vec()),
            Just(b"\n".to_vec()), Just(b"\r".to_vec()), Just(b"5.1.1 ".to_vec()), Just(vec![b'a'; 9000]),
            prop::collection::vec(any::<u8>(), 0..8),
        ], 0..24),
        size in 1usize..7,
    ) {
        let input = parts.concat();
        prop_assert_eq!(all(&input), in_pieces(&input, size));
    }

    #[test]
    fn what_is_written_is_read(code in 200u16..600, texts in prop::collection::vec("[ -~]{0,40}", 1..6)) {
        let (last, first) = texts.split_last().unwrap();
        let mut wire = first.iter().map(|text| format!("{code}-{text}\r\n")).collect::<String>();
        wire += &format!("{code} {last}\r\n");
        let reply = one(wire.as_bytes());
        prop_assert_eq!(reply.code(), code);
        prop_assert_eq!(reply.lines().collect::<Vec<_>>(), texts.iter().map(String::as_bytes).collect::<Vec<_>>());
    }
}

/// In the order of the delivery; in stores by numbers that never change.
#[test]
fn stages_have_their_order_and_their_numbers() {
    use Stage::{Auth, Connect, Data, Dns, Dot, Ehlo, Mail, Queue, Rcpt};
    assert!([Queue, Dns, Connect, Ehlo, Auth, Mail, Rcpt, Data, Dot].is_sorted());
    for (number, stage) in (0..).zip([Queue, Dns, Connect, Ehlo, Mail, Rcpt, Data, Dot, Auth]) {
        assert_eq!(postcard::to_stdvec(&stage).unwrap(), [number], "{stage:?}");
    }
}
