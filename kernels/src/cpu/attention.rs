//! Attention over the paged KV cache, in a fixed order per query.
//!
//! The order is a function of the query's own position: blocks of 64 positions and chunks of 512, both aligned to the
//! sequence's start (see the crate's numerics contract). Queries that share a key head, the heads of a group and the
//! rows of a segment, are computed side by side; so are chunks, when there are too few queries to fill the pool.
// Loops over a tile's constant sizes index several register arrays at once.
#![allow(clippy::needless_range_loop)]

use std::mem::MaybeUninit;

use super::context::Cpu;
use super::isa::Isa;
use super::kv::{KvCache, KvSegment, MAX_HEAD_DIM, PAGE};
use super::math::{exp, exp1};
use super::reduce::{fold, larger};
use super::simd::{Kernel, LINE, Simd, dispatch, max};
use super::slab::{Io, Resolved};
use crate::Error;

/// Positions of a block: the unit of online softmax.
const BLOCK: usize = 64;
/// Pages of a block.
const PAGES: usize = BLOCK / PAGE;
/// Positions of a chunk: computed from nothing, then merged in order.
const CHUNK: usize = 512;
/// Queries that are computed together.
const QUERIES: usize = 24;
/// Vectors of a tile per query.
const VECTORS: usize = 4;
/// Multiply-adds below which waking the pool costs more than it saves.
const PARALLEL_FROM: usize = 1 << 17;

/// What attention computes, besides its rows.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// The block whose cache is read.
    pub block: usize,
    /// Query heads: a multiple of the cache's heads. Query head h reads cache head `h / (heads / cache heads)`.
    pub heads: usize,
    /// The first query column of an input row.
    pub query_column: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// A query at position p sees positions above `p - window` only.
    pub window: Option<u32>,
}

impl Attention {
    /// The positions a query sees.
    fn visible(&self, position: usize) -> (usize, usize) {
        let first = self.window.map_or(0, |w| (position + 1).saturating_sub(w.max(1) as usize));
        (first, position + 1)
    }
}

/// Memory of a call.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    items: Vec<Item>,
    /// Chunks that are computed apart: (item, chunk).
    tasks: Vec<(u32, u32)>,
    parts: Vec<Part>,
    values: Vec<f32>,
}

/// Queries of one segment and one cache head: `rows * heads` of them, at most [`QUERIES`], row by row.
#[derive(Clone, Copy, Debug)]
struct Item {
    segment: usize,
    /// The call's row of the first query, its position, and how many rows.
    row: usize,
    position: usize,
    rows: usize,
    kv_head: usize,
    /// The first query head, and how many.
    head: usize,
    heads: usize,
    /// Chunks that any of its queries sees.
    chunks: (usize, usize),
    /// Its first partial result, when chunks are computed apart.
    part: usize,
}

impl Item {
    fn queries(&self) -> usize {
        self.rows * self.heads
    }
}

/// A query's state: the maximum and the sum of the weights. Its values lie elsewhere.
#[derive(Clone, Copy, Debug)]
struct Part {
    max: f32,
    sum: f32,
}

impl Part {
    /// Saw nothing yet.
    const EMPTY: Part = Part { max: f32::NEG_INFINITY, sum: 0.0 };
}

