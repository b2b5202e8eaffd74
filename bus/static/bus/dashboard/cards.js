/**
 * Running tasks as cards: one a job, from the first sight of it until 2 s after its end.
 *
 * Which jobs run is told by the server's state (`sync`); what they do, by their own topics. A card is keyed by topic and
 * epoch, so a job that is run again under the same id gets a new card. No card outlives its job: the end of the
 * topic, the end of the subscription, and absence from the state each remove it.
 */

import { connectProgress } from "../client.js";
import { bytes, count, duration } from "./format.js";

const WORDS = {
  "task.started": "started",
  "task.progress": "running",
  "task.paused": "paused",
  "task.resumed": "running",
  "task.completed": "completed",
  "task.failed": "failed",
  "task.cancelled": "cancelled",
};

/** What a card shows after `event`, given what it showed before. Pure. */
export function reduce(before, event) {
  const data = event.data && typeof event.data === "object" ? event.data : {};
  const done = Number.isFinite(data.done) ? data.done : before.done;
  const total = Number.isFinite(data.total) && data.total > 0 ? data.total : before.total;
  const status = WORDS[event.event_type] ?? before.status;
  return {
    status,
    done: status === "completed" && total ? total : done,
    total,
    unit: data.unit ?? before.unit,
    step: data.step ?? before.step,
    message: data.message ?? data.error ?? before.message,
    startedAt: before.startedAt ?? Date.parse(event.timestamp),
    updatedAt: Date.parse(event.timestamp) || before.updatedAt,
  };
}

/** How far, in words: `1,204 of 1,860 files`. */
export function amount({ done, total, unit }) {
  if (!Number.isFinite(done)) return "";
  const show = unit === "bytes" ? bytes : count;
  const of = total ? ` of ${show(total)}` : "";
  return `${show(done)}${of}${unit && unit !== "bytes" ? ` ${unit}` : ""}`;
}

/** Seconds left at the pace so far, or null while that says nothing. */
export function secondsLeft({ done, total, startedAt, updatedAt }) {
  const elapsed = (updatedAt - startedAt) / 1000;
  if (!total || !(done > 0) || done >= total || !(elapsed >= 2)) return null;
  return (elapsed / done) * (total - done);
}

const EMPTY = { status: "waiting", done: NaN, total: 0, unit: "", step: "", message: "", startedAt: null, updatedAt: 0 };

/** The list of cards. */
export class Cards {
  /**
   * @param {object} parts `list` (ul), `template`, `empty` (shown while there is no card), `announce` (says a sentence
   *   to a screen reader), `changed` (called with the number of cards)
   */
  constructor(client, parts) {
    this._client = client;
    this._parts = parts;
    this._cards = new Map();
    this._over = new Set();
  }

  /** Show the jobs that run, as seen at `now` (ms): `[{topic, task_id, epoch, silent}]`. */
  sync(tasks, now) {
    const running = new Set(tasks.map((task) => `${task.topic}@${task.epoch}`));
    for (const [key, card] of this._cards) {
      card.missing = running.has(key) ? 0 : card.missing + 1;
      // Once may be a state that overtook the final event; twice is a job that is over without a word.
      if (card.missing > 1 && !card.ended) card.progress.close();
    }
    for (const key of this._over) if (!running.has(key)) this._over.delete(key);
    for (const task of tasks) this._open(task, `${task.topic}@${task.epoch}`);
    for (const { topic, epoch, silent } of tasks) this._heard(`${topic}@${epoch}`, silent, now);
    this.tick(now);
    this._changed();
  }

  /** Say how long nothing was heard of the workers that are silent. */
  tick(now) {
    for (const { element, ended, silentSince } of this._cards.values()) {
      const is = silentSince !== null && !ended;
      const note = element.querySelector("[data-silent]");
      element.dataset.silent = is ? "yes" : "no";
      note.hidden = !is;
      note.textContent = is ? `no sign of life for ${duration((now - silentSince) / 1000)}` : "";
    }
  }

  /** A worker renews its lease; `silent` seconds without that is a worker that is frozen, dead or cut off. */
  _heard(key, silent, now) {
    const card = this._cards.get(key);
    if (!card) return;
    const was = card.silentSince;
    card.silentSince = silent === null || silent === undefined ? null : now - 1000 * silent;
    if (was === null && card.silentSince !== null) {
      this._parts.announce(`Task ${card.element.dataset.task}: no sign of life of its worker`);
    }
  }

  get size() {
    return this._cards.size;
  }

  _open(task, key) {
    if (this._cards.has(key) || this._over.has(key)) return;
    for (const [other, card] of this._cards) {
      if (other.startsWith(`${task.topic}@`)) card.progress.close(); // an earlier life of the same job
    }
    const element = this._parts.template.content.firstElementChild.cloneNode(true);
    element.dataset.task = task.task_id;
    element.querySelector("[data-title]").textContent = task.task_id;
    element.querySelector("progress").setAttribute("aria-label", `Progress of ${task.task_id}`);
    const card = { element, view: EMPTY, ended: false, missing: 0, silentSince: null, progress: null };
    this._cards.set(key, card);
    this._parts.list.append(element);
    card.progress = connectProgress(
      task.task_id,
      {
        onEvent: (event) => this._show(card, event),
        onEnd: () => this._ended(card, task),
        onClose: () => this._remove(key),
      },
      { client: this._client },
    );
  }

  _show(card, event) {
    card.view = reduce(card.view, event);
    card.ended = false;
    const { element, view } = card;
    const bar = element.querySelector("progress");
    element.dataset.status = view.status;
    element.querySelector("[data-status-text]").textContent = view.status;
    element.querySelector("[data-amount]").textContent = amount(view);
    element.querySelector("[data-message]").textContent = [view.step, view.message].filter(Boolean).join(" · ");
    const left = secondsLeft(view);
    element.querySelector("[data-left]").textContent = left === null ? "" : `about ${duration(left)} left`;
    if (view.total && Number.isFinite(view.done)) {
      bar.max = view.total;
      bar.value = Math.min(view.done, view.total);
      element.querySelector("[data-percent]").textContent = `${Math.floor((100 * bar.value) / view.total)} %`;
    }
  }

  _ended(card, task) {
    card.ended = true;
    this.tick(Date.now());
    card.element.querySelector("[data-left]").textContent = "";
    this._parts.announce(`Task ${task.task_id} ${card.view.status}`);
  }

  _remove(key) {
    this._cards.get(key)?.element.remove();
    this._cards.delete(key);
    this._over.add(key); // the state may still name it for one more poll
    this._changed();
  }

  _changed() {
    this._parts.empty.hidden = this._cards.size > 0;
    this._parts.changed(this._cards.size);
  }
}
