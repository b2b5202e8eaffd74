"""The read path: this process's topics, who reads them here, and how they stay complete.

    hint (own commit, or another process) --> feed --> every subscription, in order, each event once
    every second: the log's positions --> what no hint told of is read and passed on

There is one hub in a process; it starts in the running event loop with the first connection, for not every
ASGI server announces its start. Its promise: a subscriber gets offset after offset of one epoch, or its
subscription is ended with a code that makes it come again (2500). No SQL runs in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from bus import layer, memory, publishing
from bus.access.permissions import rule_of
from bus.conf import conf
from bus.connections import manager, orders, presence, reaper
from bus.connections.live import is_meant
from bus.fanout import tending
from bus.fanout.feeds import Feed, Subscribed, Subscriber, Subscription
from bus.fanout.lives import Lives
from bus.fanout.openings import Openings
from bus.faults import fault
from bus.layer import Control, LiveEvent
from bus.link import Link, end_tasks
from bus.log import TopicState
from bus.log.current import event_log
from bus.log.threads import in_thread
from bus.metrics import GAP_FILLS, LOOP_LAG, LOOP_TASKS
from bus.protocol.errors import BusError, DisconnectCode, UnrecoverablePosition, UnsubscribeCode
from bus.protocol.positions import Position
from bus.replay import Replay, fitting, live

logger = logging.getLogger(__name__)


class Hub:
    """See the module. Everything here belongs to the event loop that started it."""

    def __init__(self) -> None:
        options = conf()
        self._loop = asyncio.get_running_loop()
        self._replay = Replay(event_log(), page=options.replay_page)
        self._feeds: dict[str, Feed] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: Feeds that are being filled from the log, each with the offset to reach.
        self._filling: dict[str, int] = {}
        #: Offsets that were hinted before the log was read for the first time.
        self._early: dict[str, int] = {}
        self._lives = Lives(self._let_go)
        self._openings = Openings()
        #: When those topics that are read here and were never written to are renewed next.
        self._renew_at = 0.0
        self._lag = 0.0
        self._passed_on = 0
        self.link = Link(self)

    def start(self) -> None:
        """Attach to the layer and begin to tick."""
        layer.attach(self, self.link)
        self.link.start()
        self.spawn(self._tick_for_ever())
        self.spawn(reaper.watch_for_ever())
        self.spawn(memory.give_back_for_ever())
        self.spawn(manager.connection_manager.beat_for_ever(lambda: (self._lag * 1000, self.link.is_up)))

    async def stop(self) -> None:
        """End the tasks and leave the layer. Connections are to be closed before."""
        layer.detach(self)
        self._lives.close()
        await end_tasks(list(self._tasks))
        await self.link.stop()

    def spawn(self, work: object) -> None:
        """Run a coroutine until the hub stops. What it raises is logged."""
        task: asyncio.Task[None] = self._loop.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, BusError):
            logger.warning("work of the hub was not done: %s", error)  # the tick does it again
        elif error is not None:
            logger.error("a task of the hub failed", exc_info=error)

    @property
    def topics(self) -> list[str]:
        """Topics that are read here."""
        return list(self._feeds)

    def readers(self) -> Counter[str]:
        """Return how many read each topic here."""
        return Counter({topic: len(feed.subscriptions) for topic, feed in self._feeds.items()})

    async def subscribe(
        self, subscriber: Subscriber, topic: str, since: Position | None = None
    ) -> Subscribed:
        """Subscribe; live events are held back until `release`.

        Args:
            subscriber: who reads; once for each topic.
            topic: what it may read: rights were checked.
            since: the last event it has; None to begin with what comes now.

        Raises:
            LogUnavailable: the log could not be read.
        """
        fault("hub.before_locate")
        feed = self._feed(topic)
        subscription = Subscription(feed, subscriber, subscriber.queue, subscriber.form)
        feed.subscriptions[subscriber] = subscription
        try:
            return await self._locate(subscription, since)
        except BaseException:
            self.unsubscribe(subscriber, topic)
            raise

    async def _locate(self, subscription: Subscription, since: Position | None) -> Subscribed:
        feed = subscription.feed
        if not feed.is_logged:
            return self._at(subscription, Position(epoch="", offset=0), recovered=False, events=[], top=0)
        if since is not None and (epoch := self._lives.next_of(feed.topic, since.epoch)):
            if (anew := await self._begin_anew(subscription, epoch)) is not None:
                return anew
            self._lives.forget(feed.topic)
        here = Position(epoch=feed.epoch, offset=feed.last)
        if feed.epoch and since in (None, here):
            # The feed stands there already, so there is nothing to read.
            return self._at(subscription, here, recovered=since is not None, events=[], top=feed.last)
        found = await self._replay.recover(feed.topic, since)
        position, top = found.position, found.top
        if not position.epoch:
            self._openings.take(subscription.subscriber.details, self._loop.time())
            opened, top = await self._open(feed.topic)
            # Who recovers from the beginning also gets what was stored since the log was read.
            position = Position(epoch=opened.epoch, offset=0) if found.recovered else opened
        feed.locate(position.epoch, top)
        if self._early.pop(feed.topic, 0) > feed.last:
            self.spawn(self._compare([feed]))
        events = fitting(found.events)
        if len(events) < len(found.events):
            position = Position(epoch=position.epoch, offset=events[-1].offset)
        return self._at(subscription, position, recovered=found.recovered, events=events, top=top)

    async def _begin_anew(self, subscription: Subscription, epoch: str) -> Subscribed | None:
        """Start at the beginning of the topic's new life, for one who was reading the former to its end.

        Not recovered, for the position is void; but nothing of the new life is missed, it follows as pushes.
        None if that life is over, too.
        """
        found = await self._replay.recover(subscription.feed.topic, None)
        if found.position.epoch != epoch:
            return None
        subscription.feed.locate(epoch, found.top)
        start = Position(epoch=epoch, offset=0)
        return self._at(subscription, start, recovered=False, events=[], top=found.top)

    async def _open(self, topic: str) -> tuple[Position, int]:
        """Let a topic come to be, so that its first subscribers already know its epoch."""
        state = await in_thread(event_log().open, topic)
        return Position(epoch=state.epoch, offset=state.last_offset), state.last_offset

    def _at(
        self, subscription: Subscription, at: Position, *, recovered: bool, events: list[LiveEvent], top: int
    ) -> Subscribed:
        subscription.at, subscription.epoch = at.offset, at.epoch
        return Subscribed(
            subscription=subscription,
            recovered=recovered,
            epoch=at.epoch,
            offset=at.offset,
            events=events,
            top=top,
        )

    def release(self, subscribed: Subscribed) -> None:
        """Let live events through, after what is still missing."""
        fault("hub.before_release")
        subscription = subscribed.subscription
        subscription.answered = True
        if subscription.ended:
            if subscription.owed_end:
                subscription.subscriber.unsubscribed(subscription.feed.topic, subscription.owed_end)
            return
        if subscribed.epoch != subscription.feed.epoch:
            self._end(subscription, UnsubscribeCode.INSUFFICIENT_STATE)
        elif subscribed.offset < subscribed.top or not subscription.go_live():
            self.spawn(self._catch_up(subscription, subscribed.top))

    def unsubscribe(self, subscriber: Subscriber, topic: str) -> None:
        """Forget a subscription, if there is one. The subscriber is not told."""
        feed = self._feeds.get(topic)
        subscription = feed.subscriptions.pop(subscriber, None) if feed else None
        if feed is None or subscription is None:
            return
        subscription.ended = True
        subscriber.queue.forget(topic)
        if not feed.subscriptions:
            self._drop(feed)

    def _feed(self, topic: str) -> Feed:
        feed = self._feeds.get(topic)
        if feed is None:
            feed = self._feeds[topic] = Feed(topic, rule_of(topic).delivery, self._loop.call_soon)
            self.link.join(topic)
        return feed

    def _drop(self, feed: Feed) -> None:
        if self._feeds.get(feed.topic) is feed:
            del self._feeds[feed.topic]
            self._early.pop(feed.topic, None)
            self.link.leave(feed.topic)

    def _end(self, subscription: Subscription, code: int) -> None:
        self.unsubscribe(subscription.subscriber, subscription.feed.topic)
        if subscription.answered:
            subscription.subscriber.unsubscribed(subscription.feed.topic, code)
        else:
            subscription.owed_end = code

    def _end_all(self, feed: Feed, code: int) -> None:
        for subscription in list(feed.subscriptions.values()):
            self._end(subscription, code)

    async def _catch_up(self, subscription: Subscription, top: int) -> None:
        """Send what lies between a subscription and the present, page by page as its socket takes it."""
        feed = subscription.feed
        try:
            while not subscription.ended:
                since = Position(epoch=subscription.epoch, offset=subscription.at)
                async for page in self._replay.pages(feed.topic, since, max(feed.last, top)):
                    if subscription.ended:
                        return
                    await self._send_page(subscription, live(page))
                if subscription.go_live():
                    return
        except UnrecoverablePosition:
            self._end(subscription, UnsubscribeCode.INSUFFICIENT_STATE)
        except BusError as error:
            logger.warning("a replay of %s failed: %s", feed.topic, error)
            self._end(subscription, UnsubscribeCode.INSUFFICIENT_STATE)

    async def _send_page(self, subscription: Subscription, events: list[LiveEvent]) -> None:
        while events and not subscription.ended:
            part = fitting(events)
            fault("hub.before_page")
            subscription.send_events(part)
            events = events[len(part) :]
            # No socket tells when it has taken something.
            while not subscription.subscriber.queue.is_relaxed and not subscription.ended:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def hear_hint(self, topic: str, epoch: str, first: int, last: int, events: Sequence[LiveEvent]) -> None:
        """Pass on what was published, or fetch it."""
        feed = self._feeds.get(topic)
        if feed is None:
            return
        if not first:
            self._pass_on(feed, events)
        elif not feed.epoch:
            # The first subscriber is just reading the log; whether it sees these events is not known yet.
            self._early[topic] = last
        elif epoch != feed.epoch:
            self.spawn(self._compare([feed]))
        elif last > feed.last:
            if events and not feed.misses(epoch, first):
                self._pass_on(feed, events)
            else:
                self._fill(feed, last)

    def hear_control(self, order: Control) -> None:
        """Carry out an order about connections, subscriptions or presence."""
        if not orders.is_new(order):
            return
        if order.kind in ("join", "leave"):
            feed = self._feeds.get(order.topic)
            for subscriber in list(feed.subscriptions) if feed else []:
                subscriber.somebody_came_or_went(order)
        elif order.kind == "unsubscribe":
            self._unsubscribe_by_order(order)
        else:
            manager.connection_manager.hear(order)

    def _unsubscribe_by_order(self, order: Control) -> None:
        feed = self._feeds.get(order.topic)
        for subscription in list(feed.subscriptions.values()) if feed else []:
            if is_meant(order, subscription.subscriber):
                self._end(subscription, order.code or UnsubscribeCode.SERVER)

    def _pass_on(self, feed: Feed, events: Sequence[LiveEvent]) -> None:
        self._passed_on += len(events)
        fault("hub.before_pass_on")
        feed.pass_on(events)
        fault("hub.after_pass_on")

    def _fill(self, feed: Feed, top: int) -> None:
        """Fetch up to `top`, unless somebody is about it: then that one goes on to `top`."""
        is_running = feed.topic in self._filling
        self._filling[feed.topic] = max(top, self._filling.get(feed.topic, 0))
        if not is_running:
            GAP_FILLS.inc()
            self.spawn(self._fill_gap(feed))

    async def _fill_gap(self, feed: Feed) -> None:
        try:
            while feed.last < self._filling[feed.topic]:
                fault("hub.before_fill")
                since = Position(epoch=feed.epoch, offset=feed.last)
                for event_page in [
                    page async for page in self._replay.pages(feed.topic, since, since.offset + 1)
                ]:
                    self._pass_on(feed, live(event_page))
        except UnrecoverablePosition:
            self._end_all(feed, UnsubscribeCode.INSUFFICIENT_STATE)
        except BusError as error:
            logger.warning("a gap in %s could not be filled yet: %s", feed.topic, error)
        finally:
            self._filling.pop(feed.topic, None)

    async def _tick_for_ever(self) -> None:
        interval = conf().tick_interval.total_seconds()
        due = self._loop.time() + interval
        while True:
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            self._lag = max(0.0, self._loop.time() - due)
            LOOP_LAG.set(self._lag)
            LOOP_TASKS.set(len(asyncio.all_tasks()))
            due = max(due, self._loop.time()) + interval
            try:
                await self._tick(interval)
            except BusError as error:
                logger.warning("the log could not be compared: %s", error)
            except Exception:
                logger.exception("a tick failed")

    async def _tick(self, interval: float) -> None:
        fault("hub.tick")
        tending.tend_queues(self._feeds.values(), self._loop.time())
        self._show_stats(interval)
        await self._compare([feed for feed in self._feeds.values() if feed.is_logged and feed.epoch])
        await manager.connection_manager.check()
        if manager.connection_manager.count:
            await orders.carry_out(self.hear_control)
        await presence.end_leases()
        await self._renew()

    async def _renew(self) -> None:
        """Keep topics that are read here, though nobody has written to them yet, from being forgotten."""
        now = self._loop.time()
        if now < self._renew_at:
            return
        self._renew_at = now + conf().unused_topic_age.total_seconds() / 4
        unused = [feed.topic for feed in self._feeds.values() if feed.epoch and not feed.last]
        if unused:
            await in_thread(event_log().renew, unused)

    async def _compare(self, feeds: list[Feed]) -> None:
        """Find what no hint told of: newer events, other epochs, ended topics."""
        if not feeds:
            return
        states = await in_thread(event_log().states, [feed.topic for feed in feeds])
        for feed in feeds:
            if self._feeds.get(feed.topic) is feed:
                self._compare_one(feed, states.get(feed.topic))

    def _compare_one(self, feed: Feed, state: TopicState | None) -> None:
        if state is None or state.epoch != feed.epoch:
            if state is not None:
                self._lives.begun_anew(feed.topic, feed.epoch, state.epoch)
            self._end_all(feed, UnsubscribeCode.INSUFFICIENT_STATE)
            return
        if state.last_offset > feed.last:
            self._fill(feed, state.last_offset)
        if state.ended_at is not None:
            self._lives.ended(feed.topic, feed.epoch)

    def _let_go(self, topic: str, epoch: str) -> None:
        """End the subscriptions of a topic that has ended, unless it has begun anew."""
        feed = self._feeds.get(topic)
        if feed is not None and feed.epoch == epoch:
            self._end_all(feed, UnsubscribeCode.ENDED)

    def _show_stats(self, interval: float) -> None:
        passed_on, self._passed_on = self._passed_on, 0
        feed = self._feeds.get(tending.STATS_TOPIC)
        if feed is not None:
            stats = tending.figures(
                topics=len(self._feeds),
                events_per_second=passed_on / interval,
                lag=self._lag,
                layer_up=self.link.is_up,
            )
            feed.pass_on([stats])


_hub: Hub | None = None


def hub() -> Hub:
    """Return the hub of this process, started in the running event loop if there is none yet."""
    global _hub
    loop = asyncio.get_running_loop()
    if _hub is None or _hub._loop is not loop:
        _hub = Hub()
        _hub.start()
    return _hub


def running() -> Hub | None:
    """Return the hub, if one runs."""
    return _hub


async def shut_down(spread: float = 3.0, hurry: asyncio.Event | None = None) -> None:
    """Take leave of all clients within `spread` seconds, commit what is owed, remove our rows.

    Clients are told to come again (3001), spread over time so that they do not all come to the other servers
    at once; `hurry`, once set, ends the waiting. Without a hub there is nothing to take leave of.
    """
    global _hub
    former, _hub = _hub, None
    here = manager.connection_manager
    fault("shutdown.began")
    if former is not None:
        await here.close_all(DisconnectCode.SHUTDOWN, spread=spread, hurry=hurry)
    fault("shutdown.closed")
    await asyncio.to_thread(publishing.stop_writer)
    fault("shutdown.flushed")
    if former is not None:
        await former.stop()
        await here.remove_rows()
