//! The workers of a role: its RoleScaler, the certificates and the pods.

use crate::apply::{Kind, WriteError};
use crate::build::pod::{self, WorkerPod};
use crate::context::Context;
use crate::names::{self, BUNDLE, MANAGER, RENEW};
use crate::pods::{Orders, Roster, decide, is_ready};
use crate::reconcile::{Of, ReconcileError};
use crate::roles::{Common, RoleView};
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::Patch;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use rand::Rng;
use serde_json::json;
use sluice_crds::{RoleScaler, RoleScalerSpec, RoleScalerStatus};
use sluice_identity::Identity;
use std::collections::{BTreeMap, BTreeSet};

/// What replicas the deployment asked for when its number was last taken over.
const SEED: &str = "sluice.dev/seed";

/// A role, as far as it came.
#[derive(Clone, Debug)]
pub struct RoleState {
    /// How many there should be.
    pub replicas: i32,
    /// How many serve.
    pub ready: i32,
    /// Someone else's number stands against the deployment's.
    pub ignored: Option<String>,
    /// Something is in motion.
    pub is_moving: bool,
    /// When to look again.
    pub again: Option<Timestamp>,
}

/// Makes a role's pods what they should be. `may_exchange`: nothing else is in motion.
///
/// # Errors
/// What could not be written.
pub async fn reconcile(
    ctx: &Context,
    of: Of<'_>,
    (role, common): (&RoleView<'_>, &Common<'_>),
    (image, cohort): (&str, &str),
    may_exchange: bool,
) -> Result<RoleState, ReconcileError> {
    let (scaler, ignored) = scaler(ctx, of, role).await?;
    let component = role.role.name();
    let is_ours = |p: &Pod| {
        p.labels().get(names::ROLE).is_some_and(|r| r == component)
            && p.owner_references().iter().any(|o| Some(&o.uid) == scaler.uid().as_ref())
    };
    let pods: BTreeMap<String, &Pod> =
        of.pods.iter().filter(|(_, p)| is_ours(p)).map(|(name, p)| (name.clone(), &**p)).collect();
    let records = scaler.status.as_ref().map_or(&[][..], |s| &s.pods);
    let template = pod::template(of.moe, role, common, image);
    let roster = Roster {
        replicas: scaler.spec.replicas,
        template: &template,
        cohort,
        surge: of.moe.spec.update_strategy.max_surge,
        may_exchange,
        records,
        pods: &pods,
        now: of.now,
    };
    let orders = decide(&roster, || fresh(of.name, component));
    let ready = i32::try_from(pods.values().filter(|p| is_ready(p)).count()).unwrap_or(i32::MAX);
    let scaler = record(ctx, of, scaler, &orders, ready, component).await?;

    for record in &orders.records {
        if orders.make.contains(&record.name) || pods.contains_key(&record.name) {
            let identity = names::worker(of.namespace, of.name, role.role, &record.name);
            certify(ctx, of, (&record.name, component), &identity, names::owner(&scaler)).await?;
        }
    }
    for name in &orders.make {
        let record = orders.records.iter().find(|r| r.name == *name);
        let cohort = record.map_or(cohort, |r| &r.cohort);
        let wanted = WorkerPod {
            moe: (of.moe, of.namespace),
            role: (role, common),
            name: (name, cohort),
            image,
            template: &template,
        };
        let pod = pod::worker(&wanted, &scaler).map_err(ReconcileError::Build)?;
        ctx.writer.create(&pod).await?;
    }
    for name in &orders.delete {
        ctx.writer.delete::<Pod>(of.namespace, name).await?;
    }
    orphans(ctx, of, &orders, &pods).await?;
    Ok(RoleState {
        replicas: scaler.spec.replicas,
        ready,
        ignored,
        is_moving: !orders.make.is_empty() || !orders.delete.is_empty() || ready != scaler.spec.replicas,
        again: orders.again,
    })
}

