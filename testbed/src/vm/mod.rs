//! The lab on a stock Debian kernel, in a virtual machine by software emulation.
//!
//! Stock kernels have what this machine's kernel may lack: WireGuard, and the native `queue` of nftables. The virtual
//! machine has the hosts' root file system and runs the same labs by the same commands. Its clock is that of a
//! processor of 1 GHz, so limits are longer and rates lower there ([`crate::slowdown`]). An hour in the virtual
//! machine takes several hours when it is busy, and no time when it waits.

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

/// The path by which a command in the virtual machine writes a file of this machine.
pub const FILE_PORT: &str = init::PORTS[3];
/// The time limit of a command from the command line.
pub const BY_HAND: Duration = Duration::from_secs(6 * 3600);
/// The factor of [`crate::slowdown`] in the virtual machine.
const SLOWDOWN: u32 = 5;

/// A command of the testbed for the virtual machine.
#[derive(Debug)]
pub struct Plan {
    /// The arguments.
    pub arguments: Vec<String>,
    /// The file for what the command writes to [`FILE_PORT`].
    pub file: Option<PathBuf>,
    /// The time limit, with the boot.
    pub limit: Duration,
    /// What happens to the output.
    pub show: Show,
}

/// The inputs of the virtual machine, ready to boot.
#[derive(Debug)]
pub struct Machine {
    image: boot_files::Image,
    programs: Programs,
    storage: PathBuf,
}

impl Machine {
    /// Installs the emulator, fetches the kernel and creates the disk, unless they exist.
    ///
    /// # Errors
    /// The machine has another architecture, or something is not available.
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

    /// Returns the kernel's release.
    pub fn release(&self) -> &str {
        &self.image.release
    }

    /// Boots the virtual machine, runs a command in it, and ends it. Nothing is left afterwards, also if this program
    /// is killed meanwhile.
    ///
    /// # Errors
    /// The virtual machine could not be booted, or did not end in time.
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

/// The first argument of the testbed in the virtual machine. The second is the factor of [`crate::slowdown`].
const INSIDE: &str = "inside";

/// Sets this program up as the testbed in the virtual machine if the arguments say so. Returns the other arguments
/// then.
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
    let names = ["agent-client", "agent-server", "netmig-shim", "libnetmig_criu.so", PROBE];
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
