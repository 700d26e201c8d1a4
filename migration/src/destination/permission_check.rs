//! Whether a peer may move a container here: its permissions against what the container needs.

use std::path::PathBuf;

use engine::needs::Needs;
use protocol::permissions::{Pattern, Permissions};

/// A container that wants to come.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its image's name.
    pub image: &'a str,
    /// Its image's ID.
    pub image_id: &'a str,
    /// Memory in use, in bytes.
    pub memory: u64,
    /// Bytes of the files that it changed.
    pub disk: u64,
    /// Whether its flows are to go without encryption.
    pub direct: bool,
    /// What it takes from the host.
    pub needs: &'a Needs,
}

/// Returns everything that a peer with these permissions may not do.
#[must_use]
pub fn denied(permissions: &Permissions, asked: &Asked<'_>) -> Vec<Denied> {
    let mut denied = Vec::new();
    let any = |patterns: &[Pattern], text: &str| patterns.iter().any(|p| p.matches(text));
    if !any(&permissions.names, asked.name) {
        denied.push(Denied::Name(asked.name.to_owned()));
    }
    if !any(&permissions.images, asked.image) && !any(&permissions.images, asked.image_id) {
        denied.push(Denied::Image(asked.image.to_owned()));
    }
    let memory = asked.memory.max(asked.needs.memory_limit.unwrap_or(0));
    if let Some(most) = permissions.memory.filter(|most| memory > *most) {
        denied.push(Denied::Memory { asked: memory, most });
    }
    if let Some(most) = permissions.disk.filter(|most| asked.disk > *most) {
        denied.push(Denied::Disk { asked: asked.disk, most });
    }
    if asked.direct && !permissions.direct {
        denied.push(Denied::Direct);
    }
    deny_needs(permissions, asked.needs, &mut denied);
    denied
}

fn deny_needs(permissions: &Permissions, needs: &Needs, denied: &mut Vec<Denied>) {
    if !permissions.privileged {
        denied.extend(needs.privileged.iter().cloned().map(Denied::Privileged));
    }
    denied.extend(needs.mounts.difference(&permissions.mounts).cloned().map(Denied::Mount));
    denied.extend(needs.devices.difference(&permissions.devices).cloned().map(Denied::Device));
    let capabilities = needs.capabilities.difference(&permissions.capabilities);
    denied.extend(capabilities.cloned().map(Denied::Capability));
    denied.extend(needs.shared_namespaces.iter().cloned().map(Denied::Namespace));
}

/// Something that a peer may not do here. The text continues a sentence that names peer and
/// container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The name.
    #[error("its name {0:?} is not among those allowed")]
    Name(String),
    /// The image.
    #[error("its image {0:?} is not among those allowed")]
    Image(String),
    /// Too much memory.
    #[error("it has or may have {asked} bytes of memory; {most} are allowed")]
    Memory {
        /// In use, or its limit.
        asked: u64,
        /// Allowed.
        most: u64,
    },
    /// Too many files.
    #[error("its files take {asked} bytes; {most} are allowed")]
    Disk {
        /// Bytes of its files.
        asked: u64,
        /// Allowed.
        most: u64,
    },
    /// Flows without encryption.
    #[error(
        "its flows would cross the network unencrypted (--tunnel direct), which is not allowed"
    )]
    Direct,
    /// A container that is privileged, or confined less than others.
    #[error("{0}; no privileged container is allowed")]
    Privileged(String),
    /// A file or directory of the host.
    #[error("it mounts {0} of the host")]
    Mount(PathBuf),
    /// A device of the host.
    #[error("it uses the device {0}")]
    Device(PathBuf),
    /// A capability.
    #[error("it has the capability {0}")]
    Capability(String),
    /// A namespace of the host, for which there is no permission.
    #[error("it shares its {0} namespace; that is never allowed")]
    Namespace(String),
}

