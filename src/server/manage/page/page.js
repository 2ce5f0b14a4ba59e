// The page works without this script. It adds a button that copies, selects a new key, and searches while the user types.
"use strict";

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const word = button.textContent;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not copied";
    }
    announce(button.textContent);
    setTimeout(() => { button.textContent = word; }, 2000);
  });
}

for (const input of document.querySelectorAll("input[data-select]")) {
  input.addEventListener("focus", () => input.select());
  input.focus();
}

// Announces a text to screen readers.
function announce(text) {
  let region = document.getElementById("said");
  if (!region) {
    region = document.createElement("p");
    region.id = "said";
    region.className = "hidden";
    region.setAttribute("role", "status");
    document.body.append(region);
  }
  region.textContent = text;
}

// Replaces only the results, so that the field keeps its focus. Drops the response to all but the newest request.
for (const form of document.querySelectorAll("form[data-live]")) {
  let asked = 0;
  const search = async () => {
    const number = ++asked;
    const fields = [...new FormData(form)].filter(([, value]) => value !== "");
    const url = location.pathname + "?" + new URLSearchParams(fields);
    const response = await fetch(url, { headers: { accept: "text/html" }, redirect: "error" }).catch(() => null);
    if (number !== asked || !response || !response.ok) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const results = page.getElementById(form.dataset.live);
    if (number !== asked || !results) return;
    document.getElementById(form.dataset.live).replaceWith(document.adoptNode(results));
    history.replaceState(null, "", url);
  };
  let timer;
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, 150);
  });
}

// On a narrow screen, scrolls the navigation to the current entry.
document.querySelector(".side nav [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
