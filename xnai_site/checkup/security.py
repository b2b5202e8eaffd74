"""Checks of what keeps strangers out: debug pages, host names, TLS, secrets, the lock on log-ins, people."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import DatabaseError

from bus.conf import conf
from xnai_site.checkup.finding import Finding, failed, first_line, ok, warning

#: Characters of a secret that cannot be guessed: 32 of them at 5 bits or more.
_LEAST_SECRET = 32

_LOOPBACK = {"localhost", "127.0.0.1", "[::1]", "::1", "testserver"}


def exposure() -> Finding:
    """Debug pages, host names and TLS, by who can reach the site."""
    name, hosts = "exposure", set(settings.ALLOWED_HOSTS)
    outside = settings.PRODUCTION or not hosts <= _LOOPBACK
    if settings.DEBUG:
        mend = "Unset DEBUG: its pages show settings and code to whoever meets an error."
        return (
            failed(name, "DEBUG is on where others can reach the site", mend)
            if outside
            else warning(name, "DEBUG is on", mend)
        )
    if "*" in hosts:
        return warning(
            name, "ALLOWED_HOSTS allows every name", "Name the hosts under which the site is called."
        )
    if settings.PRODUCTION and not settings.BEHIND_TLS:
        return warning(
            name,
            "no TLS: passwords and tokens travel in the clear",
            "Put a proxy that terminates TLS in front, and set BEHIND_TLS=true.",
        )
    return ok(name, f"called as {', '.join(sorted(hosts))}")


def secrets() -> Finding:
    """Whether the keys that sign sessions and tokens can be guessed."""
    given = {"SECRET_KEY": settings.SECRET_KEY, "BUS_TOKEN_SECRET": conf().token_secret}
    weak = [name for name, value in given.items() if _is_weak(value)]
    if weak:
        return failed(
            "secrets",
            f"{' and '.join(weak)} can be guessed",
            "Draw it anew: python3 -c 'import secrets; print(secrets.token_urlsafe(50))'. Tokens and "
            "sessions made with the old one end.",
        )
    return ok("secrets", "long and random")


def _is_weak(secret: str) -> bool:
    return len(secret) < _LEAST_SECRET or len(set(secret)) < 10 or secret.startswith("django-insecure")


def logins() -> Finding:
    """Whether somebody can log in, and nobody can try passwords without end."""
    backends = list(settings.AUTHENTICATION_BACKENDS)
    watched = backends[:1] == ["axes.backends.AxesStandaloneBackend"]
    last = settings.MIDDLEWARE[-1] == "axes.middleware.AxesMiddleware"
    if not (watched and last and getattr(settings, "AXES_ENABLED", True)):
        return failed(
            "log-ins",
            "wrong passwords are not counted",
            "AxesStandaloneBackend comes first of AUTHENTICATION_BACKENDS, AxesMiddleware last of "
            "MIDDLEWARE, and AXES_ENABLED is not turned off.",
        )
    try:
        chief = get_user_model().objects.filter(is_superuser=True, is_active=True).exists()
    except DatabaseError as error:
        return failed("log-ins", first_line(error))
    if not chief:
        return warning("log-ins", "there is no active superuser", "Run `manage.py createsuperuser`.")
    return ok("log-ins", f"locked after {settings.AXES_FAILURE_LIMIT} wrong passwords")
