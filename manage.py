#!/usr/bin/env python3
"""The one entry point: prepares `.venv` on first use, then hands over to Django.

Standard library only until Django is there, and readable by older interpreters, so that they get a sentence
instead of a syntax error. `xnai_site/bootstrap.py` does the preparing; it is loaded by its path, because
importing the package `xnai_site` needs what is not installed yet.
"""

import importlib.util
import os
import sys
from types import ModuleType

ROOT = os.path.dirname(os.path.abspath(__file__))


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  (the reader of the message has such a version)
        found = sys.version.split()[0]
        sys.exit(f"manage.py: Python 3.11 or newer is needed, this is {found}. Try: python3.12 manage.py …")
    bootstrap = load_bootstrap()
    try:
        bootstrap.prepare(sys.argv[1:])
    except bootstrap.BootstrapError as error:
        sys.exit(f"manage.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    run_django()


def load_bootstrap() -> ModuleType:
    """Load `xnai_site/bootstrap.py` without importing the package around it."""
    spec = importlib.util.spec_from_file_location(
        "xnai_bootstrap", os.path.join(ROOT, "xnai_site", "bootstrap.py")
    )
    assert spec is not None  # noqa: S101  (the path ends in .py, so there is a loader)
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_django() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "xnai_site.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"manage.py: the settings are wrong: {error}")


if __name__ == "__main__":
    main()
