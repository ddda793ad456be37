// One chart: lines over the shared horizontal axis, drawn to the pixel, with values at the pointer and by keyboard.

const MARGIN = { left: 54, right: 14, top: 22, bottom: 42 };
const PIXELS_A_POINT = 4; // a denser line is folded to means, over a band from the least to the most

class Chart {
  constructor(figure, key, data, runs) {
    this.figure = figure;
    this.key = key;
    this.runs = runs;
    this.stage = figure.querySelector(".stage");
    this.tip = html("div", { class: "tip", "aria-hidden": "true", hidden: true });
    this.canvas = svg("svg", { class: "canvas", "aria-hidden": "true" });
    this.overlay = svg("g", { class: "overlay" });
    this.load(data);
    listen(this);
  }

  load(data) {
    this.data = data;
    this.places = new Map();
  }

  // The lines that are shown. A split can be hidden only where the chart has others.
  lines() {
    const splits = new Set(this.data.lines.map((line) => line.split));
    return this.data.lines.filter(
      (line) =>
        !view.hidden.has(`run:${line.run}`) && !(splits.size > 1 && view.hidden.has(`split:${line.split}`)),
    );
  }

  steps(line) {
    if (line.steps) return line.steps;
    const run = this.runs[line.run];
    if (!run.middle || run.middle.length !== run.first.length) {
      run.middle = run.first.map((first, index) => Math.floor((first + run.last[index]) / 2));
    }
    return run.middle;
  }

  xs(line) {
    const key = `${view.axis}:${line.run}:${line.split}`;
    if (!this.places.has(key)) {
      const run = this.runs[line.run];
      this.places.set(key, this.steps(line).map((step) => placeOf(run, step, view.axis)));
    }
    return this.places.get(key);
  }

  spans() {
    return this.lines().map((line) => this.xs(line));
  }

  draw() {
    const width = this.stage.clientWidth;
    const height = this.stage.clientHeight;
    if (!width || !height) return;
    this.width = width - MARGIN.left - MARGIN.right;
    this.height = height - MARGIN.top - MARGIN.bottom;
    this.domain = currentDomain();
    const inside = this.lines().map((line) => this.within(line));
    this.range = this.rangeOf(inside);
    this.canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const plot = svg("svg", { class: "clip", width: this.width, height: this.height });
    for (const each of inside) plot.append(...this.path(each));
    const marks = svg("g", {}); // outside of what is clipped: those on the edge are whole
    for (const each of inside) if (each.line.split !== "steps") marks.append(...this.markers(each));
    const inner = svg("g", { transform: `translate(${MARGIN.left} ${MARGIN.top})` });
    inner.append(...this.axes(), plot, marks, this.overlay);
    this.canvas.replaceChildren(inner);
    this.drawCursor(false);
  }

  // The part of a line inside the zoom, and one point to either side, so that it runs to the edge.
  within(line) {
    const xs = this.xs(line);
    let from = 0;
    let to = xs.length;
    while (from < to && xs[from] < this.domain[0]) from += 1;
    while (to > from && xs[to - 1] > this.domain[1]) to -= 1;
    return { line, xs, from: Math.max(0, from - 1), to: Math.min(xs.length, to + 1) };
  }

  rangeOf(inside) {
    let low = Infinity;
    let high = -Infinity;
    for (const { line, from, to } of inside) {
      for (let index = from; index < to; index += 1) {
        const value = line.values[index];
        if (value !== null) {
          low = Math.min(low, line.low ? line.low[index] : value);
          high = Math.max(high, line.high ? line.high[index] : value);
        }
      }
    }
    this.log = view.log && this.key === "loss" && low > 0;
    if (!(high >= low)) return [0, 1];
    if (!this.log) return roundScale(low, high, this.data.top);
    return low === high ? [low / 2, high * 2] : [low, high];
  }

  x(value) {
    return ((value - this.domain[0]) / (this.domain[1] - this.domain[0])) * this.width;
  }

  y(value) {
    const [low, high] = this.range;
    const share = this.log
      ? Math.log(value / low) / Math.log(high / low)
      : (value - low) / (high - low);
    return Math.min(2, Math.max(-1, 1 - share)) * this.height;
  }

