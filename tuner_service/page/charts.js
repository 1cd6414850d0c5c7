// The study's charts. Each takes what the service answered and a holder to draw into.

import { h, s } from "./dom.js";
import { WORDS, arrow, better, number } from "./format.js";
import { axes, dots, extent, hover, line, robust, scale, steps } from "./plot.js";
import { nothing } from "./parts.js";

const SHADES = 7;
const MOST_THREADS = 500;
const HEIGHT = (width) => (width < 480 ? 260 : innerWidth > 2000 ? 440 : 340);

export function drawCurves(holder, width, found, { best, direction, pick, chosen }) {
  const curves = found.curves.filter((curve) => curve.values.some((value) => value !== null));
  if (!curves.length) return holder.append(nothing("No trial has reported yet. Curves appear with the first epoch."));
  const height = HEIGHT(width);
  const values = curves.flatMap((curve) => curve.values);
  const last = Math.max(...curves.map((curve) => curve.steps[curve.steps.length - 1]), 2);
  const first = Math.min(...curves.map((curve) => curve.steps[0]));
  const loss = /loss/.test(found.metric) && Math.min(...values.filter((v) => v !== null)) > 0;
  const plot = axes({ width, height, label: `${curves.length} curves of ${found.metric}`,
    x: { domain: [first, last], label: "epoch", whole: true }, y: { domain: loss ? extent(values) : robust(values), log: loss } });
  const path = (curve) => curve.steps.map((step, i) => [plot.X(step), curve.values[i] === null ? NaN : clamp(plot, plot.Y(curve.values[i]))]);
  const rank = (curve) => (curve.number === best ? 3 : chosen.includes(curve.number) ? 2.5 : curve.state === "RUNNING" ? 2 : curve.state === "COMPLETE" ? 1 : 0);
  const points = [];
  for (const curve of [...curves].sort((a, b) => rank(a) - rank(b))) {
    const kind = curve.number === best ? "best" : chosen.includes(curve.number) ? "chosen" : curve.state.toLowerCase();
    const marks = path(curve);
    plot.plot.append(line(marks, kind));
    const end = marks[marks.length - 1];
    if (curve.state === "RUNNING" && Number.isFinite(end[1])) plot.plot.append(s("circle", { cx: end[0], cy: end[1], r: 3, class: "running" }));
    if (curve.state === "PRUNED" && Number.isFinite(end[1])) plot.plot.append(s("circle", { cx: end[0], cy: end[1], r: 2.5, class: "cutoff" }));
    marks.forEach(([x, y], i) => Number.isFinite(y) && points.push([x, y, `#${curve.number} ${WORDS[curve.state]} · epoch ${curve.steps[i]} · ${number(curve.values[i])}`, curve.number]));
  }
  if (found.threshold && found.threshold.steps.length) {
    const bound = found.threshold.steps.map((step, i) => [plot.X(step), clamp(plot, plot.Y(found.threshold.values[i]))]);
    plot.plot.append(line(bound, "threshold"));
  }
  holder.append(plot.svg, legend([["best", `best #${best ?? "–"}`], ["running", "running"], ["complete", "complete"], ["pruned", "pruned"],
    found.threshold && ["threshold", `${found.threshold.pruner} pruner: ${direction === "maximize" ? "below" : "above"} this a trial stops`]]));
  hover(holder, plot.svg, points, pick);
}

const clamp = (plot, y) => Math.min(plot.height - plot.bottom, Math.max(10, y));

export const legend = (entries) => h("ul", { className: "legend" }, entries.filter(Boolean).map(([kind, words]) =>
  h("li", null, h("i", { className: kind }), words)));

