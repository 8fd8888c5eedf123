//! Rows on their way between workers, and the buffers they travel in.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::FromBytes as _;

/// A smaller buffer is not kept: the allocator has one at hand.
const LEAST: usize = 64 << 10;
/// So many bytes are kept, at most.
const MOST: usize = 64 << 20;

/// Large buffers that are used again. The system finds and clears every page of a fresh one, which takes longer than to
/// fill it.
#[derive(Debug, Default)]
pub struct Buffers<T> {
    kept: Mutex<Vec<Vec<T>>>,
}

impl<T> Buffers<T> {
    /// An empty buffer for about so many values.
    pub fn take(&self, values: usize) -> Vec<T> {
        if values * size_of::<T>() < LEAST {
            return Vec::with_capacity(values);
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let largest = (0..kept.len()).max_by_key(|i| kept[*i].capacity());
        let found = largest.map(|i| kept.swap_remove(i));
        drop(kept);
        found.unwrap_or_else(|| Vec::with_capacity(values))
    }

    /// Takes a buffer back.
    pub fn give(&self, mut buffer: Vec<T>) {
        let bytes = |b: &Vec<T>| b.capacity() * size_of::<T>();
        if bytes(&buffer) < LEAST {
            return;
        }
        buffer.clear();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().map(bytes).sum::<usize>() + bytes(&buffer) <= MOST {
            kept.push(buffer);
        }
    }
}

/// The rows that came with a frame.
#[derive(Debug)]
pub struct Rows(Kept);

#[derive(Debug)]
enum Kept {
    Values(Vec<f32>),
    /// The end of a message, in its place there.
    Message {
        message: Vec<u8>,
        at: usize,
        home: Arc<Buffers<u8>>,
    },
}

impl From<Vec<f32>> for Rows {
    fn from(values: Vec<f32>) -> Self {
        Self(Kept::Values(values))
    }
}

impl Rows {
    /// The last `bytes` bytes of a message, whose buffer goes home afterwards: little-endian values, as every supported
    /// host has them.
    pub fn of_message(message: Vec<u8>, bytes: usize, home: &Arc<Buffers<u8>>) -> Self {
        let at = message.len().saturating_sub(bytes);
        if <[f32]>::ref_from_bytes(&message[at..]).is_ok() {
            return Self(Kept::Message { message, at, home: Arc::clone(home) });
        }
        let value = |b: &[u8; 4]| f32::from_le_bytes(*b);
        let values = message[at..].as_chunks().0.iter().map(value).collect();
        home.give(message);
        Self(Kept::Values(values))
    }

    /// The values, row after row.
    pub fn values(&self) -> &[f32] {
        match &self.0 {
            Kept::Values(values) => values,
            Kept::Message { message, at, .. } => <[f32]>::ref_from_bytes(&message[*at..]).unwrap_or_default(),
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        if let Kept::Message { message, home, .. } = &mut self.0 {
            home.give(mem::take(message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(before: usize, values: &[f32]) -> Vec<u8> {
        let mut message = vec![7; before];
        values.iter().for_each(|v| message.extend(v.to_le_bytes()));
        message
    }

    #[test]
    fn rows_are_the_end_of_their_message_wherever_that_lies() {
        let values = [1.5f32, -2.0, f32::MAX];
        for before in 0..9 {
            let rows = Rows::of_message(message(before, &values), 12, &Arc::default());
            assert_eq!(rows.values(), values, "{before}");
        }
        assert!(Rows::of_message(message(3, &[]), 0, &Arc::default()).values().is_empty());
    }

    #[test]
    fn a_large_buffer_goes_home_and_is_taken_again() {
        let home = Arc::new(Buffers::default());
        let mut large = message(4, &vec![1.0; LEAST]);
        large.shrink_to_fit();
        let (at, capacity) = (large.as_ptr(), large.capacity());
        drop(Rows::of_message(large, 4 * LEAST, &home));
        let small = home.take(LEAST - 1);
        let again = home.take(LEAST);
        assert_ne!(small.as_ptr(), at, "a small one is a new one");
        assert_eq!((again.as_ptr(), again.capacity(), again.len()), (at, capacity, 0));
        let other = home.take(LEAST);
        assert_ne!(other.as_ptr(), at, "there was only one");
    }

    #[test]
    fn no_more_is_kept_than_may_be() {
        let home = Buffers::<u64>::default();
        for _ in 0..3 {
            home.give(Vec::with_capacity(MOST / 8 / 2));
        }
        home.give(Vec::with_capacity(LEAST / 8 - 1));
        assert_eq!(home.kept.lock().unwrap().len(), 2);
    }
}
