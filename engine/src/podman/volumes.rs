//! Volumes (podman-volume(1)).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::command::Overdue;
use super::{Error, Podman};
use crate::inspect::is_name;
use crate::volume::{Volume, VolumeUser};

/// podman's exit status for a volume that it does not have (podman-volume-exists(1)).
const ABSENT: i32 = 1;
/// States in which a container has no process (`libpod/define/containerstate.go`).
const STOPPED: [&str; 5] = ["created", "configured", "initialized", "exited", "stopped"];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawVolume {
    name: String,
    #[serde(default)]
    driver: String,
    #[serde(default)]
    mountpoint: PathBuf,
    #[serde(default)]
    created_at: String,
    labels: Option<BTreeMap<String, String>>,
    options: Option<BTreeMap<String, String>>,
    #[serde(default)]
    anonymous: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawUser {
    id: String,
    names: Option<Vec<String>>,
    #[serde(default)]
    state: String,
}

impl From<RawVolume> for Volume {
    fn from(raw: RawVolume) -> Self {
        Self {
            name: raw.name,
            driver: raw.driver,
            options: raw.options.unwrap_or_default(),
            labels: raw.labels.unwrap_or_default(),
            is_anonymous: raw.anonymous,
            data: raw.mountpoint,
            created: raw.created_at,
        }
    }
}

impl Podman {
    /// Returns those of the named volumes that exist.
    ///
    /// # Errors
    /// [`Error`] when podman fails or prints something else.
    pub(super) async fn volumes(&self, names: &[&str]) -> Result<Vec<Volume>, Error> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let args = ["volume", "ls", "--format", "json"];
        let text = self.run(&args, self.deadlines.query, Overdue::Kill).await?;
        let all = parse(&text)?;
        Ok(all.into_iter().filter(|volume| names.contains(&volume.name.as_str())).collect())
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// [`crate::Error::BadName`]; [`Error`] when podman fails, or has a volume of that name.
    pub(super) async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), crate::Error> {
        let name = checked(name)?;
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("--label={label}={value}")).collect();
        let mut args = vec!["volume", "create", "--driver", "local"];
        args.extend(labels.iter().map(String::as_str));
        args.extend(["--", name]);
        Ok(self.run(&args, self.deadlines.remove, Overdue::Leave).await.map(drop)?)
    }

    /// Removes a volume that no container has mounted. Absent means done.
    ///
    /// # Errors
    /// [`crate::Error::BadName`]; [`Error`] when podman fails, or a container has it mounted.
    pub(super) async fn remove_volume(&self, name: &str) -> Result<(), crate::Error> {
        let name = checked(name)?;
        let args = ["volume", "rm", "--", name];
        let refused = match self.run(&args, self.deadlines.remove, Overdue::Leave).await {
            Err(refused @ Error::Failed { .. }) => refused,
            other => return other.map(drop).map_err(Into::into),
        };
        let args = ["volume", "exists", "--", name];
        let output = self.output(&args, self.deadlines.query, Overdue::Kill).await?;
        if output.status == ABSENT { Ok(()) } else { Err(refused.into()) }
    }

    /// Returns the containers, other than that with the ID `except`, that have a volume mounted.
    ///
    /// # Errors
    /// [`crate::Error::BadName`]; [`Error`] when podman fails or prints something else.
    pub(super) async fn volume_users(
        &self,
        name: &str,
        except: &str,
    ) -> Result<Vec<VolumeUser>, crate::Error> {
        let filter = format!("volume={}", checked(name)?);
        let args = ["ps", "--all", "--no-trunc", "--filter", &filter, "--format", "json"];
        let text = self.run(&args, self.deadlines.query, Overdue::Kill).await?;
        Ok(parse_users(&text)?.into_iter().filter(|user| user.id != except).collect())
    }
}

/// Returns the name, if it can be that of a volume: podman would take others for something else.
fn checked(name: &str) -> Result<&str, crate::Error> {
    if is_name(name) { Ok(name) } else { Err(crate::Error::bad_name(name)) }
}

pub(super) fn parse(text: &[u8]) -> Result<Vec<Volume>, Error> {
    let raw: Option<Vec<RawVolume>> = serde_json::from_slice(text)
        .map_err(|source| Error::Parse { what: "podman's list of volumes".into(), source })?;
    Ok(raw.unwrap_or_default().into_iter().map(Volume::from).collect())
}

fn parse_users(text: &[u8]) -> Result<Vec<VolumeUser>, Error> {
    let raw: Option<Vec<RawUser>> = serde_json::from_slice(text)
        .map_err(|source| Error::Parse { what: "podman's list of containers".into(), source })?;
    let user = |raw: RawUser| VolumeUser {
        name: raw.names.and_then(|names| names.into_iter().next()).unwrap_or(raw.id.clone()),
        is_running: !STOPPED.contains(&raw.state.as_str()),
        id: raw.id,
    };
    Ok(raw.unwrap_or_default().into_iter().map(user).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read() {
        let text = br#"[{"Name":"data","Driver":"local","Mountpoint":"/v/data/_data",
          "CreatedAt":"2026-11-30T09:48:14.73Z","Labels":{"a":"b"},"Scope":"local","Options":{}},
          {"Name":"f0","Driver":"local","Mountpoint":"/v/f0/_data","CreatedAt":"x","Labels":null,
          "Options":{"type":"nfs"},"Anonymous":true}]"#;
        let volumes = parse(text).unwrap();
        assert_eq!(volumes[0].labels["a"], "b");
        assert!(volumes[0].is_plain() && !volumes[0].is_anonymous);
        assert!(!volumes[1].is_plain() && volumes[1].is_anonymous);
        assert!(parse(b"null").unwrap().is_empty());
        for cut in 1..text.len() {
            assert!(parse(&text[..cut]).is_err());
        }
    }

    #[test]
    fn users_are_read() {
        let text = br#"[{"Id":"a","Names":["web"],"State":"running"},{"Id":"b","Names":null,
          "State":"exited"},{"Id":"c","Names":["p"],"State":"paused"}]"#;
        let users = parse_users(text).unwrap();
        let seen: Vec<_> = users.iter().map(|u| (u.name.as_str(), u.is_running)).collect();
        assert_eq!(seen, [("web", true), ("b", false), ("p", true)]);
    }

    #[tokio::test]
    async fn what_is_no_name_is_refused() {
        let podman = Podman::new("/nonexistent");
        for name in ["", "-f", "../x", "a b"] {
            let refused = podman.remove_volume(name).await;
            assert!(matches!(refused, Err(crate::Error::BadName { .. })), "{name}");
        }
    }
}
