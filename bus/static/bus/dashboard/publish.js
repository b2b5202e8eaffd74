/** The box to publish a test event. */

import { count } from "./format.js";

/** The object that the text holds. Throws an error whose message tells the writer what to mend. */
export function readData(text) {
  if (!text.trim()) return {};
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The data is not JSON: ${error.message}`);
  }
}

/** Wire the form up. Answers appear in its `output`, which a screen reader is told of. */
export function wirePublish(form, client) {
  const output = form.querySelector("output");
  const button = form.querySelector("button");
  const say = (text, bad) => {
    output.textContent = text;
    output.dataset.bad = bad ? "yes" : "no";
  };
  form.addEventListener("submit", async (submitted) => {
    submitted.preventDefault();
    const { topic, event_type: type, data } = Object.fromEntries(new FormData(form));
    button.disabled = true;
    try {
      const { offset, duplicate } = await client.publish(topic.trim(), type.trim(), readData(data));
      say(offset ? `${duplicate ? "Already there" : "Published"} as event ${count(offset)} of ${topic}.` : "Published.", false);
    } catch (error) {
      say(error.code ? `Refused: ${error.message} (${error.code}).` : error.message, true);
    } finally {
      button.disabled = false;
    }
  });
}
