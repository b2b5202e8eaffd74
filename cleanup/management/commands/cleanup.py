"""`manage.py cleanup VERB`: everything that the console can do, for shells, scripts and timers.

Exit codes: 0 done, 1 done but something was skipped, 2 refused or waiting for approval; `audit verify`: 0
sound, 1 tampered, 2 could not be checked. With `--json` standard output holds one object and nothing else.
"""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cleanup.engine.errors import EngineError
from cleanup.management import (
    areas,
    auditing,
    exchange,
    files,
    insight,
    marks,
    measuring,
    orphans,
    policies,
    sources,
    tools,
    trash,
    uploads,
    verbs,
    verifiers,
    works,
)
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
    "areas protect": areas.areas_protect,
    "areas move": areas.areas_move,
    "areas remove": areas.areas_remove,
    "policies add": verbs.policies_add,
    "policies list": verbs.policies_list,
    "policies mode": verbs.policies_mode,
    "policies verifiers": verifiers.policies_verifiers,
    "policies set": policies.policies_set,
    "policies history": policies.policies_history,
    "policies revert": policies.policies_revert,
    "plan": policies.plan,
    "previews list": policies.previews_list,
    "previews cancel": policies.previews_cancel,
    "run": verbs.run,
    "approve": verbs.approve,
    "reject": verbs.reject,
    "stop": verbs.stop,
    "restore": orphans.restore,
    "retire": orphans.retire,
    "extend": trash.extend,
    "manifest": trash.manifest,
    "orders list": trash.orders_list,
    "orders stop": trash.orders_stop,
    "orders run": trash.orders_run,
    "orphans": orphans.orphans,
    "purge": verbs.purge,
    "hold": verbs.hold,
    "release": verbs.release,
    "report": insight.report,
    "measure": measuring.measure,
    "audit verify": auditing.audit_verify,
    "audit list": auditing.audit_list,
    "audit checkpoint": auditing.audit_checkpoint,
    "audit export": auditing.audit_export,
    "audit prune": auditing.audit_prune,
    "audit prove": auditing.audit_prove,
    "audit keys": auditing.audit_keys,
    "sources list": sources.sources_list,
    "sources add": sources.sources_add,
    "sources change": sources.sources_change,
    "sources refresh": sources.sources_refresh,
    "sources enable": sources.sources_enable,
    "sources disable": sources.sources_disable,
    "sources remove": sources.sources_remove,
    "sources restore": sources.sources_restore,
    "uploads list": uploads.uploads_list,
    "uploads terminate": uploads.uploads_terminate,
    "uploads expire": uploads.uploads_expire,
    "stage": uploads.stage,
    "tick": insight.tick,
    "import-tmpfiles": exchange.tmpfiles,
    "export-systemd": exchange.systemd,
    "daemon": tools.daemon,
    "results list": works.results_list,
    "results show": works.results_show,
    "pipeline run": works.pipeline_run,
    "pipeline list": works.pipeline_list,
    "bench": bench,
    "explain": explain,
    "files get": files.files_get,
    "verifiers list": verifiers.verifiers_list,
    "verifiers test": verifiers.verifiers_test,
}


class Command(BaseCommand):
    """The verbs."""

    #: Those of our own settings. All of them would load every page of the site, for each command.
    requires_system_checks = ("bus", "cleanup")
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
