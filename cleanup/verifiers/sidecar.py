"""Asks a companion file: `a.bin` may go when `a.done` lies beside it, and if wanted says so in JSON.

An absent companion is FAIL. A link, a special file, one that cannot be read, or one that should say something
and does not, is UNKNOWN. The companion is looked for beside the original place again before the purge, so a
policy should leave it where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cleanup.engine.verify import Deadline, Finding, Subject
from cleanup.verifiers.beside import read_beside
from cleanup.verifiers.kinds import Kind, Option, Options, Surroundings
from cleanup.verifiers.questions import answer_all, says
from cleanup.verifiers.templates import Template, placeholders_of
from cleanup.verifiers.values import judge_document


class Sidecar:
    """A `Verifier` over companion files."""

    def __init__(self, name: str, options: Options, surroundings: Surroundings) -> None:
        """Keep the options and the area."""
        self.name, self.area = name, surroundings.area
        self.companion = Template(options["name"])
        self.at, self.equals = options["at"], options["equals"]

    def verify(self, items: Sequence[Subject], deadline: Deadline) -> list[Finding]:
        """Answer about each of `items`."""
        return answer_all(items, lambda subject: subject, lambda subjects: self._ask(subjects, deadline))

    def _ask(self, subjects: Sequence[Subject], deadline: Deadline) -> Iterator[Finding]:
        for subject in subjects:
            deadline.left()
            yield self._look(subject)

    def _look(self, subject: Subject) -> Finding:
        data = read_beside(self.area, subject, self.companion)
        if isinstance(data, Finding):
            return data
        if self.at:
            return judge_document(data, self.at, self.equals)
        return says(True, f"{self.companion.fill(subject)} is there")


def _check(options: Options) -> str | None:
    if "/" in options["name"]:
        return "the companion lies in the same directory, so its name has no slash"
    if not options["name"] or options["name"] == "{name}":
        return "the name of the companion is missing"
    if "{" not in options["name"]:
        return "the name has no placeholder such as {stem}, so many files would share one companion"
    if bool(options["at"]) != bool(options["equals"]):
        return "at and equals belong together"
    return None


KIND = Kind(
    summary="a companion file lies beside it, and if wanted holds the expected JSON value",
    options={
        "name": Option(default="{stem}.done", meaning="template of the companion's name"),
        "at": Option(
            meaning="where in the companion, in JSON then, a value stands; empty = it need only be there"
        ),
        "equals": Option(meaning="what the value must be, as text; true and false for truth values"),
    },
    check=_check,
    make=Sidecar,
    placeholders=placeholders_of("name"),
)
