//! Loads unit weights in the background, so that a joining slot never holds up what a worker serves.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use sluice_core::ids::Unit;

use super::mail::Mail;

/// Where a backend's units come from.
pub trait UnitSource: Send + Sync + 'static {
    /// A loaded unit.
    type Unit: Send + Sync + 'static;

    /// Loads one; may take long.
    ///
    /// # Errors
    /// In words for the log.
    fn load(&self, unit: Unit) -> Result<Arc<Self::Unit>, String>;
}

/// Told after each unit whether it could be loaded.
pub(super) type Done = dyn Fn(bool) + Send + Sync;

/// What to load, and whom to tell.
pub(super) struct Order<U> {
    pub slot: u32,
    pub unit: Unit,
    pub reply: Sender<Mail<U>>,
}

/// Where orders go, and the threads that carry them out.
pub(super) type Loaders<U> = (Sender<Order<U>>, Vec<JoinHandle<()>>);

/// Starts `threads` loaders. They end when all senders of orders are gone; once `cancelled`, orders come to nothing.
pub(super) fn spawn<S: UnitSource>(
    source: &Arc<S>,
    threads: usize,
    done: &Arc<Done>,
    cancelled: &Arc<AtomicBool>,
) -> std::io::Result<Loaders<S::Unit>> {
    let (sender, receiver) = channel::<Order<S::Unit>>();
    let receiver = Arc::new(Mutex::new(receiver));
    let joins = (0..threads.max(1))
        .map(|i| {
            let (source, receiver, done) = (Arc::clone(source), Arc::clone(&receiver), Arc::clone(done));
            let cancelled = Arc::clone(cancelled);
            Builder::new()
                .name(format!("load-{i}"))
                .spawn(move || run(&*source, &receiver, &*done, &cancelled))
        })
        .collect::<Result<_, _>>()?;
    Ok((sender, joins))
}

fn run<S: UnitSource>(
    source: &S,
    orders: &Mutex<Receiver<Order<S::Unit>>>,
    done: &Done,
    cancelled: &AtomicBool,
) {
    loop {
        let next = orders.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Order { slot, unit, reply }) = next else { return };
        if cancelled.load(Ordering::Relaxed) {
            continue;
        }
        let weights = catch_unwind(AssertUnwindSafe(|| source.load(unit)))
            .unwrap_or_else(|_| Err("loading it panicked; the log says where".into()));
        if let Err(why) = &weights {
            tracing::error!(%unit, slot, "could not load: {why}");
        }
        done(weights.is_ok());
        let _ = reply.send(Mail::Loaded { slot, unit, weights });
    }
}

#[cfg(test)]
mod tests {
    use sluice_core::ids::Slice;

    use super::*;

    /// Has no unit.
    struct Broken;

    impl UnitSource for Broken {
        type Unit = ();

        fn load(&self, _unit: Unit) -> Result<Arc<()>, String> {
            panic!("as the test wants it")
        }
    }

    #[test]
    fn a_panic_is_an_error_and_loading_goes_on() {
        let (sender, orders) = channel();
        let (reply, mail) = channel();
        let unit = Unit { block: 0, expert: 0, slice: Slice::whole(1) };
        for slot in 0..2 {
            sender.send(Order { slot, unit, reply: reply.clone() }).unwrap();
        }
        drop((sender, reply));
        let (told, units) = channel();
        let told = Mutex::new(told);
        let done = move |ok| told.lock().unwrap().send(ok).unwrap();
        run(&Broken, &Mutex::new(orders), &done, &AtomicBool::new(false));
        let said: Vec<(u32, bool)> = mail
            .iter()
            .map(|mail| match mail {
                Mail::Loaded { slot, weights, .. } => (slot, weights.is_ok()),
                _ => panic!("not what was ordered"),
            })
            .collect();
        assert_eq!(said, [(0, false), (1, false)]);
        drop(done);
        assert_eq!(units.iter().collect::<Vec<_>>(), [false, false]);
    }
}
