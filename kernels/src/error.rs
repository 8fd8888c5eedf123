/// What a kernel call was refused for. Nothing was computed or written when one is returned.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The name is no instruction set's.
    #[error("unknown instruction set {name:?}: use avx512, avx2, neon, portable or best")]
    UnknownIsa {
        /// The name given.
        name: String,
    },
    /// The instruction set exists, but not on this machine.
    #[error("this machine has no {isa}: use one of Isa::available(), or Isa::best()")]
    IsaUnavailable {
        /// The set asked for.
        isa: crate::cpu::Isa,
    },
    /// Two sizes that must agree do not.
    #[error("{what}: expected {expected}, found {found}")]
    Size {
        /// Which size.
        what: &'static str,
        /// What it must be (or at least, or at most, as `what` says).
        expected: usize,
        /// What it is.
        found: usize,
    },
    /// A row, page, unit or position out of range.
    #[error("{what} {index} is out of range: there are {len}")]
    Range {
        /// What was indexed.
        what: &'static str,
        /// The index.
        index: usize,
        /// How many there are.
        len: usize,
    },
    /// A row is written twice by one call, or read and written by it.
    #[error(
        "row {row} is {how}: the rows a call writes must be distinct and must not be among those it reads"
    )]
    RowConflict {
        /// The row.
        row: usize,
        /// What is wrong with it.
        how: &'static str,
    },
    /// A parameter outside what the op supports.
    #[error("{what}")]
    Unsupported {
        /// What is not supported, and what is.
        what: String,
    },
    /// The memory for weights or a cache could not be had.
    #[error(
        "cannot allocate {bytes} bytes: hold fewer units or pages on this worker, or give it more memory"
    )]
    Memory {
        /// What was asked for.
        bytes: usize,
    },
    /// The compute threads could not be started.
    #[error("cannot start a compute thread: {reason}")]
    Thread {
        /// The operating system's reason.
        reason: String,
    },
}

/// Refuses a size that is not the expected one.
pub(crate) fn same(what: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Size { what, expected, found }) }
}

/// Refuses an index that is out of range.
pub(crate) fn below(what: &'static str, index: usize, len: usize) -> Result<(), Error> {
    if index < len { Ok(()) } else { Err(Error::Range { what, index, len }) }
}
