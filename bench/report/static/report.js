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

// The address keeps what a reader has set: ANCHOR.find, .side, .sort (COLUMN:asc) and .hide (numbers of groups).
const state = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");

function remember(section, key, value) {
  if (value) state.set(`${section.id}.${key}`, value);
  else state.delete(`${section.id}.${key}`);
  history.replaceState(null, "", state.size ? `#${state}` : `#${section.id}`);
}

// "a b": both words; "a | b": either.
function matches(text, query) {
  const low = text.toLowerCase();
  return query.toLowerCase().split("|").some((part) => part.trim().split(/\s+/).every((word) => low.includes(word)));
}

async function boards() {
  if (!window.dataTables) return;
  const { jQuery: $ } = await window.dataTables;
  // What a column is ordered by is read from its cells anew: it depends on the side that is shown.
  $.fn.dataTable.ext.order["shown-side"] = function (settings, index) {
    const side = settings.nTable.dataset.side;
    return this.api().column(index, { order: "index" }).nodes().map((cell) => cell.dataset[side] ?? "");
  };
  // Rows without a value stay below, whichever way the others are ordered.
  const known = (direction) => (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return direction * (parseFloat(a) - parseFloat(b));
  };
  $.fn.dataTable.ext.type.order["figure-pre"] = (value) => String(value);
  $.fn.dataTable.ext.type.order["figure-asc"] = known(1);
  $.fn.dataTable.ext.type.order["figure-desc"] = known(-1);
  for (const section of document.querySelectorAll(".board")) board($, section);
  const first = [...state.keys()][0]?.split(".")[0];
  if (first) document.getElementById(first)?.scrollIntoView();
}

function board($, section) {
  const element = section.querySelector("table.leaderboard"), given = (key) => state.get(`${section.id}.${key}`) || "";
  const heads = [...element.tHead.rows[1].cells], filter = section.querySelector(".filter");
  const names = [...element.tBodies[0].rows].map((row) => row.dataset.label);
  const radio = given("side") && section.querySelector(`.switch input[value="${CSS.escape(given("side"))}"]`);
  if (radio) {
    radio.checked = true;
    element.dataset.side = radio.value;
  }
  const [key, direction] = given("sort").split(":"), at = ["", ...heads.map((head) => head.dataset.key)].indexOf(key || null);
  const table = $(element).DataTable({
    paging: false, info: false, autoWidth: false, order: at >= 0 ? [[at, direction === "asc" ? "asc" : "desc"]] : [],
    columns: [{ type: "string", orderSequence: ["asc", "desc", ""] }, ...heads.map((head) => ({
      type: "figure", orderDataType: "shown-side",
      orderSequence: head.classList.contains("lower") ? ["asc", "desc", ""] : ["desc", "asc", ""],
    }))],
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
  });
  // Headings of groups sort nothing.
  for (const heading of element.querySelectorAll(".heading, .heading [tabindex]")) {
    for (const name of ["tabindex", "role", "aria-label"]) heading.removeAttribute(name);
  }
  table.search.fixed("rows", (_, __, index) => matches(names[index], filter.value));
  filter.value = given("find");
  table.draw();
  filter.addEventListener("input", () => { table.draw(); remember(section, "find", filter.value); });
  table.on("order", () => {
    const [column, way] = table.order()[0] || [];
    remember(section, "sort", way ? `${["", ...heads.map((head) => head.dataset.key)][column]}:${way}` : "");
  });
  for (const choice of section.querySelectorAll(".switch input")) {
    choice.addEventListener("change", () => {
      element.dataset.side = choice.value;
      table.draw();
      remember(section, "side", choice.value);
    });
  }
  const boxes = [...section.querySelectorAll(".group")], hidden = given("hide").split(",");
  const show = (box) => table.columns(`.group-${box.value}`).visible(box.checked);
  for (const box of boxes) {
    if (hidden.includes(box.value)) { box.checked = false; show(box); }
    box.addEventListener("change", () => {
      show(box);
      remember(section, "hide", boxes.filter((one) => !one.checked).map((one) => one.value).join(","));
    });
  }
  for (const row of element.tBodies[0].rows) {
    for (const [name, label] of [["mouseenter", row.dataset.label], ["mouseleave", null], ["focusin", row.dataset.label], ["focusout", null]]) {
      row.addEventListener(name, () => light(section, label));
    }
  }
  section.dataset.ready = "true";
}

// Forecasts

function gallery() {
  document.querySelectorAll(".scene").forEach((section) => {
    const scene = data[+section.dataset.scene], slider = section.querySelector(".slider");
    const when = section.querySelector(".when"), play = section.querySelector(".play"), differences = section.querySelector(".differences");
    const strips = [scene.context, scene.target, ...scene.forecasts, ...scene.probabilities];
    const show = () => {
      const lead = +slider.value, last = scene.target.frames.length - 1;
      section.querySelectorAll(".frame").forEach((frame, index) => {
        const strip = strips[index], count = strip.frames.length;
        // the context ends when the target begins: it shows the frame as far before its own end
        const own = frame.dataset.kind === "context" ? Math.max(0, count - 1 - (last - lead)) : lead;
        const picture = differences.checked && strip.difference ? strip.difference : strip.picture;
        frame.style.backgroundImage = `url("${picture}")`;
        frame.style.backgroundPosition = count > 1 ? `${(own * 100) / (count - 1)}% 0` : "0 0";
        frame.setAttribute("aria-label", [strip.label, strip.frames[own], strip.scores[own]].filter(Boolean).join(", "));
        frame.parentElement.querySelector(".stamp").textContent = strip.frames[own];
        frame.parentElement.querySelector(".score").textContent = strip.scores[own] || "";
      });
      section.querySelector(".scale.errors").hidden = !differences.checked;
      when.textContent = scene.target.frames[lead];
      slider.setAttribute("aria-valuetext", scene.target.frames[lead]);
    };
    differences.addEventListener("change", show);
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
