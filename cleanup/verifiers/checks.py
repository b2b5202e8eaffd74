"""What verifiers answered to their canaries, kept for who wonders since when one cannot be trusted.

Runs write here what they ask anyway (`asking`), people what they ask by hand (`operations.verifying`). A
sound answer soon after another to the same asker is not worth a row; one that is not sound always is.
Nothing here decides about a file.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta

from django.utils import timezone

from cleanup.models import VerifierCheck

#: How long a check is remembered.
KEPT_FOR = timedelta(days=30)
#: Sound answers to one asker that are closer together are one: a purge asks before every batch.
_SAME_WITHIN = timedelta(minutes=5)
_LONGEST = 500


def key_of(verifier: str) -> str:
    """The name under which checks of a verifier are kept; a very long one is told by its hash."""
    if len(verifier) <= _LONGEST:
        return verifier
    digest = hashlib.sha256(verifier.encode()).hexdigest()[:32]
    return f"{verifier[: _LONGEST - 33]}…{digest}"


def note(verifier: str, *, sound: bool, detail: str, seconds: float, asked_by: str) -> VerifierCheck:
    """Keep one check, and forget those that are too old."""
    VerifierCheck.objects.filter(at__lt=timezone.now() - KEPT_FOR).delete()
    return VerifierCheck.objects.create(
        verifier=key_of(verifier),
        sound=sound,
        detail=detail[:_LONGEST],
        milliseconds=round(seconds * 1000, 1),
        asked_by=asked_by[:150],
    )


def note_of_run(verifier: str, *, sound: bool, detail: str, seconds: float, asked_by: str) -> None:
    """Keep a check that a run made, unless it says what the same run has said a moment ago."""
    last = VerifierCheck.objects.filter(verifier=key_of(verifier)).first()
    is_news = not sound or last is None or not last.sound or last.asked_by != asked_by[:150]
    if is_news or (last is not None and timezone.now() - last.at > _SAME_WITHIN):
        note(verifier, sound=sound, detail=detail, seconds=seconds, asked_by=asked_by)
