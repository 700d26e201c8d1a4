//! Services of systemd: units that run containers, asked and changed through D-Bus.
//!
//! Where a container leaves, a [`Guard`] keeps its unit from starting another one, now and after a reboot. Where it arrives, an
//! [`Arrival`] starts the unit once without its own command, so that the container is restored in the unit's control group, and
//! has systemd take the container's monitor for the main process. Both are drop-in files, made and removed by anybody who
//! knows the unit's name: recovery needs nothing else.

mod arrival;
mod drop_in;
mod error;
mod guard;
mod manager;
mod name;
mod notify;
mod unit;

pub use arrival::Arrival;
pub use error::Error;
pub use guard::Guard;
pub use manager::Manager;
pub use name::UnitName;
pub use unit::{Dependents, Unit, Unsuitable};
