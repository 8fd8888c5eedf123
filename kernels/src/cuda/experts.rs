//! The experts of a block in one launch, over lists of rows that the device sorts by expert.

use cudarc::driver::CudaView;
use half::bf16;

use super::device::{Buffer, Device, Kernel};
use super::launch::{Start, argument, launch};
use super::merge::int;
use super::shape::MAX_SEGMENTS;
use super::{Error, ExpertShape, ExpertSlots};
use crate::error::{below, same};

/// `lists::kMaxUnits`.
const MAX_UNITS: usize = 512;
/// `ffn::kThreads`.
const FFN_THREADS: u32 = 384;
const LIST_THREADS: u32 = 1024;
/// Values of a 16-byte access: rows start at multiples of it.
const ROW_UNIT: usize = 8;
/// `ffn::kScratchPieces`, of 4 values, per warpgroup; a block has two.
const SCRATCH_VALUES_PER_BLOCK: usize = 2 * 4 * (2 * 192 / 8 * 128);

/// Which tiles a launch uses. The same bits in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// 128 weight rows x up to 128 tokens; up to 64 where experts have several segments.
    Small,
    /// 128 weight rows x up to 192 tokens, for experts in several segments.
    Wide,
    /// 256 weight rows x up to 160 tokens, for experts in one segment.
    Large,
}

impl Variant {
    /// The tokens that a tile may have, or none where the variant is not for such experts.
    pub fn chunks(self, segmented: bool) -> &'static [usize] {
        match (self, segmented) {
            (Self::Small, false) => &[8, 16, 32, 64, 96, 128],
            (Self::Small, true) => &[8, 16, 32, 64],
            (Self::Wide, true) => &[96, 128, 160, 192],
            (Self::Large, false) => &[64, 96, 128, 160],
            (Self::Wide, false) | (Self::Large, true) => &[],
        }
    }

    /// The fastest one (docs/kernels.md), where the fullest expert has so many rows.
    fn for_rows(rows: usize, segmented: bool) -> Self {
        let small = Self::Small.chunks(segmented).last().copied().unwrap_or(0);
        match (rows <= small, segmented) {
            (true, _) => Self::Small,
            (false, true) => Self::Wide,
            (false, false) => Self::Large,
        }
    }
}

/// How tiles are dealt to multiprocessors. The same bits in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Split {
    /// By the number of experts that have rows.
    Auto = 0,
    /// Every expert has multiprocessors of its own, where there are enough.
    Own = 1,
    /// Tile after tile from a counter.
    Dynamic = 2,
}

/// What a launch is tuned by; none of it changes a bit.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Rows that the fullest expert is expected to have.
    pub expected_rows: usize,
    /// The tiles, or by `expected_rows`.
    pub variant: Option<Variant>,
    /// How they are dealt.
    pub split: Split,
    /// Most tokens of a tile, one of [`Variant::chunks`], or 0 for what the fullest expert needs.
    pub chunk: usize,
    /// Blocks launched; 0 for one on each multiprocessor.
    pub blocks: usize,
}

impl Tuning {
    /// The defaults for launches whose fullest expert has about so many rows.
    pub fn for_rows(expected_rows: usize) -> Self {
        Self { expected_rows, variant: None, split: Split::Auto, chunk: 0, blocks: 0 }
    }
}

/// Rows of bf16 values at a stride, on the device.
#[derive(Debug)]
pub struct Rows<'a> {
    /// The memory.
    pub data: &'a Buffer<bf16>,
    /// Values between the starts of two rows.
    pub stride: usize,
}

/// Where a launch writes.
#[derive(Debug)]
pub enum Output<'a> {
    /// Outputs of whole experts.
    Whole(&'a mut Buffer<bf16>),
    /// Subtrees of slices.
    Subtree(&'a mut Buffer<f32>),
}

/// Which rows the pairs (token, k) read and write.
#[derive(Debug, Default)]
pub struct PairRows<'a> {
    /// The slot of each unit; unit u is in slot u if none is given.
    pub slots: Option<CudaView<'a, i32>>,
    /// The row that a pair reads; pair / K if none is given.
    pub source: Option<CudaView<'a, i32>>,
    /// The row that a pair writes; its own number if none is given.
    pub target: Option<CudaView<'a, i32>>,
}

/// The workspace of a block's experts: lists, inner rows and counters. One launch at a time uses it, and one workspace
/// at a time should be used on a device: blocks of a launch wait for one another.
#[derive(Debug)]
pub struct ExpertFfn {
    shape: ExpertShape,
    units: usize,
    max_pairs: usize,
    header: Buffer<i32>,
    entries: Buffer<i32>,
    source: Buffer<i32>,
    target: Buffer<i32>,
    h: Buffer<bf16>,
    /// Sums that wait for their sibling segments.
    scratch: Buffer<f32>,
    sync: Buffer<u32>,
    /// What the lists in `source` and `target` were checked against: rows read, rows written, slots.
    listed: Option<(usize, usize, usize)>,
    build_lists: Kernel,
    small: Kernel,
    small_segmented: Kernel,
    wide_segmented: Kernel,
    large: Kernel,
}

