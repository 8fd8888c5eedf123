//! The run time: workers as threads over an in-process transport, with the gateway's front on a thread of its own.
//!
//! Each worker thread drives one [`sluice_core::worker::Worker`] and one backend: messages and outcomes in, actions
//! out. The front thread drives [`sluice_core::front::Front`] the same way. Nothing here decides anything.

mod clock;
mod engine;
mod front;
mod gateway;
mod launch;
#[cfg(feature = "cuda")]
mod launch_cuda;
mod link;
mod links;
mod loader;
mod mail;
mod memory;
mod observe;
mod rows;
mod sizing;
mod solo;
mod start;
#[cfg(test)]
mod tests;
mod worker;

pub(crate) use clock::Clock;
pub use engine::Runtime;
pub use gateway::{FrontDoor, start_front};
pub use launch::{
    SoloWanted, Surroundings, launch, launch_cpu, launch_modelled, launch_solo, read_costs, served_spec,
    start_modelled,
};
pub use links::{Door, FrontLink, PeerLink, RankLink, Slab, Told};
pub use loader::UnitSource;
pub use mail::FrontState;
pub use observe::Observer;
pub use rows::{Buffers, Rows};
pub use sizing::{Footprint, Room, Sizing, Slots, WorkerPlan, size, size_one};
pub use solo::Solo;
pub use start::{Parts, Progress, StartError, start};
