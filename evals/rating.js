() => {
  const rows = ["helpfulness-0", "safety-0", "helpfulness-1", "safety-1"];
  const better = { a: 0, b: 1, t: 2 };
  let item = null, active = 0, sent = null;
  const find = (id) => document.querySelector(`#${id}`);
  const inputs = (id) => [...(find(id)?.querySelectorAll("input[type=radio]") ?? [])];

  const look = () => { // what is shown now; another item begins at its first row
    const shown = document.querySelector("[data-item]")?.dataset.item ?? null;
    if (shown !== item) { item = shown; active = 0; sent = null; }
    [...rows, "better"].forEach((id, place) => find(id)?.classList.toggle("active", place === active));
  };
  const press = (id) => (find(id)?.matches("button") ? find(id) : find(id)?.querySelector("button"))?.click();

  document.addEventListener("keydown", (event) => {
    look();
    const typing = event.target.matches("textarea, input:not([type=radio])");
    if (typing || item === null || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" && event.target.closest("button")) return; // the button does it
    const key = event.key.toLowerCase();
    if (event.repeat || sent === item) { // a key that is held, or a vote on its way: nothing is pressed twice
      if (key === "enter") event.preventDefault();
      return;
    }
    if (/^[1-5]$/.test(key) && active < rows.length) { inputs(rows[active])[key - 1]?.click(); active += 1; }
    else if (key in better) inputs("better")[better[key]]?.click();
    else if (key === "arrowup") active = Math.max(0, active - 1);
    else if (key === "arrowdown") active = Math.min(rows.length, active + 1);
    else if (key === "backspace") press("back");
    else if (key === "enter") {
      const complete = [...rows, "better"].every((id) => inputs(id).some((input) => input.checked));
      if (complete) { sent = item; setTimeout(() => { if (sent === item) sent = null; }, 3000); } // 3 s: it failed
      press("save");
    } else return;
    event.preventDefault();
    look();
  });
  document.addEventListener("input", (event) => { // the name is there again when the page is loaded again
    if (event.target.closest("#name")) localStorage.setItem("tunebook-rater", event.target.value);
  });
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true });
  look();
  return localStorage.getItem("tunebook-rater") ?? "";
}
