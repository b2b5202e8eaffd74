/**
 * The JavaScript client of the bus: an ES module over the stock Centrifugo SDK.
 *
 * `BusClient` is one connection. `subscribe` delivers the events of a topic in the order of their offsets and each
 * once, also across a reconnection; what can no longer be had is told by `onGap`, never left out in silence.
 * `connectProgress` follows one job to its end, and leaves no subscription, timer or handler behind.
 */

import { Centrifuge } from "./vendor/centrifuge/centrifuge.js";

/** How long the end of a job stays visible before its subscription is given up, ms. */
export const LINGER_MS = 2000;

/** Codes of the server: from here on they are its own, below they are the SDK's. */
const SERVER_CODES = 100;
const UNKNOWN_TOPIC = 102;

/**
 * @typedef {{event_type: string, timestamp: string, run_id: string | null, session_id: string | null, data: any}} BusEvent
 * @typedef {{user?: string, client?: string, conn_info?: any}} Publisher
 * @typedef {{offset?: number, epoch?: string, tags: Record<string, string>, info: Publisher | null, live: boolean}} About
 *   where an event is, who published it (null: the server's own code), and whether it came live
 * @typedef {{topic: string, epoch: string, offset: number, id: string, duplicate: boolean}} Place
 * @typedef {{topic: string, cursor: string, epoch: string, offset: number, lag: number}} CursorState
 * @typedef {{name: "connecting" | "connected" | "reconnecting" | "disconnected", code?: number, reason?: string}} State
 * @typedef {object} Handlers
 * @property {(event: BusEvent, about: About) => void} onEvent
 * @property {() => void} [onReady] subscribed, and again after each reconnection: what is published from now on arrives
 * @property {() => void} [onGap] events were lost to retention, or the topic began again; what follows is new
 * @property {(about: {code: number, reason: string}) => void} [onEnd] the server ended the subscription
 * @property {(error: {code: number, message: string}) => void} [onError] the latest events, or the place to begin at,
 *   were refused
 */

const FINAL_TYPES = new Set(["task.completed", "task.failed", "task.cancelled"]);

/** The address of the bus on the host that served this page. */
export function defaultUrl(location = globalThis.location) {
  return `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}/connection/websocket`;
}

/** Whether this is the last event of a job. */
export function isFinal(event, tags = {}) {
  return Boolean(tags.end) || FINAL_TYPES.has(event?.event_type);
}

/** One connection to the bus. It connects at once, and again by itself until `disconnect()` or a final close code. */
export class BusClient {
  /**
   * @param {object} [options]
   * @param {string} [options.url] default: the host of this page
   * @param {string} [options.token] a connection token; without one the Django session of this page is used
   * @param {() => Promise<string>} [options.getToken] called when a new token is needed
   * @param {string} [options.agentId] the agent to act as; `options.sessionId` goes with it
   * @param {(state: State) => void} [options.onState] see `onState()`
   * @param {object} [options.sdk] options of the SDK itself, such as `websocket`
   */
  constructor({ url, token, getToken, agentId, sessionId, onState, sdk = {} } = {}) {
    const data = { agent_id: agentId, session_id: sessionId };
    this._seen = false;
    this._listeners = new Set();
    this._topics = new Set();
    this.state = { name: "connecting" };
    this.clientId = null;
    if (onState) this._listeners.add(onState);
    this._sdk = new Centrifuge(url ?? defaultUrl(), {
      name: "bus-js",
      data: agentId || sessionId ? data : null,
      ...(token ? { token } : {}),
      ...(getToken ? { getToken } : {}),
      ...sdk,
    });
    this._sdk.on("connecting", () => this._enter({ name: this._seen ? "reconnecting" : "connecting" }));
    this._sdk.on("connected", (context) => this._connected(context));
    this._sdk.on("disconnected", ({ code, reason }) => this._enter({ name: "disconnected", code, reason }));
    // A refused or broken attempt is no error of the page: the SDK tries again and the state says so.
    this._sdk.on("error", () => this.state.name === "connecting" && this._enter({ name: "reconnecting" }));
    this._sdk.connect();
  }

  /**
   * Call `listener` with every change of state: `connecting`, `connected`, `reconnecting`, or `disconnected` with
   * its close code and reason. Returns a function that ends it.
   */
  onState(listener) {
    this._listeners.add(listener);
    listener(this.state);
    return () => this._listeners.delete(listener);
  }

  /**
   * Follow a topic. One subscription per topic and client.
   *
   * @param {string} topic
   * @param {Handlers} handlers
   * @param {object} [options] at most one of them; without any: from now on
   * @param {number} [options.recent] first deliver up to so many of the latest events
   * @param {{epoch: string, offset: number}} [options.since] first deliver everything after this position
   * @param {string} [options.cursor] first deliver everything that was not acknowledged with the cursor of this name
   *   (`ack`); an empty name is the agent's own
   * @returns {Subscription}
   */
  subscribe(topic, handlers, options = {}) {
    const subscription = new Subscription(this, topic, handlers, options);
    this._topics.add(subscription);
    return subscription;
  }

