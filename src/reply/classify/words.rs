//! A reply's text as words: what phrases are compared with.

use std::net::IpAddr;

use crate::reply::EnhancedStatus;

/// What is read of a reply, in words. More is not looked at.
pub(super) const MOST_WORDS: usize = 63;

/// Room for the words of most replies.
const TEXT_HINT: usize = 512;

/// The words of a reply in lower case, without accents and punctuation, an address as `@` and an IP address as `#`. Words of
/// the name of a host and of a URL begin with a dot: what a host is called says little of why it refuses.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// The words behind each other, in UTF-8.
    text: Vec<u8>,
    /// Where each ends in `text`, and the first word of its sentence.
    ends: Vec<(u16, u8)>,
    /// The first enhanced status among the words.
    status: Option<EnhancedStatus>,
}

impl Words {
    pub(super) fn read(text: &str) -> Self {
        let mut words = Self {
            text: Vec::with_capacity(text.len().min(TEXT_HINT)),
            ends: Vec::with_capacity(MOST_WORDS),
            status: None,
        };
        let mut sentence = 0;
        let mut rest = text;
        while !rest.is_empty() && words.ends.len() < MOST_WORDS {
            let end = rest.bytes().position(separates).unwrap_or(rest.len());
            let Some((chunk, after)) = rest.split_at_checked(end) else { break };
            words.read_chunk(chunk, sentence);
            if after.starts_with(';') || chunk.ends_with(['.', '!', '?']) {
                sentence = words.len();
            }
            rest = after.get(1..).unwrap_or_default();
        }
        words
    }

    pub(super) fn status(&self) -> Option<EnhancedStatus> {
        self.status
    }

    pub(super) fn get(&self, number: usize) -> Option<&[u8]> {
        let (end, _) = *self.ends.get(number)?;
        let start = number.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |(end, _)| *end);
        self.text.get(usize::from(start)..usize::from(end))
    }

    /// All in order, each with its number and the number of its sentence's first word.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u8, &[u8], u8)> {
        let mut start = 0;
        (0..).zip(&self.ends).map(move |(number, (end, sentence))| {
            let word = self.text.get(start..usize::from(*end)).unwrap_or_default();
            start = usize::from(*end);
            (number, word, *sentence)
        })
    }

    fn len(&self) -> u8 {
        self.ends.len().try_into().unwrap_or(u8::MAX)
    }

    fn read_chunk(&mut self, chunk: &str, sentence: u8) {
        let bare = chunk.trim_end_matches(['.', '!', '?']);
        if !bare.bytes().any(|octet| matches!(octet, b'.' | b':' | b'@')) {
            self.read_part(bare, sentence, false);
        } else if bare.contains('@') {
            self.text.push(b'@');
            self.end(self.text.len() - 1, sentence);
        } else if is_ip(bare) {
            self.text.push(b'#');
            self.end(self.text.len() - 1, sentence);
        } else if is_name(bare) {
            self.read_part(bare, sentence, true);
        } else {
            for part in bare.split(':') {
                match status(part) {
                    Some(status) => {
                        self.status.get_or_insert(status);
                    }
                    None => self.read_part(part, sentence, is_name(part)),
                }
            }
        }
    }

    /// Letters and digits are words, what is between them is not. `e-mail` is one word.
    fn read_part(&mut self, part: &str, sentence: u8, in_name: bool) {
        let mut start = self.text.len();
        // Most replies have no other letters than ASCII's.
        let plain_end = part.bytes().position(|octet| !octet.is_ascii_alphanumeric()).unwrap_or(part.len());
        let (plain, rest) = part.split_at_checked(plain_end).unwrap_or((part, ""));
        self.text.extend(plain.bytes().map(|octet| octet.to_ascii_lowercase()));
        for letter in rest.chars() {
            let joins = if letter.is_ascii() {
                letter.is_ascii_alphanumeric()
                    || is_apostrophe(letter)
                    || (letter == '-' && self.text.get(start..) == Some(b"e"))
            } else {
                letter.is_alphanumeric() || is_apostrophe(letter)
            };
            if joins {
                fold(letter, &mut self.text);
            } else {
                self.end_part(start, sentence, in_name);
                start = self.text.len();
            }
        }
        self.end_part(start, sentence, in_name);
    }

    fn end_part(&mut self, start: usize, sentence: u8, in_name: bool) {
        if self.text.len() > start {
            if in_name {
                self.text.insert(start, b'.');
            }
            self.end(start, sentence);
        }
    }

    /// What was written from `start` on is a word, if there may be more of them.
    fn end(&mut self, start: usize, sentence: u8) {
        match u16::try_from(self.text.len()) {
            Ok(end) if self.ends.len() < MOST_WORDS => self.ends.push((end, sentence)),
            _ => self.text.truncate(start),
        }
    }
}

/// Writes a letter or digit in lower case and without its accent, and nothing else.
pub(super) fn fold(letter: char, to: &mut Vec<u8>) {
    if letter.is_ascii() {
        if letter.is_ascii_alphanumeric() {
            to.extend(u8::try_from(letter.to_ascii_lowercase()));
        }
        return;
    }
    for letter in letter.to_lowercase() {
        match without_accent(letter) {
            Some(plain) => to.extend_from_slice(plain.as_bytes()),
            None if letter.is_alphanumeric() => {
                to.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes())
            }
            None => {}
        }
    }
}

