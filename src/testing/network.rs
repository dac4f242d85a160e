//! A network of pipes.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::conversation::{self, pause};
use super::server::SmtpServer;
use crate::transport::smtp::{Connector, Stream};
use crate::transport::{EndCause, Target};

/// Addresses and what answers there, without sockets: for [`SmtpTransport::over`](crate::transport::smtp::SmtpTransport::over).
///
/// Connections are pipes, so whole tests run on paused time. Nothing listens at an address not named: it refuses.
/// Clones are the same network, and it may change while it is in use.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    shared: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    places: HashMap<SocketAddr, Place>,
    local_trouble: HashMap<Option<IpAddr>, String>,
    latency: Duration,
    pipe: Option<usize>,
}

#[derive(Default)]
struct Place {
    answer: Answer,
    attempts: u64,
    open: u64,
    peak: u64,
}

#[derive(Clone, Default)]
enum Answer {
    #[default]
    Refuse,
    Blackhole,
    Server(SmtpServer),
    Script(Script),
}

type Script = Arc<dyn Fn(DuplexStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

impl MemoryNetwork {
    /// What a pipe holds each way unless [`MemoryNetwork::pipe_capacity`] says otherwise: 64 KiB.
    pub const PIPE: usize = 64 * 1024;

    /// A network where every address refuses.
    pub fn new() -> Self {
        Self::default()
    }

    /// `server` answers at `address`. One server may answer at many.
    pub fn listen(&self, address: SocketAddr, server: &SmtpServer) -> &Self {
        self.place(address, Answer::Server(server.clone()))
    }

    /// `script` talks at `address`, in raw octets.
    pub fn script<F>(
        &self,
        address: SocketAddr,
        script: impl Fn(DuplexStream) -> F + Send + Sync + 'static,
    ) -> &Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.place(address, Answer::Script(Arc::new(move |stream| Box::pin(script(stream)))))
    }

    /// `address` refuses connections.
    pub fn refuse(&self, address: SocketAddr) -> &Self {
        self.place(address, Answer::Refuse)
    }

    /// `address` never answers.
    pub fn blackhole(&self, address: SocketAddr) -> &Self {
        self.place(address, Answer::Blackhole)
    }

    /// This machine can not connect from `local` (`None`: from wherever), and says `trouble`, until
    /// [`MemoryNetwork::local_trouble_over`].
    pub fn local_trouble(&self, local: Option<IpAddr>, trouble: impl Into<String>) -> &Self {
        self.state().local_trouble.insert(local, trouble.into());
        self
    }

    /// Ends all local trouble.
    pub fn local_trouble_over(&self) -> &Self {
        self.state().local_trouble.clear();
        self
    }

    /// Every connection takes this long to come about.
    pub fn latency(&self, latency: Duration) -> &Self {
        self.state().latency = latency;
        self
    }

    /// A pipe holds this much each way: small ones show who waits for whom.
    pub fn pipe_capacity(&self, octets: usize) -> &Self {
        self.state().pipe = Some(octets.max(1));
        self
    }

    /// How often a connection to `address` was tried.
    pub fn attempts(&self, address: SocketAddr) -> u64 {
        self.state().places.get(&address).map_or(0, |place| place.attempts)
    }

    /// How many connections to `address` are open or being opened.
    pub fn open_connections(&self, address: SocketAddr) -> u64 {
        self.state().places.get(&address).map_or(0, |place| place.open)
    }

    /// The most there were at once.
    pub fn peak_connections(&self, address: SocketAddr) -> u64 {
        self.state().places.get(&address).map_or(0, |place| place.peak)
    }

    fn place(&self, address: SocketAddr, answer: Answer) -> &Self {
        self.state().places.entry(address).or_default().answer = answer;
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn local_trouble_for(&self, local: Option<IpAddr>) -> Option<String> {
        let state = self.state();
        state.local_trouble.get(&None).or_else(|| state.local_trouble.get(&local)).cloned()
    }

    /// Counts an attempt; the connection counts as open until what is returned is dropped.
    fn open(&self, address: SocketAddr) -> (Answer, Open) {
        let mut state = self.state();
        let place = state.places.entry(address).or_default();
        place.attempts += 1;
        place.open += 1;
        place.peak = place.peak.max(place.open);
        (place.answer.clone(), Open { network: self.clone(), address })
    }
}

struct Open {
    network: MemoryNetwork,
    address: SocketAddr,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(place) = self.network.state().places.get_mut(&self.address) {
            place.open -= 1;
        }
    }
}

#[async_trait]
impl Connector for MemoryNetwork {
    async fn connect(&self, target: &Target) -> Result<Box<dyn Stream>, EndCause> {
        if let Some(trouble) = self.local_trouble_for(target.local) {
            return Err(EndCause::Local(trouble));
        }
        let (answer, open) = self.open(target.peer);
        let (latency, capacity) = {
            let state = self.state();
            (state.latency, state.pipe.unwrap_or(Self::PIPE))
        };
        if !latency.is_zero() {
            pause(latency).await;
        }
        let (near, far) = tokio::io::duplex(capacity);
        let reset = Arc::new(AtomicBool::new(false));
        match answer {
            Answer::Refuse => return Err(EndCause::Broken("connection refused".into())),
            Answer::Blackhole => std::future::pending().await,
            Answer::Script(script) => _ = tokio::spawn(script(far)),
            Answer::Server(server) => {
                let (address, client, reset) = (target.peer, target.local, reset.clone());
                tokio::spawn(async move {
                    let broken = || reset.store(true, Ordering::Release);
                    conversation::run(&server, far, address, client, broken).await;
                });
            }
        }
        Ok(Box::new(MemoryStream { pipe: near, reset, _open: open }))
    }
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryNetwork").field("addresses", &self.state().places.len()).finish_non_exhaustive()
    }
}

/// The client's end of a connection in a [`MemoryNetwork`].
pub struct MemoryStream {
    pipe: DuplexStream,
    reset: Arc<AtomicBool>,
    _open: Open,
}

impl MemoryStream {
    fn check_reset(&self) -> io::Result<()> {
        if self.reset.load(Ordering::Acquire) { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(cx, buf))?;
        if buf.filled().len() == before {
            self.check_reset()?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        self.check_reset()?;
        Pin::new(&mut self.pipe).poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

impl fmt::Debug for MemoryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStream").field("address", &self._open.address).finish_non_exhaustive()
    }
}
