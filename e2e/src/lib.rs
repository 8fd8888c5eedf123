//! End-to-end suites against real processes
