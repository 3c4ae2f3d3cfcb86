//! throng: a realtime server. The guided tour is in `ARCHITECTURE.md`; the modules stand here in its order.

pub mod message;
pub mod time;

pub mod wire;
pub mod dialect;
pub mod shard;
pub mod reactor;
pub mod sim;
#[doc(hidden)]
pub mod fuzzing;

pub mod bus;
pub mod cluster;
pub mod auth;
pub mod token;
pub mod permissions;
pub mod json;
pub mod routes;
pub mod policy;
pub mod rules;
pub mod buf;
pub mod stats;

pub mod http_client;
pub mod bridge;
pub mod backend;
pub mod control;
pub mod config;
pub mod machine;
pub mod log;
pub mod listeners;
mod systemd;
pub mod server;

pub mod top;
pub mod generate;
