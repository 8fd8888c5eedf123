//! Experts: one grouped launch for the units of a block, with the down product in segments.

use std::ops::Range;

use super::context::Cpu;
use super::dtype::PANEL;
use super::isa::Isa;
use super::math::silu;
use super::matmul::{Emit, Epilogue, strip_pointers};
use super::memory::Aligned;
use super::packed::{PackedMatrix, Source};
use super::rows::check_slices;
use super::simd::{Kernel, LINE, Simd, dispatch};
use super::slab::{Io, Reader, Rows, Slab, Writer, stride};
use super::tile::{BUFFER, MAX_ROWS, MAX_STRIPS, Tiles, row_tiles, tiles};
use crate::Error;
use crate::error::{below, same};

/// The most segments an inner dimension is cut into.
pub(crate) const MAX_SEGMENTS: usize = 8;
/// Pending sums of the tree over them.
const LEVELS: usize = MAX_SEGMENTS.ilog2() as usize + 1;
/// Multiply-adds below which waking the pool costs more than it saves.
const PARALLEL_FROM: usize = 1 << 18;
/// Tasks per thread that a phase is cut into.
const TASKS_PER_THREAD: usize = 4;
/// Rows whose arithmetic takes about as long as streaming the weights: below it a task's cost does not fall.
const STREAM_ROWS: usize = 4;

/// Cuts an inner dimension `f` into `g` segments, as even as can be; boundaries are multiples of 32 where
/// `f / g >= 32`.
pub fn segments(f: usize, g: usize) -> Vec<Range<usize>> {
    let g = g.max(1);
    let unit = if f / g >= 32 { 32 } else { 1 };
    let bound = |i: usize| if i == g { f } else { f / unit * i / g * unit };
    (0..g).map(|i| bound(i)..bound(i + 1)).collect()
}

/// An expert's weights, or a slice of them: the inner columns of segments lo..hi out of G.
#[derive(Debug)]
pub struct Expert {
    gate: PackedMatrix,
    up: PackedMatrix,
    down: PackedMatrix,
    /// The held segments, within the held inner columns.
    segments: Vec<Range<usize>>,
}

impl Expert {
    /// Packs the slice `held` (segment numbers) of an expert whose inner dimension is cut into `g` segments.
    ///
    /// `gate` and `up` are the whole `[f, d]`, `down` the whole `[d, f]`. `g` and the length of `held` are powers of
    /// two up to 8, and `held` starts at a multiple of its length: a subtree.
    pub fn pack(
        gate: &Source<'_>,
        up: &Source<'_>,
        down: &Source<'_>,
        g: usize,
        held: Range<usize>,
    ) -> Result<Self, Error> {
        let count = held.len();
        if !(g.is_power_of_two() && g <= MAX_SEGMENTS) {
            return Err(Error::Unsupported { what: format!("{g} segments: use 1, 2, 4 or 8") });
        }
        if !count.is_power_of_two() || !held.start.is_multiple_of(count) || held.end > g {
            return Err(Error::Unsupported {
                what: format!(
                    "segments {held:?} of {g} are no subtree: use a power of two that starts at a multiple of itself"
                ),
            });
        }
        let (f, d) = gate.shape();
        same("rows of the up matrix (as of gate)", f, up.shape().0)?;
        same("columns of the up matrix (as of gate)", d, up.shape().1)?;
        same("rows of the down matrix (as columns of gate)", d, down.shape().0)?;
        same("columns of the down matrix (as rows of gate)", f, down.shape().1)?;
        let all = segments(f, g);
        let inner = all[held.start].start..all[held.end - 1].end;
        Ok(Self {
            gate: PackedMatrix::stack(&[gate.clone().rows(inner.clone())?])?,
            up: PackedMatrix::stack(&[up.clone().rows(inner.clone())?])?,
            down: PackedMatrix::stack(&[down.clone().cols(inner.clone())?])?,
            segments: all[held].iter().map(|s| s.start - inner.start..s.end - inner.start).collect(),
        })
    }

    /// Width of an input and output row, d.
    pub fn hidden(&self) -> usize {
        self.down.rows()
    }

    /// Inner columns held.
    pub fn inner(&self) -> usize {
        self.down.cols()
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        self.gate.bytes() + self.up.bytes() + self.down.bytes()
    }

    /// gate `[f, d]`, up `[f, d]` and down `[d, f]`, as held.
    pub fn matrices(&self) -> (&PackedMatrix, &PackedMatrix, &PackedMatrix) {
        (&self.gate, &self.up, &self.down)
    }

