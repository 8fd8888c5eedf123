//! Pages of workers, as a gateway asks for them: over its own mutual TLS, on connections that are kept.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use sluice_identity::{Identity, role_name};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::tls::Security;
use crate::table::Member;

/// An answer, with the connection that it may take, comes within this.
const ANSWER: Duration = Duration::from_secs(2);
/// No page has more bytes.
const LARGEST: usize = 8 << 20;

/// A page that was not had.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The connection.
    #[error("it cannot be reached: {0}")]
    Io(#[from] std::io::Error),
    /// No TLS.
    #[error("the TLS handshake failed: {0}")]
    Handshake(std::io::Error),
    /// Somebody else answers.
    #[error("{found} answers at the address of {wanted}")]
    Other {
        /// Who was asked.
        wanted: String,
        /// Whose the certificate is.
        found: String,
    },
    /// What came is not HTTP, or broke off.
    #[error("its answer broke: {0}")]
    Http(#[from] hyper::Error),
    /// It says no.
    #[error("it answers {0}")]
    Status(StatusCode),
    /// The page.
    #[error("its page has more than {LARGEST} bytes, or broke off: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The page, again.
    #[error("its page is not of this form: {0}")]
    Form(#[from] serde_json::Error),
    /// Nothing, for too long.
    #[error("no answer within {} s", ANSWER.as_secs())]
    Silent,
}

/// A connection to a worker.
#[derive(Debug)]
pub struct Line {
    sender: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Asks workers of a deployment.
#[derive(Debug)]
pub struct Asker {
    security: Arc<Security>,
    deployment: String,
}

impl Asker {
    /// With the certificate of a process of it.
    pub fn new(security: Arc<Security>, deployment: String) -> Self {
        Self { security, deployment }
    }

    /// A worker's page. The connection is left in `line` if it is good for the next one.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn page(
        &self,
        member: &Member,
        path: &str,
        line: &mut Option<Line>,
    ) -> Result<Bytes, AskError> {
        let kept = line.take().filter(|line| !line.sender.is_closed());
        let asked = async {
            let mut line = match kept {
                Some(kept) => kept,
                None => self.connect(member).await?,
            };
            line.sender.ready().await?;
            let mut request = Request::new(Empty::new());
            *request.uri_mut() = path.parse().unwrap_or_default();
            if let Ok(host) = member.address.parse() {
                request.headers_mut().insert(header::HOST, host);
            }
            let answer = line.sender.send_request(request).await?;
            if answer.status() != StatusCode::OK {
                return Err(AskError::Status(answer.status()));
            }
            let body = Limited::new(answer.into_body(), LARGEST).collect().await.map_err(AskError::Body)?;
            Ok((line, body.to_bytes()))
        };
        let (good, page) = timeout(ANSWER, asked).await.unwrap_or(Err(AskError::Silent))?;
        *line = Some(good);
        Ok(page)
    }

    async fn connect(&self, member: &Member) -> Result<Line, AskError> {
        let tcp = TcpStream::connect(&member.address).await?;
        tcp.set_nodelay(true)?;
        let (stream, certificate) =
            self.security.connect_for_pages(tcp).await.map_err(AskError::Handshake)?;
        let is_wanted = |found: &Identity| {
            found.deployment == self.deployment
                && found.role == member.role
                && found.worker.as_ref() == Some(&member.name)
        };
        if let Some(found) = certificate.filter(|found| !is_wanted(found)) {
            let wanted = format!("{} {} of {}", role_name(member.role), member.name, self.deployment);
            return Err(AskError::Other { wanted, found: found.to_string() });
        }
        let (sender, driver) = handshake(TokioIo::new(stream)).await?;
        // Its end is seen where the connection is used.
        let driver = tokio::spawn(async move { drop(driver.await) });
        Ok(Line { sender, driver })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
    use sluice_core::hello::Role;
    use sluice_core::ids::WorkerId;
    use tokio::net::TcpListener;

    use super::super::{Pages, listen_for_pages};
    use super::*;
    use crate::table::FileSource;

    /// Of processes that trust each other: their certificates say these names.
    fn certify(dirs: &[(&Path, &str)]) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        for (dir, name) in dirs {
            let uri = format!("spiffe://sluice/ns/default/moe/sluice/role/{name}");
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
            let key = KeyPair::generate().unwrap();
            let leaf = params.signed_by(&key, &ca).unwrap();
            for (name, text) in
                [("ca.crt", ca.pem()), ("tls.key", key.serialize_pem()), ("tls.crt", leaf.pem())]
            {
                std::fs::write(dir.join(name), text).unwrap();
            }
        }
    }

    fn identity(role: Role, name: &str) -> Identity {
        Identity { deployment: "default/sluice".into(), role, worker: Some(name.into()) }
    }

    #[tokio::test]
    async fn who_is_asked_must_have_the_certificate_of_who_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let [worker, gateway] = ["e0", "g"].map(|name| dir.path().join(name));
        for dir in [&worker, &gateway] {
            std::fs::create_dir(dir).unwrap();
        }
        certify(&[(&worker, "experts/worker/e0"), (&gateway, "gateway")]);
        let security = Arc::new(Security::from_dir(&worker, identity(Role::Experts, "e0")).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let table = dir.path().join("table.yaml");
        std::fs::write(&table, "workers: []").unwrap();
        let source = Arc::new(FileSource::open(&table).await.unwrap());
        let pages = Arc::new(Pages { source, pressure: Arc::new(|| serde_json::json!({ "workers": [] })) });
        let serving = tokio::spawn(listen_for_pages(listener, security, "default/sluice".into(), pages));

        let own = Arc::new(Security::from_dir(&gateway, identity(Role::Gateway, "g0")).unwrap());
        let asker = Asker::new(own, "default/sluice".into());
        let member = |name: &str, role| Member {
            number: WorkerId(0),
            name: name.into(),
            role,
            address: at.to_string(),
        };
        let mut line = None;
        for _ in 0..3 {
            let page = asker.page(&member("e0", Role::Experts), "/v1/pressure", &mut line).await.unwrap();
            assert_eq!(&*page, b"{\"workers\":[]}");
            assert!(line.is_some(), "the connection is kept");
        }
        let nowhere = asker.page(&member("e0", Role::Experts), "/v1/nothing", &mut line).await;
        assert!(matches!(nowhere, Err(AskError::Status(StatusCode::NOT_FOUND))), "{nowhere:?}");
        assert!(line.is_none());
        for wrong in [member("e1", Role::Experts), member("e0", Role::Hybrid)] {
            let why = asker.page(&wrong, "/v1/pressure", &mut line).await.unwrap_err().to_string();
            assert!(why.contains("experts e0 of default/sluice answers at the address of"), "{why}");
        }
        serving.abort();
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let deaf =
            Member { address: silent.local_addr().unwrap().to_string(), ..member("e0", Role::Experts) };
        let why = asker.page(&deaf, "/v1/pressure", &mut line).await.unwrap_err();
        assert!(matches!(why, AskError::Silent), "{why}");
    }
}
