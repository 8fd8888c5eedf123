//! The connections between workers: which epoch each pair is in, and which end knows of it.

/// One pair of workers.
#[derive(Clone, Debug)]
struct Pair {
    /// Rises when the pair's connections break.
    epoch: u32,
    is_up: bool,
}

/// All pairs.
#[derive(Debug)]
pub struct Pairs {
    workers: usize,
    pairs: Vec<Pair>,
    /// Per (worker, peer): the epoch in which it has met the peer, 0 for none.
    met: Vec<u32>,
}

impl Pairs {
    /// Everybody is connected to everybody, in epoch 1, and has met nobody.
    pub fn new(workers: usize) -> Self {
        let pair = Pair { epoch: 1, is_up: true };
        Self { workers, pairs: vec![pair; workers * workers], met: vec![0; workers * workers] }
    }

    fn at(&self, a: usize, b: usize) -> usize {
        a.min(b) * self.workers + a.max(b)
    }

    /// The pair's present epoch.
    pub fn epoch(&self, a: usize, b: usize) -> u32 {
        self.pairs[self.at(a, b)].epoch
    }

    /// Whether the pair's connections are there.
    pub fn is_up(&self, a: usize, b: usize) -> bool {
        self.pairs[self.at(a, b)].is_up
    }

    /// The connections break. Gives the epoch that ended, or None if they were broken already.
    pub fn sever(&mut self, a: usize, b: usize) -> Option<u32> {
        let at = self.at(a, b);
        let p = &mut self.pairs[at];
        std::mem::replace(&mut p.is_up, false).then(|| {
            p.epoch += 1;
            p.epoch - 1
        })
    }

    /// The connections are there again. Gives their epoch, or None if they were not broken.
    pub fn join(&mut self, a: usize, b: usize) -> Option<u32> {
        let at = self.at(a, b);
        let p = &mut self.pairs[at];
        (!std::mem::replace(&mut p.is_up, true)).then_some(p.epoch)
    }

    /// A worker meets its peer in this epoch.
    pub fn meet(&mut self, worker: usize, peer: usize, epoch: u32) {
        self.met[worker * self.workers + peer] = epoch;
    }

    /// A worker starts anew: it has met nobody.
    pub fn forget(&mut self, worker: usize) {
        self.met[worker * self.workers..(worker + 1) * self.workers].fill(0);
    }

    /// The epoch in which a worker has met its peer last.
    pub fn met(&self, worker: usize, peer: usize) -> u32 {
        self.met[worker * self.workers + peer]
    }
}
