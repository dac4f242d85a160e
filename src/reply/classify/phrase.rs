//! Phrases: how rules write the words that they look for.

use super::words::fold;

/// Words in order: `(mailbox|inbox) .. full|exceed*`.
///
/// - A word stands for itself; `word*` for words that start so, `*word` that end so, `*word*` that contain it.
/// - `a|b` is one of several words, `(a b|c)` one of several words or groups of words; `(a|)` may be left out.
/// - Words follow each other; `..` lets up to six others of the same sentence come between.
/// - `@` is a mail address and `#` an IP address; `.word` is a word in the name of a host or in a URL.
///
/// Case, accents and punctuation do not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Phrase {
    /// In order; none is empty.
    pub(super) steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Other words may come before it.
    pub(super) after_gap: bool,
    /// One of these, each some words in a row.
    pub(super) alternatives: Vec<Vec<Word>>,
    /// It may be left out.
    pub(super) optional: bool,
}

/// Why a phrase was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PhraseError {
    /// No words.
    #[error("a phrase without words: write some, like \"mailbox full\"")]
    Empty,
    /// A parenthesis has no partner.
    #[error("a phrase with a parenthesis that has no partner: write (one|other group)")]
    Parenthesis,
    /// `..` where no words are on both sides of it.
    #[error("a phrase with `..` at its end: words stand on both sides of it")]
    Gap,
    /// `*` in the middle of a word, or alone.
    #[error(
        "a phrase with `*` in the middle of a word or alone: write it like exceed*, *mailbox or *mailbox*"
    )]
    Star,
    /// Something else than letters, digits and the signs of phrases.
    #[error(
        "a phrase with punctuation: write the words alone, apart from each other, like \"over quota\" for over-quota"
    )]
    Punctuation,
    /// More than there is room for.
    #[error("a phrase with more than 12 groups, 4 that may be left out, or 200 alternatives in one")]
    TooLong,
}

const MOST_STEPS: usize = 12;
/// Each doubles the variants.
const MOST_OPTIONAL: usize = 4;
const MOST_ALTERNATIVES: usize = 200;

impl Phrase {
    pub(crate) fn parse(text: &str) -> Result<Self, PhraseError> {
        let mut steps: Vec<Step> = Vec::new();
        let mut after_gap = false;
        for element in split(text, ' ')? {
            if element == ".." {
                if after_gap || steps.is_empty() {
                    return Err(PhraseError::Gap);
                }
                after_gap = true;
                continue;
            }
            let step = Step::parse(element, after_gap)?;
            after_gap = false;
            steps.push(step);
        }
        if after_gap {
            return Err(PhraseError::Gap);
        }
        if steps.iter().all(|step| step.optional) {
            return Err(PhraseError::Empty);
        }
        let optional = steps.iter().filter(|step| step.optional).count();
        if steps.len() > MOST_STEPS
            || optional > MOST_OPTIONAL
            || steps.iter().any(|step| step.alternatives.len() > MOST_ALTERNATIVES)
        {
            return Err(PhraseError::TooLong);
        }
        Ok(Self { steps })
    }

    /// With each optional step and without it.
    pub(super) fn variants(&self) -> Vec<Vec<Step>> {
        // With each, whether a gap stood before what was left out last.
        let mut variants = vec![(Vec::new(), false)];
        for step in &self.steps {
            let mut next = Vec::new();
            for (mut steps, gap) in variants {
                if step.optional {
                    next.push((steps.clone(), gap || step.after_gap));
                }
                let after_gap = !steps.is_empty() && (gap || step.after_gap);
                steps.push(Step { after_gap, ..step.clone() });
                next.push((steps, false));
            }
            variants = next;
        }
        variants.into_iter().map(|(steps, _)| steps).filter(|steps| !steps.is_empty()).collect()
    }
}

/// A word of a phrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// This one.
    Exact(Box<[u8]>),
    /// One that begins so.
    Prefix(Box<[u8]>),
    /// One that ends so.
    Suffix(Box<[u8]>),
    /// One that contains this.
    Part(Box<[u8]>),
}

impl Word {
    pub(super) fn matches(&self, word: &[u8]) -> bool {
        match self {
            Self::Exact(own) => *word == **own,
            Self::Prefix(own) => word.starts_with(own),
            Self::Suffix(own) => word.ends_with(own),
            Self::Part(own) => memchr::memmem::find(word, own).is_some(),
        }
    }

