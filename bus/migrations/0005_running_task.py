from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('bus', '0004_token_revocation'),
    ]

    operations = [
        migrations.CreateModel(
            name='RunningTask',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('topic', models.CharField(max_length=200, unique=True)),
                ('run', models.CharField(max_length=16, unique=True)),
                ('holder', models.CharField(max_length=255)),
                ('started_at', models.DateTimeField()),
                ('lease_until', models.DateTimeField(db_index=True)),
                ('doubted_at', models.DateTimeField(blank=True, null=True)),
            ],
            options={
                'ordering': ['topic'],
            },
        ),
    ]
