//! An observer of intermediate results, for parity tests and inspection.

use sluice_core::ids::SeqHandle;

/// Sees what a backend computes on its way. Only rows whose result is wanted are shown.
pub trait Probe: Send {
    /// A token was routed.
    fn routed(&mut self, token: RoutedToken<'_>);

    /// The logits of a sequence's `index`-th produced token, before anything is done to them.
    fn logits(&mut self, seq: SeqHandle, index: u32, logits: &[f32]);
}

/// One token's routing in one block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoutedToken<'a> {
    /// The sequence.
    pub seq: SeqHandle,
    /// The position in it.
    pub position: u32,
    /// The block.
    pub block: u16,
    /// The experts, in the router's order.
    pub experts: &'a [u16],
    /// By how much the last chosen expert's score was above the first not chosen; infinite where all are chosen.
    pub gap: f32,
}
