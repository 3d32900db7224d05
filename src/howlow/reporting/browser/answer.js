// The answer at the top of the page: the sliders, the candidates and the bill.

const NO_LIMIT = 200;
const MARGIN_STEPS = 100;  // of a thousandth each: 0.1 points of a score, 0.1 % of a perplexity; more for a wider margin

// A slider's place as a limit: even steps of the logarithm from a little less than any cost to a little more.
function limitAt(limit, place) {
  if (place >= NO_LIMIT) return null;
  const [least, most] = [0.97 * limit.least, 1.03 * limit.most];
  return Number((least * (most / least) ** (place / (NO_LIMIT - 1))).toPrecision(3));
}

class AnswerView {
  constructor(decisions) {
    this.decisions = decisions;
    this.decision = decisions[0];
    this.reset();
    this.choose();
    byId("answer-controls").hidden = false;
  }

  reset() {
    this.margin = this.decision.margin;
    this.limits = {};
  }

  get found() {
    return decide(this.decision, this.margin, this.limits);
  }

  get isAsked() {
    return this.margin === this.decision.margin && !Object.keys(this.limits).length;
  }

  // Which setting and which metric.
  choose() {
    const settings = [...new Set(this.decisions.map(one => one.setting))];
    const of = setting => this.decisions.filter(one => one.setting === setting);
    const show = decision => {
      this.decision = decision;
      this.reset();
      this.choose();
    };
    const choices = [];
    if (settings.length > 1) {
      const pick = event => show(of(event.target.value)[0]);
      choices.push(selectOf("Setting", settings.map(one => [one, one || "default"]), this.decision.setting, pick));
    }
    const metrics = of(this.decision.setting).map(one => [one.metric.label, one.metric.label]);
    if (metrics.length > 1) {
      const pick = event => show(of(this.decision.setting).find(one => one.metric.label === event.target.value));
      choices.push(selectOf("Metric", metrics, this.decision.metric.label, pick));
    }
    byId("choices").replaceChildren(...choices);
    this.drawSliders();
    this.draw();
  }

  drawSliders() {
    const most = Math.max(MARGIN_STEPS, Math.ceil(2000 * this.decision.margin));
    const margin = this.slider("margin", "Margin", most, Math.round(this.margin * 1000), place => {
      this.margin = place / 1000;
    });
    const limits = this.decision.limits.map(limit => this.limitSlider(limit));
    const onclick = () => {
      this.reset();
      this.drawSliders();
      this.draw();
    };
    const reset = el("button", {type: "button", id: "reset", onclick}, "Reset");
    byId("sliders").replaceChildren(margin, ...limits, reset);
  }

  limitSlider(limit) {
    const slider = this.slider(limit.name, `Most ${limit.short}`, NO_LIMIT, NO_LIMIT, place => {
      const value = limitAt(limit, place);
      if (value === null) delete this.limits[limit.name];
      else this.limits[limit.name] = value;
    });
    slider.title = limit.label;
    slider.querySelector("input").disabled = limit.problem !== null;
    return slider;
  }

  slider(name, label, most, place, set) {
    const shown = el("output", {id: `shown-${name}`, for: `slider-${name}`});
    const moved = event => {
      set(Number(event.target.value));
      this.draw();
    };
    const input = el("input", {type: "range", id: `slider-${name}`, min: 0, max: most, value: place, oninput: moved});
    return el("div", {class: "slider"}, el("label", {for: `slider-${name}`}, label), shown, input);
  }

  draw() {
    const {decision, found} = this;
    const [first, rest] = parts(headline(decision, found));
    byId("setting").textContent = `With ${decision.setting}:`;
    byId("verdict").dataset.verdict = found.verdict;
    byId("verdict").replaceChildren(el("strong", {}, first), " ", rest);
    this.drawShown(found);
    byId("candidates").replaceChildren(candidateTable(decision, found));
    byId("bill").replaceChildren(billTable(decision, found));
    byId("reasons").replaceChildren(...decision.reasons.map(reason => el("li", {}, ...withCode(reason))));
    byId("why").hidden = !this.isAsked;
    byId("across").replaceChildren(...decision.across.map(sentence => el("li", {}, sentence)));
    byId("across").hidden = !this.isAsked || !decision.across.length;
    if (found.verdict === "not_enough_evidence") byId("why").open = true;  // they say what would settle it
    this.drawCommand();
    document.dispatchEvent(new CustomEvent("decided", {detail: {decision, found, number: this.decisions.indexOf(decision)}}));
  }

  drawShown(found) {
    const show = (name, text) => {
      byId(`shown-${name}`).textContent = text;
      byId(`slider-${name}`).setAttribute("aria-valuetext", text);
    };
    show("margin", marginWords(this.decision, found));
    for (const limit of this.decision.limits) {
      const most = this.limits[limit.name];
      show(limit.name, limit.problem ?? (most === undefined ? "no limit" : quantity(most, limit.unit)));
    }
  }

