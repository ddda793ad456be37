"use strict";
// Values as people read them, round numbers along an axis, and elements made without markup.

const DASH = "–";
const SVG = "http://www.w3.org/2000/svg";
const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

function precise(value, digits) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-4 && size < 1e7) return String(Number(value.toPrecision(digits)));
  return Number(value.toPrecision(digits)).toExponential();
}

function duration(seconds) {
  if (seconds < 1e-3) return `${precise(seconds * 1e6, 3)} µs`;
  if (seconds < 1) return `${precise(seconds * 1e3, 3)} ms`;
  if (seconds < 60) return `${precise(seconds, 3)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${grouped.format(Math.floor(minutes / 60))} h ${minutes % 60} min`;
}

const SHOW = {
  decimal: (value) => precise(value, 6),
  percent: (value) => `${precise(value * 100, 4)}%`,
  count: (value) => grouped.format(value),
};
const TICK = {
  decimal: (value) => precise(value, 4),
  percent: (value) => `${precise(value * 100, 4)}%`,
  count: (value) => (Math.abs(value) >= 1 || value === 0 ? grouped.format(value) : precise(value, 3)),
};
// What the horizontal axis may count, and how its values are written.
const AXES = {
  step: { name: "step", tick: (value) => grouped.format(value), show: (value) => grouped.format(value) },
  seconds: { name: "training time", tick: duration, show: duration },
  samples: {
    name: "samples seen",
    tick: (value) => (value >= 1e6 ? `${precise(value / 1e6, 4)}M` : grouped.format(value)),
    show: (value) => grouped.format(value),
  },
};

const HEADROOM = 0.04; // of an axis, above a value that would touch its end

function roundStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  const factor = [1, 2, 2.5, 5].find((each) => each * power >= rough * 0.999);
  return (factor || 10) * power;
}

function ticksBetween(low, high, about, wholeOnly) {
  if (!(high > low)) return [low];
  let step = roundStep((high - low) / Math.max(1, about));
  if (wholeOnly) step = Math.max(1, Math.round(step));
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) {
    ticks.push(Number((index * step).toPrecision(12)));
  }
  return ticks;
}

// An axis around the values whose ends are round; from nothing where the values come near it.
function roundScale(low, high, top) {
  let least = low >= 0 && low < 0.25 * high ? 0 : low;
  let most = high;
  if (most - least <= 1e-9 * Math.max(1, Math.abs(most))) {
    const margin = Math.max(Math.abs(most) * 0.25, 1e-9);
    least = low >= 0 ? 0 : least - margin;
    most = top === null ? most + margin : Math.min(top, most + margin);
  }
  const step = roundStep((most - least) / 5);
  const ends = [Math.floor(least / step + 1e-9) * step, Math.ceil(most / step - 1e-9) * step];
  const headroom = HEADROOM * (ends[1] - ends[0]); // a line at the very top would lie on the frame
  return [ends[0], high > ends[1] - headroom ? ends[1] + headroom : ends[1]];
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of high / low > 1e3 ? [1] : [1, 2, 5]) {
      const tick = Number((factor * 10 ** power).toPrecision(3));
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

function svg(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Recorded text only ever becomes text: children are nodes or strings, and never markup.
function html(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// The index of the value nearest to one, in a sorted list.
function nearest(sorted, value) {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle;
    else high = middle;
  }
  return Math.abs(sorted[low] - value) <= Math.abs(sorted[high] - value) ? low : high;
}

// Where a step stands on the chosen axis: what was spent or seen up to its end.
function placeOf(run, step, axis) {
  if (axis === "step" || !run.last.length) return step;
  const totals = run[axis];
  if (step >= run.last[run.last.length - 1]) return totals[totals.length - 1];
  let index = nearest(run.last, step);
  if (run.last[index] < step) index += 1;
  const before = index ? run.last[index - 1] : run.first[0] - 1;
  const from = index ? totals[index - 1] : 0;
  const share = (step - before) / Math.max(1, run.last[index] - before);
  return from + (totals[index] - from) * Math.min(1, Math.max(0, share));
}
