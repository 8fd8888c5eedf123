//! Products of all rows with one matrix: the projections around attention, and the logits.

use cudarc::driver::{CudaView, DriverError, sys};
use half::bf16;

use super::Error;
use super::device::{Buffer, Device, Kernel};
use super::error::Doing;
use super::experts::{Rows, check_rows};
use super::kv::at_most;
use super::launch::{argument, clusters_at_once, launch_clusters};
use super::merge::int;
use super::relayout::Relayout;
use crate::error::same;

/// `dense::kThreads`.
const THREADS: u32 = 384;
/// `dense::kSharedLimit`.
const SHARED: u32 = 227 * 1024;
/// `dense::kSegments`.
const SEGMENTS: usize = 4;
/// `dense::kStageColumns`.
const STAGE_COLUMNS: usize = 64;
/// `layout::kStripRows`.
const STRIP_ROWS: usize = 8;
/// `dense::many::kBlocks`.
const SHARING_BLOCKS: usize = 2;
/// Rows of a group of strips: parts of a matrix are laid out apart from each other at multiples of it.
const GROUP_ROWS: usize = 128;
/// Matrices of fewer outputs have too few tiles for a device's multiprocessors once tiles are wide.
const FEW_OUTPUTS: usize = 16384;
/// From so many outputs on, blocks that compute all segments are faster from 65 rows on, else from 129.
const WHOLE_OUTPUTS: usize = 5120;
/// Stages of K that a segment must have to be worth a block.
const SEGMENT_STAGES: usize = 4;

/// A matrix `[outputs, columns]`, and in how many segments a product walks its columns: the bits depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenseShape {
    outputs: usize,
    columns: usize,
    segments: usize,
}

impl DenseShape {
    /// One segment for matrices of many outputs (a vocabulary), and four for others.
    pub fn new(outputs: usize, columns: usize) -> Result<Self, Error> {
        let cut = outputs < FEW_OUTPUTS && columns >= SEGMENTS * SEGMENT_STAGES * STAGE_COLUMNS;
        Self::in_segments(outputs, columns, if cut { SEGMENTS } else { 1 })
    }

    /// In one segment or four.
    pub fn in_segments(outputs: usize, columns: usize, segments: usize) -> Result<Self, Error> {
        let unsupported = |what| Err(crate::Error::Unsupported { what }.into());
        if outputs == 0 || !outputs.is_multiple_of(STRIP_ROWS) || outputs > 1 << 24 {
            return unsupported(format!("a matrix of {outputs} outputs: use a multiple of {STRIP_ROWS}"));
        }
        if columns == 0 || !columns.is_multiple_of(STAGE_COLUMNS) || columns > 1 << 20 {
            return unsupported(format!("a matrix of {columns} columns: use a multiple of {STAGE_COLUMNS}"));
        }
        if !(segments == 1 || segments == SEGMENTS && columns >= SEGMENTS * STAGE_COLUMNS) {
            return unsupported(format!(
                "{columns} columns in {segments} segments: use one, or {SEGMENTS} from {} columns on",
                SEGMENTS * STAGE_COLUMNS
            ));
        }
        Ok(Self { outputs, columns, segments })
    }

    /// Values of an output row.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Values of an input row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Values of the matrix.
    pub fn values(&self) -> usize {
        self.outputs * self.columns
    }
}

/// A matrix in the order that the kernel reads.
#[derive(Debug)]
pub struct DenseWeights {
    shape: DenseShape,
    weights: Buffer<bf16>,
    relayout: Relayout,
}

impl DenseWeights {
    /// Claims the memory.
    pub fn new(device: &Device, shape: &DenseShape) -> Result<Self, Error> {
        Ok(Self {
            shape: shape.clone(),
            weights: device.zeros(shape.values())?,
            relayout: Relayout::new(device)?,
        })
    }

    /// What it holds.
    pub fn shape(&self) -> &DenseShape {
        &self.shape
    }

