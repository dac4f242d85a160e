//! Inputs near what is right, from a random generator: pieces in any order, then a few octets changed.

const REPLIES: [&str; 20] = [
    "250 ok\r\n",
    "250-first\r\n250 last\r\n",
    "220 mx.example ESMTP\n",
    "451-4.7.1 wait\r\n451 4.7.1 a bit\r\n",
    "550 5.1.1 <a@x.example>: no such user (#5.1.1)\r\n",
    "421 4.3.2 going down\r\n",
    "354\r\n",
    "250",
    "250-",
    "-",
    " ",
    "\r",
    "\n",
    "\r\n",
    "5.1.1 ",
    "2.0.0",
    "999 no\r\n",
    "25 \r\n",
    "250\tok\r\n",
    "552 5.999.1000 x\r\n",
];
const KEYWORDS: [&str; 22] = [
    "PIPELINING",
    "8BITMIME",
    "SMTPUTF8",
    "SIZE",
    "SIZE 0",
    "SIZE 52428800",
    "size 99999999999999999999",
    "ENHANCEDSTATUSCODES",
    "STARTTLS",
    "CHUNKING",
    "DSN",
    "AUTH PLAIN LOGIN",
    "AUTH=LOGIN",
    "LIMITS RCPTMAX=100",
    "LIMITS MAILMAX=x",
    "REQUIRETLS",
    "BINARYMIME",
    "mx.example at your service",
    "\t",
    " ",
    "\n",
    "\n",
];
const BODIES: [&str; 12] = [
    "a",
    ".",
    "..",
    "\r\n",
    "\r\n.",
    "\r\n.\r\n",
    "\r",
    "\n",
    "\n.\r\n",
    "\r\n..\r\n",
    "MAIL FROM:<>\r\n",
    "\0\u{e9}",
];
const POLICY: [&str; 40] = [
    "[engine]\n",
    "hostname = \"out.example\"\n",
    "[domain.\"*\"]\n",
    "[domain.\"x.example\"]\n",
    "[source.a]\n",
    "[[rollup]]\n",
    "queue = \"p.rollup\"\n",
    "mx = [\"*.p.example\"]\n",
    "[[reply-rule]]\n",
    "match = \"^4\"\n",
    "action = \"bounce\"\n",
    "[[ip-connection-limit]]\n",
    "cidr = \"192.0.2.0/24\"\n",
    "limit = 5\n",
    "[[mx-connection-limit]]\n",
    "[pool.p]\n",
    "sources = [\"a\"]\n",
    "retry-after = [\"5m\", \"1h\"]\n",
    "bounce-after = \"4d12h\"\n",
    "bounce-after = \"99999999999d\"\n",
    "max-smtp-out = 20\n",
    "max-smtp-out = -1\n",
    "max-msg-rate = \"100/h\"\n",
    "max-msg-rate = \"100/\"\n",
    "bounce-upon-no-mx = \"8h\"\n",
    "use-starttls = \"off\"\n",
    "smtp-hosts = [\"[127.0.0.9]:2525\"]\n",
    "queue-to = \"y.example\"\n",
    "[policy]\n",
    "base = \"recommended\"\n",
    "[storage]\n",
    "path = \"spool\"\n",
    "[dns]\n",
    "nameservers = [\"127.0.0.1:53\"]\n",
    "port = 25\n",
    "= ",
    "\"",
    "[",
    "1979-05-27T07:32:00Z",
    "'''",
];

fn pieces(random: &mut fastrand::Rng, from: &[&str], most: usize) -> Vec<u8> {
    let mut octets = Vec::new();
    for _ in 0..random.usize(0..=most) {
        octets.extend_from_slice(from[random.usize(..from.len())].as_bytes());
    }
    octets
}

/// Changes, doubles and drops a few octets. Most inputs stay as they are.
fn spoil(random: &mut fastrand::Rng, mut octets: Vec<u8>) -> Vec<u8> {
    for _ in 0..random.usize(0..6).saturating_sub(2) {
        if octets.is_empty() {
            break;
        }
        let at = random.usize(..octets.len());
        match random.u8(..4) {
            0 => octets[at] ^= 1 << random.u8(..8),
            1 => octets[at] = random.u8(..),
            2 => drop(octets.remove(at)),
            _ => octets.insert(at, octets[at]),
        }
    }
    octets
}

pub(crate) fn replies(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut octets = vec![random.u8(..)];
    octets.extend(pieces(random, &REPLIES, 12));
    if random.u16(..500) == 0 {
        // Past the bounds: lines, text, octets of one reply.
        let line = format!("250-{}\r\n", "x".repeat(random.usize(..10_000)));
        octets.extend(line.repeat(random.usize(..700)).into_bytes());
        octets.extend_from_slice(b"250 end\r\n");
    }
    spoil(random, octets)
}

pub(crate) fn ehlo(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut octets = Vec::new();
    for _ in 0..random.usize(0..12) {
        octets.extend(pieces(random, &KEYWORDS, 2));
        octets.push(if random.u8(..8) == 0 { b' ' } else { b'\n' });
    }
    spoil(random, octets)
}

pub(crate) fn content(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut octets = pieces(random, &BODIES, 40);
    if random.u16(..100) == 0 {
        // Across the ends of blocks.
        octets = octets.repeat(random.usize(1..3_000));
    }
    spoil(random, octets)
}

pub(crate) fn policy(random: &mut fastrand::Rng) -> Vec<u8> {
    let octets = pieces(random, &POLICY, 14);
    spoil(random, octets)
}
