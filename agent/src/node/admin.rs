//! The admin pages of a process, and their listener.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sluice_core::config::Shape;
use sluice_core::ids::WorkerId;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::error::NodeError;
use super::hearing::Heard;
use crate::gateway::{Admin, ServeConfig, Silent, Timeouts, admin_router, serve as listen};
use crate::runtime::Runtime;
use crate::table::Table;
use crate::telemetry::{FrontSample, MaskedPeer, MemberPressure, ModelPressure, Telemetry, WorkerSample};
use crate::transport::{Masked, Masks};

/// The admin listener, and how it is told to end.
pub(super) struct AdminTask {
    end: watch::Sender<()>,
    task: JoinHandle<usize>,
}

impl AdminTask {
    /// `open`: who reaches the listener may see pressure too.
    pub(super) fn start(listener: TcpListener, pages: Arc<dyn Admin>, open: bool) -> Self {
        let config = ServeConfig {
            connections: 64,
            timeouts: Timeouts { drain: Duration::from_secs(1), ..Timeouts::default() },
            observer: Arc::new(Silent),
        };
        let (end, mut ended) = watch::channel(());
        let stop = async move {
            let _ = ended.changed().await;
        };
        Self { end, task: tokio::spawn(listen(listener, admin_router(pages, open), config, stop)) }
    }

    pub(super) async fn stop(self) -> Result<(), NodeError> {
        let _ = self.end.send(());
        self.task.await?;
        Ok(())
    }
}

pub(super) async fn stop_admin(admin: Option<AdminTask>) -> Result<(), NodeError> {
    match admin {
        Some(admin) => admin.stop().await,
        None => Ok(()),
    }
}

fn healthy(telemetry: &Telemetry) -> Result<(), String> {
    match telemetry.failure() {
        Some((worker, why)) => Err(format!("{worker} cannot go on: {why}")),
        None => Ok(()),
    }
}

fn metrics(telemetry: &Telemetry, front: Option<&FrontSample>) -> String {
    // A family that cannot be written is a defect; an empty page would hide it.
    telemetry.render(front).unwrap_or_else(|e| {
        tracing::error!("the metrics cannot be written: {e}");
        String::new()
    })
}

/// What the pages of a process with a gateway show.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) telemetry: Arc<Telemetry>,
    /// Set when the model is loaded.
    pub(super) runtime: OnceLock<Arc<Runtime>>,
    pub(super) draining: AtomicBool,
    /// What workers of other processes said.
    pub(super) heard: Arc<Heard>,
}

impl Pages {
    fn front(&self) -> Option<FrontSample> {
        let state = self.runtime.get()?.state()?;
        Some(FrontSample { counts: state.counts, live: state.live, waiting: state.waiting })
    }
}

impl Admin for Pages {
    fn healthy(&self) -> Result<(), String> {
        healthy(&self.telemetry)
    }

    fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining: takes no new requests".into());
        }
        match self.runtime.get() {
            None => return Err("loading the model".into()),
            Some(runtime) if runtime.living_ranks() == 0 => {
                return Err("no attention rank is there: requests would wait for one".into());
            }
            Some(_) => {}
        }
        self.healthy()
    }

    fn metrics(&self) -> String {
        metrics(&self.telemetry, self.front().as_ref())
    }

    fn pressure(&self) -> serde_json::Value {
        let page = self.telemetry.pressure(self.front().as_ref());
        let mut page = serde_json::to_value(page).unwrap_or_default();
        if let Some(workers) = page["workers"].as_array_mut() {
            workers.extend(self.heard.shown(Instant::now()));
        }
        page
    }
}

/// What the pages of a worker's process show.
#[derive(Debug)]
pub(super) struct WorkerPages {
    telemetry: Arc<Telemetry>,
    pub(super) draining: AtomicBool,
    number: WorkerId,
    name: String,
    incarnation: u64,
    table: watch::Receiver<Arc<Table>>,
    /// Set when the model is loaded.
    pub(super) engine: OnceLock<EngineFacts>,
    pub(super) masks: Arc<Masks>,
}

/// What is known of the engine once the model is loaded.
#[derive(Debug)]
pub(super) struct EngineFacts {
    /// Units there is room for.
    pub slots: u32,
    /// The numerics id.
    pub numerics: String,
    /// The model's shape.
    pub shape: Shape,
}

impl WorkerPages {
    /// Of this start of a worker of the table.
    pub(super) fn new(
        telemetry: Arc<Telemetry>,
        (number, name): (WorkerId, &str),
        incarnation: u64,
        table: watch::Receiver<Arc<Table>>,
    ) -> Self {
        Self {
            telemetry,
            draining: AtomicBool::new(false),
            number,
            name: name.into(),
            incarnation,
            table,
            engine: OnceLock::new(),
            masks: Arc::default(),
        }
    }

    /// Whether the worker has said that it holds nothing, after it was told to take nothing new. What it said before
    /// that does not count: a step may have run since, and what came meanwhile waits behind it. `late`: only sequences
    /// are held then; what peers still send can be asked elsewhere, and may never cease.
    pub(super) fn is_drained(&self, late: bool) -> bool {
        let is_free = |s: &WorkerSample| !s.busy || (late && s.pressure.sequences == (0, 0));
        let mut samples = self.telemetry.samples().peekable();
        samples.peek().is_some() && samples.all(|s| s.draining && is_free(&s))
    }

