"use strict";
// The parts of a neuron's panel, and the JSON beside every part of the page. No HTML from text here either: `element`
// and `shape` put everything in by textContent.
const panelParts = ({ data, element, shape, significant, whole, nameOf, go }) => {
  const { neurons, details, mechanism } = data;
  const NOTHING = "–";

  // --- bars --------------------------------------------------------------------------------------------------------
  // A row: label, a bar from zero with its interval, the number. `domain` is [low, high] in the values' own unit.
  function bar({ label, note, value, low, high, domain, text, kind }) {
    const [a, b] = domain, clamp = (x) => Math.max(a, Math.min(b, x)), X = (x) => (100 * (clamp(x) - a)) / (b - a || 1);
    const known = value !== null && value !== undefined;
    const drawing = shape("svg", { class: "bar-plot", viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" },
      known ? shape("rect", { class: kind, x: Math.min(X(0), X(value)), width: Math.abs(X(value) - X(0)), y: 2, height: 8 }) : null,
      shape("line", { class: "zero", x1: X(0), x2: X(0), y1: 0, y2: 12 }),
      known && low !== null && low !== undefined && high !== null && high !== undefined ? shape("line", { class: "interval", x1: X(low), x2: X(high), y1: 6, y2: 6 }) : null);
    return element("div", { class: "bar-row", title: note || null }, element("span", { class: "bar-label" }, label), drawing, element("span", { class: "number" }, known ? text : NOTHING));
  }
  const within = (value, low, high, options) => (low === null || low === undefined || high === null || high === undefined ? significant(value, options)
    : `${significant(value, options)} (${significant(low, options)} … ${significant(high, options)})`);

  function mechanismBars(i) {
    if (!mechanism.length) return [element("p", { class: "soft" }, "Not measured in this run.")];
    if (mechanism[0].value[i] === undefined) return [element("p", { class: "soft" }, "Kept for the largest neurons alone, since this layer is wide; the run folder has it for all.")];
    const most = (of) => Math.max(1e-12, ...[of.value, of.low, of.high].flatMap(Object.values).filter((x) => x !== null).map(Math.abs));
    return [
      neurons.kind && neurons.kind[i] ? element("p", {}, "Kind: ", element("b", {}, neurons.kind[i]), ".") : null,
      element("div", { class: "bars with-intervals" }, mechanism.map((of) => {
        const [value, low, high] = [of.value[i], of.low[i], of.high[i]];
        const end = of.unit ? most(of) : 1;
        return bar({ label: of.label, note: of.about, value, low, high, domain: [-end, end], kind: value < 0 ? "down" : "up",
          text: within(value, low, high, { digits: 2, sign: true }) + (of.unit ? ` ${of.unit}` : "") });
      })),
      element("p", { class: "soft" }, "95 % intervals over contexts. ", mechanism.map((of) => `${of.label[0].toUpperCase()}${of.label.slice(1)}: ${of.about[0].toLowerCase()}${of.about.slice(1)}`).join(" "), " Shares needn't add up to 1."),
    ];
  }

  function rareAgainstCommon(i) {
    if (!neurons.common_size) return [element("p", { class: "soft" }, "This run has no common targets to compare with.")];
    const rows = [
      ["mean |Δ|, rare", neurons.size[i], neurons.size_se && neurons.size_se[i], "up"], ["mean |Δ|, common", neurons.common_size[i], neurons.common_size_se && neurons.common_size_se[i], "soft"],
      ["mean Δ, rare", neurons.delta[i], neurons.se && neurons.se[i], "sign"], ["mean Δ, common", neurons.common[i], neurons.common_se && neurons.common_se[i], "soft"],
    ];
    const most = Math.max(1e-12, ...rows.map(([, v, se]) => Math.abs(v) + (se || 0)));
    const least = Math.min(0, ...rows.map(([, v, se]) => v - (se || 0)));
    return [
      element("div", { class: "bars" }, rows.map(([label, value, se, kind]) => bar({
        label, value, low: se === null || se === undefined ? null : value - se, high: se === null || se === undefined ? null : value + se, domain: [least, most],
        kind: kind === "sign" ? (value < 0 ? "down" : "up") : kind,
        text: significant(value, { sign: label.startsWith("mean Δ") }) + (se ? ` ± ${significant(se, { digits: 2 })}` : ""),
      }))),
      element("p", { class: "soft" }, `Nats; lines are one standard error to each side.${neurons.ratio && neurons.ratio[i] !== null ? ` Mean |Δ| is ${significant(neurons.ratio[i], { digits: 2 })} times as large at rare targets.` : ""}`),
    ];
  }

  // --- neurons like it ---------------------------------------------------------------------------------------------
  const ALIKE = 4;
  function alikeOf(i) { // those whose ablation moves the residual stream about as far, and that aren't in its group
    if (!neurons.move || !(neurons.move[i] > 0)) return [];
    const role = neurons.role[i];
    return neurons.move.map((x, k) => [k, x > 0 ? Math.abs(Math.log(x / neurons.move[i])) : Infinity])
      .filter(([k, d]) => k !== i && Number.isFinite(d) && (role === "other" || neurons.role[k] !== role))
      .sort((a, b) => a[1] - b[1] || a[0] - b[0]).slice(0, ALIKE).map(([k]) => k);
  }
  function alike(i) {
    const found = alikeOf(i);
    if (!found.length) return [element("p", { class: "soft" }, neurons.move ? "There is none: its ablation moves nothing." : "Not measured in this run.")];
    const heads = ["neuron", "moved by", "mean |Δ|", ...(neurons.common_size ? ["common", "ratio"] : [])];
    const cells = (k) => [significant(neurons.move[k]), significant(neurons.size[k]), ...(neurons.common_size ? [significant(neurons.common_size[k]), neurons.ratio && neurons.ratio[k] !== null ? significant(neurons.ratio[k], { digits: 2 }) : NOTHING] : [])];
    return [
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Neurons like it" }, element("table", { class: "alike" },
        element("thead", {}, element("tr", {}, heads.map((head, k) => element("th", { scope: "col", class: k ? "number" : null }, head)))),
        element("tbody", {}, [i, ...found].map((k) => element("tr", { "aria-current": k === i ? "true" : null },
          element("th", { scope: "row" }, k === i ? nameOf(k) : go(k)), cells(k).map((text) => element("td", { class: "number" }, text))))))),
      element("p", { class: "soft" }, "Outside its group, those whose ablation moves the residual stream most nearly as far (E|n̄ − n| · ‖w_out‖). Where they move it as far and matter less, distance isn't why it matters."),
    ];
  }

  // --- where it stands among all layers ----------------------------------------------------------------------------
  function layerMap(d) { // a row for each layer: ranks from left to right, the darker, the larger mean |Δ|
    const rows = details.layer_map, values = rows.flatMap((row) => row.value).filter((x) => x > 0);
    const [low, high] = [Math.log(Math.min(...values)), Math.log(Math.max(...values))];
    const end = Math.log(Math.max(...rows.flatMap((row) => row.last))), X = (rank) => (100 * Math.log(rank)) / end;
    return [
      element("div", { class: "layer-map" }, rows.map((row) => {
        const here = row.layer === data.layer;
        const at = row.rank[d];
        return element("div", { class: "map-row" }, element("span", { class: here ? "here" : null }, `layer ${row.layer}`),
          shape("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
            row.value.map((x, k) => shape("rect", { x: X(row.first[k]), width: X(row.last[k]) - X(row.first[k]), height: 10, opacity: (0.06 + (0.8 * (Math.log(Math.max(x, Math.exp(low))) - low)) / (high - low || 1)).toFixed(3) })),
            shape("line", { class: here ? "own" : "same", x1: X(at), x2: X(at), y1: 0, y2: 10 })),
          element("span", { class: "number" }, here ? `rank ${whole(at)}` : `would be ${whole(at)}`));
      })),
      element("p", { class: "soft" }, "Ranks from 1 at the left, logarithmic; the stronger the colour, the larger mean |Δ|. The line is this neuron, in other layers the rank that it would have there; all are replaced by their mean over all positions. ", element("a", { href: "#layers" }, "Every layer")),
    ];
  }

  // --- examples by quantile ----------------------------------------------------------------------------------------
  const BEFORE = 9, AFTER = 3; // tokens of an example
  function snippet([text, at]) {
    const tokens = details.texts[text], from = Math.max(0, at - BEFORE), to = Math.min(tokens.length, at + AFTER + 1);
    return element("span", { class: "snippet" }, from ? "…" : "", tokens.slice(from, to).map((t, k) => piece(details.vocabulary[t], from + k === at)), to < tokens.length ? "…" : "");
  }
  function piece(text, framed) {
    const word = text.trimStart();
    return framed && word ? [text.slice(0, text.length - word.length), element("bdi", { class: "target" }, word)] : element("bdi", { class: framed ? "target" : null }, text);
  }
  function examples(d, by) {
    const most = Math.max(1e-12, ...details.examples[d].flat().map((e) => Math.abs(e[2])));
    return element("ol", { class: "examples" }, details.examples[d][by].map((e, k) => {
      const node = element("li", {}, element("span", { class: "example-head" },
        element("span", { class: "quantile" }, { 0: "lowest", 0.5: "median", 1: "highest" }[details.quantiles[k]] ?? `${100 * details.quantiles[k]} %`),
        element("span", { class: `number ${e[2] > 0 ? "up" : "down"}` }, "Δ ", significant(e[2], { digits: 2, sign: true })),
        element("span", { class: "number" }, `n ${significant(e[3], { digits: 2, sign: true })}`)), snippet(e));
      node.querySelector(".up, .down").style.setProperty("--strength", (0.08 + 0.5 * Math.abs(e[2]) / most).toFixed(3));
      return node;
    }));
  }
  function byQuantile(d) {
    if (!details.examples) return [element("p", { class: "soft" }, "Not measured in this run: it is of an older version.")];
    return [element("div", { class: "two" }, ["by Δ", `by ${details.activation.name}`].map((title, by) => element("div", {}, element("h5", {}, title), examples(d, by))))];
  }

  // --- JSON --------------------------------------------------------------------------------------------------------
  const alone = (t) => details.names[t] ?? details.vocabulary[t];
  function record(i, d) { // everything that the panel of a neuron shows
    const out = { neuron: nameOf(i), index: i };
    for (const [name, values] of Object.entries(neurons)) out[name] = values[i];
    if (mechanism.length && mechanism[0].value[i] !== undefined) out.mechanism = Object.fromEntries(mechanism.map((of) => [of.name, { value: of.value[i], low: of.low[i], high: of.high[i] }]));
    out.alike = alikeOf(i).map(nameOf);
    if (d === undefined) return out;
    const words = (text) => details.texts[text].map((t) => details.vocabulary[t]);
    out.contexts = details.contexts[d].map((c) => ({ tokens: words(c.text), target: c.at, analysed: Object.fromEntries(c.places.map((p, k) => [p, c.delta[k]])), delta: c.all ?? null }));
    if (details.layer_map) out.rank_in_layer = Object.fromEntries(details.layer_map.map((row) => [row.layer, row.rank[d]]));
    if (details.examples) {
      out.examples = Object.fromEntries(["by_delta", "by_activation"].map((name, by) => [name, details.examples[d][by].map(([text, at, delta, act], k) => (
        { quantile: details.quantiles[k], target: words(text)[at], delta, activation: act, tokens: words(text), at }))]));
    }
    if (details.written) out.writes = details.written[d].map((t, k) => [alone(t), details.written_logit[d][k]]);
    out.activations = { low: details.act_low[d], high: details.act_high[d], histogram: details.histogram[d] };
    out.neighbours = details.neighbour[d].map((k, at) => [k, details.correlation[d][at]]).filter(([k]) => k >= 0).map(([k, rho]) => [nameOf(k), rho]);
    out.over_training = { step: data.steps.map((s) => s.step), ...Object.fromEntries(Object.entries(details.path).map(([name, of]) => [name, of[d]])) };
    return out;
  }
  function twin(name, make) { // a line that opens on JSON, which is made when it is first asked for
    const shown = element("pre", { tabindex: "0" });
    const save = element("button", { type: "button", onclick: () => {
      const url = URL.createObjectURL(new Blob([shown.textContent], { type: "application/json" }));
      element("a", { href: url, download: `${name}.json` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    } }, "Save");
    return element("details", { class: "twin", ontoggle: () => { if (!shown.textContent) shown.textContent = JSON.stringify(make(), null, 1); } }, element("summary", {}, "JSON"), save, " ", copyButton(() => shown.textContent, "Copy"), shown);
  }
  function copyButton(make, label) {
    const button = element("button", { type: "button", class: "copy" }, label);
    const told = element("span", { class: "copied", role: "status" });
    const say = (text) => { told.textContent = text; setTimeout(() => { told.textContent = ""; }, 2000); };
    button.addEventListener("click", () => {
      const text = make();
      const byHand = () => { // where a page from a file may not use the clipboard directly
        const area = element("textarea", { class: "aside", "aria-hidden": "true", tabindex: "-1" });
        area.value = text;
        button.after(area);
        area.select();
        say(document.execCommand("copy") ? "copied" : "can't copy here");
        area.remove();
        button.focus();
      };
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => say("copied"), byHand); else byHand();
    });
    return element("span", { class: "copier" }, button, told);
  }
  function addTwins() {
    for (const script of document.querySelectorAll('script[type="application/json"][data-of]')) {
      script.parentNode.append(twin(script.dataset.of, () => JSON.parse(script.textContent)));
    }
    document.getElementById("dynamics").append(twin("over-training", () => data.steps));
    document.getElementById("neuron-panel").before(twin("all-neurons", () => ({ layer: data.layer, ...neurons })));
  }
  return { mechanismBars, rareAgainstCommon, alike, layerMap, byQuantile, record, twin, copyButton, addTwins };
};
