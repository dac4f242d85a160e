//! AUTH (RFC 4954) by PLAIN (RFC 4616) and LOGIN.

use std::time::Duration;

use super::ehlo::Mechanisms;
use super::wire::Wire;
use super::{excerpt, is_refusal};
use crate::policy::Credentials;
use crate::reply::Reply;
use crate::transport::EndCause;

/// The longest line with an initial response; a longer response goes on a line of its own (RFC 4954 §4).
const LINE: usize = 512;

/// The longest challenge (RFC 4954 §4.1).
const CHALLENGE: usize = 12_288;

/// Authenticates the session. `limit` is for each step.
pub(super) async fn authenticate(
    wire: &mut Wire,
    credentials: &Credentials,
    offered: Mechanisms,
    limit: Duration,
) -> Result<(), EndCause> {
    let (name, password) = (&*credentials.username, credentials.password.expose());
    let (command, responses) = match offered {
        Mechanisms { plain: true, .. } => ("AUTH PLAIN", vec![base64(format!("\0{name}\0{password}"))]),
        Mechanisms { login: true, .. } => ("AUTH LOGIN", vec![base64(name), base64(password)]),
        _ => return Err(EndCause::AuthNotOffered),
    };
    let mut responses = responses.iter();
    let mut line = command.to_owned();
    // LOGIN has no initial response that all servers take.
    if let [response] = responses.as_slice()
        && command.len() + " \r\n".len() + response.len() <= LINE
    {
        line = format!("{command} {response}");
        responses.next();
    }
    loop {
        wire.check_idle().await?;
        wire.send(format!("{line}\r\n").as_bytes(), limit, 1).await;
        let reply = wire.reply(limit).await.map_err(|cause| match cause {
            // It quotes the server, who may repeat what it was sent.
            EndCause::Protocol(_) => {
                EndCause::Protocol("what AUTH was answered is no reply (and may repeat the password)".into())
            }
            cause => cause,
        })?;
        if reply.is_positive() {
            return Ok(());
        }
        let reply = without_secrets(reply, credentials);
        if is_refusal(&reply) {
            return Err(EndCause::Reply(reply));
        }
        line = match responses.next() {
            Some(response) if is_challenge(&reply) => response.clone(),
            _ => return Err(EndCause::Protocol(excerpt("AUTH", &reply))),
        };
    }
}

/// 334 and one line of Base64, which may be empty. What it says is not looked at: PLAIN and LOGIN know what comes next.
fn is_challenge(reply: &Reply) -> bool {
    let mut lines = reply.lines();
    let challenge = lines.next().unwrap_or_default();
    reply.code() == 334
        && !reply.is_truncated()
        && lines.next().is_none()
        && challenge.len() <= CHALLENGE
        && is_base64(challenge)
}

/// Records have replies whole, and some servers repeat what they did not understand.
fn without_secrets(reply: Reply, credentials: &Credentials) -> Reply {
    let (name, password) = (&*credentials.username, credentials.password.expose());
    let secrets = [password.to_owned(), base64(password), base64(format!("\0{name}\0{password}"))];
    let has =
        |line: &[u8]| secrets.iter().any(|secret| memchr::memmem::find(line, secret.as_bytes()).is_some());
    if !reply.lines().any(has) {
        return reply;
    }
    let status = reply.enhanced().map(|status| format!("{status} ")).unwrap_or_default();
    Reply::new(reply.code(), [format!("{status}(the reply repeats the password)")])
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 §4.
fn base64(octets: impl AsRef<[u8]>) -> String {
    let mut text = String::new();
    for group in octets.as_ref().chunks(3) {
        let bits = group.iter().fold(0_usize, |bits, &octet| bits << 8 | usize::from(octet))
            << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = ALPHABET.get(bits >> (18 - 6 * place) & 63).copied().unwrap_or_default();
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn is_base64(text: &[u8]) -> bool {
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    text.len().is_multiple_of(4) && digits.iter().all(|digit| ALPHABET.contains(digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (octets, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
            ("\0\u{ff}?\u{fffd}", "AMO/P++/vQ=="),
        ] {
            assert_eq!(base64(octets), text);
            assert!(is_base64(text.as_bytes()), "{text}");
        }
        for text in ["Z", "Zg=", "Zg==Zg==", "Username", "Zm9v\r", "Zm-v", "===="] {
            assert_eq!(is_base64(text.as_bytes()), text == "Username", "{text}");
        }
    }

    #[test]
    fn challenges_are_one_line_of_base64() {
        for (reply, is) in [
            ("334 ", true),
            ("334", true),
            ("334 VXNlcm5hbWU6", true),
            ("334 Username:", false),
            ("334-\n334 ", false),
            ("354 ", false),
        ] {
            assert_eq!(is_challenge(&Reply::parse(reply).unwrap()), is, "{reply}");
        }
        assert!(!is_challenge(&Reply::new(334, ["A".repeat(CHALLENGE + 4)])));
    }

    #[test]
    fn replies_that_repeat_the_password_are_cut() {
        let credentials =
            Credentials { username: "ann".into(), password: "s3cret".into(), unencrypted: false };
        let plain = base64("\0ann\0s3cret");
        for (text, is_cut) in [
            ("535 5.7.8 no, ann".to_owned(), false),
            ("535 5.7.8 no, ann:s3cret".to_owned(), true),
            (format!("500-5.5.1 unknown\n500 5.5.1 AUTH PLAIN {plain}"), true),
            (format!("500 {}", base64("s3cret")), true),
        ] {
            let reply = Reply::parse(&text).unwrap();
            let shown = without_secrets(reply.clone(), &credentials);
            assert_eq!((shown.code(), shown.enhanced()), (reply.code(), reply.enhanced()));
            assert_eq!(shown != reply, is_cut, "{shown}");
        }
    }
}
