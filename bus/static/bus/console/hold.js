/** While a hold is written: how many files its pattern keeps, asked of the server when the typing pauses. */

const PAUSE = 300;

const hint = document.getElementById("a-hint");
const area = document.querySelector("[name=area]");
const pattern = document.querySelector("[name=pattern]");
let timer = 0;
let asked = 0;

async function ask() {
  const number = ++asked;
  const query = new URLSearchParams({ area: area.value, pattern: pattern.value });
  let text = "";
  try {
    const answer = await fetch(`${hint.dataset.url}?${query}`, { headers: { Accept: "application/json" } });
    text = answer.ok ? (await answer.json()).text : "How many files it keeps could not be found out.";
  } catch {
    text = "How many files it keeps could not be found out: the server does not answer.";
  }
  if (number !== asked) return; // a younger question is under way
  hint.textContent = text;
  hint.hidden = !text;
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(ask, PAUSE);
}

if (hint && area && pattern) {
  area.addEventListener("change", soon);
  pattern.addEventListener("input", soon);
  if (area.value && pattern.value) ask();
}
