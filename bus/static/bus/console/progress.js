/**
 * Live progress of one topic on a page of the console: every element with `data-progress` is a card of its own.
 *
 * A card is a client of the bus with the session of the page. It shows how far the work is, says each change of state to
 * a screen reader, and when the work ends, or waits for a person, has the page read anew, once. While the bus cannot be
 * reached it says so, and the page is read anew every 15 s instead; the same after a minute without a word.
 */

import { BusClient, isFinal } from "../client.js";
import { amount, secondsLeft } from "../dashboard/cards.js";
import { bytes, duration } from "../dashboard/format.js";

const RELOAD_MS = 1000;
const UNREACHABLE_MS = 15000;
const SILENT_MS = 60000;
/** Events older than the page by so much are known to it. */
const KNOWN_MS = 3000;
const WORDS = { awaiting_approval: "waits for approval", open: "under way", finishing: "being checked", terminated: "given up" };
/** States in which the page has more to show than the card. */
const SETTLED = new Set(["awaiting_approval", "done", "reported", "failed", "refused", "rejected", "stopped", "expired", "terminated"]);

const client = new BusClient();
let reloading = false;

function reload(after) {
  if (reloading) return;
  reloading = true;
  setTimeout(() => {
    client.disconnect();
    location.reload();
  }, after);
}

class Card {
  constructor(element) {
    this.element = element;
    this.bar = element.querySelector("progress");
    this.view = { done: NaN, total: 0, unit: element.dataset.unit ?? "files", startedAt: null, updatedAt: 0 };
    this.state = "";
    this.openedAt = Number(element.dataset.at) * 1000;
    this.silence = setTimeout(() => reload(0), SILENT_MS);
    client.subscribe(
      element.dataset.progress,
      { onEvent: (event, { tags }) => this.take(event, tags), onEnd: () => this.fail("the bus has ended it") },
      { recent: 1 },
    );
  }

  part(name) {
    return this.element.querySelector(`[data-part="${name}"]`);
  }

  take(event, tags) {
    const at = Date.parse(event.timestamp);
    if (at < this.openedAt - KNOWN_MS) return;
    clearTimeout(this.silence);
    this.silence = setTimeout(() => reload(0), SILENT_MS);
    const data = event.data ?? {};
    const state = data.state ?? data.status ?? "";
    this.show({ ...data, state }, at);
    if (SETTLED.has(state) || isFinal(event, tags) || event.event_type.endsWith(".finished")) reload(RELOAD_MS);
  }

  show(data, at) {
    const { done, total, bytes: size, message, state } = data;
    const begins = this.view.startedAt === null || total !== this.view.total;
    this.view = { ...this.view, done, total, startedAt: begins ? at : this.view.startedAt, updatedAt: at };
    if (begins) this.before = done;
    const left = secondsLeft({ ...this.view, done: done - (this.before ?? 0), total: total - (this.before ?? 0) });
    this.part("amount").textContent = `${amount(this.view)}${size ? `, ${bytes(size)}` : ""}`;
    this.part("left").textContent = left === null ? "" : `about ${duration(left)} left`;
    this.part("message").textContent = message ?? "";
    if (total > 0 && Number.isFinite(done)) {
      this.bar.max = total;
      this.bar.value = Math.min(done, total);
      this.part("percent").textContent = `${Math.floor((100 * this.bar.value) / total)} %`;
    } else {
      this.bar.removeAttribute("value");
      this.part("percent").textContent = "";
    }
    this.announce(state);
  }

  announce(state) {
    if (state === this.state) return;
    this.state = state;
    const words = WORDS[state] ?? state.replaceAll("_", " ");
    this.part("state").textContent = words;
    this.part("announce").textContent = `${this.element.dataset.title}: ${words}`;
  }

  fail(reason) {
    this.part("trouble").textContent = `Not live: ${reason}. This page is read anew every 15 s.`;
    this.part("trouble").hidden = false;
  }
}

const cards = [...document.querySelectorAll("[data-progress]")].map((element) => new Card(element));
let away = setTimeout(() => reload(0), UNREACHABLE_MS);

client.onState(({ name, reason }) => {
  clearTimeout(away);
  if (name === "connected") {
    for (const card of cards) card.part("trouble").hidden = true;
    return;
  }
  away = setTimeout(() => reload(0), UNREACHABLE_MS);
  if (name === "connecting") return;
  for (const card of cards) card.fail(name === "disconnected" ? reason || "disconnected" : "the bus cannot be reached");
});
addEventListener("pagehide", () => client.disconnect());
