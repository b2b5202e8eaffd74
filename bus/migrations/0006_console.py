from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('bus', '0005_running_task'),
    ]

    operations = [
        migrations.CreateModel(
            name='Pulse',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(max_length=8)),
                ('name', models.CharField(max_length=200)),
                ('started_at', models.DateTimeField()),
                ('at', models.DateTimeField()),
            ],
            options={
                'ordering': ['kind', 'name'],
                'constraints': [models.UniqueConstraint(fields=('kind', 'name'), name='bus_pulse_once')],
            },
        ),
        migrations.CreateModel(
            name='BusSample',
            fields=[
                ('at', models.DateTimeField(primary_key=True, serialize=False)),
                ('connections', models.PositiveIntegerField()),
                ('agents', models.PositiveIntegerField()),
                ('last_event', models.BigIntegerField(blank=True, null=True)),
            ],
            options={
                'ordering': ['-at'],
            },
        ),
        migrations.AlterField(
            model_name='connectionsession',
            name='agent_id',
            field=models.CharField(blank=True, max_length=180),
        ),
        migrations.AddIndex(
            model_name='connectionsession',
            index=models.Index(fields=['agent_id', 'connected_at'], name='bus_session_agent'),
        ),
    ]
