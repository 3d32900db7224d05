// Starts the parts of the page, each of which needs its place in the template.

function start(data) {
  startTheme();
  if (data.decisions.length) window.answer = new AnswerView(data.decisions);
  startCharts();
  startTimelines();
  startRecords(data.records);
  document.documentElement.dataset.ready = "";
}

setTheme(THEMES.includes(keptTheme()) ? keptTheme() : "auto");
document.addEventListener("DOMContentLoaded", () => start(window.howlow));