    /// The held segments, within the held inner columns.
    pub fn segments(&self) -> &[Range<usize>] {
        &self.segments
    }
}

/// One row of a grouped launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertRow {
    /// Index into the launch's experts.
    pub unit: u32,
    /// The input row.
    pub src: u32,
    /// The output row.
    pub dst: u32,
}

/// Where a grouped launch reads and writes its rows.
#[derive(Debug)]
pub enum ExpertIo<'a> {
    /// From one slab to another.
    Across {
        /// Read from here.
        src: &'a Slab,
        /// Written here.
        dst: &'a mut Slab,
    },
    /// Inside one slab.
    Within(&'a mut Slab),
}

/// Memory of the grouped launch.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Rows of each unit: `starts[u]..starts[u + 1]` of `src` and `dst`.
    starts: Vec<usize>,
    src: Vec<u32>,
    dst: Vec<u32>,
    tasks: Vec<Task>,
    inner: Option<Aligned<f32>>,
}

/// Panels of one unit, for all its rows.
#[derive(Clone, Copy, Debug)]
struct Task {
    unit: u32,
    start: u32,
    end: u32,
}

impl Cpu {
    /// Runs the experts of a block: for each row, `dst = down(silu(gate(src)) * up(src))` of its unit, as the f32
    /// subtree of the unit's segments.
    ///
    /// Rows may come in any order, and a source row may appear several times; destination rows are distinct and are
    /// not read. Both slabs have d columns.
    pub fn expert_ffn(
        &mut self,
        units: &[&Expert],
        rows: &[ExpertRow],
        io: ExpertIo<'_>,
    ) -> Result<(), Error> {
        let Some(first) = units.first() else {
            return rows.first().map_or(Ok(()), |r| below("unit", r.unit as usize, 0));
        };
        let d = first.hidden();
        for unit in units {
            same("hidden size of a unit (as of the first)", d, unit.hidden())?;
            if unit.gate.dtype() != first.gate.dtype() || unit.down.dtype() != first.down.dtype() {
                return Err(Error::Unsupported { what: "units of several dtypes in one launch".into() });
            }
        }
        let scratch = &mut self.experts;
        scratch.group(units.len(), rows)?;
        let (src_rows, dst_rows) = (Rows::List(&scratch.src), Rows::List(&scratch.dst));
        let resolved = match io {
            ExpertIo::Across { src, dst } => Io::Across { src, src_rows, dst, dst_rows },
            ExpertIo::Within(slab) => Io::Within { slab, src_rows, dst_rows },
        }
        .resolve(d, d)?;
        let (src, dst) = (resolved.src, resolved.dst);
        if rows.is_empty() {
            return Ok(());
        }

        let inner_stride = stride(units.iter().map(|u| u.inner()).max().unwrap_or(0).next_multiple_of(PANEL));
        let needed = inner_stride * rows.len();
        if scratch.inner.as_ref().is_none_or(|inner| inner.len() < needed) {
            scratch.inner = Some(Aligned::zeroed(needed.next_power_of_two()));
        }
        let Some(inner) = scratch.inner.as_mut() else { return Ok(()) };
        let launch = Launch {
            isa: self.isa,
            tiles_in: tiles(self.isa, first.gate.dtype()),
            tiles_out: tiles(self.isa, first.down.dtype()),
            units,
            starts: &scratch.starts,
            src_rows: &scratch.src,
            dst_rows: &scratch.dst,
            src,
            dst,
            inner: Writer::new(inner.as_mut_ptr(), inner_stride),
        };
        let work = 3 * d * launch.active().map(|(_, unit, n)| unit.inner() * n).sum::<usize>();
        let threads = if work < PARALLEL_FROM { 1 } else { self.pool.threads() };
        for phase in [Phase::In, Phase::Out] {
            if threads == 1 {
                for (unit, expert, _) in launch.active() {
                    // SAFETY: all panels of the unit, on this thread alone.
                    unsafe { launch.run(phase, unit, 0..phase.panels(expert)) };
                }
                continue;
            }
            launch.cut(phase, threads, &mut scratch.tasks);
            let tasks = &scratch.tasks;
            self.pool.each(tasks.len(), &|i| {
                let task = tasks[i];
                // SAFETY: tasks are disjoint panels of units; the second phase begins after the first has ended.
                unsafe { launch.run(phase, task.unit as usize, task.start as usize..task.end as usize) };
            });
        }
        Ok(())
    }

