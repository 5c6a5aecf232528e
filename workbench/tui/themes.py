"""Themes of the workbench besides Textual's own: high contrast, dark and light. Colours live here and nowhere else."""

from __future__ import annotations

from typing import Final

from textual.theme import Theme

QWB_DARK: Final = Theme(
    name="qwb-dark",
    primary="#4c9be8",
    secondary="#6fb3a8",
    accent="#e8b04c",
    warning="#e8b04c",
    error="#ef6b73",
    success="#79c98a",
    foreground="#d8dee6",
    background="#12161c",
    surface="#181d25",
    panel="#222934",
    dark=True,
)
QWB_LIGHT: Final = Theme(
    name="qwb-light",
    primary="#1f5fa8",
    secondary="#20776a",
    accent="#96590a",
    warning="#96590a",
    error="#b3202c",
    success="#1f7a36",
    foreground="#1c2126",
    background="#f6f7f9",
    surface="#ffffff",
    panel="#e4e8ee",
    dark=False,
)
HIGH_CONTRAST: Final = Theme(
    name="high-contrast",
    primary="#00ffff",
    secondary="#00ff7f",
    accent="#ffff00",
    warning="#ffff00",
    error="#ff8080",
    success="#00ff00",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#1a1a1a",
    boost="#303030",
    dark=True,
    luminosity_spread=0.3,
    text_alpha=1.0,
    variables={
        "text-muted": "#e0e0e0",
        "text-disabled": "#c0c0c0",
        "border": "#ffffff",
        "block-cursor-text-style": "bold",
    },
)
HIGH_CONTRAST_LIGHT: Final = Theme(
    name="high-contrast-light",
    primary="#0000c0",
    secondary="#005000",
    accent="#800080",
    warning="#704000",
    error="#a00000",
    success="#005000",
    foreground="#000000",
    background="#ffffff",
    surface="#ffffff",
    panel="#e8e8e8",
    dark=False,
    luminosity_spread=0.3,
    text_alpha=1.0,
    variables={
        "text-muted": "#202020",
        "text-disabled": "#404040",
        "border": "#000000",
        "block-cursor-text-style": "bold",
    },
)
OWN_THEMES: Final = (QWB_DARK, QWB_LIGHT, HIGH_CONTRAST, HIGH_CONTRAST_LIGHT)
CYCLE: Final = (*(theme.name for theme in OWN_THEMES), "textual-dark", "nord", "gruvbox", "solarized-light")
