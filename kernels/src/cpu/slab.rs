//! Rows of activations, and which of them a call reads and writes.

use super::memory::Aligned;
use crate::Error;
use crate::error::{below, same};

/// Values of a cache line.
const LINE: usize = 16;

/// Rows of f32 values at a fixed stride, claimed once. Ops read and write rows by number.
///
/// The stride is an odd number of cache lines, so that the same column of neighbouring rows lies in different cache
/// sets whatever the width.
#[derive(Debug)]
pub struct Slab {
    data: Aligned<f32>,
    rows: usize,
    cols: usize,
    stride: usize,
    /// Per row the number of the last call that wrote it: how a call finds that its rows are distinct.
    marks: Vec<u32>,
    call: u32,
}

impl Slab {
    /// A zeroed slab of `rows` rows of `cols` values.
    pub fn new(rows: usize, cols: usize) -> Self {
        let stride = stride(cols);
        Self { data: Aligned::zeroed(rows * stride), rows, cols, stride, marks: vec![0; rows], call: 0 }
    }

    /// A slab that holds a copy of `values`, row after row. An incomplete last row is refused.
    pub fn from_rows(cols: usize, values: &[f32]) -> Result<Self, Error> {
        let rows = values.len().checked_div(cols).unwrap_or(0);
        same("values of whole rows", rows * cols, values.len())?;
        let mut slab = Self::new(rows, cols);
        for (row, values) in values.chunks_exact(cols.max(1)).enumerate() {
            slab.row_mut(row).copy_from_slice(values);
        }
        Ok(slab)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values between the starts of two rows.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// A row's values.
    ///
    /// # Panics
    /// If there is no such row: as a slice does. Ops check the rows they are given instead.
    pub fn row(&self, row: usize) -> &[f32] {
        assert!(row < self.rows, "row {row} of a slab of {}", self.rows);
        &self.data[row * self.stride..][..self.cols]
    }

    /// A row's values, to write.
    ///
    /// # Panics
    /// If there is no such row: as a slice does.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of a slab of {}", self.rows);
        &mut self.data[row * self.stride..][..self.cols]
    }

    pub(crate) fn check_reads(&self, rows: Rows<'_>) -> Result<(), Error> {
        match rows {
            Rows::Range { start, len } => {
                let end = start as usize + len;
                if end > self.rows {
                    return Err(Error::Range { what: "row", index: end - 1, len: self.rows });
                }
                Ok(())
            }
            Rows::List(list) => list.iter().try_for_each(|row| below("row", *row as usize, self.rows)),
        }
    }

    /// Refuses rows that are out of range or written twice.
    pub(crate) fn check_writes(&mut self, rows: Rows<'_>) -> Result<(), Error> {
        self.check_reads(rows)?;
        if let Rows::List(list) = rows {
            let call = self.next_call();
            for row in list {
                let mark = &mut self.marks[*row as usize];
                if *mark == call {
                    return Err(Error::RowConflict { row: *row as usize, how: "written twice" });
                }
                *mark = call;
            }
        }
        Ok(())
    }

    /// Refuses rows that are out of range, written twice, or both read and written.
    pub(crate) fn check_within(&mut self, src: Rows<'_>, dst: Rows<'_>) -> Result<(), Error> {
        self.check_reads(src)?;
        self.check_reads(dst)?;
        let call = self.next_call();
        for i in 0..dst.len() {
            let row = dst.at(i);
            if std::mem::replace(&mut self.marks[row], call) == call {
                return Err(Error::RowConflict { row, how: "written twice" });
            }
        }
        for i in 0..src.len() {
            let row = src.at(i);
            if self.marks[row] == call {
                return Err(Error::RowConflict { row, how: "read and written" });
            }
        }
        Ok(())
    }

    fn next_call(&mut self) -> u32 {
        if self.call == u32::MAX {
            self.marks.fill(0);
            self.call = 0;
        }
        self.call += 1;
        self.call
    }

    pub(crate) fn reader(&self) -> Reader {
        Reader { base: self.data.as_ptr(), stride: self.stride }
    }

    pub(crate) fn writer(&mut self) -> Writer {
        Writer { base: self.data.as_mut_ptr(), stride: self.stride }
    }
}

/// The stride of rows of `cols` values: an odd number of cache lines.
pub(crate) fn stride(cols: usize) -> usize {
    (cols.div_ceil(LINE) | 1) * LINE
}

/// Row numbers, in the order of a call's rows.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// These rows.
    List(&'a [u32]),
    /// `len` rows from `start` on.
    Range {
        /// The first row.
        start: u32,
        /// How many.
        len: usize,
    },
}

impl<'a> Rows<'a> {
    /// The first `len` rows.
    pub fn first(len: usize) -> Self {
        Rows::Range { start: 0, len }
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        match self {
            Rows::List(list) => list.len(),
            Rows::Range { len, .. } => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The i-th row's number; i must be below [`Self::len`].
    #[inline]
    pub(crate) fn at(&self, i: usize) -> usize {
        match self {
            Rows::List(list) => list[i] as usize,
            Rows::Range { start, .. } => *start as usize + i,
        }
    }
}

impl<'a> From<&'a [u32]> for Rows<'a> {
    fn from(list: &'a [u32]) -> Self {
        Rows::List(list)
    }
}

impl<'a, const N: usize> From<&'a [u32; N]> for Rows<'a> {
    fn from(list: &'a [u32; N]) -> Self {
        Rows::List(list)
    }
}

