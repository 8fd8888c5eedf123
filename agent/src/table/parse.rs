//! Tables as text: YAML, or JSON, which is YAML.
//!
//! ```yaml
//! generation: 1           # of the list of workers: rises whenever it changes (0 if left out)
//! segments: 8             # of an expert's inner dimension; with it, processes with another --segments refuse the table
//! workers:
//! - {number: 0, name: a0, role: attention, address: "10.0.0.1:7070"}
//! - {number: 1, name: e0, role: experts, address: "10.0.0.2:7070"}
//! slices:
//! - blocks: [0, 4]        # first, and one past the last
//!   generation: 1         # rises whenever rows of this slice change
//!   units:
//!   - {worker: e0, block: 0, expert: 5, slice: [0, 8], state: Active, fraction: 1.0}
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluice_core::ids::{Slice, Unit, WorkerId};
use sluice_core::placement::{PlacementSlice, Replica, ReplicaState};
use sluice_identity::{role_name, role_of};

use super::{Member, Table};

/// Numbers of workers are indices: a table with larger ones is a mistake.
const NUMBERS: u32 = 1 << 16;

/// A table that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Not YAML, or not of this form.
    #[error("it is not a placement table: {0}")]
    Form(String),
    /// The number of segments.
    #[error("segments {0} is none of 1, 2, 4 and 8")]
    Segments(u8),
    /// A worker.
    #[error("worker {name:?}: {why}")]
    Worker {
        /// Which.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A row.
    #[error("slices[{slice}].units[{unit}]: {why}")]
    Unit {
        /// The slice's index.
        slice: usize,
        /// The row's index.
        unit: usize,
        /// What is wrong.
        why: String,
    },
    /// A slice.
    #[error("slices[{slice}]: {why}")]
    Slice {
        /// Its index.
        slice: usize,
        /// What is wrong.
        why: String,
    },
}

