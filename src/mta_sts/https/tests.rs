//! Against a server in the process, on loopback.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::dns::StaticResolver;
use crate::policy::Cidr;
use crate::testing::TestCertificate;

const FILE: &str = "version: STSv1\r\nmode: enforce\r\nmx: mx.example.net\r\nmax_age: 86400\r\n";

/// Answers every connection with this, once it has read a request. The requests come out.
async fn serve(certificate: &TestCertificate, response: String) -> (u16, Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(certificate.config());
    let requests = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = requests.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            seen.lock().unwrap().push(String::from_utf8(request).unwrap());
            // A client that has enough goes.
            let _ = stream.write_all(response.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (port, requests)
}

fn response(head: &str, body: &str) -> String {
    format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn zone() -> StaticResolver {
    StaticResolver::parse("mta-sts.example.net A 127.0.0.1").unwrap()
}

async fn fetch(
    fetcher: &HttpsFetcher,
    zone: &StaticResolver,
    prohibited: &[Cidr],
) -> Result<Bytes, FetchError> {
    fetcher.fetch(&PolicyRequest { domain: "example.net", resolver: zone, prohibited }).await
}

fn trusting(certificate: &TestCertificate, port: u16) -> HttpsFetcher {
    HttpsFetcher::new().with_root_certificates(certificate.pem()).unwrap().with_port(port)
}

#[tokio::test]
async fn a_file_is_fetched() {
    let certificate = TestCertificate::new(["mta-sts.example.net"]).unwrap();
    for head in ["200 OK\r\ncontent-type: text/plain", "200 OK\r\nContent-Type: Text/Plain ; charset=utf-8"] {
        let (port, requests) = serve(&certificate, response(head, FILE)).await;
        let fetcher = trusting(&certificate, port);
        assert_eq!(fetch(&fetcher, &zone(), &[]).await.unwrap(), FILE);
        let requests = requests.lock().unwrap();
        let request = requests[0].to_ascii_lowercase();
        assert!(request.starts_with("get /.well-known/mta-sts.txt http/1.1\r\n"), "{request}");
        assert!(request.contains("\r\nhost: mta-sts.example.net\r\n"), "{request}");
    }
    // Without a length, and in chunks.
    let chunked = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let closed = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nabc";
    for response in [chunked, closed] {
        let (port, _) = serve(&certificate, response.to_owned()).await;
        assert_eq!(fetch(&trusting(&certificate, port), &zone(), &[]).await.unwrap(), "abc");
    }
}

#[tokio::test]
async fn other_answers_are_none() {
    use FetchErrorKind::{NoAnswer, NoPolicy};
    let certificate = TestCertificate::new(["mta-sts.example.net"]).unwrap();
    let large = "x".repeat(MAX_POLICY_SIZE + 1);
    let text = "200 OK\r\ncontent-type: text/plain";
    let unbounded = format!("HTTP/1.1 {text}\r\n\r\n{large}");
    let cut = format!("HTTP/1.1 {text}\r\ncontent-length: 100\r\n\r\nversion: STSv1");
    for (response, kind, words) in [
        (response("404 Not Found\r\ncontent-type: text/plain", FILE), NoAnswer, "status 404, not 200"),
        (
            response("301 Moved\r\nlocation: https://mta-sts.example.net/x", FILE),
            NoAnswer,
            "status 301, and redirects are not followed",
        ),
        (response("204 No Content\r\ncontent-type: text/plain", ""), NoAnswer, "status 204"),
        (
            response("200 OK\r\ncontent-type: text/html", FILE),
            NoPolicy,
            "media type `text/html`, not text/plain",
        ),
        (response("200 OK", FILE), NoPolicy, "media type ``, not text/plain"),
        (response(text, &large), NoPolicy, "more than 65536 octets"),
        (unbounded, NoPolicy, "more than 65536 octets"),
        (cut, NoAnswer, "mta-sts.example.net: "),
        ("nonsense\r\n\r\n".to_owned(), NoAnswer, "mta-sts.example.net: "),
        (String::new(), NoAnswer, "mta-sts.example.net: "),
    ] {
        let (port, requests) = serve(&certificate, response).await;
        let error = fetch(&trusting(&certificate, port), &zone(), &[]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(requests.lock().unwrap().len(), 1, "{error}");
    }
}

#[tokio::test]
async fn the_certificate_must_be_valid_for_the_policy_host() {
    let right = TestCertificate::new(["mta-sts.example.net"]).unwrap();
    for (certificate, roots) in [
        (TestCertificate::new(["example.net"]).unwrap(), None),
        (TestCertificate::expired(["mta-sts.example.net"]).unwrap(), None),
        (right.clone(), Some(TestCertificate::new(["mta-sts.example.net"]).unwrap())),
    ] {
        let (port, requests) =
            serve(&certificate, response("200 OK\r\ncontent-type: text/plain", FILE)).await;
        let fetcher = trusting(roots.as_ref().unwrap_or(&certificate), port);
        let error = fetch(&fetcher, &zone(), &[]).await.unwrap_err();
        assert_eq!(error.kind(), FetchErrorKind::Certificate, "{error}");
        assert!(requests.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn addresses_are_tried_in_turn_and_some_never() {
    let certificate = TestCertificate::new(["mta-sts.example.net"]).unwrap();
    let (port, requests) = serve(&certificate, response("200 OK\r\ncontent-type: text/plain", FILE)).await;
    let fetcher = trusting(&certificate, port);
    let two = "mta-sts.example.net A 127.0.0.2\nmta-sts.example.net A 127.0.0.1";
    assert!(fetch(&fetcher, &StaticResolver::parse(two).unwrap(), &[]).await.is_ok());
    let error = fetch(&fetcher, &zone(), &crate::policy::default_prohibited()).await.unwrap_err();
    assert_eq!(error.to_string(), "mta-sts.example.net: 127.0.0.1 is of a kind that is never tried");
    let error = fetch(&fetcher, &StaticResolver::new(), &[]).await.unwrap_err();
    assert_eq!(error.to_string(), "mta-sts.example.net has no address (A or AAAA)");
    let zone = zone();
    zone.fail("mta-sts.example.net", crate::dns::DnsErrorKind::ServFail);
    assert_eq!(fetch(&fetcher, &zone, &[]).await.unwrap_err().kind(), FetchErrorKind::NoAnswer);
    assert_eq!(requests.lock().unwrap().len(), 1);
}
