// The words and clauses that runs are found by: words are looked for in names; accuracy>0.95 is a clause.

const COLUMN_OF = {
  run: "run_id", id: "run_id", run_id: "run_id", status: "status", cause: "cause", tag: "tag", strategy: "strategy",
  ranks: "world_size", world_size: "world_size", data: "dataset", dataset: "dataset", model: "model", accuracy: "accuracy",
  loss: "loss", validation_accuracy: "accuracy", validation_loss: "loss", test_accuracy: "test_accuracy", test_loss: "test_loss", speed: "samples_per_second", samples_per_second: "samples_per_second", duration: "seconds", seconds: "seconds",
};
const NUMERIC = new Set(["world_size", "accuracy", "loss", "test_accuracy", "test_loss", "samples_per_second", "seconds"]);
const NAMES = ["run_id", "status", "cause", "tag", "strategy", "dataset", "model"];
const TESTS = {
  ">": (one, other) => one > other, ">=": (one, other) => one >= other, "<": (one, other) => one < other,
  "<=": (one, other) => one <= other, "=": (one, other) => one === other, "!=": (one, other) => one !== other,
};

// A test for rows, and what is wrong with the text, where something is.
function filterOf(text) {
  const tests = [];
  const complaints = [];
  for (const word of text.match(/"[^"]*"|\S+/g) || []) {
    const clause = /^([a-z_]+)(>=|<=|!=|>|<|=)(.+)$/.exec(word);
    const column = clause && Object.hasOwn(COLUMN_OF, clause[1]) ? COLUMN_OF[clause[1]] : null;
    if (clause && !column) complaints.push(`no column ${clause[1]}: there are ${Object.keys(COLUMN_OF).join(", ")}`);
    else if (column) addClause(tests, complaints, column, clause);
    else {
      const wanted = word.replaceAll('"', "").toLowerCase();
      tests.push((row) => NAMES.some((name) => String(row[name] ?? "").toLowerCase().includes(wanted)));
    }
  }
  return { test: (row) => tests.every((each) => each(row)), complaint: complaints[0] || "" };
}

function addClause(tests, complaints, column, clause) {
  const test = TESTS[clause[2]];
  if (!NUMERIC.has(column)) {
    tests.push((row) => test(String(row[column] ?? "").toLowerCase(), clause[3].toLowerCase()));
    return;
  }
  const percent = clause[3].endsWith("%");
  const value = Number(percent ? clause[3].slice(0, -1) : clause[3]) / (percent ? 100 : 1);
  if (Number.isNaN(value)) complaints.push(`${clause[1]} is compared with a number, not with ${clause[3]}`);
  else tests.push((row) => row[column] !== null && test(Number(row[column]), value));
}

// What a row is sorted by. A figure that is not finite stands there by its name: NaN counts as no value.
function orderBy(row, column) {
  if (row[column] === null || !NUMERIC.has(column)) return row[column];
  const value = Number(row[column]);
  return Number.isNaN(value) ? null : value;
}

// Rows in the order of a column; those without a value come last, whichever way it goes.
function sorted(rows, column, descending) {
  const sign = descending ? -1 : 1;
  return [...rows].sort((one, other) => {
    const [a, b] = [orderBy(one, column), orderBy(other, column)];
    if (a === null || b === null) return Number(a === null) - Number(b === null);
    if (a === b) return 0;
    return (a < b ? -1 : 1) * sign;
  });
}
