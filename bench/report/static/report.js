"use strict";

const data = JSON.parse(document.getElementById("data")?.textContent || "null");
const plots = [];

// Light and dark

const dark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

document.getElementById("theme").addEventListener("click", () => {
  const theme = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("earthbench-theme", theme); } catch (e) { /* private mode: for this page only */ }
  plots.forEach((draw) => draw());
});

// Leaderboards

async function boards() {
  if (!window.dataTables) return;
  const { jQuery: $ } = await window.dataTables;
  // What a column is ordered by is read from its cells anew: it depends on the figures that are shown.
  $.fn.dataTable.ext.order["shown-side"] = function (settings, index) {
    const side = settings.nTable.dataset.side;
    return this.api().column(index, { order: "index" }).nodes().map((cell) => cell.dataset[side] ?? "");
  };
  // Rows without a figure stay below, whichever way the others are ordered.
  const known = (direction) => (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return direction * (parseFloat(a) - parseFloat(b));
  };
  $.fn.dataTable.ext.type.order["figure-pre"] = (value) => String(value);
  $.fn.dataTable.ext.type.order["figure-asc"] = known(1);
  $.fn.dataTable.ext.type.order["figure-desc"] = known(-1);
  for (const section of document.querySelectorAll(".board")) {
    const element = section.querySelector("table.leaderboard");
    const columns = [...element.tHead.rows[1].cells].map((head) => ({
      type: "figure", orderDataType: "shown-side",
      orderSequence: head.classList.contains("lower") ? ["asc", "desc", ""] : ["desc", "asc", ""],
    }));
    const table = $(element).DataTable({
      paging: false, info: false, order: [], autoWidth: false,
      columns: [{ type: "string", orderSequence: ["asc", "desc", ""] }, ...columns],
      layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    });
    section.querySelector(".filter").addEventListener("input", (event) => table.column(0).search(event.target.value).draw());
    for (const radio of section.querySelectorAll(".switch input")) {
      radio.addEventListener("change", () => {
        element.dataset.side = radio.value;
        table.draw();
      });
    }
    for (const box of section.querySelectorAll(".group")) {
      box.addEventListener("change", () => table.columns(`.group-${box.value}`).visible(box.checked));
    }
    section.dataset.ready = "true";
  }
}

// Charts

const PALETTE = ["#0b5cad", "#c8553d", "#2a9d5c", "#8e44ad", "#b8860b", "#00838f", "#c2185b", "#5d6d7e", "#7cb342", "#3f51b5"];
// Plotly takes some markup in names; what records call themselves is text.
const short = (label) => (label.length > 26 ? label.slice(0, 25) + "…" : label).replace(/&/g, "&amp;").replace(/</g, "&lt;");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function layout(extra) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true };
  const { xaxis = {}, yaxis = {}, ...rest } = extra;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--ink"), size: 12 },
    margin: { l: 55, r: 10, t: 10, b: 45 }, hovermode: "closest", legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

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
    head.append(select);
    return select;
  });
  const plot = document.createElement("div");
  plot.className = "plot";
  plot.setAttribute("role", "img");
  card.append(head, plot);
  parent.append(card);
  const redraw = () => {
    const { traces, extra, words } = draw(...selects.map((select) => select.value));
    plot.setAttribute("aria-label", `${title}. ${words}`);
    Plotly.react(plot, traces, layout(extra), { displayModeBar: false, responsive: true });
  };
  selects.forEach((select) => select.addEventListener("change", redraw));
  plots.push(redraw); // drawn when every card has its place: a chart takes the width it finds
}

function curves(list, xOf, xTitle, yTitle, extra = {}) {
  const traces = [];
  list.forEach((curve, index) => {
    const colour = PALETTE[index % PALETTE.length], x = xOf(curve);
    if ((curve.low || []).some((value) => value !== null)) {
      traces.push({ x: [...x, ...[...x].reverse()], y: [...curve.high, ...[...curve.low].reverse()], fill: "toself",
        fillcolor: colour + "26", line: { width: 0 }, hoverinfo: "skip", showlegend: false, name: short(curve.label), mode: "lines" });
    }
    traces.push({ x, y: curve.y, name: short(curve.label), mode: "lines+markers", line: { color: colour }, marker: { size: 6 } });
  });
  const words = list.map((c) => `${c.label}: ${c.y.map((v) => (v === null ? "undefined" : +v.toPrecision(4))).join(", ")}`).join(". ");
  return { traces, words, extra: { xaxis: { title: { text: xTitle } }, yaxis: { title: { text: yTitle } }, ...extra } };
}

const named = (list) => list.map((one) => [one.key, one.label]);
const pick = (list, key) => list.find((one) => one.key === key);
const MONTH = 43829.1;

function leadCharts(parent, list) {
  if (!list.length) return;
  const months = list[0].curves[0].minutes[0] >= MONTH / 2;
  chart(parent, "By lead time", [["score", named(list)]], (key) => {
    const chosen = pick(list, key);
    return curves(chosen.curves, (c) => c.minutes.map((m) => (months ? Math.round(m / MONTH) : m)),
      months ? "lead time, months" : "lead time, minutes", chosen.label);
  });
}

