//! Exit statuses: 0 done; 1 failed; 2 the call or a file that the user wrote is wrong; 3 refused;
//! 4 a check did not hold.

use crate::recipe::problem::Problems;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Usage = 2,
    Refused = 3,
    Check = 4,
}

/// An error that asks for an exit status of its own.
#[derive(Debug)]
struct Marked {
    exit: Exit,
    message: String,
}

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Marked {}

/// An error that ends the program with `exit`.
pub fn error(exit: Exit, message: impl fmt::Display) -> anyhow::Error {
    Marked { exit, message: message.to_string() }.into()
}

/// The exit status that an error asks for, 1 if none of its causes asks for one.
pub fn status(error: &anyhow::Error) -> i32 {
    if let Some(marked) = error.chain().find_map(|e| e.downcast_ref::<Marked>()) {
        return marked.exit as i32;
    }
    if error.chain().any(|e| e.downcast_ref::<Problems>().is_some()) { Exit::Usage as i32 } else { 1 }
}

/// Prints an error: one line naming object and value, the causes below it.
pub fn print(error: &anyhow::Error) {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  caused by: {}", cause.to_string().replace('\n', "\n    "));
    }
}
