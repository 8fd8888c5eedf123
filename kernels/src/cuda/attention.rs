//! Attention over the paged cache: decode and prefill.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use half::bf16;

use super::Error;
use super::device::{Buffer, Device, Kernel};
use super::experts::{Rows, check_rows};
use super::kv::{KvCache, KvCall, KvShape, at_most};
use super::launch::{Start, argument, launch};
use super::merge::int;
use crate::error::same;

const PLAN_THREADS: u32 = 1024;
/// `attention::Unit` and `attention::Header`, in integers.
const UNIT_INTS: usize = 10;
const HEADER_INTS: usize = 4;
/// Query heads per key head that the kernels take.
const MAX_GROUP: usize = 64;

/// How many queries are computed together. The same bits in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiles {
    /// 8 queries: for segments of one or a few rows. The time is that of the keys' and values' bytes.
    Decode,
    /// 128 queries: for longer segments. The time is that of the products.
    Prefill,
}

impl Tiles {
    fn queries(self) -> usize {
        match self {
            Self::Decode => 8,
            Self::Prefill => 128,
        }
    }

    fn warpgroups(self) -> usize {
        match self {
            Self::Decode => 1,
            Self::Prefill => 2,
        }
    }

    /// Blocks of a launch that a multiprocessor runs at once.
    fn blocks_per_multiprocessor(self) -> usize {
        match self {
            Self::Decode => 2,
            Self::Prefill => 1,
        }
    }

    /// `attention::kDecodeShared` and `kPrefillShared`.
    fn shared(self) -> u32 {
        match self {
            Self::Decode => 112 * 1024,
            Self::Prefill => 227 * 1024,
        }
    }

    /// `Shape::kThreads`.
    fn threads(self) -> u32 {
        match self {
            Self::Decode => 128 + 32,
            Self::Prefill => 2 * 128 + 128,
        }
    }
}

/// What attention computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads: a multiple of the cache's heads. Query head h reads cache head `h / (heads / cache heads)`.
    pub heads: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// A query at position p sees positions above `p - window` only.
    pub window: Option<u32>,
}

/// What a plan has room for.
#[derive(Clone, Copy, Debug)]
pub struct PlanLimits {
    /// Units of work: tiles of rows, and chunks of 512 positions that are computed apart.
    pub units: usize,
    /// Parts that wait for the others of their tile. A tile for which none are left is computed in one piece.
    pub parts: usize,
}

/// The attention of some of a call's segments, cut into units of work: built once per step, and run for each block.
/// One launch at a time uses it.
#[derive(Debug)]
pub struct AttentionPlan {
    tiles: Tiles,
    attention: Attention,
    shape: KvShape,
    limits: PlanLimits,
    header: Buffer<i32>,
    units: Buffer<i32>,
    part_values: Buffer<f32>,
    part_sums: Buffer<f32>,
    arrivals: Buffer<u32>,
    sync: Buffer<u32>,
    /// Rows and page list entries of the call that it was built for.
    built: Option<(usize, usize)>,
    plan: Kernel,
    run: Kernel,
}

/// `attention::PlanParams`.
#[repr(C)]
struct PlanParams {
    segments: u64,
    header: u64,
    units: u64,
    segment_count: i32,
    tile_rows: i32,
    heads: i32,
    blocks: i32,
    window: i32,
    max_units: i32,
    max_slots: i32,
}

/// `attention::Params`.
#[repr(C)]
struct Params {
    cache: u64,
    q: u64,
    out: u64,
    header: u64,
    units: u64,
    pages: u64,
    part_values: u64,
    part_sums: u64,
    arrivals: u64,
    sync: u64,
    q_stride: i32,
    out_stride: i32,
    page_entries: i32,
    page_count: i32,
    heads: i32,
    group: i32,
    window: i32,
    scale: f32,
    max_units: i32,
    reserved: i32,
}

impl AttentionPlan {
    /// Room for plans of so many units, over a cache of `shape`.
    pub fn new(
        device: &Device,
        shape: KvShape,
        attention: Attention,
        tiles: Tiles,
        limits: PlanLimits,
    ) -> Result<Self, Error> {
        let group = attention.heads.checked_div(shape.heads).unwrap_or(0);
        let most = MAX_GROUP.min(tiles.queries());
        if group * shape.heads != attention.heads || group == 0 || group > most {
            return Err(crate::Error::Unsupported {
                what: format!(
                    "{} query heads over {} key heads in {tiles:?} tiles: use 1 to {most} times as many",
                    attention.heads, shape.heads
                ),
            }
            .into());
        }
        // The kernels compare scores before they are multiplied.
        if !(attention.scale > 0.0 && attention.scale.is_finite()) {
            return Err(crate::Error::Unsupported {
                what: format!("scores multiplied by {}: use a number above 0", attention.scale),
            }
            .into());
        }
        let name = match (tiles, shape.head_dim) {
            (Tiles::Decode, 64) => "attention_decode_64",
            (Tiles::Decode, _) => "attention_decode_128",
            (Tiles::Prefill, 64) => "attention_prefill_64",
            (Tiles::Prefill, _) => "attention_prefill_128",
        };
        int(limits.units * shape.heads)?;
        int(limits.parts * shape.heads)?;
        let queries = limits.parts * shape.heads * tiles.queries();
        Ok(Self {
            tiles,
            attention,
            shape,
            limits,
            header: device.zeros(HEADER_INTS)?,
            units: device.zeros(limits.units.max(1) * UNIT_INTS)?,
            part_values: device.zeros(queries * shape.head_dim)?,
            part_sums: device.zeros(2 * queries)?,
            arrivals: device.zeros(limits.units.max(1) * shape.heads * tiles.warpgroups())?,
            sync: device.zeros(2)?,
            built: None,
            plan: device.kernel("attention_plan", "attention_plan", PLAN_THREADS)?,
            run: device.kernel_with_shared("attention", name, tiles.threads(), tiles.shared())?,
        })
    }

