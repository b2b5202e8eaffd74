"""What storing an event costs: one index fewer, one that holds only events with a key, no foreign key."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("bus", "0001_initial")]

    operations = [
        migrations.RemoveConstraint(model_name="event", name="bus_event_topic_key"),
        migrations.AlterField(model_name="event", name="created_at", field=models.DateTimeField()),
        migrations.AlterField(
            model_name="event",
            name="topic",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="events",
                to="bus.topic",
            ),
        ),
        migrations.AddConstraint(
            model_name="event",
            constraint=models.UniqueConstraint(
                condition=models.Q(("key__isnull", False)),
                fields=("topic", "key"),
                name="bus_event_topic_key",
            ),
        ),
    ]
