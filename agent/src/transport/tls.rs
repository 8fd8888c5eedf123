//! Mutual TLS from files, read again when they change: a connection that stands goes on, the next one uses the new
//! certificate. Several CAs in `ca.crt` are all trusted, so a CA is changed by adding the new one first.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sluice_identity::{ByTrustAnchor, Identity, IdentityError};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::stream::Stream;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Who dials is known after this, or not talked to.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// Bytes that are read from a socket at a time: four records.
const AHEAD: usize = 64 << 10;

/// What processes of a deployment speak, for ALPN. Everything else is HTTP.
const SLUICE: &[u8] = b"sluice";
/// What pages are asked for with.
const HTTP: &[u8] = b"http/1.1";

/// A connection of a peer.
pub(super) struct Accepted {
    pub stream: Stream,
    pub identity: Option<Identity>,
    /// It wants pages, not the data plane.
    pub is_http: bool,
}

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in a file.
    #[error("{} holds no {what} in PEM form: {why}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What should be there.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// Key and certificate do not go together, or the CA is none.
    #[error("the certificates in {} cannot be used: {why}", dir.display())]
    Unfit {
        /// The directory.
        dir: PathBuf,
        /// Why.
        why: String,
    },
    /// The certificate is another's.
    #[error("the certificate in {} is for {certificate}, and this process is {own}: give it its own --tls directory, or the right --name and --deployment", dir.display())]
    Other {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        certificate: String,
        /// Who we are.
        own: String,
    },
    /// The leaf names nobody.
    #[error("{}: {why}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: IdentityError,
    },
}

/// How connections are secured.
#[derive(Debug)]
pub enum Security {
    /// Not at all: for one host, or a network that does it.
    Off,
    /// By mutual TLS.
    Tls(Certificates),
}

/// `tls.crt`, `tls.key` and `ca.crt` of a directory, as in a Kubernetes Secret.
#[derive(Debug)]
pub struct Certificates {
    dir: PathBuf,
    /// Whose they must be.
    own: Identity,
    loaded: RwLock<Arc<Loaded>>,
}

