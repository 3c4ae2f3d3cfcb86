//! throng: a realtime server. The guided tour is in `ARCHITECTURE.md`; the modules stand here in its order.

pub mod message;
pub mod time;

pub mod dialect;
pub mod reactor;
pub mod shard;
pub mod wire;

pub mod auth;
pub mod buf;
pub mod bus;
pub mod stats;

pub mod config;
pub mod control;
pub mod server;
