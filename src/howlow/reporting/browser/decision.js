// Which rank is enough: the rule of howlow/analysis/noninferiority.py, constraints.py and recommendation.py, for the
// margin and the limits that a reader sets. A decision holds the candidates, the smallest first, and for each pair of
// them the difference in quality, the half widths of its one-sided bounds, and the seeds that both have. Nothing is
// estimated here.

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
  if (width === null) return -Infinity;
  return Math.max(value(decision, ours, theirs) - width, decision.metric.unit === "fraction" ? -1 : -Infinity);
}

// Whether a candidate is shown to be worse than another one, so that it cannot be the best.
function isBeaten(decision, fitting, own) {
  return fitting.some(other => other !== own && low(decision, other, own, 2) > 0);
}

// The pairs (j, b) of places among the fitting candidates whose bound must be above -margin: k itself against every b,
// and each candidate between k and b against a b that may be the best.
function needed(place, number, beaten) {
  const pairs = [];
  const add = (other, best) => (other === place || !beaten[best]) && pairs.push([other, best]);
  for (let best = 0; best < number; best++) {
    for (let other = place; other < best; other++) add(other, best);
    for (let other = best + 1; other <= place; other++) add(other, best);
  }
  return pairs;
}

function standing(decision, fitting, place, gain, beaten) {
  const own = fitting[place], others = fitting.filter(other => other !== own);
  const strict = other => -low(decision, other, own, 2);
  return {
    candidate: own,
    difference: Math.min(0, ...others.map(other => value(decision, own, other))),
    low: Math.min(0, ...others.map(other => low(decision, own, other))),
    high: Math.min(0, ...others.map(strict)),
    isEnough: needed(place, fitting.length, beaten).every(([j, b]) => low(decision, fitting[j], fitting[b]) > -gain),
  };
}

// The fewest seeds that two candidates have in common; null where no two can be compared.
function commonSeeds(decision, fitting) {
  const all = fitting.flatMap((ours, place) => fitting.slice(place + 1).map(theirs => decision.pairs[ours][theirs - ours - 1][3]));
  const known = all.filter(seeds => seeds !== null);
  return known.length ? Math.min(...known) : null;
}

// The rank that misses its limits by the least factor, as measured where the ends of no interval are known.
function nearest(decision, excluded, limits) {
  const excess = (place, side) => Math.max(...excluded.get(place).map(name => {
    const value = decision.candidates[place].costs[name][side];
    return value ? value / limits[name] : Infinity;
  }));
  const isNearer = (one, other) => {
    const [ends, costs] = ["end", "cost"].map(side => [excess(one, side), excess(other, side)]);
    return ends[0] < ends[1] || (ends[0] === ends[1] && costs[0] < costs[1]);
  };
  const ranks = [...excluded.keys()].filter(place => decision.candidates[place].rank !== null);
  const place = ranks.reduce((best, one) => (best === null || isNearer(one, best) ? one : best), null);
  return {nearest: place, isNearestKnown: place !== null && Number.isFinite(excess(place, "end"))};
}

// Whether a candidate is shown to be worse than another one by the margin.
function isTooLow(found, own) {
  return own.high < 0 && own.high <= -found.gain;
}

// The verdict for a margin and limits ({max_time: seconds, ...}): as `howlow recommend` with the same numbers.
function decide(decision, margin, limits) {
  const gain = decision.metric.isRelative ? Math.log1p(margin) : margin;
  const {fitting, excluded} = kept(decision, limits);
  const ranks = fitting.filter(place => decision.candidates[place].rank !== null);
  const beaten = fitting.map(own => isBeaten(decision, fitting, own));
  const standings = fitting.map((_, place) => standing(decision, fitting, place, gain, beaten));
  const chosen = standings.find(one => one.isEnough) ?? null;
  const rank = chosen ? decision.candidates[chosen.candidate].rank : null;
  const found = {margin, gain, limits, excluded, standings, chosen, isLone: fitting.length < 2};
  found.seeds = commonSeeds(decision, fitting) ?? Math.min(...ranks.map(place => decision.candidates[place].seeds));
  if (!ranks.length) return {...found, verdict: "constraints_not_met", rank: null, ...nearest(decision, excluded, limits)};
  if (!chosen) return {...found, verdict: "not_enough_evidence", rank: null};
  return {...found, verdict: rank === null ? "no_adapter" : "recommended", rank};
}

// -- words ----------------------------------------------------------------------------------------------------------

function amount(metric, value, shown = significant) {
  if (metric.unit === "fraction") return `${shown(value * 100, 2)} points`;
  if (metric.isRelative) return `${shown(value * 100, 2)} %`;
  return shown(value, 2) + (metric.unit === "nats" ? " nats" : "");
}

function marginWords(decision, found) {
  return amount(decision.metric, found.margin, asAsked);
}

// How far a candidate is below another one, as a difference of the metric itself.
function apart(metric, gain) {
  if (!Number.isFinite(gain)) return "any amount worse";
  return `${amount(metric, Math.abs(metric.isRelative ? Math.expm1(Math.min(-gain, 700)) : gain))} worse`;
}

function terms(decision, found) {
  const sure = `${percentSure(decision.confidence)} confidence`;
  return `margin ${marginWords(decision, found)}, ${sure}, ${counted(found.seeds, "seed")}, ${decision.tested}`;
}

function headline(decision, found) {
  const metric = decision.metric;
  const isLimited = [...found.excluded.keys()].some(place => decision.candidates[place].rank !== null);
  const within = isLimited ? " that keeps the limits" : "";
  if (found.verdict === "constraints_not_met") {
    const rank = found.nearest === null ? null : decision.candidates[found.nearest].rank;
    const measured = found.isNearestKnown ? "" : "as measured, ";
    return `No rank is shown to keep the limits; ${measured}rank ${rank} is the nearest.`;
  }
  if (!found.chosen) {
    const best = `the best one${within} in ${metric.label}`;
    return `Not enough evidence: no rank is shown to be as good as ${best} (${terms(decision, found)}).`;
  }
  const scope = found.seeds === 1 ? ", for this seed" : "";
  const verdict = found.rank === null ? `No adapter is needed${scope}` : `Recommended${scope}: rank ${found.rank}`;
  if (found.isLone) return `${verdict}. It is the only candidate that keeps the limits.`;
  const whose = found.rank === null ? "The base model" : `Rank ${found.rank}`;
  const least = apart(metric, found.chosen.low);
  return `${verdict}. ${whose} is at most ${least} than the best rank${within} in ${metric.label} (${terms(decision, found)}).`;
}