/// A table in words: what each source has it as before it is checked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TableText {
    #[serde(default)]
    pub generation: u64,
    #[serde(default)]
    pub segments: Option<u8>,
    pub workers: Vec<WorkerText>,
    #[serde(default)]
    pub slices: Vec<Arc<SliceText>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkerText {
    pub number: u32,
    pub name: String,
    pub role: String,
    pub address: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SliceText {
    pub blocks: [u16; 2],
    pub generation: u64,
    pub units: Vec<UnitText>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnitText {
    pub worker: String,
    pub block: u16,
    pub expert: u16,
    pub slice: [u8; 2],
    #[serde(default)]
    pub state: StateText,
    #[serde(default = "whole")]
    pub fraction: f32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum StateText {
    Joining,
    #[default]
    Active,
    Draining,
}

fn whole() -> f32 {
    1.0
}

/// Reads a table.
///
/// # Errors
/// What is wrong, and where.
pub fn parse(text: &str) -> Result<Table, TableError> {
    build(serde_saphyr::from_str(text).map_err(|e| TableError::Form(e.to_string()))?)
}

/// Makes a table of what is said.
///
/// # Errors
/// What is wrong, and where.
pub(super) fn build(table: TableText) -> Result<Table, TableError> {
    if let Some(segments) = table.segments.filter(|s| ![1, 2, 4, 8].contains(s)) {
        return Err(TableError::Segments(segments));
    }
    let mut workers: Vec<Member> = vec![];
    for w in table.workers {
        let wrong = |why: String| TableError::Worker { name: w.name.clone(), why };
        if w.name.is_empty() || workers.iter().any(|o| o.name == w.name || o.number.0 == w.number) {
            return Err(wrong(format!("its name is empty, or name or number {} are used twice", w.number)));
        }
        if w.number >= NUMBERS {
            return Err(wrong(format!("number {} is too large: count from 0", w.number)));
        }
        let role = role_of(&w.role).filter(|r| r.is_rank() || r.is_host());
        let role =
            role.ok_or_else(|| wrong(format!("role {:?} is none of attention, experts, hybrid", w.role)))?;
        workers.push(Member { number: WorkerId(w.number), name: w.name, role, address: w.address });
    }
    let numbers: BTreeMap<&str, WorkerId> =
        workers.iter().filter(|w| w.role.is_host()).map(|w| (w.name.as_str(), w.number)).collect();
    let mut slices = vec![];
    let mut end = 0;
    for (index, s) in table.slices.iter().enumerate() {
        let wrong = |why: &str| TableError::Slice { slice: index, why: why.into() };
        if s.blocks[0] >= s.blocks[1] || s.blocks[0] < end {
            return Err(wrong(
                "blocks are [first, one past the last], in order, and no block is in two slices",
            ));
        }
        if s.generation == 0 {
            return Err(wrong("generations begin at 1"));
        }
        end = s.blocks[1];
        slices.push(Arc::new(slice(index, s, &numbers)?));
    }
    Ok(Table { generation: table.generation, segments: table.segments, workers, slices })
}

fn slice(
    index: usize,
    s: &SliceText,
    numbers: &BTreeMap<&str, WorkerId>,
) -> Result<PlacementSlice, TableError> {
    let blocks = s.blocks[0]..s.blocks[1];
    let mut seen = BTreeSet::new();
    let row = |(i, u): (usize, &UnitText)| {
        let wrong = |why: String| TableError::Unit { slice: index, unit: i, why };
        let worker = *numbers
            .get(u.worker.as_str())
            .ok_or_else(|| wrong(format!("{:?} is no worker of this table that holds experts", u.worker)))?;
        if !blocks.contains(&u.block) {
            return Err(wrong(format!("block {} is not of this slice", u.block)));
        }
        let [lo, hi] = u.slice;
        if lo >= hi || hi > 8 {
            return Err(wrong(format!("slice [{lo}, {hi}] is no range of the (at most 8) segments")));
        }
        if !(u.fraction.is_finite() && u.fraction >= 0.0) {
            return Err(wrong(format!("fraction {} is no part of anything", u.fraction)));
        }
        let unit = Unit { block: u.block, expert: u.expert, slice: Slice { lo, hi } };
        if !seen.insert((worker, unit)) {
            return Err(wrong(format!("{} holds this unit already", u.worker)));
        }
        let state = match u.state {
            StateText::Joining => ReplicaState::Joining,
            StateText::Active => ReplicaState::Active,
            StateText::Draining => ReplicaState::Draining,
        };
        Ok(Replica { worker, unit, state, fraction: u.fraction })
    };
    let replicas = s.units.iter().enumerate().map(row).collect::<Result<_, _>>()?;
    Ok(PlacementSlice { blocks: s.blocks[0]..s.blocks[1], generation: s.generation, replicas })
}

impl WorkerText {
    /// Of a worker of a table.
    pub fn of(w: &Member) -> Self {
        Self {
            number: w.number.0,
            name: w.name.clone(),
            role: role_name(w.role).into(),
            address: w.address.clone(),
        }
    }
}

impl SliceText {
    /// Of a slice of a table, whose workers have names.
    pub fn of(s: &PlacementSlice, table: &Table) -> Self {
        let names: BTreeMap<WorkerId, &str> =
            table.workers.iter().map(|w| (w.number, w.name.as_str())).collect();
        let unit = |r: &Replica| UnitText {
            worker: names.get(&r.worker).copied().unwrap_or_default().into(),
            block: r.unit.block,
            expert: r.unit.expert,
            slice: [r.unit.slice.lo, r.unit.slice.hi],
            state: match r.state {
                ReplicaState::Joining => StateText::Joining,
                ReplicaState::Active => StateText::Active,
                ReplicaState::Draining => StateText::Draining,
            },
            fraction: r.fraction,
        };
        Self {
            blocks: [s.blocks.start, s.blocks.end],
            generation: s.generation,
            units: s.replicas.iter().map(unit).collect(),
        }
    }
}

/// Writes a table, one row a line.
pub fn render(table: &Table) -> String {
    let line = |value: serde_json::Value| value.to_string();
    let mut out = format!("generation: {}\n", table.generation);
    if let Some(segments) = table.segments {
        out += &format!("segments: {segments}\n");
    }
    out += if table.workers.is_empty() { "workers: []\n" } else { "workers:\n" };
    for w in &table.workers {
        let text = WorkerText::of(w);
        out += &format!("- {}\n", line(serde_json::to_value(text).unwrap_or_default()));
    }
    out += if table.slices.is_empty() { "slices: []\n" } else { "slices:\n" };
    for s in &table.slices {
        out += &format!("- blocks: [{}, {}]\n  generation: {}\n", s.blocks.start, s.blocks.end, s.generation);
        out += if s.replicas.is_empty() { "  units: []\n" } else { "  units:\n" };
        for text in SliceText::of(s, table).units {
            out += &format!("  - {}\n", line(serde_json::to_value(text).unwrap_or_default()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
generation: 4
segments: 8
workers:
- {number: 0, name: a0, role: attention, address: "10.0.0.1:7070"}
- {number: 7, name: e0, role: experts, address: "10.0.0.2:7070"}
slices:
- blocks: [0, 2]
  generation: 3
  units:
  - {worker: e0, block: 0, expert: 5, slice: [0, 8], state: Joining, fraction: 0.5}
  - {worker: e0, block: 1, expert: 5, slice: [0, 8]}
- blocks: [2, 3]
  generation: 1
  units: []
"#;

    #[test]
    fn what_is_written_is_what_was_read() {
        let table = parse(TEXT).unwrap();
        assert_eq!((table.generation, table.segments), (4, Some(8)));
        assert_eq!(table.slices[0].replicas[1].state, ReplicaState::Active);
        assert_eq!(table.slices[0].replicas[0].worker, WorkerId(7));
        assert_eq!(parse(&render(&table)).unwrap(), table);
        assert_eq!(parse(&render(&Table::default())).unwrap(), Table::default());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let with = |from: &str, to: &str| parse(&TEXT.replace(from, to)).unwrap_err().to_string();
        for (from, to, says) in [
            ("worker: e0, block: 1", "worker: a0, block: 1", "slices[0].units[1]: \"a0\""),
            ("block: 1, expert: 5", "block: 2, expert: 5", "block 2 is not of this slice"),
            ("block: 1, expert", "block: 0, expert", "already"),
            ("slice: [0, 8]}", "slice: [8, 8]}", "slice [8, 8]"),
            ("fraction: 0.5", "fraction: -1", "fraction"),
            ("number: 7", "number: 0", "e0"),
            ("role: experts", "role: gateway", "gateway"),
            ("blocks: [2, 3]", "blocks: [1, 3]", "slices[1]"),
            ("generation: 1", "generation: 0", "begin at 1"),
            ("segments: 8", "segments: 3", "segments 3 is none of"),
            ("name: e0", "nome: e0", "nome"),
            ("workers:", "workers: [", "not a placement table"),
        ] {
            let said = with(from, to);
            assert!(said.contains(says), "{from} -> {to}: {said}");
        }
    }
}
