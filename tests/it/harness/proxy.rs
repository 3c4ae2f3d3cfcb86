//! Load balancers for the tests: nginx and HAProxy as `tuning/` sets them up, but for addresses and ports.

use super::WAIT;
use super::clock::{Deadline, LOOK_AGAIN, rest};
use super::redis::{folder, free_port};
use super::server::Server;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

const INSTALL: &str = "install both with: apt-get install nginx haproxy (.ci/setup does)";

/// A load balancer in a directory of its own, in front of two throngs. It is ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Proxy {
    pub(crate) fn nginx(throngs: &[Server; 2]) -> Proxy {
        Proxy::start(|folder, port| {
            let folder = folder.display();
            // It would write to /var otherwise, and not everybody may.
            let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .iter()
                .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
                .collect();
            let mut config = shipped("nginx.conf");
            replace(&mut config, "listen 80 ", &format!("listen 127.0.0.1:{port} "));
            replace(&mut config, "http {", &format!("http {{\naccess_log off;\n{temporary}"));
            for (name, throng) in ["10.0.0.1:7070", "10.0.0.2:7070"].iter().zip(throngs) {
                replace(&mut config, name, &throng.address().to_string());
            }
            fs::write(format!("{folder}/nginx.conf"), config).expect("the folder is ours");
            let mut command = Command::new("nginx");
            command.args(["-p", &folder.to_string(), "-c", "nginx.conf", "-e", "log"]);
            command.args(["-g", &format!("daemon off; pid {folder}/pid; error_log {folder}/log;")]);
            command
        })
    }

    pub(crate) fn haproxy(throngs: &[Server; 2]) -> Proxy {
        Proxy::start(|folder, port| {
            let mut config = shipped("haproxy.cfg");
            replace(&mut config, "bind :80\n", &format!("bind 127.0.0.1:{port}\n"));
            let socket = folder.join("stats");
            replace(&mut config, "global\n", &format!("global\n    stats socket {}\n", socket.display()));
            for (name, throng) in ["10.0.0.1:7070 port 7071", "10.0.0.2:7070 port 7071"].iter().zip(throngs) {
                let control = throng.control_address().port();
                replace(&mut config, name, &format!("{} port {control}", throng.address()));
            }
            let path = folder.join("haproxy.cfg");
            fs::write(&path, config).expect("the folder is ours");
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(path);
            command
        })
    }

    fn start(command: impl Fn(&PathBuf, u16) -> Command) -> Proxy {
        let mut said = String::new();
        // Another test may take the port first.
        for _ in 0..8 {
            let folder = folder();
            let port = free_port();
            let mut command = command(&folder, port);
            let log = fs::File::create(folder.join("output")).expect("the folder is ours");
            let path = std::env::var("PATH").unwrap_or_default();
            // Where Debian has them, which is not in everybody's path.
            command.env("PATH", format!("{path}:/usr/sbin"));
            command.stdin(Stdio::null()).stderr(log.try_clone().expect("a descriptor")).stdout(log);
            let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; {INSTALL}"));
            let mut proxy = Proxy { child, port, folder };
            if proxy.serves() {
                return proxy;
            }
            said = ["output", "log"]
                .map(|name| fs::read_to_string(proxy.folder.join(name)).unwrap_or_default())
                .concat();
        }
        panic!("no load balancer starts: {said}");
    }

    fn serves(&mut self) -> bool {
        let deadline = Deadline::after(WAIT);
        while !deadline.is_over() && self.child.try_wait().expect("it is our child").is_none() {
            if TcpStream::connect(self.address()).is_ok() {
                return true;
            }
            rest(LOOK_AGAIN);
        }
        false
    }

    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// What HAProxy thinks of a server, as `UP`.
    pub(crate) fn status_of(&self, server: &str) -> String {
        let mut socket = UnixStream::connect(self.folder.join("stats")).expect("HAProxy listens there");
        socket.write_all(b"show stat\n").expect("it reads");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("it answers");
        let fields = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<_>>();
        let place = fields(&answer).iter().position(|name| name == "status").expect("a column");
        let line = answer.lines().find(|line| line.starts_with(&format!("throng,{server},")));
        fields(line.expect("a server")).swap_remove(place)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // nginx ends its workers only when it is asked to end.
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        let deadline = Deadline::after(WAIT);
        while matches!(self.child.try_wait(), Ok(None)) && !deadline.is_over() {
            rest(LOOK_AGAIN);
        }
        self.child.kill().ok();
        self.child.wait().ok();
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}

/// A file that is shipped in `tuning/`.
fn shipped(name: &str) -> String {
    let path = format!("{}/tuning/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn replace(config: &mut String, what: &str, by: &str) {
    assert_eq!(config.matches(what).count(), 1, "the test knows the file: {what:?}");
    *config = config.replace(what, by);
}
