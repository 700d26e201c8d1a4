//! What a peer may move to this host.
//!
//! Plain data, kept for each peer beside its identity, and a pure check. The
//! [default](Permissions::default) permits nothing at all; [`Permissions::of_new_peer`] is what a
//! peer gets when it is let in.

use std::collections::BTreeSet;
use std::path::PathBuf;

use engine::needs::Needs;
use serde::{Deserialize, Serialize};

/// What one peer may do here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Permissions {
    /// Names that its containers may have.
    pub names: Vec<Pattern>,
    /// Images that its containers may come from: patterns of names, or IDs.
    pub images: Vec<Pattern>,
    /// Most memory that a container may have in use or as its limit, in bytes; `None` leaves it to
    /// what this host has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Most bytes that a container's files and its image may take; `None` leaves it to the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Whether flows may come and go without encryption, on a segment that both hosts are on.
    pub direct: bool,
    /// Whether containers may be privileged, or lack a part of what confines others.
    pub privileged: bool,
    /// Files and directories of this host that a container may see: these very paths.
    pub mounts: BTreeSet<PathBuf>,
    /// Devices of this host that a container may use.
    pub devices: BTreeSet<PathBuf>,
    /// Capabilities that a container may have beyond podman's defaults, without `CAP_`.
    pub capabilities: BTreeSet<String>,
}

impl Permissions {
    /// What a peer gets when it is let in: ordinary containers of any name and image, as large as
    /// this host can hold, and nothing of the host.
    #[must_use]
    pub fn of_new_peer() -> Self {
        Self { names: vec![Pattern::any()], images: vec![Pattern::any()], ..Self::default() }
    }

    /// Names everything that the peer may not do.
    #[must_use]
    pub fn check(&self, asked: &Asked<'_>) -> Vec<Denied> {
        let mut denied = Vec::new();
        let any = |patterns: &[Pattern], text: &str| patterns.iter().any(|p| p.matches(text));
        if !any(&self.names, asked.name) {
            denied.push(Denied::Name(asked.name.to_owned()));
        }
        if !any(&self.images, asked.image) && !any(&self.images, asked.image_id) {
            denied.push(Denied::Image(asked.image.to_owned()));
        }
        let memory = asked.memory.max(asked.needs.memory_limit.unwrap_or(0));
        if let Some(most) = self.memory.filter(|most| memory > *most) {
            denied.push(Denied::Memory { asked: memory, most });
        }
        if let Some(most) = self.disk.filter(|most| asked.disk > *most) {
            denied.push(Denied::Disk { asked: asked.disk, most });
        }
        if asked.direct && !self.direct {
            denied.push(Denied::Direct);
        }
        self.check_needs(asked.needs, &mut denied);
        denied
    }

    fn check_needs(&self, needs: &Needs, denied: &mut Vec<Denied>) {
        if !self.privileged {
            denied.extend(needs.privileged.iter().cloned().map(Denied::Privileged));
        }
        denied.extend(needs.mounts.difference(&self.mounts).cloned().map(Denied::Mount));
        denied.extend(needs.devices.difference(&self.devices).cloned().map(Denied::Device));
        let capabilities = needs.capabilities.difference(&self.capabilities);
        denied.extend(capabilities.cloned().map(Denied::Capability));
        denied.extend(needs.shared_namespaces.iter().cloned().map(Denied::Namespace));
    }
}

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
    /// A stable name in kebab case, for programs.
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

    /// The option of `agent-server peers allow` that would permit it; `None` when nothing does.
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

/// A pattern of names: `*` stands for any text, `?` for one character, `[ab]` for one of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(glob::Pattern);

impl Pattern {
    /// Matches everything.
    #[must_use]
    pub fn any() -> Self {
        Self(glob::Pattern::new("*").unwrap_or_default())
    }

    /// Whether the whole text matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.0.matches(text)
    }
}

/// A pattern that is none.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a pattern of names")]
pub struct BadPattern {
    text: String,
    #[source]
    source: glob::PatternError,
}

impl std::str::FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let fail = |source| BadPattern { text: text.to_owned(), source };
        glob::Pattern::new(text).map(Self).map_err(fail)
    }
}

impl TryFrom<String> for Pattern {
    type Error = BadPattern;

    fn try_from(text: String) -> Result<Self, BadPattern> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0.as_str().to_owned()
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
            Permissions::default().check(&asked(&needs)).iter().map(Denied::code).collect();
        assert_eq!(codes, ["not-allowed-name", "not-allowed-image"]);
    }

    #[test]
    fn a_new_peer_may_move_ordinary_containers() {
        let needs = Needs::default();
        let permissions = Permissions::of_new_peer();
        assert_eq!(permissions.check(&asked(&needs)), []);
        let plain = Asked { direct: true, ..asked(&needs) };
        assert_eq!(permissions.check(&plain), [Denied::Direct]);
        let large = Asked { memory: u64::MAX, disk: u64::MAX, ..asked(&needs) };
        assert_eq!(permissions.check(&large), []);
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
            permissions.check(&asked(&needs)).iter().map(Denied::code).collect::<Vec<_>>()
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
        assert_eq!(limited.check(&asked(&needs)), []);
        let more = limited.check(&Asked { memory: 101, disk: 11, ..asked(&needs) });
        let wanted =
            [Denied::Memory { asked: 101, most: 100 }, Denied::Disk { asked: 11, most: 10 }];
        assert_eq!(more, wanted);
        needs.memory_limit = Some(200);
        assert_eq!(limited.check(&asked(&needs)), [Denied::Memory { asked: 200, most: 100 }]);
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
            permissions.check(&asked(&needs)).iter().map(Denied::code).collect::<Vec<_>>()
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
        let denied = all.check(&asked(&needs));
        assert_eq!(denied.len(), 2);
        assert!(denied.iter().all(|d| d.code() == "never-allowed" && d.remedy().is_none()));
    }

    #[test]
    fn texts_come_back_and_others_are_refused() {
        let permissions = Permissions {
            memory: Some(1 << 30),
            mounts: ["/srv/a".into()].into(),
            capabilities: ["NET_ADMIN".into()].into(),
            ..Permissions::of_new_peer()
        };
        let text = serde_json::to_string(&permissions).unwrap();
        assert_eq!(serde_json::from_str::<Permissions>(&text).unwrap(), permissions);
        assert_eq!(serde_json::from_str::<Permissions>("{}").unwrap(), Permissions::default());
        for text in [r#"{"privilegd":true}"#, r#"{"names":["[a"]}"#, r#"{"memory":-1}"#] {
            assert!(serde_json::from_str::<Permissions>(text).is_err(), "{text}");
        }
    }
}
