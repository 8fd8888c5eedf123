//! Which pods a role has: decided from the records of its RoleScaler and the pods there are. A name is on record before
//! its pod is made, so making it twice makes one; a pod that cannot end blocks nobody.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use sluice_crds::{PodPhase, PodRecord};
use std::collections::BTreeMap;

use crate::names::{LOADED, TEMPLATE};

/// A pod is not made anew before this after its first failure; each further one doubles it.
const BACK_OFF: i64 = 10;
/// It is never longer.
const LONGEST_BACK_OFF: i64 = 300;
/// A pod that has been ready for so long has no failures behind it.
const RECOVERED: i64 = 600;

/// What is known of a role when its pods are decided on.
#[derive(Clone, Copy, Debug)]
pub struct Roster<'a> {
    /// How many there should be.
    pub replicas: i32,
    /// What they should be made from.
    pub template: &'a str,
    /// The cohort that new ones are of.
    pub cohort: &'a str,
    /// More than `replicas` while one is exchanged.
    pub surge: i32,
    /// No other role has anything in motion, so one that serves may be exchanged.
    pub may_exchange: bool,
    /// The records as they are.
    pub records: &'a [PodRecord],
    /// The pods there are, by name.
    pub pods: &'a BTreeMap<String, &'a Pod>,
    /// The time.
    pub now: Timestamp,
}

/// What to do about them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Orders {
    /// The records as they should be, written first.
    pub records: Vec<PodRecord>,
    /// Pods to make, of these names.
    pub make: Vec<String>,
    /// Pods to delete.
    pub delete: Vec<String>,
    /// When to look again, if nothing happens before.
    pub again: Option<Timestamp>,
}

/// Decides. `fresh` gives names that no pod had.
pub fn decide(now: &Roster<'_>, mut fresh: impl FnMut() -> String) -> Orders {
    let mut orders = Orders::default();
    let mut failures: Vec<(i32, Option<Time>)> = vec![];
    for record in now.records {
        let mut record = record.clone();
        let pod = now.pods.get(&record.name).copied();
        match (record.phase, pod) {
            (PodPhase::Planned, Some(_)) => record.phase = PodPhase::Running,
            // It was deleted, and is gone. Another one takes its place, at once: somebody wanted that.
            (PodPhase::Running | PodPhase::Leaving, None) => continue,
            _ => {}
        }
        if let Some(pod) = pod {
            if pod.metadata.deletion_timestamp.is_some() {
                record.phase = PodPhase::Leaving;
            } else if has_ended(pod) {
                failures.push(failed(record.failures, now.now));
                orders.delete.push(record.name.clone());
                record.phase = PodPhase::Leaving;
            } else if record.failures > 0 && ready_for(pod, now.now).is_some_and(|s| s >= RECOVERED) {
                (record.failures, record.not_before) = (0, None);
            }
        }
        orders.records.push(record);
    }
    exchange(now, &mut orders);
    let staying = |r: &&PodRecord| r.phase != PodPhase::Leaving;
    let wanted = now.replicas + i32::from(has_outdated(now, &orders)) * now.surge.min(1);
    let there = i32::try_from(orders.records.iter().filter(staying).count()).unwrap_or(i32::MAX);
    for _ in there..wanted {
        let (failures, not_before) = failures.pop().unwrap_or_default();
        let (name, cohort) = (fresh(), now.cohort.to_owned());
        orders.records.push(PodRecord { name, cohort, phase: PodPhase::Planned, failures, not_before });
    }
    for _ in wanted..there {
        let Some(leaving) = first_to_go(now, &orders.records) else { break };
        orders.delete.push(orders.records[leaving].name.clone());
        orders.records[leaving].phase = PodPhase::Leaving;
    }
    // Those that were never made need no pod to end first.
    let made = |name: &str| now.pods.contains_key(name);
    orders.records.retain(|r| r.phase != PodPhase::Leaving || made(&r.name));
    orders.delete.retain(|name| made(name));
    for record in orders.records.iter().filter(|r| r.phase == PodPhase::Planned) {
        match &record.not_before {
            Some(at) if at.0 > now.now => {
                orders.again = Some(orders.again.map_or(at.0, |again| again.min(at.0)));
            }
            _ => orders.make.push(record.name.clone()),
        }
    }
    orders
}

