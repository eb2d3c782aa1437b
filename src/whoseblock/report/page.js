"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const COLUMNS = 64, ROWS = 16, CELLS = COLUMNS * ROWS, SECTOR = 512;
  const SVG = "http://www.w3.org/2000/svg";
  const UNITS = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

  function size(number) {
    let unit = -1;
    while (number >= 1024 && unit < UNITS.length - 1) { number /= 1024; unit += 1; }
    return unit < 0 ? `${number} B` : `${Number(number.toPrecision(3))} ${UNITS[unit]}`;
  }

  // ---------------------------------------------------------------- the maps

  class DeviceMap {
    constructor(figure, areas) {
      this.areas = areas;
      this.figure = figure;
      this.svg = figure.querySelector(".cells");
      this.whole = Math.max(areas.cell * CELLS, SECTOR * CELLS);
      this.start = 0;
      this.length = this.whole;
      // The longest area bounds how far before a place one that covers it can begin.
      this.longest = areas.lengths.reduce((most, one) => Math.max(most, one), 0);
      figure.querySelector(".tools").hidden = false;
      this.svg.classList.add("zoomable");
      this.svg.tabIndex = 0;
      for (const button of figure.querySelectorAll("button"))
        button.addEventListener("click", () => this.act(button.dataset.do));
      this.svg.addEventListener("click", event => this.zoomTo(this.placeOf(event)));
      this.svg.addEventListener("keydown", event => this.key(event));
    }

    placeOf(event) {
      const box = this.svg.getBoundingClientRect();
      const column = Math.min(Math.floor((event.clientX - box.left) / box.width * COLUMNS), COLUMNS - 1);
      const row = Math.min(Math.floor((event.clientY - box.top) / box.height * ROWS), ROWS - 1);
      return this.start + (row * COLUMNS + column) * this.length / CELLS;
    }

    // Show 1/16 of what is shown, around a place.
    zoomTo(place, length = this.length / 16) {
      this.length = Math.min(Math.max(length, SECTOR * CELLS), this.whole);
      const cell = this.length / CELLS;
      const start = Math.floor((place - this.length / 2) / cell) * cell;
      this.start = Math.max(Math.min(start, this.whole - this.length), 0);
      this.draw();
    }

    act(what) {
      const middle = this.start + this.length / 2;
      if (what === "in") this.zoomTo(this.firstShown() ?? middle);
      else if (what === "out") this.zoomTo(middle, this.length * 16);
      else if (what === "all") this.zoomTo(0, this.whole);
      else this.jump(what === "next" ? 1 : -1);
    }

    key(event) {
      const moves = {ArrowLeft: -.5, ArrowRight: .5, ArrowUp: -1, ArrowDown: 1};
      if (event.key in moves)
        this.zoomTo(this.start + this.length / 2 + moves[event.key] * this.length, this.length);
      else if (event.key === "+" || event.key === "Enter") this.act("in");
      else if (event.key === "-") this.act("out");
      else if (event.key === "0" || event.key === "Home") this.act("all");
      else return;
      event.preventDefault();
    }

    // The index of the first area that starts at a place or later.
    indexOf(place) {
      let low = 0, high = this.areas.starts.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.areas.starts[middle] < place) low = middle + 1; else high = middle;
      }
      return low;
    }

    firstShown() {
      const start = this.areas.starts[this.indexOf(this.start)];
      return start < this.start + this.length ? start : undefined;
    }

    // Go to the next area before or after what is shown.
    jump(direction) {
      const starts = this.areas.starts;
      if (!starts.length) return;
      const zoomed = this.length < this.whole;
      let index;
      if (direction > 0) index = zoomed ? this.indexOf(this.start + this.length) : 0;
      else index = (zoomed ? this.indexOf(this.start) : starts.length) - 1;
      index = (index + starts.length) % starts.length;
      this.zoomTo(starts[index], zoomed ? this.length : this.whole / 16);
    }

    draw() {
      const cell = this.length / CELLS, end = this.start + this.length;
      const kinds = new Array(CELLS).fill(0);
      const {starts, lengths} = this.areas;
      for (let index = this.indexOf(this.start - this.longest); index < starts.length; index += 1) {
        if (starts[index] >= end) break;
        const first = Math.max(Math.floor((starts[index] - this.start) / cell), 0);
        const last = Math.min(Math.ceil((starts[index] + lengths[index] - this.start) / cell), CELLS);
        for (let number = first; number < last; number += 1)
          kinds[number] |= 1 << this.areas.kinds[index];
      }
      for (const old of this.svg.querySelectorAll(".cell")) old.remove();
      kinds.forEach((bits, number) => {
        const start = this.start + number * cell;
        const past = start >= this.areas.size;
        if (!bits && !past) return;
        const rect = document.createElementNS(SVG, "rect");
        const names = data.kinds.filter((_, rank) => bits >> rank & 1);
        rect.setAttribute("class", `cell ${names[0] ?? "past"}`);
        rect.setAttribute("x", number % COLUMNS);
        rect.setAttribute("y", Math.floor(number / COLUMNS));
        rect.setAttribute("width", 1);
        rect.setAttribute("height", 1);
        const title = document.createElementNS(SVG, "title");
        const words = names.map(name => data.meaning[name].split(":")[0]).join(", ");
        title.textContent = `from 0x${start.toString(16)}, ${size(cell)}: ${words || "past the end"}`;
        rect.append(title);
        this.svg.append(rect);
      });
      this.figure.querySelector(".scale").textContent = `Each cell is ${size(cell)}.`;
      const shown = Math.min(end, Math.max(this.areas.size, this.start));
      this.figure.querySelector(".place").textContent =
        `From 0x${this.start.toString(16)} to 0x${shown.toString(16)}.`;
      const may = {in: cell > SECTOR, out: this.length < this.whole, all: this.length < this.whole};
      for (const button of this.figure.querySelectorAll("button"))
        button.disabled = may[button.dataset.do] === false;
    }
  }

  const maps = [...document.querySelectorAll("figure.map")].map(figure => {
    const map = new DeviceMap(figure, data.maps[figure.dataset.map]);
    map.draw();
    return map;
  });

  // ---------------------------------------------------------------- the files

  const table = document.getElementById("lost");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows];

  for (const row of rows) {
    if (row.dataset.map === undefined) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Show on the map";
    button.className = "show";
    button.addEventListener("click", () => {
      const map = maps[row.dataset.map];
      map.zoomTo(Number(row.dataset.start), SECTOR * CELLS);
      map.figure.scrollIntoView();
      map.svg.focus({preventScroll: true});
    });
    row.cells[0].append(button);
  }

  const input = document.getElementById("search"), found = document.getElementById("found");
  input.closest(".search").hidden = false;
  const texts = rows.map(row => row.cells[0].querySelector(".name").textContent.toLowerCase()
    + [...row.cells[0].querySelectorAll("li")].map(one => "\n" + one.textContent.toLowerCase()).join(""));
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    let count = 0;
    rows.forEach((row, index) => {
      row.hidden = !texts[index].includes(wanted);
      if (!row.hidden) count += 1;
    });
    found.textContent = wanted ? `${count} of ${rows.length}` : "";
  });

  const collator = new Intl.Collator(undefined, {numeric: true});
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.textContent = "";
    head.append(button);
    const isNumber = head.dataset.sort === "number";
    const value = row => {
      const cell = row.cells[column];
      return isNumber ? Number(cell.dataset.value) : (cell.querySelector(".name") ?? cell).textContent;
    };
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      const descending = was ? was === "ascending" : isNumber;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const keyed = rows.map(row => [value(row), row]);
      keyed.sort(([a], [b]) => (isNumber ? a - b : collator.compare(a, b)) * (descending ? -1 : 1));
      body.append(...keyed.map(([, row]) => row));
    });
  });
})();
