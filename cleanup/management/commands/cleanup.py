"""`manage.py cleanup VERB`: everything that the console can do, for shells, scripts and timers.

Exit codes: 0 done, 1 done but something was skipped, 2 refused or waiting for approval; `audit verify`: 0
sound, 1 tampered, 2 could not be checked. With `--json` standard output holds one object and nothing else.
"""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cleanup.engine.errors import EngineError
from cleanup.management import areas, auditing, exchange, insight, marks, orphans, tools, verbs, verifiers
from cleanup.management.arguments import declare
from cleanup.management.bench import bench
from cleanup.management.explain import explain
from cleanup.management.output import REFUSED, Answer, say

#: Verb, or verb and second word, to what carries it out.
VERBS: dict[str, verbs.Verb] = {
    "areas add": verbs.areas_add,
    "areas list": verbs.areas_list,
    "areas marks": marks.areas_marks,
    "areas enable": areas.areas_enable,
    "areas disable": areas.areas_disable,
    "areas move": areas.areas_move,
    "areas remove": areas.areas_remove,
    "policies add": verbs.policies_add,
    "policies list": verbs.policies_list,
    "policies mode": verbs.policies_mode,
    "policies verifiers": verifiers.policies_verifiers,
    "plan": verbs.plan,
    "run": verbs.run,
    "approve": verbs.approve,
    "reject": verbs.reject,
    "stop": verbs.stop,
    "restore": orphans.restore,
    "orphans": orphans.orphans,
    "purge": verbs.purge,
    "hold": verbs.hold,
    "release": verbs.release,
    "report": insight.report,
    "audit verify": auditing.audit_verify,
    "audit list": auditing.audit_list,
    "audit checkpoint": auditing.audit_checkpoint,
    "audit export": auditing.audit_export,
    "audit prune": auditing.audit_prune,
    "audit prove": auditing.audit_prove,
    "audit keys": auditing.audit_keys,
    "tick": insight.tick,
    "import-tmpfiles": exchange.tmpfiles,
    "export-systemd": exchange.systemd,
    "daemon": tools.daemon,
    "bench": bench,
    "explain": explain,
}


class Command(BaseCommand):
    """The verbs."""

    help = "Retention: areas, policies, plans, runs, trash, holds, audit."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the verbs."""
        declare(parser)

    def handle(self, *_: Any, **options: Any) -> None:
        """Carry the verb out, print its answer, and leave with its exit code."""
        name = " ".join(filter(None, (options["verb"], options.get("what"))))
        try:
            answer = VERBS[name](options)
        except EngineError as refusal:
            answer = Answer(data={"error": refusal.code, "message": str(refusal)}, code=REFUSED)
            if not options["json"]:
                raise CommandError(str(refusal), returncode=REFUSED) from refusal
        say(answer, as_json=options["json"], out=self.stdout)
        if answer.code:
            sys.exit(answer.code)
