"use strict";
document.documentElement.classList.add("scripted");

for (const stack of document.querySelectorAll(".stack")) {
  const slider = stack.querySelector("input");
  const place = stack.querySelector("output");
  const slides = stack.querySelectorAll("img");
  if (!slider) continue;
  const show = () => {
    slides.forEach((slide, index) => { slide.hidden = index !== slider.valueAsNumber; });
    place.textContent = slides[slider.valueAsNumber].dataset.label;
    slider.setAttribute("aria-valuetext", place.textContent);
  };
  slider.addEventListener("input", show);
  show();
}

const openTarget = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") {
    target.open = true;
    target.scrollIntoView();
  }
};
addEventListener("hashchange", openTarget);
openTarget();

for (const button of document.querySelectorAll("button[data-open]")) {
  button.addEventListener("click", () => {
    document.querySelectorAll("details.case").forEach((item) => { item.open = button.dataset.open === "all"; });
  });
}

// Python writes an infinite number as inf.
const parse = (written) => Number(written.replace("inf", "Infinity"));

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  table.caption.append("; a click on a heading sorts");
  const order = new Intl.Collator(undefined, { numeric: true });
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const text = (row) => row.cells[column].textContent.trim();
      const rows = [...body.rows].sort((one, other) => {
        if (value(one) === undefined) return (down ? -1 : 1) * order.compare(text(one), text(other));
        // What has no value stays last in either direction.
        if (value(one) === "" || value(other) === "") return (value(one) === "") - (value(other) === "");
        const [x, y] = [parse(value(one)), parse(value(other))];
        return x === y ? 0 : (x < y) === down ? 1 : -1;
      });
      body.append(...rows);
    });
  });
}
