//! All phrases of all rules, looked for in one pass over a reply's words.

use foldhash::HashMap;

use super::phrase::{Phrase, Word};
use super::words::{MOST_WORDS, Words};

/// How many words a gap may hold.
const GAP: u8 = 6;

/// Words up to whose ends something reaches: a bit for each.
type Ends = u64;

const _: () = assert!(MOST_WORDS < Ends::BITS as usize);

/// Phrases, each with a number of the caller's, by the words they are made of.
///
/// A search takes time linear in the text and in what of the phrases' words it holds, whatever the number of phrases.
#[derive(Clone, Debug, Default)]
pub(super) struct Matcher {
    exact: HashMap<Box<[u8]>, Entry>,
    /// By their first three octets.
    prefixes: HashMap<[u8; 3], RowsOf<Box<[u8]>>>,
    /// What is in a word, or its end. Those of other letters than ASCII's are looked for in words that have such.
    parts: RowsOf<Word>,
    foreign_parts: RowsOf<Word>,
    /// How many places for ends there are: one for each step that is not its phrase's last.
    places: u16,
}

/// What begins with each of some words.
type RowsOf<K> = Vec<(K, Vec<Row>)>;

/// What begins with a word.
#[derive(Clone, Debug, Default)]
struct Entry {
    rows: Vec<Row>,
    /// What goes on with another word, by that: many things begin with "not".
    next: HashMap<Box<[u8]>, Vec<Row>>,
}

/// Words in a row, and what they mean to phrases.
#[derive(Clone, Debug)]
struct Row {
    /// How many they are.
    words: u8,
    /// The last ones, by which it was not found.
    rest: Vec<Word>,
    uses: Vec<Use>,
}

#[derive(Clone, Copy, Debug)]
enum Use {
    /// It is a whole phrase or begins one.
    First(LeadsTo),
    /// It stands behind the step that keeps its ends in `before`, at once.
    AtOnce { before: u16, leads_to: LeadsTo },
    /// The same, but other words may come between.
    AfterGap { before: u16, leads_to: LeadsTo },
}

/// What a step leads to.
#[derive(Clone, Copy, Debug)]
enum LeadsTo {
    /// The next step, which looks for where this one ended in a place.
    Next(u16),
    /// The phrase of this number is found.
    Found(u32),
}

impl Matcher {
    /// `None`, if there are too many of them.
    pub(super) fn new<'a>(phrases: impl IntoIterator<Item = (u32, &'a Phrase)>) -> Option<Self> {
        let mut matcher = Self::default();
        for (phrase, variant) in phrases
            .into_iter()
            .flat_map(|(number, phrase)| phrase.variants().into_iter().map(move |v| (number, v)))
        {
            let last = variant.len().saturating_sub(1);
            let mut before = None;
            for (at, written) in variant.into_iter().enumerate() {
                let leads_to = if at == last {
                    LeadsTo::Found(phrase)
                } else {
                    matcher.places = matcher.places.checked_add(1)?;
                    LeadsTo::Next(matcher.places - 1)
                };
                for words in written.alternatives {
                    matcher.row(words)?.uses.push(match before {
                        None => Use::First(leads_to),
                        Some(before) if written.after_gap => Use::AfterGap { before, leads_to },
                        Some(before) => Use::AtOnce { before, leads_to },
                    });
                }
                before = match leads_to {
                    LeadsTo::Next(place) => Some(place),
                    LeadsTo::Found(_) => None,
                };
            }
        }
        Some(matcher)
    }

    /// The row of these words.
    fn row(&mut self, words: Vec<Word>) -> Option<&mut Row> {
        let length = u8::try_from(words.len()).ok()?;
        let mut words = words.into_iter().peekable();
        let rows = match words.next()? {
            Word::Exact(word) => {
                let entry = self.exact.entry(word).or_default();
                match words.next_if(|next| matches!(next, Word::Exact(_))) {
                    Some(Word::Exact(next)) => entry.next.entry(next).or_default(),
                    _ => &mut entry.rows,
                }
            }
            Word::Prefix(word) => {
                let key = *word.first_chunk::<3>()?;
                found_or_added(self.prefixes.entry(key).or_default(), word)?
            }
            part @ (Word::Suffix(_) | Word::Part(_)) => {
                let is_foreign = matches!(&part, Word::Suffix(text) | Word::Part(text) if !text.is_ascii());
                found_or_added(if is_foreign { &mut self.foreign_parts } else { &mut self.parts }, part)?
            }
        };
        let rest: Vec<_> = words.collect();
        let place = rows.iter().position(|row| row.rest == rest).unwrap_or_else(|| {
            rows.push(Row { words: length, rest, uses: Vec::new() });
            rows.len() - 1
        });
        rows.get_mut(place)
    }

    /// Calls `found` with the number of each phrase in the text, possibly several times.
    pub(super) fn find(&self, words: &Words, mut found: impl FnMut(u32)) {
        let mut reached: Vec<Ends> = vec![0; usize::from(self.places)];
        // What a step follows begins before it, so that it was met before.
        for (first, word, sentence) in words.iter() {
            let mut meet = |row: &Row| {
                let end = first + row.words;
                let mut rest = (usize::from(end) - row.rest.len()..).zip(&row.rest);
                if rest.any(|(at, pattern)| words.get(at).is_none_or(|word| !pattern.matches(word))) {
                    return;
                }
                let end: Ends = 1 << end;
                // Nothing reaches from one sentence into the next.
                let (at_once, gap) = match first > sentence {
                    true => (1 << first, gap(sentence, first)),
                    false => (0, 0),
                };
                for used in &row.uses {
                    let (leads_to, before, from) = match *used {
                        Use::First(leads_to) => (leads_to, 0, 0),
                        Use::AtOnce { before, leads_to } => (leads_to, before, at_once),
                        Use::AfterGap { before, leads_to } => (leads_to, before, gap),
                    };
                    let is_first = matches!(used, Use::First(_));
                    if !is_first && reached.get(usize::from(before)).is_none_or(|ends| ends & from == 0) {
                        continue;
                    }
                    match leads_to {
                        LeadsTo::Found(phrase) => found(phrase),
                        LeadsTo::Next(place) => {
                            if let Some(reached) = reached.get_mut(usize::from(place)) {
                                *reached |= end;
                            }
                        }
                    }
                }
            };
            if let Some(entry) = self.exact.get(word) {
                entry.rows.iter().for_each(&mut meet);
                if !entry.next.is_empty()
                    && let Some(rows) =
                        words.get(usize::from(first) + 1).and_then(|next| entry.next.get(next))
                {
                    rows.iter().for_each(&mut meet);
                }
            }
            if let Some(key) = word.first_chunk::<3>()
                && let Some(prefixes) = self.prefixes.get(key)
            {
                let fitting = prefixes.iter().filter(|(prefix, _)| word.starts_with(prefix));
                fitting.flat_map(|(_, rows)| rows).for_each(&mut meet);
            }
            let foreign: &[_] = if word.is_ascii() { &[] } else { &self.foreign_parts };
            let parts = self.parts.iter().chain(foreign).filter(|(part, _)| part.matches(word));
            parts.flat_map(|(_, rows)| rows).for_each(&mut meet);
        }
    }
}