/// The role's RoleScaler, made at first from the deployment's number. A later edit of that is written through, unless
/// somebody else has set the RoleScaler's.
async fn scaler(
    ctx: &Context,
    of: Of<'_>,
    role: &RoleView<'_>,
) -> Result<(RoleScaler, Option<String>), ReconcileError> {
    let name = names::scaler(of.name, role.role);
    let cached = ctx.stores.scaler(of.namespace, &name);
    let Some(found) = ctx.scalers.newest(cached, of.namespace, &name) else {
        let mut fresh = RoleScaler::new(
            &name,
            RoleScalerSpec { deployment: of.name.into(), role: role.role, replicas: role.replicas },
        );
        fresh.metadata = names::owned(of.moe, name.clone(), role.role.name());
        fresh.annotations_mut().insert(SEED.into(), role.replicas.to_string());
        return match ctx.writer.create(&fresh).await? {
            Some(made) => {
                ctx.scalers.wrote(&made);
                Ok((made, None))
            }
            None => Err(ReconcileError::Stale(name)),
        };
    };
    let seed = found.annotations().get(SEED).and_then(|s| s.parse::<i32>().ok());
    if seed == Some(role.replicas) {
        return Ok((found, None));
    }
    if found.spec.replicas != role.replicas
        && let Some(other) = other_manager(&found)
    {
        let message = format!(
            "{} asks for {} replicas of {}, and {other} has set {} on the RoleScaler {name}: that stands",
            of.name,
            role.replicas,
            role.role.name(),
            found.spec.replicas
        );
        return Ok((found, Some(message)));
    }
    let mut changed = found;
    changed.annotations_mut().insert(SEED.into(), role.replicas.to_string());
    changed.spec.replicas = role.replicas;
    let written = ctx.writer.replace(&changed).await?;
    ctx.scalers.wrote(&written);
    Ok((written, None))
}

/// Who but us has set the number of replicas.
fn other_manager(scaler: &RoleScaler) -> Option<String> {
    let all = scaler.metadata.managed_fields.as_ref()?;
    let sets = all.iter().find(|m| {
        let fields = m.fields_v1.as_ref().map(|f| &f.0);
        m.manager.as_deref() != Some(MANAGER)
            && fields.is_some_and(|f| f.get("f:spec").and_then(|s| s.get("f:replicas")).is_some())
    })?;
    Some(sets.manager.clone().unwrap_or_else(|| "somebody else".into()))
}

/// Writes the records, before any pod is made or deleted by them.
async fn record(
    ctx: &Context,
    of: Of<'_>,
    mut scaler: RoleScaler,
    orders: &Orders,
    ready: i32,
    component: &str,
) -> Result<RoleScaler, ReconcileError> {
    let staying = orders.records.iter().filter(|r| r.phase != sluice_crds::PodPhase::Leaving).count();
    let selector = names::selector(of.name, component).into_iter().map(|(k, v)| format!("{k}={v}"));
    let status = RoleScalerStatus {
        observed_generation: scaler.metadata.generation,
        replicas: i32::try_from(staying).unwrap_or(i32::MAX),
        ready_replicas: ready,
        selector: selector.collect::<Vec<_>>().join(","),
        conditions: scaler.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default(),
        pods: orders.records.clone(),
    };
    if scaler.status.as_ref() == Some(&status) {
        return Ok(scaler);
    }
    scaler.status = Some(status);
    let written = ctx.writer.replace_status(&scaler).await?;
    ctx.scalers.wrote(&written);
    Ok(written)
}

