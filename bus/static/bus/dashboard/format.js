/** Numbers and times as people read them. Pure functions; the time is an argument. */

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
const COUNT = new Intl.NumberFormat("en");
const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
const STEPS = [
  ["day", 86400],
  ["hour", 3600],
  ["minute", 60],
  ["second", 1],
];

/** `1234567` -> `1,234,567` */
export function count(value) {
  return COUNT.format(value);
}

/** Decimal units, as disks are sold: `1536000` -> `1.5 MB`. */
export function bytes(value) {
  let rest = Math.abs(value);
  let unit = 0;
  while (rest >= 999.5 && unit < UNITS.length - 1) {
    rest /= 1000;
    unit += 1;
  }
  return `${value < 0 ? "-" : ""}${unit === 0 || rest >= 100 ? Math.round(rest) : rest.toFixed(1)} ${UNITS[unit]}`;
}

/** Events per second: `0`, `0.3`, `12`. */
export function rate(value) {
  if (value <= 0) return "0";
  return value < 10 ? value.toFixed(1) : count(Math.round(value));
}

/** Seconds: `45 s`, `3 min 20 s`, `2 h 5 min`. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  const minutes = Math.floor((whole % 3600) / 60);
  return `${Math.floor(whole / 3600)} h${minutes ? ` ${minutes} min` : ""}`;
}

/** A moment against `now`: `5 sec. ago`, `in 3 hr.` */
export function relative(moment, now) {
  const seconds = (moment - now) / 1000;
  const [unit, size] = STEPS.find(([, size]) => Math.abs(seconds) >= size) ?? ["second", 1];
  return RELATIVE.format(Math.trunc(seconds / size), unit);
}

/** The wall clock of the reader, with seconds: `14:03:09`. */
export function clock(moment) {
  return moment.toLocaleTimeString("en-GB");
}
