//! What every reconcile needs.

use crate::admin::Admin;
use crate::apply::Writer;
use crate::authority::Authorities;
use crate::certificates::CertificateError;
use crate::pressure::Hub;
use crate::stores::Stores;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Resource, ResourceExt};
use rustls::ClientConfig;
use sluice_crds::{ExpertPlacement, RoleScaler};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The operator's own certificates are renewed so often.
const RENEWED: Duration = Duration::from_secs(24 * 3600);

/// What agents are dialled with, by which CAs, and since when.
type Dialled = (Arc<ClientConfig>, String, Instant);

/// What every reconcile needs.
pub struct Context {
    /// What there is.
    pub stores: Stores,
    /// How it is changed.
    pub writer: Arc<Writer>,
    /// What agents report.
    pub pressure: Arc<Hub>,
    /// The CAs.
    pub authorities: Arc<Authorities>,
    /// The image of agents where none is given.
    pub agent_image: String,
    /// The operator's own namespace.
    pub namespace: String,
    /// Events.
    pub recorder: Recorder,
    /// Metrics.
    pub admin: Arc<Admin>,
    /// Certificates to dial the agents of each deployment with.
    clients: Mutex<HashMap<(String, String), Dialled>>,
    /// What was written last: the cache may be older.
    pub scalers: Latest<RoleScaler>,
    /// The same.
    pub placements: Latest<ExpertPlacement>,
}

impl Context {
    /// From its parts.
    pub fn new(
        (stores, pressure): (Stores, Arc<Hub>),
        (writer, authorities, admin): (Arc<Writer>, Arc<Authorities>, Arc<Admin>),
        (agent_image, namespace, identity): (String, String, String),
    ) -> Self {
        let reporter = Reporter { controller: crate::names::MANAGER.into(), instance: Some(identity) };
        Self {
            recorder: Recorder::new(writer.client(), reporter),
            stores,
            writer,
            pressure,
            authorities,
            agent_image,
            namespace,
            admin,
            clients: Mutex::default(),
            scalers: Latest::default(),
            placements: Latest::default(),
        }
    }

    /// What the agents of a deployment are dialled with.
    ///
    /// # Errors
    /// If no certificate can be made.
    pub fn client(&self, namespace: &str, name: &str) -> Result<Arc<ClientConfig>, CertificateError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), name.to_owned());
        let keyring = self.authorities.now();
        if let Some((client, by, at)) = clients.get(&key)
            && *by == keyring.id()
            && at.elapsed() < RENEWED
        {
            return Ok(Arc::clone(client));
        }
        let own = crate::names::operator(namespace, name);
        let client = Arc::new(keyring.signing.client(&own, &keyring.bundle())?);
        clients.insert(key, (Arc::clone(&client), keyring.id(), Instant::now()));
        Ok(client)
    }
}

/// The newest version of each object: the cache's, or the one that we wrote and the cache has not seen yet.
#[derive(Debug)]
pub struct Latest<K>(Mutex<HashMap<(String, String), K>>);

impl<K> Default for Latest<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Latest<K> {
    /// Notes what was written.
    pub fn wrote(&self, object: &K) {
        let key = (object.namespace().unwrap_or_default(), object.name_any());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, object.clone());
    }

    /// The newer one of what is cached and what was written.
    pub fn newest(&self, cached: Option<K>, namespace: &str, name: &str) -> Option<K> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), name.to_owned());
        let Some(written) = all.get(&key) else { return cached };
        let is_other = |c: &K| c.uid() != written.uid();
        match &cached {
            // It came anew, or was written since.
            Some(c) if is_other(c) || version(c) >= version(written) => {
                all.remove(&key);
                cached
            }
            _ => Some(written.clone()),
        }
    }

    /// It is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

fn version<K: Resource>(object: &K) -> u64 {
    object.resource_version().and_then(|v| v.parse().ok()).unwrap_or(0)
}
