//! The node agent: model loading, compute backends, workers, gateway and the command line

pub mod backend;
pub mod bench;
pub mod cli;
pub mod fetch;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod gateway;
pub mod inspect;
pub mod link;
pub mod model;
pub mod node;
pub mod runtime;
pub mod sampling;
pub mod table;
pub mod telemetry;
pub mod transport;
