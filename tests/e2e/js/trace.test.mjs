/** The deciding parts of the live trace and of the publish box, over a log that this file keeps. No server, no page. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { wrongPlace } from "../../../bus/static/bus/dashboard/json_place.js";
import { latest, readData } from "../../../bus/static/bus/dashboard/publish.js";
import { LIMIT, Trace, between, merged } from "../../../bus/static/bus/dashboard/trace.js";
import { long, matches, pausedText, publisher, rowsText, short } from "../../../bus/static/bus/dashboard/trace_view.js";

/** A log in memory that speaks as `BusClient` does: topics with offsets from 1, trimmed where a test says so. */
class Log {
  constructor() {
    this.epoch = "e1";
    this.topics = new Map();
    this.handlers = new Map();
    this.counts = { reads: 0, closed: 0 };
    this.beforeAnswer = () => {};
  }

  publish(topic, data = {}) {
    const items = this.topics.get(topic) ?? [];
    this.topics.set(topic, items);
    const offset = (items.at(-1)?.offset ?? 0) + 1;
    const item = { event: { event_type: "output", timestamp: new Date(1e12 + 1000 * (this.time = (this.time ?? 0) + 1)).toISOString(), data }, offset, tags: {}, info: null };
    items.push(item);
    this.handlers.get(topic)?.onEvent(item.event, { offset, epoch: this.epoch, tags: {}, info: null, live: true });
  }

  trim(topic, number) {
    this.topics.get(topic).splice(0, number);
  }

  subscribe(topic, handlers) {
    this.handlers.set(topic, handlers);
    handlers.onReady();
    return { isReady: true };
  }

  async after(topic, since, limit) {
    this.counts.reads += 1;
    const items = this.topics.get(topic) ?? [];
    const offset = items.at(-1)?.offset ?? 0;
    if (since && (since.epoch !== this.epoch || since.offset < (items[0]?.offset ?? 1) - 1)) {
      throw Object.assign(new Error("unrecoverable position"), { code: 112 });
    }
    const found = since ? items.filter((item) => item.offset > since.offset).slice(0, limit) : [];
    await null;
    this.beforeAnswer();
    return { items: found, epoch: this.epoch, offset };
  }

  async recent(topic, limit) {
    return (this.topics.get(topic) ?? []).slice(-limit);
  }

  disconnect() {
    this.counts.closed += 1;
    this.handlers.clear();
  }
}

function traced(...topics) {
  const log = new Log();
  const rows = [];
  const trace = new Trace(() => Object.create(log), (more) => rows.push(...more), () => {});
  trace.follow(topics.length ? topics : ["a"]);
  return { log, rows, trace, shown: () => rows.map(({ offset, gap }) => offset ?? gap) };
}

const publish = (log, number, topic = "a") => Array.from({ length: number }).forEach(() => log.publish(topic));
const upTo = (last, first = 1) => Array.from({ length: last - first + 1 }, (_, index) => first + index);

test("a pause counts, and catching up shows what was missed in order and goes on", async () => {
  const { log, trace, shown } = traced();
  publish(log, 3);
  trace.pause("button");
  publish(log, 150);
  assert.equal(trace.missed, 150);
  assert.deepEqual(shown(), upTo(3));
  await trace.catchUp();
  assert.deepEqual([trace.mode, trace.missed], ["live", 0]);
  publish(log, 2);
  assert.deepEqual(shown(), upTo(155));
});

test("what comes while the past is read is neither lost nor shown twice", async () => {
  const { log, trace, shown } = traced();
  publish(log, 1);
  trace.pause("button");
  publish(log, 120);
  log.beforeAnswer = () => log.time < 130 && log.publish("a");
  await trace.catchUp();
  publish(log, 1);
  assert.deepEqual(shown(), upTo(log.topics.get("a").length));
});

test("a pause longer than the rows says what it leaves out", async () => {
  const { log, trace, shown } = traced();
  publish(log, 1);
  trace.pause("away");
  publish(log, LIMIT + 50);
  await trace.catchUp();
  assert.deepEqual(shown(), [1, between(2, 51, `more than the ${LIMIT} rows of a trace`), ...upTo(LIMIT + 51, 52)]);
});

test("what was trimmed during the pause is named", async () => {
  const { log, trace, shown } = traced();
  publish(log, 1);
  trace.pause("button");
  publish(log, 9);
  log.trim("a", 4);
  await trace.catchUp();
  assert.deepEqual(shown(), [1, "offsets 2 to 4 are not shown: not kept any more", ...upTo(10, 5)]);
});

test("a topic that began again during the pause says so", async () => {
  const { log, trace, shown } = traced();
  publish(log, 3);
  trace.pause("button");
  log.topics.clear();
  log.epoch = "e2";
  publish(log, 2);
  await trace.catchUp();
  assert.deepEqual(shown(), [1, 2, 3, "the topic began again: its offsets count from 1", 1, 2]);
});

test("skipping leaves a word on what was skipped", () => {
  const { log, trace, shown } = traced();
  publish(log, 2);
  trace.pause("button");
  publish(log, 3);
  trace.skip();
  publish(log, 1);
  assert.deepEqual(shown(), [1, 2, "offsets 3 to 5 are not shown: skipped", 6]);
});

