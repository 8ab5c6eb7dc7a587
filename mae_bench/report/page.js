"use strict";
// what a reader does with a table: sort it by a column, and leave in it the lines that hold a word
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const number = (text) => parseFloat(text.replaceAll(",", ""));
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const lines = [...body.rows];
      const text = (line) => line.cells[column].textContent;
      const numeric = lines.every((line) => text(line) === "" || text(line) === "-" || !isNaN(number(text(line))));
      const order = (a, b) => numeric
        ? (isNaN(number(a)) ? -Infinity : number(a)) - (isNaN(number(b)) ? -Infinity : number(b))
        : a.localeCompare(b);
      lines.sort((a, b) => (down ? -1 : 1) * order(text(a), text(b)));
      body.append(...lines);
    });
  });
  if (body.rows.length > 4) {
    const label = document.createElement("label");
    label.className = "search";
    label.textContent = "Search";
    const input = document.createElement("input");
    input.type = "search";
    input.setAttribute("aria-label", "Search: " + table.caption.textContent);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      for (const line of body.rows) {
        const text = line.textContent.toLowerCase();
        line.hidden = !words.every((word) => text.includes(word));
      }
    });
    label.append(input);
    table.parentElement.before(label);
  }
}
// charts that say what is under the pointer take the place of those that are drawn
const specifications = JSON.parse(document.getElementById("specifications").textContent);
for (const place of document.querySelectorAll("[data-chart]")) {
  const drawn = document.createElement("div");
  drawn.setAttribute("aria-hidden", "true");
  vegaEmbed(drawn, specifications[place.dataset.chart], { renderer: "svg", actions: false })
    .then(() => { place.replaceChildren(drawn); place.dataset.live = "yes"; });
}
