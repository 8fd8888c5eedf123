//! The experts of a block in one launch, over lists of rows that the device sorts by expert.

use cudarc::driver::CudaView;
use half::bf16;

use super::dense::row_map;
use super::device::{Buffer, Device, Kernel};
use super::launch::{Start, argument, clusters_at_once, launch, launch_clusters};
use super::merge::int;
use super::shape::MAX_SEGMENTS;
use super::{Error, ExpertShape, ExpertSlots};
use crate::error::{below, same};

/// `lists::kMaxUnits`.
const MAX_UNITS: usize = 512;
/// `ffn::kThreads`.
const FFN_THREADS: u32 = 384;
/// All the shared memory that a block can have on Hopper; `kSharedLimit` in the kernel's source.
const FFN_SHARED: u32 = 227 * 1024;
const LIST_THREADS: u32 = 1024;
const GATHER_THREADS: u32 = 256;
/// `paired::kBlocks`.
const PAIRED_BLOCKS: usize = 2;
/// `paired::kStageColumns`.
const PAIRED_COLUMNS: usize = 64;
/// `paired::kBoxRows`.
const PAIRED_BOX_ROWS: usize = 32;
/// `lists::kFew`: pairs that `expert_ffn` lists by itself, without a launch before it.
const FEW_PAIRS: usize = 32;
/// Values of a 16-byte access: rows start at multiples of it.
const ROW_UNIT: usize = 8;
/// `ffn::kScratchPieces`, of 4 values, per warpgroup; a block has two.
const SCRATCH_VALUES_PER_BLOCK: usize = 2 * 4 * (2 * 192 / 8 * 128);

/// Which tiles a launch uses. The same bits in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// 128 weight rows x up to 128 tokens; up to 64 where experts have several segments.
    Small,
    /// 128 weight rows x up to 256 tokens; up to 192 where experts have several segments.
    Wide,
    /// 256 weight rows x up to 160 tokens, for experts in one segment.
    Large,
    /// 128 weight rows x up to 256 tokens by each of two blocks that share weights or tokens, over rows gathered before: for
    /// experts in one segment whose sizes are multiples of 64.
    Paired,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Small, Self::Wide, Self::Large, Self::Paired];

    /// The tokens that a tile may have, or none where the variant is not for such experts.
    pub fn chunks(self, shape: &ExpertShape) -> &'static [usize] {
        match (self, shape.segment_ends().len() > 1) {
            (Self::Small, false) => &[8, 16, 32, 64, 96, 128],
            (Self::Small, true) => &[8, 16, 32, 64],
            (Self::Wide, true) => &[96, 128, 160, 192],
            (Self::Wide, false) => &[64, 128, 192, 256],
            (Self::Large, false) => &[64, 96, 128, 160],
            (Self::Paired, false) if pairable(shape) => &[32, 96, 128, 160, 192, 256],
            (Self::Large | Self::Paired, _) => &[],
        }
    }

    /// The fastest one (docs/kernels.md), where the fullest expert has so many rows: small tiles while one holds them all,
    /// and then pairs of blocks, or else what streams that expert's weights least often.
    fn for_rows(rows: usize, shape: &ExpertShape) -> Self {
        let passes =
            |variant: Self| variant.chunks(shape).last().map_or(usize::MAX, |most| rows.div_ceil(*most));
        if passes(Self::Small) <= 1 {
            Self::Small
        } else if pairable(shape) {
            Self::Paired
        } else if passes(Self::Large) <= passes(Self::Wide) {
            Self::Large
        } else {
            Self::Wide
        }
    }
}

/// Whether [`Variant::Paired`] is for such experts.
fn pairable(shape: &ExpertShape) -> bool {
    let whole_stages = |columns: usize| columns.is_multiple_of(PAIRED_COLUMNS);
    shape.segment_ends().len() == 1 && whole_stages(shape.hidden()) && whole_stages(shape.inner().len())
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

impl Output<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Whole(buffer) => buffer.len(),
            Self::Subtree(buffer) => buffer.len(),
        }
    }
}

/// The pairs (token, k) of a launch: which unit each goes to, and which rows it reads and writes.
#[derive(Debug)]
pub struct Pairs<'a> {
    /// The router's choices. A pair whose unit is outside 0..units is not for this device, and left out.
    pub ids: CudaView<'a, i32>,
    /// Experts per token, K.
    pub top_k: usize,
    /// The slot of each unit; unit u is in slot u if none is given.
    pub slots: Option<CudaView<'a, i32>>,
    /// The row that a pair reads; pair / K if none is given.
    pub source: Option<CudaView<'a, i32>>,
    /// The row that a pair writes, each another; its own number if none is given.
    pub target: Option<CudaView<'a, i32>>,
}

