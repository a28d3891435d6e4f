"use strict";

// The charts of boards; loaded before report.js, which draws them.

// Plotly takes some markup in names; what records call themselves is text.
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
// Of long names the middle goes: settings at the end tell runs of a model apart. Words stay whole where they can.
function shortened(label, most) {
  if (label.length <= most) return label;
  const words = label.split(" "), head = words[0].replace(/,$/, "");
  let tail = words.length > 1 ? words.at(-1) : label.slice(-Math.ceil(most / 2));
  if (tail.length > most - 4) tail = tail.slice(4 - most);
  for (let k = words.length - 2; k > 0 && head.length + 2 + words[k].length + tail.length < most; k -= 1) tail = `${words[k]} ${tail}`;
  return `${head.slice(0, most - 1 - tail.length)}…${tail}`;
}
const short = (label, most = 30) => escaped(shortened(label, most));
// Names of rows in one chart: the words that all begin with go first, and no two that differ are shortened alike.
function shortNames(labels, most) {
  const words = [...new Set(labels)].map((label) => label.split(" ")), common = words[0]?.findIndex((word, k) => words.some((one) => one[k] !== word || one.length === k + 1));
  const bare = (label) => (words.length > 1 ? label.split(" ").slice(common).join(" ") : label);
  const found = new Map(), taken = new Set();
  for (const label of labels) {
    if (found.has(label)) continue;
    let name = shortened(bare(label), most);
    for (let more = most + 1; taken.has(name) && more <= label.length; more += 1) name = shortened(bare(label), more);
    taken.add(name);
    found.set(label, escaped(name));
  }
  return found;
}
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Names are small: their colour is mixed with that of text, or the palest and the darkest could not be read.
const legible = (colour) => `#${[1, 3, 5].map((at) => Math.round(0.65 * parseInt(colour.slice(at, at + 2), 16) + (dark() ? 89 : 0)).toString(16).padStart(2, "0")).join("")}`;
const MARGIN = { l: 58, r: 12, t: 10, b: 48 };
const inner = (plot, margin) => [plot.clientWidth - margin.l - margin.r, plot.clientHeight - margin.t - margin.b];

function layout(extra) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line") };
  const { xaxis = {}, yaxis = {}, ...rest } = extra;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--ink"), size: 12 },
    margin: MARGIN, hovermode: "closest", showlegend: false, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

// A card with a chart: `draw(plot, ...choices)` gives its traces, layout, words for who does not see it, and a note.
function chart(parent, title, choices, draw) {
  if (!choices.length) return;
  const card = document.createElement("article");
  card.className = "chart";
  const head = document.createElement("header");
  const heading = document.createElement("h3");
  heading.textContent = title;
  head.append(heading);
  const selects = choices.map(([name, options]) => {
    const select = document.createElement("select");
    select.setAttribute("aria-label", `${title}: ${name}`);
    options.forEach(([value, label]) => select.add(new Option(label, value)));
    const only = document.createElement("span");
    only.className = "small";
    only.textContent = options[0][1];
    head.append(options.length > 1 ? select : only);
    return select;
  });
  const plot = document.createElement("div"), note = document.createElement("p");
  plot.className = "plot";
  plot.setAttribute("role", "img");
  note.className = "note";
  card.append(head, plot, note);
  parent.append(card);
  const section = parent.closest(".board");
  let listens = false;
  const redraw = () => {
    const { traces, extra, words, remark = "" } = draw(plot, ...selects.map((select) => select.value));
    plot.setAttribute("aria-label", `${[title, ...selects.map((select) => select.selectedOptions[0].text)].join(", ")}. ${words}`);
    note.textContent = remark;
    Plotly.react(plot, traces, layout(extra), { displayModeBar: false, responsive: true }).then(() => light(section, null));
    if (listens) return;
    listens = true;
    plot.on("plotly_hover", (event) => light(section, event.points[0].data.meta || null));
    plot.on("plotly_unhover", () => light(section, null));
  };
  selects.forEach((select) => select.addEventListener("change", redraw));
  plots.push(redraw); // drawn when every card has its place: a chart takes the width it finds
}

