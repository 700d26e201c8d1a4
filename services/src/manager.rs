//! systemd's manager on the system bus (org.freedesktop.systemd1(5)).

use std::path::Path;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use zbus::wire::as_variant;
use zbus::{Connection, DynamicType, Message, OwnedObjectPath};

use crate::unit::Unit;
use crate::{Error, UnitName};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
pub(crate) const UNIT: &str = "org.freedesktop.systemd1.Unit";
pub(crate) const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// There on a host that systemd has booted (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// How long the bus may take to be reached.
const CONNECTS: Duration = Duration::from_secs(5);
/// How long systemd may take for an answer. Generators of all units run in a reload.
const ANSWERS: Duration = Duration::from_secs(90);
/// Between two looks at a unit.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How a job meets others that it contradicts, and what it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It replaces them, and brings along what the unit depends on.
    Replace,
    /// It concerns the unit alone.
    Alone,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Alone => "ignore-dependencies",
        }
    }
}

/// A connection to systemd.
#[derive(Clone, Debug)]
pub struct Manager {
    bus: Connection,
}

impl Manager {
    /// Connects to the systemd of this host.
    ///
    /// # Errors
    /// [`Error::NoSystemd`], and [`Error::Bus`] if it does not answer.
    pub async fn connect() -> Result<Self, Error> {
        if !Path::new(BOOTED).is_dir() {
            return Err(Error::NoSystemd);
        }
        match tokio::time::timeout(CONNECTS, Connection::system()).await {
            Ok(bus) => Ok(Self { bus: bus.map_err(Error::Bus)? }),
            Err(_) => Err(Error::Bus(timed_out())),
        }
    }

    /// Reads a unit as systemd has it. One that does not exist is not loaded.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn unit(&self, name: &UnitName) -> Result<Unit, Error> {
        Unit::read(self, name).await
    }

    /// Has systemd read all units again.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn reload(&self) -> Result<(), Error> {
        let asked = self.call(MANAGER_PATH, MANAGER, "Reload", &()).await;
        asked.map(drop).map_err(refused(|| "read its units again".to_owned()))
    }

    /// Orders that a unit be started. Does not wait until it is.
    pub(crate) async fn start(&self, name: &UnitName, mode: Mode) -> Result<(), Error> {
        let body = (name.as_str(), mode.name());
        let asked = self.call(MANAGER_PATH, MANAGER, "StartUnit", &body).await;
        asked.map(drop).map_err(refused(|| format!("start {name}")))
    }

    /// Stops a unit and nothing that depends on it, and waits until it is.
    pub(crate) async fn stop(&self, name: &UnitName, limit: Duration) -> Result<(), Error> {
        if !self.unit(name).await?.is_down() {
            let body = (name.as_str(), Mode::Alone.name());
            let asked = self.call(MANAGER_PATH, MANAGER, "StopUnit", &body).await;
            asked.map_err(refused(|| format!("stop {name}")))?;
        }
        self.wait(name, limit, Unit::is_down).await.map(drop)
    }

    /// Waits for a state of a unit.
    pub(crate) async fn wait(
        &self,
        name: &UnitName,
        limit: Duration,
        is_reached: impl Fn(&Unit) -> bool,
    ) -> Result<Unit, Error> {
        let end = Instant::now() + limit;
        loop {
            let unit = self.unit(name).await?;
            if is_reached(&unit) {
                return Ok(unit);
            }
            if Instant::now() >= end {
                let (state, seconds) = (unit.state, limit.as_secs());
                return Err(Error::Late { unit: name.clone(), state, seconds });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Returns the object of a unit, which is loaded for it.
    pub(crate) async fn object(&self, name: &UnitName) -> Result<OwnedObjectPath, Error> {
        let failed = refused(|| format!("load {name}"));
        let reply = self.call(MANAGER_PATH, MANAGER, "LoadUnit", &(name.as_str(),)).await;
        reply.and_then(|reply| reply.body().deserialize()).map_err(failed)
    }

    /// Reads a property of a unit.
    pub(crate) async fn property<T>(
        &self,
        object: &OwnedObjectPath,
        interface: &str,
        name: &str,
    ) -> Result<T, Error>
    where
        T: DeserializeOwned + zbus::Type,
    {
        let failed = refused(|| format!("tell {name} of {}", object.as_str()));
        let reply = self.call(object.as_str(), PROPERTIES, "Get", &(interface, name)).await;
        reply
            .and_then(|reply| {
                let body = reply.body();
                let value: as_variant::Deserialize<'_, T> = body.deserialize()?;
                Ok(value.0)
            })
            .map_err(failed)
    }

    async fn call<B>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> Result<Message, zbus::Error>
    where
        B: serde::Serialize + DynamicType,
    {
        let called = self.bus.call_method(Some(SYSTEMD), path, Some(interface), method, body);
        tokio::time::timeout(ANSWERS, called).await.unwrap_or_else(|_| Err(timed_out()))
    }
}

fn timed_out() -> zbus::Error {
    let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
    zbus::Error::InputOutput(std::sync::Arc::new(error))
}

fn refused(action: impl FnOnce() -> String) -> impl FnOnce(zbus::Error) -> Error {
    move |source| Error::Refused { action: action(), source }
}
