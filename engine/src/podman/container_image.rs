//! Images: which exist, and the stream of one from host to host.
//!
//! An image's ID is the digest of its configuration. `podman save` and `podman load` keep that configuration: an image
//! that arrives under the same ID is the same image. The caller saves it by ID, since the name may belong to another
//! image by now, loads it, and then tags it.

use std::collections::BTreeMap;
use std::process::Stdio;

use async_trait::async_trait;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::process::{Child, ChildStdout};

use super::command::{Overdue, kill_group, read};
use super::{Error, Info, Podman, state_files};
use crate::ImageExport;
use crate::inspect::is_full_id;

/// podman's exit status for an image that it does not have (podman-image-exists(1)).
const ABSENT: i32 = 1;
/// Most bytes of error output that are kept.
const MOST_ERRORS: usize = 64 << 10;

/// A running `podman save`. Dropped before its end, podman is killed.
#[derive(Debug)]
pub(super) struct Save {
    podman: Podman,
    child: Child,
    stdout: ChildStdout,
    command: String,
}

impl Podman {
    /// Returns the ID of the image of that name; `None` when the name is not known here.
    ///
    /// # Errors
    /// [`Error`] when podman cannot tell.
    pub(super) async fn image_id(
        &self,
        info: &Info,
        name: &str,
    ) -> Result<Option<String>, crate::Error> {
        if let Some(id) = state_files::image_id(info, name) {
            return Ok(Some(id));
        }
        let args = ["image", "inspect", "--format", "{{.Id}}", "--", name];
        let output = self.output(&args, self.deadlines.query, Overdue::Kill).await?;
        if output.status != 0 {
            // podman's message for an absent image is not meant for programs.
            return match self.knows_image(name).await? {
                false => Ok(None),
                true => Err(self.failure(&args, output.status, &output.stderr).into()),
            };
        }
        let text = output.stdout;
        let id = String::from_utf8_lossy(&text).trim().to_owned();
        if is_full_id(&id) { Ok(Some(id)) } else { Err(crate::Error::bad_id(&id)) }
    }

    /// Returns whether the image of that ID is here, under whichever name.
    ///
    /// # Errors
    /// [`crate::Error::BadId`] unless `id` is a full ID; [`Error`] when podman cannot tell.
    pub(super) async fn has_image(&self, info: &Info, id: &str) -> Result<bool, crate::Error> {
        if !is_full_id(id) {
            return Err(crate::Error::bad_id(id));
        }
        match state_files::has_image(info, id) {
            true => Ok(true),
            false => Ok(self.knows_image(id).await?),
        }
    }

    async fn knows_image(&self, name: &str) -> Result<bool, Error> {
        let args = ["image", "exists", "--", name];
        let output = self.output(&args, self.deadlines.query, Overdue::Kill).await?;
        match output.status {
            0 => Ok(true),
            ABSENT => Ok(false),
            status => Err(self.failure(&args, status, &output.stderr)),
        }
    }

    /// Starts to write an image to a stream.
    ///
    /// # Errors
    /// [`Error::Spawn`].
    pub(super) fn save(&self, name_or_id: &str) -> Result<Save, Error> {
        let args = ["save", "--format", "docker-archive", "--", name_or_id];
        let command = self.shown(&args);
        let mut child = self.spawn(&args, Stdio::null(), Stdio::piped())?;
        match child.stdout.take() {
            Some(stdout) => Ok(Save { podman: self.clone(), child, stdout, command }),
            None => Err(Error::Pipe { command, source: std::io::ErrorKind::BrokenPipe.into() }),
        }
    }