// Brings out a row's lines and their bands, in all charts of its board and in its table.
function light(section, label) {
  for (const group of section.querySelectorAll(".scatterlayer .trace")) {
    const { meta, fill } = group.__data__?.[0]?.trace ?? {};
    const mine = meta && meta === label;
    group.style.opacity = fill === "toself" ? (mine ? 1 : 0) : !label || !meta || mine ? 1 : 0.15;
  }
  for (const row of section.querySelectorAll(".leaderboard tbody tr")) row.classList.toggle("lit", row.dataset.label === label);
}

// Ticks of a logarithmic axis between two exponents: 1, 2, 5 of each decade, or even steps where these are too few.
function logTicks([low, high]) {
  const found = [], from = 10 ** low, to = 10 ** high;
  for (let e = Math.floor(low); e <= high; e += 1) for (const m of high - low > 2.5 ? [1] : [1, 2, 5]) if (m * 10 ** e >= from && m * 10 ** e <= to) found.push(m * 10 ** e);
  if (found.length < 3) {
    const power = 10 ** Math.floor(Math.log10((to - from) / 4)), step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= (to - from) / 5);
    found.length = 0;
    for (let v = Math.ceil(from / step) * step; v <= to; v += step) found.push(v);
  }
  return { type: "log", range: [low, high], tickmode: "array", tickvals: found, ticktext: found.map((v) => `${+v.toPrecision(3)}`), fixedrange: true };
}

const finite = (values) => values.filter((value) => value !== null && value !== undefined && Number.isFinite(value));
function padded(values, share = 0.06) {
  const low = Math.min(...values), high = Math.max(...values), space = (high - low || Math.abs(high) || 1) * share;
  return [low - space, high + space];
}

// Lines with their names at their ends; where there is no room for all, the best rows and the references have theirs.
function curves(plot, list, styles, { x: xOf, xTitle, yTitle, xaxis = {}, yrange }) {
  const traces = [], narrow = plot.clientWidth < 480, names = shortNames(list.map((curve) => curve.label), narrow ? 18 : 30);
  const longest = Math.max(...[...names.values()].map((name) => name.length));
  for (const curve of list) {
    const { colour, symbol, dash } = styles[curve.label], x = xOf(curve);
    const at = x.map((_, k) => k).filter((k) => (curve.low || [])[k] !== null && (curve.low || [])[k] !== undefined);
    if (at.length) {
      traces.push({ x: [...at.map((k) => x[k]), ...at.map((k) => x[k]).reverse()], y: [...at.map((k) => curve.high[k]), ...at.map((k) => curve.low[k]).reverse()],
        fill: "toself", fillcolor: colour + "33", line: { width: 0 }, hoverinfo: "skip", mode: "lines", meta: curve.label });
    }
    traces.push({ x, y: curve.y, name: short(curve.label, 90), meta: curve.label, mode: "lines+markers", line: { color: colour, dash, width: dash === "solid" ? 2 : 1.5 },
      marker: { size: 6, symbol }, hovertemplate: "%{fullData.name}<br>%{x}: %{y:.4g}<extra></extra>" });
  }
  const range = yrange || padded(list.flatMap((curve) => finite(curve.y)));
  const margin = { ...MARGIN, r: 14 + 7.2 * longest };
  const [, height] = inner(plot, margin), gap = 13;
  const order = [...list.filter((c) => styles[c.label].reference), ...list.filter((c) => !styles[c.label].reference)];
  const ends = order.slice(0, Math.max(1, Math.floor(height / gap)))
    .map((curve) => ({ curve, end: finite(curve.y).at(-1) })).filter(({ end }) => end !== undefined)
    .map((one) => ({ ...one, at: (height * (range[1] - one.end)) / (range[1] - range[0]) })).sort((a, b) => a.at - b.at);
  ends.forEach((one, k) => { one.at = Math.max(one.at, k ? ends[k - 1].at + gap : gap / 2); });
  for (let k = ends.length - 1, limit = height - gap / 2; k >= 0; k -= 1, limit = ends[k + 1].at - gap) ends[k].at = Math.min(ends[k].at, limit);
  const annotations = ends.map(({ curve, at }) => ({
    xref: "paper", x: 1, xanchor: "left", xshift: 6, yref: "paper", y: 1 - at / height, yanchor: "middle", showarrow: false,
    text: names.get(curve.label), font: { size: 11, color: legible(styles[curve.label].colour) },
  }));
  const words = list.map((c) => `${c.label}: ${c.y.map((v) => (v === null ? "undefined" : +v.toPrecision(4))).join(", ")}`).join(". ");
  const bands = list.some((curve) => finite(curve.low || []).length) ? "A row's band, the range over seeds or the interval of one run, shows when it is pointed at." : "";
  const left = list.length - ends.length;
  return { traces, words, remark: [bands, left > 0 ? `${left} row${left > 1 ? "s" : ""} without a name here: point at a line.` : ""].filter(Boolean).join(" "),
    extra: { margin, annotations, xaxis: { title: { text: xTitle }, ...xaxis }, yaxis: { title: { text: yTitle }, range } } };
}

