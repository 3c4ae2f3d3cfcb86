//! TLS without a socket: certificates that can be loaded anew, and sessions that turn records into bytes and bytes into records.
//!
//! A session holds no buffer. A handshake is carried out by rustls, and so is what comes up to our first word after it. With version 1.3
//! rustls then hands over the keys (as it would to a kernel that does TLS), and what remains is 128 bytes of those and what is needed to
//! change them: less than a third of what rustls keeps. Records are then protected here with the same ciphers of `ring`, in place. With
//! version 1.2 rustls stays.

use crate::stats::TransportFault as Fault;
use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::crypto::ring::{Ticketer, default_provider, sign::any_supported_type};
use rustls::kernel::KernelConnection;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConnectionData, UnbufferedServerConnection,
};
use rustls::sign::CertifiedKey;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};
use rustls::{
    ConnectionTrafficSecrets, Error, HandshakeKind, InconsistentKeys, InvalidMessage, PeerIncompatible,
    ProtocolVersion, ServerConfig, version,
};
use std::fmt;
use std::mem;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

/// What the data port shows to clients: a certificate, which can be exchanged while clients are connected.
#[derive(Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    certificate: Arc<Certificate>,
}

/// A certificate with its key, read and found to be good.
#[derive(Debug)]
pub struct Loaded(Arc<CertifiedKey>);

/// Where the certificate is.
#[derive(Clone, Debug)]
pub struct Files {
    /// The chain in PEM, the server's own certificate first.
    pub certificates: PathBuf,
    /// The key of the first, in PEM.
    pub key: PathBuf,
}

/// A certificate that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub struct BadFile {
    /// The setting that names the file.
    pub setting: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for BadFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use {} ({}): {}", self.path.display(), self.setting, self.reason)
    }
}

impl std::error::Error for BadFile {}

/// The certificate that is shown now.
#[derive(Debug)]
struct Certificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Tls {
    /// Loads a certificate. With `only_13` clients of TLS 1.2 are refused.
    ///
    /// # Errors
    /// [`BadFile`], when one of the files cannot be read, or its content not be used.
    pub fn load(files: &Files, only_13: bool) -> Result<Tls, BadFile> {
        let certificate = Arc::new(Certificate(RwLock::new(files.load()?.0)));
        let versions: &[_] = if only_13 { &[&version::TLS13] } else { &[&version::TLS13, &version::TLS12] };
        // Neither can fail: the provider has ciphers for both versions, and a source of chance.
        let unusable = |error: Error| files.bad_certificate(error.to_string());
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .map_err(unusable)?
            .with_no_client_auth()
            .with_cert_resolver(certificate.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Who comes back brings a ticket. Nothing is kept for it here, and any shard can read it.
        config.ticketer = Ticketer::new().map_err(unusable)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // A client has one connection, and gets a new ticket with the next.
        config.send_tls13_tickets = 1;
        config.enable_secret_extraction = true;
        Ok(Tls { config: Arc::new(config), certificate })
    }

    /// Handshakes that begin from now on use this certificate; connections are not touched.
    pub fn show(&self, loaded: Loaded) {
        *self.certificate.0.write().unwrap_or_else(PoisonError::into_inner) = loaded.0;
    }

    /// A session with a client that has just connected.
    ///
    /// # Errors
    /// When rustls does not like its configuration, which would be our mistake.
    pub(crate) fn session(&self) -> Result<Session, Error> {
        Ok(Session::Full(Box::new(UnbufferedServerConnection::new(self.config.clone())?)))
    }
}

impl Files {
    /// Reads the files.
    ///
    /// # Errors
    /// [`BadFile`], when one of them cannot be read, or its content not be used.
    pub fn load(&self) -> Result<Loaded, BadFile> {
        let chain = CertificateDer::pem_file_iter(&self.certificates)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| self.bad_certificate(error.to_string()))?;
        if chain.is_empty() {
            return Err(self.bad_certificate("it holds no certificate in PEM".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| self.bad_key(format!("it holds no private key in PEM: {error}")))?;
        let key = any_supported_type(&key).map_err(|error| self.bad_key(error.to_string()))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
                Ok(Loaded(Arc::new(certified)))
            }
            Err(Error::InconsistentKeys(_)) => {
                Err(self.bad_key("it is not the key of the certificate".to_owned()))
            }
            Err(error) => Err(self.bad_certificate(error.to_string())),
        }
    }

    fn bad_certificate(&self, reason: String) -> BadFile {
        BadFile { setting: "tls.certificate_file", path: self.certificates.clone(), reason }
    }

    fn bad_key(&self, reason: String) -> BadFile {
        BadFile { setting: "tls.key_file", path: self.key.clone(), reason }
    }
}

/// A cut record that is longer than this is none: a handshake's longest message may come in several, none of a client's is that long.
pub(crate) const CUT_BYTES_MAX: usize = 32 << 10;
/// The most plain bytes of a record (RFC 8446 section 5.1), and what protection may add to them.
const RECORD_BYTES_MAX: usize = 16 << 10;
const ADDED_BYTES_MAX: usize = 256;
const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
/// Records under one key: RFC 8446 section 5.5 allows AES-GCM some more.
const RECORDS_MAX: u64 = 1 << 23;
/// How often a client may change its key, or want ours changed, without saying anything in between. One has a reason for it after
/// gigabytes, and it costs what a request does.
const KEY_UPDATES_MAX: u8 = 8;

/// Content types of records, RFC 8446 section 5.1.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// A message that says that the sender's next record is under its next key, without and with the wish that the receiver change its
/// own (RFC 8446 section 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const KEY_UPDATE_REQUEST: [u8; 5] = [24, 0, 0, 1, 1];
const CLOSE_NOTIFY: [u8; 2] = [1, 0];
const UNEXPECTED_MESSAGE: [u8; 2] = [2, 10];
const BAD_RECORD_MAC: [u8; 2] = [2, 20];
const RECORD_OVERFLOW: [u8; 2] = [2, 22];
const ILLEGAL_PARAMETER: [u8; 2] = [2, 47];