impl Cpu {
    /// Attention of each row's query heads over the positions it sees in its sequence, its own included (so its keys
    /// and values are appended before).
    ///
    /// Segments follow each other in the order of the rows. An output row holds `heads * head_dim` columns.
    pub fn paged_attention(
        &mut self,
        cache: &KvCache,
        io: Io<'_>,
        segments: &[KvSegment<'_>],
        attention: Attention,
    ) -> Result<(), Error> {
        let shape = cache.shape();
        let width = attention.heads * shape.head_dim;
        if shape.heads == 0 || attention.heads == 0 || !attention.heads.is_multiple_of(shape.heads) {
            return Err(Error::Unsupported {
                what: format!(
                    "{} query heads over {} key heads: use a multiple",
                    attention.heads, shape.heads
                ),
            });
        }
        let columns = io.src_cols();
        if attention.query_column + width > columns {
            return Err(Error::Range { what: "column", index: attention.query_column + width, len: columns });
        }
        let rows = io.resolve(columns, width)?;
        cache.check(attention.block, rows.len(), segments, |first| attention.visible(first).0)?;

        let threads = self.pool.threads();
        let Scratch { items, tasks, parts, values } = &mut self.attention;
        let seen = list_items(items, segments, attention, shape.heads);
        let job = Job { isa: self.isa, cache, rows, segments, attention };
        if threads == 1 || seen * shape.head_dim < PARALLEL_FROM {
            for item in items.iter() {
                // SAFETY: rows and pages are checked; one thread.
                unsafe { job.whole(item) };
            }
            return Ok(());
        }
        let enough = items.len() >= 2 * threads || items.iter().all(|i| i.chunks.1 - i.chunks.0 <= 1);
        if enough {
            // SAFETY: as above; items write disjoint columns of rows.
            self.pool.each(items.len(), &|i| unsafe { job.whole(&items[i]) });
            return Ok(());
        }
        tasks.clear();
        let mut part = 0;
        for (i, item) in items.iter_mut().enumerate() {
            item.part = part;
            part += item.queries() * (item.chunks.1 - item.chunks.0);
            tasks.extend((item.chunks.0..item.chunks.1).map(|chunk| (i as u32, chunk as u32)));
        }
        let stride = cache.value_stride();
        parts.resize(part, Part::EMPTY);
        values.resize(part * stride, 0.0);
        let state = States { parts: parts.as_mut_ptr(), values: values.as_mut_ptr(), stride };
        self.pool.each(tasks.len(), &|t| {
            let (item, chunk) = (&items[tasks[t].0 as usize], tasks[t].1 as usize);
            // SAFETY: rows and pages are checked; each task has states of its own.
            unsafe { job.chunk(item, chunk, state.of(item, chunk)) };
        });
        self.pool.each(items.len(), &|i| {
            let item = &items[i];
            // SAFETY: the chunks' states are complete, and items write disjoint columns of rows.
            unsafe {
                let total = state.of(item, item.chunks.0);
                for chunk in item.chunks.0 + 1..item.chunks.1 {
                    job.merge(item, chunk, total, state.of(item, chunk));
                }
                job.finish(item, total);
            }
        });
        Ok(())
    }
}

/// Lists the items of a call; returns how many (query, position) pairs they have.
fn list_items(
    items: &mut Vec<Item>,
    segments: &[KvSegment<'_>],
    attention: Attention,
    kv_heads: usize,
) -> usize {
    items.clear();
    let group = attention.heads / kv_heads;
    let heads = group.min(QUERIES);
    let rows = QUERIES / heads;
    let mut seen = 0;
    let mut row = 0;
    for (index, segment) in segments.iter().enumerate() {
        for first in (0..segment.len).step_by(rows) {
            let rows = rows.min(segment.len - first);
            let position = segment.first_position as usize + first;
            let (start, _) = attention.visible(position);
            let (_, end) = attention.visible(position + rows - 1);
            seen += (end - start) * rows * attention.heads;
            for kv_head in 0..kv_heads {
                for head in (0..group).step_by(heads) {
                    items.push(Item {
                        segment: index,
                        row: row + first,
                        position,
                        rows,
                        kv_head,
                        head: kv_head * group + head,
                        heads: heads.min(group - head),
                        chunks: (start / CHUNK, end.div_ceil(CHUNK)),
                        part: 0,
                    });
                }
            }
        }
        row += segment.len;
    }
    seen
}

/// Where queries keep their states: query i of an item in `parts[i]` and `values[i * stride..]`.
#[derive(Clone, Copy)]
struct States {
    parts: *mut Part,
    values: *mut f32,
    stride: usize,
}

// SAFETY: threads use disjoint parts of it, inside one call that owns the memory.
unsafe impl Send for States {}
// SAFETY: as above.
unsafe impl Sync for States {}

impl States {
    /// The states of an item's queries for one chunk.
    unsafe fn of(self, item: &Item, chunk: usize) -> Self {
        // SAFETY: inside the memory that the call reserved.
        unsafe { self.at(item.part + (chunk - item.chunks.0) * item.queries()) }
    }

    #[inline(always)]
    unsafe fn at(self, i: usize) -> Self {
        // SAFETY: the caller's.
        unsafe {
            Self { parts: self.parts.add(i), values: self.values.add(i * self.stride), stride: self.stride }
        }
    }
}

struct Job<'a> {
    isa: Isa,
    cache: &'a KvCache,
    rows: Resolved<'a>,
    segments: &'a [KvSegment<'a>],
    attention: Attention,
}

