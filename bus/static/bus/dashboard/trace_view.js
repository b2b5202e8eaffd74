/** The trace on the page: which topics, its rows, what it says while it is paused, and what can be done with it. */

import { clock, count } from "./format.js";
import { LIMIT, Trace } from "./trace.js";

/** Characters of a payload beside its row, and unfolded. */
const SHORT = 160;
const LONG = 20_000;
/** Between two sentences to a screen reader, ms. */
const SAY_EVERY = 10_000;

/** Who published, in a few words. `own` is the id of the person who looks. */
export function publisher(info, own) {
  if (!info) return "server";
  const user = info.user ?? "";
  if (user && user === own) return "you";
  if (/^\d+$/.test(user)) return `person ${user}`;
  return user || info.client || "unknown";
}

/** A payload on one line, clipped. */
export function short(data) {
  const text = data === undefined ? "" : JSON.stringify(data);
  return text.length > SHORT ? `${text.slice(0, SHORT)}…` : text;
}

/** A payload in lines, clipped with a word about it. */
export function long(data) {
  const text = data === undefined ? "" : JSON.stringify(data, null, 2);
  return text.length > LONG ? `${text.slice(0, LONG)}\n… ${count(text.length - LONG)} more characters` : text;
}

/** Whether a row is shown under a filter: a part of the type, in any case. Words on gaps always are. */
export function matches(row, filter) {
  return !row.event || row.event.event_type.toLowerCase().includes(filter.trim().toLowerCase());
}

export class TraceView {
  /**
   * @param {(name: string) => HTMLElement} part finds a part of the page
   * @param {{connect: () => object, resolveUrl: string, own: string, announce: (sentence: string) => void}} options
   */
  constructor(part, { connect, resolveUrl, own, announce }) {
    this._part = part;
    this._resolveUrl = resolveUrl;
    this._own = own;
    this._announce = announce;
    this._rows = [];
    this._total = 0;
    this._said = { at: 0, total: 0 };
    this._pending = [];
    this._frame = 0;
    this._asked = 0;
    this._urls = new Map();
    this._waiting = null;
    this.trace = new Trace(connect, (rows) => this._queue(rows), () => this._show());
    this._wire();
    this._show();
  }

  /** Follow a topic or an agent, as the server understands the name. Resolves once it is subscribed or refused. */
  async follow(wanted) {
    const name = wanted.trim();
    if (!name) return this.stop();
    this._part("trace-of").value = name;
    if (this.trace.mode !== "idle" && this._of === name) return this.resume();
    const turn = (this._asked += 1);
    let answer;
    try {
      const reply = await fetch(`${this._resolveUrl}?of=${encodeURIComponent(name)}`, { headers: { Accept: "application/json" } });
      if (!reply.ok || reply.redirected) throw new Error(`the server answered ${reply.status}`);
      answer = await reply.json();
    } catch (error) {
      answer = { error: `It could not be looked up: ${error.message}` };
    }
    if (turn !== this._asked) return;
    this.stop();
    if (answer.error) return this._complain(answer.error);
    this._of = name;
    this._urls = new Map(answer.topics.map(({ name: topic, url }) => [topic, url]));
    this._address(name);
    this.trace.follow([...this._urls.keys()]);
    if (answer.refused.length) this._note(`Not for you to read: ${answer.refused.join(", ")}`);
    await this._subscribed();
  }

  /** Follow nothing, and forget the rows. */
  stop() {
    this._asked += 1;
    this._of = "";
    this.trace.stop();
    this._address("");
    this._note("");
    this.clear();
  }

  /** Forget the rows. What is followed is followed on. */
  clear() {
    this._pending = [];
    this._rows = [];
    this._total = 0;
    this._said.total = 0;
    this._part("trace-rows").replaceChildren();
    this._show();
  }

  /** Pause, or go on: with what was missed, if anything was. */
  toggle() {
    if (this.trace.mode === "live") this.trace.pause("button");
    else this.resume();
  }

