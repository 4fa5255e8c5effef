"""The place at which a rule of a node's policy is written: file, line and key, or a person's decision with its time."""

from pathlib import Path

from ..study.toml import MAX_BYTES, key_lines
from . import decision_log
from .decisions import FILE as DECISIONS
from .decisions import load_decisions
from .site_policy import FILE as POLICY

_DEFAULTS = {
    "studies": "default: nothing is approved",
    "studies.unprotected": "default: nothing runs without privacy",
    "studies.runs": "default: one run of a study",
}


class Places:
    """Finds the place of each key, in site.toml and decisions.json as they are when this is made."""

    def __init__(self, home: Path) -> None:
        """Reads both files; site.toml has to be one that was read as a policy before.

        Raises:
            PolicyInvalid: decisions.json is damaged.
        """
        self._home, self._decisions = home, load_decisions(home)
        path = home / POLICY
        self._text = path.read_text(encoding="utf-8")[:MAX_BYTES] if path.exists() else ""
        self._lines = key_lines(self._text)

    def of_key(self, key: str) -> str:
        """Names the line of a key of site.toml; of one that is not there, that its default holds."""
        if (key == "budget" or key.startswith("budget.")) and self._decisions.budget is not None:
            return self._of_cap()
        line = self._lines.get(key)
        return f"{POLICY}:{line} {key}" if line else f"default of {key}"

    def of_study(self, key: str, study_hash: str) -> str:
        """Names the place at which people decided about one study: a command's decision, or a line of site.toml.

        Args:
            key: `studies` for the approval, `studies.unprotected` or `studies.runs`.
        """
        decision = self._decisions.studies.get(study_hash)
        if decision is not None:
            when = f" on {decision.decided}" if decision.decided else ""
            return f"{DECISIONS}: {decision.verdict} by {decision.by or 'somebody'}{when}"
        listed = ("studies.approved", "studies.unprotected") if key == "studies" else (key,)
        for each in listed:
            begin = self._lines.get(each)
            place = self._lines.get(f"{each}.{study_hash}") or (begin and self._line_with(study_hash, begin))
            if place:
                return f"{POLICY}:{place} {each}"
        return _DEFAULTS[key]

    def _of_cap(self) -> str:
        entries, _ = decision_log.read(self._home)
        last = next((each for each in reversed(entries) if each.decision == "cap"), None)
        return f"{DECISIONS}: budget" + (f" by {last.by} on {last.at}" if last else "")

    def _line_with(self, word: str, begin: int) -> int | None:
        """Finds the first line from `begin` on that holds `word`; keys of other lists come with a line of their own."""
        ends = [line for line in self._lines.values() if line > begin]
        lines = self._text.splitlines()
        for number in range(begin, min(ends, default=len(lines) + 1)):
            if word in lines[number - 1]:
                return number
        return None
