//! A device: its context, its one stream, and the kernels loaded on it.

use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::sys::{
    self, CUdevice_attribute_enum as Attribute, CUfunction_attribute_enum as FunctionAttribute,
};
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr,
    DriverError, ValidAsZeroBits, result,
};

use super::Error;
use super::cubins::{Cubin, for_capability};
use super::error::Doing;

/// The CUDA version that the cubins are made by: a driver runs code of its own version and older.
const NEEDED_DRIVER: i32 = 13000;

/// Memory on a device.
pub type Buffer<T> = CudaSlice<T>;
/// A part of it, to read.
pub type View<'a, T> = CudaView<'a, T>;

/// A kernel, and what each of its launches takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    pub function: sys::CUfunction,
    pub threads: u32,
    pub shared: u32,
}

// SAFETY: a function's handle belongs to the context and may be used from any thread; it is only read.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// One GPU. All work goes to one stream, in order.
#[derive(Debug)]
pub struct Device {
    stream: Arc<CudaStream>,
    modules: Vec<(Cubin, sys::CUmodule)>,
    name: String,
    capability: (i32, i32),
    multiprocessors: usize,
}

// SAFETY: the raw module handles belong to the context, may be used from any thread, and are only read.
unsafe impl Send for Device {}
// SAFETY: as above; the driver's calls are thread-safe.
unsafe impl Sync for Device {}

impl std::fmt::Debug for Cubin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.sm_{}", self.name, self.arch)
    }
}

impl Device {
    /// Opens device `ordinal` and loads the kernels.
    pub fn open(ordinal: usize) -> Result<Self, Error> {
        probe()?;
        let count = CudaContext::device_count().doing("counting CUDA devices")?;
        let count = usize::try_from(count).unwrap_or(0);
        if ordinal >= count {
            return Err(Error::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).doing("opening the CUDA device")?;
        // SAFETY: events that order streams are needless, since all work of a device goes to one stream.
        unsafe { context.disable_event_tracking() };
        let name = context.name().doing("reading the device's name")?;
        let capability = context.compute_capability().doing("reading the device's compute capability")?;
        let multiprocessors = context
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .doing("counting multiprocessors")?;
        let stream = context.new_stream().doing("making a stream")?;
        let mut modules = Vec::new();
        for cubin in for_capability(capability.0, capability.1) {
            // SAFETY: the image is a whole cubin made by build.rs, and its header states its length.
            let module = unsafe { result::module::load_data(cubin.image.as_ptr().cast()) };
            modules.push((cubin, module.doing("loading kernels")?));
        }
        Ok(Self {
            stream,
            modules,
            name,
            capability,
            multiprocessors: usize::try_from(multiprocessors).unwrap_or(0),
        })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Free and total bytes of the device's memory.
    pub fn memory(&self) -> Result<(usize, usize), Error> {
        self.stream.context().mem_get_info().doing("reading the device's memory")
    }

    /// The stream that all work goes to.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Zeroed memory.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<Buffer<T>, Error> {
        self.stream.alloc_zeros(len).doing("allocating device memory")
    }

    /// A copy of `values` on the device.
    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<Buffer<T>, Error> {
        self.stream.clone_htod(values).doing("copying to the device")
    }

    /// Copies `values` to the start of a buffer.
    pub fn write<T: DeviceRepr>(&self, values: &[T], to: &mut CudaViewMut<'_, T>) -> Result<(), Error> {
        crate::error::same("values to copy (as of the device memory)", to.len(), values.len())?;
        self.stream.memcpy_htod(values, to).doing("copying to the device")
    }

    /// Waits for the stream and copies device memory to the host.
    pub fn download<T: DeviceRepr>(&self, from: &CudaView<'_, T>) -> Result<Vec<T>, Error> {
        let values = self.stream.clone_dtoh(from).doing("copying from the device")?;
        self.synchronize()?;
        Ok(values)
    }

    /// The address of memory that a launch reads. The guard that comes with it would record events, which are off.
    pub(crate) fn address<T>(&self, memory: &impl DevicePtr<T>) -> u64 {
        memory.device_ptr(&self.stream).0
    }

    /// The address of memory that a launch writes.
    pub(crate) fn address_mut<T>(&self, memory: &mut impl DevicePtrMut<T>) -> u64 {
        memory.device_ptr_mut(&self.stream).0
    }

    /// Sets every byte.
    pub fn fill_bytes<T: DeviceRepr>(&self, to: &mut Buffer<T>, byte: u8) -> Result<(), Error> {
        let bytes = to.num_bytes();
        let pointer = self.address_mut(to);
        // SAFETY: the range is the whole of the buffer, which is borrowed mutably.
        unsafe { result::memset_d8_async(pointer, byte, bytes, self.stream.cu_stream()) }
            .doing("setting device memory")
    }

    /// Waits until all work is done; a kernel's failure shows here.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.stream.synchronize().doing("waiting for the device")
    }

    /// A kernel with `threads` threads per block and no dynamic shared memory.
    pub(crate) fn kernel(
        &self,
        module: &'static str,
        name: &'static str,
        threads: u32,
    ) -> Result<Kernel, Error> {
        let Some((_, handle)) = self.modules.iter().find(|(cubin, _)| cubin.name == module) else {
            return Err(Error::NoKernel {
                kernel: name,
                device: self.name.clone(),
                major: self.capability.0,
                minor: self.capability.1,
            });
        };
        self.bind()?;
        let symbol = CString::new(name)
            .map_err(|_| crate::Error::Unsupported { what: format!("kernel name {name:?}") })?;
        // SAFETY: the module was loaded by `open` and lives until this is dropped.
        let function = unsafe { result::module::get_function(*handle, symbol) }.doing("finding a kernel")?;
        Ok(Kernel { function, threads, shared: 0 })
    }

    /// The same with `shared` bytes of dynamic shared memory.
    pub(crate) fn kernel_with_shared(
        &self,
        module: &'static str,
        name: &'static str,
        threads: u32,
        shared: u32,
    ) -> Result<Kernel, Error> {
        let kernel = self.kernel(module, name, threads)?;
        let bytes = super::merge::int(shared as usize)?;
        // SAFETY: the function is of a loaded module.
        unsafe {
            result::function::set_function_attribute(
                kernel.function,
                FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                bytes,
            )
        }
        .doing("asking for shared memory")?;
        Ok(Kernel { shared, ..kernel })
    }

    /// Makes the device's context current on this thread.
    pub(crate) fn bind(&self) -> Result<(), Error> {
        self.stream.context().bind_to_thread().doing("choosing the CUDA device")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        for (_, module) in &self.modules {
            // SAFETY: loaded by `open`, unloaded once. An error (a dead context) leaves nothing to undo.
            let _ = unsafe { result::module::unload(*module) };
        }
    }
}

/// Says whether CUDA can be used here at all, without a panic where it cannot.
fn probe() -> Result<(), Error> {
    // SAFETY: looks for libcuda and closes it again.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver);
    }
    let mut version = 0;
    // SAFETY: writes one int; needs no initialised driver.
    let read: Result<(), DriverError> = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
    read.doing("reading the CUDA driver's version")?;
    if version < NEEDED_DRIVER {
        let text = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        return Err(Error::DriverTooOld { found: text(version), needed: text(NEEDED_DRIVER) });
    }
    result::init().doing("starting the CUDA driver")
}
