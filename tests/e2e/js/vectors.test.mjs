/** The golden conversations: what `client.js` tells of them. `VECTORS` is the file, `VECTORS_URL` who speaks them. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { BusClient } from "../../../bus/static/bus/client.js";

const vectors = JSON.parse(readFileSync(process.env.VECTORS, "utf8"));

/** Follow the topic until as much came as should, or the end. */
function hear(vector) {
  const client = new BusClient({ url: process.env.VECTORS_URL + encodeURIComponent(vector.name), token: "any" });
  const heard = [];
  let gap = false;
  return new Promise((resolve) => {
    const finish = (code) => {
      resolve({ heard, code });
      client.disconnect();
    };
    client.onState(({ name, code }) => name === "disconnected" && finish(code));
    client.subscribe("lab:1", {
      onEvent: (event, { offset }) => {
        heard.push([offset ?? 0, event?.event_type ? event.data : event, gap]);
        gap = false;
        const isWhole = heard.length === vector.events.length;
        if (isWhole && !("ends" in vector) && !("closes" in vector)) finish();
      },
      onGap: () => (gap = true),
      onEnd: ({ code }) => finish(code),
    });
  });
}

for (const vector of vectors) {
  test(vector.name, async () => {
    const { heard, code } = await hear(vector);
    assert.deepEqual(heard, vector.events);
    assert.equal(code, vector.ends ?? vector.closes);
  });
}
