//! Who a certificate is for: the SPIFFE ID among its names, as DESIGN section 4 has it. The agents and the operator go by
//! the same words and the same checks.

mod trust;

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use sluice_core::hello::Role;

pub use trust::ByTrustAnchor;

const DOMAIN: &str = "spiffe://sluice/";

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `NAMESPACE/NAME` of the deployment.
    pub deployment: String,
    /// What the holder does.
    pub role: Role,
    /// Its name; gateways share a certificate and have none, nor has the operator.
    pub worker: Option<String>,
}

/// A certificate that names nobody of Sluice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be read.
    #[error("its certificate cannot be read: {0}")]
    Unreadable(String),
    /// It has no name of ours.
    #[error(
        "its certificate has no name of the form spiffe://sluice/ns/NAMESPACE/moe/NAME/role/ROLE[/worker/WORKER], only {0}"
    )]
    Nobody(String),
}

/// The names that roles go by in certificates, hellos and tables.
pub const ROLES: [(Role, &str); 5] = [
    (Role::Gateway, "gateway"),
    (Role::Attention, "attention"),
    (Role::Experts, "experts"),
    (Role::Hybrid, "hybrid"),
    (Role::Operator, "operator"),
];

/// A role's name.
pub fn role_name(role: Role) -> &'static str {
    ROLES.iter().find(|(r, _)| *r == role).map_or("", |(_, name)| name)
}

/// The role of a name.
pub fn role_of(name: &str) -> Option<Role> {
    ROLES.iter().find(|(_, n)| *n == name).map(|(r, _)| *r)
}

/// A URI that is no SPIFFE ID of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not of the form spiffe://sluice/ns/NAMESPACE/moe/NAME/role/ROLE[/worker/WORKER]")]
pub struct NotOurs;

impl FromStr for Identity {
    type Err = NotOurs;

    fn from_str(uri: &str) -> Result<Self, NotOurs> {
        let path: Vec<&str> = uri.strip_prefix(DOMAIN).ok_or(NotOurs)?.split('/').collect();
        let (fixed, worker) = match path.as_slice() {
            [fixed @ .., "worker", worker] if fixed.len() == 6 => (fixed, Some(*worker)),
            fixed => (fixed, None),
        };
        let ["ns", namespace, "moe", name, "role", role] = fixed else { return Err(NotOurs) };
        let role = role_of(role).ok_or(NotOurs)?;
        let is_worker = role.is_rank() || role.is_host();
        if namespace.is_empty()
            || name.is_empty()
            || worker.is_some_and(str::is_empty)
            || worker.is_some() != is_worker
        {
            return Err(NotOurs);
        }
        Ok(Self { deployment: format!("{namespace}/{name}"), role, worker: worker.map(str::to_owned) })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let worker = self.worker.as_deref().unwrap_or("(any)");
        write!(f, "{} {worker} of {}", role_name(self.role), self.deployment)
    }
}

impl Identity {
    /// Who does something for a deployment. `worker` for those whose role has a name each.
    pub fn new(namespace: &str, deployment: &str, role: Role, worker: Option<&str>) -> Self {
        let worker = worker.map(str::to_owned);
        Self { deployment: format!("{namespace}/{deployment}"), role, worker }
    }

    /// Its SPIFFE ID.
    pub fn uri(&self) -> String {
        let (namespace, name) = self.deployment.split_once('/').unwrap_or(("", &self.deployment));
        let id = format!("{DOMAIN}ns/{namespace}/moe/{name}/role/{}", role_name(self.role));
        self.worker.as_ref().map_or_else(|| id.clone(), |worker| format!("{id}/worker/{worker}"))
    }

    /// Of a leaf that has been verified.
    ///
    /// # Errors
    /// If it names nobody of Sluice.
    pub fn of(leaf: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let parsed =
            webpki::EndEntityCert::try_from(leaf).map_err(|e| IdentityError::Unreadable(e.to_string()))?;
        let names: Vec<&str> = parsed.valid_uri_names().collect();
        names.iter().find_map(|n| n.parse().ok()).ok_or_else(|| IdentityError::Nobody(format!("{names:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_named_and_a_gateway_is_not() {
        let is = |uri: &str| uri.parse::<Identity>().ok();
        let found = is("spiffe://sluice/ns/a/moe/b/role/experts/worker/e-0").unwrap();
        assert_eq!((found.deployment.as_str(), found.role), ("a/b", Role::Experts));
        assert_eq!(found.worker.as_deref(), Some("e-0"));
        assert_eq!(is("spiffe://sluice/ns/a/moe/b/role/gateway").unwrap().worker, None);
        for (role, worker) in [(Role::Experts, Some("e-0")), (Role::Operator, None)] {
            let identity = Identity::new("a", "b", role, worker);
            assert_eq!(is(&identity.uri()), Some(identity), "it is read as it is written");
        }
        for wrong in [
            "spiffe://other/ns/a/moe/b/role/gateway",
            "spiffe://sluice/ns/a/moe/b/role/gateway/worker/g",
            "spiffe://sluice/ns/a/moe/b/role/experts",
            "spiffe://sluice/ns/a/moe/b/role/experts/worker/",
            "spiffe://sluice/ns//moe/b/role/gateway",
            "spiffe://sluice/ns/a/moe/b/role/king/worker/k",
            "spiffe://sluice/ns/a/moe/b/role/experts/worker/e/f",
            "https://sluice/ns/a/moe/b/role/gateway",
            "",
        ] {
            assert_eq!(is(wrong), None, "{wrong}");
        }
    }
}
