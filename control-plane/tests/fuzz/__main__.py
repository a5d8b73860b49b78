"""Every operation of the OpenAPI document, fuzzed by schemathesis with its default checks.

Each operation has a tenant of its own with fresh credentials, and gets another when a request has ended the first. In three of
four requests that the schema allows, ids and secrets are those of things that are there, so that requests come past the
door; the fourth stays as it was drawn. All the rest is the fuzzer's.

Ends with 1 if a check fails, or if an operation never succeeded, and prints what each operation answered.
"""

import argparse
import collections
import os
import random
import sys
import threading
import time

import schemathesis
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.meta import CoverageScenario, TestPhase

import servers
from exceptions import excepted
from world import Recipes, Refused, World

# A recipe that costs a mail, a phone or a hashed password isn't made for every request.
RECIPES_PER_OPERATION = 60
STATEFUL = "all operations in a row"
# What is everybody's, whatever the fuzzer draws: with another default plan no tenant could make what the others need.
EVERYBODY_S = {"apply_plans": {"default": "free", "trial": None}}
# Stands where credentials will be, until it is known which.
OURS = "ours"


def schemes_of(operation):
    """The kinds of credentials that it takes."""
    return {name for scheme in operation.definition.raw["security"] for name in scheme}


class Drive:
    """Gives each request its credentials, and counts the answers."""

    def __init__(self, running):
        self.servers = running
        self.recipes = Recipes(running)
        self.lock = threading.Lock()
        self.worlds, self.made, self.kept = {}, collections.Counter(), {}
        self.answers = collections.defaultdict(collections.Counter)
        self.turns = collections.Counter()
        self.unprepared = []
        self.findings = collections.Counter()

    def id_of(self, operation):
        return operation.definition.raw["operationId"]

    def world(self, name):
        if name not in self.worlds:
            self.worlds[name] = World(self.servers)
        return self.worlds[name]

    def recipe(self, operation, keys):
        """What the next request of the operation needs; the last one's, if nothing has become of that."""
        with self.lock:
            recipe = self.kept.get(operation)
            if recipe and (not recipe["spent"] or self.made[operation] >= RECIPES_PER_OPERATION):
                return recipe
            self.made[operation] += 1
        try:
            recipe = self.prepare(operation, keys)
        except (Refused, TimeoutError, KeyError) as error:
            # What the fuzzer did to this world (it wrote in it as it liked) is in the way.
            self.unprepared.append(f"{operation}: {error!r}")
            self.forget(operation)
            recipe = self.prepare(operation, keys)
        self.kept[operation] = recipe
        return recipe

    def prepare(self, operation, keys):
        world = self.world(operation)
        recipe = self.recipes.make(operation, world)
        return recipe | {"spent": False, "key": world.key if keys else None}

    def forget(self, operation):
        """Its world is of no use any more."""
        self.worlds.pop(operation, None)
        self.kept.pop(operation, None)

    def credentials(self, case, token, operator=None):
        if case.headers.get("Authorization") != OURS:
            return
        if "metrics_token" in schemes_of(case.operation):
            token = servers.METRICS_TOKEN
        if "operator" in schemes_of(case.operation):
            if operator is None:
                shared = self.kept.setdefault("operator", {})
                operator = shared["token"] = shared.get("token") or self.recipes.operator()
            token = operator
        if token.startswith("sb_") and self.turns["keys"] % 2:
            case.headers.pop("Authorization", None)
            case.headers["X-Api-Key"] = token
        else:
            case.headers["Authorization"] = "Bearer " + token

    def before_call(self, case):
        operation = self.id_of(case.operation)
        phase = case.meta.phase if case.meta else None
        if isinstance(case.body, dict) and not (case.meta and case.meta.is_negative_at(ParameterLocation.BODY)):
            case.body.update(EVERYBODY_S.get(operation, {}))
        if phase and phase.name == TestPhase.STATEFUL:
            return self.credentials(case, self.world(STATEFUL).owner.token)
        if phase and getattr(phase.data, "scenario", None) == CoverageScenario.UNSPECIFIED_HTTP_METHOD:
            return self.credentials(case, self.world(operation).owner.token)
        recipe = self.recipe(operation, keys="api_key" in schemes_of(case.operation))
        token = recipe["token"]
        self.turns[operation] += 1
        as_drawn = self.turns[operation] % 4 == 0
        if recipe["key"] and self.turns[operation] % 3 == 0:
            token = recipe["key"]
            self.turns["keys"] += 1
        self.credentials(case, token, recipe.get("operator"))
        if as_drawn or case.meta is None:
            return None
        if "path" in recipe and not case.meta.is_negative_at(ParameterLocation.PATH):
            case.path_parameters["id"] = recipe["path"]
        if "body" in recipe and isinstance(case.body, dict) and not case.meta.is_negative_at(ParameterLocation.BODY):
            case.body.update(recipe["body"])
        return None

    def after_call(self, case, response):
        operation = self.id_of(case.operation)
        if response.request.method.lower() != case.operation.method.lower():
            return
        with self.lock:
            self.answers[operation][response.status_code] += 1
        stateful = case.meta and case.meta.phase.name == TestPhase.STATEFUL
        if self.refuses_ours(case, response):
            self.forget(STATEFUL if stateful else operation)
            return
        if stateful:
            return
        succeeded = response.status_code < 300 and response.request.method != "GET"
        if succeeded and operation in self.kept:
            self.kept[operation]["spent"] = True
            self.world(operation).spend()
            if operation in ENDS_CREDENTIALS:
                self.worlds.pop(operation)
        if operation == "log_out_operator" and succeeded:
            self.forget("operator")

    def refuses_ours(self, case, response):
        """Whether our credentials don't hold any more: the fuzzer has ended them, here or through an operator's operation."""
        if response.status_code not in (401, 403) or not schemes_of(case.operation) or case.operation.path.startswith("/api/v1/admin/"):
            return False
        return response.json()["type"] in ("/problems/unauthenticated", "/problems/tenant-suspended")

    def filter_failure(self, failure, case, response):
        try:
            answer = response.json()
        except ValueError:
            answer = {}
        answer = answer if isinstance(answer, dict) else {}
        operation, name = self.id_of(case.operation), type(failure).__name__
        if excepted(operation, name, answer):
            return False
        wrong = " ".join(f"{one.get('pointer')}:{one.get('code')}" for one in answer.get("errors", []))
        with self.lock:
            self.findings[f"{operation}: {name}, answered {response.status_code} {answer.get('type', '')} {wrong}"] += 1
        return True

    def report(self, operations, began):
        """The table; gives the operations that never succeeded."""
        total = collections.Counter()
        print(f"\n{'operation':34}{'2xx':>7}{'4xx':>7}{'5xx':>7}   statuses")
        for operation in sorted(operations):
            counts = self.answers[operation]
            classes = collections.Counter()
            for status, count in counts.items():
                classes[status // 100] += count
            total += classes
            each = " ".join(f"{status}×{count}" for status, count in sorted(counts.items()))
            print(f"{operation:34}{classes[2]:>7}{classes[4]:>7}{classes[5]:>7}   {each}")
        print(f"{'all ' + str(len(operations)):34}{total[2]:>7}{total[4]:>7}{total[5]:>7}   in {time.monotonic() - began:.0f} s")
        for finding, count in sorted(self.findings.items()):
            print(f"{count:>5} {finding}")
        for line in self.unprepared[:20]:
            print("not prepared at the first try:", line[:200])
        return [name for name in sorted(operations) if not any(200 <= status < 300 for status in self.answers[name])]


# After these the tenant, the login or the password is another.
ENDS_CREDENTIALS = {
    "accept_ownership",
    "change_password",
    "confirm_second_factor",
    "delete_tenant",
    "disable_second_factor",
    "end_login",
    "keep_tenant",
    "leave_tenant",
    "log_in_with_code",
    "log_out",
    "refresh_tokens",
    "renew_recovery_codes",
    "reset_password",
    "suspend_tenant",
    "verify_email",
}


def main():
    arguments = argparse.ArgumentParser(prog="fuzz-api")
    arguments.add_argument("--bin", required=True, help="the folder of the programs")
    arguments.add_argument("--examples", type=int, default=200, help="for each operation")
    arguments.add_argument("--seed", type=int, default=None)
    arguments.add_argument("--jobs", type=int, default=1, help="threads; more than one trip over each other on CPython 3.11")
    arguments.add_argument("--database", help="postgres://…/name, instead of a file of SQLite")
    arguments.add_argument("--store", help="the workers' database, likewise")
    arguments.add_argument("--redis", help="redis://…")
    arguments.add_argument("--only", action="append", default=[], help="only this operation")
    arguments.add_argument("rest", nargs="*", help="more for schemathesis, after --")
    options = arguments.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"fuzz-api: {options.examples} examples an operation, --seed {seed}", flush=True)

    began = time.monotonic()
    running = servers.Servers(options.bin, options.database, options.store, options.redis)
    failed = True
    try:
        drive = Drive(running)
        hook(drive)
        # It leaves a cache where it runs.
        os.chdir(running.folder.name)
        failed = run(options, seed, drive, began)
        if ended := running.ended():
            failed = True
            print("ended by themselves:", ", ".join(ended))
    finally:
        if failed:
            for name, log in running.logs().items():
                print(f"--- the end of {name}\n{log[-3000:]}")
        running.stop()
    return failed


