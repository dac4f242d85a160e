//! Against a name server on loopback, in this process.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, MX, NS, SOA, TLSA, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::dns::{Data, DnsErrorKind};

/// What the server does with questions for one name.
#[derive(Clone, Default)]
struct Say {
    code: Option<ResponseCode>,
    answers: Vec<(&'static str, u32, RData)>,
    authorities: Vec<(u32, RData)>,
    truncated_over_udp: bool,
    silent: bool,
    garbage: bool,
    /// Sets AD where it is asked for.
    authentic: bool,
}

struct Server {
    address: SocketAddr,
    /// Each question, as transport and name.
    asked: Arc<Mutex<Vec<String>>>,
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn soa(minimum: u32) -> RData {
    RData::SOA(SOA::new(name("ns.example."), name("root.example."), 1, 1, 1, 1, minimum))
}

fn mx(preference: u16, exchange: &str) -> RData {
    RData::MX(MX::new(preference, name(exchange)))
}

fn reply(
    question: &[u8],
    zone: &HashMap<&str, Say>,
    transport: &str,
    asked: &Mutex<Vec<String>>,
) -> Option<Vec<u8>> {
    let request = Message::from_vec(question).ok()?;
    let query = request.queries.first()?.clone();
    let key = query.name().to_ascii();
    asked.lock().unwrap().push(format!("{transport} {} {key}", query.query_type()));
    let say = zone.get(key.as_str()).cloned().unwrap_or_else(|| Say {
        code: Some(ResponseCode::NXDomain),
        authorities: vec![(900, soa(120))],
        ..Say::default()
    });
    if say.silent {
        return None;
    }
    if say.garbage {
        // The right id, flags of an answer, then nonsense.
        return Some([&question[..2], &[0x81, 0x80, 0, 9, 0, 9, 0, 9, 0, 9, 0xff, 0xff]].concat());
    }
    let mut message = Message::response(request.metadata.id, OpCode::Query);
    message.metadata.recursion_available = true;
    message.metadata.authentic_data = say.authentic && request.metadata.authentic_data;
    message.metadata.response_code = say.code.unwrap_or(ResponseCode::NoError);
    message.add_query(query.clone());
    if say.truncated_over_udp && transport == "udp" {
        message.metadata.truncation = true;
    } else {
        let matching = |data: &RData| [query.query_type(), RecordType::CNAME].contains(&data.record_type());
        for (owner, ttl, data) in say.answers.into_iter().filter(|(_, _, data)| matching(data)) {
            message.add_answer(Record::from_rdata(name(owner), ttl, data));
        }
        for (ttl, data) in say.authorities {
            message.add_authority(Record::from_rdata(name("example."), ttl, data));
        }
    }
    Some(message.to_vec().unwrap())
}

async fn serve(zone: Vec<(&'static str, Say)>) -> Server {
    let zone: Arc<HashMap<&str, Say>> = Arc::new(zone.into_iter().collect());
    // The same port for both; another process may hold it for one of them.
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let server = Server { address: udp.local_addr().unwrap(), asked: Arc::default() };
    let (over_udp, over_tcp) = ((zone.clone(), server.asked.clone()), (zone, server.asked.clone()));
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
            if let Some(answer) = reply(&buffer[..length], &over_udp.0, "udp", &over_udp.1) {
                let _ = udp.send_to(&answer, peer).await;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let (zone, asked) = over_tcp.clone();
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut question = vec![0; usize::from(length)];
                    stream.read_exact(&mut question).await?;
                    if let Some(answer) = reply(&question, &zone, "tcp", &asked) {
                        stream.write_u16(u16::try_from(answer.len()).unwrap()).await?;
                        stream.write_all(&answer).await?;
                    }
                }
                Ok::<_, io::Error>(())
            });
        }
    });
    server
}

fn resolver(servers: &[SocketAddr]) -> HickoryResolver {
    HickoryResolver::builder()
        .nameservers(servers)
        .timeout(Duration::from_secs(5))
        .attempts(1)
        .clock(Clock::system())
        .build()
        .unwrap()
}

fn impatient(servers: &[SocketAddr]) -> HickoryResolver {
    HickoryResolver::builder()
        .nameservers(servers)
        .timeout(Duration::from_millis(300))
        .attempts(2)
        .build()
        .unwrap()
}

