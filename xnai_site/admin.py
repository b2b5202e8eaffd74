"""Pages of the console for what Django and Celery Beat bring: periodic tasks, people, roles.

Their own pages are taken away and made again in the manner of the console: with its look, and with changes
that ask first (`bus.console`). Celery Beat's actions in lists would act at once and for everybody.
"""

from __future__ import annotations

from typing import Any

from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)
from kombu.exceptions import OperationalError
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminSelectMultipleWidget

from bus import cells
from bus.console import Change, ConsoleAdmin, change
from xnai_site import schedule
from xnai_site.permission_field import PermissionField

admin.site.index_title = "Overview"

for _model in (
    User, Group, PeriodicTask, IntervalSchedule, CrontabSchedule, ClockedSchedule, SolarSchedule,
    AccessAttempt, AccessFailureLog, AccessLog,
):  # fmt: skip
    if admin.site.is_registered(_model):
        admin.site.unregister(_model)


@admin.register(User)
class PersonAdmin(UserAdmin, ConsoleAdmin):  # type: ignore[type-arg]
    """People."""

    intro = "Who may log in. Staff may enter the console; what one may do there is decided by the roles."
    when_empty = "Nobody may log in. `manage.py createsuperuser` makes the first person."
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "roles", "standing", "last_seen", "since")
    list_filter = ("is_active", "is_staff", "groups")
    ordering = ("username",)
    filter_horizontal = ()
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Person", {"fields": (("first_name", "last_name", "email"),)}),
        ("May do", {"fields": (("is_active", "is_staff", "is_superuser"), "groups")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        return super().get_queryset(request).prefetch_related("groups")

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """The roles as boxes to tick: there are three."""
        return super().formfield_for_manytomany(
            db_field, request, **{**kwargs, "widget": UnfoldAdminCheckboxSelectMultipleWidget()}
        )

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Only a superuser makes superusers: the role admin is not a way to become one."""
        fields = tuple(super().get_readonly_fields(request, obj))
        return fields if request.user.is_superuser else (*fields, "is_superuser")

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return _may_touch(request, obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return _may_touch(request, obj) and super().has_delete_permission(request, obj)

    @display(description="Roles")
    def roles(self, row: User) -> str:
        names = [group.name for group in row.groups.all()]
        return ", ".join(["everything (superuser)", *names] if row.is_superuser else names) or "none"

    @display(description="State")
    def standing(self, row: User) -> SafeString:
        if not row.is_active:
            return cells.badge("locked", "bad")
        return cells.badge("staff", "good") if row.is_staff else cells.badge("no console")

    @display(description="Last log-in", ordering="last_login")
    def last_seen(self, row: User) -> SafeString | str:
        return cells.moment(row.last_login, empty="never")

    @display(description="Since", ordering="date_joined")
    def since(self, row: User) -> SafeString | str:
        return cells.moment(row.date_joined)


def _may_touch(request: HttpRequest, person: User | None) -> bool:
    """Whether a person, or the password of one, is not out of reach: superusers are, but for superusers."""
    return bool(person is None or not person.is_superuser or request.user.is_superuser)


@admin.register(Group)
class RoleAdmin(GroupAdmin, ConsoleAdmin):
    """Roles."""

    intro = (
        "viewer sees everything and changes nothing, operator works, admin also decides who and what there "
        "is."
    )
    when_empty = "There is no role. `manage.py migrate` makes viewer, operator and admin."
    list_display = ("name", "people")
    filter_horizontal = ()

    def formfield_for_manytomany(self, db_field: Any, request: Any = None, **kwargs: Any) -> Any:
        """One list to choose from: Django's two cannot be told apart by ear."""
        widget = UnfoldAdminSelectMultipleWidget(attrs={"size": 18})
        return PermissionField(label="May", required=False, widget=widget)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Group]:
        return super().get_queryset(request).prefetch_related("user_set")

    @display(description="People")
    def people(self, row: Group) -> str:
        return ", ".join(user.get_username() for user in row.user_set.all()) or "nobody yet"


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(ConsoleAdmin):
    """What beat starts, and when."""

    intro = (
        "What Celery Beat starts. Keep to short intervals: a time of day that beat was not there for is not"
        " made up for. When a policy runs is decided by the policy."
    )
    when_empty = (
        "Beat has not written its tasks down: it does when it starts, with `manage.py up`. Without it "
        "nothing is cleaned."
    )
    refusals = (OperationalError, OSError, ValueError)
    list_display = ("name", "standing", "every", "task_name", "ran", "total_run_count")
    list_filter = ("enabled",)
    search_fields = ("name", "task")
    list_select_related = ("interval", "crontab")
    ordering = ("name",)
    fieldsets = (
        (None, {"fields": (("name", "enabled"), "task", "description")}),
        ("When", {"fields": (("interval", "crontab"), ("ran", "total_run_count"))}),
        ("With", {"fields": (("args", "kwargs"), ("queue", "expire_seconds"))}),
    )
    readonly_fields = ("ran", "total_run_count")

    def applies(self, change: Change, row: Any) -> bool:
        return bool({"enable": not row.enabled, "disable": row.enabled}.get(change.name, True))

    @display(description="State", ordering="enabled")
    def standing(self, row: PeriodicTask) -> SafeString:
        return cells.badge("on", "good") if row.enabled else cells.badge("off", "warn")

    @display(description="Runs")
    def every(self, row: PeriodicTask) -> str:
        return str(row.interval or row.crontab or row.scheduler)

    @display(description="Task", ordering="task")
    def task_name(self, row: PeriodicTask) -> SafeString:
        return cells.mono(row.task)

    @display(description="Last run", ordering="last_run_at")
    def ran(self, row: PeriodicTask) -> SafeString | str:
        return cells.moment(row.last_run_at, empty="never")

    @change(
        "Run now",
        permission="django_celery_beat.run_periodictask",
        explain="A worker runs the task as soon as it is free, beside its schedule.",
    )
    def run_now(self, request: HttpRequest, rows: QuerySet[PeriodicTask], data: dict[str, Any]) -> str:
        return f"Sent to the workers: {', '.join(schedule.send(rows))}."

    @change(
        "Switch on",
        permission="django_celery_beat.change_periodictask",
        role="admin",
        explain="Beat starts the task by its schedule again.",
    )
    def enable(self, request: HttpRequest, rows: QuerySet[PeriodicTask], data: dict[str, Any]) -> str:
        return f"On now: {', '.join(schedule.switch(rows, on=True))}."

    @change(
        "Switch off",
        permission="django_celery_beat.change_periodictask",
        role="admin",
        explain="Beat no longer starts the task. Without its ticks nothing is cleaned, trimmed or reaped.",
        danger=True,
    )
    def disable(self, request: HttpRequest, rows: QuerySet[PeriodicTask], data: dict[str, Any]) -> str:
        return f"Off now: {', '.join(schedule.switch(rows, on=False))}."


@admin.register(IntervalSchedule)
class IntervalScheduleAdmin(ConsoleAdmin):
    """Intervals that periodic tasks name."""

    intro = "How often. A periodic task names one of these."
    when_empty = "No interval yet: beat writes those of its tasks down when it starts."


@admin.register(CrontabSchedule)
class CrontabScheduleAdmin(ConsoleAdmin):
    """Times of day that periodic tasks name."""

    intro = "Times of day and days of the week. A periodic task names one of these."
    when_empty = (
        "No time of day yet. Short intervals do better: a time that beat was not there for is not "
        "made up for."
    )
    list_display = ("__str__", "human_readable")
    fields = (("minute", "hour"), ("day_of_week", "day_of_month", "month_of_year"), "timezone")
