//! The netpol agent's binary: everything is in the library, where tests reach it.

fn main() -> std::process::ExitCode {
    netpol_agent::cli::main()
}
