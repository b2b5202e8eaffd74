/**
 * One file on its way to the server by tus 1.0 (https://tus.io): made there, sent in parts, gone on with after every cut.
 *
 * The server says up to which byte it has the file, and only that counts: after a cut it is asked, and the next part
 * begins there. Where an upload lies is remembered in this browser, so the same file chosen again goes on where it
 * stopped, also after the page was closed. Whoever cannot be reached is asked again, more and more slowly, until
 * somebody pauses or gives up.
 */

import { recall, remember } from "../dashboard/memory.js";

const VERSION = "1.0.0";
const PAUSES = [500, 1000, 2000, 5000, 10000, 20000, 30000];
/** Answers after which the same may succeed later: no answer, a slow part, a lease, too many, a part that was torn. */
const PASSING = new Set([0, 408, 409, 423, 425, 429, 460]);
/** Answers that leave open what the server knows of the upload. */
const UNSURE = new Set([404, 409, 410]);
const REMEMBERED = "xnai.uploads";
const MOST_REMEMBERED = 50;

/** Whether the same request may succeed later. */
export function mayPass(status) {
  return PASSING.has(status) || status >= 500;
}

/** How long to wait before the next try, in ms, after so many that failed; `wish` is what the server asks for, in s. */
export function pauseAfter(failures, wish) {
  const own = PAUSES[Math.min(Math.max(failures, 1), PAUSES.length) - 1];
  return Number.isFinite(wish) && wish > 0 ? Math.max(own, wish * 1000) : own;
}

/** Upload-Metadata: `{filename: "a b"}` -> `filename YSBi`. What is empty is left out. */
export function encodeMetadata(given) {
  return Object.entries(given)
    .filter(([, value]) => value)
    .map(([name, value]) => `${name} ${btoa(String.fromCharCode(...new TextEncoder().encode(value)))}`)
    .join(",");
}

/** What tells a file from others in this browser, for one person and one area. */
export function keyOf(file, person, area) {
  return [person, area, file.name, file.size, file.lastModified].join("|");
}

/** What the server says was wrong; its status where it says nothing. */
export function reasonOf({ status, text }) {
  if (status === 0) return "the server does not answer";
  if (status === 401) return "you are logged out: log in, then choose the file again";
  try {
    const said = JSON.parse(text).error.message;
    if (said) return String(said);
  } catch {
    // no answer of ours: of a proxy, or cut off
  }
  return `the server answers with status ${status}`;
}

/** Ask the server; resolves with `{status, header, text}`, of which the status is 0 if there was no answer. */
function request(method, url, { headers = {}, body = null, onSent = null, signal = null } = {}) {
  return new Promise((resolve) => {
    const asked = new XMLHttpRequest();
    const over = () =>
      resolve({
        status: asked.status,
        header: (name) => asked.getResponseHeader(name),
        text: asked.responseText,
      });
    asked.open(method, url);
    for (const [name, value] of Object.entries({ "Tus-Resumable": VERSION, ...headers })) {
      asked.setRequestHeader(name, value);
    }
    if (onSent) asked.upload.addEventListener("progress", ({ loaded }) => onSent(loaded));
    asked.addEventListener("loadend", over);
    signal?.addEventListener("abort", () => asked.abort(), { once: true });
    asked.send(body);
  });
}

/** A number that a header gives; NaN if it gives none. */
function figure(answer, name) {
  const text = answer.header(name);
  return text === null || text === "" ? NaN : Number(text);
}

/** One file. `state`: waiting, sending, trying, paused, done, refused, ended. The last three are for good. */
export class Transfer {
  /**
   * @param {File} file
   * @param {object} how `endpoint`, `partSize` (bytes that the server takes at once), `metadata`, `headers` (with what
   *   proves the person), `key` (see `keyOf`) and `onChange`, which is called after every change
   */
  constructor(file, { endpoint, partSize, metadata, headers, key, onChange }) {
    this.file = file;
    this.state = "waiting";
    this.reason = "";
    this.url = recall(REMEMBERED, {})[key] ?? "";
    /** Bytes that the server has; null while that is not known. */
    this.offset = this.url ? null : 0;
    this._known = Boolean(this.url);
    this._sent = 0;
    this._failures = 0;
    this._told = "";
    this._given = { endpoint, partSize, metadata, headers, key };
    this._changed = onChange;
  }

  get isOver() {
    return this.state === "done" || this.state === "refused" || this.state === "ended";
  }

  /** Bytes that have left this browser, of which the server may not have the last. */
  get sent() {
    return (this.offset ?? 0) + this._sent;
  }

  /** The id that the server gave it; empty until then. */
  get id() {
    return this.url.split("/").filter(Boolean).at(-1) ?? "";
  }

  /** Send until it is over or paused. */
  async run() {
    if (this.isOver || this.state === "sending" || this.state === "trying") return;
    this._cut = new AbortController();
    const cut = this._cut;
    this._turn("sending");
    while (cut === this._cut && !cut.signal.aborted && !this.isOver) await this._step(cut.signal);
  }

