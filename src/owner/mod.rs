//! To whom names belong, as far as their last labels tell: what all domains share is divided among owners, so that one with many names takes
//! from itself first.
//!
//! Where a registry's names end and an owner's begin is not known here for all. So a domain counts for two groups: the wide one is of all
//! names below what is taken as its owner's, two labels, or three where the second one is such as registries use; the narrow one has a label
//! more. Below a registry that is not told as one the wide group is the registry's, and the narrow one its owner's.

mod shares;

pub(crate) use shares::{Held, Shares};

/// Under a top-level domain of two letters these are registries' nearly everywhere: `co.uk`, `com.br`, `or.jp`.
const OF_REGISTRIES: [&str; 16] = [
    "ac", "co", "com", "edu", "go", "gob", "gov", "ltd", "me", "mil", "ne", "net", "nom", "or", "org", "plc",
];

/// The narrow group of a domain.
pub(crate) fn narrow(domain: &str) -> &str {
    last_labels(domain, labels_of_owner(domain) + 1)
}

/// The wide group of a domain.
pub(crate) fn wide(domain: &str) -> &str {
    last_labels(domain, labels_of_owner(domain))
}

fn labels_of_owner(domain: &str) -> usize {
    let mut labels = domain.rsplit('.');
    let is_country = labels.next().is_some_and(|top| top.len() == 2);
    let is_registry = is_country && labels.next().is_some_and(|second| OF_REGISTRIES.contains(&second));
    if is_registry { 3 } else { 2 }
}

fn last_labels(domain: &str, count: usize) -> &str {
    let dot = domain.rmatch_indices('.').nth(count - 1);
    dot.and_then(|(dot, _)| domain.get(dot + 1..)).unwrap_or(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_by_the_last_labels() {
        for (domain, expected) in [
            ("a.b.example.co.uk", ("b.example.co.uk", "example.co.uk")),
            ("b.example.co.uk", ("b.example.co.uk", "example.co.uk")),
            ("example.co.uk", ("example.co.uk", "example.co.uk")),
            ("co.uk", ("co.uk", "co.uk")),
            ("a.example.com.br", ("a.example.com.br", "example.com.br")),
            ("a.b.example.co.example", ("example.co.example", "co.example")),
            ("a.b.example.pref.jp", ("example.pref.jp", "pref.jp")),
            ("example.com", ("example.com", "example.com")),
            ("a.example.com", ("a.example.com", "example.com")),
            ("a.b.com.example.de", ("com.example.de", "example.de")),
            ("localhost", ("localhost", "localhost")),
            ("uk", ("uk", "uk")),
            ("", ("", "")),
        ] {
            assert_eq!((narrow(domain), wide(domain)), expected, "{domain}");
        }
    }
}
