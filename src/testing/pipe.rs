//! A test server's end of a connection: in plain, or in TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(super) enum Pipe<S> {
    Plain(S),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::server::TlsStream<S>>),
    /// The handshake failed, or is under way.
    #[cfg(feature = "tls")]
    Broken,
}

#[cfg(feature = "tls")]
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Pipe<S> {
    /// Makes the handshake. Returns version and cipher suite, and whether a session was resumed.
    pub(super) async fn accept(
        &mut self,
        config: std::sync::Arc<rustls::ServerConfig>,
    ) -> io::Result<(String, bool)> {
        let Self::Plain(stream) = std::mem::replace(self, Self::Broken) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await?;
        let (_, connection) = stream.get_ref();
        let (version, suite) = (connection.protocol_version(), connection.negotiated_cipher_suite());
        let what = crate::transport::smtp::tls::describe(version, suite);
        let resumed = connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        *self = Self::Tls(Box::new(stream));
        Ok((what, resumed))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Pipe<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(feature = "tls")]
            Self::Broken => Poll::Ready(Ok(())),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Pipe<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, octets),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, octets),
            #[cfg(feature = "tls")]
            Self::Broken => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "tls")]
            Self::Broken => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "tls")]
            Self::Broken => Poll::Ready(Ok(())),
        }
    }
}