/// `ffn::Params`.
#[repr(C)]
struct Params {
    weights: u64,
    x: u64,
    header: u64,
    entries: u64,
    source: u64,
    target: u64,
    h: u64,
    y: u64,
    scratch: u64,
    sync: u64,
    slot_stride: i64,
    x_stride: i32,
    y_stride: i32,
    d: i32,
    f: i32,
    units: i32,
    max_chunk: i32,
    split: i32,
    y_is_f32: i32,
    segments: i32,
    segment_ends: [i32; MAX_SEGMENTS],
}

impl ExpertFfn {
    /// A workspace for up to `units` units of a block and `max_pairs` pairs (token, k) per launch.
    pub fn new(device: &Device, shape: &ExpertShape, units: usize, max_pairs: usize) -> Result<Self, Error> {
        if units == 0 || units > MAX_UNITS {
            return Err(
                crate::Error::Unsupported { what: format!("{units} units: use 1..={MAX_UNITS}") }.into()
            );
        }
        int(max_pairs)?;
        let segmented = shape.segment_ends().len() > 1;
        Ok(Self {
            shape: shape.clone(),
            units,
            max_pairs,
            header: device.zeros(4)?,
            entries: device.zeros(4 * units)?,
            source: device.zeros(max_pairs)?,
            target: device.zeros(max_pairs)?,
            h: device.zeros(max_pairs * shape.inner().len())?,
            scratch: device.zeros(if segmented {
                device.multiprocessors() * SCRATCH_VALUES_PER_BLOCK
            } else {
                0
            })?,
            sync: device.zeros(units + 2)?,
            listed: None,
            build_lists: device.kernel("lists", "build_lists", LIST_THREADS)?,
            small: device.expert_ffn("expert_ffn_small", FFN_THREADS)?,
            small_segmented: device.expert_ffn("expert_ffn_small_segmented", FFN_THREADS)?,
            wide_segmented: device.expert_ffn("expert_ffn_wide_segmented", FFN_THREADS)?,
            large: device.expert_ffn("expert_ffn_large", FFN_THREADS)?,
        })
    }

    /// The inner rows, for tests that poison them.
    pub fn inner_rows_mut(&mut self) -> &mut Buffer<bf16> {
        &mut self.h
    }

    /// Sorts the pairs (token, k) of the next launch by unit. `ids[pair]` is the router's choice; a pair whose unit is
    /// outside 0..units is not for this device, and left out. Rows are bounded by what [`ExpertFfn::run`] will be given:
    /// `rows_read` and `rows_written`, and `slots`.
    pub fn list(
        &mut self,
        device: &Device,
        ids: &CudaView<'_, i32>,
        top_k: usize,
        rows: &PairRows<'_>,
        bounds: (usize, usize, usize),
    ) -> Result<(), Error> {
        let pairs = ids.len();
        let (rows_read, rows_written, slots) = bounds;
        if pairs > self.max_pairs {
            return Err(crate::Error::Range { what: "pair", index: pairs - 1, len: self.max_pairs }.into());
        }
        if top_k == 0 {
            return Err(crate::Error::Unsupported { what: "0 experts per token".into() }.into());
        }
        match &rows.slots {
            Some(map) => same("slots of the units", self.units, map.len())?,
            None => below("unit", self.units - 1, slots)?,
        }
        match &rows.source {
            Some(source) => same("source rows (one per pair)", pairs, source.len())?,
            None if pairs > 0 => below("source row", (pairs - 1) / top_k, rows_read)?,
            None => {}
        }
        match &rows.target {
            Some(target) => same("target rows (one per pair)", pairs, target.len())?,
            None if pairs > 0 => below("target row", pairs - 1, rows_written)?,
            None => {}
        }
        let address = |view: &Option<CudaView<'_, i32>>| view.as_ref().map_or(0, |view| device.address(view));
        let (mut slot_map, mut source, mut target) =
            (address(&rows.slots), address(&rows.source), address(&rows.target));
        let mut ids = device.address(ids);
        let mut header = device.address_mut(&mut self.header);
        let mut entries = device.address_mut(&mut self.entries);
        let mut source_list = device.address_mut(&mut self.source);
        let mut target_list = device.address_mut(&mut self.target);
        let (mut pairs, mut top_k, mut units) = (int(pairs)?, int(top_k)?, int(self.units)?);
        let (mut slots_i32, mut read_i32, mut written_i32) =
            (int(slots)?, int(rows_read)?, int(rows_written)?);
        let mut arguments = [
            argument(&mut ids),
            argument(&mut pairs),
            argument(&mut top_k),
            argument(&mut units),
            argument(&mut slot_map),
            argument(&mut slots_i32),
            argument(&mut source),
            argument(&mut read_i32),
            argument(&mut target),
            argument(&mut written_i32),
            argument(&mut header),
            argument(&mut entries),
            argument(&mut source_list),
            argument(&mut target_list),
        ];
        // SAFETY: the parameters of `build_lists`; lengths are checked above, and the kernel traps on a slot or row that
        // is out of bounds.
        unsafe { launch(device, self.build_lists, (1, 1), Start::Overlapped, &mut arguments)? };
        self.listed = Some(bounds);
        Ok(())
    }

