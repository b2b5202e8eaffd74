/** What the page remembers in this browser. Without storage (a private window, a policy) it remembers nothing. */

/** What was kept under `name`, or `otherwise`. */
export function recall(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise; // no storage, or something else wrote there
  }
}

/** Keep a value; returns it. */
export function remember(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    return value; // no storage, or it is full: the value holds as long as the page
  }
  return value;
}
