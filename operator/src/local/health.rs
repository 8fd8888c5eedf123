//! The readiness page of a process of this machine.

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Whoever does not answer within this is not ready.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the process whose pages are on this port of the loopback says that it is ready.
pub async fn is_ready(port: i32) -> bool {
    timeout(PATIENCE, ask(port)).await.ok().flatten().unwrap_or(false)
}

async fn ask(port: i32) -> Option<bool> {
    let tcp = TcpStream::connect(("127.0.0.1", u16::try_from(port).ok()?)).await.ok()?;
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.ok()?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/readyz").header("host", "localhost").body(Empty::<Bytes>::new()).ok()?;
    let answer = send.send_request(request).await.ok()?;
    connection.abort();
    Some(answer.status().is_success())
}
