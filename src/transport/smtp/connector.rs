//! How connections come about: [`Connector`], and [`TcpConnector`].

use std::fmt::Debug;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::task::Poll;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use crate::transport::{EndCause, Target};

/// A connection: octets both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// Opens connections for [`SmtpTransport`](super::SmtpTransport): TCP, pipes in tests, a proxy.
///
/// # Cancel safety
///
/// Dropping the future of `connect` must close what was opened. The transport bounds the wait by
/// [`Timeouts::connect`](crate::transport::Timeouts::connect) that way.
#[async_trait]
pub trait Connector: Debug + Send + Sync + 'static {
    /// Connects from `target.local` to `target.peer`.
    ///
    /// # Errors
    /// [`EndCause::Local`] when this machine could not even try, so that nobody else is blamed for it;
    /// [`EndCause::Broken`] when the other side could not be reached or refused.
    async fn connect(&self, target: &Target) -> Result<Box<dyn Stream>, EndCause>;
}

fn _obj_safe(_: &dyn Connector) {}

/// Connects by TCP, without Nagle's delay.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TcpConnector;

#[async_trait]
impl Connector for TcpConnector {
    async fn connect(&self, target: &Target) -> Result<Box<dyn Stream>, EndCause> {
        let socket = socket(target.peer, target.local)?;
        let stream = connect(socket, target.peer).await?;
        // Without it Nagle and delayed acknowledgements cost 40 ms a message.
        stream.set_nodelay(true).map_err(broken)?;
        Ok(Box::new(stream))
    }
}

/// A socket bound to `local`. Whatever fails here is this machine's trouble: the peer was not asked yet.
fn socket(peer: SocketAddr, local: Option<IpAddr>) -> Result<TcpSocket, EndCause> {
    let socket = if peer.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| EndCause::Local(format!("no socket: {error}")))?;
    let Some(local) = local else { return Ok(socket) };

    let failed = |error: io::Error| EndCause::Local(format!("can not send from {local}: {error}"));
    if local.is_ipv4() != peer.is_ipv4() {
        return Err(EndCause::Local(format!(
            "can not send from {local} to {}: not the same family",
            peer.ip()
        )));
    }
    // Lets the kernel give one local port to connections with different receivers.
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(SocketAddr::new(local, 0)).map_err(failed)?;
    Ok(socket)
}

async fn connect(socket: TcpSocket, peer: SocketAddr) -> Result<TcpStream, EndCause> {
    let mut connecting = pin!(socket.connect(peer));
    // What connect(2) says at once comes from this machine; the network's answers come later. Only so can "no
    // route for the family" be told from a router's "network unreachable".
    match futures::poll!(&mut connecting) {
        Poll::Ready(Ok(stream)) => Ok(stream),
        Poll::Ready(Err(error)) if is_local(error.kind()) => {
            Err(EndCause::Local(format!("can not connect to {peer}: {error}")))
        }
        Poll::Ready(Err(error)) => Err(broken(error)),
        Poll::Pending => connecting.await.map_err(broken),
    }
}

/// No free port, no route, forbidden by a local filter, no memory.
fn is_local(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::AddrNotAvailable
            | ErrorKind::AddrInUse
            | ErrorKind::NetworkUnreachable
            | ErrorKind::PermissionDenied
            | ErrorKind::OutOfMemory
    )
}

/// The end of a connection by an I/O error.
pub(super) fn broken(error: io::Error) -> EndCause {
    EndCause::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    fn target(peer: SocketAddr, local: Option<&str>) -> Target {
        Target {
            peer,
            host: "mx.example".into(),
            local: local.map(|ip| ip.parse().unwrap()),
            ehlo: "out.example".into(),
            domain: None,
            queue: "y.example".into(),
            source: "default".into(),
            protocol: crate::transport::Protocol::Smtp,
            tls: crate::transport::TlsWish::default(),
            credentials: None,
            timeouts: Arc::default(),
            mta_sts: None,
            tlsa: None,
        }
    }

    #[tokio::test]
    async fn sends_from_the_address_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let stream = TcpConnector.connect(&target(peer, Some("127.0.0.7"))).await;
        let (mut accepted, from) = listener.accept().await.unwrap();
        assert_eq!(from.ip(), "127.0.0.7".parse::<IpAddr>().unwrap());
        drop(stream);
        let end = tokio::time::timeout(Duration::from_secs(5), accepted.read_u8()).await.unwrap();
        assert!(end.is_err());
    }

    #[tokio::test]
    async fn local_trouble_is_told_from_the_peers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        for local in ["192.0.2.1", "::1"] {
            let end = TcpConnector.connect(&target(peer, Some(local))).await.err();
            assert!(matches!(&end, Some(EndCause::Local(text)) if text.contains(local)), "{end:?}");
        }
        drop(listener);
        let end = TcpConnector.connect(&target(peer, None)).await.err();
        assert!(matches!(end, Some(EndCause::Broken(_))), "{end:?}");
    }
}
