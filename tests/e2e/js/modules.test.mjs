/** The deciding parts of the dashboard: figures, words, what a card and a line show. No server, no page. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { amount, reduce, secondsLeft } from "../../../bus/static/bus/dashboard/cards.js";
import { line } from "../../../bus/static/bus/dashboard/feed.js";
import { bytes, count, duration, rate, relative } from "../../../bus/static/bus/dashboard/format.js";
import { readData } from "../../../bus/static/bus/dashboard/publish.js";
import { Figures, Rates, SILENT_AFTER_MS } from "../../../bus/static/bus/dashboard/stats.js";
import { ranked } from "../../../bus/static/bus/dashboard/topics.js";
import { defaultUrl, isFinal } from "../../../bus/static/bus/client.js";

const NEW = { status: "waiting", done: NaN, total: 0, unit: "", step: "", message: "", startedAt: null, updatedAt: 0 };

function event(type, data = {}, second = 0) {
  return { event_type: `task.${type}`, timestamp: `2026-11-22T09:15:${String(second).padStart(2, "0")}.5Z`, data };
}

test("bytes are given in decimal units, rounded to what matters", () => {
  const pairs = [[0, "0 B"], [999, "999 B"], [1000, "1.0 kB"], [999_499, "999 kB"], [999_500, "1.0 MB"], [88e9, "88.0 GB"]];
  for (const [value, text] of pairs) assert.equal(bytes(value), text);
});

test("numbers, rates and lengths of time are readable", () => {
  assert.equal(count(1234567), "1,234,567");
  assert.deepEqual([0, 0.26, 9.96, 1234].map(rate), ["0", "0.3", "10.0", "1,234"]);
  assert.deepEqual([0.4, 59, 60, 200, 7500].map(duration), ["0 s", "59 s", "1 min", "3 min 20 s", "2 h 5 min"]);
});

test("a moment is told from now, in the biggest unit that fits", () => {
  const now = new Date("2026-11-22T12:00:00Z");
  const at = (seconds) => relative(new Date(now.getTime() + 1000 * seconds), now);
  assert.equal(at(0), "now");
  assert.match(at(-5), /5 sec/);
  assert.match(at(-3700), /1 hr/);
  assert.match(at(86400 * 3), /3 days/);
});

test("a card follows its job from the start to the end", () => {
  const started = reduce(NEW, event("started", { step: "scan", unit: "files" }));
  assert.equal(started.status, "started");
  const running = reduce(started, event("progress", { done: 30, total: 120, message: "a.json" }, 10));
  assert.equal(amount(running), "30 of 120 files");
  assert.equal(running.step, "scan");
  assert.equal(secondsLeft(running), 30);
  const over = reduce(running, event("completed", {}, 40));
  assert.deepEqual([over.status, over.done, over.message], ["completed", 120, "a.json"]);
  assert.equal(secondsLeft(over), null);
});

test("a card that is seen late shows what its latest event says", () => {
  const view = reduce(NEW, event("progress", { done: 5e6, total: 2e7, unit: "bytes" }));
  assert.equal(amount(view), "5.0 MB of 20.0 MB");
  assert.equal(secondsLeft(view), null, "one event tells no pace");
});

test("a card bears events that say nothing, or nonsense", () => {
  for (const data of [null, 5, "text", [], { done: "many", total: -1 }, { total: Infinity }]) {
    const view = reduce(NEW, { event_type: "task.progress", timestamp: "x", data });
    assert.equal(view.status, "running");
    assert.equal(amount(view), "");
    assert.equal(secondsLeft(view), null);
  }
});

test("failing keeps what was reached, and says why", () => {
  const view = reduce(reduce(NEW, event("progress", { done: 3, total: 9 })), event("failed", { error: "no luck" }));
  assert.deepEqual([view.status, view.done, view.message], ["failed", 3, "no luck"]);
});

test("the last event of a job is known by its tag or by its type", () => {
  assert.equal(isFinal({ event_type: "output" }, { end: "completed" }), true);
  assert.equal(isFinal(event("cancelled")), true);
  assert.equal(isFinal(event("progress"), {}), false);
  assert.equal(isFinal(null), false);
});

test("a line of the feed says what was done, to what, how much and by whom", () => {
  const data = { action: "purge_intent", path: "a/b", area: "rejected", size: 1500, actor: "anna", reason: "older_than_age" };
  const one = line({ event_type: "audit.entry", timestamp: "2026-11-22T09:15:02Z", data });
  assert.deepEqual(
    [one.action, one.subject, one.where, one.much, one.actor, one.reason],
    ["purge intent", "a/b", "rejected", "1.5 kB", "anna", "older than age"],
  );
});

test("a summary of the feed counts what it stands for", () => {
  const data = { actions: { skipped: 2, trashed: 1000 }, count: 1002, bytes: 5e6, area: "results", actor: "beat" };
  const all = line({ event_type: "audit.batch", timestamp: "2026-11-22T09:15:02Z", data });
  assert.deepEqual([all.action, all.subject, all.much], ["1,000 trashed, 2 skipped", "results", "1,002 entries, 5.0 MB"]);
});

test("figures that are old are not shown as if they were of now", () => {
  const figures = new Figures();
  assert.equal(figures.connections(0), null);
  figures.take({ connections: 3, all_connections: 7 }, 1000);
  assert.equal(figures.connections(1000 + SILENT_AFTER_MS), 7);
  assert.equal(figures.connections(1001 + SILENT_AFTER_MS), null);
});

test("rates come from two looks, and a topic that began again counts nothing", () => {
  const rates = new Rates();
  const topic = (name, epoch, offset) => ({ name, epoch, last_offset: offset });
  assert.equal(rates.update([topic("a", "e", 10), topic("b", "e", 5)], 1000).all, null);
  const later = rates.update([topic("a", "e", 40), topic("b", "f", 2), topic("c", "e", 900)], 4000);
  assert.deepEqual([...later.each], [["a", 10], ["b", 0], ["c", 0]]);
  assert.equal(later.all, 10);
});

test("the busiest topic comes first, then the one that spoke last", () => {
  const topics = [
    { name: "old", updated_at: "2026-01-01" },
    { name: "new", updated_at: "2026-02-01" },
    { name: "busy", updated_at: "2025-01-01" },
  ];
  assert.deepEqual(ranked(topics, new Map([["busy", 3]])).map(({ name }) => name), ["busy", "new", "old"]);
});

test("data to publish is JSON, and nothing is an empty object", () => {
  assert.deepEqual(readData('{"a": [1]}'), { a: [1] });
  assert.deepEqual(readData("  "), {});
  assert.throws(() => readData("{a: 1}"), /The data is not JSON/);
});

test("the address of the bus is the one of the page", () => {
  assert.equal(defaultUrl({ protocol: "https:", host: "x.example" }), "wss://x.example/connection/websocket");
  assert.equal(defaultUrl({ protocol: "http:", host: "localhost:8000" }), "ws://localhost:8000/connection/websocket");
});
