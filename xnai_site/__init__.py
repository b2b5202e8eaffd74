"""The site: settings, addresses and processes. The only package that sees both apps.

Importing it first of all puts a sound SQLite in place of the interpreter's own: every process of the site
imports `xnai_site.settings` before Django opens a database, so this is the one spot that all of them pass.
"""

from xnai_site import sqlite

sqlite.install()

from xnai_site.celery import app as celery_app  # noqa: E402  (SQLite must be in place before Celery imports Django)

__all__ = ["celery_app"]
