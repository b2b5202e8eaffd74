"""The head of the audit chain, and on PostgreSQL a trigger that refuses to change or remove an entry.

SQLite has no users to be kept from the table; there `cleanup audit verify` is what finds a change.
"""

from django.db import migrations

GENESIS = "00" * 32

GUARD = """
CREATE FUNCTION cleanup_refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit entries are never changed or removed (entry %)', OLD.seq;
END $$;
CREATE TRIGGER cleanup_audit_guard BEFORE UPDATE OR DELETE ON cleanup_auditentry
    FOR EACH ROW EXECUTE FUNCTION cleanup_refuse_audit_change();
"""

UNGUARD = """
DROP TRIGGER IF EXISTS cleanup_audit_guard ON cleanup_auditentry;
DROP FUNCTION IF EXISTS cleanup_refuse_audit_change();
"""


def make_head(apps, schema_editor):
    apps.get_model("cleanup", "AuditHead").objects.get_or_create(pk=1, defaults={"seq": 0, "hash": GENESIS})


def guard(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(GUARD, params=None)


def unguard(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(UNGUARD, params=None)


class Migration(migrations.Migration):
    dependencies = [("cleanup", "0001_initial")]

    operations = [
        migrations.RunPython(make_head, migrations.RunPython.noop),
        migrations.RunPython(guard, unguard),
    ]
