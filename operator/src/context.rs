//! What every reconcile needs.

use crate::admin::Admin;
use crate::apply::{WriteError, Writer};
use crate::certificates::{Authority, CertificateError};
use crate::pressure::Hub;
use crate::stores::Stores;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Api, Resource, ResourceExt};
use rustls::ClientConfig;
use sluice_crds::{ExpertPlacement, RoleScaler};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The Secret of the CA.
const AUTHORITY: &str = "sluice-ca";
/// The operator's own certificates are renewed so often.
const RENEWED: Duration = Duration::from_secs(24 * 3600);

/// What agents are dialled with, and since when.
type Dialled = (Arc<ClientConfig>, Instant);

/// What every reconcile needs.
pub struct Context {
    /// What there is.
    pub stores: Stores,
    /// How it is changed.
    pub writer: Arc<Writer>,
    /// What agents report.
    pub pressure: Arc<Hub>,
    /// The CA.
    pub authority: Arc<Authority>,
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
        (writer, authority, admin): (Arc<Writer>, Arc<Authority>, Arc<Admin>),
        (agent_image, namespace, identity): (String, String, String),
    ) -> Self {
        let reporter = Reporter { controller: crate::names::MANAGER.into(), instance: Some(identity) };
        Self {
            recorder: Recorder::new(writer.client(), reporter),
            stores,
            writer,
            pressure,
            authority,
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
        if let Some((client, at)) = clients.get(&key)
            && at.elapsed() < RENEWED
        {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(self.authority.client(&crate::names::operator(namespace, name))?);
        clients.insert(key, (Arc::clone(&client), Instant::now()));
        Ok(client)
    }
}

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The API server.
    #[error("the Secret {AUTHORITY} cannot be read: {0}")]
    Read(#[from] Box<kube::Error>),
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// What is in it.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// The CA in the operator's namespace; a new one if there is none yet.
///
/// # Errors
/// If it cannot be read, made or stored.
pub async fn authority(writer: &Writer, namespace: &str) -> Result<Authority, AuthorityError> {
    let api = Api::<Secret>::namespaced(writer.client(), namespace);
    loop {
        if let Some(found) = api.get_opt(AUTHORITY).await.map_err(Box::new)? {
            let data = found.data.unwrap_or_default();
            let text = |key: &str| {
                data.get(key).and_then(|v| String::from_utf8(v.0.clone()).ok()).unwrap_or_default()
            };
            return Ok(Authority::stored(&text("tls.crt"), &text("tls.key"))?);
        }
        let fresh = Authority::create()?;
        let data = BTreeMap::from([
            ("tls.crt".to_owned(), fresh.certificate.clone()),
            ("tls.key".to_owned(), fresh.key.clone()),
        ]);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(AUTHORITY.into()),
                namespace: Some(namespace.into()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".into()),
            string_data: Some(data),
            ..Secret::default()
        };
        // Somebody else may have been first: then theirs is read.
        writer.create(&secret).await?;
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
