"""The verb `policies verifiers`: whom a policy can ask, and with which options."""

from __future__ import annotations

from typing import Any

from cleanup.management.output import Answer
from cleanup.verifiers import KINDS


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
