"""`manage.py schedule`: what beat starts. List it, run a task now, switch one on or off.

Exit codes: 0 done, 1 there is no such task, 2 refused.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django_celery_beat.models import PeriodicTask
from kombu.exceptions import OperationalError

from xnai_site import schedule

NOT_THERE, REFUSED = 1, 2


class Command(BaseCommand):
    """The verbs of the page Periodic tasks."""

    help = "What Celery Beat starts: list, run NAME, on NAME, off NAME."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the verbs."""
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        verbs.add_parser("list", help="every task, whether it is on, and when it ran last")
        for verb, what in (
            ("run", "have a worker run a task now, beside its schedule"),
            ("on", "let beat start a task by its schedule"),
            ("off", "let beat start it no longer"),
        ):
            verbs.add_parser(verb, help=what).add_argument("name", help="as in the list")
        for parser_of_verb in verbs.choices.values():
            parser_of_verb.add_argument("--json", action="store_true", help="print JSON and nothing else")

    def handle(self, *_: Any, **options: Any) -> None:
        """Do it, and say what was done."""
        if options["verb"] == "list":
            return self._list(as_json=options["json"])
        tasks = PeriodicTask.objects.filter(name=options["name"])
        if not tasks:
            raise CommandError(f"no periodic task is called {options['name']!r}", returncode=NOT_THERE)
        try:
            names = _act(options["verb"], tasks)
        except (OperationalError, OSError, ValueError) as refusal:
            raise CommandError(str(refusal), returncode=REFUSED) from refusal
        done = json.dumps({"done": options["verb"], "tasks": names})
        self.stdout.write(done if options["json"] else f"{options['verb']}: {', '.join(names)}")

    def _list(self, *, as_json: bool) -> None:
        for row in PeriodicTask.objects.order_by("name").select_related("interval", "crontab"):
            every, ran = str(row.interval or row.crontab or row.scheduler), row.last_run_at
            found = {"name": row.name, "on": row.enabled, "task": row.task, "every": every}
            found["last_run_at"] = None if ran is None else ran.isoformat()
            state = "on " if row.enabled else "off"
            line = f"{state}  {row.name}  {every}, last run {found['last_run_at'] or 'never'}"
            self.stdout.write(json.dumps(found) if as_json else line)


def _act(verb: str, tasks: Any) -> list[str]:
    return schedule.send(tasks) if verb == "run" else schedule.switch(tasks, on=verb == "on")
