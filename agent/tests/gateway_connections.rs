//! The gateway with fewer file descriptors than clients. The server is a process of its own, with a limit of its own.

#![allow(clippy::unwrap_used, reason = "a test's own process")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sluice_agent::gateway::*;
use sluice_core::front::{CancelCause, Complete, Ending};
use sluice_core::ids::SeqKey;

const FILES: &str = "SLUICE_TEST_FILES";
const BUDGET: &str = "SLUICE_TEST_BUDGET";
/// How long the server lets a connection be without a request, in seconds.
const IDLE: u64 = 2;

struct Nothing;

impl Engine for Nothing {
    fn submit(&self, request: Generate, sink: EventSink) {
        for choice in 0..request.choices {
            let _ = sink.send(choice, SeqEvent::End(Ending::Complete(Complete::Length)));
        }
    }

    fn cancel(&self, _: SeqKey, _: CancelCause) {}
}

impl TextModel for Nothing {
    fn encode(&self, text: &str, _: bool) -> Result<Vec<u32>, TextError> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn decode(&self, _: &[u32], _: bool) -> String {
        String::new()
    }

    fn token_bytes(&self, _: u32) -> Vec<u8> {
        Vec::new()
    }

    fn detokenizer(&self, _: bool) -> Box<dyn Detokenizer> {
        Box::new(Nothing)
    }

    fn render(&self, _: &Conversation) -> Result<String, TextError> {
        Err(TextError::NoTemplate)
    }
}

impl Detokenizer for Nothing {
    fn push(&mut self, _: u32) -> String {
        String::new()
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

/// Not a test: what [`Server`] runs.
#[test]
#[ignore = "the server process of the other tests"]
fn server_process() {
    let Some(files) = std::env::var(FILES).ok().and_then(|text| text.parse().ok()) else { return };
    setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: Some(files) }).unwrap();
    let wanted = 1 << 16;
    let connections = if std::env::var(BUDGET).is_ok() { connection_budget(wanted) } else { wanted };
    let brief = Duration::from_secs(IDLE);
    let timeouts = Timeouts { header: brief, idle: brief, ..Timeouts::default() };
    let model = ServedModel {
        names: vec!["none".into()],
        context: 100,
        vocab: 256,
        eos: vec![],
        defaults: GenerationDefaults::default(),
        created: 0,
    };
    let gateway = Gateway::new(Arc::new(Nothing), Arc::new(Nothing), model, None, Arc::new(Silent))
        .with_timeouts(timeouts.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("\nlistening {}", listener.local_addr().unwrap());
        let config = ServeConfig { connections, timeouts, observer: Arc::new(Silent) };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            // The parent closes it, or is gone.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            let _ = stop.send(());
        });
        let cut = serve(listener, router(Arc::new(gateway)), config, async {
            let _ = stopped.await;
        })
        .await;
        println!("\ncut {cut}");
    });
}

struct Server {
    process: Child,
    address: SocketAddr,
    stdin: Option<ChildStdin>,
}

impl Server {
    fn start(files: u64, budget: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "server_process", "--ignored", "--nocapture"]).env(FILES, files.to_string());
        if budget {
            command.env(BUDGET, "1");
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = process.stdin.take();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines
            .find_map(|line| line.unwrap().strip_prefix("listening ").map(|text| text.parse().unwrap()))
            .unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address, stdin }
    }

    fn ask(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.address) else { return false };
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let body = r#"{"prompt": "a"}"#;
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut answer = String::new();
        let sent = stream.write_all((head + body).as_bytes());
        sent.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
    }

    fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(self.process.try_wait().unwrap().is_none(), "the server died");
            assert!(begun.elapsed() < Duration::from_secs(240), "never {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(mut self) {
        drop(self.stdin.take());
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn allow_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    limit.maximum.unwrap_or(u64::MAX)
}

#[test]
fn accepting_goes_on_after_the_file_descriptors_ran_out() {
    let mut server = Server::start(64, false);
    assert!(server.ask());
    let before = server.files();
    let held: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    server.until("out of file descriptors", |server| server.files() >= 64);
    drop(held);
    server.until("serving again", Server::ask);
    server.until("back to its files", |server| server.files() <= before + 1);
    server.stop();
}

#[test]
fn ten_thousand_connections_at_once_with_four_thousand_files() {
    let clients = 10_000.min(allow_files().saturating_sub(500));
    let mut server = Server::start(4096, true);
    assert!(server.ask());
    let before = server.files();
    let address = server.address;
    // Connections that ask for nothing, and hold on to what they have.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let idle: Vec<_> = (0..clients)
        .map(|_| {
            runtime.spawn(async move {
                let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else { return false };
                // The server's closing is the end. One that found the backlog full may never hear of it.
                let mut byte = [0];
                let read = tokio::io::AsyncReadExt::read(&mut stream, &mut byte);
                tokio::time::timeout(Duration::from_secs(20), read).await.is_ok()
            })
        })
        .collect();
    // Others are served in the meantime: whoever asks waits in line, and gets an answer.
    let (mut most, mut answered) = (0, 0);
    while !idle.iter().all(tokio::task::JoinHandle::is_finished) {
        server.until("answering", Server::ask);
        most = most.max(server.files());
        answered += 1;
    }
    assert!(most < 4096, "{most} files");
    let closed = runtime.block_on(async {
        let mut closed = 0;
        for one in idle {
            closed += u64::from(one.await.unwrap());
        }
        closed
    });
    println!(
        "{closed} of {clients} connections were taken and closed, {answered} others answered, {most} files at most"
    );
    assert!(closed > 0);
    server.until("back to its files", |server| server.files() <= before + 1);
    assert!(server.ask());
    server.stop();
}
