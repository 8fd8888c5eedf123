//! What goes to standard output.

use std::fmt;
use std::io::{ErrorKind, Write, stdout};

/// Prints a line. Whoever reads the output may stop when it has read enough: that ends the process, as it does `seq`.
pub fn line(text: fmt::Arguments<'_>) {
    if let Err(e) = writeln!(stdout().lock(), "{text}") {
        if e.kind() != ErrorKind::BrokenPipe {
            eprintln!("nothing can be written to standard output: {e}");
        }
        std::process::exit(i32::from(e.kind() != ErrorKind::BrokenPipe));
    }
}

/// As `println!`, for output that may be piped into `head`.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::out::line(format_args!($($arg)*)) };
}
