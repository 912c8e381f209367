"use strict";
for (const legend of document.querySelectorAll(".legend")) {
  const part = legend.closest("section");
  const keys = [...legend.querySelectorAll(".key")];
  const of = (key) => part.querySelectorAll("svg .s" + key.dataset.series);
  const show = (key, on) => {
    key.setAttribute("aria-pressed", String(on));
    for (const one of of(key)) one.classList.toggle("off", !on);
  };
  const light = (key, on) => {
    part.classList.toggle("dim", on && key.getAttribute("aria-pressed") === "true");
    for (const one of of(key)) one.classList.toggle("hot", on);
  };
  for (const key of keys) {
    key.addEventListener("click", () => {
      show(key, key.getAttribute("aria-pressed") !== "true");
      light(key, false);
    });
    key.addEventListener("mouseenter", () => light(key, true));
    key.addEventListener("mouseleave", () => light(key, false));
    key.addEventListener("focus", () => { if (key.matches(":focus-visible")) light(key, true); });
    key.addEventListener("blur", () => light(key, false));
  }
  for (const all of legend.querySelectorAll(".all")) {
    all.addEventListener("click", () => keys.forEach((key) => show(key, all.dataset.all === "1")));
  }
}
