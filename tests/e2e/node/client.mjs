// Drives the stock `centrifuge` SDK by JSON lines: one command a line on stdin, answers and events on stdout.
// The same commands and events as python_client.py, so that one test speaks to both SDKs.

import { createInterface } from "node:readline";
import { Centrifuge, UnauthorizedError } from "centrifuge";
import WebSocket from "ws";

let client;
const subscriptions = new Map();

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const now = () => Date.now() / 1000;

const told = (event, topic, server) => (context) =>
  say({
    event,
    topic: topic ?? context.channel,
    server,
    code: context.code,
    reason: context.reason,
    recovered: context.recovered,
    was_recovering: context.wasRecovering,
    offset: context.streamPosition?.offset,
    epoch: context.streamPosition?.epoch,
    client: context.client,
    data: context.data,
    at: now(),
  });

const published = (context) =>
  say({
    event: "publication",
    topic: context.channel,
    offset: context.offset,
    data: context.data,
    tags: context.tags,
    info: context.info && { client: context.info.client, user: context.info.user },
    at: now(),
  });

const failed = (topic) => (context) =>
  say({ event: "error", topic, code: context.error?.code, message: String(context.error?.message) });

const cameOrWent = (event, topic, server) => ({ channel, info }) =>
  say({ event, topic: topic ?? channel, server, client: info.client, user: info.user, at: now() });

// What the SDK calls for a token or a state: each value once, then the last again and again. For null it is
// told that there is none to be had, and for an empty text that the one who gives them does not answer.
const supply = (values, event) => async () => {
  const value = values.length > 1 ? values.shift() : values[0];
  say({ event });
  if (value === null) throw new UnauthorizedError("none");
  if (value === "") throw new Error("no answer");
  return value;
};

const positions = (result) => ({
  offset: result.offset,
  epoch: result.epoch,
  publications: result.publications.map(({ offset, data, tags }) => ({ offset, data, tags })),
});

const commands = {
  async connect({ url, token, tokens, data, pingDelay }) {
    client = new Centrifuge(url, {
      token: token ?? "",
      getToken: tokens && supply(tokens, "token wanted"),
      data,
      websocket: WebSocket,
      timeout: 30_000,
      minReconnectDelay: 100,
      maxReconnectDelay: 1000,
      maxServerPingDelay: 1000 * (pingDelay ?? 10),
    });
    for (const event of ["connecting", "connected", "disconnected"]) client.on(event, told(event, null));
    for (const event of ["subscribed", "unsubscribed"]) client.on(event, told(event, null, true));
    for (const event of ["join", "leave"]) client.on(event, cameOrWent(event, null, true));
    client.on("publication", published);
    client.on("message", ({ data: message }) => say({ event: "message", data: message }));
    client.on("error", failed());
    client.connect();
  },
  async nothing() {},
  async disconnect() {
    client.disconnect();
  },
  async subscribe({ topic, tokens, states, ...options }) {
    const subscription = client.newSubscription(topic, {
      ...options,
      getToken: tokens && supply(tokens, "subscription token wanted"),
      getState: states && supply(states, "state wanted"),
      minResubscribeDelay: 100,
    });
    subscriptions.set(topic, subscription);
    for (const event of ["subscribing", "subscribed", "unsubscribed"]) subscription.on(event, told(event, topic, false));
    for (const event of ["join", "leave"]) subscription.on(event, cameOrWent(event, topic, false));
    subscription.on("publication", published);
    subscription.on("error", failed(topic));
    subscription.subscribe();
    await subscription.ready(60_000);
  },
  async unsubscribe({ topic }) {
    subscriptions.get(topic).unsubscribe();
  },
  async resubscribe({ topic }) {
    subscriptions.get(topic).subscribe();
    await subscriptions.get(topic).ready(60_000);
  },
  async publish_here({ topic, data }) {
    return subscriptions.get(topic).publish(data);
  },
  async look_here({ topic }) {
    const subscription = subscriptions.get(topic);
    const { clients } = await subscription.presence();
    const { numClients } = await subscription.presenceStats();
    const { publications } = await subscription.history({ limit: -1 });
    return { clients: Object.keys(clients).sort(), count: numClients, offsets: publications.map((pub) => pub.offset) };
  },
  async send({ data }) {
    return client.send(data);
  },
  // Many commands in one frame; their results in the order in which they were given.
  async batch({ publish, rpc }) {
    client.startBatching();
    const promises = [...publish.map(({ topic, data }) => client.publish(topic, data)), client.rpc(rpc, {})];
    client.stopBatching();
    return (await Promise.all(promises)).length;
  },
  async publish({ topic, data }) {
    return client.publish(topic, data);
  },
  async history({ topic, limit, since, reverse }) {
    return positions(await client.history(topic, { limit, since, reverse }));
  },
  async presence({ topic }) {
    const { clients } = await client.presence(topic);
    return Object.values(clients).map(({ client: id, user }) => ({ client: id, user }));
  },
  async presence_stats({ topic }) {
    const { numClients, numUsers } = await client.presenceStats(topic);
    return { clients: numClients, users: numUsers };
  },
  async rpc({ method, data }) {
    return (await client.rpc(method, data)).data;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: name, ...words } = JSON.parse(line);
  commands[name](words).then(
    (result) => say({ id, result: result ?? {} }),
    (error) => say({ id, error: { code: error.code, message: String(error.message) } }),
  );
}
process.exit(0);
