//! A peer that is none of the deployment's processes: it has a certificate, and says what a test wants.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::{ClientConnection, StreamOwned};
use serde_json::{Value, json};

use crate::deployment::connect;

pub struct Peer(StreamOwned<ClientConnection, TcpStream>);

/// A hello that would be taken, of a process that started just now.
pub fn card(name: &str, number: Option<u32>, role: &str, numerics: Option<&str>, purpose: &Value) -> Value {
    let incarnation = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    json!({
        "deployment": "default/sluice", "name": name, "worker": number, "incarnation": incarnation, "role": role,
        "wire": [1, 1], "numerics": numerics, "purpose": purpose,
    })
}

impl Peer {
    pub fn dial(tls: &Path, address: SocketAddr) -> Self {
        Self::speaking("sluice", tls, address)
    }

    /// `protocol` is agreed on by TLS.
    pub fn speaking(protocol: &str, tls: &Path, address: SocketAddr) -> Self {
        let (tls, tcp) = connect(tls, &address, vec![protocol.into()]);
        Self(StreamOwned::new(tls, tcp))
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
        self.0.flush().unwrap();
    }

    /// Says a hello, and hears the answer to it.
    pub fn greet(&mut self, card: &Value) -> Value {
        let text = json!({ "hello": card }).to_string();
        self.say(&[&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat());
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u32::from_le_bytes(length) as usize];
        self.0.read_exact(&mut answer).unwrap();
        serde_json::from_slice(&answer).unwrap()
    }

    /// Waits until the other side is gone; what it still says is not looked at.
    pub fn leaves(mut self) {
        self.0.sock.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut rest = vec![];
        if let Err(e) = self.0.read_to_end(&mut rest) {
            assert!(e.kind() != std::io::ErrorKind::WouldBlock, "it is kept");
        }
    }
}
