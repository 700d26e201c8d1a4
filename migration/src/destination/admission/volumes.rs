//! Whether the volumes of an offered container can come.

use std::path::Path;

use engine::inspect::is_name;
use nix::sys::statvfs::statvfs;
use protocol::permissions::Permissions;
use state::cause::Cause;
use tokio::task::block_in_place;

use super::Malformed;
use crate::destination::server_context::ServerContext;
use crate::kept_volumes::{self, Standing};
use crate::offer::Offer;
use crate::offered_volume::OfferedVolume;

/// Where a kernel with SELinux tells of it (selinux(8)).
const SELINUX: &str = "/sys/fs/selinux/enforce";
/// Bytes and files that have to be free beyond what comes: volumes grow while they do.
const SPARE_BYTES: u64 = 64 << 20;
const SPARE_FILES: u64 = 1000;

/// Names everything that is in the way of the volumes.
pub(super) async fn check(
    host: &ServerContext,
    permissions: &Permissions,
    offer: &Offer,
    volumes: &[OfferedVolume],
    block: &mut impl FnMut(&str, String),
) -> Result<(), Cause> {
    if volumes.is_empty() {
        return Ok(());
    }
    let (here, container) = (&host.name, &offer.name);
    well_formed(volumes)?;
    if Path::new(SELINUX).exists() {
        block(
            "volume-selinux",
            format!(
                "{here} has SELinux, whose labels the files of volumes would not get; {container} has volumes"
            ),
        );
    }
    if !permissions.privileged {
        for volume in volumes.iter().filter(|volume| volume.has_devices) {
            block(
                "not-allowed-privileged",
                format!(
                    "{here} does not take {container} from this host: there are device nodes in its volume {}; \
                     `agent-server peers allow` on {here} can permit it (--privileged)",
                    volume.name
                ),
            );
        }
    }
    let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    let directory = host.engine.volume_directory().await?;
    for present in host.engine.volumes(&names).await? {
        let name = &present.name;
        let standing =
            block_in_place(|| kept_volumes::standing(&host.directories, &present, &offer.id))?;
        let is_in_place = present.data == host.engine.volume_data(&directory, name);
        let what = match standing {
            Standing::Left if is_in_place => None,
            Standing::Left | Standing::Other => {
                Some(format!("which is not what {container} has left there"))
            }
            Standing::Changed => {
                Some(format!("whose files were changed since {container} has left it there"))
            }
        };
        if let Some(what) = what {
            block(
                "volume-exists",
                format!(
                    "{here} has a volume named {name} already, {what}; remove it there if nobody needs it ({} volume rm {name})",
                    host.engine.kind()
                ),
            );
            continue;
        }
        for user in host.engine.volume_users(name, &offer.id).await? {
            block(
                "volume-in-use",
                format!(
                    "container {} on {here} uses the volume {name} of {container}; remove that container",
                    user.name
                ),
            );
        }
    }
    check_space(here, container, &directory, volumes, block)
}

/// Refuses what no source sends.
fn well_formed(volumes: &[OfferedVolume]) -> Result<(), Malformed> {
    let is_label = |(name, value): (&String, &String)| {
        !name.is_empty() && !name.contains('=') && name.len() + value.len() <= 65_536
    };
    let is_sound = |volume: &OfferedVolume| {
        is_name(&volume.name)
            && volume.name.len() <= kept_volumes::LONGEST_NAME
            && volume.labels.iter().all(is_label)
    };
    match volumes.iter().all(is_sound) {
        true => Ok(()),
        false => Err(Malformed("a volume")),
    }
}

/// Compares what comes with what is free.
fn check_space(
    here: &str,
    container: &str,
    directory: &Path,
    volumes: &[OfferedVolume],
    block: &mut impl FnMut(&str, String),
) -> Result<(), Cause> {
    // The engine makes the directory with the first volume.
    let Some(present) = directory.ancestors().find(|path| path.exists()) else { return Ok(()) };
    let file_system = statvfs(present)?;
    let free = file_system.blocks_available().saturating_mul(file_system.fragment_size());
    let sum = |of: fn(&OfferedVolume) -> u64| volumes.iter().map(of).fold(0, u64::saturating_add);
    let bytes = sum(|volume| volume.disk).saturating_add(SPARE_BYTES);
    if bytes > free {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        block(
            "volume-space",
            format!(
                "the volumes of {container} need {} MiB on {here}, and {} has {} MiB free",
                mib(bytes),
                present.display(),
                mib(free)
            ),
        );
    }
    let files = sum(|volume| volume.entries).saturating_add(SPARE_FILES);
    // Some file systems have no fixed number of them.
    if file_system.files() > 0 && files > file_system.files_available() {
        block(
            "volume-files",
            format!(
                "the volumes of {container} need {files} inodes on {here}, and {} has {} free",
                present.display(),
                file_system.files_available()
            ),
        );
    }
    Ok(())
}
