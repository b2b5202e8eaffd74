"""docs/metrics.md lists every metric with its labels and no other; its alerts ask for real ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from bus import metrics
from bus.metrics import SiteCollector
from cleanup.metrics import CleanupCollector
from cleanup.models import OrphanBatch
from cleanup.staging import counting
from cleanup.verifiers.totals import add_answers
from tests.retention import Staging, fill_up

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\w+)[^|]*\|([^|]*)\|", re.MULTILINE)

pytestmark = [pytest.mark.sqlite_only, pytest.mark.django_db]


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """Name to kind and labels."""
    found = {}
    for name, kind, labels in ROW.findall(PAGE):
        found[name] = (kind, frozenset(re.findall(r"`(\w+)`", labels)))
    return found


def counted() -> dict[str, tuple[str, frozenset[str]]]:
    """What processes count themselves."""
    members = [*vars(metrics).values(), *vars(counting).values()]
    kinds = (member for member in members if isinstance(member, MetricWrapperBase))
    return {
        _full(member._name, member._type): (member._type, frozenset(member._labelnames)) for member in kinds
    }


def read(collector: Collector) -> dict[str, tuple[str, frozenset[str]]]:
    """What a collector reads from SQL."""
    return {
        _full(family.name, family.type): (
            family.type,
            frozenset(label for sample in family.samples for label in sample.labels),
        )
        for family in collector.collect()
    }


def _full(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


def test_every_metric_is_documented_with_its_kind_and_labels_and_no_other(tmp_path: Path) -> None:
    from django.utils import timezone

    from bus.connections import leases
    from bus.connections.leases import Details

    leases.enter(Details(client_id="c", connected_at=timezone.now()), "server-1")
    staging = Staging(tmp_path)
    staging.fill(2)
    staging.run(staging.policy())
    fill_up(staging.area)
    add_answers("policy/sidecar", {"pass": 2})
    OrphanBatch.objects.create(
        area=staging.area, kind="file", number=0, items=0, body=b"", seen_at=timezone.now()
    )
    assert documented() == {**counted(), **read(SiteCollector()), **read(CleanupCollector())}


def test_metrics_of_processes_are_registered_once() -> None:
    """Those of the site are not: a registry would ask SQL in each process."""
    exported = {_full(family.name, family.type) for family in REGISTRY.collect()}
    assert set(counted()) <= exported
    assert not set(read(SiteCollector())) & exported
    CollectorRegistry().register(SiteCollector())


def test_alerts_are_sound_yaml_and_ask_for_metrics_and_labels_that_exist() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (group,) = yaml.safe_load(text)["groups"]
    known = documented()
    assert len(group["rules"]) > 5
    for rule in group["rules"]:
        assert {"alert", "expr", "for", "annotations"} <= set(rule)
        asked = re.findall(r"((?:bus|cleanup|staging)_\w+)(?:\{(\w+)=)?", rule["expr"])
        assert asked, rule
        for name, label in asked:
            kind, labels = known[name.removesuffix("_bucket")]
            assert not label or label in labels, rule
            assert name.endswith("_bucket") is (kind == "histogram"), rule
