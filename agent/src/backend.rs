//! Compute backends: what runs a [`Step`].
//!
//! A backend belongs to one worker and one device. It owns the slab of hidden rows, the KV pages of the sequences at
//! home here, the slots with expert units, and the samplers. The worker's core names rows, pages, slots and sequences
//! by number and never sees a hidden state.
//!
//! Whatever steps the work is cut into, the numbers are the same: a row's result depends on its own sequence only.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
mod holdings;
pub mod modelled;
mod probe;
pub mod routing;
pub mod weights;

use std::sync::Arc;
use std::time::Instant;

use sluice_core::cost::Costs;
use sluice_core::ids::{Row, SeqHandle};
use sluice_core::step::{Outcome, Step};

use crate::sampling::{Logprobs, SequenceSampling};
pub use probe::{Probe, RoutedToken};

/// What a worker drives.
///
/// One step is in flight at a time: after [`Backend::submit`] comes [`Backend::poll`] until it gives the outcome. A
/// step that names what does not exist (a slot without weights, a row out of range, an unknown sequence) ends as
/// [`Outcome::Failed`] and leaves the backend as it was or the worker unusable; it never panics.
pub trait Backend: Send {
    /// The loaded form of one unit.
    type Unit: Send + Sync + 'static;

    /// Makes a sequence known before its first step. An open handle is replaced.
    fn open(&mut self, seq: SeqHandle, sampling: SequenceSampling);

    /// Forgets a sequence. Its pages are the caller's to reuse.
    fn close(&mut self, seq: SeqHandle);

    /// Puts loaded weights into a slot, in place of what it held. Loading itself happens elsewhere.
    fn install(&mut self, slot: u32, unit: Arc<Self::Unit>);

    /// Empties a slot.
    fn free_slot(&mut self, slot: u32);

    /// Starts a step; a backend on the CPU also finishes it. None may be in flight.
    fn submit(&mut self, step: Step);

    /// The outcome of the step in flight, once.
    fn poll(&mut self) -> Option<Outcome>;

    /// Until when to leave an asynchronous step alone; `None` when nothing is in flight or the end is not known.
    fn busy_until(&self) -> Option<Instant>;

    /// Appends the values of these slab rows to `into`, row after row: what the transport carries, in f32.
    fn read_rows(&mut self, rows: &[Row], into: &mut Vec<f32>);

    /// Writes slab rows from what [`Backend::read_rows`] of another worker gave.
    fn write_rows(&mut self, rows: &[Row], values: &[f32]);

    /// Values of a row as [`Backend::read_rows`] gives them.
    fn row_len(&self) -> usize;

    /// Log-probabilities of the last head step, of the rows whose sequences want them, in the step's order.
    fn take_logprobs(&mut self) -> Vec<SampledLogprobs>;

    /// Shows intermediate results to an observer from now on.
    fn set_probe(&mut self, probe: Option<Box<dyn Probe>>);

    /// Measures how long a unit and an attention step take by rows. Overwrites slab rows and KV pages, so only before
    /// the first sequence.
    fn calibrate(&mut self) -> Costs;
}

/// What a gateway wants beside a token id.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledLogprobs {
    /// The sequence.
    pub seq: SeqHandle,
    /// Which of its produced tokens.
    pub index: u32,
    /// The log-probabilities.
    pub logprobs: Logprobs,
}
