/** `client.js` against a real server: `BUS_URL` and `BUS_TOKEN` say which, and who we are. */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as wait } from "node:timers/promises";

import { BusClient, connectProgress } from "../../../bus/static/bus/client.js";

const options = { url: process.env.BUS_URL, token: process.env.BUS_TOKEN };
let publisher;
let last = 0;

const fresh = (name) => `${name}-${process.pid}-${(last += 1)}`;

/** A promise with its `resolve` outside. */
function later() {
  let resolve;
  const promise = new Promise((done) => (resolve = done));
  return { promise, resolve };
}

/** Collects events, and lets a test wait for the n-th. */
class Heard {
  constructor() {
    this.events = [];
    this.waiting = [];
  }

  take(event, about) {
    this.events.push({ ...event, ...about });
    this.waiting = this.waiting.filter(({ number, resolve }) => this.events.length < number || resolve());
  }

  reach(number) {
    if (this.events.length >= number) return Promise.resolve();
    const { promise, resolve } = later();
    this.waiting.push({ number, resolve });
    return promise;
  }

  get numbers() {
    return this.events.map(({ data }) => data.n);
  }
}

function follow(client, topic, options = {}) {
  const heard = new Heard();
  heard.gaps = 0;
  const handlers = { onEvent: (event, about) => heard.take(event, about), onGap: () => (heard.gaps += 1) };
  heard.subscription = client.subscribe(topic, handlers, options);
  return heard;
}

const progress = (task, data = {}) => publisher.publish(`task:${task}`, "task.progress", data);

before(async () => {
  publisher = new BusClient(options);
  const { promise, resolve } = later();
  publisher.onState(({ name }) => name === "connected" && resolve());
  await promise;
});

after(() => publisher.disconnect());

test("publishing answers with the position, and twice under one key with the same", async () => {
  const topic = fresh("room");
  const first = await publisher.publish(topic, "output", { n: 1 }, { key: "k" });
  const again = await publisher.publish(topic, "output", { n: 1 }, { key: "k" });
  assert.deepEqual([first.offset, first.duplicate, again.offset, again.duplicate], [1, false, 1, true]);
  assert.equal(first.epoch, again.epoch);
});

test("what is refused rejects with the code of the server", async () => {
  await assert.rejects(publisher.publish("sys:stats", "stats", {}), ({ code }) => code === 103);
});

test("the latest events come first, then the live ones, each once and in order", async () => {
  const topic = fresh("room");
  for (let n = 1; n <= 5; n += 1) await publisher.publish(topic, "output", { n });
  const heard = follow(publisher, topic, { recent: 3 });
  const more = [6, 7, 8, 9].map((n) => publisher.publish(topic, "output", { n })); // while it subscribes
  await Promise.all(more);
  await publisher.publish(topic, "output", { n: 10 });
  await heard.reach(3);
  while (heard.numbers.at(-1) !== 10) await heard.reach(heard.events.length + 1);
  const offsets = heard.events.map(({ offset }) => offset);
  assert.deepEqual(offsets, [...offsets].sort((a, b) => a - b));
  assert.equal(new Set(offsets).size, offsets.length);
  assert.deepEqual(heard.numbers.slice(-5).sort((a, b) => a - b), [6, 7, 8, 9, 10]);
  assert.equal(heard.gaps, 0);
  heard.subscription.close();
});

test("everything since a position is delivered", async () => {
  const topic = fresh("room");
  const { epoch } = await publisher.publish(topic, "output", { n: 1 });
  for (let n = 2; n <= 6; n += 1) await publisher.publish(topic, "output", { n });
  const heard = follow(publisher, topic, { since: { epoch, offset: 2 } });
  await heard.reach(4);
  assert.deepEqual(heard.numbers, [3, 4, 5, 6]);
  heard.subscription.close();
});

test("a position of another life of the topic is told as a gap", async () => {
  const topic = fresh("room");
  await publisher.publish(topic, "output", { n: 1 });
  const heard = follow(publisher, topic, { since: { epoch: "another", offset: 50 } });
  await publisher.publish(topic, "output", { n: 2 });
  while (heard.numbers.at(-1) !== 2) await heard.reach(heard.events.length + 1);
  assert.equal(heard.gaps, 1);
  heard.subscription.close();
});

test("a cursor goes on where it has acknowledged, and begins with the oldest event that is kept", async () => {
  const topic = fresh("room");
  const early = follow(publisher, fresh("nobody"), { cursor: "notes" }); // no such topic yet
  for (let n = 1; n <= 5; n += 1) await publisher.publish(topic, "output", { n });
  const first = follow(publisher, topic, { cursor: "notes" });
  await first.reach(5);
  assert.deepEqual(first.numbers, [1, 2, 3, 4, 5]);
  const { epoch, offset } = first.events[2];
  const state = await publisher.ack(topic, offset, "notes", epoch);
  assert.deepEqual([state.offset, state.lag], [3, 2]);
  first.subscription.close();
  const second = follow(publisher, topic, { cursor: "notes" });
  await second.reach(2);
  assert.deepEqual(second.numbers, [4, 5]);
  assert.equal((await publisher.cursor(topic, "notes")).offset, 3);
  assert.equal(first.gaps + second.gaps, 0);
  await publisher.publish(early.subscription.topic, "output", { n: 1 });
  await early.reach(1);
  second.subscription.close();
  early.subscription.close();
});