    /// Lays out rows of the matrix, from `first` on: all, or a part that begins and ends at a multiple of 128 or at the
    /// matrix's end. Waits until it is done, since a product reads weights before the work ahead of it has ended.
    pub fn load(&mut self, device: &Device, first: usize, source: &CudaView<'_, bf16>) -> Result<(), Error> {
        let DenseShape { outputs, columns, .. } = self.shape;
        let rows = source.len() / columns;
        same("values of whole rows", rows * columns, source.len())?;
        at_most("rows of the matrix", outputs, first + rows)?;
        let ends = first + rows == outputs || rows.is_multiple_of(GROUP_ROWS);
        if !(first.is_multiple_of(GROUP_ROWS) && ends) {
            return Err(crate::Error::Unsupported {
                what: format!(
                    "rows {first}..{} of a matrix of {outputs}: begin and end at multiples of {GROUP_ROWS}, or at its end",
                    first + rows
                ),
            }
            .into());
        }
        if rows == 0 {
            return Ok(());
        }
        let from = device.address(source);
        let to = device.address_mut(&mut self.weights) + (first * columns * size_of::<bf16>()) as u64;
        // SAFETY: both have `rows` rows, by the checks above; whole groups of strips before a part lie before it.
        unsafe { self.relayout.run(device, [from, 0], columns, to, (rows, columns))? };
        device.synchronize()
    }
}

/// Which tiles a launch uses. The same bits in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseTiles {
    /// 128 outputs x up to 256 rows; a block of a cluster for each segment.
    Flat,
    /// 256 outputs x up to 128 rows, likewise.
    Tall,
    /// 128 outputs x up to 192 rows, all segments by one block; two blocks share the weights.
    SharedWeights,
    /// The same tiles; two blocks share the rows.
    SharedRows,
}

impl DenseTiles {
    /// The rows that a tile may have.
    pub fn chunks(self) -> &'static [usize] {
        match self {
            Self::Flat => &[8, 16, 32, 64, 96, 128, 192, 256],
            Self::Tall => &[8, 16, 32, 64, 96, 128],
            Self::SharedWeights | Self::SharedRows => &[16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192],
        }
    }

    /// Whether a block computes all segments.
    fn whole(self) -> bool {
        matches!(self, Self::SharedWeights | Self::SharedRows)
    }

    /// Even chunks, as few as can be.
    fn chunk(self, rows: usize) -> usize {
        let chunks = self.chunks();
        let most = chunks.last().copied().unwrap_or(rows);
        let even = rows.div_ceil(rows.div_ceil(most));
        chunks.iter().copied().find(|chunk| *chunk >= even).unwrap_or(most)
    }

    /// Pairs of tiles that clusters take, in chunks of so many rows, where a block computes all segments.
    fn pairs(self, outputs: usize, rows: usize, chunk: usize) -> usize {
        let (groups, chunks) = (outputs.div_ceil(GROUP_ROWS), rows.div_ceil(chunk));
        if self == Self::SharedWeights {
            groups * chunks.div_ceil(SHARING_BLOCKS)
        } else {
            groups.div_ceil(SHARING_BLOCKS) * chunks
        }
    }
}

/// What a launch is tuned by; none of it changes a bit.
#[derive(Clone, Copy, Debug, Default)]
pub struct DenseTuning {
    /// The tiles, or by the shape and the number of rows.
    pub tiles: Option<DenseTiles>,
    /// Most rows of a tile, one of [`DenseTiles::chunks`], or 0 for what the rows need.
    pub chunk: usize,
    /// Clusters (or blocks, where neither segments nor tiles need clusters) launched; 0 for all that the device runs at
    /// once.
    pub units: usize,
}

