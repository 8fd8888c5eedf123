//! From objects to a table. What is deleted stays in the table until something takes its place: rows and workers leave by
//! a newer object that lacks them, never because somebody deleted the one that had them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::parse::{SliceText, TableText, WorkerText, build};
use super::super::{Table, TableError};
use super::objects::Object;

/// Objects, by name.
type Named = BTreeMap<String, Object>;

/// Objects that are no table together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistent {
    /// Two lists of workers of one cohort.
    #[error(
        "ExpertPlacements {first} and {second} both have the list of workers of cohort {cohort}: one may"
    )]
    Lists {
        /// The cohort.
        cohort: String,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// Units of one are no units of another.
    #[error("ExpertPlacement {name} is made for experts in {segments} segments, and others for {others}")]
    Segments {
        /// The object.
        name: String,
        /// Its segments.
        segments: u8,
        /// Those of the others.
        others: u8,
    },
    /// Some of it is wrong. Workers and rows go by names, and one of an unknown worker is the usual case.
    #[error("ExpertPlacement {name}: {why}")]
    Object {
        /// The object.
        name: String,
        /// What is wrong.
        why: TableError,
    },
    /// All of it together.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// A list of workers.
struct List<'a> {
    /// The object that has it.
    name: &'a str,
    generation: u64,
    workers: &'a [WorkerText],
}

/// The list of each cohort.
fn lists(objects: &Named) -> Result<BTreeMap<&str, List<'_>>, Inconsistent> {
    let mut lists: BTreeMap<&str, List<'_>> = BTreeMap::new();
    for (name, object) in objects {
        let Some(workers) = &object.workers else { continue };
        let list = List { name, generation: object.generation, workers };
        if let Some(first) = lists.insert(&object.cohort, list) {
            return Err(Inconsistent::Lists {
                cohort: object.cohort.clone(),
                first: first.name.into(),
                second: name.clone(),
            });
        }
    }
    Ok(lists)
}

/// A worker's table: the list and all slices of its cohort. None while there has never been a list.
///
/// # Errors
/// Why the objects are no table; the one from before is the better one then.
pub(super) fn of_cohort(objects: &Named, before: &Table) -> Result<Option<Table>, Inconsistent> {
    let (generation, workers) = match lists(objects)?.into_values().next() {
        Some(list) => (list.generation, list.workers.to_vec()),
        None if before.generation > 0 => {
            (before.generation, before.workers.iter().map(WorkerText::of).collect())
        }
        None => return Ok(None),
    };
    let segments = objects.values().next().map(|o| o.segments).or(before.segments);
    let other = objects.iter().find(|(_, o)| Some(o.segments) != segments);
    if let (Some((name, object)), Some(others)) = (other, segments) {
        return Err(Inconsistent::Segments { name: name.clone(), segments: object.segments, others });
    }

    let mut slices: Vec<(&str, Arc<SliceText>)> = objects
        .iter()
        .filter_map(|(name, o)| o.slice.as_ref().map(|s| (name.as_str(), Arc::clone(s))))
        .collect();
    let has_place = |blocks: &std::ops::Range<u16>, slices: &[(&str, Arc<SliceText>)]| {
        slices.iter().all(|(_, s)| s.blocks[1] <= blocks.start || blocks.end <= s.blocks[0])
    };
    for old in &before.slices {
        if has_place(&old.blocks, &slices) {
            slices.push(("that was deleted", Arc::new(SliceText::of(old, before))));
        }
    }
    slices.sort_by_key(|(_, s)| s.blocks);
    let (names, slices): (Vec<&str>, Vec<_>) = slices.into_iter().unzip();
    let built = build(TableText { generation, segments, workers, slices });
    built.map(Some).map_err(|why| named(why, &names))
}

