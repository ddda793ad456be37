// Lanes: for each rank of a run a strip of where its steps' time went, over the charts' horizontal axis.

const PARTS = ["data", "compute", "sync", "waiting", "other"];
const LANE_LEFT = 70;

// The height of a lane: what most steps take; a few slow ones may be cut off.
function laneTop(data) {
  const totals = data.ranks.flatMap((rank) => data.last.map((_, index) => PARTS.reduce((sum, part) => sum + rank[part][index], 0)));
  totals.sort((one, other) => one - other);
  const most = totals[totals.length - 1] || 1;
  const usual = totals[Math.floor(0.95 * (totals.length - 1))] || most;
  return most > 1.6 * usual ? 1.3 * usual : most;
}

class Lanes {
  constructor(figure, key, data, runs) {
    this.figure = figure;
    this.run = Number(key);
    this.runs = runs;
    this.stage = figure.querySelector(".stage");
    this.stage.classList.add("lanes-stage");
    this.tip = html("div", { class: "tip", "aria-hidden": "true", hidden: true });
    this.canvas = svg("svg", { class: "canvas", "aria-hidden": "true" });
    this.overlay = svg("g", { class: "overlay" });
    this.rank = 0;
    this.load(data);
    listen(this);
    this.stage.addEventListener("keydown", (event) => this.choose(event));
    this.stage.addEventListener("pointermove", (event) => {
      const y = event.clientY - this.stage.getBoundingClientRect().top;
      this.rank = Math.max(0, Math.min(this.data.ranks.length - 1, Math.floor(y / (this.tall + 6))));
    }, true);
  }

  load(data) {
    this.data = data;
    const count = data.ranks.length;
    this.tall = count <= 4 ? 56 : count <= 8 ? 42 : count <= 16 ? 28 : 16;
    this.places = new Map();
    this.stage.style.height = `${count * (this.tall + 6) + 40}px`;
  }

  left() {
    return LANE_LEFT;
  }

  choose(event) {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
    const wanted = this.rank + (event.key === "ArrowUp" ? -1 : 1);
    this.rank = Math.max(0, Math.min(this.data.ranks.length - 1, wanted));
    event.preventDefault();
    if (view.cursor !== null) moveCursor(view.cursor, this);
  }

  // The edges between buckets: one more than there are buckets.
  edges() {
    if (!this.places.has(view.axis)) {
      const run = this.runs[this.run];
      const ends = this.data.last.map((step) => placeOf(run, step, view.axis));
      const begin = view.axis === "step" ? this.data.first[0] - 1 : 0;
      this.places.set(view.axis, [begin, ...ends]);
    }
    return this.places.get(view.axis);
  }

  spans() {
    if (view.hidden.has(`run:${this.run}`)) return [];
    const edges = this.edges();
    return [[this.data.first[0] === this.data.last[0] && view.axis === "step" ? this.data.first[0] : edges[0], edges[edges.length - 1]]];
  }

  stops() {
    const [low, high] = currentDomain();
    return this.edges().slice(1).filter((x) => x >= low && x <= high);
  }

  draw() {
    const width = this.stage.clientWidth;
    if (!width) return;
    this.width = width - LANE_LEFT - MARGIN.right;
    this.height = this.data.ranks.length * (this.tall + 6);
    this.domain = currentDomain();
    this.canvas.setAttribute("viewBox", `0 0 ${width} ${this.height + 40}`);
    const inner = svg("g", { transform: `translate(${LANE_LEFT} 0)` });
    const edges = this.edges();
    const seen = edges.slice(1).map((edge, index) => index).filter((index) => edges[index + 1] > this.domain[0] && edges[index] < this.domain[1]);
    const wide = Math.max(1, Math.ceil(seen.length / (this.width / PIXELS_A_POINT)));
    this.data.ranks.forEach((rank, row) => {
      const top = row * (this.tall + 6);
      const label = { x: -10, y: top + this.tall / 2, dy: "0.34em", "text-anchor": "end", class: "rank-name" };
      const lane = svg("svg", { class: "clip", x: 0, y: top, width: this.width, height: this.tall });
      lane.append(svg("rect", { class: "lane-ground", width: this.width, height: this.tall }), ...this.areas(rank, edges, seen, wide));
      inner.append(svg("text", label, `rank ${rank.rank}`), lane);
    });
    inner.append(...this.axis(), this.overlay);
    this.canvas.replaceChildren(inner);
    this.drawCursor(false);
  }