def hook(drive):
    """The library marks what it is given, and methods can't be."""

    @schemathesis.auth(refresh_interval=None)
    class Explicit:
        """Says that requests carry credentials of ours; `before_call` puts them in, once it knows which."""

        def get(self, case, context):
            return OURS if schemes_of(case.operation) else None

        def set(self, case, data, context):
            case.headers["Authorization"] = data

    @schemathesis.hook
    def before_call(context, case, kwargs):
        drive.before_call(case)

    @schemathesis.hook
    def after_call(context, case, response):
        drive.after_call(case, response)

    @schemathesis.hook
    def filter_failure(context, failure, case, response):
        return drive.filter_failure(failure, case, response)


def run(options, seed, drive, began):
    import requests
    from schemathesis.cli import schemathesis as command

    document = requests.get(drive.servers.url + "/openapi.json", timeout=30).json()
    operations = [one["operationId"] for item in document["paths"].values() for one in item.values()]
    if options.only:
        operations = options.only
    arguments = ["run", drive.servers.url + "/openapi.json", "--seed", str(seed), "--workers", str(options.jobs)]
    arguments += ["--max-examples", str(options.examples), "--generation-database", "none", "--no-color"]
    arguments += ["--continue-on-failure", "--suppress-health-check", "all"]
    for name in options.only:
        arguments += ["--include-operation-id", name]
    try:
        command.main(arguments + options.rest, standalone_mode=False)
        failed = False
    except SystemExit as end:
        failed = bool(end.code)
    missing = drive.report(operations, began)
    if missing:
        print("never succeeded:", ", ".join(missing))
    return failed or bool(missing)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
