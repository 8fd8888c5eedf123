//! Devices that take the time of a cost model without computing anything: for experiments with schedulers and
//! placements on devices one does not have.
//!
//! Token ids and routing are drawn from hashes of what identifies a token, so they are the same under every schedule.

mod cost;
mod device;

pub use cost::{AttentionWork, CostModel, CostModelError, DeviceCosts, Jitter, Link, ModelShape};
pub use device::{ModelledBackend, ModelledConfig};
