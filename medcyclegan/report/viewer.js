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
