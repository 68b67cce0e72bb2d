"use strict";
(() => {
  // The values of a mark are its <title>; with a script they show at once and on focus too.
  const tip = document.getElementById("tip");
  const place = (mark) => {
    const box = mark.getBoundingClientRect();
    tip.textContent = mark.dataset.values;
    tip.hidden = false;
    const left = box.left + box.width / 2 - tip.offsetWidth / 2;
    const edge = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = window.scrollX + Math.max(8, Math.min(left, edge)) + "px";
    tip.style.top = window.scrollY + (above > 0 ? above : box.bottom + 8) + "px";
  };
  const hide = () => { tip.hidden = true; };
  for (const title of document.querySelectorAll(".plot title")) {
    const mark = title.parentNode;
    mark.dataset.values = title.textContent;
    title.remove();
    mark.addEventListener("pointerenter", () => place(mark));
    mark.addEventListener("pointerleave", hide);
    mark.addEventListener("focus", () => place(mark));
    mark.addEventListener("blur", hide);
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  for (const button of document.querySelectorAll("button.copy")) {
    const code = button.parentNode.querySelector("code");
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        // Some browsers give local files no clipboard: select the text for the copy key.
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
})();
