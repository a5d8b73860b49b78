//! The simulated WhatsApp beside us: a process of its own, as WhatsApp would be, spoken to over its control API.

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// A running simulator. It ends with this value.
pub struct Network {
    process: Child,
    addresses: Addresses,
    http: reqwest::Client,
}

#[derive(Deserialize)]
struct Addresses {
    ws_url: String,
    control_url: String,
}

/// A message that a simulated phone decrypted.
#[derive(Debug, Deserialize)]
pub struct PhoneMessage {
    /// Its text.
    pub text: String,
}

/// A connection that a device had, or was refused.
#[derive(Debug, Clone, Deserialize)]
pub struct Connection {
    /// Counts all connections, from 1.
    pub id: u64,
    /// The device; none before a login.
    #[serde(default)]
    pub jid: Option<String>,
    /// The pattern of its handshake, if that was done.
    #[serde(default)]
    pub pattern: Option<String>,
    /// When it was opened, unix milliseconds.
    pub since: i64,
    /// When it ended, unix milliseconds.
    #[serde(default)]
    pub ended: Option<i64>,
    /// Why it ended.
    #[serde(default)]
    pub reason: Option<String>,
}

#[derive(Deserialize)]
struct PhoneView {
    phone: String,
    companions: Vec<CompanionView>,
}

#[derive(Deserialize)]
struct CompanionView {
    queued: usize,
}

/// What WhatsApp accepted from companions and phones.
#[derive(Debug, Deserialize)]
pub struct Accepted {
    /// Stanzas.
    pub total: usize,
    /// Distinct (device, id).
    pub distinct: usize,
}

impl Network {
    /// Starts the `simulator` binary that was built beside this one.
    pub async fn start() -> Result<Self> {
        let this = std::env::current_exe()?;
        // Beside this program; a test lies one folder deeper.
        let binary = this
            .ancestors()
            .skip(1)
            .take(2)
            .map(|folder| folder.join("simulator"))
            .find(|file| file.is_file())
            .context("there is no simulator beside this program")?;
        let mut process = Command::new(&binary)
            .args(["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"])
            .env("LOG_LEVEL", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the simulator does not start")?;
        let stdout = process.stdout.take().context("the simulator has no standard output")?;
        let line = timeout(Duration::from_secs(20), BufReader::new(stdout).lines().next_line())
            .await
            .context("the simulator did not say its addresses within 20 s")??
            .context("the simulator ended at once")?;
        let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).no_proxy().build()?;
        Ok(Self { process, addresses: serde_json::from_str(&line)?, http })
    }

    /// Where workers dial.
    pub fn ws_url(&self) -> &str {
        &self.addresses.ws_url
    }

    /// Where the control API is.
    pub fn control_url(&self) -> &str {
        &self.addresses.control_url
    }

    /// A new phone with its account; `auto_reply` is what it answers to each message.
    pub async fn new_phone(&self, phone: &str, push_name: &str, auto_reply: Option<&str>) -> Result<()> {
        let body = json!({ "phone": phone, "push_name": push_name, "auto_read": true, "auto_reply": auto_reply });
        self.post::<Value>("phones", &body).await.map(drop)
    }

    /// Switches a phone off, or on again: off, it takes nothing that comes, and nobody gets a receipt.
    pub async fn switch_off(&self, phone: &str, offline: bool) -> Result<()> {
        self.configure(phone, &json!({ "offline": offline })).await
    }

    /// Changes how a phone behaves.
    pub async fn configure(&self, phone: &str, settings: &Value) -> Result<()> {
        let response = self.http.patch(self.url(&format!("phones/{phone}"))).json(settings).send().await?;
        read::<Value>(response).await.map(drop)
    }

    /// The phone scans a QR code.
    pub async fn scan(&self, phone: &str, qr: &str) -> Result<()> {
        self.post::<Value>(&format!("phones/{phone}/scan"), &json!({ "qr": qr })).await.map(drop)
    }

    /// The phone of an account that is protected by a passkey scans a QR code, and WhatsApp asks for an assertion with these
    /// options. Gives, once the device is linked, its `jid`, the `code` that the phone showed and the `assertion` that came.
    pub async fn scan_with_passkey(&self, phone: &str, qr: &str, request_options: &Value) -> Result<Value> {
        let order = json!({ "qr": qr, "request_options": request_options.to_string() });
        self.post(&format!("phones/{phone}/scan-with-passkey"), &order).await
    }

    /// Somebody types a code into the phone.
    pub async fn enter_code(&self, phone: &str, code: &str) -> Result<()> {
        self.post::<Value>(&format!("phones/{phone}/enter-code"), &json!({ "code": code })).await.map(drop)
    }

    /// What a phone received and decrypted.
    pub async fn messages(&self, phone: &str) -> Result<Vec<PhoneMessage>> {
        let response = self.http.get(self.url(&format!("phones/{phone}/messages"))).send().await?;
        read(response).await
    }

