"use strict";
(() => {
  // A figure names colours of the page; what they are depends on the reader's colour scheme.
  const plots = document.querySelectorAll(".plot");
  const draw = (width) => {
    const style = getComputedStyle(document.documentElement);
    const colour = (key, value) => {
      const name = typeof value === "string" && /^var\((--\w+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    };
    for (const plot of plots) {
      const figure = JSON.parse(plot.nextElementSibling.textContent, colour);
      // A finger that starts on a figure scrolls the page.
      if (matchMedia("(pointer: coarse)").matches) figure.layout.dragmode = false;
      Object.assign(figure.layout, { width, autosize: !width });
      Plotly.react(plot, figure.data, figure.layout, { displayModeBar: false, responsive: true });
    }
  };
  const print = (printing) => {
    document.documentElement.classList.toggle("printing", printing);
    draw(printing ? 680 : undefined);
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));

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
