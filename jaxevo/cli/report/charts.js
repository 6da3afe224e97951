"use strict";
// Draws each chart's numbers as SVG; a pointer over it reads the curves at the nearest x.
(function () {
  const NS = "http://www.w3.org/2000/svg";
  const HEIGHT = 260, LEFT = 62, RIGHT = 14, TOP = 12, BOTTOM = 40;

  function part(parent, name, attributes, text) {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    parent.appendChild(node);
    return node;
  }

  function shown(value) {
    if (value === null) return "not finite";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  }

  function ticks(low, high, log) {
    if (log) {
      const found = [];
      const span = Math.log10(high / low);
      for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
        for (const m of span < 2.5 ? [1, 2, 5] : [1]) {
          const tick = m * Math.pow(10, e);
          if (tick >= low && tick <= high) found.push(tick);
        }
      return found;
    }
    const rough = (high - low) / 5, unit = Math.pow(10, Math.floor(Math.log10(rough)));
    const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough);
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return found;
  }

  function draw(figure, chart) {
    figure.querySelectorAll("svg, .tip").forEach((old) => old.remove());
    const width = Math.max(280, figure.clientWidth);
    const svg = part(figure, "svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
    const levels = Object.entries(chart.levels);
    const ys = chart.curves.flatMap((c) => [...c.low, ...c.high]).concat(levels.map((l) => l[1]))
      .filter((y) => y !== null);
    const xs = chart.curves.flatMap((c) => c.x);
    if (!ys.length) return;
    let low = Math.min(...ys), high = Math.max(...ys);
    const log = low > 0 && high / low > 50;
    if (low === high) { low -= Math.abs(low) || 1; high += Math.abs(high) || 1; }
    const pad = log ? Math.pow(high / low, 0.04) : (high - low) * 0.04;
    if (log) { low /= pad; high *= pad; } else { low -= pad; high += pad; }
    const x0 = Math.min(...xs), x1 = Math.max(...xs);
    const onX = (x) => LEFT + ((x - x0) / (x1 - x0 || 1)) * (width - LEFT - RIGHT);
    const share = (y) => log ? Math.log(y / low) / Math.log(high / low) : (y - low) / (high - low);
    const onY = (y) => HEIGHT - BOTTOM - share(y) * (HEIGHT - TOP - BOTTOM);

    for (const y of ticks(low, high, log)) {
      part(svg, "line", { x1: LEFT, x2: width - RIGHT, y1: onY(y), y2: onY(y), class: "grid" });
      part(svg, "text", { x: LEFT - 8, y: onY(y) + 4, "text-anchor": "end" }, shown(y));
    }
    for (const x of ticks(x0, x1 || 1, false).filter((_, i, all) => width > 500 || i % 2 === 0))
      part(svg, "text", { x: onX(x), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, shown(x));
    part(svg, "text", { x: width - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, chart.x);
    for (const [name, y] of levels) {
      part(svg, "line", { x1: LEFT, x2: width - RIGHT, y1: onY(y), y2: onY(y), class: "level" });
      part(svg, "text", { x: width - RIGHT - 4, y: onY(y) - 4, "text-anchor": "end" }, name);
    }
    chart.curves.forEach((curve, i) => {
      const colour = `var(--c${i % 6})`;
      const kept = curve.x.map((x, j) => j).filter((j) => curve.mean[j] !== null);
      const spread = kept.some((j) => curve.low[j] !== curve.high[j]);
      if (spread) {
        const band = kept.filter((j) => curve.low[j] !== null && curve.high[j] !== null);
        const points = band.map((j) => `${onX(curve.x[j])},${onY(curve.high[j])}`)
          .concat(band.reverse().map((j) => `${onX(curve.x[j])},${onY(curve.low[j])}`));
        part(svg, "polygon", { points: points.join(" "), fill: colour, opacity: 0.16 });
      }
      const line = kept.map((j) => `${onX(curve.x[j])},${onY(curve.mean[j])}`).join(" ");
      part(svg, "polyline", {
        points: line, fill: "none", stroke: colour, "stroke-width": 1.8,
        "stroke-dasharray": ["none", "7 3", "2 3", "8 3 2 3"][Math.floor(i / 6) % 4],
      });
    });
    const cursor = part(svg, "line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "level", opacity: 0 });
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    figure.appendChild(tip);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = x0 + (((event.clientX - box.left) / box.width) * width - LEFT)
        / (width - LEFT - RIGHT) * (x1 - x0);
      const lines = chart.curves.map((curve) => {
        let best = 0;
        curve.x.forEach((x, j) => {
          if (Math.abs(x - at) < Math.abs(curve.x[best] - at)) best = j;
        });
        const range = curve.low[best] === curve.high[best] ? ""
          : ` [${shown(curve.low[best])}, ${shown(curve.high[best])}]`;
        return { x: curve.x[best], text: `${curve.name}: ${shown(curve.mean[best])}${range}` };
      });
      tip.textContent = "";
      for (const text of [`${chart.x} ${shown(lines[0].x)}`, ...lines.map((l) => l.text)]) {
        const row = document.createElement("div");
        row.textContent = text;
        tip.appendChild(row);
      }
      tip.hidden = false;
      const left = event.clientX - box.left + 14;
      tip.style.left = `${Math.max(0, Math.min(left, box.width - tip.offsetWidth))}px`;
      tip.style.top = `${svg.offsetTop + 8}px`;
      const place = onX(lines[0].x);
      cursor.setAttribute("x1", place);
      cursor.setAttribute("x2", place);
      cursor.setAttribute("opacity", 1);
    });
    svg.addEventListener("pointerleave", () => {
      tip.hidden = true;
      cursor.setAttribute("opacity", 0);
    });
  }

  function start(figure) {
    const chart = JSON.parse(figure.querySelector("script").textContent);
    const legend = document.createElement("div");
    legend.className = "legend";
    chart.curves.forEach((curve, i) => {
      const entry = document.createElement("span");
      entry.style.color = `var(--c${i % 6})`;
      entry.textContent = curve.name;
      legend.appendChild(entry);
    });
    if (chart.curves.length > 1 || chart.curves[0].name !== "training") figure.appendChild(legend);
    let drawn = 0; // the width that it was drawn for
    const redraw = () => {
      if (figure.clientWidth === drawn) return;
      drawn = figure.clientWidth;
      if (drawn) draw(figure, chart);
    };
    new ResizeObserver(() => requestAnimationFrame(redraw)).observe(figure);
  }

  document.querySelectorAll(".chart").forEach(start);
})();
