// Numbers as people read them: what howlow/reporting/formatting.py does, for what is computed in the page.

const ABSENT = "n/a";

const FORMATS = new Map();

function grouped(value, places) {
  if (!FORMATS.has(places)) {
    const digits = {minimumFractionDigits: places, maximumFractionDigits: places};
    FORMATS.set(places, new Intl.NumberFormat("en-US", digits));
  }
  return FORMATS.get(places).format(value);
}

function significant(value, digits = 3) {
  if (value === 0) return "0";
  let magnitude = Math.floor(Math.log10(Math.abs(value)));
  if (magnitude < -4 || magnitude > 14) {
    return value.toExponential(digits - 1).replace(/e([+-])(\d)$/, "e$10$2");
  }
  const rounded = magnitude < digits ? Number(value.toFixed(digits - 1 - magnitude)) : value;
  magnitude = Math.floor(Math.log10(Math.abs(rounded)));
  return grouped(rounded, Math.max(0, digits - 1 - magnitude));
}

// A number that a person chose: with at least that many digits, and with all that it has (up to 9).
function asAsked(value, digits) {
  for (let more = digits; more < 9; more++) {
    const text = significant(value, more);
    if (Math.abs(Number(text.replaceAll(",", "")) - value) <= 1e-9 * Math.abs(value)) return text;
  }
  return significant(value, 9);
}

// A confidence in per cent, never rounded to 100.
function percentSure(confidence) {
  for (let digits = 3; digits < 16; digits++) {
    const text = significant(100 * confidence, digits);
    if (Number(text) < 100) return `${text} %`;
  }
  return "100 %";
}

function size(value) {
  if (value >= 2 ** 30) return `${significant(value / 2 ** 30)} GiB`;
  if (value >= 1e6) return `${significant(value / 1e6)} MB`;
  return value >= 1e3 ? `${significant(value / 1e3)} kB` : `${value.toFixed(0)} B`;
}

function duration(value) {
  if (value < 1) return `${significant(value * 1e3)} ms`;
  if (value < 120) return `${significant(value)} s`;
  return value < 7200 ? `${significant(value / 60)} min` : `${significant(value / 3600)} h`;
}

function energy(value) {
  if (value > 0 && value < 0.1) return `${significant(value * 1e3)} mJ`;
  return value >= 1e4 ? `${significant(value / 1e3)} kJ` : `${significant(value)} J`;
}

const QUANTITIES = {
  text: value => (Array.isArray(value) ? value.join(", ") : String(value)),
  count: value => grouped(value, 0),
  bytes: size,
  seconds: duration,
  joules: energy,
  watts: value => `${significant(value)} W`,
  hertz: value => `${significant(value / 1e9)} GHz`,
  celsius: value => `${value.toFixed(1)} °C`,
  fraction: value => `${(value * 100).toFixed(1)} %`,
  per_second: value => significant(value),
  number: value => significant(value, 4),
  nats: value => significant(value, 4),
};

function quantity(value, unit) {
  if (value === null || value === undefined) return ABSENT;
  return typeof value === "number" || unit === "text" ? QUANTITIES[unit](value) : String(value);
}

function counted(number, noun) {
  return number === 1 ? `1 ${noun}` : `${grouped(number, 0)} ${noun}s`;
}
