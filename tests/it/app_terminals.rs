//! The clients for the terminal in `examples/`, as a person would run them.

use crate::app_auction::{Application, EXAMPLES, example};
use crate::foreign::{NODE, check, node};
use crate::harness::Server;
use crate::harness::redis::{Redis, free_port};
use std::path::Path;

#[test]
fn the_clients_for_the_terminal_show_what_is_said() {
    let redis = Redis::start();
    let urls = format!(r#"redis.urls=["{}"]"#, redis.url());
    let [chat_port, pona_port] = [free_port(), free_port()];
    let chat = example("chat", chat_port, &[]);
    // Nothing asks an application here.
    let adstack = example("adstack", chat_port, &[&urls]);
    let pona = example("pona", pona_port, &[&urls]);
    let _applications = [("chat/server.mjs", chat_port), ("pona/backend.mjs", pona_port)]
        .map(|(script, port)| Application::start(script, port, &[], &[]));
    let with_control =
        |server: &Server| format!("http://{},http://{}", server.address(), server.control_address());
    let mut script = node("node/terminals.mjs");
    script.args([EXAMPLES, &format!("--chat=http://{}", chat.address())]);
    script.args([format!("--adstack={}", with_control(&adstack)), format!("--pona={}", with_control(&pona))]);
    let programs = Path::new(env!("CARGO_BIN_EXE_throng")).parent().expect("it is in a folder");
    let path = std::env::var("PATH").unwrap_or_default();
    script.env("PATH", format!("{}:{path}", programs.display()));
    check(script, NODE, 4);
}
