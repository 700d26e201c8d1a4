//! The lab on a second kernel: a stock Debian kernel in a virtual machine, by software emulation.
//!
//! Stock kernels have what this machine's may lack: WireGuard, and the native `queue` of nftables.
//! The virtual machine has the hosts' root file system, and the same labs of namespaces run in it by
//! the same commands. Its clock is that of a processor of 1 GHz, so that limits of time are longer
//! and clients send less there (see [`crate::slowdown`]); an hour in there takes several of ours when it
//! is busy, and nothing when it waits.

mod boot_files;
mod init;
mod kernel_package;
mod machine;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use init::become_init_if_asked;
pub use kernel_package::KERNEL_VARIABLE;
pub use machine::{Ran, Show};

use crate::error::{Error, Result};
use crate::lab::storage_template;
use crate::prepare::{self, Needed};
use crate::programs::{PROBE, Programs};
use crate::{install, slowdown};

/// The path by which a command in the virtual machine writes a file that is kept.
pub const FILE_PORT: &str = init::PORTS[3];
/// Longest run of a command by hand.
pub const BY_HAND: Duration = Duration::from_secs(6 * 3600);
/// How many times longer things may take in the virtual machine.
const SLOWDOWN: u32 = 5;

/// A command of the testbed for the virtual machine.
#[derive(Debug)]
pub struct Plan {
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Gets what the command writes to [`FILE_PORT`].
    pub file: Option<PathBuf>,
    /// How long it may take, boot and all.
    pub limit: Duration,
    /// Where its output goes.
    pub show: Show,
}

/// What the virtual machine is made from, ready to boot.
#[derive(Debug)]
pub struct Machine {
    image: boot_files::Image,
    programs: Programs,
    storage: PathBuf,
}

impl Machine {
    /// Installs the emulator, fetches the kernel and makes the disk, unless all that is there.
    ///
    /// # Errors
    /// The machine is of another architecture, or something cannot be had.
    pub fn prepare() -> Result<Self> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(Error::Refused("the second kernel is one for x86-64".to_owned()));
        }
        let needed = prepare::for_labs()?;
        install::ensure(install::EMULATOR)?;
        let storage = storage_template::template(&needed)?;
        let image = boot_files::ensure(&needed.rootfs)?;
        Ok(Self { image, programs: needed.programs, storage })
    }

    /// The release of its kernel.
    pub fn release(&self) -> &str {
        &self.image.release
    }

    /// Boots it, runs a command in it, and ends it. Nothing of it is left then, as when this program
    /// is ended meanwhile.
    ///
    /// # Errors
    /// It could not be booted, or was not done in time.
    pub fn run(&self, plan: Plan) -> Result<Ran> {
        let mut arguments = vec![INSIDE.to_owned(), SLOWDOWN.to_string()];
        arguments.extend(plan.arguments);
        machine::run(&machine::Job {
            image: &self.image,
            programs: &self.programs,
            storage: &self.storage,
            arguments,
            file: plan.file,
            limit: plan.limit,
            show: plan.show,
        })
    }
}

/// First argument of this program when it is the testbed in the virtual machine; the second says
/// how many times slower it is there.
const INSIDE: &str = "inside";

/// Whether the arguments say that this is the testbed in the virtual machine; if so, everything is
/// where the machine put it, and the rest of the arguments are given back.
///
/// # Errors
/// The arguments are wrong.
pub fn settle_if_inside() -> Result<Option<Vec<String>>> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(INSIDE) {
        return Ok(None);
    }
    let slowdown = arguments.next().and_then(|text| text.parse().ok()).ok_or_else(|| {
        Error::Refused(format!("{INSIDE} wants to know how much slower it is there"))
    })?;
    slowdown::set(slowdown);
    let base = Path::new(init::SCRATCH);
    let bin = base.join("bin");
    let names = ["agent-client", "agent-server", "netmig-shim", PROBE];
    prepare::provide(Needed {
        rootfs: PathBuf::from("/"),
        programs: Programs {
            files: names.map(|name| bin.join(name)).to_vec(),
            probe: bin.join(PROBE),
        },
        storage: Some(base.join("storage")),
    });
    Ok(Some(arguments.collect()))
}
