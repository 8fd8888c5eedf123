//! What is sent, and what is measured.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What a rank sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Load {
    /// Large batches, as many as there is credit for.
    Stream,
    /// A small batch at a time.
    Alone,
    /// A small batch at a time, behind a large one that was sent just before.
    Behind,
}

/// A stream of large batches, as its rank saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Bytes of rows that have landed.
    pub bytes: u64,
    /// In so many seconds.
    pub seconds: f64,
    /// Processor seconds of the two, the sender first.
    pub cpu: [f64; 2],
}

impl Flow {
    /// Bytes per nanosecond, which is GB/s.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.seconds
    }

    /// Processor seconds per GB, sender and receiver.
    pub fn cost(&self) -> [f64; 2] {
        self.cpu.map(|c| c / (self.bytes as f64 / 1e9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_a_thousand_million_bytes() {
        let flow = Flow { bytes: 3_000_000_000, seconds: 1.5, cpu: [1.2, 0.3] };
        assert_eq!(flow.rate(), 2.0);
        assert_eq!(flow.cost(), [1.2 / 3.0, 0.3 / 3.0]);
    }
}
