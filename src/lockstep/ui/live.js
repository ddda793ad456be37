// A run as it goes on: asks for what is new since the last step that it knows, and draws it.

const PAUSE_MILLISECONDS = 1000;
const MOST_BUCKETS = 3000; // held here; then the server folds them anew
const runId = document.querySelector("main").dataset.runId;
const shapes = {
  loss: ["Loss", "decimal", null], accuracy: ["Accuracy", "percent", 1], grad_norm: ["Gradient norm", "decimal", null],
  learning_rate: ["Learning rate", "decimal", null], samples_per_second: ["Samples/s", "count", null], waiting: ["Waiting", "percent", 1],
};
const known = { runs: [{ name: runId, first: [], last: [], seconds: [], samples: [] }], charts: {}, lanes: {}, attempt: 0, ready: false };
const byId = (id) => document.getElementById(id);
const lastOf = (list) => (list.length ? list[list.length - 1] : 0);

for (const [key, [title, form, top]] of Object.entries(shapes)) known.charts[key] = { title, form, top, marked: null, lines: [] };

function forget() {
  Object.assign(known.runs[0], { first: [], last: [], seconds: [], samples: [], middle: null });
  for (const chart of Object.values(known.charts)) chart.lines = [];
  delete known.lanes[0];
}

function take(figures) {
  const [run] = known.runs;
  const [fresh] = figures.runs;
  const before = { count: run.first.length, seconds: lastOf(run.seconds), samples: lastOf(run.samples) };
  run.first.push(...fresh.first);
  run.last.push(...fresh.last);
  run.seconds.push(...fresh.seconds.map((value) => value + before.seconds));
  run.samples.push(...fresh.samples.map((value) => value + before.samples));
  for (const [key, chart] of Object.entries(figures.charts)) for (const line of chart.lines) extend(known.charts[key], line, before.count, fresh.first.length);
  for (const chart of Object.values(known.charts)) {
    const line = chart.lines.find((each) => each.split === "steps");
    if (line) pad(line, run.first.length);
  }
  if (figures.lanes[0]) takeLanes(figures.lanes[0]);
}

// A line of every step has a value for each bucket, absent ones included; low and high only where they are wanted.
function extend(chart, line, before) {
  let kept = chart.lines.find((each) => each.split === line.split);
  if (!kept) {
    kept = { run: 0, split: line.split, steps: line.steps ? [] : null, values: [] };
    chart.lines.push(kept);
  }
  if (line.steps) {
    line.steps.forEach((step, index) => {
      const place = kept.steps.indexOf(step);
      if (place >= 0) kept.values[place] = line.values[index];
      else {
        kept.steps.push(step);
        kept.values.push(line.values[index]);
      }
    });
    return;
  }
  pad(kept, before);
  if (line.low && !kept.low) Object.assign(kept, { low: [...kept.values], high: [...kept.values] });
  kept.values.push(...line.values);
  if (kept.low) {
    kept.low.push(...(line.low || line.values));
    kept.high.push(...(line.high || line.values));
  }
}

function pad(line, count) {
  for (const list of [line.values, line.low, line.high]) while (list && list.length < count) list.push(null);
}

function takeLanes(fresh) {
  const lanes = known.lanes[0];
  if (!lanes || lanes.ranks.length !== fresh.ranks.length) {
    known.lanes[0] = fresh;
    return;
  }
  lanes.first.push(...fresh.first);
  lanes.last.push(...fresh.last);
  lanes.ranks.forEach((rank, index) => {
    for (const key of ["ready_last", ...PARTS]) rank[key].push(...fresh.ranks[index][key]);
  });
  lanes.top = laneTop(lanes);
}

