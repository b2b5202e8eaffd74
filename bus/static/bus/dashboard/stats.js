/**
 * The live figures: what the server that holds our connection tells once a second on `sys:stats`, and how fast topics grow.
 *
 * While it is silent (the bus is out of reach) the server's rows stand in, so that the page never shows an old figure as
 * if it were of now.
 */

/** What was said longer ago than this counts no more, ms. */
export const SILENT_AFTER_MS = 5000;

/** The last figures that a server told. */
export class Figures {
  constructor() {
    this._last = null;
  }

  /** Take what was said at `now` (ms). */
  take(data, now) {
    this._last = { data, at: now };
  }

  /** Live connections of all servers, or null if nobody has said lately. */
  connections(now) {
    if (!this._last || now - this._last.at > SILENT_AFTER_MS) return null;
    const { all_connections: everywhere, connections } = this._last.data;
    return everywhere ?? connections ?? null;
  }
}

/** Events per second of each topic, from two looks at the last offsets. */
export class Rates {
  constructor() {
    this._before = null;
  }

  /** `[{name, epoch, last_offset}]` seen at `now` (ms) -> `{each: Map of name to rate, all: rate or null}`. */
  update(topics, now) {
    const each = new Map();
    for (const { name, epoch, last_offset: offset } of topics) {
      const before = this._before?.offsets.get(name);
      // Of a topic that was not looked at before nothing is known: it may be new, or have come back into the list.
      const grown = before && before.epoch === epoch ? Math.max(0, offset - before.offset) : 0;
      each.set(name, grown && (1000 * grown) / (now - this._before.at));
    }
    const all = this._before ? [...each.values()].reduce((sum, rate) => sum + rate, 0) : null;
    const offsets = new Map(topics.map(({ name, epoch, last_offset: offset }) => [name, { epoch, offset }]));
    this._before = { at: now, offsets };
    return { each, all };
  }
}
