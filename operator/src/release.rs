//! `release`: lets all MoEDeployments go, when the operator is taken away for good. They stay, and can be deleted without
//! it: garbage collection takes what they own.

use crate::finalize::let_go;
use anyhow::Context as _;
use kube::api::{ListParams, PatchParams};
use kube::core::DeserializeGuard;
use kube::{Api, Client, ResourceExt};
use sluice_crds::MoEDeployment;

/// Takes the operator's finalizer off the MoEDeployments of some namespaces, or of all. How many had it.
///
/// # Errors
/// What could not be read or written.
pub async fn release(namespaces: &[String]) -> anyhow::Result<usize> {
    let client = Client::try_default().await.context("cannot find a cluster")?;
    let apis: Vec<Api<DeserializeGuard<MoEDeployment>>> = match namespaces {
        [] => vec![Api::all(client.clone())],
        some => some.iter().map(|n| Api::namespaced(client.clone(), n)).collect(),
    };
    let mut released = 0;
    for api in apis {
        let all = match api.list(&ListParams::default()).await {
            // The kind is gone, and with it all of them.
            Err(kube::Error::Api(s)) if s.code == 404 => continue,
            listed => listed.context("cannot list MoEDeployments")?,
        };
        for moe in &all.items {
            let Some(patch) = let_go(moe) else { continue };
            let (namespace, name) = (moe.namespace().unwrap_or_default(), moe.name_any());
            let one = Api::<MoEDeployment>::namespaced(client.clone(), &namespace);
            let patched = one.patch_metadata(&name, &PatchParams::default(), &patch).await;
            patched.with_context(|| format!("cannot let {namespace}/{name} go"))?;
            released += 1;
        }
    }
    Ok(released)
}
