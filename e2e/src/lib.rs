//! End-to-end suites against real processes, the scheduler table in the real run time beside the simulator's, and the
//! transport beside iperf3.

pub mod beside;
pub mod engine;
pub mod host;
pub mod wire;
