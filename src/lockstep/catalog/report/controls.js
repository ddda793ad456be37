// The switches and buttons around the charts.

function asSwitch(entry, key, shown) {
  const button = html("button", { type: "button", "aria-pressed": shown ? "true" : "false", class: "switch" });
  button.append(...entry.childNodes);
  entry.append(button);
  if (!shown) view.hidden.add(key);
  button.addEventListener("click", () => {
    if (view.hidden.has(key)) view.hidden.delete(key);
    else view.hidden.add(key);
    button.setAttribute("aria-pressed", String(!view.hidden.has(key)));
    redraw();
  });
}

function choice(name, options, chosen, choose) {
  const group = html("fieldset", { class: "choice" }, html("legend", { class: "unseen" }, name));
  for (const [value, words] of options) {
    const input = html("input", { type: "radio", name: `choice-${name.replaceAll(" ", "-")}`, value, checked: value === chosen });
    input.addEventListener("change", () => choose(value));
    group.append(html("label", {}, input, html("span", {}, words)));
  }
  return group;
}

function press(words, about, act) {
  const button = html("button", { type: "button", "aria-label": about, title: about }, words);
  button.addEventListener("click", act);
  return button;
}

function tools(place, runs) {
  const axes = [["step", "step"]];
  if (runs.some((run) => run.seconds.length && run.seconds[run.seconds.length - 1] > 0)) {
    axes.push(["seconds", "time"], ["samples", "samples"]);
  }
  const axis = choice("horizontal axis", axes, "step", (value) => {
    view.axis = value;
    view.domain = null;
    view.cursor = null;
    redraw();
  });
  const loss = choice("loss axis", [["linear", "linear"], ["log", "log loss"]], "linear", (value) => {
    view.log = value === "log";
    redraw();
  });
  const reset = press("whole", "show the whole run", () => zoomTo(null));
  const zoom = html("div", { class: "buttons" }, press("−", "zoom out", () => zoomBy(2)), press("+", "zoom in", () => zoomBy(0.5)), reset);
  const state = html("span", { role: "status", class: "muted small" });
  place.append(axis, loss, zoom, state);
  place.hidden = false;
  const update = () => {
    reset.disabled = view.domain === null;
    const named = AXES[view.axis];
    state.textContent = view.domain ? `${named.name} ${view.domain.map(named.show).join(" to ")}` : "drag across a chart to zoom";
  };
  document.addEventListener("viewchange", update);
  update();
}

// Charts and lanes for whatever figures of the page have data; returns them.
function setUp(figures) {
  view.alone = figures.runs.length === 1;
  for (const entry of document.querySelectorAll("li[data-run]")) asSwitch(entry, `run:${entry.dataset.run}`, true);
  const few = Object.values(figures.charts).every((chart) => !chart.lines.some((line) => line.split === "train" && line.values.length > 1));
  for (const entry of document.querySelectorAll("li[data-split]")) {
    const split = entry.dataset.split;
    asSwitch(entry, `split:${split}`, split !== "steps" || view.alone || few);
  }
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const chart = figures.charts[figure.dataset.chart];
    if (chart) view.charts.push(new Chart(figure, figure.dataset.chart, chart, figures.runs));
  }
  for (const figure of document.querySelectorAll("figure[data-lanes]")) {
    const lanes = figures.lanes[figure.dataset.lanes];
    if (lanes) view.charts.push(new Lanes(figure, figure.dataset.lanes, lanes, figures.runs));
  }
  const place = document.getElementById("tools");
  if (place) tools(place, figures.runs);
  document.documentElement.classList.add("scripted");
  redraw();
}