/// A client's session. It holds no bytes: what has not come whole is handed in again.
pub(crate) enum Session {
    /// rustls has it: up to our first word after the handshake, and with TLS 1.2 to the end.
    Full(Box<UnbufferedServerConnection>),
    /// TLS 1.3 from then on.
    Light(Box<Light>),
    /// It has failed.
    Over,
}

/// What came of records.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// Bytes that are used up. The others are to be handed in again, in front of what comes next.
    pub(crate) used: usize,
    /// Set when the handshake has come to its end: whether a ticket has shortened it.
    pub(crate) shook: Option<HandshakeKind>,
    /// True when a handshake was answered, which is what costs.
    pub(crate) answered: bool,
    /// True when the client has said that nothing more comes.
    pub(crate) ended: bool,
}

impl Session {
    /// True until application data can be exchanged.
    pub(crate) fn is_handshaking(&self) -> bool {
        matches!(self, Session::Full(conn) if conn.is_handshaking())
    }

    /// True when it can.
    pub(crate) fn is_open(&self) -> bool {
        !self.is_handshaking() && !matches!(self, Session::Over)
    }

    /// Takes records that have come, appends what was in them to `plain`, and what has to be answered to `out`. Changes `bytes`.
    ///
    /// # Errors
    /// What is wrong with them. The session is over then; `out` may have an alert that says so to the client.
    pub(crate) fn open(
        &mut self,
        bytes: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Opened, Fault> {
        let opened = match self {
            Session::Light(light) => light.open(bytes, plain, out),
            Session::Full(conn) => open_full(conn, bytes, plain, out),
            Session::Over => Err(Fault::Malformed),
        };
        opened.inspect_err(|_| *self = Session::Over)
    }

    /// Appends records with these bytes to `out`. `cut` is what [`Session::open`] has left.
    ///
    /// # Errors
    /// When the session cannot be gone on with.
    pub(crate) fn seal(&mut self, plain: &[u8], cut: &mut [u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        match self {
            Session::Light(light) => light.seal(plain, out),
            Session::Full(conn) => {
                write_full(conn, Some(plain), cut, out)?;
                // With bytes left rustls may have a part of a message among them. An idle session has none.
                if plain.is_empty() || !cut.is_empty() { Ok(()) } else { self.lighten() }
            }
            Session::Over => Err(Fault::Malformed),
        }
    }

    /// Appends the record that says that nothing more comes from us.
    ///
    /// # Errors
    /// As [`Session::seal`].
    pub(crate) fn seal_end(&mut self, cut: &mut [u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        match self {
            Session::Light(light) => light.tx.seal(ALERT, &CLOSE_NOTIFY, out),
            Session::Full(conn) => write_full(conn, None, cut, out),
            Session::Over => Err(Fault::Malformed),
        }
    }

    /// Lets go of what rustls keeps, where that is possible. It must just have made a record: a client may want our key changed right behind
    /// its handshake, and rustls, which has changed it then, keeps the message that says so until there is something to send.
    fn lighten(&mut self) -> Result<(), Fault> {
        match self {
            Session::Full(conn) if conn.protocol_version() == Some(ProtocolVersion::TLSv1_3) => {}
            _ => return Ok(()),
        }
        if let Session::Full(conn) = mem::replace(self, Session::Over) {
            let (secrets, kernel) = conn.dangerous_into_kernel_connection().map_err(fault_of)?;
            let (tx, rx) = (Direction::new(secrets.tx), Direction::new(secrets.rx));
            *self = Session::Light(Box::new(Light { tx, rx, kernel, key_updates: 0 }));
        }
        Ok(())
    }
}

/// Lets rustls take records.
fn open_full(
    conn: &mut UnbufferedServerConnection,
    bytes: &mut [u8],
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<Opened, Fault> {
    let was_handshaking = conn.is_handshaking();
    let mut has_answered = false;
    let mut opened = Opened::default();
    // Each round uses bytes up, or takes one of the finitely many things that these have led to.
    loop {
        let UnbufferedStatus { discard, state } = conn.process_tls_records(&mut bytes[opened.used..]);
        match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    plain.extend_from_slice(record.map_err(fault_of)?.payload);
                }
            }
            Ok(ConnectionState::EncodeTlsData(data)) => {
                has_answered = true;
                encode(data, out);
            }
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                opened.used += discard;
                break;
            }
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                opened.ended = true;
                opened.used = bytes.len();
                break;
            }
            // Data before the handshake is done is not offered to clients.
            Ok(_) => return Err(Fault::Malformed),
            Err(error) => {
                // What is left to do is to tell the client. Asked once more than it has something to say, rustls would go on reading, and
                // look for what it has not used.
                while conn.wants_write() {
                    match conn.process_tls_records(&mut []).state {
                        Ok(ConnectionState::EncodeTlsData(data)) => encode(data, out),
                        _ => break,
                    }
                }
                return Err(fault_of(error));
            }
        }
        opened.used += discard;
    }
    if was_handshaking && !conn.is_handshaking() {
        opened.shook = conn.handshake_kind();
    }
    // What is said last, with a ticket in it, is cheap.
    opened.answered = has_answered && conn.is_handshaking();
    Ok(opened)
}