impl<'a> Pairs<'a> {
    /// Pairs in order: token t reads row t, and pair p writes row p.
    pub fn in_order(ids: CudaView<'a, i32>, top_k: usize) -> Self {
        Self { ids, top_k, slots: None, source: None, target: None }
    }
}

/// What a launch runs over.
#[derive(Debug)]
pub struct ExpertCall<'a> {
    /// The experts' weights.
    pub weights: &'a ExpertSlots,
    /// The input slab.
    pub x: Rows<'a>,
    /// The output slab.
    pub y: Output<'a>,
    /// Values between the starts of two output rows.
    pub y_stride: usize,
    /// Speeds it up, and changes no bit.
    pub tuning: Tuning,
}

/// What the lists of a launch are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Rows of the input slab.
    pub rows_read: usize,
    /// Rows of the output slab.
    pub rows_written: usize,
    /// Slots.
    pub slots: usize,
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
    /// What the lists in `source` and `target` were checked against, and how many pairs they were made from.
    listed: Option<(Bounds, usize)>,
    /// Rows of x in the order of the lists, for [`Variant::Paired`].
    gathered: Buffer<bf16>,
    build_lists: Kernel,
    gather_listed: Kernel,
    small: Kernel,
    small_segmented: Kernel,
    wide: Kernel,
    wide_segmented: Kernel,
    large: Kernel,
    paired: Kernel,
    /// Clusters of `paired` that run at once.
    clusters: usize,
}

/// `lists::Pairs`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PairsParams {
    ids: u64,
    slots: u64,
    source: u64,
    target: u64,
    pairs: i32,
    top_k: i32,
    units: i32,
    slot_count: i32,
    source_rows: i32,
    target_rows: i32,
}

