/** The table of topics: the busiest first, with what is retained of each. */

import { count, rate, relative } from "./format.js";

/** Busiest first, then most recently spoken on. Pure. */
export function ranked(topics, rates) {
  const speed = (topic) => rates.get(topic.name) ?? 0;
  return [...topics].sort((a, b) => speed(b) - speed(a) || b.updated_at.localeCompare(a.updated_at));
}

/** Show at most `limit` topics in `body`; rows are made anew, since there are few. */
export function showTopics(body, template, topics, rates, now, limit = 12) {
  const rows = ranked(topics, rates).slice(0, limit);
  body.replaceChildren(...rows.map((topic) => row(template, topic, rates.get(topic.name) ?? 0, now)));
}

function row(template, topic, speed, now) {
  const element = template.content.firstElementChild.cloneNode(true);
  const link = element.querySelector("a");
  link.textContent = topic.name;
  link.href = topic.url;
  const follow = element.querySelector("[data-follow]");
  follow.dataset.follow = topic.name;
  follow.href = `?trace=${encodeURIComponent(topic.name)}`;
  follow.setAttribute("aria-label", `Trace ${topic.name}`);
  const set = (name, text) => (element.querySelector(`[data-${name}]`).textContent = text);
  set("rate", rate(speed));
  set("last", count(topic.last_offset));
  set("kept", count(Math.max(0, topic.last_offset - topic.first_offset + 1)));
  set("updated", topic.ended ? `ended ${topic.end_status}`.trim() : relative(new Date(topic.updated_at), now));
  element.dataset.busy = speed > 0 ? "yes" : "no";
  return element;
}