  drawCommand() {
    const limits = this.decision.limits.filter(limit => limit.name in this.limits);
    const words = limits.map(limit => `${limit.option} ${this.limits[limit.name]}`);
    byId("command").hidden = this.decision.command === null;
    byId("command-text").textContent = [this.decision.command, `--margin ${this.margin}`, ...words].join(" ");
  }
}

// The answer, and what it rests on.
function parts(sentence) {
  return sentence.match(/^(Not enough evidence:|.*?\.)\s(.*)$/s)?.slice(1) ?? [sentence, ""];
}

// -- candidates -----------------------------------------------------------------------------------------------------

function nameOf(candidate) {
  return candidate.rank === null ? "base" : `rank ${candidate.rank}`;
}

// A cost above its limit misses it; one below, whose interval ends above it, may miss it.
function missedWords(candidate, limit, found) {
  const {cost, end} = candidate.costs[limit.name];
  if (cost === null) return `${limit.label} was not measured`;
  if (cost > found.limits[limit.name]) return `misses the limit on ${limit.label}`;
  return `may miss the limit on ${limit.label}: ${end === null ? "no interval is known" : `up to ${quantity(end, limit.unit)}`}`;
}

function standingWords(decision, found, place) {
  const missed = found.excluded.get(place);
  if (missed) {
    const limits = decision.limits.filter(limit => missed.includes(limit.name));
    return ["excluded", limits.map(limit => missedWords(decision.candidates[place], limit, found)).join(" and ")];
  }
  const own = found.standings.find(one => one.candidate === place);
  if (own === found.chosen) return ["chosen", decision.candidates[place].rank === null ? "no adapter needed" : "recommended"];
  if (own.isEnough) return ["enough", "enough"];
  return isTooLow(found, own) ? ["too-low", "too low"] : ["unknown", "not shown to be enough"];
}

// How far the bars reach: the candidates that are not too low, and some margins; the others' bars are cut.
function reachOf(found) {
  const near = found.standings.filter(one => !isTooLow(found, one) && Number.isFinite(one.low)).map(one => -one.low);
  return 1.08 * Math.max(3 * found.gain, 1e-9, ...near);
}

function bar(decision, found, own) {
  const reach = reachOf(found);
  const place = gain => 100 * (1 + Math.max(gain, -reach) / reach);
  const [left, right, middle] = [own.low, own.high, own.difference].map(place);
  const isCut = own.difference < -reach;
  return el("span", {class: "bar", "aria-hidden": "true"},
    el("i", {class: "margin", style: `left:${place(-found.gain)}%`}),
    el("i", {class: "reach", style: `left:${left}%;width:${Math.max(0, right - left)}%`}),
    isCut ? el("i", {class: "cut"}, "◂") : el("i", {class: "point", style: `left:${middle}%`}));
}

function candidateTable(decision, found) {
  const limits = decision.limits;
  const header = ["candidate", decision.metric.label, "against the best", "", ...limits.map(limit => limit.short)];
  const rows = decision.candidates.map((candidate, place) => {
    const [kind, words] = standingWords(decision, found, place);
    const own = found.standings.find(one => one.candidate === place);
    const costs = limits.map(limit => candidate.costs[limit.name]?.text ?? "");
    return el("tr", {class: kind},
      el("th", {scope: "row"}, nameOf(candidate), el("small", {class: "standing"}, words)),
      el("td", {}, candidate.value),
      ...(own && !found.isLone ? againstCells(decision, found, own) : [el("td"), el("td")]),
      ...costs.map(cost => el("td", {}, cost)));
  });
  const head = el("tr", {}, ...header.map((text, place) => el("th", {scope: "col", class: place === 0 ? "text" : null}, text)));
  return el("table", {class: "candidates"}, el("thead", {}, head), el("tbody", {}, ...rows));
}

function againstCells(decision, found, own) {
  const difference = own.difference < 0 ? apart(decision.metric, own.difference) : "the best";
  const least = own.low < 0 ? el("small", {}, `at most ${apart(decision.metric, own.low)}`) : null;
  return [el("td", {}, difference, least), el("td", {}, bar(decision, found, own))];
}

// -- the bill -------------------------------------------------------------------------------------------------------

function billTable(decision, found) {
  const chosen = found.verdict === "constraints_not_met" ? null : found.chosen;
  const candidate = chosen && decision.candidates[chosen.candidate];
  if (!candidate) return el("p", {class: "soft"}, "There is no bill without a recommendation.");
  if (!candidate.bill.length) return el("p", {class: "soft"}, `Rank ${decision.referenceRank} is the reference: nothing is saved.`);
  const name = candidate.rank === null ? "no adapter" : `rank ${candidate.rank}`;
  const header = ["", name, `rank ${decision.referenceRank}`, "ratio"];
  const rows = candidate.bill.map(item => el("tr", {},
    el("th", {scope: "row"}, item.label), el("td", {}, item.value), el("td", {}, item.reference), el("td", {}, item.ratio)));
  const head = el("tr", {}, ...header.map(text => el("th", {scope: "col"}, text)));
  return el("table", {class: "bill"}, el("thead", {}, head), el("tbody", {}, ...rows));
}
