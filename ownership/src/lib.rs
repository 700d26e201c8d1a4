//! Decides which host owns a container, and what each host does next.
//!
//! Every function here is pure: it takes what a host knows and returns what the host does. The agents
//! call these functions with what they read from journals, kernels and peers. The model of the protocol
//! (`tests/model/`) calls the same functions for every order of events within its bounds.
//!
//! The promise is: at every moment at most one copy of a container can be heard, nothing of a copy runs
//! before its source has decided, and one copy is never lost for good without a person being told.
//!
//! ```text
//! source:       Preparing ─▶ Interrupted ─▶ Committed ─▶ [Outstanding ─▶] Acknowledged ─▶ (original removed)
//!                   └── undone ──┴── undone      │              └─ Lost or silence: in doubt
//!                                                └─ NoCopy: undone; Lost or silence: in doubt
//! destination:  Arriving ─▶ Waiting ─▶ Activated ─▶ [Outstanding ─▶] HandedOver ─▶ (remembered until the source is done)
//!                   └── removed ┴── removed   └─ gone: Lost ──┘ (the same)
//! ```

pub mod anchor;
pub mod container;
pub mod destination;
pub mod source;
