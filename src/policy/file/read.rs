//! Reading single values. Every error says what would be right.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::item::Item;
use crate::message::Domain;
use crate::policy::choices::{IpFamily, NoMx, NoMxLiveHost, NxDomain, PolicyBase, StartTls};
use crate::policy::rollup::{RollupMatch, RollupName};
use crate::policy::value::DurationError;
use crate::policy::{FixedHost, Password, PolicyError, Rate, RateError, RetryAfter, parse_duration};

type Result<T> = std::result::Result<T, PolicyError>;

/// A string that `parse` takes; its error is a noun phrase such as "not a duration: …".
pub(super) fn parsed<T, E: Display>(
    item: &Item<'_>,
    parse: impl FnOnce(&str) -> std::result::Result<T, E>,
    example: &str,
) -> Result<T> {
    parse(string(item, example)?).map_err(|error| item.wrong(format_args!("is {error}")))
}

pub(super) fn string<'t>(item: &Item<'t>, example: &str) -> Result<&'t str> {
    item.as_str().ok_or_else(|| item.wrong(format_args!("is not a string: write one, like \"{example}\"")))
}

/// A list of strings, or one string.
pub(super) fn strings<T, E: Display>(
    item: &Item<'_>,
    parse: impl Fn(&str) -> std::result::Result<T, E>,
    example: &str,
) -> Result<Vec<T>> {
    item.one_or_more().iter().map(|element| parsed(element, &parse, example)).collect()
}

pub(in crate::policy) fn boolean(item: &Item<'_>) -> Result<bool> {
    item.as_bool().ok_or_else(|| item.wrong("is not a yes or no: write true or false"))
}

pub(in crate::policy) fn float(item: &Item<'_>) -> Result<f64> {
    item.as_f64().ok_or_else(|| item.wrong("is not a number from 0 to 0.5: write it like 0.1"))
}

pub(in crate::policy) fn count(item: &Item<'_>) -> Result<u32> {
    item.as_u32().ok_or_else(|| item.wrong("is not a count: write a whole number from 1 to 4294967295"))
}