fn code(code: ResponseCode) -> Say {
    Say { code: Some(code), ..Say::default() }
}

fn answers(answers: Vec<(&'static str, u32, RData)>) -> Say {
    Say { answers, ..Say::default() }
}

fn records(ttl: u64, list: &[(u16, &str)]) -> Answer<MxRecord> {
    let records =
        list.iter().map(|&(preference, host)| MxRecord { preference, exchange: host.to_owned() }).collect();
    Answer::records(records, Duration::from_secs(ttl))
}

#[tokio::test]
async fn answers_are_told_apart() {
    let seconds = Duration::from_secs;
    let many = (0..60).map(|n| ("big.example.", 60, RData::A(A::new(192, 0, 2, n)))).collect();
    let server = serve(vec![
        (
            "two.example.",
            answers(vec![
                ("two.example.", 300, mx(10, "MX1.Example.")),
                ("two.example.", 60, mx(20, "mx2.example.")),
            ]),
        ),
        ("null.example.", answers(vec![("null.example.", 300, mx(0, "."))])),
        ("empty.example.", Say { authorities: vec![(900, soa(77))], ..Say::default() }),
        ("short.example.", Say { authorities: vec![(33, soa(900))], ..Say::default() }),
        ("nosoa.example.", Say::default()),
        (
            "referral.example.",
            Say { authorities: vec![(900, RData::NS(NS(name("ns.example."))))], ..Say::default() },
        ),
        (
            "alias.example.",
            answers(vec![
                ("alias.example.", 20, RData::CNAME(CNAME(name("two.example.")))),
                ("two.example.", 300, mx(10, "mx1.example.")),
            ]),
        ),
        // The rest of the chain is asked for.
        (
            "short-alias.example.",
            answers(vec![("short-alias.example.", 25, RData::CNAME(CNAME(name("two.example."))))]),
        ),
        (
            "dangling.example.",
            answers(vec![("dangling.example.", 25, RData::CNAME(CNAME(name("nowhere.example."))))]),
        ),
        (
            "loop1.example.",
            answers(vec![("loop1.example.", 25, RData::CNAME(CNAME(name("loop2.example."))))]),
        ),
        (
            "loop2.example.",
            answers(vec![("loop2.example.", 25, RData::CNAME(CNAME(name("loop1.example."))))]),
        ),
        ("servfail.example.", code(ResponseCode::ServFail)),
        ("refused.example.", code(ResponseCode::Refused)),
        ("notimp.example.", code(ResponseCode::NotImp)),
        ("odd.example.", code(ResponseCode::Unknown(3000))),
        ("_under_score.example.", answers(vec![("_under_score.example.", 5, mx(1, "a.example."))])),
        ("big.example.", Say { answers: many, truncated_over_udp: true, ..Say::default() }),
        (
            "six.example.",
            answers(vec![("six.example.", 60, RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)))]),
        ),
    ])
    .await;
    let resolver = resolver(&[server.address]);
    for (domain, expected) in [
        ("two.example", Ok(records(60, &[(10, "mx1.example"), (20, "mx2.example")]))),
        ("null.example", Ok(records(300, &[(0, "")]))),
        ("empty.example", Ok(Answer::no_data(seconds(77)))),
        ("short.example", Ok(Answer::no_data(seconds(33)))),
        ("nosoa.example", Ok(Answer::no_data(seconds(0)))),
        ("referral.example", Err(DnsErrorKind::ServFail)),
        ("nowhere.example", Ok(Answer::nx_domain(seconds(120)))),
        ("alias.example", Ok(records(20, &[(10, "mx1.example")]).at(Some("two.example".into())))),
        (
            "short-alias.example",
            Ok(records(25, &[(10, "mx1.example"), (20, "mx2.example")]).at(Some("two.example".into()))),
        ),
        ("dangling.example", Ok(Answer::nx_domain(seconds(25)).at(Some("nowhere.example".into())))),
        ("localhost", Ok(Answer::no_data(seconds(0)))),
        ("a.invalid", Ok(Answer::nx_domain(seconds(0)))),
        ("loop1.example", Err(DnsErrorKind::ServFail)),
        ("servfail.example", Err(DnsErrorKind::ServFail)),
        ("refused.example", Err(DnsErrorKind::Refused)),
        ("notimp.example", Err(DnsErrorKind::ServFail)),
        ("odd.example", Err(DnsErrorKind::ServFail)),
        ("_under_score.example", Ok(records(5, &[(1, "a.example")]))),
        ("a..b", Err(DnsErrorKind::Malformed)),
    ] {
        let answer = resolver.mx(domain, Freshness::Fresh).await.map_err(|error| error.kind());
        assert_eq!(answer, expected, "{domain}");
    }

    let Data::Records(records) = resolver.ipv4("big.example", Freshness::Cached).await.unwrap().data else {
        panic!()
    };
    assert_eq!(records.len(), 60);
    let asked = server
        .asked
        .lock()
        .unwrap()
        .iter()
        .filter(|q| q.ends_with("A big.example."))
        .cloned()
        .collect::<Vec<_>>();
    assert_eq!(asked, ["udp A big.example.", "tcp A big.example."]);

    let expected = Answer::records(vec!["2001:db8::1".parse().unwrap()], seconds(60));
    assert_eq!(resolver.ipv6("six.example", Freshness::Cached).await.unwrap(), expected);
}

