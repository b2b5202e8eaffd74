"""Addresses of the bus: the dashboard, the state it asks for, and the HTTP API."""

from __future__ import annotations

from django.urls import path

from bus import views
from bus.api import api

urlpatterns = [
    path("", views.dashboard, name="dashboard"),
    path("dashboard/state", views.dashboard_state, name="dashboard-state"),
    path("dashboard/trace", views.dashboard_trace, name="dashboard-trace"),
    path("api/", api.urls),
]
