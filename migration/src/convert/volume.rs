//! Volumes. Their names, labels and options are checked by the destination's admission, as settings of the container.

use protocol::message as wire;

use super::{Refused, Wire, plain_fields, same_fields};
use crate::offered_volume::{OfferedVolume, VolumeMount};

/// Most volumes of one container.
const MOST: usize = 256;
/// Most mounts of one volume.
const MOST_MOUNTS: usize = 64;

plain_fields! {
    VolumeMount => wire::VolumeMount { destination, options, mount_options }
}

same_fields! {
    OfferedVolume => wire::Volume {
        name, is_anonymous, labels, mounts, entries, length, disk, has_devices,
    }
}

/// Takes the volumes that a peer offers.
///
/// # Errors
/// [`Refused`], if there are more than any container has, or one of them comes twice.
pub fn offered_volumes(form: Vec<wire::Volume>) -> Result<Vec<OfferedVolume>, Refused> {
    if form.len() > MOST {
        return Err(Refused::TooMany { what: "volumes", limit: MOST });
    }
    if form.iter().any(|volume| volume.mounts.len() > MOST_MOUNTS) {
        return Err(Refused::TooMany { what: "mounts of a volume", limit: MOST_MOUNTS });
    }
    let volumes: Vec<OfferedVolume> = Vec::from_wire(form)?;
    let names: std::collections::BTreeSet<&str> =
        volumes.iter().map(|volume| volume.name.as_str()).collect();
    if names.len() < volumes.len() || volumes.iter().any(|volume| volume.mounts.is_empty()) {
        return Err(Refused::Impossible("volumes"));
    }
    Ok(volumes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::comes_back;

    fn volume(name: &str) -> OfferedVolume {
        OfferedVolume {
            name: name.to_owned(),
            is_anonymous: true,
            labels: [("of".to_owned(), "web".to_owned())].into(),
            mounts: vec![VolumeMount { destination: "/data".to_owned(), ..VolumeMount::default() }],
            entries: 3,
            length: 9000,
            disk: 4096,
            has_devices: true,
        }
    }

    #[test]
    fn a_volume_comes_back_and_comes_once() {
        comes_back(&volume("data"));
        let offered = |names: &[&str]| {
            offered_volumes(names.iter().map(|name| volume(name).into_wire()).collect())
        };
        assert_eq!(offered(&["a", "b"]).unwrap().len(), 2);
        assert!(offered(&["a", "a"]).is_err(), "twice");
        let many: Vec<String> = (0..=MOST).map(|number| format!("v{number}")).collect();
        assert!(offered(&many.iter().map(String::as_str).collect::<Vec<_>>()).is_err());
        let without = OfferedVolume { mounts: Vec::new(), ..volume("a") };
        assert!(offered_volumes(vec![without.into_wire()]).is_err(), "without a mount");
    }
}
