//! End-to-end suites against real processes, and the scheduler table in the real run time beside the simulator's.

pub mod beside;
pub mod engine;
pub mod host;