const named = (list) => list.map((one) => [one.key, one.label]);
const pick = (list, key) => list.find((one) => one.key === key);

function curveChart(parent, title, list, styles, options) {
  if (!list.length) return;
  chart(parent, title, [["score", named(list)]], (plot, key) => {
    const chosen = pick(list, key);
    return curves(plot, chosen.curves, styles, { x: (c) => c.x, yTitle: chosen.better ? `${chosen.label} (${chosen.better} is better)` : chosen.label, ...options(chosen) });
  });
}

// Where names go: the first side of a point on which its name meets no other name or point, or none at all.
const SIDES = { "middle right": [1, 0], "middle left": [-1, 0], "top center": [0, -1], "bottom center": [0, 1],
  "top right": [1, -1], "bottom right": [1, 1], "top left": [-1, -1], "bottom left": [-1, 1] };
// Beside a point of the front, these first: the line leaves it to the right and comes from below, or from above.
const BESIDE_FRONT = { higher: ["top left", "middle left", "bottom right"], lower: ["bottom left", "middle left", "top right"] };
function place(points, width, height) {
  const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  const taken = points.map(({ px, py }) => [px - 6, py - 6, px + 6, py + 6]);
  return points.map(({ px, py, text, first }, own) => {
    const long = 6 * text.length;
    for (const side of [...first, ...Object.keys(SIDES)]) {
      const [across, down] = SIDES[side];
      const x = across ? px + across * 7 - (across < 0 ? long : 0) : px - long / 2, y = py + down * (across ? 8 : 13) - 7;
      const box = [x, y, x + long, y + 14];
      if (box[0] < 0 || box[2] > width || box[1] < 0 || box[3] > height) continue;
      if (taken.some((other, k) => k !== own && meets(box, other))) continue;
      taken.push(box);
      return side;
    }
    return null;
  });
}