/// Lets one pod go that is made from something else than it should be: first one that does not serve anyway; one that
/// serves only if all others do, and, with a surge, if there is one more than there should be.
fn exchange(now: &Roster<'_>, orders: &mut Orders) {
    let staying: Vec<usize> =
        (0..orders.records.len()).filter(|i| orders.records[*i].phase != PodPhase::Leaving).collect();
    let pod = |i: usize| now.pods.get(&orders.records[i].name).copied();
    let is_old = |i: &usize| pod(*i).is_some_and(|p| is_outdated(p, now.template));
    let serves = |i: &usize| pod(*i).is_some_and(is_ready);
    let idle_old = staying.iter().copied().find(|i| is_old(i) && !serves(i));
    let all_serve = staying.iter().all(serves) && orders.records.len() == staying.len();
    let enough = i32::try_from(staying.len()).is_ok_and(|n| n >= now.replicas + now.surge.min(1));
    let one = idle_old.or_else(|| {
        (now.may_exchange && all_serve && enough).then(|| staying.iter().copied().find(is_old)).flatten()
    });
    if let Some(i) = one {
        orders.delete.push(orders.records[i].name.clone());
        orders.records[i].phase = PodPhase::Leaving;
    }
}

fn has_outdated(now: &Roster<'_>, orders: &Orders) -> bool {
    let staying = orders.records.iter().filter(|r| r.phase != PodPhase::Leaving);
    staying.filter_map(|r| now.pods.get(&r.name)).any(|p| is_outdated(p, now.template))
}

/// Whom one less is asked of: what was never made, then what is outdated, then what does not serve, then the youngest.
fn first_to_go(now: &Roster<'_>, records: &[PodRecord]) -> Option<usize> {
    let key = |r: &PodRecord| {
        let pod = now.pods.get(&r.name);
        let age = pod.and_then(|p| p.metadata.creation_timestamp.as_ref()).map(|t| t.0);
        let serves = pod.is_some_and(|p| is_ready(p));
        let is_current = pod.is_some_and(|p| !is_outdated(p, now.template));
        (pod.is_some(), is_current, serves, std::cmp::Reverse(age), r.name.clone())
    };
    let staying = records.iter().enumerate().filter(|(_, r)| r.phase != PodPhase::Leaving);
    staying.min_by_key(|(_, r)| key(r)).map(|(i, _)| i)
}

/// Whether a pod is made from something else than it should be.
pub fn is_outdated(pod: &Pod, template: &str) -> bool {
    pod.labels().get(TEMPLATE).is_none_or(|t| t != template)
}

/// Whether all of a pod's conditions say that it serves.
pub fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && condition(pod, "Ready").is_some_and(|(is, _)| is)
}

/// Whether its agent says so, whatever the placement is.
pub fn is_agent_ready(pod: &Pod) -> bool {
    condition(pod, "ContainersReady").is_some_and(|(is, _)| is)
}

/// Whether the operator has said that what it should hold is loaded.
pub fn is_loaded(pod: &Pod) -> Option<bool> {
    condition(pod, LOADED).map(|(is, _)| is)
}

fn condition(pod: &Pod, kind: &str) -> Option<(bool, Option<Timestamp>)> {
    let all = pod.status.as_ref()?.conditions.as_ref()?;
    let found = all.iter().find(|c| c.type_ == kind)?;
    Some((found.status == "True", found.last_transition_time.as_ref().map(|t| t.0)))
}

fn ready_for(pod: &Pod, now: Timestamp) -> Option<i64> {
    let (is, since) = condition(pod, "Ready")?;
    since.filter(|_| is).map(|since| now.duration_since(since).as_secs())
}

/// Its containers will not run again: it was evicted, or its node does not take it.
fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

