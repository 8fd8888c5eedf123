//! The CA of the operator, and the leaves that it gives to workers, gateways and itself.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use sluice_identity::{ByTrustAnchor, Identity};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long a CA is good for.
const CA_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
/// How long a leaf is good for.
pub const LEAF_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Clocks of nodes may differ by so much.
const SKEW: Duration = Duration::from_secs(300);

/// A certificate that cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be made.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// What is stored is none.
    #[error("the stored CA cannot be used: {0}; delete its Secret, and the operator makes another")]
    Stored(String),
    /// rustls takes it for none.
    #[error("the operator's own certificate cannot be used: {0}")]
    Unfit(String),
}

/// A CA: its certificate and its key.
#[derive(Debug)]
pub struct Authority {
    /// The certificate, PEM.
    pub certificate: String,
    /// The key, PEM.
    pub key: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A leaf and its key, PEM.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// If there is no randomness, say.
    pub fn create() -> Result<Self, CertificateError> {
        let (params, key) = (authority(), KeyPair::generate()?);
        let (certificate, text) = (params.self_signed(&key)?.pem(), key.serialize_pem());
        let issuer = Issuer::new(params, key);
        Ok(Self { certificate, key: text, issuer })
    }

    /// The one that is stored.
    ///
    /// # Errors
    /// It is none.
    pub fn stored(certificate: &str, key: &str) -> Result<Self, CertificateError> {
        let wrong = |e: rcgen::Error| CertificateError::Stored(e.to_string());
        let pair = KeyPair::from_pem(key).map_err(wrong)?;
        // What leaves say of their issuer is its name and its key.
        Ok(Self { certificate: certificate.into(), key: key.into(), issuer: Issuer::new(authority(), pair) })
    }

    /// A leaf for somebody.
    ///
    /// # Errors
    /// As of [`Self::create`].
    pub fn leaf(&self, of: &Identity) -> Result<Leaf, CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(of.uri().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = validity(LEAF_LIFE);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Leaf { certificate, key: key.serialize_pem() })
    }

    /// What the operator dials agents with that have leaves of any CA of a bundle.
    ///
    /// # Errors
    /// As of [`Self::create`].
    pub fn client(&self, own: &Identity, bundle: &str) -> Result<ClientConfig, CertificateError> {
        let leaf = self.leaf(own)?;
        let unfit = |e: String| CertificateError::Unfit(e);
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).map_err(|e| unfit(e.to_string()))?;
        let mut roots = RootCertStore::empty();
        for ca in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            let ca = ca.map_err(|e| unfit(e.to_string()))?;
            roots.add(ca).map_err(|e| unfit(e.to_string()))?;
        }
        let own = CertificateDer::from_pem_slice(leaf.certificate.as_bytes());
        let own = own.map_err(|e| unfit(e.to_string()))?;
        let provider = Arc::new(ring::default_provider());
        let servers = Arc::new(ByTrustAnchor::new(Arc::new(roots), Arc::clone(&provider)));
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| unfit(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(servers)
            .with_client_auth_cert(vec![own], key)
            .map_err(|e| unfit(e.to_string()))?;
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(client)
    }
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "sluice");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(CA_LIFE);
    params
}

fn validity(life: Duration) -> (time::OffsetDateTime, time::OffsetDateTime) {
    let now = SystemTime::now();
    ((now - SKEW).into(), (now + life).into())
}
