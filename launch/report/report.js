// Values under the pointer, and tokens or time in place of steps.  The page is whole without it.
"use strict";
const LEFT = 66, RIGHT = 624, TOP = 10, BOTTOM = 214, EDGE = 610;
const runs = JSON.parse(document.getElementById("scales").textContent);
const longest = 3600 * Math.max(...runs.map(run => run.hours[run.hours.length - 1]), 0);
const [unit, seconds] = [["hours", 3600], ["minutes", 60], ["seconds", 1]].find(([, size]) => longest >= 3 * size)
  || ["seconds", 1];
for (const run of runs) run.hours = run.hours.map(hours => hours * 3600 / seconds);
const names = {step: "step", tokens: "tokens", hours: unit + " of training"};
let axis = "step";

const short = v => {
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(v) >= size) return +(v / size).toPrecision(4) + letter;
  return String(+v.toPrecision(4));
};

// Of a step of a run: its tokens or hours, between those that are known.
function scaled(run, step) {
  const scale = runs[run];
  if (axis === "step" || !scale) return step;
  const steps = scale.step, values = scale[axis];
  let high = steps.findIndex(s => s >= step);
  if (high < 0) high = steps.length - 1;
  const low = Math.max(high - 1, 0), span = steps[high] - steps[low];
  return span ? values[low] + (values[high] - values[low]) * (step - steps[low]) / span : values[high] || 0;
}

function ticks(high, about) {  // there is no half step, and no half token
  const rough = Math.max(high / about, axis === "hours" ? 0 : 1), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= rough);
  return [...Array(Math.floor(high / step + 1e-9) + 1).keys()].map(n => n * step);
}

const numbers = text => text ? text.split(" ").map(Number) : [];

function redraw(svg) {
  const curves = [...svg.querySelectorAll(".curve")];
  const last = Math.max(...curves.map(c => scaled(c.dataset.run, Math.max(...numbers(c.dataset.x)))), 1e-9);
  const high = axis === "step" ? Number(svg.dataset.last) : last;
  const place = (run, step) => LEFT + scaled(run, step) / high * (RIGHT - LEFT);
  for (const curve of curves) {
    const xs = numbers(curve.dataset.x).map(x => place(curve.dataset.run, x).toFixed(1));
    const line = curve.querySelector("polyline");
    if (line) line.setAttribute("points", line.getAttribute("points").split(" ")
      .map((point, n) => xs[n] + "," + point.split(",")[1]).join(" "));
    curve.querySelectorAll("circle").forEach((dot, n) => dot.setAttribute("cx", xs[n]));
  }
  const run = curves[0].dataset.run;
  for (const line of svg.querySelectorAll(".event"))
    for (const end of ["x1", "x2"]) line.setAttribute(end, place(run, Number(line.dataset.step)).toFixed(1));
  svg.querySelector(".columns").replaceChildren(...ticks(high, 7).map(value => {
    const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
    const x = LEFT + value / high * (RIGHT - LEFT);
    text.setAttribute("x", x); text.setAttribute("y", BOTTOM + 16);
    text.setAttribute("text-anchor", x > EDGE ? "end" : "middle"); text.textContent = short(value);
    return text;
  }));
  svg.querySelector(".below").textContent = names[axis];
}

for (const choice of document.querySelectorAll("input[name=axis]"))
  choice.addEventListener("change", () => {
    axis = choice.value;
    document.querySelectorAll("svg[data-last]").forEach(redraw);
  });

const tip = document.getElementById("tip");
for (const svg of document.querySelectorAll("figure > svg[data-unit]")) {
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  line.setAttribute("class", "pointer"); line.setAttribute("y1", TOP); line.setAttribute("y2", BOTTOM);
  line.style.display = "none"; svg.append(line);
  svg.addEventListener("pointerleave", () => { tip.style.display = line.style.display = "none"; });
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * 640 / box.width;
    const found = [];
    for (const curve of svg.querySelectorAll(".curve:not([data-faint])")) {
      const mark = curve.querySelector("polyline"), dots = [...curve.querySelectorAll("circle")];
      const places = mark ? mark.getAttribute("points").split(" ").map(p => parseFloat(p))
        : dots.map(dot => Number(dot.getAttribute("cx")));
      let near = 0;
      places.forEach((p, n) => { if (Math.abs(p - x) < Math.abs(places[near] - x)) near = n; });
      if (!places.length || Math.abs(places[near] - x) > 40) continue;
      found.push({place: places[near], name: curve.dataset.name, colour: (mark || dots[0]).getAttribute("class"),
        x: numbers(curve.dataset.x)[near], y: curve.dataset.y.split(" ")[near], run: curve.dataset.run});
    }
    if (!found.length || x < LEFT) { tip.style.display = line.style.display = "none"; return; }
    found.sort((a, b) => Math.abs(a.place - x) - Math.abs(b.place - x));
    line.setAttribute("x1", found[0].place); line.setAttribute("x2", found[0].place); line.style.display = "";
    const head = document.createElement("div");
    head.textContent = svg.dataset.last
      ? names[axis] + " " + short(scaled(found[0].run, found[0].x)) + (axis === "step" ? "" : ", step " + found[0].x)
      : svg.querySelector(".below").textContent;
    tip.replaceChildren(head, ...found.map(one => {
      const row = document.createElement("div");
      row.className = one.colour; row.textContent = one.name + ": " + one.y;
      return row;
    }));
    tip.style.display = "block";
    const wide = tip.offsetWidth, right = event.clientX + 16 + wide < innerWidth;
    tip.style.left = (right ? event.clientX + 16 : event.clientX - 16 - wide) + "px";
    tip.style.top = Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 4) + "px";
  });
}