  resume() {
    this._flush();
    return this.trace.catchUp();
  }

  _wire() {
    const part = this._part;
    part("trace-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.follow(part("trace-of").value);
    });
    part("trace-stop").addEventListener("click", () => {
      this.stop();
      part("trace-of").focus();
    });
    part("trace-pause").addEventListener("click", () => this.toggle());
    part("trace-catch").addEventListener("click", () => this._handOver(() => this.resume()));
    part("trace-skip").addEventListener("click", () => this._handOver(() => this.trace.skip()));
    part("trace-clear").addEventListener("click", () => this.clear());
    part("trace-copy").addEventListener("click", () => this._copy());
    part("trace-filter").addEventListener("input", () => this._filter());
    document.addEventListener("visibilitychange", () => (document.visibilityState === "hidden" ? this.trace.pause("away") : this.trace.back()));
    window.addEventListener("blur", () => this.trace.pause("away"));
    window.addEventListener("focus", () => this.trace.back());
  }

  /** Do what hides its own button, with the focus on the one that stays. */
  _handOver(action) {
    this._part("trace-pause").focus();
    action();
  }

  _subscribed() {
    this._waiting?.resolve();
    const waiting = {};
    const done = new Promise((resolve) => (waiting.resolve = resolve));
    this._waiting = waiting;
    this._settle();
    return done;
  }

  _settle() {
    if (this._waiting && (this.trace.ready || this.trace.mode === "idle" || this.trace.trouble)) {
      this._waiting.resolve();
      this._waiting = null;
    }
  }

  _queue(rows) {
    this._pending.push(...rows);
    // A page in the background draws no frames; the trace is paused there, so little waits.
    this._frame ||= requestAnimationFrame(() => this._flush());
  }

  _flush() {
    cancelAnimationFrame(this._frame);
    this._frame = 0;
    const rows = this._pending;
    this._pending = [];
    if (!rows.length) return;
    this._total += rows.filter(({ event }) => event).length;
    const list = this._part("trace-rows");
    for (const row of rows.slice(-LIMIT)) {
      const element = row.event ? this._element(row) : this._gapElement(row);
      element.hidden = !matches(row, this._part("trace-filter").value);
      list.prepend(element);
      this._rows.push({ ...row, element });
    }
    for (const { element } of this._rows.splice(0, Math.max(0, this._rows.length - LIMIT))) element.remove();
    this._types(rows);
    this._show();
    this._say();
  }

  _element({ topic, event, offset, info }) {
    const element = this._part("trace-template").content.firstElementChild.cloneNode(true);
    const at = new Date(event.timestamp);
    const set = (name, text) => (element.querySelector(`[data-${name}]`).textContent = text);
    element.dataset.offset = offset ?? "";
    set("offset", offset ? count(offset) : "–");
    set("clock", Number.isNaN(at.getTime()) ? "" : clock(at));
    set("type", event.event_type);
    set("who", publisher(info, this._own));
    set("topic", this._urls.size > 1 ? topic : "");
    set("short", short(event.data));
    const details = element.querySelector("details");
    details.addEventListener("toggle", () => this._unfold(element, { topic, event, offset }), { once: true });
    return element;
  }

  /** Write the payload in full, the first time that somebody wants to see it. */
  _unfold(element, { topic, event, offset }) {
    element.querySelector("[data-long]").textContent = long(event.data);
    const runs = [event.run_id && `run ${event.run_id}`, event.session_id && `session ${event.session_id}`];
    element.querySelector("[data-more]").textContent = [event.timestamp, ...runs.filter(Boolean)].join(" · ");
    const link = element.querySelector("[data-page]");
    const url = this._urls.get(topic);
    if (url && offset) link.href = `${url}?before=${offset}`;
    else link.remove();
  }

  _gapElement({ topic, gap }) {
    const element = this._part("trace-gap-template").content.firstElementChild.cloneNode(true);
    element.querySelector("[data-gap]").textContent = this._urls.size > 1 ? `${topic}: ${gap}` : gap;
    return element;
  }

  _types(rows) {
    const list = this._part("trace-types");
    const known = new Set([...list.children].map(({ value }) => value));
    for (const { event } of rows) {
      if (!event || known.has(event.event_type) || known.size >= 50) continue;
      known.add(event.event_type);
      list.append(new Option(event.event_type, event.event_type));
    }
  }

  _filter() {
    for (const row of this._rows) row.element.hidden = !matches(row, this._part("trace-filter").value);
    this._show();
  }

  async _copy() {
    const shown = this._rows.filter(({ event, element }) => event && !element.hidden);
    const text = JSON.stringify(shown.map(({ topic, offset, event, info }) => ({ topic, offset, publisher: publisher(info, ""), ...event })), null, 2);
    const what = `${count(shown.length)} ${shown.length === 1 ? "event" : "events"}`;
    try {
      await navigator.clipboard.writeText(text);
      this._note(`${what} copied.`);
    } catch (error) {
      this._note(`Not copied: ${navigator.clipboard ? error.message : "browsers allow it on https and localhost only"}.`);
    }
  }

  _say() {
    const now = Date.now();
    const fresh = this._total - this._said.total;
    if (now - this._said.at < SAY_EVERY || fresh <= 0) return;
    this._said = { at: now, total: this._total };
    this._announce(`${count(fresh)} new ${fresh === 1 ? "event" : "events"} in the trace`);
  }

  /** So that the trace can be linked to, and is there again after a reload. */
  _address(name) {
    const url = new URL(location.href);
    if (name) url.searchParams.set("trace", name);
    else url.searchParams.delete("trace");
    history.replaceState(null, "", url);
  }

  _complain(text) {
    this._note(text);
    this._part("trace-note").dataset.bad = "yes";
  }

  _note(text) {
    const note = this._part("trace-note");
    note.textContent = text;
    note.hidden = !text;
    note.dataset.bad = "no";
  }

  _show() {
    if (!this.trace) return;
    const { mode, why, missed, topics, trouble } = this.trace;
    const part = this._part;
    const idle = mode === "idle";
    const hidden = this._rows.filter(({ element }) => element.hidden).length;
    part("trace-empty").hidden = this._rows.length > 0;
    part("trace-empty-idle").hidden = !idle;
    part("trace-empty-waiting").hidden = idle;
    part("trace-tools").hidden = idle;
    part("trace-stop").hidden = idle;
    part("trace-pause").textContent = mode === "paused" ? "Go on" : "Pause";
    part("trace-rows").classList.toggle("many", topics.length > 1);
    part("trace-rows").dataset.ready = !idle && this.trace.ready ? "yes" : "no";
    part("trace-paused").hidden = mode !== "paused" && mode !== "catching";
    part("trace-paused-text").textContent = pausedText(mode, why, missed);
    part("trace-catch").hidden = part("trace-skip").hidden = mode !== "paused" || missed === 0;
    const many = topics.length > 1 ? `${topics.length} topics: ${topics.join(", ")}` : topics.join("");
    part("trace-name").textContent = many;
    part("trace-count").textContent = rowsText(this._rows.filter(({ event }) => event).length, this._total, hidden);
    if (trouble) this._complain(trouble);
    this._settle();
  }
}

/** What stands above a trace that is paused. Pure. */
export function pausedText(mode, why, missed) {
  if (mode === "catching") return "Reading what was missed…";
  const since = why === "away" ? "Paused, since nobody looked at this page." : "Paused.";
  if (!missed) return `${since} Nothing was missed.`;
  return `${since} ${count(missed)} ${missed === 1 ? "event was" : "events were"} missed.`;
}

/** How many rows there are, of how many events. Pure. */
export function rowsText(rows, total, hidden) {
  if (!total) return "";
  const kept = total > rows ? `the last ${count(rows)} of ${count(total)} events` : `${count(total)} ${total === 1 ? "event" : "events"}`;
  return hidden ? `${kept}, ${count(hidden)} hidden by the filter` : kept;
}