test("a trace that begins with a pause has missed nothing unseen", async () => {
  const { log, trace, shown } = traced();
  trace.pause("button");
  publish(log, 2);
  await trace.catchUp();
  assert.deepEqual(shown(), [1, 2]);
});

test("who comes back goes on at once if nothing was missed, and is asked otherwise", () => {
  const { log, trace, shown } = traced();
  trace.pause("away");
  trace.back();
  assert.equal(trace.mode, "live");
  trace.pause("away");
  publish(log, 1);
  trace.back();
  assert.equal(trace.mode, "paused");
  assert.deepEqual(shown(), []);
  trace.skip();
  trace.pause("button");
  trace.back();
  assert.equal(trace.mode, "paused", "who pressed the button wants it");
});

test("a history that cannot be read leaves the pause as it was", async () => {
  const { log, trace, shown } = traced();
  publish(log, 1);
  trace.pause("button");
  publish(log, 2);
  log.after = async () => {
    log.publish("a");
    throw Object.assign(new Error("no connection"), { code: 2 });
  };
  await trace.catchUp();
  assert.deepEqual([trace.mode, trace.missed], ["paused", 3]);
  assert.match(trace.trouble, /no connection/);
  delete log.after;
  await trace.catchUp();
  assert.deepEqual(shown(), upTo(4));
});

test("several topics are caught up by their times, each in its own order", async () => {
  const { log, trace, rows } = traced("a", "b");
  trace.pause("button");
  for (const topic of ["a", "b", "b", "a", "b"]) log.publish(topic);
  await trace.catchUp();
  assert.deepEqual(rows.map(({ topic, offset }) => `${topic}${offset}`), ["a1", "b1", "b2", "a2", "b3"]);
  assert.deepEqual(merged([]), []);
});

test("another trace ends the one before, with its connection", async () => {
  const { log, trace, shown } = traced();
  trace.pause("button");
  publish(log, 1);
  const reading = trace.catchUp();
  trace.follow(["b"]);
  await reading;
  assert.deepEqual(shown(), []);
  assert.deepEqual([log.counts.closed, trace.mode, trace.topics], [1, "live", ["b"]]);
  trace.stop();
  assert.deepEqual([trace.mode, trace.ready], ["idle", true]);
});

test("events without an offset are kept during a pause, since no history has them", async () => {
  const { log, trace, rows } = traced();
  trace.pause("button");
  log.handlers.get("a").onEvent({ event_type: "sys.stats", timestamp: "", data: {} }, { tags: {}, info: null });
  assert.equal(trace.missed, 1);
  await trace.catchUp();
  assert.deepEqual([rows.length, log.counts.reads], [1, 0]);
});

test("the place of an error in JSON is found, and what is JSON has none", () => {
  for (const text of ["{}", " [1, -2.5e3, \"a\\u00e9\", null, {\"b\": [true]}]\n", '"x"', "0"]) {
    assert.equal(wrongPlace(text), null, text);
    JSON.parse(text);
  }
  const places = { "{broken": [1, 2], '{"a": 1,\n "b" 2}': [2, 6], "[1, 2": [1, 6], "[01]": [1, 3], '{"a": tru}': [1, 7], '{"a": 1} x': [1, 10], "[1,]": [1, 4], '"open': [1, 1] };
  for (const [text, [line, column]] of Object.entries(places)) {
    const found = wrongPlace(text);
    assert.deepEqual([found?.line, found?.column], [line, column], text);
    assert.throws(() => JSON.parse(text));
  }
  assert.throws(() => readData('{\n  "a": }'), { message: "The data is not JSON: line 2, column 8 wants a value.", at: 9 });
});

test("topics that were used are remembered, each once, the latest first", () => {
  assert.deepEqual(latest(["b", "a"], "a"), ["a", "b"]);
  assert.equal(latest(Array.from("abcdefghij"), "new").length, 8);
});

test("a row says who published and what, clipped", () => {
  assert.deepEqual([publisher(null, "1"), publisher({ user: "1" }, "1"), publisher({ user: "2" }, "1"), publisher({ user: "crawler" }, "1")], ["server", "you", "person 2", "crawler"]);
  assert.equal(short({ a: "x".repeat(500) }).length, 161);
  assert.match(long("x".repeat(30_000)), /… 10,002 more characters$/);
  assert.equal(short(undefined), "");
  assert.equal(matches({ event: { event_type: "task.Progress" } }, " PROG "), true);
  assert.equal(matches({ event: { event_type: "output" } }, "prog"), false);
  assert.equal(matches({ gap: "…" }, "prog"), true);
});

test("a pause and the number of rows are told in words", () => {
  assert.equal(pausedText("paused", "away", 0), "Paused, since nobody looked at this page. Nothing was missed.");
  assert.equal(pausedText("paused", "button", 1), "Paused. 1 event was missed.");
  assert.equal(rowsText(200, 1300, 0), "the last 200 of 1,300 events");
  assert.equal(rowsText(1, 1, 1), "1 event, 1 hidden by the filter");
});
