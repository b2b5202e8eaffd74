/** Where a text stops being JSON. Browsers disagree on whether and how they tell, so this reads it itself. */

const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
// eslint-disable-next-line no-control-regex
const STRING = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
const WORD = /(?:true|false|null)(?![A-Za-z0-9_])/y;

class Wrong extends Error {
  constructor(at, wanted) {
    super(wanted);
    this.at = at;
  }
}

/**
 * The first place at which `text` cannot be JSON: `{at, line, column, wanted}`, or null if it is JSON.
 */
export function wrongPlace(text) {
  try {
    const end = blank(text, value(text, blank(text, 0)));
    if (end < text.length) throw new Wrong(end, "the end of the data");
    return null;
  } catch (error) {
    if (!(error instanceof Wrong)) throw error;
    const before = text.slice(0, error.at).split("\n");
    return { at: error.at, line: before.length, column: before.at(-1).length + 1, wanted: error.message };
  }
}

function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.test(text) ? pattern.lastIndex : -1;
}

function blank(text, at) {
  return match(SPACE, text, at);
}

function value(text, at) {
  if (text[at] === "{") return members(text, at, "}", pair);
  if (text[at] === "[") return members(text, at, "]", value);
  for (const pattern of [STRING, NUMBER, WORD]) {
    const end = match(pattern, text, at);
    if (end > at) return end;
  }
  throw new Wrong(at, text[at] === '"' ? "a string with its closing quote" : "a value");
}

function pair(text, at) {
  const end = match(STRING, text, at);
  if (end < 0) throw new Wrong(at, 'a name in double quotes');
  const colon = blank(text, end);
  if (text[colon] !== ":") throw new Wrong(colon, "a colon");
  return value(text, blank(text, colon + 1));
}

function members(text, at, close, one) {
  let next = blank(text, at + 1);
  if (text[next] === close) return next + 1;
  for (;;) {
    next = blank(text, one(text, next));
    if (text[next] === close) return next + 1;
    if (text[next] !== ",") throw new Wrong(next, `a comma or ${close}`);
    next = blank(text, next + 1);
  }
}
