"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const one = (selector, from = document) => from.querySelector(selector);
  const made = (name, attributes = {}, text = "") => {
    const spaces = ["svg", "rect"].includes(name);
    const element = spaces
      ? document.createElementNS("http://www.w3.org/2000/svg", name)
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  root.classList.add("scripted");
  const networks = JSON.parse(one("#networks").textContent);
  const byTrial = new Map(networks.map((network) => [network.trial, network]));
  const sizes = all("[data-kept]").map((cell) => Number(cell.dataset.of));

  // One network of the front at a time: its marks, its row in the table, its figures.
  const select = (trial) => {
    const network = byTrial.get(trial);
    if (!network) return;
    for (const mark of all("[role=radio]")) {
      const chosen = Number(mark.dataset.trial) === trial;
      mark.setAttribute("aria-checked", chosen);
      mark.setAttribute("tabindex", chosen ? 0 : -1);
    }
    for (const row of all("tr[data-trial]")) row.setAttribute("aria-current", Number(row.dataset.trial) === trial);
    for (const number of all("[data-trial-number]")) number.textContent = trial;
    one("[data-tags]").replaceChildren(
      ...network.tags.map((tag) => made("span", { class: tag === "chosen" ? "badge" : "badge over" }, tag)),
    );
    one(".cards").replaceChildren(...network.cards.map(card));
    const layers = one("[data-layers]");
    if (layers) {
      layers.hidden = !network.kept.length;
      if (network.kept.length) showLayers(network);
    }
    for (const code of all("[data-template]")) code.textContent = code.dataset.template.replaceAll("{trial}", trial);
    const index = networks.indexOf(network);
    one("[data-step='-1']").disabled = index === 0;
    one("[data-step='1']").disabled = index === networks.length - 1;
    one("[data-words]").textContent = network.words;
  };
  const card = ({ name, value, notes }) => {
    const figure = made("div", { class: "card", "data-card": name });
    const told = made("dd");
    told.append(made("span", { class: "value" }, value), ...notes.map((note) => made("small", {}, note)));
    figure.append(made("dt", {}, name), told);
    return figure;
  };
  const showLayers = (network) => {
    one("[data-removed]").textContent = network.removed;
    const fill = (cell, share) => one(".fill", cell.closest("tr")).setAttribute("width", `${100 * share}%`);
    for (const cell of all("[data-kept]")) {
      const kept = network.kept[Number(cell.dataset.kept)];
      cell.textContent = kept;
      fill(cell, kept / Number(cell.dataset.of));
    }
    for (const cell of all("[data-ms]")) {
      const ms = network.kernel_ms[Number(cell.dataset.ms)];
      cell.textContent = ms === "0" ? "gone" : ms;
      fill(cell, Number(ms.replaceAll(",", "")) / Number(cell.dataset.most));
    }
    const total = one("#kernels-after");
    if (total) total.textContent = network.kernel_total;
  };
  const current = () => networks.findIndex((n) => n.trial === Number(one("[data-trial-number]").textContent));
  const step = (by) => {
    const index = Math.min(Math.max(current() + by, 0), networks.length - 1);
    select(networks[index].trial);
  };
  for (const button of all("[data-step]")) button.addEventListener("click", () => step(Number(button.dataset.step)));
  for (const link of all("a.pick")) link.addEventListener("click", () => select(Number(link.textContent)));
  const steps = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -networks.length, End: networks.length };
  for (const mark of all("[role=radio]")) {
    mark.addEventListener("click", () => select(Number(mark.dataset.trial)));
    mark.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") select(Number(mark.dataset.trial));
      else if (event.key in steps) {
        step(steps[event.key]);
        one("[aria-checked=true]", mark.parentNode)?.focus();
      } else return;
      event.preventDefault();
    });
  }
  if (networks.length && one("[data-trial-number]")) select(Number(one("[data-trial-number]").textContent));

  // What a point says when it is pointed at.
  const widths = (kept) => {
    const bars = made("svg", { viewBox: `0 0 ${kept.length} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
    kept.forEach((units, index) => {
      const share = units / sizes[index];
      bars.append(made("rect", { class: "slot", x: index + 0.08, width: 0.84, height: 1 }));
      bars.append(made("rect", { class: "fill", x: index + 0.08, width: 0.84, height: share, y: 1 - share }));
    });
    return bars;
  };
  const show = (chart, lines, kept, x, y) => {
    hide(chart);
    const tip = made("div", { class: "tip" });
    tip.append(...lines.map((line) => made("div", {}, line)));
    if (kept.length && sizes.length === kept.length) tip.append(widths(kept));
    chart.append(tip);
    const place = chart.getBoundingClientRect();
    const left = Math.min(Math.max(x - place.left - tip.offsetWidth / 2, 0), place.width - tip.offsetWidth);
    const above = y - place.top - tip.offsetHeight - 16;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < 0 ? y - place.top + 18 : above}px`;
  };
  const hide = (chart) => one(".tip", chart)?.remove();
  const describe = (chart, mark) => {
    const { left, right, top } = one("svg", mark).getBoundingClientRect();
    const network = byTrial.get(Number(mark.dataset.trial));
    const value = (name) => network?.cards.find((card) => card.name === name)?.value;
    const counts = network ? [`${value("MACs per batch")} MACs, ${value("Parameters")} parameters`] : [];
    const kept = network?.kept ?? [];
    if (kept.length) counts.push("units kept per group:");
    show(chart, [...mark.getAttribute("aria-label").split(": "), ...counts], kept, (left + right) / 2, top);
  };
  for (const chart of all(".chart")) {
    for (const mark of all(".mark", chart)) {
      mark.addEventListener("pointerenter", () => describe(chart, mark));
      mark.addEventListener("pointerleave", () => hide(chart));
      mark.addEventListener("focus", () => mark.matches(":focus-visible") && describe(chart, mark));
      mark.addEventListener("blur", () => hide(chart));
    }
    const cloud = one("path.dominated", chart);
    if (cloud) listen(chart, cloud);
  }
  // The dominated trials are one path; the nearest of its points answers.
  function listen(chart, cloud) {
    const said = cloud.dataset.said.split(";");
    const points = [...cloud.getAttribute("d").matchAll(/M(-?\d+) (-?\d+)h0/g)].map((m) => [Number(m[1]), Number(m[2])]);
    const plot = one(".plot", chart);
    plot.addEventListener("pointermove", (event) => {
      if (event.target.closest(".mark")) return;
      const box = plot.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width;
      const y = (event.clientY - box.top) / box.height;
      let nearest = -1;
      let least = 12 ** 2;
      points.forEach((point, index) => {
        const away = ((point[0] / 1e4 - x) * box.width) ** 2 + ((point[1] / 1e4 - y) * box.height) ** 2;
        if (away < least) [nearest, least] = [index, away];
      });
      if (nearest < 0) return hide(chart);
      const [px, py] = points[nearest].map((value) => value / 1e4);
      const [name, values] = said[nearest].split(": ");
      show(chart, [`${name}, dominated`, values], [], box.left + px * box.width, box.top + py * box.height);
    });
    plot.addEventListener("pointerleave", () => hide(chart));
  }

  for (const button of all("button.copy")) {
    const code = one("code", button.closest(".command"));
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        // Some browsers give local files no clipboard: select the text for the copy key.
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
})();
