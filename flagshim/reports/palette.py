"""Colours of what is shown on a terminal; the words say everything without them, too."""

from dataclasses import dataclass

import click


@dataclass(frozen=True)
class Palette:
    """Dresses text that is already printable in colours, or leaves it."""

    enabled: bool = False

    def good(self, text: str) -> str:
        """Dress what flagshim is there for."""
        return self._dress(text, "green")

    def fair(self, text: str) -> str:
        """Dress what one may want to know."""
        return self._dress(text, "yellow")

    def bad(self, text: str) -> str:
        """Dress what one does not want."""
        return self._dress(text, "red")

    def heading(self, text: str) -> str:
        """Dress a heading."""
        return click.style(text, bold=True) if self.enabled and text else text

    def _dress(self, text: str, color: str) -> str:
        return click.style(text, fg=color) if self.enabled and text.strip() else text


PLAIN = Palette()
