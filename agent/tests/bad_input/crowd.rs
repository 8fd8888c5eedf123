//! 10,000 connections at once, against a server with 4,096 file descriptors.
//!
//! The clients are processes of their own, as many as the limit on open files of each needs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::http::Client;
use super::server::Server;

const CROWD: usize = 10_000;
const FILES: u64 = 4096;
/// Connections of one client process, unless its limit on open files is lower.
const EACH: u64 = 4000;
/// Descriptors a client process needs beside its connections.
const OTHERS: u64 = 64;
const ADDRESS: &str = "SLUICE_TEST_ADDRESS";
const COUNT: &str = "SLUICE_TEST_COUNT";

/// Not a test: what [`Clients`] runs. Holds connections that ask for nothing, and opens another for each that ends,
/// until its standard input ends.
#[test]
#[ignore = "the client process of another test"]
fn client_process() {
    let (Ok(address), Ok(count)) = (std::env::var(ADDRESS), std::env::var(COUNT)) else { return };
    let (address, count): (SocketAddr, usize) = (address.parse().unwrap(), count.parse().unwrap());
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let closed = Arc::new(AtomicUsize::new(0));
    for _ in 0..count {
        let closed = closed.clone();
        tokio.spawn(async move {
            loop {
                match tokio::net::TcpStream::connect(address).await {
                    Ok(mut stream) => {
                        let _ = stream.read(&mut [0]).await;
                        closed.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
    }
    std::thread::spawn(move || {
        // The parent closes it, or is gone.
        let _ = std::io::stdin().read_to_end(&mut vec![]);
        std::process::exit(0);
    });
    loop {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
        println!("\nholds {} closed {}", open.min(count), closed.load(Ordering::Relaxed));
        std::io::stdout().flush().unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// One process of clients.
struct Clients {
    process: Child,
    stdin: Option<ChildStdin>,
    /// Sockets held, and connections that the server closed.
    seen: Arc<[AtomicUsize; 2]>,
}

impl Clients {
    fn start(address: SocketAddr, count: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "crowd::client_process", "--ignored", "--nocapture"]);
        command.env(ADDRESS, address.to_string()).env(COUNT, count.to_string());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let seen = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let told = seen.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let words: Vec<&str> = line.split(' ').collect();
                if let ["holds", held, "closed", closed] = words[..] {
                    told[0].store(held.parse().unwrap(), Ordering::Relaxed);
                    told[1].store(closed.parse().unwrap(), Ordering::Relaxed);
                }
            }
        });
        Self { stdin: process.stdin.take(), process, seen }
    }

    fn seen(all: &[Self], what: usize) -> usize {
        all.iter().map(|clients| clients.seen[what].load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.process.wait();
    }
}

#[test]
fn ten_thousand_connections_do_not_stop_a_server_with_four_thousand_files() {
    let mut server = Server::start(FILES, &[]);
    // One who was there before, and goes on asking.
    let mut kept = Client::connect(server.listen);
    let asks = json!({ "prompt": [1, 5, 9], "max_tokens": 2, "ignore_eos": true });
    assert_eq!(kept.post("/v1/completions", &asks).status, 200);

    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let each = EACH.min(most.saturating_sub(OTHERS)) as usize;
    let crowd: Vec<Clients> = (0..CROWD)
        .step_by(each)
        .map(|start| Clients::start(server.listen, each.min(CROWD - start)))
        .collect();
    server.until("a crowd", |_| Clients::seen(&crowd, 0) == CROWD);
    // A slow machine lets the first ones go, for they ask for nothing, before the last ones come.
    server.until("full", |server| {
        server.metrics().sum("sluice_http_connections") >= 3900.0 || Clients::seen(&crowd, 1) > 0
    });
    let (mut answered, mut files, mut connections) = (0, 0, 0.0_f64);
    // Until the server has closed as many as it holds, for they ask for nothing, and taken others in their place.
    server.until("taking turns", |server| {
        assert_eq!(kept.post("/v1/completions", &asks).status, 200);
        answered += 1;
        files = files.max(server.open_files());
        connections = connections.max(server.metrics().sum("sluice_http_connections"));
        Clients::seen(&crowd, 1) >= 3900
    });
    let closed = Clients::seen(&crowd, 1);
    assert_eq!(Clients::seen(&crowd, 0), CROWD, "sockets are held all the time");
    println!(
        "{CROWD} connections at once from {} processes, {FILES} files: {connections} connections and {files} files \
         at most, {closed} closed for asking nothing, {answered} requests answered on an older one meanwhile",
        crowd.len()
    );
    assert!(files < FILES as usize, "{files} files");
    assert_eq!(server.metrics().sum("sluice_http_accept_errors_total"), 0.0);
    drop(crowd);
    assert_eq!(kept.post("/v1/completions", &asks).status, 200);
    drop(kept);
    server.until("serving newcomers", |server| server.metrics().sum("sluice_http_connections") == 0.0);
    server.serves();
    server.rests();
    server.stop();
}
