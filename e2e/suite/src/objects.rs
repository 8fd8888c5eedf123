//! Objects of the API server, as tests look at them.

use crate::check::until;
use crate::world::World;
use anyhow::Context;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use std::time::Duration;

/// The Pod Security level that everything here has to be content with.
const LEVEL: &str = "pod-security.kubernetes.io/enforce";

/// One namespace, and the cluster around it.
pub struct Space<'a> {
    pub world: &'a World,
    pub namespace: String,
}

impl Space<'_> {
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.world.client.clone(), &self.namespace)
    }

    /// The pods of a role (or `gateway`) that are not on their way out.
    ///
    /// # Errors
    /// The API server's.
    pub async fn role(&self, deployment: &str, role: &str) -> anyhow::Result<Vec<Pod>> {
        let labels = format!("sluice.dev/deployment={deployment},app.kubernetes.io/component={role}");
        let pods = self.pods().list(&ListParams::default().labels(&labels)).await?;
        Ok(pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// Waits until a role has exactly so many pods, and all of them are Ready. Their names.
    ///
    /// # Errors
    /// Time is up.
    pub async fn ready(
        &self,
        deployment: &str,
        role: &str,
        count: usize,
        limit: Duration,
    ) -> anyhow::Result<Vec<String>> {
        until(&format!("{count} pods of {role} Ready"), limit, async || {
            let pods = self.role(deployment, role).await?;
            let all = pods.len() == count && pods.iter().all(is_ready);
            Ok(all.then(|| pods.iter().map(ResourceExt::name_any).collect()))
        })
        .await
    }

    /// Applies a manifest as a person does.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        self.kubectl(&["apply", "-f", "-"]).input(manifest).text().await.map(drop)
    }

    /// kubectl, in this namespace.
    pub fn kubectl(&self, args: &[&str]) -> crate::shell::Run {
        self.world.tools.kubectl(["--namespace", &self.namespace]).args(args)
    }

    /// Waits for a MoEDeployment's condition Ready.
    ///
    /// # Errors
    /// Time is up: with its conditions.
    pub async fn served(&self, deployment: &str, limit: Duration) -> anyhow::Result<()> {
        let seconds = format!("--timeout={}s", limit.as_secs());
        let target = format!("moe/{deployment}");
        let wait = self.kubectl(&["wait", "--for=condition=Ready", &target, &seconds]);
        if let Err(error) = wait.limit(limit + Duration::from_secs(10)).text().await {
            let conditions = ["get", &target, "-o", "jsonpath={.status}"];
            let status = self.kubectl(&conditions).text().await.unwrap_or_default();
            return Err(error.context(format!("status: {status}")));
        }
        Ok(())
    }

    /// Deletes a MoEDeployment and waits until nothing of it is left.
    ///
    /// # Errors
    /// Something stays.
    pub async fn gone(&self, deployment: &str, limit: Duration) -> anyhow::Result<()> {
        let seconds = format!("--timeout={}s", limit.as_secs());
        let delete = self.kubectl(&["delete", "moe", deployment, "--ignore-not-found", &seconds]);
        delete.limit(limit + Duration::from_secs(10)).text().await?;
        let kinds = "pods,services,deployments,secrets,serviceaccounts,roles,rolebindings,networkpolicies,\
                     poddisruptionbudgets,rolescalers,expertplacements";
        let labels = format!("sluice.dev/deployment={deployment}");
        until("everything of the deployment is gone", limit, async || {
            let left = self.kubectl(&["get", kinds, "-l", &labels, "-o", "name"]).text().await?;
            anyhow::ensure!(
                left.trim().is_empty(),
                "left: {}",
                left.split_whitespace().collect::<Vec<_>>().join(", ")
            );
            Ok(Some(()))
        })
        .await
    }
}

/// A pod's condition Ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Makes a namespace, if there is none, with the Pod Security level `restricted`.
///
/// # Errors
/// The API server's.
pub async fn restricted(world: &World, name: &str) -> anyhow::Result<()> {
    let api = Api::<Namespace>::all(world.client.clone());
    let made: Namespace =
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": { LEVEL: "restricted" } } }))?;
    match api.create(&PostParams::default(), &made).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let patch = json!({ "metadata": { "labels": { LEVEL: "restricted" } } });
            api.patch(name, &Default::default(), &kube::api::Patch::Merge(patch)).await?;
        }
        made => drop(made?),
    }
    Ok(())
}

/// Deletes a namespace and waits until it is gone: what hangs in it hangs here.
///
/// # Errors
/// It stays.
pub async fn remove(world: &World, name: &str, limit: Duration) -> anyhow::Result<()> {
    let api = Api::<Namespace>::all(world.client.clone());
    if api.get_opt(name).await?.is_none() {
        return Ok(());
    }
    api.delete(name, &DeleteParams::default()).await?;
    until(&format!("the namespace {name} is gone"), limit, async || match api.get_opt(name).await? {
        None => Ok(Some(())),
        Some(left) => {
            let why = serde_json::to_string(&left.status.context("no status")?.conditions)?;
            anyhow::bail!("it is still there: {why}")
        }
    })
    .await
}
