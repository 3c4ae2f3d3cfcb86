//! throng: a realtime server.
