//! The program inside an image: PID 1 of the initramfs, and `kiln-node join` as the role's service.

use std::process::ExitCode;

/// Exit status of a wrong call.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let is_init = std::process::id() == 1 && arguments.first().is_some_and(|a| a == "/init");
    match arguments.get(1).map(String::as_str) {
        _ if is_init => kiln::netroot::init::run(),
        Some("join") if arguments.len() == 2 => kiln::join::agent::run(),
        Some("--version") => {
            println!("kiln-node {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: kiln-node join | --version (as /init with process id 1: the initramfs stage)");
            ExitCode::from(USAGE)
        }
    }
}