/// A record's strings are joined (RFC 8461 §3.1), and an answer is taken whole or not at all.
#[tokio::test]
async fn text_is_joined_and_bounded() {
    let txt = |strings: &[&str]| RData::TXT(TXT::new(strings.iter().map(|&text| text.to_owned()).collect()));
    let long = "x".repeat(255);
    let server = serve(vec![
        (
            "text.example.",
            answers(vec![
                ("text.example.", 300, txt(&["v=STSv1; ", "id=1;"])),
                ("text.example.", 60, txt(&["other"])),
            ]),
        ),
        ("none.example.", Say { authorities: vec![(900, soa(120))], ..Say::default() }),
        ("long.example.", answers((0..40).map(|_| ("long.example.", 60, txt(&[&long]))).collect())),
    ])
    .await;
    let resolver = HickoryResolver::with_nameservers(&[server.address]).unwrap();
    let ask = async |name: &str| resolver.txt(name, Freshness::Cached).await;
    let mut answer = ask("text.example").await.unwrap();
    if let Data::Records(records) = &mut answer.data {
        records.sort();
    }
    let expected = vec![TxtRecord::from("other"), TxtRecord::from("v=STSv1; id=1;")];
    assert_eq!(answer, Answer::records(expected, Duration::from_secs(60)));
    ask("text.example").await.unwrap();
    assert_eq!(server.asked.lock().unwrap().len(), 1, "kept");
    assert_eq!(ask("none.example").await.unwrap(), Answer::no_data(Duration::from_secs(120)));
    assert_eq!(ask("gone.example").await.unwrap().data, Data::NxDomain);
    let error = ask("long.example").await.unwrap_err();
    assert_eq!(error.kind(), DnsErrorKind::Malformed, "{error}");
}

/// RFC 4035 §3.2.3: authentic is what the server says of each message, and only if its word counts.
#[tokio::test]
async fn what_is_authentic_is_told() {
    let cname = |owner, target| (owner, 60, RData::CNAME(CNAME(name(target))));
    let signed = |say: Say| Say { authentic: true, ..say };
    let server = serve(vec![
        ("two.example.", signed(answers(vec![("two.example.", 60, mx(10, "mx.example."))]))),
        ("plain.example.", answers(vec![("plain.example.", 60, mx(10, "mx.example."))])),
        ("empty.example.", signed(Say { authorities: vec![(60, soa(60))], ..Say::default() })),
        ("gone.example.", signed(Say { authorities: vec![(60, soa(60))], ..code(ResponseCode::NXDomain) })),
        ("to-two.example.", signed(answers(vec![cname("to-two.example.", "two.example.")]))),
        ("to-plain.example.", signed(answers(vec![cname("to-plain.example.", "plain.example.")]))),
        ("from-plain.example.", answers(vec![cname("from-plain.example.", "two.example.")])),
    ])
    .await;
    let trusting = resolver(&[server.address]);
    let wary = HickoryResolver::builder().nameservers(&[server.address]).trust_ad(false).build().unwrap();
    for (domain, authentic) in [
        ("two.example", true),
        ("plain.example", false),
        ("empty.example", true),
        ("gone.example", true),
        ("nowhere.example", false),
        ("to-two.example", true),
        ("to-plain.example", false),
        ("from-plain.example", false),
        ("a.invalid", false),
    ] {
        for (resolver, authentic) in [(&trusting, authentic), (&trusting, authentic), (&wary, false)] {
            let answer = resolver.mx(domain, Freshness::Cached).await.unwrap();
            assert_eq!(answer.authentic, authentic, "{domain}");
        }
    }
    let answer = trusting.cname("to-plain.example", Freshness::Cached).await.unwrap();
    let target = Answer::records(vec!["plain.example".into()], Duration::from_secs(60));
    assert_eq!(answer, target.authenticated(true));
    assert_eq!(trusting.cname("two.example", Freshness::Fresh).await.unwrap().data, Data::NoData);
}

