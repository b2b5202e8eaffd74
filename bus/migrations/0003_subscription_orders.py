"""Orders to begin or end subscriptions, so that they are carried out without a channel layer, too."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("bus", "0002_event_writes_less")]

    operations = [
        migrations.CreateModel(
            name="SubscriptionOrder",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("server_instance", models.CharField(db_index=True, max_length=100)),
                ("order", models.TextField()),
                ("created_at", models.DateTimeField(db_index=True)),
            ],
        ),
    ]
