//! Launches recorded once and replayed, and how long the device takes for them.

use std::time::Duration;

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{
    CUevent_flags_enum as EventFlags, CUgraphInstantiate_flags_enum as GraphFlags, CUstreamCaptureMode,
};

use super::device::Device;
use super::error::{Doing, Error};

/// A sequence of launches with fixed arguments.
pub struct Graph {
    graph: Option<CudaGraph>,
}

impl Graph {
    /// Records what `launches` launches, without running it.
    pub fn record(device: &Device, launches: impl FnOnce() -> Result<(), Error>) -> Result<Self, Error> {
        let stream = device.stream();
        stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .doing("beginning to record a graph")?;
        let launched = launches();
        let graph = stream.end_capture(GraphFlags(0)).doing("recording a graph");
        launched?;
        Ok(Self { graph: graph? })
    }

    /// Runs it on the device's stream. The memory that the launches name must be alive.
    pub fn launch(&self) -> Result<(), Error> {
        self.graph.as_ref().map_or(Ok(()), |graph| graph.launch().doing("launching a graph"))
    }
}

impl Device {
    /// The device's time for what `launches` launches.
    pub fn timed(&self, launches: impl FnOnce() -> Result<(), Error>) -> Result<Duration, Error> {
        let mark =
            || self.stream().record_event(Some(EventFlags::CU_EVENT_DEFAULT)).doing("recording an event");
        let start = mark()?;
        launches()?;
        let end = mark()?;
        let milliseconds = start.elapsed_ms(&end).doing("reading an event")?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds) / 1e3))
    }
}