/// A mixture would believe of the second what the first found bogus.
#[test]
fn trust_is_for_all_servers_or_for_none() {
    let trusts = |servers: &[&str], said: Option<bool>| {
        let servers: Vec<SocketAddr> = servers.iter().map(|server| server.parse().unwrap()).collect();
        let builder = HickoryResolver::builder().nameservers(&servers);
        let builder = said.map_or(builder.clone(), |said| builder.trust_ad(said));
        builder.build().unwrap().cache.get_ref().trusts_ad()
    };
    for (servers, said, expected) in [
        (&["127.0.0.1:53"][..], None, true),
        (&["[::1]:53", "127.0.0.53:5353"], None, true),
        (&["[::ffff:127.0.0.1]:53"], None, true),
        (&["192.0.2.1:53"], None, false),
        (&["127.0.0.1:53", "192.0.2.1:53"], None, false),
        (&["127.0.0.1:53", "192.0.2.1:53"], Some(true), true),
        (&["127.0.0.1:53"], Some(false), false),
    ] {
        assert_eq!(trusts(servers, said), expected, "{servers:?} {said:?}");
    }
}

#[tokio::test]
async fn tlsa_records_are_read_and_bounded() {
    let tlsa = |usage: u8, octets: Vec<u8>| RData::TLSA(TLSA::new(usage.into(), 1.into(), 2.into(), octets));
    let owner = "_25._tcp.mx.example.";
    let many = |count: u8, octets| (0..count).map(|n| (owner, 60, tlsa(n, vec![n; octets]))).collect();
    let odd = vec![
        (owner, 60, tlsa(3, vec![1, 2])),
        (owner, 30, tlsa(255, vec![])),
        (owner, 60, tlsa(77, vec![3])),
    ];
    for (records, expected) in [
        (odd, Ok(vec!["255 1 2 ", "3 1 2 0102", "77 1 2 03"])),
        (many(32, 1), Ok(vec![""; 32])),
        (many(33, 1), Err(DnsErrorKind::Malformed)),
        (many(9, 2000), Err(DnsErrorKind::Malformed)),
    ] {
        let server = serve(vec![(owner, Say { truncated_over_udp: true, ..answers(records) })]).await;
        let resolver = resolver(&[server.address]);
        let answer = resolver.tlsa("_25._tcp.mx.example", Freshness::Cached).await;
        let found = answer.map_err(|error| error.kind()).map(|answer| {
            let Data::Records(records) = answer.data else { panic!() };
            let mut shown: Vec<String> = records.iter().map(ToString::to_string).collect();
            shown.sort();
            shown
        });
        match (found, expected) {
            (Ok(found), Ok(expected)) if found.len() == 32 => assert_eq!(found.len(), expected.len()),
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (found, expected) => assert_eq!(found.err(), expected.err()),
        }
    }
}