  axes() {
    const [low, high] = this.range;
    const marks = [];
    for (const tick of this.log ? logTicks(low, high) : ticksBetween(low, high, 5, false)) {
      const y = this.y(tick);
      marks.push(svg("line", { x1: 0, x2: this.width, y1: y, y2: y, class: "grid" }));
      marks.push(svg("text", { x: -9, y, dy: "0.32em", "text-anchor": "end" }, TICK[this.data.form](tick)));
    }
    const axis = AXES[view.axis];
    const about = Math.max(2, Math.floor(this.width / 85));
    for (const tick of ticksBetween(this.domain[0], this.domain[1], about, view.axis !== "seconds")) {
      const x = this.x(tick);
      if (x > this.width + 1) continue;
      marks.push(svg("text", { x, y: this.height + 18, "text-anchor": "middle" }, axis.tick(tick)));
    }
    marks.push(svg("line", { x1: 0, x2: this.width, y1: this.height, y2: this.height, class: "axis" }));
    const middle = { x: this.width / 2, y: this.height + 35, "text-anchor": "middle", class: "muted" };
    marks.push(svg("text", middle, axis.name), ...this.marked());
    return marks;
  }

  marked() {
    if (!this.data.marked) return [];
    const x = this.x(placeOf(this.runs[0], this.data.marked[0], view.axis));
    if (x < 0 || x > this.width) return [];
    const end = x > this.width / 2;
    const place = { x: x + (end ? -5 : 5), y: -6, "text-anchor": end ? "end" : "start" };
    const line = svg("line", { x1: x, x2: x, y1: -14, y2: this.height });
    return [svg("g", { class: "marked" }, line, svg("text", place, this.data.marked[1]))];
  }

  path({ line, xs, from, to }) {
    const kind = kindOf(line);
    const crowded = line.split === "steps" && to - from > this.width / PIXELS_A_POINT;
    const width = crowded ? Math.ceil((to - from) / (this.width / PIXELS_A_POINT)) : 1;
    const mean = [];
    const above = [];
    const below = [];
    let pen = "M";
    for (let start = from; start < to; start += width) {
      const folded = fold(line, xs, start, Math.min(to, start + width), this.data.form === "count");
      if (folded === null) pen = "M";
      else {
        const x = this.x(folded.x).toFixed(1);
        mean.push(`${pen}${x},${this.y(folded.mean).toFixed(1)}`);
        above.push(`${x},${this.y(folded.high).toFixed(1)}`);
        below.push(`${x},${this.y(Math.max(folded.low, this.log ? 1e-12 : -Infinity)).toFixed(1)}`);
        pen = "L";
      }
    }
    const under = line.under ? { "data-under": line.under } : {}; // others lie on it: it is drawn wider
    const drawn = [svg("path", { d: mean.join(""), class: `line ${kind}`, ...under })];
    if (crowded || line.low) {
      drawn.unshift(svg("polygon", { points: [...above, ...below.reverse()].join(" "), class: `band ${kind}` }));
    }
    return drawn;
  }

  markers({ line, xs, from, to }) {
    const kind = kindOf(line);
    const every = Math.max(1, Math.ceil((to - from) / Math.max(4, this.width / 36)));
    const marks = [];
    for (let index = from; index < to; index += every) {
      if (line.values[index] === null) continue;
      const [x, y] = [this.x(xs[index]), this.y(line.values[index])];
      const inside = x > -1 && x < this.width + 1 && y > -1 && y < this.height + 1;
      if (inside) marks.push(marker(kind, line.split, x, y));
    }
    return marks;
  }

  // Of each shown line the point nearest to the cursor, where it has one near enough to speak of.
  at(value) {
    const found = [];
    for (const line of this.lines()) {
      const xs = this.xs(line);
      if (!xs.length) continue;
      const index = nearest(xs, value);
      if (line.values[index] === null || xs[index] < this.domain[0] || xs[index] > this.domain[1]) continue;
      const last = xs.length > 1 ? (xs[xs.length - 1] - xs[0]) / (xs.length - 1) : Infinity;
      if (Math.abs(xs[index] - value) > Math.max(last * 2, (this.domain[1] - this.domain[0]) / 40)) continue;
      found.push({ line, index, x: xs[index], step: this.steps(line)[index], value: line.values[index] });
    }
    return found;
  }

  drawCursor(own) {
    this.overlay.replaceChildren();
    this.tip.hidden = true;
    if (view.cursor === null || !this.width) return;
    const points = this.at(view.cursor);
    const focus = points.find((point) => point.line.split === "steps") || points[0];
    const place = focus ? focus.x : view.cursor;
    const x = this.x(place);
    if (x < 0 || x > this.width) return;
    this.overlay.append(svg("line", { x1: x, x2: x, y1: 0, y2: this.height, class: "guide" }));
    for (const point of points) {
      const kind = kindOf(point.line);
      this.overlay.append(marker(kind, point.line.split, this.x(point.x), this.y(point.value), true));
    }
    if (own && focus) this.tell(points, focus, x);
  }
}
