//! The event heap of a virtual clock.

use sluice_core::ids::Nanos;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events by time; those of one time in the order they were scheduled.
pub struct Heap<E> {
    order: BinaryHeap<Reverse<(Nanos, u64, u32)>>,
    events: Vec<Option<E>>,
    free: Vec<u32>,
    next: u64,
}

impl<E> Heap<E> {
    /// Without events.
    pub fn new() -> Self {
        Self { order: BinaryHeap::new(), events: vec![], free: vec![], next: 0 }
    }

    /// Schedules an event.
    pub fn push(&mut self, at: Nanos, event: E) {
        let i = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() as u32 - 1
        });
        self.events[i as usize] = Some(event);
        self.order.push(Reverse((at, self.next, i)));
        self.next += 1;
    }

    /// The next event.
    pub fn pop(&mut self) -> Option<(Nanos, E)> {
        let Reverse((at, _, i)) = self.order.pop()?;
        self.free.push(i);
        self.events[i as usize].take().map(|e| (at, e))
    }

    /// Events scheduled.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

impl<E> Default for Heap<E> {
    fn default() -> Self {
        Self::new()
    }
}
