//! The `mgre` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    mgre_user::cli::main()
}
