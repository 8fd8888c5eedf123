//! Launching a kernel on the device's stream.

use std::ffi::c_void;

use cudarc::driver::{DriverError, sys};

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
    let mut overlap = [OVERLAP];
    let attributes: &mut [_] = if start == Start::Overlapped { &mut overlap } else { &mut [] };
    // SAFETY: the caller's.
    unsafe { launch_with(device, kernel, grid, attributes, arguments) }
}

/// Launches `clusters` clusters of `size` blocks, and overlaps them with the kernel before.
///
/// # Safety
/// As [`launch`].
pub(crate) unsafe fn launch_clusters(
    device: &Device,
    kernel: Kernel,
    clusters: u32,
    size: u32,
    arguments: &mut [*mut c_void],
) -> Result<(), Error> {
    let mut attributes = [OVERLAP, cluster_of(size)];
    // SAFETY: the caller's.
    unsafe { launch_with(device, kernel, (clusters * size, 1), &mut attributes, arguments) }
}

/// How many clusters of `size` blocks of `kernel` the device runs at once.
pub(crate) fn clusters_at_once(device: &Device, kernel: Kernel, size: u32) -> Result<usize, Error> {
    device.bind()?;
    let mut attributes = [cluster_of(size)];
    let config = config(device, kernel, (size, 1), &mut attributes);
    let mut clusters = 0;
    // SAFETY: writes one int; the configuration outlives the call.
    let asked: Result<(), DriverError> = unsafe {
        sys::cuOccupancyMaxActiveClusters(&raw mut clusters, kernel.function, &raw const config).result()
    };
    asked.doing("asking how many clusters of blocks fit the device")?;
    Ok(usize::try_from(clusters).unwrap_or(0))
}

const OVERLAP: sys::CUlaunchAttribute = sys::CUlaunchAttribute {
    id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
    pad: [0; 4],
    value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
};

fn cluster_of(size: u32) -> sys::CUlaunchAttribute {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.clusterDim.x = size;
    value.clusterDim.y = 1;
    value.clusterDim.z = 1;
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value,
    }
}

fn config(
    device: &Device,
    kernel: Kernel,
    grid: (u32, u32),
    attributes: &mut [sys::CUlaunchAttribute],
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: grid.0,
        gridDimY: grid.1,
        gridDimZ: 1,
        blockDimX: kernel.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: kernel.shared,
        hStream: device.stream().cu_stream(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

/// # Safety
/// As [`launch`].
unsafe fn launch_with(
    device: &Device,
    kernel: Kernel,
    grid: (u32, u32),
    attributes: &mut [sys::CUlaunchAttribute],
    arguments: &mut [*mut c_void],
) -> Result<(), Error> {
    device.bind()?;
    let config = config(device, kernel, grid, attributes);
    // SAFETY: the configuration and its attributes outlive the call; the arguments are the caller's.
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
