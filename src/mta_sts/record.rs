//! The TXT record that says a domain has a policy, and which one is current (RFC 8461 §3.1).

use crate::dns::TxtRecord;

/// The most octets of an id.
const LONGEST_ID: usize = 32;

/// The id of a domain's current policy, by the TXT records of `_mta-sts.<domain>`.
///
/// Records that do not begin with `v=STSv1;` are of others and passed over. Of the rest there must be exactly one, and
/// it must be well formed; else the domain has no policy (RFC 8461 §3.1).
///
/// ```
/// use postrider::mta_sts::policy_id;
/// assert_eq!(policy_id(&["v=STSv1; id=20260101T000000;".into()]).as_deref(), Some("20260101T000000"));
/// assert_eq!(policy_id(&["v=spf1 -all".into()]), None);
/// ```
pub fn policy_id(records: &[TxtRecord]) -> Option<String> {
    let mut ours = records.iter().filter_map(|record| fields(record.octets()));
    let (Some(fields), None) = (ours.next(), ours.next()) else { return None };
    read_id(fields)
}

/// What follows version and delimiter, of a record of this kind.
fn fields(record: &[u8]) -> Option<&[u8]> {
    trimmed(record.strip_prefix(b"v=STSv1")?).strip_prefix(b";")
}

fn read_id(fields: &[u8]) -> Option<String> {
    let mut fields: Vec<&[u8]> = fields.split(|&octet| octet == b';').map(trimmed).collect();
    // A delimiter may end the record.
    if fields.len() > 1 && fields.last().is_some_and(|last| last.is_empty()) {
        fields.pop();
    }
    let mut id = None;
    for field in fields {
        let equals = field.iter().position(|&octet| octet == b'=')?;
        let (name, value) = field.split_at(equals);
        let value = value.get(1..)?;
        if name == b"id" {
            if !is_id(value) {
                return None;
            }
            id = id.or(Some(value));
        } else if !is_extension(name, value) {
            return None;
        }
    }
    id.and_then(|id| String::from_utf8(id.to_vec()).ok())
}

fn is_id(value: &[u8]) -> bool {
    (1..=LONGEST_ID).contains(&value.len()) && value.iter().all(u8::is_ascii_alphanumeric)
}

/// A field that a later version may bring: to be passed over, but well formed.
fn is_extension(name: &[u8], value: &[u8]) -> bool {
    let is_name = |octet: &u8| octet.is_ascii_alphanumeric() || b"_-.".contains(octet);
    let is_value = |octet: &u8| octet.is_ascii_graphic() && !b"=;".contains(octet);
    (1..=LONGEST_ID).contains(&name.len())
        && name.first().is_some_and(u8::is_ascii_alphanumeric)
        && name.iter().all(is_name)
        && !value.is_empty()
        && value.iter().all(is_value)
}

/// Without spaces and tabs around it.
fn trimmed(text: &[u8]) -> &[u8] {
    let is_text = |octet: &u8| !matches!(octet, b' ' | b'\t');
    let Some(first) = text.iter().position(is_text) else { return &[] };
    let last = text.iter().rposition(is_text).unwrap_or(first);
    text.get(first..=last).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(records: &[&str]) -> Option<String> {
        policy_id(&records.iter().map(|&record| record.into()).collect::<Vec<_>>())
    }

    #[test]
    fn ids_of_single_records() {
        let longest = format!("v=STSv1; id={}", "a".repeat(32));
        let too_long = format!("v=STSv1; id={}", "a".repeat(33));
        for (record, expected) in [
            ("v=STSv1; id=20160831085700Z;", Some("20160831085700Z")),
            ("v=STSv1;id=1", Some("1")),
            ("v=STSv1 ;\t id=1 ; ", Some("1")),
            ("v=STSv1; x-y.z=a,b; id=1", Some("1")),
            ("v=STSv1; id=1; id=2", Some("1")),
            (&longest, Some(&longest[12..])),
            // Not well formed.
            (&too_long, None),
            ("v=STSv1; id=", None),
            ("v=STSv1; id=a-b", None),
            ("v=STSv1; id=1;;", None),
            ("v=STSv1; id=1; nothing", None),
            ("v=STSv1; id=1; -x=y", None),
            ("v=STSv1; id=1; x=", None),
            ("v=STSv1; id=1; x=y=z", None),
            ("v=STSv1; id =1", None),
            ("v=STSv1; ID=1", None),
            ("v=STSv1;", None),
            // Not of this kind at all.
            ("v=STSv1", None),
            ("v=STSv10; id=1", None),
            ("V=STSv1; id=1", None),
            (" v=STSv1; id=1", None),
            ("", None),
        ] {
            assert_eq!(id(&[record]).as_deref(), expected, "{record}");
        }
    }

    #[test]
    fn exactly_one_record_of_this_kind() {
        assert_eq!(id(&["v=spf1 -all", "v=STSv1; id=1"]).as_deref(), Some("1"));
        assert_eq!(id(&["v=STSv1; id=1", "v=STSv1; id=1"]), None);
        assert_eq!(id(&["v=STSv1; id=1", "v=STSv1; broken"]), None);
        assert_eq!(id(&[]), None);
    }

    proptest! {
        #[test]
        fn never_panics(octets in prop::collection::vec(any::<u8>(), 0..80), prefix in any::<bool>()) {
            let mut record = if prefix { b"v=STSv1;".to_vec() } else { Vec::new() };
            record.extend(octets);
            if let Some(id) = policy_id(&[TxtRecord::new(record)]) {
                prop_assert!(is_id(id.as_bytes()));
            }
        }
    }
}
