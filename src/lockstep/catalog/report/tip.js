// What a chart tells at the cursor, and how pointer and keyboard move it.

// The mean, the least and the most of a line's points from one index to another; null where there are none.
// Speeds have a harmonic mean: what they come to over the steps together.
function fold(line, xs, from, to, isSpeed) {
  let sum = 0;
  let count = 0;
  let low = Infinity;
  let high = -Infinity;
  for (let index = from; index < to; index += 1) {
    const value = line.values[index];
    if (value === null) continue;
    sum += isSpeed ? 1 / Math.max(value, 1e-9) : value;
    count += 1;
    low = Math.min(low, line.low ? line.low[index] : value);
    high = Math.max(high, line.high ? line.high[index] : value);
  }
  return count ? { x: (xs[from] + xs[to - 1]) / 2, mean: isSpeed ? count / sum : sum / count, low, high } : null;
}

// A disc, or for validation a hollow square: told apart without colour.
function marker(kind, split, x, y, large) {
  const size = large ? 4.2 : 3.2;
  if (split !== "validation") return svg("circle", { cx: x, cy: y, r: size, class: `marker ${kind}` });
  const square = { x: x - size, y: y - size, width: 2 * size, height: 2 * size };
  return svg("rect", { ...square, class: `marker ${kind}` });
}

Chart.prototype.words = function words(point) {
  const show = SHOW[this.data.form];
  const line = point.line;
  const first = line.steps ? point.step : this.runs[line.run].first[point.index];
  const last = line.steps ? point.step : this.runs[line.run].last[point.index];
  const several = first !== last && line.low;
  return {
    steps: first === last ? `step ${grouped.format(first)}` : `steps ${grouped.format(first)} to ${grouped.format(last)}`,
    name: this.nameOf(line),
    value: show(point.value),
    range: several ? `${show(line.low[point.index])} to ${show(line.high[point.index])}` : "",
  };
};

Chart.prototype.nameOf = function nameOf(line) {
  const splits = new Set(this.data.lines.map((each) => each.split));
  const split = splits.size > 1 ? { steps: "step", train: "train", validation: "validation" }[line.split] : "";
  if (view.alone) return split || this.data.title.toLowerCase();
  return [this.runs[line.run].name, split].filter(Boolean).join(" · ");
};

Chart.prototype.tell = function tell(points, focus, x) {
  const axis = AXES[view.axis];
  const head = this.words(focus).steps;
  const title = view.axis === "step" ? head : `${axis.show(focus.x)} · ${head}`;
  const rows = points.map((point) => {
    const words = this.words(point);
    const away = words.steps === head ? "" : ` (${words.steps})`;
    const value = html("b", {}, words.value);
    const sample = svg("svg", { class: "sample" }, svg("line", { x1: 1, x2: 27, y1: 6, y2: 6, class: `line ${kindOf(point.line)}` }));
    return html("li", {}, sample, html("span", {}, words.name + away), value, html("small", {}, words.range));
  });
  this.tip.replaceChildren(html("p", {}, title), html("ul", {}, ...rows));
  this.tip.hidden = false;
  const left = MARGIN.left + x;
  const room = this.stage.clientWidth - this.tip.offsetWidth;
  const beside = x > this.width / 2 ? left - this.tip.offsetWidth - 14 : left + 14;
  this.tip.style.left = `${Math.max(0, Math.min(room, beside))}px`;
  this.stage.setAttribute("aria-valuenow", String(Math.round(focus.step)));
  const spoken = points.map((point) => {
    const words = this.words(point);
    return `${words.name} ${words.value}${words.range ? `, from ${words.range}` : ""}`;
  });
  this.stage.setAttribute("aria-valuetext", `${title}: ${spoken.join("; ")}`);
};

// Every place that the keyboard can go to, in order.
Chart.prototype.stops = function stops() {
  const [low, high] = currentDomain();
  const all = new Set(this.spans().flat());
  return [...all].filter((x) => x >= low && x <= high).sort((one, other) => one - other);
};

function stepCursor(chart, event) {
  const stops = chart.stops();
  if (!stops.length) return false;
  const far = event.shiftKey ? Math.max(1, Math.round(stops.length / 20)) : 1;
  const here = view.cursor === null ? -1 : nearest(stops, view.cursor);
  const wanted = {
    ArrowRight: here + far,
    ArrowLeft: here < 0 ? stops.length - 1 : here - far,
    PageUp: here + Math.max(1, Math.round(stops.length / 10)),
    PageDown: here - Math.max(1, Math.round(stops.length / 10)),
    Home: 0,
    End: stops.length - 1,
  }[event.key];
  if (wanted === undefined) return false;
  moveCursor(stops[Math.max(0, Math.min(stops.length - 1, wanted))], chart);
  return true;
}

function onKey(chart, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  let done = true;
  if (event.key === "+" || event.key === "=") zoomBy(0.5);
  else if (event.key === "-") zoomBy(2);
  else if (event.key === "0") zoomTo(null);
  else if (event.key === "Escape") {
    if (view.cursor !== null) moveCursor(null, chart);
    else zoomTo(null);
  } else done = stepCursor(chart, event);
  if (done) {
    event.preventDefault();
    if (view.cursor !== null) moveCursor(view.cursor, chart);
  }
}

// A drag by mouse chooses what to zoom into; a finger moves the cursor, and scrolls the page up and down.
function listen(chart) {
  const { stage } = chart;
  const title = chart.data.title || `time of each rank${view.alone ? "" : ` of ${chart.runs[chart.run].name}`}`;
  stage.replaceChildren(chart.canvas, chart.tip);
  const told = { role: "slider", tabindex: "0", "aria-label": `${title}: arrow keys read values, plus and minus zoom` };
  for (const [key, value] of Object.entries({ ...told, "aria-valuetext": "no step chosen" })) stage.setAttribute(key, value);
  let start = null;
  const shade = svg("rect", { class: "shade", y: 0 });
  const at = (event) => Math.max(0, Math.min(chart.width, event.clientX - stage.getBoundingClientRect().left - chart.left()));
  const valueAt = (pixel) => chart.domain[0] + (pixel / chart.width) * (chart.domain[1] - chart.domain[0]);
  stage.addEventListener("pointermove", (event) => {
    if (!chart.width) return;
    moveCursor(valueAt(at(event)), chart);
    if (start === null) return;
    const [left, right] = [start, at(event)].sort((one, other) => one - other);
    for (const [key, value] of Object.entries({ x: left, width: right - left, height: chart.height })) shade.setAttribute(key, value);
    chart.overlay.prepend(shade);
  });
  stage.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && event.button === 0) {
      start = at(event);
      stage.setPointerCapture(event.pointerId);
    } else moveCursor(valueAt(at(event)), chart);
  });
  stage.addEventListener("pointerup", (event) => {
    if (start === null) return;
    const ends = [start, at(event)].sort((one, other) => one - other);
    start = null;
    if (ends[1] - ends[0] > 6) zoomTo(ends.map(valueAt));
  });
  stage.addEventListener("pointercancel", () => { start = null; });
  stage.addEventListener("pointerleave", (event) => {
    if (start === null && event.pointerType === "mouse" && document.activeElement !== stage) moveCursor(null, chart);
  });
  stage.addEventListener("dblclick", () => zoomTo(null));
  stage.addEventListener("keydown", (event) => onKey(chart, event));
  stage.addEventListener("blur", () => moveCursor(null, chart));
  new ResizeObserver(() => chart.draw()).observe(stage);
}

Chart.prototype.left = () => MARGIN.left;