/// `ffn::Params`.
#[repr(C)]
struct Params {
    weights: u64,
    x: u64,
    few: PairsParams,
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
        let variant = |name| device.kernel_with_shared("expert_ffn", name, FFN_THREADS, FFN_SHARED);
        let paired =
            device.kernel_with_shared("expert_ffn_paired", "expert_ffn_paired", FFN_THREADS, FFN_SHARED)?;
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
            gathered: device.zeros(if pairable(shape) { max_pairs * shape.hidden() } else { 0 })?,
            build_lists: device.kernel("lists", "build_lists", LIST_THREADS)?,
            gather_listed: device.kernel("lists", "gather_listed", GATHER_THREADS)?,
            small: variant("expert_ffn_small")?,
            small_segmented: variant("expert_ffn_small_segmented")?,
            wide: variant("expert_ffn_wide")?,
            wide_segmented: variant("expert_ffn_wide_segmented")?,
            large: variant("expert_ffn_large")?,
            paired,
            clusters: clusters_at_once(device, paired, PAIRED_BLOCKS as u32)?,
        })
    }

    /// The inner rows, for tests that poison them.
    pub fn inner_rows_mut(&mut self) -> &mut Buffer<bf16> {
        &mut self.h
    }

    /// Runs the pairs: for each, `y[target] = down(silu(gate(x[source])) * up(x[source]))` of its unit.
    ///
    /// A few are listed by the same launch; more by one before it.
    pub fn run(&mut self, device: &Device, pairs: &Pairs<'_>, call: ExpertCall<'_>) -> Result<(), Error> {
        let d = self.shape.hidden();
        let bounds = Bounds {
            rows_read: rows_in(call.x.data.len(), call.x.stride, d),
            rows_written: rows_in(call.y.len(), call.y_stride, d),
            slots: call.weights.slots(),
        };
        if pairs.ids.is_empty() {
            return Ok(());
        }
        if pairs.ids.len() > FEW_PAIRS || self.variant(&call.tuning)? == Variant::Paired {
            self.list(device, pairs, bounds)?;
            return self.run_listed(device, call);
        }
        let few = self.pairs_params(device, pairs, bounds)?;
        self.launch(device, few, bounds, call)
    }

    /// Sorts the pairs of the next [`ExpertFfn::run_listed`] by unit.
    pub fn list(&mut self, device: &Device, pairs: &Pairs<'_>, bounds: Bounds) -> Result<(), Error> {
        let mut params = self.pairs_params(device, pairs, bounds)?;
        let mut header = device.address_mut(&mut self.header);
        let mut entries = device.address_mut(&mut self.entries);
        let mut source_list = device.address_mut(&mut self.source);
        let mut target_list = device.address_mut(&mut self.target);
        let mut arguments = [
            argument(&mut params),
            argument(&mut header),
            argument(&mut entries),
            argument(&mut source_list),
            argument(&mut target_list),
        ];
        // SAFETY: the parameters of `build_lists`; lengths are checked, and the kernel traps on a slot or row that is out
        // of bounds.
        unsafe { launch(device, self.build_lists, (1, 1), Start::Overlapped, &mut arguments)? };
        self.listed = Some((bounds, pairs.ids.len()));
        Ok(())
    }

    /// Runs the listed pairs, over the rows and slots that [`ExpertFfn::list`] was told.
    pub fn run_listed(&mut self, device: &Device, call: ExpertCall<'_>) -> Result<(), Error> {
        let Some((bounds, _)) = self.listed else {
            return Err(crate::Error::Unsupported {
                what: "a launch before pairs were listed for it".into(),
            }
            .into());
        };
        self.launch(device, PairsParams::default(), bounds, call)
    }

    fn pairs_params(&self, device: &Device, pairs: &Pairs<'_>, bounds: Bounds) -> Result<PairsParams, Error> {
        let count = pairs.ids.len();
        if count > self.max_pairs {
            return Err(crate::Error::Range { what: "pair", index: count - 1, len: self.max_pairs }.into());
        }
        if pairs.top_k == 0 {
            return Err(crate::Error::Unsupported { what: "0 experts per token".into() }.into());
        }
        match &pairs.slots {
            Some(map) => same("slots of the units", self.units, map.len())?,
            None => below("unit", self.units - 1, bounds.slots)?,
        }
        match &pairs.source {
            Some(source) => same("source rows (one per pair)", count, source.len())?,
            None if count > 0 => below("source row", (count - 1) / pairs.top_k, bounds.rows_read)?,
            None => {}
        }
        match &pairs.target {
            Some(target) => same("target rows (one per pair)", count, target.len())?,
            None if count > 0 => below("target row", count - 1, bounds.rows_written)?,
            None => {}
        }
        let address = |view: &Option<CudaView<'_, i32>>| view.as_ref().map_or(0, |view| device.address(view));
        Ok(PairsParams {
            ids: device.address(&pairs.ids),
            slots: address(&pairs.slots),
            source: address(&pairs.source),
            target: address(&pairs.target),
            pairs: int(count)?,
            top_k: int(pairs.top_k)?,
            units: int(self.units)?,
            slot_count: int(bounds.slots)?,
            source_rows: int(bounds.rows_read)?,
            target_rows: int(bounds.rows_written)?,
        })
    }

    fn launch(
        &mut self,
        device: &Device,
        few: PairsParams,
        bounds: Bounds,
        call: ExpertCall<'_>,
    ) -> Result<(), Error> {
        let ExpertCall { weights, x, y, y_stride, tuning } = call;
        if !weights.has_room(&self.shape) {
            return Err(crate::Error::Unsupported {
                what: format!("slots of {:?} with a workspace for {:?}", weights.shape(), self.shape),
            }
            .into());
        }
        if matches!(y, Output::Whole(_)) && !self.shape.is_whole() {
            return Err(crate::Error::Unsupported {
                what: "the output of a slice as bf16: it is an f32 subtree".into(),
            }
            .into());
        }
        let d = self.shape.hidden();
        same("slots (as listed)", bounds.slots, weights.slots())?;
        check_rows("input", bounds.rows_read, x.data.len(), x.stride, d)?;
        check_rows("output", bounds.rows_written, y.len(), y_stride, d)?;
        let variant = self.variant(&tuning)?;
        let blocks = if tuning.blocks == 0 { device.multiprocessors() } else { tuning.blocks };
        below("blocks (no more than multiprocessors)", blocks - 1, device.multiprocessors())?;

        let mut segment_ends = [0; MAX_SEGMENTS];
        for (end, value) in segment_ends.iter_mut().zip(self.shape.segment_ends()) {
            *end = int(value)?;
        }
        let mut params = Params {
            weights: device.address(weights.weights()),
            x: device.address(x.data),
            few,
            header: device.address(&self.header),
            entries: device.address(&self.entries),
            source: device.address(&self.source),
            target: device.address(&self.target),
            h: device.address_mut(&mut self.h),
            y_is_f32: i32::from(matches!(y, Output::Subtree(_))),
            y: match y {
                Output::Whole(buffer) => device.address_mut(buffer),
                Output::Subtree(buffer) => device.address_mut(buffer),
            },
            scratch: device.address_mut(&mut self.scratch),
            sync: device.address_mut(&mut self.sync),
            slot_stride: weights.shape().slot_values() as i64,
            x_stride: int(x.stride)?,
            y_stride: int(y_stride)?,
            d: int(d)?,
            f: int(self.shape.inner().len())?,
            units: int(self.units)?,
            max_chunk: int(tuning.chunk)?,
            split: tuning.split as i32,
            segments: int(self.shape.segment_ends().len())?,
            segment_ends,
        };
        let kernel = match variant {
            Variant::Small if segment_ends[1] > 0 => self.small_segmented,
            Variant::Small => self.small,
            Variant::Wide if segment_ends[1] > 0 => self.wide_segmented,
            Variant::Wide => self.wide,
            Variant::Large => self.large,
            Variant::Paired => return self.launch_paired(device, &x, params, blocks),
        };
        // SAFETY: `Params` is the kernel's; every size is checked above, and rows and slots where they are listed.
        unsafe { launch(device, kernel, (blocks as u32, 1), Start::Overlapped, &mut [argument(&mut params)]) }
    }

    /// Gathers the listed rows, and runs clusters over them.
    fn launch_paired(
        &mut self,
        device: &Device,
        x: &Rows<'_>,
        mut params: Params,
        blocks: usize,
    ) -> Result<(), Error> {
        let Some((_, pairs)) = self.listed.filter(|(_, pairs)| *pairs > 0) else { return Ok(()) };
        let (d, f) = (self.shape.hidden(), self.shape.inner().len());
        let (mut x_from, mut x_stride, mut columns) = (device.address(x.data), int(x.stride)?, int(d)?);
        let (mut header, mut source) = (device.address(&self.header), device.address(&self.source));
        let mut gathered = device.address_mut(&mut self.gathered);
        let mut arguments = [
            argument(&mut x_from),
            argument(&mut x_stride),
            argument(&mut columns),
            argument(&mut header),
            argument(&mut source),
            argument(&mut gathered),
        ];
        // SAFETY: the parameters of `gather_listed`; the lists hold rows of x, as they were checked when they were made.
        unsafe {
            launch(device, self.gather_listed, (pairs as u32, 1), Start::Overlapped, &mut arguments)?;
        }
        let mut x_map = row_map(gathered, self.max_pairs, d, d, PAIRED_BOX_ROWS)?;
        let mut h_map = row_map(params.h, self.max_pairs, f, f, PAIRED_BOX_ROWS)?;
        let clusters = (blocks / PAIRED_BLOCKS).clamp(1, self.clusters.max(1));
        let mut arguments = [argument(&mut x_map), argument(&mut h_map), argument(&mut params)];
        // SAFETY: the parameters of `expert_ffn_paired`; as for the other variants.
        unsafe { launch_clusters(device, self.paired, clusters as u32, PAIRED_BLOCKS as u32, &mut arguments) }
    }

    fn variant(&self, tuning: &Tuning) -> Result<Variant, Error> {
        let variant = tuning.variant.unwrap_or(Variant::for_rows(tuning.expected_rows, &self.shape));
        let chunks = variant.chunks(&self.shape);
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
        Ok(variant)
    }
}

