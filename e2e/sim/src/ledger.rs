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

/// A landing row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    /// Not credited in this epoch.
    Withheld,
    Free,
    Used,
}

/// The books.
pub struct Ledger {
    workers: usize,
    /// Per (host, rank): the landing rows, as far as they were ever credited.
    rings: Vec<Vec<Row>>,
    /// Per (host, rank, class): the newest mark that the rank has sent.
    marks: HashMap<(usize, usize, u8), Mark>,
}

impl Ledger {
    /// Of so many workers.
    pub fn new(workers: usize) -> Self {
        Self { workers, rings: vec![vec![]; workers * workers], marks: HashMap::new() }
    }

    fn ring(&mut self, host: usize, rank: usize) -> &mut Vec<Row> {
        &mut self.rings[host * self.workers + rank]
    }

    /// The connections of two workers broke: what they promised each other is void.
    pub fn sever(&mut self, a: usize, b: usize) {
        for (host, rank) in [(a, b), (b, a)] {
            self.ring(host, rank).clear();
            self.marks.retain(|(to, from, _), _| (*to, *from) != (host, rank));
        }
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
        rows.resize(ring as usize, Row::Withheld);
        for r in batch.rows.iter().map(|r| r.dst) {
            match rows.get_mut(r as usize) {
                None => {
                    return Err(format!(
                        "worker {from} puts into row {r} of a ring of {ring} at worker {to}"
                    ));
                }
                Some(row) if *row != Row::Free => {
                    return Err(format!("worker {from} puts into row {r} at worker {to}, which is not free"));
                }
                Some(row) => *row = Row::Used,
            }
        }
        Ok(())
    }

    /// A frame arrives for the first time.
    ///
    /// # Errors
    /// A landing row is credited that is free already.
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
            if ring.len() <= r as usize {
                ring.resize(r as usize + 1, Row::Withheld);
            }
            if std::mem::replace(&mut ring[r as usize], Row::Free) == Row::Free {
                return Err(format!("worker {host} gives row {r} to worker {rank}, which has it"));
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
            let used = ring.iter().filter(|r| **r == Row::Used).count();
            if used > 0 {
                let (host, rank) = (i / self.workers, i % self.workers);
                return Err(format!("worker {host} keeps {used} landing rows of worker {rank}"));
            }
        }
        Ok(())
    }
}
