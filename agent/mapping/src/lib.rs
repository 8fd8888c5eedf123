//! File mappings: the one place outside the kernels where unsafe is allowed