/// Where a product is written.
#[derive(Debug)]
pub enum DenseOutput<'a> {
    /// Rounded.
    Half(&'a mut Buffer<bf16>),
    /// As it is summed.
    Single(&'a mut Buffer<f32>),
}

/// `dense::Params`.
#[repr(C)]
struct Params {
    weights: u64,
    y: u64,
    rows: i32,
    outputs: i32,
    columns: i32,
    y_stride: i32,
    y_is_f32: i32,
    segments: i32,
    chunk: i32,
    shared: i32,
}

/// The products' kernels.
#[derive(Debug)]
pub struct Dense {
    flat: Kernel,
    tall: Kernel,
    many: Kernel,
    /// That run at once: of a block for each segment, and of two blocks with an operand shared.
    clusters: usize,
    sharing_clusters: usize,
}

impl Dense {
    /// Finds the kernels.
    pub fn new(device: &Device) -> Result<Self, Error> {
        let flat = device.kernel_with_shared("dense", "dense_flat", THREADS, SHARED)?;
        let tall = device.kernel_with_shared("dense", "dense_tall", THREADS, SHARED)?;
        let many = device.kernel_with_shared("dense_many", "dense_many", THREADS, SHARED)?;
        let fit = |kernel| clusters_at_once(device, kernel, SEGMENTS as u32);
        let clusters = fit(flat)?.min(fit(tall)?);
        let sharing_clusters = clusters_at_once(device, many, SHARING_BLOCKS as u32)?;
        Ok(Self { flat, tall, many, clusters, sharing_clusters })
    }

    /// Clusters, or blocks where there are none, that run at once.
    pub fn units(&self, device: &Device, shape: &DenseShape, tiles: DenseTiles) -> usize {
        if tiles.whole() {
            self.sharing_clusters
        } else if shape.segments == 1 {
            device.multiprocessors()
        } else {
            self.clusters
        }
    }

    /// The tiles and their rows that are about the fastest (docs/kernels.md).
    fn choose(&self, device: &Device, shape: &DenseShape, rows: usize) -> (DenseTiles, usize) {
        if shape.segments > 1 && (rows > 128 || rows > 64 && shape.outputs >= WHOLE_OUTPUTS) {
            return fastest_whole(shape, rows, self.sharing_clusters);
        }
        let strips = shape.outputs / STRIP_ROWS;
        let units = self.units(device, shape, DenseTiles::Flat).min(strips);
        let many = strips.div_ceil(units.max(1)) > 16;
        let tiles = if many && rows <= 128 { DenseTiles::Tall } else { DenseTiles::Flat };
        (tiles, tiles.chunk(rows))
    }

    /// `y[i] = x[i] W^T` for the first `rows` rows. Rows of y are `y_stride` values apart.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        device: &Device,
        rows: usize,
        x: &Rows<'_>,
        weights: &DenseWeights,
        y: DenseOutput<'_>,
        y_stride: usize,
        tuning: DenseTuning,
    ) -> Result<(), Error> {
        let DenseShape { outputs, columns, segments } = weights.shape;
        let y_values = match &y {
            DenseOutput::Half(buffer) => buffer.len(),
            DenseOutput::Single(buffer) => buffer.len(),
        };
        check_rows("input", rows, x.data.len(), x.stride, columns)?;
        check_rows("output", rows, y_values, y_stride, outputs)?;
        if rows == 0 {
            return Ok(());
        }
        let (tiles, chunk) = match tuning.tiles {
            None => self.choose(device, &weights.shape, rows),
            Some(tiles) => (tiles, tiles.chunk(rows)),
        };
        let chunk = if tuning.chunk == 0 { chunk } else { tuning.chunk };
        let work = if tiles.whole() { tiles.pairs(outputs, rows, chunk) } else { outputs / STRIP_ROWS };
        let most_units = self.units(device, &weights.shape, tiles).min(work);
        let units = if tuning.units == 0 { most_units } else { tuning.units };
        at_most("clusters or blocks (as fit the device, and the work)", most_units, units)?;
        if units == 0 || !tiles.chunks().contains(&chunk) {
            return Err(crate::Error::Unsupported {
                what: format!(
                    "{units} blocks or clusters with {tiles:?} tiles of {chunk} rows: {:?}",
                    tiles.chunks()
                ),
            }
            .into());
        }
        let boxed = if tiles == DenseTiles::SharedRows { chunk / SHARING_BLOCKS } else { chunk };
        let mut map = row_map(device.address(x.data), rows, columns, x.stride, boxed)?;
        let mut params = Params {
            weights: device.address(&weights.weights),
            y_is_f32: i32::from(matches!(y, DenseOutput::Single(_))),
            y: match y {
                DenseOutput::Half(buffer) => device.address_mut(buffer),
                DenseOutput::Single(buffer) => device.address_mut(buffer),
            },
            rows: int(rows)?,
            outputs: int(outputs)?,
            columns: int(columns)?,
            y_stride: int(y_stride)?,
            segments: int(segments)?,
            chunk: int(chunk)?,
            shared: i32::from(tiles == DenseTiles::SharedRows),
        };
        let (kernel, blocks) = match tiles {
            DenseTiles::Flat => (self.flat, segments),
            DenseTiles::Tall => (self.tall, segments),
            DenseTiles::SharedWeights | DenseTiles::SharedRows => (self.many, SHARING_BLOCKS),
        };
        let mut arguments = [argument(&mut map), argument(&mut params)];
        // SAFETY: the parameters of these kernels; every size is checked above.
        unsafe { launch_clusters(device, kernel, units as u32, blocks as u32, &mut arguments) }
    }
}

