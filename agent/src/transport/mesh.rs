//! All connections of one worker: it dials the peers with higher numbers, is dialled by those with lower ones and by
//! gateways, and follows the table.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sluice_core::event::PeerUp;
use sluice_core::hello::{Hello, Members, Role};
use sluice_core::ids::{Class, WorkerId};
use sluice_identity::Identity;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::greet::{self, Book, GreetError, Met, PATIENCE, Purpose};
use super::local::{LocalListener, Sockets};
use super::masks::Masks;
use super::observe::Observer;
use super::pages::{Pages, Shown};
use super::pair::{self, Format};
use super::stream::{Connection, Stream};
use super::tls::{Accepted, Security};
use super::turns::{Turn, Turns};
use crate::runtime::Door;
use crate::table::{Member, Table};

/// A peer that cannot be reached is tried again after at least, and at most, so long.
const RETRY: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// What goes on, as a peer that stays away, is complained of so often.
const COMPLAIN: Duration = Duration::from_secs(30);

/// Where a gateway's connections go.
pub trait Gateways: Send + Sync {
    /// A gateway has connected.
    fn connected(&self, gateway: &Hello, connection: Connection);
}

/// What a mesh is told at its start.
pub struct MeshConfig {
    /// The own hello.
    pub hello: Hello,
    /// TLS, or not.
    pub security: Arc<Security>,
    /// The worker.
    pub door: Arc<dyn Door>,
    /// Who is told of the connections with peers.
    pub observer: Arc<dyn Observer>,
    /// Numbers in a row that travels.
    pub row_len: usize,
    /// The class of prefill.
    pub prefill: Class,
    /// Whether workers without attention talk to each other too, as barriers need it.
    pub all_pairs: bool,
    /// Pages for peers, on the same listener.
    pub pages: Arc<Pages>,
    /// Told which peers are masked.
    pub masks: Arc<Masks>,
    /// Where peers and gateways of this host connect, if they need not do so over TCP.
    pub local: Option<LocalListener>,
    /// Who takes gateways; a worker without attention takes none.
    pub gateways: Option<Arc<dyn Gateways>>,
}

impl std::fmt::Debug for MeshConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshConfig").field("hello", &self.hello).finish_non_exhaustive()
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Dials ranks for a gateway.
#[derive(Debug)]
pub struct Dialer {
    members: Mutex<Members>,
    security: Arc<Security>,
    sockets: Option<Sockets>,
    table: watch::Receiver<Arc<Table>>,
    incarnation: u64,
}

impl Dialer {
    /// Of the gateway of this hello. `sockets`: where ranks of this host may be reached.
    pub fn new(
        hello: Hello,
        security: Arc<Security>,
        sockets: Option<Sockets>,
        table: watch::Receiver<Arc<Table>>,
    ) -> Self {
        let incarnation = hello.incarnation;
        Self { members: Mutex::new(Members::new(hello)), security, sockets, table, incarnation }
    }

    /// The gateway's own.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Connects to a rank.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn rank(&self, member: &Member) -> Result<(Hello, Connection), GreetError> {
        let ways = (&*self.security, self.sockets.as_ref());
        let opened = open(ways, &self.members, self, member, Purpose::Gateway);
        timeout(PATIENCE, opened).await.unwrap_or(Err(GreetError::Silent))
    }
}

impl Book for Dialer {
    fn number(&self, name: &str) -> Option<WorkerId> {
        self.table.borrow().member(name).map(|m| m.number)
    }
}

/// Connects to a worker of the table, and meets it.
async fn open(
    (security, sockets): (&Security, Option<&Sockets>),
    members: &Mutex<Members>,
    book: &dyn Book,
    member: &Member,
    purpose: Purpose,
) -> Result<(Hello, Connection), GreetError> {
    let local = match sockets {
        Some(sockets) => sockets.dial(&member.name).await,
        None => None,
    };
    let (mut stream, certificate) = match local {
        Some(local) => (Stream::Local(local), None),
        None => {
            let tcp = TcpStream::connect(&member.address).await?;
            tcp.set_nodelay(true)?;
            security.connect(tcp).await.map_err(GreetError::Handshake)?
        }
    };
    let met = greet::dial(&mut stream, certificate.as_ref(), members, book, &member.name, purpose).await?;
    Ok((met.hello, Connection { stream, wire: met.taken.wire }))
}

/// Whether to complain again of what goes on.
fn is_due(complained: &mut Option<Instant>) -> bool {
    let is_due = complained.is_none_or(|at| at.elapsed() >= COMPLAIN);
    if is_due {
        *complained = Some(Instant::now());
    }
    is_due
}

