"""Tokens that were taken back; and what a token says of its connection, for presence."""

from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("bus", "0003_subscription_orders")]

    operations = [
        migrations.AddField(
            model_name="presence", name="info", field=models.TextField(blank=True, default="")
        ),
        migrations.CreateModel(
            name="TokenRevocation",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("token_id", models.CharField(blank=True, max_length=200)),
                ("user_id", models.CharField(blank=True, max_length=180)),
                ("agent_id", models.CharField(blank=True, max_length=180)),
                ("revoked_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField(blank=True, db_index=True, null=True)),
                ("note", models.CharField(blank=True, max_length=200)),
            ],
            options={
                "ordering": ["-revoked_at"],
                "constraints": [
                    models.CheckConstraint(
                        name="bus_tokenrevocation_names_one",
                        condition=(
                            ~Q(token_id="") & Q(user_id="", agent_id="")
                            | ~Q(user_id="") & Q(token_id="", agent_id="")
                            | ~Q(agent_id="") & Q(token_id="", user_id="")
                        ),
                    )
                ],
            },
        ),
    ]
