//! The sans-IO core of the node agent: events in, actions out.
//!
//! No clock, no socket, no thread, no GPU. Everything hard is decided here, deterministically: the same code runs in
//! the agent and in the simulator.

pub mod frame;
pub mod ids;
pub mod kv;
pub mod placement;
pub mod sequence;
pub mod slab;
pub mod step;
