//! The modelled network between workers: delays, order, copies, and links of limited bandwidth.

use crate::rng::Rng;
use sluice_core::frame::Channel;
use sluice_core::ids::Nanos;

/// How frames travel.
#[derive(Clone, Copy, Debug, Default)]
pub struct WireConfig {
    /// Every frame takes at least this.
    pub latency: Nanos,
    /// Mean of what is added, exponentially distributed.
    pub jitter: f64,
    /// Percent of data frames that may be overtaken by later ones.
    pub reorder: u64,
    /// Percent of frames that arrive twice.
    pub duplicate: u64,
    /// Bytes per nanosecond of a worker's link in each direction; 0 is unlimited.
    pub bandwidth: f64,
    /// Bytes of a row.
    pub row_bytes: f64,
}

/// Decides when frames arrive.
pub struct Wire {
    config: WireConfig,
    workers: usize,
    rng: Rng,
    /// Per (from, to, channel): the last arrival, which an ordered frame does not overtake.
    last: Vec<Nanos>,
    egress: Vec<f64>,
    ingress: Vec<f64>,
    /// Per worker: until when its frames take so many times as long.
    slow: Vec<(Nanos, u64)>,
}

impl Wire {
    /// Between `workers` workers.
    pub fn new(config: WireConfig, workers: usize, rng: Rng) -> Self {
        let last = vec![0; workers * workers * 2];
        let links = || vec![0.0; workers];
        Self { config, workers, rng, last, egress: links(), ingress: links(), slow: vec![(0, 1); workers] }
    }

    /// A worker's frames take `factor` times as long for a time.
    pub fn slow(&mut self, worker: usize, until: Nanos, factor: u64) {
        self.slow[worker] = (until, factor);
    }

    /// Whether links have a bandwidth, so that [`Self::enter`] is to be asked too.
    pub fn is_limited(&self) -> bool {
        self.config.bandwidth > 0.0
    }

    /// When a frame sent now reaches the receiver's link (or the receiver, if bandwidth is unlimited).
    pub fn leave(&mut self, now: Nanos, from: usize, to: usize, channel: Channel, rows: usize) -> Nanos {
        let c = self.config;
        let slow = [from, to].map(|w| if now < self.slow[w].0 { self.slow[w].1 } else { 1 });
        let mut at = now + c.latency * slow[0].max(slow[1]);
        if c.jitter > 0.0 {
            at += self.rng.exp(c.jitter) as Nanos;
        }
        if c.bandwidth > 0.0 && rows > 0 {
            let gone = self.egress[from].max(now as f64);
            self.egress[from] = gone + rows as f64 * c.row_bytes / c.bandwidth;
            at += (gone - now as f64) as Nanos;
        }
        if channel == Channel::Data && c.reorder > 0 && self.rng.chance(c.reorder) {
            return at + self.rng.exp(c.latency as f64 * 2.0) as Nanos;
        }
        let last = &mut self.last[(from * self.workers + to) * 2 + channel as usize];
        *last = at.max(*last);
        *last
    }

    /// When a frame that reaches the receiver's link now is there whole.
    pub fn enter(&mut self, now: Nanos, to: usize, rows: usize) -> Nanos {
        let took = rows as f64 * self.config.row_bytes / self.config.bandwidth;
        self.ingress[to] = self.ingress[to].max(now as f64) + took;
        self.ingress[to] as Nanos
    }

    /// When a second copy of a frame arrives, if there is one.
    pub fn copy(&mut self, arrival: Nanos) -> Option<Nanos> {
        let c = self.config;
        (c.duplicate > 0 && self.rng.chance(c.duplicate))
            .then(|| arrival + self.rng.exp(c.latency as f64 + c.jitter) as Nanos)
    }
}
