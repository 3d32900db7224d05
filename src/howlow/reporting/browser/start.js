// Starts the parts of the page, each of which needs its place in the template.

// What a link leads to, and all of it on paper, is not left folded.
function startFolds() {
  const unfold = () => {
    for (let one = document.getElementById(location.hash.slice(1)); one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
  };
  window.addEventListener("hashchange", unfold);
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => { one.open = true; }));
  unfold();
}

function start(data) {
  startTheme();
  if (data.decisions.length) window.answer = new AnswerView(data.decisions);
  startCharts();
  startTimelines();
  startRecords(data.records);
  startFolds();
  document.documentElement.dataset.ready = "";
}

setTheme(THEMES.includes(keptTheme()) ? keptTheme() : "auto");
document.addEventListener("DOMContentLoaded", () => start(window.howlow));
