// The report: its charts.

setUp(JSON.parse(document.getElementById("figures").textContent));