    /// `dst = tree(parts)`: adds the `slices` subtrees of each row, which lie in consecutive entries of `parts`, by the
    /// balanced binary tree, so that slices computed apart give the bits of one holder.
    pub fn combine_slices(&mut self, slices: usize, io: SliceIo<'_>) -> Result<(), Error> {
        check_slices(slices)?;
        let SliceIo { src, parts, dst, rows } = io;
        same("columns of the output slab (as of the input slab)", src.cols(), dst.cols())?;
        same("parts (slices times rows)", slices * rows.len(), parts.len())?;
        src.check_reads(parts)?;
        dst.check_writes(rows)?;
        let cols = src.cols();
        let (reader, writer) = (src.reader(), dst.writer());
        for i in 0..rows.len() {
            let mut part = [std::ptr::null(); MAX_SEGMENTS];
            for (s, pointer) in part.iter_mut().enumerate().take(slices) {
                // SAFETY: checked above.
                *pointer = unsafe { reader.row(parts.at(i * slices + s)) };
            }
            // SAFETY: the rows are `cols` long, and the slabs are distinct.
            unsafe { dispatch(self.isa, Tree { parts: &part[..slices], dst: writer.row(rows.at(i)), cols }) };
        }
        Ok(())
    }
}

/// Subtrees to add, and where the sums go.
#[derive(Debug)]
pub struct SliceIo<'a> {
    /// Holds the parts.
    pub src: &'a Slab,
    /// The slices of the first row in order, then of the second, ...
    pub parts: Rows<'a>,
    /// Takes the sums.
    pub dst: &'a mut Slab,
    /// One row per sum, distinct.
    pub rows: Rows<'a>,
}

struct Tree<'a> {
    parts: &'a [*const f32],
    dst: *mut f32,
    cols: usize,
}

impl Kernel for Tree<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.cols / S::LANES * S::LANES;
        let mut c = 0;
        while c < whole {
            // SAFETY: `c..c + LANES` lies in every row.
            unsafe { S::store(self.dst.add(c), tree::<S>(self.parts, c)) };
            c += S::LANES;
        }
        while c < self.cols {
            // SAFETY: c is in every row.
            unsafe { *self.dst.add(c) = tree_one(self.parts, c) };
            c += 1;
        }
    }
}

/// The balanced tree over a power of two of rows, for the vector at column `c`.
///
/// # Safety
/// As [`Simd`]; `c..c + LANES` lies in every row.
#[inline(always)]
pub(crate) unsafe fn tree<S: Simd>(parts: &[*const f32], c: usize) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [S::splat(0.0); MAX_SEGMENTS];
        for (sum, part) in sums.iter_mut().zip(parts) {
            *sum = S::load(part.add(c));
        }
        let mut len = parts.len();
        while len > 1 {
            len /= 2;
            for i in 0..len {
                sums[i] = S::add(sums[2 * i], sums[2 * i + 1]);
            }
        }
        sums[0]
    }
}

/// [`tree`] for one column.
///
/// # Safety
/// `c` lies in every row.
#[inline(always)]
pub(crate) unsafe fn tree_one(parts: &[*const f32], c: usize) -> f32 {
    let mut sums = [0f32; MAX_SEGMENTS];
    for (sum, part) in sums.iter_mut().zip(parts) {
        // SAFETY: the caller's.
        *sum = unsafe { *part.add(c) };
    }
    let mut len = parts.len();
    while len > 1 {
        len /= 2;
        for i in 0..len {
            sums[i] = sums[2 * i] + sums[2 * i + 1];
        }
    }
    sums[0]
}

impl Scratch {
    /// Sorts rows by unit, in place of the last call's.
    fn group(&mut self, units: usize, rows: &[ExpertRow]) -> Result<(), Error> {
        self.starts.clear();
        self.starts.resize(units + 1, 0);
        for row in rows {
            below("unit", row.unit as usize, units)?;
            self.starts[row.unit as usize] += 1;
        }
        let mut end = 0;
        for start in &mut self.starts {
            end += *start;
            *start = end;
        }
        // Each unit's entry now holds its end; filling backwards leaves its start, and the order of arrival.
        self.src.resize(rows.len(), 0);
        self.dst.resize(rows.len(), 0);
        for row in rows.iter().rev() {
            let at = &mut self.starts[row.unit as usize];
            *at -= 1;
            self.src[*at] = row.src;
            self.dst[*at] = row.dst;
        }
        Ok(())
    }
}

/// The two products of a launch. The second reads what the first wrote.
#[derive(Clone, Copy)]
enum Phase {
    In,
    Out,
}