fn found_or_added<K: PartialEq>(list: &mut RowsOf<K>, key: K) -> Option<&mut Vec<Row>> {
    let place = list.iter().position(|(other, _)| *other == key).unwrap_or_else(|| {
        list.push((key, Vec::new()));
        list.len() - 1
    });
    list.get_mut(place).map(|(_, rows)| rows)
}

/// The ends from which a gap reaches to `word`, in its sentence.
fn gap(sentence: u8, word: u8) -> Ends {
    let earliest = word.saturating_sub(GAP).max(sentence + 1);
    let up_to = |end: u8| ((1 << end) - 1) | (1 << end);
    up_to(word) & !((1 << earliest) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(phrase: &str, text: &str) -> bool {
        let phrase = Phrase::parse(phrase).unwrap();
        let mut found = false;
        Matcher::new([(7, &phrase)]).unwrap().find(&Words::read(text), |number| found |= number == 7);
        found
    }

    #[test]
    fn phrases_are_found() {
        for (phrase, text, expected) in [
            ("mailbox full", "The Mailbox, full", true),
            ("mailbox full", "mailbox is full", false),
            ("mailbox .. full", "mailbox full", true),
            ("mailbox .. full", "mailbox a b c d e f full", true),
            ("mailbox .. full", "mailbox a b c d e f g full", false),
            ("mailbox .. full", "mailbox is large. full", false),
            ("mailbox .. full", "full mailbox", false),
            ("mailbox .. full", "no mailbox. The mailbox is full", true),
            ("(mail box|inbox) full", "mail box full", true),
            ("(mail box|inbox) full", "box full", false),
            ("inbox (is|) full", "inbox full", true),
            ("inbox (is|) full", "inbox is full", true),
            ("inbox .. (is|) full", "inbox now full", true),
            ("exceed* quota", "exceeded quota", true),
            ("exceed* quota", "exceed quota", true),
            ("exceed* quota", "exceeded the quota", false),
            ("*quota", "overquota", true),
            ("*quota", "overquotas", false),
            ("*満*", "箱が満杯です", true),
            ("not (be|) found", "not be found", true),
            ("not|never found", "not never found", true),
            ("@ unknown", "<a@b.example> unknown", true),
            ("# blocked", "[192.0.2.1] blocked", true),
            ("a a", "a", false),
            ("a a", "a a", true),
            ("a .. a", "a a", true),
            ("boîte", "boite", true),
            ("spam", "mx.spam.example", false),
            (".spam", "mx.spam.example", true),
            ("*spam*", "mx.spam.example", true),
        ] {
            assert_eq!(found(phrase, text), expected, "{phrase} in {text}");
        }
    }

    #[test]
    fn no_text_is_too_long() {
        let text = "mailbox ".repeat(1000);
        assert!(found("mailbox .. mailbox mailbox", &text));
        assert!(!found("mailbox full", &(text + "full")), "it lies past what is read");
        Matcher::default().find(&Words::read("a"), |_| unreachable!());
    }
}
