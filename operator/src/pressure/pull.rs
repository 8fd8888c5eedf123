//! One task per deployment pulls its pages, and says when something in them calls for a reconcile.

use super::Page;
use super::client::Connection;
use kube::runtime::reflector::ObjectRef;
use rustls::ClientConfig;
use sluice_crds::MoEDeployment;
use sluice_identity::Identity;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How often a page is pulled.
const EVERY: Duration = Duration::from_secs(1);

/// A page, and when it came.
#[derive(Clone, Debug)]
pub struct Heard {
    /// What it said.
    pub page: Arc<Page>,
    /// When.
    pub at: Instant,
}

/// Whom to ask, and as whom.
#[derive(Clone, Debug)]
pub struct Gateways {
    /// Their addresses.
    pub addresses: Vec<String>,
    /// Whom their certificate must be for.
    pub identity: Identity,
    /// The operator's certificate for this deployment.
    pub tls: Arc<ClientConfig>,
}

/// The pages of all deployments.
#[derive(Debug)]
pub struct Hub {
    queue: mpsc::Sender<ObjectRef<MoEDeployment>>,
    pulled: Mutex<HashMap<(String, String), Pulled>>,
}

#[derive(Debug)]
struct Pulled {
    gateways: watch::Sender<Option<Gateways>>,
    heard: Arc<Mutex<Option<Heard>>>,
    task: JoinHandle<()>,
}

impl Drop for Pulled {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hub {
    /// Tells `queue` of deployments to look at.
    pub fn new(queue: mpsc::Sender<ObjectRef<MoEDeployment>>) -> Self {
        Self { queue, pulled: Mutex::default() }
    }

    /// The last page of a deployment.
    pub fn heard(&self, namespace: &str, name: &str) -> Option<Heard> {
        let pulled = self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        let of = pulled.get(&(namespace.to_owned(), name.to_owned()))?;
        of.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on these gateways are asked.
    pub fn follow(&self, namespace: &str, name: &str, gateways: Gateways) {
        let mut pulled = self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        let of = pulled.entry((namespace.to_owned(), name.to_owned())).or_insert_with(|| {
            let (sender, receiver) = watch::channel(None);
            let heard = Arc::default();
            let at = ObjectRef::new(name).within(namespace);
            let task = tokio::spawn(pull(receiver, Arc::clone(&heard), self.queue.clone(), at));
            Pulled { gateways: sender, heard, task }
        });
        of.gateways.send_if_modified(|now| {
            let is_same = now
                .as_ref()
                .is_some_and(|n| n.addresses == gateways.addresses && Arc::ptr_eq(&n.tls, &gateways.tls));
            if !is_same {
                *now = Some(gateways);
            }
            !is_same
        });
    }

    /// The deployment is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut pulled = self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        pulled.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

async fn pull(
    gateways: watch::Receiver<Option<Gateways>>,
    heard: Arc<Mutex<Option<Heard>>>,
    queue: mpsc::Sender<ObjectRef<MoEDeployment>>,
    of: ObjectRef<MoEDeployment>,
) {
    let (mut connection, mut turn, mut digest, mut complaint) = (None::<Connection>, 0, 0, String::new());
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let Some(now) = gateways.borrow().clone() else { continue };
        if now.addresses.is_empty() {
            continue;
        }
        connection = connection.filter(|c| now.addresses.contains(&c.address));
        let pulled = match &mut connection {
            Some(c) => c.pull().await,
            None => {
                turn += 1;
                let address = &now.addresses[turn % now.addresses.len()];
                match Connection::open(address, &now.identity, Arc::clone(&now.tls)).await {
                    Ok(fresh) => connection.insert(fresh).pull().await,
                    Err(e) => Err(e),
                }
            }
        };
        match pulled {
            Ok(page) => {
                complaint.clear();
                let new = telling(&page);
                let page = Arc::new(page);
                *heard.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(Heard { page, at: Instant::now() });
                if std::mem::replace(&mut digest, new) != new {
                    let _ = queue.send(of.clone()).await;
                }
            }
            Err(why) => {
                connection = None;
                let why = why.to_string();
                if why != complaint {
                    tracing::info!(deployment = %of, "no pressure: {why}");
                }
                complaint = why;
            }
        }
    }
}

/// A digest of what calls for a reconcile when it changes.
fn telling(page: &Page) -> u64 {
    let mut hasher = DefaultHasher::new();
    for w in &page.workers {
        (w.ready, &w.failure).hash(&mut hasher);
        for t in &w.tables {
            (t.blocks, t.generation, &t.missing).hash(&mut hasher);
        }
        if let Some(m) = &w.member {
            (&m.name, m.incarnation, &m.numerics, m.slots, &m.problem, m.model.is_some()).hash(&mut hasher);
        }
    }
    hasher.finish()
}
