//! Placement played out: agents that load what they are told, a step late, and pods that come and go.

use super::*;
use crate::pressure::{Member, ModelPage, TablePage};

const BLOCKS: usize = 4;
const EXPERTS: u16 = 8;

/// A deployment as its agents and the operator see it.
struct World {
    wanted: Placement,
    there: BTreeMap<String, There>,
    list: Vec<PlacedWorker>,
    slices: Vec<SliceNow>,
    /// What each worker has loaded: it forgets when it restarts.
    loaded: BTreeMap<String, BTreeSet<(i32, i32, [i32; 2])>>,
    /// The generation of each slice that each worker goes by.
    known: BTreeMap<(String, u16), u64>,
    slots: u32,
}

impl World {
    fn new(slots: u32) -> Self {
        Self {
            wanted: Placement { policy: PlacementPolicy::Balanced, ..Placement::default() },
            there: BTreeMap::new(),
            list: vec![],
            slices: vec![],
            loaded: BTreeMap::new(),
            known: BTreeMap::new(),
            slots,
        }
    }

    fn add(&mut self, name: &str, role: Role) {
        let address = Some(format!("10.0.0.{}:7070", self.there.len() + 1));
        self.there.insert(name.into(), There { role, address, is_leaving: false, is_ready: true });
        self.loaded.insert(name.into(), BTreeSet::new());
    }

    fn remove(&mut self, name: &str) {
        self.there.remove(name);
        self.loaded.remove(name);
    }

    fn end(&mut self, name: &str) {
        self.there.get_mut(name).unwrap().is_leaving = true;
    }

    fn pages(&self) -> BTreeMap<String, WorkerPage> {
        let page = |name: &String| {
            let table = |s: &SliceNow| {
                let generation = *self.known.get(&(name.clone(), s.blocks.start))?;
                let lacks = |u: &&PlacedUnit| {
                    u.worker == *name && !self.loaded[name].contains(&(u.block, u.expert, u.slice))
                };
                let missing =
                    s.units.iter().filter(lacks).map(|u| {
                        [u.block, u.expert, u.slice[0], u.slice[1]].map(|n| u16::try_from(n).unwrap())
                    });
                let blocks = [s.blocks.start, s.blocks.end];
                Some(TablePage { blocks, generation, missing: missing.collect() })
            };
            let model = ModelPage { moe: vec![true; BLOCKS], experts: EXPERTS, top_k: 2, segments: 8 };
            let member = Member {
                name: name.clone(),
                incarnation: 1,
                model: Some(model),
                slots: Some(self.slots),
                ..Member::default()
            };
            let tables = self.slices.iter().filter_map(table).collect();
            WorkerPage { tables, member: Some(member), ..WorkerPage::default() }
        };
        self.there.keys().map(|name| (name.clone(), page(name))).collect()
    }

    /// One reconcile, and then what agents make of it.
    fn step(&mut self) -> Placed {
        let pages = self.pages();
        let site = Site {
            wanted: &self.wanted,
            list: &self.list,
            slices: &self.slices,
            there: &self.there,
            pages: &pages.iter().map(|(name, page)| (name.as_str(), page)).collect(),
            of: ("default", "m"),
        };
        let placed = place(&site);
        let listed: BTreeSet<&str> = placed.list.iter().map(|w| w.name.as_str()).collect();
        let numbers: BTreeSet<i32> = placed.list.iter().map(|w| w.number).collect();
        assert_eq!(numbers.len(), placed.list.len(), "a number is one worker's");
        for unit in placed.slices.iter().flat_map(|(_, units)| units) {
            assert!(listed.contains(unit.worker.as_str()), "{} has a row and is not listed", unit.worker);
        }
        self.list.clone_from(&placed.list);
        for (blocks, units) in &placed.slices {
            match self.slices.iter_mut().find(|s| s.blocks == *blocks) {
                Some(now) if now.units == *units => {}
                Some(now) => {
                    now.generation += 1;
                    now.units.clone_from(units);
                }
                None => {
                    self.slices.push(SliceNow {
                        blocks: blocks.clone(),
                        generation: 1,
                        units: units.clone(),
                    });
                }
            }
        }
        placed
    }

