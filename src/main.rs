//! The operator's program: parse arguments, dispatch, print the error chain, exit.

use clap::Parser;

fn main() {
    let cli = kiln::cli::Cli::parse();
    if let Err(error) = kiln::cli::run(cli) {
        kiln::cli::exit::print(&error);
        std::process::exit(kiln::cli::exit::status(&error));
    }
}
