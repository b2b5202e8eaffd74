/**
 * The dashboard: one page, one connection to the bus.
 *
 * Figures, cards and the audit feed come over the bus. Which topics and tasks there are is asked every 3 s while the page
 * is visible. The indicator in the header says what the connection is, never what it was.
 */

import { BusClient } from "./client.js";
import { Cards } from "./dashboard/cards.js";
import { LineChart } from "./dashboard/chart.js";
import { Feed } from "./dashboard/feed.js";
import { clock, count, rate } from "./dashboard/format.js";
import { wireKeys } from "./dashboard/keys.js";
import { wirePublish } from "./dashboard/publish.js";
import { Figures, Rates } from "./dashboard/stats.js";
import { showTopics } from "./dashboard/topics.js";
import { TraceView } from "./dashboard/trace_view.js";

const POLL_MS = 3000;
const TICK_MS = 1000;
/** The second look comes sooner: only two make a rate. */
const FIRST_LOOK_MS = 1000;

const page = document.querySelector("[data-dashboard]");
const part = (name) => page.querySelector(`[data-part="${name}"]`);
const set = (name, text) => (part(name).textContent = text);

const WORDS = {
  connecting: "Connecting…",
  connected: "Live",
  reconnecting: "Reconnecting…",
  disconnected: "Disconnected",
};

const client = new BusClient();
const figures = new Figures();
const rates = new Rates();
const chart = new LineChart(part("chart"), part("chart-empty"));
const cards = new Cards(client, {
  list: part("cards"),
  template: part("card-template"),
  empty: part("cards-empty"),
  announce: (sentence) => set("announce", sentence),
  changed: (number) => set("tasks", count(number)),
});
const feed = new Feed(client, "cleanup:audit", {
  list: part("feed"),
  template: part("feed-template"),
  empty: part("feed-empty"),
});
const trace = new TraceView(part, {
  connect: () => new BusClient(),
  resolveUrl: page.dataset.traceUrl,
  own: page.dataset.own,
  announce: (sentence) => set("announce", sentence),
});
let rows = { connections: null };
let polling = null;

client.onState(({ name, code, reason }) => {
  const indicator = part("state");
  indicator.dataset.state = name;
  set("state-text", name === "disconnected" && code ? `Disconnected: ${reason} (${code})` : WORDS[name]);
  part("reload").hidden = name !== "disconnected";
});
client.subscribe("sys:stats", { onEvent: (event) => figures.take(event.data, Date.now()) });
if (part("publish")) wirePublish(part("publish"), client, (topic) => trace.follow(topic)); // only for those who may
wireKeys(part("keys"), part("keys-button"), {
  "/": () => part("trace-of").focus(),
  ".": () => trace.toggle(),
  x: () => trace.clear(),
  ...(part("publish") ? { p: () => part("publish").elements.namedItem("topic").focus() } : {}),
});
part("topics").addEventListener("click", (event) => {
  const link = event.target.closest("[data-follow]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return; // another tab, as with any link
  event.preventDefault();
  document.getElementById("h-trace").scrollIntoView({ block: "start" });
  trace.follow(link.dataset.follow);
});
const wanted = new URLSearchParams(location.search).get("trace");
if (wanted) trace.follow(wanted);
part("reload").addEventListener("click", () => location.reload());

function tick() {
  const now = Date.now();
  const connections = figures.connections(now) ?? rows.connections;
  if (connections !== null) {
    set("connections", count(connections));
    chart.add(Math.floor(now / 1000), connections);
    part("chart").setAttribute("aria-label", chart.words());
  }
  feed.tick(now);
  cards.tick(now);
}

async function poll() {
  try {
    const reply = await fetch(page.dataset.stateUrl, { headers: { Accept: "application/json" } });
    if (reply.redirected || reply.status === 403) return location.reload(); // logged out: the server asks for it
    if (!reply.ok) throw new Error(`the server answered ${reply.status}`);
    show(await reply.json());
    part("stale").hidden = true;
  } catch (error) {
    rows = { connections: null };
    part("stale").hidden = false;
    showRate(null);
    set("stale-text", `The figures below are of ${part("stale").dataset.since ?? "earlier"}: ${error.message}`);
  }
}

function show(state) {
  const now = Date.now();
  rows = state;
  part("stale").dataset.since = clock(new Date(now));
  cards.sync(state.tasks, now);
  const speed = rates.update(state.topics, now);
  showTopics(part("topics"), part("topic-template"), state.topics, speed.each, now);
  showRate(speed.all);
  part("topics-empty").hidden = state.topics.length > 0;
  part("topics-table").hidden = state.topics.length === 0;
  set("topic-count", `${count(state.topic_count)}${state.more_topics ? "+" : ""}`);
  offer(part("trace-topics"), state.topics);
  set("agents", count(state.agents));
  part("volatile").hidden = !state.volatile;
}

/** Events a second; while nobody knows, why. */
function showRate(perSecond) {
  set("events", perSecond === null ? "—" : rate(perSecond));
  part("events-why").hidden = perSecond !== null;
  set("events-why", part("stale").hidden ? "measured in a moment" : "the server does not answer");
}

/** The topics that may be chosen, made anew only if they have changed: an open list would close. */
function offer(list, topics) {
  const names = topics.map(({ name }) => name).sort();
  if (names.join() === [...list.children].map(({ value }) => value).join()) return;
  list.replaceChildren(...names.map((name) => new Option(name, name)));
}

function watch() {
  clearInterval(polling);
  polling = null;
  if (document.visibilityState === "hidden") return;
  poll().then(() => setTimeout(() => polling !== null && poll(), FIRST_LOOK_MS));
  polling = setInterval(poll, POLL_MS);
}

document.addEventListener("visibilitychange", watch);
setInterval(tick, TICK_MS);
watch();
