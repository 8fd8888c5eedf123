//! One connection, encrypted or not.

use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

/// A connection to another process of the deployment.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// With.
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
    /// With a process of this host.
    Local(UnixStream),
}

impl Stream {
    /// What it goes over, for the log.
    pub fn over(&self) -> &'static str {
        match self {
            Self::Plain(_) => "tcp",
            Self::Tls(_) => "tls",
            Self::Local(_) => "unix",
        }
    }
}

/// A connection behind its hellos.
#[derive(Debug)]
pub struct Connection {
    /// What is read from and written to.
    pub stream: Stream,
    /// The version of the wire that both ends speak on it.
    pub wire: u16,
}

macro_rules! either {
    ($self:ident, $method:ident($($arg:expr),*)) => {
        match $self.get_mut() {
            Self::Plain(s) => Pin::new(s).$method($($arg),*),
            Self::Tls(s) => Pin::new(s.as_mut()).$method($($arg),*),
            Self::Local(s) => Pin::new(s).$method($($arg),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        either!(self, poll_read(cx, buf)).map_err(|e| match e.kind() {
            // A process that dies says no goodbye, of TLS or otherwise.
            ErrorKind::UnexpectedEof => ErrorKind::UnexpectedEof.into(),
            _ => e,
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        either!(self, poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        either!(self, poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(s) => s.is_write_vectored(),
            Self::Tls(s) => s.is_write_vectored(),
            Self::Local(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        either!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        either!(self, poll_shutdown(cx))
    }
}
