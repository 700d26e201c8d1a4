//! Stands in for conmon and for the OCI runtime in one `podman container restore`; see
//! `checkpoint::shim`.

use std::process::ExitCode;

fn main() -> ExitCode {
    checkpoint::shim::run(std::env::args_os().collect())
}
