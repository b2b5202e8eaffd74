"""Units for systemd: a timer that calls `manage.py cleanup tick`, for those without Celery, and tmpfiles.d.

The timer wakes often enough for every schedule; what is due is decided by the tick. The lines say what the
policies of the rule `age` say, as far as tmpfiles.d can: systemd knows no plan, no trash, no grace period, no
hold and no audit, so that everything which needs one of these is named in a comment instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db.models import Q

from cleanup.engine.ages import parse_age
from cleanup.engine.translation import lines_for, path_line
from cleanup.models import Hold, Mode, RetentionPolicy, Rule, StagingArea, Unit
from cleanup.operations.calendar import on_calendar
from cleanup.operations.duetimes import parse_schedule
from cleanup.operations.outcomes import OperationRefused
from cleanup.stores.sql import database_now

CONF, SERVICE, TIMER = "xnai-staging.conf", "xnai-staging-cleanup.service", "xnai-staging-cleanup.timer"

#: First line of every file, by which a later export knows its own.
MARK = "# Written by manage.py cleanup export-systemd."

_HEAD = f"""{MARK}
# systemd-tmpfiles removes at once and for good: no plan, no brakes, no trash, no grace period, no audit.
# Install it only where that is wanted, in place of the timer and not beside it.
"""

_SERVICE = """{mark}
[Unit]
Description=Retention of staging areas: whatever is due now
After=network.target

[Service]
Type=oneshot
ExecStart={command}
WorkingDirectory={folder}
User={user}
# 1: done, and some files stayed for a reason that the report names.
SuccessExitStatus=1
TimeoutStartSec=infinity
Nice=19
IOSchedulingClass=idle
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={writable}
DevicePolicy=closed
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_LEASE
"""

_TIMER = """{mark}
[Unit]
Description=Retention of staging areas, as their policies are due

[Timer]
{calendar}
Persistent=true
RandomizedDelaySec=60
Unit={service}

[Install]
WantedBy=timers.target
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where this installation is and as whom it runs."""

    command: Sequence[str]
    folder: Path
    user: str
    #: Besides the areas: the database, keys, logs.
    writable: Sequence[Path]


@dataclass(slots=True, kw_only=True)
class Exported:
    """What an export wrote, or would write."""

    files: dict[str, str] = field(default_factory=dict)
    #: Policies that are lines of tmpfiles.d now.
    policies: list[str] = field(default_factory=list)
    #: Policy to the reason why it is none.
    left_out: dict[str, str] = field(default_factory=dict)


def export_systemd(directory: Path, site: Site, *, dry_run: bool = False) -> Exported:
    """Write the units and the lines into a directory, over those of an earlier export.

    Raises:
        OperationRefused: it cannot be written, or holds a file of such a name that is somebody else's.
    """
    done = Exported()
    done.files[CONF] = _conf(done)
    done.files[SERVICE] = _service(site)
    done.files[TIMER] = _timer()
    for name in done.files:
        _refuse_foreign(directory / name)
    if not dry_run:
        for name, text in done.files.items():
            _write(directory / name, text)
    return done


def _refuse_foreign(path: Path) -> None:
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline().strip()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise OperationRefused(f"{path} cannot be read") from error
    if first != MARK:
        raise OperationRefused(f"{path} exists, and no export wrote it")


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.chmod(0o644)
        draft.replace(path)
    except OSError as error:
        raise OperationRefused(f"{path} cannot be written: {error.strerror}") from error


# Lines


def _conf(done: Exported) -> str:
    lines, areas = [_HEAD], list(StagingArea.objects.order_by("name"))
    held = set(_held_areas())
    taken: set[int] = set()
    for policy in RetentionPolicy.objects.select_related("area").order_by("name"):
        try:
            found = _lines(policy, taken, held, areas)
        except ValueError as error:
            done.left_out[policy.name] = str(error)
            lines.append(f"# Policy {policy.name} is no line here: {error}.")
        else:
            done.policies.append(policy.name)
            lines += [f"# Policy {policy.name}", *found]
    return "\n".join(lines) + "\n"


def _held_areas() -> Iterable[int]:
    counting = Hold.objects.filter(
        Q(until__isnull=True) | Q(until__gt=database_now()), released_at__isnull=True
    )
    return counting.values_list("area_id", flat=True)


def _lines(
    policy: RetentionPolicy, taken: set[int], held: set[int], areas: Sequence[StagingArea]
) -> list[str]:
    """Return the lines of a policy.

    Raises:
        ValueError: tmpfiles.d cannot say it; the message says why.
    """
    area = policy.area
    if area is None or (why := _unsayable(policy, area, held)):
        raise ValueError("it is about rows" if area is None else why)
    if area.pk in taken:
        raise ValueError("another policy has the line of its area")
    root = area.path.encode()
    lines = lines_for(
        root, age=parse_age(policy.age), age_by=frozenset(policy.age_by), exclude=policy.exclude
    )
    taken.add(area.pk)
    own = (b"/.trash", b"/.staging-*")
    nested = [other.path for other in areas if Path(area.path) in Path(other.path).parents]
    return [
        *lines,
        *(path_line("x", _quoted(root) + name) for name in own),
        *(path_line("x", _quoted(path.encode())) for path in nested),
    ]


def _quoted(path: bytes) -> bytes:
    return re.sub(rb"([*?\[\\])", rb"\\\1", path)


def _unsayable(policy: RetentionPolicy, area: StagingArea, held: set[int]) -> str:
    """Return what of a policy tmpfiles.d has no word for; nothing if it can be said."""
    reasons = {
        f"its rule is {policy.rule}": policy.rule != Rule.AGE,
        f"its mode is {policy.mode}": policy.mode != Mode.ENFORCE,
        "its area is disabled": not area.enabled,
        "its area is protected": area.protected,
        "a hold is in force in its area": area.pk in held,
        "it has verifiers": bool(policy.verifiers),
        "it has includes": bool(policy.include),
        "it is about bundles": policy.unit == Unit.BUNDLE,
        "its path holds a line feed": "\n" in area.path,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


# Units


def _service(site: Site) -> str:
    areas = [Path(path) for path in StagingArea.objects.values_list("path", flat=True)]
    return _SERVICE.format(
        mark=MARK,
        command=" ".join(_unit_word(word) for word in site.command),
        folder=str(site.folder).replace("%", "%%"),
        user=site.user,
        writable=" ".join(_unit_word(f"-{path}") for path in _outermost([*areas, *site.writable])),
    )


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that lie in no other of them: each becomes a mount, and areas are not to have any."""
    known = sorted(set(paths))
    return [path for path in known if not any(other in path.parents for other in known)]


def _unit_word(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return f'"{escaped}"' if re.search(r"[\s'\"]", text) else escaped


def _timer() -> str:
    schedules = set(RetentionPolicy.objects.exclude(mode=Mode.OFF).values_list("schedule", flat=True))
    parsed = [parse_schedule(text) for text in sorted(schedules)]
    shortest = min((one.every for one in parsed if one.every is not None), default=timedelta(hours=6))
    crons = [one.text for one in parsed if one.every is None]
    calendar = on_calendar(shortest, crons, zone=settings.TIME_ZONE)
    lines = "\n".join(f"OnCalendar={one}" for one in calendar)
    return _TIMER.format(mark=MARK, calendar=lines, service=SERVICE)