    /// Blocks that the device runs at once: the most of a launch.
    pub fn max_blocks(&self, device: &Device) -> usize {
        device.multiprocessors() * self.tiles.blocks_per_multiprocessor()
    }

    /// Cuts the attention of the segments `segments` of a call for a launch of so many blocks (0: what the device holds
    /// at once). The kernel traps if there are more units than the plan has room for.
    pub fn build(
        &mut self,
        device: &Device,
        call: &KvCall,
        segments: Range<usize>,
        blocks: usize,
    ) -> Result<(), Error> {
        at_most("end of the segments", call.segments(), segments.end)?;
        let group = self.attention.heads / self.shape.heads;
        let mut params = PlanParams {
            segments: call.segment_address(device, segments.start),
            header: device.address_mut(&mut self.header),
            units: device.address_mut(&mut self.units),
            segment_count: int(segments.len())?,
            tile_rows: int(self.tiles.queries() / group)?,
            heads: int(self.shape.heads)?,
            blocks: int(if blocks == 0 { self.max_blocks(device) } else { blocks })?,
            window: self.window()?,
            max_units: int(self.limits.units)?,
            max_slots: int(self.limits.parts)?,
        };
        // SAFETY: `PlanParams` is the kernel's; the segments are in the call, and it writes no more units than there is
        // room for.
        unsafe { launch(device, self.plan, (1, 1), Start::Overlapped, &mut [argument(&mut params)])? };
        self.built = Some((call.rows(), call.page_entries()));
        Ok(())
    }

    /// Attention of the planned rows over the positions that each sees, its own included: its keys and values are
    /// written before. Queries are the first columns of the rows of `q`; an output row has `heads * head_dim` columns.
    /// `blocks` (0: what the device holds at once) changes no bit.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &mut self,
        device: &Device,
        cache: &KvCache,
        block: usize,
        call: &KvCall,
        q: &Rows<'_>,
        out: &mut Buffer<bf16>,
        out_stride: usize,
        blocks: usize,
    ) -> Result<(), Error> {
        if self.built != Some((call.rows(), call.page_entries())) {
            return Err(crate::Error::Unsupported {
                what: "running a plan that was not built for this call: build it first".into(),
            }
            .into());
        }
        let shape = cache.shape();
        call.check(shape)?;
        same("heads of the cache (as planned)", self.shape.heads, shape.heads)?;
        same("values of a head of the cache (as planned)", self.shape.head_dim, shape.head_dim)?;
        let columns = self.attention.heads * shape.head_dim;
        check_rows("query", call.rows(), q.data.len(), q.stride, columns)?;
        check_rows("output", call.rows(), out.len(), out_stride, columns)?;
        let mut params = Params {
            cache: cache.block(device, block)?,
            q: device.address(q.data),
            out: device.address_mut(out),
            header: device.address(&self.header),
            units: device.address(&self.units),
            pages: call.pages_address(device),
            part_values: device.address_mut(&mut self.part_values),
            part_sums: device.address_mut(&mut self.part_sums),
            arrivals: device.address_mut(&mut self.arrivals),
            sync: device.address_mut(&mut self.sync),
            q_stride: int(q.stride)?,
            out_stride: int(out_stride)?,
            page_entries: int(call.page_entries())?,
            page_count: int(shape.pages)?,
            heads: int(shape.heads)?,
            group: int(self.attention.heads / shape.heads)?,
            window: self.window()?,
            scale: self.attention.scale * LOG2_E,
            max_units: int(self.limits.units)?,
            reserved: 0,
        };
        // Blocks wait for one another.
        let most = self.max_blocks(device);
        at_most("blocks of a launch (at once)", most, blocks)?;
        let grid = (int(if blocks == 0 { most } else { blocks })?.unsigned_abs(), 1);
        // SAFETY: `Params` is the kernel's; rows fit their memory, and the kernel traps on a page that the cache lacks.
        unsafe { launch(device, self.run, grid, Start::Overlapped, &mut [argument(&mut params)]) }
    }

    /// The parts of the last run, for tests that poison them.
    pub fn parts_mut(&mut self) -> (&mut Buffer<f32>, &mut Buffer<f32>) {
        (&mut self.part_values, &mut self.part_sums)
    }

    /// Units of the last plan for one key head, tiles, and parts.
    pub fn counts(&self, device: &Device) -> Result<(usize, usize, usize), Error> {
        let header = device.download(&self.header.as_view())?;
        let count = |i: usize| usize::try_from(header[i]).unwrap_or(0);
        Ok((count(0), count(1), count(2)))
    }

    /// A window of 0 sees its own position, as one of 1 does; the kernels take 0 for none.
    fn window(&self) -> Result<i32, crate::Error> {
        self.attention.window.map_or(Ok(0), |window| int(window.max(1) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels read these structs field by field.
    #[test]
    fn parameters_have_the_layout_of_the_kernels() {
        assert_eq!(size_of::<PlanParams>(), 56);
        assert_eq!(size_of::<Params>(), 120);
        assert_eq!(std::mem::offset_of!(Params, q_stride), 80);
    }
}
