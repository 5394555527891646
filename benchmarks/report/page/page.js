"use strict";
const state = new URLSearchParams(location.search);

function remember(key, value) {
  if (value) state.set(key, value); else state.delete(key);
  const query = state.toString();
  history.replaceState(null, "", location.pathname + (query ? "?" + query : "") + location.hash);
}

function sorted(table, key, direction) {
  const head = [...table.tHead.rows[0].cells];
  const place = head.findIndex((cell) => cell.dataset.key === key);
  if (place < 0) return;
  head.forEach((cell) => cell.removeAttribute("aria-sort"));
  head[place].setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const value = (row) => row.cells[place].dataset.value;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // rows without a value come last
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  });
  table.tBodies[0].append(...rows);
}

function table(section) {
  const form = section.querySelector("form");
  const blocks = [...section.querySelectorAll(".block")];
  const tables = blocks.map((block) => block.querySelector("table"));
  const name = (key) => section.id + "." + key;
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());

  const sort = (key, direction) => {
    tables.forEach((own) => sorted(own, key, direction));
    remember(name("sort"), key + "-" + direction);
  };
  for (const own of tables) {
    for (const cell of own.tHead.rows[0].cells) {
      if (cell.dataset.key === "published") continue;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.append(button);
      const first = ["method", "trainable", "s_per_step", "verdict"].includes(cell.dataset.key) ? "ascending" : "descending";
      button.addEventListener("click", () => {
        const other = first === "ascending" ? "descending" : "ascending";
        sort(cell.dataset.key, cell.getAttribute("aria-sort") === first ? other : first);
      });
    }
  }
  const filter = form.elements.filter;
  const filtered = () => {
    const part = filter.value.trim().toLowerCase();
    for (const row of section.querySelectorAll(".block tbody tr")) row.hidden = !row.dataset.method.toLowerCase().includes(part);
    remember(name("filter"), part);
  };
  filter.addEventListener("input", filtered);
  filter.value = state.get(name("filter")) || "";
  filtered();

  const place = form.elements.place;
  if (place) {
    const wanted = state.get(name("place"));
    if ([...place.options].some((option) => option.value === wanted)) place.value = wanted;
    const placed = () => {
      for (const block of blocks) block.hidden = block.dataset.block !== place.value && !block.classList.contains("released");
      remember(name("place"), place.selectedIndex ? place.value : "");
    };
    place.addEventListener("change", placed);
    placed();
  }
  for (const box of form.querySelectorAll("input[type=checkbox]")) {
    box.addEventListener("change", () => {
      for (const cell of section.querySelectorAll(`[data-key="${box.name}"]`)) cell.hidden = !box.checked;
    });
  }
  const [key, direction] = (state.get(name("sort")) || "").split("-");
  if (direction) sort(key, direction);
}

function gallery(part) {
  const choices = part.querySelector(".choices");
  choices.hidden = false;
  const show = () => {
    const chosen = new Set([...choices.querySelectorAll(":checked")].map((box) => box.value));
    for (const figure of part.querySelectorAll("[data-method]")) figure.hidden = !chosen.has(figure.dataset.method);
  };
  choices.addEventListener("change", show);
  show();
}

const dark = matchMedia("(prefers-color-scheme: dark)").matches;
const ink = dark ? "#eeeeee" : "#1b1b1b";
const lines = dark ? "#444444" : "#dddddd";
const look = {
  background: null,
  axis: {labelColor: ink, titleColor: ink, gridColor: lines, domainColor: lines, tickColor: lines},
  legend: {labelColor: ink, titleColor: ink},
};

async function draw(part) {
  const spec = JSON.parse(document.getElementById(part.dataset.spec).textContent);
  // Errors alone: Vega warns where a chart of fixed height takes the width of the page.
  await vegaEmbed(part, spec, {actions: false, renderer: "svg", config: look, logLevel: 1});
  const drawing = part.querySelector("svg");
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", part.dataset.title);
  part.dataset.drawn = "yes";
}

document.querySelectorAll("section.table").forEach(table);
document.querySelectorAll(".gallery").forEach(gallery);
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    draw(entry.target);
  }
}, {rootMargin: "600px"});
document.querySelectorAll(".chart").forEach((part) => seen.observe(part));
