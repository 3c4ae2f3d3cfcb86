//! The machine beneath: how many connections it can hold, what binds first, and how it is tuned. Nothing of this runs in a server,
//! but for [`Descriptors`].

mod descriptors;
mod root;
mod facts;
mod sockets;
mod bounds;
mod findings;
pub mod doctor;
mod profile;
pub mod tune;

pub use descriptors::{Descriptors, shards};