    /// A phone writes `count` messages; with more than one, each text gets ` #n`. `id` chooses the first's id.
    pub async fn write(&self, from: &str, to: &str, text: &str, count: usize, id: Option<&str>) -> Result<()> {
        let body = json!({ "to": to, "text": text, "count": count, "id": id });
        self.post::<Value>(&format!("phones/{from}/messages"), &body).await.map(drop)
    }

    /// How many stanzas wait for the companions of an account to acknowledge them.
    pub async fn unacknowledged(&self, phone: &str) -> Result<usize> {
        let phones: Vec<PhoneView> = read(self.http.get(self.url("phones")).send().await?).await?;
        let phone = phones.into_iter().find(|view| view.phone == phone).context("no such phone")?;
        Ok(phone.companions.iter().map(|companion| companion.queued).sum())
    }

    /// The connections that a device has, had, or was refused, oldest first.
    pub async fn connections_of(&self, device: &str) -> Result<Vec<Connection>> {
        let standing: Vec<Connection> = read(self.http.get(self.url("connections")).send().await?).await?;
        // Asked for afterwards: what ends in between is in both.
        let ended: Vec<Connection> = read(self.http.get(self.url("connections/ended")).send().await?).await?;
        let all = standing.into_iter().chain(ended).filter(|one| one.jid.as_deref() == Some(device));
        let by_id: BTreeMap<u64, Connection> = all.map(|one| (one.id, one)).collect();
        Ok(by_id.into_values().collect())
    }

    /// Gives WhatsApp another static key.
    pub async fn rotate_static_key(&self) -> Result<()> {
        let response = self.http.post(self.url("rotate-static-key")).send().await?;
        if !response.status().is_success() {
            bail!("the simulator answered {}", response.status());
        }
        Ok(())
    }

    /// Connections that have ended so far.
    pub async fn ended_connections(&self) -> Result<usize> {
        let ended: Vec<Value> = read(self.http.get(self.url("connections/ended?limit=10000")).send().await?).await?;
        Ok(ended.len())
    }

    /// Why connections have ended so far.
    pub async fn end_reasons(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Ended {
            reason: String,
        }
        let ended: Vec<Ended> = read(self.http.get(self.url("connections/ended?limit=10000")).send().await?).await?;
        Ok(ended.into_iter().map(|one| one.reason).collect())
    }

    /// The public key of the root that the simulator's certificates go back to, in base64.
    pub async fn root_key(&self) -> Result<String> {
        let root: Value = read(self.http.get(self.url("root")).send().await?).await?;
        root["public_key"].as_str().map(str::to_owned).context("the simulator has no root")
    }

    /// Hurts stanzas by a plan from now on.
    pub async fn plan_faults(&self, plan: &Value) -> Result<()> {
        read::<Value>(self.http.put(self.url("fault-plan")).json(plan).send().await?).await.map(drop)
    }

    /// Ends the plan, and gives its counts.
    pub async fn end_fault_plan(&self) -> Result<Value> {
        read(self.http.delete(self.url("fault-plan")).send().await?).await
    }

    /// What WhatsApp accepted of a device, oldest first, repeats included.
    pub async fn accepted_of(&self, device: &str) -> Result<Vec<Value>> {
        read(self.http.get(self.url(&format!("accepted?sender={device}&limit=100000"))).send().await?).await
    }

    /// Has something go wrong for a device: `fault`, `login-failures`, `nacks` or `garble`.
    pub async fn hurt(&self, device: &str, how: &str, order: &Value) -> Result<()> {
        let response = self.http.post(self.url(&format!("devices/{device}/{how}"))).json(order).send().await?;
        if !response.status().is_success() {
            bail!("the simulator answered {}: {}", response.status(), response.text().await?);
        }
        Ok(())
    }

    /// Unlinks a companion.
    pub async fn unlink(&self, phone: &str, device: u16) -> Result<()> {
        let response = self.http.delete(self.url(&format!("phones/{phone}/companions/{device}"))).send().await?;
        if !response.status().is_success() {
            bail!("the simulator answered {}: {}", response.status(), response.text().await?);
        }
        Ok(())
    }

    /// Messages that WhatsApp accepted: all, and distinct ids.
    pub async fn accepted(&self) -> Result<Accepted> {
        read(self.http.get(self.url("accepted/summary")).send().await?).await
    }

    /// Ends the simulator.
    pub async fn stop(mut self) -> Result<()> {
        self.process.kill().await?;
        Ok(())
    }

    fn url(&self, path: &str) -> String {
        format!("{}/control/v1/{path}", self.addresses.control_url)
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        read(self.http.post(self.url(path)).json(body).send().await?).await
    }
}

async fn read<T: DeserializeOwned>(response: reqwest::Response) -> Result<T> {
    let status = response.status();
    if !status.is_success() {
        bail!("the simulator answered {status}: {}", response.text().await?);
    }
    Ok(response.json().await?)
}