/// The running connections. Dropping it ends those with peers, and takes no more; gateways' connections, and those for
/// pages, are tasks of their own and end with the process.
#[derive(Debug)]
pub struct Mesh {
    _tasks: Vec<Task>,
    inner: Arc<Inner>,
}

impl Mesh {
    /// Starts to listen and to dial.
    pub fn start(listener: TcpListener, table: watch::Receiver<Arc<Table>>, mut config: MeshConfig) -> Self {
        let (security, local) = (Arc::clone(&config.security), config.local.take());
        let inner = Arc::new(Inner {
            members: Mutex::new(Members::new(config.hello.clone())),
            table: table.clone(),
            pages: Shown::new(Arc::clone(&config.pages)),
            format: Format::new(config.row_len, config.prefill, Arc::clone(&config.observer)),
            config,
            turns: Arc::default(),
            sockets: local.as_ref().map(LocalListener::sockets),
            halves: Mutex::default(),
            pairs: Mutex::default(),
        });
        let mut tasks = vec![
            Task(tokio::spawn(async move { security.watch().await })),
            Task(tokio::spawn(Arc::clone(&inner).listen(listener))),
            Task(tokio::spawn(Arc::clone(&inner).follow(table))),
        ];
        tasks.extend(local.map(|local| Task(tokio::spawn(Arc::clone(&inner).listen_here(local)))));
        Self { _tasks: tasks, inner }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.inner.lose_all_but(&[]);
    }
}

/// A connection whose hello is to come.
enum Incoming {
    Tcp(TcpStream),
    Local(UnixStream),
}

/// A connection that was accepted.
enum Greeted {
    Peer(Box<Met>, Stream),
    Pages(Stream, Option<Identity>),
}

/// One half of a pair that a peer dials.
#[derive(Debug)]
struct Half {
    epoch: u32,
    since: Instant,
    control: Option<Connection>,
    data: Option<Connection>,
}

/// The pair that stands with a peer: at most one at a time.
#[derive(Clone, Debug, Default)]
struct Current {
    severed: Arc<Notify>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Inner {
    config: MeshConfig,
    pages: Shown,
    members: Mutex<Members>,
    table: watch::Receiver<Arc<Table>>,
    format: Format,
    turns: Arc<Turns>,
    sockets: Option<Sockets>,
    halves: Mutex<HashMap<WorkerId, Half>>,
    pairs: Mutex<HashMap<WorkerId, Current>>,
}

impl Book for Inner {
    fn number(&self, name: &str) -> Option<WorkerId> {
        self.table.borrow().member(name).map(|m| m.number)
    }
}

impl Inner {
    fn own(&self) -> WorkerId {
        self.config.hello.worker.unwrap_or(WorkerId(u32::MAX))
    }

    /// Whether two workers have something to say to each other.
    fn talks_to(&self, role: Role) -> bool {
        role != Role::Gateway && (self.config.all_pairs || role.is_rank() || self.config.hello.role.is_rank())
    }

    async fn listen(self: Arc<Self>, listener: TcpListener) {
        let mut complained = None;
        loop {
            let (tcp, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!("a connection of a peer could not be accepted: {e}");
                    tokio::time::sleep(RETRY[0]).await;
                    continue;
                }
            };
            let turn = self.turns.take(Some(from.ip()));
            if turn.crowds && is_due(&mut complained) {
                tracing::warn!(%from, "too many connect and do not say who they are: the oldest are let go");
            }
            tokio::spawn(Arc::clone(&self).meet(Incoming::Tcp(tcp), from.to_string(), turn));
        }
    }

    /// As [`Self::listen`], for processes of this host. Pages are not for them: nothing says who asks.
    async fn listen_here(self: Arc<Self>, listener: LocalListener) {
        loop {
            match listener.accept().await {
                Ok(stream) => {
                    let turn = self.turns.take(None);
                    let met = Arc::clone(&self).meet(Incoming::Local(stream), "this host".into(), turn);
                    tokio::spawn(met);
                }
                Err(e) => {
                    tracing::warn!("a connection of a peer of this host could not be accepted: {e}");
                    tokio::time::sleep(RETRY[0]).await;
                }
            }
        }
    }

    async fn meet(self: Arc<Self>, incoming: Incoming, from: String, turn: Turn) {
        let mut certificate = None;
        let met = tokio::select! {
            met = timeout(PATIENCE, self.greet(incoming, &turn, &mut certificate)) => met,
            () = turn.over() => return,
        };
        drop(turn);
        match met.unwrap_or(Err(GreetError::Silent)) {
            Ok(Greeted::Peer(met, stream)) => self.take(*met, stream),
            Ok(Greeted::Pages(stream, caller)) => self.pages.serve(stream, caller).await,
            Err(why) => {
                let certificate = certificate.map(tracing::field::display);
                tracing::warn!(%from, certificate, "a peer is not talked to: {why}");
            }
        }
    }