impl Denied {
    /// Returns a stable name in kebab case, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name(_) => "not-allowed-name",
            Self::Image(_) => "not-allowed-image",
            Self::Memory { .. } => "not-allowed-memory",
            Self::Disk { .. } => "not-allowed-disk",
            Self::Direct => "not-allowed-direct",
            Self::Privileged(_) => "not-allowed-privileged",
            Self::Mount(_) => "not-allowed-mount",
            Self::Device(_) => "not-allowed-device",
            Self::Capability(_) => "not-allowed-capability",
            Self::Namespace(_) => "never-allowed",
        }
    }

    /// Returns the option of `agent-server peers allow` that would permit it; `None` when nothing does.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Name(name) => format!("--name {name}"),
            Self::Image(image) => format!("--image {image}"),
            Self::Memory { asked, .. } => format!("--memory {asked}"),
            Self::Disk { asked, .. } => format!("--disk {asked}"),
            Self::Direct => "--direct".to_owned(),
            Self::Privileged(_) => "--privileged".to_owned(),
            Self::Mount(path) => format!("--mount {}", path.display()),
            Self::Device(path) => format!("--device {}", path.display()),
            Self::Capability(name) => format!("--capability {name}"),
            Self::Namespace(_) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "700985bb8b14";

    fn asked(needs: &Needs) -> Asked<'_> {
        let image = "docker.io/library/nginx:1";
        Asked { name: "web", image, image_id: ID, memory: 100, disk: 10, direct: false, needs }
    }

    fn patterns(list: &[&str]) -> Vec<Pattern> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn by_default_nothing_is_permitted() {
        let needs = Needs::default();
        let codes: Vec<&str> =
            denied(&Permissions::default(), &asked(&needs)).iter().map(Denied::code).collect();
        assert_eq!(codes, ["not-allowed-name", "not-allowed-image"]);
    }

    #[test]
    fn a_new_peer_may_move_ordinary_containers() {
        let needs = Needs::default();
        let permissions = Permissions::of_new_peer();
        assert_eq!(denied(&permissions, &asked(&needs)), []);
        let plain = Asked { direct: true, ..asked(&needs) };
        assert_eq!(denied(&permissions, &plain), [Denied::Direct]);
        let large = Asked { memory: u64::MAX, disk: u64::MAX, ..asked(&needs) };
        assert_eq!(denied(&permissions, &large), []);
    }

    #[test]
    fn names_and_images_match_patterns() {
        let needs = Needs::default();
        let codes = |names: &[&str], images: &[&str]| {
            let permissions = Permissions {
                names: patterns(names),
                images: patterns(images),
                ..Default::default()
            };
            denied(&permissions, &asked(&needs)).iter().map(Denied::code).collect::<Vec<_>>()
        };
        for names in [&["web"][..], &["x", "w*"], &["[vw]eb"], &["w?b"]] {
            assert_eq!(codes(names, &["docker.io/*"]), [""; 0], "{names:?}");
        }
        for names in [&["we"][..], &["web2"], &["WEB"], &["eb*"], &[""]] {
            assert_eq!(codes(names, &[ID]), ["not-allowed-name"], "{names:?}");
        }
        for images in [&["docker.io/library/nginx"][..], &["*/nginx:2"], &["7009"], &[]] {
            assert_eq!(codes(&["*"], images), ["not-allowed-image"], "{images:?}");
        }
    }

    #[test]
    fn sizes_are_limited() {
        let mut needs = Needs::default();
        let limited =
            Permissions { memory: Some(100), disk: Some(10), ..Permissions::of_new_peer() };
        assert_eq!(denied(&limited, &asked(&needs)), []);
        let more = denied(&limited, &Asked { memory: 101, disk: 11, ..asked(&needs) });
        let wanted =
            [Denied::Memory { asked: 101, most: 100 }, Denied::Disk { asked: 11, most: 10 }];
        assert_eq!(more, wanted);
        needs.memory_limit = Some(200);
        assert_eq!(denied(&limited, &asked(&needs)), [Denied::Memory { asked: 200, most: 100 }]);
    }

    #[test]
    fn everything_of_the_host_needs_its_own_permission() {
        let needs = Needs {
            privileged: ["it is privileged".into()].into(),
            mounts: ["/srv/a".into(), "/srv/b".into()].into(),
            devices: ["/dev/fuse".into()].into(),
            capabilities: ["NET_ADMIN".into()].into(),
            ..Needs::default()
        };
        let codes = |permissions: &Permissions| {
            denied(permissions, &asked(&needs)).iter().map(Denied::code).collect::<Vec<_>>()
        };
        let mut some = Permissions::of_new_peer();
        assert_eq!(codes(&some).len(), 5);
        some.privileged = true;
        // A directory above is another one.
        some.mounts = ["/srv".into(), "/srv/a".into()].into();
        some.devices = ["/dev/fuse".into()].into();
        assert_eq!(codes(&some), ["not-allowed-mount", "not-allowed-capability"]);
        some.mounts.insert("/srv/b".into());
        some.capabilities.insert("NET_ADMIN".into());
        assert_eq!(codes(&some), [""; 0]);
    }

    #[test]
    fn namespaces_of_the_host_are_never_permitted() {
        let needs =
            Needs { shared_namespaces: ["ipc".into(), "pid".into()].into(), ..Needs::default() };
        let all = Permissions { privileged: true, ..Permissions::of_new_peer() };
        let denied = denied(&all, &asked(&needs));
        assert_eq!(denied.len(), 2);
        assert!(denied.iter().all(|d| d.code() == "never-allowed" && d.remedy().is_none()));
    }
}
