// Light or dark: as the system says, or as the reader chose. A browser that keeps nothing for files forgets the choice.

const THEMES = ["auto", "light", "dark"];

function keptTheme(chosen) {
  try {
    if (chosen !== undefined) localStorage.setItem("howlow-theme", chosen);
    return localStorage.getItem("howlow-theme");
  } catch {
    return null;
  }
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const button = byId("theme");
  if (button) {
    button.dataset.chosen = theme;
    button.textContent = `Theme: ${theme}`;
  }
}

function startTheme() {
  const button = byId("theme");
  button.hidden = false;
  setTheme(THEMES.includes(keptTheme()) ? keptTheme() : "auto");
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(button.dataset.chosen) + 1) % THEMES.length];
    keptTheme(next);
    setTheme(next);
  });
}
