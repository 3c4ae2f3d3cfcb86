//! Bytes to protocol units and back. Nothing here keeps state or knows a connection: what must be remembered between
//! two calls is handed in and out.

pub mod close;
pub mod frame;
pub mod http;
pub mod proxy;
