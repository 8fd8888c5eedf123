//! Books kept beside the cores, from the frames alone: landing rows, what was asked, and marks.

use sluice_core::frame::{Body, Frame, Mark, TokenBatch};
use sluice_core::ids::{IDLE, Progress};
use sluice_core::link::Window;
use std::collections::HashMap;

#[derive(Default)]
struct View {
    arrived: Window,
    applied: Option<Mark>,
    pending: Vec<Mark>,
}

impl View {
    fn settle(&mut self) {
        let seen = self.arrived.low();
        let best = self.pending.iter().filter(|m| m.frames <= seen).max_by_key(|m| m.order).copied();
        if let Some(m) = best {
            self.pending.retain(|p| p.order > m.order);
            self.applied = Some(m);
        }
    }
}

/// The books.
pub struct Ledger {
    workers: usize,
    /// Per (host, rank): landing rows in use.
    rings: Vec<Vec<bool>>,
    views: HashMap<(usize, usize, u8), View>,
    /// Batches that came below their rank's own mark, and were allowed to.
    pub late: u64,
}

impl Ledger {
    /// Of so many workers.
    pub fn new(workers: usize) -> Self {
        Self { workers, rings: vec![vec![]; workers * workers], views: HashMap::new(), late: 0 }
    }

    fn ring(&mut self, host: usize, rank: usize) -> &mut Vec<bool> {
        &mut self.rings[host * self.workers + rank]
    }

    /// A frame leaves. `ring`: landing rows each rank has at the receiver.
    ///
    /// # Errors
    /// A landing row is used that is not free, or is none.
    pub fn sent(&mut self, from: usize, to: usize, frame: &Frame, ring: u32) -> Result<(), String> {
        let Body::Tokens(batch) = &frame.body else { return Ok(()) };
        let rows = self.ring(to, from);
        rows.resize(ring as usize, false);
        for r in &batch.rows {
            match rows.get_mut(r.dst as usize) {
                None => {
                    return Err(format!(
                        "worker {from} puts into row {} of a ring of {ring} at worker {to}",
                        r.dst
                    ));
                }
                Some(used) if *used => {
                    return Err(format!(
                        "worker {from} puts into row {} at worker {to}, which is not free",
                        r.dst
                    ));
                }
                Some(used) => *used = true,
            }
        }
        Ok(())
    }

    /// A frame arrives for the first time. `prompt`: it was sent right after the attention step of its tokens.
    ///
    /// # Errors
    /// A landing row is freed that is not in use, or a prompt batch lies below its rank's own mark.
    pub fn heard(&mut self, from: usize, to: usize, frame: &Frame, prompt: bool) -> Result<(), String> {
        match &frame.body {
            Body::Tokens(b) => self.tokens(from, to, b, prompt),
            Body::Mark(m) => {
                self.mark(from, to, *m);
                Ok(())
            }
            Body::Returns(r) => self.freed(from, to, &r.freed),
            Body::Credit(rows) => self.freed(from, to, rows),
            Body::Redirect(r) => self.freed(from, to, &r.freed),
            Body::StepEnd(_) => Ok(()),
        }
    }

    fn freed(&mut self, host: usize, rank: usize, rows: &[u32]) -> Result<(), String> {
        let ring = self.ring(host, rank);
        for &r in rows {
            match ring.get_mut(r as usize) {
                Some(used) if *used => *used = false,
                _ => {
                    return Err(format!(
                        "worker {host} gives row {r} back to worker {rank}, which did not use it"
                    ));
                }
            }
        }
        Ok(())
    }

    fn mark(&mut self, rank: usize, host: usize, mark: Mark) {
        let v = self.views.entry((host, rank, mark.class.0)).or_default();
        if v.applied.is_none_or(|a| mark.order > a.order) {
            v.pending.push(mark);
            v.settle();
        }
    }

    fn tokens(&mut self, rank: usize, host: usize, b: &TokenBatch, prompt: bool) -> Result<(), String> {
        let v = self.views.entry((host, rank, b.class.0)).or_default();
        let below = |m: Mark, p: Progress| !m.blocked && m.progress != IDLE && p < m.progress;
        if let Some(m) = v.applied.filter(|m| below(*m, b.progress)) {
            if prompt {
                return Err(format!(
                    "worker {rank} sends class {} at progress {} to worker {host} below its mark {}",
                    b.class.0, b.progress, m.progress
                ));
            }
            self.late += 1;
        }
        v.arrived.insert(b.frames);
        v.settle();
        if let Some(m) = b.mark {
            self.mark(rank, host, m);
        }
        Ok(())
    }

    /// Nothing is under way any more.
    ///
    /// # Errors
    /// A landing row was not given back.
    pub fn settled(&self) -> Result<(), String> {
        for (i, ring) in self.rings.iter().enumerate() {
            let used = ring.iter().filter(|u| **u).count();
            if used > 0 {
                let (host, rank) = (i / self.workers, i % self.workers);
                return Err(format!("worker {host} keeps {used} landing rows of worker {rank}"));
            }
        }
        Ok(())
    }
}
