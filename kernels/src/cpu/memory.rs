//! Zeroed, cache-line-aligned memory that is claimed once.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::Error;

/// Bytes of a cache line, and the alignment of weights and slabs.
pub(crate) const ALIGN: usize = 64;
/// Buffers from this size on are aligned to a large page, so that the kernel can back them with large pages.
const LARGE_PAGE: usize = 2 << 20;

/// Asks the kernel for large pages before the memory is touched: hardware prefetchers stop at a page's end, and a
/// stream over weights misses the TLB once per page. A refusal costs speed only.
fn advise_large_pages(start: *mut u8, layout: &Layout) {
    #[cfg(target_os = "linux")]
    if layout.align() == LARGE_PAGE {
        // SAFETY: the range is this allocation's, from a page boundary on, and advice changes no contents.
        unsafe { libc::madvise(start.cast(), layout.size(), libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, layout);
}

/// Types whose all-zero bytes are a value.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for f32 {}

/// A fixed-size buffer of plain values.
pub(crate) struct Aligned<T: Plain> {
    ptr: NonNull<T>,
    len: usize,
    layout: Layout,
    marker: PhantomData<T>,
}

// SAFETY: it owns its memory, as a boxed slice does, and T is Send + Sync.
unsafe impl<T: Plain> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Aligned<T> {}

impl<T: Plain> Aligned<T> {
    /// A buffer of zeros; aborts, as a vector does, if there is no memory.
    pub(crate) fn zeroed(len: usize) -> Self {
        Self::try_zeroed(len).unwrap_or_else(|_| handle_alloc_error(Layout::new::<T>()))
    }

    /// A buffer of zeros, for sizes that a configuration or a checkpoint decides.
    pub(crate) fn try_zeroed(len: usize) -> Result<Self, Error> {
        let bytes = len.saturating_mul(size_of::<T>()).max(1);
        let align = if bytes >= LARGE_PAGE { LARGE_PAGE } else { ALIGN };
        let layout = Layout::from_size_align(bytes, align).map_err(|_| Error::Memory { bytes })?;
        // SAFETY: the layout is not empty.
        let raw = unsafe { alloc(layout) };
        let ptr = NonNull::new(raw.cast::<T>()).ok_or(Error::Memory { bytes })?;
        advise_large_pages(raw, &layout);
        // SAFETY: the memory was allocated with this size.
        unsafe { raw.write_bytes(0, layout.size()) };
        Ok(Self { ptr, len, layout, marker: PhantomData })
    }

    pub(crate) fn as_ptr(&self) -> *const T {
        self.ptr.as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.ptr.as_ptr()
    }
}

impl<T: Plain> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` values were allocated, and zero bytes are a value of T.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `zeroed`.
        unsafe { dealloc(self.ptr.as_ptr().cast(), self.layout) }
    }
}

impl<T: Plain> std::fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} x {}]", self.len, std::any::type_name::<T>())
    }
}
