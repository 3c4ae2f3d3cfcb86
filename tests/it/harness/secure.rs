//! TLS for the tests: certificates in files, and clients of rustls whose bytes are ours.

use super::WAIT;
use super::http::Response;
use super::raw::Raw;
use super::server::Server;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion, version};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A certificate for this machine and its key, in files that are removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Certificate {
    folder: PathBuf,
}

impl Certificate {
    pub(crate) fn new() -> Certificate {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("certificate-{}-{}", std::process::id(), MADE.fetch_add(1, Relaxed));
        let certificate = Certificate { folder: Path::new(env!("CARGO_TARGET_TMPDIR")).join(name) };
        fs::create_dir_all(&certificate.folder).expect("cargo's folder for tests can be written");
        certificate.renew();
        certificate
    }

    /// Puts another one into the files.
    pub(crate) fn renew(&self) {
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        self.write("cert.pem", &made.cert.pem());
        self.write("key.pem", &made.signing_key.serialize_pem());
    }

    /// Puts this into one of the files.
    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.folder.join(name), content).expect("the folder is ours");
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// A server that shows it, with more settings.
    pub(crate) fn server(&self, settings: &[&str]) -> Server {
        Server::with_flags(&self.flags(settings).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The flags of such a server.
    pub(crate) fn flags(&self, settings: &[&str]) -> Vec<String> {
        let own = ["tls.certificate_file=", "tls.key_file="].into_iter().zip(["cert.pem", "key.pem"]);
        let own = own.map(|(setting, name)| format!("{setting}{}", self.path(name)));
        let all = own.chain(settings.iter().map(|setting| (*setting).to_owned()));
        all.flat_map(|setting| ["--set".to_owned(), setting]).collect()
    }

    /// What clients go by that trust it.
    pub(crate) fn trust(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.folder.join("cert.pem")).expect("a certificate"))
            .expect("a certificate");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .expect("versions that rustls has")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }

    /// A client that trusts it.
    pub(crate) fn connect(&self, server: &Server) -> Secure {
        Secure::over(server.raw(), &self.trust(&[&version::TLS13]))
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// A connection with TLS.
pub(crate) struct Secure {
    pub(crate) stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Secure {
    /// TLS over a connection. The handshake is carried out with the first bytes.
    pub(crate) fn over(raw: Raw, config: &Arc<ClientConfig>) -> Secure {
        let name = ServerName::try_from("localhost").expect("a name");
        let client = ClientConnection::new(config.clone(), name).expect("a client");
        Secure { stream: StreamOwned::new(client, raw.into_stream()) }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the server takes bytes");
    }

    /// The answer to a GET.
    pub(crate) fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: throng\r\n\r\n"));
        self.response()
    }

    pub(crate) fn response(&mut self) -> Response {
        Response::read(&mut self.stream, false).expect("an answer")
    }

    /// The server ends the session in order: with a close_notify, without which this would be an error.
    pub(crate) fn ended(&mut self) {
        let mut rest = [0; 64];
        let count = self.stream.read(&mut rest).expect("the server says that nothing more comes");
        assert_eq!(count, 0, "more came: {:?}", String::from_utf8_lossy(&rest));
    }

    /// A WebSocket at `path`.
    pub(crate) fn into_websocket(self, path: &str) -> WebSocket {
        self.stream.sock.set_read_timeout(Some(WAIT)).expect("a time above zero");
        let (mut socket, _) = tungstenite::client(format!("ws://throng{path}"), self.stream)
            .expect("the server opens a WebSocket");
        socket.set_config(|config| {
            *config =
                tungstenite::protocol::WebSocketConfig::default().max_frame_size(None).max_message_size(None);
        });
        socket
    }
}

/// A WebSocket with TLS.
pub(crate) type WebSocket = tungstenite::WebSocket<StreamOwned<ClientConnection, TcpStream>>;
