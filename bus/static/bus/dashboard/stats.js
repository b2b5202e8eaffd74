/**
 * The live figures. Each server process tells its own once a second on `sys:stats`; here they are added up.
 *
 * While no process speaks (the bus is out of reach) the server's rows stand in, so the page never shows an old figure
 * as if it were of now.
 */

/** A process that has been silent for this long is not counted any more, ms. */
export const SILENT_AFTER_MS = 5000;

/** The sum over processes of what each last said. */
export class Figures {
  constructor() {
    this._said = new Map();
  }

  /** Take what one process said at `now` (ms). */
  take(data, now) {
    this._said.set(data.instance ?? data.server ?? "", { data, at: now });
  }

  /** `{connections, eventsPerSecond}` of all processes that still speak, or null if none does. */
  total(now) {
    const fresh = [];
    for (const [name, { data, at }] of this._said) {
      if (now - at > SILENT_AFTER_MS) this._said.delete(name);
      else fresh.push(data);
    }
    if (!fresh.length) return null;
    const sum = (key) => fresh.reduce((total, data) => total + (Number(data[key]) || 0), 0);
    return { connections: sum("connections"), eventsPerSecond: sum("events_per_s") };
  }
}

/** Events per second of each topic, from two looks at the last offsets. */
export class Rates {
  constructor() {
    this._before = new Map();
  }

  /** `[{name, epoch, last_offset}]` seen at `now` (ms) -> Map of name to rate. */
  update(topics, now) {
    const rates = new Map();
    const seen = new Map();
    for (const { name, epoch, last_offset: offset } of topics) {
      const before = this._before.get(name);
      const comparable = before && before.epoch === epoch && now > before.at;
      rates.set(name, comparable ? Math.max(0, (1000 * (offset - before.offset)) / (now - before.at)) : 0);
      seen.set(name, { epoch, offset, at: now });
    }
    this._before = seen;
    return rates;
  }
}
