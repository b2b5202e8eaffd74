"""How often each verifier gave each answer, kept in rows, so that the counters outlast every process."""

from __future__ import annotations

from collections.abc import Mapping

from django.db.models import F

from cleanup.models import VerifierTotal

_LABEL = 200


def add_answers(verifier: str, answers: Mapping[str, int]) -> None:
    """Add the answers about one batch: one statement for each that was given, each on its own.

    Two rows in one transaction could be locked by two processes in two orders.
    """
    label = verifier[:_LABEL]
    for answer, count in answers.items():
        rows = VerifierTotal.objects.filter(verifier=label, answer=answer)
        if not rows.update(count=F("count") + count):
            VerifierTotal.objects.get_or_create(verifier=label, answer=answer)
            rows.update(count=F("count") + count)
