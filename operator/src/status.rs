//! What the operator says of a deployment: conditions with reasons, and counts. Pure; what did not change is not written.

use crate::placing::Problem;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use sluice_crds::{Cohort, CohortState, Counts, Layout, MoEDeploymentStatus, PressureSummary};

/// What the status is made from.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The generation of the manifest that was reconciled.
    pub generation: Option<i64>,
    /// The layout in force.
    pub layout: Layout,
    /// The image that agents run.
    pub image: &'a str,
    /// Workers: how many there should be, and how many serve.
    pub workers: Counts,
    /// The same for attention alone: without any, nothing is served.
    pub ranks_ready: i32,
    /// Gateways.
    pub gateways: Counts,
    /// Units of the model, and those that take tokens.
    pub units: Counts,
    /// The newest generation of the placement.
    pub placement_generation: Option<i64>,
    /// The placement is as planned.
    pub is_settled: bool,
    /// Why experts are not placed.
    pub problem: Option<&'a Problem>,
    /// What is wrong with pods, the worst first: reason and message.
    pub troubles: &'a [(String, String)],
    /// A seed of replicas that somebody else's number stands against.
    pub ignored: Option<String>,
    /// The cohort.
    pub cohort: &'a str,
    /// The numerics id that workers report.
    pub numerics: Option<String>,
    /// What agents report in sum.
    pub pressure: Option<PressureSummary>,
    /// The time.
    pub now: Timestamp,
}

/// The status that follows the one before.
pub fn status(facts: &Facts<'_>, before: Option<&MoEDeploymentStatus>) -> MoEDeploymentStatus {
    let (ready, why, says) = readiness(facts);
    let is_moving = facts.workers.ready < facts.workers.desired
        || facts.gateways.ready < facts.gateways.desired
        || !facts.is_settled;
    let mut wanted = vec![
        ("Ready", ready, why.to_owned(), says.clone()),
        match is_moving {
            true => ("Progressing", true, "Reconciling".into(), progress(facts)),
            false => ("Progressing", false, "Settled".into(), "all is as it should be".into()),
        },
        match facts.troubles.first() {
            Some((reason, message)) => ("Degraded", true, reason.clone(), message.clone()),
            None if ready || facts.problem.is_none_or(|p| *p == Problem::Unknown) => {
                ("Degraded", false, "Healthy".into(), "nothing is known to be wrong".into())
            }
            None => ("Degraded", true, why.to_owned(), says),
        },
    ];
    match &facts.ignored {
        Some(message) => wanted.push(("ReplicasIgnored", true, "OwnedByAnother".into(), message.clone())),
        None => wanted.push(("ReplicasIgnored", false, "Followed".into(), "replicas are followed".into())),
    }
    let old = before.map_or(&[][..], |b| &b.conditions);
    let state = if ready { CohortState::Serving } else { CohortState::Starting };
    MoEDeploymentStatus {
        observed_generation: facts.generation,
        conditions: wanted.into_iter().map(|w| condition(w, facts, old)).collect(),
        layout: Some(facts.layout),
        workers: facts.workers,
        gateways: facts.gateways,
        units: facts.units,
        placement_generation: facts.placement_generation,
        pressure: facts.pressure,
        agent_image: Some(facts.image.into()),
        cohorts: vec![Cohort {
            name: facts.cohort.into(),
            numerics_id: facts
                .numerics
                .clone()
                .or_else(|| before?.cohorts.iter().find(|c| c.name == facts.cohort)?.numerics_id.clone()),
            image: facts.image.into(),
            state,
            workers: facts.workers,
        }],
    }
}

fn readiness(facts: &Facts<'_>) -> (bool, &'static str, String) {
    if facts.workers.desired == 0 {
        return (false, "ScaledToZero", "it has no workers: requests wait at the gateways".into());
    }
    if let Some(problem) = facts.problem {
        let (reason, says) = match problem {
            Problem::Unknown => ("WaitingForWorkers", "no worker has loaded the model yet".into()),
            Problem::NoWorker => {
                ("WaitingForWorkers", "no worker that could hold experts is there yet".into())
            }
            Problem::Different(who) => (
                "ModelDiffers",
                format!("{who} have different models: make the model's source give the same to all"),
            ),
            Problem::Unplaceable(why) => ("Unplaceable", format!("experts cannot be placed: {why}")),
        };
        return (false, reason, says);
    }
    let Counts { desired, ready } = facts.units;
    if ready < desired {
        return (false, "LoadingExperts", format!("{ready} of {desired} units of experts take tokens"));
    }
    if facts.ranks_ready == 0 {
        return (false, "WaitingForAttention", "no attention worker serves".into());
    }
    if facts.gateways.ready == 0 {
        return (false, "WaitingForGateway", "no gateway serves".into());
    }
    (true, "Serving", "requests are served".into())
}

fn progress(facts: &Facts<'_>) -> String {
    format!(
        "{} of {} workers and {} of {} gateways serve, {} of {} units of experts take tokens",
        facts.workers.ready,
        facts.workers.desired,
        facts.gateways.ready,
        facts.gateways.desired,
        facts.units.ready,
        facts.units.desired
    )
}

fn condition(
    (kind, is, reason, message): (&str, bool, String, String),
    facts: &Facts<'_>,
    old: &[Condition],
) -> Condition {
    let status = if is { "True" } else { "False" };
    let before = old.iter().find(|c| c.type_ == kind && c.status == status);
    let mut message = message;
    let end = (0..=message.len().min(1000)).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
    message.truncate(end);
    Condition {
        type_: kind.into(),
        status: status.into(),
        reason,
        message,
        observed_generation: facts.generation,
        last_transition_time: before.map_or(Time(facts.now), |c| c.last_transition_time.clone()),
    }
}

/// What is wrong with a pod, if anything that somebody could do something about: reason and message.
pub fn trouble(name: &str, pod: &Pod) -> Option<(String, String)> {
    let status = pod.status.as_ref()?;
    let scheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled");
    if let Some(c) = scheduled.filter(|c| c.status == "False") {
        let why = c.message.clone().unwrap_or_default();
        return Some(("Unschedulable".into(), format!("pod {name} finds no node: {why}")));
    }
    let all =
        || status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let waiting = |reason: &str, message: Option<&str>, last: Option<&str>| {
        let mut why = [message, last].into_iter().flatten().map(str::trim).filter(|m| !m.is_empty());
        let why = why.next_back().unwrap_or("no message").to_owned();
        Some((reason.to_owned(), format!("pod {name}: {why}")))
    };
    for c in all() {
        let last =
            c.last_state.as_ref().and_then(|s| s.terminated.as_ref()).and_then(|t| t.message.as_deref());
        let Some(w) = c.state.as_ref().and_then(|s| s.waiting.as_ref()) else { continue };
        match w.reason.as_deref() {
            None | Some("ContainerCreating" | "PodInitializing") => {}
            Some(reason) => return waiting(reason, w.message.as_deref(), last),
        }
    }
    None
}