#[derive(Debug)]
struct Loaded {
    files: [Vec<u8>; 3],
    client: Arc<ClientConfig>,
    /// The same, for pages.
    reader: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Security {
    /// From a directory. The certificate must be this process's, now and whenever it changes; `own` has a name also if
    /// it is a gateway.
    ///
    /// # Errors
    /// What is missing or does not fit, or whose the certificate is.
    pub fn from_dir(dir: &Path, own: Identity) -> Result<Self, TlsError> {
        let loaded = RwLock::new(Arc::new(load(dir, &own, read(dir)?)?));
        Ok(Self::Tls(Certificates { dir: dir.into(), own, loaded }))
    }

    /// The accepting side's handshake; with TLS also whom the peer's certificate is for. What is to be spoken is
    /// agreed on by ALPN; without TLS, by how the first word begins.
    ///
    /// # Errors
    /// The handshake's, or that the certificate names nobody.
    pub(super) async fn accept(&self, tcp: TcpStream) -> std::io::Result<Accepted> {
        let Self::Tls(c) = self else {
            let mut first = [0; 2];
            // The second letter may come later. A socket with the first stays readable, so waiting for that would spin.
            while tcp.peek(&mut first).await? == 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let is_http = first.iter().all(u8::is_ascii_uppercase);
            return Ok(Accepted { stream: Stream::Plain(tcp), identity: None, is_http });
        };
        let acceptor = TlsAcceptor::from(Arc::clone(&c.loaded().server));
        let late =
            |_| std::io::Error::new(ErrorKind::TimedOut, format!("it was not over within {HANDSHAKE:?}"));
        let tls = timeout(HANDSHAKE, acceptor.accept(buffered(tcp))).await.map_err(late)??;
        let identity = Some(peer(tls.get_ref().1.peer_certificates())?);
        let is_http = tls.get_ref().1.alpn_protocol().is_some_and(|p| p != SLUICE);
        Ok(Accepted { stream: Stream::Tls(Box::new(tls.into())), identity, is_http })
    }

    /// The dialling side's.
    ///
    /// # Errors
    /// As of [`Self::accept`].
    pub async fn connect(&self, tcp: TcpStream) -> std::io::Result<(Stream, Option<Identity>)> {
        self.dial(tcp, |loaded| &loaded.client).await
    }

    /// As [`Self::connect`], of one who asks for pages.
    ///
    /// # Errors
    /// As of [`Self::accept`].
    pub(super) async fn connect_for_pages(
        &self,
        tcp: TcpStream,
    ) -> std::io::Result<(Stream, Option<Identity>)> {
        self.dial(tcp, |loaded| &loaded.reader).await
    }

    async fn dial(
        &self,
        tcp: TcpStream,
        config: impl Fn(&Loaded) -> &Arc<ClientConfig>,
    ) -> std::io::Result<(Stream, Option<Identity>)> {
        let Self::Tls(c) = self else { return Ok((Stream::Plain(tcp), None)) };
        let connector = TlsConnector::from(Arc::clone(config(&c.loaded())));
        // Names are those of SPIFFE, checked after the handshake; the host's is not looked at.
        let name = ServerName::try_from("sluice").map_err(std::io::Error::other)?;
        let tls = connector.connect(name, buffered(tcp)).await?;
        let identity = peer(tls.get_ref().1.peer_certificates())?;
        Ok((Stream::Tls(Box::new(tls.into())), Some(identity)))
    }

    /// Reads changed files for as long as the process runs. What is wrong with them is logged, once, and the last that
    /// fitted stay in use.
    pub async fn watch(&self) {
        let Self::Tls(c) = self else { return };
        let mut complaint = String::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let dir = c.dir.clone();
            let Ok(files) = tokio::task::spawn_blocking(move || read(&dir)).await else { return };
            match c.look(files, &mut complaint) {
                Ok(true) => tracing::info!(dir = %c.dir.display(), "the certificates have been read again"),
                Ok(false) => {}
                Err(why) => tracing::error!("{why}; the certificates from before stay in use"),
            }
        }
    }
}

impl Certificates {
    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes what is in the files, if it is something new. What is wrong is said unless it was said the last time.
    fn look(&self, files: Result<[Vec<u8>; 3], TlsError>, complaint: &mut String) -> Result<bool, String> {
        let (taken, said) = match files.and_then(|files| self.replace(files)) {
            Ok(taken) => (taken, String::new()),
            Err(why) => (false, why.to_string()),
        };
        let is_new = !said.is_empty() && said != *complaint;
        complaint.clone_from(&said);
        if is_new { Err(said) } else { Ok(taken) }
    }

    fn replace(&self, files: [Vec<u8>; 3]) -> Result<bool, TlsError> {
        if self.loaded().files == files {
            return Ok(false);
        }
        let fresh = load(&self.dir, &self.own, files)?;
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        Ok(true)
    }
}

/// rustls asks the socket for 4 KiB at a time: a call to the system for each would be most of the work.
fn buffered(tcp: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(AHEAD, tcp)
}

