use cudarc::driver::DriverError;

/// Why a device could not be used or a launch was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no driver on this machine.
    #[error("no CUDA driver (libcuda.so) on this machine: install NVIDIA's, or use the CPU backend")]
    NoDriver,
    /// The driver is older than the kernels.
    #[error("the CUDA driver is of version {found}, and the kernels need {needed}: update the driver")]
    DriverTooOld {
        /// What is installed.
        found: String,
        /// What it takes.
        needed: String,
    },
    /// There is no such device.
    #[error("there is no CUDA device {ordinal}: this machine shows {count}")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// This build has no kernels for the device.
    #[error(
        "this build has no kernel {kernel:?} for {device} (compute capability {major}.{minor}): build it with nvcc 13 in \
         PATH or NVCC (kernels/nvcc.sh installs one)"
    )]
    NoKernel {
        /// Which kernel.
        kernel: &'static str,
        /// The device's name.
        device: String,
        /// Its compute capability.
        major: i32,
        /// Its compute capability, minor.
        minor: i32,
    },
    /// An argument is refused.
    #[error(transparent)]
    Argument(#[from] crate::Error),
    /// The driver reports an error. One that says that a kernel failed is final for this process.
    #[error("{what}: {source:?}")]
    Driver {
        /// What was being done.
        what: &'static str,
        /// What the driver says.
        source: DriverError,
    },
}

/// Says what was being done when the driver reported an error.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, DriverError> {
    fn doing(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Driver { what, source })
    }
}