function paretoChart(parent, list, styles) {
  if (!list.length) return;
  const costs = [["gmacs", "GMACs"], ["parameters", "parameters, M"], ["latency", "evaluation, s per sequence"]]
    .filter(([cost]) => list.some((one) => new Set(one.points.map((p) => p[cost]).filter((v) => v > 0)).size > 1));
  if (!costs.length) return;
  chart(parent, "Score against cost", [["score", named(list)], ["cost", costs]], (plot, key, cost) => {
    const { points, label, better } = pick(list, key), drawn = points.filter((p) => p[cost] > 0);
    const unit = costs.find(([c]) => c === cost)[1], side = points.some((p) => p.side === "ours") ? "ours" : "published";
    const front = frontOf(points.filter((p) => p.side === side && p[cost] !== null), cost, better);
    const xrange = padded(drawn.map((p) => Math.log10(p[cost])), 0.1), yrange = padded([...drawn, ...front].map((p) => p.y), 0.12);
    const [width, height] = inner(plot, MARGIN);
    const ordered = [...drawn].sort((a, b) => front.includes(b) - front.includes(a)), names = shortNames(ordered.map((p) => p.label), 24);
    const at = ordered.map((p) => ({ text: names.get(p.label), first: front.includes(p) ? BESIDE_FRONT[better] : [], px: (width * (Math.log10(p[cost]) - xrange[0])) / (xrange[1] - xrange[0]),
      py: (height * (yrange[1] - p.y)) / (yrange[1] - yrange[0]) }));
    const sides = place(at, width, height);
    const traces = ordered.map((p, k) => ({
      x: [p[cost]], y: [p.y], text: [sides[k] ? at[k].text : ""], textposition: sides[k] || "top center", mode: "markers+text", textfont: { size: 10 },
      meta: p.label, name: short(`${p.label}, ${p.side}`, 60), hovertemplate: "%{fullData.name}<br>%{x:.4g}: %{y:.4g}<extra></extra>",
      marker: { size: 10, color: styles[p.label].colour, symbol: styles[p.label].symbol + (p.side === "ours" ? "" : "-open") },
    }));
    const line = front.map((p) => [p[cost] > 0 ? p[cost] : 10 ** xrange[0], p.y]);
    if (line.length) {
      line.push([10 ** xrange[1], line.at(-1)[1]]);
      traces.unshift({ x: line.map(([x]) => x), y: line.map(([, y]) => y), mode: "lines", name: `Pareto front (${side})`, line: { color: css("--soft"), dash: "dot", shape: "hv" }, hoverinfo: "skip" });
    }
    const why = (p) => (p[cost] === 0 ? `0 ${unit}` : p.why[cost]);
    const missing = new Map(); // reason: rows
    for (const p of points.filter((one) => !(one[cost] > 0))) missing.set(why(p), [...(missing.get(why(p)) || []), `${p.label}${p.side === "ours" ? "" : " (published)"} ${+p.y.toPrecision(4)}`]);
    const bare = sides.filter((one) => !one).length, open = new Set(drawn.map((p) => p.side)).size > 1 || side === "published";
    return { traces,
      remark: [line.length ? `Dotted: Pareto front (${side}).` : "", open ? "Open symbols: published." : "", bare ? `${bare} point${bare > 1 ? "s" : ""} without a name: point at it.` : "",
        missing.size ? `Not drawn on the logarithmic axis: ${[...missing].map(([reason, rows]) => `${rows.join(", ")} (${reason})`).join("; ")}.` : ""].filter(Boolean).join(" "),
      extra: { xaxis: { ...logTicks(xrange), title: { text: `${unit} (logarithmic)` } }, yaxis: { range: yrange, title: { text: `${label} (${better} is better)` } } },
      words: points.map((p) => `${p.label}, ${p.side}: ${p.y} at ${p[cost] ?? p.why[cost]}`).join(". ") };
  });
}

function frontOf(points, cost, better) {
  const sign = better === "higher" ? 1 : -1;
  let best = -Infinity;
  return [...points].sort((a, b) => a[cost] - b[cost] || sign * (b.y - a.y)).filter((p) => {
    if (sign * p.y <= best) return false;
    best = sign * p.y;
    return true;
  });
}

