// The values of a chart's curves below the pointer.
for (const chart of document.querySelectorAll("svg.chart")) {
  const numbers = (name) => chart.dataset[name].split(",").map(Number);
  const [low, high, left, right, timed] = numbers("across");
  const [bottom, top, lowest, highest, logarithmic] = numbers("up");
  const element = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
  const cross = element("path"), text = element("text");
  cross.setAttribute("class", "cross");
  text.setAttribute("class", "read end");
  text.setAttribute("x", right - 4);
  text.setAttribute("y", 11);
  chart.append(cross, text);
  const lines = [...chart.querySelectorAll("path.line")].map((line) => [
    line.dataset.label, line.getAttribute("d").slice(1).split(/[ML]/).map((point) => point.split(",").map(Number))]);
  const short = (value) => Number(value.toPrecision(4)).toString();
  const clock = (value) => value < 60 ? short(value) + " s"
    : value < 3600 ? Math.floor(value / 60) + " min " + Math.floor(value % 60) + " s"
    : Math.floor(value / 3600) + " h " + Math.floor(value % 3600 / 60) + " min";
  const valueAt = (y) => {
    const share = (y - lowest) / (highest - lowest);
    return logarithmic ? 10 ** (Math.log10(bottom) + share * (Math.log10(top) - Math.log10(bottom)))
      : bottom + share * (top - bottom);
  };
  const nearest = (points, x) =>
    points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
  chart.addEventListener("mousemove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
    if (x < left || x > right) return;
    const at = low + (x - left) / (right - left) * (high - low);
    cross.setAttribute("d", `M${x} ${highest}V${lowest}`);
    text.textContent = [timed ? clock(at) : "step " + Math.round(at),
      ...lines.map(([label, points]) => label + " " + short(valueAt(nearest(points, x)[1])))].join(" · ");
  });
  chart.addEventListener("mouseleave", () => { cross.setAttribute("d", ""); text.textContent = ""; });
}
