"use strict";
(() => {
  let data = JSON.parse(document.getElementById("data").textContent);
  const narrow = window.matchMedia("(max-width: 520px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // A plot is drawn before the sheet is known: this fits A4 and Letter with margins of 2 cm.
  const PAPER_WIDTH = 640, paper = () => document.documentElement.classList.contains("paper");
  const config = { displayModeBar: false, responsive: true, scrollZoom: false };

  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(
      ["ink", "soft", "line", "card", "accent", "free", "dot", "fail", "pass"].map((name) => [name, style.getPropertyValue("--" + name).trim()])
    );
  };

  // Bytes in decimal units, as everywhere on the page.
  const bytes = (value) => {
    for (const [unit, scale] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
      if (value >= scale) return Number((value / scale).toPrecision(3)) + " " + unit;
    return value + " B";
  };

  // Round numbers on a log axis; where 1, 2 and 5 are too few for a narrow range, those between; at most so many.
  const ticks = (low, high, tell = (value) => String(Number(value.toPrecision(3))), most = Infinity) => {
    const between = (digits) => {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1)
        for (const digit of digits) found.push(digit * 10 ** power);
      return found.filter((tick) => tick >= low && tick <= high);
    };
    let shown = between([1, 2, 5]);
    for (const step of [1, 0.5, 0.2, 0.1, 0.05, 0.02])
      if (shown.length < 3) shown = between(Array.from({ length: Math.round(9 / step) }, (_, i) => 1 + i * step));
    if (shown.length > most) shown = shown.filter((_, i) => i % Math.ceil(shown.length / most) === 0);
    return { tickvals: shown, ticktext: shown.map(tell) };
  };

  const title = (text) => ({ text, standoff: 10, font: { size: narrow.matches ? 12 : 13 } });

  const axis = (c) => ({ color: c.soft, gridcolor: c.line, linecolor: c.line, zeroline: false, automargin: true, fixedrange: true });

  const layout = (c, more) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, size: narrow.matches ? 12 : 13, color: c.ink },
    margin: { l: narrow.matches ? 8 : 16, r: narrow.matches ? 8 : 24, t: 12, b: 8 },
    legend: {
      orientation: "h", x: 0, xanchor: "left", y: -0.2, yanchor: "top", font: { color: c.ink, size: narrow.matches ? 11 : 13 },
      ...(narrow.matches ? { entrywidth: 0.5, entrywidthmode: "fraction" } : {}),
    },
    hoverlabel: { bgcolor: c.card, bordercolor: c.line, font: { color: c.ink }, align: "left" },
    ...(paper() ? { width: PAPER_WIDTH } : {}),
    ...more,
  });

  // Of hundreds of points, bars and labels would hide more than they say, and take long to draw.
  const group = (c, name, points, marker) => points.length > 60 ? ({
    type: "scatter", mode: "markers", name, x: points.map((p) => p.x), y: points.map((p) => p.y),
    customdata: points.map((p) => p.text), ids: points.map((p) => p.row), hovertemplate: "%{customdata}<extra></extra>",
    marker: { ...marker.marker, size: 6, opacity: 0.7 },
  }) : ({
    type: "scatter", mode: narrow.matches ? "markers" : "markers+text", name, ids: points.map((p) => p.row),
    x: points.map((p) => p.x), y: points.map((p) => p.y), customdata: points.map((p) => p.text), hovertemplate: "%{customdata}<extra></extra>",
    error_x: { type: "data", visible: points.some((p) => p.x_high > p.x_low), symmetric: false, array: points.map((p) => p.x_high - p.x), arrayminus: points.map((p) => p.x - p.x_low), color: marker.bar, thickness: 1.2, width: 3 },
    error_y: { type: "data", symmetric: false, array: points.map((p) => p.y_high - p.y), arrayminus: points.map((p) => p.y - p.y_low), color: marker.bar, thickness: 1.2, width: 3 },
    marker: marker.marker, text: points.map((p) => p.label), textposition: "top right", textfont: { color: c.ink, size: narrow.matches ? 12 : 13 },
  });

  const tradeoff = (c) => {
    const { points, front, allowed } = data;
    const of = (kind) => points.filter((p) => p.kind === kind);
    const xs = points.flatMap((p) => [p.x_low, p.x_high]);
    const low = Math.min(...xs), high = Math.max(...xs), room = Math.min(1.35, Math.max(1.04, (high / low) ** 0.12));
    const reach = [low / room, high * room];
    const traces = [
      { type: "scatter", mode: "lines", name: "Pareto front", x: front.map((p) => p[0]), y: front.map((p) => p[1]), line: { color: c.accent, width: 1.6, shape: "hv" }, hoverinfo: "skip" },
      { type: "scatter", mode: "lines", name: "lowest allowed", x: reach, y: [allowed, allowed], line: { color: c.fail, width: 1.4, dash: "dash" }, hoverinfo: "skip" },
      group(c, "tried", of("tried"), { bar: c.dot, marker: { color: c.dot, size: 8 } }),
      group(c, "free baseline", of("free"), { bar: c.free, marker: { color: c.card, size: 9, symbol: "square", line: { color: c.free, width: 2 } } }),
      group(c, "chosen", of("chosen"), { bar: c.accent, marker: { color: c.accent, size: 14, symbol: "diamond", line: { color: c.card, width: 1.5 } } }),
    ];
    const suffix = data.percent ? " %" : "";
    return [traces, layout(c, {
      xaxis: { ...axis(c), ...(data.bytes ? ticks(...reach, bytes, narrow.matches ? 4 : Infinity) : ticks(...reach)), type: "log", range: reach.map(Math.log10), title: title(data.x_title) },
      yaxis: { ...axis(c), ticksuffix: suffix, title: narrow.matches ? undefined : title(data.y_title) },
    })];
  };

  const spread = (c) => {
    const shade = { reference: c.dot, best_free: c.free, chosen: c.accent };
    const traces = data.samples.slice().reverse().map((row) => ({
      type: "box", name: row.name, x: row.ms, orientation: "h", boxpoints: "outliers", hoverinfo: "x",
      marker: { color: shade[row.role], size: 3, opacity: 0.55 }, line: { color: shade[row.role], width: 1.6 }, fillcolor: "rgba(0,0,0,0)",
    }));
    const xs = data.samples.flatMap((row) => [Math.min(...row.ms), Math.max(...row.ms)]);
    return [traces, layout(c, {
      showlegend: false,
      xaxis: { ...axis(c), ...ticks(Math.min(...xs) / 1.6, Math.max(...xs) * 1.6), type: "log", title: title("one inference, ms (log)") },
      yaxis: { ...axis(c), color: c.ink },
    })];
  };

  // Bars that hang where the step before ended; the axis does not begin at zero, so that small changes are seen.
  const hanging = (c, names, values, better, unit) => {
    const low = Math.min(...values), high = Math.max(...values), floor = low - 0.35 * (high - low || Math.abs(high) || 1);
    const base = values.map((v, i) => (i === 0 ? floor : values[i - 1]));
    const size = values.map((v, i) => v - base[i]);
    const colour = values.map((v, i) => (i === 0 ? c.dot : v === values[i - 1] ? c.dot : (v > values[i - 1]) === better ? c.pass : c.fail));
    const text = values.map((v) => Number(v.toPrecision(4)) + unit);
    const trace = { type: "bar", x: names.map((n, i) => i + 1 + ". " + n), y: size, base, marker: { color: colour }, text, textposition: "outside", cliponaxis: false, textfont: { color: c.ink }, hovertemplate: "%{x}: %{text}<extra></extra>" };
    return [[trace], layout(c, { showlegend: false, margin: { l: 8, r: 8, t: 24, b: 8 }, xaxis: axis(c), yaxis: { ...axis(c), range: [floor, high + 0.2 * (high - floor)], ticksuffix: unit } })];
  };

  const fall = (key, better, unit) => (c) => {
    const steps = data.steps.filter((s) => s[key] !== null);
    return steps.length > 1 ? hanging(c, steps.map((s) => s.name), steps.map((s) => s[key]), better, unit) : null;
  };

  const bars = (c) => {
    const shown = data.sensitivity.slice().reverse();
    const trace = { type: "bar", orientation: "h", y: shown.map((s) => s.layer), x: shown.map((s) => s.error), marker: { color: c.accent }, hovertemplate: "%{y}: %{x:.3g}<extra></extra>" };
    return [[trace], layout(c, { height: 60 + 24 * shown.length, showlegend: false, xaxis: { ...axis(c), title: title("share of the outputs' variance") }, yaxis: { ...axis(c), color: c.ink } })];
  };

  const freed = (c) => {
    const { layers, steps, unit } = data.freed, shades = [c.accent, c.free, c.dot, c.pass, c.ink];
    const traces = steps.map((s, i) => ({ type: "bar", orientation: "h", name: s.name, y: layers, x: s.values, marker: { color: shades[i % 5] }, hovertemplate: "%{y}: %{x" + (unit === "ms" ? ":.3g" : ":,") + "} " + unit + "<extra>%{fullData.name}</extra>" }));
    const legend = { orientation: "h", x: 0, xanchor: "left", y: 1, yanchor: "bottom", traceorder: "normal", font: { color: c.ink } };
    return [traces, layout(c, { barmode: "stack", height: 90 + 24 * layers.length, showlegend: steps.length > 1, legend, xaxis: { ...axis(c), title: title(unit + " freed, of one sample") }, yaxis: { ...axis(c), color: c.ink, autorange: "reversed" } })];
  };

  // Evidence of before does not tell which widths pay.
  const pays = (stair, width) => !stair.pay || stair.pay.includes(width);

  const stairs = (c) => {
    const shades = [c.accent, c.free, c.dot, c.fail, c.pass, c.ink];
    const traces = data.staircase.flatMap((s, i) => [
      { type: "scatter", mode: "lines+markers", name: s.layer, x: s.widths, y: s.ms, line: { color: shades[i % 6], width: 1.6 }, marker: { size: s.widths.map((w) => (pays(s, w) ? 5 : 7)), symbol: s.widths.map((w) => (pays(s, w) ? "circle" : "x")) } },
      { type: "scatter", mode: "markers", showlegend: false, x: [s.chosen], y: [s.ms[s.widths.indexOf(s.chosen)]], marker: { size: 13, symbol: "circle-open", color: shades[i % 6], line: { width: 2 } }, hoverinfo: "skip" },
    ]);
    return [traces, layout(c, { xaxis: { ...axis(c), title: title("channels, % of the original's"), rangemode: "tozero" }, yaxis: { ...axis(c), title: title("ms"), rangemode: "tozero" } })];
  };

  const timeline = (c) => {
    const kinds = [...new Set(data.timeline.map((t) => t.kind))];
    const shades = [c.accent, c.free, c.dot, c.pass, c.fail, c.ink, c.soft];
    const traces = kinds.map((kind, i) => {
      const own = data.timeline.filter((t) => t.kind === kind);
      return { type: "bar", orientation: "h", name: kind, y: own.map(() => kind), x: own.map((t) => t.end_s - t.start_s), base: own.map((t) => t.start_s), customdata: own.map((t) => t.what), marker: { color: shades[i % 7], line: { color: c.card, width: own.length > 60 ? 0 : 1 } }, hovertemplate: "%{customdata}: %{x:.0f} s<extra></extra>" };
    });
    return [traces, layout(c, { barmode: "overlay", showlegend: false, height: 60 + 32 * kinds.length, xaxis: { ...axis(c), title: title("seconds since the start") }, yaxis: { ...axis(c), color: c.ink, autorange: "reversed" } })];
  };

  const figures = {
    tradeoff, spread, "waterfall-metric": fall("metric", true, data.percent ? " %" : ""), "waterfall-latency": fall("ms", false, " ms"),
    "layers-freed": freed, "sensitivity-bars": bars, "staircase-plot": stairs, "timeline-plot": timeline,
  };

  const draw = () => {
    const c = colours();
    for (const [id, make] of Object.entries(figures)) {
      const place = document.getElementById(id), made = place && make(c);
      if (made) Plotly.react(place, ...made, { ...config, responsive: !paper() });
      else if (place) place.closest("figure").hidden = true;
    }
  };

  // A click on a candidate opens the table of all and goes to its row.
  const open = (row) => {
    const found = document.getElementById(row);
    if (!found) return;
    found.closest("details").open = true;
    document.querySelectorAll("tr.picked").forEach((other) => other.classList.remove("picked"));
    found.classList.add("picked");
    found.scrollIntoView({ block: "center" });
    found.focus({ preventScroll: true });
  };

  const begin = () => {
    draw();
    const trade = document.getElementById("tradeoff");
    if (trade && trade.on) trade.on("plotly_click", (event) => open(event.points[0].id));
  };

  // A page of a run that lasts asks its own server whether there is something new, and keeps what was open and where one was.
  const root = document.documentElement;
  const opened = () => [...document.querySelectorAll("details[open]")].map((part) => part.closest("section").getAttribute("aria-labelledby"));
  const replace = (next) => {
    const were = opened(), at = window.scrollY, focused = document.activeElement.id;
    document.querySelector("main").innerHTML = next.body;
    document.title = next.title;
    data = next.data;
    root.dataset.token = next.token;
    document.querySelectorAll("details").forEach((part) => { part.open = were.includes(part.closest("section").getAttribute("aria-labelledby")); });
    begin();
    window.scrollTo(0, at);
    if (focused && document.getElementById(focused)) document.getElementById(focused).focus({ preventScroll: true });
  };
  const poll = async () => {
    try {
      const next = await (await fetch("state?token=" + encodeURIComponent(root.dataset.token))).json();
      if (next.body) replace(next);
      root.classList.remove("lost");
    } catch { root.classList.add("lost"); }
    window.setTimeout(poll, 1500);
  };

  begin();
  if (root.dataset.token) window.setTimeout(poll, 1500);
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
  // On paper everything is open, and drawn in the colours of paper.
  const whole = (on) => document.querySelectorAll("details").forEach((part) => { part.open = on || part.open; });
  window.addEventListener("beforeprint", () => { whole(true); document.documentElement.classList.add("paper"); draw(); });
  window.addEventListener("afterprint", () => { document.documentElement.classList.remove("paper"); draw(); });
})();
