//! A mail server that keeps what it is sent.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{harness::PATIENCE, parts::eventually};

#[derive(Default)]
struct Held {
    mails: Vec<Mail>,
    /// How many mails are still put off with 451.
    busy: usize,
    /// How many mails are still taken without saying so.
    silent: usize,
    connections: usize,
}

/// One mail that was accepted.
#[derive(Debug, Clone)]
pub struct Mail {
    pub to: String,
    /// As it came, with quoted-printable and base64 undone.
    pub text: String,
}

impl Mail {
    fn of(to: String, raw: &str) -> Self {
        let mut text = String::new();
        for part in raw.split("\r\n\r\n") {
            let joined: String = part.split_whitespace().collect();
            match STANDARD.decode(&joined) {
                Ok(bytes) if joined.len() > 40 => text.push_str(&String::from_utf8_lossy(&bytes)),
                _ => text.push_str(&part.replace("=\r\n", "").replace("=3D", "=")),
            }
            text.push_str("\r\n\r\n");
        }
        Self { to, text }
    }

    /// The token of a mail's link.
    pub fn token(&self) -> String {
        let start = self.text.find("#token=").unwrap_or_else(|| panic!("no link: {self:?}")) + "#token=".len();
        let is_of_token = |character: &char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_');
        self.text[start..].chars().take_while(is_of_token).collect()
    }

    pub fn header(&self, name: &str) -> String {
        let start = format!("{name}: ");
        let line = self.text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {name}: {self:?}")).to_owned()
    }
}

pub struct Sink {
    pub address: SocketAddr,
    held: Arc<Mutex<Held>>,
    _server: AbortOnDropHandle<()>,
}

impl Sink {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let held = Arc::new(Mutex::new(Held::default()));
        let shared = Arc::clone(&held);
        let server = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                shared.lock().unwrap().connections += 1;
                tokio::spawn(serve(connection, Arc::clone(&shared)));
            }
        });
        Self { address, held, _server: AbortOnDropHandle::new(server) }
    }

    /// Puts off the next mails.
    pub fn be_busy(&self, mails: usize) {
        self.held.lock().unwrap().busy = mails;
    }

    /// Takes the next mails and hangs up instead of saying so.
    pub fn be_silent(&self, mails: usize) {
        self.held.lock().unwrap().silent = mails;
    }

    pub fn mails(&self) -> Vec<Mail> {
        self.held.lock().unwrap().mails.clone()
    }

    pub fn connections(&self) -> usize {
        self.held.lock().unwrap().connections
    }

    pub fn is_busy(&self) -> bool {
        self.held.lock().unwrap().busy > 0
    }

    /// The mail number `count` (from 1), when it has come.
    pub async fn mail(&self, count: usize) -> Mail {
        eventually(&format!("{count} mails in {PATIENCE:?}"), async || self.mails().len() >= count).await;
        self.mails()[count - 1].clone()
    }
}

async fn serve(connection: TcpStream, held: Arc<Mutex<Held>>) -> Option<()> {
    let (reading, mut writing) = connection.into_split();
    let mut lines = BufReader::new(reading).lines();
    let mut to = String::new();
    writing.write_all(b"220 sink\r\n").await.ok()?;
    loop {
        let line = lines.next_line().await.ok()??;
        let word = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let answer = match word.as_str() {
            "EHLO" => "250-sink\r\n250 8BITMIME",
            "RCPT" if line.contains("refused@") => "550 no such mailbox",
            "RCPT" => {
                to = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
                "250 ok"
            }
            "DATA" => {
                let busy = {
                    let mut held = held.lock().unwrap();
                    let busy = held.busy > 0;
                    held.busy = held.busy.saturating_sub(1);
                    busy
                };
                if busy {
                    "451 come again"
                } else {
                    writing.write_all(b"354 go\r\n").await.ok()?;
                    let mut raw = String::new();
                    loop {
                        let line = lines.next_line().await.ok()??;
                        if line == "." {
                            break;
                        }
                        raw.push_str(&line);
                        raw.push_str("\r\n");
                    }
                    let mut held = held.lock().unwrap();
                    held.mails.push(Mail::of(std::mem::take(&mut to), &raw));
                    if held.silent > 0 {
                        held.silent -= 1;
                        return None;
                    }
                    drop(held);
                    "250 taken"
                }
            }
            "QUIT" => "221 bye",
            _ => "250 ok",
        };
        writing.write_all(format!("{answer}\r\n").as_bytes()).await.ok()?;
    }
}
