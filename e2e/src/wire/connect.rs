//! How the two processes find each other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use sluice_agent::runtime::Door;
use sluice_agent::table::{FileSource, Member, PlacementSource, Table, render};
use sluice_agent::transport::{
    Connection, Format, Mesh, MeshConfig, Pages, Security, Stream, WIRE, run_pair,
};
use sluice_core::event::PeerUp;
use sluice_core::hello::{Hello, Role};
use sluice_core::ids::{Class, WorkerId};
use sluice_identity::Identity;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// The class of batches that go behind all others.
pub const PREFILL: Class = Class(1);
/// The class of all others.
pub const DECODE: Class = Class(0);

const DEPLOYMENT: [&str; 2] = ["bench", "wire"];
const TABLE: &str = "table.yaml";
const SOCKET: &str = "socket";

/// What the two are connected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// The mesh without TLS.
    Tcp,
    /// The mesh with mutual TLS.
    Tls,
    /// The mesh's pairs over Unix sockets, without hellos.
    Unix,
}

impl Via {
    /// All.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Tls, Self::Unix];
}

/// What both processes are told.
#[derive(Clone, Debug, clap::Args)]
pub struct Setup {
    /// What the two are connected by.
    #[arg(long)]
    pub via: Via,
    /// A directory for what they have in common.
    #[arg(long)]
    pub dir: PathBuf,
    /// Bytes of a row.
    #[arg(long)]
    pub row_bytes: usize,
    /// Rows of the landing ring.
    #[arg(long)]
    pub ring: u32,
}

impl Setup {
    /// Values of a row.
    pub fn row_len(&self) -> usize {
        self.row_bytes / size_of::<f32>()
    }
}

/// Which of the two a process is. The rank has the lower number, so it dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Sends tokens.
    Rank,
    /// Takes them.
    Host,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Rank, Self::Host];

    fn number(self) -> WorkerId {
        WorkerId(self as u32)
    }

    fn role(self) -> Role {
        match self {
            Self::Rank => Role::Attention,
            Self::Host => Role::Experts,
        }
    }

    fn words(self) -> [&'static str; 2] {
        match self {
            Self::Rank => ["attention", "rank"],
            Self::Host => ["experts", "host"],
        }
    }

    /// The name in its certificate.
    pub fn id(self) -> String {
        let ([namespace, name], [role, worker]) = (DEPLOYMENT, self.words());
        format!("spiffe://sluice/ns/{namespace}/moe/{name}/role/{role}/worker/{worker}")
    }

    fn identity(self) -> Identity {
        let worker = Some(self.words()[1].into());
        Identity { deployment: DEPLOYMENT.join("/"), role: self.role(), worker }
    }

    /// Where its certificate is.
    pub fn certificates(self, dir: &Path) -> PathBuf {
        dir.join(self.words()[1])
    }

    fn member(self, address: String) -> Member {
        Member { number: self.number(), name: self.words()[1].into(), role: self.role(), address }
    }
}

/// What keeps the connections; they close when it is dropped.
pub enum Connected {
    /// A mesh, and the table that it follows.
    Mesh { _mesh: Mesh, _source: Arc<dyn PlacementSource> },
    /// A pair.
    Pair(JoinHandle<()>),
}

impl Drop for Connected {
    fn drop(&mut self) {
        if let Self::Pair(task) = self {
            task.abort();
        }
    }
}

/// Connects one side. The host is first; `ready` is called when it can be dialled.
///
/// # Errors
/// What could not be had.
pub async fn connect(
    setup: &Setup,
    side: Side,
    door: Arc<dyn Door>,
    ready: impl FnOnce(),
) -> Result<Connected, String> {
    match setup.via {
        Via::Tcp => mesh(setup, side, door, Security::Off, ready).await,
        Via::Tls => {
            let dir = side.certificates(&setup.dir);
            let security = Security::from_dir(&dir, side.identity()).map_err(|e| e.to_string())?;
            mesh(setup, side, door, security, ready).await
        }
        Via::Unix => unix(setup, side, door, ready).await.map_err(|e| format!("the Unix sockets: {e}")),
    }
}

async fn mesh(
    setup: &Setup,
    side: Side,
    door: Arc<dyn Door>,
    security: Security,
    ready: impl FnOnce(),
) -> Result<Connected, String> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(|e| format!("cannot listen: {e}"))?;
    let address = listener.local_addr().map_err(|e| e.to_string())?.to_string();
    let path = setup.dir.join(TABLE);
    if side == Side::Host {
        // Nobody dials the rank.
        let workers = vec![Side::Rank.member("127.0.0.1:1".into()), Side::Host.member(address)];
        let text = render(&Table { generation: 1, segments: None, workers, slices: vec![] });
        std::fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    let source: Arc<dyn PlacementSource> =
        Arc::new(FileSource::open(&path).await.map_err(|e| e.to_string())?);
    let hello = Hello {
        deployment: DEPLOYMENT.join("/"),
        worker: Some(side.number()),
        name: side.words()[1].into(),
        incarnation: 1,
        role: side.role(),
        wire: WIRE,
        numerics: Some("none".into()),
        schedule: None,
    };
    let config = MeshConfig {
        hello,
        security: Arc::new(security),
        door,
        observer: Arc::new(()),
        row_len: setup.row_len(),
        prefill: PREFILL,
        all_pairs: false,
        pages: Arc::new(Pages { source: Arc::clone(&source), pressure: Arc::new(Default::default) }),
        masks: Arc::default(),
        local: None,
        gateways: None,
    };
    let mesh = Mesh::start(listener, source.watch(), config);
    ready();
    Ok(Connected::Mesh { _mesh: mesh, _source: source })
}

async fn unix(
    setup: &Setup,
    side: Side,
    door: Arc<dyn Door>,
    ready: impl FnOnce(),
) -> std::io::Result<Connected> {
    use std::os::unix::net::{UnixListener, UnixStream};

    let path = setup.dir.join(SOCKET);
    let format = Format::new(setup.row_len(), PREFILL, Arc::new(()));
    let pair = move |control: UnixStream, data: UnixStream| async move {
        let (control, data) = (connection(control)?, connection(data)?);
        let peer = if side == Side::Rank { Side::Host } else { Side::Rank };
        let is_rank = peer == Side::Rank;
        let up = PeerUp { worker: peer.number(), epoch: 1, is_rank, is_host: !is_rank };
        run_pair(control, data, up, format, door, Arc::new(Notify::new())).await;
        Ok::<_, std::io::Error>(())
    };
    let task = match side {
        Side::Rank => {
            let (control, data) = (UnixStream::connect(&path)?, UnixStream::connect(&path)?);
            tokio::spawn(async move { drop(pair(control, data).await) })
        }
        Side::Host => {
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path)?;
            ready();
            tokio::spawn(async move {
                let both = tokio::task::spawn_blocking(move || {
                    Ok::<_, std::io::Error>((listener.accept()?.0, listener.accept()?.0))
                });
                if let Ok(Ok((control, data))) = both.await {
                    drop(pair(control, data).await);
                }
            })
        }
    };
    Ok(Connected::Pair(task))
}

fn connection(socket: std::os::unix::net::UnixStream) -> std::io::Result<Connection> {
    socket.set_nonblocking(true)?;
    Ok(Connection { stream: Stream::Local(tokio::net::UnixStream::from_std(socket)?), wire: WIRE.max })
}