  x(value) {
    return ((value - this.domain[0]) / (this.domain[1] - this.domain[0])) * this.width;
  }

  // Bars that touch, as one outline for each part.
  areas(rank, edges, seen, wide) {
    const groups = [];
    for (let start = 0; start < seen.length; start += wide) groups.push(seen.slice(start, start + wide));
    let base = groups.map(() => 0);
    const drawn = [];
    for (const part of PARTS) {
      const heights = groups.map((group) => group.reduce((sum, index) => sum + rank[part][index], 0) / group.length);
      const tops = base.map((low, index) => low + heights[index]);
      if (heights.some((height) => height > 0)) {
        const d = `${this.stairs(tops, groups, edges, "M")}${this.stairs(base, groups, edges, "L", true)}Z`;
        drawn.push(svg("path", { d, class: `part ${part}` }));
        if (part === "waiting") drawn.push(svg("path", { d, class: "hatch" }));
      }
      base = tops;
    }
    return drawn;
  }

  stairs(heights, groups, edges, pen, back) {
    const points = heights.flatMap((height, index) => {
      const y = (Math.max(-0.1, 1 - height / this.data.top) * this.tall).toFixed(1);
      const group = groups[index];
      const ends = [edges[group[0]], edges[group[group.length - 1] + 1]];
      return ends.map((edge) => `${this.x(edge).toFixed(1)},${y}`);
    });
    return pen + (back ? points.reverse() : points).join("L");
  }

  axis() {
    const axis = AXES[view.axis];
    const ticks = ticksBetween(this.domain[0], this.domain[1], Math.max(2, Math.floor(this.width / 85)), view.axis !== "seconds");
    const marks = ticks.filter((tick) => this.x(tick) <= this.width + 1).map((tick) =>
      svg("text", { x: this.x(tick), y: this.height + 14, "text-anchor": "middle" }, axis.tick(tick)));
    const name = { x: this.width / 2, y: this.height + 32, "text-anchor": "middle", class: "muted" };
    return [...marks, svg("text", name, axis.name)];
  }

  drawCursor(own) {
    this.overlay.replaceChildren();
    this.tip.hidden = true;
    if (view.cursor === null || !this.width || !this.domain) return;
    const edges = this.edges();
    let index = edges.findIndex((edge, place) => place > 0 && edge >= view.cursor) - 1;
    if (index < 0) index = this.data.last.length - 1;
    const x = this.x(Math.min(view.cursor, edges[edges.length - 1]));
    if (x < 0 || x > this.width) return;
    this.overlay.append(svg("line", { x1: x, x2: x, y1: 0, y2: this.height, class: "guide" }));
    if (own) this.tell(index, x);
  }

  tell(index, x) {
    const rank = this.data.ranks[this.rank];
    const [first, last] = [this.data.first[index], this.data.last[index]];
    const steps = first === last ? `step ${grouped.format(first)}` : `steps ${grouped.format(first)} to ${grouped.format(last)}, a step on average`;
    const rows = PARTS.filter((part) => rank[part][index] > 0).map((part) => {
      const sample = svg("svg", { class: "swatch" }, svg("rect", { width: 12, height: 12, class: `part ${part}` }));
      return html("li", {}, sample, html("span", {}, part), html("b", {}, duration(rank[part][index])), html("small", {}));
    });
    const late = `last to be ready in ${SHOW.percent(rank.ready_last[index])} of these steps`;
    const note = this.data.ranks.length > 1 ? [html("p", {}, first === last && rank.ready_last[index] ? "the last to be ready" : first === last ? "" : late)] : [];
    this.tip.replaceChildren(html("p", {}, `rank ${rank.rank} · ${steps}`), html("ul", {}, ...rows), ...note);
    this.tip.hidden = false;
    const room = this.stage.clientWidth - this.tip.offsetWidth;
    const beside = x > this.width / 2 ? LANE_LEFT + x - this.tip.offsetWidth - 14 : LANE_LEFT + x + 14;
    this.tip.style.left = `${Math.max(0, Math.min(room, beside))}px`;
    const spoken = PARTS.map((part) => `${part} ${duration(rank[part][index])}`).join(", ");
    this.stage.setAttribute("aria-valuenow", String(last));
    this.stage.setAttribute("aria-valuetext", `rank ${rank.rank}, ${steps}: ${spoken}`);
  }
}
