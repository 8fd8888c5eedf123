//! The attention μ-queues of a rank: segments that are whole and may run, by block and class. Block L is the head.

use crate::ids::{IDLE, Nanos, Progress};
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub segment: u32,
    pub rows: u32,
    pub progress: Progress,
    pub since: Nanos,
}

/// One μ-queue as a scheduler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionQueue {
    /// Its block; L for the head.
    pub block: u16,
    /// Its class.
    pub class: u8,
    /// Rows waiting.
    pub rows: u32,
    /// Their least progress.
    pub progress: Progress,
    /// Rows at exactly that progress.
    pub at_progress: u32,
    /// Arrival of the oldest.
    pub since: Nanos,
}

#[derive(Clone, Debug)]
struct Queue {
    entries: VecDeque<Entry>,
    info: AttentionQueue,
}

#[derive(Clone, Debug)]
pub(crate) struct AttentionQueues {
    classes: usize,
    queues: Vec<Queue>,
    active: Vec<u32>,
}

impl AttentionQueues {
    pub fn new(blocks: u16, classes: u8) -> Self {
        let make = |i: usize| {
            let (block, class) = ((i / classes as usize) as u16, (i % classes as usize) as u8);
            let info =
                AttentionQueue { block, class, rows: 0, progress: IDLE, at_progress: 0, since: Nanos::MAX };
            Queue { entries: VecDeque::new(), info }
        };
        let n = (blocks as usize + 1) * classes as usize;
        Self { classes: classes as usize, queues: (0..n).map(make).collect(), active: vec![] }
    }

    fn key(&self, block: u16, class: u8) -> usize {
        block as usize * self.classes + class as usize
    }

    pub fn push(&mut self, block: u16, class: u8, e: Entry) {
        let key = self.key(block, class);
        let q = &mut self.queues[key];
        if q.entries.is_empty() {
            self.active.push(key as u32);
        }
        q.entries.push_back(e);
        q.note(e);
    }

    /// Takes segments from the front until `budget` rows are reached: at least one.
    pub fn take(&mut self, block: u16, class: u8, budget: &mut u32, out: &mut Vec<Entry>) {
        let key = self.key(block, class);
        let q = &mut self.queues[key];
        while let Some(&e) = q.entries.front() {
            if e.rows > *budget && !out.is_empty() {
                break;
            }
            *budget = budget.saturating_sub(e.rows);
            out.push(e);
            q.entries.pop_front();
        }
        self.settle(key);
    }

    pub fn remove(&mut self, block: u16, class: u8, segment: u32) {
        let key = self.key(block, class);
        self.queues[key].entries.retain(|e| e.segment != segment);
        self.settle(key);
    }

    fn settle(&mut self, key: usize) {
        let q = &mut self.queues[key];
        q.info.rows = 0;
        (q.info.progress, q.info.at_progress, q.info.since) = (IDLE, 0, Nanos::MAX);
        let entries = std::mem::take(&mut q.entries);
        for e in &entries {
            q.note(*e);
        }
        q.entries = entries;
        if q.entries.is_empty() {
            self.active.retain(|k| *k != key as u32);
        }
    }

    pub fn get(&self, block: u16, class: u8) -> &AttentionQueue {
        &self.queues[self.key(block, class)].info
    }

    /// The queues that are not empty.
    pub fn active(&self) -> impl Iterator<Item = &AttentionQueue> {
        self.active.iter().map(|k| &self.queues[*k as usize].info)
    }
}

impl Queue {
    fn note(&mut self, e: Entry) {
        let i = &mut self.info;
        i.rows += e.rows;
        i.since = i.since.min(e.since);
        if e.progress < i.progress {
            (i.progress, i.at_progress) = (e.progress, 0);
        }
        if e.progress == i.progress {
            i.at_progress += e.rows;
        }
    }
}