impl<'a> From<&'a Vec<u32>> for Rows<'a> {
    fn from(list: &'a Vec<u32>) -> Self {
        Rows::List(list)
    }
}

impl From<std::ops::Range<u32>> for Rows<'_> {
    fn from(range: std::ops::Range<u32>) -> Self {
        Rows::Range { start: range.start, len: range.end.saturating_sub(range.start) as usize }
    }
}

/// The rows a call reads and the rows it writes: the i-th of the one belongs to the i-th of the other.
#[derive(Debug)]
pub enum Io<'a> {
    /// From one slab to another. Rows may be read more than once.
    Across {
        /// Read from here.
        src: &'a Slab,
        /// These rows.
        src_rows: Rows<'a>,
        /// Written here.
        dst: &'a mut Slab,
        /// To these rows, all distinct.
        dst_rows: Rows<'a>,
    },
    /// Inside one slab. No row is both read and written.
    Within {
        /// The slab.
        slab: &'a mut Slab,
        /// Rows to read.
        src_rows: Rows<'a>,
        /// Rows to write, all distinct.
        dst_rows: Rows<'a>,
    },
}

impl<'a> Io<'a> {
    /// From rows of one slab to rows of another.
    pub fn across(
        src: &'a Slab,
        src_rows: impl Into<Rows<'a>>,
        dst: &'a mut Slab,
        dst_rows: impl Into<Rows<'a>>,
    ) -> Self {
        Io::Across { src, src_rows: src_rows.into(), dst, dst_rows: dst_rows.into() }
    }

    /// From rows of a slab to other rows of it.
    pub fn within(slab: &'a mut Slab, src_rows: impl Into<Rows<'a>>, dst_rows: impl Into<Rows<'a>>) -> Self {
        Io::Within { slab, src_rows: src_rows.into(), dst_rows: dst_rows.into() }
    }

    /// Columns of the slab that is read.
    pub(crate) fn src_cols(&self) -> usize {
        match self {
            Io::Across { src, .. } => src.cols,
            Io::Within { slab, .. } => slab.cols,
        }
    }

    /// Checks the rows and the widths, and gives pointers to compute with.
    pub(crate) fn resolve(self, src_cols: usize, dst_cols: usize) -> Result<Resolved<'a>, Error> {
        match self {
            Io::Across { src, src_rows, dst, dst_rows } => {
                same("columns of the input slab", src_cols, src.cols)?;
                same("columns of the output slab", dst_cols, dst.cols)?;
                same("output rows (as many as input rows)", src_rows.len(), dst_rows.len())?;
                src.check_reads(src_rows)?;
                dst.check_writes(dst_rows)?;
                Ok(Resolved { src: src.reader(), src_rows, dst: dst.writer(), dst_rows })
            }
            Io::Within { slab, src_rows, dst_rows } => {
                same("columns of the input slab", src_cols, slab.cols)?;
                same("columns of the output slab", dst_cols, slab.cols)?;
                same("output rows (as many as input rows)", src_rows.len(), dst_rows.len())?;
                slab.check_within(src_rows, dst_rows)?;
                let dst = slab.writer();
                Ok(Resolved { src: Reader { base: dst.base, stride: dst.stride }, src_rows, dst, dst_rows })
            }
        }
    }
}

/// Rows to read; the slab is borrowed for as long as it is used.
#[derive(Clone, Copy)]
pub(crate) struct Reader {
    base: *const f32,
    stride: usize,
}

/// Rows to write; each row by one thread at a time (or disjoint columns of it).
#[derive(Clone, Copy)]
pub(crate) struct Writer {
    base: *mut f32,
    stride: usize,
}

// SAFETY: both are used only inside one call that holds the slab's borrow; rows were checked to be in range, and
// threads write disjoint rows or columns.
unsafe impl Send for Reader {}
// SAFETY: as above.
unsafe impl Sync for Reader {}
// SAFETY: as above.
unsafe impl Send for Writer {}
// SAFETY: as above.
unsafe impl Sync for Writer {}

impl Reader {
    /// # Safety
    /// The row is in range.
    #[inline(always)]
    pub(crate) unsafe fn row(&self, row: usize) -> *const f32 {
        // SAFETY: the caller's.
        unsafe { self.base.add(row * self.stride) }
    }
}

impl Writer {
    /// Rows of a scratch buffer.
    pub(crate) fn new(base: *mut f32, stride: usize) -> Self {
        Self { base, stride }
    }

    /// # Safety
    /// The row is in range.
    #[inline(always)]
    pub(crate) unsafe fn row(&self, row: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.base.add(row * self.stride) }
    }
}

/// A call's rows, checked.
pub(crate) struct Resolved<'a> {
    pub(crate) src: Reader,
    pub(crate) src_rows: Rows<'a>,
    pub(crate) dst: Writer,
    pub(crate) dst_rows: Rows<'a>,
}

impl Resolved<'_> {
    pub(crate) fn len(&self) -> usize {
        self.src_rows.len()
    }
}
