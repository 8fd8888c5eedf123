//! `sluice-operator up` as a person runs it: the example's manifest and model, agents as processes of this machine.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const TOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// For what takes seconds, on a machine that builds something else meanwhile.
const LIMIT: Duration = Duration::from_secs(120);

/// The process, and the lines that it prints.
struct Up {
    child: Child,
    lines: Receiver<String>,
    port: u16,
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Up {
    fn start(manifest: &Path) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_sluice-operator"));
        let agent = program.with_file_name("sluice-agent");
        assert!(agent.exists(), "{} is not built: cargo build -p sluice-agent", agent.display());
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let mut child = Command::new(program)
            .args(["up", "--listen", &format!("127.0.0.1:{port}"), "--model", "models/tiny-moe", "-f"])
            .arg(manifest)
            .current_dir(TOP)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let out = child.stdout.take().expect("its output");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                println!("{line}");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, port }
    }

    /// Waits for a line that says all of this.
    fn says(&self, words: &[&str]) -> String {
        let end = Instant::now() + LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if words.iter().all(|w| line.contains(w)) => return line,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => panic!("no line with {words:?} within {LIMIT:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended without a line with {words:?}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(self.child.id(), signal);
    }

    /// Its processes with these words in their command line.
    fn agents(&self, role: &str) -> Vec<u32> {
        let all = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let own = format!("PPid:\t{}\n", self.child.id());
        let text =
            |pid: u32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        pids.filter(|p| text(*p, "status").contains(&own))
            .filter(|p| text(*p, "cmdline").split('\0').nth(1) == Some(role))
            .collect()
    }

    /// What the model answers to a question that has a reference, and that reference.
    fn ask(&self) -> (String, String) {
        let file =
            fs::read_to_string(format!("{TOP}/models/tiny-moe/reference.json")).expect("the reference");
        let file: Value = serde_json::from_str(&file).expect("JSON");
        let all = file["references"].as_array().expect("references");
        let one = all.iter().find(|r| r["kind"] == "chat" && r["eos_at"].is_null()).expect("a chat");
        let body = json!({
            "model": "tiny-moe", "temperature": 0, "max_tokens": 64,
            "messages": [{ "role": "user", "content": one["prompt"] }],
        })
        .to_string();
        let mut tcp = TcpStream::connect(("127.0.0.1", self.port)).expect("the gateway");
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
        let length = body.len();
        write!(tcp, "{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
            .expect("sent");
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).expect("an answer");
        let (_, json) = answer.split_once("\r\n\r\n").expect("a body");
        let json: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {answer}"));
        let said = |v: &Value| v.as_str().unwrap_or_else(|| panic!("no text: {json}")).to_owned();
        (said(&json["choices"][0]["message"]["content"]), said(&one["greedy_text"]))
    }
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a pid"), signal).expect("it is there");
}

#[test]
fn it_serves_survives_the_death_of_any_child_and_follows_the_file() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("up-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let manifest = dir.join("moe.yaml");
    let text = fs::read_to_string(format!("{TOP}/examples/tiny-moe.yaml")).unwrap();
    fs::write(&manifest, &text).unwrap();
    let mut up = Up::start(&manifest);
    up.says(&["attention 1/1", "experts 2/2", "gateway 1/1", "serves http"]);
    let (said, expected) = up.ask();
    assert_eq!(said, expected);

    for role in ["experts", "attention", "gateway"] {
        let all = up.agents(role);
        kill(all[0], Signal::KILL);
        up.says(&["has ended"]);
        up.says(&["attention 1/1", "experts 2/2", "gateway 1/1", "serves http"]);
        assert!(!up.agents(role).contains(&all[0]), "another one has its place");
        assert_eq!(up.ask().0, expected, "after the death of {role}");
    }

    // A file that is wrong changes nothing; one that is right is carried out.
    fs::write(&manifest, text.replace("replicas: 2", "replicas: many")).unwrap();
    up.says(&["what was there before stays"]);
    assert_eq!(up.ask().0, expected);
    fs::write(&manifest, text.replace("replicas: 2", "replicas: 3")).unwrap();
    up.says(&["experts 3/3", "serves http"]);
    assert_eq!((up.agents("experts").len(), up.ask().0), (3, expected));

    let all: Vec<u32> = ["experts", "attention", "gateway"].iter().flat_map(|r| up.agents(r)).collect();
    assert_eq!(all.len(), 5);
    up.signal(Signal::INT);
    up.says(&["draining"]);
    let status = up.child.wait().unwrap();
    assert!(status.success(), "{status}");
    let left: Vec<_> = all.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
    assert!(left.is_empty(), "left: {left:?}");
    fs::remove_dir_all(&dir).unwrap();
}