impl Phase {
    fn panels(self, expert: &Expert) -> usize {
        match self {
            Phase::In => expert.gate.panels(),
            Phase::Out => expert.down.panels(),
        }
    }
}

struct Launch<'a> {
    isa: Isa,
    tiles_in: &'static Tiles,
    tiles_out: &'static Tiles,
    units: &'a [&'a Expert],
    starts: &'a [usize],
    src_rows: &'a [u32],
    dst_rows: &'a [u32],
    src: Reader,
    dst: Writer,
    /// One row per launch row, in grouped order.
    inner: Writer,
}

impl<'a> Launch<'a> {
    /// Units with rows: (index, expert, rows).
    fn active(&self) -> impl Iterator<Item = (usize, &'a Expert, usize)> {
        let (units, starts) = (self.units, self.starts);
        units.iter().enumerate().filter_map(move |(u, expert)| {
            let n = starts[u + 1] - starts[u];
            (n > 0).then_some((u, *expert, n))
        })
    }

    /// Cuts a phase into tasks of about equal cost.
    fn cut(&self, phase: Phase, threads: usize, tasks: &mut Vec<Task>) {
        tasks.clear();
        let cost = |n: usize| n.max(STREAM_ROWS);
        let total: usize = self.active().map(|(_, unit, n)| phase.panels(unit) * cost(n)).sum();
        let share = total.div_ceil(threads * TASKS_PER_THREAD).max(1);
        for (u, unit, n) in self.active() {
            let panels = phase.panels(unit);
            let pieces = (panels * cost(n)).div_ceil(share).min(panels).max(1);
            for i in 0..pieces {
                let (start, end) = (i * panels / pieces, (i + 1) * panels / pieces);
                tasks.push(Task { unit: u as u32, start: start as u32, end: end as u32 });
            }
        }
    }

    /// # Safety
    /// The unit has these panels, and no other thread has them in this phase.
    unsafe fn run(&self, phase: Phase, unit: usize, panels: Range<usize>) {
        // SAFETY: the caller's.
        unsafe {
            match phase {
                Phase::In => self.gate_up(unit, panels),
                Phase::Out => self.down(unit, panels),
            }
        }
    }

    /// `inner[row] = silu(x gate^T) * (x up^T)` for the unit's rows and the panels' outputs.
    unsafe fn gate_up(&self, unit: usize, panels: Range<usize>) {
        let (tiles, expert) = (self.tiles_in, self.units[unit]);
        let rows = self.starts[unit]..self.starts[unit + 1];
        let d = expert.hidden();
        let mut gate = [0f32; BUFFER];
        let mut up = [0f32; BUFFER];
        let mut x = [std::ptr::null::<f32>(); MAX_ROWS];
        let mut dst = [std::ptr::null_mut::<f32>(); MAX_ROWS];
        let largest = rows.len().div_ceil(rows.len().div_ceil(tiles.max_rows));
        let (mut strip, end) = (panels.start * tiles.strips(), panels.end * tiles.strips());
        while strip < end {
            // Both matrices in one tile where it is wide enough, else one after the other.
            let both = tiles.widest(largest, 2 * (end - strip));
            let width = (both / 2).max(1);
            // SAFETY: strips lie inside the packed data, rows inside the slab and the scratch.
            unsafe {
                let mut w = strip_pointers(&expert.gate, tiles, strip, width);
                let w_up = strip_pointers(&expert.up, tiles, strip, width);
                if both > 1 {
                    w[width..2 * width].copy_from_slice(&w_up[..width]);
                }
                for (first, count) in row_tiles(rows.len(), tiles.max_rows) {
                    for r in 0..count {
                        let row = rows.start + first + r;
                        x[r] = self.src.row(self.src_rows[row] as usize);
                        dst[r] = self.inner.row(row);
                    }
                    let gated = if both > 1 {
                        tiles.run((count, 2 * width), x.as_ptr(), w.as_ptr(), d, gate.as_mut_ptr());
                        let apart = width * 2 * tiles.lanes;
                        Gated {
                            gate: gate.as_ptr(),
                            up: gate.as_ptr().add(apart),
                            between: 2 * apart,
                            dst: &dst[..count],
                            strips: (strip, width),
                        }
                    } else {
                        tiles.run((count, 1), x.as_ptr(), w.as_ptr(), d, gate.as_mut_ptr());
                        tiles.run((count, 1), x.as_ptr(), w_up.as_ptr(), d, up.as_mut_ptr());
                        Gated {
                            gate: gate.as_ptr(),
                            up: up.as_ptr(),
                            between: 2 * tiles.lanes,
                            dst: &dst[..count],
                            strips: (strip, 1),
                        }
                    };
                    dispatch(self.isa, gated);
                }
            }
            strip += width;
        }
    }