fn without_accent(letter: char) -> Option<&'static str> {
    Some(match letter {
        'à' | 'á' | 'â' | 'ã' | 'ä' | 'å' | 'ą' => "a",
        'ç' | 'ć' | 'č' => "c",
        'è' | 'é' | 'ê' | 'ë' | 'ę' | 'ě' => "e",
        'ì' | 'í' | 'î' | 'ï' => "i",
        'ł' => "l",
        'ñ' | 'ń' => "n",
        'ò' | 'ó' | 'ô' | 'õ' | 'ö' | 'ø' => "o",
        'ř' => "r",
        'ś' | 'š' => "s",
        'ß' => "ss",
        'ù' | 'ú' | 'û' | 'ü' | 'ů' => "u",
        'ý' | 'ÿ' => "y",
        'ź' | 'ż' | 'ž' => "z",
        'ő' => "o",
        'ű' => "u",
        'ğ' => "g",
        'ş' | 'ș' => "s",
        'ţ' | 'ț' => "t",
        'ı' => "i",
        'ă' => "a",
        'đ' => "d",
        _ => return None,
    })
}

fn is_apostrophe(letter: char) -> bool {
    matches!(letter, '\'' | '’' | '`' | '´')
}

/// What stands between chunks: a table, since each octet is looked up.
static SEPARATES: [bool; 256] = {
    let mut table = [false; 256];
    let separators = b" \t\n\r<>()[]{},;\"=|";
    let mut at = 0;
    while at < separators.len() {
        #[allow(clippy::indexing_slicing, reason = "worked out when compiled")]
        {
            table[separators[at] as usize] = true;
        }
        at += 1;
    }
    table
};

fn separates(octet: u8) -> bool {
    SEPARATES.get(usize::from(octet)).copied().unwrap_or_default()
}

/// The name of a host, `mx1.example.com`, or a URL. What has capitals is rather two sentences without a space between.
fn is_name(chunk: &str) -> bool {
    if chunk.contains("://") || chunk.starts_with("www.") {
        return true;
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
    };
    let is_top = |label: &str| label.len() >= 2 && label.bytes().all(|octet| octet.is_ascii_lowercase());
    let host = chunk.split_once('/').map_or(chunk, |(host, _)| host);
    host.rsplit_once('.').is_some_and(|(rest, top)| is_top(top) && rest.split('.').all(is_label))
}

/// Also where digits were replaced by `x`, as published replies have it.
fn is_ip(chunk: &str) -> bool {
    let is_octet = |part: &str| {
        (1..=3).contains(&part.len()) && part.bytes().all(|octet| octet.is_ascii_digit() || octet == b'x')
    };
    match chunk.as_bytes() {
        [b'0'..=b'9' | b'x', ..] if chunk.split('.').count() == 4 => chunk.split('.').all(is_octet),
        _ if chunk.contains(':') => chunk.parse::<IpAddr>().is_ok(),
        _ => false,
    }
}

/// An enhanced status among the words, as in `(#5.1.1)`.
fn status(part: &str) -> Option<EnhancedStatus> {
    let status = part.strip_prefix('#').unwrap_or(part).parse::<EnhancedStatus>().ok()?;
    matches!(status.class, 4 | 5).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        Words::read(text)
            .iter()
            .map(|(_, word, _)| str::from_utf8(word).unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn addresses_numbers_and_punctuation_go() {
        for (text, expected) in [
            ("<a@b.example>... User unknown", " @ user unknown "),
            ("User's e-mail box is FULL (#5.2.2)", " users email box is full "),
            (
                "Client host [192.0.2.1] blocked using zen.x; see http://x/q?ip=192.0.2.1",
                " client host # blocked using zen x see .http .x .q .ip # ",
            ),
            (
                "no mailbox at mx1.virus.example/spam, see www.example.com.Try",
                " no mailbox at .mx1 .virus .example .spam see .www .example .com .try ",
            ),
            ("it is full.Try later.now", " it is full try .later .now "),
            ("[2001:db8::1] 5.7.1: Boîte pleine — groß", " # boite pleine gross "),
            ("_is_blocked.__For x.xx.xx.xx", " is blocked for # "),
            ("", " "),
            ("...!?", " "),
        ] {
            assert_eq!(shown(text), expected.trim(), "{text}");
        }
    }

    #[test]
    fn a_status_among_the_words_is_found() {
        for (text, expected) in [
            ("mailbox full (#4.2.2)", Some(EnhancedStatus::new(4, 2, 2))),
            ("550 5.1.1: no, 5.7.1", Some(EnhancedStatus::new(5, 1, 1))),
            ("version 2.1.5 of 192.0.2.1", None),
        ] {
            assert_eq!(Words::read(text).status(), expected, "{text}");
        }
    }

    #[test]
    fn sentences_end_and_words_are_bounded() {
        let words = Words::read("one two. three; four... five");
        assert_eq!(words.iter().map(|(.., sentence)| sentence).collect::<Vec<_>>(), [0, 0, 2, 3, 4]);
        assert_eq!((words.get(1), words.get(5)), (Some(b"two".as_slice()), None));
        let long = Words::read(&"word ".repeat(10_000));
        assert_eq!(long.iter().count(), MOST_WORDS);
        assert_eq!(Words::read(&"x".repeat(100_000)).iter().count(), 0);
        // Whatever comes.
        let _ = Words::read(&"\u{1F600}x@\0'".repeat(1000));
    }
}
