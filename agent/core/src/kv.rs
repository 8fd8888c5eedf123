//! The paged KV block manager of one attention rank: page tables, prefix reuse, eviction.
//!
//! It moves numbers only; the keys and values lie in the backend, one page of `page_size` positions in every block.
//! A page is in exactly one of three states:
//!
//! | state | held by | counts as free |
//! | --- | --- | --- |
//! | free | nobody, contents worthless | yes |
//! | cached | nobody, contents found by their hash | yes: evicted, least recently used first, when free ones run out |
//! | referenced | one table, or several that share it | no |
//!
//! Only full pages are shared, and a shared page is never written again, so there is no copy-on-write. Two pages may
//! hold the same contents (computed side by side); their bits are equal, because numbers do not depend on the
//! schedule, so either may stand for the other.

mod chain;
#[cfg(test)]
mod tests;

use chain::{Chain, PageHash};
use std::collections::{BTreeMap, HashMap};

/// Too few pages. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} more KV pages needed, {free} are free")]
pub struct NoRoom {
    /// Pages that were asked for; of an admission, with the watermark.
    pub needed: u32,
    /// Pages that could be had.
    pub free: u32,
}

/// The page table of one sequence. It must go back with [`KvPool::release`], to the pool that made it.
#[derive(Debug)]
#[must_use = "its pages are lost to the pool unless they are released"]
pub struct Table {
    pages: Vec<u32>,
    cached_tokens: u32,
    /// Pages whose contents are in `chain`: found at admission, or committed.
    sealed: u32,
    /// Pages an admission counted on and that were not taken yet.
    promised: u32,
    chain: Chain,
}

impl Table {
    /// Page i holds positions `i * page_size ..`.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Leading tokens whose keys and values were there at admission: the first position to compute.
    pub fn cached_tokens(&self) -> u32 {
        self.cached_tokens
    }
}

/// Sums since the pool was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct KvStats {
    /// Tokens of all admitted sequences.
    pub admitted_tokens: u64,
    /// Those of them that did not have to be computed.
    pub cached_tokens: u64,
    /// Cached pages given up for new contents.
    pub evicted_pages: u64,
    /// The most pages ever referenced at one time.
    pub peak_pages: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    refs: u32,
    /// When it was last let go, if it is cached: its key in `lru`.
    let_go: u64,
    /// Its contents, if it can be found by them.
    hash: Option<PageHash>,
}

/// The KV pages of one attention rank.
#[derive(Debug)]
pub struct KvPool {
    page_size: u32,
    prefix_reuse: bool,
    pages: Vec<Page>,
    /// A stack.
    free: Vec<u32>,
    /// Cached pages by the time they were let go.
    lru: BTreeMap<u64, u32>,
    by_hash: HashMap<PageHash, u32>,
    clock: u64,
    promised: u32,
    stats: KvStats,
}

impl KvPool {
    /// A pool of `pages` pages of `page_size` tokens (0 is taken for 1). Without `prefix_reuse` no page is shared or
    /// cached.
    pub fn new(pages: u32, page_size: u32, prefix_reuse: bool) -> Self {
        Self {
            page_size: page_size.max(1),
            prefix_reuse,
            pages: vec![Page::default(); pages as usize],
            free: (0..pages).rev().collect(),
            lru: BTreeMap::new(),
            by_hash: HashMap::new(),
            clock: 0,
            promised: 0,
            stats: KvStats::default(),
        }
    }

    /// Tokens per page.
    pub fn page_size(&self) -> u32 {
        self.page_size
    }

    /// All pages, in whatever state.
    pub fn total_pages(&self) -> u32 {
        self.pages.len() as u32
    }

    /// Tokens of the longest sequence that fits when nothing else is here.
    pub fn capacity_tokens(&self) -> u32 {
        self.total_pages().saturating_mul(self.page_size)
    }

    /// Pages that can be had now, evictable ones among them.
    pub fn free_pages(&self) -> u32 {
        (self.free.len() + self.lru.len()) as u32
    }

