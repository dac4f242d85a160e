//! [`HttpsFetcher`]: policies over HTTPS, by hyper.

#[cfg(all(test, feature = "testing"))]
mod tests;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{FetchError, FetchErrorKind, MAX_POLICY_SIZE, PolicyFetcher, PolicyRequest};
use crate::dns::{Answer, Data, DnsError, Freshness};
use crate::transport::smtp::RootsError;
use crate::transport::smtp::tls::{configure, parse_roots, platform_roots};

/// Where the file lies (RFC 8461 §3.3).
const PATH: &str = "/.well-known/mta-sts.txt";
/// For all of a fetch (RFC 8461 §3.3 speaks of one minute).
const LIMIT: Duration = Duration::from_secs(60);
/// For the TCP connection with one address, so that the next has its turn.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Addresses tried.
const MAX_ADDRESSES: usize = 4;
/// Octets of the response's head, and its fields.
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;

/// Gets policies by HTTP/1.1 over TLS 1.2 or 1.3.
///
/// The certificate must be valid for `mta-sts.<domain>` by the platform's roots, or by those of
/// [`with_root_certificates`](Self::with_root_certificates). No redirect is followed. A fetch takes 60 s at most, of
/// which 15 s for the connection with an address; four addresses are tried. Connections go out from the address the system
/// chooses, whatever the sources' addresses are, and are used once.
#[derive(Clone)]
pub struct HttpsFetcher {
    port: u16,
    roots: Option<RootCertStore>,
    config: Arc<OnceCell<Arc<ClientConfig>>>,
}

impl HttpsFetcher {
    /// With the platform's roots, read when they are first needed.
    pub fn new() -> Self {
        Self { port: 443, roots: None, config: Arc::default() }
    }

    /// Verifies certificates by these roots, in PEM, in place of the platform's.
    ///
    /// # Errors
    /// [`RootsError`], when one is no certificate, or there is none.
    pub fn with_root_certificates(mut self, pem: impl AsRef<[u8]>) -> Result<Self, RootsError> {
        self.roots = Some(parse_roots(pem.as_ref())?);
        self.config = Arc::default();
        Ok(self)
    }

    /// Connects to this TCP port, for tests. Default: 443.
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    async fn config(&self) -> Result<Arc<ClientConfig>, FetchError> {
        let make = || async {
            let roots = match &self.roots {
                Some(roots) => roots.clone(),
                None => platform_roots().await?,
            };
            let mut config = configure(roots)?;
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok::<_, crate::transport::EndCause>(Arc::new(config))
        };
        self.config.get_or_try_init(make).await.cloned().map_err(|cause| no_answer(cause.to_string()))
    }

    async fn connect(&self, host: &str, request: &PolicyRequest<'_>) -> Result<TcpStream, FetchError> {
        let (ipv4, ipv6) = tokio::join!(
            request.resolver.ipv4(host, Freshness::Cached),
            request.resolver.ipv6(host, Freshness::Cached),
        );
        let mut last = match (&ipv4, &ipv6) {
            (Err(error), _) | (_, Err(error)) => no_answer(format!("{host}: {error}")),
            _ => no_answer(format!("{host} has no address (A or AAAA)")),
        };
        let (mut ipv4, mut ipv6) = (addresses(ipv4).into_iter(), addresses(ipv6).into_iter());
        let mut left = MAX_ADDRESSES;
        loop {
            let pair = [ipv4.next(), ipv6.next()];
            if pair == [None, None] {
                return Err(last);
            }
            for address in pair.into_iter().flatten() {
                if request.prohibited.iter().any(|range| range.contains(address)) {
                    last = no_answer(format!("{host}: {address} is of a kind that is never tried"));
                    continue;
                }
                if left == 0 {
                    return Err(last);
                }
                left -= 1;
                let peer = SocketAddr::new(address, self.port);
                match timeout(CONNECT_LIMIT, TcpStream::connect(peer)).await {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(error)) => last = no_answer(format!("{host}: {peer}: {error}")),
                    Err(_) => {
                        let limit = CONNECT_LIMIT.as_secs();
                        last = no_answer(format!("{host}: {peer}: no connection within {limit} s"));
                    }
                }
            }
        }
    }

    async fn get(&self, request: &PolicyRequest<'_>) -> Result<Bytes, FetchError> {
        let host = request.host();
        let name = ServerName::try_from(host.clone())
            .map_err(|_| no_answer(format!("no certificate can be for a host called `{host}`")))?;
        let config = self.config().await?;
        let stream = self.connect(&host, request).await?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        let stream = stream.map_err(|error| handshake_failed(&host, &error))?;
        let asked = Request::get(PATH)
            .header(HOST, &host)
            .header(USER_AGENT, concat!("postrider/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "text/plain")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| no_answer(format!("{host}: {error}")))?;
        let failed = |error: hyper::Error| no_answer(format!("{host}: {}", with_source(&error)));
        let (mut sender, connection) = http1::Builder::new()
            .max_headers(MAX_FIELDS)
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        let exchange = async {
            let response = sender.send_request(asked).await.map_err(failed)?;
            read(&host, response).await
        };
        // Whatever ends the connection ends the exchange, which has the words for it.
        let connection = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            answer = exchange => answer,
            () = connection => Err(no_answer(format!("{host}: the connection ended"))),
        }
    }
}