/// Says which object it is, where an index of a slice would say nothing.
fn named(why: TableError, names: &[&str]) -> Inconsistent {
    let slice = match &why {
        TableError::Unit { slice, .. } | TableError::Slice { slice, .. } => names.get(*slice),
        _ => None,
    };
    match slice {
        Some(name) => Inconsistent::Object { name: (*name).to_owned(), why },
        None => Inconsistent::Table(why),
    }
}

/// A gateway's table: the workers of all cohorts, and no rows. A cohort without a list is gone, but not the last one: a
/// gateway without any is one that has lost its placement. None while there has never been a list.
///
/// # Errors
/// As of [`of_cohort`].
pub(super) fn of_all(objects: &Named, before: &Table) -> Result<Option<Table>, Inconsistent> {
    let lists = lists(objects)?;
    let Some(newest) = lists.values().map(|list| list.generation).max() else { return Ok(None) };
    let workers = lists.into_values().flat_map(|list| list.workers.to_vec()).collect();
    let mut table = build(TableText { generation: 0, segments: None, workers, slices: vec![] })?;
    // The lists' generations say nothing of their cohorts coming and going. Nobody else goes by a gateway's.
    table.generation = match table.workers == before.workers && before.generation > 0 {
        true => before.generation,
        false => newest.max(before.generation + 1),
    };
    Ok(Some(table))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use sluice_core::placement::ReplicaState;

    use super::super::Scope;
    use super::super::testing::{list, object, scope, slice};
    use super::*;
    use crate::table::{parse, render};

    fn objects(all: &[Value]) -> Named {
        let scope = Scope { cohort: None, ..scope() };
        all.iter()
            .map(|o| {
                let o = object(o);
                (o.metadata.name.clone().unwrap(), Object::read(&o, &scope).unwrap())
            })
            .collect()
    }

    /// Takes what may be taken, as the source does.
    fn follow(before: &Table, all: &[Value]) -> Result<Table, String> {
        let table = of_cohort(&objects(all), before).map_err(|e| e.to_string())?.unwrap();
        before.check(&table).map_err(|e| e.to_string())?;
        assert_eq!(parse(&render(&table)).unwrap(), table, "it can be kept");
        Ok(table)
    }

    #[test]
    fn objects_of_a_cohort_are_a_table_together() {
        let mut rows = slice("s1", 6, [1, 2], &["e0"]);
        rows["spec"]["units"][0]["state"] = "Draining".into();
        rows["spec"]["units"][0]["fraction"] = 2500.into();
        let all = [list("l", 9, &["a0", "e0"]), rows, slice("s0", 5, [0, 1], &["e0"])];
        let table = follow(&Table::default(), &all).unwrap();
        assert_eq!((table.generation, table.segments, table.workers.len()), (9, Some(8), 2));
        assert_eq!(table.slices.iter().map(|s| s.generation).collect::<Vec<_>>(), [5, 6]);
        let row = table.slices[1].replicas[0];
        assert_eq!((row.state, row.fraction), (ReplicaState::Draining, 0.25));
        assert_eq!(table.slices[0].replicas[0].fraction, 1.0);

        // One object may have all of it.
        let mut whole = list("l", 9, &["a0", "e0"]);
        whole["spec"]["blocks"] = json!([0, 2]);
        assert_eq!(follow(&Table::default(), &[whole]).unwrap().slices[0].generation, 9);
    }

    #[test]
    fn what_is_deleted_stays_until_something_takes_its_place() {
        let l = list("l", 9, &["a0", "e0"]);
        let (s0, s1) = (slice("s0", 5, [0, 2], &["e0"]), slice("s1", 6, [2, 3], &["e0"]));
        let table = follow(&Table::default(), &[l.clone(), s0.clone(), s1.clone()]).unwrap();
        for left in [vec![], vec![l.clone()], vec![s0.clone(), s1.clone()], vec![l.clone(), s1.clone()]] {
            assert_eq!(follow(&table, &left), Ok(table.clone()), "{left:?}");
        }
        // In other ranges: taken when all of them are there.
        let half = slice("s2", 7, [0, 1], &["e0"]);
        let why = follow(&table, &[l.clone(), half.clone(), s1.clone()]).unwrap_err();
        assert!(why.contains("no slice has block 1"), "{why}");
        let other = slice("s3", 7, [1, 2], &["e0"]);
        assert_eq!(follow(&table, &[l, half, other, s1]).unwrap().slices.len(), 3);
    }

    #[test]
    fn there_is_no_table_before_the_list() {
        let none = Table::default();
        assert_eq!(of_cohort(&objects(&[]), &none), Ok(None));
        assert_eq!(of_cohort(&objects(&[slice("s", 1, [0, 1], &["e0"])]), &none), Ok(None));
        assert_eq!(of_all(&objects(&[]), &none), Ok(None));
        let empty = of_all(&objects(&[list("l", 3, &[])]), &none).unwrap().unwrap();
        assert_eq!((empty.generation, empty.workers.len()), (3, 0), "a list of none is one");
    }

    #[test]
    fn what_is_no_table_is_said_with_its_object() {
        let l = || list("l", 9, &["a0", "e0"]);
        let with = |o: Value| {
            of_cohort(&objects(&[l(), slice("s0", 1, [0, 2], &["e0"]), o]), &Table::default())
                .unwrap_err()
                .to_string()
        };
        let mut fours = slice("s1", 1, [2, 3], &["e0"]);
        fours["spec"]["segments"] = 4.into();
        for (o, says) in [
            (slice("s1", 1, [2, 3], &["e7"]), "ExpertPlacement s1: slices[1].units[0]: \"e7\" is no worker"),
            (slice("s1", 1, [2, 3], &["a0"]), "\"a0\" is no worker of this table that holds experts"),
            (slice("s1", 1, [1, 3], &["e0"]), "ExpertPlacement s1: slices[1]: blocks are"),
            (list("l2", 4, &["e9"]), "ExpertPlacements l and l2 both have the list of workers of cohort c1"),
            (fours, "ExpertPlacement s1 is made for experts in 4 segments, and others for 8"),
        ] {
            let said = with(o);
            assert!(said.contains(says), "{said}");
        }
    }

    #[test]
    fn a_gateway_has_the_workers_of_all_cohorts_under_generations_that_rise() {
        let of = |cohort: &str, mut l: Value, first: u32| {
            l["spec"]["cohort"] = cohort.into();
            for (i, w) in l["spec"]["workers"].as_array_mut().unwrap().iter_mut().enumerate() {
                w["number"] = (first + i as u32).into();
            }
            l
        };
        let mut before = Table::default();
        let (old, new) = (of("c1", list("l1", 900, &["a0", "e0"]), 0), of("c2", list("l2", 10, &["b0"]), 7));
        let grown = of("c2", list("l2", 11, &["b0", "b1"]), 7);
        let steps = [
            (vec![old.clone()], 900, 2),
            // Rows are for workers, and not even looked at.
            (vec![old.clone(), slice("s", 1, [0, 1], &["nobody"])], 900, 2),
            (vec![old.clone(), new.clone()], 901, 3),
            (vec![old, grown.clone()], 902, 4),
            (vec![grown], 903, 2),
        ];
        for (all, generation, workers) in steps {
            let table = of_all(&objects(&all), &before).unwrap().unwrap();
            assert_eq!((table.generation, table.workers.len()), (generation, workers));
            assert!(table.slices.is_empty());
            before.check(&table).unwrap();
            before = table;
        }
        assert_eq!(of_all(&objects(&[]), &before), Ok(None), "the last list stays");
        let twice = [of("c1", list("l1", 1, &["a0"]), 0), of("c2", list("l2", 1, &["b0"]), 0)];
        assert!(of_all(&objects(&twice), &before).unwrap_err().to_string().contains("used twice"));
    }
}
