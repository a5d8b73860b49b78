"""Failures that are the check's mistake about us, each with its reason.

A check knows the document only: what no schema can say, it takes for promised. Each entry names the operations (all, if
none), the check's failure, and the problem that was answered, so that nothing else passes under it.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Exception_:
    failure: str
    """The failure's class."""
    problem: str
    """The slug of the problem that was answered."""
    reason: str
    wrong: str = ""
    """What is wrong with each field that is named, as `pointer:code`, if anything is given."""
    operations: frozenset = frozenset()
    """In these alone, if any are given."""


EXCEPTIONS = [
    Exception_(
        "RejectedPositiveData",
        "idempotency-mismatch",
        "the same key with another body must be refused, and the fuzzer draws the same short keys again",
    ),
    Exception_(
        "RejectedPositiveData",
        "bad-request",
        "a cursor is opaque: only the server knows which ones it gave for this list",
        wrong=r"cursor:cursor",
    ),
    Exception_(
        "RejectedPositiveData",
        "precondition-failed",
        "a drawn If-Match is the tag of no version, and which ones are stands in no schema",
        operations=frozenset({"update_session", "update_tenant", "update_webhook"}),
    ),
    Exception_(
        "RejectedPositiveData",
        "mail-token-refused",
        "which tokens were mailed stands in no schema",
    ),
    Exception_(
        "RejectedPositiveData",
        "validation",
        "a time must lie in the future, and a schema knows no clock",
        wrong=r"/expires_at:past",
        operations=frozenset({"create_api_key", "rotate_api_key"}),
    ),
    Exception_(
        "RejectedPositiveData",
        "validation",
        "JSON Schema has no format for networks, so the drawn ones are just text",
        wrong=r"/allowed_ips/\d+:format",
        operations=frozenset({"create_api_key"}),
    ),
    Exception_(
        "RejectedPositiveData",
        "validation",
        "which sessions the tenant has stands in no schema",
        wrong=r"/session_ids/\d+:unknown",
        operations=frozenset({"create_api_key"}),
    ),
    Exception_(
        "RejectedPositiveData",
        "validation",
        "a key that is limited to some sessions has no scope beyond sessions: no schema compares two fields",
        wrong=r"/scopes:limited-to-sessions",
        operations=frozenset({"create_api_key"}),
    ),
    Exception_(
        "RejectedPositiveData",
        "validation",
        "what browsers add to a credential is ignored, but like all text it holds no U+0000",
        wrong=r"/credential(/.*)?:nul-character",
        operations=frozenset({"answer_session_passkey"}),
    ),
    Exception_(
        "RejectedPositiveData",
        "validation",
        "a key makes sessions of its own network only, and the schema is one for all keys",
        wrong=r"/network:network-of-key",
        operations=frozenset({"create_session"}),
    ),
    Exception_(
        "RejectedPositiveData",
        "bad-request",
        "a period must have a beginning before its end and not too far from it: no schema compares two parameters",
        wrong=r"from:(order|too-long)",
        operations=frozenset({"get_usage", "get_usage_of_tenant"}),
    ),
    Exception_(
        "RejectedPositiveData",
        "validation",
        "which plans there are, and in which versions, stands in no schema",
        wrong=r"/plan:unknown-plan",
        operations=frozenset({"assign_plan", "begin_trial"}),
    ),
    Exception_(
        "RejectedPositiveData",
        "validation",
        "each plan is there once, and a schema doesn't compare one field of each",
        wrong=r":twice",
        operations=frozenset({"apply_plans"}),
    ),
]


def excepted(operation, failure, answer):
    """Whether the failure is one of them."""
    slug = str(answer.get("type", "")).rsplit("/", 1)[-1]
    wrong = [f"{error['pointer']}:{error['code']}" for error in answer.get("errors", [])]
    return any(
        failure == one.failure
        and slug == one.problem
        and (not one.wrong or wrong and all(re.fullmatch(one.wrong, each) for each in wrong))
        and (not one.operations or operation in one.operations)
        for one in EXCEPTIONS
    )