    /// `dst[row] = tree over segments (inner[row] down^T)` for the unit's rows and the panels' outputs.
    unsafe fn down(&self, unit: usize, panels: Range<usize>) {
        let (tiles, expert) = (self.tiles_out, self.units[unit]);
        let rows = self.starts[unit]..self.starts[unit + 1];
        let mut sums = [[0f32; BUFFER]; LEVELS];
        let mut x = [std::ptr::null::<f32>(); MAX_ROWS];
        let mut dst = [std::ptr::null_mut::<f32>(); MAX_ROWS];
        let largest = rows.len().div_ceil(rows.len().div_ceil(tiles.max_rows));
        let (mut strip, end) = (panels.start * tiles.strips(), panels.end * tiles.strips());
        while strip < end {
            let width = tiles.widest(largest, end - strip);
            // SAFETY: strips lie inside the packed data, rows inside the slab and the scratch.
            unsafe {
                let w = strip_pointers(&expert.down, tiles, strip, width);
                for (first, count) in row_tiles(rows.len(), tiles.max_rows) {
                    for (dst, row) in dst.iter_mut().zip(&self.dst_rows[rows.start + first..][..count]) {
                        *dst = self.dst.row(*row as usize);
                    }
                    let mut depth = 0;
                    for (i, segment) in expert.segments.iter().enumerate() {
                        for (r, x) in x.iter_mut().enumerate().take(count) {
                            *x = self.inner.row(rows.start + first + r).add(segment.start);
                        }
                        let w: [*const u8; MAX_STRIPS] = std::array::from_fn(|p| {
                            if p < width { w[p].add(segment.start * tiles.step_bytes) } else { w[p] }
                        });
                        let out = sums[depth].as_mut_ptr();
                        tiles.run((count, width), x.as_ptr(), w.as_ptr(), segment.len(), out);
                        depth += 1;
                        // Segment i closes as many subtrees as i + 1 has trailing zeros.
                        for _ in 0..(i + 1).trailing_zeros() {
                            let (left, right) = sums.split_at_mut(depth - 1);
                            let len = count * width * 2 * tiles.lanes;
                            dispatch(
                                self.isa,
                                Add { left: &mut left[depth - 2][..len], right: &right[0][..len] },
                            );
                            depth -= 1;
                        }
                    }
                    let emit = Emit {
                        buffer: &sums[0],
                        dst: &dst[..count],
                        strips: (strip, width),
                        outputs: expert.hidden(),
                        epilogue: Epilogue::default(),
                    };
                    dispatch(self.isa, emit);
                }
            }
            strip += width;
        }
    }
}

/// `left += right`, for whole vectors.
struct Add<'a> {
    left: &'a mut [f32],
    right: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (left, right) = (self.left.as_mut_ptr(), self.right.as_ptr());
        let mut i = 0;
        while i + S::LANES <= self.left.len() {
            // SAFETY: both are as long; a tile's length is a multiple of its lanes.
            unsafe { S::store(left.add(i), S::add(S::load(left.add(i)), S::load(right.add(i)))) };
            i += S::LANES;
        }
    }
}

/// Stores `silu(gate) * up` to scratch rows, which are padded to whole panels.
struct Gated<'a> {
    /// Sums `[R][..][2][LANES]`, rows `between` values apart.
    gate: *const f32,
    up: *const f32,
    between: usize,
    dst: &'a [*mut f32],
    strips: (usize, usize),
}

impl Kernel for Gated<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let per_panel = LINE / S::LANES;
        let (strip, width) = self.strips;
        for (r, dst) in self.dst.iter().enumerate() {
            for p in 0..width {
                let (panel, k) = ((strip + p) / per_panel, (strip + p) % per_panel);
                for half in 0..2 {
                    let o = panel * PANEL + half * LINE + k * S::LANES;
                    let at = r * self.between + (p * 2 + half) * S::LANES;
                    // SAFETY: the buffers hold the tile, and the scratch row the whole panel.
                    unsafe {
                        let h = S::mul(silu::<S>(S::load(self.gate.add(at))), S::load(self.up.add(at)));
                        S::store(dst.add(o), h);
                    }
                }
            }
        }
    }
}