/// Lets rustls make records: of these bytes, or without, the last one.
fn write_full(
    conn: &mut UnbufferedServerConnection,
    plain: Option<&[u8]>,
    cut: &mut [u8],
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    // What it has to say itself goes first: a key that changes, no more.
    for _ in 0..4 {
        let mut traffic = match conn.process_tls_records(cut).state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                encode(data, out);
                continue;
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                continue;
            }
            Ok(ConnectionState::WriteTraffic(traffic)) => traffic,
            _ => return Err(Fault::Malformed),
        };
        let start = out.len();
        let bytes = plain.map_or(0, <[u8]>::len);
        let mut room = bytes + (bytes / RECORD_BYTES_MAX + 1) * (HEADER_BYTES + ADDED_BYTES_MAX);
        for _ in 0..2 {
            out.resize(start + room, 0);
            let written = match plain {
                Some(plain) => traffic.encrypt(plain, &mut out[start..]),
                None => traffic.queue_close_notify(&mut out[start..]),
            };
            match written {
                Ok(written) => {
                    out.truncate(start + written);
                    return Ok(());
                }
                Err(EncryptError::InsufficientSize(needed)) => room = needed.required_size,
                Err(EncryptError::EncryptExhausted) => break,
            }
        }
        out.truncate(start);
        break;
    }
    Err(Fault::Malformed)
}

fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) {
    if let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) {
        let start = out.len();
        out.resize(start + needed.required_size, 0);
        // It has just said that this is enough.
        data.encode(&mut out[start..]).ok();
    }
}

/// The kind of what rustls says.
fn fault_of(error: Error) -> Fault {
    tracing::debug!(%error, "a TLS session has failed");
    match error {
        Error::AlertReceived(_) => Fault::Alert,
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            Fault::NotTls
        }
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            // Those before 1.2 did not have it.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => Fault::Version,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Fault::NothingInCommon,
        _ => Fault::Malformed,
    }
}

/// A session of TLS 1.3 after its handshake: two keys, and what the next ones are made of.
pub(crate) struct Light {
    tx: Direction,
    rx: Direction,
    kernel: KernelConnection<ServerConnectionData>,
    /// Changes of the client's key since it last said anything, at most [`KEY_UPDATES_MAX`].
    key_updates: u8,
}

/// The key of one direction, and how many records it has protected.
struct Direction {
    records: u64,
    secrets: ConnectionTrafficSecrets,
}

impl Light {
    fn open(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Opened, Fault> {
        let mut opened = Opened::default();
        // Made anew for each read: it has four times the bytes of what it is made from.
        let mut key = self.rx.key()?;
        while let Some(header) = bytes[opened.used..].first_chunk::<HEADER_BYTES>().copied() {
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            if header[0] != APPLICATION_DATA {
                return self.fail(UNEXPECTED_MESSAGE, Fault::Malformed, out);
            }
            if length > RECORD_BYTES_MAX + ADDED_BYTES_MAX {
                return self.fail(RECORD_OVERFLOW, Fault::Malformed, out);
            }
            let start = opened.used + HEADER_BYTES;
            let Some(record) = bytes.get_mut(start..start + length) else { break };
            opened.used = start + length;
            let Ok(inner) = key.open_in_place(self.rx.nonce(), Aad::from(header), record) else {
                return self.fail(BAD_RECORD_MAC, Fault::Malformed, out);
            };
            self.rx.records += 1;
            // Behind the bytes stand their type, and as many zeros as the client liked within the size of a record (RFC 8446 section 5.4).
            if inner.len() > RECORD_BYTES_MAX + 1 {
                return self.fail(RECORD_OVERFLOW, Fault::Malformed, out);
            }
            let Some(end) = inner.iter().rposition(|byte| *byte != 0) else {
                return self.fail(UNEXPECTED_MESSAGE, Fault::Malformed, out);
            };
            match (inner[end], &inner[..end]) {
                // Which may be nothing, to hide when something is said.
                (APPLICATION_DATA, b"") => {}
                (APPLICATION_DATA, data) => {
                    plain.extend_from_slice(data);
                    self.key_updates = 0;
                }
                (ALERT, [_, 0]) => {
                    opened.ended = true;
                    opened.used = bytes.len();
                    break;
                }
                // That the user has changed his mind is no error, and the end follows (RFC 8446 section 6.1).
                (ALERT, [_, 90]) => {}
                (ALERT, _) => return Err(Fault::Alert),
                (HANDSHAKE, data)
                    if self.key_updates < KEY_UPDATES_MAX
                        && (data == KEY_UPDATE || data == KEY_UPDATE_REQUEST) =>
                {
                    self.key_updates += 1;
                    self.rx = Direction::new(self.kernel.update_rx_secret().map_err(fault_of)?);
                    key = self.rx.key()?;
                    if data == KEY_UPDATE_REQUEST {
                        self.update_key(out)?;
                    }
                }
                (HANDSHAKE, [24, 0, 0, 1, 2..=255]) => {
                    return self.fail(ILLEGAL_PARAMETER, Fault::Malformed, out);
                }
                _ => return self.fail(UNEXPECTED_MESSAGE, Fault::Malformed, out),
            }
        }
        Ok(opened)
    }

    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        if self.tx.records >= RECORDS_MAX {
            self.update_key(out)?;
        }
        self.tx.seal(APPLICATION_DATA, plain, out)
    }

    /// Says that what follows is under the next key.
    fn update_key(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.tx.seal(HANDSHAKE, &KEY_UPDATE, out)?;
        self.tx = Direction::new(self.kernel.update_tx_secret().map_err(fault_of)?);
        Ok(())
    }

    /// Ends the session: the client is told why.
    fn fail(&mut self, alert: [u8; 2], fault: Fault, out: &mut Vec<u8>) -> Result<Opened, Fault> {
        self.tx.seal(ALERT, &alert, out)?;
        Err(fault)
    }
}

impl Direction {
    fn new((records, secrets): (u64, ConnectionTrafficSecrets)) -> Direction {
        Direction { records, secrets }
    }

