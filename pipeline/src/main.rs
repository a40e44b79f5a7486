//! The `logdrive` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    logdrive::cli::main()
}