/// Whole rows in memory of so many values.
fn rows_in(values: usize, stride: usize, columns: usize) -> usize {
    if values < columns || stride == 0 { 0 } else { (values - columns) / stride + 1 }
}

/// Refuses rows that do not fit their memory or are not aligned.
pub(crate) fn check_rows(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_grow_with_the_fullest_expert() {
        let shape = |hidden, g| ExpertShape::new(hidden, 256, g, 0..g).unwrap();
        let chosen = |rows| Variant::for_rows(rows, &shape(512, 1));
        assert_eq!([0, 1, 128].map(chosen), [Variant::Small; 3]);
        assert_eq!([129, 256, 427].map(chosen), [Variant::Paired; 3]);
        // A hidden size that is no multiple of 64.
        let chosen = |rows| Variant::for_rows(rows, &shape(96, 1));
        assert_eq!([129, 160, 280].map(chosen), [Variant::Large; 3]);
        assert_eq!([161, 256, 427].map(chosen), [Variant::Wide; 3]);
        let chosen = |rows| Variant::for_rows(rows, &shape(512, 8));
        assert_eq!([1, 64].map(chosen), [Variant::Small; 2]);
        assert_eq!([65, 192, 1000].map(chosen), [Variant::Wide; 3]);
    }

    #[test]
    fn rows_must_fit_their_memory_and_be_aligned() {
        assert_eq!(rows_in(0, 64, 64), 0);
        assert_eq!(rows_in(63, 64, 64), 0);
        assert_eq!(rows_in(64 + 2 * 80, 80, 64), 3);
        assert!(check_rows("input", 3, 64 + 2 * 80, 80, 64).is_ok());
        assert!(check_rows("input", 4, 64 + 2 * 80, 80, 64).is_err());
        assert!(check_rows("input", 1, 640, 60, 64).is_err());
        assert!(check_rows("input", 1, 640, 68, 64).is_err());
    }

    /// The kernel reads these structs field by field.
    #[test]
    fn parameters_have_the_layout_of_the_kernels() {
        assert_eq!(size_of::<PairsParams>(), 56);
        assert_eq!(std::mem::offset_of!(Params, header), 72);
        assert_eq!(std::mem::offset_of!(Params, slot_stride), 136);
        assert_eq!(std::mem::offset_of!(Params, segment_ends), 180);
        assert_eq!(size_of::<Params>(), 216);
    }
}