export function drawHistory(holder, width, columns, { objective, pick }) {
  const values = columns.values[objective] || [];
  const there = values.map((value, i) => [value, i]).filter(([value]) => value !== null);
  if (!there.length) return holder.append(nothing("No trial has ended with a value yet."));
  const height = HEIGHT(width);
  const direction = columns.directions[objective];
  const metric = columns.metrics[objective];
  const plot = axes({ width, height, label: `${metric} of ${there.length} trials`,
    x: { domain: extent(columns.number), label: "trial", whole: true }, y: { domain: robust(there.map(([value]) => value)) } });
  const place = ([value, i]) => [plot.X(columns.number[i]), clamp(plot, plot.Y(value))];
  const inside = ([value]) => value >= plot.Y.domain[0] && value <= plot.Y.domain[1];
  const beyond = there.filter((one) => !inside(one)).length;
  const of = (state) => there.filter((one) => columns.state[one[1]] === state && inside(one)).map(place);
  plot.plot.append(dots(of("PRUNED"), "pruned"), dots(of("COMPLETE"), "complete"));
  let best = null;
  const record = [];
  for (const [value, i] of there) if (columns.state[i] === "COMPLETE" && (best === null || better(direction, value, best))) {
    best = value;
    record.push([plot.X(columns.number[i]), clamp(plot, plot.Y(value))]);
  }
  if (record.length) plot.plot.append(steps([...record, [plot.width - 12, record[record.length - 1][1]]], "best"));
  const failed = columns.state.map((state, i) => [state, i]).filter(([state]) => state === "FAIL");
  plot.plot.append(dots(failed.map(([, i]) => [plot.X(columns.number[i]), plot.height - plot.bottom]), "failed"));
  holder.append(plot.svg, legend([["best", `best so far ${arrow(direction)}`], ["complete", "complete"], ["pruned", "pruned"], failed.length && ["failed", "failed"],
    beyond && ["none", `${beyond} beyond the scale`]]));
  hover(holder, plot.svg, there.filter(inside).map((one) => [...place(one), `#${columns.number[one[1]]} ${WORDS[columns.state[one[1]]]} · ${number(one[0])}`, columns.number[one[1]]]), pick);
}

// One axis of a parameter or objective: where each trial lies on it, in pixels; null: n/a.
function axis(name, column, range) {
  const there = column.filter((value) => value !== null && value !== undefined);
  const numeric = there.length > 0 && there.every((value) => typeof value === "number");
  if (!numeric) {
    const names = [...new Set(there.map(String))].sort();
    const at = (value) => (value === null || value === undefined ? null : range[0] + ((names.indexOf(String(value)) + 0.5) / names.length) * (range[1] - range[0]));
    return { name, at, names, ticks: names.map((word) => [word, at(word)]) };
  }
  const domain = extent(there);
  const log = domain[0] > 0 && domain[1] / domain[0] > 50;
  const f = scale(domain, range, log);
  return { name, log, f, domain, at: (value) => (value === null || value === undefined ? null : f(value)), ticks: f.ticks(4).map((value) => [number(value, 3), f(value)]) };
}

function shade(columns, objective) {
  const values = columns.values[objective] || [];
  const sorted = values.filter((v, i) => v !== null && columns.state[i] === "COMPLETE").sort((a, b) => a - b);
  return (i) => {
    if (values[i] === null || values[i] === undefined || columns.state[i] === "FAIL") return -1;
    let rank = sorted.findIndex((value) => value >= values[i]) / Math.max(1, sorted.length - 1);
    if (rank < 0) rank = 1;
    if (columns.directions[objective] !== "maximize") rank = 1 - rank;
    return Math.min(SHADES - 1, Math.max(0, Math.floor(rank * SHADES)));
  };
}

export function drawParallel(holder, width, columns, { importances, objective, brush }) {
  const names = Object.keys(columns.parameters);
  if (!columns.number.length || !names.length) return holder.append(nothing("Nothing to compare yet."));
  const order = [...names].sort((a, b) => (importances[b] || 0) - (importances[a] || 0));
  const span = Math.max(width - 4, (order.length + 1) * 96), height = 340;
  const top = 58, bottom = height - 34, rail = height - 12;
  const gap = (span - 130) / order.length;
  const list = [...order.map((name) => axis(name, columns.parameters[name], [bottom, top])),
    axis(columns.metrics[objective], columns.values[objective] || [], [bottom, top])];
  const X = (i) => 52 + i * gap;
  const svg = s("svg", { width: span, height, viewBox: `0 0 ${span} ${height}`, role: "img", "aria-label": "parallel coordinates of all trials" });
  const groups = Array.from({ length: SHADES + 1 }, () => []);
  const colour = shade(columns, objective);
  const drawn = threads(columns, colour);
  drawn.forEach((i) => {
    const d = list.map((one, k) => {
      const value = k < order.length ? columns.parameters[one.name][i] : (columns.values[objective] || [])[i];
      const y = one.at(value);
      return y === null ? (k < order.length ? `${X(k).toFixed(0)} ${rail}` : null) : `${X(k).toFixed(0)} ${y.toFixed(1)}`;
    }).filter(Boolean);
    groups[colour(i) + 1].push(`M${d.join("L")}`);
  });
  groups.forEach((paths, i) => paths.length && svg.append(s("path", { class: `thread shade${i - 1}`, d: paths.join("") })));
  list.forEach((one, k) => svg.append(axisMarks(one, X(k), top, bottom, rail, importances[one.name], k === order.length, columns.parameters[one.name])));
  list.forEach((one, k) => k < order.length && brushing(svg, one, X(k), top, bottom, brush));
  holder.append(h("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Parallel coordinates" }, svg),
    h("p", { className: "dim small" }, "Drag along an axis to filter all of this page. The bar above a parameter is its importance; the rail below is n/a.",
      drawn.length < columns.number.length ? ` Drawn are ${drawn.length} of ${number(columns.total)}: some of the best, and some of the others.` : ""));
}

