/** The deciding parts of the box for uploads: what is said to the server, what its answers mean. No server, no page. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { encodeMetadata, keyOf, mayPass, pauseAfter, reasonOf } from "../../../bus/static/bus/console/tus.js";

test("metadata is base64 of UTF-8, and what is empty is left out", () => {
  assert.equal(encodeMetadata({ filename: "a b.txt", filetype: "", area: "raw" }), "filename YSBiLnR4dA==,area cmF3");
  const [, value] = encodeMetadata({ filename: "Übung 测试.md" }).split(" ");
  assert.equal(Buffer.from(value, "base64").toString("utf8"), "Übung 测试.md");
});

test("a file is known again by person, area, name, size and time", () => {
  const file = { name: "a.txt", size: 7, lastModified: 5 };
  assert.equal(keyOf(file, "anna", "raw"), keyOf({ ...file }, "anna", "raw"));
  const others = [
    keyOf(file, "ben", "raw"),
    keyOf(file, "anna", "other"),
    keyOf({ ...file, name: "b.txt" }, "anna", "raw"),
    keyOf({ ...file, size: 8 }, "anna", "raw"),
    keyOf({ ...file, lastModified: 6 }, "anna", "raw"),
  ];
  assert.equal(new Set([keyOf(file, "anna", "raw"), ...others]).size, 6);
});

test("what passes is tried again, what is refused is not", () => {
  for (const status of [0, 408, 409, 423, 429, 460, 500, 502, 503, 507]) assert.ok(mayPass(status), status);
  for (const status of [400, 401, 403, 404, 410, 412, 413, 415, 422]) assert.ok(!mayPass(status), status);
});

test("pauses grow up to half a minute, and the wish of the server counts", () => {
  const pauses = [1, 2, 3, 4, 5, 6, 7, 8, 100].map((failures) => pauseAfter(failures, NaN));
  assert.deepEqual(pauses, [500, 1000, 2000, 5000, 10000, 20000, 30000, 30000, 30000]);
  assert.equal(pauseAfter(1, 5), 5000);
  assert.equal(pauseAfter(7, 5), 30000);
  assert.equal(pauseAfter(0, -1), 500);
});

test("errors are in the words of the server, and of ours where it says none", () => {
  const said = JSON.stringify({ error: { code: "wrong_type", message: "a .png file begins with \\x89PNG" } });
  assert.equal(reasonOf({ status: 415, text: said }), "a .png file begins with \\x89PNG");
  assert.equal(reasonOf({ status: 0, text: "" }), "the server does not answer");
  assert.equal(reasonOf({ status: 502, text: "<html>" }), "the server answers with status 502");
  assert.equal(reasonOf({ status: 500, text: '{"error": null}' }), "the server answers with status 500");
  assert.match(reasonOf({ status: 401, text: said }), /log in/);
});
