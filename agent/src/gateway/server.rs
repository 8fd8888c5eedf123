//! Listeners: accepting within a budget, connections that cannot be held for nothing, and a shutdown that lets what
//! runs finish.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use super::config::Timeouts;
use super::observe::Observer;
use super::sniff::{Protocol, sniff};

/// File descriptors that are left to everything but connections.
const RESERVED: usize = 128;
/// Streams a client may have open on one HTTP/2 connection.
const STREAMS: u32 = 256;
/// Once no new connections are taken, one that is kept open is closed when nothing was asked on it for so long.
const LAST_CALL: Duration = Duration::from_secs(2);

/// One listener.
#[derive(Clone)]
pub struct ServeConfig {
    /// Connections at one time; see [`connection_budget`].
    pub connections: usize,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Told of connections.
    pub observer: Arc<dyn Observer>,
}

/// A listener that does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}, as --listen or --admin-listen says")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Connections a process may hold: what is wanted, bounded by its file descriptors.
pub fn connection_budget(wanted: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let files = limit.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    wanted.min(files.saturating_sub(RESERVED)).max(1)
}

/// Serves until `stop` resolves, then takes no more connections and waits, within [`Timeouts::drain`], until those
/// there are have been answered. Returns how many were cut.
///
/// A client may ask again on a connection that it has kept, at the very moment at which it would be closed. So kept
/// connections are not closed at once: what is asked on them is answered, with word that the answer is the last.
pub async fn serve(
    listener: TcpListener,
    pages: Router,
    config: ServeConfig,
    stop: impl Future<Output = ()>,
) -> usize {
    let places = Arc::new(Semaphore::new(config.connections.clamp(1, Semaphore::MAX_PERMITS)));
    let open = Arc::new(AtomicUsize::new(0));
    let (closing, closed) = watch::channel(false);
    let http = builder(&config.timeouts);
    let mut stop = pin!(stop);
    loop {
        // A place first: who finds none waits in the kernel's backlog.
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accept(&listener, &places, &*config.observer) => accepted,
        };
        let Some((stream, place)) = accepted else { break };
        let connection = Connection {
            pages: pages.clone(),
            http: http.clone(),
            timeouts: config.timeouts.clone(),
            _counted: Counted::new(open.clone(), config.observer.clone(), place),
            closed: closed.clone(),
        };
        tokio::spawn(async move {
            if let Err(error) = connection.serve(stream).await {
                tracing::debug!(%error, "connection");
            }
        });
    }
    drop(listener);
    drop(closed);
    closing.send_replace(true);
    tracing::info!(open = open.load(Ordering::Relaxed), "takes no more connections");
    if timeout(config.timeouts.drain, closing.closed()).await.is_err() {
        let left = open.load(Ordering::Relaxed);
        tracing::warn!(left, "connections were cut");
        return left;
    }
    0
}

fn builder(timeouts: &Timeouts) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    // Idle connections count as reading a header to hyper; the first request's own time is kept by `Connection`.
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.idle + timeouts.header)
        .max_buf_size(64 << 10);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(64 << 10)
        .max_send_buf_size(64 << 10)
        .keep_alive_interval(timeouts.idle)
        .keep_alive_timeout(timeouts.header);
    http
}

/// The next connection and its place. Survives whatever accepting runs into.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    observer: &dyn Observer,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Some((stream, place)),
            Err(error) => {
                observer.accept_error(&error);
                let ours = matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionRefused
                );
                if !ours {
                    // Out of file descriptors or memory: connections that close give some back.
                    tracing::warn!(%error, "cannot accept; trying again");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// Counts a connection from its accept to its end.
struct Counted {
    open: Arc<AtomicUsize>,
    observer: Arc<dyn Observer>,
    _place: OwnedSemaphorePermit,
}

impl Counted {
    fn new(open: Arc<AtomicUsize>, observer: Arc<dyn Observer>, place: OwnedSemaphorePermit) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        observer.connections(1);
        Self { open, observer, _place: place }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.observer.connections(-1);
    }
}

