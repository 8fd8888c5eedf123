//! The run time: workers as threads over an in-process transport, with the gateway's front on a thread of its own.
//!
//! Each worker thread drives one [`sluice_core::worker::Worker`] and one backend: messages and outcomes in, actions
//! out. The front thread drives [`sluice_core::front::Front`] the same way. Nothing here decides anything.

mod clock;
mod engine;
mod front;
mod launch;
mod link;
mod loader;
mod mail;
mod memory;
mod observe;
mod sizing;
mod start;
#[cfg(test)]
mod tests;
mod worker;

pub use engine::Runtime;
pub use launch::{Surroundings, launch, launch_cpu, launch_modelled, read_costs, start_modelled};
pub use loader::UnitSource;
pub use mail::FrontState;
pub use observe::Observer;
pub use sizing::{Footprint, Sizing, WorkerPlan, size};
pub use start::{Parts, Progress, StartError, start};