// Which trials are drawn: more than some hundred would be one surface.
function threads(columns, colour) {
  const all = columns.number.map((_, i) => i);
  if (all.length <= MOST_THREADS) return all;
  const thinned = (some, most) => some.filter((_, k) => k % Math.ceil(some.length / most) === 0);
  const top = all.filter((i) => colour(i) === SHADES - 1);
  return [...thinned(all.filter((i) => colour(i) < SHADES - 1), (MOST_THREADS * 4) / 5), ...thinned(top, MOST_THREADS / 5)];
}

function axisMarks(one, x, top, bottom, rail, importance, isValue, column) {
  const group = s("g", { class: "axis" });
  group.append(s("line", { x1: x, x2: x, y1: top, y2: bottom, class: "upright" }),
    s("text", { x, y: 16, "text-anchor": "middle", class: isValue ? "name value" : "name" }, short(one.name, 15), s("title", null, one.name)));
  if (importance !== undefined) group.append(s("rect", { x: x - 30, y: 24, width: 60, height: 5, rx: 2.5, class: "trough" }),
    s("rect", { x: x - 30, y: 24, width: Math.max(2, 60 * importance), height: 5, rx: 2.5, class: "weight" }),
    s("text", { x, y: 44, "text-anchor": "middle", class: "label" }, `${Math.round(100 * importance)}%`));
  one.ticks.forEach(([words, y]) => group.append(s("text", { x: x + 7, y: y + 4, class: "halo" }, short(words, 11))));
  if (!isValue && column.some((value) => value === null)) group.append(s("text", { x, y: rail + 4, "text-anchor": "middle", class: "halo" }, "n/a"));
  return group;
}

const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function brushing(svg, one, x, top, bottom, brush) {
  const box = s("rect", { x: x - 10, width: 20, y: 0, height: 0, class: "brush", visibility: "hidden" });
  const area = s("rect", { x: x - 14, y: top - 6, width: 28, height: bottom - top + 12, class: "grab" });
  let from = null;
  const at = (event) => Math.min(bottom, Math.max(top, event.clientY - svg.getBoundingClientRect().top));
  area.addEventListener("pointerdown", (event) => { from = at(event); area.setPointerCapture(event.pointerId); });
  area.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const now = at(event);
    box.setAttribute("visibility", "visible");
    box.setAttribute("y", Math.min(from, now));
    box.setAttribute("height", Math.abs(from - now));
  });
  area.addEventListener("pointerup", (event) => {
    const to = at(event), begun = from;
    from = null;
    box.setAttribute("visibility", "hidden");
    const low = Math.max(begun, to), high = Math.min(begun, to);
    if (one.names) {
      const near = one.names.filter((name) => { const y = one.at(name); return low - high < 4 ? Math.abs(y - begun) < 14 : y <= low && y >= high; });
      if (near.length === 1) brush([`${one.name}:${/[\s'"\\]/.test(near[0]) ? `'${near[0].replaceAll("'", "'\"'\"'")}'` : near[0]}`], one.name);
    } else if (low - high >= 4) {
      const round = (value) => String(Number(value.toPrecision(4)));
      brush([`${one.name}>=${round(one.f.inverse(low))}`, `${one.name}<=${round(one.f.inverse(high))}`], one.name);
    }
  });
  svg.append(box, area);
}

