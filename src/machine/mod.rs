//! The machine beneath: how many connections it can hold, what binds first, and how it is tuned. Of this, a server
//! uses [`Descriptors`] and [`Memory`].

mod descriptors;
mod root;
mod facts;
mod sockets;
mod memory;
mod bounds;
mod findings;
pub mod doctor;
mod profile;
pub mod tune;

pub use descriptors::{Descriptors, shards};
pub use memory::{Memory, Taken};
