"""What the changes of the bus ask for: a reason, an event, a range of offsets.

Forms check what can be said without the bus; the rest is refused by `bus.operating`, in its own words. Who
the person is that acts is said here, too.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

from django import forms
from django.http import HttpRequest
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from bus.access.logins import identity_of
from bus.conf import conf
from bus.console import ConfirmForm
from bus.operating import Operator
from bus.protocol.errors import BusError
from bus.protocol.limits import strict_json

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def operator_of(request: HttpRequest) -> Operator:
    """Return the person as the one who acts."""
    return Operator(name=request.user.get_username(), identity=identity_of(request.user))


def text_input(**attributes: Any) -> UnfoldAdminTextInputWidget:
    """Return an input in the manner of the console."""
    return UnfoldAdminTextInputWidget(attrs=attributes)


class JsonField(forms.CharField):
    """JSON that the bus can carry; says where it is wrong."""

    widget = UnfoldAdminTextareaWidget(attrs={"rows": 6, "spellcheck": "false", "class": "x-mono"})

    def clean(self, value: str | None) -> Any:
        """Return the value that the text is."""
        text = super().clean(value or "")
        try:
            json.loads(text)
            return strict_json(text, conf().max_message_bytes)
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
            raise forms.ValidationError(f"Not JSON at {place}: {error.msg}.") from error
        except (BusError, RecursionError) as error:
            raise forms.ValidationError(getattr(error, "message", "This is nested too deeply.")) from error


class AgeField(forms.CharField):
    """A length of time: `90s`, `30m`, `12h`, `7d`."""

    widget = text_input(placeholder="such as 12h or 7d")

    def clean(self, value: str | None) -> Any:
        """Return the length, or None for nothing."""
        text = super().clean(value or "").strip()
        if not text:
            return None
        found = re.fullmatch(r"(\d{1,6})\s?([smhd])", text)
        if found is None:
            raise forms.ValidationError("A length of time is written 90s, 30m, 12h or 7d.")
        return timedelta(**{_UNITS[found[2]]: int(found[1])})


class FirstInFocus(ConfirmForm):
    """The first field has the focus."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        next(iter(self.fields.values())).widget.attrs["autofocus"] = True


class ReasonForm(FirstInFocus):
    """Why; it goes into the audit."""

    reason = forms.CharField(
        max_length=300, widget=text_input(), help_text="Goes into the audit with your name."
    )


class EventForm(FirstInFocus):
    """An event: its type and what it says."""

    event_type = forms.CharField(
        max_length=100, initial="agent.message", widget=text_input(), help_text="Such as agent.message."
    )
    payload = JsonField(initial='{"text": ""}', label="Data", help_text="JSON: the data of the event.")


class TopicEventForm(EventForm):
    """An event for a topic that is known."""

    key = forms.CharField(
        max_length=200,
        required=False,
        label="Idempotency key",
        widget=text_input(),
        help_text="Optional: a second event of the topic with the same key is not stored.",
    )


class NewEventForm(TopicEventForm):
    """An event for any topic."""

    topic = forms.CharField(
        max_length=200,
        widget=text_input(placeholder="such as broadcast, agent:crawler, room:lab"),
        help_text="It comes to be with its first event.",
    )
    field_order = ("topic", "event_type", "payload", "key")


class TrimForm(ReasonForm):
    """How much is forgotten."""

    up_to = forms.IntegerField(
        min_value=1,
        required=False,
        label="Up to offset",
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text="Every event up to and with this one.",
    )
    max_age = AgeField(required=False, label="Or older than", help_text="Instead: 90s, 30m, 12h, 7d.")
    field_order = ("up_to", "max_age", "reason")

    def clean(self) -> dict[str, Any]:
        """Want one of the two."""
        given = super().clean() or {}
        if not self.errors and (given.get("up_to") is None) == (given.get("max_age") is None):
            raise forms.ValidationError("Give an offset or an age, one of the two.")
        return given


class ReplayForm(ReasonForm):
    """Which events, and to whom."""

    agent = forms.CharField(
        max_length=180,
        widget=text_input(placeholder="such as crawler"),
        help_text="Its id. It need not be connected: copies wait in its inbox.",
    )
    first = forms.IntegerField(min_value=1, label="From offset", widget=UnfoldAdminIntegerFieldWidget())
    last = forms.IntegerField(min_value=1, label="To offset", widget=UnfoldAdminIntegerFieldWidget())
    field_order = ("agent", "first", "last", "reason")


class EndForm(ReasonForm):
    """How a task ends."""

    status = forms.ChoiceField(
        choices=[("failed", "failed"), ("cancelled", "cancelled"), ("completed", "completed")],
        widget=UnfoldAdminSelectWidget(),
        label="Ended as",
    )
    field_order = ("status", "reason")


class CursorForm(ReasonForm):
    """Where a cursor is set."""

    offset = forms.IntegerField(
        min_value=0,
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text="The last event that counts as done; 0: none. The next one comes first.",
    )
    field_order = ("offset", "reason")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        row = self.rows.first() if self.rows is not None else None
        if row is not None:
            self.initial["offset"] = row.offset
