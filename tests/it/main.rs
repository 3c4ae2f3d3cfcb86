//! The black-box tests: the built program on ports of its own, seen by clients that share no code with it.
//!
//! What each module proves:
//!
//! | module | what it proves |
//! |---|---|
//! | `schema` | `docs/protocol.schema.json` takes the protocol's messages and refuses others; every other test holds what it hears against it |
//! | `handshake` | every row of "Before the connection is open" in `docs/protocol.md`, and plain HTTP: keep-alive, pipelines, HEAD, heads cut anywhere |
//! | `websocket` | RFC 6455 on `/echo`, byte by byte: lengths, masks, fragments, control frames, UTF-8, close codes |
//! | `native` | the native protocol by example: rooms, events, order, ids, arrays, binary payloads, every error code |
//! | `plain` | clients that speak neither of our protocols: their messages are events, in rooms with all others; refusals, hostile messages, cost |
//! | `encodings` | namespaces whose events travel as base64 or MessagePack, by any transport and parser, to backends and Redis as JSON |
//! | `access` | tokens of other makers and every way to bring one; keys that change; what users may do, and when their time is over |
//! | `callout` | a backend in Python says who clients are: slow, stopped, killed, talking nonsense; asked once, remembered, forgotten by order |
//! | `limits` | every limit at its edge: connections, addresses, proxies, sizes, rooms, memory, slow readers, descriptors |
//! | `event_limits` | limits on events by name, per connection, address and user, in both dialects and over several processes |
//! | `rooms` | policies for rooms do what `docs/routes.md` says, for native and stock clients, over several processes, at a drain, with slow readers and hostile publishers |
//! | `heartbeat` | who is silent is pinged and closed in time; any sign of life is one |
//! | `linger` | events that wait leave together, in order, and none waits longer than it may |
//! | `hostile` | clients that mean no good get what the protocol says, leave nothing behind, and their neighbours notice nothing |
//! | `abuse` | the list of hostile inputs, by name, for both ports, TLS and the PROXY protocol: each ends as its row says, and nothing is left of it |
//! | `control` | `/metrics`, `/stats` and the probes say what has happened |
//! | `watching` | the state by SIGUSR1, `throng top` in a terminal and out of it, the dashboard and the alerts: they name what there is, and alerts fire when they should |
//! | `api` | the HTTP API: what backends publish arrives, what they look at is there, what they order is done; keys, bounds, hostile requests; the document is true, and so are the examples |
//! | `webhooks` | the backend is told what happens, in order, again after whatever it did, bounded and honest about loss; a stream of Redis instead |
//! | `backend_apps` | applications whose server side is a small backend, in Python and Node, seen by stock clients; the backend stopped, killed, talking nonsense; what the hooks tell and do |
//! | `reload` | what SIGHUP changes while clients are connected, and what it names; the level of the log; the journal |
//! | `lifecycle` | start, refusal to start, draining on signals, exit codes, `check`, `--help` |
//! | `doctor` | what the machine holds is what the server says, made-up machines are judged right, settings of the kernel are changed and put back |
//! | `routes` | what a configuration makes of events, seen by stock clients; hostile payloads in templates; `check --event` |
//! | `manager` | the stand-in for systemd's manager keeps the protocols of `sd_notify` and of passed descriptors, by systemd's own program and library |
//! | `service` | under a service manager: what it is told, its watchdog, listeners that are kept over a restart or passed in |
//! | `namespaces` | limits of namespaces by pattern, on all shards; numbers of namespaces and of Engine.IO sessions come back to zero |
//! | `redis` | the link to Redis holds through whatever a Redis, its Sentinels or its cluster do |
//! | `cluster` | several processes on one Redis are one server: throngs, and throngs with Node's adapters of Socket.IO; and each is whole without it |
//! | `entering` | the rooms that clients of each kind join by entering a namespace; users, roles, hostile names, recovery |
//! | `channels` | what others publish on channels of Redis reaches the clients of each process once, by stock publishers, in floods and as garbage, over restarts |
//! | `presence` | who is in a room, over all processes and both dialects: counted and listed right, bounded in age, size and cost, and honest about what is missing |
//! | `port` | several processes on one port: each request finds its session, processes are restarted one by one, nonsense from others does no harm |
//! | `balancers` | nginx and HAProxy, set up as `tuning/` says, in front of throngs: all get through, addresses arrive, a drain is noticed |
//! | `chaos` | Redis stopped, killed, hanging or replaced under load: local delivery goes on, nothing comes twice, events between processes are back within 2 s |
//! | `golden` | what Node's Socket.IO server answers, we answer, field by field |
//! | `tls` | TLS in front of all that: versions, certificates exchanged under way, hostile handshakes, slow readers, the hand-over; stock clients |
//! | `proxy` | the header of the PROXY protocol says whose connection it is, to who trusts the proxy |
//! | `foreign` | stock clients from npm and PyPI, and a page in a browser, agree with us |
//! | `app_…` | the applications of `examples/`, each by its document, with the clients that it names |
//! | `packages` | manual pages and completions; the Debian package and the tarball, installed in a copy of the machine, upgraded, removed and purged |
//! | `tidy` | imports point down, `unsafe` stays on its island, files say what they are for |
//!
//! `harness` is what they stand on. A test starts a server of its own and needs nothing but the machine's loopback; nothing sleeps
//! to wait for something, and every wait has a bound.

mod harness;

mod schema;
mod service;

mod handshake;
mod websocket;

mod native;

mod encodings;
mod plain;

mod access;

mod callout;

mod limits;

mod event_limits;

mod heartbeat;

mod linger;

mod rooms;

mod abuse;
mod hostile;

mod api;
mod webhooks;
mod backend_apps;
mod control;
mod doctor;
mod watching;
mod lifecycle;
mod reload;

mod routes;
mod namespaces;
mod entering;
mod redis;

mod balancers;
mod manager;
mod channels;
mod chaos;
mod cluster;
mod presence;
mod port;

mod golden;

mod tls;

mod proxy;

mod foreign;

mod app_auction;
mod app_chat;
mod app_adstack;
mod app_pona;
mod app_inked;
mod app_terminals;

mod packages;

mod tidy;
