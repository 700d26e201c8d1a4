//! podman as an [`Engine`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use checkpoint::cgroup::Cgroup;
use tokio::io::AsyncRead;

use super::stage::{PodmanStaged, PreparedImport, Staging};
use super::{
    Error as PodmanError, Podman, conmon, host_info, networks, records, stage, systemd_unit,
};
use crate::inspect::{Container, Summary};
use crate::stage::{Error as StageError, PreparedStage, Stage, Staged};
use crate::volume::{Volume, VolumeUser};
use crate::{Described, Engine, Error, Holder, ImageExport, Kind, PreparedRemoval};

/// The init of containers that have one.
const INIT: &str = "catatonit";

#[async_trait]
impl Engine for Podman {
    fn kind(&self) -> Kind {
        Kind::Podman
    }

    async fn version(&self) -> Result<String, Error> {
        Ok(Self::version(self).await?.text)
    }

    async fn keep_configuration(&self) -> Result<(), Error> {
        let info = self.info().await?;
        // Another one may have been faster.
        let _ = self.kept.set(info);
        Ok(())
    }

    async fn list_running(&self) -> Result<Vec<Summary>, Error> {
        Ok(Self::list_running(self).await?)
    }

    fn cgroup(&self, id_or_name: &str) -> Option<(String, Cgroup)> {
        Self::cgroup(self, id_or_name)
    }

    fn recorded(&self, id_or_name: &str) -> Option<Container> {
        Self::recorded(self, id_or_name)
    }

    async fn describe(&self, name_or_id: &str) -> Result<Container, Error> {
        Self::describe(self, name_or_id).await
    }

    async fn inspect(&self, name_or_id: &str) -> Result<Container, Error> {
        Self::inspect(self, name_or_id).await
    }

    async fn description(&self, id: &str) -> Result<Described, Error> {
        Self::description(self, &self.info().await?, id).await
    }

    fn service_unit(&self, container: &Container) -> Option<String> {
        systemd_unit::unit(container)
    }

    async fn exists(&self, name_or_id: &str) -> Result<bool, Error> {
        Ok(match self.kept.get() {
            Some(info) => self.has_container(info, name_or_id).await?,
            None => Self::exists(self, name_or_id).await?,
        })
    }

    async fn is_restored(&self, id: &str) -> Result<bool, Error> {
        Ok(Self::is_restored(self, id).await?)
    }

    async fn started_at(&self, id: &str) -> Result<u64, Error> {
        Ok(Self::started_at(self, id).await?)
    }

    async fn set_restart_policy(&self, id: &str, policy: &str) -> Result<(), Error> {
        Ok(Self::set_restart_policy(self, id, policy).await?)
    }

    async fn ignore_exit(&self, id: &str, monitor: i32) -> Result<(), Error> {
        conmon::kill(monitor, id).map_err(|source| Error::Monitor {
            id: id.to_owned(),
            pid: monitor,
            source,
        })
    }

    async fn clean_up(&self, id: &str) -> Result<(), Error> {
        Ok(Self::clean_up(self, id).await?)
    }

    async fn pause(&self, id: &str) -> Result<(), Error> {
        Ok(Self::pause(self, id).await?)
    }

    async fn unpause(&self, id: &str) -> Result<(), Error> {
        Ok(Self::unpause(self, id).await?)
    }

    async fn remove(&self, id: &str) -> Result<(), Error> {
        Self::remove(self, id).await
    }

    fn prepare_removal(&self) -> Result<Option<Box<dyn PreparedRemoval>>, Error> {
        Ok(Some(Box::new(Self::prepare_removal(self)?)))
    }

    async fn image_id(&self, name: &str) -> Result<Option<String>, Error> {
        Self::image_id(self, &self.info().await?, name).await
    }

    async fn has_image(&self, id: &str) -> Result<bool, Error> {
        Self::has_image(self, &self.info().await?, id).await
    }

    fn save_image(&self, name_or_id: &str) -> Result<Box<dyn ImageExport>, Error> {
        Ok(Box::new(self.save(name_or_id)?))
    }

    async fn load_image(&self, from: &mut (dyn AsyncRead + Send + Unpin)) -> Result<(), Error> {
        Ok(self.load(from).await?)
    }

    async fn image_names(&self) -> Result<BTreeMap<String, String>, Error> {
        Ok(Self::image_names(self).await?)
    }

    async fn tag_image(&self, id: &str, name: &str) -> Result<(), Error> {
        self.tag(id, name).await
    }

    async fn untag_image(&self, id: &str, name: &str) -> Result<(), Error> {
        self.untag(id, name).await
    }

    fn default_network(&self) -> &'static str {
        networks::DEFAULT
    }

    async fn has_network(&self, name: &str) -> Result<bool, Error> {
        Ok(Self::has_network(self, name).await?)
    }

    async fn holders(&self, addresses: &[IpAddr], except: &str) -> Vec<Holder> {
        let info = self.info().await;
        info.map_or_else(|_| Vec::new(), |info| Self::holders(self, &info, addresses, except))
    }

    async fn members(&self, networks: &[&str], except: &str) -> Vec<Holder> {
        let info = self.info().await;
        info.map_or_else(|_| Vec::new(), |info| Self::members(self, &info, networks, except))
    }

    fn resolvable_names(&self, names: &[&str], except: &str) -> BTreeSet<String> {
        networks::resolvable_names(names, except)
    }

    async fn volumes(&self, names: &[&str]) -> Result<Vec<Volume>, Error> {
        Ok(Self::volumes(self, names).await?)
    }

    async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        Self::create_volume(self, name, labels).await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), Error> {
        Self::remove_volume(self, name).await
    }

    async fn volume_users(&self, name: &str, except: &str) -> Result<Vec<VolumeUser>, Error> {
        Self::volume_users(self, name, except).await
    }

    async fn volume_directory(&self) -> Result<PathBuf, Error> {
        Ok(self.info().await?.volume_root)
    }

    fn volume_data(&self, directory: &Path, name: &str) -> PathBuf {
        host_info::volume_data(directory, name)
    }

    fn missing_init(&self) -> Option<&'static str> {
        records::init().is_none().then_some(INIT)
    }

    async fn prepare_stage(
        &self,
        work: &Path,
        shim: &Path,
    ) -> Result<Option<Box<dyn PreparedStage>>, StageError> {
        let info = self.info().await.map_err(cannot_start)?;
        Ok(Some(Box::new(PreparedImport::start(self.clone(), info, work, shim).await?)))
    }

    fn is_unused_stage(&self, work: &Path) -> bool {
        stage::is_untold(work)
    }

    async fn unused_stage_ended(&self, work: &Path) -> bool {
        stage::has_ended(work).await
    }

    async fn stage(&self, stage: Stage) -> Result<Box<dyn Staged>, StageError> {
        let info = self.info().await.map_err(cannot_start)?;
        Ok(Box::new(Staging::new(self.clone(), info, stage).begin(None).await?))
    }

    async fn resume_stage(
        &self,
        id: &str,
        name: &str,
        work: &Path,
        deadline: Duration,
    ) -> Result<Box<dyn Staged>, StageError> {
        Ok(Box::new(PodmanStaged::resume(self.clone(), id, name, work, deadline).await?))
    }

    async fn abort_stage(
        &self,
        id: &str,
        work: &Path,
        since: Option<u64>,
    ) -> Result<(), StageError> {
        stage::abort_by_id(self, id, work, since).await
    }
}

fn cannot_start(source: PodmanError) -> StageError {
    StageError::Start { engine: Kind::Podman, source: source.into() }
}
