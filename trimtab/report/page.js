"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const narrow = window.matchMedia("(max-width: 520px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { displayModeBar: false, responsive: true, scrollZoom: false };

  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(
      ["ink", "soft", "line", "card", "accent", "free", "dot", "fail"].map((name) => [name, style.getPropertyValue("--" + name).trim()])
    );
  };

  const ticks = (values) => {
    const low = Math.min(...values), high = Math.max(...values), found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1)
      for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
    const shown = found.filter((tick) => tick >= low / 1.6 && tick <= high * 1.6);
    return { tickvals: shown, ticktext: shown.map((tick) => String(Number(tick.toPrecision(2)))) };
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
    ...more,
  });

  const group = (c, name, points, marker) => ({
    type: "scatter", mode: narrow.matches ? "markers" : "markers+text", name,
    x: points.map((p) => p.x), y: points.map((p) => p.y), customdata: points.map((p) => p.text), hovertemplate: "%{customdata}<extra></extra>",
    error_x: { type: "data", symmetric: false, array: points.map((p) => p.x_high - p.x), arrayminus: points.map((p) => p.x - p.x_low), color: marker.bar, thickness: 1.2, width: 3 },
    error_y: { type: "data", symmetric: false, array: points.map((p) => p.y_high - p.y), arrayminus: points.map((p) => p.y - p.y_low), color: marker.bar, thickness: 1.2, width: 3 },
    marker: marker.marker, text: points.map((p) => p.label), textposition: "top right", textfont: { color: c.ink, size: narrow.matches ? 12 : 13 },
  });

  const tradeoff = (c) => {
    const { points, front, allowed } = data;
    const of = (kind) => points.filter((p) => p.kind === kind);
    const xs = points.flatMap((p) => [p.x_low, p.x_high]);
    const reach = [Math.min(...xs) / 1.35, Math.max(...xs) * 1.35];
    const traces = [
      { type: "scatter", mode: "lines", name: "Pareto front", x: front.map((p) => p[0]), y: front.map((p) => p[1]), line: { color: c.accent, width: 1.6, shape: "hv" }, hoverinfo: "skip" },
      { type: "scatter", mode: "lines", name: "lowest allowed", x: reach, y: [allowed, allowed], line: { color: c.fail, width: 1.4, dash: "dash" }, hoverinfo: "skip" },
      group(c, "tried", of("tried"), { bar: c.dot, marker: { color: c.dot, size: 8 } }),
      group(c, "free baseline", of("free"), { bar: c.free, marker: { color: c.card, size: 9, symbol: "square", line: { color: c.free, width: 2 } } }),
      group(c, "chosen", of("chosen"), { bar: c.accent, marker: { color: c.accent, size: 14, symbol: "diamond", line: { color: c.card, width: 1.5 } } }),
    ];
    const suffix = data.percent ? " %" : "";
    return [traces, layout(c, {
      xaxis: { ...axis(c), ...ticks(xs), type: "log", range: reach.map(Math.log10), title: title(data.x_title) },
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
      xaxis: { ...axis(c), ...ticks(xs), type: "log", title: title("one inference, ms (log)") },
      yaxis: { ...axis(c), color: c.ink },
    })];
  };

  const draw = () => {
    const c = colours();
    const figures = { tradeoff, spread };
    for (const [id, make] of Object.entries(figures)) {
      const place = document.getElementById(id);
      if (place) Plotly.react(place, ...make(c), config);
    }
  };

  draw();
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
})();
