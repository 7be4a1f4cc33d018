"use strict";
(() => {
  const byId = (id) => document.getElementById(id);

  const choice = byId("matrix-choice");
  if (choice) {
    const show = () => document.querySelectorAll(".matrix").forEach((card, index) => {
      card.hidden = String(index) !== choice.value;
    });
    choice.addEventListener("change", show);
    show(); // a browser may remember what was chosen before a reload
  }

  const data = JSON.parse(byId("data").textContent);
  const patterns = data.patterns.map((pattern) => pattern.split("\0"));
  const name = ([pattern, ...numbers]) =>
    patterns[pattern].map((piece, index) => piece + (numbers[index] ?? "")).join("");
  const keys = data.columns.map((column) => column.key);
  const values = Object.fromEntries(keys.map((key, index) => [key, data.values[index]]));
  for (const key of ["name", "name_post"]) if (values[key]) values[key] = values[key].map(name);
  values.flags = data.flags;
  const flags = { key: "flags", group: "matrix", headline: true, meaning: "what to beware of", text: true };
  const columns = [...data.columns, flags];
  const searched = values.name.map((text, row) =>
    [text, values.role[row], values.status[row], data.flags[row]].join("\n").toLowerCase());
  const step = 200; // rows drawn at a time
  const state = { sort: null, descending: false, shown: step };

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const option = (select, value, text) => {
    const made = element("option", text);
    made.value = value;
    select.append(made);
  };

  const roles = byId("filter-role");
  [...new Set(values.role)].sort().forEach((role) => option(roles, role, role));
  const group = byId("filter-group"); // of several posts or steps
  const grouped = group ? values[group.dataset.column].map(String) : [];
  if (group) [...new Set(grouped)].forEach((one) => option(group, one, one));
  const groups = byId("column-group");
  option(groups, "headlines", "headlines");
  [...new Set(data.columns.map((column) => column.group))].forEach((group) => option(groups, group, group));
  option(groups, "all", "all");

  const shownColumns = () => columns.filter((column) =>
    column.key === "name" || groups.value === "all" || (groups.value === "headlines" ? column.headline : column.group === groups.value));
  const format = (value) => {
    if (value === null || value === undefined || value === "") return "–";
    if (typeof value !== "number" || Number.isInteger(value)) return String(value);
    const size = Math.abs(value);
    if (size < 1e-3) return value.toExponential(2);
    return size > 0.5 && size < 2 ? value.toFixed(5) : String(Number(value.toPrecision(4)));
  };
  const rowsWanted = () => {
    const words = byId("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const flagged = byId("filter-flagged").checked;
    const rows = [];
    for (let row = 0; row < searched.length; row++) {
      if (roles.value && values.role[row] !== roles.value) continue;
      if (group?.value && grouped[row] !== group.value) continue;
      if (flagged && !data.flags[row]) continue;
      if (words.every((word) => searched[row].includes(word))) rows.push(row);
    }
    if (state.sort === null) return rows;
    const column = values[state.sort];
    const sign = state.descending ? -1 : 1;
    const empty = (value) => value === null || value === "";
    return rows.sort((left, right) => {
      const [a, b] = [column[left], column[right]];
      if (empty(a) || empty(b)) return empty(a) - empty(b) || left - right; // last, whichever way
      const order = typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
      return sign * order || left - right;
    });
  };

  const table = byId("matrices-table");
  const drawHead = () => {
    const line = document.createElement("tr");
    for (const column of shownColumns()) {
      const sorted = state.sort === column.key;
      const head = element("th", "", column.text ? "text" : "");
      head.scope = "col";
      head.setAttribute("aria-sort", sorted ? (state.descending ? "descending" : "ascending") : "none");
      const button = element("button", column.key + (sorted ? (state.descending ? " ↓" : " ↑") : ""));
      button.type = "button";
      button.title = column.meaning;
      button.dataset.column = column.key;
      button.addEventListener("click", () => {
        // Numbers are first sorted from the largest.
        state.descending = sorted ? !state.descending : !column.text;
        state.sort = column.key;
        draw();
      });
      head.append(button);
      line.append(head);
    }
    table.tHead.replaceChildren(line);
  };
  const drawBody = () => {
    const rows = rowsWanted();
    const shown = shownColumns();
    const lines = rows.slice(0, state.shown).map((row) => {
      const line = document.createElement("tr");
      for (const column of shown) {
        const kind = column.key === "flags" ? "text flag" : column.text ? "text" : column.key.includes("_null") ? "control" : "";
        line.append(element("td", format(values[column.key][row]), kind));
      }
      return line;
    });
    table.tBodies[0].replaceChildren(...lines);
    byId("count").textContent = `${rows.length} of ${searched.length}`;
    byId("more").hidden = rows.length <= state.shown;
  };
  const draw = () => {
    drawHead();
    drawBody();
  };
  const again = () => {
    state.shown = step;
    draw();
  };
  byId("filter-text").addEventListener("input", again);
  for (const id of ["filter-role", "filter-group", "column-group", "filter-flagged"]) byId(id)?.addEventListener("change", again);
  byId("more").addEventListener("click", () => {
    state.shown += 5 * step;
    drawBody();
  });
  const slider = byId("step-choice");
  if (slider) {
    const steps = slider.dataset.steps.split(" ");
    const articles = steps.map((step) => byId(`step-${step}`));
    const follow = byId("step-follow");
    const show = () => {
      const step = steps[slider.value];
      byId("step-shown").textContent = step;
      articles.forEach((article, place) => { article.hidden = String(place) !== slider.value; });
      const wanted = follow.checked ? step : "";
      if (group.value !== wanted && (follow.checked || steps.includes(group.value))) {
        group.value = wanted;
        again();
      }
    };
    slider.addEventListener("input", show);
    follow.addEventListener("change", show);
    group.addEventListener("change", () => { follow.checked = false; });
    show(); // a browser may remember where it was before a reload
  }
  if (data.matrices > searched.length) {
    byId("left-out").textContent = `Here are the ${searched.length} of ${data.matrices} matrices with the largest drift.`;
  }
  draw();
})();
