"""The verbs about the trash: `extend`, `manifest`, and the orders that a worker carries out.

`restore` and `purge` are in `verbs`. With `--queue` each of the three makes an order: everything that the
options find is then done by a worker, in batches.
"""

from __future__ import annotations

from typing import Any

import msgspec
from django.db.models import Sum

from cleanup import operations
from cleanup.management.output import DONE, SOME_SKIPPED, Answer, size, table
from cleanup.management.verbs import actor, found_by, in_trash, item_id, order_answer, rolled_back
from cleanup.models import CleanupItem, OrderVerb, TrashOrder
from cleanup.operations import NotFound, OperationRefused, manifests, orders, trash_filters
from cleanup.stores.sql import chunks

Options = dict[str, Any]

#: Orders that are listed, the newest.
_MOST = 50


def extend(options: Options) -> Answer:
    """Keep files in the trash for longer."""
    if options["queue"] and not options["dry_run"]:
        if options["item"]:
            raise OperationRefused("single items are done at once: --queue is for what is found")
        made = orders.order(OrderVerb.EXTEND, found_by(options), actor=actor(), by=options["by"])
        return order_answer(made)
    ids = in_trash(options)
    held = sum(
        CleanupItem.objects.filter(pk__in=part).aggregate(total=Sum("size"))["total"] or 0
        for part in chunks(list(ids))
    )
    if options["dry_run"]:
        line = f"{len(ids)} items, {size(held)} would stay longer."
        return Answer(data={"extended": 0, "items": len(ids), "bytes": held, "dry_run": True}, lines=[line])
    number = operations.extend_grace(ids, by=options["by"], actor=actor())
    return Answer(
        data={"extended": number, "bytes": held}, lines=[f"{number} items, {size(held)} stay longer."]
    )


def manifest(options: Options) -> Answer:
    """What the trash itself says of one item."""
    rows = CleanupItem.objects.select_related("area", "run__policy_version__policy")
    item = rows.filter(pk=item_id(options["item"])).first()
    if item is None:
        raise NotFound(f"there is no item {options['item']}")
    found = manifests.on_disk(item)
    if found is None:
        raise OperationRefused(f"{item.path} is {item.get_state_display()}: nothing of it is in the trash")
    data = {"item": str(item.pk), "state": item.state, **msgspec.to_builtins(found)}
    if found.trouble:
        return Answer(data=data, lines=[f"The manifest cannot be read: {found.trouble}."], code=SOME_SKIPPED)
    lines = [f"The files are {found.files}.", *(f"{name}: {value}" for name, value in found.says.items())]
    shown = [[one["mode"], f"{one['uid']}:{one['gid']}", one["size"], one["mtime"], one["path"]]
             for one in found.members]  # fmt: skip
    lines += table(shown, header=["MODE", "OWNER", "SIZE", "CHANGED", "PATH"])
    lines += [f"DISAGREES: {one}" for one in found.differences]
    is_right = found.is_whole and not found.differences
    return Answer(data=data, lines=lines, code=DONE if is_right else SOME_SKIPPED)


def orders_list(_: Options) -> Answer:
    """The newest orders."""
    rows = list(TrashOrder.objects.all()[:_MOST])
    data = [dict(order_answer(row).data) for row in rows]
    lines = table(
        [
            [row.pk, row.verb, row.state, f"{row.done_files} of {row.files}", size(row.bytes),
             trash_filters.in_words(row.filter)]
            for row in rows
        ],
        header=["ORDER", "VERB", "STATE", "FILES", "BYTES", "OF"],
    )  # fmt: skip
    return Answer(data={"orders": data}, lines=lines)


@rolled_back
def orders_stop(options: Options) -> Answer:
    """End an order."""
    return order_answer(orders.stop_order(orders.find_order(options["order"]), actor=actor()))


def orders_run(options: Options) -> Answer:
    """Go on with an order here."""
    found = orders.find_order(options["order"])
    return order_answer(found if options["dry_run"] else orders.carry_out_order(found.pk))