function lossChart(parent, list) {
  if (!list.length) return;
  chart(parent, "Learning curves", [["row", named(list)]], (plot, key) => {
    const { runs } = pick(list, key), colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
    // Losses far above all validations are of another kind, such as sums: they have an axis of their own.
    const of = (part) => runs.flatMap((run) => run[part].map(([, loss]) => loss)).filter((loss) => loss > 0);
    const trainings = of("train"), validations = of("val");
    const losses = (parts) => (parts.flat().length ? logTicks(padded(parts.flat().map(Math.log10))) : { type: "log" });
    const apart = Math.min(...trainings) > 3 * Math.max(...validations);
    const traces = runs.flatMap((run, k) => [["training", run.train, { yaxis: apart ? "y2" : "y", mode: "lines", opacity: 0.55, line: { width: 1, color: colours[k % 6] } }],
      ["validation", run.val, { mode: "lines+markers", line: { width: 2, color: colours[k % 6] }, marker: { size: 5 } }]]
      .filter(([, points]) => points.length)
      .map(([name, points, how]) => ({ showlegend: name === "validation" || !run.val.length, x: points.map(([step]) => step), y: points.map(([, loss]) => loss), name: run.val.length ? run.name : `${run.name}, training`, ...how })));
    const words = runs.map((run) => `${run.name}: last validation loss ${run.val.at(-1)?.[1] ?? "none"}`).join(". ");
    return { traces, words, remark: `Thin: training loss, in the model's own terms${apart ? " (axis on the right)" : ""}; dots: validation.`,
      extra: { showlegend: runs.length <= colours.length, xaxis: { title: { text: "optimiser steps" } }, yaxis: { ...losses(apart ? [validations] : [trainings, validations]), title: { text: apart ? "validation loss" : "loss" } },
        ...(apart ? { margin: { ...MARGIN, r: 60 }, yaxis2: { ...losses([trainings]), overlaying: "y", side: "right", showgrid: false, title: { text: "training loss" } } } : {}) } };
  });
}

function drawCharts() {
  if (!window.Plotly) return;
  document.querySelectorAll(".board").forEach((section) => {
    const parent = section.querySelector(".charts"), mine = data[+section.dataset.block], { styles } = mine;
    curveChart(parent, "By lead time", mine.lead, styles, (chosen) => ({ xTitle: `lead time, ${chosen.curves[0].unit}` }));
    curveChart(parent, "By threshold", mine.threshold, styles, () => ({ x: (c) => c.x.map(String), xTitle: "threshold, VIL code", xaxis: { type: "category" } }));
    paretoChart(parent, mine.pareto, styles);
    if (mine.reliability.length) {
      chart(parent, "Reliability", [["threshold", named(mine.reliability)]], (plot, key) => {
        const list = pick(mine.reliability, key).curves.map((c) => ({ label: c.label, x: c.probability, y: c.frequency }));
        const found = curves(plot, list, styles, { x: (c) => c.x, xTitle: "forecast probability", yTitle: "observed frequency", xaxis: { range: [-0.02, 1.02] }, yrange: [-0.02, 1.02] });
        found.traces.push({ x: [0, 1], y: [0, 1], mode: "lines", name: "perfectly reliable", line: { color: css("--soft"), dash: "dot" } });
        found.remark = ["Of ensembles only; dotted: perfectly reliable.", found.remark].filter(Boolean).join(" ");
        return found;
      });
    }
    if (mine.rank.length) {
      chart(parent, "Rank histogram", [["members", named(mine.rank)]], (plot, key) => {
        const list = pick(mine.rank, key).curves, names = shortNames(list.map((c) => c.label), 30);
        const traces = list.map((c) => ({ type: "bar", x: c.rank, y: c.frequency, name: names.get(c.label), meta: c.label, marker: { color: styles[c.label].colour } }));
        const ranks = list[0].rank;
        traces.push({ x: [ranks[0] - 0.5, ranks.at(-1) + 0.5], y: [1 / ranks.length, 1 / ranks.length], mode: "lines", name: "observation like a member", line: { color: css("--ink"), dash: "dot", width: 1.5 }, hoverinfo: "skip" });
        const words = list.map((c) => `${c.label}: ${c.frequency.join(", ")}`).join(". ");
        return { traces, words, remark: "Of ensembles only.",
          extra: { showlegend: true, barmode: "group", xaxis: { title: { text: "members below the observation" } }, yaxis: { title: { text: "share of observations" } } } };
      });
    }
    lossChart(parent, mine.losses);
  });
  plots.forEach((draw) => draw());
}