fn failed(before: i32, now: Timestamp) -> (i32, Option<Time>) {
    let seconds = BACK_OFF.saturating_mul(1 << before.clamp(0, 10)).min(LONGEST_BACK_OFF);
    (before.saturating_add(1), now.checked_add(SignedDuration::from_secs(seconds)).ok().map(Time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, template: &str, ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { TEMPLATE: template } },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": status }] },
        }))
        .unwrap()
    }

    fn record(name: &str, phase: PodPhase) -> PodRecord {
        PodRecord { name: name.into(), cohort: "c1".into(), phase, failures: 0, not_before: None }
    }

    /// A role that is asked for its orders, which are carried out, until nothing changes.
    struct Play {
        records: Vec<PodRecord>,
        pods: Vec<Pod>,
        made: u32,
        /// The fewest that there were at any time.
        least: usize,
    }

    impl Play {
        fn step(&mut self, replicas: i32, template: &str, surge: i32) -> Orders {
            let pods = self.pods.iter().map(|p| (p.name_any(), p)).collect();
            let roster = Roster {
                replicas,
                template,
                cohort: "c1",
                surge,
                may_exchange: true,
                records: &self.records,
                pods: &pods,
                now: Timestamp::UNIX_EPOCH,
            };
            let mut made = self.made;
            let orders = decide(&roster, || {
                made += 1;
                format!("p{made}")
            });
            self.made = made;
            self.records.clone_from(&orders.records);
            self.pods.retain(|p| !orders.delete.contains(&p.name_any()));
            self.least = self.least.min(self.pods.len());
            for name in &orders.make {
                if !self.pods.iter().any(|p| p.name_any() == *name) {
                    self.pods.push(pod(name, template, true));
                }
            }
            orders
        }

        fn settle(&mut self, replicas: i32, template: &str, surge: i32) -> usize {
            self.least = usize::MAX;
            for _ in 0..40 {
                let before = (self.records.clone(), self.pods.len());
                self.step(replicas, template, surge);
                if before == (self.records.clone(), self.pods.len()) {
                    break;
                }
            }
            assert_eq!(self.pods.len(), replicas as usize);
            assert!(self.pods.iter().all(|p| !is_outdated(p, template)));
            self.least
        }
    }

    #[test]
    fn there_are_as_many_as_there_should_be_and_an_exchange_costs_one_at_most() {
        let mut play = Play { records: vec![], pods: vec![], made: 0, least: 0 };
        play.settle(3, "a", 0);
        assert_eq!(play.settle(3, "b", 0), 2, "one less for a while");
        assert_eq!(play.settle(3, "c", 1), 3, "never less");
        play.settle(1, "c", 0);
        play.settle(4, "c", 0);
        play.settle(0, "c", 0);
    }

    #[test]
    fn a_name_is_on_record_before_its_pod_and_used_once() {
        let mut play = Play { records: vec![], pods: vec![], made: 0, least: 0 };
        let first = play.step(2, "a", 0);
        assert_eq!(first.make, ["p1", "p2"]);
        assert!(first.records.iter().all(|r| r.phase == PodPhase::Planned));
        // The cache is stale: the pods were made, and are not seen.
        play.pods.clear();
        assert_eq!(play.step(2, "a", 0).make, ["p1", "p2"], "the same once more");
    }

    #[test]
    fn a_pod_that_cannot_end_blocks_nothing() {
        let mut stuck = pod("p1", "a", true);
        stuck.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let records = vec![record("p1", PodPhase::Running)];
        let mut play = Play { records, pods: vec![stuck], made: 1, least: 0 };
        let orders = play.step(1, "a", 0);
        assert_eq!((orders.make, orders.delete), (vec!["p2".into()], vec![]));
        assert_eq!(orders.records[0].phase, PodPhase::Leaving);
    }

    #[test]
    fn what_failed_is_made_anew_later_each_time() {
        let mut failed = pod("p1", "a", false);
        failed.status.as_mut().unwrap().phase = Some("Failed".into());
        let mut before = record("p1", PodPhase::Running);
        before.failures = 2;
        let mut play = Play { records: vec![before], pods: vec![failed], made: 1, least: 0 };
        let orders = play.step(1, "a", 0);
        assert_eq!((orders.delete, orders.make), (vec!["p1".into()], vec![]));
        let next = orders.records.iter().find(|r| r.name == "p2").unwrap();
        assert_eq!(next.failures, 3);
        assert_eq!(orders.again, Some(Timestamp::UNIX_EPOCH + SignedDuration::from_secs(40)));
    }

    #[test]
    fn an_outdated_one_that_does_not_serve_goes_first_and_does_not_wait_for_others() {
        let pods = vec![pod("p1", "a", true), pod("p2", "a", false), pod("p3", "a", false)];
        let records = ["p1", "p2", "p3"].map(|n| record(n, PodPhase::Running)).to_vec();
        let mut play = Play { records, pods, made: 3, least: 0 };
        assert_eq!(play.step(3, "b", 0).delete, ["p2"]);
    }
}
