//! A CA and its leaves.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

pub struct Authority {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { ca: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub fn pem(&self) -> String {
        self.ca.pem()
    }

    /// Writes a leaf for this name, and whom its holder trusts.
    pub fn leaf(&self, dir: &Path, uri: &str, trusted: &Self) {
        self.leaf_trusting(dir, uri, &trusted.pem());
    }

    pub fn leaf_trusting(&self, dir: &Path, uri: &str, trusted: &str) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.ca).unwrap();
        let write = |name: &str, text: String| {
            let (new, old) = (dir.join(format!("{name}.new")), dir.join(name));
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, old).unwrap();
        };
        write("ca.crt", trusted.to_owned());
        write("tls.key", key.serialize_pem());
        write("tls.crt", leaf.pem());
    }
}