/// Of the tiles whose blocks compute all segments, those that `clusters` clusters finish first.
fn fastest_whole(shape: &DenseShape, rows: usize, clusters: usize) -> (DenseTiles, usize) {
    let candidates = [DenseTiles::SharedWeights, DenseTiles::SharedRows]
        .into_iter()
        .flat_map(|tiles| tiles.chunks().iter().map(move |chunk| (tiles, *chunk)));
    let time = |&(tiles, chunk): &(DenseTiles, usize)| {
        let pairs = tiles.pairs(shape.outputs, rows, chunk);
        pairs.div_ceil(clusters.max(1)) * tile_ns(tiles, chunk, shape.columns / STAGE_COLUMNS)
    };
    candidates.min_by_key(time).unwrap_or((DenseTiles::SharedWeights, 128))
}

/// About what a tile takes on an H200, fitted to measurements: per stage the larger of what shared memory and what L2 need, and
/// beside them its beginning and end, longer where the ring has only three stages.
fn tile_ns(tiles: DenseTiles, chunk: usize, stages: usize) -> usize {
    let l2_kb = if tiles == DenseTiles::SharedWeights { 8 + chunk / 8 } else { 16 + chunk / 16 };
    let stage = (155 + 3 * chunk / 2).max(60 + 12 * l2_kb);
    stages * stage + if chunk > 160 { 8000 } else { 2500 }
}

/// Rows in boxes of `chunk` rows and one stage of columns, as the tensor core reads them.
pub(crate) fn row_map(
    address: u64,
    rows: usize,
    columns: usize,
    stride: usize,
    chunk: usize,
) -> Result<sys::CUtensorMap, Error> {
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let sizes = [columns as u64, rows as u64];
    let strides = [(stride * size_of::<bf16>()) as u64];
    let (size_of_box, steps) = ([STAGE_COLUMNS as u32, chunk as u32], [1, 1]);
    // SAFETY: the arrays are as long as two dimensions need; the address is only recorded.
    let encoded: Result<(), DriverError> = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            address as *mut std::ffi::c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            size_of_box.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()
    };
    encoded.doing("describing a product's rows")?;
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segments_are_a_function_of_the_shape() {
        let segments = |outputs, columns| DenseShape::new(outputs, columns).unwrap().segments;
        assert_eq!([segments(5120, 2048), segments(2048, 4096), segments(6144, 4096)], [4; 3]);
        assert_eq!([segments(151_936, 2048), segments(32_000, 4096), segments(64, 64)], [1; 3]);
    }

    #[test]
    fn what_no_kernel_computes_is_refused_with_the_reason() {
        let refused = |o, c, s| DenseShape::in_segments(o, c, s).unwrap_err().to_string();
        assert!(refused(12, 64, 1).contains("12 outputs"));
        assert!(refused(8, 96, 1).contains("96 columns"));
        assert!(refused(8, 64, 4).contains("64 columns in 4 segments"));
        assert!(refused(8, 256, 2).contains("in 2 segments"));
    }

    #[test]
    fn chunks_are_even() {
        let chunk = |rows| DenseTiles::Tall.chunk(rows);
        assert_eq!([1, 8, 9, 33, 128, 129, 1000].map(chunk), [8, 8, 16, 64, 128, 96, 128]);
        assert_eq!(DenseTiles::Flat.chunk(300), 192);
        assert_eq!([1024, 512, 100].map(|rows| DenseTiles::SharedRows.chunk(rows)), [176, 176, 112]);
    }

    #[test]
    fn tiles_for_many_rows_are_those_that_were_measured_fastest() {
        use DenseTiles::{SharedRows, SharedWeights};
        let fastest =
            |outputs, columns, rows| fastest_whole(&DenseShape::new(outputs, columns).unwrap(), rows, 66);
        assert_eq!(
            [128, 512, 1024].map(|rows| fastest(5120, 2048, rows)),
            [(SharedWeights, 64), (SharedRows, 176), (SharedWeights, 128)]
        );
        assert_eq!(
            [256, 512, 1024].map(|rows| fastest(2048, 4096, rows)),
            [(SharedWeights, 32), (SharedWeights, 64), (SharedWeights, 128)]
        );
    }

    /// The kernel reads this struct field by field.
    #[test]
    fn parameters_have_the_layout_of_the_kernel() {
        assert_eq!(std::mem::offset_of!(Params, rows), 16);
        assert_eq!(std::mem::offset_of!(Params, chunk), 40);
        assert_eq!(std::mem::offset_of!(Params, shared), 44);
        assert_eq!(size_of::<Params>(), 48);
    }
}