function paretoChart(parent, list) {
  if (!list.length) return;
  const costs = [["gmacs", "GMACs"], ["parameters", "parameters, M"], ["latency", "evaluation, s per sequence"]]
    .filter(([cost]) => list.some((one) => new Set(one.points.map((p) => p[cost] ?? null).filter((v) => v !== null)).size > 1));
  if (!costs.length) return;
  chart(parent, "Score against cost", [["score", named(list)], ["cost", costs]], (key, cost) => {
    const { points, label, better } = pick(list, key);
    const known = points.filter((p) => p[cost] !== null && p[cost] !== undefined);
    const traces = ["ours", "published"].map((side) => {
      const mine = known.filter((p) => p.side === side).sort((a, b) => a[cost] - b[cost] || a.y - b.y);
      // Names of neighbours take turns above and below their points.
      return { x: mine.map((p) => p[cost]), y: mine.map((p) => p.y), text: mine.map((p) => short(p.label)), mode: "markers+text",
        textposition: mine.map((_, at) => (at % 2 ? "bottom center" : "top center")), cliponaxis: false, textfont: { size: 10 }, name: side,
        marker: { size: 10, color: PALETTE[side === "ours" ? 0 : 1], symbol: side === "ours" ? "circle" : "circle-open" } };
    }).filter((trace) => trace.x.length);
    const front = frontOf(known.filter((p) => p.side === (traces[0] || {}).name), cost, better);
    if (front.length > 1) {
      traces.push({ x: front.map((p) => p[cost]), y: front.map((p) => p.y), mode: "lines", name: `best for its cost (${traces[0].name})`,
        line: { color: css("--soft"), dash: "dot", shape: "hv" }, hoverinfo: "skip" });
    }
    return { traces, extra: { margin: { l: 55, r: 60, t: 10, b: 45 }, xaxis: { title: { text: costs.find(([c]) => c === cost)[1] } },
      yaxis: { title: { text: `${label} (${better} is better)` } } },
      words: known.map((p) => `${p.label}, ${p.side}: ${p.y} at ${p[cost]}`).join(". ") };
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

function drawCharts() {
  if (!window.Plotly) return;
  document.querySelectorAll(".board").forEach((section) => {
    const parent = section.querySelector(".charts"), mine = data[+section.dataset.block];
    leadCharts(parent, mine.lead);
    if (mine.threshold.length) {
      chart(parent, "By threshold", [["score", named(mine.threshold)]], (key) => {
        const chosen = pick(mine.threshold, key);
        return curves(chosen.curves, (c) => c.x.map(String), "threshold, VIL code", chosen.label, { xaxis: { type: "category", title: { text: "threshold, VIL code" } } });
      });
    }
    paretoChart(parent, mine.pareto);
    if (mine.reliability.length) {
      chart(parent, "Reliability", [["threshold", named(mine.reliability)]], (key) => {
        const list = pick(mine.reliability, key).curves.map((c) => ({ label: c.label, x: c.probability, y: c.frequency }));
        const found = curves(list, (c) => c.x, "forecast probability", "observed frequency",
          { xaxis: { range: [-0.02, 1.02], title: { text: "forecast probability" } }, yaxis: { range: [-0.02, 1.02], title: { text: "observed frequency" } } });
        found.traces.push({ x: [0, 1], y: [0, 1], mode: "lines", name: "perfectly reliable", line: { color: css("--soft"), dash: "dot" } });
        return found;
      });
    }
    if (mine.rank.length) {
      chart(parent, "Rank histogram", [["", named(mine.rank)]], (key) => {
        const list = pick(mine.rank, key).curves;
        const traces = list.map((c, index) => ({ type: "bar", x: c.rank, y: c.frequency, name: short(c.label), marker: { color: PALETTE[index % PALETTE.length] } }));
        const words = list.map((c) => `${c.label}: ${c.frequency.join(", ")}`).join(". ");
        return { traces, words, extra: { barmode: "group", xaxis: { title: { text: "members below the truth" } }, yaxis: { title: { text: "share" } } } };
      });
    }
  });
  plots.forEach((draw) => draw());
}

// Forecasts

function gallery() {
  document.querySelectorAll(".scene").forEach((section) => {
    const scene = data[+section.dataset.scene], slider = section.querySelector(".slider");
    const when = section.querySelector(".when"), play = section.querySelector(".play");
    const strips = [scene.context, scene.target, ...scene.forecasts];
    const show = () => {
      const lead = +slider.value;
      section.querySelectorAll(".frame").forEach((frame, index) => {
        const count = +frame.dataset.count, own = frame.dataset.kind === "context" ? Math.max(0, count - 1 - (scene.target.frames.length - 1 - lead)) : lead;
        frame.style.backgroundPosition = count > 1 ? `${(own * 100) / (count - 1)}% 0` : "0 0";
        frame.setAttribute("aria-label", `${frame.dataset.label}, ${strips[index].frames[own]}`);
        frame.parentElement.querySelector(".stamp").textContent = strips[index].frames[own];
      });
      when.textContent = scene.target.frames[lead];
      slider.setAttribute("aria-valuetext", scene.target.frames[lead]);
    };
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
      play.setAttribute("aria-pressed", "false");
    };
    play.addEventListener("click", () => {
      if (timer) return stop();
      play.textContent = "Pause";
      play.setAttribute("aria-pressed", "true");
      timer = setInterval(() => {
        slider.value = (+slider.value + 1) % scene.target.frames.length;
        show();
      }, 500);
    });
    slider.addEventListener("input", () => { stop(); show(); });
    show();
  });
}

if (document.querySelector(".board")) { boards(); drawCharts(); }
if (document.querySelector(".scene")) gallery();
