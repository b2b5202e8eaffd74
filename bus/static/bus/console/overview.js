/**
 * The first page of the console, kept fresh: its parts are asked for every quarter of a minute while somebody looks, the
 * live chart is fed by the bus, and the history is asked for when it is wanted.
 *
 * A part in which the focus stands, or which a person has unfolded, is replaced without taking that away. Only a change of
 * the lamps is said aloud.
 */

import { BusClient } from "../client.js";
import { LineChart } from "../dashboard/chart.js";
import { clock, count } from "../dashboard/format.js";
import { Figures } from "../dashboard/stats.js";
import { HistoryChart, sentence } from "./history.js";

const REFRESH_MS = 15000;
const TICK_MS = 1000;

const page = document.querySelector("[data-overview]");
const part = (name) => page.querySelector(`[data-part="${name}"]`);
let refreshed = new Date();

/* Parts ------------------------------------------------------------------------------------------------------------- */

/** Replace what has changed by what the server says now. */
function replace(fresh) {
  for (const now of fresh.querySelectorAll("[data-part]")) {
    const before = part(now.dataset.part);
    if (!before || before.innerHTML === now.innerHTML || before.contains(document.activeElement)) continue;
    if (before.dataset.summary !== now.dataset.summary) announce(now.dataset.summary ?? "");
    const open = [...before.querySelectorAll("details")].map((details) => details.open);
    now.querySelectorAll("details").forEach((details, index) => (details.open = open[index] ?? false));
    before.replaceWith(document.adoptNode(now));
  }
}

function announce(words) {
  page.querySelector("[data-announce]").textContent = words;
}

async function refresh() {
  const stale = page.querySelector("[data-stale]");
  try {
    const reply = await fetch(page.dataset.partsUrl, { headers: { Accept: "text/html" } });
    if (reply.redirected || reply.status === 403) return location.reload(); // logged out: the server asks for it
    if (!reply.ok) throw new Error(`the server answered ${reply.status}`);
    replace(new DOMParser().parseFromString(await reply.text(), "text/html"));
    refreshed = new Date();
    stale.hidden = true;
  } catch (error) {
    stale.textContent = `What you see is of ${clock(refreshed)}: ${error.message}`;
    stale.hidden = false;
  }
}

let asking = null;

/** Ask while the page is in sight, and at once when it comes back into sight. */
function watch(first) {
  clearInterval(asking);
  asking = null;
  if (document.visibilityState === "hidden") return;
  if (!first) refresh();
  asking = setInterval(refresh, REFRESH_MS);
}

document.addEventListener("visibilitychange", () => watch(false));
watch(true);

/* Bars of files or of bytes ------------------------------------------------------------------------------------------ */

page.addEventListener("click", (event) => {
  const button = event.target.closest("[data-unit]");
  if (!button) return;
  button.closest("[data-by]").dataset.by = button.dataset.unit;
  press(button);
});

function press(button) {
  for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
}

/* The chart ---------------------------------------------------------------------------------------------------------- */

function startChart(card) {
  const one = (selector) => card.querySelector(selector);
  const [liveElement, historyElement] = [one('[data-chart="live"]'), one('[data-chart="history"]')];
  const [note, text, empty] = [one("[data-chart-note]"), one("[data-chart-text]"), one("[data-chart-empty]")];
  const live = new LineChart(liveElement, empty);
  const history = new HistoryChart(historyElement);
  const figures = new Figures();
  const seen = [];
  let back = "";

  function add(seconds, value) {
    seen.push([seconds, value, null]);
    while (seen[0][0] < seconds - 300) seen.shift();
    live.add(seconds, value);
    if (!back) text.textContent = sentence(seen);
  }

  const recent = document.getElementById("overview-recent");
  for (const [at, value] of recent ? JSON.parse(recent.textContent) : []) {
    if (value !== null && at < Date.now() / 1000) add(at, value);
  }

  const client = new BusClient();
  client.subscribe("sys:stats", { onEvent: (event) => figures.take(event.data, Date.now()) });
  setInterval(() => {
    const connections = figures.connections(Date.now());
    if (connections === null) return;
    add(Math.floor(Date.now() / 1000), connections);
    const shown = page.querySelector('[data-figure="connections"] dd > a');
    if (shown && shown.textContent !== count(connections)) shown.textContent = count(connections);
  }, TICK_MS);

  async function look() {
    const wanted = back;
    try {
      const reply = await fetch(`${page.dataset.historyUrl}?back=${wanted}`, { headers: { Accept: "application/json" } });
      if (!reply.ok) throw new Error(`the server answered ${reply.status}`);
      const answer = await reply.json();
      if (wanted !== back) return; // somebody has chosen again meanwhile
      const said = sentence(answer.points);
      empty.hidden = Boolean(said);
      empty.textContent = "Nothing was noted in this time. A worker notes the figures of each minute: do beat and the worker run?";
      text.textContent = said;
      history.show(answer);
    } catch (error) {
      if (wanted === back) text.textContent = `The history could not be had: ${error.message}`;
    }
  }

  card.addEventListener("click", (event) => {
    const button = event.target.closest("[data-back]");
    if (!button) return;
    back = button.dataset.back;
    press(button);
    liveElement.hidden = Boolean(back);
    historyElement.hidden = !back;
    note.textContent = back ? "and events a second (right), minute by minute" : "over the bus, the last five minutes";
    if (back) return look();
    empty.hidden = seen.length > 1;
    text.textContent = sentence(seen);
    live.repaint();
  });

  setInterval(() => back && document.visibilityState === "visible" && look(), 60000);
  const recolour = () => {
    live.repaint();
    history.repaint();
  };
  new MutationObserver(recolour).observe(document.documentElement, { attributeFilter: ["class"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
}

const chart = page.querySelector(".o-chart")?.closest("section");
if (chart) startChart(chart);
