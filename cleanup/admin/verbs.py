"""Pages whose form is carried out by a verb of `cleanup.operations`.

Django's admin saves a valid form and knows no refusal after that. Here the verb is the last step of the
validation, so what it refuses stands on the form, beside what the person wrote, and nothing was saved.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import HttpRequest

from bus.console import ConsoleAdmin
from cleanup.engine.errors import EngineError


class VerbAdmin(ConsoleAdmin):
    """A page whose form is carried out by a verb. A refusal is shown on the form, and nothing is saved."""

    refusals = (EngineError,)

    def carry_out(self, request: HttpRequest, form: Any) -> Any:
        """Do what the form says; return the row. Raises what `refusals` names."""
        raise NotImplementedError

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> type[forms.ModelForm]:  # type: ignore[type-arg]
        """A form that carries itself out as the last step of its validation: it can show a refusal."""
        page, base = self, super().get_form(request, obj, change, **kwargs)

        class Carried(base):  # type: ignore[misc, valid-type]
            def _post_clean(self) -> None:
                super()._post_clean()
                if self.errors or request.method != "POST" or not page.may_carry_out(request, obj):
                    return
                try:
                    self.instance = page.carry_out(request, self)
                except page.refusals as refusal:
                    self.add_error(None, str(refusal))

        return Carried

    def may_carry_out(self, request: HttpRequest, obj: Any) -> bool:
        """Whether this person may save this form."""
        if obj is None:
            return bool(self.has_add_permission(request))
        return bool(self.has_change_permission(request, obj))

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> Any:
        return form.instance

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """The verb has saved it."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """There is nothing beside the row."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
