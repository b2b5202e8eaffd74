/**
 * Beside the progress of a preview: whether a worker has taken it up at all, and whether it is over although the bus
 * did not tell. Asked of the server every few seconds; at the end the page is read anew.
 */

const ASK_MS = 3000;
const OPEN = new Set(["queued", "running"]);

const late = document.querySelector("[data-late]");

async function ask() {
  try {
    const reply = await fetch(late.dataset.stateUrl, { headers: { Accept: "application/json" } });
    // Logged out, or forgotten with its day: the page itself says so.
    if (reply.redirected || reply.status === 404) return location.reload();
    if (reply.ok) {
      const { state, late: waits } = await reply.json();
      if (!OPEN.has(state)) return location.reload();
      late.hidden = !waits;
    }
  } catch {
    // The server is away for a moment: asked again.
  }
  setTimeout(ask, ASK_MS);
}

setTimeout(ask, ASK_MS);
