// The slider of k' ranks again at once; every other choice sends the form. Without script the Search button does both.
"use strict";

const form = document.getElementById("ask");

function address() {
  return new URLSearchParams(new FormData(form));
}

const waiting = {};

async function rankAgain(slider) {
  const side = slider.dataset.side;
  const stop = Number(slider.dataset.stops.split(" ")[slider.value]).toLocaleString("en");
  slider.nextElementSibling.textContent = stop;
  slider.setAttribute("aria-valuetext", stop + " tokens");
  if (!form.elements.q.value.trim()) return;
  waiting[side]?.abort();
  waiting[side] = new AbortController();
  const asked = address();
  history.replaceState(null, "", "/?" + asked);
  asked.set("side", side);
  try {
    const answer = await fetch("/column?" + asked, { signal: waiting[side].signal });
    document.getElementById(side).innerHTML = await answer.text();
  } catch (error) {
    if (error.name !== "AbortError") document.getElementById(side).textContent = "The server does not answer.";
  }
}

for (const slider of document.querySelectorAll("input[type=range]")) {
  slider.addEventListener("input", () => rankAgain(slider));
}
for (const choice of document.querySelectorAll("select")) {
  choice.addEventListener("change", () => form.requestSubmit());
}
