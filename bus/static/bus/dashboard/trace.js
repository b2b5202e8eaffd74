/**
 * A live trace: the events of a few topics as they come, with a pause that loses nothing in silence.
 *
 * While it is paused the events are only counted; catching up reads them from the history, in order, and then goes on with
 * what came meanwhile. Where an offset is missing between two rows (trimmed, left out, skipped) a row says which. It has a
 * connection of its own, since the page may follow the same topics for other purposes. No page is touched here.
 */

/** Rows that are kept; older ones go. */
export const LIMIT = 200;
/** Events of the past with which a trace begins. */
const FIRST = 20;
const PAGE = 100;
const UNRECOVERABLE = 112;

/** What is known of one followed topic. */
class Place {
  constructor() {
    this.epoch = "";
    this.shown = null; // the last offset that is a row; null: none yet
    this.seen = 0;
    this.missed = 0;
    this.held = []; // what came while the past was being read
    this.loose = []; // what came during a pause without an offset, and so is in no history
    this.why = ""; // why the next offsets are not shown, if we know
    this.subscription = null;
  }

  /** The rows that one event makes: itself, and before it a word on what is missing. */
  rows(topic, { event, offset, epoch, info }) {
    if (!offset) return [{ topic, event, info }];
    const rows = [];
    const again = Boolean(this.epoch && epoch && epoch !== this.epoch);
    if (again) rows.push({ topic, gap: "the topic began again: its offsets count from 1" });
    else if (this.shown !== null && offset <= this.shown) return rows;
    else if (this.shown !== null && offset > this.shown + 1) rows.push({ topic, gap: this._gap(offset) });
    this.epoch = epoch || this.epoch;
    this.shown = offset;
    this.seen = again ? offset : Math.max(this.seen, offset);
    this.why = "";
    rows.push({ topic, event, offset, info });
    return rows;
  }

  _gap(offset) {
    return between(this.shown + 1, offset - 1, this.why || "not kept any more");
  }
}

/** `offsets 3 to 7 are not shown: skipped` */
export function between(first, last, why) {
  return `${first === last ? `offset ${first} is` : `offsets ${first} to ${last} are`} not shown: ${why}`;
}

/** Several lists of rows as one, by their times; the order within each list stays. */
export function merged(lists) {
  const rest = lists.filter((list) => list.length).map((list) => ({ list, next: 0 }));
  const time = ({ list, next }) => {
    const row = list.slice(next).find(({ event }) => event);
    return row ? Date.parse(row.event.timestamp) || 0 : 0;
  };
  const all = [];
  while (rest.length) {
    const first = rest.reduce((best, one) => (time(one) < time(best) ? one : best));
    all.push(first.list[first.next]);
    first.next += 1;
    if (first.next === first.list.length) rest.splice(rest.indexOf(first), 1);
  }
  return all;
}

export class Trace {
  /**
   * @param {() => import("../client.js").BusClient} connect makes the connection of a trace
   * @param {(rows: object[]) => void} onRows rows to show, oldest first: `{topic, event, offset, info}` or `{topic, gap}`
   * @param {(state: object) => void} onChange
   */
  constructor(connect, onRows, onChange) {
    this._connect = connect;
    this._onRows = onRows;
    this._onChange = onChange;
    this._client = null;
    this._places = new Map();
    this.mode = "idle";
    this.why = "";
    this.trouble = "";
  }

  /** Follow these topics, and no other. */
  follow(topics) {
    this.stop();
    this.mode = "live";
    this._client = this._connect();
    for (const topic of topics) this._open(topic, this._client);
    this._changed();
  }

  /** Follow nothing. */
  stop() {
    this._client?.disconnect();
    this._client = null;
    this._places = new Map();
    this.mode = "idle";
    this.why = this.trouble = "";
    this._changed();
  }

  get topics() {
    return [...this._places.keys()];
  }

  /** Whether whatever is published from now on will be seen. */
  get ready() {
    return [...this._places.values()].every(({ subscription }) => subscription.isReady);
  }

  /** Events that came during the pause. */
  get missed() {
    return [...this._places.values()].reduce((sum, { missed }) => sum + missed, 0);
  }

  /** Show nothing new from now on, and count it. `why`: `button`, or `away` for a page that nobody looks at. */
  pause(why) {
    if (this.mode !== "live") return;
    this.mode = "paused";
    this.why = why;
    this._changed();
  }

  /** Somebody looks again: go on if nothing was missed. */
  back() {
    if (this.mode === "paused" && this.why === "away" && this.missed === 0) this._goOn();
  }

