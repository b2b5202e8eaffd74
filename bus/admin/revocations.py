"""Tokens that were taken back: entered here, and forgotten once they have expired by themselves."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from unfold.decorators import display

from bus import cells, operating
from bus.admin.forms import operator_of
from bus.console import Change, ReadOnlyAdmin, change
from bus.models import TokenRevocation
from bus.protocol.errors import BusError


class RevocationForm(forms.ModelForm):  # type: ignore[type-arg]
    """Which tokens, and for how long that has to be remembered."""

    class Meta:
        model = TokenRevocation
        fields = ("token_id", "user_id", "agent_id", "expires_at", "note")
        labels: ClassVar = {
            "token_id": "One token",
            "user_id": "All of a user",
            "agent_id": "All of an agent",
            "expires_at": "Until",
        }
        help_texts: ClassVar = {
            "token_id": "Its jti.",
            "user_id": "The sub of the tokens. Those issued later are good.",
            "agent_id": "The agent that the tokens name. Those issued later are good.",
            "expires_at": "When the tokens have expired by themselves. Empty: remembered for ever.",
            "note": "Why, for others.",
        }

    def clean(self) -> dict[str, Any]:
        """Refuse a form that names none of the three, or more than one."""
        given = super().clean() or {}
        if sum(bool(given.get(name)) for name in ("token_id", "user_id", "agent_id")) != 1:
            raise forms.ValidationError("Name one: a token, a user or an agent.")
        return given


@admin.register(TokenRevocation)
class TokenRevocationAdmin(ReadOnlyAdmin):
    """Tokens that do not count any more."""

    intro = (
        "A token cannot be changed once it is given away, but it can be refused. Connections that were made "
        "with it are closed within seconds, on every server."
    )
    when_empty = (
        "No token is revoked. If one leaks, or somebody leaves, add a revocation: it counts within seconds."
    )
    refusals = (BusError,)
    list_display = ("what", "revoked", "until", "note")
    search_fields = ("token_id", "user_id", "agent_id", "note")
    ordering = ("-revoked_at",)
    fields = (("what", "note"), ("revoked", "until"))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("bus.add_tokenrevocation")

    def get_form(
        self, request: HttpRequest, obj: Model | None = None, change: bool = False, **kwargs: Any
    ) -> Any:
        if obj is None:
            kwargs["form"] = RevocationForm
        return super().get_form(request, obj, change, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> Any:
        return self.fields if obj is not None else RevocationForm.Meta.fields

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Take the tokens back. The row of the form becomes the row that was made."""
        given = dict(form.cleaned_data)
        made = operating.revoke_tokens(
            operator_of(request), until=given.pop("expires_at"), text=given.pop("note"), **given
        )
        obj.__dict__.update(made.__dict__)

    @display(description="Tokens", ordering="user_id")
    def what(self, row: TokenRevocation) -> Any:
        if row.token_id:
            return cells.pair(row.token_id, "one token")
        if row.user_id:
            return cells.pair(row.user_id, "all of this user until then")
        return cells.pair(row.agent_id, "all of this agent until then")

    @display(description="Taken back", ordering="revoked_at")
    def revoked(self, row: TokenRevocation) -> Any:
        return cells.moment(row.revoked_at)

    @display(description="Remembered until", ordering="expires_at")
    def until(self, row: TokenRevocation) -> Any:
        return cells.moment(row.expires_at, empty="for ever")

    def applies(self, change: Change, row: Any) -> bool:
        return True

    @change(
        "Accept again",
        permission="bus.accept_tokenrevocation",
        role="admin",
        explain="The tokens are good again, on every server, until they expire by themselves.",
        danger=True,
    )
    def accept(self, request: HttpRequest, rows: QuerySet[TokenRevocation], data: dict[str, Any]) -> str:
        names = operating.accept_tokens(operator_of(request), rows)
        return f"Accepted again: {', '.join(names)}."
