//! Launching a kernel on the device's stream.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::device::{Device, Kernel};
use super::error::{Doing, Error};

/// Whether a kernel may begin while the one before it ends. It then waits by itself before it touches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    AfterPrevious,
    Overlapped,
}

/// Launches `kernel` over `grid` blocks.
///
/// # Safety
/// `arguments` are pointers to values of the kernel's parameter types, in order, and the device memory that those name
/// is valid for what the kernel does with it, until it has run.
pub(crate) unsafe fn launch(
    device: &Device,
    kernel: Kernel,
    grid: (u32, u32),
    start: Start,
    arguments: &mut [*mut c_void],
) -> Result<(), Error> {
    device.bind()?;
    let mut overlap = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: grid.0,
        gridDimY: grid.1,
        gridDimZ: 1,
        blockDimX: kernel.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: kernel.shared,
        hStream: device.stream().cu_stream(),
        attrs: &raw mut overlap,
        numAttrs: u32::from(start == Start::Overlapped),
    };
    // SAFETY: the configuration outlives the call; the arguments are the caller's.
    unsafe {
        sys::cuLaunchKernelEx(
            &raw const config,
            kernel.function,
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        )
        .result()
    }
    .doing("launching a kernel")
}

/// The address of an argument, as [`launch`] takes it.
pub(crate) fn argument<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}
