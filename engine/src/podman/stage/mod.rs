//! Staging by podman: an import that is stopped before it restores the processes.
//!
//! podman imports an archive that holds everything but the checkpoint. So it builds the container's root file system,
//! network namespace, addresses, published ports, mounts and conmon; then it waits in the [shim](checkpoint::shim). That
//! takes 0.3 to 0.5 s and shows every conflict while the container still runs on the source.
//!
//! podman holds the container's lock all that time. `podman ps`, `podman info` or an inspection on the destination waits
//! as well. So [`Info`] has to be known before, and staging comes late. podman itself gives up after
//! [`LIFETIME`](checkpoint::shim::LIFETIME).

mod cleanup;
mod conflict;
mod import;
mod import_archive;
mod lost_network;
mod made_namespaces;
mod prepared_import;
mod runtime_state;
mod shim_socket;
mod staged;
mod work_dir;

pub(super) use cleanup::abort_by_id;
pub(super) use prepared_import::{PreparedImport, has_ended, is_untold};
pub(super) use staged::PodmanStaged;

use std::io;
use std::time::Instant;

use tokio::io::AsyncWriteExt;

use super::records::{Place, Records};
use super::{Info, Podman};
use crate::Kind;
use crate::description::{Description, Image};
use crate::stage::{Conflict, Error, Stage};
use conflict::refusal;
use lost_network::Interfaces;
use made_namespaces::NamespaceWatch;
use shim_socket::{ShimSocket, listen};
use work_dir::WorkDir;

/// A container to stage, and podman.
#[derive(Debug)]
pub(super) struct Staging {
    podman: Podman,
    info: Info,
    stage: Stage,
}

impl Staging {
    pub(super) fn new(podman: Podman, info: Info, stage: Stage) -> Self {
        Self { podman, info, stage }
    }

    /// Lets podman make the container, and waits until only the restore is missing. A podman that
    /// waits already is used if it can be, and otherwise ended; should it fail, another one tries.
    ///
    /// Refuses an ID that exists *before* anything is made, so that an abort never hits a
    /// container that is not ours. On any error what was made is removed again.
    pub(super) async fn begin(self, early: Option<PreparedImport>) -> Result<PodmanStaged, Error> {
        let checked = self.check().await;
        let usable = |early: &PreparedImport| {
            checked.is_ok()
                && early.work.dir == self.stage.work
                && !self.stage.fresh_addresses
                && self.stage.beside.is_none()
        };
        let early = match early {
            Some(early) if !usable(&early) => {
                early.end().await;
                None
            }
            early => early,
        };
        checked?;
        let id = &self.stage.description.id;
        runtime_state::forget(id).await;
        let is_early = early.is_some();
        match self.attempt(early).await {
            Err(error @ Error::Engine { .. }) if is_early => {
                tracing::debug!(%error, "a podman that was started early failed");
                self.attempt(None).await
            }
            Err(Error::Conflict { conflict: Conflict::Address(text), .. }) if text.contains(id) => {
                tracing::warn!(
                    id,
                    text,
                    "a killed podman has left the container's network; it is removed"
                );
                self.remove_lost_network().await?;
                self.attempt(None).await
            }
            outcome => outcome,
        }
    }

    /// Removes a network that belongs to no container, since a podman that made it for this container was killed.
    /// podman is given an archive without a checkpoint: it makes the container, and no network, and fails. The removal of
    /// that container takes the network along.
    async fn remove_lost_network(&self) -> Result<(), Error> {
        let Description { id, name, .. } = &self.stage.description;
        let work = WorkDir::create(&self.stage.work)?;
        let made = async {
            self.write_archive(&work, import_archive::without_checkpoint).await?;
            work.own(id)?;
            work.link(&self.stage.shim, &self.info.conmon_path)?;
            let mut child = import::import(&self.podman, &work, false, None)?;
            if let Some(pid) = child.id() {
                work.note_podman(pid)?;
            }
            let ended = tokio::time::timeout(self.stage.deadline, child.wait()).await;
            ended.map(drop).map_err(|_| self.timed_out(name))
        };
        let made = made.await;
        abort_by_id(&self.podman, id, &self.stage.work, None).await?;
        made
    }

    /// Writes the archive that podman imports, and what tells the container's network from others.
    async fn write_archive(
        &self,
        work: &WorkDir,
        build: fn(&Records, &[u8]) -> io::Result<Vec<u8>>,
    ) -> Result<Vec<u8>, Error> {
        let path = work.archive();
        let description = self.described().await?;
        let id = &description.id;
        let cleanup = import::cleanup(&self.podman, id);
        let is_split = self.stage.beside.is_some();
        let place = Place::of(&self.info, id, cleanup).split(is_split);
        Interfaces::of(&description.connectivity.networks).write(work)?;
        let records = Records::write(&description, &place);
        let archive = build(&records, &self.stage.log).map_err(work.fail(&path))?;
        work.put_archive(&archive)?;
        Ok(archive)
    }

