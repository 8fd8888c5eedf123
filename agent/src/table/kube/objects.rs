//! The ExpertPlacements that there are, as the watch tells of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::core::DynamicObject;
use kube::runtime::watcher::Event;
use serde::Deserialize;

use super::super::parse::{SliceText, StateText, UnitText, WorkerText};
use super::Scope;

/// An object's spec, as far as agents need it. Read leniently, unlike the type of the API: a newer operator may write
/// more than this release knows of.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    deployment: String,
    cohort: String,
    segments: u8,
    generation: u64,
    workers: Option<Vec<Listed>>,
    blocks: Option<[u16; 2]>,
    #[serde(default)]
    units: Vec<Row>,
}

#[derive(Deserialize)]
struct Listed {
    number: u32,
    name: String,
    role: String,
    address: String,
}

#[derive(Deserialize)]
struct Row {
    worker: String,
    block: u16,
    expert: u16,
    slice: [u8; 2],
    #[serde(default)]
    state: StateText,
    #[serde(default = "whole")]
    fraction: u16,
}

/// What the fractions of the API are parts of.
const WHOLE: u16 = 10_000;

fn whole() -> u16 {
    WHOLE
}

/// One ExpertPlacement.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Object {
    pub cohort: String,
    pub segments: u8,
    pub generation: u64,
    /// The list of workers, if this object has it.
    pub workers: Option<Vec<WorkerText>>,
    /// The rows of its blocks, if it has any.
    pub slice: Option<Arc<SliceText>>,
}

impl Object {
    /// Reads one that was selected by its labels.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(object: &DynamicObject, scope: &Scope) -> Result<Self, String> {
        let spec = object.data.get("spec").ok_or("it has no spec")?;
        let spec = Spec::deserialize(spec).map_err(|e| format!("its spec cannot be read: {e}"))?;
        let fits =
            spec.deployment == scope.deployment && scope.cohort.as_ref().is_none_or(|c| *c == spec.cohort);
        if !fits {
            let Spec { deployment, cohort, .. } = spec;
            return Err(format!(
                "its labels and its spec differ: the spec is of {deployment}, cohort {cohort}"
            ));
        }
        let listed =
            |w: Listed| WorkerText { number: w.number, name: w.name, role: w.role, address: w.address };
        let row = |u: Row| UnitText {
            worker: u.worker,
            block: u.block,
            expert: u.expert,
            slice: u.slice,
            state: u.state,
            fraction: f32::from(u.fraction) / f32::from(WHOLE),
        };
        let generation = spec.generation;
        Ok(Self {
            cohort: spec.cohort,
            segments: spec.segments,
            generation,
            workers: spec.workers.map(|workers| workers.into_iter().map(listed).collect()),
            slice: spec.blocks.map(|blocks| {
                let units = spec.units.into_iter().map(row).collect();
                Arc::new(SliceText { blocks, generation, units })
            }),
        })
    }
}

/// All objects, by name.
#[derive(Debug, Default)]
pub(super) struct Objects {
    live: BTreeMap<String, Object>,
    /// Those of a list that is not over.
    listing: BTreeMap<String, Object>,
    /// What is wrong with objects, as it was said.
    complaints: BTreeMap<String, String>,
}

impl Objects {
    /// Takes an event, and says whether it changed anything. An object that cannot be read is as it was before.
    pub fn take(&mut self, event: Event<DynamicObject>, scope: &Scope) -> bool {
        match event {
            Event::Init => {
                self.listing.clear();
                false
            }
            Event::InitApply(object) => {
                let name = object.metadata.name.clone().unwrap_or_default();
                if let Some(read) = self.read(&object, scope).or_else(|| self.live.get(&name).cloned()) {
                    self.listing.insert(name, read);
                }
                false
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listing);
                let has_changed = self.live != listed;
                self.live = listed;
                has_changed
            }
            Event::Apply(object) => {
                let Some(read) = self.read(&object, scope) else { return false };
                let name = object.metadata.name.unwrap_or_default();
                let before = self.live.insert(name.clone(), read);
                before.as_ref() != self.live.get(&name)
            }
            Event::Delete(object) => {
                let name = object.metadata.name.unwrap_or_default();
                self.complaints.remove(&name);
                self.live.remove(&name).is_some()
            }
        }
    }

    fn read(&mut self, object: &DynamicObject, scope: &Scope) -> Option<Object> {
        let name = object.metadata.name.clone().unwrap_or_default();
        match Object::read(object, scope) {
            Ok(read) => {
                self.complaints.remove(&name);
                Some(read)
            }
            Err(why) => {
                if self.complaints.get(&name) != Some(&why) {
                    tracing::error!("ExpertPlacement {name} is left out: {why}");
                    self.complaints.insert(name, why);
                }
                None
            }
        }
    }

    /// Those there are.
    pub fn live(&self) -> &BTreeMap<String, Object> {
        &self.live
    }
}
