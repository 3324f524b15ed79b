"""The end of a run: its figures and every truth that was violated, printed and written."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from job_files import Json
from soak.history import End, Violation
from soak.service_truths import Bounds, Sample

_SHOWN = 40
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Report:
    """What one run was, and what it found."""

    BOUNDS: ClassVar[Bounds] = Bounds()

    folder: Path
    seed: int
    seconds: float
    ground: str
    skipped: list[str]
    figures: Counter[str]
    violations: list[Violation]
    samples: list[Sample]
    begun: float
    ends: list[End]
    executions: int
    stalest_s: float

    def document(self) -> Json:
        """Everything, as report.json has it; sizes in bytes, times in seconds."""
        lines = max(self.figures["requests"], 1)
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "filesystem": self.ground,
            "skipped": self.skipped,
            "executions": self.executions,
            "executions_per_request": round(self.figures["executions"] / lines, 3),
            "daemon_ends": dict(Counter(end.asked or f"status {end.status}" for end in self.ends)),
            "health_oldest_s": round(self.stalest_s, 2),
            "process": self._process(),
            "figures": dict(sorted(self.figures.items())),
            "violations": [asdict(violation) for violation in self.violations],
        }

    def _process(self) -> Json:
        if not self.samples:
            return {}
        idle = [sample for sample in self.samples if sample.idle] or self.samples
        return {
            "rss_first": idle[0].rss_bytes,
            "rss_last": idle[-1].rss_bytes,
            "rss_peak": max(sample.peak_bytes for sample in self.samples),
            "descriptors_first": idle[0].descriptors,
            "descriptors_last": idle[-1].descriptors,
            "descriptors_most": max(sample.descriptors for sample in self.samples),
            "ledger_most": max(sample.ledger_bytes for sample in self.samples),
            "log": self.samples[-1].log_bytes,
            "log_per_hour": round(self.samples[-1].log_bytes * 3600 / max(self.seconds, 1)),
        }

    def write(self) -> Path:
        """Write report.json into the folder."""
        path = self.folder / "report.json"
        path.write_text(json.dumps(self.document(), indent=1) + "\n", encoding="utf-8")
        return path

    def text(self) -> str:
        """What is printed."""
        document = self.document()
        figures = document["figures"]
        rows = [f"soak: seed {self.seed}, {self.seconds:.0f} s on {self.ground}"]
        if self.skipped:
            rows.append(f"  without: {', '.join(self.skipped)}")
        rows += [f"  {name:44} {count:>10,}" for name, count in figures.items() if count]
        rows.append(f"  executions per request {document['executions_per_request']}")
        rows.append(f"  ends of the daemon {document['daemon_ends']}")
        rows.append(f"  the health was {self.stalest_s:.1f} s old at most")
        for name, size in document["process"].items():
            shown = f"{size:,}" if name.startswith("descr") else f"{size / _MIB:.1f} MiB"
            rows.append(f"  {name:30} {shown}")
        if not self.violations:
            rows.append("soak: every truth held")
            return "\n".join(rows)
        rows.append(f"soak: FAILED, {len(self.violations)} violations; seed {self.seed}")
        for v in self.violations[:_SHOWN]:
            at = f" at {v.at - self.begun:.1f} s" if v.at else ""
            rows.append(f"  {v.code}{at}: {v.what}")
        rows.append(f"  kept in {self.folder}: actions.jsonl, daemon.log, server.jsonl, spool/")
        return "\n".join(rows)
