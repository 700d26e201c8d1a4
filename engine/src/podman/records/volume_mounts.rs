//! Mounts of volumes in OCI configurations. podman writes each as a bind mount of the volume's directory
//! (`generateSpec`, `libpod/container_internal_common.go`).

use serde_json::{Value, json};

use super::Place;
use crate::description::VolumeMount;

/// Takes the mounts of volumes out of an OCI configuration, and notes their options. A mount of another directory in the
/// place of a volume stays, so that it is found when the configuration is written again.
pub(super) fn take(spec: &mut Value, volumes: &mut [VolumeMount], place: &Place) {
    let Some(mounts) = spec.get_mut("mounts").and_then(Value::as_array_mut) else { return };
    mounts.retain(|mount| {
        let of_mount = volumes.iter_mut().find(|volume| {
            mount["type"] == "bind"
                && mount["destination"] == json!(volume.destination)
                && mount["source"] == json!(place.volume_data(&volume.volume))
        });
        let Some(volume) = of_mount else { return true };
        let options = mount["options"].as_array().into_iter().flatten();
        volume.mount_options = options.filter_map(Value::as_str).map(str::to_owned).collect();
        false
    });
}

/// Returns the mounts of volumes.
pub(super) fn write<'a>(
    volumes: &'a [VolumeMount],
    place: &'a Place,
) -> impl Iterator<Item = Value> + 'a {
    volumes.iter().map(|volume| {
        json!({
            "destination": volume.destination,
            "type": "bind",
            "source": place.volume_data(&volume.volume),
            "options": volume.mount_options,
        })
    })
}
