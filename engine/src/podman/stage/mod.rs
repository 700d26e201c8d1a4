//! Staging by podman, whose restore is stopped half-way.
//!
//! podman imports an archive that holds everything but the checkpoint, and so builds the
//! container's root file system, network namespace, addresses, published ports, mounts and
//! conmon; then it waits in the [shim](checkpoint::shim). That takes 0.3 to 0.5 s and shows every
//! conflict while the container still runs on the source. podman holds the container's lock all
//! that time, so `podman ps`, `podman info` or an inspection on the destination waits as well:
//! learn [`Info`] before, and stage late. podman itself gives
//! up after [`LIFETIME`](checkpoint::shim::LIFETIME).

mod cleanup;
mod conflict;
mod import;
mod import_archive;
mod prepared_import;
mod shim_socket;
mod staged;
mod work_dir;

pub(super) use cleanup::abort_by_id;
pub(super) use prepared_import::{PreparedImport, has_ended, is_untold};
pub(super) use staged::PodmanStaged;

use std::time::Instant;

use tokio::io::AsyncWriteExt;

use super::records::{Place, Records};
use super::{Info, Podman};
use crate::Kind;
use crate::description::{Description, Image};
use crate::stage::{Conflict, Error, Stage};
use conflict::refusal;
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
            checked.is_ok() && early.work.dir == self.stage.work && !self.stage.fresh_addresses
        };
        let early = match early {
            Some(early) if !usable(&early) => {
                early.end().await;
                None
            }
            early => early,
        };
        checked?;
        let is_early = early.is_some();
        match self.attempt(early).await {
            Err(error @ Error::Engine { .. }) if is_early => {
                tracing::debug!(%error, "a podman that was started early failed");
                self.attempt(None).await
            }
            outcome => outcome,
        }
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

    /// The container as podman is to have it. podman makes it from the image's ID, and pulls an image whose name
    /// it does not know: one that has no such name here goes by its ID.
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
        let path = work.archive();
        let place = Place::of(&self.info, id, import::cleanup(&self.podman, id));
        let records = Records::write(&self.described().await?, &place);
        let archive = import_archive::build(&records, &self.stage.log).map_err(work.fail(&path))?;
        work.put_archive(&archive)?;
        let listener = listen(&work.socket()).map_err(work.fail(&work.socket()))?;
        work.own(id)?;
        let (mut child, input) = match early {
            Some(early) => (early.child, Some(early.input)),
            None => {
                work.link(&self.stage.shim, &self.info.conmon_path)?;
                let child = import::import(&self.podman, work, self.stage.fresh_addresses)?;
                if let Some(pid) = child.id() {
                    work.note_podman(pid)?;
                }
                (child, None)
            }
        };
        let told = async {
            if let Some(mut input) = input {
                // podman may have opened the file in its place by now, and never read this.
                let _ = input.write_all(&archive[import_archive::BEGINNING..]).await;
            }
            std::future::pending::<()>().await;
        };
        let link = tokio::select! {
            link = ShimSocket::accept(&listener) => {
                link.map_err(|source| Error::Shim { name: name.to_owned(), source })?
            }
            _ = child.wait() => return Err(refusal(work, name)),
            () = told => return Err(self.late(name)),
            () = tokio::time::sleep(self.stage.deadline) => return Err(self.late(name)),
        };
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

    fn late(&self, name: &str) -> Error {
        let seconds = self.stage.deadline.as_secs();
        Error::Timeout { name: name.to_owned(), what: "staging", seconds }
    }
}

/// The error for a question that podman has not answered.
fn query(name: &str, source: crate::Error) -> Error {
    Error::Query { engine: Kind::Podman, name: name.to_owned(), source }
}
