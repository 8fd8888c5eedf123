//! A CA and a leaf for each of several processes, in directories as the agent reads them.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

/// Writes `tls.crt`, `tls.key` and `ca.crt` of one CA for each SPIFFE ID, into the directory beside it.
///
/// # Errors
/// What could not be made or written.
pub fn write(holders: &[(&Path, String)]) -> Result<(), String> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let fail = |e: rcgen::Error| format!("a certificate cannot be made: {e}");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(fail)?).map_err(fail)?;
    for (dir, id) in holders {
        let mut params = CertificateParams::default();
        let name = id.as_str().try_into().map_err(fail)?;
        params.subject_alt_names = vec![SanType::URI(name)];
        let key = KeyPair::generate().map_err(fail)?;
        let leaf = params.signed_by(&key, &ca).map_err(fail)?;
        let files = [("ca.crt", ca.pem()), ("tls.key", key.serialize_pem()), ("tls.crt", leaf.pem())];
        for (file, text) in files {
            let path = dir.join(file);
            std::fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        }
    }
    Ok(())
}
