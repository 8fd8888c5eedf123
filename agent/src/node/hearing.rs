//! What a gateway hears of the workers: each of its table is asked for its pressure once a second, and all that they say
//! is on the gateway's own page. So the operator asks one process, and not all of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sluice_core::ids::WorkerId;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::table::{Member, Table};
use crate::transport::{AskError, Asker, Line};

/// How often a worker is asked.
const EVERY: Duration = Duration::from_secs(1);
/// One that does not answer is asked less often, so that it takes few of the turns of the others.
const AGAIN: Duration = Duration::from_secs(3);
/// What was heard before that is no longer shown, and a worker that is not heard of is complained of.
const OLD: Duration = Duration::from_secs(10);
/// So many are asked at a time.
const AT_ONCE: usize = 64;

/// A worker's page.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    workers: Vec<&'a RawValue>,
}

/// What of a worker on a page says which it is.
#[derive(Deserialize)]
struct Named {
    worker: u32,
}

/// What was last heard of each worker.
#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<BTreeMap<WorkerId, (Instant, Box<RawValue>)>>);

impl Heard {
    /// Keeps what a worker says of itself.
    fn take(&self, worker: WorkerId, page: &[u8], now: Instant) -> Result<(), AskError> {
        for said in serde_json::from_slice::<Page<'_>>(page)?.workers {
            if serde_json::from_str::<Named>(said.get())?.worker == worker.0 {
                self.lock().insert(worker, (now, said.to_owned()));
            }
        }
        Ok(())
    }

    fn forget(&self, worker: WorkerId) {
        self.lock().remove(&worker);
    }

    /// Of each worker, what it said and how long ago.
    pub(super) fn shown(&self, now: Instant) -> Vec<Value> {
        let age = |at: &Instant| now.saturating_duration_since(*at);
        let mut heard = self.lock();
        heard.retain(|_, (at, _)| age(at) <= OLD);
        let shown = |(at, said): &(Instant, Box<RawValue>)| {
            let mut said: Value = serde_json::from_str(said.get()).ok()?;
            said.as_object_mut()?.insert("heard_seconds".into(), age(at).as_secs_f64().into());
            Some(said)
        };
        heard.values().filter_map(shown).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<WorkerId, (Instant, Box<RawValue>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker that is asked until its row leaves the table.
struct Kept {
    member: Member,
    task: JoinHandle<()>,
    heard: Arc<Heard>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
        self.heard.forget(self.member.number);
    }
}

/// Asks all workers of the table.
pub(super) async fn hear(heard: Arc<Heard>, asker: Asker, mut table: watch::Receiver<Arc<Table>>) {
    let (asker, turns) = (Arc::new(asker), Arc::new(Semaphore::new(AT_ONCE)));
    let mut asked: HashMap<WorkerId, Kept> = HashMap::new();
    loop {
        let current = Arc::clone(&table.borrow_and_update());
        asked.retain(|_, kept| current.workers.contains(&kept.member));
        for member in &current.workers {
            asked.entry(member.number).or_insert_with(|| {
                let (asker, turns) = (Arc::clone(&asker), Arc::clone(&turns));
                let task = tokio::spawn(ask(member.clone(), asker, Arc::clone(&heard), turns));
                Kept { member: member.clone(), task, heard: Arc::clone(&heard) }
            });
        }
        if table.changed().await.is_err() {
            return;
        }
    }
}

async fn ask(member: Member, asker: Arc<Asker>, heard: Arc<Heard>, turns: Arc<Semaphore>) {
    let mut line: Option<Line> = None;
    let (mut since, mut has_complained) = (Instant::now(), false);
    // Not all at the same moment.
    sleep(EVERY.mul_f64(rand::random_range(0.0..1.0))).await;
    loop {
        let begun = Instant::now();
        let said = {
            let Ok(_turn) = turns.acquire().await else { return };
            asker.page(&member, "/v1/pressure", &mut line).await
        };
        let pause = match said.and_then(|page| heard.take(member.number, &page, Instant::now())) {
            Ok(()) => {
                (since, has_complained) = (Instant::now(), false);
                EVERY
            }
            Err(why) => {
                if !has_complained && since.elapsed() > OLD {
                    has_complained = true;
                    let (worker, address) = (&member.name, &member.address);
                    tracing::warn!(worker, address, "its pressure is not known: {why}");
                }
                AGAIN
            }
        };
        sleep(pause.saturating_sub(begun.elapsed())).await;
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;
    use crate::table::parse;
    use crate::transport::Security;

    #[test]
    fn what_is_shown_is_a_worker_s_own_and_not_old() {
        let heard = Heard::default();
        let begin = Instant::now();
        let page = br#"{"workers": [{"worker": 4, "ready": true}, {"worker": 5}], "front": null}"#;
        heard.take(WorkerId(4), page, begin).unwrap();
        heard.take(WorkerId(7), page, begin).unwrap();
        let shown = |after| heard.shown(begin + Duration::from_millis(after));
        let due = serde_json::json!([{"worker": 4, "ready": true, "heard_seconds": 2.5}]);
        assert_eq!(Value::from(shown(2_500)), due);
        heard.take(WorkerId(5), page, begin + Duration::from_secs(9)).unwrap();
        assert_eq!(shown(10_001), [serde_json::json!({"worker": 5, "heard_seconds": 1.001})]);
        for wrong in [&b"{}"[..], b"[", br#"{"workers": [{"worker": "5"}]}"#, br#"{"workers": [5]}"#] {
            assert!(heard.take(WorkerId(5), wrong, begin).is_err());
        }
    }

    #[tokio::test]
    async fn all_workers_of_the_table_are_asked_and_no_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let page = r#"{"workers":[{"worker":1},{"worker":2}],"front":null}"#;
        let pages = Router::new().route("/v1/pressure", get(move || async move { page }));
        tokio::spawn(async move { axum::serve(listener, pages).await });
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let deaf = silent.local_addr().unwrap();
        let table = |last: &str| {
            let rows = format!(
                "workers:\n- {{number: 0, name: a, role: attention, address: \"{deaf}\"}}\n\
                 - {{number: 1, name: e1, role: experts, address: \"{at}\"}}\n{last}"
            );
            Arc::new(parse(&rows).unwrap())
        };
        let (tables, watched) =
            watch::channel(table(&format!("- {{number: 2, name: e2, role: experts, address: \"{at}\"}}\n")));
        let heard = Arc::<Heard>::default();
        let asker = Asker::new(Arc::new(Security::Off), "d/m".into());
        let hearing = tokio::spawn(hear(Arc::clone(&heard), asker, watched));
        let becomes = async |due: &[u64]| {
            let is_so = async {
                while heard
                    .shown(Instant::now())
                    .iter()
                    .map(|w| w["worker"].as_u64().unwrap())
                    .ne(due.iter().copied())
                {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(Duration::from_secs(20), is_so).await.unwrap_or_else(|_| panic!("{due:?}"));
        };
        becomes(&[1, 2]).await;
        tables.send_replace(table(""));
        becomes(&[1]).await;
        sleep(2 * EVERY).await;
        let shown = heard.shown(Instant::now());
        assert!(shown[0]["heard_seconds"].as_f64().unwrap() < 1.9, "it is asked again and again: {shown:?}");
        hearing.abort();
    }
}
