// Which rank is enough: the rule of howlow/analysis/noninferiority.py, constraints.py and recommendation.py, for the
// margin and the limits that a reader sets. A decision holds the candidates, the smallest first, and for each pair of
// them the difference in quality with the half widths of its one-sided bounds. Nothing is estimated here.

// The candidates that keep all limits, and for each other one what it misses. A cost without an end is not shown to
// keep a limit; a cost that a candidate does not have at all (the base model is not fine-tuned) is not limited.
function kept(decision, limits) {
  const fitting = [], excluded = new Map();
  decision.candidates.forEach((candidate, place) => {
    const missed = Object.entries(limits).filter(([name, most]) => {
      const cost = candidate.costs[name];
      return cost !== undefined && !(cost.end !== null && cost.end <= most);
    });
    if (missed.length) excluded.set(place, missed.map(([name]) => name));
    else fitting.push(place);
  });
  return {fitting, excluded};
}

// The quality of candidate `ours` less that of `theirs`, and the lower bound of it; field 1 or 2: its half width.
function value(decision, ours, theirs) {
  return ours < theirs ? decision.pairs[ours][theirs - ours - 1][0] : -decision.pairs[theirs][ours - theirs - 1][0];
}

function low(decision, ours, theirs, field = 1) {
  const [small, large] = [Math.min(ours, theirs), Math.max(ours, theirs)];
  const width = decision.pairs[small][large - small - 1][field];
  return width === null ? -Infinity : value(decision, ours, theirs) - width;
}

// The pairs (j, b) of places among the fitting candidates whose bound must be above -margin: k itself, and each
// candidate between k and b, against every b.
function needed(place, number) {
  const pairs = [];
  for (let best = 0; best < number; best++) {
    for (let other = place; other < best; other++) pairs.push([other, best]);
    for (let other = best + 1; other <= place; other++) pairs.push([other, best]);
  }
  return pairs;
}

function standing(decision, fitting, place, gain) {
  const own = fitting[place], others = fitting.filter(other => other !== own);
  const strict = other => -low(decision, other, own, 2);
  return {
    candidate: own,
    difference: Math.min(0, ...others.map(other => value(decision, own, other))),
    low: Math.min(0, ...others.map(other => low(decision, own, other))),
    high: Math.min(0, ...others.map(strict)),
    isEnough: needed(place, fitting.length).every(([j, b]) => low(decision, fitting[j], fitting[b]) > -gain),
  };
}

// The rank that misses its limits by the least factor.
function nearest(decision, excluded, limits) {
  const excess = place => Math.max(...excluded.get(place).map(name => {
    const end = decision.candidates[place].costs[name].end;
    return end ? end / limits[name] : Infinity;
  }));
  const ranks = [...excluded.keys()].filter(place => decision.candidates[place].rank !== null);
  return ranks.reduce((best, place) => (best === null || excess(place) < excess(best) ? place : best), null);
}

// The verdict for a margin and limits ({max_time: seconds, ...}): as `howlow recommend` with the same numbers.
function decide(decision, margin, limits) {
  const gain = decision.metric.isRelative ? Math.log1p(margin) : margin;
  const {fitting, excluded} = kept(decision, limits);
  const ranks = fitting.filter(place => decision.candidates[place].rank !== null);
  const standings = fitting.map((_, place) => standing(decision, fitting, place, gain));
  const chosen = standings.find(one => one.isEnough) ?? null;
  const rank = chosen ? decision.candidates[chosen.candidate].rank : null;
  const found = {margin, gain, limits, excluded, standings, chosen, isLone: fitting.length < 2};
  found.seeds = ranks.length ? Math.min(...ranks.map(place => decision.candidates[place].seeds)) : 0;
  if (!ranks.length) return {...found, verdict: "constraints_not_met", rank: null, nearest: nearest(decision, excluded, limits)};
  if (!chosen) return {...found, verdict: "not_enough_evidence", rank: null};
  return {...found, verdict: rank === null ? "no_adapter" : "recommended", rank};
}

// -- words ----------------------------------------------------------------------------------------------------------

function amount(metric, value) {
  if (metric.unit === "fraction") return `${significant(value * 100, 2)} points`;
  if (metric.isRelative) return `${significant(value * 100, 2)} %`;
  return significant(value, 2) + (metric.unit === "nats" ? " nats" : "");
}

// How far a candidate is below another one, as a difference of the metric itself.
function apart(metric, gain) {
  if (!Number.isFinite(gain)) return "any amount worse";
  return `${amount(metric, Math.abs(metric.isRelative ? Math.expm1(Math.min(-gain, 700)) : gain))} worse`;
}

function terms(decision, found) {
  const sure = `${significant(decision.confidence * 100)} % confidence`;
  return `margin ${amount(decision.metric, found.margin)}, ${sure}, ${counted(found.seeds, "seed")}, ${decision.tested}`;
}

function headline(decision, found) {
  const metric = decision.metric;
  if (found.verdict === "constraints_not_met") {
    const rank = found.nearest === null ? null : decision.candidates[found.nearest].rank;
    return `No rank keeps the limits; rank ${rank} is the nearest.`;
  }
  if (!found.chosen) {
    const words = terms(decision, found);
    return `Not enough evidence: no rank is shown to be as good as the best one in ${metric.label} (${words}).`;
  }
  const scope = found.seeds === 1 ? ", for this seed" : "";
  const verdict = found.rank === null ? `No adapter is needed${scope}` : `Recommended${scope}: rank ${found.rank}`;
  if (found.isLone) return `${verdict}. It is the only candidate that keeps the limits.`;
  const whose = found.rank === null ? "The base model" : `Rank ${found.rank}`;
  const least = apart(metric, found.chosen.low);
  return `${verdict}. ${whose} is at most ${least} than the best rank in ${metric.label} (${terms(decision, found)}).`;
}
