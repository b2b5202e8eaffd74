// Drives the stock `centrifuge` SDK by JSON lines: one command a line on stdin, answers and events on stdout.
// The same commands and events as python_client.py, so that one test speaks to both SDKs.

import { createInterface } from "node:readline";
import { Centrifuge } from "centrifuge";
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
    at: now(),
  });

const failed = (topic) => (context) =>
  say({ event: "error", topic, code: context.error?.code, message: String(context.error?.message) });

const positions = (result) => ({
  offset: result.offset,
  epoch: result.epoch,
  publications: result.publications.map(({ offset, data, tags }) => ({ offset, data, tags })),
});

const commands = {
  async connect({ url, token, data }) {
    client = new Centrifuge(url, { token, data, websocket: WebSocket, minReconnectDelay: 100, maxReconnectDelay: 1000 });
    for (const event of ["connecting", "connected", "disconnected"]) client.on(event, told(event, null));
    for (const event of ["subscribed", "unsubscribed"]) client.on(event, told(event, null, true));
    client.on("publication", published);
    client.on("error", failed());
    client.connect();
  },
  async disconnect() {
    client.disconnect();
  },
  async subscribe({ topic, ...options }) {
    const subscription = client.newSubscription(topic, options);
    subscriptions.set(topic, subscription);
    for (const event of ["subscribing", "subscribed", "unsubscribed"]) subscription.on(event, told(event, topic, false));
    subscription.on("publication", published);
    subscription.on("error", failed(topic));
    subscription.subscribe();
    await subscription.ready(10_000);
  },
  async unsubscribe({ topic }) {
    subscriptions.get(topic).unsubscribe();
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
