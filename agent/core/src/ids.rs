//! Identities: workers, sequences, units, classes, and virtual time.

use std::fmt;

/// Nanoseconds on the clock of whoever drives the core. The core never reads a clock.
pub type Nanos = u64;

/// One microsecond in [`Nanos`].
pub const MICRO: Nanos = 1_000;
/// One millisecond in [`Nanos`].
pub const MILLI: Nanos = 1_000_000;
/// One second in [`Nanos`].
pub const SECOND: Nanos = 1_000_000_000;

/// The executor of one device. Numbered densely within a deployment: tables are indexed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u32);

/// The OpenAI-compatible front that journals a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId(pub u32);

/// A sequence: one choice of one request. `request` is unique over all gateways of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqKey {
    /// The request, drawn by its gateway.
    pub request: u64,
    /// The choice (`n` of them in a request).
    pub choice: u16,
}

/// The number of times the gateway has bound a sequence to a rank. Only the gateway raises it.
pub type Attempt = u32;

/// A sequence as its rank's backend knows it: an index that is reused after the sequence is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqHandle(pub u32);

/// A row number in a worker's slab of hidden rows.
pub type Row = u32;

/// A clock of one wave, congruent to the block modulo the number of blocks.
pub type Progress = u64;

/// The progress of a rank that has no token in a class.
pub const IDLE: Progress = Progress::MAX;

/// No sound worker gets so far: whoever says so is not believed, and sums of what others say do not overflow.
pub const FAR: Progress = 1 << 60;

/// What moves together: decode waves are `0..waves`, the prefill clocks follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(pub u8);

/// Segments `lo..hi` of an expert's inner dimension, of the deployment's G.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slice {
    /// First segment.
    pub lo: u8,
    /// One past the last segment.
    pub hi: u8,
}

impl Slice {
    /// All segments of a deployment with `segments` of them.
    pub const fn whole(segments: u8) -> Self {
        Self { lo: 0, hi: segments }
    }

    /// Whether slices of this width, one of them here, make an expert of `segments`.
    pub const fn cuts(self, segments: u8) -> bool {
        if self.lo >= self.hi || self.hi > segments {
            return false;
        }
        let width = self.hi - self.lo;
        segments.is_multiple_of(width) && self.lo.is_multiple_of(width)
    }

    /// How many slices of this width make an expert of `segments`.
    pub const fn count(self, segments: u8) -> u8 {
        segments / (self.hi - self.lo)
    }

    /// The segments as a bit mask.
    pub const fn mask(self) -> u8 {
        (((1u16 << self.hi) - 1) & !((1u16 << self.lo) - 1)) as u8
    }
}

/// What a slot holds: one slice of one expert of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit {
    /// The block.
    pub block: u16,
    /// The expert within the block.
    pub expert: u16,
    /// The part of its inner dimension.
    pub slice: Slice,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}", self.0)
    }
}

impl fmt::Display for SeqKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {:016x} choice {}", self.request, self.choice)
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Slice { lo, hi } = self.slice;
        write!(f, "expert {} of block {} (segments {lo}..{hi})", self.expert, self.block)
    }
}
