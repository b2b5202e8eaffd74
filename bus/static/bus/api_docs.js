// Swagger's page follows the light or dark of the system: its sheet asks for a class, not for the media query.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

// What Swagger UI leaves without a name, or names other than it reads, for those who hear the page.
const NAMES = {
  ".close-modal": "Close",
  ".examples-select-element": "Example",
  ".modal-ux button[type=submit]": "",
};
const LEVELS = { ".info h1": 2, ".info h2": 2, "h3.opblock-tag": 2, ".modal-ux-header h3": 2, ".swagger-ui h4": 3 };

const set = (element, name, value) => element.getAttribute(name) === value || element.setAttribute(name, value);
const mend = () => {
  for (const [selector, name] of Object.entries(NAMES))
    for (const found of document.querySelectorAll(selector)) set(found, "aria-label", name || found.textContent);
  for (const [selector, level] of Object.entries(LEVELS))
    for (const found of document.querySelectorAll(selector)) set(found, "aria-level", String(level));
};
new MutationObserver(mend).observe(document.documentElement, { subtree: true, childList: true });
