// The table of runs: found, sorted, ticked and compared; refreshed while anything runs.

const AT_ONCE = 1000; // rows that are shown before more are asked for
const AT_FIRST = 60; // a window full: drawn at once, the rest right after
const MOST_COMPARED = 24;
const SIGNS = { succeeded: "✓", failed: "✕", killed: "✕", interrupted: "‖", running: "●", unknown: "?" };
// A text is the name of a number that is not finite: NaN, Infinity.
const shown = (value, show) => (value === null ? DASH : typeof value === "string" ? value : show(value));
const decimal = (value) => shown(value, (found) => precise(found, 4));
const share = (value) => shown(value, (found) => `${(found * 100).toFixed(1)}%`);
// accuracy and loss are the validation split's: a run is picked by them, and not by the test split.
const COLUMNS = [
  ["run", "run_id", (row) => row.run_id, false],
  ["status", "status", (row) => `${SIGNS[row.status] || "?"} ${row.status}${row.cause ? `: ${row.cause}` : ""}`, false],
  ["tag", "tag", (row) => row.tag ?? DASH, false],
  ["strategy", "strategy", (row) => row.strategy ?? DASH, false],
  ["ranks", "world_size", (row) => (row.world_size === null ? DASH : grouped.format(row.world_size)), true],
  ["data", "dataset", (row) => row.dataset ?? DASH, false],
  ["model", "model", (row) => row.model ?? DASH, false],
  ["accuracy", "accuracy", (row) => share(row.accuracy), true],
  ["loss", "loss", (row) => decimal(row.loss), true],
  ["test accuracy", "test_accuracy", (row) => share(row.test_accuracy), true],
  ["test loss", "test_loss", (row) => decimal(row.test_loss), true],
  ["samples/s", "samples_per_second", (row) => (row.samples_per_second === null ? DASH : grouped.format(row.samples_per_second)), true],
  ["duration", "seconds", (row) => (row.seconds === null ? DASH : duration(row.seconds)), true],
  ["began", "created", (row) => began(row.created), true],
];
const state = { rows: [], entries: new Map(), ticked: new Set(), column: "created", descending: true, shown: AT_FIRST, tag: "" };
const byId = (id) => document.getElementById(id);

function began(created) {
  const moment = created === null ? NaN : Date.parse(created);
  if (Number.isNaN(moment)) return DASH;
  const ago = (Date.now() - moment) / 1000;
  if (ago < 60) return `${Math.max(0, Math.floor(ago))} s ago`;
  if (ago < 3600) return `${Math.floor(ago / 60)} min ago`;
  if (ago < 86400) return `${Math.floor(ago / 3600)} h ago`;
  return new Date(moment).toISOString().slice(0, 16).replace("T", " ");
}

const reportOf = (ids) => `/report?${ids.map((id) => `run=${encodeURIComponent(id)}`).join("&")}`;

function headings() {
  const row = html("tr", {}, html("th", { scope: "col" }, html("span", { class: "unseen" }, "ticked")));
  for (const [title, column, , numeric] of COLUMNS) {
    const button = html("button", { type: "button" }, title);
    button.addEventListener("click", () => {
      state.descending = state.column === column ? !state.descending : numeric;
      state.column = column;
      show();
    });
    row.append(html("th", { scope: "col", class: numeric ? "n" : null, "data-column": column }, button));
  }
  document.querySelector("#runs thead").replaceChildren(row);
}

function entryOf(row) {
  const box = html("input", { type: "checkbox", "aria-label": `compare ${row.run_id}`, checked: state.ticked.has(row.run_id) });
  box.addEventListener("change", () => tick(row.run_id, box.checked));
  const line = html("tr", {}, html("td", {}, html("label", {}, box)));
  const link = html("a", {});
  line.append(html("th", { scope: "row" }, link));
  const cells = COLUMNS.slice(1).map(([, column, , numeric]) => html("td", { class: numeric ? "n" : column === "tag" ? "tag-cell" : null, "data-column": column }));
  line.append(...cells);
  return { line, box, link, cells, told: null };
}