impl Job<'_> {
    /// Computes an item, chunk after chunk.
    unsafe fn whole(&self, item: &Item) {
        const VALUES: usize = QUERIES * MAX_HEAD_DIM;
        let mut parts = [Part::EMPTY; 2 * QUERIES];
        let mut values = MaybeUninit::<[f32; 2 * VALUES]>::uninit();
        let stride = self.cache.value_stride();
        let total = States { parts: parts.as_mut_ptr(), values: values.as_mut_ptr().cast(), stride };
        // SAFETY: `chunk` writes a state before `merge` and `finish` read it; both halves hold all queries.
        unsafe {
            let next = States { parts: total.parts.add(QUERIES), values: total.values.add(VALUES), stride };
            self.chunk(item, item.chunks.0, total);
            for chunk in item.chunks.0 + 1..item.chunks.1 {
                self.chunk(item, chunk, next);
                self.merge(item, chunk, total, next);
            }
            self.finish(item, total);
        }
    }

    /// The positions of a chunk that the item's i-th row sees; empty where it sees none.
    fn seen(&self, item: &Item, row: usize, chunk: usize) -> (usize, usize) {
        let (first, end) = self.attention.visible(item.position + row);
        (first.max(chunk * CHUNK), end.min((chunk + 1) * CHUNK))
    }

    /// Writes the states of the item's queries over one chunk.
    unsafe fn chunk(&self, item: &Item, chunk: usize, states: States) {
        let mut queries = [Query { q: std::ptr::null(), seen: (0, 0) }; QUERIES];
        let head_dim = self.cache.shape().head_dim;
        for row in 0..item.rows {
            let seen = self.seen(item, row, chunk);
            for h in 0..item.heads {
                let column = self.attention.query_column + (item.head + h) * head_dim;
                // SAFETY: the row and its columns are in range.
                let q = unsafe { self.rows.src.row(self.rows.src_rows.at(item.row + row)).add(column) };
                queries[row * item.heads + h] = Query { q, seen };
            }
        }
        let kernel = Chunk {
            cache: self.cache,
            block: self.attention.block,
            kv_head: item.kv_head,
            pages: self.segments[item.segment].pages,
            scale: self.attention.scale,
            start: chunk * CHUNK,
            queries: &queries[..item.queries()],
            states,
        };
        // SAFETY: the set is available; queries, pages and states are valid.
        unsafe { dispatch(self.isa, kernel) };
    }

    /// Adds a chunk's states to those of the chunks before it.
    unsafe fn merge(&self, item: &Item, chunk: usize, total: States, next: States) {
        for query in 0..item.queries() {
            let (first, end) = self.seen(item, query / item.heads, chunk);
            if first >= end {
                continue;
            }
            let sees_before = self.attention.visible(item.position + query / item.heads).0 < chunk * CHUNK;
            // SAFETY: both states are complete and distinct.
            unsafe {
                let (total, next) = (total.at(query), next.at(query));
                dispatch(self.isa, MergeStates { total, next, first: !sees_before });
            }
        }
    }

    /// Writes the item's outputs.
    unsafe fn finish(&self, item: &Item, total: States) {
        let head_dim = self.cache.shape().head_dim;
        for query in 0..item.queries() {
            let (row, h) = (query / item.heads, query % item.heads);
            // SAFETY: the state is complete; the row and its columns are in range, and no other item writes them.
            unsafe {
                let dst =
                    self.rows.dst.row(self.rows.dst_rows.at(item.row + row)).add((item.head + h) * head_dim);
                dispatch(self.isa, Finish { state: total.at(query), dst, head_dim });
            }
        }
    }
}

/// One query over one chunk.
#[derive(Clone, Copy)]
struct Query {
    q: *const f32,
    /// The positions it sees there.
    seen: (usize, usize),
}

struct Chunk<'a> {
    cache: &'a KvCache,
    block: usize,
    kv_head: usize,
    pages: &'a [u32],
    scale: f32,
    start: usize,
    queries: &'a [Query],
    states: States,
}

/// A query that sees positions `from..to` of a block (counted from the block's start).
#[derive(Clone, Copy)]
struct Active {
    query: usize,
    from: usize,
    to: usize,
    /// What its values are multiplied by before the block's are added.
    alpha: f32,
}

