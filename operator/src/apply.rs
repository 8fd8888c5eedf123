//! Writes to the API server. What is as it should be is not written: an object that we applied and that nobody touched
//! since is passed over, so that a cluster at rest costs no calls.

use crate::names::MANAGER;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Kinds that can be written.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

/// A write that failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The API server refused it.
    #[error("cannot {verb} the {kind} {namespace}/{name}: {source}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// On what.
        kind: String,
        /// Where.
        namespace: String,
        /// Which.
        name: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// It cannot be written as JSON.
    #[error("the {kind} {name} cannot be built: {source}")]
    Build {
        /// Which kind.
        kind: String,
        /// Which.
        name: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

impl WriteError {
    /// Somebody else wrote it first: what was read is old.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { source, .. } if matches!(&**source, kube::Error::Api(s) if s.code == 409))
    }
}

/// Kind, namespace and name.
type Key = (String, String, String);
/// A digest of what was applied, and the version that made.
type Applied = (blake3::Hash, Option<String>);

/// The writer of one operator.
pub struct Writer {
    client: Client,
    /// What was applied last.
    applied: Mutex<HashMap<Key, Applied>>,
    crash: CrashPoint,
}

/// For tests that kill the operator at each of its writes in turn: it ends at the n-th moment before or after one.
#[derive(Debug, Default)]
struct CrashPoint {
    at: Option<u64>,
    passed: AtomicU64,
}

impl CrashPoint {
    fn from_env() -> Self {
        let at = std::env::var("SLUICE_CRASH_AT").ok().and_then(|n| n.parse().ok());
        Self { at, passed: AtomicU64::new(0) }
    }

    fn pass(&self) {
        let passed = self.passed.fetch_add(1, Ordering::Relaxed) + 1;
        if self.at == Some(passed) {
            tracing::error!("ends at point {passed}, as SLUICE_CRASH_AT has it");
            std::process::exit(137);
        }
    }
}

impl Writer {
    /// Over a client.
    pub fn new(client: Client) -> Self {
        Self { client, applied: Mutex::default(), crash: CrashPoint::from_env() }
    }

    /// The client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Every write goes through here.
    async fn write<T>(&self, request: impl Future<Output = T>) -> T {
        self.crash.pass();
        let done = request.await;
        self.crash.pass();
        done
    }

    fn api<K: Kind>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Makes an object what it should be (server-side apply), unless it is that already. `seen`: its version as the
    /// cache has it.
    ///
    /// # Errors
    /// Why it could not be written.
    pub async fn apply<K: Kind>(&self, object: &K, seen: Option<&str>) -> Result<(), WriteError> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let kind = K::kind(&()).into_owned();
        let mut text = serde_json::to_value(object).map_err(|source| WriteError::Build {
            kind: kind.clone(),
            name: name.clone(),
            source,
        })?;
        text["apiVersion"] = K::api_version(&()).into();
        text["kind"] = kind.clone().into();
        let digest = blake3::hash(text.to_string().as_bytes());
        let key = (kind, namespace.clone(), name.clone());
        {
            let applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
            let is_same = |(d, version): &Applied| *d == digest && version.as_deref() == seen;
            if seen.is_some() && applied.get(&key).is_some_and(is_same) {
                return Ok(());
            }
        }
        let params = PatchParams::apply(MANAGER).force();
        let api = self.api::<K>(&namespace);
        let written = self.write(api.patch(&name, &params, &Patch::Apply(&text))).await;
        let written = written.map_err(|e| failed::<K>("apply", &namespace, &name, e))?;
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        applied.insert(key, (digest, written.resource_version()));
        Ok(())
    }

    /// Makes an object that must not be there yet. That it is there already is no failure: false then.
    ///
    /// # Errors
    /// Why it could not be made.
    pub async fn create<K: Kind>(&self, object: &K) -> Result<Option<K>, WriteError> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        let api = self.api::<K>(&namespace);
        match self.write(api.create(&params, object)).await {
            Ok(made) => Ok(Some(made)),
            Err(kube::Error::Api(s)) if s.reason == "AlreadyExists" => Ok(None),
            Err(e) => Err(failed::<K>("create", &namespace, &name, e)),
        }
    }

    /// Replaces an object that is as it was read: by its version, never by force.
    ///
    /// # Errors
    /// Why it could not be written; also a conflict.
    pub async fn replace<K: Kind>(&self, object: &K) -> Result<K, WriteError> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        let api = self.api::<K>(&namespace);
        let written = self.write(api.replace(&name, &params, object)).await;
        written.map_err(|e| failed::<K>("replace", &namespace, &name, e))
    }

    /// The same for its status.
    ///
    /// # Errors
    /// As of [`Self::replace`].
    pub async fn replace_status<K: Kind>(&self, object: &K) -> Result<K, WriteError> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        let api = self.api::<K>(&namespace);
        let written = self.write(api.replace_status(&name, &params, object)).await;
        written.map_err(|e| failed::<K>("write the status of", &namespace, &name, e))
    }

    /// Changes a part of an object, or of its status.
    ///
    /// # Errors
    /// Why it could not be written.
    pub async fn patch<K: Kind>(
        &self,
        (namespace, name): (&str, &str),
        subresource: Option<&str>,
        patch: &Patch<serde_json::Value>,
    ) -> Result<(), WriteError> {
        let (api, params) = (
            self.api::<K>(namespace),
            PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() },
        );
        let written = match subresource {
            None => self.write(api.patch(name, &params, patch)).await.map(|_| ()),
            Some(sub) => self.write(api.patch_subresource(sub, name, &params, patch)).await.map(|_| ()),
        };
        written.map_err(|e| failed::<K>("patch", namespace, name, e))
    }

    /// Deletes an object. That it is gone already is no failure.
    ///
    /// # Errors
    /// Why it could not be deleted.
    pub async fn delete<K: Kind>(&self, namespace: &str, name: &str) -> Result<(), WriteError> {
        let key = (K::kind(&()).into_owned(), namespace.to_owned(), name.to_owned());
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        let api = self.api::<K>(namespace);
        match self.write(api.delete(name, &DeleteParams::default())).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(s)) if s.code == 404 => Ok(()),
            Err(e) => Err(failed::<K>("delete", namespace, name, e)),
        }
    }
}

fn failed<K: Kind>(verb: &'static str, namespace: &str, name: &str, source: kube::Error) -> WriteError {
    WriteError::Api {
        verb,
        kind: K::kind(&()).into_owned(),
        namespace: namespace.into(),
        name: name.into(),
        source: Box::new(source),
    }
}
