"""What the tests of the dashboard do again and again: open it, start jobs, follow topics, publish, freeze."""

from __future__ import annotations

from typing import Any

from redis import Redis

from tests.e2e.browser import Browser
from tests.harness import Program, Site

#: A process that holds a job and does not end by itself; run by `manage.py shell`.
FROZEN = """
import time
from bus.progress import Progress
with Progress("frozen") as progress:
    progress.update(1, 4, unit="steps")
    print("holding", flush=True)
    time.sleep(600)
"""


def open_live(window: Browser) -> None:
    window.open("/")
    window.until(lambda: window.text("[data-part=state-text]") == "Live", what="the connection")


def start(site: Site, task_id: str, total: int) -> None:
    site.python(
        f"from xnai_site.celery import app; app.send_task('tests.steps', args=[{total}], task_id={task_id!r})"
    )


def let_go_on(site: Site, task_id: str) -> None:
    with Redis.from_url(site.valkey.url) as gate:
        gate.rpush(f"gate:{task_id}", "go")


def card(task_id: str) -> str:
    return f'[data-task="{task_id}"]'


def write(page: Browser, selector: str, text: str) -> None:
    page.write(selector, text)


def follow(page: Browser, name: str) -> None:
    """Follow a topic or an agent, and wait until every event from now on will be seen."""
    write(page, "[data-part=trace-of]", name)
    page.click("[data-part=trace-form] [type=submit]")
    page.until(lambda: name.removeprefix("agent:") in page.text("[data-part=trace-name]"), what="the trace")
    ready = "return document.querySelector('[data-part=trace-rows]').dataset.ready"
    page.until(lambda: page.run(ready) == "yes", what="the subscription")


def offsets(page: Browser) -> list[int]:
    """The rows of the trace, the oldest first; 0 stands for a word on what is missing."""
    script = (
        "return [...document.querySelectorAll('[data-part=trace-rows] > li')].map((li) => li.dataset.offset)"
    )
    return [int(found or 0) for found in reversed(page.run(script))]


def publish(site: Site, topic: str, number: int) -> None:
    """Publish from a process of the server's own."""
    site.python(
        "from bus.publishing import publish\n"
        f"for n in range({number}): publish({topic!r}, 'output', {{'n': n}})"
    )


def scripted(page: Browser, body: str, *arguments: Any) -> Any:
    """Run a script with a client of its own, `bus`, and its arguments in `given`; return what it returns."""
    script = (
        "const given = [...arguments]; const done = given.pop();"
        "const page = document.querySelector('script[type=module]').src;"
        "const place = page.replace(/dashboard[^/]*js$/, 'client.js');"
        f"const work = async (bus) => {{ {body} }};"
        "import(place).then(async ({BusClient}) => done(await work(window.testBus ??= new BusClient())))"
        ".catch((error) => done(String(error)));"
    )
    return page.driver.execute_async_script(script, *arguments)


def say(page: Browser, topic: str, number: int, kind: str = "output") -> None:
    """Publish from the page itself."""
    body = "for (let n = 0; n < given[1]; n += 1) await bus.publish(given[0], given[2], {n}); return 'said'"
    assert scripted(page, body, topic, number, kind) == "said"


def freeze(site: Site, worker: Program) -> None:
    """Freeze a worker, but not while it holds the one write lock of SQLite: then all would stand still."""
    worker.freeze()
    while not site.is_writable():
        worker.thaw()
        worker.freeze()
