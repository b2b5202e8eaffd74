"""Figures, moments and states as the console shows them.

A moment is always given with its zone and, beside it, as seen from now; an amount of files always with its
bytes. Functions return safe HTML or plain text and look nothing up.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_STEPS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))

#: A figure and its unit stay on one line.
_NBSP = "\u00a0"

#: What `badge` can say by colour beside the word.
TONES = ("neutral", "good", "warn", "bad", "info")


def size(number: int) -> str:
    """Bytes in decimal units: `1.5 MB`."""
    rest, unit = float(abs(number)), 0
    while rest >= 999.5 and unit < len(_UNITS) - 1:
        rest, unit = rest / 1000, unit + 1
    text = f"{rest:.0f}" if unit == 0 or rest >= 100 else f"{rest:.1f}"
    return f"{'-' if number < 0 else ''}{text}{_NBSP}{_UNITS[unit]}"


def files_and_bytes(files: int, number: int) -> str:
    """`1,204 files, 88.0 GB`"""
    return f"{files:,}{_NBSP}{'file' if files == 1 else 'files'}, {size(number)}"


def span(length: timedelta) -> str:
    """A length of time by its two biggest units: `6 d 4 h`."""
    left = int(abs(length).total_seconds())
    parts: list[str] = []
    for name, step in _STEPS:
        number, left = divmod(left, step)
        if number or (name == "s" and not parts):
            parts.append(f"{number} {name}")
        elif parts:
            break
    return " ".join(parts[:2])


def relative(moment: datetime, now: datetime) -> str:
    """`in 6 d 4 h` or `3 min ago`"""
    if abs(moment - now) < timedelta(seconds=1):
        return "now"
    return f"in {span(moment - now)}" if moment > now else f"{span(now - moment)} ago"


def moment(at: datetime | None, *, empty: str = "—", now: datetime | None = None) -> SafeString | str:
    """A moment with its zone, and as seen from now."""
    if at is None:
        return empty
    local = timezone.localtime(at)
    return format_html(
        '<time class="x-moment" datetime="{}" title="{} UTC">{} <span>{}</span></time>',
        at.isoformat(),
        at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
        local.strftime("%Y-%m-%d %H:%M:%S %Z"),
        relative(at, now or timezone.now()),
    )


def badge(text: str, tone: str = "neutral") -> SafeString:
    """A state as a word on a coloured ground; the word alone says everything."""
    return format_html('<span class="x-badge x-{}">{}</span>', tone, text)


def with_code(text: str) -> SafeString:
    """A sentence in which what stands between backquotes is code."""
    parts = text.split("`")
    return format_html_join(
        "",
        "{}",
        (
            (format_html("<code>{}</code>", part) if number % 2 else part,)
            for number, part in enumerate(parts)
        ),
    )


def mono(text: str) -> SafeString:
    """A path, an id or a hash."""
    return format_html('<span class="x-mono">{}</span>', text)


def path(text: str, note: str = "") -> SafeString:
    """A path or an id that may be long, and what is to be said of it below."""
    return format_html(
        '<span class="x-pair"><span class="x-mono">{}</span><small>{}</small></span>', text, note
    )


def pair(text: str, note: str = "") -> SafeString:
    """A word, and what is to be said of it below."""
    return format_html('<span class="x-pair"><span>{}</span><small>{}</small></span>', text, note)


def document(text: str | object) -> SafeString:
    """JSON, indented; text that is not JSON stays as it is."""
    value = text
    if isinstance(text, str):
        try:
            value = json.loads(text)
        except ValueError:
            return format_html('<pre class="x-json">{}</pre>', text)
    return format_html('<pre class="x-json">{}</pre>', json.dumps(value, indent=2, ensure_ascii=False))