    /// Pages that nobody holds but that can still be found by their contents.
    pub fn cached_pages(&self) -> u32 {
        self.lru.len() as u32
    }

    /// Pages that tables hold.
    pub fn used_pages(&self) -> u32 {
        self.total_pages() - self.free_pages()
    }

    /// Pages that admitted sequences still need for the tokens they were admitted with.
    pub fn promised_pages(&self) -> u32 {
        self.promised
    }

    /// Sums since the pool was made.
    pub fn stats(&self) -> KvStats {
        self.stats
    }

    /// Pages that hold `tokens` tokens.
    pub fn pages_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.page_size)
    }

    /// Takes a sequence in: finds the longest prefix of `ids` in full pages that is here under this `salt`, and holds
    /// it. The last token is never taken from the cache, since its output is wanted.
    ///
    /// The rest of `ids` is promised, not taken: pages come with [`KvPool::grow`], chunk by chunk. So that a burst of
    /// prompts does not count on the same pages, a promise counts against later admissions (not against `grow`).
    ///
    /// # Errors
    /// If the sequence's pages would leave fewer than `watermark` pages free and unpromised. A pool that holds and
    /// promised nothing asks for no watermark, so whatever fits [`KvPool::capacity_tokens`] can be admitted at last.
    pub fn admit(&mut self, salt: u64, ids: &[u32], watermark: u32) -> Result<Table, NoRoom> {
        let tokens = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let (chain, pages) = self.find(salt, ids);
        let waking = pages.iter().filter(|&&page| self.pages[page as usize].refs == 0).count() as u32;
        let promised = self.pages_for(tokens) - pages.len() as u32;
        let idle = self.used_pages() == 0 && self.promised == 0;
        let needed = if idle { promised } else { promised.saturating_add(watermark) };
        let free = self.free_pages().saturating_sub(waking).saturating_sub(self.promised);
        if needed > free {
            return Err(NoRoom { needed, free });
        }
        for &page in &pages {
            let state = &mut self.pages[page as usize];
            if state.refs == 0 {
                self.lru.remove(&state.let_go);
            }
            state.refs += 1;
        }
        self.promised += promised;
        let sealed = pages.len() as u32;
        let cached_tokens = sealed * self.page_size;
        self.stats.admitted_tokens += u64::from(tokens);
        self.stats.cached_tokens += u64::from(cached_tokens);
        self.note_peak();
        Ok(Table { pages, cached_tokens, sealed, promised, chain })
    }

    /// The longest cached prefix: its pages, and the hash chain at its end.
    fn find(&self, salt: u64, ids: &[u32]) -> (Chain, Vec<u32>) {
        let mut chain = Chain::new(salt);
        let mut pages = Vec::new();
        if self.prefix_reuse {
            let usable = &ids[..ids.len().saturating_sub(1)];
            for chunk in usable.chunks_exact(self.page_size as usize) {
                let next = chain.next(chunk);
                let Some(&page) = self.by_hash.get(&next.hash()) else { break };
                pages.push(page);
                chain = next;
            }
        }
        (chain, pages)
    }

    /// Makes the table cover positions below `tokens_total`: all or nothing.
    ///
    /// # Errors
    /// If there are too few pages, even with all cached ones evicted.
    pub fn grow(&mut self, table: &mut Table, tokens_total: u32) -> Result<(), NoRoom> {
        let needed = self.pages_for(tokens_total).saturating_sub(table.pages.len() as u32);
        let free = self.free_pages();
        if needed > free {
            return Err(NoRoom { needed, free });
        }
        for _ in 0..needed {
            let Some(page) = self.take() else { break };
            table.pages.push(page);
        }
        let kept = needed.min(table.promised);
        table.promised -= kept;
        self.promised -= kept;
        self.note_peak();
        Ok(())
    }

    fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => self.evict()?,
        };
        self.pages[page as usize].refs = 1;
        Some(page)
    }

    fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.lru.pop_first()?;
        if let Some(hash) = self.pages[page as usize].hash.take() {
            self.by_hash.remove(&hash);
        }
        self.stats.evicted_pages += 1;
        Some(page)
    }

    /// Says that positions below `computed` are written in every block, `ids` being the sequence's tokens from
    /// position 0: full pages among them can be found from now on. Where other pages with the same contents can be
    /// found already, the table's own stay private.
    ///
    /// `ids` must continue what the table was admitted and committed with. Calls that bring nothing new cost nothing.
    pub fn commit(&mut self, table: &mut Table, ids: &[u32], computed: u32) {
        if !self.prefix_reuse {
            return;
        }
        let full = (computed / self.page_size) as usize;
        let sealed = table.sealed as usize;
        let chunks = ids.chunks_exact(self.page_size as usize).skip(sealed);
        let fresh = chunks.zip(table.pages.iter().skip(sealed)).take(full.saturating_sub(sealed));
        for (chunk, &page) in fresh {
            table.chain = table.chain.next(chunk);
            table.sealed += 1;
            let hash = table.chain.hash();
            if let std::collections::hash_map::Entry::Vacant(slot) = self.by_hash.entry(hash) {
                slot.insert(page);
                self.pages[page as usize].hash = Some(hash);
            }
        }
    }

    /// Gives a table's pages back. Those that can be found by their contents stay cached, the ends of sequences to be
    /// evicted before their beginnings, which more sequences have in common.
    pub fn release(&mut self, table: Table) {
        let Table { pages, promised, .. } = table;
        self.promised -= promised;
        for page in pages.into_iter().rev() {
            let state = &mut self.pages[page as usize];
            state.refs -= 1;
            if state.refs > 0 {
                continue;
            }
            if state.hash.is_some() {
                state.let_go = self.clock;
                self.lru.insert(self.clock, page);
                self.clock += 1;
            } else {
                self.free.push(page);
            }
        }
    }

    fn note_peak(&mut self) {
        self.stats.peak_pages = self.stats.peak_pages.max(self.used_pages());
    }

    /// Checks the pool against `tables`, all that it has given out and not got back: for tests and the simulator.
    ///
    /// # Errors
    /// The first thing found wrong, in words.
    pub fn check<'a>(&self, tables: impl IntoIterator<Item = &'a Table>) -> Result<(), String> {
        let mut refs = vec![0; self.pages.len()];
        let mut promised = 0;
        for table in tables {
            promised += table.promised;
            for &page in &table.pages {
                refs[page as usize] += 1;
            }
        }
        if promised != self.promised {
            return Err(format!("{} pages promised, tables say {promised}", self.promised));
        }
        let mut free = vec![0; self.pages.len()];
        for &page in &self.free {
            free[page as usize] += 1;
        }
        for (page, state) in self.pages.iter().enumerate() {
            if state.refs != refs[page] {
                return Err(format!("page {page}: {} references, tables hold {}", state.refs, refs[page]));
            }
            let cached = u32::from(self.lru.get(&state.let_go) == Some(&(page as u32)));
            if free[page] + cached + state.refs.min(1) != 1 {
                let refs = state.refs;
                return Err(format!(
                    "page {page}: free {}x, cached {cached}x, {refs} references",
                    free[page]
                ));
            }
            let found = state.hash.and_then(|hash| self.by_hash.get(&hash)).copied();
            if found != state.hash.map(|_| page as u32) {
                return Err(format!("page {page}: its hash leads to {found:?}"));
            }
            if free[page] == 1 && state.hash.is_some() || cached == 1 && state.hash.is_none() {
                return Err(format!("page {page}: free with contents, or cached without"));
            }
        }
        let listed = self.pages.iter().filter(|state| state.hash.is_some()).count();
        if listed != self.by_hash.len() || self.lru.len() + self.free.len() > self.pages.len() {
            return Err(format!(
                "{} hashes for {listed} pages, {} cached",
                self.by_hash.len(),
                self.lru.len()
            ));
        }
        Ok(())
    }
}
