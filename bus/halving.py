"""Finding a place in a long table by halving, where a column rises with the key and has no index."""

from __future__ import annotations

from typing import Any

from django.db.models import Model


def first_since(model: type[Model], column: str, moment: Any) -> int:
    """The primary key from which on a column has reached `moment`, found by halving.

    The column rises with the key, and needs no index. If it has not been reached, the key after the last.
    """
    rows = model._default_manager.order_by("pk").values_list("pk", column)
    ends = rows.first(), rows.last()
    if ends[0] is None or ends[1] is None:
        return 0
    low, high = ends[0][0], ends[1][0] + 1
    while low < high:
        middle = (low + high) // 2
        found = rows.filter(pk__gte=middle).first()
        if found is None or found[1] >= moment:
            high = middle
        else:
            low = found[0] + 1
    return int(low)