pub(in crate::policy) fn limit(item: &Item<'_>) -> Result<Option<u32>> {
    match item.as_str() {
        Some("unlimited") => Ok(None),
        _ => item.as_u32().map(Some).ok_or_else(|| {
            item.wrong(r#"is not a count: write a whole number from 1 to 4294967295, or "unlimited""#)
        }),
    }
}

pub(in crate::policy) fn duration(item: &Item<'_>) -> Result<Duration> {
    match item.as_str() {
        Some(text) => parse_duration(text).map_err(|error| item.wrong(format_args!("is {error}"))),
        None => Err(item.wrong(format_args!("is {}", DurationError::Malformed))),
    }
}

pub(in crate::policy) fn duration_or_never(item: &Item<'_>) -> Result<Option<Duration>> {
    match item.as_str() {
        Some("never") => Ok(None),
        _ => duration(item).map(Some),
    }
}

pub(in crate::policy) fn retry_after(item: &Item<'_>) -> Result<RetryAfter> {
    let intervals = item.one_or_more().iter().map(duration).collect::<Result<Vec<_>>>()?;
    RetryAfter::new(intervals).map_err(|error| item.wrong(format_args!("is {error}")))
}

pub(in crate::policy) fn rate(item: &Item<'_>) -> Result<Option<Rate>> {
    rate_or(item, "unlimited")
}

pub(in crate::policy) fn fuse(item: &Item<'_>) -> Result<Option<Rate>> {
    rate_or(item, "off")
}

fn rate_or(item: &Item<'_>, none: &str) -> Result<Option<Rate>> {
    match item.as_str() {
        Some(text) if text == none => Ok(None),
        text => match text.map_or(Err(RateError::Malformed), str::parse) {
            Ok(rate) => Ok(Some(rate)),
            Err(error @ RateError::Malformed) => Err(item.wrong(format_args!("is {error}, or \"{none}\""))),
            Err(error) => Err(item.wrong(format_args!("is {error}"))),
        },
    }
}

pub(in crate::policy) fn no_mx(item: &Item<'_>) -> Result<NoMx> {
    match (item.as_bool(), item.as_str().map(parse_duration)) {
        (Some(false), _) => Ok(NoMx::Never),
        (Some(true), _) => Ok(NoMx::Always),
        (None, Some(Ok(age))) => Ok(NoMx::After(age)),
        (None, Some(Err(error @ DurationError::TooLong))) => Err(item.wrong(format_args!("is {error}"))),
        (None, _) => Err(item.wrong(r#"is not a choice here: write false, true or a duration like "1h""#)),
    }
}

pub(in crate::policy) fn nxdomain(item: &Item<'_>) -> Result<NxDomain> {
    match (item.as_bool(), item.as_str().map(parse_duration)) {
        (Some(true), _) => Ok(NxDomain::AtOnce),
        (None, Some(Ok(age))) => Ok(NxDomain::After(age)),
        (None, Some(Err(error @ DurationError::TooLong))) => Err(item.wrong(format_args!("is {error}"))),
        (_, _) => Err(item.wrong(r#"is not a choice here: write true or a duration like "1h""#)),
    }
}

macro_rules! words {
    ($($name:ident: $kind:ty;)*) => {
        $(pub(in crate::policy) fn $name(item: &Item<'_>) -> Result<$kind> {
            item.as_str().and_then(<$kind>::from_word).ok_or_else(|| item.wrong(one_of(<$kind>::WORDS)))
        })*
    };
}

words! {
    no_mx_live_host: NoMxLiveHost;
    ip_family: IpFamily;
    starttls: StartTls;
    base: PolicyBase;
    rollup_match: RollupMatch;
}

fn one_of(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
    format!("is not a choice here: write one of {}", quoted.join(", "))
}

pub(in crate::policy) fn queue_to(item: &Item<'_>) -> Result<Option<RollupName>> {
    match item.as_str() {
        // PowerMTA's default, and the way for one domain to leave what a wildcard set.
        Some("") => Ok(None),
        _ => parsed(item, str::parse, "google.rollup").map(Some),
    }
}

pub(in crate::policy) fn smtp_hosts(item: &Item<'_>) -> Result<Vec<Vec<FixedHost>>> {
    const EXAMPLE: &str = "mx.example.com";
    let Some(elements) = item.elements() else {
        return parsed(item, FixedHost::parse_list, EXAMPLE);
    };
    // One string in a list reads as the string alone does; several share a preference.
    if let [only] = elements.as_slice() {
        return parsed(only, FixedHost::parse_list, EXAMPLE);
    }
    let mut level = Vec::new();
    for element in &elements {
        let mut levels = parsed(element, FixedHost::parse_list, EXAMPLE)?;
        match levels.pop() {
            Some(hosts) if levels.is_empty() => level.extend(hosts),
            _ => {
                let problem =
                    r#"has a ";" inside a list, whose hosts share one preference: write one string, "a,b;c""#;
                return Err(element.wrong(problem));
            }
        }
    }
    Ok(if level.is_empty() { Vec::new() } else { vec![level] })
}

/// Empty: none, PowerMTA's default, and the way for one domain to leave what a wildcard set.
pub(in crate::policy) fn username(item: &Item<'_>) -> Result<Option<Arc<str>>> {
    let name = string(item, "user@relay.example")?;
    Ok((!name.is_empty()).then(|| name.into()))
}

/// Empty: none.
pub(in crate::policy) fn password(item: &Item<'_>) -> Result<Option<Password>> {
    let text = item.as_str().ok_or_else(|| item.wrong("is not a string: write the password in quotes"))?;
    Ok((!text.is_empty()).then(|| text.into()))
}

pub(super) fn port(item: &Item<'_>) -> Result<u16> {
    let port = item.as_u32().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    port.ok_or_else(|| item.wrong("is not a port: write a whole number from 1 to 65535"))
}

/// A name for EHLO.
pub(super) fn host_name(item: &Item<'_>) -> Result<String> {
    let example = "is not a host name: write it like \"mta.example.org\"";
    let name = item.as_str().and_then(|text| Domain::parse(text).ok()).ok_or_else(|| item.wrong(example))?;
    Ok(name.to_string())
}

pub(super) fn address(item: &Item<'_>) -> Result<IpAddr> {
    let address = item.as_str().and_then(|text| text.parse().ok());
    address.ok_or_else(|| item.wrong(r#"is not an address: write it like "192.0.2.1" or "2001:db8::1""#))
}

/// Addresses with or without a port; without, it is DNS's own.
pub(super) fn nameservers(item: &Item<'_>) -> Result<Vec<SocketAddr>> {
    const DNS_PORT: u16 = 53;
    let mut servers = Vec::new();
    for element in item.one_or_more() {
        let text = element.as_str().unwrap_or_default();
        let server = text.parse().or_else(|_| {
            let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
            bare.parse().map(|address: IpAddr| SocketAddr::new(address, DNS_PORT))
        });
        let server = server.ok().filter(|s| s.port() != 0 && !s.ip().is_multicast());
        servers.push(server.ok_or_else(|| {
            element.wrong(
                r#"is not a name server: write it like "192.0.2.1", "192.0.2.1:5353" or "[2001:db8::1]:53""#,
            )
        })?);
    }
    if servers.is_empty() {
        return Err(item.wrong("is an empty list: name a server, or leave the key out to use the system's"));
    }
    Ok(servers)
}
