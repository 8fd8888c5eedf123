//! What a running agent tells of itself: metrics, pressure, logs, traces.
//!
//! Workers pay a few atomic additions per step and nothing else; they hand over a snapshot of their counters and
//! queues about twice a second, and all the arithmetic on those happens when somebody scrapes.

mod devices;
mod families;
mod front;
mod logs;
mod metrics;
mod peers;
mod pressure;
mod sample;
mod spans;
#[cfg(test)]
mod tests;
mod workers;

pub use devices::{DevicePage, Devices, DevicesPage};
pub use logs::{LogError, Logs, start_logs};
pub use metrics::Telemetry;
pub use pressure::{
    MaskedPeer, MemberPressure, ModelPressure, PeerPressure, PressurePage, QueueLoad, SlowPeer,
    TablePressure, UnitLoad, WorkerPressure,
};
pub use sample::{FrontSample, StepKind, WorkerSample};
pub use spans::TokenSpans;