    /// Reads an image from a stream. The caller checks with [`Podman::has_image`] that it is
    /// the one that was meant.
    ///
    /// # Errors
    /// [`Error`] when the stream breaks or podman refuses it.
    pub(super) async fn load(
        &self,
        from: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<(), Error> {
        let args = ["load", "--quiet"];
        let mut child = self.spawn(&args, Stdio::piped(), Stdio::null())?;
        let group = child.id();
        let fail = |source| Error::Pipe { command: self.shown(&args), source };
        let stdin = child.stdin.take();
        let stderr = child.stderr.take();
        let work = async {
            let write = async {
                if let Some(mut stdin) = stdin {
                    tokio::io::copy(from, &mut stdin).await?;
                    stdin.shutdown().await?;
                }
                std::io::Result::Ok(())
            };
            // podman that refuses the stream closes it: its own message matters, not ours.
            let (written, errors) = tokio::join!(write, read(stderr, MOST_ERRORS));
            if written.as_ref().is_err_and(|e| e.kind() != std::io::ErrorKind::BrokenPipe) {
                written?;
            }
            std::io::Result::Ok((child.wait().await?, errors?))
        };
        let result = tokio::time::timeout(self.deadlines.image, work).await;
        match result {
            Ok(Ok((status, _))) if status.success() => Ok(()),
            Ok(Ok((status, errors))) => {
                let errors = String::from_utf8_lossy(&errors);
                Err(self.failure(&args, status.code().unwrap_or(-1), &errors))
            }
            Ok(Err(source)) => {
                kill_group(group);
                Err(fail(source))
            }
            Err(_) => {
                kill_group(group);
                let seconds = self.deadlines.image.as_secs();
                Err(Error::Timeout { command: self.shown(&args), seconds })
            }
        }
    }

    /// Returns all names of images here, each with the image's ID.
    ///
    /// # Errors
    /// [`Error`] when podman cannot tell.
    pub(super) async fn image_names(&self) -> Result<BTreeMap<String, String>, Error> {
        let args = ["images", "--format", "json"];
        let text = self.run(&args, self.deadlines.query, Overdue::Kill).await?;
        parse_names(&text)
    }

    /// Takes a name from an image. The image stays.
    ///
    /// # Errors
    /// [`Error`] when podman fails.
    pub(super) async fn untag(&self, id: &str, name: &str) -> Result<(), crate::Error> {
        if !is_full_id(id) {
            return Err(crate::Error::bad_id(id));
        }
        self.run(&["untag", "--", id, name], self.deadlines.query, Overdue::Kill).await?;
        Ok(())
    }

    /// Gives an image one more name.
    ///
    /// # Errors
    /// [`Error`] when podman fails.
    pub(super) async fn tag(&self, id: &str, name: &str) -> Result<(), crate::Error> {
        if !is_full_id(id) {
            return Err(crate::Error::bad_id(id));
        }
        self.run(&["tag", "--", id, name], self.deadlines.query, Overdue::Kill).await?;
        Ok(())
    }
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "Names")]
    names: Option<Vec<String>>,
}

pub(super) fn parse_names(text: &[u8]) -> Result<BTreeMap<String, String>, Error> {
    let images: Option<Vec<RawImage>> = serde_json::from_slice(text)
        .map_err(|source| Error::Parse { what: "podman's list of images".into(), source })?;
    let images = images.unwrap_or_default().into_iter();
    let named = images.flat_map(|RawImage { id, names }| {
        names.unwrap_or_default().into_iter().map(move |name| (name, id.clone()))
    });
    Ok(named.collect())
}

#[async_trait]
impl ImageExport for Save {
    fn stream(&mut self) -> &mut (dyn AsyncRead + Send + Unpin) {
        &mut self.stdout
    }

    async fn finish(self: Box<Self>) -> Result<(), crate::Error> {
        let Self { podman, child, stdout, command } = *self;
        drop(stdout);
        Ok(ended(&podman, child, command).await?)
    }
}

/// Waits until a podman has ended.
async fn ended(podman: &Podman, mut child: Child, command: String) -> Result<(), Error> {
    let group = child.id();
    let stderr = child.stderr.take();
    let work = async {
        let errors = read(stderr, MOST_ERRORS).await?;
        std::io::Result::Ok((child.wait().await?, errors))
    };
    match tokio::time::timeout(podman.deadlines.query, work).await {
        Ok(Ok((status, _))) if status.success() => Ok(()),
        Ok(Ok((status, errors))) => Err(Error::Failed {
            command,
            status: status.code().unwrap_or(-1),
            message: super::command::last_line(&String::from_utf8_lossy(&errors)),
        }),
        Ok(Err(source)) => Err(Error::Pipe { command, source }),
        Err(_) => {
            kill_group(group);
            Err(Error::Timeout { command, seconds: podman.deadlines.query.as_secs() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_its_image() {
        let text = br#"[{"Id":"a7","Names":["localhost/a:1","localhost/b:1"],"Size":5},
            {"Id":"b8","Names":null},{"Id":"c9"}]"#;
        let names = parse_names(text).unwrap();
        assert_eq!(names.len(), 2);
        assert_eq!(names["localhost/b:1"], "a7");
        assert!(parse_names(b"null").unwrap().is_empty());
        assert!(parse_names(b"{}").is_err());
    }
}
