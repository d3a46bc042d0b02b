// The values of a chart's curves below the pointer.
for (const chart of document.querySelectorAll(".chart[data-across]")) {
  const numbers = (name) => chart.dataset[name].split(",").map(Number);
  const [low, high, timed] = numbers("across");
  const [bottom, top, lowest, logarithmic] = numbers("up");
  const svg = chart.querySelector("svg"), width = svg.viewBox.baseVal.width;
  const cross = document.createElementNS("http://www.w3.org/2000/svg", "path"), text = document.createElement("div");
  cross.setAttribute("class", "cross");
  text.className = "read";
  svg.append(cross);
  chart.append(text);
  const lines = [...svg.querySelectorAll("path.line")].map((line) => [
    line.dataset.label, line.getAttribute("d").slice(1).split(/[ML]/).map((point) => point.split(",").map(Number))]);
  const short = (value) => Number(value.toPrecision(4)).toString();
  const clock = (value) => value < 60 ? short(value) + " s"
    : value < 3600 ? Math.floor(value / 60) + " min " + Math.floor(value % 60) + " s"
    : Math.floor(value / 3600) + " h " + Math.floor(value % 3600 / 60) + " min";
  const valueAt = (y) => {
    const share = 1 - y / lowest;
    return logarithmic ? 10 ** (Math.log10(bottom) + share * (Math.log10(top) - Math.log10(bottom)))
      : bottom + share * (top - bottom);
  };
  const nearest = (points, x) =>
    points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
  chart.addEventListener("mousemove", (event) => {
    const box = svg.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width, x = share * width;
    if (share < 0 || share > 1) return;
    cross.setAttribute("d", `M${x} 0V${lowest}`);
    const at = low + share * (high - low);
    text.textContent = [timed ? clock(at) : "step " + Math.round(at),
      ...lines.map(([label, points]) => label + " " + short(valueAt(nearest(points, x)[1])))].join(" · ");
  });
  chart.addEventListener("mouseleave", () => { cross.setAttribute("d", ""); text.textContent = ""; });
}
// A table is sorted by the column whose heading is clicked; a second click turns it round.
for (const head of document.querySelectorAll("table.sorts th")) {
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], index = head.cellIndex, sign = head.dataset.up ? -1 : 1;
    for (const other of head.parentNode.children) delete other.dataset.up;
    if (sign > 0) head.dataset.up = "1";
    const value = (row) => { const text = row.cells[index].textContent, number = parseFloat(text.replace(/,/g, "")); return isNaN(number) ? text : number; };
    const order = (one, other) => typeof one !== typeof other ? (typeof one === "number" ? -1 : 1) : one < other ? -sign : one > other ? sign : 0;
    body.append(...[...body.rows].sort((one, other) => order(value(one), value(other))));
  });
}
