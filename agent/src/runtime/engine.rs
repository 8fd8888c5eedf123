//! The handle on a running engine.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluice_core::front::CancelCause;
use sluice_core::ids::SeqKey;
use tokio::sync::watch;

use super::mail::{FrontMail, FrontState};
use crate::gateway::{Engine, EventSink, Generate};

/// A running engine: what the gateway submits to. Dropping it ends everything that is under way.
pub struct Runtime {
    pub(super) front: Sender<FrontMail>,
    /// Tells every worker to leave.
    pub(super) stop: Box<dyn Fn() + Send + Sync>,
    pub(super) joins: Mutex<Vec<JoinHandle<()>>>,
    /// Ranks that are there.
    pub(super) living: Arc<AtomicUsize>,
    /// Of the ranks that came last.
    pub(super) numerics: Arc<RwLock<Arc<str>>>,
    /// The worker that failed first, or the front, and why.
    pub(super) lost: watch::Receiver<Option<String>>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("numerics", &self.numerics).finish_non_exhaustive()
    }
}

impl Runtime {
    /// The hash of all that decides the bits.
    pub fn numerics_id(&self) -> Arc<str> {
        Arc::clone(&self.numerics.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many attention ranks are there.
    pub fn living_ranks(&self) -> usize {
        self.living.load(Ordering::Relaxed)
    }

    /// Resolves when a worker or the front is lost, with its name and the reason: the engine cannot go on then, and has
    /// ended all that was under way.
    pub async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // All workers have left as they were told.
            Err(_) => std::future::pending().await,
        }
    }

    /// The front's state; nothing if it has ended.
    pub fn state(&self) -> Option<FrontState> {
        let (reply, answer) = channel();
        self.front.send(FrontMail::Ask(reply)).ok()?;
        answer.recv_timeout(Duration::from_secs(5)).ok()
    }

    /// Takes nothing new, lets what runs finish for at most `grace`, then cuts it. True if nothing was cut.
    pub fn drain(&self, grace: Duration) -> bool {
        let _ = self.front.send(FrontMail::Drain);
        let end = Instant::now() + grace;
        loop {
            match self.state() {
                Some(s) if s.idle => return true,
                None => return false,
                Some(_) if Instant::now() >= end => {
                    let _ = self.front.send(FrontMail::Halt);
                    return false;
                }
                Some(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Engine for Runtime {
    fn submit(&self, request: Generate, sink: EventSink) {
        let _ = self.front.send(FrontMail::Submit {
            request: Box::new(request),
            sink,
            span: tracing::Span::current(),
        });
    }

    fn cancel(&self, seq: SeqKey, cause: CancelCause) {
        let _ = self.front.send(FrontMail::Cancel { seq, cause });
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = self.front.send(FrontMail::Halt);
        let _ = self.front.send(FrontMail::Stop);
        (self.stop)();
        for join in self.joins.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = join.join();
        }
    }
}
