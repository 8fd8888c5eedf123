//! `sluice-agent serve` as a process, and what it holds.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::http::{Client, get};
use super::metrics::Metrics;

/// Nothing takes so long: what does hangs.
const HANG: Duration = Duration::from_secs(120);
/// Workers report twice a second: after this, what `/metrics` says of them is new.
const REPORTS: Duration = Duration::from_millis(1200);
/// Log lines kept for a failure's message.
const LINES: usize = 40;

pub struct Server {
    process: Child,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    log: Arc<Mutex<VecDeque<String>>>,
    reader: Option<JoinHandle<()>>,
    /// Files open when it had served once and was at rest.
    files: usize,
}

impl Server {
    /// Serves the bundled model with at most `limit` open files, and has answered a request when it returns.
    pub fn start(limit: u64, flags: &[&str]) -> Self {
        // The shell lowers the limit, and becomes the server.
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {limit} && exec \"$0\" \"$@\""));
        command.args([env!("CARGO_BIN_EXE_sluice-agent"), "serve", "--log-format", "json"]);
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]).args(flags);
        let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (found, addresses) = channel();
        let (lines, kept) = (BufReader::new(process.stderr.take().unwrap()).lines(), Arc::clone(&log));
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(addresses) = announced(&line) {
                    let _ = found.send(addresses);
                }
                let mut kept = kept.lock().unwrap();
                kept.push_back(line);
                while kept.len() > LINES {
                    kept.pop_front();
                }
            }
        });
        let (listen, admin) = addresses
            .recv_timeout(HANG)
            .unwrap_or_else(|e| panic!("the server does not start: {e}: {:?}", log.lock().unwrap()));
        let mut server = Self { process, listen, admin, log, reader: Some(reader), files: 0 };
        server.serves();
        server.until("at rest", |server| server.held().is_empty());
        // The admin connection of the last scrape is closed by then.
        sleep(REPORTS);
        server.files = server.open_files();
        server
    }

    /// A good request, on a connection of its own.
    pub fn serves(&self) {
        let reply = Client::connect(self.listen)
            .post("/v1/completions", &json!({ "prompt": [1, 5, 9], "max_tokens": 4, "ignore_eos": true }));
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.json()["usage"]["completion_tokens"], 4);
    }

    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&get(self.admin, "/metrics").body)
    }

    fn held(&self) -> Vec<String> {
        self.metrics().held()
    }

    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    pub fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {ended:?}: {:?}", self.log.lock().unwrap());
            let hangs = begun.elapsed() > HANG;
            assert!(!hangs, "never {what}: {:?}, {} files", self.held(), self.open_files());
            sleep(Duration::from_millis(20));
        }
    }

    /// Nothing is held: by `/metrics`, and by what files the process has open.
    pub fn rests(&mut self) {
        self.until("at rest", |server| server.held().is_empty());
        sleep(REPORTS);
        assert_eq!(self.held(), Vec::<String>::new());
        // The admin connection of the last scrape may not be closed yet.
        self.until("back to its files", |server| server.open_files() <= server.files);
    }

    /// Tells it to stop, which it does at once when nothing runs.
    pub fn stop(mut self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        let status = self.process.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        let log = self.log.lock().unwrap();
        assert!(status.success(), "{status}: {log:?}");
        assert!(!log.iter().any(|line| line.contains("panicked")), "{log:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The addresses, if this is the line that tells them.
fn announced(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").filter(|fields| fields["message"] == "serving")?;
    let address = |name| fields.get(name)?.as_str()?.trim_matches('"').parse().ok();
    Some((address("listen")?, address("admin")?))
}