/// Calls a tile with a constant number of queries.
macro_rules! by_queries {
    ($n:expr, $set:ty, $call:ident $(::<$($generic:tt),+>)? ($($arg:expr),*)) => {{
        const { assert!(<$set>::ACCUMULATORS / VECTORS <= 6) };
        match $n {
            1 => $call::<$set, 1 $(, $($generic),+)?>($($arg),*),
            2 => $call::<$set, 2 $(, $($generic),+)?>($($arg),*),
            3 if <$set>::ACCUMULATORS >= 3 * VECTORS => $call::<$set, 3 $(, $($generic),+)?>($($arg),*),
            4 if <$set>::ACCUMULATORS >= 4 * VECTORS => $call::<$set, 4 $(, $($generic),+)?>($($arg),*),
            5 if <$set>::ACCUMULATORS >= 5 * VECTORS => $call::<$set, 5 $(, $($generic),+)?>($($arg),*),
            6 if <$set>::ACCUMULATORS >= 6 * VECTORS => $call::<$set, 6 $(, $($generic),+)?>($($arg),*),
            n => unreachable!("no tile of {n} queries"),
        }
    }};
}

impl Kernel for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let tile = S::ACCUMULATORS / VECTORS;
        let (head_dim, stride) = (self.cache.shape().head_dim, self.cache.value_stride());
        let mut lanes = [[0f32; LINE]; QUERIES];
        let mut weights = MaybeUninit::<[[f32; BLOCK]; QUERIES]>::uninit();
        let weights = weights.as_mut_ptr().cast::<f32>();
        // SAFETY: queries, pages and states are valid (the caller's), and the weights of active queries are written
        // before they are read.
        unsafe {
            for i in 0..self.queries.len() {
                let state = self.states.at(i);
                *state.parts = Part::EMPTY;
                std::ptr::write_bytes(state.values, 0, stride);
            }
            let end = self.queries.iter().map(|q| q.seen.1).max().unwrap_or(0);
            for start in (self.start..self.start + CHUNK).step_by(BLOCK) {
                let mut active = [Active { query: 0, from: 0, to: 0, alpha: 0.0 }; QUERIES];
                let (mut count, mut low, mut high) = (0, BLOCK, 0);
                for (query, q) in self.queries.iter().enumerate() {
                    let (from, to) = (q.seen.0.max(start), q.seen.1.min(start + BLOCK));
                    if from < to {
                        active[count] = Active { query, from: from - start, to: to - start, alpha: 0.0 };
                        count += 1;
                        low = low.min(from - start);
                        high = high.max(to - start);
                    }
                }
                if count == 0 {
                    continue;
                }
                let active = &mut active[..count];
                // Pages that nobody sees may not exist: any other stands in for them, its scores are masked.
                let mut keys = [std::ptr::null::<f32>(); PAGES];
                let mut values = [std::ptr::null::<f32>(); PAGES];
                for page in 0..PAGES {
                    let held = page.clamp(low / PAGE, (high - 1) / PAGE);
                    let number = *self.pages.get_unchecked(start / PAGE + held) as usize;
                    (keys[page], values[page]) = self.cache.page(self.block, number, self.kv_head);
                }

                // The next block's keys, asked for while this block's values are used.
                let mut next = keys;
                if start + BLOCK < end {
                    for (page, next) in next.iter_mut().enumerate() {
                        let held = (start / PAGE + PAGES + page).min((end - 1) / PAGE);
                        *next = self.cache.page(self.block, self.pages[held] as usize, self.kv_head).0;
                    }
                }

                for (nth, group) in active.chunks(tile).enumerate() {
                    let mut q = [std::ptr::null::<f32>(); QUERIES];
                    let mut out = [std::ptr::null_mut::<f32>(); QUERIES];
                    for (i, a) in group.iter().enumerate() {
                        q[i] = self.queries[a.query].q;
                        out[i] = weights.add(a.query * BLOCK);
                    }
                    for token in (0..BLOCK).step_by(VECTORS * S::LANES) {
                        // The block's values, asked for while the first tile uses its keys.
                        let ahead = if nth == 0 { &values } else { &keys };
                        let (keys, ahead) =
                            (keys.as_ptr().add(token / PAGE), ahead.as_ptr().add(token / PAGE));
                        by_queries!(
                            group.len(),
                            S,
                            scores(q.as_ptr(), (keys, ahead), head_dim, out.as_ptr(), token)
                        );
                    }
                }
                for a in active.iter_mut() {
                    let part = &mut *self.states.at(a.query).parts;
                    let row = weights.add(a.query * BLOCK);
                    a.alpha = soften::<S>(row, a.from, a.to, self.scale, part, &mut lanes[a.query]);
                }
                let mut first = 0;
                while first < count {
                    let (from, to) = (active[first].from, active[first].to);
                    let same = active[first..]
                        .iter()
                        .take(tile)
                        .take_while(|a| (a.from, a.to) == (from, to))
                        .count();
                    let group = &active[first..first + same];
                    let mut d = 0;
                    while d + VECTORS * S::LANES <= stride {
                        let at = (d, stride, from, to);
                        by_queries!(same, S, weigh::<4>(group, weights, (&values, &next), self.states, at));
                        d += VECTORS * S::LANES;
                    }
                    while d < stride {
                        let at = (d, stride, from, to);
                        by_queries!(same, S, weigh::<1>(group, weights, (&values, &next), self.states, at));
                        d += S::LANES;
                    }
                    first += same;
                }
            }
            for i in 0..self.queries.len() {
                (*self.states.at(i).parts).sum = fold(lanes[i], |a, b| a + b);
            }
        }
    }
}