test("an acknowledgement for a former life of the topic is refused", async () => {
  const topic = fresh("room");
  await publisher.publish(topic, "output", { n: 1 });
  await assert.rejects(publisher.ack(topic, 1, "notes", "another"), ({ code }) => code === 112);
});

test("a cursor on a topic that may not be read is told as an error, once, and nothing is held", async () => {
  const refused = later();
  let errors = 0;
  const handlers = { onEvent: () => {}, onError: (error) => (errors += 1) && refused.resolve(error) };
  publisher.subscribe("agent:somebody", handlers, { cursor: "notes" });
  assert.equal((await refused.promise).code, 103);
  await wait(300);
  assert.equal(errors, 1);
  assert.equal(publisher.subscriptions, 0);
});

test("a closed subscription hears nothing more and may be made again", async () => {
  const topic = fresh("room");
  const heard = follow(publisher, topic);
  await wait(50);
  heard.subscription.close();
  heard.subscription.close();
  const again = follow(publisher, topic);
  await wait(50);
  await publisher.publish(topic, "output", { n: 1 });
  await again.reach(1);
  assert.equal(heard.events.length, 0);
  again.subscription.close();
  assert.equal(publisher.subscriptions, 0);
});

test("a job is followed to its end, and nothing is held afterwards", async () => {
  const task = fresh("job");
  await progress(task, { n: 1 });
  await progress(task, { n: 2 });
  const heard = new Heard();
  const ended = later();
  const started = Date.now();
  let closes = 0;
  const handlers = { onEvent: (event) => heard.take(event), onEnd: ended.resolve, onClose: () => (closes += 1) };
  const following = connectProgress(task, handlers, { ...options, lingerMs: 300 });
  await heard.reach(1);
  assert.deepEqual(heard.numbers, [2], "the latest event of the past is what a card needs");
  await progress(task, { n: 3 });
  await publisher.end(`task:${task}`, "completed", { n: 4 });
  const last = await ended.promise;
  assert.equal(last.event_type, "task.completed");
  const end = Date.now();
  await following.closed;
  assert.ok(Date.now() - end >= 290, "the end stays visible for the time that was asked for");
  assert.ok(Date.now() - started < 5000);
  assert.deepEqual(heard.numbers, [2, 3, 4]);
  following.close();
  assert.equal(closes, 1);
});

test("a job that was over before is shown and let go", async () => {
  const task = fresh("job");
  await publisher.end(`task:${task}`, "failed");
  const heard = new Heard();
  const following = connectProgress(task, { onEvent: (event) => heard.take(event) }, { client: publisher, lingerMs: 10 });
  await following.closed;
  assert.deepEqual(heard.events.map(({ event_type: type }) => type), ["task.failed"]);
  assert.equal(publisher.subscriptions, 0);
});

test("closing early ends it at once, without a word from the server", async () => {
  const heard = new Heard();
  const following = connectProgress(fresh("job"), { onEvent: (event) => heard.take(event) }, { client: publisher });
  following.close();
  await following.closed;
  assert.equal(publisher.subscriptions, 0);
});

test("every job has its own subscription on a shared connection, and the others stay", async () => {
  const [one, two] = [fresh("job"), fresh("job")];
  const heard = new Heard();
  const first = connectProgress(one, {}, { client: publisher, lingerMs: 10 });
  const second = connectProgress(two, { onEvent: (event) => heard.take(event) }, { client: publisher, lingerMs: 10 });
  await publisher.end(`task:${one}`);
  await first.closed;
  await progress(two, { n: 1 });
  await heard.reach(1);
  assert.equal(publisher.subscriptions, 1);
  second.close();
});

test("state is told: connecting, connected, and disconnected with the code of a refusal", async () => {
  const seen = [];
  const refused = later();
  const client = new BusClient({ url: options.url, token: "not a token", onState: (state) => seen.push(state) });
  client.onState(({ name }) => name === "disconnected" && refused.resolve());
  await refused.promise;
  assert.equal(seen.at(-1).name, "disconnected");
  assert.equal(seen.at(-1).code, 3500);
  client.disconnect();
});

test("a server that is not there is told as reconnecting, and disconnect ends the trying", async () => {
  const trying = later();
  const client = new BusClient({ url: "ws://127.0.0.1:9/connection/websocket" });
  client.onState(({ name }) => name === "reconnecting" && trying.resolve());
  await trying.promise;
  client.disconnect();
});
