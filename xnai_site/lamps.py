"""The lamps of the console: what the checks find, red first, each a way to the page where one can act.

A lamp is a `Finding` of `xnai_site.checkup`, the same that `manage.py doctor` and `/healthz/full` tell. What
is in order is said in one line, and can be unfolded.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.http import HttpRequest
from django.urls import reverse
from django.utils.safestring import SafeString

from bus import cells
from cleanup.models import CleanupRun, RunState
from xnai_site import checkup
from xnai_site.checkup import Finding

TONES = {checkup.FAILED: "bad", checkup.WARNING: "warn", checkup.OK: "good"}

#: Finding -> what it is called here, and the list where one can act.
_PAGES = {
    "log": ("Event log", "bus_topic"),
    "servers": ("Channel layer", "bus_serverinstance"),
    "beat": ("Beat", "django_celery_beat_periodictask"),
    "worker": ("Worker", "django_celery_beat_periodictask"),
    "audit": ("Audit", "cleanup_auditentry"),
    "verifiers": ("Verifiers", "cleanup_verifiercheck"),
    "staging": ("Areas", "cleanup_stagingarea"),
    "trash folders": ("Trash folders", "cleanup_stagingarea"),
    "disks of areas": ("Disks", "cleanup_stagingarea"),
    "plans": ("Plans", "cleanup_cleanuprun"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lamp:
    """One check as the first page shows it."""

    name: str
    #: `bad`, `warn` or `good`.
    tone: str
    label: str
    text: str
    #: What to do about it.
    mend: SafeString
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lamps:
    """All lamps: those that need somebody, the red ones first, and the others."""

    lit: list[Lamp]
    fine: list[Lamp]

    @property
    def summary(self) -> str:
        """How it is, in one line."""
        red = sum(lamp.tone == "bad" for lamp in self.lit)
        amber = len(self.lit) - red
        if not self.lit:
            return f"All is well: {len(self.fine)} checks, nothing needs you."
        said = [f"{red} red"] if red else []
        said += [f"{amber} amber"] if amber else []
        return f"{' and '.join(said)} of {len(self.lit) + len(self.fine)} checks {_need(len(self.lit))}."


def _need(number: int) -> str:
    return "needs somebody" if number == 1 else "need somebody"


def lamps(request: HttpRequest) -> Lamps:
    """Look at everything that a page may wait for."""
    found = [_lamp(request, check()) for check in checkup.LAMPS]
    found.sort(key=lambda lamp: ("bad", "warn", "good").index(lamp.tone))
    return Lamps(
        lit=[lamp for lamp in found if lamp.tone != "good"],
        fine=[lamp for lamp in found if lamp.tone == "good"],
    )


def _lamp(request: HttpRequest, finding: Finding) -> Lamp:
    label, page = _PAGES[finding.name]
    app, _, model = page.rpartition("_")
    may = request.user.has_perm(f"{app}.view_{model}")
    return Lamp(
        name=finding.name,
        tone=TONES[finding.state],
        label=label,
        text=finding.detail,
        mend=cells.with_code(finding.mend),
        url=_url(finding, page) if may else "",
    )


def _url(finding: Finding, page: str) -> str:
    if finding.name == "plans" and finding.state != checkup.OK:
        waiting = list(CleanupRun.objects.filter(state=RunState.AWAITING_APPROVAL).values_list("pk")[:2])
        if len(waiting) == 1:
            return reverse("admin:cleanup_cleanuprun_change", args=waiting[0])
        return f"{reverse('admin:cleanup_cleanuprun_changelist')}?state__exact={RunState.AWAITING_APPROVAL}"
    return reverse(f"admin:{page}_changelist")
