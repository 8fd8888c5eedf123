//! One operator writes at a time: it holds a Lease, and ends when it has lost it.

use crate::names::MANAGER;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use std::time::{Duration, Instant};

/// The Lease of an operator.
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// Who has not renewed it for so long has lost it.
    duration: Duration,
}

/// What was last seen of somebody else's lease, and when by our own clock: others' clocks are not to be trusted.
struct Seen {
    version: Option<String>,
    at: Instant,
}

impl Leadership {
    /// A Lease in a namespace, and who asks for it.
    pub fn new(client: Client, namespace: &str, identity: String, duration: Duration) -> Self {
        Self { api: Api::namespaced(client, namespace), name: MANAGER.into(), identity, duration }
    }

    /// Resolves once the lease is ours.
    pub async fn acquire(&self) {
        let mut seen = None;
        loop {
            match self.attempt(&mut seen).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(e) => tracing::warn!("the lease cannot be had: {e}"),
            }
            tokio::time::sleep(self.duration / 6).await;
        }
    }

    /// Renews it; resolves when it is lost, or could not be renewed in time.
    pub async fn hold(&self) {
        let mut renewed = Instant::now();
        let mut seen = None;
        loop {
            tokio::time::sleep(self.duration / 6).await;
            let attempt = tokio::time::timeout(self.duration / 3, self.attempt(&mut seen)).await;
            match attempt {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return tracing::error!("another operator has the lease"),
                Ok(Err(e)) => tracing::warn!("the lease cannot be renewed: {e}"),
                Err(_) => tracing::warn!("the lease cannot be renewed: no answer"),
            }
            if renewed.elapsed() > self.duration * 2 / 3 {
                return tracing::error!("the lease could not be renewed in time");
            }
        }
    }

    /// Gives it up, so that another one need not wait.
    pub async fn release(&self) {
        let Ok(Some(mut lease)) = self.api.get_opt(&self.name).await else { return };
        if let Some(spec) =
            lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(&self.identity))
        {
            spec.holder_identity = None;
            let _ = self.api.replace(&self.name, &PostParams::default(), &lease).await;
        }
    }

    /// Takes the lease if it is ours, nobody's, or was not renewed for its duration. Whether it is ours then.
    async fn attempt(&self, seen: &mut Option<Seen>) -> Result<bool, kube::Error> {
        let now = Timestamp::now();
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.spec(None, now)),
            };
            return taken(self.api.create(&PostParams::default(), &lease).await);
        };
        let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.clone()).filter(|h| !h.is_empty());
        if holder.as_deref().is_some_and(|h| h != self.identity) {
            let version = lease.metadata.resource_version.clone();
            let last = seen.take().filter(|s| s.version == version);
            let last = last.unwrap_or_else(|| Seen { version, at: Instant::now() });
            let theirs = lease.spec.as_ref().and_then(|s| s.lease_duration_seconds).unwrap_or(0);
            let theirs = Duration::from_secs(theirs.max(0).cast_unsigned().into()).max(self.duration);
            let is_over = last.at.elapsed() > theirs;
            *seen = Some(last);
            if !is_over {
                return Ok(false);
            }
        }
        let spec = self.spec(lease.spec.as_ref().filter(|_| holder.as_deref() == Some(&self.identity)), now);
        lease.spec = Some(spec);
        taken(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn spec(&self, before: Option<&LeaseSpec>, now: Timestamp) -> LeaseSpec {
        let acquired = before.and_then(|b| b.acquire_time.clone()).or(Some(MicroTime(now)));
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs()).ok(),
            acquire_time: acquired,
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }
    }
}

/// Of two who write at once, one has an old version.
fn taken(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(s)) if s.code == 409 => Ok(false),
        Err(e) => Err(e),
    }
}