function draw() {
  if (!known.ready) {
    known.ready = true;
    setUp(known);
  }
  let lanes = view.charts.find((chart) => chart instanceof Lanes);
  if (!lanes && known.lanes[0]) {
    byId("time").hidden = false;
    lanes = new Lanes(byId("lanes"), "0", known.lanes[0], known.runs);
    view.charts.push(lanes);
  }
  for (const chart of view.charts) chart.load(chart === lanes ? known.lanes[0] || lanes.data : known.charts[chart.key]);
  redraw();
}

function fact(name, value, note) {
  return html("div", {}, html("dt", {}, name), html("dd", {}, value), html("dd", { class: "note" }, note || ""));
}

function latest(key, split) {
  const line = known.charts[key].lines.find((each) => each.split === split);
  const values = line ? line.values.filter((value) => value !== null) : [];
  return values.length ? SHOW[known.charts[key].form](Number(lastOf(values).toPrecision(4))) : DASH;
}

function headline(told) {
  const ended = told.status !== "running";
  const badge = byId("state");
  const words = `${told.status}${told.cause ? `: ${told.cause}` : ""}${told.rank === null ? "" : `, rank ${told.rank}`}`;
  if (badge.textContent !== words) badge.textContent = words;
  badge.className = `badge ${["succeeded", "failed", "killed", "interrupted", "running"].includes(told.status) ? told.status : "unknown"}`;
  const { run } = told;
  const about = [run.model, run.dataset, run.strategy].map((word) => word ?? DASH);
  byId("about").textContent = `${about[0]} on ${about[1]} by ${about[2]} × ${run.world_size ?? DASH} ranks${run.tag ? ` · ${run.tag}` : ""}`;
  const message = byId("message");
  message.hidden = !(told.message && ended);
  message.textContent = told.message || "";
  const steps = lastOf(known.runs[0].last);
  const seconds = lastOf(known.runs[0].seconds);
  const progress = byId("progress");
  progress.max = told.steps || 1;
  progress.value = told.steps ? Math.min(steps, told.steps) : 0;
  const begun = steps + 1 - (known.runs[0].first[0] || 1);
  const left = told.steps && begun > 0 && !ended && steps ? ((told.steps - steps) * seconds) / begun : null;
  const sofar = seconds ? lastOf(known.runs[0].samples) / seconds : null;
  const speed = told.samples_per_second ?? sofar; // once there are results, what they and every list say
  byId("headline").replaceChildren(
    fact("Step", grouped.format(steps), told.steps ? `of ${grouped.format(told.steps)}` : ""),
    fact("Validation loss", latest("loss", "validation"), `last step's ${latest("loss", "steps")}`),
    fact("Validation accuracy", latest("accuracy", "validation"), ""),
    fact("Samples/s", speed === null ? DASH : grouped.format(speed), "mean"),
    fact("Elapsed", told.seconds === null ? DASH : duration(told.seconds), left === null ? "" : `${duration(left)} of training left`),
  );
  byId("report").href = `/report?run=${encodeURIComponent(runId)}`;
  byId("log").textContent = told.log.lines.join("\n");
  if (told.status !== "running") byId("log").scrollTop = byId("log").scrollHeight; // the last line tells most
  byId("log-title").textContent = `The end of logs/${told.log.name}`;
  byId("said").hidden = !told.log.lines.length;
}

async function follow() {
  let pause = PAUSE_MILLISECONDS;
  try {
    const run = known.runs[0];
    const after = run.first.length > MOST_BUCKETS ? 0 : lastOf(run.last);
    const answer = await fetch(`/api/runs/${encodeURIComponent(runId)}?after=${after}&attempt=${known.attempt}`);
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    const told = await answer.json();
    if (told.anew) forget();
    known.attempt = told.attempt;
    take(told.figures);
    headline(told);
    draw();
    if (told.status !== "running") pause = 10 * PAUSE_MILLISECONDS; // it may be resumed
  } catch (error) {
    byId("state").textContent = `not up to date: ${error.message}`;
  }
  setTimeout(() => (document.hidden ? document.addEventListener("visibilitychange", follow, { once: true }) : follow()), pause);
}

follow();
