/** Live connections over the last five minutes, as a line. Colours come from the page, so both schemes are right. */

import uPlot from "../vendor/uplot/uPlot.js";

const WINDOW_S = 300;
const HEIGHT = 200;

/** The colour that a token stands for now, as a canvas understands it. */
function colour(element, name) {
  element.style.color = `var(${name})`;
  const value = getComputedStyle(element).color;
  element.style.color = "";
  return value;
}

function options(element) {
  const base = {
    stroke: colour(element, "--muted"),
    font: `12px ${getComputedStyle(element).fontFamily}`,
    ticks: { show: false },
  };
  const grid = { stroke: colour(element, "--line"), width: 1 };
  const clock = [[1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1]];
  return {
    width: element.clientWidth,
    height: HEIGHT,
    padding: [12, 26, 0, 0], // room for the last word of the time axis
    legend: { show: false },
    cursor: { y: false, points: { size: 7 } },
    scales: {
      // Always the whole window: what has no figure yet is empty, and time flows at one pace.
      x: { time: true, range: (plot, low, high) => [high - WINDOW_S, high] },
      // From zero, so that a small change never looks like a cliff; at least four lines high.
      y: { range: (plot, low, high) => [0, Math.max(4, Math.ceil((high ?? 0) * 1.15))] },
    },
    axes: [
      { ...base, grid: { show: false }, size: 32, space: 80, incrs: [30, 60, 120, 300], values: clock },
      { ...base, grid, size: 36, space: 40, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] },
    ],
    series: [
      {},
      {
        stroke: colour(element, "--accent"),
        fill: colour(element, "--accent-wash"),
        width: 2,
        points: { show: false },
      },
    ],
  };
}

/** Keeps the last five minutes of one figure and draws them. */
export class LineChart {
  constructor(element, empty) {
    this._element = element;
    this._empty = empty;
    this._data = [[], []];
    this._plot = null;
    this._observer = new ResizeObserver(() => this._resize());
    this._observer.observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
  }

  /** Add the figure of the moment `seconds` (since 1970). */
  add(seconds, value) {
    const [times, values] = this._data;
    if (times.length && seconds <= times.at(-1)) return;
    times.push(seconds);
    values.push(value);
    while (times[0] < seconds - WINDOW_S) {
      times.shift();
      values.shift();
    }
    this._draw();
  }

  /** What the line shows, in words. */
  words() {
    const values = this._data[1];
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return `Line chart of live connections over the last 5 minutes: now ${values.at(-1)}, between ${low} and ${high}`;
  }

  /** Draw again with the colours of the scheme that now holds. */
  repaint() {
    this._plot?.destroy();
    this._plot = null;
    this._draw();
  }

  _draw() {
    if (this._data[0].length < 2) return;
    this._empty.hidden = true;
    if (this._plot) this._plot.setData(this._data);
    else this._plot = new uPlot(options(this._element), this._data, this._element);
  }

  _resize() {
    this._plot?.setSize({ width: this._element.clientWidth, height: HEIGHT });
  }
}
