//! Whether an engine can serve a table. A row that its worker would never load, or that no rank would ever ask for, is
//! a table for another engine: it is refused with the row's place, not left to be found by tokens that wait.

use sluice_core::ids::Slice;
use sluice_core::placement::Replica;

use super::Table;
use crate::model::spec::ModelSpec;

/// What of an engine a table is held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// For each block, whether it has experts.
    pub moe: Vec<bool>,
    /// Experts of a block.
    pub experts: u16,
    /// Segments of an expert's inner dimension.
    pub segments: u8,
    /// Of a rank: the most slices of an expert that it has return rows for.
    pub parts: Option<u8>,
}

/// A table that an engine cannot serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It was made for another number of segments.
    #[error(
        "it is made for experts in {theirs} segments, and this process runs with --segments {ours}: plan with --segments \
         {ours}, or start all processes with --segments {theirs}"
    )]
    Segments {
        /// The table's.
        theirs: u8,
        /// The engine's.
        ours: u8,
    },
    /// It has blocks that the model has not.
    #[error(
        "slices[{slice}]: it ends with block {end}, and the model has {blocks}: is it for another --model?"
    )]
    Blocks {
        /// The slice's index.
        slice: usize,
        /// One past its last block.
        end: u16,
        /// The model's blocks.
        blocks: usize,
    },
    /// A row.
    #[error("slices[{slice}].units[{unit}]: {why}")]
    Unit {
        /// The slice's index.
        slice: usize,
        /// The row's index.
        unit: usize,
        /// What is wrong, and what to change.
        why: String,
    },
}

impl Engine {
    /// Of a model. `parts`: see [`Self::parts`].
    pub fn of(spec: &ModelSpec, segments: u8, parts: Option<u8>) -> Self {
        let moe = spec.blocks.iter().map(|b| b.feed_forward.moe());
        let experts = moe.clone().flatten().next().map_or(0, |m| m.experts as u16);
        Self { moe: moe.map(|m| m.is_some()).collect(), experts, segments, parts }
    }

    fn wrong(&self, row: &Replica) -> Option<String> {
        let Self { experts, segments, .. } = *self;
        let (block, slice) = (row.unit.block, row.unit.slice);
        let Slice { lo, hi } = slice;
        if self.moe.get(usize::from(block)) != Some(&true) {
            return Some(format!("block {block} of the model has no experts: is it for another --model?"));
        }
        if row.unit.expert >= experts {
            let expert = row.unit.expert;
            return Some(format!(
                "expert {expert}, and a block of the model has {experts}: is it for another --model?"
            ));
        }
        if hi > segments {
            return Some(format!(
                "slice [{lo}, {hi}], and this process runs with --segments {segments}: plan with --segments {segments}"
            ));
        }
        if !slice.cuts(segments) {
            return Some(format!(
                "slice [{lo}, {hi}] is no whole, half, quarter or eighth of an expert in {segments} segments"
            ));
        }
        let slices = slice.count(segments);
        self.parts.filter(|parts| slices > *parts).map(|parts| {
            format!(
                "slice [{lo}, {hi}] is one of {slices} of its expert, and this rank was started for {parts} at most: \
                 start it with --slices {slices}"
            )
        })
    }
}

impl Table {
    /// Whether an engine can serve it.
    ///
    /// # Errors
    /// The first row that it cannot, and which flag to change.
    pub fn fits(&self, engine: &Engine) -> Result<(), Misfit> {
        if let Some(theirs) = self.segments.filter(|s| *s != engine.segments) {
            return Err(Misfit::Segments { theirs, ours: engine.segments });
        }
        for (slice, s) in self.slices.iter().enumerate() {
            if usize::from(s.blocks.end) > engine.moe.len() {
                return Err(Misfit::Blocks { slice, end: s.blocks.end, blocks: engine.moe.len() });
            }
            for (unit, row) in s.replicas.iter().enumerate() {
                if let Some(why) = engine.wrong(row) {
                    return Err(Misfit::Unit { slice, unit, why });
                }
            }
        }
        Ok(())
    }

    /// The most slices that an expert of it is cut into.
    pub fn finest(&self, segments: u8) -> u8 {
        let cuts = self.slices.iter().flat_map(|s| &s.replicas).map(|r| r.unit.slice);
        cuts.filter(|s| s.cuts(segments)).map(|s| s.count(segments)).max().unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    const TEXT: &str = r#"
workers:
- {number: 0, name: a0, role: attention, address: "h:1"}
- {number: 1, name: e0, role: experts, address: "h:2"}
slices:
- {blocks: [0, 2], generation: 1, units: [{worker: e0, block: 1, expert: 0, slice: [0, 8]}]}
- {blocks: [2, 3], generation: 1, units: [{worker: e0, block: 2, expert: 3, slice: [0, 8]}, {worker: e0, block: 2, expert: 3, slice: [4, 8]}]}
"#;

    fn engine() -> Engine {
        Engine { moe: vec![false, true, true], experts: 4, segments: 8, parts: Some(2) }
    }

    #[test]
    fn what_an_engine_can_serve_fits() {
        let table = parse(TEXT).unwrap();
        assert_eq!(table.fits(&engine()), Ok(()));
        assert_eq!((table.finest(8), table.finest(4), Table::default().finest(8)), (2, 1, 1));
        let quarters = parse(&TEXT.replace("slice: [4, 8]", "slice: [2, 4]")).unwrap();
        assert_eq!(quarters.fits(&Engine { parts: None, ..engine() }), Ok(()), "no rank: it only holds them");
        assert_eq!(quarters.finest(8), 4);
    }

    #[test]
    fn what_nobody_could_hold_or_ask_for_is_refused_with_its_place_and_the_flag() {
        for (from, to, engine, says) in [
            ("[4, 8]", "[2, 4]", engine(), "slices[1].units[1]: slice [2, 4] is one of 4"),
            ("[4, 8]", "[2, 4]", engine(), "--slices 4"),
            ("[4, 8]", "[1, 3]", engine(), "slices[1].units[1]: slice [1, 3] is no whole, half"),
            ("[4, 8]", "[0, 3]", engine(), "slice [0, 3]"),
            ("", "", Engine { segments: 4, ..engine() }, "slices[0].units[0]: slice [0, 8]"),
            ("", "", Engine { segments: 4, ..engine() }, "plan with --segments 4"),
            ("workers:", "segments: 4\nworkers:", engine(), "start all processes with --segments 4"),
            ("block: 1, ", "block: 0, ", engine(), "slices[0].units[0]: block 0 of the model has no experts"),
            ("expert: 0", "expert: 4", engine(), "expert 4, and a block of the model has 4"),
            ("[2, 3]", "[2, 4]", engine(), "slices[1]: it ends with block 4, and the model has 3"),
        ] {
            let said = parse(&TEXT.replace(from, to)).unwrap().fits(&engine).unwrap_err().to_string();
            assert!(said.contains(says), "{from} -> {to}: {said}");
        }
    }
}
