//! Guessing what an unknown key was meant to be.

use crate::policy::settings::DomainSettings;

/// PowerMTA's names of what goes by another here.
const RENAMED: &[(&str, &str)] = &[
    ("total-max-smtp-out", "`max-connections` in [engine]"),
    ("default-smtp-port", "`port` in [smtp]"),
    ("max-rcpt-per-message", "`max-rcpt-per-transaction`"),
    ("require-starttls", "`use-starttls = \"required\"`"),
    ("retry-recipients-after", "`retry-after`, which counts for recipients too"),
    ("smtp-source-host", "`address` and `ehlo` in [[source]]"),
    ("virtual-mta", "[[source]]"),
    ("virtual-mta-pool", "[[pool]]"),
    ("mx-rollup-list", "[[rollup]]"),
];

/// What to say of `key`, which none of `known` holds, in the section `path`.
pub(super) fn unknown(key: &str, known: &[&[&str]], path: &str, is_table: bool) -> String {
    if let Some((_, name)) = RENAMED.iter().find(|(old, _)| *old == key) {
        return format!("is not a key here: it is called {name}");
    }
    let in_domain = path.starts_with("domain.") || path.contains(".domain.");
    if in_domain && is_table {
        return "is not a key: a domain goes in quotes, like [domain.\"example.com\"]".to_owned();
    }
    if !in_domain && DomainSettings::KEYS.contains(&key) {
        return "is a setting of domains: put it under [domain.\"*\"]".to_owned();
    }
    let keys = known.iter().flat_map(|keys| keys.iter().copied());
    match nearest(key, keys) {
        Some(near) => format!("is not a key: did you mean `{near}`?"),
        None if path.is_empty() => format!("is not a section: the sections are {}", list(known)),
        None if in_domain => "is not a setting of domains".to_owned(),
        None => format!("is not a key of {path}: its keys are {}", list(known)),
    }
}

fn list(known: &[&[&str]]) -> String {
    known.iter().flat_map(|keys| keys.iter().copied()).collect::<Vec<_>>().join(", ")
}

/// The candidate with the fewest differences from `word`, if they are few.
pub(super) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words are no near miss of any key, and the comparison takes time in the product of the lengths.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase().replace('_', "-");
    let allowed = (word.chars().count() / 3).clamp(1, 4);
    let scored = candidates.map(|candidate| (distance(&word, candidate), candidate));
    scored.filter(|(distance, _)| *distance <= allowed).min().map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in (1..).zip(a.chars()) {
        let mut diagonal = i - 1;
        let mut left = i;
        for (cell, to) in row.iter_mut().skip(1).zip(&b) {
            let change = diagonal + usize::from(from != *to);
            diagonal = *cell;
            left = change.min(left + 1).min(diagonal + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, want) in [("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("same", "same", 0)] {
            assert_eq!(distance(a, b), want, "{a} {b}");
        }
    }

    #[test]
    fn only_near_words_are_proposed() {
        let nearest = |word| nearest(word, DomainSettings::KEYS.iter().copied());
        assert_eq!(nearest("retry_after"), Some("retry-after"));
        assert_eq!(nearest("max-smtp-ou"), Some("max-smtp-out"));
        assert_eq!(nearest("Bounce-Affter"), Some("bounce-after"));
        assert_eq!(nearest("colour"), None);
        assert_eq!(nearest(""), None);
    }
}