  /**
   * Publish; resolves once the event is committed. With a `key` it may be repeated after a failure without a second
   * effect.
   *
   * @param {string} topic
   * @param {string} eventType
   * @param {any} [data]
   * @param {{key?: string}} [options]
   * @returns {Promise<Place>}
   */
  async publish(topic, eventType, data, { key } = {}) {
    const request = { topic, event_type: eventType, data, ...(key ? { key } : {}) };
    return (await this._sdk.rpc("bus.publish", request)).data;
  }

  /**
   * Publish the final event of a topic.
   *
   * @param {string} topic
   * @param {"completed" | "failed" | "cancelled"} [status]
   * @param {any} [data]
   * @returns {Promise<Place>}
   */
  async end(topic, status = "completed", data) {
    return (await this._sdk.rpc("bus.end", { topic, status, ...(data ? { data } : {}) })).data;
  }

  /**
   * Acknowledge a topic up to `offset`. With the `epoch` of the event, an ack for a former life of the topic does not
   * count for this one.
   *
   * @param {string} topic
   * @param {number} offset
   * @param {string} [cursor] a cursor beside the agent's own
   * @param {string} [epoch]
   * @returns {Promise<CursorState>}
   */
  async ack(topic, offset, cursor = "", epoch = "") {
    const request = { topic, offset, ...(cursor ? { cursor } : {}), ...(epoch ? { epoch } : {}) };
    return (await this._sdk.rpc("bus.ack", request)).data;
  }

  /**
   * How far a cursor is.
   *
   * @param {string} topic
   * @param {string} [cursor]
   * @returns {Promise<CursorState>}
   */
  async cursor(topic, cursor = "") {
    return (await this._sdk.rpc("bus.cursor", { topic, ...(cursor ? { cursor } : {}) })).data;
  }

  /**
   * The last `limit` events of a topic, oldest first.
   *
   * @param {string} topic
   * @param {number} limit
   * @returns {Promise<{event: BusEvent, offset: number, tags: Record<string, string>}[]>}
   */
  async recent(topic, limit) {
    const { publications } = await this._sdk.history(topic, { limit, reverse: true });
    return publications.map(unwrap).reverse();
  }

  /**
   * At most `limit` events after a position, oldest first, with the position of the topic's end. Rejects (code 112) if
   * what follows the position is not kept any more.
   *
   * @param {string} topic
   * @param {{epoch: string, offset: number}} position
   * @param {number} limit
   * @returns {Promise<{items: {event: BusEvent, offset: number, tags: Record<string, string>, info: Publisher | null}[],
   *   epoch: string, offset: number}>}
   */
  async after(topic, position, limit) {
    const { publications, epoch, offset } = await this._sdk.history(topic, { since: position, limit });
    return { items: publications.map(unwrap), epoch, offset };
  }

  /** End the connection and every subscription; no handler is called afterwards. */
  disconnect() {
    for (const subscription of [...this._topics]) subscription.close();
    this._sdk.disconnect();
    this._listeners.clear();
    this._sdk.removeAllListeners();
  }

  /** How many subscriptions are held; zero once everything was closed. */
  get subscriptions() {
    return this._topics.size;
  }

  _connected(context) {
    this._seen = true;
    this.clientId = context.client;
    this._enter({ name: "connected" });
  }

  _enter(state) {
    if (state.name === this.state.name && state.code === this.state.code) return;
    this.state = state;
    for (const listener of [...this._listeners]) listener(state);
  }
}

/** A followed topic. `close()` ends it at once; it may be called again and from inside a handler. */
export class Subscription {
  /**
   * @param {BusClient} client
   * @param {string} topic
   * @param {Handlers} handlers
   * @param {{recent?: number, since?: {epoch: string, offset: number}, cursor?: string}} [options]
   */
  constructor(client, topic, handlers, { recent = 0, since, cursor } = {}) {
    this.topic = topic;
    this.position = null;
    this._client = client;
    this._handlers = handlers;
    this._recent = recent;
    this._last = since?.offset ?? 0;
    this._held = recent > 0 ? [] : null;
    this._closed = false;
    const options = { recoverable: true, positioned: true, ...(since ? { since } : {}) };
    if (cursor !== undefined) options.getState = () => this._begin(cursor);
    this._sub = client._sdk.newSubscription(topic, options);
    this._sub.on("publication", (publication) => this._arrived(publication));
    this._sub.on("subscribed", (context) => this._subscribed(context));
    this._sub.on("unsubscribed", (context) => this._ended(context));
    this._sub.on("error", () => {}); // temporary: the SDK subscribes again
    this._sub.subscribe();
  }

  close() {
    if (this._closed) return;
    this._closed = true;
    this._client._topics.delete(this);
    this._sub.removeAllListeners();
    this._sub.unsubscribe();
    this._client._sdk.removeSubscription(this._sub);
  }

