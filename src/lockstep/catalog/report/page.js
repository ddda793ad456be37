// The report: its charts, and a switch that leaves only the rows that differ.

function onlyDifferences(table) {
  const input = html("input", { type: "checkbox" });
  input.addEventListener("change", () => table.classList.toggle("only", input.checked));
  const label = html("label", { class: "only-differences" }, input, " only what differs");
  table.closest(".scroll").before(label);
}

document.querySelectorAll("table.compared").forEach(onlyDifferences);
setUp(JSON.parse(document.getElementById("figures").textContent));
