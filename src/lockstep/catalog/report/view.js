// What all charts of a page share: axis, zoom, cursor, and what is hidden.

const COLOURS = 8; // of runs; then they begin again

const view = { axis: "step", domain: null, cursor: null, hidden: new Set(), log: false, charts: [], alone: true };

function redraw() {
  for (const chart of view.charts) chart.draw();
  document.dispatchEvent(new CustomEvent("viewchange"));
}

function moveCursor(value, source) {
  view.cursor = value;
  for (const chart of view.charts) chart.drawCursor(chart === source);
}

function zoomTo(domain) {
  const [least, most] = wholeDomain();
  if (domain) {
    const low = Math.max(least, domain[0]);
    const high = Math.min(most, domain[1]);
    const smallest = view.axis === "seconds" ? (most - least) / 1e4 : 1;
    if (high - low < smallest) return;
    view.domain = low <= least && high >= most ? null : [low, high];
  } else view.domain = null;
  redraw();
}

function zoomBy(factor) {
  const [low, high] = currentDomain();
  const inside = view.cursor !== null && view.cursor >= low && view.cursor <= high;
  const middle = inside ? view.cursor : (low + high) / 2;
  zoomTo([middle - (middle - low) * factor, middle + (high - middle) * factor]);
}

function wholeDomain() {
  let low = Infinity;
  let high = -Infinity;
  for (const chart of view.charts) {
    for (const xs of chart.spans()) {
      if (xs.length) {
        low = Math.min(low, xs[0]);
        high = Math.max(high, xs[xs.length - 1]);
      }
    }
  }
  if (!(high >= low)) return [0, 1];
  return low === high ? [low - 1, high + 1] : [low, high];
}

const currentDomain = () => view.domain || wholeDomain();

function kindOf(line) {
  if (view.alone) return `${line.split} k-${line.split === "steps" ? "train" : line.split}`;
  return `${line.split} k-run${line.run % COLOURS}`;
}
