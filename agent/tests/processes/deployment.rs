//! A deployment on loopback: its table, its certificates, its processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use serde_json::Value;

use crate::ask::{answer, get};
use crate::certificates::Authority;

const AGENT: &str = env!("CARGO_BIN_EXE_sluice-agent");
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Deployment {
    dir: tempfile::TempDir,
    authority: Authority,
    members: BTreeMap<String, Member>,
    processes: BTreeMap<String, Child>,
    replicas: u32,
    /// Who speaks version 1 of the wire alone.
    old: BTreeSet<String>,
    /// Where processes that start find each other's sockets.
    sockets: Option<PathBuf>,
}

struct Member {
    role: String,
    peers: SocketAddr,
    admin: SocketAddr,
    listen: SocketAddr,
}

/// Waits for something to come true.
pub fn until(what: &str, patience: Duration, is: impl Fn() -> bool) {
    let end = Instant::now() + patience;
    while !is() {
        assert!(Instant::now() < end, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port that was free a moment ago.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Deployment {
    /// Starts these workers and a gateway, g0. Every expert is on so many workers.
    pub fn start(workers: &[(&str, &str)], replicas: u32) -> Self {
        Self::begin(workers, replicas, &[], false)
    }

    /// The same, with some that hold version 1 of the wire.
    pub fn start_mixed(workers: &[(&str, &str)], replicas: u32, old: &[&str]) -> Self {
        Self::begin(workers, replicas, old, false)
    }

    /// As [`Self::start`], over Unix sockets in the directory `sockets`.
    pub fn start_over_sockets(workers: &[(&str, &str)], replicas: u32) -> Self {
        Self::begin(workers, replicas, &[], true)
    }

    fn begin(workers: &[(&str, &str)], replicas: u32, old: &[&str], over_sockets: bool) -> Self {
        let member = |role: &str| Member { role: role.into(), peers: free(), admin: free(), listen: free() };
        let mut members: BTreeMap<String, Member> =
            workers.iter().map(|(name, role)| ((*name).into(), member(role))).collect();
        members.insert("g0".into(), member("gateway"));
        let mut d = Self {
            dir: tempfile::tempdir().unwrap(),
            authority: Authority::new(),
            members,
            processes: BTreeMap::new(),
            replicas,
            old: old.iter().map(|name| (*name).into()).collect(),
            sockets: None,
        };
        d.sockets = over_sockets.then(|| d.directory("sockets"));
        d.plan();
        let names: Vec<String> = d.members.keys().cloned().collect();
        for name in &names {
            d.certify(name, &d.authority, &d.authority.pem());
            d.spawn(name);
        }
        names.iter().for_each(|name| d.is_ready(name));
        // Ready is who has loaded; now they have to find each other.
        until("all are connected", PATIENCE, || {
            names.iter().filter(|n| d.members[*n].role == "attention").all(|n| {
                let hosts = d.members.values().filter(|m| m.role == "experts").count();
                let log = d.log(n);
                log.contains("gateway=\"g0\"") && log.matches("connected peer=\"e").count() >= hosts
            })
        });
        d
    }

    fn plan(&self) {
        let workers: Vec<Value> = (0..)
            .zip(self.members.iter().filter(|(_, m)| m.role != "gateway"))
            .map(|(number, (name, m))| {
                serde_json::json!({"number": number, "name": name, "role": m.role, "address": m.peers.to_string()})
            })
            .collect();
        let list = self.path("workers.yaml");
        std::fs::write(&list, serde_json::json!({ "workers": workers }).to_string()).unwrap();
        let out = Command::new(AGENT)
            .args(["plan", "--replicas", &self.replicas.to_string(), "--workers"])
            .arg(&list)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::write(self.path("table.yaml"), out.stdout).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory.
    pub fn directory(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    pub fn address(&self, name: &str) -> SocketAddr {
        self.members[name].peers
    }

    pub fn admin(&self, name: &str) -> SocketAddr {
        self.members[name].admin
    }

    pub fn listen(&self) -> SocketAddr {
        self.members["g0"].listen
    }

    pub fn log(&self, name: &str) -> String {
        let bytes = std::fs::read(self.path(&format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn certify(&self, name: &str, by: &Authority, trusted: &str) {
        let role = &self.members[name].role;
        let mut uri = format!("spiffe://sluice/ns/default/moe/sluice/role/{role}");
        if role != "gateway" {
            uri += &format!("/worker/{name}");
        }
        by.leaf_trusting(&self.directory(&format!("tls-{name}")), &uri, trusted);
    }

    /// New leaves of a new CA: first everybody trusts both, then shows the new ones, then forgets the old CA.
    pub fn renew_certificates(&mut self) {
        let new = Authority::new();
        let both = self.authority.pem() + &new.pem();
        for (by, trusted) in [(&self.authority, &both), (&new, &both), (&new, &new.pem())] {
            for name in self.members.keys() {
                self.certify(name, by, trusted);
            }
            // Longer than it takes to look again.
            std::thread::sleep(Duration::from_millis(2_500));
        }
        self.authority = new;
    }

    fn spawn(&mut self, name: &str) {
        let dir = self.tls(name);
        let m = &self.members[name];
        let mut command = Command::new(AGENT);
        let table = self.path("table.yaml");
        command.arg(&m.role).args(["--name", name, "--admin-listen", &m.admin.to_string()]);
        command.arg("--table").arg(table).arg("--tls").arg(dir).args(["--peer-listen", &m.peers.to_string()]);
        if let Some(sockets) = &self.sockets {
            command.arg("--peer-sockets").arg(sockets);
        }
        match m.role.as_str() {
            "gateway" => command.args(["--listen", &m.listen.to_string()]),
            role => {
                command.args(["--threads", "1"]);
                if role == "attention" {
                    // Half of this is for sequences to finish in: what a test asks for takes longer.
                    command.args(["--kv-tokens", "16384", "--shutdown-grace", "600ms"]);
                }
                &mut command
            }
        };
        if self.old.contains(name) {
            command.args(["--wire-max", "1"]);
        }
        let out = File::options().create(true).append(true).open(self.path(&format!("{name}.log"))).unwrap();
        let child = command.env("NO_COLOR", "1").stderr(out).spawn().unwrap();
        self.processes.insert(name.into(), child);
    }

    /// The directory of a process's certificate.
    pub fn tls(&self, name: &str) -> PathBuf {
        self.path(&format!("tls-{name}"))
    }

    /// The numerics id that a worker has said it computes with.
    pub fn numerics(&self, name: &str) -> String {
        let log = self.log(name);
        let said = log.split_once("numerics=\"").and_then(|(_, rest)| rest.split('"').next());
        said.unwrap_or_else(|| panic!("no numerics id in\n{log}")).to_owned()
    }

    pub fn kill(&mut self, name: &str) {
        let mut child = self.processes.remove(name).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks a process to leave, and waits until it has.
    pub fn terminate(&mut self, name: &str) {
        let mut child = self.processes.remove(name).unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let end = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "{name} does not leave:\n{}", self.log(name));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends a process that holds version 1 of the wire, and starts it anew without.
    pub fn upgrade(&mut self, name: &str) {
        self.terminate(name);
        assert!(self.old.remove(name), "{name} is new");
        self.restart(name);
    }

    /// Whoever starts from now on has no socket.
    pub fn without_sockets(&mut self) {
        self.sockets = None;
    }

    pub fn restart(&mut self, name: &str) {
        self.spawn(name);
        self.is_ready(name);
    }

    /// Waits until a process says that it is ready.
    pub fn is_ready(&self, name: &str) {
        let is = || get(self.admin(name), "/readyz").is_ok_and(|(status, _)| status == 200);
        until(&format!("{name} is ready; its log:\n{}", self.log(name)), PATIENCE, is);
    }

    /// Runs a command to its end.
    pub fn command(&self, args: &[&str]) -> Output {
        let table = self.path("table.yaml");
        let ports = ["--peer-listen", "127.0.0.1:0", "--admin-listen", "off"];
        Command::new(AGENT).args(args).args(ports).arg("--table").arg(table).output().unwrap()
    }

    /// Changes the states of rows, and raises the generation.
    pub fn change_table(&self, state: impl Fn(&Value) -> Option<&'static str>) {
        let text = std::fs::read_to_string(self.path("table.yaml")).unwrap();
        let mut table: Value = serde_saphyr::from_str(&text).unwrap();
        for slice in table["slices"].as_array_mut().unwrap() {
            slice["generation"] = (slice["generation"].as_u64().unwrap() + 1).into();
            for row in slice["units"].as_array_mut().unwrap() {
                row["state"] = state(row).unwrap_or("Active").into();
            }
        }
        std::fs::write(self.path("table.new"), table.to_string()).unwrap();
        std::fs::rename(self.path("table.new"), self.path("table.yaml")).unwrap();
    }

    /// Begins a TLS handshake with these certificates; it need not come to an end.
    pub fn knock(&self, tls: &Path, address: &SocketAddr) {
        let (mut tls, mut tcp) = connect(tls, address, vec![]);
        while tls.is_handshaking() && tls.complete_io(&mut tcp).is_ok() {}
        // The server's verdict comes behind the client's handshake.
        let _ = rustls::Stream::new(&mut tls, &mut tcp).read(&mut [0; 64]);
    }

    /// The directory of a certificate that needs no worker's name.
    pub fn client(&self, role: &str) -> PathBuf {
        let dir = self.directory(role);
        self.authority.leaf(
            &dir,
            &format!("spiffe://sluice/ns/default/moe/sluice/role/{role}"),
            &self.authority,
        );
        dir
    }

    /// What the operator sees of a worker's pressure.
    pub fn pressure(&self, name: &str) -> Value {
        let (status, text) = self.page(&self.client("operator"), name, "GET", "/v1/pressure", "");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()["workers"][0].take()
    }

    /// A page of a peer listener: its status and its text.
    pub fn page(&self, tls: &Path, name: &str, method: &str, path: &str, body: &str) -> (u16, String) {
        let (mut tls, mut tcp) = connect(tls, &self.address(name), vec![b"http/1.1".to_vec()]);
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: it\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all((head + body).as_bytes()).unwrap();
        let mut text = vec![];
        let _ = stream.read_to_end(&mut text);
        answer(&text).unwrap()
    }
}

/// A connection as its client sees it, with these certificates.
pub fn connect(
    tls: &Path,
    address: &SocketAddr,
    alpn: Vec<Vec<u8>>,
) -> (rustls::ClientConnection, TcpStream) {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = vec![CertificateDer::from_pem_file(tls.join("tls.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(tls.join("tls.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = alpn;
    let name = ServerName::try_from("sluice").unwrap();
    let tls = rustls::ClientConnection::new(config.into(), name).unwrap();
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (tls, tcp)
}

impl Drop for Deployment {
    fn drop(&mut self) {
        for child in self.processes.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for name in self.members.keys() {
                eprintln!("== {name}\n{}", self.log(name));
            }
        }
    }
}

/// Takes every server.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
