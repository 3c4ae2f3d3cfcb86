//! Between processes: what connects throng to Redis, and by it to other processes.
//!
//! The link knows Redis and nothing of rooms or clients. It runs on a thread of its own, beside the data path: others hand it what
//! they want and never wait for it.

pub mod link;
pub mod fault;
pub mod stats;

mod lanes;
mod publisher;
mod servers;
mod subscriber;