    /// Runs the listed pairs: for each, `y[target] = down(silu(gate(x[source])) * up(x[source]))` of its unit.
    ///
    /// `x` and `y` have the rows, and `weights` the slots, that [`ExpertFfn::list`] was told. Target rows are distinct.
    pub fn run(
        &mut self,
        device: &Device,
        weights: &ExpertSlots,
        x: &Rows<'_>,
        y: Output<'_>,
        y_stride: usize,
        tuning: &Tuning,
    ) -> Result<(), Error> {
        if weights.shape() != &self.shape {
            return Err(crate::Error::Unsupported {
                what: format!("slots of {:?} with a workspace for {:?}", weights.shape(), self.shape),
            }
            .into());
        }
        let Some((rows_read, rows_written, slots)) = self.listed else {
            return Err(
                crate::Error::Unsupported { what: "a launch before rows were listed for it".into() }.into()
            );
        };
        let d = self.shape.hidden();
        same("slots (as listed)", slots, weights.slots())?;
        check_rows("input", rows_read, x.data.len(), x.stride, d)?;
        let y_values = match &y {
            Output::Whole(buffer) if self.shape.is_whole() => buffer.len(),
            Output::Subtree(buffer) => buffer.len(),
            Output::Whole(_) => {
                return Err(crate::Error::Unsupported {
                    what: "the output of a slice as bf16: it is an f32 subtree".into(),
                }
                .into());
            }
        };
        check_rows("output", rows_written, y_values, y_stride, d)?;
        let kernel = self.choose(tuning)?;
        let blocks = if tuning.blocks == 0 { device.multiprocessors() } else { tuning.blocks };
        below("blocks (no more than multiprocessors)", blocks - 1, device.multiprocessors())?;

        let mut segment_ends = [0; MAX_SEGMENTS];
        for (end, value) in segment_ends.iter_mut().zip(self.shape.segment_ends()) {
            *end = int(value)?;
        }
        let y_is_f32 = i32::from(matches!(y, Output::Subtree(_)));
        let mut params = Params {
            weights: device.address(weights.weights()),
            x: device.address(x.data),
            header: device.address(&self.header),
            entries: device.address(&self.entries),
            source: device.address(&self.source),
            target: device.address(&self.target),
            h: device.address_mut(&mut self.h),
            y: match y {
                Output::Whole(buffer) => device.address_mut(buffer),
                Output::Subtree(buffer) => device.address_mut(buffer),
            },
            scratch: device.address_mut(&mut self.scratch),
            sync: device.address_mut(&mut self.sync),
            slot_stride: self.shape.slot_values() as i64,
            x_stride: int(x.stride)?,
            y_stride: int(y_stride)?,
            d: int(d)?,
            f: int(self.shape.inner().len())?,
            units: int(self.units)?,
            max_chunk: int(tuning.chunk)?,
            split: tuning.split as i32,
            y_is_f32,
            segments: int(self.shape.segment_ends().len())?,
            segment_ends,
        };
        // SAFETY: `Params` is the kernel's; every size is checked above, and the lists were checked by `build_lists`.
        unsafe { launch(device, kernel, (blocks as u32, 1), Start::Overlapped, &mut [argument(&mut params)]) }
    }

    fn choose(&self, tuning: &Tuning) -> Result<Kernel, Error> {
        let segmented = self.shape.segment_ends().len() > 1;
        let variant = tuning.variant.unwrap_or(Variant::for_rows(tuning.expected_rows, segmented));
        let chunks = variant.chunks(segmented);
        if chunks.is_empty() || !(tuning.chunk == 0 || chunks.contains(&tuning.chunk)) {
            return Err(crate::Error::Unsupported {
                what: format!(
                    "{variant:?} tiles of {} tokens for experts in {} segments: there are {chunks:?}",
                    tuning.chunk,
                    self.shape.segment_ends().len()
                ),
            }
            .into());
        }
        Ok(match variant {
            Variant::Small if segmented => self.small_segmented,
            Variant::Small => self.small,
            Variant::Wide => self.wide_segmented,
            Variant::Large => self.large,
        })
    }
}

/// Refuses rows that do not fit their memory or are not aligned.
fn check_rows(
    what: &'static str,
    rows: usize,
    values: usize,
    stride: usize,
    columns: usize,
) -> Result<(), crate::Error> {
    if stride < columns || !stride.is_multiple_of(ROW_UNIT) {
        return Err(crate::Error::Unsupported {
            what: format!(
                "{what} rows {stride} values apart: use a multiple of {ROW_UNIT} from {columns} on"
            ),
        });
    }
    let needed = if rows == 0 { 0 } else { (rows - 1) * stride + columns };
    if needed > values {
        return Err(crate::Error::Range { what: "value of a row", index: needed - 1, len: values });
    }
    Ok(())
}
