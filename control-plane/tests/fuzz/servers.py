"""What the fuzzer runs against: the programs as they are installed, beside a simulated WhatsApp, a mailbox and a receiver of
webhooks. All on free ports of the loopback, with their data in a temporary folder."""

import base64
import contextlib
import email
import email.policy
import glob
import http.server
import json
import os
import re
import secrets
import shutil
import socket
import socketserver
import sqlite3
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import requests

PATIENCE = 30
# Workers: sessions run on the first; the second is there for operators to drain.
WORKERS = ["worker-1", "worker-2"]
METRICS_TOKEN = secrets.token_hex(16)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, probe, patience=PATIENCE):
    """What `probe` gives once it gives something."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = probe()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(what)


class Mailbox:
    """An SMTP server that keeps what it gets, by recipient."""

    def __init__(self):
        mails = self.mails = {}
        came = self.came = threading.Condition()

        class Conversation(socketserver.StreamRequestHandler):
            def say(self, line):
                self.wfile.write(line.encode() + b"\r\n")

            def handle(self):
                self.say("220 mailbox")
                recipient = None
                while line := self.rfile.readline():
                    word = line[:4].upper()
                    if word == b"DATA":
                        self.say("354 go on")
                        lines = iter(self.rfile.readline, b".\r\n")
                        letter = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
                        with came:
                            mails.setdefault(recipient, []).append(letter.get_body(("plain",)).get_content())
                            came.notify_all()
                    elif word == b"RCPT":
                        recipient = line.split(b"<")[1].split(b">")[0].decode().lower()
                    elif word == b"QUIT":
                        return self.say("221 bye")
                    self.say("250 ok")

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Conversation)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = "smtp://127.0.0.1:%d" % self.server.server_address[1]

    def token(self, recipient, prefix, about=""):
        """The newest token of its kind that was mailed there, in a letter that says `about`. Each is given once."""
        end = time.monotonic() + PATIENCE
        with self.came:
            while time.monotonic() < end:
                letters = self.mails.get(recipient.lower(), [])
                for index in reversed(range(len(letters))):
                    token = re.search(rf"\b{prefix}_[\w-]+", letters[index])
                    if token and about in letters[index]:
                        del letters[index]
                        return token[0]
                self.came.wait(1)
        raise TimeoutError(f"no {prefix} was mailed")


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes every webhook."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


class Servers:
    """Everything, running. Ends with `stop`."""

    def __init__(self, bin_folder, database=None, store=None, redis=None):
        self.bin = Path(bin_folder).resolve()
        self.folder = tempfile.TemporaryDirectory(prefix="switchboard-fuzz-")
        self.processes = []
        self.mailbox = Mailbox()
        receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        self.webhook_url = "http://127.0.0.1:%d/hook" % receiver.server_address[1]
        self.phones = 0
        self.lock = threading.Lock()
        try:
            self.start(receiver.server_address[1], database, store, redis)
        except BaseException:
            self.stop()
            raise

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def start(self, receiver_port, database, store, redis):
        sim = self.run("simulator", {}, ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"], subprocess.PIPE)
        addresses = json.loads(sim.stdout.readline())
        self.simulator = addresses["control_url"] + "/control/v1/"
        public, internal = free_port(), free_port()
        self.url = f"http://127.0.0.1:{public}"
        join_token = secrets.token_hex(16)
        self.environment = {
            "LISTEN": f"127.0.0.1:{public}",
            "INTERNAL_LISTEN": f"127.0.0.1:{internal}",
            "DATABASE_URL": database or f"sqlite://{self.path('control-plane.db')}?mode=rwc",
            "MASTER_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
            "WORKER_JOIN_TOKEN": join_token,
            "OBJECT_STORE_URL": "file://" + self.path("objects"),
            "OUTBOUND_ALLOW_CIDRS": "127.0.0.1/32",
            "OUTBOUND_ALLOW_PORTS": str(receiver_port),
            "SMTP_URL": self.mailbox.url,
            "MAIL_FROM": "Switchboard <switchboard@example.com>",
            "EMAIL_VERIFICATION": "optional",
            "METRICS_TOKEN": METRICS_TOKEN,
            "RATE_LIMIT_AUTH": "off",
            "RATE_LIMIT_KEY": "off",
            "RATE_LIMIT_TENANT": "off",
            "RATE_LIMIT_ADDRESS": "off",
            "LOG_LEVEL": "warn",
        }
        if redis:
            self.environment["REDIS_URL"] = redis
        os.mkdir(self.path("objects"))
        self.run("control-plane", self.environment)
        until("the control plane is ready", lambda: self.answers(self.url + "/readyz"))
        for worker in WORKERS:
            port = free_port()
            settings = {
                "WORKER_ID": worker,
                "WORKER_LISTEN": f"127.0.0.1:{port}",
                "WORKER_JOIN_TOKEN": join_token,
                "WORKER_KEY_FILE": self.path(worker + ".key"),
                "CONTROL_PLANE_URL": f"http://127.0.0.1:{internal}",
                "DATA_PLANE_DATABASE_URL": store or f"sqlite://{self.path('store.db')}?mode=rwc",
                "WHATSAPP_WS_URL": addresses["ws_url"],
                "LOG_LEVEL": "warn",
            }
            self.run("data-plane-sandbox", settings)

    def run(self, program, environment, arguments=(), stdout=subprocess.DEVNULL):
        log = open(self.path(f"{program}-{len(self.processes)}.log"), "wb")
        system = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        process = subprocess.Popen(
            [str(self.bin / program), *arguments],
            env=system | environment,
            cwd=self.folder.name,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=log,
            text=stdout == subprocess.PIPE,
        )
        self.processes.append((program, process))
        return process

    @staticmethod
    def answers(url):
        try:
            return requests.get(url, timeout=2).ok
        except requests.RequestException:
            return False

    def operator(self, address, password):
        """Makes an operator, as one does by hand."""
        subprocess.run(
            [str(self.bin / "control-plane"), "create-operator", address, "--password-stdin"],
            env=self.environment,
            input=password + "\n",
            text=True,
            check=True,
            capture_output=True,
        )

    def sql(self, statement):
        """Changes the control plane's database, for what nobody can ask for."""
        url = self.environment["DATABASE_URL"]
        if not url.startswith("sqlite:"):
            psql = shutil.which("psql") or max(glob.glob("/usr/lib/postgresql/*/bin/psql"))
            subprocess.run([psql, url, "--quiet", "--command", statement], check=True, capture_output=True)
            return
        with contextlib.closing(sqlite3.connect(self.path("control-plane.db"), timeout=PATIENCE)) as database, database:
            database.execute(statement)

    def phone(self, path, body):
        """Asks the simulator for something."""
        answer = requests.post(self.simulator + path, json=body, timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()

    def new_phone(self):
        with self.lock:
            self.phones += 1
            number = str(15550100000 + self.phones)
        self.phone("phones", {"phone": number})
        return number

    def ended(self):
        """The programs that ended by themselves."""
        return [program for program, process in self.processes if process.poll() is not None]

    def logs(self):
        return {file.name: file.read_text(errors="replace") for file in Path(self.folder.name).glob("*.log")}

    def stop(self):
        for _, process in reversed(self.processes):
            process.terminate()
        for _, process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        self.folder.cleanup()

