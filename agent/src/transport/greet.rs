//! The first words on a connection: each side says who it is, and takes the other or says why not.
//!
//! A hello is JSON behind its length (four bytes, little-endian): every version of Sluice must be able to read every
//! other's, to refuse it by name.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_core::hello::{Hello, Members, Refused, Role, Schedule, Taken, WireVersions};
use sluice_core::ids::WorkerId;
use sluice_identity::{Identity, role_name, role_of};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes of a hello, at most.
const MOST: usize = 16 << 10;
/// Bytes of a name or an id in a hello, at most: those of Kubernetes have 253.
const LONGEST: usize = 256;
/// What a peer says of its reasons goes into the log up to so many characters.
const SHOWN: usize = 500;
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

/// Who is at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whom {
    Gateway,
    Worker,
}

impl Purpose {
    /// Who may dial for it.
    fn dials(self) -> Whom {
        match self {
            Self::Gateway => Whom::Gateway,
            Self::Control { .. } | Self::Data { .. } => Whom::Worker,
        }
    }
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
    #[serde(default)]
    waves: Option<u8>,
    #[serde(default)]
    sync: Option<bool>,
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
            waves: hello.schedule.map(|s| s.waves),
            sync: hello.schedule.map(|s| s.in_step),
            purpose,
        }
    }

    fn hello(&self) -> Result<Hello, GreetError> {
        let numerics = self.numerics.as_ref();
        for (what, text) in [("name", &self.name), ("deployment", &self.deployment), ("role", &self.role)]
            .into_iter()
            .chain(numerics.map(|id| ("numerics id", id)))
        {
            // They go into the log and into answers.
            if text.len() > LONGEST || text.contains(char::is_control) {
                let shown = shown(text);
                return Err(GreetError::Garbage(format!(
                    "its {what} has control characters or more than {LONGEST} bytes: {shown}"
                )));
            }
        }
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
            schedule: self.waves.zip(self.sync).map(|(waves, in_step)| Schedule { waves, in_step }),
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
    /// Its connection is not for such as it.
    #[error("{name} has the role {role}, and this connection is for {wanted}")]
    Purpose {
        /// Who.
        name: String,
        /// What it does.
        role: &'static str,
        /// Whom such connections are for.
        wanted: &'static str,
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
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
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
        Word::Refused(why) => return Err(GreetError::RefusedBy(shown(&why))),
    };
    let hello = card.hello()?;
    if hello.name != wanted {
        return Err(GreetError::Other { wanted: wanted.into(), found: hello.name });
    }
    // Nobody dials gateways.
    take(hello, purpose, Whom::Worker, certificate, members, book)
}

/// Hears who dials, and answers.
pub(super) async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    certificate: Option<&Identity>,
    members: &Mutex<Members>,
    book: &dyn Book,
) -> Result<Met, GreetError> {
    let Word::Hello(card) = read(stream).await? else {
        return Err(GreetError::Garbage("a refusal without a question".into()));
    };
    let met = card
        .hello()
        .and_then(|hello| take(hello, card.purpose, card.purpose.dials(), certificate, members, book));
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
    hello: Hello,
    purpose: Purpose,
    whom: Whom,
    certificate: Option<&Identity>,
    members: &Mutex<Members>,
    book: &dyn Book,
) -> Result<Met, GreetError> {
    let role = role_name(hello.role);
    if let Some(c) = certificate.filter(|c| c.deployment != hello.deployment || c.role != hello.role) {
        let said = format!("{role} {} of {}", hello.name, hello.deployment);
        return Err(GreetError::Certificate { hello: said, certificate: c.to_string() });
    }
    let (fits, wanted) = match whom {
        Whom::Gateway => (hello.role == Role::Gateway, "gateways"),
        Whom::Worker => (hello.role.is_rank() || hello.role.is_host(), "workers"),
    };
    if !fits {
        return Err(GreetError::Purpose { name: hello.name, role, wanted });
    }
    let name = certificate.and_then(|c| c.worker.as_deref());
    let known = |name: &str| book.number(name);
    let taken = members.lock().unwrap_or_else(PoisonError::into_inner).greet(&hello, name, known)?;
    Ok(Met { hello, taken, purpose })
}

/// A peer's words as they may be shown: on one line, and not too long.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown += " ...";
    }
    shown
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), word: &Word) -> Result<(), GreetError> {
    let text = serde_json::to_vec(word).map_err(std::io::Error::other)?;
    let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
    bytes.extend(text);
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(())
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Word, GreetError> {
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
    serde_json::from_slice(&text).map_err(|e| GreetError::Garbage(shown(&e.to_string())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fuzz::run;
    use crate::transport::fuzz::rank;

    struct Empty;

    impl Book for Empty {
        fn number(&self, _: &str) -> Option<WorkerId> {
            None
        }
    }

    #[test]
    fn a_hello_says_how_its_worker_schedules_unless_it_is_of_an_older_release() {
        let card = Card::new(&rank(), Purpose::Control { epoch: 3 });
        let mut text = serde_json::to_value(&card).unwrap();
        let read = |text: &Value| serde_json::from_value::<Card>(text.clone()).unwrap().hello().unwrap();
        assert_eq!(read(&text), rank());
        let fields = text.as_object_mut().unwrap();
        assert!(fields.remove("waves").is_some() && fields.remove("sync").is_some());
        assert_eq!(read(&text), Hello { schedule: None, ..rank() });
    }

    /// Why an answer to a dial of e1 is not taken.
    fn refused(answer: &Value) -> String {
        let text = answer.to_string();
        run(async {
            let (mut near, mut far) = tokio::io::duplex(MOST);
            far.write_all(&[&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()).await.unwrap();
            let members = Mutex::new(Members::new(rank()));
            dial(&mut near, None, &members, &Empty, "e1", Purpose::Gateway).await.unwrap_err().to_string()
        })
    }

    #[test]
    fn who_answers_is_a_worker_and_what_it_says_is_one_line() {
        let hello = |name: &str, role| {
            let hello = Hello { name: name.into(), role, ..rank() };
            refused(&json!({ "hello": Card::new(&hello, Purpose::Gateway) }))
        };
        assert_eq!(hello("e1", Role::Gateway), "e1 has the role gateway, and this connection is for workers");
        assert_eq!(refused(&json!({"refused": "no\nERROR"})), "the peer refuses: no\\nERROR");
        let long = refused(&json!({"refused": "x".repeat(9000)}));
        assert!(long.len() < 600 && long.ends_with(" ..."), "{long}");
        for name in ["e1\u{1b}[31m", &"e".repeat(300)] {
            let said = hello(name, Role::Experts);
            assert!(said.contains("its name has control characters or more than 256 bytes: e"), "{said}");
            assert!(said.len() < 600 && !said.contains('\u{1b}'), "{said}");
        }
    }
}
