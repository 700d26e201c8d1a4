//! Making a container on the destination, up to the point where its processes are restored.
//!
//! podman imports an archive that holds everything but the checkpoint, and so builds the
//! container's root file system, network namespace, addresses, published ports, mounts and
//! conmon; then it waits in the [shim](crate::shim). That takes 0.3 to 0.5 s and shows every
//! conflict while the container still runs on the source. podman holds the container's lock all
//! that time, so `podman ps`, `podman info` or an inspection on the destination waits as well:
//! learn [`Info`] before, and stage late. podman itself gives
//! up after [`crate::shim::LIFETIME`].
//!
//! ```text
//! Stage::begin ──► Staged ── restore ──► Staged (restored) ── commit ──► podman's container
//!                    └────── abort ◄──────────┘
//! ```
//! [`Staged::commit`] means: podman takes over. Who may talk to the container is the network
//! half's matter: it can stay cut off after that, and be removed by [`Podman::remove`].
//!
//! Whatever crashes: [`abort_by_id`] undoes, from any process; [`Staged::resume`] takes over a
//! restored container while its lease lasts.

mod abort;
mod archive;
mod early;
mod error;
mod link;
mod process;
mod staged;
mod work;

pub use abort::abort_by_id;
pub use early::{Early, has_ended, is_untold};
pub use error::{Conflict, Error};
pub use staged::{Restored, Staged};

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use crate::description::{Description, Image};
use crate::podman::description::{Place, Records};
use crate::podman::{Info, Podman};
use link::Link;
use work::Work;

/// What to stage, and with what.
#[derive(Debug, Clone)]
#[must_use = "nothing is staged until begin is called"]
pub struct Stage {
    /// podman on this host.
    pub podman: Podman,
    /// Its configuration.
    pub info: Info,
    /// The container.
    pub description: Description,
    /// Whether podman chooses addresses for it, in place of those that it had.
    pub fresh_addresses: bool,
    /// The source's log of the container so far; may be empty.
    pub log: Vec<u8>,
    /// A directory for this migration alone, such as `/run/netmig/ID`: absent, or empty with
    /// mode 0700. On a tmpfs.
    pub work: PathBuf,
    /// The program `netmig-shim`.
    pub shim: PathBuf,
    /// How long a restored container waits for a verdict when this process has died; at most
    /// [`LIFETIME`](crate::shim::LIFETIME) from the beginning.
    pub lease: Duration,
    /// How long staging may take.
    pub deadline: Duration,
}

impl Stage {
    /// Lets podman make the container, and waits until only the restore is missing. A podman that
    /// waits already is used if it can be, and otherwise ended; should it fail, another one tries.
    ///
    /// Refuses an ID that exists *before* anything is made, so that an abort never hits a
    /// container that is not ours. On any error what was made is removed again.
    ///
    /// # Errors
    /// [`Error::Conflict`] when something on this host is in the way, otherwise [`Error`].
    pub async fn begin(self, early: Option<Early>) -> Result<Staged, Error> {
        let checked = self.check().await;
        let usable =
            |early: &Early| checked.is_ok() && early.work.dir == self.work && !self.fresh_addresses;
        let early = match early {
            Some(early) if !usable(&early) => {
                early.abandon().await;
                None
            }
            early => early,
        };
        checked?;
        let is_early = early.is_some();
        match self.attempt(early).await {
            Err(error @ Error::Podman { .. }) if is_early => {
                tracing::debug!(%error, "a podman that was started early failed");
                self.attempt(None).await
            }
            outcome => outcome,
        }
    }

    async fn check(&self) -> Result<(), Error> {
        self.description.validate().map_err(Error::Description)?;
        let Description { id, name, image, .. } = &self.description;
        self.check_free(id, name, image).await
    }

    async fn attempt(&self, early: Option<Early>) -> Result<Staged, Error> {
        let work = match &early {
            Some(early) => early.work.clone(),
            None => Work::create(&self.work)?,
        };
        let Description { id, name, .. } = &self.description;
        match self.start(&work, id, name, early).await {
            Ok(staged) => Ok(staged),
            Err(error) => {
                // The first error matters; what cannot be undone now, a later recovery does.
                if let Err(undo) = abort_by_id(&self.podman, id, &self.work, None).await {
                    tracing::warn!(id, error = %undo, "staging was not undone");
                }
                Err(error)
            }
        }
    }

    async fn check_free(&self, id: &str, name: &str, image: &Image) -> Result<(), Error> {
        let conflict = |conflict| Err(Error::Conflict { name: name.to_owned(), conflict });
        let query = |source| Error::Query { name: name.to_owned(), source };
        let podman = &self.podman;
        // A name that is taken podman finds by itself, before it makes anything.
        let (id_taken, has_image) = tokio::try_join!(
            podman.has_container(&self.info, id),
            podman.has_image(&self.info, &image.id)
        )
        .map_err(query)?;
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
        let mut description = self.description.clone();
        let Image { id, name, .. } = &mut description.image;
        let known = self.podman.image_id(&self.info, name).await;
        let query = |source| Error::Query { name: self.description.name.clone(), source };
        if known.map_err(query)?.is_none() {
            name.clone_from(id);
        }
        Ok(description)
    }

    async fn start(
        &self,
        work: &Work,
        id: &str,
        name: &str,
        early: Option<Early>,
    ) -> Result<Staged, Error> {
        let started = Instant::now();
        let path = work.archive();
        let place = Place::of(&self.info, id, process::cleanup(&self.podman, id));
        let records = Records::write(&self.described().await?, &place);
        let archive = archive::build(&records, &self.log).map_err(work.fail(&path))?;
        work.put_archive(&archive)?;
        let listener = link::listen(&work.socket()).map_err(work.fail(&work.socket()))?;
        work.own(id)?;
        let (mut child, input) = match early {
            Some(early) => (early.child, Some(early.input)),
            None => {
                work.link(&self.shim, &self.info.conmon_path)?;
                let child = process::import(&self.podman, work, self.fresh_addresses)?;
                if let Some(pid) = child.id() {
                    work.note_podman(pid)?;
                }
                (child, None)
            }
        };
        let told = async {
            if let Some(mut input) = input {
                // podman may have opened the file in its place by now, and never read this.
                let _ = input.write_all(&archive[archive::BEGINNING..]).await;
            }
            std::future::pending::<()>().await;
        };
        let link = tokio::select! {
            link = Link::accept(&listener) => {
                link.map_err(|source| Error::Shim { name: name.to_owned(), source })?
            }
            _ = child.wait() => return Err(refusal(work, name)),
            () = told => return Err(self.late(name)),
            () = tokio::time::sleep(self.deadline) => return Err(self.late(name)),
        };
        Staged::new(self.podman.clone(), work.clone(), link, Some(child), self.lease, started, name)
    }

    fn late(&self, name: &str) -> Error {
        let seconds = self.deadline.as_secs();
        Error::Timeout { name: name.to_owned(), what: "staging", seconds }
    }
}

/// What podman's last words mean.
fn refusal(work: &Work, name: &str) -> Error {
    let printed = work.printed();
    let message = crate::podman::last_line(&printed);
    match Conflict::from_message(&message) {
        Some(conflict) => Error::Conflict { name: name.to_owned(), conflict },
        None => Error::Podman { name: name.to_owned(), message },
    }
}
