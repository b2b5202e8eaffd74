"""`manage.py doctor`: say what is wrong with an installation and how to mend it. It changes nothing."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from xnai_site import checkup

#: Of the column of names, with a gap behind the longest.
WIDTH = 16


class Command(BaseCommand):
    """Run every check; exit code 1 if one has failed."""

    help = "Check this installation and say how to mend what is wrong. Exit code 1 if a check has failed."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *_: Any, **options: Any) -> None:
        findings = [check() for check in checkup.ALL]
        failed = [finding for finding in findings if finding.state == checkup.FAILED]
        if options["json"]:
            self.stdout.write(
                json.dumps({"sound": not failed, "findings": [finding.as_json() for finding in findings]})
            )
        else:
            for finding in findings:
                self._say(finding)
        sys.exit(1 if failed else 0)

    def _say(self, finding: checkup.Finding) -> None:
        style = {
            checkup.OK: self.style.SUCCESS,
            checkup.WARNING: self.style.WARNING,
            checkup.FAILED: self.style.ERROR,
        }[finding.state]
        self.stdout.write(f"{style(f'{finding.state:<8}')}{finding.name:<{WIDTH}}{finding.detail}")
        if finding.mend:
            self.stdout.write(f"{'':<{8 + WIDTH}}-> {finding.mend}")