fn peer(certificates: Option<&[CertificateDer<'_>]>) -> std::io::Result<Identity> {
    let leaf = certificates.and_then(<[_]>::first).ok_or_else(|| std::io::Error::other("no certificate"))?;
    Identity::of(leaf).map_err(std::io::Error::other)
}

fn read(dir: &Path) -> Result<[Vec<u8>; 3], TlsError> {
    let file = |name| {
        let path = dir.join(name);
        std::fs::read(&path).map_err(|source| TlsError::Read { path, source })
    };
    Ok([file("tls.crt")?, file("tls.key")?, file("ca.crt")?])
}

fn load(dir: &Path, own: &Identity, files: [Vec<u8>; 3]) -> Result<Loaded, TlsError> {
    let content = |name: &str, what| {
        let path = dir.join(name);
        move |why: String| TlsError::Content { path, what, why }
    };
    let chain = certificates(&files[0]).map_err(content("tls.crt", "certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(&files[1])
        .map_err(|e| content("tls.key", "private key")(e.to_string()))?;
    let cas = certificates(&files[2]).map_err(content("ca.crt", "certificate"))?;
    let identity = chain.first().map_or_else(|| Err(IdentityError::Nobody("nothing".into())), Identity::of);
    let identity = identity.map_err(|why| TlsError::Identity { path: dir.join("tls.crt"), why })?;
    check(dir, &identity, own)?;

    let unfit = |why: String| TlsError::Unfit { dir: dir.into(), why };
    let mut roots = RootCertStore::empty();
    for ca in cas {
        roots.add(ca).map_err(|e| unfit(e.to_string()))?;
    }
    let roots = Arc::new(roots);
    let provider = Arc::new(ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .build()
        .map_err(|e| unfit(e.to_string()))?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| unfit(e.to_string()))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(|e| unfit(e.to_string()))?;
    server.alpn_protocols = vec![SLUICE.into(), HTTP.into()];
    let servers = Arc::new(ByTrustAnchor::new(roots, Arc::clone(&provider)));
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| unfit(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(servers)
        .with_client_auth_cert(chain, key)
        .map_err(|e| unfit(e.to_string()))?;
    client.alpn_protocols = vec![SLUICE.into()];
    let mut reader = client.clone();
    reader.alpn_protocols = vec![HTTP.into()];
    Ok(Loaded { files, client: Arc::new(client), reader: Arc::new(reader), server: Arc::new(server) })
}

fn check(dir: &Path, certificate: &Identity, own: &Identity) -> Result<(), TlsError> {
    let is_own = certificate.deployment == own.deployment
        && certificate.role == own.role
        && (certificate.worker.is_none() || certificate.worker == own.worker);
    match is_own {
        true => Ok(()),
        false => Err(TlsError::Other {
            dir: dir.into(),
            certificate: certificate.to_string(),
            own: own.to_string(),
        }),
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    if all.is_empty() { Err("there is none".into()) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
    use sluice_core::hello::Role;

    use super::*;

    fn own() -> Identity {
        Identity { deployment: "default/sluice".into(), role: Role::Experts, worker: Some("e0".into()) }
    }

    /// Writes a leaf for this worker, signed by a CA of its own.
    fn certify(dir: &Path, role: &str, worker: &str) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let uri = format!("spiffe://sluice/ns/default/moe/sluice/role/{role}/worker/{worker}");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &ca).unwrap();
        for (name, text) in [("ca.crt", ca.pem()), ("tls.key", key.serialize_pem()), ("tls.crt", leaf.pem())]
        {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn a_certificate_of_another_is_refused_later_too_and_complained_of_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        certify(dir, "experts", "e1");
        let refused = Security::from_dir(dir, own()).unwrap_err().to_string();
        assert!(refused.contains("is for experts e1 of default/sluice"), "{refused}");

        certify(dir, "experts", "e0");
        let Security::Tls(c) = Security::from_dir(dir, own()).unwrap() else { panic!("no TLS") };
        let mut complaint = String::new();
        let mut look = || c.look(read(dir), &mut complaint);
        assert_eq!(look(), Ok(false));
        let mine = read(dir).unwrap();
        for (role, worker) in [("experts", "e1"), ("attention", "e0")] {
            certify(dir, role, worker);
            let says = format!("is for {role} {worker} of default/sluice");
            assert!(look().is_err_and(|why| why.contains(&says)), "{says}");
            assert_eq!(look(), Ok(false), "it was said");
            assert_eq!(c.loaded().files, mine, "the one from before stays in use");
        }
        std::fs::remove_file(dir.join("tls.key")).unwrap();
        assert!(look().is_err_and(|why| why.contains("tls.key")));
        assert_eq!(look(), Ok(false), "it was said");
        certify(dir, "experts", "e0");
        assert_eq!(look(), Ok(true));
        std::fs::remove_file(dir.join("tls.key")).unwrap();
        assert!(look().is_err(), "it went well in between");
    }
}
