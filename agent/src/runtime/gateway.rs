//! A front alone in its process: its ranks are elsewhere.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::Builder;

use sluice_core::front::{Front, FrontConfig, RankLoad};
use sluice_core::ids::{GatewayId, WorkerId};
use tokio::sync::watch;

use super::clock::Clock;
use super::engine::Runtime;
use super::front::FrontThread;
use super::links::{RankLink, Told};
use super::mail::FrontMail;
use super::observe::Observer;
use super::start::{StartError, watched};

/// The way into a front, for its ranks.
#[derive(Clone, Debug)]
pub struct FrontDoor {
    front: Sender<FrontMail>,
    clock: Clock,
    numerics: Arc<RwLock<Arc<str>>>,
}

impl FrontDoor {
    /// The clock that deadlines are on.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// A rank is there, new or again; `numerics` is its numerics id.
    pub fn rank_up(&self, rank: WorkerId, numerics: &str, load: RankLoad, link: Arc<dyn RankLink>) {
        let numerics: Arc<str> = numerics.into();
        *self.numerics.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&numerics);
        let _ = self.front.send(FrontMail::RankUp { rank, numerics, load, link });
    }

    /// A rank is lost.
    pub fn rank_down(&self, rank: WorkerId) {
        let _ = self.front.send(FrontMail::RankDown(rank));
    }

    /// What a rank says.
    pub fn rank(&self, rank: WorkerId, events: Vec<Told>, load: Option<RankLoad>) {
        let _ = self.front.send(FrontMail::Rank { rank, events, load });
    }
}

/// Starts a front without ranks. `queue`: new sequences that wait for a rank, at most.
///
/// # Errors
/// If there is no thread for it.
pub fn start_front(queue: usize, observer: Arc<dyn Observer>) -> Result<(Runtime, FrontDoor), StartError> {
    let (front, inbox) = channel();
    let clock = Clock::start();
    let numerics = Arc::new(RwLock::new(Arc::from("")));
    let config = FrontConfig { queue, ..FrontConfig::new(GatewayId(0)) };
    let living = Arc::new(AtomicUsize::new(0));
    let thread = FrontThread {
        front: Front::new(config),
        clock,
        inbox,
        address: front.clone(),
        ranks: HashMap::new(),
        living: Arc::clone(&living),
        observer,
    };
    let (tell, lost) = watch::channel(None);
    let join = Builder::new().name("front".into()).spawn(move || {
        watched("the front", &tell, || {
            thread.run();
            Ok(())
        });
    })?;
    let door = FrontDoor { front: front.clone(), clock, numerics: Arc::clone(&numerics) };
    let runtime =
        Runtime { front, stop: Box::new(|| ()), joins: Mutex::new(vec![join]), living, numerics, lost };
    Ok((runtime, door))
}