  /** Stop sending; what the server has, it keeps until the upload expires. */
  pause() {
    if (this.isOver) return;
    this._cut?.abort();
    if (this.url) this.offset = null;
    this._sent = 0;
    this._turn("paused");
  }

  /** Be next after a pause, once there is room. */
  wait() {
    if (this.state === "paused") this._turn("waiting");
  }

  /** End it for good, here and there. Resolves once the server knows, or could not be told. */
  async giveUp() {
    if (this.isOver) return;
    this._cut?.abort();
    const url = this.url;
    this._forget();
    this._turn("ended", "given up");
    if (!url) return;
    const answer = await request("DELETE", url, { headers: this._given.headers });
    if (answer.status >= 300 && !UNSURE.has(answer.status)) this._turn("ended", `given up here; ${reasonOf(answer)}`);
    if (answer.status === 0) this._turn("ended", "given up here; the server was not told, where it expires by itself");
  }

  async _step(signal) {
    if (!this.url) return this._make(signal);
    if (this.offset === null) return this._ask(signal);
    return this._send(signal);
  }

  async _make(signal) {
    const { endpoint, metadata, headers, key } = this._given;
    const given = { "Upload-Length": String(this.file.size), "Upload-Metadata": encodeMetadata(metadata) };
    const answer = await request("POST", endpoint, { headers: { ...headers, ...given }, signal });
    const place = answer.status === 201 ? answer.header("Location") : null;
    if (place === null) return this._failed(answer, signal);
    // Its path alone: a proxy may have another name than the server believes.
    this.url = new URL(place, location.href).pathname;
    if (signal.aborted) return;
    this._remember(key);
    this._arrived(0);
  }

  async _ask(signal) {
    const answer = await request("HEAD", this.url, { signal });
    const offset = figure(answer, "Upload-Offset");
    if (answer.status === 200 && offset >= 0 && figure(answer, "Upload-Length") === this.file.size) {
      return this._arrived(offset, this._failures);
    }
    if (this._known && (UNSURE.has(answer.status) || answer.status === 200)) {
      // What this browser remembered is over, or of another file: it begins anew.
      this._forget();
      return;
    }
    if (signal.aborted || !UNSURE.has(answer.status)) return this._failed(answer, signal);
    this._over("refused", this._told || "the server has ended this upload: its page says why");
  }

  async _send(signal) {
    const headers = { ...this._given.headers, "Upload-Offset": String(this.offset) };
    headers["Content-Type"] = "application/offset+octet-stream";
    const onSent = (bytes) => {
      if (signal.aborted) return;
      this._sent = bytes;
      this._turn("sending");
    };
    const body = this.file.slice(this.offset, this.offset + this._given.partSize);
    const answer = await request("PATCH", this.url, { headers, body, onSent, signal });
    this._sent = 0;
    const offset = figure(answer, "Upload-Offset");
    if (answer.status === 204 && offset > this.offset) return this._arrived(offset);
    this.offset = null;
    return this._failed(answer, signal);
  }

  /** The server has so many bytes. */
  _arrived(offset, failures = 0) {
    this.offset = offset;
    this._failures = failures;
    this._known = false;
    if (offset >= this.file.size) this._over("done", "");
    else this._turn("sending");
  }

  /** Say what is wrong, and wait, or end it. */
  async _failed(answer, signal) {
    if (signal.aborted) return;
    const reason = reasonOf(answer);
    const isUnsure = Boolean(this.url) && UNSURE.has(answer.status);
    const isRefused = !this.url && answer.status === 409;
    if (isRefused || (!mayPass(answer.status) && !isUnsure)) return this._over("refused", reason);
    this._failures += 1;
    // It is asked at once what it has; if it has ended the upload, that was why.
    this._told = isUnsure ? reason : "";
    if (isUnsure && this._failures === 1) return;
    this._turn("trying", reason);
    await this._rest(pauseAfter(this._failures, figure(answer, "Retry-After")), signal);
  }

  _rest(length, signal) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, length);
      const now = () => {
        clearTimeout(timer);
        resolve();
      };
      signal.addEventListener("abort", now, { once: true });
      addEventListener("online", now, { once: true, signal });
    });
  }

  _over(state, reason) {
    this._forget(true);
    this._turn(state, reason);
  }

  _turn(state, reason = "") {
    this.state = state;
    this.reason = reason;
    this._changed(this);
  }

  _remember(key) {
    const kept = Object.entries(recall(REMEMBERED, {})).filter(([name]) => name !== key);
    remember(REMEMBERED, Object.fromEntries([...kept.slice(1 - MOST_REMEMBERED), [key, this.url]]));
  }

  /** Forget where it lies; `isOver` keeps the address, of which its page is made. */
  _forget(isOver = false) {
    const { [this._given.key]: _, ...others } = recall(REMEMBERED, {});
    remember(REMEMBERED, others);
    if (isOver) return;
    this.url = "";
    this.offset = 0;
    this._known = false;
  }
}
