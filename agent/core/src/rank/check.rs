//! Whether a rank's books agree with each other: for tests and the simulator.

use super::{NONE, Rank};

impl Rank {
    /// The first thing found wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let live = || self.sequences.iter().flatten();
        self.kv.check(live().map(|s| &s.table))?;
        let held = self.token_group.iter().filter(|g| **g != NONE).count();
        agree("tokens free and held", self.free_tokens.len() + held, self.slab.tokens as usize)?;
        agree("return groups", self.pool.used(), held)?;
        let segments = || self.segments.iter().flatten();
        let away = self.token_segment.iter().filter(|s| **s != NONE).count();
        agree("tokens in segments", segments().map(|s| s.tokens.len()).sum(), away)?;
        agree("segments of sequences", live().map(|s| s.segments.len()).sum(), segments().count())?;
        agree("sequences by key", self.by_key.len(), live().filter(|s| !s.closing).count())?;
        for (class, clock) in self.clocks.iter().enumerate() {
            let here = segments().filter(|s| s.class as usize == class);
            let counted: usize = here.clone().filter(|s| s.counted).map(|s| s.tokens.len()).sum();
            agree("tokens on a clock", clock.total() as usize, counted)?;
            if class == self.prefill_class() as usize {
                agree("prefill rows", self.prefill_rows as usize, here.map(|s| s.tokens.len()).sum())?;
            }
        }
        Ok(())
    }
}

fn agree(what: &str, is: usize, due: usize) -> Result<(), String> {
    if is == due { Ok(()) } else { Err(format!("{what}: {is}, but {due} are due")) }
}
