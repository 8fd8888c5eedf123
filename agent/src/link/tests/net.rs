//! Pipes that break.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::link::gateway::{DialError, Dialed};
use crate::link::rank::Gateways;
use crate::link::{End, LinkConfig};

/// One end of a pipe.
pub(super) struct Pipe {
    inner: DuplexStream,
    /// Bytes that can still be written before it breaks.
    left: usize,
    hole: Arc<Hole>,
}

/// While it is set, nothing comes through and nothing says so. What is under way comes later, as on a real network.
#[derive(Default)]
struct Hole {
    is_there: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Hole {
    fn set(&self, is_there: bool) {
        self.is_there.store(is_there, Ordering::Relaxed);
        self.waiting.lock().unwrap().drain(..).for_each(Waker::wake);
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.is_there.load(Ordering::Relaxed) {
            return Poll::Ready(());
        }
        self.waiting.lock().unwrap().push(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.hole.poll(cx));
        if self.left == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let most = bytes.len().min(self.left);
        let written = std::task::ready!(Pin::new(&mut self.inner).poll_write(cx, &bytes[..most]))?;
        self.left -= written;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// What a dial leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Road {
    Open,
    /// Nobody listens.
    Refused,
    /// Nobody answers, not even to what is connected.
    Hole,
}

/// The way from one gateway to one rank.
#[derive(Clone)]
pub(super) struct Net {
    state: Arc<Mutex<State>>,
    hole: Arc<Hole>,
}

struct State {
    rank: Arc<Gateways>,
    road: Road,
    /// Of the connections to come: bytes after which each breaks, from the gateway and from the rank.
    cuts: Vec<(usize, usize)>,
    dialed: usize,
    /// How connections ended at the rank.
    ends: Vec<End>,
}

impl Net {
    pub(super) fn new(rank: Gateways) -> Self {
        let rank = Arc::new(rank);
        let state = State { rank, road: Road::Open, cuts: vec![], dialed: 0, ends: vec![] };
        Self { state: Arc::new(Mutex::new(state)), hole: Arc::default() }
    }

    pub(super) fn cut(&self, cuts: impl IntoIterator<Item = (usize, usize)>) {
        self.state.lock().unwrap().cuts.extend(cuts);
    }

    pub(super) fn road(&self, road: Road) {
        self.state.lock().unwrap().road = road;
        self.hole.set(road == Road::Hole);
    }

    /// Another process at the same address.
    pub(super) fn restart(&self, rank: Gateways) {
        self.state.lock().unwrap().rank = Arc::new(rank);
    }

    pub(super) fn has_bound(&self) -> bool {
        self.state.lock().unwrap().rank.has_bound()
    }

    pub(super) fn dialed(&self) -> usize {
        self.state.lock().unwrap().dialed
    }

    pub(super) fn ends(&self) -> Vec<String> {
        self.state.lock().unwrap().ends.iter().map(ToString::to_string).collect()
    }

    /// Connects the gateway of this name.
    pub(super) async fn dial(self, name: &'static str) -> Result<Dialed<Pipe>, DialError> {
        std::future::poll_fn(|cx| self.hole.poll(cx)).await;
        if self.state.lock().unwrap().road == Road::Refused {
            return Err(DialError::Refused("nobody listens there".into()));
        }
        let (near, far) = tokio::io::duplex(1 << 12);
        let (rank, [near, far]) = {
            let mut state = self.state.lock().unwrap();
            state.dialed += 1;
            let cut = if state.cuts.is_empty() { (usize::MAX, usize::MAX) } else { state.cuts.remove(0) };
            let pipe = |inner, left| Pipe { inner, left, hole: Arc::clone(&self.hole) };
            (Arc::clone(&state.rank), [pipe(near, cut.0), pipe(far, cut.1)])
        };
        tokio::spawn(async move {
            let end = rank.serve(name, far).await;
            self.state.lock().unwrap().ends.push(end);
        });
        Ok(Dialed { stream: near, numerics: "7".into() })
    }
}

/// As in production, but for what is kept.
pub(super) fn config(messages: usize, bytes: usize) -> LinkConfig {
    let limits = sluice_core::session::SessionLimits { messages, bytes };
    LinkConfig { limits, ..LinkConfig::default() }
}