    fn parse(text: &str) -> Result<Self, PhraseError> {
        let (open_before, rest) = text.strip_prefix('*').map_or((false, text), |rest| (true, rest));
        let (open_after, rest) = rest.strip_suffix('*').map_or((false, rest), |rest| (true, rest));
        let mut word = Vec::new();
        match rest.strip_prefix('.').unwrap_or(rest) {
            _ if rest.contains('*') || rest.is_empty() => return Err(PhraseError::Star),
            _ if matches!(rest, "@" | "#") => word.extend_from_slice(rest.as_bytes()),
            letters if !letters.is_empty() && letters.chars().all(char::is_alphanumeric) => {
                if letters.len() < rest.len() {
                    word.push(b'.');
                }
                letters.chars().for_each(|letter| fold(letter, &mut word));
            }
            _ => return Err(PhraseError::Punctuation),
        }
        // By these three octets it is found.
        if open_after && !open_before && word.len() < 3 {
            return Err(PhraseError::Star);
        }
        let word = word.into_boxed_slice();
        Ok(match (open_before, open_after) {
            (false, false) => Self::Exact(word),
            (false, true) => Self::Prefix(word),
            (true, false) => Self::Suffix(word),
            (true, true) => Self::Part(word),
        })
    }
}

impl Step {
    fn parse(element: &str, after_gap: bool) -> Result<Self, PhraseError> {
        let group =
            element.strip_prefix('(').map(|rest| rest.strip_suffix(')').ok_or(PhraseError::Parenthesis));
        let inner = group.transpose()?.unwrap_or(element);
        if inner.contains(['(', ')']) {
            return Err(PhraseError::Parenthesis);
        }
        let mut step = Self { after_gap, alternatives: Vec::new(), optional: false };
        for alternative in inner.split('|') {
            let words = alternative.split_whitespace().map(Word::parse).collect::<Result<Vec<_>, _>>()?;
            if words.is_empty() {
                step.optional = true;
            } else {
                step.alternatives.push(words);
            }
        }
        if step.alternatives.is_empty() { Err(PhraseError::Empty) } else { Ok(step) }
    }
}

/// Splits at `at` outside of parentheses; empty parts go.
fn split(text: &str, at: char) -> Result<Vec<&str>, PhraseError> {
    let mut depth = 0_usize;
    let mut parts = Vec::new();
    let mut start = 0;
    for (place, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1).ok_or(PhraseError::Parenthesis)?,
            letter if letter == at && depth == 0 => {
                parts.extend(text.get(start..place));
                start = place + letter.len_utf8();
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err(PhraseError::Parenthesis);
    }
    parts.extend(text.get(start..));
    parts.retain(|part| !part.is_empty());
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        for (text, error) in [
            ("", PhraseError::Empty),
            ("()", PhraseError::Empty),
            ("(a|)", PhraseError::Empty),
            ("a (b", PhraseError::Parenthesis),
            ("a b)", PhraseError::Parenthesis),
            ("a|(b c)", PhraseError::Parenthesis),
            (".. a", PhraseError::Gap),
            ("a ..", PhraseError::Gap),
            ("a .. .. b", PhraseError::Gap),
            ("a*b", PhraseError::Star),
            ("a * b", PhraseError::Star),
            ("ab*", PhraseError::Star),
            ("**", PhraseError::Star),
            ("over-quota", PhraseError::Punctuation),
            ("don't", PhraseError::Punctuation),
            ("5.1.1", PhraseError::Punctuation),
            ("a@b", PhraseError::Punctuation),
            ("-", PhraseError::Punctuation),
            (".", PhraseError::Punctuation),
            ("a b c d e f g h i j k l m", PhraseError::TooLong),
        ] {
            assert_eq!(Phrase::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn what_may_be_left_out_is() {
        let phrase = Phrase::parse("a .. (b|c d|) efg*").unwrap();
        let shown: Vec<Vec<(bool, usize)>> = phrase
            .variants()
            .into_iter()
            .map(|steps| steps.into_iter().map(|step| (step.after_gap, step.alternatives.len())).collect())
            .collect();
        assert_eq!(shown, [vec![(false, 1), (true, 1)], vec![(false, 1), (true, 2), (false, 1)]]);
    }
}
