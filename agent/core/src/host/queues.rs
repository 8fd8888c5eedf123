//! The expert μ-queues of a host: tokens that wait for one unit, by class, with sums per block so that choosing does
//! not look at every queue.

use crate::frame::ReturnTo;
use crate::ids::{IDLE, Nanos, Progress, Row};

/// One token waiting for one unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub src: Row,
    pub home: u32,
    pub back: ReturnTo,
    /// Its landing row in the home's ring, or none if it is local.
    pub landing: u32,
    pub progress: Progress,
    pub since: Nanos,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    pub items: Vec<Item>,
    pub least: Progress,
    pub since: Nanos,
}

impl Queue {
    fn sum_up(&mut self) {
        self.least = self.items.iter().map(|i| i.progress).min().unwrap_or(IDLE);
        self.since = self.items.iter().map(|i| i.since).min().unwrap_or(Nanos::MAX);
    }
}

/// The μ-queues of one block and class as a scheduler sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertQueue {
    /// The block.
    pub block: u16,
    /// The class.
    pub class: u8,
    /// Rows over all units.
    pub rows: u32,
    /// Rows of the largest.
    pub largest: u32,
    /// Least progress of all.
    pub progress: Progress,
    /// Arrival of the oldest.
    pub since: Nanos,
}

#[derive(Clone, Debug)]
struct Block {
    info: ExpertQueue,
    /// Units with something waiting.
    active: Vec<u32>,
}

#[derive(Clone, Debug)]
pub(crate) struct ExpertQueues {
    classes: usize,
    /// Per (held unit, class).
    queues: Vec<Queue>,
    /// Per (block, class).
    blocks: Vec<Block>,
    active: Vec<u32>,
}

impl ExpertQueues {
    pub fn new(blocks: u16, classes: u8) -> Self {
        let make = |i: usize| {
            let (block, class) = ((i / classes as usize) as u16, (i % classes as usize) as u8);
            let info = ExpertQueue { block, class, rows: 0, largest: 0, progress: IDLE, since: Nanos::MAX };
            Block { info, active: vec![] }
        };
        let n = blocks as usize * classes as usize;
        Self { classes: classes as usize, queues: vec![], blocks: (0..n).map(make).collect(), active: vec![] }
    }

    /// Makes room for a unit index.
    pub fn admit_unit(&mut self, unit: u32) {
        let n = (unit as usize + 1) * self.classes;
        let n = n.max(self.queues.len());
        self.queues.resize_with(n, || Queue { items: vec![], least: IDLE, since: Nanos::MAX });
    }

    fn queue_key(&self, unit: u32, class: u8) -> usize {
        unit as usize * self.classes + class as usize
    }

    fn block_key(&self, block: u16, class: u8) -> usize {
        block as usize * self.classes + class as usize
    }

    #[inline]
    pub fn push(&mut self, block: u16, unit: u32, class: u8, item: Item) {
        let (qk, bk) = (self.queue_key(unit, class), self.block_key(block, class));
        let (q, b) = (&mut self.queues[qk], &mut self.blocks[bk]);
        if q.items.is_empty() {
            if b.active.is_empty() {
                self.active.push(bk as u32);
            }
            b.active.push(unit);
        }
        q.items.push(item);
        q.least = q.least.min(item.progress);
        q.since = q.since.min(item.since);
        b.info.rows += 1;
        b.info.largest = b.info.largest.max(q.items.len() as u32);
        b.info.progress = b.info.progress.min(item.progress);
        b.info.since = b.info.since.min(item.since);
    }

    /// Takes up to `budget` items of a queue, oldest first. Its block is to be settled afterwards.
    pub fn take(&mut self, unit: u32, class: u8, budget: u32, out: &mut Vec<Item>) -> u32 {
        let key = self.queue_key(unit, class);
        let q = &mut self.queues[key];
        let n = q.items.len().min(budget as usize);
        out.extend(q.items.drain(..n));
        q.sum_up();
        n as u32
    }

    /// Drops what waits for a home that is gone.
    pub fn forget(&mut self, home: u32) {
        for key in self.active.clone() {
            let (block, class) = (key as usize / self.classes, key as usize % self.classes);
            for unit in &self.blocks[key as usize].active {
                let q = &mut self.queues[*unit as usize * self.classes + class];
                q.items.retain(|i| i.home != home);
                q.sum_up();
            }
            self.settle(block as u16, class as u8);
        }
    }

    /// Sums a block up again after items were taken.
    pub fn settle(&mut self, block: u16, class: u8) {
        let key = self.block_key(block, class);
        let b = &mut self.blocks[key];
        let i = &mut b.info;
        if i.rows == 0 {
            return;
        }
        (i.rows, i.largest, i.progress, i.since) = (0, 0, IDLE, Nanos::MAX);
        b.active.retain(|u| {
            let q = &self.queues[*u as usize * self.classes + class as usize];
            let rows = q.items.len() as u32;
            i.rows += rows;
            i.largest = i.largest.max(rows);
            i.progress = i.progress.min(q.least);
            i.since = i.since.min(q.since);
            rows > 0
        });
        if b.active.is_empty() {
            self.active.retain(|k| *k != key as u32);
        }
    }

    /// (block, class) with anything waiting.
    pub fn active(&self) -> impl Iterator<Item = &ExpertQueue> {
        self.active.iter().map(|k| &self.blocks[*k as usize].info)
    }

    pub fn units(&self, block: u16, class: u8) -> &[u32] {
        &self.blocks[self.block_key(block, class)].active
    }

    pub fn queue(&self, unit: u32, class: u8) -> &Queue {
        &self.queues[self.queue_key(unit, class)]
    }

    /// Whether a unit has nothing waiting in any class.
    pub fn is_empty(&self, unit: u32) -> bool {
        (0..self.classes).all(|c| self.queues[unit as usize * self.classes + c].items.is_empty())
    }
}