    /// Puts in `certificate` whom it is for, as soon as that is known.
    async fn greet(
        &self,
        incoming: Incoming,
        turn: &Turn,
        certificate: &mut Option<Identity>,
    ) -> Result<Greeted, GreetError> {
        let accepted = match incoming {
            Incoming::Tcp(tcp) => {
                tcp.set_nodelay(true)?;
                self.config.security.accept(tcp).await.map_err(GreetError::Handshake)?
            }
            Incoming::Local(stream) => {
                Accepted { stream: Stream::Local(stream), identity: None, is_http: false }
            }
        };
        let Accepted { mut stream, identity, is_http } = accepted;
        certificate.clone_from(&identity);
        if identity.is_some() {
            turn.is_known();
        }
        let ours = &self.config.hello.deployment;
        if let Some(foreign) = identity.as_ref().filter(|i| i.deployment != *ours) {
            return Err(GreetError::Foreign { certificate: foreign.to_string(), ours: ours.clone() });
        }
        if is_http {
            return Ok(Greeted::Pages(stream, identity));
        }
        let met = greet::answer(&mut stream, identity.as_ref(), &self.members, self).await?;
        Ok(Greeted::Peer(Box::new(met), stream))
    }

    /// A connection of a peer that was taken.
    fn take(self: &Arc<Self>, met: Met, stream: Stream) {
        let connection = Connection { stream, wire: met.taken.wire };
        let (worker, epoch, is_data) = match (met.purpose, met.hello.worker) {
            (Purpose::Gateway, _) => {
                match &self.config.gateways {
                    Some(g) => g.connected(&met.hello, connection),
                    None => tracing::warn!(peer = met.hello.name, "it takes this worker for a rank"),
                }
                return;
            }
            (Purpose::Control { epoch }, Some(worker)) => (worker, epoch, false),
            (Purpose::Data { epoch }, Some(worker)) => (worker, epoch, true),
            (_, None) => return,
        };
        if worker >= self.own() {
            tracing::warn!(peer = met.hello.name, "it dials, and it is this side's turn to");
            return;
        }
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        halves.retain(|_, h| h.since.elapsed() < PATIENCE);
        let new = || Half { epoch, since: Instant::now(), control: None, data: None };
        let half = halves.entry(worker).or_insert_with(new);
        if half.epoch != epoch {
            *half = new();
        }
        *(if is_data { &mut half.data } else { &mut half.control }) = Some(connection);
        if half.control.is_some() && half.data.is_some() {
            let whole = halves.remove(&worker);
            drop(halves);
            if let Some(Half { control: Some(control), data: Some(data), .. }) = whole {
                tokio::spawn(Arc::clone(self).pair(met.hello, epoch, control, data));
            }
        }
    }

    /// Runs a pair in place of the one before.
    async fn pair(self: Arc<Self>, peer: Hello, epoch: u32, control: Connection, data: Connection) {
        let Some(worker) = peer.worker else { return };
        let Current { severed, turn } = self.replace(worker);
        let _turn = turn.lock().await;
        let up = PeerUp { worker, epoch, is_rank: peer.role.is_rank(), is_host: peer.role.is_host() };
        tracing::info!(peer = peer.name, epoch, wire = control.wire, over = data.stream.over(), "connected");
        self.config.masks.unmask(worker);
        let ended =
            pair::run(control, data, up, self.format.clone(), Arc::clone(&self.config.door), severed).await;
        self.config.masks.mask(worker, &peer.name, &ended);
        tracing::info!(peer = peer.name, epoch, "disconnected: {ended}");
    }

    /// A new pair with a worker: the one before ends, and its turn with it.
    fn replace(&self, worker: WorkerId) -> Current {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let before = pairs.remove(&worker);
        if let Some(before) = &before {
            before.severed.notify_one();
        }
        let current = Current { severed: Arc::default(), turn: before.map(|b| b.turn).unwrap_or_default() };
        pairs.insert(worker, current.clone());
        current
    }

    /// Dials whom the table names, and lets go whom it no longer does.
    async fn follow(self: Arc<Self>, mut table: watch::Receiver<Arc<Table>>) {
        let mut dialled: HashMap<WorkerId, (Member, Task)> = HashMap::new();
        loop {
            let current = Arc::clone(&table.borrow_and_update());
            dialled.retain(|_, (member, _)| current.workers.contains(member));
            for member in &current.workers {
                let due = member.number > self.own() && self.talks_to(member.role);
                if due && !dialled.contains_key(&member.number) {
                    let task = Task(tokio::spawn(Arc::clone(&self).dial(member.clone())));
                    dialled.insert(member.number, (member.clone(), task));
                }
            }
            self.lose_all_but(&current.workers);
            if table.changed().await.is_err() {
                return;
            }
        }
    }

