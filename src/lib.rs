//! throng: a realtime server. The guided tour is in `ARCHITECTURE.md`; the modules stand here in its order.

pub mod auth;
pub mod buf;
pub mod bus;
pub mod dialect;
pub mod message;
pub mod shard;
pub mod stats;
pub mod time;
pub mod wire;
