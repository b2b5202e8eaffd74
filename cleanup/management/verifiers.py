"""The verbs about verifiers: whom a policy can ask and with which options, whom policies do ask, and tests.

`verifiers test` is the button *Test now* of the console: it asks the canaries, and remembers how it was.
"""

from __future__ import annotations

from typing import Any

from cleanup import operations
from cleanup.engine.errors import EngineError
from cleanup.management.output import DONE, SOME_SKIPPED, Answer
from cleanup.management.verbs import actor
from cleanup.models import VerifierCheck
from cleanup.operations.verifying import InUse, last_checks
from cleanup.verifiers import KINDS, canonical


def policies_verifiers(_: dict[str, Any]) -> Answer:
    kinds = [
        {
            "kind": name,
            "summary": kind.summary,
            "options": [
                {"name": option, "default": about.default, "meaning": about.meaning}
                for option, about in kind.options.items()
            ],
        }
        for name, kind in KINDS.items()
    ]
    return Answer(data={"verifiers": kinds}, lines=_lines())


def _lines() -> list[str]:
    lines = ["A file may go when all verifiers of its policy pass. Name one as KIND or KIND:NAME=VALUE,…"]
    for name, kind in KINDS.items():
        lines += ["", f"{name}: {kind.summary}"]
        for option, about in kind.options.items():
            default = f" (default {about.default})" if about.default else ""
            lines.append(f"    {option}: {about.meaning}{default}")
    return lines


def verifiers_list(_: dict[str, Any]) -> Answer:
    used = operations.verifiers_in_use()
    found = [(one, next(iter(last_checks(one.name, 1)), None)) for one in used]
    lines = [_line(one, check) for one, check in found]
    return Answer(
        data={"verifiers": [_plain(one, check) for one, check in found]},
        lines=lines or ["No policy asks a verifier. `cleanup policies verifiers` says whom it can ask."],
    )


def _plain(used: InUse, check: VerifierCheck | None) -> dict[str, Any]:
    return {
        "verifier": used.name,
        "policies": [policy.name for policy in used.policies],
        "canaries": used.canaries,
        "complaint": used.complaint,
        "last_check": None if check is None else _check(check),
    }


def _check(check: VerifierCheck) -> dict[str, Any]:
    return {
        "verifier": check.verifier,
        "sound": check.sound,
        "detail": check.detail,
        "at": check.at.isoformat(),
        "milliseconds": check.milliseconds,
        "asked_by": check.asked_by,
    }


def _line(used: InUse, check: VerifierCheck | None) -> str:
    by = ", ".join(policy.name for policy in used.policies)
    said = "never tested" if check is None else f"{_word(check)} {check.at.isoformat()}"
    return f"{used.name} (asked by {by}): {used.complaint or said}"


def _word(check: VerifierCheck) -> str:
    return "sound" if check.sound else "NOT SOUND"


def verifiers_test(options: dict[str, Any]) -> Answer:
    about = {"task_id": options["task"], "path": options["path"]}
    if options["all"]:
        if any(about.values()):
            raise operations.OperationRefused("a task or a file is asked about one verifier: name it")
        found = operations.check_verifiers(actor())
    else:
        name = canonical(options["verifier"])
        found = [(name, operations.check_verifier(name, actor(), **about))]
    sound = all(not isinstance(one, EngineError) and one.check.sound for _, one in found)
    return Answer(
        data={"sound": sound, "tests": [_tested(name, one) for name, one in found]},
        lines=[line for name, one in found for line in _said(name, one)] or ["No policy asks a verifier."],
        code=DONE if sound else SOME_SKIPPED,
    )


def _tested(name: str, found: operations.Tested | EngineError) -> dict[str, Any]:
    if isinstance(found, EngineError):
        return {"verifier": name, "sound": None, "detail": str(found)}
    return {**_check(found.check), "answer": found.answer}


def _said(name: str, found: operations.Tested | EngineError) -> list[str]:
    if isinstance(found, EngineError):
        return [f"NOT TESTED: {name}: {found}"]
    lines = [f"{_word(found.check)}: {name}: {found.check.detail}"]
    return [*lines, f"    it said {found.answer}"] if found.answer else lines