async fn read(host: &str, response: Response<Incoming>) -> Result<Bytes, FetchError> {
    let status = response.status();
    if status != StatusCode::OK {
        let why = if status.is_redirection() { ", and redirects are not followed" } else { "" };
        return Err(no_answer(format!("{host}: {PATH}: status {}{why}, not 200", status.as_u16())));
    }
    let no_policy = |why: String| FetchError::new(FetchErrorKind::NoPolicy, format!("{host}: {PATH}: {why}"));
    let media_type = response.headers().get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let essence = media_type.split(|&octet| octet == b';').next().unwrap_or_default();
    if !essence.trim_ascii().eq_ignore_ascii_case(b"text/plain") {
        let found: String = media_type.escape_ascii().to_string().chars().take(100).collect();
        return Err(no_policy(format!("media type `{found}`, not text/plain")));
    }
    let too_large = || no_policy(format!("more than {MAX_POLICY_SIZE} octets"));
    let mut body = response.into_body();
    if body.size_hint().lower() > MAX_POLICY_SIZE as u64 {
        return Err(too_large());
    }
    let mut file = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| no_answer(format!("{host}: {}", with_source(&error))))?;
        if let Some(data) = frame.data_ref() {
            if file.len() + data.len() > MAX_POLICY_SIZE {
                return Err(too_large());
            }
            file.extend_from_slice(data);
        }
    }
    Ok(file.freeze())
}

fn addresses<T: Into<IpAddr>>(answer: Result<Answer<T>, DnsError>) -> Vec<IpAddr> {
    match answer {
        Ok(Answer { data: Data::Records(records), .. }) => records.into_iter().map(Into::into).collect(),
        _ => Vec::new(),
    }
}

fn no_answer(message: String) -> FetchError {
    FetchError::new(FetchErrorKind::NoAnswer, message)
}

fn handshake_failed(host: &str, error: &io::Error) -> FetchError {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let kind = match tls {
        Some(rustls::Error::InvalidCertificate(_)) => FetchErrorKind::Certificate,
        _ => FetchErrorKind::NoAnswer,
    };
    // Parts of it are the server's words.
    let text: String = error.to_string().chars().take(200).flat_map(char::escape_debug).collect();
    FetchError::new(kind, format!("{host}: {text}"))
}

/// hyper's own words leave out what is behind them.
fn with_source(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[async_trait]
impl PolicyFetcher for HttpsFetcher {
    async fn fetch(&self, request: &PolicyRequest<'_>) -> Result<Bytes, FetchError> {
        let late = || no_answer(format!("{}: no answer within {} s", request.host(), LIMIT.as_secs()));
        timeout(LIMIT, self.get(request)).await.unwrap_or_else(|_| Err(late()))
    }
}

impl Default for HttpsFetcher {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for HttpsFetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("https")
    }
}

impl fmt::Debug for HttpsFetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpsFetcher").field("port", &self.port).finish_non_exhaustive()
    }
}