  /** Read what was missed from the history, show it, go on. */
  async catchUp() {
    if (this.mode !== "paused") return;
    const client = this._client;
    this.mode = "catching";
    this._changed();
    try {
      const behind = [...this._places].filter(([, { missed }]) => missed > 0);
      const lists = await Promise.all(behind.map(([topic, place]) => this._past(client, topic, place)));
      if (this._client !== client) return; // another trace meanwhile
      this._onRows(merged(lists));
      this._goOn();
    } catch (error) {
      if (this._client !== client) return;
      this._hold(`The history could not be read: ${error.message}`);
    }
  }

  /** Go on with what comes now; a row says what was left out. */
  skip() {
    if (this.mode !== "paused") return;
    for (const [topic, place] of this._places) {
      if (!place.missed) continue;
      const first = (place.shown ?? place.seen - place.missed) + 1;
      const gap = place.seen >= first ? between(first, place.seen, "skipped") : "events were skipped";
      this._onRows([{ topic, gap }]);
      place.shown = place.seen || null;
      place.loose = [];
    }
    this._goOn();
  }

  _open(topic, client) {
    const place = new Place();
    this._places.set(topic, place);
    place.subscription = client.subscribe(
      topic,
      {
        onEvent: (event, about) => this._take(topic, place, { event, ...about }),
        onEnd: ({ code, reason }) => this._complain(`${topic}: no longer followed: ${reason} (${code})`),
        onReady: () => this._changed(),
        onError: ({ code, message }) => code !== 102 && this._complain(`${topic}: its past cannot be read: ${message} (${code})`),
      },
      { recent: FIRST },
    );
  }

  _take(topic, place, item) {
    if (this._places.get(topic) !== place) return;
    if (this.mode === "live") return this._onRows(place.rows(topic, item));
    if (this.mode === "catching") return void place.held.push(item);
    place.missed += 1;
    if (item.offset) this._count(place, item);
    else place.loose = [...place.loose, item].slice(-LIMIT);
    this._changed();
  }

  _count(place, { offset, epoch }) {
    if (place.shown === null) place.shown = offset - 1;
    if (!place.epoch) place.epoch = epoch ?? "";
    place.seen = offset;
  }

  /** The rows of what one topic said since its last row. */
  async _past(client, topic, place) {
    const items = place.seen ? await this._read(client, topic, place) : [];
    const all = [...items, ...place.loose.map((item) => ({ ...item, offset: 0 }))].slice(-LIMIT);
    return all.flatMap((item) => place.rows(topic, item));
  }

  async _read(client, topic, place) {
    const from = { epoch: place.epoch, offset: place.shown };
    if (place.seen - from.offset > LIMIT) {
      from.offset = place.seen - LIMIT;
      place.why = `more than the ${LIMIT} rows of a trace`;
    }
    try {
      return await this._pages(client, topic, from);
    } catch (error) {
      if (error.code !== UNRECOVERABLE) throw error;
      const { epoch } = await client.after(topic, undefined, 0);
      return (await client.recent(topic, LIMIT)).map((item) => ({ ...item, epoch }));
    }
  }

  /** What follows `from`, to the end of the topic as it is at the first look; what comes later is held. */
  async _pages(client, topic, from) {
    const items = [];
    let end = Infinity;
    let at = from.offset;
    while (at < end) {
      const page = await client.after(topic, { epoch: from.epoch, offset: at }, PAGE);
      end = Math.min(end, page.offset);
      if (!page.items.length) break;
      items.push(...page.items.map((item) => ({ ...item, epoch: page.epoch })));
      at = items.at(-1).offset;
    }
    return items;
  }

  _goOn() {
    this.mode = "live";
    this.why = this.trouble = "";
    for (const [topic, place] of this._places) {
      const held = place.held;
      Object.assign(place, { held: [], loose: [], missed: 0 });
      const rows = held.flatMap((item) => place.rows(topic, item));
      if (rows.length) this._onRows(rows);
    }
    this._changed();
  }

  /** Back into the pause, with what came meanwhile counted. */
  _hold(trouble) {
    this.mode = "paused";
    this.trouble = trouble;
    for (const [topic, place] of this._places) {
      for (const item of place.held.splice(0)) this._take(topic, place, item);
    }
    this._changed();
  }

  _complain(trouble) {
    this.trouble = trouble;
    this._changed();
  }

  _changed() {
    this._onChange(this);
  }
}
