(() => {
  "use strict";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  const touch = matchMedia("(pointer: coarse)");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const plots = [];

  // What a plot takes from the reader's scheme: colours of text, grid lines and hover boxes.
  function scheme(layout) {
    const change = {
      "font.color": css("--ink"), "hoverlabel.bgcolor": css("--panel"),
      "hoverlabel.bordercolor": css("--line"), "hoverlabel.font.color": css("--ink"),
    };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) change[key + ".gridcolor"] = css("--line");
    }
    return change;
  }

  // Layer names get shorter on a phone, so that the plot keeps its room.
  function names(layout) {
    if (!layout.meta || !layout.meta.narrow) return {};
    return { "yaxis.ticktext": narrow.matches ? layout.meta.narrow : layout.meta.wide };
  }

  function assign(target, changes) {
    for (const [path, value] of Object.entries(changes)) {
      const keys = path.split(".");
      const last = keys.pop();
      let place = target;
      for (const key of keys) place = place[key] = place[key] || {};
      place[last] = value;
    }
  }

  function visible(plot) {
    return plot.data.map((trace, i) => {
      const chosen = plot.choices.length ? plot.choices[plot.choice][0].visible[i] : true;
      return chosen && !(trace.meta && plot.hidden.has(trace.meta.label));
    });
  }

  function update(plot) {
    const layout = plot.choices.length ? plot.choices[plot.choice][1] : {};
    return Plotly.update(plot.element, { visible: visible(plot) }, layout);
  }

  const NS = "http://www.w3.org/2000/svg";
  const DASH = { dash: "6 4", dot: "2 3", dashdot: "6 3 2 3", longdash: "9 4" };
  const MARK = {
    circle: "M14 2a4 4 0 1 0 .01 0z", square: "M10.5 2.5h7v7h-7z", diamond: "M14 1l5 5-5 5-5-5z",
    "triangle-up": "M14 1.5l4.5 8h-9z", "triangle-down": "M14 10.5l4.5-8h-9z",
    x: "M10.5 4l1.5-1.5 2 2 2-2L17.5 4l-2 2 2 2-1.5 1.5-2-2-2 2L10.5 8l2-2z",
    star: "M14 1l1.3 3.4 3.7.1-2.9 2.3 1 3.6L14 8.3l-3.1 2.1 1-3.6L9 4.5l3.7-.1z",
    hexagon: "M14 1.5l4 2.25v4.5l-4 2.25-4-2.25v-4.5z",
  };

  function swatch(trace) {
    const svg = document.createElementNS(NS, "svg");
    const put = (kind, attributes) => {
      const node = svg.appendChild(document.createElementNS(NS, kind));
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    };
    for (const [name, value] of Object.entries({ width: 28, height: 12, "aria-hidden": "true" })) svg.setAttribute(name, value);
    if (trace.type === "bar") put("path", { d: "M8 0h12v12H8z", fill: trace.marker.color });
    if (/lines/.test(trace.mode)) {
      put("path", { d: "M0 6h28", stroke: trace.line.color, "stroke-width": 2, "stroke-dasharray": DASH[trace.line.dash] || "none" });
    }
    if (/markers/.test(trace.mode)) {
      const marker = trace.marker || {};
      const symbol = [marker.symbol].flat().find((one) => !/-open$/.test(one));
      const shape = MARK[symbol] || MARK.circle;
      const outline = (marker.line && marker.line.color) || "none";
      put("path", { d: shape, fill: marker.color || trace.line.color, stroke: outline, "stroke-width": 1.3 });
    }
    return svg;
  }

  // A legend of check boxes: works with the keyboard, wraps on a phone.
  function legend(figure, plot) {
    const seen = new Set();
    for (const trace of plot.data) {
      if (!trace.showlegend || !trace.meta || seen.has(trace.meta.label)) continue;
      seen.add(trace.meta.label);
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => {
        plot.hidden[box.checked ? "delete" : "add"](trace.meta.label);
        update(plot);
      });
      label.append(box, swatch(trace), document.createTextNode(trace.meta.label));
      figure.querySelector(".legend").append(label);
    }
  }

  function controls(figure, plot) {
    const bar = figure.querySelector(".controls");
    bar.hidden = false;
    for (const select of bar.querySelectorAll("select")) {
      select.addEventListener("change", () => {
        if (select.dataset.control === "choice") {
          plot.choice = Number(select.value);
          update(plot);
          return;
        }
        const name = select.value;
        const mine = plot.data.map((trace) => !name || trace.meta.layer === name);
        Plotly.restyle(plot.element, { opacity: mine.map((yes) => (yes ? 1 : 0.12)) });
      });
    }
  }

  function buttons(figure, element) {
    const save = figure.querySelector("[data-control=save]");
    const reset = figure.querySelector("[data-control=reset]");
    save.addEventListener("click", () => {
      const size = { width: element.clientWidth, height: element.clientHeight, scale: 2 };
      Plotly.downloadImage(element, { format: "png", filename: figure.id, ...size });
    });
    reset.addEventListener("click", () => {
      Plotly.relayout(element, { "xaxis.autorange": true, "yaxis.autorange": true });
      save.focus();
    });
    element.on("plotly_relayout", (change) => {
      if ("xaxis.range[0]" in change || "yaxis.range[0]" in change) reset.hidden = false;
      if (change["xaxis.autorange"]) reset.hidden = true;
    });
  }

  function draw(figure) {
    const spec = JSON.parse(figure.querySelector("script.figure").textContent);
    const element = figure.querySelector(".plot");
    const plot = { element, data: spec.data, layout: spec.layout, choices: spec.choices, choice: 0, hidden: new Set() };
    if (spec.layout.meta && spec.layout.meta.narrow) spec.layout.meta.wide = spec.layout.yaxis.ticktext;
    assign(spec.layout, { ...scheme(spec.layout), ...names(spec.layout), showlegend: false, autosize: true });
    // A plot that drags would swallow the finger that scrolls the page.
    if (touch.matches) spec.layout.dragmode = false;
    // No tool bar: its default set would offer to upload the chart. The page has its own two buttons.
    const config = { responsive: true, displaylogo: false, displayModeBar: false, plotlyServerURL: "" };
    legend(figure, plot);
    controls(figure, plot);
    plots.push(plot);
    return Plotly.newPlot(element, spec.data, spec.layout, config).then(() => buttons(figure, element));
  }

  function redress() {
    for (const plot of plots) Plotly.relayout(plot.element, { ...scheme(plot.layout), ...names(plot.layout) });
  }
  dark.addEventListener("change", redress);
  narrow.addEventListener("change", redress);

  // Sorting: a second click turns the order round; what has no value stays last.
  function sort(table, column, header) {
    const falling = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[column];
      return cell.dataset.key === undefined ? cell.textContent : Number(cell.dataset.key === "inf" ? "Infinity" : cell.dataset.key);
    };
    const order = (a, b) => {
      const x = key(a), y = key(b);
      if (x === Infinity || y === Infinity) return x === y ? 0 : x === Infinity ? 1 : -1;
      const sign = typeof x === "number" && typeof y === "number"
        ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return falling ? -sign : sign;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      header.querySelector("button").addEventListener("click", () => sort(table, column, header));
    });
  }

  // Claims by verdict: a row whose verdict is not ticked is hidden, and the count is said aloud.
  function filter(group) {
    const rows = [...document.getElementById(group.dataset.filters).tBodies[0].rows];
    const boxes = [...group.querySelectorAll("input")];
    const apply = () => {
      const wanted = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
      for (const row of rows) row.hidden = !wanted.has(row.dataset.verdict);
      const shown = rows.filter((row) => !row.hidden).length;
      group.querySelector("[role=status]").textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
    };
    group.hidden = boxes.length < 2;
    group.addEventListener("change", apply);
    apply();
  }
  document.querySelectorAll("[data-filters]").forEach(filter);

  Promise.all([...document.querySelectorAll("figure")].map(draw)).then(() => {
    document.documentElement.dataset.ready = "true";
  });
})();
