//! TLS: the certificate is read again when its file changes, without a restart.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::volume::os::read_configured;

/// The largest file of certificates that is read, bytes.
const LIMIT: u64 = 1 << 20;

/// The two files.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate and those that lead to it, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// What a server shows to its callers.
#[derive(Debug)]
pub(super) struct Shown {
    files: Files,
    now: RwLock<(Vec<u8>, Arc<CertifiedKey>)>,
}

impl Files {
    /// Whether they can be used.
    ///
    /// # Errors
    /// Why not, in a sentence.
    pub fn check(&self) -> Result<(), String> {
        self.read().map(|_| ())
    }

    fn read(&self) -> Result<(Vec<u8>, CertifiedKey), String> {
        let cert = read(&self.cert)?;
        let key = read(&self.key)?;
        let of = |path: &Path, what: &str| format!("{} holds no {what} in PEM", path.display());
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| of(&self.cert, "certificate"))?;
        let private = PrivateKeyDer::from_pem_slice(&key).map_err(|_| of(&self.key, "private key"))?;
        let pair = CertifiedKey::from_der(chain, private, &default_provider()).map_err(|error| {
            format!("{} and {} do not go together: {error}", self.cert.display(), self.key.display())
        })?;
        Ok(([cert, key].concat(), pair))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    read_configured(path, LIMIT).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

impl Shown {
    /// Reads both files.
    pub(super) fn new(files: Files) -> Result<Arc<Self>, String> {
        let (bytes, pair) = files.read()?;
        Ok(Arc::new(Self { files, now: RwLock::new((bytes, Arc::new(pair))) }))
    }

    /// Reads both files again; what is no good is said, and the old one stays.
    pub(super) fn renew(&self) {
        match self.files.read() {
            Ok((bytes, pair)) => {
                let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
                if now.0 != bytes {
                    tracing::info!(cert = %self.files.cert.display(), "the certificate has changed");
                    *now = (bytes, Arc::new(pair));
                }
            }
            Err(error) => tracing::warn!("{error}; the certificate from before stays in use"),
        }
    }

    /// How connections are made.
    pub(super) fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(self) as _;
        let mut config = config.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).1))
    }
}
