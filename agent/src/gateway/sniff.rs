//! Tells HTTP/1.1 from HTTP/2 without TLS by its first bytes, within a time.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How HTTP/2 begins.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Looks at a connection's first bytes and leaves them there. Nothing if it closes first.
///
/// # Errors
/// The connection broke, or too few bytes came in time.
pub(super) async fn sniff(stream: &TcpStream, within: Duration) -> io::Result<Option<Protocol>> {
    timeout(within, look(stream)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn look(stream: &TcpStream) -> io::Result<Option<Protocol>> {
    let mut bytes = [0; PREFACE.len()];
    loop {
        let got = stream.peek(&mut bytes).await?;
        if got == 0 {
            return Ok(None);
        }
        if bytes[..got] != PREFACE[..got] {
            return Ok(Some(Protocol::Http1));
        }
        if got == PREFACE.len() {
            return Ok(Some(Protocol::Http2));
        }
        // A part of the preface: the socket stays readable, so waiting for that would spin.
        sleep(Duration::from_millis(5)).await;
    }
}