#[tokio::test]
async fn silence_and_garbage_are_failures() {
    let server = serve(vec![
        ("silent.example.", Say { silent: true, ..Say::default() }),
        ("garbage.example.", Say { garbage: true, ..Say::default() }),
    ])
    .await;
    let resolver = impatient(&[server.address]);
    let error = resolver.mx("silent.example", Freshness::Cached).await.unwrap_err();
    assert_eq!(error.kind(), DnsErrorKind::Timeout);
    assert_eq!(
        error.to_string(),
        format!("MX of silent.example: no answer in time (asked {})", server.address)
    );
    let error = resolver.mx("garbage.example", Freshness::Cached).await.unwrap_err();
    assert_eq!(error.kind(), DnsErrorKind::Malformed, "{error}");
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_is_of_no_use() {
    let good =
        serve(vec![("two.example.", answers(vec![("two.example.", 60, mx(10, "mx.example."))]))]).await;
    let refusing = serve(vec![("two.example.", code(ResponseCode::Refused))]).await;
    let silent = serve(vec![("two.example.", Say { silent: true, ..Say::default() })]).await;
    for bad in [&refusing, &silent] {
        let resolver = impatient(&[bad.address, good.address]);
        let answer = resolver.mx("two.example", Freshness::Fresh).await.unwrap();
        assert_eq!(answer, records(60, &[(10, "mx.example")]));
        // From now on the good one comes first.
        let before = bad.asked.lock().unwrap().len();
        resolver.mx("two.example", Freshness::Fresh).await.unwrap();
        assert_eq!(bad.asked.lock().unwrap().len(), before);
    }
}

#[tokio::test]
async fn answers_are_cached_by_us_alone() {
    let server = serve(vec![
        ("two.example.", answers(vec![("two.example.", 60, mx(10, "mx.example."))])),
        ("zero.example.", answers(vec![("zero.example.", 0, mx(10, "mx.example."))])),
    ])
    .await;
    let resolver = resolver(&[server.address]);
    let count = || server.asked.lock().unwrap().len();
    for (domain, freshness, asked) in [
        ("two.example", Freshness::Cached, 1),
        ("two.example", Freshness::Cached, 1),
        ("two.example", Freshness::Fresh, 2),
        ("two.example", Freshness::Fresh, 3),
        ("nowhere.example", Freshness::Fresh, 4),
        ("nowhere.example", Freshness::Cached, 4),
        ("nowhere.example", Freshness::Fresh, 5),
        ("zero.example", Freshness::Cached, 6),
        ("zero.example", Freshness::Cached, 7),
    ] {
        resolver.mx(domain, freshness).await.unwrap();
        assert_eq!(count(), asked, "{domain} {freshness:?}");
    }
}

#[tokio::test]
async fn many_look_ups_over_tcp_at_once() {
    let many = Say {
        answers: vec![("big.example.", 60, mx(10, "mx.example."))],
        truncated_over_udp: true,
        ..Say::default()
    };
    let names: Vec<&'static str> =
        (0..300).map(|n| &*Box::leak(format!("d{n}.example.").into_boxed_str())).collect();
    let zone = names.iter().map(|&owner| {
        let mut say = many.clone();
        say.answers[0].0 = owner;
        (owner, say)
    });
    let server = serve(zone.collect()).await;
    let resolver = resolver(&[server.address]);
    let asked = names.iter().map(|name| {
        let (resolver, name) = (resolver.clone(), name.trim_end_matches('.'));
        tokio::spawn(async move { resolver.mx(name, Freshness::Cached).await })
    });
    for answer in futures::future::join_all(asked).await {
        assert_eq!(answer.unwrap().unwrap(), records(60, &[(10, "mx.example")]));
    }
}

#[tokio::test]
async fn an_answer_is_kept_in_bounds() {
    let most = (0..1000).map(|n| ("many.example.", 60, mx(1000 - n, &format!("mx{n}.example.")))).collect();
    let server = serve(vec![("many.example.", Say { truncated_over_udp: true, ..answers(most) })]).await;
    let answer = resolver(&[server.address]).mx("many.example", Freshness::Cached).await.unwrap();
    let Data::Records(records) = answer.data else { panic!() };
    assert_eq!((records.len(), records[0].preference, records[127].preference), (128, 1, 128));
}

#[test]
fn nobody_to_ask_is_refused() {
    assert!(matches!(HickoryResolver::with_nameservers(&[]), Err(HickoryError::NoNameserver)));
}

#[tokio::test]
async fn silence_of_the_server_itself_is_local_trouble() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let nobody = socket.local_addr().unwrap();
    drop(socket);
    let silent = Say { silent: true, ..Say::default() };
    let mute = serve(vec![("example.net.", silent.clone()), (".", silent)]).await;
    for address in [nobody, mute.address] {
        let error = impatient(&[address]).mx("example.net", Freshness::Cached).await.unwrap_err();
        assert_eq!(error.kind(), DnsErrorKind::Unreachable, "{error}");
    }
}
