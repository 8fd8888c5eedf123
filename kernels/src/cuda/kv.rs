//! The paged KV cache of an attention rank on a device, and where the rows of a call stand in it.

use half::bf16;

use super::Error;
use super::device::{Buffer, Device, Kernel};
use super::launch::{Start, argument, launch};
use super::merge::int;
use crate::cpu::{KvSegment, PAGE};
use crate::error::below;

/// Heads that there are kernels for.
pub(crate) const HEAD_DIMS: [usize; 2] = [64, 128];
/// `attention::kMaxSegments`.
const MAX_SEGMENTS: usize = 1024;
const PLACES_THREADS: u32 = 128;
/// `kv::Segment`, in integers.
const SEGMENT_INTS: usize = 4;
/// `kv::Place`, in integers.
const PLACE_INTS: usize = 2;

/// The shape of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Blocks (decoder layers).
    pub blocks: usize,
    /// Pages of 16 tokens. A page number stands for the same tokens in every block and head.
    pub pages: usize,
    /// Key and value heads.
    pub heads: usize,
    /// Values of a head: 64 or 128.
    pub head_dim: usize,
}

impl KvShape {
    /// bf16 values of one page of one block: keys and values of all heads.
    fn page_values(&self) -> usize {
        self.heads * 2 * PAGE * self.head_dim
    }

    /// Bytes of one page over all blocks and heads.
    pub fn page_bytes(&self) -> usize {
        self.blocks * self.page_values() * size_of::<bf16>()
    }
}

/// Keys and values of all sequences of a rank, in pages of 16 tokens, laid out as the tensor cores read them
/// (`cuda/kv.cuh`).
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    data: Buffer<bf16>,
}

impl KvCache {
    /// A zeroed cache.
    pub fn new(device: &Device, shape: KvShape) -> Result<Self, Error> {
        if !HEAD_DIMS.contains(&shape.head_dim) {
            return Err(crate::Error::Unsupported {
                what: format!("heads of {} values in a cache on a GPU: use 64 or 128", shape.head_dim),
            }
            .into());
        }
        int(shape.pages)?;
        int(shape.heads)?;
        Ok(Self { shape, data: device.zeros(shape.blocks * shape.pages * shape.page_values())? })
    }

    /// The shape.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// All of it, for tests that poison or read it.
    pub fn data_mut(&mut self) -> &mut Buffer<bf16> {
        &mut self.data
    }

    /// The address of a block's pages.
    pub(crate) fn block(&self, device: &Device, block: usize) -> Result<u64, Error> {
        below("block", block, self.shape.blocks)?;
        let values = block * self.shape.pages * self.shape.page_values();
        Ok(device.address(&self.data) + (values * size_of::<bf16>()) as u64)
    }
}

/// The segments of a call on the device: what every block of a step shares. Claimed once, set for each step.
#[derive(Debug)]
pub struct KvCall {
    segments: Buffer<i32>,
    pages: Buffer<i32>,
    places: Buffer<i32>,
    max_rows: usize,
    count: usize,
    rows: usize,
    page_entries: usize,
    page_limit: usize,
    list: Kernel,
}

impl KvCall {
    /// Room for calls of so many segments, rows and entries of page lists (those of all sequences together).
    pub fn new(device: &Device, segments: usize, rows: usize, page_entries: usize) -> Result<Self, Error> {
        if segments > MAX_SEGMENTS {
            return Err(crate::Error::Unsupported {
                what: format!("{segments} segments in a call: use at most {MAX_SEGMENTS}"),
            }
            .into());
        }
        int(rows)?;
        int(page_entries)?;
        Ok(Self {
            segments: device.zeros(segments.max(1) * SEGMENT_INTS)?,
            pages: device.zeros(page_entries.max(1))?,
            places: device.zeros(rows.max(1) * PLACE_INTS)?,
            max_rows: rows,
            count: 0,
            rows: 0,
            page_entries: 0,
            page_limit: 0,
            list: device.kernel("attention_plan", "kv_places", PLACES_THREADS)?,
        })
    }

    /// Describes a call over a cache of `shape`: its rows belong to the segments in their order.
    pub fn set(&mut self, device: &Device, shape: KvShape, segments: &[KvSegment<'_>]) -> Result<(), Error> {
        let mut described = Vec::with_capacity(segments.len() * SEGMENT_INTS);
        let mut pages = Vec::new();
        let mut rows = 0;
        for segment in segments {
            let end = segment.first_position as usize + segment.len;
            let entries = end.div_ceil(PAGE);
            if entries > 0 {
                below("page of a position, in its sequence's page list", entries - 1, segment.pages.len())?;
            }
            int(end)?;
            described.extend([
                int(rows)?,
                int(segment.len)?,
                int(segment.first_position as usize)?,
                int(pages.len())?,
            ]);
            for page in &segment.pages[..entries] {
                below("page", *page as usize, shape.pages)?;
                pages.push(int(*page as usize)?);
            }
            rows += segment.len;
        }
        at_most("segments of a call", self.segments.len() / SEGMENT_INTS, segments.len())?;
        at_most("rows of a call", self.max_rows, rows)?;
        at_most("entries of a call's page lists", self.pages.len(), pages.len())?;
        (self.count, self.rows, self.page_entries) = (segments.len(), rows, pages.len());
        self.page_limit = shape.pages;
        if segments.is_empty() {
            return Ok(());
        }
        device.write(&described, &mut self.segments.slice_mut(..described.len()))?;
        device.write(&pages, &mut self.pages.slice_mut(..pages.len()))?;
        let (mut first, mut list) = (device.address(&self.segments), device.address(&self.pages));
        let (mut entries, mut rows) = (int(pages.len())?, int(rows)?);
        let mut places = device.address_mut(&mut self.places);
        let mut arguments = [
            argument(&mut first),
            argument(&mut list),
            argument(&mut entries),
            argument(&mut rows),
            argument(&mut places),
        ];
        let grid = (int(segments.len())?.unsigned_abs(), 1);
        // SAFETY: the parameters of `kv_places`; segments and rows fit their memory, and each position has a page.
        unsafe { launch(device, self.list, grid, Start::Overlapped, &mut arguments) }
    }

    /// Segments described.
    pub fn segments(&self) -> usize {
        self.count
    }

    /// Rows of the segments.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Refuses a cache that has fewer pages than the call was described for.
    pub(crate) fn check(&self, shape: KvShape) -> Result<(), Error> {
        at_most("pages of the call's cache", shape.pages, self.page_limit).map_err(Into::into)
    }

    /// The address of a segment.
    pub(crate) fn segment_address(&self, device: &Device, segment: usize) -> u64 {
        device.address(&self.segments) + (segment * SEGMENT_INTS * size_of::<i32>()) as u64
    }

    pub(crate) fn pages_address(&self, device: &Device) -> u64 {
        device.address(&self.pages)
    }

    pub(crate) fn places_address(&self, device: &Device) -> u64 {
        device.address(&self.places)
    }

    pub(crate) fn page_entries(&self) -> usize {
        self.page_entries
    }
}

/// Refuses more than there is room for.
pub(crate) fn at_most(what: &'static str, most: usize, found: usize) -> Result<(), crate::Error> {
    if found <= most { Ok(()) } else { Err(crate::Error::Size { what, expected: most, found }) }
}
