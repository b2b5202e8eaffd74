/** Shortcuts of one key. They keep silent while somebody writes, and can be turned off where they are listed. */

import { recall, remember } from "./memory.js";

const NAME = "xnai.shortcuts";

/** Whether a key pressed here is writing, and no command. */
export function isWriting(target) {
  return Boolean(target?.closest?.("input, textarea, select, [contenteditable]"));
}

/**
 * Wire up the keys, and the dialog that lists them under `?`.
 *
 * @param {HTMLDialogElement} dialog with a checkbox `[name=shortcuts]`
 * @param {HTMLElement} button opens the dialog
 * @param {Record<string, () => void>} commands by key
 */
export function wireKeys(dialog, button, commands) {
  const choice = dialog.querySelector("[name=shortcuts]");
  choice.checked = recall(NAME, true) !== false;
  choice.addEventListener("change", () => remember(NAME, choice.checked));
  const help = () => (dialog.open ? dialog.close() : dialog.showModal());
  button.addEventListener("click", help);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !choice.checked) return;
    if (event.target !== choice && isWriting(event.target)) return;
    const command = event.key === "?" ? help : dialog.open ? null : commands[event.key];
    if (!command) return;
    event.preventDefault();
    command();
  });
}
