// Charts are drawn before the page is opened. Here: what a point says on hovering, touching or by arrow keys, which
// candidates the answer leaves out, and which trial's timeline is shown.

const NEAR_PX = 22;

class Tooltip {
  constructor() {
    this.box = el("div", {class: "tooltip", role: "status", hidden: true});
    document.body.append(this.box);
    this.mark = null;
  }

  show(mark) {
    if (mark === this.mark) return;
    this.hide();
    this.mark = mark;
    mark.classList.add("hot");
    this.box.replaceChildren(...mark.getAttribute("aria-label").split("; ").map(line => el("div", {}, line)));
    this.box.hidden = false;
    const at = mark.getBoundingClientRect(), own = this.box.getBoundingClientRect();
    const left = Math.min(Math.max(4, at.left + at.width / 2 - own.width / 2), document.documentElement.clientWidth - own.width - 4);
    const above = at.top - own.height - 8;
    this.box.style.left = `${left + window.scrollX}px`;
    this.box.style.top = `${(above < 4 ? at.bottom + 8 : above) + window.scrollY}px`;
  }

  hide() {
    this.mark?.classList.remove("hot");
    this.mark = null;
    this.box.hidden = true;
  }
}

function marksOf(chart) {
  return [...chart.querySelectorAll("svg [aria-label]")];
}

// The mark whose middle is nearest to the pointer, if it is near.
function nearestMark(chart, x, y) {
  let [found, least] = [null, NEAR_PX];
  for (const mark of marksOf(chart)) {
    const box = mark.getBoundingClientRect();
    const away = Math.hypot(box.left + box.width / 2 - x, box.top + box.height / 2 - y);
    if (away < least) [found, least] = [mark, away];
  }
  return found;
}

// A chart is one stop of the tab key; the arrow keys go from point to point.
function onKey(tooltip, chart, event) {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  if (event.key === "Escape") tooltip.hide();
  if (!step) return;
  event.preventDefault();
  const marks = marksOf(chart), at = marks.indexOf(tooltip.mark);
  const next = at < 0 ? (step > 0 ? 0 : marks.length - 1) : (at + step + marks.length) % marks.length;
  tooltip.show(marks[next]);
}

function startCharts() {
  const tooltip = new Tooltip();
  for (const chart of document.querySelectorAll(".chart")) {
    if (!marksOf(chart).length) continue;
    chart.tabIndex = 0;
    const point = event => {
      const mark = nearestMark(chart, event.clientX, event.clientY);
      if (mark) tooltip.show(mark);
      else tooltip.hide();
    };
    chart.addEventListener("pointermove", point);
    chart.addEventListener("pointerdown", point);
    chart.addEventListener("pointerleave", () => tooltip.hide());
    chart.addEventListener("keydown", event => onKey(tooltip, chart, event));
    chart.addEventListener("blur", () => tooltip.hide());
  }
}

// Shows the trade-offs of the decision, its recommended candidate with a ring, and pale those that a limit leaves out.
document.addEventListener("decided", ({detail: {decision, found, number}}) => {
  const states = new Map(decision.candidates.map((candidate, place) => {
    const isChosen = found.verdict !== "constraints_not_met" && found.chosen?.candidate === place;
    return [nameOf(candidate), found.excluded.has(place) ? "excluded" : isChosen ? "chosen" : ""];
  }));
  for (const group of document.querySelectorAll("[data-decision]")) {
    group.hidden = group.dataset.decision !== String(number);
    for (const mark of group.querySelectorAll("svg [aria-label]")) {
      mark.dataset.state = states.get(mark.getAttribute("aria-label").split("; ")[0]) ?? "";
    }
  }
});

// The timelines: one trial's at a time.
function startTimelines() {
  const groups = [...document.querySelectorAll("[data-timeline]")];
  if (groups.length < 2) return;
  const show = name => groups.forEach(group => { group.hidden = group.dataset.timeline !== name; });
  const options = groups.map(group => [group.dataset.timeline, group.dataset.timeline]);
  byId("timeline-choice").replaceChildren(selectOf("Trial", options, options[0][0], event => show(event.target.value)));
  show(options[0][0]);
}
