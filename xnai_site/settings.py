"""Settings of the site. The only module that reads the environment.

Every variable has a default that suits `manage.py up` on one machine; `docs/settings.md` lists them all. The
two apps take one dictionary each (`BUS`, `CLEANUP`); their `conf.py` turns it into a typed object and
`manage.py check` names what is wrong with it.
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import environ
import structlog
from csp.constants import NONCE, NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from django.urls import reverse_lazy

from xnai_site import logs, sqlite

env = environ.Env()

BASE_DIR = Path(__file__).resolve().parent.parent
#: All state of a local installation: database, staging, Valkey's files, secrets, logs.
VAR_DIR = Path(env.str("XNAI_VAR", default=str(BASE_DIR / "var"))).resolve()

DEBUG = env.bool("DEBUG", default=False)
#: Whether strangers may reach the site: then nothing is drawn or guessed.
PRODUCTION = env.bool("XNAI_PRODUCTION", default=False)


def _secret_key() -> str:
    """The key from the environment, else the one `up` keeps under `var/`, else one for this process alone."""
    if key := env.str("SECRET_KEY", default=""):
        return str(key)
    kept = VAR_DIR / "secret_key"
    if kept.is_file():
        return kept.read_text().strip()
    if PRODUCTION:
        raise ImproperlyConfigured(
            "SECRET_KEY is not set. Set it in the environment of every process of the site."
        )
    return secrets.token_urlsafe(50)


SECRET_KEY = _secret_key()
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
#: Behind a proxy that terminates TLS: turns on secure cookies, HSTS and the redirect to https.
BEHIND_TLS = env.bool("BEHIND_TLS", default=False)

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "xnai_site.apps.ConsoleConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "csp",
    "axes",
    "django_celery_beat",
    "django_prometheus",
    "django_structlog",
    "xnai_site",
    "bus",
    "cleanup",
]

MIDDLEWARE = [
    "xnai_site.middleware.machine_endpoints",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "xnai_site.middleware.admin_content_security",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_structlog.middlewares.RequestMiddleware",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "xnai_site.urls"
ASGI_APPLICATION = "xnai_site.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# Database ---------------------------------------------------------------------------------------------------

DATABASES: dict[str, dict[str, Any]] = {
    "default": env.db("DATABASE_URL", default=f"sqlite:///{VAR_DIR / 'db.sqlite3'}")
}
if DATABASES["default"].get("ENGINE") not in {"django.db.backends.sqlite3", "django.db.backends.postgresql"}:
    raise ImproperlyConfigured(
        "DATABASE_URL must be sqlite:////absolute/path or postgresql://user:password@host:port/name."
    )

if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # WAL lets readers and the one writer work side by side; the rollback journal is for a SQLite that cannot
    # be trusted with it. FULL makes a commit durable. IMMEDIATE takes the write lock at BEGIN: without it a
    # transaction that reads first fails with "database is locked" instead of waiting.
    _journal = "WAL" if sqlite.is_sound() else "DELETE"
    DATABASES["default"]["OPTIONS"] = {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": f"PRAGMA journal_mode={_journal}; PRAGMA synchronous=FULL; PRAGMA mmap_size=0;",
    }
    # A file, for threads cannot share a database in memory: its table locks do not wait.
    DATABASES["default"]["TEST"] = {"NAME": str(VAR_DIR / "test.sqlite3")}
else:
    # psycopg's pool serves the threads of the ASGI process; Django refuses CONN_MAX_AGE beside it.
    DATABASES["default"]["CONN_MAX_AGE"] = 0
    # The pool tries a connection before handing it out: after a restart of the server all are dead.
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
    _options = DATABASES["default"].setdefault("OPTIONS", {})
    # An ack means that the commit is on disk, whatever the server's or the database's own default is.
    _options["options"] = f"{_options.get('options', '')} -c synchronous_commit=on".strip()
    _options["pool"] = {
        "min_size": 1,
        "max_size": env.int("DATABASE_POOL_SIZE", default=10),
        "timeout": 10,
    }

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Redis or Valkey: the layer's hints, Celery's broker, task states that verifiers ask for --------------------


def _own_valkey() -> str:
    """The address that `up` keeps for the server it starts itself, or nothing."""
    kept = VAR_DIR / "valkey" / "url"
    return kept.read_text().strip() if kept.is_file() else ""


#: Whether somebody else runs the server; `up` then starts none.
REDIS_IS_GIVEN = bool(env.str("REDIS_URL", default=""))
REDIS_URL = env.str("REDIS_URL", default="") or _own_valkey() or "redis://127.0.0.1:6379/0"

CHANNEL_LAYERS = {
    "default": {
        # The pub/sub layer survives an emptied or restarted server and idles without time-outs; the core
        # layer drops at capacity in silence and forgets its groups.
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL], "prefix": env.str("BUS_LAYER_PREFIX", default="bus")},
    },
}

# Celery -----------------------------------------------------------------------------------------------------

CELERY_BROKER_URL = REDIS_URL
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
#: A task that has not been acknowledged after 10 min is delivered again: tasks are shorter than that.
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 600,
    "global_keyprefix": env.str("CELERY_KEY_PREFIX", default=""),
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULER = "xnai_site.beat:SteadyScheduler"
#: Interval ticks only: beat drops crontabs that it missed, so due times are kept in rows of our own.
CELERY_BEAT_SCHEDULE = {
    "bus: reap connections": {
        # The servers look for themselves, too; this is for the case that none is left.
        "task": "bus.tasks.reap_connections",
        "schedule": 5.0,
        "options": {"expires": 5},
    },
    "bus: end lost tasks": {
        "task": "bus.tasks.end_lost_tasks",
        "schedule": 10.0,
        "options": {"expires": 10},
    },
    "bus: trim log": {"task": "bus.tasks.trim_log", "schedule": 60.0, "options": {"expires": 60}},
    "bus: note figures": {"task": "bus.tasks.note_figures", "schedule": 60.0, "options": {"expires": 60}},
    "bus: purge sessions": {
        "task": "bus.tasks.purge_sessions",
        "schedule": 3600.0,
        "options": {"expires": 3600},
    },
    "cleanup: tick": {"task": "cleanup.tasks.tick", "schedule": 30.0, "options": {"expires": 30}},
    "cleanup: measure": {"task": "cleanup.tasks.measure", "schedule": 60.0, "options": {"expires": 60}},
    "cleanup: uploads": {
        "task": "cleanup.tasks.tend_uploads",
        "schedule": 30.0,
        "options": {"expires": 30},
    },
    "cleanup: pipeline": {
        "task": "cleanup.tasks.tend_pipeline",
        "schedule": 30.0,
        "options": {"expires": 30},
    },
    "cleanup: forget": {
        "task": "cleanup.tasks.forget",
        "schedule": 3600.0,
        "options": {"expires": 3600},
    },
    "cleanup: sources": {
        "task": "cleanup.tasks.tick_sources",
        "schedule": 3600.0,
        "options": {"expires": 3600},
    },
    "cleanup: audit": {"task": "cleanup.tasks.audit", "schedule": 60.0, "options": {"expires": 60}},
}
#: Beat looks for changes of the schedule this often (s); its default of 5 min would hide a change in admin.
CELERY_BEAT_MAX_LOOP_INTERVAL = 5
#: Beat writes the last run of a task at once: a restart forgets nothing, and its age tells that beat lives.
CELERY_BEAT_SYNC_EVERY = 1

# People -----------------------------------------------------------------------------------------------------

AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = reverse_lazy("admin:login")
LOGIN_REDIRECT_URL = "/"
AXES_FAILURE_LIMIT = 8
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True

# Time and text ----------------------------------------------------------------------------------------------

LANGUAGE_CODE = "en-us"
USE_I18N = False
TIME_ZONE = env.str("TIME_ZONE", default="UTC")
USE_TZ = True

# Static files -----------------------------------------------------------------------------------------------

STATIC_URL = "/static/"
STATIC_ROOT = Path(env.str("STATIC_ROOT", default=str(VAR_DIR / "static")))
#: Files of django-ninja, with which the page of the HTTP API shows itself. It is no installed app for their
#: sake: that would load pydantic into every command and worker.
STATICFILES_DIRS = [
    ("ninja", Path(folder, "static", "ninja"))
    for folder in getattr(find_spec("ninja"), "submodule_search_locations", ())
]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
    # Contents outside of areas; `cleanup.staging.storage` says what another backend would have to promise.
    "staging": {
        "BACKEND": "cleanup.staging.storage.ContentFiles",
        "OPTIONS": {"location": str(VAR_DIR / "contents")},
    },
}
WHITENOISE_USE_FINDERS = DEBUG

# Security ---------------------------------------------------------------------------------------------------

SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
if BEHIND_TLS:
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
    SECURE_SSL_REDIRECT = True
    SECURE_HSTS_SECONDS = 31_536_000
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

CONTENT_SECURITY_POLICY = {
    # Admin pages add 'unsafe-eval' for themselves alone (xnai_site.middleware): unfold's Alpine build
    # evaluates expressions. The pages of the bus stay strict.
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF, NONCE],
        "style-src": [SELF, "'unsafe-inline'"],
        "img-src": [SELF, "data:"],
        "connect-src": [SELF],
        "object-src": [NONE],
        "base-uri": [SELF],
        "frame-ancestors": [NONE],
        "form-action": [SELF],
    },
}

#: Who may read `/metrics`: a bearer token, else the loopback interface only.
METRICS_TOKEN = env.str("METRICS_TOKEN", default="")
#: Where the processes of one machine keep their counters for `/metrics`; empty: each answers for itself.
METRICS_DIR = env.str("PROMETHEUS_MULTIPROC_DIR", default="")

#: Beat and the workers are missed after this many seconds without a sign of life. Beat has a tick every 5 s.
SILENCE = timedelta(seconds=env.int("XNAI_SILENCE", default=90))

#: A pipe on which a worker or beat tells its supervisor that it is ready; negative: nobody asks.
READY_FD = env.int("XNAI_READY_FD", default=-1)

# Logging: one line an event, no payloads, no secrets --------------------------------------------------------

LOG_FORMAT = env.str("LOG_FORMAT", default="console")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "console": {
            "()": structlog.stdlib.ProcessorFormatter,
            # A plain traceback: the pretty one shows local variables, and with them tokens and payloads.
            "processor": structlog.dev.ConsoleRenderer(
                colors=False, exception_formatter=structlog.dev.plain_traceback
            ),
        },
        "json": {"()": structlog.stdlib.ProcessorFormatter, "processor": structlog.processors.JSONRenderer()},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT}},
    "root": {"handlers": ["stderr"], "level": env.str("LOG_LEVEL", default="INFO")},
    "loggers": {
        "daphne": {"level": "WARNING"},
        "django.channels.server": {"level": "WARNING"},
        "django_structlog": {"level": "WARNING"},
        "axes": {"level": "WARNING"},
        # It prints a traceback every second while its server is away; bus.link says it once.
        "channels_redis": {"level": "CRITICAL"},
    },
}
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.filter_by_level,
        logs.without_query,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
DJANGO_STRUCTLOG_CELERY_ENABLED = False

# The two apps -----------------------------------------------------------------------------------------------

#: Topic rules: the most specific pattern wins. `bus/conf.py` documents every key.
BUS: dict[str, Any] = {
    "MAX_CONNECTIONS": env.int("BUS_MAX_CONNECTIONS", default=100),
    "CONNECT_RATE": env.float("BUS_CONNECT_RATE", default=500.0),
    "CONNECT_BURST": env.int("BUS_CONNECT_BURST", default=1_000),
    "SHUTDOWN_SPREAD": timedelta(seconds=env.int("BUS_SHUTDOWN_SPREAD", default=3)),
    "TOKEN_SECRET": env.str("BUS_TOKEN_SECRET", default=SECRET_KEY),
    "TOKEN_PREVIOUS_SECRETS": env.list("BUS_TOKEN_PREVIOUS_SECRETS", default=[]),
    "PING_INTERVAL": timedelta(seconds=env.int("BUS_PING_INTERVAL", default=25)),
    "PONG_TIMEOUT": timedelta(seconds=env.int("BUS_PONG_TIMEOUT", default=8)),
    "HEARTBEAT_INTERVAL": timedelta(seconds=env.int("BUS_HEARTBEAT_INTERVAL", default=10)),
    "INSTANCE_LEASE": timedelta(seconds=env.int("BUS_INSTANCE_LEASE", default=45)),
    "PRESENCE_GRACE": timedelta(seconds=env.int("BUS_PRESENCE_GRACE", default=15)),
    "TASK_LEASE": timedelta(seconds=env.int("BUS_TASK_LEASE", default=45)),
    "VOLATILE": env.bool("BUS_VOLATILE", default=False),
}

CLEANUP: dict[str, Any] = {
    "STAGING_ROOT": Path(env.str("STAGING_ROOT", default=str(VAR_DIR / "staging"))),
    "NAIVE_TIMEZONE": env.str("CLEANUP_NAIVE_TIMEZONE", default=TIME_ZONE),
    "REDIS_URL": env.str("CLEANUP_REDIS_URL", default=REDIS_URL),
    "VERIFIER_HOSTS": env.list("CLEANUP_VERIFIER_HOSTS", default=[]),
    "QDRANT_URL": env.str("CLEANUP_QDRANT_URL", default=""),
    "QDRANT_API_KEY": env.str("CLEANUP_QDRANT_API_KEY", default=""),
    #: `up` makes an area of this name, and those that the pipeline writes to.
    "UPLOAD_AREA": env.str("CLEANUP_UPLOAD_AREA", default="incoming"),
    "PIPELINE_AUTO": env.list("CLEANUP_PIPELINE_AUTO", default=["incoming"]),
    "SOURCE_NETWORKS": env.list("CLEANUP_SOURCE_NETWORKS", default=[]),
    #: What signs the checkpoints of the audit, and the file outside the database that holds them.
    "AUDIT_KEY_FILE": Path(env.str("CLEANUP_AUDIT_KEY_FILE", default=str(VAR_DIR / "audit_key"))),
    "AUDIT_LOG_FILE": Path(
        env.str("CLEANUP_AUDIT_LOG_FILE", default=str(VAR_DIR / "audit_checkpoints.jsonl"))
    ),
    #: Paths that no staging area may be, contain or lie in.
    "FORBIDDEN_PATHS": [
        BASE_DIR / name for name in ("xnai_site", "bus", "cleanup", "templates", "tests", ".git")
    ],
}

# Admin: UNFOLD lives in xnai_site/console.py, so that its menu sits beside the pages it names ---------------

from xnai_site.console import UNFOLD  # noqa: E402, F401
