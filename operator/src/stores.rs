//! What the API server says, kept up to date by watches: only objects that carry the operator's label. Objects that
//! cannot be read (of another version of a kind, say) are passed over without disturbing the rest.

use crate::names::{self, DEPLOYMENT};
use crate::reconcile::Pods;
use futures_util::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::PartialObjectMeta;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use sluice_crds::{ExpertPlacement, MoEDeployment, RoleScaler};
use std::fmt::Debug;
use tokio::sync::mpsc;

/// An object that may be malformed.
pub type Guard<K> = DeserializeGuard<K>;
/// Where deployments to be looked at are put.
pub type Queue = mpsc::Sender<ObjectRef<MoEDeployment>>;
/// An object of which only the metadata are known.
type Meta<K> = PartialObjectMeta<K>;

/// All stores.
#[derive(Clone, Debug)]
pub struct Stores {
    /// MoEDeployments.
    pub deployments: Store<Guard<MoEDeployment>>,
    /// RoleScalers.
    pub scalers: Store<Guard<RoleScaler>>,
    /// ExpertPlacements.
    pub placements: Store<Guard<ExpertPlacement>>,
    /// Pods, of workers and gateways.
    pub pods: Store<Pod>,
    /// Gateways' Deployments.
    pub gateways: Store<Deployment>,
    /// The rest, which is only ever applied.
    pub secrets: Store<Meta<Secret>>,
    services: Store<Meta<Service>>,
    accounts: Store<Meta<ServiceAccount>>,
    roles: Store<Meta<Role>>,
    bindings: Store<Meta<RoleBinding>>,
    budgets: Store<Meta<PodDisruptionBudget>>,
    policies: Store<Meta<NetworkPolicy>>,
}

impl Stores {
    /// Starts the watches, of one namespace or of all.
    pub fn watch(client: &Client, namespace: Option<&str>, queue: &Queue) -> Self {
        let w = Watch { client, namespace, queue };
        Self {
            deployments: w.guarded(|d| Some(d.name_any())),
            scalers: w.guarded(of_label),
            placements: w.guarded(of_label),
            pods: w.whole(),
            gateways: w.whole(),
            secrets: w.meta(),
            services: w.meta(),
            accounts: w.meta(),
            roles: w.meta(),
            bindings: w.meta(),
            budgets: w.meta(),
            policies: w.meta(),
        }
    }

    /// Resolves once all of them have been listed.
    pub async fn ready(&self) {
        // It fails only if a watch has ended, which none does.
        let _ = self.deployments.wait_until_ready().await;
        let _ = self.scalers.wait_until_ready().await;
        let _ = self.placements.wait_until_ready().await;
        let _ = self.pods.wait_until_ready().await;
        let _ = self.gateways.wait_until_ready().await;
        let _ = self.secrets.wait_until_ready().await;
        let _ = self.services.wait_until_ready().await;
        let _ = self.accounts.wait_until_ready().await;
        let _ = self.roles.wait_until_ready().await;
        let _ = self.bindings.wait_until_ready().await;
        let _ = self.budgets.wait_until_ready().await;
        let _ = self.policies.wait_until_ready().await;
    }

    /// The version of an object that is applied, as the cache has it.
    pub fn version<K: Versioned>(&self, namespace: &str, name: &str) -> Option<String> {
        K::version(self, namespace, name)
    }

    /// Pods of a deployment, by name.
    pub fn pods_of(&self, namespace: &str, deployment: &str) -> Pods {
        let is_of = |p: &Pod| {
            p.metadata.namespace.as_deref() == Some(namespace)
                && p.labels().get(DEPLOYMENT).is_some_and(|d| d == deployment)
        };
        self.pods.state_filter(is_of).into_iter().map(|p| (p.name_any(), p)).collect()
    }

    /// Placements of a deployment.
    pub fn placements_of(&self, namespace: &str, deployment: &str) -> Vec<ExpertPlacement> {
        let is_of = |p: &Guard<ExpertPlacement>| {
            p.meta().namespace.as_deref() == Some(namespace)
                && p.meta().labels.as_ref().and_then(|l| l.get(DEPLOYMENT)).is_some_and(|d| d == deployment)
        };
        self.placements.state_filter(is_of).into_iter().filter_map(|p| p.0.clone().ok()).collect()
    }

    /// A RoleScaler.
    pub fn scaler(&self, namespace: &str, name: &str) -> Option<RoleScaler> {
        let key = ObjectRef::new(name).within(namespace);
        self.scalers.get(&key).and_then(|s| s.0.clone().ok())
    }
}

/// Kinds whose versions are looked up before they are applied.
pub trait Versioned: Sized {
    /// The version in the cache.
    fn version(stores: &Stores, namespace: &str, name: &str) -> Option<String>;
}

macro_rules! versioned {
    ($($kind:ty: $store:ident),*) => {$(
        impl Versioned for $kind {
            fn version(stores: &Stores, namespace: &str, name: &str) -> Option<String> {
                let key = ObjectRef::new(name).within(namespace);
                stores.$store.get(&key)?.meta().resource_version.clone()
            }
        }
    )*};
}

versioned!(
    Service: services, ServiceAccount: accounts, Role: roles, RoleBinding: bindings,
    PodDisruptionBudget: budgets, NetworkPolicy: policies, Secret: secrets, Deployment: gateways
);

fn of_label<K: Resource>(object: &K) -> Option<String> {
    object.labels().get(DEPLOYMENT).cloned()
}

struct Watch<'a> {
    client: &'a Client,
    namespace: Option<&'a str>,
    queue: &'a Queue,
}

/// What can be watched.
trait Watched:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

impl Watch<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    fn config() -> watcher::Config {
        watcher::Config::default().labels(&format!("{}={}", names::MANAGED.0, names::MANAGED.1))
    }

    /// Kinds of our own. Deployments carry no label: users write them.
    fn guarded<K: Watched>(&self, of: fn(&Guard<K>) -> Option<String>) -> Store<Guard<K>>
    where
        Guard<K>: Watched,
    {
        self.follow(watcher::watcher(self.api::<Guard<K>>(), watcher::Config::default()), of)
    }

    fn whole<K: Watched>(&self) -> Store<K> {
        self.follow(watcher::watcher(self.api::<K>(), Self::config()), of_label)
    }

    fn meta<K: Watched>(&self) -> Store<Meta<K>>
    where
        Meta<K>: Watched,
    {
        self.follow(watcher::watcher(self.api::<Meta<K>>(), Self::config()), of_label)
    }

    fn follow<K>(
        &self,
        events: impl futures_util::Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
        of: fn(&K) -> Option<String>,
    ) -> Store<K>
    where
        K: Watched,
    {
        let (reader, writer) = store::<K>();
        let queue = self.queue.clone();
        tokio::spawn(async move {
            let mut events = events.default_backoff().reflect(writer).boxed();
            let mut complaint = String::new();
            while let Some(event) = events.next().await {
                let object = match event {
                    Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => object,
                    Ok(_) => continue,
                    Err(e) => {
                        let why = e.to_string();
                        if why != complaint {
                            tracing::warn!(kind = %K::kind(&()), "a watch has to begin again: {why}");
                        }
                        complaint = why;
                        continue;
                    }
                };
                complaint.clear();
                if let (Some(name), Some(namespace)) = (of(&object), object.namespace()) {
                    let _ = queue.send(ObjectRef::new(&name).within(&namespace)).await;
                }
            }
        });
        reader
    }
}