    async fn check(&self) -> Result<(), Error> {
        self.stage.description.validate().map_err(Error::Description)?;
        let Description { id, name, image, .. } = &self.stage.description;
        self.check_free(id, name, image).await
    }

    async fn attempt(&self, early: Option<PreparedImport>) -> Result<PodmanStaged, Error> {
        let work = match &early {
            Some(early) => early.work.clone(),
            None => WorkDir::create(&self.stage.work)?,
        };
        let Description { id, name, .. } = &self.stage.description;
        match self.start(&work, id, name, early).await {
            Ok(staged) => Ok(staged),
            Err(error) => {
                // The first error matters; what cannot be undone now, a later recovery does.
                if let Err(undo) = abort_by_id(&self.podman, id, &self.stage.work, None).await {
                    tracing::warn!(id, error = %undo, "staging was not undone");
                }
                Err(error)
            }
        }
    }

    async fn check_free(&self, id: &str, name: &str, image: &Image) -> Result<(), Error> {
        let conflict = |conflict| Err(Error::Conflict { name: name.to_owned(), conflict });
        let podman = &self.podman;
        // A name that is taken podman finds by itself, before it makes anything.
        let (id_taken, has_image) = tokio::try_join!(
            podman.has_container(&self.info, id),
            podman.has_image(&self.info, &image.id)
        )
        .map_err(|source| query(name, source))?;
        if id_taken {
            return conflict(Conflict::Id(id.to_owned()));
        }
        if !has_image {
            return conflict(Conflict::Image(format!("{}, ID {}", image.name, image.id)));
        }
        Ok(())
    }

    /// Returns the container as podman is to have it. podman makes it from the image's ID, and pulls an image
    /// whose name it does not know: one that has no such name here goes by its ID.
    async fn described(&self) -> Result<Description, Error> {
        let mut description = self.stage.description.clone();
        let Image { id, name, .. } = &mut description.image;
        let known = self.podman.image_id(&self.info, name).await;
        let query = |source| query(&self.stage.description.name, source);
        if known.map_err(query)?.is_none() {
            name.clone_from(id);
        }
        Ok(description)
    }

    async fn start(
        &self,
        work: &WorkDir,
        id: &str,
        name: &str,
        early: Option<PreparedImport>,
    ) -> Result<PodmanStaged, Error> {
        let started = Instant::now();
        // A podman that waits already goes on as soon as the archive is there.
        let early_id = early.as_ref().and_then(|early| early.child.id());
        let mut watch = NamespaceWatch::begin(early_id);
        let archive = self.write_archive(work, import_archive::build).await?;
        let listener = listen(&work.socket()).map_err(work.fail(&work.socket()))?;
        work.own(id)?;
        let (mut child, input) = match early {
            Some(early) => (early.child, Some(early.input)),
            None => {
                work.link(&self.stage.shim, &self.info.conmon_path)?;
                let child = import::import(
                    &self.podman,
                    work,
                    self.stage.fresh_addresses,
                    self.stage.beside,
                )?;
                // It takes longer to start than this.
                watch = NamespaceWatch::begin(child.id());
                if let Some(pid) = child.id() {
                    work.note_podman(pid)?;
                }
                (child, None)
            }
        };
        let written = async {
            if let Some(mut input) = input {
                // podman may have opened the file in its place by now, and never read this.
                let _ = input.write_all(&archive[import_archive::BEGINNING..]).await;
            }
        };
        let noted = async {
            match &watch {
                Some(watch) => watch.note(work).await,
                None => std::future::pending().await,
            }
        };
        let told = async { tokio::join!(written, noted) };
        let link = tokio::select! {
            link = ShimSocket::accept(&listener) => {
                link.map_err(|source| Error::Shim { name: name.to_owned(), source })
            }
            _ = child.wait() => Err(refusal(work, name)),
            _ = told => Err(self.timed_out(name)),
            () = tokio::time::sleep(self.stage.deadline) => Err(self.timed_out(name)),
        };
        if let Some(watch) = &watch {
            watch.note_made(work);
        }
        let link = link?;
        let lease = self.stage.lease;
        PodmanStaged::new(
            self.podman.clone(),
            work.clone(),
            link,
            Some(child),
            lease,
            started,
            name,
        )
    }

    fn timed_out(&self, name: &str) -> Error {
        let seconds = self.stage.deadline.as_secs();
        Error::Timeout { name: name.to_owned(), what: "staging", seconds }
    }
}

/// Returns the error for a question that podman has not answered.
fn query(name: &str, source: crate::Error) -> Error {
    Error::Query { engine: Kind::Podman, name: name.to_owned(), source }
}