struct Connection {
    pages: Router,
    http: auto::Builder<TokioExecutor>,
    timeouts: Timeouts,
    _counted: Counted,
    /// No new connections are taken any more.
    closed: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(mut self, stream: TcpStream) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        stream.set_nodelay(true)?;
        let protocol = tokio::select! {
            protocol = sniff(&stream, self.timeouts.header) => protocol?,
            // Nothing was asked yet.
            _ = self.closed.changed() => return Ok(()),
        };
        let Some(protocol) = protocol else { return Ok(()) };
        self.speak(protocol, stream).await
    }

    /// Serves what is known to speak a protocol.
    async fn speak<S>(
        self,
        protocol: Protocol,
        stream: S,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let http = match protocol {
            Protocol::Http1 => self.http.http1_only(),
            Protocol::Http2 => self.http.http2_only(),
        };
        // A client that takes nothing is let go, and with it what it asked for.
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.timeouts.write));
        let (activity, mut closed) = (Arc::new(Activity::default()), self.closed);
        let service = {
            let (pages, activity, closed) = (self.pages, activity.clone(), closed.clone());
            hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
                let busy = Busy::new(activity.clone());
                let (pages, closed) = (pages.clone(), closed.clone());
                async move {
                    let response = pages.oneshot(request.map(axum::body::Body::new) as Request).await;
                    let mut response = response?.map(|body| Held::new(body, busy));
                    if *closed.borrow() && protocol == Protocol::Http1 {
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, std::convert::Infallible>(response)
                }
            })
        };
        let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service).into_owned();
        let (mut connection, mut is_last) = (pin!(connection), *closed.borrow());
        loop {
            let look = activity.next_look(&self.timeouts);
            tokio::select! {
                result = &mut connection => return result,
                _ = closed.changed(), if !is_last => {
                    is_last = true;
                    if protocol == Protocol::Http2 {
                        // It has a word for it: what was asked after it is asked again elsewhere.
                        connection.as_mut().graceful_shutdown();
                    }
                }
                () = sleep(if is_last { look.min(LAST_CALL / 4) } else { look }) => {
                    if let Some(why) = activity.over(&self.timeouts) {
                        tracing::debug!(why, "connection closed");
                        return Ok(());
                    }
                    if is_last && activity.idle().is_some_and(|idle| idle >= LAST_CALL) {
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }
    }
}

/// Serves one connection that is no socket, told apart as [`sniff`] does it.
#[cfg(any(test, fuzzing))]
pub(crate) async fn serve_stream<S>(pages: Router, timeouts: Timeouts, first: &[u8], stream: S)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let places = Arc::new(Semaphore::new(1));
    let Ok(place) = places.acquire_owned().await else { return };
    let (_closing, closed) = watch::channel(false);
    let connection = Connection {
        pages,
        http: builder(&timeouts),
        timeouts,
        _counted: Counted::new(Arc::default(), Arc::new(super::observe::Silent), place),
        closed,
    };
    let protocol = if first.starts_with(super::sniff::PREFACE) { Protocol::Http2 } else { Protocol::Http1 };
    if let Err(error) = connection.speak(protocol, stream).await {
        tracing::debug!(%error, "connection");
    }
}

/// What a connection does with its place.
struct Activity {
    begun: Instant,
    state: Mutex<ActivityState>,
}

#[derive(Default)]
struct ActivityState {
    /// Requests so far.
    asked: u64,
    /// Requests without the end of an answer.
    busy: usize,
    /// The end of the last answer.
    last: Duration,
    /// By request: when more of its answer was last asked for. HTTP/2 lets a client stall one answer alone.
    taken: BTreeMap<u64, Duration>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { begun: Instant::now(), state: Mutex::default() }
    }
}

impl Activity {
    fn state(&self) -> MutexGuard<'_, ActivityState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_look(&self, timeouts: &Timeouts) -> Duration {
        if self.state().asked == 0 { timeouts.header } else { timeouts.idle.min(timeouts.write) }
    }

    /// For how long nothing has been asked, unless something is.
    fn idle(&self) -> Option<Duration> {
        let state = self.state();
        (state.busy == 0).then(|| self.begun.elapsed().saturating_sub(state.last))
    }

    /// Why the connection's place should go to another.
    fn over(&self, timeouts: &Timeouts) -> Option<&'static str> {
        let now = self.begun.elapsed();
        let state = self.state();
        // A healthy client asks for more at every heartbeat.
        let patience = timeouts.write.max(2 * timeouts.heartbeat);
        if state.asked == 0 {
            Some("no request came")
        } else if state.busy == 0 && now.saturating_sub(state.last) >= timeouts.idle {
            Some("idle")
        } else if state.taken.values().any(|taken| now.saturating_sub(*taken) >= patience) {
            Some("an answer is not taken")
        } else {
            None
        }
    }
}

/// A request under way.
struct Busy {
    activity: Arc<Activity>,
    number: u64,
}

impl Busy {
    fn new(activity: Arc<Activity>) -> Self {
        let mut state = activity.state();
        state.asked += 1;
        state.busy += 1;
        let number = state.asked;
        drop(state);
        Self { activity, number }
    }

    /// More of the answer is asked for.
    fn taken(&self) {
        let now = self.activity.begun.elapsed();
        self.activity.state().taken.insert(self.number, now);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let now = self.activity.begun.elapsed();
        let mut state = self.activity.state();
        state.busy -= 1;
        state.last = now;
        state.taken.remove(&self.number);
    }
}

/// An answer's body: the connection is busy until it is written.
struct Held {
    body: axum::body::Body,
    busy: Busy,
}

impl Held {
    fn new(body: axum::body::Body, busy: Busy) -> Self {
        busy.taken();
        Self { body, busy }
    }
}

impl hyper::body::Body for Held {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        self.busy.taken();
        std::pin::Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
