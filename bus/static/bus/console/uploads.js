/**
 * The box for uploads: files are dropped on it or chosen, and each becomes a line with its progress and its buttons.
 *
 * Two are sent at a time, the others wait. A screen reader is told when a file begins, is in trouble, and is over; not
 * of every percent.
 */

import { amount, secondsLeft } from "../dashboard/cards.js";
import { bytes, duration } from "../dashboard/format.js";
import { Transfer, keyOf } from "./tus.js";

const AT_ONCE = 2;
const WORDS = {
  waiting: ["waits", "neutral"],
  sending: ["under way", "info"],
  trying: ["tries again", "warn"],
  paused: ["paused", "warn"],
  done: ["done", "good"],
  refused: ["refused", "bad"],
  ended: ["given up", "neutral"],
};

const box = document.querySelector("[data-upload]");

class Line {
  constructor(file, area) {
    this.element = box.querySelector("template").content.firstElementChild.cloneNode(true);
    this.said = "";
    this.part("name").textContent = file.name;
    this.part("bar").setAttribute("aria-label", `Progress of ${file.name}`);
    this.transfer = new Transfer(file, {
      endpoint: box.dataset.upload,
      partSize: Number(box.dataset.partSize),
      // Some systems keep names in pieces that look alike; the server takes them in one form alone.
      metadata: { filename: file.name.normalize("NFC"), filetype: file.type, area },
      headers: { "X-CSRFToken": box.querySelector("[name=csrfmiddlewaretoken]").value },
      key: keyOf(file, box.dataset.person, area),
      onChange: () => this.show(),
    });
    this.button("pause", () => this.transfer.pause());
    this.button("resume", () => this.resume());
    this.button("end", () => this.transfer.giveUp());
    box.querySelector("[data-part=files]").append(this.element);
    this.show();
  }

  part(name) {
    return this.element.querySelector(`[data-part="${name}"]`);
  }

  button(name, act) {
    const button = this.part(name);
    button.setAttribute("aria-label", `${button.textContent}: ${this.transfer.file.name}`);
    button.addEventListener("click", () => {
      act();
      // The button that was pressed may be gone: whoever uses the keyboard stays on this line.
      if (button.hidden) this.element.focus();
    });
  }

  resume() {
    this.transfer.wait();
    begin();
  }

  show() {
    const { transfer } = this;
    const { state, file } = transfer;
    const isMoving = state === "sending" || state === "trying";
    this.part("bar").max = Math.max(file.size, 1);
    this.part("bar").value = state === "done" ? Math.max(file.size, 1) : Math.min(transfer.sent, file.size);
    this.part("words").textContent = this.words();
    this.part("reason").textContent = transfer.reason && state !== "ended" ? `${sentence(transfer.reason)}.` : "";
    this.part("pause").hidden = !isMoving;
    this.part("resume").hidden = state !== "paused";
    this.part("end").hidden = transfer.isOver;
    this.part("page").hidden = !transfer.id || state === "ended";
    if (transfer.id) this.part("page").href = box.dataset.page.replace("ID", transfer.id);
    this.tell();
    if (transfer.isOver || state === "paused") setTimeout(begin, 0);
  }

  words() {
    const { transfer } = this;
    if (transfer.state === "done") return bytes(transfer.file.size);
    if (transfer.state === "ended") return sentence(transfer.reason);
    const view = { done: transfer.sent, total: transfer.file.size, unit: "bytes" };
    const left = this.left();
    const whole = transfer.offset >= 0 && transfer.sent >= transfer.file.size && transfer.file.size > 0;
    if (transfer.state === "sending" && whole) return `${amount(view)}, being checked`;
    return left === null ? amount(view) : `${amount(view)}, about ${duration(left)} left`;
  }

  left() {
    const { state, sent, file } = this.transfer;
    if (state !== "sending") {
      this.from = null;
      return null;
    }
    this.from ??= { at: Date.now(), sent };
    const done = sent - this.from.sent;
    return secondsLeft({ done, total: file.size - this.from.sent, startedAt: this.from.at, updatedAt: Date.now() });
  }

  /** A new state is shown as a word, and said once. */
  tell() {
    const { state, reason, file } = this.transfer;
    if (state === this.said) return;
    this.said = state;
    const [word, tone] = WORDS[state];
    this.part("state").textContent = word;
    this.part("state").className = `x-badge x-${tone}`;
    this.element.dataset.state = state;
    box.querySelector("[data-part=announce]").textContent = `${file.name}: ${word}${reason ? `, ${reason}` : ""}`;
  }
}

const lines = [];

/** Send the next ones, as many as may be under way. */
function begin() {
  const under = lines.filter(({ transfer }) => transfer.state === "sending" || transfer.state === "trying");
  const next = lines.filter(({ transfer }) => transfer.state === "waiting").slice(0, AT_ONCE - under.length);
  if (under.length < AT_ONCE) for (const { transfer } of next) transfer.run();
  const over = lines.length > 0 && lines.every(({ transfer }) => transfer.isOver);
  box.querySelector("[data-part=anew]").hidden = !over;
}

function take(files) {
  const area = box.querySelector("[name=area]").value;
  for (const file of files) lines.push(new Line(file, area));
  begin();
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** The field for files is made here, since without this script it could do nothing. */
function field() {
  const input = document.createElement("input");
  input.type = "file";
  input.multiple = true;
  input.id = "u-choose";
  input.className = "x-sr";
  input.setAttribute("aria-describedby", "u-limits");
  // unfold looks for its own frame around every field for files; this one says that it is looked after.
  input.hasChangeListener = true;
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // the same file may be chosen again
  });
  return input;
}

function wire() {
  const drop = box.querySelector("[data-part=drop]");
  const label = box.querySelector("[data-part=choose]");
  label.before(field());
  label.htmlFor = "u-choose";
  drop.hidden = false;
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.dataset.over = "yes";
    });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => delete drop.dataset.over);
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
  // A file that misses the box would replace the page.
  for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
}

if (box) wire();
