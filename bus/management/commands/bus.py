"""`manage.py bus VERB`: the bus by hand. Every verb calls the function that admin and API call.

Exit codes: 0 done, 1 there was nothing to do it to or some of it was skipped, 2 refused. What is asked for
goes to standard output, for people or with `--json` as one object a line; everything else to standard error.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from bus.management import operators, verbs
from bus.management.arguments import NAMES, declare
from bus.management.output import Printer
from bus.management.tail import tail
from bus.protocol.errors import BusError

REFUSED = 2

VERBS: dict[str, verbs.Verb] = {
    "token": verbs.token,
    "publish": verbs.publish,
    "topics": verbs.topics,
    "tail": tail,
    "trim": verbs.trim,
    "connections": verbs.connections,
    "disconnect": verbs.disconnect,
    "message": operators.message,
    "agents": operators.agents,
    "skip": operators.skip,
    "replay": operators.replay,
    "cursors": operators.cursors,
    "tasks": operators.tasks,
    "end": operators.end,
    "keys": operators.keys,
    "bench": verbs.bench,
}


class Command(BaseCommand):
    """The verbs."""

    #: Those of our own settings. All of them would load every page of the site, for each command.
    requires_system_checks = ("bus",)
    help = f"Look at the bus and speak on it: {', '.join(NAMES)}."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the verbs."""
        declare(parser)

    def handle(self, *_: Any, **options: Any) -> None:
        """Call the verb, turn a refusal into words and exit code 2, and leave with its exit code."""
        out = Printer(self.stdout, as_json=options.get("json") is True)
        try:
            code = VERBS[options["verb"]](options, out)
        except BusError as error:
            raise CommandError(str(error), returncode=REFUSED) from error
        except BrokenPipeError:
            # Whoever read our output has seen enough, as `head` does; the interpreter would try once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        except KeyboardInterrupt:
            self.stderr.write("stopped")
            return
        if code:
            sys.exit(code)
