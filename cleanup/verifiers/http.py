"""Asks an HTTP service about a file or its task: 2xx, and if wanted the expected JSON value.

Whoever writes a policy must not gain a way to make the server call whatever it can reach: only hosts that
CLEANUP["VERIFIER_HOSTS"] lists are asked, no redirect is followed, no proxy is used, and what is filled in is
quoted, so it stays one part of the path or query. 404 and 410 are FAIL: nobody knows the file. Any other
status, an answer without a known end, too large, late or of another form is UNKNOWN.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import SplitResult, quote_from_bytes, urlsplit

from cleanup.conf import conf
from cleanup.engine.names import unescape
from cleanup.engine.verify import Deadline, Finding, Subject
from cleanup.verifiers.bounded import Exchanger, Reply, may_be_reached
from cleanup.verifiers.kinds import CANARIES, Kind, Option, Options, Surroundings
from cleanup.verifiers.questions import answer_all, says, unknown
from cleanup.verifiers.templates import Template, placeholders_of
from cleanup.verifiers.values import judge_document

#: Connections at once: several, for each question is a round trip, and few, for the service has other work.
_CONNECTIONS = 4

_ABSENT = (404, 410)

_PORTS = {"http": 80, "https": 443}


class Http:
    """A `Verifier` over GET requests."""

    def __init__(self, name: str, options: Options, _: Surroundings) -> None:
        """Keep the options; connections are made for each batch."""
        self.name = name
        self.at, self.equals = options["at"], options["equals"]
        split = urlsplit(options["url"])
        self.scheme, self.host = split.scheme, split.hostname or ""
        self.port = split.port or _PORTS[split.scheme]
        self.target = Template((split.path or "/") + (f"?{split.query}" if split.query else ""))

    def verify(self, items: Sequence[Subject], deadline: Deadline) -> list[Finding]:
        """Answer about each of `items`."""
        return answer_all(items, self._target, lambda targets: self._ask(targets, deadline))

    def _target(self, subject: Subject) -> str | Finding:
        target = self.target.fill(subject, _quote)
        if target is None:
            return unknown(self.target.lacking(subject))
        if any(part in (".", "..") for part in re.split(r"[/?&=]", target)):
            # A server would take it for another path than the template's.
            return unknown(f"{target} would lead elsewhere")
        return target

    def _ask(self, targets: Sequence[str], deadline: Deadline) -> Iterator[Finding]:
        if not targets:
            return
        asking = _Asking(self, deadline)
        pool = ThreadPoolExecutor(min(_CONNECTIONS, len(targets)), thread_name_prefix="verifier")
        try:
            yield from pool.map(asking.ask, targets)
        finally:
            asking.over = True
            pool.shutdown(cancel_futures=True)
            asking.close()

    def judge(self, target: str, reply: Reply) -> Finding:
        """What an answer means."""
        if reply.status in _ABSENT:
            return says(False, f"{target}: {reply.status}")
        if not 200 <= reply.status < 300:
            return unknown(f"{target}: {reply.status}")
        if not self.at:
            return says(True, f"{target}: {reply.status}")
        return judge_document(reply.body, self.at, self.equals)


class _Asking:
    """One batch: a connection for each thread, and no further question after the first error."""

    def __init__(self, verifier: Http, deadline: Deadline) -> None:
        self.verifier, self.deadline, self.over = verifier, deadline, False
        self.mine = threading.local()
        self.opened: list[Exchanger] = []

    def ask(self, target: str) -> Finding:
        if self.over:
            return unknown("another question was not answered")
        try:
            return self.verifier.judge(target, self._exchanger().exchange("GET", target))
        except BaseException:
            self.over = True
            raise

    def _exchanger(self) -> Exchanger:
        if not hasattr(self.mine, "exchanger"):
            verifier = self.verifier
            self.mine.exchanger = Exchanger(
                verifier.host, verifier.port, tls=verifier.scheme == "https", deadline=self.deadline,
                permitted=may_be_reached,
            )  # fmt: skip
            self.opened.append(self.mine.exchanger)
        found: Exchanger = self.mine.exchanger
        return found

    def close(self) -> None:
        for exchanger in self.opened:
            exchanger.close()


def _quote(value: str) -> str:
    return quote_from_bytes(unescape(value), safe="")


def _check(options: Options) -> str | None:
    url = options["url"]
    if not re.fullmatch(r"[!-~]+", url):
        return "the url is printable ASCII without a space"
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError as error:
        return f"no url: {error}"
    if complaint := _complaint(split, port):
        return complaint
    if not re.search(r"\{\w+\}", f"{split.path}?{split.query}"):
        return (
            "the url has no placeholder such as {task_id}, so every file would be judged by the same answer"
        )
    if bool(options["at"]) != bool(options["equals"]):
        return "at and equals belong together"
    return None


def _complaint(split: SplitResult, port: int | None) -> str | None:
    if split.scheme not in _PORTS or not split.hostname:
        return "the url begins with http:// or https:// and a host"
    if split.username is not None or split.password is not None or split.fragment:
        return "the url has no user, no password and no fragment"
    if "{" in split.netloc or "}" in split.netloc:
        return "the host is named, not filled in"
    if not _is_listed(split.hostname, port, split.scheme):
        listed = split.hostname if port in (None, _PORTS[split.scheme]) else f"{split.hostname}:{port}"
        return f"the host {listed!r} is not in CLEANUP['VERIFIER_HOSTS']"
    return None


def _is_listed(host: str, port: int | None, scheme: str) -> bool:
    """Whether the settings list the host: alone for the usual ports, or with this port."""
    shown = f"[{host}]" if ":" in host else host
    listed = {entry.lower() for entry in conf().verifier_hosts}
    usual = port is None or port == _PORTS[scheme]
    return (usual and bool({host, shown} & listed)) or f"{shown}:{port or _PORTS[scheme]}" in listed


KIND = Kind(
    summary="a service answers 2xx, and if wanted with the expected JSON value; 404 and 410 say no",
    options={
        "url": Option(meaning="template of the address; its host is listed in CLEANUP['VERIFIER_HOSTS']"),
        "at": Option(meaning="where in the JSON answer the value stands: state, result.0.ok; empty = any"),
        "equals": Option(meaning="what the value must be, as text; true and false for truth values"),
        **CANARIES,
    },
    check=_check,
    make=Http,
    placeholders=placeholders_of("url"),
)
