//! The CAs in their Secret: read or made at the start, and exchanged when it is time to.

use crate::apply::{WriteError, Writer};
use crate::certificates::CertificateError;
use crate::keyring::{Keyring, ROTATE};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// The Secret.
const NAME: &str = "sluice-ca";
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The API server.
    #[error("the Secret {NAME} cannot be read: {0}")]
    Read(#[from] Box<kube::Error>),
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// What is in it.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// The CAs as they are now.
#[derive(Debug)]
pub struct Authorities(RwLock<Arc<Keyring>>);

impl Authorities {
    /// Those in the operator's namespace; a new one if there is none yet.
    ///
    /// # Errors
    /// If they cannot be read, made or stored.
    pub async fn open(writer: &Writer, namespace: &str) -> Result<Self, AuthorityError> {
        loop {
            let now = Timestamp::now();
            if let Some(found) = api(writer, namespace).get_opt(NAME).await.map_err(Box::new)? {
                return Ok(Self(RwLock::new(Arc::new(Keyring::stored(&found, now)?))));
            }
            // Somebody else may have been first: then theirs is read.
            writer.create(&secret(namespace, &Keyring::create(now)?)).await?;
        }
    }

    /// As they are now.
    pub fn now(&self) -> Arc<Keyring> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Exchanges the CA when it is time to, or when somebody asks, for as long as the operator leads.
    pub async fn tend(&self, writer: &Writer, namespace: &str) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.look(writer, namespace).await {
                Ok(None) => {}
                Ok(Some(stage)) => tracing::info!("{stage}"),
                Err(e) => tracing::warn!("the CA is left as it is: {e}"),
            }
        }
    }

    /// What has changed, in words.
    async fn look(&self, writer: &Writer, namespace: &str) -> Result<Option<&'static str>, AuthorityError> {
        let Some(mut secret) = api(writer, namespace).get_opt(NAME).await.map_err(Box::new)? else {
            // What was deleted is stored again: a new one would be trusted by nobody.
            writer.create(&secret(namespace, &self.now())).await?;
            return Ok(Some("the Secret of the CA was gone, and is written again"));
        };
        let now = Timestamp::now();
        let mut keyring = Keyring::stored(&secret, now)?;
        if keyring.step(now, secret.annotations().contains_key(ROTATE))? {
            keyring.store(&mut secret);
            writer.replace(&secret).await?;
        }
        if keyring.id() == self.now().id() {
            return Ok(None);
        }
        let stage = keyring.stage();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keyring);
        Ok(Some(stage))
    }
}

fn secret(namespace: &str, keyring: &Keyring) -> Secret {
    let mut secret = Secret {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".into()),
        ..Secret::default()
    };
    keyring.store(&mut secret);
    secret
}

fn api(writer: &Writer, namespace: &str) -> Api<Secret> {
    Api::namespaced(writer.client(), namespace)
}