    /// Appends records of this type with these bytes.
    fn seal(&mut self, kind: u8, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        let key = self.key()?;
        for piece in plain.chunks(RECORD_BYTES_MAX) {
            let length = (piece.len() + 1 + TAG_BYTES) as u16;
            let [high, low] = length.to_be_bytes();
            // On the wire every record looks like application data of TLS 1.2 (RFC 8446 section 5.2).
            let header = [APPLICATION_DATA, 3, 3, high, low];
            out.extend_from_slice(&header);
            let start = out.len();
            out.extend_from_slice(piece);
            out.push(kind);
            let tag = key
                .seal_in_place_separate_tag(self.nonce(), Aad::from(header), &mut out[start..])
                .map_err(|_| Fault::Malformed)?;
            out.extend_from_slice(tag.as_ref());
            self.records += 1;
        }
        Ok(())
    }

    fn key(&self) -> Result<LessSafeKey, Fault> {
        let (cipher, key) = match &self.secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, .. } => (&aead::AES_128_GCM, key),
            ConnectionTrafficSecrets::Aes256Gcm { key, .. } => (&aead::AES_256_GCM, key),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, .. } => (&aead::CHACHA20_POLY1305, key),
            // rustls knows no other with this provider.
            _ => return Err(Fault::NothingInCommon),
        };
        UnboundKey::new(cipher, key.as_ref()).map(LessSafeKey::new).map_err(|_| Fault::NothingInCommon)
    }

    /// The nonce of the next record (RFC 8446 section 5.3). Never the same twice under one key, since `records` only grows.
    fn nonce(&self) -> Nonce {
        let iv = match &self.secrets {
            ConnectionTrafficSecrets::Aes128Gcm { iv, .. }
            | ConnectionTrafficSecrets::Aes256Gcm { iv, .. }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { iv, .. } => iv.as_ref(),
            _ => &[],
        };
        let mut nonce = [0; aead::NONCE_LEN];
        nonce[4..].copy_from_slice(&self.records.to_be_bytes());
        nonce.iter_mut().zip(iv).for_each(|(byte, of_iv)| *byte ^= of_iv);
        Nonce::assume_unique_for_key(nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
    use rustls::crypto::ring::cipher_suite;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedCipherSuite};
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::path::Path;

    /// A certificate for `localhost` and its key, in a folder of the test that is removed in the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = std::env::temp_dir().join(format!("throng-tls-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).expect("a folder of ours");
            let folder = Folder(folder);
            folder.make();
            folder
        }

        /// Makes a certificate in place of the last.
        fn make(&self) {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
            fs::write(self.0.join("cert.pem"), made.cert.pem()).expect("a file");
            fs::write(self.0.join("key.pem"), made.signing_key.serialize_pem()).expect("a file");
        }

        fn files(&self) -> Files {
            Files { certificates: self.0.join("cert.pem"), key: self.0.join("key.pem") }
        }

        fn client(&self, suite: SupportedCipherSuite) -> Arc<ClientConfig> {
            let mut provider = default_provider();
            provider.cipher_suites = vec![suite];
            let mut roots = RootCertStore::empty();
            let certificate = CertificateDer::from_pem_file(self.0.join("cert.pem")).expect("a certificate");
            roots.add(certificate).expect("a certificate");
            let config = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[suite.version()])
                .expect("a version of the suite")
                .with_root_certificates(roots)
                .with_no_client_auth();
            Arc::new(config)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    /// A session with a client, and what the session has left.
    struct Pair {
        client: ClientConnection,
        session: Session,
        cut: Vec<u8>,
        /// What has come to the server.
        plain: Vec<u8>,
        shook: Option<HandshakeKind>,
        ended: bool,
    }

    impl Pair {
        fn new(tls: &Tls, config: &Arc<ClientConfig>) -> Pair {
            let name = ServerName::try_from("localhost").expect("a name");
            let client = ClientConnection::new(config.clone(), name).expect("a client");
            let session = tls.session().expect("a session");
            Pair { client, session, cut: Vec::new(), plain: Vec::new(), shook: None, ended: false }
        }

        /// Gives the server these bytes.
        fn receive(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Fault> {
            let mut all = [&self.cut[..], bytes].concat();
            let mut out = Vec::new();
            let opened = self.session.open(&mut all, &mut self.plain, &mut out)?;
            self.cut = all[opened.used..].to_vec();
            self.shook = opened.shook.or(self.shook);
            self.ended |= opened.ended;
            Ok(out)
        }

        /// What the client wants sent.
        fn sent_by_client(&mut self) -> Vec<u8> {
            let mut bytes = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut bytes).expect("a buffer takes it");
            }
            bytes
        }

        fn give_client(&mut self, mut bytes: &[u8]) {
            while !bytes.is_empty() {
                self.client.read_tls(&mut bytes).expect("a buffer gives it");
                self.client.process_new_packets().expect("the server speaks TLS");
            }
        }

        /// Exchanges all that both want sent, the client's in pieces of `piece` bytes.
        fn exchange(&mut self, piece: usize) {
            for _ in 0..8 {
                let bytes = self.sent_by_client();
                for piece in bytes.chunks(piece) {
                    let answer = self.receive(piece).expect("the client speaks TLS");
                    self.give_client(&answer);
                }
            }
        }

        /// Sends this to the client, and answers what it reads.
        fn send(&mut self, plain: &[u8]) -> Vec<u8> {
            let mut out = Vec::new();
            for piece in plain.chunks(50_000) {
                self.session.seal(piece, &mut self.cut, &mut out).expect("the session is open");
            }
            let mut read = Vec::new();
            for piece in out.chunks(10_000) {
                self.give_client(piece);
                let mut bytes = [0; 20_000];
                while let Ok(count) = self.client.reader().read(&mut bytes)
                    && count > 0
                {
                    read.extend_from_slice(&bytes[..count]);
                }
            }
            read
        }
    }

    const SUITES: [SupportedCipherSuite; 5] = [
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ];

    #[test]
    fn bytes_come_through_however_records_are_cut() {
        let folder = Folder::new("cut");
        let tls = Tls::load(&folder.files(), false).expect("the files are right");
        for (suite, piece) in
            SUITES.iter().flat_map(|suite| [1, 7, 16_000, usize::MAX].map(|piece| (suite, piece)))
        {
            let mut pair = Pair::new(&tls, &folder.client(*suite));
            assert!(pair.session.is_handshaking());
            pair.exchange(piece);
            assert!(pair.session.is_open() && pair.shook == Some(HandshakeKind::Full), "{suite:?}, {piece}");
            assert_eq!(pair.send(b"hello"), b"hello");
            let is_light = matches!(pair.session, Session::Light(_));
            assert_eq!(is_light, suite.version() == &version::TLS13, "{suite:?}");
            pair.client.writer().write_all(b"hello to you").expect("it is buffered");
            pair.exchange(piece);
            assert_eq!(pair.plain, b"hello to you");
            let long: Vec<u8> = (0..100_000).map(|number: u32| number as u8).collect();
            assert!(pair.send(&long) == long, "{suite:?}");
            pair.plain.clear();
            for part in long.chunks(30_000) {
                pair.client.writer().write_all(part).expect("it is buffered");
                pair.exchange(piece.max(100));
            }
            assert!(pair.plain == long && pair.cut.is_empty(), "{suite:?}");
            assert_eq!(pair.send(b""), b"");
            // What is sent while a record has not come whole does not touch it.
            pair.plain.clear();
            pair.client.writer().write_all(b"hello again").expect("it is buffered");
            let bytes = pair.sent_by_client();
            for piece in [&bytes[..3], &bytes[3..20], &bytes[20..]] {
                assert_eq!(pair.receive(piece), Ok(Vec::new()));
                assert_eq!(pair.send(b"meanwhile"), b"meanwhile");
            }
            assert_eq!(pair.plain, b"hello again", "{suite:?}");
            pair.client.send_close_notify();
            pair.exchange(piece);
            assert!(pair.ended, "{suite:?}");
        }
    }

    #[test]
    fn keys_change_when_the_client_wants_it_and_when_they_are_used_up() {
        let folder = Folder::new("keys");
        let tls = Tls::load(&folder.files(), false).expect("the files are right");
        for suite in &SUITES[..3] {
            let mut pair = Pair::new(&tls, &folder.client(*suite));
            pair.exchange(usize::MAX);
            assert_eq!(pair.send(b"hello"), b"hello");
            for round in 0..20 {
                pair.client.refresh_traffic_keys().expect("the handshake is done");
                pair.client.writer().write_all(&[round]).expect("it is buffered");
                pair.exchange(usize::MAX);
                let Session::Light(light) = &mut pair.session else { panic!("{suite:?}") };
                let mut out = Vec::new();
                light.update_key(&mut out).expect("a key");
                pair.give_client(&out);
                assert_eq!(pair.send(&[round]), [round]);
            }
            assert_eq!(pair.plain.len(), 20);
            // Who changes keys without end is ended, in however many pieces that comes.
            for _ in 0..KEY_UPDATES_MAX {
                pair.client.refresh_traffic_keys().expect("the handshake is done");
                let bytes = pair.sent_by_client();
                let answer = pair.receive(&bytes).expect("so often it may");
                pair.give_client(&answer);
            }
            pair.client.refresh_traffic_keys().expect("the handshake is done");
            let bytes = pair.sent_by_client();
            assert_eq!(pair.receive(&bytes), Err(Fault::Malformed));
        }
    }

    /// The session once took the keys at the end of the handshake. rustls had changed ours and not said so yet: it never was, and the client
    /// could read nothing more.
    #[test]
    fn a_client_may_want_our_key_changed_right_behind_its_handshake() {
        let folder = Folder::new("hasty");
        let tls = Tls::load(&folder.files(), false).expect("the files are right");
        for (suite, piece) in
            SUITES[..3].iter().flat_map(|suite| [1, 40, usize::MAX].map(|piece| (suite, piece)))
        {
            let mut pair = Pair::new(&tls, &folder.client(*suite));
            let hello = pair.sent_by_client();
            let answer = pair.receive(&hello).expect("the client speaks TLS");
            pair.give_client(&answer);
            for said in [&b"hello to you"[..], b"hello again"] {
                pair.client.refresh_traffic_keys().expect("its part is done");
                pair.client.writer().write_all(said).expect("it is buffered");
                pair.exchange(piece);
                assert!(mem::take(&mut pair.plain) == said && pair.cut.is_empty(), "{suite:?}, {piece}");
                assert_eq!(pair.send(b"hello"), b"hello", "{suite:?}, {piece}");
                assert!(matches!(pair.session, Session::Light(_)), "{suite:?}, {piece}");
            }
        }
    }

    /// A client of TLS 1.3 that has shaken hands with a session, and has its keys in its own hand.
    struct Bare {
        tx: Direction,
        rx: Direction,
        kernel: KernelConnection<ClientConnectionData>,
        session: Session,
    }

    impl Bare {
        fn new(tls: &Tls, config: &Arc<ClientConfig>) -> Bare {
            let mut config = (**config).clone();
            config.enable_secret_extraction = true;
            let name = ServerName::try_from("localhost").expect("a name");
            let mut client = UnbufferedClientConnection::new(Arc::new(config), name).expect("a client");
            let mut session = tls.session().expect("a session");
            let (mut to_server, mut from_server) = (Vec::new(), Vec::new());
            for _ in 0..20 {
                let UnbufferedStatus { discard, state } = client.process_tls_records(&mut from_server);
                match state.expect("the server speaks TLS") {
                    ConnectionState::EncodeTlsData(mut data) => {
                        let mut bytes = [0; 4096];
                        let count = data.encode(&mut bytes).expect("there is room");
                        to_server.extend_from_slice(&bytes[..count]);
                    }
                    ConnectionState::TransmitTlsData(data) => data.done(),
                    ConnectionState::ReadTraffic(mut traffic) => while traffic.next_record().is_some() {},
                    _ => {
                        let mut bytes = std::mem::take(&mut to_server);
                        from_server.drain(..discard);
                        session
                            .open(&mut bytes, &mut Vec::new(), &mut from_server)
                            .expect("the client speaks TLS");
                        if session.is_open() && matches!(session, Session::Full(_)) {
                            session.seal(b"hello", &mut [], &mut from_server).expect("it is open");
                        }
                        continue;
                    }
                }
                from_server.drain(..discard);
            }
            assert!(from_server.is_empty() && matches!(session, Session::Light(_)));
            let (secrets, kernel) = client.dangerous_into_kernel_connection().expect("all is said");
            Bare { tx: Direction::new(secrets.tx), rx: Direction::new(secrets.rx), kernel, session }
        }

        /// Gives the server these bytes, and answers what was in them.
        fn receive(&mut self, mut bytes: Vec<u8>, out: &mut Vec<u8>) -> Result<Vec<u8>, Fault> {
            let mut plain = Vec::new();
            self.session.open(&mut bytes, &mut plain, out).map(|_| plain)
        }

        /// A record with this in it, whatever it is: bytes, their type, and zeros.
        fn record(&mut self, inner: &[u8]) -> Vec<u8> {
            let [high, low] = ((inner.len() + TAG_BYTES) as u16).to_be_bytes();
            let header = [APPLICATION_DATA, 3, 3, high, low];
            let mut sealed = inner.to_vec();
            let key = self.tx.key().expect("a key");
            key.seal_in_place_append_tag(self.tx.nonce(), Aad::from(header), &mut sealed)
                .expect("it is short");
            self.tx.records += 1;
            [&header[..], &sealed].concat()
        }

        /// Opens the record at the beginning of `bytes`: its type and what is in it.
        fn read(&mut self, bytes: &mut Vec<u8>) -> (u8, Vec<u8>) {
            let mut record = bytes.split_off(HEADER_BYTES);
            let header: [u8; HEADER_BYTES] = std::mem::take(bytes).try_into().expect("a header");
            *bytes = record.split_off(usize::from(u16::from_be_bytes([header[3], header[4]])));
            let nonce = self.rx.nonce();
            self.rx.records += 1;
            let key = self.rx.key().expect("a key");
            let inner = key.open_in_place(nonce, Aad::from(header), &mut record).expect("it is the key");
            let (kind, data) = inner.split_last().expect("a type");
            (*kind, data.to_vec())
        }
    }

    #[test]
    fn a_client_may_ask_that_our_key_changes_and_send_what_is_allowed_and_nothing_else() {
        let folder = Folder::new("bare");
        let tls = Tls::load(&folder.files(), false).expect("the files are right");
        for suite in &SUITES[..3] {
            let config = folder.client(*suite);
            let mut bare = Bare::new(&tls, &config);
            for _ in 0..3 {
                let (mut bytes, mut out) = (Vec::new(), Vec::new());
                bare.tx.seal(HANDSHAKE, &KEY_UPDATE_REQUEST, &mut bytes).expect("a key");
                bare.tx = Direction::new(bare.kernel.update_tx_secret().expect("it has keys"));
                bare.tx.seal(APPLICATION_DATA, b"after", &mut bytes).expect("a key");
                // That the user has changed his mind is passed over.
                bare.tx.seal(ALERT, &[1, 90], &mut bytes).expect("a key");
                // Zeros behind the type hide how much was said.
                bare.tx.seal(0, b"padded\x17\0\0\0", &mut bytes).expect("a key");
                assert_eq!(bare.receive(bytes, &mut out), Ok(b"afterpadded".to_vec()));
                bare.session.seal(b"answer", &mut [], &mut out).expect("it is open");
                assert_eq!(bare.read(&mut out), (HANDSHAKE, KEY_UPDATE.to_vec()));
                bare.rx = Direction::new(bare.kernel.update_rx_secret().expect("it has keys"));
                assert_eq!(bare.read(&mut out), (APPLICATION_DATA, b"answer".to_vec()));
                assert!(out.is_empty());
            }
            for (kind, data, told) in [
                (HANDSHAKE, &[24, 0, 0, 1, 2][..], Some(ILLEGAL_PARAMETER)),
                // Nothing may stand behind it: it would be under the next key.
                (HANDSHAKE, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], Some(UNEXPECTED_MESSAGE)),
                (HANDSHAKE, &[1, 0, 0, 0], Some(UNEXPECTED_MESSAGE)),
                (HANDSHAKE, &[24, 0], Some(UNEXPECTED_MESSAGE)),
                (20, &[1], Some(UNEXPECTED_MESSAGE)),
                (0, &[0, 0], Some(UNEXPECTED_MESSAGE)),
                (ALERT, &[2, 40], None),
                // An alert with nothing in it.
                (0, &[ALERT], None),
            ] {
                let mut bare = Bare::new(&tls, &config);
                let (mut bytes, mut out) = (Vec::new(), Vec::new());
                bare.tx.seal(kind, data, &mut bytes).expect("a key");
                let fault = bare.receive(bytes, &mut out).expect_err("that is not allowed");
                assert_eq!(fault, told.map_or(Fault::Alert, |_| Fault::Malformed), "{kind}, {data:?}");
                if let Some(alert) = told {
                    assert_eq!(bare.read(&mut out), (ALERT, alert.to_vec()), "{kind}, {data:?}");
                }
                assert!(out.is_empty());
            }
        }
    }

    #[test]
    fn a_record_may_be_empty_and_full_but_no_longer() {
        let folder = Folder::new("sizes");
        let tls = Tls::load(&folder.files(), false).expect("the files are right");
        let config = folder.client(SUITES[0]);
        let inner =
            |bytes: usize, zeros: usize| [vec![b'x'; bytes], vec![APPLICATION_DATA], vec![0; zeros]].concat();
        let mut bare = Bare::new(&tls, &config);
        for (bytes, zeros) in [(0, 0), (0, RECORD_BYTES_MAX), (RECORD_BYTES_MAX, 0), (9_000, 7_384)] {
            let record = bare.record(&inner(bytes, zeros));
            assert_eq!(bare.receive(record, &mut Vec::new()), Ok(vec![b'x'; bytes]));
        }
        // Cut anywhere, it is waited for.
        let record = bare.record(&inner(3, 0));
        let mut kept = record[..record.len() - 1].to_vec();
        let opened = bare.session.open(&mut kept, &mut Vec::new(), &mut Vec::new());
        assert_eq!((opened.expect("it is not whole").used, &kept[..]), (0, &record[..record.len() - 1]));
        assert_eq!(bare.receive(record, &mut Vec::new()), Ok(b"xxx".to_vec()));
        let overflow = |bare: &mut Bare, bytes: Vec<u8>| {
            let mut out = Vec::new();
            assert_eq!(bare.receive(bytes, &mut out), Err(Fault::Malformed));
            assert_eq!(bare.read(&mut out), (ALERT, RECORD_OVERFLOW.to_vec()));
        };
        for (bytes, zeros) in [(RECORD_BYTES_MAX + 1, 0), (1, RECORD_BYTES_MAX), (0, RECORD_BYTES_MAX + 200)]
        {
            let mut bare = Bare::new(&tls, &config);
            let record = bare.record(&inner(bytes, zeros));
            overflow(&mut bare, record);
        }
        // One that is too long is not waited for.
        overflow(&mut Bare::new(&tls, &config), vec![APPLICATION_DATA, 3, 3, 0x41, 0x01]);
        // One that is not under the keys is none, even if it would be nothing: an alert, and a change of ciphers.
        for bytes in [vec![ALERT, 3, 3, 0, 2, 1, 0], vec![20, 3, 3, 0, 1, 1]] {
            let mut bare = Bare::new(&tls, &config);
            let mut out = Vec::new();
            assert_eq!(bare.receive(bytes, &mut out), Err(Fault::Malformed));
            assert_eq!(bare.read(&mut out), (ALERT, UNEXPECTED_MESSAGE.to_vec()));
        }
        // Neither can one come twice, nor before another.
        for order in [[0, 0], [1, 0]] {
            let mut bare = Bare::new(&tls, &config);
            let records = [bare.record(&inner(1, 0)), bare.record(&inner(2, 0))];
            let mut out = Vec::new();
            let fault = bare.receive(order.map(|at: usize| records[at].clone()).concat(), &mut out);
            assert_eq!(fault, Err(Fault::Malformed));
            assert_eq!(bare.read(&mut out), (ALERT, BAD_RECORD_MAC.to_vec()));
        }
    }

    #[test]
    fn our_key_changes_before_it_is_used_up() {
        let folder = Folder::new("limit");
        let tls = Tls::load(&folder.files(), false).expect("the files are right");
        let mut bare = Bare::new(&tls, &folder.client(SUITES[0]));
        let Session::Light(light) = &mut bare.session else { panic!("it is TLS 1.3") };
        (light.tx.records, bare.rx.records) = (RECORDS_MAX - 1, RECORDS_MAX - 1);
        let mut out = Vec::new();
        for said in [&b"the last"[..], b"the first"] {
            bare.session.seal(said, &mut [], &mut out).expect("it is open");
        }
        assert_eq!(bare.read(&mut out), (APPLICATION_DATA, b"the last".to_vec()));
        assert_eq!(bare.read(&mut out), (HANDSHAKE, KEY_UPDATE.to_vec()));
        bare.rx = Direction::new(bare.kernel.update_rx_secret().expect("it has keys"));
        assert_eq!(bare.read(&mut out), (APPLICATION_DATA, b"the first".to_vec()));
    }

    #[test]
    fn whatever_is_done_to_a_handshake_it_ends_in_a_fault_or_goes_on() {
        let folder = Folder::new("mutations");
        let tls = Tls::load(&folder.files(), false).expect("the files are right");
        let configs = [folder.client(SUITES[0]), folder.client(SUITES[3])];
        let mut random = Random(1);
        for round in 0..1_000 {
            let mut pair = Pair::new(&tls, &configs[round % 2]);
            let mut faults = 0;
            for _ in 0..3 {
                let mut bytes = pair.sent_by_client();
                mutate(&mut bytes, &mut random);
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(1 + random.below(rest.len()));
                    rest = after;
                    match pair.receive(piece) {
                        Ok(mut answer) => {
                            while !answer.is_empty()
                                && pair.client.read_tls(&mut &answer[..]).is_ok_and(|count| {
                                    answer.drain(..count);
                                    count > 0
                                })
                                && pair.client.process_new_packets().is_ok()
                            {}
                        }
                        Err(_) => faults += 1,
                    }
                    if pair.session.is_open() && random.below(4) == 0 {
                        pair.session.seal(b"meanwhile", &mut pair.cut, &mut Vec::new()).expect("it is open");
                    }
                }
                // It says no more when it was answered wrongly.
                pair.client.writer().write_all(b"something").ok();
            }
            assert!(faults > 0 || !pair.session.is_handshaking() || pair.cut.len() <= 64 << 10);
        }
    }

    /// Numbers that look like chance (splitmix64).
    struct Random(u64);

    impl Random {
        /// A number below `end`, which is above 0.
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) % end as u64) as usize
        }
    }

    /// Does something to records: what they say, what they are said to be, how they are cut, what stands between them.
    fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
        for _ in 0..random.below(4) {
            let Some(last) = bytes.len().checked_sub(1) else { return };
            let place = random.below(last + 1);
            match random.below(6) {
                0 => bytes[place] = random.below(256) as u8,
                // Headers, and the lengths of messages, stand at the beginning.
                1 => bytes[place % 12] = [0, 1, 0xff, 22, 3][random.below(5)],
                2 => bytes.truncate(place),
                3 => {
                    let record = [20 + random.below(5) as u8, 3, 3, 0, 2, 1, [0, 90, 0xff][random.below(3)]];
                    bytes.splice(place..place, record);
                }
                4 => bytes.extend_from_within(..),
                // The same in short records.
                _ => {
                    let length = 1 + random.below(40);
                    let mut short = Vec::new();
                    for piece in bytes.get(HEADER_BYTES..).unwrap_or_default().chunks(length) {
                        short.extend_from_slice(&[bytes[0], 3, 3, 0, piece.len() as u8]);
                        short.extend_from_slice(piece);
                    }
                    *bytes = short;
                }
            }
        }
    }

    #[test]
    fn who_comes_back_brings_a_ticket_whatever_the_certificate_is_by_then() {
        let folder = Folder::new("ticket");
        let tls = Tls::load(&folder.files(), false).expect("the files are right");
        for suite in &SUITES[1..4] {
            let config = folder.client(*suite);
            for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
                let mut pair = Pair::new(&tls, &config);
                pair.exchange(usize::MAX);
                assert_eq!(pair.shook, Some(expected), "{suite:?}");
                assert_eq!(pair.send(b"hello"), b"hello");
                folder.make();
                tls.show(folder.files().load().expect("the files are right"));
            }
        }
    }

    #[test]
    fn whatever_comes_instead_is_an_alert_and_a_fault() {
        let folder = Folder::new("faults");
        let tls = Tls::load(&folder.files(), true).expect("the files are right");
        let check = |bytes: &[u8], fault: Fault| {
            let mut pair = Pair::new(&tls, &folder.client(SUITES[0]));
            assert_eq!(pair.receive(bytes), Err(fault), "{bytes:x?}");
        };
        check(b"\0garbage", Fault::NotTls);
        check(&[22, 3, 1, 0, 4, 9, 0, 0, 0], Fault::Malformed);
        check(&[21, 3, 3, 0, 2, 2, 48], Fault::Alert);
        // A message that claims 16 MiB, of which some has come. rustls once looked for that in a buffer that we had left empty.
        check(&[22, 3, 3, 0, 6, 1, 0xff, 0xff, 0xff, 3, 3], Fault::Malformed);
        let mut old = Pair::new(&tls, &folder.client(SUITES[3]));
        let hello = old.sent_by_client();
        check(&hello, Fault::Version);
        let mut config = (*folder.client(SUITES[0])).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let hello = Pair::new(&tls, &Arc::new(config)).sent_by_client();
        check(&hello, Fault::NothingInCommon);
    }

    #[test]
    fn a_record_that_was_touched_ends_the_session_and_the_client_is_told() {
        let folder = Folder::new("touched");
        let tls = Tls::load(&folder.files(), false).expect("the files are right");
        for suite in SUITES {
            for place in [0, 5, 12, 20, 36] {
                let mut pair = Pair::new(&tls, &folder.client(suite));
                pair.exchange(usize::MAX);
                assert_eq!(pair.send(b"hello"), b"hello");
                pair.client.writer().write_all(b"something longer").expect("it is buffered");
                let mut bytes = pair.sent_by_client();
                bytes[place] ^= 1;
                let mut out = Vec::new();
                let opened = pair.session.open(&mut bytes, &mut pair.plain, &mut out);
                assert_eq!(opened.err(), Some(Fault::Malformed), "{suite:?}, byte {place}");
                assert!(pair.plain.is_empty());
                pair.client.read_tls(&mut &out[..]).expect("a buffer gives it");
                let told = pair.client.process_new_packets();
                assert!(matches!(told, Err(Error::AlertReceived(_))), "{suite:?}, byte {place}: {told:?}");
            }
        }
    }

    #[test]
    fn a_bad_file_is_named_and_changes_nothing() {
        let folder = Folder::new("files");
        let tls = Tls::load(&folder.files(), false).expect("the files are right");
        let right = |name: &str| fs::read(folder.0.join(name)).expect("a file of ours");
        let (certificate, key) = (right("cert.pem"), right("key.pem"));
        let other = Folder::new("other");
        let other_key = fs::read(other.0.join("key.pem")).expect("a file");
        let check = |file: &str, content: &[u8], setting: &str, reason: &str| {
            fs::write(folder.0.join(file), content).expect("a file of ours");
            let bad = folder.files().load().expect_err("the file is bad");
            assert_eq!((bad.setting, &*bad.path), (setting, &*folder.0.join(file)));
            assert!(bad.to_string().contains(reason), "{bad}");
            fs::write(folder.0.join("cert.pem"), &certificate).expect("a file of ours");
            fs::write(folder.0.join("key.pem"), &key).expect("a file of ours");
        };
        check("cert.pem", b"", "tls.certificate_file", "no certificate");
        check("cert.pem", &key, "tls.certificate_file", "no certificate");
        check("key.pem", b"nothing", "tls.key_file", "no private key");
        check("key.pem", &certificate, "tls.key_file", "no private key");
        check("key.pem", &other_key, "tls.key_file", "not the key of the certificate");
        let missing = Files { certificates: Path::new("/does/not/exist").to_owned(), ..folder.files() };
        assert_eq!(Tls::load(&missing, false).expect_err("there is none").setting, "tls.certificate_file");
        let mut pair = Pair::new(&tls, &folder.client(SUITES[0]));
        pair.exchange(usize::MAX);
        assert_eq!(pair.send(b"hello"), b"hello");
    }

    #[test]
    fn what_is_kept_of_a_session_is_small() {
        assert!(size_of::<Session>() <= 16 && size_of::<Light>() <= 712, "{}", size_of::<Light>());
    }
}
