"""Who calls, and what there is to be called upon: a tenant with an owner, and things made when they are asked for.

Everything is made through the API, as a tenant would. `Recipes` says for each operation what a request needs so that it can
succeed: the ids of its path, the fields of its body that no schema can know, and who asks.
"""

import base64
import hashlib
import hmac
import itertools
import json
import secrets
import struct
import threading
import time

import requests

from servers import WORKERS, until

PASSWORD = "correct horse battery"
SCOPES = ["sessions:read", "sessions:write", "messages:read", "messages:send", "webhooks", "usage:read"]
OPERATOR = "operator@example.com"
# What WhatsApp asks the owner of a passkey for.
CHALLENGE = b"challenge"
RELYING_PARTY = "web.whatsapp.com"


class Refused(Exception):
    """A request that prepares something was refused."""


class Api:
    """Requests that must succeed."""

    def __init__(self, base, token=None):
        self.base, self.http = base + "/api/v1/", requests.Session()
        if token:
            self.http.headers["Authorization"] = "Bearer " + token

    def call(self, method, path, body=None):
        answer = self.http.request(method, self.base + path, json=body, timeout=30)
        if not answer.ok:
            raise Refused(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def get(self, path):
        return self.call("GET", path)

    def post(self, path, body=None):
        return self.call("POST", path, body)


def code_of(secret, step=0):
    """A code of an authenticator (RFC 6238, six digits)."""
    key = base64.b32decode(secret + "=" * (-len(secret) % 8))
    digest = hmac.digest(key, struct.pack(">Q", int(time.time()) // 30 + step), hashlib.sha1)
    at = digest[-1] & 15
    return "%06d" % ((struct.unpack(">I", digest[at : at + 4])[0] & 0x7FFFFFFF) % 1_000_000)


def base64url(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def assertion():
    """What the owner's passkey says to that: the simulator looks at all of it but the signature."""
    said = {"type": "webauthn.get", "challenge": base64url(CHALLENGE), "origin": f"https://{RELYING_PARTY}"}
    user_was_there = bytes([1, 0, 0, 0, 1])
    response = {
        "clientDataJSON": base64url(json.dumps(said).encode()),
        "authenticatorData": base64url(hashlib.sha256(RELYING_PARTY.encode()).digest() + user_was_there),
        "signature": base64url(b"signature"),
    }
    return {"id": base64url(b"key"), "rawId": base64url(b"key"), "type": "public-key", "response": response}


def signed_up(servers, address):
    """Asks for an account; gives the token of its mail."""
    account = {"email": address, "password": PASSWORD, "name": "Ada", "tenant_name": "Acme"}
    Api(servers.url).post("auth/signup", account)
    return servers.mailbox.token(address, "sbm")


class Person:
    """Somebody with an account, logged in."""

    numbers = itertools.count(1)

    def __init__(self, servers, invited_by=None):
        self.servers = servers
        self.email = f"person-{next(self.numbers)}@example.com"
        account = {"password": PASSWORD, "name": "Ada"}
        if invited_by:
            invited_by.api.post("invitations", {"email": self.email, "role": "admin"})
            token = servers.mailbox.token(self.email, "sbi")
            Api(servers.url).post("invitations/accept", {"token": token, **account})
        else:
            Api(servers.url).post("auth/verify-email", {"token": signed_up(servers, self.email)})
        self.log_in()
        me = self.api.get("me")
        self.id, self.tenant = me["id"], me["tenant"]["id"]

    def take(self, tokens):
        self.token, self.refresh = tokens["access_token"], tokens["refresh_token"]
        self.api = Api(self.servers.url, self.token)

    def log_in(self):
        self.take(Api(self.servers.url).post("auth/login", {"email": self.email, "password": PASSWORD}))

    def with_second_factor(self):
        """Switches it on; gives recovery codes."""
        secret = self.api.post("me/totp", {"password": PASSWORD})["secret"]
        return self.api.post("me/totp/confirm", {"code": code_of(secret)})["recovery_codes"]


class World:
    """A tenant with an owner. What it holds is made at its first use and kept until it is `spent`."""

    def __init__(self, servers):
        self.servers = servers
        self.owner = Person(servers)
        self.things = {}
        self.lock = threading.RLock()

    def thing(self, name, make):
        with self.lock:
            if name not in self.things:
                self.things[name] = make()
            return self.things[name]

    def spend(self):
        """What was made may have been used up: make it again."""
        with self.lock:
            for name in [name for name in self.things if name not in ("key", "connected")]:
                del self.things[name]

    @property
    def key(self):
        body = {"name": "fuzz", "network": "sandbox", "scopes": SCOPES}
        return self.thing("key", lambda: self.owner.api.post("api-keys", body)["key"])

    def make(self, name, path, body):
        return self.thing(name, lambda: self.owner.api.post(path, body))

    def session(self, start=False):
        body = {"name": "s", "network": "sandbox", "start": start}
        session = self.make("started" if start else "session", "sessions", body)["id"]
        return session

    def pairing(self):
        """A session that shows its code."""
        session = self.session(start=True)
        until("a code is shown", lambda: self.owner.api.get(f"sessions/{session}/status")["status"] == "pairing")
        return session

    def scanned(self, how, **order):
        session = self.pairing()
        qr = self.owner.api.get(f"sessions/{session}/qr")["qr"]
        phone = self.servers.new_phone()
        path, body = f"phones/{phone}/{how}", {"qr": qr, **order}
        if how == "scan":
            self.servers.phone(path, body)
        else:
            # It answers when the code has been compared.
            threading.Thread(target=lambda: quietly(self.servers.phone, path, body), daemon=True).start()
        return session

    def connected(self):
        def make():
            session = self.scanned("scan")
            self.things.pop("started")
            until("it is connected", lambda: self.owner.api.get(f"sessions/{session}/status")["status"] == "connected")
            return session

        return self.thing("connected", make)

    def passkey(self):
        """A session whose phone asks for a passkey."""

        def make():
            options = json.dumps({"challenge": base64url(CHALLENGE), "rpId": RELYING_PARTY})
            session = self.scanned("scan-with-passkey", request_options=options)
            until(
                "a passkey is asked for",
                lambda: self.owner.api.get(f"sessions/{session}/status")["status"] == "passkey_required",
            )
            return session

        return self.thing("passkey", make)

    def webhook(self):
        """The tenant's one."""
        there = self.owner.api.get("webhooks")["data"]
        body = {"url": self.servers.webhook_url, "event_types": ["*"]}
        return (there[0] if there else self.owner.api.post("webhooks", body))["id"]

    def without_webhook(self):
        for webhook in self.owner.api.get("webhooks")["data"]:
            self.owner.api.call("DELETE", "webhooks/" + webhook["id"])

    def delivery(self):
        """A delivery that has come to its end."""

        def make():
            webhook = self.webhook()
            self.owner.api.post(f"webhooks/{webhook}/test")

            def ended():
                deliveries = self.owner.api.get(f"webhooks/{webhook}/deliveries")["data"]
                return next((one["id"] for one in deliveries if one["status"] == "succeeded"), None)

            return until("a webhook is delivered", ended)

        return self.thing("delivery", make)

    def job(self, state):
        """A job of the tenant's that was given up, or waits: no call makes one, nor says which waits."""

        def make():
            job = "job_0" + "".join(secrets.choice("0123456789abcdefghjkmnpqrstvwxyz") for _ in range(25))
            delivery, now = self.delivery(), int(time.time() * 1000)
            run_at, attempts, finished_at = (now, 8, now) if state == "dead" else (now + 3_600_000, 0, "NULL")
            self.servers.sql(f"UPDATE deliveries SET status = 'failed' WHERE id = '{delivery}'")
            self.servers.sql(
                "INSERT INTO jobs (id, tenant_id, kind, lane, state, run_at, attempts, max_attempts, subject, created_at, finished_at) "
                f"VALUES ('{job}', '{self.owner.tenant}', 'webhooks.deliver', '{job}', '{state}', {run_at}, {attempts}, 8, "
                f"'{delivery}', {now}, {finished_at})"
            )
            return job

        return self.thing(state + " job", make)

    def message(self):
        body = {"session_id": self.connected(), "to": "+15550109999", "type": "text", "text": {"body": "Hi"}}
        return self.make("message", "messages/send", body)["id"]

    def invitation_token(self):
        def make():
            address = f"invited-{next(Person.numbers)}@example.com"
            self.owner.api.post("invitations", {"email": address, "role": "developer"})
            return self.servers.mailbox.token(address, "sbi")

        return self.thing("invitation token", make)

    def member(self):
        """Somebody else of this tenant, logged in there."""

        return self.thing("member", lambda: Person(self.servers, invited_by=self.owner))

    def offered(self):
        """A member to whom the tenant is offered."""

        def make():
            member = self.member()
            self.owner.api.post("tenant/ownership-offer", {"user_id": member.id, "password": PASSWORD})
            return member

        return self.thing("offer", make)

    def export(self):
        def make():
            export = self.owner.api.post("tenant/exports", {"password": PASSWORD})["id"]
            until("the archive is made", lambda: self.owner.api.get(f"tenant/exports/{export}")["status"] == "ready")
            return export

        return self.thing("export", make)

    def second_factor(self):
        return self.thing("second factor", self.owner.with_second_factor)

    def operator(self):
        """An operator of this world's own: its address, and requests of its."""

        def make():
            body = {"email": f"operator-{next(Person.numbers)}@example.com", "password": PASSWORD}
            self.servers.operator(body["email"], PASSWORD)
            token = Api(self.servers.url).post("admin/auth/login", body)["access_token"]
            return body, token, Api(self.servers.url, token)

        return self.thing("operator", make)

    def login(self):
        """Another login of the owner's."""

        def make():
            body = {"email": self.owner.email, "password": PASSWORD}
            Api(self.servers.url).post("auth/login", body)
            logins = self.owner.api.get("auth/logins")["data"]
            return next(login["id"] for login in logins if not login["current"])

        return self.thing("login", make)


def quietly(call, *arguments):
    try:
        call(*arguments)
    except requests.RequestException:
        pass


class Recipes:
    """What a request of each operation needs to succeed: `path`, `body` and `token`, all optional."""

    def __init__(self, servers):
        self.servers = servers
        self.lock = threading.Lock()
        servers.operator(OPERATOR, PASSWORD)

    def operator(self):
        return Api(self.servers.url).post("admin/auth/login", {"email": OPERATOR, "password": PASSWORD})["access_token"]

    def make(self, operation, world):
        """The recipe of this operation in this world."""
        made = getattr(self, operation, None)
        recipe = made(world) if made else self.by_resource(operation, world)
        return {"token": world.owner.token, **recipe}

    def by_resource(self, operation, world):
        """Most paths name one thing, whose kind stands in the operation's name."""
        if operation in ("create_session", "create_webhook", "create_invitation") or operation.startswith("list_"):
            return {}
        for kind, make in {
            "api_key": lambda: world.make("api key", "api-keys", {"name": "k", "network": "sandbox", "scopes": SCOPES})["id"],
            "invitation": lambda: world.make(
                "invitation", "invitations", {"email": f"invited-{next(Person.numbers)}@example.com", "role": "viewer"}
            )["id"],
            "session": world.session,
            "webhook": world.webhook,
            "member": lambda: world.member().id,
            "worker": lambda: WORKERS[-1],
            "export": world.export,
            "message": world.message,
        }.items():
            if kind in operation:
                return {"path": make()}
        return {}

    # Accounts

    def sign_up(self, world):
        return {"body": {"email": f"new-{next(Person.numbers)}@example.com"}}

    def log_in(self, world):
        return {"body": {"email": world.owner.email, "password": PASSWORD, "tenant_id": world.owner.tenant}}

    def log_in_with_code(self, world):
        codes = world.second_factor()
        first = Api(self.servers.url).post("auth/login", {"email": world.owner.email, "password": PASSWORD})
        challenge = first["challenge_token"]
        return {"body": {"challenge_token": challenge, "code": codes.pop(), "tenant_id": world.owner.tenant}}

    def refresh_tokens(self, world):
        return {"body": {"refresh_token": world.owner.refresh}}

    def log_out(self, world):
        return {"body": {"refresh_token": world.owner.refresh}}

    def forgot_password(self, world):
        return {"body": {"email": world.owner.email}}

    def reset_password(self, world):
        Api(self.servers.url).post("auth/password/forgot", {"email": world.owner.email})
        return {"body": {"token": self.servers.mailbox.token(world.owner.email, "sbm", "password")}}

    def verify_email(self, world):
        address = f"new-{next(Person.numbers)}@example.com"
        return {"body": {"token": world.thing("mailed", lambda: signed_up(self.servers, address))}}

    def switch_tenant(self, world):
        return {"body": {"tenant_id": world.owner.tenant}}

    def end_login(self, world):
        return {"path": world.login()}

    def change_password(self, world):
        return {"body": {"current_password": PASSWORD}}

    def enrol_second_factor(self, world):
        return {"body": {"password": PASSWORD}}

    def confirm_second_factor(self, world):
        secret = world.make("enrolled", "me/totp", {"password": PASSWORD})["secret"]
        return {"body": {"code": code_of(secret)}}

    def disable_second_factor(self, world):
        world.second_factor()
        return {"body": {"password": PASSWORD}}

    renew_recovery_codes = disable_second_factor

    # Tenants

    def accept_invitation(self, world):
        return {"body": {"token": world.invitation_token(), "name": "Grace", "password": PASSWORD}}

    def leave_tenant(self, world):
        return {"token": world.member().token}

    def delete_tenant(self, world):
        return {"body": {"password": PASSWORD}}

    def keep_tenant(self, world):
        world.make("deletion", "tenant/deletion", {"password": PASSWORD})
        return {}

    def create_export(self, world):
        return {"body": {"password": PASSWORD}}

    def offer_ownership(self, world):
        return {"body": {"user_id": world.member().id, "password": PASSWORD}}

    def get_ownership_offer(self, world):
        world.offered()
        return {}

    withdraw_ownership_offer = get_ownership_offer

    def accept_ownership(self, world):
        return {"token": world.offered().token, "body": {"password": PASSWORD}}

    # Sessions and messages

    def get_session_qr(self, world):
        return {"path": world.pairing()}

    def create_pairing_code(self, world):
        return {"path": world.pairing(), "body": {"phone": "+" + self.servers.new_phone()}}

    def get_session_passkey(self, world):
        return {"path": world.passkey()}

    def answer_session_passkey(self, world):
        return {"path": world.passkey(), "body": {"stage": "assertion", "credential": assertion()}}

    def restart_session(self, world):
        return {"path": world.session(start=True)}

    stop_session = restart_session

    def logout_session(self, world):
        return {"path": world.connected()}

    def send_message(self, world):
        return {"body": {"session_id": world.connected(), "to": "+15550109999"}}

    def create_webhook(self, world):
        world.without_webhook()
        return {"body": {"url": self.servers.webhook_url}}

    def update_webhook(self, world):
        return {"path": world.webhook(), "body": {"url": self.servers.webhook_url}}

    def list_deliveries(self, world):
        world.delivery()
        return {"path": world.webhook()}

    def replay_delivery(self, world):
        return {"path": world.delivery()}

    def download_export(self, world):
        return {"path": world.export()}

    # Operators

    def log_in_operator(self, world):
        return {"body": {"email": OPERATOR, "password": PASSWORD}}

    def log_in_operator_with_code(self, world):
        account, _, api = world.operator()
        secret = api.post("admin/me/totp", {"password": PASSWORD})["secret"]
        codes = api.post("admin/me/totp/confirm", {"code": code_of(secret)})["recovery_codes"]
        first = Api(self.servers.url).post("admin/auth/login", account)
        return {"body": {"challenge_token": first["challenge_token"], "code": codes[0]}}

    def enrol_operator_second_factor(self, world):
        return {"operator": world.operator()[1], "body": {"password": PASSWORD}}

    def confirm_operator_second_factor(self, world):
        _, token, api = world.operator()
        secret = api.post("admin/me/totp", {"password": PASSWORD})["secret"]
        return {"operator": token, "body": {"code": code_of(secret)}}

    def disable_operator_second_factor(self, world):
        recipe = self.confirm_operator_second_factor(world)
        world.operator()[2].post("admin/me/totp/confirm", recipe["body"])
        return {"operator": recipe["operator"], "body": {"password": PASSWORD}}

    renew_operator_recovery_codes = disable_operator_second_factor

    def get_tenant_as_operator(self, world):
        return {"path": world.owner.tenant}

    suspend_tenant = resume_tenant = get_usage_of_tenant = get_tenant_as_operator
    get_plan_of_tenant = unassign_plan = end_trial = override_plan = replace_overrides = get_tenant_as_operator

    def assign_plan(self, world):
        return {"path": world.owner.tenant, "body": {"plan": "free", "version": None}}

    def begin_trial(self, world):
        return {"path": world.owner.tenant, "body": {"plan": "free"}}

    def list_plan_versions(self, world):
        return {"path": "free"}

    def move_session(self, world):
        # Whatever the fuzzer has told the workers: both take sessions.
        operator = Api(self.servers.url, self.operator())
        for worker in WORKERS:
            operator.post(f"admin/workers/{worker}/uncordon")
        return {"path": world.connected(), "body": {"worker_id": None}}

    def redrive_job(self, world):
        return {"path": world.job("dead")}

    def cancel_job(self, world):
        return {"path": world.job("ready")}
