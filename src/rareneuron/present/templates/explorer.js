// The step slider and the neuron explorer. No request, no HTML from text: everything is put in by textContent.
(() => {
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const { steps, neurons, details } = data;
  const byId = (id) => document.getElementById(id);
  document.documentElement.classList.add("js");

  // --- elements ----------------------------------------------------------------------------------------------------
  const SVG = "http://www.w3.org/2000/svg";
  function filled(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children.flat(3).filter((child) => child !== null && child !== undefined));
    return node;
  }
  const element = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
  const shape = (tag, attributes, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

  // --- numbers, as present/wording.py writes them ------------------------------------------------------------------
  const NOTHING = "–";
  const superscript = (n) => String(n).replace(/[-0-9]/g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);
  const powerOfTen = (n) => "10" + superscript(n);
  const whole = (n) => n.toLocaleString("en-US");
  function significant(x, { digits = 3, sign = false } = {}) {
    if (x === null || x === undefined || !Number.isFinite(x)) return NOTHING;
    const size = Math.abs(x);
    let text = "0";
    if (size > 0 && size < 1e-4) {
      const exponent = Math.floor(Math.log10(size));
      text = (x / 10 ** exponent).toFixed(digits - 1) + " × " + powerOfTen(exponent);
    } else if (size >= 10 ** digits) text = whole(Math.round(x));
    else if (size > 0) text = x.toPrecision(digits);
    return ((sign && x > 0 ? "+" : "") + text).replaceAll("-", "−");
  }
  function short(x) {
    if (x === 0) return "0";
    if (Math.abs(x) >= 1e-4) return whole10(x);
    const exponent = Math.floor(Math.log10(Math.abs(x)) + 1e-9);
    const factor = String(Number((x / 10 ** exponent).toPrecision(3))).replace("-", "−");
    return factor === "1" ? powerOfTen(exponent) : factor + "×" + powerOfTen(exponent);
  }
  const whole10 = (x) => Number(x.toPrecision(6)).toLocaleString("en-US", { maximumFractionDigits: 8 }).replace("-", "−");
  function scaleOf(columns) {
    let largest = 0;
    for (const column of columns) for (const x of column || []) if (x !== null) largest = Math.max(largest, Math.abs(x));
    return largest > 0 ? 3 * Math.floor(Math.log10(largest) / 3) : 0;
  }
  const unitOf = (exponent) => (exponent === 0 ? "nats" : powerOfTen(exponent) + " nats");

  // --- charts ------------------------------------------------------------------------------------------------------
  const SCALES = {
    linear: { to: (x) => x, from: (u) => u },
    log: { to: Math.log10, from: (u) => 10 ** u },
    step: { to: (x) => Math.log1p(x), from: (u) => Math.expm1(u) }, // log that holds step 0
  };
  function ticksOf(kind, low, high, room) {
    const most = Math.max(2, Math.floor(room));
    if (kind === "log") {
      const first = Math.ceil(low - 1e-9), last = Math.floor(high + 1e-9);
      const stride = Math.max(1, Math.ceil((last - first + 1) / most));
      const out = [];
      for (let e = first; e <= last; e += stride) out.push(10 ** e);
      if (high - low < 2) {
        const finer = [];
        for (let e = Math.floor(low); e <= Math.ceil(high); e++) {
          for (const m of [1, 2, 5]) if (Math.log10(m) + e >= low && Math.log10(m) + e <= high) finer.push(m * 10 ** e);
        }
        if (finer.length > out.length && finer.length <= most + 2) return finer;
        if (out.length < 2) return linearTicks(10 ** low, 10 ** high, most);
      }
      return out;
    }
    if (kind === "step") {
      const there = steps.map((s) => s.step).filter((s) => s !== null);
      const gap = (high - low) / most;
      const out = [];
      for (const s of there) {
        const u = Math.log1p(s);
        if (u >= low - 1e-9 && u <= high + 1e-9 && (!out.length || u - Math.log1p(out[out.length - 1]) >= gap)) out.push(s);
      }
      return out;
    }
    return linearTicks(low, high, most);
  }
  function linearTicks(low, high, most) {
    const raw = (high - low) / most || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const size = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    const out = [];
    for (let i = Math.ceil(low / size - 1e-9); i * size <= high + 1e-9 * size; i++) out.push(i * size);
    return out;
  }

  // A chart draws `spec()`: { lines: [{ x, y, low, high, main }], bars, marks: [{ x, label }], x, y, xLabel, yLabel,
  // told: (line, i) => text, pick: (i) => void }. The main line is the one that is read out.
  function chart(host, title, height, spec) {
    const readout = element("output", { class: "readout" });
    const plot = element("div", { class: "plot" });
    const button = (label, text, act) => element("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
    const tools = element("span", { class: "tools" },
      button(`Zoom in: ${title}`, "+", () => zoom(0.5)), button(`Zoom out: ${title}`, "−", () => zoom(2)),
      button(`Whole range: ${title}`, "↺", () => { range = null; draw(); }));
    host.replaceChildren(element("figcaption", { class: "chart-head" }, element("b", {}, title), tools), plot, readout);
    let range = null, at = null, view = null, drag = null;

    function zoom(factor) {
      if (!view) return;
      const { x0, x1, whole: [a, b] } = view;
      const focus = at !== null && view.main ? view.sx.to(view.main.x[at]) : (x0 + x1) / 2;
      const half = ((x1 - x0) * factor) / 2;
      range = 2 * half >= b - a ? null : [Math.max(a, Math.min(focus - half, b - 2 * half)), 0];
      if (range) range[1] = range[0] + 2 * half;
      draw();
    }
    function extent(values) {
      let low = Infinity, high = -Infinity;
      for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
      return [low, high];
    }
    function draw() {
      const s = spec();
      const W = Math.max(260, Math.round(plot.clientWidth || 600)), H = height;
      const box = { left: 58, right: W - 10, top: 10, bottom: H - 40 };
      const sx = SCALES[s.x], sy = SCALES[s.y];
      const all = s.lines.flatMap((l) => l.x.map(sx.to));
      if (!all.length) {
        view = null;
        plot.replaceChildren(element("p", { class: "soft" }, s.empty || "There is nothing to draw."));
        return;
      }
      let whole = extent(all);
      if (whole[0] === whole[1]) whole = [whole[0] - 0.5, whole[1] + 0.5];
      const [x0, x1] = range || whole;
      const seen = s.lines.flatMap((l) => l.y.filter((_, i) => { const u = sx.to(l.x[i]); return u >= x0 - 1e-9 && u <= x1 + 1e-9; })).map(sy.to).filter(Number.isFinite);
      let [y0, y1] = seen.length ? extent(seen) : [0, 1];
      if (s.fromZero) { y0 = Math.min(0, y0); y1 = Math.max(0, y1); }
      const margin = (y1 - y0 || 1) * 0.06;
      y0 -= s.fromZero && y0 === 0 ? 0 : margin;
      y1 += margin;
      const X = (v) => box.left + ((sx.to(v) - x0) / (x1 - x0)) * (box.right - box.left);
      const Y = (v) => box.bottom - ((sy.to(v) - y0) / (y1 - y0)) * (box.bottom - box.top);
      const clip = `clip-${host.id}`;
      const root = shape("svg", {
        viewBox: `0 0 ${W} ${H}`, role: "img", tabindex: "0", class: "chart",
        "aria-label": `${title}. ${s.xLabel} against ${s.yLabel}. Arrow keys read points out.`,
      }, shape("clipPath", { id: clip }, shape("rect", { x: box.left - 3, y: box.top - 4, width: box.right - box.left + 6, height: box.bottom - box.top + 8 })));
      for (const t of ticksOf(s.x, x0, x1, (box.right - box.left) / 70)) {
        root.append(shape("line", { class: "grid", x1: X(t), x2: X(t), y1: box.top, y2: box.bottom }), shape("text", { class: `tick x ${X(t) > W - 24 ? "end" : "middle"}`, x: Math.min(X(t), W - 2), y: box.bottom + 15 }, short(t)));
      }
      for (const t of ticksOf(s.y, y0, y1, (box.bottom - box.top) / 30)) {
        root.append(shape("line", { class: "grid", x1: box.left, x2: box.right, y1: Y(t), y2: Y(t) }), shape("text", { class: "tick end", x: box.left - 6, y: Y(t) + 4 }, short(t)));
      }
      root.append(shape("text", { class: "label middle", x: (box.left + box.right) / 2, y: H - 6 }, s.xLabel));
      const inner = shape("g", { "clip-path": `url(#${clip})` });
      root.append(inner);
      let main = null;
      for (const l of s.lines) {
        if (l.bars) {
          const width = (box.right - box.left) / ((x1 - x0) / l.bars);
          l.x.forEach((x, i) => inner.append(shape("rect", { class: "bar", x: X(x) - width / 2 + 0.5, width: Math.max(1, width - 1), y: Y(l.y[i]), height: Math.max(0, Y(Math.max(0, y0)) - Y(l.y[i])) })));
        } else {
          const points = l.x.map((x, i) => [X(x), Y(l.y[i])]).filter((p) => p.every(Number.isFinite));
          if (l.low) {
            const up = l.x.map((x, i) => `${X(x).toFixed(1)},${Y(l.high[i]).toFixed(1)}`);
            const down = l.x.map((x, i) => `${X(x).toFixed(1)},${Y(l.low[i]).toFixed(1)}`).reverse();
            inner.append(shape("polygon", { class: "band", points: [...up, ...down].join(" ") }));
          }
          inner.append(shape("polyline", { class: `line ${l.kind || (l.main ? "main" : "faint")}`, points: points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" ") }));
          if (l.dots) points.forEach(([x, y]) => inner.append(shape("circle", { class: `dot ${l.kind || "main"}`, cx: x, cy: y, r: 2.5 })));
        }
        if (l.main) main = l;
      }
      for (const m of s.marks || []) {
        const x = X(m.x);
        if (x < box.left || x > box.right) continue;
        const late = x > (box.left + box.right) / 2;
        inner.append(shape("line", { class: "mark", x1: x, x2: x, y1: box.top, y2: box.bottom }),
          shape("text", { class: `tick ${late ? "end" : ""}`, x: x + (late ? -4 : 4), y: box.top + 10 }, m.label));
      }
      if (s.zero && y0 < 0 && y1 > 0) inner.append(shape("line", { class: "zero", x1: box.left, x2: box.right, y1: Y(0), y2: Y(0) }));
      const cursor = shape("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
      const dot = shape("circle", { class: "cursor-dot", r: 4, visibility: "hidden" });
      const brush = shape("rect", { class: "brush", y: box.top, height: box.bottom - box.top, visibility: "hidden" });
      inner.append(cursor, dot, brush);
      plot.replaceChildren(root);
      view = { s, x0, x1, whole, X, Y, sx, sy, main, box, W, cursor, dot, brush };
      if (at !== null && main) read(Math.min(at, main.x.length - 1)); else readout.textContent = s.idle || "\u00a0";

      const place = (event) => { const r = root.getBoundingClientRect(); return ((event.clientX - r.left) / r.width) * W; };
      root.addEventListener("pointermove", (event) => {
        const x = place(event);
        if (drag !== null) {
          brush.setAttribute("visibility", "visible");
          brush.setAttribute("x", Math.min(drag, x));
          brush.setAttribute("width", Math.abs(x - drag));
        }
        nearest(x);
      });
      root.addEventListener("pointerdown", (event) => { if (event.button === 0) drag = place(event); });
      root.addEventListener("pointerup", (event) => {
        if (drag === null) return;
        const [a, b] = [drag, place(event)].sort((p, q) => p - q);
        drag = null;
        if (b - a > 8) {
          const u = (x) => Math.min(x1, Math.max(x0, x0 + ((x - box.left) / (box.right - box.left)) * (x1 - x0)));
          if (u(b) - u(a) > (whole[1] - whole[0]) / 500) range = [u(a), u(b)];
          draw();
        } else { brush.setAttribute("visibility", "hidden"); if (s.pick && at !== null) s.pick(at); }
      });
      root.addEventListener("pointerleave", () => { drag = null; brush.setAttribute("visibility", "hidden"); forget(); });
      root.addEventListener("dblclick", () => { range = null; draw(); });
      root.addEventListener("keydown", (event) => {
        if (!main) return;
        const n = main.x.length;
        const next = { ArrowRight: (at ?? -1) + 1, ArrowLeft: (at ?? n) - 1, Home: 0, End: n - 1 }[event.key];
        if (next !== undefined) { event.preventDefault(); read(Math.max(0, Math.min(n - 1, next))); }
        if (event.key === "Enter" && s.pick && at !== null) s.pick(at);
        if (event.key === "Escape") { range = null; forget(); draw(); }
      });
    }
    function nearest(x) {
      if (!view || !view.main) return;
      let best = 0, least = Infinity;
      view.main.x.forEach((v, i) => { const d = Math.abs(view.X(v) - x); if (d < least) { least = d; best = i; } });
      read(best);
    }
    function read(i) {
      at = i;
      const { main, X, Y, cursor, dot, s } = view;
      const x = X(main.x[i]), y = Y(main.y[i]);
      cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); cursor.setAttribute("visibility", "visible");
      if (Number.isFinite(y)) { dot.setAttribute("cx", x); dot.setAttribute("cy", y); dot.setAttribute("visibility", "visible"); }
      readout.textContent = s.told(main, i);
    }
    function forget() {
      at = null;
      if (!view) return;
      view.cursor.setAttribute("visibility", "hidden");
      view.dot.setAttribute("visibility", "hidden");
      readout.textContent = view.s.idle || "\u00a0";
    }
    let drawn = 0;
    new ResizeObserver(() => { if (plot.clientWidth && plot.clientWidth !== drawn) { drawn = plot.clientWidth; draw(); } }).observe(plot);
    return { draw, whole: () => { range = null; at = null; draw(); } };
  }

  // --- the step slider ---------------------------------------------------------------------------------------------
  let current = steps.length - 1;
  const nameOf = (index) => `${data.layer}.${index}`;
  const lines = (pick, more) => {
    const out = steps.map((s, i) => ({ x: pick(s)[0], y: pick(s)[1], i })).filter((l) => l.i !== current);
    out.push({ x: pick(steps[current])[0], y: pick(steps[current])[1], main: true, ...(more || {}) });
    return out;
  };
  const LABEL_SIZE = "mean |Δ| at rare tokens (nats)";
  const dynamics = [
    chart(byId("chart-curve"), "Rank curve", 320, () => {
      const s = steps[current], [x, y, se, index] = s.curve;
      const marks = [["plateau to here", s.boundaries[0]], ["decay from here", s.boundaries[1]]].filter(([, r]) => r !== null).map(([label, r]) => ({ label, x: r }));
      const known = se.every((e) => e !== null);
      return {
        lines: lines((t) => t.curve, known ? { high: y.map((v, i) => v + se[i]), low: y.map((v, i) => (v > se[i] ? v - se[i] : v / 10)) } : {}),
        x: "log", y: "log", xLabel: "rank of the neuron", yLabel: LABEL_SIZE, marks,
        idle: LABEL_SIZE + " by rank; drag to zoom, click to open a neuron",
        told: (_, i) => `rank ${whole(x[i])}: neuron ${nameOf(index[i])}, mean |Δ| ${significant(y[i])} ± ${significant(se[i], { digits: 2 })} nats`,
        pick: current === steps.length - 1 ? (i) => open(index[i], true) : null,
        empty: "Every neuron's mean |Δ| is zero at this step.",
      };
    }),
    chart(byId("chart-slope"), "Local slope κ", 230, () => ({
      lines: lines((t) => t.slope), x: "log", y: "linear", fromZero: true, xLabel: "rank r (slope from r to e · r)", yLabel: "κ",
      idle: "fall of log |Δ| per e-fold of rank; a power law is level",
      told: (l, i) => `rank ${significant(l.x[i])}: κ = ${significant(l.y[i])}`,
      empty: "Too few neurons with an effect for a slope.",
    })),
    chart(byId("chart-density"), "Distribution of effects", 230, () => ({
      lines: lines((t) => t.density), x: "log", y: "linear", fromZero: true, xLabel: LABEL_SIZE, yLabel: "share of neurons per decade",
      idle: "share of neurons per decade of mean |Δ|",
      told: (l, i) => `mean |Δ| ${significant(l.x[i], { digits: 2 })} nats: ${significant(l.y[i], { digits: 2 })} of all neurons per decade`,
      empty: "Every neuron's mean |Δ| is zero.",
    })),
  ];
  const slider = byId("step-slider");
  slider.max = steps.length - 1;
  function showStep(i) {
    current = i;
    const s = steps[i];
    const name = s.step === null ? "final checkpoint" : `step ${s.name}`;
    slider.value = i;
    slider.setAttribute("aria-valuetext", name);
    byId("step-name").textContent = name;
    byId("step-facts").replaceChildren(...[
      ["loss, rare", significant(s.loss_rare, { digits: 4 })], ["loss, common", significant(s.loss_common, { digits: 4 })],
      ["median |Δ|", significant(s.median)], ["largest |Δ|", significant(s.largest)], ["phases", s.phases],
    ].map(([k, v]) => element("div", {}, element("dt", {}, k), element("dd", {}, v))));
    byId("step-back").disabled = i === 0;
    byId("step-on").disabled = i === steps.length - 1;
    for (const c of dynamics) c.draw();
  }
  slider.addEventListener("input", () => showStep(Number(slider.value)));
  byId("step-back").addEventListener("click", () => showStep(Math.max(0, current - 1)));
  byId("step-on").addEventListener("click", () => showStep(Math.min(steps.length - 1, current + 1)));
  if (steps.length === 1) byId("step-control").hidden = true;
  let before = current, closed = [];
  addEventListener("beforeprint", () => {
    before = current;
    showStep(steps.length - 1);
    closed = [...document.querySelectorAll("details:not([open]):not(.twin)")];
    for (const node of closed) node.open = true;
  });
  addEventListener("afterprint", () => { showStep(before); for (const node of closed) node.open = false; });

  // --- the table of neurons ----------------------------------------------------------------------------------------
  const n = neurons.rank.length;
  const scale = scaleOf([neurons.delta, neurons.size, neurons.common_size]);
  const unit = unitOf(scale);
  const inUnit = (x, options) => (x === null ? NOTHING : significant(x / 10 ** scale, options));
  const detailOf = new Map(details ? details.shown.map((index, i) => [index, i]) : []);
  const ROLES = { boosting: "boosting", suppressing: "suppressing", other: "–" };
  const pureNumber = (key, head, note, form) => ({ key, head, note, number: true, value: (i) => neurons[key][i], text: (i) => form(neurons[key][i]) });
  const nats = (sign) => (x) => inUnit(x, { sign });
  const columns = [
    { key: "name", head: "neuron", note: "", value: (i) => i, text: nameOf, rising: true },
    { key: "role", head: "role", note: "", value: (i) => neurons.role[i], text: (i) => ROLES[neurons.role[i]] ?? neurons.role[i], rising: true },
    { ...pureNumber("rank", "rank", "", whole), rising: true },
    pureNumber("delta", "mean Δ", unit, nats(true)),
    {
      key: "interval", head: "95 % interval", note: "sorts by |Δ| / error", number: true,
      value: (i) => (neurons.se[i] ? Math.abs(neurons.delta[i]) / neurons.se[i] : null),
      text: (i) => (neurons.low[i] === null ? NOTHING : `${inUnit(neurons.low[i], { sign: true })} … ${inUnit(neurons.high[i], { sign: true })}`),
    },
    pureNumber("size", "mean |Δ|", unit, nats(false)),
    pureNumber("direct", "direct Δ", unit, nats(true)),
    pureNumber("common_size", "|Δ|, common", unit, nats(false)),
    pureNumber("ratio", "ratio", "rare : common", (x) => significant(x)),
    { key: "kind", head: "kind", note: "", value: (i) => neurons.kind[i] || null, text: (i) => neurons.kind[i] || NOTHING, rising: true },
    pureNumber("w_in", "‖w_in‖", "", (x) => significant(x)),
    pureNumber("w_gate", "‖w_gate‖", "", (x) => significant(x)),
    pureNumber("w_out", "‖w_out‖", "", (x) => significant(x)),
  ].filter((c) => ["name", "interval"].includes(c.key) || neurons[c.key]);
  const PER_PAGE = 20;
  const state = { column: "rank", rising: true, page: 0, open: null };
  let rows = [];

  const searched = new Map();
  function wordsOf(i) { // what the text filter looks in: the neuron's name, tokens it writes, targets of its contexts
    if (!searched.has(i)) {
      const d = detailOf.get(i), found = [nameOf(i)];
      if (d !== undefined) {
        if (details.written) for (const t of details.written[d]) found.push(details.vocabulary[t]);
        for (const c of details.contexts[d]) found.push(details.vocabulary[details.texts[c.text][c.at]]);
      }
      searched.set(i, found.join("\n").toLowerCase());
    }
    return searched.get(i);
  }
  const KINDS = {
    all: () => true,
    boosting: (i) => neurons.role[i] === "boosting",
    suppressing: (i) => neurons.role[i] === "suppressing",
    other: (i) => neurons.role[i] === "other",
    positive: (i) => neurons.delta[i] > 0,
    negative: (i) => neurons.delta[i] < 0,
    clear: (i) => neurons.low[i] !== null && (neurons.low[i] > 0 || neurons.high[i] < 0),
  };
  function refresh() {
    const column = columns.find((c) => c.key === state.column);
    const kind = KINDS[byId("filter-role").value], text = byId("filter-text").value.trim().toLowerCase();
    rows = [];
    for (let i = 0; i < n; i++) if (kind(i) && (!text || wordsOf(i).includes(text))) rows.push(i);
    const sign = state.rising ? 1 : -1;
    rows.sort((a, b) => {
      const p = column.value(a), q = column.value(b);
      if (p === null || q === null) return p === q ? a - b : p === null ? 1 : -1; // what is missing comes last
      return (p < q ? -sign : p > q ? sign : 0) || neurons.rank[a] - neurons.rank[b];
    });
    state.page = Math.min(state.page, Math.max(0, Math.ceil(rows.length / PER_PAGE) - 1));
    render();
  }
  const headRow = byId("neuron-head"), body = byId("neuron-rows");
  headRow.replaceChildren(...columns.map((c) => element("th", { scope: "col", class: c.number ? "number" : "", "data-key": c.key },
    element("button", { type: "button", class: "sort", onclick: () => {
      if (state.column === c.key) state.rising = !state.rising;
      else { state.column = c.key; state.rising = Boolean(c.rising); }
      state.page = 0;
      refresh();
    } }, c.head, element("span", { class: "arrow", "aria-hidden": "true" })), c.note ? element("small", {}, c.note) : null)));
  function render() {
    for (const th of headRow.children) {
      const is = th.dataset.key === state.column;
      if (is) th.setAttribute("aria-sort", state.rising ? "ascending" : "descending"); else th.removeAttribute("aria-sort");
      th.querySelector(".arrow").textContent = is ? (state.rising ? " ↑" : " ↓") : "";
    }
    const from = state.page * PER_PAGE, shown = rows.slice(from, from + PER_PAGE);
    body.replaceChildren(...shown.map((i) => element("tr", { "data-neuron": i, "aria-current": i === state.open ? "true" : null, onclick: () => open(i, true) },
      ...columns.map((c, k) => (k === 0
        ? element("th", { scope: "row" }, element("button", { type: "button", class: "open" }, c.text(i)))
        : element("td", { class: c.number ? "number" : "" }, c.text(i)))))));
    byId("neuron-count").textContent = rows.length ? `${whole(from + 1)}–${whole(from + shown.length)} of ${whole(rows.length)} neurons` : "No neuron passes these filters.";
    byId("page-back").disabled = byId("page-first").disabled = state.page === 0;
    byId("page-on").disabled = byId("page-last").disabled = from + PER_PAGE >= rows.length;
  }
  body.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by || !event.target.matches("button.open")) return;
    event.preventDefault();
    const buttons = [...body.querySelectorAll("button.open")];
    const next = buttons.indexOf(event.target) + by;
    if (buttons[next]) return buttons[next].focus();
    const page = state.page + by;
    if (page < 0 || page * PER_PAGE >= rows.length) return;
    turn(page);
    const now = body.querySelectorAll("button.open");
    now[by > 0 ? 0 : now.length - 1].focus();
  });
  function turn(page) { state.page = page; render(); }
  byId("page-first").addEventListener("click", () => turn(0));
  byId("page-back").addEventListener("click", () => turn(state.page - 1));
  byId("page-on").addEventListener("click", () => turn(state.page + 1));
  byId("page-last").addEventListener("click", () => turn(Math.ceil(rows.length / PER_PAGE) - 1));
  for (const id of ["filter-role", "filter-text"]) byId(id).addEventListener("input", () => { state.page = 0; refresh(); });
  byId("filter-form").addEventListener("submit", (event) => event.preventDefault());
  if (!data.has_groups) for (const value of ["boosting", "suppressing", "other"]) byId("filter-role").querySelector(`[value=${value}]`).remove();

  // --- one neuron --------------------------------------------------------------------------------------------------
  const panel = byId("neuron-panel");
  const alone = (t) => details.names[t] ?? details.vocabulary[t];
  const part = (title, note, ...content) => element("section", { class: "part" }, element("h4", {}, title), note ? element("p", { class: "soft" }, note) : null, ...content);
  const facts = (pairs) => element("dl", { class: "facts" }, ...pairs.filter(([, v]) => v !== NOTHING).map(([k, v]) => element("div", {}, element("dt", {}, k), element("dd", {}, v))));
  const go = (i) => element("a", { class: "link", href: `#${nameOf(i)}` }, nameOf(i));
  const parts = panelParts({ data, element, shape, significant, whole, nameOf, go });

  function open(i, move, at_once) {
    state.open = i;
    const d = detailOf.get(i);
    const place = rows.indexOf(i);
    const beside = (by, label, text) => {
      const other = place < 0 ? undefined : rows[place + by];
      return element("button", { type: "button", "aria-label": label, title: label, disabled: other === undefined, onclick: () => { reveal(other); open(other, true); } }, text);
    };
    const heading = element("h3", { tabindex: "-1", id: "neuron-title" }, `Neuron ${nameOf(i)}`);
    const code = `with rn.ablated(model, run, units="${nameOf(i)}"):`;
    const number = (key, options) => (neurons[key] ? significant(neurons[key][i], options) : NOTHING);
    panel.replaceChildren(...[
      element("div", { class: "panel-head" }, heading, element("a", { class: "permalink", href: `#${nameOf(i)}`, title: "Link to this neuron", "aria-label": `Link to neuron ${nameOf(i)}` }, "#"),
        element("span", { class: "pager" }, beside(-1, "Previous neuron of the table", "‹"), beside(1, "Next neuron of the table", "›"))),
      element("p", { class: "soft" }, sentence(i)),
      element("p", { class: "code-line" }, element("code", {}, code), parts.copyButton(() => code, "Copy")),
      facts([
        ["mean Δ (nats)", number("delta", { sign: true })],
        ["95 % interval", neurons.low[i] === null ? NOTHING : `${significant(neurons.low[i], { sign: true })} … ${significant(neurons.high[i], { sign: true })}`],
        ["mean |Δ|", number("size")], ["direct Δ", number("direct", { sign: true })], ["common: mean Δ", number("common", { sign: true })],
        ["common: mean |Δ|", number("common_size")], ["KL", number("kl")], [`mean ${details ? details.activation.name : "activation"}`, number("mean_act", { sign: true })],
        ["‖w_in‖", number("w_in")], ["‖w_gate‖", number("w_gate")], ["‖w_out‖", number("w_out")],
      ]),
      part("How it acts", null, parts.mechanismBars(i)),
      element("div", { class: "two" },
        part("Rare against common", null, parts.rareAgainstCommon(i)), part("Neurons like it", null, parts.alike(i))),
      d !== undefined && details.layer_map ? part("Among all layers", null, parts.layerMap(d)) : null,
      ...(d === undefined ? [element("p", { class: "notice" }, withoutDetails())] : detailed(d)),
      parts.twin(`neuron-${nameOf(i)}`, () => parts.record(i, d)),
    ].filter(Boolean));
    panel.hidden = false;
    render();
    if (d !== undefined) draw(d);
    if (move) {
      if (location.hash !== `#${nameOf(i)}`) history.pushState(null, "", `#${nameOf(i)}`);
      heading.focus({ preventScroll: true });
      panel.scrollIntoView({ block: "start", behavior: at_once ? "instant" : "auto" });
    }
  }
  function reveal(i) { const place = rows.indexOf(i); if (place >= 0) state.page = Math.floor(place / PER_PAGE); }
  const sentence = (i) => `Rank ${whole(neurons.rank[i])} of ${whole(n)} by mean |Δ|${neurons.rank_of_all ? `, ${whole(neurons.rank_of_all[i])} among those of all layers` : ""}. ` + (neurons.delta[i] > 0
    ? "Without it the loss at rare tokens rises: on average it boosts them." : neurons.delta[i] < 0
      ? "Without it the loss at rare tokens falls: on average it suppresses them." : "Without it the loss at rare tokens stays as it is.");
  const withoutDetails = () => (details
    ? `Contexts, tokens, activations and neighbours are kept for the ${whole(details.shown.length)} neurons with the largest mean |Δ|; this one is not among them.`
    : "This run holds no contexts, tokens, activations and neighbours: they are gathered at the last planned checkpoint of a study. To add them, remove that checkpoint's folder in steps/ and run the same study again.");

  function detailed(d) {
    const logits = details.written_logit && details.written_logit[d];
    const half = details.written ? details.written[d].length / 2 : 0;
    const list = (first) => {
      const most = Math.max(...logits.map(Math.abs)) || 1;
      return element("ol", { class: "tokens" }, ...details.written[d].slice(first, first + half).map((t, k) => element("li", {},
        element("bdi", {}, alone(t)), element("span", { class: "number" }, significant(logits[first + k], { digits: 2, sign: true })),
        filled(element("i", { class: first ? "down" : "up" }), { style: `width:${(100 * Math.abs(logits[first + k]) / most).toFixed(1)}%` }, []))));
    };
    const numbers = element("input", { type: "checkbox", onchange: (event) => contexts.classList.toggle("numbers", event.target.checked) });
    const contexts = element("ol", { class: "contexts" }, ...details.contexts[d].map(context));
    return [
      part("Where it matters most", details.contexts[d].length ? shadedWords(d) : null,
        element("p", { class: "legend" }, element("span", { class: "up" }, "boosts (Δ > 0)"), element("span", { class: "down" }, "suppresses (Δ < 0)"), element("label", {}, numbers, " write every Δ")),
        contexts),
      part("Where it matters more and less", details.examples ? `Of ${whole(details.n_sampled)} rare tokens, evenly drawn: those at quantiles of Δ, and of n, the ${details.activation.name}.` : null, parts.byQuantile(d)),
      part("What it writes", details.no_readout || `Tokens whose logits rise and fall most per unit of ${details.activation.unit}, before the final norm's scale, against the mean token. ${details.activation.sign}When the activation is below zero the two change places.`,
        details.written ? element("div", { class: "two" }, element("div", {}, element("h5", {}, "promotes"), list(0)), element("div", {}, element("h5", {}, "demotes"), list(half))) : null),
      element("div", { class: "two" },
        element("figure", { class: "chart-box", id: "chart-activations" }),
        steps.length > 1 ? element("figure", { class: "chart-box", id: "chart-path" }) : null),
      part("Neurons that act with it", "The largest correlations of activations over the analysed rare tokens.", neighbours(d)),
    ];
  }
  const shadedWords = (d) => "The contexts with the largest |Δ| at a rare target, which is framed. " + (details.contexts[d].every((c) => c.all)
    ? "Each token is shaded, and has its exact Δ in nats below it where that is large: the change in its own loss without this neuron."
    : details.n_whole ? `Shaded are all analysed targets in the text; Δ at every token is kept for the ${whole(details.n_whole)} neurons of the first ranks.`
      : "Shaded are all analysed targets in the text: the stronger, the larger |Δ| of this neuron there. Δ at other tokens isn't measured in this run.");
  const LARGE = 0.2; // of a text's largest |Δ|: what is written without being asked for
  function context(c) {
    const deltas = new Map((c.all || []).map((delta, place) => [place, delta]));
    c.places.forEach((place, k) => deltas.set(place, c.delta[k])); // as analysed: common ones with a mean of their own
    const most = Math.max(...[...deltas.values()].map((x) => Math.abs(x ?? 0))) || 1;
    const text = element("p", { class: "text" }, details.texts[c.text].map((t, place) => {
      const delta = deltas.get(place), is = place === c.at;
      if (delta === undefined || delta === null) return element("bdi", {}, details.vocabulary[t]);
      const shown = details.vocabulary[t], word = shown.trimStart(), space = shown.slice(0, shown.length - word.length);
      const node = element("bdi", { class: `${delta > 0 ? "up" : "down"}${is ? " target" : ""}${Math.abs(delta) >= LARGE * most ? " large" : ""}`, title: `Δ = ${significant(delta, { sign: true })} nats` },
        word || shown, element("sub", {}, significant(delta, { digits: 2, sign: true })));
      node.style.setProperty("--strength", ((Math.abs(delta) >= most / 40 ? 0.06 : 0) + 0.52 * Math.abs(delta) / most).toFixed(3));
      return word && space ? [space, node] : node;
    }));
    const at = deltas.get(c.at);
    return element("li", {}, element("p", { class: "context-head" }, element("b", {}, "Δ = " + significant(at, { sign: true })), " nats at ", element("bdi", { class: "token" }, alone(details.texts[c.text][c.at]).trim())), text);
  }
  function neighbours(d) {
    const found = details.neighbour[d].map((i, k) => [i, details.correlation[d][k]]).filter(([i, rho]) => i >= 0 && rho !== null);
    if (!found.length) return element("p", {}, "None: its activation never changes.");
    return element("ul", { class: "neighbours" }, ...found.map(([i, rho]) => element("li", {}, go(i), ` ρ = ${significant(rho, { digits: 2, sign: true })}, rank ${whole(neurons.rank[i])}, mean Δ ${inUnit(neurons.delta[i], { sign: true })} ${unit}`)));
  }
  function draw(d) {
    const counts = details.histogram[d], low = details.act_low[d], high = details.act_high[d];
    const total = counts.reduce((a, b) => a + b, 0), width = (high - low) / counts.length || 1;
    const middle = counts.map((_, k) => low + (k + 0.5) * width);
    chart(byId("chart-activations"), "Activations", 200, () => ({
      lines: [{ x: middle, y: counts, bars: width, main: true }], x: "linear", y: "linear", fromZero: true, xLabel: `${details.activation.name} at rare tokens`, yLabel: "tokens",
      idle: `${whole(total)} rare tokens, from ${significant(low, { sign: true })} to ${significant(high, { sign: true })}`,
      told: (_, k) => `${significant(low + k * width, { sign: true })} … ${significant(low + (k + 1) * width, { sign: true })}: ${whole(counts[k])} tokens`,
    })).draw();
    if (steps.length < 2) return;
    const x = steps.map((s, i) => s.step ?? i), { delta, size, rank } = details.path;
    chart(byId("chart-path"), "Over training", 200, () => ({
      lines: [{ x, y: delta[d], kind: "second", dots: true }, { x, y: size[d], main: true, dots: true }], x: "step", y: "linear", fromZero: true, zero: true, xLabel: "step", yLabel: "nats",
      idle: "mean |Δ| (heavy) and mean Δ (dashed), nats",
      told: (_, k) => `step ${steps[k].name}: mean |Δ| ${significant(size[d][k])}, mean Δ ${significant(delta[d][k], { sign: true })}, rank ${whole(rank[d][k])}`,
    })).draw();
  }

  // --- links to neurons --------------------------------------------------------------------------------------------
  function named() { // the neuron that the address names, such as #29.511
    const found = /^#(\d+)\.(\d+)$/.exec(location.hash);
    return found && Number(found[1]) === data.layer && Number(found[2]) < n ? Number(found[2]) : null;
  }
  function follow(at_once) {
    const i = named();
    if (i === null) return;
    reveal(i);
    open(i, true, at_once === true);
  }
  addEventListener("popstate", () => follow(true)); // by a link, by hand, or back
  document.addEventListener("click", (event) => { // a link to the neuron that is named already changes no address
    const link = event.target.closest && event.target.closest('a[href^="#"]');
    if (link && link.getAttribute("href") === location.hash && named() !== null) { event.preventDefault(); follow(); }
  });

  showStep(current);
  refresh();
  parts.addTwins();
  if (rows.length) open(named() ?? rows[0], false);
  if (named() !== null) addEventListener("load", () => requestAnimationFrame(() => follow(true)));
})();
