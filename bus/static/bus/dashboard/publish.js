/** The box to publish a test event: it says where data is not JSON, what the bus answered, and remembers the topics. */

import { wrongPlace } from "./json_place.js";
import { recall, remember } from "./memory.js";

const TOPICS = "xnai.publish.topics";
const MOST_TOPICS = 8;

/** The value that the text holds. Throws an error whose message tells the writer what to mend, and whose `at` where. */
export function readData(text) {
  if (!text.trim()) return {};
  const wrong = wrongPlace(text);
  if (wrong === null) return JSON.parse(text);
  const message = `The data is not JSON: line ${wrong.line}, column ${wrong.column} wants ${wrong.wanted}.`;
  throw Object.assign(new Error(message), { at: wrong.at });
}

/** The topics that are remembered after one more was used: the latest first, each once. */
export function latest(topics, topic) {
  return [topic, ...topics.filter((other) => other !== topic)].slice(0, MOST_TOPICS);
}

/**
 * Wire the form up. Answers appear in its `output`, which a screen reader is told of.
 *
 * @param {HTMLFormElement} form
 * @param {import("../client.js").BusClient} client
 * @param {(topic: string) => Promise<void>} trace follows a topic; resolves once that is under way
 */
export function wirePublish(form, client, trace) {
  const output = form.querySelector("output");
  const buttons = form.querySelectorAll("button");
  const known = form.querySelector("[data-known-topics]");
  const field = form.elements.namedItem("data");
  let used = recall(TOPICS, []).filter((topic) => typeof topic === "string");
  const say = (text, bad) => {
    output.textContent = text;
    output.dataset.bad = bad ? "yes" : "no";
  };
  const offer = () => known.replaceChildren(...used.map((topic) => new Option(topic, topic)));
  const lock = (locked) => buttons.forEach((button) => (button.disabled = locked));
  offer();
  if (used.length) form.elements.namedItem("topic").value = used[0];

  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    form.requestSubmit();
  });
  field.addEventListener("input", () => field.removeAttribute("aria-invalid"));
  form.addEventListener("submit", async (submitted) => {
    submitted.preventDefault();
    const values = Object.fromEntries(new FormData(form));
    const [topic, type] = [values.topic.trim(), values.event_type.trim()];
    const back = document.activeElement;
    lock(true);
    try {
      const data = readData(values.data);
      if (submitted.submitter?.value === "trace") await trace(topic);
      const { offset, duplicate } = await client.publish(topic, type, data);
      say(offset ? `${duplicate ? "Already there" : "Published"} as event ${offset.toLocaleString("en")} of ${topic}.` : "Published.", false);
      used = remember(TOPICS, latest(used, topic));
      offer();
    } catch (error) {
      say(error.code ? `Refused: ${error.message} (${error.code}).` : error.message, true);
      if (error.at !== undefined) show(field, error.at);
    } finally {
      lock(false);
      if (document.activeElement === document.body) back?.focus(); // a button that is disabled loses it
    }
  });
}

/** Bring the place of an error into sight, and the cursor to it. */
function show(field, at) {
  field.setAttribute("aria-invalid", "true");
  field.focus();
  field.setSelectionRange(at, Math.min(at + 1, field.value.length));
}
