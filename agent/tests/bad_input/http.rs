//! HTTP/1.1 by hand: what is sent is exactly what a test wrote.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Nothing takes so long: a read that does is a hang.
const HANG: Duration = Duration::from_secs(120);

/// An answer with its whole body.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// A connection that goes on after an answer.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Sends a request whose length is what it says.
    pub fn send(&mut self, method: &str, path: &str, body: &[u8]) {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        // A server that has answered already may be gone before it has all.
        let _ = self.write(&[head.as_bytes(), body].concat());
    }

    pub fn post(&mut self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, body.to_string().as_bytes());
        self.reply()
    }

    /// The status, and the body by its length, by its chunks, or up to the end of the connection.
    pub fn reply(&mut self) -> Reply {
        let status = self.line();
        let status = status.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.expect("a status line");
        let (mut length, mut chunked) = (None, false);
        loop {
            let line = self.line().to_ascii_lowercase();
            let Some((name, value)) = line.split_once(':') else { break };
            match name {
                "content-length" => length = Some(value.trim().parse().unwrap()),
                "transfer-encoding" => chunked = value.trim() == "chunked",
                _ => {}
            }
        }
        let mut body = vec![];
        match length {
            _ if chunked => while self.chunk(&mut body) {},
            Some(length) => {
                body.resize(length, 0);
                self.stream.read_exact(&mut body).unwrap();
            }
            None => {
                self.stream.read_to_end(&mut body).unwrap();
            }
        }
        Reply { status, body: String::from_utf8(body).unwrap() }
    }

    /// Whatever still comes, up to the end of the connection or its breaking.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = vec![];
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }

    fn chunk(&mut self, body: &mut Vec<u8>) -> bool {
        let length = usize::from_str_radix(&self.line(), 16).unwrap();
        let start = body.len();
        body.resize(start + length, 0);
        self.stream.read_exact(&mut body[start..]).unwrap();
        assert_eq!(self.line(), "");
        length > 0
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

/// One page, on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Reply {
    let mut client = Client::connect(address);
    client.send("GET", path, &[]);
    client.reply()
}