export function drawScatter(holder, width, columns, { x, y, objective, pick }) {
  const column = (name) => columns.parameters[name] || columns.values[columns.metrics.indexOf(name)] || [];
  const height = Math.min(400, Math.max(260, width * 0.6));
  const a = axis(x, column(x), [70, width - 16]), b = axis(y, column(y), [height - 40, 12]);
  const found = columns.number.map((_, i) => i).filter((i) => a.at(column(x)[i]) !== null && b.at(column(y)[i]) !== null);
  if (!found.length) return holder.append(nothing("No trial has both."));
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${y} by ${x}, coloured by ${columns.metrics[objective]}` });
  const colour = shade(columns, objective);
  const grid = s("g", { class: "axis", "aria-hidden": "true" });
  a.ticks.forEach(([words, at]) => grid.append(s("text", { x: at, y: height - 20, "text-anchor": "middle" }, short(words, 10))));
  b.ticks.forEach(([words, at]) => grid.append(s("line", { x1: 70, x2: width - 16, y1: at, y2: at, class: "gridline" }), s("text", { x: 62, y: at + 4, "text-anchor": "end" }, short(words, 9))));
  grid.append(s("text", { x: width - 16, y: height - 4, "text-anchor": "end", class: "label" }, x));
  svg.append(contour(a, b, column(x), column(y), columns.values[objective] || [], columns, width, height), grid);
  const spread = (i, k) => ((i * 7919 * (k + 1)) % 13) - 6;  // choices lie in bands, not on one line
  const point = (i) => [a.at(column(x)[i]) + (a.names ? spread(i, 0) : 0), b.at(column(y)[i]) + (b.names ? spread(i, 1) : 0)];
  for (let level = -1; level < SHADES; level++) {
    const some = found.filter((i) => colour(i) === level);
    if (some.length) svg.append(dots(some.map(point), `${found.length > 1000 ? "" : "big "}shade${level}`));
  }
  holder.append(svg, h("p", { className: "dim small" }, `Darker is better ${arrow(columns.directions[objective])} ${columns.metrics[objective]}; grey has no value.`));
  hover(holder, svg, found.map((i) => [...point(i), `#${columns.number[i]} · ${x} ${number(column(x)[i])} · ${y} ${number(column(y)[i])} · ${number((columns.values[objective] || [])[i])}`, columns.number[i]]), pick);
}

// The surface beneath the points: values averaged by nearness, on a coarse grid.
function contour(a, b, xs, ys, values, columns, width, height) {
  const group = s("g", { class: "surface" });
  if (a.names || b.names) return group;
  const known = xs.map((_, i) => i).filter((i) => values[i] !== null && values[i] !== undefined && columns.state[i] === "COMPLETE" && xs[i] !== null && ys[i] !== null).slice(-400);
  if (known.length < 10) return group;
  const sorted = known.map((i) => values[i]).sort((m, n) => m - n);
  const up = columns.directions[0] === "maximize";
  const cell = 14, radius = 2 * 34 ** 2;
  const cells = Array.from({ length: SHADES }, () => "");
  const marks = known.map((i) => [a.at(xs[i]), b.at(ys[i]), values[i]]);
  for (let px = 70; px < width - 16; px += cell) for (let py = 12; py < height - 40; py += cell) {
    let sum = 0, weight = 0;
    for (const [mx, my, value] of marks) {
      const w = Math.exp(-((mx - px - cell / 2) ** 2 + (my - py - cell / 2) ** 2) / radius);
      sum += w * value;
      weight += w;
    }
    if (weight < 0.25) continue;
    let rank = sorted.findIndex((value) => value >= sum / weight) / sorted.length;
    if (rank < 0) rank = 1;
    if (!up) rank = 1 - rank;
    cells[Math.min(SHADES - 1, Math.floor(rank * SHADES))] += `M${px} ${py}h${Math.min(cell, width - 16 - px)}v${Math.min(cell, height - 40 - py)}h${-Math.min(cell, width - 16 - px)}z`;
  }
  cells.forEach((d, i) => d && group.append(s("path", { d, class: `fill${i}` })));
  return group;
}

export function drawPareto(holder, width, columns, { pick }) {
  const [xs, ys] = columns.values;
  const both = columns.number.map((_, i) => i).filter((i) => columns.state[i] === "COMPLETE" && xs[i] !== null && ys[i] !== null);
  if (!both.length) return holder.append(nothing("No trial is complete yet."));
  const height = Math.min(400, Math.max(260, width * 0.6));
  const plot = axes({ width, height, label: "Pareto front", x: { domain: robust(both.map((i) => xs[i])), label: `${columns.metrics[0]} ${arrow(columns.directions[0])}` },
    y: { domain: robust(both.map((i) => ys[i])) } });
  const sign = columns.directions.map((direction) => (direction === "maximize" ? -1 : 1));
  const sorted = [...both].sort((i, j) => sign[0] * (xs[i] - xs[j]) || sign[1] * (ys[i] - ys[j]));
  let least = Infinity;
  const front = columns.values.length > 2 ? [] : sorted.filter((i) => { const fits = sign[1] * ys[i] < least; if (fits) least = sign[1] * ys[i]; return fits; });
  const at = (i) => [Math.max(plot.left, Math.min(width - 12, plot.X(xs[i]))), clamp(plot, plot.Y(ys[i]))];
  plot.plot.append(dots(both.map(at), "complete"), steps(front.map(at), "best"), dots(front.map(at), "big best"));
  holder.append(plot.svg, legend([["best", `${front.length} on the front`], ["complete", `${columns.metrics[1]} ${arrow(columns.directions[1])} upright`]]));
  hover(holder, plot.svg, both.map((i) => [...at(i), `#${columns.number[i]} · ${number(xs[i])} · ${number(ys[i])}`, columns.number[i]]), pick);
}