    /// Units that the table wants here, and slots.
    fn fill(&self) -> (u32, u32) {
        let wanted = self.table.borrow().held_by(self.number).count();
        let slots = self.engine.get().map_or(0, |e| e.slots);
        (u32::try_from(wanted).unwrap_or(u32::MAX), slots)
    }

    /// Why what the table wants here will never all be loaded.
    pub(super) fn overfull(&self) -> Option<String> {
        self.engine.get()?;
        let (wanted, slots) = self.fill();
        (wanted > slots).then(|| {
            format!(
                "{wanted} units wanted, {slots} slots: raise --slots, or place fewer units on {}",
                self.name
            )
        })
    }

    fn member(&self) -> MemberPressure {
        let (units_wanted, slots) = self.fill();
        let table = Arc::clone(&self.table.borrow());
        let masked = self.masks.all().into_iter();
        // Who has left the table is not missed.
        let masked = masked.filter(|m| table.workers.iter().any(|w| w.number == m.worker));
        let peer = |m: Masked| MaskedPeer {
            worker: m.worker.0,
            name: m.name,
            reason: m.reason,
            why: m.why,
            seconds: m.since.elapsed().as_secs_f64(),
        };
        MemberPressure {
            name: self.name.clone(),
            incarnation: self.incarnation,
            numerics: self.engine.get().map(|e| e.numerics.clone()),
            model: self.engine.get().map(|e| ModelPressure {
                moe: e.shape.moe.clone(),
                experts: e.shape.experts,
                top_k: e.shape.top_k,
                segments: e.shape.segments,
            }),
            units_wanted,
            slots: self.engine.get().map(|_| slots),
            problem: self.overfull(),
            masked: masked.map(peer).collect(),
        }
    }
}

impl Admin for WorkerPages {
    fn healthy(&self) -> Result<(), String> {
        healthy(&self.telemetry)
    }

    fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining: takes nothing new".into());
        }
        if let Some(why) = self.overfull() {
            return Err(why);
        }
        let mut samples = self.telemetry.samples();
        match samples.next() {
            None => return Err("loading the model".into()),
            Some(s) if !s.ready => return Err("loading experts".into()),
            Some(_) => {}
        }
        self.healthy()
    }

    fn metrics(&self) -> String {
        metrics(&self.telemetry, None)
    }

    fn pressure(&self) -> serde_json::Value {
        let mut page = self.telemetry.pressure(None);
        page.workers.iter_mut().for_each(|w| w.member = Some(self.member()));
        serde_json::to_value(page).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use sluice_core::counters::Counters;
    use sluice_core::pressure::Pressure;

    use super::*;
    use crate::table::parse;
    use crate::telemetry::WorkerSample;

    fn table(units: u16) -> Arc<Table> {
        let rows: String = (0..units)
            .map(|e| format!("  - {{worker: e0, block: 0, expert: {e}, slice: [0, 8]}}\n"))
            .collect();
        let workers = "workers:\n- {number: 4, name: e0, role: experts, address: h}\n";
        Arc::new(
            parse(&format!("{workers}slices:\n- blocks: [0, 1]\n  generation: 1\n  units:\n{rows}")).unwrap(),
        )
    }

    #[test]
    fn a_worker_without_enough_slots_says_so_instead_of_loading_for_ever() {
        let telemetry = Arc::new(Telemetry::new(4..5).unwrap());
        let (tables, watched) = watch::channel(table(3));
        let pages = WorkerPages::new(telemetry.clone(), (WorkerId(4), "e0"), 17, watched);
        assert_eq!(pages.ready(), Err("loading the model".into()));
        let shape = Shape { moe: vec![true, false], experts: 8, top_k: 2, segments: 8 };
        pages.engine.set(EngineFacts { slots: 2, numerics: "n".into(), shape }).unwrap();
        let sample = |ready| WorkerSample {
            worker: WorkerId(4),
            role: "experts",
            counters: Counters::default(),
            pressure: Pressure::default(),
            ready,
            busy: false,
            draining: false,
            failure: None,
        };
        telemetry.worker_seen(sample(false));
        let why = pages.ready().unwrap_err();
        assert!(why.starts_with("3 units wanted, 2 slots: raise --slots"), "{why}");
        let member = pages.pressure()["workers"][0]["member"].clone();
        assert_eq!((&member["name"], &member["incarnation"]), (&"e0".into(), &17.into()));
        assert_eq!((&member["units_wanted"], &member["slots"]), (&3.into(), &2.into()));
        assert_eq!((&member["problem"], &member["numerics"]), (&why.into(), &"n".into()));
        assert_eq!(
            member["model"],
            serde_json::json!({ "moe": [true, false], "experts": 8, "top_k": 2, "segments": 8 })
        );
        tables.send_replace(table(2));
        assert_eq!(pages.ready(), Err("loading experts".into()));
        telemetry.worker_seen(sample(true));
        assert_eq!((pages.ready(), pages.overfull()), (Ok(()), None));
        assert!(pages.pressure()["workers"][0]["member"]["problem"].is_null());
    }
}