  /** The position to begin at: after what was acknowledged, or before the oldest event that is kept. */
  async _begin(cursor) {
    try {
      const done = await this._acknowledged(cursor);
      const kept = await this._client._sdk.history(this.topic, { limit: 1 });
      const first = kept.publications[0]?.offset ?? kept.offset + 1;
      const isThere = (!done.epoch || done.epoch === kept.epoch) && done.offset >= first - 1;
      if (!isThere && done.offset > 0) this._handlers.onGap?.();
      this._last = isThere ? done.offset : first - 1;
      return { offset: this._last, epoch: kept.epoch };
    } catch (error) {
      if (error.code >= SERVER_CODES && !error.temporary && !this._closed) {
        this.close();
        this._handlers.onError?.(error);
      }
      throw error; // the SDK asks again, unless we have closed
    }
  }

  async _acknowledged(cursor) {
    try {
      return await this._client.cursor(this.topic, cursor);
    } catch (error) {
      if (error.code !== UNKNOWN_TOPIC) throw error;
      return { epoch: "", offset: 0 };
    }
  }

  _subscribed(context) {
    const { streamPosition: position, wasRecovering, recovered } = context;
    const begunAgain = Boolean(this.position && position && this.position.epoch !== position.epoch);
    this.position = position ?? this.position;
    if ((wasRecovering && !recovered) || begunAgain) this._restart();
    this._handlers.onReady?.();
    if (this._held) this._catchUp();
  }

  /** Whether it is subscribed now. */
  get isReady() {
    return !this._closed && this._sub.state === "subscribed";
  }

  /** Forget the old positions: what comes next is a new beginning. */
  _restart() {
    this._last = 0;
    this._handlers.onGap?.();
    if (this._recent > 0) this._held = [];
  }

  /** Deliver the latest events, then what arrived meanwhile; each offset once. */
  async _catchUp() {
    const held = this._held;
    let past = [];
    try {
      past = await this._client.recent(this.topic, this._recent);
    } catch (error) {
      if (this._closed || held !== this._held || this._client.state.name !== "connected") return; // asked again later
      this._handlers.onError?.(error);
    }
    if (this._closed || held !== this._held) return;
    this._held = null;
    // What is held began with the subscription, the past may begin after that: both in one order, each once.
    const live = new Set(held);
    const known = new Set(held.map(({ offset }) => offset));
    const all = [...past.filter(({ offset }) => !known.has(offset)), ...held].sort(byOffset);
    for (const item of all) this._deliver(item, live.has(item));
  }

  _arrived(publication) {
    const item = unwrap(publication);
    if (this._held) this._held.push(item);
    else this._deliver(item, true);
  }

  _deliver({ event, offset, tags, info }, live) {
    if (this._closed || (offset && offset <= this._last)) return;
    if (offset) this._last = offset;
    this._handlers.onEvent(event, { offset, epoch: this.position?.epoch, tags, info, live });
  }

  _ended({ code, reason }) {
    this.close();
    this._handlers.onEnd?.({ code, reason });
  }
}

/** In the order of the log; what is not logged has no offset and comes last. */
function byOffset(a, b) {
  return (a.offset ?? Number.MAX_SAFE_INTEGER) - (b.offset ?? Number.MAX_SAFE_INTEGER);
}

function unwrap({ data, offset, tags, info }) {
  return { event: data, offset, tags: tags ?? {}, info: info ?? null };
}

/**
 * Follow a job until its end.
 *
 * `lingerMs` after the final event the subscription is closed (and the connection, if it was made here), then
 * `onClose` is called, once. A job that starts again under the same id within that time is followed on.
 *
 * @param {string} taskId
 * @param {object} [handlers]
 * @param {(event: BusEvent) => void} [handlers.onEvent] every event, first the latest one of the past
 * @param {(event: BusEvent) => void} [handlers.onEnd] the final event
 * @param {() => void} [handlers.onClose] nothing is held any more
 * @param {object} [options] `client`: a `BusClient` to share; else the options of a new one. `lingerMs`
 * @returns {{close: () => void, closed: Promise<void>}}
 */
export function connectProgress(taskId, handlers = {}, { client, lingerMs = LINGER_MS, ...own } = {}) {
  const bus = client ?? new BusClient(own);
  let timer = null;
  let subscription = null;
  let settle;
  const closed = new Promise((resolve) => (settle = resolve));

  const close = () => {
    if (!settle) return;
    const done = settle;
    settle = null;
    clearTimeout(timer);
    subscription.close();
    if (!client) bus.disconnect();
    handlers.onClose?.();
    done();
  };
  const onEvent = (event, { tags }) => {
    clearTimeout(timer);
    handlers.onEvent?.(event);
    if (!settle || !isFinal(event, tags)) return;
    timer = setTimeout(close, lingerMs);
    handlers.onEnd?.(event);
  };
  subscription = bus.subscribe(`task:${taskId}`, { onEvent, onEnd: close }, { recent: 1 });
  return { close, closed };
}
