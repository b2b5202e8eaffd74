/**
 * The form of a policy: only the fields that the chosen rule looks at, and what the policy would do, in words.
 *
 * The words are the server's, for the form as it stands, so they are those of the preview and of the commands. A field
 * that is hidden says nothing, and says again what was written when its rule is chosen again.
 */

const ASK_MS = 400;

const says = document.querySelector("[data-policy-says]");
const form = says.closest("form");
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const rulesOf = read("x-rules");
const neutral = read("x-neutral");
const kept = new Map();

const input = (name) => form.elements.namedItem(name);

function setValue(field, value) {
  if (field.type === "checkbox") field.checked = Boolean(value);
  else field.value = value;
  // Widgets that draw themselves, such as a select with a search, hear of it.
  field.dispatchEvent(new Event("change", { bubbles: true }));
}

/** Show a field, with what was written in it; or hide it, saying nothing. */
function turn(name, shown) {
  const field = input(name);
  const line = field?.closest(".field-line");
  if (!line || line.hidden === !shown) return;
  line.hidden = !shown;
  if (shown) {
    if (kept.has(name)) setValue(field, kept.get(name));
  } else {
    kept.set(name, field.type === "checkbox" ? field.checked : field.value);
    setValue(field, neutral[name]);
  }
}

function arrange() {
  const rule = input("rule").value;
  for (const [name, rules] of Object.entries(rulesOf)) turn(name, rules.includes(rule));
  for (const row of form.querySelectorAll(".field-row, fieldset.module")) {
    const lines = [...row.querySelectorAll(".field-line")];
    if (lines.length) row.hidden = lines.every((line) => line.hidden);
  }
}

let timer = null;
let asked = 0;

async function ask() {
  const turnNumber = ++asked;
  try {
    const reply = await fetch(says.dataset.url, { method: "POST", body: new FormData(form) });
    if (!reply.ok || turnNumber !== asked) return;
    const { words, problem } = await reply.json();
    const line = says.querySelector("p");
    if (line.textContent !== words) line.textContent = words;
    const wrong = says.querySelector("[data-problem]");
    wrong.hidden = !problem;
    wrong.textContent = problem ? `Not yet: ${problem}` : "";
  } catch {
    // The server is away: saving will say so.
  }
}

if ("edits" in says.dataset && input("rule")) {
  arrange();
  input("rule").addEventListener("change", arrange);
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(ask, ASK_MS);
  };
  form.addEventListener("input", later);
  form.addEventListener("change", later);
}
