//! What a worker computes with.

use super::attention;
use super::experts;
use super::isa::Isa;
use super::pool::Pool;
use crate::Error;

/// An instruction set, a pool of threads, and scratch memory that grows to the largest call and is then reused.
///
/// The ops are its methods. Each checks its arguments once, before it computes or writes anything.
#[derive(Debug)]
pub struct Cpu {
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
    pub(crate) experts: experts::Scratch,
    pub(crate) attention: attention::Scratch,
}

impl Cpu {
    /// A context for one worker.
    pub fn new(isa: Isa, pool: Pool) -> Result<Self, Error> {
        if !isa.is_available() {
            return Err(Error::IsaUnavailable { isa });
        }
        Ok(Self { isa, pool, experts: experts::Scratch::default(), attention: attention::Scratch::default() })
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The compute threads, the caller included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}
