//! HTTP over mutual TLS to an agent's port for peers.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sluice_identity::{Identity, IdentityError};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Page;

/// For the connection, and for each page.
const PATIENCE: Duration = Duration::from_secs(3);
/// No page has more bytes.
const LARGEST: usize = 32 << 20;

/// A connection to one gateway.
#[derive(Debug)]
pub(super) struct Connection {
    /// Where it goes.
    pub address: String,
    send: SendRequest<Empty<Bytes>>,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    #[error("cannot connect to {0}: {1}")]
    Connect(String, std::io::Error),
    #[error("{0} did not answer within {PATIENCE:?}")]
    Slow(String),
    #[error("{0}: {1}")]
    Nobody(String, IdentityError),
    #[error("{address} has a certificate for {found}, and it should be for {wanted}")]
    Other { address: String, found: Box<Identity>, wanted: Box<Identity> },
    #[error("{0}: {1}")]
    Http(String, hyper::Error),
    #[error("{0} answers {1}: {2}")]
    Status(String, u16, String),
    #[error("the page of {0} cannot be read: {1}")]
    Page(String, String),
}

impl Connection {
    /// Connects; the other side must be `wanted`.
    pub async fn open(address: &str, wanted: &Identity, tls: Arc<ClientConfig>) -> Result<Self, PullError> {
        let opened = timeout(PATIENCE, Self::dial(address, wanted, tls)).await;
        opened.unwrap_or_else(|_| Err(PullError::Slow(address.into())))
    }

    async fn dial(address: &str, wanted: &Identity, tls: Arc<ClientConfig>) -> Result<Self, PullError> {
        let fail = |e| PullError::Connect(address.into(), e);
        let tcp = TcpStream::connect(address).await.map_err(fail)?;
        let name = ServerName::try_from("sluice").map_err(|e| fail(std::io::Error::other(e)))?;
        let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(fail)?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let nobody = |why| PullError::Nobody(address.into(), why);
        let found = leaf.map_or_else(|| Err(IdentityError::Nobody("nothing".into())), Identity::of);
        let found = found.map_err(nobody)?;
        if found != *wanted {
            return Err(PullError::Other {
                address: address.into(),
                found: found.into(),
                wanted: wanted.clone().into(),
            });
        }
        let (send, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|e| PullError::Http(address.into(), e))?;
        tokio::spawn(connection);
        Ok(Self { address: address.into(), send })
    }

    /// Its page.
    pub async fn pull(&mut self) -> Result<Page, PullError> {
        let pulled = timeout(PATIENCE, self.get()).await;
        pulled.unwrap_or_else(|_| Err(PullError::Slow(self.address.clone())))
    }

    async fn get(&mut self) -> Result<Page, PullError> {
        let http = |e| PullError::Http(self.address.clone(), e);
        let unread = |e: String| PullError::Page(self.address.clone(), e);
        let request = Request::get("/v1/pressure").header("host", "sluice").body(Empty::new());
        let request = request.map_err(|e| unread(e.to_string()))?;
        let answer = self.send.send_request(request).await.map_err(http)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        let body = body.map_err(|e| PullError::Page(self.address.clone(), e.to_string()))?.to_bytes();
        if !status.is_success() {
            let said = String::from_utf8_lossy(&body).trim().to_owned();
            return Err(PullError::Status(self.address.clone(), status.as_u16(), said));
        }
        serde_json::from_slice(&body).map_err(|e| PullError::Page(self.address.clone(), e.to_string()))
    }
}
