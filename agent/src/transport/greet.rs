//! The first words on a connection: each side says who it is, and takes the other or says why not.
//!
//! A hello is JSON behind its length (four bytes, little-endian): every version of Sluice must be able to read every
//! other's, to refuse it by name.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_core::hello::{Hello, Members, Refused, Taken, WireVersions};
use sluice_core::ids::WorkerId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::identity::{Identity, role_name, role_of};
use super::stream::Stream;

/// Bytes of a hello, at most.
const MOST: usize = 16 << 10;
/// A peer has so long for its hello, handshake included.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Marks, credit, redirects and heartbeats of a pair of workers.
    Control {
        /// The pair's epoch.
        epoch: u32,
    },
    /// Tokens and returns of a pair of workers.
    Data {
        /// The pair's epoch.
        epoch: u32,
    },
    /// A gateway and a rank.
    Gateway,
}

/// A hello as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    deployment: String,
    name: String,
    #[serde(default)]
    worker: Option<u32>,
    incarnation: u64,
    role: String,
    wire: [u16; 2],
    #[serde(default)]
    numerics: Option<String>,
    /// What the connection is for. An answer repeats it.
    pub purpose: Purpose,
}

impl Card {
    /// Of a hello.
    pub fn new(hello: &Hello, purpose: Purpose) -> Self {
        Self {
            deployment: hello.deployment.clone(),
            name: hello.name.clone(),
            worker: hello.worker.map(|w| w.0),
            incarnation: hello.incarnation,
            role: role_name(hello.role).into(),
            wire: [hello.wire.min, hello.wire.max],
            numerics: hello.numerics.clone(),
            purpose,
        }
    }

    fn hello(&self) -> Result<Hello, GreetError> {
        let role = role_of(&self.role).ok_or_else(|| {
            GreetError::Garbage(format!("{} has the role {:?}, which is none", self.name, self.role))
        })?;
        Ok(Hello {
            deployment: self.deployment.clone(),
            worker: self.worker.map(WorkerId),
            name: self.name.clone(),
            incarnation: self.incarnation,
            role,
            wire: WireVersions { min: self.wire[0], max: self.wire[1] },
            numerics: self.numerics.clone(),
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Hello(Card),
    Refused(String),
}

/// A peer that is not talked to.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    /// It is not taken.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Its certificate and its hello are of two.
    #[error("{hello} shows the certificate of {certificate}")]
    Certificate {
        /// What it says.
        hello: String,
        /// Whose the certificate is.
        certificate: String,
    },
    /// No TLS.
    #[error("the TLS handshake failed: {0}")]
    Handshake(std::io::Error),
    /// Its certificate is of another deployment.
    #[error("its certificate is for {certificate}, which is another deployment than {ours}")]
    Foreign {
        /// Whose it is.
        certificate: String,
        /// The own deployment.
        ours: String,
    },
    /// Somebody else answers at its address.
    #[error(
        "{found} answers at the address of {wanted}: the table is not up to date, or the address is wrong"
    )]
    Other {
        /// Who was dialled.
        wanted: String,
        /// Who answered.
        found: String,
    },
    /// It does not take us.
    #[error("the peer refuses: {0}")]
    RefusedBy(String),
    /// No hello.
    #[error("what came is no hello: {0}")]
    Garbage(String),
    /// Nothing, for too long.
    #[error("no hello within {} s", PATIENCE.as_secs())]
    Silent,
    /// The connection.
    #[error("the connection broke during the hello: {0}")]
    Io(#[from] std::io::Error),
}

/// A peer that was taken.
#[derive(Clone, Debug)]
pub(super) struct Met {
    pub hello: Hello,
    pub taken: Taken,
    pub purpose: Purpose,
}

/// The numbers that the table has, by name.
pub(super) trait Book: Send + Sync {
    fn number(&self, name: &str) -> Option<WorkerId>;
}

/// Says who we are and hears who answers: it must be `wanted`.
pub(super) async fn dial(
    stream: &mut Stream,
    certificate: Option<&Identity>,
    members: &Mutex<Members>,
    book: &dyn Book,
    wanted: &str,
    purpose: Purpose,
) -> Result<Met, GreetError> {
    let own = Card::new(members.lock().unwrap_or_else(PoisonError::into_inner).hello(), purpose);
    write(stream, &Word::Hello(own)).await?;
    let card = match read(stream).await? {
        Word::Hello(card) => card,
        Word::Refused(why) => return Err(GreetError::RefusedBy(why)),
    };
    if card.name != wanted {
        return Err(GreetError::Other { wanted: wanted.into(), found: card.name });
    }
    take(&card, certificate, members, book)
}

/// Hears who dials, and answers.
pub(super) async fn answer(
    stream: &mut Stream,
    certificate: Option<&Identity>,
    members: &Mutex<Members>,
    book: &dyn Book,
) -> Result<Met, GreetError> {
    let Word::Hello(card) = read(stream).await? else {
        return Err(GreetError::Garbage("a refusal without a question".into()));
    };
    let met = take(&card, certificate, members, book);
    let word = match &met {
        Ok(met) => Word::Hello(Card::new(
            members.lock().unwrap_or_else(PoisonError::into_inner).hello(),
            met.purpose,
        )),
        Err(why) => Word::Refused(why.to_string()),
    };
    write(stream, &word).await?;
    met
}

fn take(
    card: &Card,
    certificate: Option<&Identity>,
    members: &Mutex<Members>,
    book: &dyn Book,
) -> Result<Met, GreetError> {
    let hello = card.hello()?;
    if let Some(c) = certificate.filter(|c| c.deployment != hello.deployment || c.role != hello.role) {
        let said = format!("{} {} of {}", card.role, hello.name, hello.deployment);
        return Err(GreetError::Certificate { hello: said, certificate: c.to_string() });
    }
    let name = certificate.and_then(|c| c.worker.as_deref());
    let known = book.number(&hello.name);
    let taken = members.lock().unwrap_or_else(PoisonError::into_inner).greet(&hello, name, known)?;
    Ok(Met { hello, taken, purpose: card.purpose })
}

async fn write(stream: &mut Stream, word: &Word) -> Result<(), GreetError> {
    let text = serde_json::to_vec(word).map_err(std::io::Error::other)?;
    let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
    bytes.extend(text);
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(())
}

async fn read(stream: &mut Stream) -> Result<Word, GreetError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MOST {
        return Err(GreetError::Garbage(format!(
            "{length} bytes are announced, and none has more than {MOST}"
        )));
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await?;
    serde_json::from_slice(&text).map_err(|e| GreetError::Garbage(e.to_string()))
}
