//! Compute kernels: CPU microkernels with one fixed summation order, and their f64 twins
