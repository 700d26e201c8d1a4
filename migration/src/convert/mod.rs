//! What this crate works with, to and from the protocol's own types.
//!
//! What a peer sends is hostile until it was converted: each [`Wire::from_wire`] refuses what no agent sends, as
//! far as that shows without looking at this host. What has to be judged by this host's state (paths below a root,
//! names of permitted options, addresses that are free) is checked where it is used.

mod counted_flow;
mod description;
mod facts;
mod flow;
mod image;
mod network_state;
mod offer;
mod path_trial;
mod service;
mod settings;
mod tree;
mod tunnel;
mod volume;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use state::id::{HostId, MigrationId};
use state::peer_text::PeerText;

pub use self::counted_flow::{CountedFlow, CountedFlows, FlowCount};
pub use self::facts::{differences, join, parts};
pub use self::flow::FlowBatch;
pub use self::network_state::NetworkState;
pub use self::path_trial::TriedPath;
pub use self::settings::Settings;
pub use self::volume::offered_volumes;

/// A type that has a wire form.
pub trait Wire: Sized {
    /// The wire form.
    type Form;

    /// Returns the wire form.
    #[must_use]
    fn into_wire(self) -> Self::Form;

    /// Takes the wire form.
    ///
    /// # Errors
    /// [`Refused`], if no agent sends it.
    fn from_wire(form: Self::Form) -> Result<Self, Refused>;
}

/// A peer has sent what no agent sends.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A value is impossible.
    #[error("the peer has sent {0} that cannot exist")]
    Impossible(&'static str),
    /// There is more of something than an agent sends.
    #[error("the peer has sent more than {limit} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// Most of it.
        limit: usize,
    },
    /// Facts of a kind that is compared by no version that this agent is compatible with.
    #[error("the peer has sent facts of the kind {0:?}, which this agent does not compare")]
    UnknownKind(PeerText),
    /// Kernel parameters of a network namespace.
    #[error(transparent)]
    Parameters(#[from] netmig::sysctl::Error),
    /// A fingerprint.
    #[error(transparent)]
    ContainerFacts(#[from] checkpoint::facts::Error),
}

/// Types that are their own wire form.
macro_rules! plain {
    ($($plain:ty),* $(,)?) => {
        $(impl Wire for $plain {
            type Form = Self;

            #[inline]
            fn into_wire(self) -> Self {
                self
            }

            #[inline]
            fn from_wire(form: Self) -> Result<Self, Refused> {
                Ok(form)
            }
        })*
    };
}

plain!(
    bool,
    u8,
    u16,
    u32,
    u64,
    i32,
    i64,
    String,
    PeerText,
    Bytes,
    IpAddr,
    SocketAddr,
    HostId,
    MigrationId,
    (IpAddr, IpAddr),
    (u16, u16),
    (u32, u32, u32),
    BTreeMap<String, String>,
    BTreeMap<u16, Vec<String>>,
    protocol::message::ImageRef,
    protocol::message::Network,
);

impl<T: Wire> Wire for Vec<T> {
    type Form = Vec<T::Form>;

    fn into_wire(self) -> Self::Form {
        self.into_iter().map(T::into_wire).collect()
    }

    fn from_wire(form: Self::Form) -> Result<Self, Refused> {
        form.into_iter().map(T::from_wire).collect()
    }
}

impl<T: Wire> Wire for Option<T> {
    type Form = Option<T::Form>;

    fn into_wire(self) -> Self::Form {
        self.map(T::into_wire)
    }

    fn from_wire(form: Self::Form) -> Result<Self, Refused> {
        form.map(T::from_wire).transpose()
    }
}

/// Implements [`Wire`] for structs whose wire forms have the same fields. A field that only one of the two has does
/// not compile.
macro_rules! plain_fields {
    ($($own:ty => $form:path { $($field:ident),* $(,)? })*) => {
        $(impl $crate::convert::Wire for $own {
            type Form = $form;

            #[inline]
            fn into_wire(self) -> $form {
                let Self { $($field),* } = self;
                $form { $($field),* }
            }

            #[inline]
            fn from_wire(form: $form) -> Result<Self, $crate::convert::Refused> {
                let $form { $($field),* } = form;
                Ok(Self { $($field),* })
            }
        })*
    };
}

/// Implements [`Wire`] for structs whose wire forms have fields of the same names, each with a wire form of its
/// own. A field that only one of the two has does not compile.
macro_rules! same_fields {
    ($($own:ty => $form:path { $($field:ident),* $(,)? })*) => {
        $(impl $crate::convert::Wire for $own {
            type Form = $form;

            fn into_wire(self) -> $form {
                let Self { $($field),* } = self;
                $form { $($field: $crate::convert::Wire::into_wire($field)),* }
            }

            fn from_wire(form: $form) -> Result<Self, $crate::convert::Refused> {
                let $form { $($field),* } = form;
                Ok(Self { $($field: $crate::convert::Wire::from_wire($field)?),* })
            }
        })*
    };
}

/// Implements [`Wire`] for enumerations whose wire forms have variants of the same names, each without fields or
/// with one. A variant that only one of the two has does not compile.
macro_rules! same_variants {
    ($($own:ident => $form:path { $($variant:ident $(($field:ident))?),* $(,)? })*) => {
        $(impl $crate::convert::Wire for $own {
            type Form = $form;

            #[inline]
            fn into_wire(self) -> $form {
                use $form as Form;
                match self {
                    $(Self::$variant $(($field))? => {
                        Form::$variant $(($crate::convert::Wire::into_wire($field)))?
                    })*
                }
            }

            #[inline]
            fn from_wire(form: $form) -> Result<Self, $crate::convert::Refused> {
                use $form as Form;
                Ok(match form {
                    $(Form::$variant $(($field))? => {
                        Self::$variant $(($crate::convert::Wire::from_wire($field)?))?
                    })*
                })
            }
        })*
    };
}

use {plain_fields, same_fields, same_variants};

/// Checks that a value comes back from its wire form as it was.
#[cfg(test)]
#[track_caller]
fn comes_back<T: Wire + Clone + PartialEq + std::fmt::Debug>(value: &T) {
    assert_eq!(T::from_wire(value.clone().into_wire()).unwrap(), *value);
}