    fn lose_all_but(&self, members: &[Member]) {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner).retain(|worker, pair| {
            let stays = members.iter().any(|m| m.number == *worker);
            if !stays {
                pair.severed.notify_one();
            }
            stays
        });
    }

    /// Keeps a pair with one peer.
    async fn dial(self: Arc<Self>, member: Member) {
        let (mut pause, mut complained) = (RETRY[0], None::<Instant>);
        loop {
            match timeout(2 * PATIENCE, self.connect(&member)).await.unwrap_or(Err(GreetError::Silent)) {
                Ok((peer, epoch, control, data)) => {
                    let met = Instant::now();
                    complained = None;
                    Arc::clone(&self).pair(peer, epoch, control, data).await;
                    // One that was good is dialled at once; one that ends each time as it begins is not.
                    if met.elapsed() >= RETRY[1] {
                        pause = RETRY[0];
                        continue;
                    }
                }
                Err(why) => {
                    if is_due(&mut complained) {
                        tracing::warn!(
                            peer = member.name,
                            address = member.address,
                            "cannot be reached: {why}"
                        );
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY[1]);
        }
    }

    async fn connect(&self, member: &Member) -> Result<(Hello, u32, Connection, Connection), GreetError> {
        let epoch = rand::random_range(1..=u32::MAX);
        let ways = (&*self.config.security, self.sockets.as_ref());
        let open = |purpose| open(ways, &self.members, self, member, purpose);
        let (peer, control) = open(Purpose::Control { epoch }).await?;
        let (_, data) = open(Purpose::Data { epoch }).await?;
        Ok((peer, epoch, control, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{FileSource, PlacementSource as _};
    use crate::transport::fuzz::{self, Worker};

    const TABLE: &str = r#"workers: [{number: 0, name: a0, role: attention, address: "ADDRESS"}]"#;

    /// The mesh of rank a0, and where it listens.
    async fn mesh(
        dir: &std::path::Path,
        local: Option<LocalListener>,
    ) -> (Mesh, Member, watch::Receiver<Arc<Table>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let path = dir.join("table.yaml");
        std::fs::write(&path, TABLE.replace("ADDRESS", &address)).unwrap();
        let source = Arc::new(FileSource::open(&path).await.unwrap());
        let table = source.watch();
        let config = MeshConfig {
            hello: fuzz::rank(),
            security: Arc::new(Security::Off),
            door: Arc::new(Worker),
            observer: Arc::new(()),
            row_len: 1,
            prefill: Class(1),
            all_pairs: false,
            pages: Arc::new(Pages { source, pressure: Arc::new(Default::default) }),
            masks: Arc::default(),
            local,
            gateways: None,
        };
        let member = table.borrow().workers[0].clone();
        (Mesh::start(listener, table.clone(), config), member, table)
    }

    fn dialer(table: watch::Receiver<Arc<Table>>, sockets: Option<Sockets>) -> Dialer {
        let hello =
            Hello { worker: None, name: "g0".into(), role: Role::Gateway, numerics: None, ..fuzz::rank() };
        Dialer::new(hello, Arc::new(Security::Off), sockets, table)
    }

    #[tokio::test]
    async fn who_connects_and_says_nothing_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let (_mesh, member, table) = mesh(dir.path(), None).await;
        let mut silent = vec![];
        for _ in 0..300 {
            silent.push(TcpStream::connect(&member.address).await.unwrap());
        }
        // Silent ones are not waited for, as long as that may be.
        let dialer = dialer(table, None);
        let met = timeout(PATIENCE / 2, dialer.rank(&member)).await.expect("it is served at once");
        assert_eq!(met.unwrap().0.name, "a0");
    }

    #[tokio::test]
    async fn who_has_a_socket_here_is_dialled_over_it_and_others_over_tcp() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(dir.path());
        let (here, member, table) = mesh(dir.path(), Some(sockets.listen("a0").unwrap())).await;
        let over = async |dialer: &Dialer| {
            dialer.rank(&member).await.map(|(_, connection)| connection.stream.over())
        };
        let near = dialer(table.clone(), Some(sockets));
        assert_eq!(over(&near).await.unwrap(), "unix");
        assert_eq!(over(&dialer(table, None)).await.unwrap(), "tcp");
        drop(here);
        while dir.path().join("a0.sock").exists() {
            tokio::task::yield_now().await;
        }
        let (_elsewhere, member, table) = mesh(dir.path(), None).await;
        let near = dialer(table, near.sockets);
        assert_eq!(near.rank(&member).await.unwrap().1.stream.over(), "tcp");
    }
}
