//! The volumes of a container that is to be moved.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use checkpoint::tree;
use engine::description::{Description, VolumeMount};
use engine::{Engine, volume};
use state::blocker::Blocker;
use state::cause::Cause;
use state::directories::Directories;
use state::id::{HostId, MigrationId};
use tokio::task::block_in_place;

use crate::kept_volumes::{self, KeptVolume};
use crate::offered_volume::{self, OfferedVolume};
use crate::request::{VolumePolicies, VolumePolicy};

/// A volume that goes with its container.
#[derive(Clone, Debug)]
pub struct PlannedVolume {
    /// What is offered.
    pub offered: OfferedVolume,
    /// Where its files are.
    pub data: PathBuf,
    /// When it was made, in the engine's words.
    pub created: String,
}

/// What was seen of a container's volumes.
#[derive(Debug, Default)]
pub struct Looked {
    /// Those that can go.
    pub volumes: Vec<PlannedVolume>,
    /// What stands in the way.
    pub blockers: Vec<Blocker>,
    /// What will differ, for people.
    pub warnings: Vec<String>,
}

/// Looks at the volumes of a container, and notes in its description which of them are anonymous.
///
/// # Errors
/// The engine does not answer, or a volume cannot be read.
pub async fn look(
    engine: &dyn Engine,
    description: &mut Description,
    policies: &VolumePolicies,
) -> Result<Looked, Cause> {
    let mut looked = Looked::default();
    let (id, container) = (&description.id, &description.name);
    let mut mounts: BTreeMap<String, Vec<&mut VolumeMount>> = BTreeMap::new();
    for mount in &mut description.storage.volumes {
        mounts.entry(mount.volume.clone()).or_default().push(mount);
    }
    for name in policies.named().filter(|name| !mounts.contains_key(*name)) {
        let message = format!("{container} has no volume {name} (--volumes)");
        looked.blockers.push(Blocker::new("volume-unknown", message));
    }
    let names: Vec<&str> = mounts.keys().map(String::as_str).collect();
    let present = engine.volumes(&names).await?;
    let directory = match names.is_empty() {
        true => PathBuf::new(),
        false => engine.volume_directory().await?,
    };
    for (name, mounts) in mounts {
        let mut block = |code: &str, message: String| {
            looked.blockers.push(Blocker::new(code, message));
        };
        let on = mounts.first().map(|mount| mount.destination.clone()).unwrap_or_default();
        let Some(found) = present.iter().find(|volume| volume.name == name) else {
            block("volume", format!("the volume {name} of {container} is not there any more"));
            continue;
        };
        if policies.of(&name) == VolumePolicy::Refuse {
            let message = format!(
                "{container} has the volume {name} on {on}, and is not to move with it (--volumes)"
            );
            block("volume", message);
            continue;
        }
        if name.len() > kept_volumes::LONGEST_NAME {
            let most = kept_volumes::LONGEST_NAME;
            let message =
                format!("the name of the volume {name} of {container} has more than {most} bytes");
            block("volume", message);
            continue;
        }
        if let Some(message) = unusual(container, found) {
            block("volume-driver", message);
            continue;
        }
        if found.data != engine.volume_data(&directory, &name) {
            block(
                "volume-driver",
                format!("the volume {name} of {container} is not where volumes are kept"),
            );
            continue;
        }
        for user in engine.volume_users(&name, id).await? {
            if user.is_running {
                let message = format!(
                    "container {} uses the volume {name} of {container}; stop it first",
                    user.name
                );
                block("volume-in-use", message);
            } else {
                looked.warnings.push(format!(
                    "container {} has the volume {name} as well, which stays on this host as it is when {container} goes",
                    user.name
                ));
            }
        }
        let usage = block_in_place(|| tree::usage(&found.data))?;
        let mounts = mounts.into_iter().map(|mount| {
            mount.is_anonymous = found.is_anonymous;
            offered_volume::VolumeMount {
                destination: mount.destination.clone(),
                options: mount.options.clone(),
                mount_options: mount.mount_options.clone(),
            }
        });
        let offered = OfferedVolume {
            name,
            is_anonymous: found.is_anonymous,
            labels: found.labels.clone(),
            mounts: mounts.collect(),
            entries: usage.entries,
            length: usage.length,
            disk: usage.disk,
            has_devices: usage.devices > 0,
        };
        let (data, created) = (found.data.clone(), found.created.clone());
        looked.volumes.push(PlannedVolume { offered, data, created });
    }
    Ok(looked)
}

/// Tells why a volume is none that can be copied.
fn unusual(container: &str, found: &volume::Volume) -> Option<String> {
    if found.is_plain() {
        return None;
    }
    let options: Vec<String> =
        found.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let name = &found.name;
    Some(format!(
        "the volume {name} of {container} has the driver {}{}{}; only volumes of the driver {} without options can be copied",
        found.driver,
        if options.is_empty() { "" } else { " with " },
        options.join(", "),
        volume::LOCAL
    ))
}

/// Notes that volumes stay here while their container goes.
///
/// # Errors
/// A note cannot be written.
pub fn keep(
    directories: &Directories,
    (container, migration, host): (&str, MigrationId, HostId),
    volumes: &BTreeMap<String, String>,
) -> Result<(), Cause> {
    for (volume, created) in volumes {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        kept_volumes::note(
            directories,
            &KeptVolume {
                volume: volume.clone(),
                created: created.clone(),
                container: container.to_owned(),
                migration,
                host,
                at: now.as_secs(),
                at_ns: Some(now.subsec_nanos()),
            },
        )?;
    }
    Ok(())
}

/// Tells the user what stays here.
#[must_use]
pub fn kept(volumes: &[PlannedVolume], engine: engine::Kind) -> Option<String> {
    let names: Vec<&str> = volumes.iter().map(|volume| volume.offered.name.as_str()).collect();
    let names = match names[..] {
        [] => return None,
        [one] => format!(
            "the volume {one} stays on this host as it was when the container was frozen; remove it"
        ),
        _ => format!(
            "the volumes {} stay on this host as they were when the container was frozen; remove them",
            names.join(", ")
        ),
    };
    Some(format!("{names} if the container is not to come back ({engine} volume rm)"))
}
