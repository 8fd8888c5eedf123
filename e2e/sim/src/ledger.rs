//! Books kept beside the cores, from the frames alone: landing rows, what was asked, and marks.

use sluice_core::frame::{Body, Frame, Mark, TokenBatch};
use sluice_core::ids::IDLE;
use std::collections::HashMap;

/// What is known of who sends a frame.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    /// Landing rows it has at the receiver.
    pub ring: u32,
    /// An attention step has just ended: its batches (the ones with a count of its rows) were not redirected, orphaned
    /// or stalled.
    pub fresh: bool,
    /// It has had tokens that left the count: redirected, orphaned, or without credit.
    pub exempt: bool,
}

/// Whether a mark promises anything.
fn counts(m: &Mark) -> bool {
    !m.blocked && m.progress != IDLE
}

/// The books.
pub struct Ledger {
    workers: usize,
    /// Per (host, rank): landing rows in use.
    rings: Vec<Vec<bool>>,
    /// Per (host, rank, class): the newest mark that the rank has sent.
    marks: HashMap<(usize, usize, u8), Mark>,
}

impl Ledger {
    /// Of so many workers.
    pub fn new(workers: usize) -> Self {
        Self { workers, rings: vec![vec![]; workers * workers], marks: HashMap::new() }
    }

    fn ring(&mut self, host: usize, rank: usize) -> &mut Vec<bool> {
        &mut self.rings[host * self.workers + rank]
    }

    /// A frame leaves.
    ///
    /// # Errors
    /// A landing row is used that is not free, or is none; a batch lies below what its rank has promised; or a mark
    /// takes back a promise for no reason.
    pub fn sent(&mut self, from: usize, to: usize, frame: &Frame, sender: Sender) -> Result<(), String> {
        match &frame.body {
            Body::Tokens(batch) => {
                self.put(from, to, batch, sender.ring)?;
                let promised = self.marks.get(&(to, from, batch.class.0)).filter(|m| counts(m));
                if let Some(m) =
                    promised.filter(|m| sender.fresh && batch.step_rows > 0 && batch.progress < m.progress)
                {
                    return Err(format!(
                        "worker {from} sends class {} at progress {} to worker {to} below its mark {}",
                        batch.class.0, batch.progress, m.progress
                    ));
                }
                batch.mark.map_or(Ok(()), |m| self.mark(from, to, m, sender.exempt))
            }
            Body::Mark(m) => self.mark(from, to, *m, sender.exempt),
            _ => Ok(()),
        }
    }

    fn mark(&mut self, rank: usize, host: usize, mark: Mark, exempt: bool) -> Result<(), String> {
        if mark.order == 0 {
            // Among ranks: no promise.
            return Ok(());
        }
        let before = self.marks.insert((host, rank, mark.class.0), mark);
        match before.filter(|b| !exempt && counts(b) && counts(&mark) && mark.progress < b.progress) {
            Some(b) => Err(format!(
                "worker {rank} lowers its mark of class {} from {} to {} without a cause",
                mark.class.0, b.progress, mark.progress
            )),
            None => Ok(()),
        }
    }

    fn put(&mut self, from: usize, to: usize, batch: &TokenBatch, ring: u32) -> Result<(), String> {
        let rows = self.ring(to, from);
        rows.resize(ring as usize, false);
        for r in batch.rows.iter().map(|r| r.dst) {
            match rows.get_mut(r as usize) {
                None => {
                    return Err(format!(
                        "worker {from} puts into row {r} of a ring of {ring} at worker {to}"
                    ));
                }
                Some(used) if *used => {
                    return Err(format!("worker {from} puts into row {r} at worker {to}, which is not free"));
                }
                Some(used) => *used = true,
            }
        }
        Ok(())
    }

    /// A frame arrives for the first time.
    ///
    /// # Errors
    /// A landing row is freed that is not in use.
    pub fn heard(&mut self, from: usize, to: usize, frame: &Frame) -> Result<(), String> {
        match &frame.body {
            Body::Returns(r) => self.freed(from, to, &r.freed),
            Body::Credit(rows) => self.freed(from, to, rows),
            Body::Redirect(r) => self.freed(from, to, &r.freed),
            _ => Ok(()),
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
