"use strict";
(() => {
  // Names come from programs that nobody trusts. They reach the page as text only: textContent,
  // and Tabulator's formatter "plaintext", which escapes.
  const EFFECTS = ["rewritten", "refused", "failed", "kept"];
  const WORDS = {
    rewritten: "rewritten: made without a flag",
    refused: "refused by the kernel in the end",
    failed: "failed in another way",
    kept: "kept: allowed as asked",
  };
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const number = (value) => value.toLocaleString("en-US");
  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const pad = (value, digits) => String(value).padStart(digits, "0");
  const moment = (ms) => {
    const d = new Date(ms);
    return `${d.getFullYear()}-${pad(d.getMonth() + 1, 2)}-${pad(d.getDate(), 2)} ` +
      `${pad(d.getHours(), 2)}:${pad(d.getMinutes(), 2)}:${pad(d.getSeconds(), 2)}.${pad(d.getMilliseconds(), 3)}`;
  };
  const tone = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // --- head, totals, gate ----------------------------------------------------------------
  function head() {
    const { about } = data;
    at("trace").textContent = about.trace;
    document.title = `flagshim: ${about.trace}`;
    const since = about.since_ms === null ? "" : `, opens since ${moment(about.since_ms)}`;
    at("made").textContent = `made ${moment(about.made_ms)} by flagshim ${about.flagshim}${since}; times are this browser's`;
    const sums = data.paths.reduce((all, row) => all.map((sum, i) => sum + row[i + 1]), [0, 0, 0, 0, 0]);
    const tiles = [["opens looked at", sums[0], ""], ...EFFECTS.map((effect, i) => [WORDS[effect], sums[i + 1], effect])];
    for (const [word, count, effect] of tiles) {
      const tile = element("div", `tile ${effect}`);
      tile.append(element("b", "", number(count)), element("span", "", word));
      at("tiles").append(tile);
    }
    const gaps = [];
    if (about.missing) gaps.push(`${number(about.missing)} opens were seen but are not in the trace.`);
    if (about.dropped) gaps.push(`${number(about.dropped)} opens are there only as counts: they are in the sums, not in the chart and the last table.`);
    const unseen = data.sessions.reduce((sum, session) => sum + session.unseen.length, 0);
    if (unseen) gaps.push("Some programs may have opened files unseen; see Sessions.");
    at("gaps").hidden = !gaps.length;
    at("gaps").textContent = gaps.join(" ");
  }

  function gate() {
    if (!data.gate) return;
    const { failed, verdict, conditions, baseline, gone_count, new_count } = data.gate;
    at("gate").hidden = false;
    at("verdict").textContent = verdict;
    at("verdict").className = failed ? "refused" : "good";
    for (const [condition, count, bad] of conditions)
      at("conditions").append(element("li", bad ? "new" : "", `${condition}: ${number(count)}${bad ? ", failed" : ""}`));
    if (baseline === null) return;
    const lines = [
      ...data.gate.new.map(([line, opens]) => element("span", "new", `+ ${line}  (${number(opens)}x)\n`)),
      ...data.gate.gone.map((line) => element("span", "gone", `- ${line}  (not this time)\n`)),
    ];
    const more = new_count + gone_count - lines.length;
    if (more) lines.push(element("span", "", `${number(more)} more\n`));
    if (!lines.length) lines.push(element("span", "", `Nothing is different from ${baseline}.`));
    at("difference").replaceChildren(...lines);
    at("difference").hidden = false;
  }

  // --- timeline ---------------------------------------------------------------------------
  let range = null;
  let chart = null;
  const STACK = ["kept", "rewritten", "failed", "refused"];
  function timeline() {
    const { start_ms, width_ms, spans } = data.timeline;
    if (!spans.length) { at("timeline").replaceChildren(element("p", "hint", "No open.")); return; }
    const of = { rewritten: 1, refused: 2, failed: 3, kept: 4 };
    const length = spans[spans.length - 1][0] + 1;
    const times = Array.from({ length }, (_, bin) => (start_ms + bin * width_ms) / 1000);
    const raw = Object.fromEntries(STACK.map((effect) => [effect, new Array(length).fill(0)]));
    for (const span of spans) for (const effect of STACK) raw[effect][span[0]] = span[of[effect]];
    // Stacked by hand: the tallest bar is drawn first, and what is on top of the pile first of all.
    const piles = STACK.map((_, i) => times.map((_, bin) => STACK.slice(i).reduce((sum, effect) => sum + raw[effect][bin], 0)));
    const bars = uPlot.paths.bars({ size: [1, 60], align: 1, gap: length > 120 ? 0 : 1 });
    const axis = () => ({ stroke: tone("faint"), grid: { stroke: tone("line"), width: 1 }, ticks: { stroke: tone("line") } });
    const options = {
      width: at("timeline").clientWidth - 10, height: 220,
      cursor: { drag: { x: true, y: false, setScale: false } },
      scales: { x: { range: () => [times[0], times[length - 1] + width_ms / 1000] }, y: { range: (_, __, max) => [0, Math.max(max, 1) * 1.05] } },
      axes: [{ ...axis(), values: (_, ticks) => ticks.map((tick) => moment(tick * 1000).slice(11, width_ms < 100 ? 23 : 19)) , space: 110 }, { ...axis(), size: 64, values: (_, ticks) => ticks.map((tick) => Number.isInteger(tick) ? number(tick) : "") }],
      series: [
        { label: `from, for ${width_ms < 1000 ? `${width_ms.toPrecision(3)} ms` : `${(width_ms / 1000).toPrecision(3)} s`}`, value: (_, time) => time === null ? "-" : moment(time * 1000) },
        ...STACK.map((effect) => ({
          label: effect, stroke: tone(effect), fill: tone(effect), width: 0, paths: bars, points: { show: false },
          value: (_, __, ___, bin) => bin === null ? "-" : number(raw[effect][bin]),
        })),
      ],
      // A handful of refusals among thousands of opens would be less than a pixel high.
      hooks: { draw: [(plot) => {
        const wide = Math.max(3 * devicePixelRatio, plot.bbox.width / length);
        STACK.slice(2).forEach((effect, row) => {
          plot.ctx.fillStyle = tone(effect);
          raw[effect].forEach((count, bin) => {
            if (count) plot.ctx.fillRect(plot.valToPos(times[bin], "x", true), plot.bbox.top - (5 + 6 * row) * devicePixelRatio, wide, 5 * devicePixelRatio);
          });
        });
      }], setSelect: [(plot) => {
        if (plot.select.width < 2) return;
        choose([plot.posToVal(plot.select.left, "x") * 1000, plot.posToVal(plot.select.left + plot.select.width, "x") * 1000]);
      }] },
    };
    if (chart) chart.destroy();
    chart = new uPlot(options, [times, ...piles], at("timeline"));
    chart.over.addEventListener("dblclick", () => choose(null));
  }
  function choose(chosen) {
    range = chosen;
    if (!chosen && chart) chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    at("anytime").hidden = !chosen;
    if (chosen) at("anytime").textContent = `${moment(chosen[0])} to ${moment(chosen[1])} ✕`;
    sift();
  }

  // --- paths and programs -------------------------------------------------------------------
  const countColumns = () => ["opens", ...EFFECTS].map((field) => ({
    title: field[0].toUpperCase() + field.slice(1), field, width: 115, sorter: "number", cssClass: "number",
    headerHozAlign: "right", headerSortStartingDir: "desc",
    formatter: (cell) => cell.getValue() ? number(cell.getValue()) : "",
  }));
  function share() {
    return { title: "", field: "opens", headerSort: false, width: 130, formatter: (cell) => {
      const bar = element("span", "share");
      for (const effect of EFFECTS) {
        const part = element("i", effect);
        part.style.width = `${100 * cell.getData()[effect] / cell.getData().opens}%`;
        bar.append(part);
      }
      return bar;
    } };
  }
  function counted(id, title, field, rows, more) {
    return new Tabulator(`#${id}`, {
      data: rows, maxHeight: 420, layout: "fitColumns", placeholder: "No open.",
      columns: [
        { title, field, widthGrow: 4, minWidth: 200, cssClass: "name", sorter: "string", formatter: "plaintext", headerFilter: more.tree ? false : "input" },
        share(), ...countColumns(),
      ],
      ...more.options,
    });
  }
  let serial = 0;
  const branch = (above) => ([name, opens, rewritten, refused, failed, kept, below]) => ({
    id: serial++, name, path: above + name, opens, rewritten, refused, failed, kept,
    ...(below.length ? { below: below.map(branch(above + name)) } : {}),
  });
  function paths() {
    const rows = data.paths.map(branch(""));
    const tree = counted("paths", "Path", "name", rows, { tree: true, options: {
      dataTree: true, dataTreeChildField: "below", dataTreeElementColumn: "name", dataTreeSort: true,
      dataTreeStartExpanded: (row, level) => level === 0 && rows.length <= 3,
    } });
    tree.on("rowClick", (_, row) => {
      if (row.getData().name.startsWith("…")) return;
      at("search").value = row.getData().path;
      sift();
    });
  }
  function programs() {
    const rows = data.programs.map(([program, opens, rewritten, refused, failed, kept]) => ({
      program, opens, rewritten, refused, failed, kept,
    }));
    return counted("programs", "Program", "program", rows, { options: {} });
  }

  // --- each open ------------------------------------------------------------------------------
  const { names, columns } = data.events;
  const NAMED = ["program", "call", "flags", "result", "effect", "path", "asked", "rule", "reason"];
  const events = columns.time_us.map((_, i) => {
    const row = { id: i };
    for (const key in columns) row[key] = columns[key][i];
    for (const key of NAMED) row[key] = names[row[key]];
    row.time = data.events.start_ms + row.time_us / 1000;
    return row;
  });
  const wanted = new Set(EFFECTS);
  let table = null;
  function each() {
    const { count, shown } = data.events;
    at("shown").hidden = count === shown;
    at("shown").textContent = `${number(shown)} of ${number(count)} opens are in this page: refused ones first, then the newest. ` +
      "The sums and the chart count all of them; flagshim report --format json has each.";
    table = new Tabulator("#events", {
      data: events, height: "70vh", layout: "fitColumns", placeholder: "No open matches.", selectableRows: 1,
      initialSort: [{ column: "time_us", dir: "asc" }],
      columns: [
        { title: "Time", field: "time_us", width: 190, sorter: "number", cssClass: "number", formatter: (cell) => moment(cell.getData().time) },
        { title: "PID", field: "pid", width: 90, sorter: "number", cssClass: "number", headerHozAlign: "right" },
        { title: "Program", field: "program", width: 170, sorter: "string", formatter: "plaintext", cssClass: "name" },
        { title: "Call", field: "call", width: 95, sorter: "string", formatter: "plaintext", cssClass: "name" },
        { title: "Flags", field: "flags", width: 125, sorter: "string", formatter: "plaintext", cssClass: "name" },
        { title: "Result", field: "result", width: 95, sorter: "alphanum", formatter: "plaintext", cssClass: "name" },
        { title: "Came to", field: "effect", width: 105, sorter: "string", formatter: (cell) => element("span", `effect ${cell.getValue()}`, cell.getValue()) },
        { title: "Path", field: "path", widthGrow: 1, minWidth: 240, sorter: "string", formatter: "plaintext", cssClass: "name" },
      ],
    });
    table.on("tableBuilt", sift);
    table.on("dataFiltered", (_, rows) => { at("matches").textContent = `${number(rows.length)} of ${number(events.length)}`; });
    table.on("rowClick", (_, row) => detail(row.getData()));
    for (const effect of EFFECTS) {
      const button = element("button", effect, effect);
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        if (wanted.delete(effect)) button.setAttribute("aria-pressed", "false");
        else { wanted.add(effect); button.setAttribute("aria-pressed", "true"); }
        sift();
      });
      at("effects").append(button);
    }
    let waiting = 0;
    at("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(sift, 150); });
    at("anytime").addEventListener("click", () => choose(null));
  }
  function sift() {
    const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    table.setFilter((row) => wanted.has(row.effect) &&
      (!range || (row.time >= range[0] && row.time <= range[1])) &&
      words.every((word) => row.path.toLowerCase().includes(word) || row.program.toLowerCase().includes(word) ||
        row.result.toLowerCase().includes(word) || row.rule.toLowerCase().includes(word) || String(row.pid) === word));
  }
  function pairs(list, entries) {
    list.replaceChildren(...entries.flatMap(([term, text]) => [element("dt", "", term), element("dd", "", String(text))]));
  }
  function detail(row) {
    at("detail").hidden = false;
    pairs(at("detail"), [
      ["time", moment(row.time)], ["session", row.session], ["program", `${row.program}, process ${row.pid}, thread ${row.tid}`],
      ["call", `${row.call} ${row.flags}${row.tries > 1 ? `, asked ${row.tries} times` : ""}`],
      ["path", row.path], ["as asked", row.asked], ["result", `${row.result}: ${WORDS[row.effect]}`],
      ["rule", `${row.rule}: ${row.reason}`],
      ["file's owner", row.owner ?? "not looked at"], ["fsuid", row.fsuid ?? "not looked at"],
    ]);
  }

  // --- sessions ---------------------------------------------------------------------------------
  function sessions() {
    const more = data.about.sessions - data.sessions.length;
    if (more) at("sessions").append(element("p", "notice", `The newest ${data.sessions.length} sessions; ${number(more)} more are in the trace.`));
    for (const session of data.sessions) {
      const box = element("details", "session");
      if (data.sessions.length === 1) box.open = true;
      box.append(element("summary", "", `${session.id}  ${session.command}`));
      const list = element("dl");
      const [opens, cleared, still, kept, failed] = session.tally;
      pairs(list, [
        ["started", moment(session.started_ms)],
        ["exit", session.took_s === null ? "still running, or its supervisor was killed" : `${session.exit}, after ${session.took_s.toFixed(3)} s`],
        ["opens", `${number(opens)}: ${number(cleared)} cleared, ${number(kept)} kept; ${number(still)} still refused, ${number(failed)} failed otherwise`],
        ["where", `${session.host}, Linux ${session.kernel}, in ${session.cwd}, as user ${session.uid}`],
        ["flagshim", `${session.flagshim}, ${session.engine}`],
        ...(session.missing ? [["not in the trace", number(session.missing)]] : []),
        ...(session.dropped ? [["only as counts", number(session.dropped)]] : []),
        ...session.unseen.map((text) => ["unseen", text]),
        ...session.troubles.map((text) => ["trouble", text]),
      ]);
      box.append(list);
      at("sessions").append(box);
    }
  }

  // --- dark and light ---------------------------------------------------------------------------
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let theme = null;
  function dress() {
    const name = theme ?? (dark.matches ? "dark" : "light");
    document.documentElement.dataset.theme = name;
    at("theme").textContent = name === "dark" ? "Light" : "Dark";
    if (chart) timeline();
  }
  at("theme").addEventListener("click", () => {
    theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    dress();
  });
  dark.addEventListener("change", dress);
  let resizing = 0;
  addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(timeline, 100); });

  dress();
  head();
  gate();
  paths();
  programs();
  each();
  timeline();
  sessions();
  document.documentElement.dataset.ready = "true";
})();