// Cells are written in place, so that what has the focus keeps it.
function fill(entry, row) {
  const told = JSON.stringify(row) + began(row.created);
  if (entry.told === told) return;
  entry.told = told;
  entry.link.textContent = row.run_id;
  entry.link.href = row.status === "running" ? `/run/${encodeURIComponent(row.run_id)}` : reportOf([row.run_id]);
  COLUMNS.slice(1).forEach(([, column, words], index) => {
    entry.cells[index].textContent = words(row);
    if (column === "status") entry.cells[index].className = Object.hasOwn(SIGNS, row.status) ? row.status : "unknown";
    if (column === "tag") entry.cells[index].title = row.tag ?? "";
  });
}

function tick(runId, ticked) {
  if (ticked) state.ticked.add(runId);
  else state.ticked.delete(runId);
  const count = state.ticked.size;
  const compare = byId("compare");
  compare.disabled = count === 0 || count > MOST_COMPARED;
  compare.textContent = count === 0 ? "Compare" : count === 1 ? "Open report" : count > MOST_COMPARED ? `At most ${MOST_COMPARED} runs` : `Compare ${count} runs`;
  byId("clear").hidden = count === 0;
  state.entries.get(runId)?.line.classList.toggle("ticked", ticked);
}

function show() {
  const found = filterOf(byId("find").value);
  const status = byId("status").value;
  const rows = sorted(state.rows.filter((row) => (!status || row.status === status) && found.test(row)), state.column, state.descending);
  const shown = rows.slice(0, state.shown);
  const lines = shown.map((row) => {
    if (!state.entries.has(row.run_id)) state.entries.set(row.run_id, entryOf(row));
    const entry = state.entries.get(row.run_id);
    fill(entry, row);
    return entry.line;
  });
  const body = document.querySelector("#runs tbody");
  if (lines.length !== body.children.length || lines.some((line, index) => body.children[index] !== line)) body.replaceChildren(...lines);
  for (const heading of document.querySelectorAll("#runs thead [data-column]")) {
    if (heading.dataset.column === state.column) heading.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    else heading.removeAttribute("aria-sort");
  }
  const count = byId("count");
  const all = grouped.format(state.rows.length);
  count.textContent = found.complaint || (rows.length === state.rows.length ? `${all} runs` : `${grouped.format(rows.length)} of ${all} runs`);
  if (!state.rows.length) count.textContent = "No runs yet: uv run pipeline.py makes one.";
  count.classList.toggle("complaint", Boolean(found.complaint));
  byId("more").hidden = rows.length <= shown.length;
  remember(status);
}

function remember(status) {
  const kept = new URLSearchParams({ find: byId("find").value, status, sort: (state.descending ? "-" : "") + state.column });
  history.replaceState(null, "", `#${kept}`);
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  byId("find").value = kept.get("find") || "";
  byId("status").value = kept.get("status") || "";
  const sort = kept.get("sort") || "-created";
  const column = sort.replace(/^-/, "");
  if (COLUMNS.some(([, name]) => name === column)) Object.assign(state, { column, descending: sort.startsWith("-") });
}

async function refresh() {
  let pause = 5000;
  try {
    const answer = await fetch("/api/runs", { headers: state.tag ? { "If-None-Match": state.tag } : {} });
    if (answer.ok) {
      state.tag = answer.headers.get("ETag") || "";
      state.rows = (await answer.json()).runs;
    } else if (answer.status !== 304) throw new Error(`the server answers ${answer.status}`);
    show();
    if (state.shown === AT_FIRST) {
      state.shown = AT_ONCE;
      requestAnimationFrame(() => setTimeout(show));
    }
    if (state.rows.some((row) => row.status === "running")) pause = 2000;
  } catch (error) {
    byId("count").textContent = `Not up to date: ${error.message}`;
  }
  setTimeout(() => (document.hidden ? document.addEventListener("visibilitychange", refresh, { once: true }) : refresh()), pause);
}

headings();
recall();
byId("find").addEventListener("input", () => { state.shown = AT_ONCE; show(); });
byId("status").addEventListener("change", show);
byId("more").addEventListener("click", () => { state.shown += AT_ONCE; show(); });
byId("compare").addEventListener("click", () => location.assign(reportOf([...state.ticked])));
byId("clear").addEventListener("click", () => {
  for (const runId of [...state.ticked]) {
    if (state.entries.has(runId)) state.entries.get(runId).box.checked = false;
    tick(runId, false);
  }
});
refresh();
