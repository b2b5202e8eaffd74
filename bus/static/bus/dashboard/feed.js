/** The audit feed: what cleanup did, newest first, at most `LIMIT` lines; also what was said while we were away. */

import { bytes, clock, count, relative } from "./format.js";

export const LIMIT = 20;

/** One line of the feed: what, about which file or run, how much, by whom. Pure. */
export function line(event) {
  const data = event.data && typeof event.data === "object" ? event.data : {};
  const number = Number(data.count ?? 0);
  const size = Number(data.size ?? data.bytes ?? 0);
  return {
    action: data.actions ? several(data.actions) : words(data.action ?? event.event_type),
    subject: data.path || data.policy_version || data.policy || data.area || "",
    where: data.path ? (data.area ?? "") : "",
    much: [number > 1 ? `${count(number)} entries` : "", size > 0 ? bytes(size) : ""].filter(Boolean).join(", "),
    actor: data.actor ?? "",
    reason: words(data.reason ?? ""),
    at: new Date(event.timestamp),
  };
}

function words(text) {
  return String(text).replaceAll("_", " ");
}

/** What was told as one event because it was much: `1,000 trashed, 2 skipped`. */
function several(actions) {
  return Object.entries(actions)
    .sort(([, a], [, b]) => b - a)
    .map(([action, number]) => `${count(number)} ${words(action)}`)
    .join(", ");
}

export class Feed {
  /** @param {object} parts `list` (ol), `template`, `empty` */
  constructor(client, topic, parts) {
    this._parts = parts;
    this._subscription = client.subscribe(
      topic,
      { onEvent: (event) => this._add(line(event)), onGap: () => parts.list.replaceChildren() },
      { recent: LIMIT },
    );
  }

  /** Say again how long ago each line was. */
  tick(now) {
    for (const time of this._parts.list.querySelectorAll("time")) {
      time.textContent = relative(new Date(time.dateTime), now);
    }
  }

  _add({ action, subject, where, much, actor, reason, at }) {
    const element = this._parts.template.content.firstElementChild.cloneNode(true);
    const set = (name, text) => (element.querySelector(`[data-${name}]`).textContent = text);
    set("action", action);
    set("subject", subject);
    set("detail", [where, much, reason, actor && `by ${actor}`].filter(Boolean).join(" · "));
    const time = element.querySelector("time");
    time.dateTime = at.toISOString();
    time.title = `${at.toLocaleDateString("en-GB")} ${clock(at)}`;
    time.textContent = relative(at, new Date());
    this._parts.list.prepend(element);
    while (this._parts.list.children.length > LIMIT) this._parts.list.lastElementChild.remove();
    this._parts.empty.hidden = true;
  }
}