    /// Agents read the newest tables, and load what they are to hold.
    fn load(&mut self) {
        for (name, has) in &mut self.loaded {
            for s in &self.slices {
                self.known.insert((name.clone(), s.blocks.start), s.generation);
                let own = s.units.iter().filter(|u| u.worker == *name);
                has.extend(own.map(|u| (u.block, u.expert, u.slice)));
            }
        }
    }

    /// Units that some worker takes tokens for, and has.
    fn served(&self) -> usize {
        let active = self.slices.iter().flat_map(|s| &s.units).filter(|u| u.state == UnitState::Active);
        let has = |u: &&PlacedUnit| {
            self.loaded.get(&u.worker).is_some_and(|l| l.contains(&(u.block, u.expert, u.slice)))
        };
        let units: BTreeSet<_> = active.filter(has).map(|u| (u.block, u.expert, u.slice)).collect();
        units.len()
    }

    /// Steps until nothing is on its way. The fewest units served on the way.
    fn settle(&mut self) -> usize {
        let mut least = usize::MAX;
        for _ in 0..50 {
            let placed = self.step();
            least = least.min(self.served());
            if placed.is_settled {
                assert_eq!(placed.units.0, placed.units.1);
                return least;
            }
            self.load();
        }
        panic!("it does not settle: {:?}", self.step());
    }
}

const ALL: usize = BLOCKS * EXPERTS as usize;

#[test]
fn from_nothing_to_all_and_nothing_stops_when_workers_come_and_go() {
    let mut world = World::new(1000);
    assert_eq!(world.step().problem, Some(Problem::Unknown));
    world.add("a0", Role::Attention);
    assert_eq!(world.step().problem, Some(Problem::NoWorker));
    world.add("e0", Role::Experts);
    world.add("e1", Role::Experts);
    world.settle();
    assert_eq!(world.served(), ALL);

    world.add("e2", Role::Experts);
    assert_eq!(world.settle(), ALL, "a worker joins");
    world.end("e0");
    assert_eq!(world.settle(), ALL, "a worker is told to go");
    let holds = world.slices.iter().flat_map(|s| &s.units).any(|u| u.worker == "e0");
    assert!(!holds, "it holds nothing any more");
    world.remove("e0");
    assert_eq!(world.settle(), ALL);
    assert!(world.list.iter().all(|w| w.name != "e0"));

    world.remove("e1");
    assert!(world.settle() < ALL, "it was the only one for some");
    assert_eq!(world.served(), ALL, "somebody else holds them now");
}

#[test]
fn a_replica_that_is_lost_stops_nothing_and_comes_back() {
    let mut world = World::new(1000);
    world.wanted.min_replicas = 2;
    world.add("a0", Role::Attention);
    for name in ["e0", "e1", "e2"] {
        world.add(name, Role::Experts);
    }
    world.settle();
    world.remove("e1");
    world.add("e3", Role::Experts);
    assert_eq!(world.settle(), ALL);
    // The container restarts: it has to load again.
    world.loaded.insert("e2".into(), BTreeSet::new());
    assert_eq!(world.settle(), ALL);
}

#[test]
fn too_few_slots_are_said() {
    let mut world = World::new(5);
    world.add("a0", Role::Attention);
    world.add("e0", Role::Experts);
    let placed = world.step();
    assert!(matches!(placed.problem, Some(Problem::Unplaceable(_))), "{placed:?}");
    for i in 1..7 {
        world.add(&format!("e{i}"), Role::Experts);
    }
    world.settle();
    assert_eq!(world.served(), ALL);
}

#[test]
fn a_large_model_is_cut_into_objects_that_the_api_takes() {
    let mut world = World::new(100_000);
    world.wanted.max_replicas = 64;
    world.add("h0", Role::Hybrid);
    world.settle();
    assert_eq!(world.slices.len(), 1, "{:?}", world.slices.iter().map(|s| &s.blocks).collect::<Vec<_>>());
    assert!(
        world
            .slices
            .iter()
            .all(|s| usize::from(s.blocks.end - s.blocks.start) * usize::from(EXPERTS) * 64 <= ROWS)
    );
}