/// `out[r][token..] = chain(q[r], key of each of 4 * LANES positions)`; `keys` points to the pages from `token` on,
/// and as many lines at `ahead` are asked for meanwhile.
#[inline(always)]
unsafe fn scores<S: Simd, const R: usize>(
    q: *const *const f32,
    (keys, ahead): (*const *const f32, *const *const f32),
    head_dim: usize,
    out: *const *mut f32,
    token: usize,
) {
    // SAFETY: the caller's: pages hold `head_dim` lines of 16, queries `head_dim` values, outputs a block.
    unsafe {
        let zero = S::splat(0.0);
        let mut acc = [[zero; VECTORS]; R];
        let mut qs = [std::ptr::null::<f32>(); R];
        let mut ks = [std::ptr::null::<f32>(); VECTORS];
        let mut aheads = [std::ptr::null::<f32>(); VECTORS];
        for r in 0..R {
            qs[r] = *q.add(r);
        }
        for v in 0..VECTORS {
            ks[v] = (*keys.add(v * S::LANES / PAGE)).add(v * S::LANES % PAGE);
            aheads[v] = *ahead.add(v * S::LANES / PAGE);
        }
        for i in 0..head_dim {
            let mut k = [zero; VECTORS];
            for v in 0..VECTORS {
                k[v] = S::load(ks[v].add(i * PAGE));
                if v * S::LANES % PAGE == 0 {
                    S::prefetch(aheads[v].wrapping_add(i * PAGE).cast());
                }
            }
            for r in 0..R {
                let x = S::splat(*qs[r].add(i));
                for v in 0..VECTORS {
                    acc[r][v] = S::fma(x, k[v], acc[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..VECTORS {
                S::store((*out.add(r)).add(token + v * S::LANES), acc[r][v]);
            }
        }
    }
}

/// Turns a block's scores into weights and brings the query's maximum and sum up to date; returns alpha.
#[inline(always)]
unsafe fn soften<S: Simd>(
    row: *mut f32,
    from: usize,
    to: usize,
    scale: f32,
    part: &mut Part,
    lanes: &mut [f32; LINE],
) -> f32 {
    // SAFETY: the row is a block long.
    unsafe {
        for t in 0..from {
            *row.add(t) = f32::NEG_INFINITY;
        }
        for t in to..BLOCK {
            *row.add(t) = f32::NEG_INFINITY;
        }
        let mut top = [0f32; LINE];
        for l in (0..LINE).step_by(S::LANES) {
            let mut m = S::splat(f32::NEG_INFINITY);
            for t in (l..BLOCK).step_by(LINE) {
                let s = S::mul(S::load(row.add(t)), S::splat(scale));
                S::store(row.add(t), s);
                m = max::<S>(m, s);
            }
            S::store(top.as_mut_ptr().add(l), m);
        }
        let new = larger(part.max, fold(top, larger));
        let alpha = exp1(part.max - new);
        for l in (0..LINE).step_by(S::LANES) {
            let mut sum = S::mul(S::load(lanes.as_ptr().add(l)), S::splat(alpha));
            for t in (l..BLOCK).step_by(LINE) {
                let w = exp::<S>(S::sub(S::load(row.add(t)), S::splat(new)));
                S::store(row.add(t), w);
                sum = S::add(sum, w);
            }
            S::store(lanes.as_mut_ptr().add(l), sum);
        }
        part.max = new;
        alpha
    }
}

/// For R queries that see the same positions, and N vectors of columns from d on:
/// `o = o * alpha`, then the chain of `fma(weight, v, o)` over the positions. Meanwhile the matching part of the pages
/// at `next` is asked for.
#[inline(always)]
unsafe fn weigh<S: Simd, const R: usize, const N: usize>(
    group: &[Active],
    weights: *const f32,
    (values, next): (&[*const f32; PAGES], &[*const f32; PAGES]),
    states: States,
    at: (usize, usize, usize, usize),
) {
    let (d, stride, from, to) = at;
    // SAFETY: the caller's: pages hold 16 lines of `stride` values, states `stride` values, weights a block.
    unsafe {
        let zero = S::splat(0.0);
        let mut acc = [[zero; N]; R];
        let mut o = [std::ptr::null_mut::<f32>(); R];
        let mut w = [std::ptr::null::<f32>(); R];
        for r in 0..R {
            o[r] = states.at(group[r].query).values.add(d);
            w[r] = weights.add(group[r].query * BLOCK);
            for n in 0..N {
                acc[r][n] = S::mul(S::load(o[r].add(n * S::LANES)), S::splat(group[r].alpha));
            }
        }
        for page in from / PAGE..to.div_ceil(PAGE) {
            let lines = values[page].add(d);
            let (first, end) = (from.max(page * PAGE), to.min((page + 1) * PAGE));
            for t in first..end {
                let line = lines.add((t - page * PAGE) * stride);
                // A page has a line of keys per column, and these N vectors' columns have 16 positions to ask for them.
                let share = N * S::LANES / PAGE;
                for j in 0..share {
                    let column = d + (t - page * PAGE) * share + j;
                    S::prefetch(next[page].wrapping_add(column * PAGE).cast());
                }
                let mut v = [zero; N];
                for n in 0..N {
                    v[n] = S::load(line.add(n * S::LANES));
                }
                for r in 0..R {
                    let x = S::splat(*w[r].add(t));
                    for n in 0..N {
                        acc[r][n] = S::fma(x, v[n], acc[r][n]);
                    }
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                S::store(o[r].add(n * S::LANES), acc[r][n]);
            }
        }
    }
}

struct MergeStates {
    total: States,
    next: States,
    /// Nothing came before: take the next as it is.
    first: bool,
}

impl Kernel for MergeStates {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: both states are valid and distinct; values are a multiple of 16 long.
        unsafe {
            let (old, new) = (*self.total.parts, *self.next.parts);
            if self.first {
                *self.total.parts = new;
                std::ptr::copy_nonoverlapping(self.next.values, self.total.values, self.total.stride);
                return;
            }
            let top = larger(old.max, new.max);
            let (a, b) = (exp1(old.max - top), exp1(new.max - top));
            *self.total.parts = Part { max: top, sum: new.sum.mul_add(b, old.sum * a) };
            for d in (0..self.total.stride).step_by(S::LANES) {
                let o = S::mul(S::load(self.total.values.add(d)), S::splat(a));
                S::store(self.total.values.add(d), S::fma(S::load(self.next.values.add(d)), S::splat(b), o));
            }
        }
    }
}

struct Finish {
    state: States,
    dst: *mut f32,
    head_dim: usize,
}

impl Kernel for Finish {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the state is valid and at least `head_dim` long, as are the output columns.
        unsafe {
            let inverse = 1.0 / (*self.state.parts).sum;
            let whole = self.head_dim / S::LANES * S::LANES;
            let mut d = 0;
            while d < whole {
                S::store(self.dst.add(d), S::mul(S::load(self.state.values.add(d)), S::splat(inverse)));
                d += S::LANES;
            }
            while d < self.head_dim {
                *self.dst.add(d) = *self.state.values.add(d) * inverse;
                d += 1;
            }
        }
    }
}
