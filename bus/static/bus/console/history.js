/**
 * Connections and events a second of the last hour, day or week, as two lines. What nobody noted is a gap.
 *
 * Colours come from the page, so both schemes are right; `repaint()` takes them anew.
 */

import uPlot from "../vendor/uplot/uPlot.js";

const HEIGHT = 200;

/** What the points say, in one sentence; `[[seconds, connections, eventsPerSecond], …]` oldest first. Pure. */
export function sentence(points) {
  const known = points.map((point) => point[1]).filter((value) => value !== null);
  if (!known.length) return "";
  const rates = points.map((point) => point[2]).filter((value) => value !== null);
  const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
  const [least, most, last] = [Math.min(...known), Math.max(...known), known.at(-1)].map(number.format);
  const said = least === most ? `Connections: ${last} all the time.` : `Connections: ${least} to ${most}, last ${last}.`;
  return rates.length ? `${said} Events: at most ${number.format(Math.max(...rates))} a second.` : said;
}

/** Points as columns, from `now - back` on. Pure. */
export function columns({ now, back, points }) {
  const data = [[now - back], [null], [null]];
  for (const [at, connections, rate] of points) {
    if (at <= data[0].at(-1)) continue;
    data[0].push(at);
    data[1].push(connections);
    data[2].push(rate);
  }
  if (now > data[0].at(-1)) data.forEach((column, index) => column.push(index ? null : now));
  return data;
}

export class HistoryChart {
  constructor(element) {
    this._element = element;
    this._data = null;
    this._plot = null;
    new ResizeObserver(() => this._plot?.setSize({ width: element.clientWidth, height: HEIGHT })).observe(element);
  }

  /** Draw an answer of the server. */
  show(answer) {
    this._data = columns(answer);
    this.repaint();
  }

  /** Draw again with the colours of the scheme that now holds. */
  repaint() {
    if (!this._data) return;
    this._plot?.destroy();
    this._plot = new uPlot(this._options(), this._data, this._element);
  }

  _colour(name) {
    this._element.style.color = `var(${name})`;
    const value = getComputedStyle(this._element).color;
    this._element.style.color = "";
    return value;
  }

  _options() {
    const base = { stroke: this._colour("--muted"), font: `12px ${getComputedStyle(this._element).fontFamily}`, ticks: { show: false } };
    const grid = { stroke: this._colour("--line"), width: 1 };
    const fromZero = (plot, low, high) => [0, Math.max(4, Math.ceil((high ?? 0) * 1.15))];
    const clock = [
      [86400, "{D} {MMM}", null, null, null, null, null, null, 1],
      [3600, "{HH}:{mm}", "\n{D} {MMM}", null, "\n{D} {MMM}", null, null, null, 1],
      [60, "{HH}:{mm}", null, null, null, null, null, null, 1],
    ];
    return {
      width: this._element.clientWidth,
      height: HEIGHT,
      padding: [12, 4, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 7 } },
      scales: { x: { time: true }, y: { range: fromZero }, rate: { range: fromZero } },
      axes: [
        { ...base, grid: { show: false }, size: 40, space: 80, values: clock },
        { ...base, grid, size: 36, space: 40 },
        { ...base, stroke: this._colour("--second"), scale: "rate", side: 1, grid: { show: false }, size: 40, space: 40 },
      ],
      series: [
        {},
        { stroke: this._colour("--accent"), fill: this._colour("--accent-wash"), width: 2, points: { show: false } },
        { scale: "rate", stroke: this._colour("--second"), width: 1.5, points: { show: false } },
      ],
    };
  }
}
