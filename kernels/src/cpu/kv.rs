//! The paged KV cache of an attention rank.

use super::context::Cpu;
use super::memory::Aligned;
use super::slab::{Rows, Slab};
use crate::Error;
use crate::error::{below, same};

/// Tokens of a page.
pub const PAGE: usize = 16;
/// The largest head the kernels take.
pub const MAX_HEAD_DIM: usize = 256;

/// The shape of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Blocks (decoder layers).
    pub blocks: usize,
    /// Pages. A page number stands for the same tokens in every block and head.
    pub pages: usize,
    /// Key and value heads.
    pub heads: usize,
    /// Values of a head, up to [`MAX_HEAD_DIM`].
    pub head_dim: usize,
}

impl KvShape {
    /// Bytes of one page over all blocks and heads.
    pub fn page_bytes(&self) -> usize {
        self.blocks * self.heads * self.head_values() * size_of::<f32>()
    }

    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(PAGE)
    }

    /// Values of one page of one block and head, keys and values together.
    fn head_values(&self) -> usize {
        (self.head_dim + self.padded()) * PAGE
    }
}

/// Keys and values of all sequences of a rank, in pages of [`PAGE`] tokens: per block, page and head the keys
/// transposed `[head_dim][16]`, then the values `[16][head_dim]` (rows filled up to a multiple of 16 with zeros). f32.
#[derive(Debug)]
pub struct KvCache {
    data: Aligned<f32>,
    shape: KvShape,
}

/// Consecutive positions of one sequence: a prefill chunk, or one decode token.
#[derive(Clone, Copy, Debug)]
pub struct KvSegment<'a> {
    /// Positions; as many consecutive rows of the call belong to it.
    pub len: usize,
    /// The first one's position in the sequence.
    pub first_position: u32,
    /// The sequence's pages: position p lies in `pages[p / 16]`. Entries that no position of the segment can see (all
    /// before a sliding window) are not looked at.
    pub pages: &'a [u32],
}

impl KvCache {
    /// A zeroed cache.
    pub fn new(shape: KvShape) -> Result<Self, Error> {
        if shape.head_dim == 0 || shape.head_dim > MAX_HEAD_DIM {
            return Err(Error::Unsupported {
                what: format!("heads of {} values: use 1 to {MAX_HEAD_DIM}", shape.head_dim),
            });
        }
        let len = shape
            .blocks
            .checked_mul(shape.pages)
            .and_then(|n| n.checked_mul(shape.heads))
            .and_then(|n| n.checked_mul(shape.head_values()))
            .filter(|n| *n <= isize::MAX as usize / size_of::<f32>());
        let Some(len) = len else {
            return Err(Error::Unsupported {
                what: format!("a KV cache of {shape:?} exceeds the address space"),
            });
        };
        Ok(Self { data: Aligned::try_zeroed(len)?, shape })
    }

    /// The shape.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }

    fn offset(&self, block: usize, page: usize, head: usize) -> usize {
        ((block * self.shape.pages + page) * self.shape.heads + head) * self.shape.head_values()
    }

    /// Keys `[head_dim][16]` and values `[16][padded]` of a page, and the padded row length.
    ///
    /// # Safety
    /// Block, page and head are in range.
    pub(crate) unsafe fn page(&self, block: usize, page: usize, head: usize) -> (*const f32, *const f32) {
        // SAFETY: the caller's.
        unsafe {
            let keys = self.data.as_ptr().add(self.offset(block, page, head));
            (keys, keys.add(self.shape.head_dim * PAGE))
        }
    }

    /// Values between two rows of a page's values.
    pub(crate) fn value_stride(&self) -> usize {
        self.shape.padded()
    }

    /// The key and the value of one token (for the reference and for tests).
    pub fn token(
        &self,
        block: usize,
        head: usize,
        page: u32,
        slot: usize,
    ) -> Result<(Vec<f32>, Vec<f32>), Error> {
        below("block", block, self.shape.blocks)?;
        below("page", page as usize, self.shape.pages)?;
        below("head", head, self.shape.heads)?;
        below("slot", slot, PAGE)?;
        let at = self.offset(block, page as usize, head);
        let d = self.shape.head_dim;
        let key = (0..d).map(|i| self.data[at + i * PAGE + slot]).collect();
        let value = self.data[at + d * PAGE + slot * self.shape.padded()..][..d].to_vec();
        Ok((key, value))
    }

    /// Refuses segments whose rows are not `rows`, or whose positions `from(first)..` have no valid page.
    pub(crate) fn check(
        &self,
        block: usize,
        rows: usize,
        segments: &[KvSegment<'_>],
        from: impl Fn(usize) -> usize,
    ) -> Result<(), Error> {
        below("block", block, self.shape.blocks)?;
        same("rows (as many as the segments' positions)", segments.iter().map(|s| s.len).sum(), rows)?;
        for segment in segments.iter().filter(|s| s.len > 0) {
            let first = segment.first_position as usize;
            let last_page = (first + segment.len - 1) / PAGE;
            below("page of a position, in its sequence's page list", last_page, segment.pages.len())?;
            for page in &segment.pages[from(first) / PAGE..=last_page] {
                below("page", *page as usize, self.shape.pages)?;
            }
        }
        Ok(())
    }
}

/// Where a row's keys and values lie: the first column of each, all heads following.
#[derive(Clone, Copy, Debug)]
pub struct KvColumns {
    /// The first key column.
    pub key: usize,
    /// The first value column.
    pub value: usize,
}

impl Cpu {
    /// Writes the keys and values of rows (turned and normalised already) to the pages of their positions.
    ///
    /// Segments follow each other in the order of the rows. The pages belong to the caller: a page shared with
    /// another sequence must not be written.
    pub fn kv_append(
        &mut self,
        cache: &mut KvCache,
        block: usize,
        src: &Slab,
        rows: Rows<'_>,
        columns: KvColumns,
        segments: &[KvSegment<'_>],
    ) -> Result<(), Error> {
        let KvShape { heads, head_dim, .. } = cache.shape;
        let width = heads * head_dim;
        for start in [columns.key, columns.value] {
            if start + width > src.cols() {
                return Err(Error::Range { what: "column", index: start + width, len: src.cols() });
            }
        }
        src.check_reads(rows)?;
        cache.check(block, rows.len(), segments, |first| first)?;
        let stride = cache.value_stride();
        let mut i = 0;
        for segment in segments {
            for position in segment.first_position as usize..segment.first_position as usize + segment.len {
                let row = src.row(rows.at(i));
                let (page, slot) = (segment.pages[position / PAGE] as usize, position % PAGE);
                for head in 0..heads {
                    let at = cache.offset(block, page, head);
                    let key = &row[columns.key + head * head_dim..][..head_dim];
                    let keys = &mut cache.data[at..at + head_dim * PAGE];
                    for (line, x) in keys.chunks_exact_mut(PAGE).zip(key) {
                        line[slot] = *x;
                    }
                    let value = &row[columns.value + head * head_dim..][..head_dim];
                    cache.data[at + head_dim * PAGE + slot * stride..][..head_dim].copy_from_slice(value);
                }
                i += 1;
            }
        }
        Ok(())
    }
}