/// A certificate in a Secret, renewed when a third of its time is left or the CAs are others.
///
/// # Errors
/// What could not be made or written.
pub async fn certify(
    ctx: &Context,
    of: Of<'_>,
    (owner_name, component): (&str, &str),
    identity: &Identity,
    owner: Option<OwnerReference>,
) -> Result<(), ReconcileError> {
    let name = names::certificate(owner_name);
    let key = ObjectRef::new(&name).within(of.namespace);
    let keyring = ctx.authorities.now();
    if let Some(found) = ctx.stores.secrets.get(&key) {
        let renew = found.annotations().get(RENEW).and_then(|t| t.parse::<Timestamp>().ok());
        let is_of_ca = found.annotations().get(BUNDLE) == Some(&keyring.id());
        if renew.is_some_and(|at| at > of.now) && is_of_ca {
            return Ok(());
        }
    }
    let leaf = keyring.signing.leaf(identity)?;
    let life = SignedDuration::try_from(crate::certificates::LEAF_LIFE).unwrap_or(SignedDuration::MAX);
    let renew = of.now.checked_add(life * 2 / 3).unwrap_or(of.now);
    let mut metadata = names::owned(of.moe, name, component);
    metadata.owner_references = Some(owner.into_iter().collect());
    metadata.annotations =
        Some(BTreeMap::from([(RENEW.to_owned(), renew.to_string()), (BUNDLE.to_owned(), keyring.id())]));
    metadata.labels.get_or_insert_default().insert(names::ROLE.into(), component.into());
    let secret = Secret {
        metadata,
        type_: Some("kubernetes.io/tls".into()),
        string_data: Some(BTreeMap::from([
            ("tls.crt".to_owned(), leaf.certificate),
            ("tls.key".to_owned(), leaf.key),
            ("ca.crt".to_owned(), keyring.bundle()),
        ])),
        ..Secret::default()
    };
    ctx.writer.apply(&secret, None).await?;
    Ok(())
}

/// Pods and certificates that no record names.
async fn orphans(
    ctx: &Context,
    of: Of<'_>,
    orders: &Orders,
    pods: &BTreeMap<String, &Pod>,
) -> Result<(), WriteError> {
    let recorded: BTreeSet<&str> = orders.records.iter().map(|r| r.name.as_str()).collect();
    for (name, pod) in pods {
        if !recorded.contains(name.as_str()) && pod.metadata.deletion_timestamp.is_none() {
            ctx.writer.delete::<Pod>(of.namespace, name).await?;
        }
    }
    Ok(())
}

/// Deletes the certificates of pods that are gone.
///
/// # Errors
/// What could not be deleted.
pub async fn revoke(ctx: &Context, of: Of<'_>, kept: &BTreeSet<String>) -> Result<(), WriteError> {
    let is_of = |s: &kube::api::PartialObjectMeta<Secret>| {
        s.metadata.namespace.as_deref() == Some(of.namespace)
            && s.labels().get(names::DEPLOYMENT).is_some_and(|d| d == of.name)
            && s.labels().contains_key(names::ROLE)
    };
    for secret in ctx.stores.secrets.state_filter(is_of) {
        if !kept.contains(&secret.name_any()) {
            ctx.writer.delete::<Secret>(of.namespace, &secret.name_any()).await?;
        }
    }
    Ok(())
}

/// A name that no pod had.
pub fn fresh(deployment: &str, component: &str) -> String {
    // Without vowels and what is mistaken for another, as Kubernetes does.
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    let tail: String = (0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect();
    format!("{deployment}-{component}-{tail}")
}

/// Tells the kubelet's side of a pod whether what it should hold takes tokens.
///
/// # Errors
/// If it cannot be written.
pub async fn gate(
    ctx: &Context,
    of: Of<'_>,
    pod: &Pod,
    is_loaded: bool,
    why: &str,
) -> Result<(), WriteError> {
    if crate::pods::is_loaded(pod) == Some(is_loaded) || pod.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let condition = json!({
        "type": names::LOADED,
        "status": if is_loaded { "True" } else { "False" },
        "reason": if is_loaded { "Active" } else { "Joining" },
        "message": why,
        "lastTransitionTime": of.now.to_string(),
    });
    let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
    let written = ctx.writer.patch::<Pod>((of.namespace, &pod.name_any()), Some("status"), &patch).await;
    match written {
        Err(WriteError::Api { source, .. }) if matches!(&*source, kube::Error::Api(s) if s.code == 404) => {
            Ok(())
        }
        other => other,
    }
}

/// Applies an object unless it is what it should be.
///
/// # Errors
/// If it cannot be written.
pub async fn apply<K: Kind + crate::stores::Versioned>(ctx: &Context, object: &K) -> Result<(), WriteError> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let seen = ctx.stores.version::<K>(&namespace, &name);
    ctx.writer.apply(object, seen.as_deref()).await
}

/// Whether an object is on its way out.
pub fn is_leaving<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}
